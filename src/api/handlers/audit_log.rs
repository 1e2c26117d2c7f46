//! The audit log: who changed what, for the operator.

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::audit_log::Entry;
use crate::domain::money::SAFE_MAX;
use crate::domain::timestamp::Timestamp;
use crate::query::audit_log;
use crate::store::audit_log::{AuditCursor, Filter};

use crate::api::openapi::description::{CURSOR, Description, SINCE, limit, text};
use crate::api::request::cursors::Cursor;
use crate::api::request::errors::ApiError;
use crate::api::request::query::encode_cursor;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::state::ApiState;

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "AuditLog")]
struct List {
    items: Vec<Entry>,
    next_cursor: Option<String>,
}

pub const LIST: Description = Description::of(
    "listAuditEntries",
    "List changes of configuration",
    "Returns who changed the configuration of the service and of all tenants, and what it was before and after, newest \
         first. Entries are permanent.",
)
.query(&[
    text(
        "actor",
        "Actor whose changes to return: `admin`, `anonymous`, `cli`, `service`, or the prefix of an API key.",
    ),
    text("operation", "Operation to return, such as `service.updated`."),
    text("tenantId", "Tenant whose changes to return."),
    text("objectId", "Service, webhook or prefix of an API key whose changes to return."),
    SINCE,
    limit(100, 1000),
    CURSOR,
])
.answer::<List>(
    200,
    r#"{"items":[{"id":"019b76da-a800-8000-8000-000000000002","changedAt":1767225600000,"actor":"apk_01234567","address":"192.0.2.7","requestId":"r-1",
        "operation":"service.updated","tenantId":"tnt_0123456789abcdef0123456789abcdef","objectId":"weather",
        "before":{"disabled":false,"serviceId":"weather","priceStroops":250},
        "after":{"disabled":false,"serviceId":"weather","priceStroops":300}}],"nextCursor":null}"#,
);

pub async fn list(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let query = &request.query;
    let text = |name: &str| query.text(name).filter(|text| !text.is_empty()).map(str::to_owned);
    let filter = Filter {
        actor: text("actor"),
        operation: text("operation"),
        tenant_id: text("tenantId"),
        object_id: text("objectId"),
        since: Some(Timestamp::from_ms(query.bounded("since", 0, 0, SAFE_MAX as i64))),
    };
    let limit = query.bounded("limit", 100, 1, 1000);
    let before = query.cursor_of()?.unwrap_or(AuditCursor::LAST);
    let page = audit_log::list(&state.reader, &filter, before, limit, request.deadline).await?;
    let next_cursor = page.last_if_more().map(|(cursor, _)| encode_cursor(&cursor.to_text()));
    let items = page.rows.into_iter().map(|(_, entry)| entry).collect();
    Ok(json(&List { items, next_cursor }))
}
