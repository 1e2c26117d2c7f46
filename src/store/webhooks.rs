//! The table `webhooks`: the endpoints of each tenant. Only [`targets`] reads secrets, to sign deliveries, and
//! `webhook_secrets`, to encrypt them with another key.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::keyring::StoredSecret;
use crate::domain::timestamp::{StoredMoment, Timestamp};
use crate::domain::webhook::Webhook;

use super::webhook_queues::QueueId;
use super::{StoreError, corrupt};

struct Row {
    webhook_id: String,
    url: String,
    events: Vec<String>,
    created_at: OffsetDateTime,
    disabled_at: Option<OffsetDateTime>,
}

impl From<Row> for Webhook {
    fn from(row: Row) -> Self {
        Self {
            id: row.webhook_id,
            url: row.url,
            events: row.events,
            created_at: row.created_at.into(),
            disabled_at: row.disabled_at.map(Timestamp::from),
        }
    }
}

/// The last webhook of the previous page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookCursor {
    pub created_at: StoredMoment,
    pub id: String,
}

/// Where deliveries are sent, and how they are signed.
#[derive(Clone, Debug)]
pub struct Target {
    pub url: String,
    /// What deliveries are signed with: the current secret and, during an overlap, the one before it.
    pub secrets: Vec<StoredSecret>,
    pub is_enabled: bool,
    /// Events before this position are not sent.
    pub from_position: i64,
}

/// An enabled webhook, for the expansion of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscriber {
    pub id: String,
    pub events: Vec<String>,
    /// Events before this position are not sent.
    pub from_position: i64,
}

/// The number of a tenant's webhooks. Counted, because `webhook_store_max_keys` bounds it.
pub async fn count(connection: &mut PgConnection, tenant: &Tenant) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar!(
        r#"-- webhooks::count
        SELECT count(*) AS "count!" FROM webhooks WHERE tenant_id = $1"#,
        tenant.as_str(),
    )
    .fetch_one(connection)
    .await?;
    Ok(count)
}

/// Inserts a webhook, which receives the events from `from_position` on.
pub async fn insert(
    connection: &mut PgConnection,
    tenant: &Tenant,
    webhook: &Webhook,
    secret: &StoredSecret,
    from_position: i64,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- webhooks::insert
        INSERT INTO webhooks
            (tenant_id, webhook_id, url, events, secret, secret_key_id, created_at, from_position)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        tenant.as_str(),
        webhook.id,
        webhook.url,
        &webhook.events,
        secret.bytes,
        secret.key_id,
        webhook.created_at.to_date_time(),
        from_position,
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub async fn find(connection: &mut PgConnection, tenant: &Tenant, id: &str) -> Result<Option<Webhook>, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "-- webhooks::find
        SELECT webhook_id, url, events, created_at, disabled_at FROM webhooks WHERE tenant_id = $1 AND webhook_id = $2",
        tenant.as_str(),
        id,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(Webhook::from))
}

/// Like [`find`], and locks the row until the transaction ends.
pub async fn lock(connection: &mut PgConnection, tenant: &Tenant, id: &str) -> Result<Option<Webhook>, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "-- webhooks::lock
        SELECT webhook_id, url, events, created_at, disabled_at FROM webhooks WHERE tenant_id = $1 AND webhook_id = $2
        FOR NO KEY UPDATE",
        tenant.as_str(),
        id,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(Webhook::from))
}

/// Updates a webhook: its URL, its events, and whether it is disabled. A webhook that is enabled again receives the events
/// from `from_position` on.
pub async fn update(
    connection: &mut PgConnection,
    tenant: &Tenant,
    webhook: &Webhook,
    from_position: Option<i64>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- webhooks::update
        UPDATE webhooks
        SET url = $3, events = $4, disabled_at = $5, from_position = coalesce($6, from_position)
        WHERE tenant_id = $1 AND webhook_id = $2",
        tenant.as_str(),
        webhook.id,
        webhook.url,
        &webhook.events,
        webhook.disabled_at.map(Timestamp::to_date_time) as Option<OffsetDateTime>,
        from_position,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Replaces the secret. Deliveries are also signed with the replaced one until `until`.
pub async fn rotate_secret(
    connection: &mut PgConnection,
    tenant: &Tenant,
    id: &str,
    secret: &StoredSecret,
    until: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- webhooks::rotate_secret
        UPDATE webhooks
        SET previous_secret = secret, previous_secret_key_id = secret_key_id, previous_secret_until = $5,
            secret = $3, secret_key_id = $4
        WHERE tenant_id = $1 AND webhook_id = $2",
        tenant.as_str(),
        id,
        secret.bytes,
        secret.key_id,
        until.to_date_time() as OffsetDateTime,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns the webhook as it was; none if there is no such webhook.
pub async fn delete(connection: &mut PgConnection, tenant: &Tenant, id: &str) -> Result<Option<Webhook>, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "-- webhooks::delete
        DELETE FROM webhooks WHERE tenant_id = $1 AND webhook_id = $2
        RETURNING webhook_id, url, events, created_at, disabled_at",
        tenant.as_str(),
        id,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(Webhook::from))
}

