//! `config show`: the settings and limits in force, and where each comes from.

use clap::{Args, Subcommand};
use serde::Serialize;
use sqlx::PgConnection;

use crate::domain::runtime_config::RuntimeConfig;
use crate::settings::Settings;
use crate::settings::variable::Variable;
use crate::store::runtime_config;

use super::error::CliError;
use super::output::Output;
use super::session::Session;
use super::table::{FormatOption, Table};

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Show the settings that a service with this environment has. Secrets are masked.
    ///
    /// Exit code 1, with the reason, if the service would refuse to start with them.
    Show(Show),
}

#[derive(Args, Debug)]
pub struct Show {
    /// Also show the limits in force and whether the service is paused, which are in the database.
    #[arg(long)]
    limits: bool,
    #[command(flatten)]
    format: FormatOption,
}

#[derive(Serialize)]
struct Shown<'a> {
    settings: &'a [Variable],
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<serde_json::Value>,
}

impl Config {
    pub fn needs_database(&self) -> bool {
        let Self::Show(show) = self;
        show.limits
    }

    pub async fn run(&self, session: &Session<'_>) -> Result<(), CliError> {
        let Self::Show(Show { format, .. }) = self;
        let read = async |connection: &mut PgConnection| runtime_config::read(connection).await;
        let RuntimeConfig { limits, paused, .. } = session.read(read).await?;
        let mut limits = serde_json::to_value(limits).expect("plain data");
        limits["paused"] = paused.into();
        let shown = Shown { settings: &session.settings.variables, limits: Some(limits) };
        session.print(format.text(&shown, Shown::to_table)).await
    }

    pub async fn run_without_database(&self, settings: &Settings) -> Result<(), CliError> {
        let Self::Show(Show { format, .. }) = self;
        let shown = Shown { settings: &settings.variables, limits: None };
        Ok(Output::standard()?.line(format.text(&shown, Shown::to_table)).await?)
    }
}

impl Shown<'_> {
    fn to_table(&self) -> Table {
        let mut table = Table::with_header(["SETTING", "VALUE", "SOURCE"]);
        for Variable { name, value, source } in self.settings {
            table.add([name, value.as_deref().unwrap_or("unset"), source.as_str()]);
        }
        for (name, value) in self.limits.iter().filter_map(serde_json::Value::as_object).flatten() {
            table.add([name, &value.to_string(), "database"]);
        }
        table
    }
}
