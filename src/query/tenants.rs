//! The tenants, with their totals, for the operator.

use std::time::Instant;

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::refusal::Refusal;
use crate::store::totals::{self, Due, Totals};
use crate::store::{server, tenants};

use super::page::Page;
use super::reader::Reader;

/// A tenant, its totals, and what its outstanding usage would cost now.
#[derive(Clone, Debug)]
pub struct TenantTotals {
    pub tenant: Tenant,
    pub totals: Totals,
    pub due: Due,
}

/// Tenants after `after` in the order of their ids.
pub async fn list(reader: &Reader, after: &str, limit: i64, deadline: Instant) -> Result<Page<TenantTotals>, Refusal> {
    let read = async |connection: &mut PgConnection| {
        let tenants = tenants::list(connection, after, limit + 1).await?;
        let ids: Vec<&str> = tenants.iter().map(Tenant::as_str).collect();
        let totals = totals::of_each(connection, &ids).await?;
        let due = totals::due(connection, &tenants).await?;
        Ok((tenants, totals, due))
    };
    let (tenants, totals, due) = reader.read(deadline, read).await?;
    let rows = tenants.into_iter().zip(totals).zip(due);
    Ok(Page::of(rows.map(|((tenant, totals), due)| TenantTotals { tenant, totals, due }).collect(), limit))
}

/// Whether there is such a tenant. Reads only from a writable server, so that a missing tenant is certain.
pub async fn exists(reader: &Reader, tenant: &Tenant, deadline: Instant) -> Result<bool, Refusal> {
    let read = async |connection: &mut PgConnection| {
        let exists = tenants::exists(connection, tenant).await?;
        if !exists {
            server::check_writer(connection).await?;
        }
        Ok(exists)
    };
    reader.read(deadline, read).await
}
