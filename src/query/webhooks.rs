//! The webhooks of a tenant, and their deliveries.

use std::time::Instant;

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::delivery::Delivery;
use crate::domain::refusal::Refusal;
use crate::domain::webhook::Webhook;
use crate::store::webhooks::WebhookCursor;
use crate::store::{deliveries, webhooks};

use super::page::Page;
use super::reader::Reader;

pub async fn find(reader: &Reader, tenant: &Tenant, id: &str, deadline: Instant) -> Result<Option<Webhook>, Refusal> {
    let read = async |connection: &mut PgConnection| webhooks::find(connection, tenant, id).await;
    reader.read(deadline, read).await
}

/// Webhooks, oldest first, each with its cursor, and their number.
pub async fn list(
    reader: &Reader,
    tenant: &Tenant,
    after: Option<&WebhookCursor>,
    limit: i64,
    deadline: Instant,
) -> Result<(Page<(WebhookCursor, Webhook)>, i64), Refusal> {
    let read = async |connection: &mut PgConnection| {
        let rows = webhooks::list(connection, tenant, after, limit + 1).await?;
        Ok((rows, webhooks::count(connection, tenant).await?))
    };
    let (rows, total) = reader.read(deadline, read).await?;
    Ok((Page::of(rows, limit), total))
}

/// Deliveries to a webhook, newest first, each with its position. `None` if the webhook does not exist.
pub async fn deliveries(
    reader: &Reader,
    tenant: &Tenant,
    id: &str,
    before: i64,
    limit: i64,
    deadline: Instant,
) -> Result<Option<Page<(i64, Delivery)>>, Refusal> {
    let read = async |connection: &mut PgConnection| match webhooks::find(connection, tenant, id).await? {
        Some(_) => deliveries::list(connection, tenant, id, before, limit + 1).await.map(Some),
        None => Ok(None),
    };
    Ok(reader.read(deadline, read).await?.map(|rows| Page::of(rows, limit)))
}