/// At most `limit` webhooks of a tenant after the cursor, by creation time and id.
pub async fn list(
    connection: &mut PgConnection,
    tenant: &Tenant,
    after: Option<&WebhookCursor>,
    limit: i64,
) -> Result<Vec<(WebhookCursor, Webhook)>, StoreError> {
    let (created_at, id) = after.map_or((StoredMoment::FIRST, ""), |cursor| (cursor.created_at, cursor.id.as_str()));
    let rows = sqlx::query_as!(
        Row,
        "-- webhooks::list
        SELECT webhook_id, url, events, created_at, disabled_at FROM webhooks
        WHERE tenant_id = $1 AND (created_at, webhook_id) > ($2, $3)
        ORDER BY tenant_id, created_at, webhook_id LIMIT $4",
        tenant.as_str(),
        created_at.to_date_time(),
        id,
        limit,
    )
    .fetch_all(connection)
    .await?;
    let webhooks = rows.into_iter().map(|row| {
        let cursor = WebhookCursor { created_at: row.created_at.into(), id: row.webhook_id.clone() };
        (cursor, Webhook::from(row))
    });
    Ok(webhooks.collect())
}

/// At most `limit` enabled webhooks of a tenant after the id `after`, in the order of their ids. Disabled ones are
/// skipped; `webhook_store_max_keys` bounds their number.
pub async fn subscribers(
    connection: &mut PgConnection,
    tenant: &Tenant,
    after: &str,
    limit: i64,
) -> Result<Vec<Subscriber>, StoreError> {
    let subscribers = sqlx::query_as!(
        Subscriber,
        "-- webhooks::subscribers
        SELECT webhook_id AS id, events, from_position FROM webhooks
        WHERE tenant_id = $1 AND webhook_id > $2 AND disabled_at IS NULL
        ORDER BY tenant_id, webhook_id LIMIT $3",
        tenant.as_str(),
        after,
        limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(subscribers)
}

/// Targets of webhooks, in the order of `ids`. `None` for a webhook that does not exist.
pub async fn targets(connection: &mut PgConnection, ids: &[QueueId]) -> Result<Vec<Option<Target>>, StoreError> {
    let tenants: Vec<&str> = ids.iter().map(|id| id.tenant.as_str()).collect();
    let webhooks: Vec<&str> = ids.iter().map(|id| id.webhook.as_str()).collect();
    let rows = sqlx::query!(
        r#"-- webhooks::targets
        SELECT wanted.position AS "position!", target.url AS "url!", target.secret AS "secret!", target.secret_key_id,
               target.previous_secret, target.previous_secret_key_id, target.is_enabled AS "is_enabled!",
               target.from_position AS "from_position!"
        FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (tenant_id, webhook_id, position)
        CROSS JOIN LATERAL (
            SELECT url, secret, secret_key_id,
                   CASE WHEN previous_secret_until > now() THEN previous_secret END AS previous_secret,
                   previous_secret_key_id, disabled_at IS NULL AS is_enabled, from_position
            FROM webhooks
            WHERE webhooks.tenant_id = wanted.tenant_id AND webhooks.webhook_id = wanted.webhook_id
            LIMIT 1
        ) AS target"#,
        tenants as _,
        webhooks as _,
    )
    .fetch_all(connection)
    .await?;
    let mut targets = vec![None; ids.len()];
    for row in rows {
        let previous = row.previous_secret.map(|bytes| StoredSecret { key_id: row.previous_secret_key_id, bytes });
        let current = StoredSecret { key_id: row.secret_key_id, bytes: row.secret };
        let secrets = [current].into_iter().chain(previous).collect();
        *targets.get_mut(row.position as usize - 1).ok_or_else(|| corrupt("position"))? =
            Some(Target { url: row.url, secrets, is_enabled: row.is_enabled, from_position: row.from_position });
    }
    Ok(targets)
}
