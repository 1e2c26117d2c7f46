//! Which of several cells a command works with.

use crate::domain::caller::Tenant;
use crate::progress::Progress;
use crate::settings::cells::CellSettings;
use crate::start;
use crate::store::directory;

use super::error::CliError;

/// What a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// What the home cell has for all cells, or cells that the command chooses itself.
    Home,
    /// A tenant that is created in the cell that the operator names. The home cell has its keys.
    NewTenant,
    /// Data of this tenant. They are in the cell where it lives.
    Tenant(&'a str),
    /// Data of all tenants of one cell.
    Cell,
}

impl<'a> Scope<'a> {
    /// Data of a tenant, or of all tenants of a cell.
    pub fn of(tenant: Option<&'a String>) -> Self {
        tenant.map_or(Self::Cell, |id| Self::Tenant(id))
    }

    /// The cell with the data; `named` is that of `--cell`. `None` without CELLS_FILE.
    pub async fn cell<'c>(
        self,
        named: Option<&str>,
        cells: &'c [CellSettings],
    ) -> Result<Option<&'c CellSettings>, CliError> {
        match (self, named) {
            (Self::Home, Some(_)) => refused("this command does not take --cell"),
            (Self::NewTenant, _) => Ok(cells.first()),
            (_, Some(id)) => find(cells, id).map(Some),
            (Self::Tenant(id), None) if cells.len() > 1 => {
                cell_of(&Tenant::from_stored(id.to_owned()), cells).await.map(Some)
            }
            (Self::Cell, None) if cells.len() > 1 => refused("CELLS_FILE lists several cells: name one with --cell"),
            _ => Ok(cells.first()),
        }
    }
}

/// Fails if CELLS_FILE has no such cell.
pub fn find<'c>(cells: &'c [CellSettings], id: &str) -> Result<&'c CellSettings, CliError> {
    let found = cells.iter().find(|cell| cell.id.as_str() == id);
    found.ok_or_else(|| CliError::Refused(format!("CELLS_FILE has no cell {id}")))
}

/// The cell where a tenant lives, as the directory in the first of `cells` says.
pub async fn cell_of<'c>(tenant: &Tenant, cells: &'c [CellSettings]) -> Result<&'c CellSettings, CliError> {
    let home = &cells[0];
    let mut connection = start::reach(&home.database, &Progress::default()).await?;
    start::check_identity(&mut connection, &home.id, cells.len() == 1).await?;
    match directory::find(&mut connection, tenant).await? {
        None => refused(&format!("no tenant with id {tenant}")),
        Some(resident) => resident.cell.map_or(Ok(home), |id| find(cells, id.as_str())),
    }
}

/// Fails if data of a tenant were not complete where they were read. What is missing there could look as if a request had not
/// been executed.
pub fn check_complete(tenant: &Tenant, is_complete: bool) -> Result<(), CliError> {
    if is_complete { Ok(()) } else { refused(&format!("no tenant with id {tenant} lives in this database")) }
}

fn refused<T>(text: &str) -> Result<T, CliError> {
    Err(CliError::Refused(text.to_owned()))
}
