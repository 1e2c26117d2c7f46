//! Chooses the cell of a new tenant: of the cells that accept tenants and can be used, the one with the fewest tenants for
//! its weight.

use std::time::Instant;

use rand::Rng;
use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::cell::Residence;
use crate::domain::identifiers;
use crate::domain::refusal::Refusal;
use crate::store::directory::{self, CellTenants};
use crate::store::{api_keys, tenants};

use super::Cell;

/// A new tenant, and the cell in which it was created.
pub struct Placed<'a, R> {
    pub tenant: Tenant,
    pub cell: &'a Cell<R>,
}

/// Creates a tenant in the cell with the fewest tenants for its weight. The first of `cells` is the home cell. `None`: the
/// home cell is to create the tenant together with its first key.
pub async fn place<'a, R>(
    cells: &'a [Cell<R>],
    keys_max: i64,
    rng: &mut impl Rng,
    deadline: Instant,
) -> Result<Option<Placed<'a, R>>, Refusal> {
    let [home, _, ..] = cells else { return Ok(None) };
    let read = async |connection: &mut PgConnection| {
        Ok((api_keys::count(connection).await?, directory::accepting(connection).await?))
    };
    let (keys, accepting) = home.reader.read(deadline, read).await?;
    // The creation of the key checks it again. Nothing deletes a tenant that gets no key.
    if keys >= keys_max {
        return Err(Refusal::ApiKeyCapacity);
    }
    let usable = cells.iter().filter(|cell| cell.availability.reason().is_none());
    let cell = least_filled(usable, &accepting).ok_or(Refusal::StoreUnavailable)?;
    if cell.id == home.id {
        return Ok(None);
    }
    let tenant = Tenant::from_stored(identifiers::draw(rng, "tnt_", 16));
    let now = cell.clock.now();
    let insert = async |connection: &mut PgConnection| tenants::insert(connection, &tenant, Residence::Here, now).await;
    cell.reader.read(deadline, insert).await?;
    Ok(Some(Placed { tenant, cell }))
}

/// The cell with the fewest tenants for its weight; the first one if there are several.
fn least_filled<'a, R>(usable: impl Iterator<Item = &'a Cell<R>>, accepting: &[CellTenants]) -> Option<&'a Cell<R>> {
    let counted = usable.filter_map(|cell| {
        let found = accepting.iter().find(|accepting| accepting.cell == cell.id)?;
        Some((cell, found.tenants, i64::from(cell.weight)))
    });
    let fewest = counted.min_by(|(_, tenants, weight), (_, others, other)| (tenants * other).cmp(&(others * weight)));
    fewest.map(|(cell, _, _)| cell)
}
