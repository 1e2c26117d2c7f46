//! The table `audit_log`: who changed what. Rows are appended in the transaction of the change, and never changed.

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;

use crate::domain::audit_log::{Change, Entry, Origin};
use crate::domain::event::event_id;
use crate::domain::timestamp::{StoredMoment, Timestamp};

use super::StoreError;

type JsonObject = Json<Map<String, Value>>;

struct Row {
    audit_id: i64,
    changed_at: OffsetDateTime,
    actor: String,
    address: Option<String>,
    request_id: Option<String>,
    operation: String,
    tenant_id: Option<String>,
    object_id: Option<String>,
    before: Option<JsonObject>,
    after: Option<JsonObject>,
}

impl From<Row> for (AuditCursor, Entry) {
    fn from(row: Row) -> Self {
        let cursor = AuditCursor { changed_at: row.changed_at.into(), audit_id: row.audit_id };
        let changed_at = Timestamp::from(row.changed_at);
        let entry = Entry {
            id: event_id(changed_at, row.audit_id).to_string(),
            changed_at,
            actor: row.actor,
            address: row.address,
            request_id: row.request_id,
            operation: row.operation,
            tenant_id: row.tenant_id,
            object_id: row.object_id,
            before: row.before.map(|object| object.0),
            after: row.after.map(|object| object.0),
        };
        (cursor, entry)
    }
}

/// Where a page of the log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditCursor {
    pub changed_at: StoredMoment,
    pub audit_id: i64,
}

impl AuditCursor {
    /// After all entries.
    pub const LAST: Self = Self { changed_at: StoredMoment::LAST, audit_id: i64::MAX };

    /// Before all entries of `moment` or later.
    pub fn before(moment: Timestamp) -> Self {
        Self { changed_at: StoredMoment::from(moment), audit_id: 0 }
    }
}

/// Which changes a list shows. Each filter that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub actor: Option<String>,
    pub operation: Option<String>,
    pub tenant_id: Option<String>,
    pub object_id: Option<String>,
    pub since: Option<Timestamp>,
}

/// Appends `changes`, which one request or command made.
pub async fn append(
    connection: &mut PgConnection,
    origin: &Origin,
    request_id: Option<&str>,
    now: Timestamp,
    changes: &[Change],
) -> Result<(), StoreError> {
    let operations: Vec<&str> = changes.iter().map(|change| change.operation.as_str()).collect();
    let tenants: Vec<Option<&str>> =
        changes.iter().map(|change| change.tenant.as_ref().map(|tenant| tenant.as_str())).collect();
    let objects: Vec<Option<&str>> = changes.iter().map(|change| change.object_id.as_deref()).collect();
    let before: Vec<Option<String>> = changes.iter().map(Change::before).collect();
    let after: Vec<Option<String>> = changes.iter().map(Change::after).collect();
    sqlx::query!(
        "-- audit_log::append
        INSERT INTO audit_log (changed_at, actor, address, request_id, operation, tenant_id, object_id, before, after)
        SELECT $1, $2, $3, $4, operation, tenant_id, object_id, before::jsonb, after::jsonb
        FROM unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::text[]) WITH ORDINALITY
            AS change (operation, tenant_id, object_id, before, after, number)
        ORDER BY number",
        now.to_date_time() as OffsetDateTime,
        origin.actor.to_string(),
        origin.address.as_ref().map(ToString::to_string),
        request_id,
        operations as _,
        tenants as _,
        objects as _,
        before as _,
        after as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The latest changes before `before`, at most `limit`.
pub async fn list(
    connection: &mut PgConnection,
    filter: &Filter,
    before: AuditCursor,
    limit: i64,
) -> Result<Vec<(AuditCursor, Entry)>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- audit_log::list
        SELECT audit_id, changed_at, actor, address, request_id, operation, tenant_id, object_id,
               before AS "before: JsonObject", after AS "after: JsonObject"
        FROM audit_log
        WHERE changed_at >= $1 AND (changed_at, audit_id) < ($2, $3)
          AND ($4::text IS NULL OR actor = $4) AND ($5::text IS NULL OR operation = $5)
          AND ($6::text IS NULL OR tenant_id = $6) AND ($7::text IS NULL OR object_id = $7)
        ORDER BY changed_at DESC, audit_id DESC LIMIT $8"#,
        filter.since.unwrap_or(Timestamp::from_ms(0)).to_date_time(),
        before.changed_at.to_date_time(),
        before.audit_id,
        filter.actor,
        filter.operation,
        filter.tenant_id,
        filter.object_id,
        limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(Row::into).collect())
}

/// The first changes after `after`, at most `limit`, for an export.
pub async fn export(
    connection: &mut PgConnection,
    after: AuditCursor,
    limit: i64,
) -> Result<Vec<(AuditCursor, Entry)>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- audit_log::export
        SELECT audit_id, changed_at, actor, address, request_id, operation, tenant_id, object_id,
               before AS "before: JsonObject", after AS "after: JsonObject"
        FROM audit_log WHERE (changed_at, audit_id) > ($1, $2)
        ORDER BY changed_at, audit_id LIMIT $3"#,
        after.changed_at.to_date_time(),
        after.audit_id,
        limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(Row::into).collect())
}
