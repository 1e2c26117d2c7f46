//! Chooses the cell of a new tenant: of the cells that accept tenants and can be used, the one with the fewest tenants for
//! its weight.

use std::time::Instant;

use rand::Rng;
use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::cell::{CellId, Residence};
use crate::domain::identifiers;
use crate::domain::refusal::Refusal;
use crate::query;
use crate::store::directory::{self, CellTenants};
use crate::store::{api_keys, tenants};

use super::Cell;

/// A new tenant, and the cell in which it was created.
pub struct Placed<'a, R> {
    pub tenant: Tenant,
    pub cell: &'a Cell<R>,
}

/// Creates a tenant in the cell that the operator named, or in that with the fewest tenants for its weight. The first of
/// `cells` is the home cell. `None`: the home cell is to create the tenant together with its first key.
pub async fn place<'a, R>(
    cells: &'a [Cell<R>],
    named: Option<&CellId>,
    keys_max: i64,
    rng: &mut impl Rng,
    deadline: Instant,
) -> Result<Option<Placed<'a, R>>, Refusal> {
    let named = named.map(|id| find(cells, id)).transpose()?;
    let [home, _, ..] = cells else { return Ok(None) };
    let read = async |connection: &mut PgConnection| {
        Ok((api_keys::count(connection).await?, directory::accepting(connection).await?))
    };
    let (keys, accepting) = home.reader.read(deadline, read).await?;
    let cell = match named {
        Some(cell) if accepting.iter().all(|accepting| accepting.cell != cell.id) => {
            return Err(Refusal::CellClosed(cell.id.to_string()));
        }
        Some(cell) => cell,
        None => {
            let usable = cells.iter().filter(|cell| cell.availability.reason().is_none());
            let weights = usable.map(|cell| (&cell.id, cell.weight));
            let id = least_filled(weights, &accepting).ok_or(Refusal::StoreUnavailable)?;
            find(cells, id)?
        }
    };
    if cell.id == home.id {
        return Ok(None);
    }
    cell.availability.check()?;
    // The creation of the key checks it again. Nothing deletes a tenant that gets no key.
    if keys >= keys_max {
        return Err(Refusal::ApiKeyCapacity);
    }
    let tenant = Tenant::from_stored(identifiers::draw(rng, "tnt_", 16));
    let now = cell.clock.now();
    let insert = async |connection: &mut PgConnection| tenants::insert(connection, &tenant, Residence::Here, now).await;
    cell.reader.read(deadline, insert).await?;
    Ok(Some(Placed { tenant, cell }))
}

/// Fails unless a tenant, if there is one with this id, lives in the cell that the operator named.
pub async fn check_residence<R>(
    cells: &[Cell<R>],
    named: &CellId,
    tenant: &Tenant,
    deadline: Instant,
) -> Result<(), Refusal> {
    find(cells, named)?;
    let home = &cells[0];
    let resident = query::tenants::find(&home.reader, tenant, deadline).await?;
    let lives_in = resident.map(|resident| resident.cell.unwrap_or_else(|| home.id.clone()));
    match lives_in {
        Some(cell) if cell != *named => {
            Err(Refusal::CellOfTenant { tenant: tenant.to_string(), cell: cell.to_string() })
        }
        _ => Ok(()),
    }
}

/// The cell that the operator named.
fn find<'a, R>(cells: &'a [Cell<R>], id: &CellId) -> Result<&'a Cell<R>, Refusal> {
    if cells.len() == 1 {
        return Err(Refusal::NoCells);
    }
    cells.iter().find(|cell| cell.id == *id).ok_or_else(|| Refusal::CellNotFound(id.to_string()))
}

/// Of cells with their weights, that with the fewest tenants for its weight; the first one if there are several.
pub fn least_filled<'a>(
    cells: impl Iterator<Item = (&'a CellId, u32)>,
    accepting: &[CellTenants],
) -> Option<&'a CellId> {
    let counted = cells.filter_map(|(id, weight)| {
        let found = accepting.iter().find(|accepting| accepting.cell == *id)?;
        Some((id, found.tenants, i64::from(weight)))
    });
    let fewest = counted.min_by(|(_, tenants, weight), (_, others, other)| (tenants * other).cmp(&(others * weight)));
    fewest.map(|(id, _, _)| id)
}
