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

pub async fn connect(cell: &CellSettings) -> Result<PgConnection, StoreError> {
    let connect = async |options| {
        timeout(CONNECT_LIMIT, server::connect(options, READ_LIMIT)).await.unwrap_or(Err(StoreError::TimedOut))
    };
    let mut connection = connect(&cell.database).await?;
    if cell.dialect().is_citus()
        && let Some(owner) = citus::owner(&mut connection).await?
    {
        // Only on the node itself a snapshot is one.
        let mut direct = connect(&owner.options(&cell.database)).await?;
        if citus::is_node(&mut direct, &owner).await? {
            return Ok(direct);
        }
    }
    Ok(connection)
}
