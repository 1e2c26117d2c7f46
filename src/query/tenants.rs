//! The tenants, where they live, and their totals, for the operator.

use std::time::Instant;

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::refusal::Refusal;
use crate::store::directory::{self, Resident};
use crate::store::totals::{self, Due, Totals};
use crate::store::{server, tenant_moves};

use super::page::Page;
use super::reader::Reader;

/// Tenants after `after` in the order of their ids, each with the number of its API keys. `home` reads the home cell.
pub async fn list(home: &Reader, after: &str, limit: i64, deadline: Instant) -> Result<Page<(Resident, i64)>, Refusal> {
    let read = async |connection: &mut PgConnection| {
        let residents = directory::list(connection, after, limit + 1).await?;
        let ids: Vec<&str> = residents.iter().map(|resident| resident.tenant.as_str()).collect();
        let totals = totals::of_each(connection, &ids).await?;
        Ok(residents.into_iter().zip(totals.into_iter().map(|totals| totals.api_keys)).collect())
    };
    Ok(Page::of(home.read(deadline, read).await?, limit))
}

/// The totals of tenants of one cell, and what their outstanding usage would cost now, in the order of `tenants`.
pub async fn totals(reader: &Reader, tenants: &[Tenant], deadline: Instant) -> Result<Vec<(Totals, Due)>, Refusal> {
    let read = async |connection: &mut PgConnection| {
        let ids: Vec<&str> = tenants.iter().map(Tenant::as_str).collect();
        let totals = totals::of_each(connection, &ids).await?;
        Ok(totals.into_iter().zip(totals::due(connection, tenants).await?).collect())
    };
    reader.read(deadline, read).await
}

/// [`tenant_moves::is_complete`] of a cell.
pub async fn is_complete(reader: &Reader, tenant: &Tenant, deadline: Instant) -> Result<bool, Refusal> {
    reader
        .read(deadline, async |connection: &mut PgConnection| tenant_moves::is_complete(connection, tenant).await)
        .await
}

/// Where a tenant lives; `None` if there is no such tenant. Reads only from a writable server, so that a missing tenant is
/// certain.
pub async fn find(home: &Reader, tenant: &Tenant, deadline: Instant) -> Result<Option<Resident>, Refusal> {
    let read = async |connection: &mut PgConnection| {
        let found = directory::find(connection, tenant).await?;
        if found.is_none() {
            server::check_writer(connection).await?;
        }
        Ok(found)
    };
    home.read(deadline, read).await
}
