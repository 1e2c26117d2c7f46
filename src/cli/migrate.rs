//! The command `migrate`. The migrations have been applied when it runs.

use clap::Args;
use sqlx::PgConnection;

use crate::store::roles;

use super::error::CliError;
use super::session::Session;

#[derive(Debug, Args)]
pub struct Migrate {
    /// Then give the database roles their rights, as the owner of the tables (deploy/postgres/grants.sql).
    #[arg(long)]
    pub grants: bool,
}

impl Migrate {
    pub async fn run(&self, connection: &mut PgConnection, session: &Session<'_>) -> Result<(), CliError> {
        self.grant(connection).await?;
        session.print("the schema is up to date".to_owned()).await
    }

    /// Gives the roles their rights if that is asked for.
    pub async fn grant(&self, connection: &mut PgConnection) -> Result<(), CliError> {
        if self.grants {
            roles::grant(connection).await?;
        }
        Ok(())
    }
}
