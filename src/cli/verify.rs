//! `verify`: checks every sum of the database in one snapshot.

use clap::Args;
use serde::Serialize;
use sqlx::PgConnection;
use tokio::sync::mpsc;

use crate::store::{audit, server};

use super::error::CliError;
use super::output::OutputError;
use super::progress_bar::ProgressBar;
use super::session::Session;
use super::table::{Format, FormatOption};

/// About the number of rows of one step of the progress bar.
const STEP_ROWS: i64 = 1_000_000;
/// Findings of the JSON document. All are counted.
const FINDINGS_MAX: usize = 10_000;

#[derive(Args, Debug)]
pub struct Verify {
    #[command(flatten)]
    format: FormatOption,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Verified {
    is_consistent: bool,
    pairs: i64,
    findings: Vec<String>,
    findings_total: u64,
}

impl Verify {
    /// False if something does not add up.
    pub async fn run(&self, connection: &mut PgConnection, session: &Session<'_>) -> Result<bool, CliError> {
        let mut snapshot = server::begin_snapshot(connection).await?;
        let steps = audit::steps(&mut snapshot, STEP_ROWS).await?;
        let progress = ProgressBar::of(steps.len() as u64, "steps");
        let (sender, receiver) = mpsc::channel(1);
        let audit = async {
            for step in &steps {
                if !audit::run(&mut snapshot, step, &sender).await? {
                    break;
                }
                progress.add(1);
            }
            // Ends the other side.
            drop(sender);
            Ok::<_, CliError>(())
        };
        let (audited, told) = tokio::join!(audit, self.tell(receiver, session));
        drop(progress);
        audited?;
        let (findings, findings_total) = match told {
            Ok(told) => told,
            // The reader has closed the pipe. The exit code still reports the findings.
            Err(OutputError::Closed) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let pairs = audit::count_pairs(&mut snapshot).await?;
        let is_consistent = findings_total == 0;
        match self.format.format {
            Format::Json => {
                let verified = Verified { is_consistent, pairs, findings, findings_total };
                session.print(serde_json::to_string(&verified).expect("plain data")).await?;
            }
            Format::Table if is_consistent => session.print(format!("{pairs} pairs add up")).await?,
            Format::Table => {}
        }
        Ok(is_consistent)
    }

    /// Prints findings as they come, or collects them for the JSON document. Returns those, and the number of all.
    async fn tell(
        &self,
        mut receiver: mpsc::Receiver<audit::Finding>,
        session: &Session<'_>,
    ) -> Result<(Vec<String>, u64), OutputError> {
        let (mut findings, mut count) = (Vec::new(), 0);
        while let Some(finding) = receiver.recv().await {
            count += 1;
            match self.format.format {
                Format::Json if findings.len() < FINDINGS_MAX => findings.push(finding),
                Format::Json => {}
                Format::Table => session.output.line(finding).await?,
            }
        }
        Ok((findings, count))
    }
}
