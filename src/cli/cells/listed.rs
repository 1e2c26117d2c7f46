//! The cells of CELLS_FILE, and connections to them.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::timeout;

use crate::cli::error::CliError;
use crate::cli::scope;
use crate::cli::session::{READ_LIMIT, Session};
use crate::settings::cells::CellSettings;
use crate::store::{StoreError, citus, server};

/// How long a command waits for a cell that may be down.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The home cell, which is the first one.
pub fn home<'a>(session: &Session<'a>) -> &'a CellSettings {
    &session.settings.cells[0]
}

/// Fails if the file has no such cell.
pub fn cell<'a>(session: &Session<'a>, id: &str) -> Result<&'a CellSettings, CliError> {
    scope::find(&session.settings.cells, id)
}

/// Connects to the database of a cell. On Citus that is the node that has the schema, once it is distributed.
pub async fn connect(cell: &CellSettings) -> Result<PgConnection, StoreError> {
    let connect = async {
        let connection = server::connect(&cell.database, READ_LIMIT).await?;
        Ok(citus::locate(connection, &cell.database, READ_LIMIT).await?.0)
    };
    timeout(CONNECT_LIMIT, connect).await.unwrap_or(Err(StoreError::TimedOut))
}
