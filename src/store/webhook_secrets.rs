//! The secrets in the table `webhooks`, for the commands that encrypt them with another key.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::keyring::StoredSecret;

use super::StoreError;
use super::webhook_queues::QueueId;

/// The secrets of one webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookSecrets {
    pub webhook: QueueId,
    pub current: StoredSecret,
    /// `None`: there is none, or its overlap has ended.
    pub previous: Option<StoredSecret>,
    /// Whether a previous secret is stored whose overlap has ended.
    pub has_expired: bool,
}

/// A row of `webhooks`, as far as it holds secrets.
struct Row {
    tenant_id: String,
    webhook_id: String,
    secret: Vec<u8>,
    secret_key_id: Option<String>,
    previous_secret: Option<Vec<u8>>,
    previous_secret_key_id: Option<String>,
    has_expired: Option<bool>,
}

impl From<Row> for WebhookSecrets {
    fn from(row: Row) -> Self {
        let has_expired = row.has_expired.unwrap_or_default();
        let previous = row.previous_secret.filter(|_| !has_expired);
        Self {
            webhook: QueueId { tenant: Tenant::from_stored(row.tenant_id), webhook: row.webhook_id },
            current: StoredSecret { key_id: row.secret_key_id, bytes: row.secret },
            previous: previous.map(|bytes| StoredSecret { key_id: row.previous_secret_key_id, bytes }),
            has_expired,
        }
    }
}

/// At most `rows_max` webhooks after `after`, by tenant and id.
pub async fn after(
    connection: &mut PgConnection,
    after: Option<&QueueId>,
    rows_max: i64,
) -> Result<Vec<WebhookSecrets>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- webhook_secrets::after
        SELECT tenant_id, webhook_id, secret, secret_key_id, previous_secret, previous_secret_key_id,
               previous_secret_until <= now() AS has_expired
        FROM webhooks WHERE (tenant_id, webhook_id) > ($1, $2)
        ORDER BY tenant_id, webhook_id LIMIT $3"#,
        after.map_or("", |after| after.tenant.as_str()),
        after.map_or("", |after| after.webhook.as_str()),
        rows_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(WebhookSecrets::from).collect())
}

/// Like [`after`]. Locks the rows until the transaction ends.
pub async fn lock_after(
    connection: &mut PgConnection,
    after: Option<&QueueId>,
    rows_max: i64,
) -> Result<Vec<WebhookSecrets>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- webhook_secrets::lock_after
        SELECT tenant_id, webhook_id, secret, secret_key_id, previous_secret, previous_secret_key_id,
               previous_secret_until <= now() AS has_expired
        FROM webhooks WHERE (tenant_id, webhook_id) > ($1, $2)
        ORDER BY tenant_id, webhook_id LIMIT $3 FOR NO KEY UPDATE"#,
        after.map_or("", |after| after.tenant.as_str()),
        after.map_or("", |after| after.webhook.as_str()),
        rows_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(WebhookSecrets::from).collect())
}

/// Stores the secrets of webhooks that this transaction has locked. Without `previous`, deletes what is stored of it.
pub async fn store(connection: &mut PgConnection, secrets: &[WebhookSecrets]) -> Result<(), StoreError> {
    let previous = || secrets.iter().map(|secrets| secrets.previous.as_ref());
    sqlx::query!(
        "-- webhook_secrets::store
        UPDATE webhooks
        SET secret = stored.secret, secret_key_id = stored.key_id, previous_secret = stored.previous,
            previous_secret_key_id = stored.previous_key_id,
            previous_secret_until = CASE WHEN stored.previous IS NOT NULL THEN previous_secret_until END
        FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::bytea[], $6::text[])
            AS stored (tenant_id, webhook_id, secret, key_id, previous, previous_key_id)
        WHERE webhooks.tenant_id = stored.tenant_id AND webhooks.webhook_id = stored.webhook_id",
        secrets.iter().map(|secrets| secrets.webhook.tenant.as_str()).collect::<Vec<_>>() as _,
        secrets.iter().map(|secrets| secrets.webhook.webhook.as_str()).collect::<Vec<_>>() as _,
        secrets.iter().map(|secrets| secrets.current.bytes.as_slice()).collect::<Vec<_>>() as _,
        secrets.iter().map(|secrets| secrets.current.key_id.as_deref()).collect::<Vec<_>>() as _,
        previous().map(|previous| previous.map(|stored| stored.bytes.as_slice())).collect::<Vec<_>>() as _,
        previous().map(|previous| previous?.key_id.as_deref()).collect::<Vec<_>>() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The number of webhooks of all tenants.
pub async fn count(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar!(
        r#"-- webhook_secrets::count
SELECT count(*) AS "count!" FROM webhooks"#
    );
    Ok(count.fetch_one(connection).await?)
}

/// The secrets of at most `rows_max` webhooks, to find out at the start whether the keys are the right ones.
pub async fn sample(connection: &mut PgConnection, rows_max: i64) -> Result<Vec<(QueueId, StoredSecret)>, StoreError> {
    let rows = sqlx::query!(
        "-- webhook_secrets::sample
        SELECT tenant_id, webhook_id, secret, secret_key_id
        FROM webhooks ORDER BY tenant_id, webhook_id LIMIT $1",
        rows_max,
    )
    .fetch_all(connection)
    .await?;
    let secrets = rows.into_iter().map(|row| {
        let webhook = QueueId { tenant: Tenant::from_stored(row.tenant_id), webhook: row.webhook_id };
        (webhook, StoredSecret { key_id: row.secret_key_id, bytes: row.secret })
    });
    Ok(secrets.collect())
}
