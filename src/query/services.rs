//! The services of a tenant.

use std::time::Instant;

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::domain::service::Service;
use crate::store::services::{self, Filter};

use super::page::Slice;
use super::reader::Reader;

pub async fn find(
    reader: &Reader,
    tenant: &Tenant,
    service_id: &ServiceId,
    deadline: Instant,
) -> Result<Option<Service>, Refusal> {
    let read = async |connection: &mut PgConnection| services::find(connection, tenant, service_id).await;
    reader.read(deadline, read).await
}

/// Services in the order of their creation, and the length of the whole filtered list.
pub async fn list(
    reader: &Reader,
    tenant: &Tenant,
    filter: &Filter,
    slice: Slice,
    deadline: Instant,
) -> Result<(Vec<Service>, i64), Refusal> {
    let read = async |connection: &mut PgConnection| {
        services::list(connection, tenant, filter, slice.limit, slice.offset()).await
    };
    reader.read(deadline, read).await
}
