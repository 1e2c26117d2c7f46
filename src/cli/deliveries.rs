//! `deliveries`: which webhooks were not reached, and sending to them again.

use std::collections::BTreeSet;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use sqlx::PgConnection;

use crate::command::answers::Resent;
use crate::command::{Answer, TransactionalCommand};
use crate::domain::caller::Tenant;
use crate::domain::delivery::Delivery;
use crate::domain::timestamp::Timestamp;
use crate::store::deliveries::{self, Filter};
use crate::store::redeliveries::{self, Resend, Resendable};
use crate::store::webhook_queues::QueueId;

use super::error::CliError;
use super::moment::{FORMS, Moment};
use super::progress_bar::ProgressBar;
use super::scope::Scope;
use super::session::Session;
use super::table::{FormatOption, Table};
use super::writer::{Write, Writer};

#[derive(Debug, Subcommand)]
pub enum Deliveries {
    /// List deliveries, the newest events first. Finished ones are kept for 7 days.
    List(List),
    /// Send deliveries again: those named, or all that failed since a moment.
    ///
    /// The running service sends them. They keep their ids, by which receivers recognise repetitions. A delivery that fails
    /// for good disables its webhook: enable it first, because deliveries to disabled webhooks are skipped. Exit code 1 if
    /// a named delivery does not exist or is pending.
    Retry(Retry),
}

#[derive(Args, Debug)]
pub struct List {
    #[command(flatten)]
    of: Of,
    #[arg(long, value_enum)]
    status: Option<Status>,
    #[arg(long, value_parser = Moment::parse, help = format!("Only events of this moment or later: {FORMS}"))]
    since: Option<Moment>,
    /// How many are listed.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
    #[command(flatten)]
    format: FormatOption,
}

#[derive(Args, Debug)]
struct Of {
    /// Only deliveries of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// Only deliveries to this webhook.
    #[arg(long)]
    webhook: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Status {
    Pending,
    Delivered,
    Failed,
    Cancelled,
}

impl Status {
    fn as_stored(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

#[derive(Args, Debug)]
pub struct Retry {
    /// The ids of deliveries, in any state: dlv_ and 32 hexadecimal digits.
    #[arg(required_unless_present = "failed_since", num_args = 1..=500)]
    ids: Vec<String>,
    #[arg(long, value_parser = Moment::parse, conflicts_with = "ids",
          help = format!("All deliveries that failed or were cancelled at this moment or later: {FORMS}"))]
    failed_since: Option<Moment>,
    #[command(flatten)]
    of: Of,
    #[command(flatten)]
    format: FormatOption,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    tenant_id: Tenant,
    webhook_id: String,
    #[serde(flatten)]
    delivery: Delivery,
}

impl Of {
    fn filter(&self) -> Filter {
        let tenant = self.tenant.clone().map(Tenant::from_stored);
        Filter { tenant, webhook: self.webhook.clone(), ..Filter::default() }
    }
}

impl Deliveries {
    pub fn scope(&self) -> Scope<'_> {
        let (Self::List(List { of, .. }) | Self::Retry(Retry { of, .. })) = self;
        Scope::of(of.tenant.as_ref())
    }

    pub async fn run(&self, session: &Session<'_>) -> Result<(), CliError> {
        match self {
            Self::List(list) => list.run(session).await,
            Self::Retry(retry) => retry.run(session).await,
        }
    }
}

impl List {
    async fn run(&self, session: &Session<'_>) -> Result<(), CliError> {
        let since = self.since.map(|since| since.before(session.clock.now()));
        let filter = Filter { status: self.status.map(Status::as_stored), since, ..self.of.filter() };
        let read = async |connection: &mut PgConnection| deliveries::find_all(connection, &filter, self.limit).await;
        let lines = session.read_of(filter.tenant.as_ref(), read).await?.into_iter().map(|(queue, delivery)| {
            let QueueId { tenant: tenant_id, webhook: webhook_id } = queue;
            Line { tenant_id, webhook_id, delivery }
        });
        self.format.print(session, &lines.collect::<Vec<_>>(), |lines| to_table(lines)).await
    }
}

fn to_table(lines: &[Line]) -> Table {
    let header =
        ["DELIVERY", "TENANT", "WEBHOOK", "TYPE", "EVENT AT", "STATUS", "ATTEMPTS", "NEXT ATTEMPT", "LAST RESULT"];
    let mut table = Table::with_header(header);
    for Line { tenant_id, webhook_id, delivery } in lines {
        let Delivery { id, event_type, status, attempts, created_at, .. } = delivery;
        let result = match (delivery.response_status, &delivery.error) {
            (Some(status), Some(error)) => format!("{status}: {error}"),
            (Some(status), None) => status.to_string(),
            (None, error) => error.clone().unwrap_or_default(),
        };
        let next = delivery.next_attempt_at.map(Timestamp::to_rfc_3339).unwrap_or_default();
        let (created_at, attempts) = (created_at.to_rfc_3339(), attempts.to_string());
        table.add([id, tenant_id.as_str(), webhook_id, event_type, &created_at, status, &attempts, &next, &result]);
    }
    table
}

#[derive(Serialize)]
struct Retried {
    retried: i64,
    skipped: i64,
}

impl Retry {
    async fn run(&self, session: &Session<'_>) -> Result<(), CliError> {
        let ids: BTreeSet<&String> = self.ids.iter().collect();
        let which = match self.failed_since {
            Some(since) => Resend::FailedSince(since.before(session.clock.now())),
            None => Resend::Deliveries(ids.iter().copied().cloned().collect()),
        };
        let filter = self.of.filter();
        let read = async |connection: &mut PgConnection| redeliveries::resendable(connection, &filter, &which).await;
        let found = session.read_of(filter.tenant.as_ref(), read).await?;
        let matching: i64 = found.iter().map(|found| found.matching).sum();
        if matching < ids.len() as i64 {
            let missing = ids.len() as i64 - matching;
            return Err(CliError::Refused(format!("{missing} of these deliveries do not exist or are pending")));
        }
        let writer = Writer::start(session, &session.settings.committer).await?;
        let progress = ProgressBar::of(matching.unsigned_abs(), "deliveries");
        let mut retried = 0;
        for Resendable { queue, .. } in found.iter().filter(|found| found.is_enabled) {
            retried += resend(&writer, queue, &which, &progress).await?;
        }
        writer.close().await;
        drop(progress);
        let result = Retried { retried, skipped: matching - retried };
        self.format.print(session, &result, Retried::to_table).await
    }
}

async fn resend(writer: &Writer, queue: &QueueId, which: &Resend, progress: &ProgressBar) -> Result<i64, CliError> {
    let mut count = 0;
    loop {
        let QueueId { tenant, webhook } = queue.clone();
        let path = format!("/api/v1/webhooks/{webhook}/deliveries");
        let command = TransactionalCommand::ResendDeliveries { webhook, which: which.clone() }.into();
        match writer.submit(Write { tenant, keyed: None, method: "POST", path, command }).await {
            Answer::Fresh(reply) | Answer::Replayed(reply) => {
                let body = reply.body.unwrap_or_default();
                let Resent { resent, has_more } = serde_json::from_slice(&body).expect("the command's own answer");
                progress.add(resent as usize);
                count += resent;
                if !has_more {
                    return Ok(count);
                }
            }
            Answer::Refused(refusal) => return Err(CliError::Refused(refusal.to_string())),
        }
    }
}

impl Retried {
    fn to_table(&self) -> Table {
        let mut table = Table::default();
        table.add(["sent again", &self.retried.to_string()]);
        table.add(["skipped", &self.skipped.to_string()]);
        table
    }
}
