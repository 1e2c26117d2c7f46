//! The settlements of a tenant.

use std::time::Instant;

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::refusal::Refusal;
use crate::domain::settlement::Settlement;
use crate::store::settlements::{self, Filter, SettlementCursor};

use super::page::Page;
use super::reader::Reader;

pub async fn find(
    reader: &Reader,
    tenant: &Tenant,
    id: &str,
    deadline: Instant,
) -> Result<Option<Settlement>, Refusal> {
    let read = async |connection: &mut PgConnection| settlements::find(connection, tenant, id).await;
    reader.read(deadline, read).await
}

/// Settlements, newest first, each with its cursor.
pub async fn list(
    reader: &Reader,
    tenant: &Tenant,
    filter: &Filter,
    before: Option<SettlementCursor>,
    limit: i64,
    deadline: Instant,
) -> Result<Page<(SettlementCursor, Settlement)>, Refusal> {
    let read =
        async |connection: &mut PgConnection| settlements::list(connection, tenant, filter, before, limit + 1).await;
    Ok(Page::of(reader.read(deadline, read).await?, limit))
}
