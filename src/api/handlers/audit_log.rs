//! The audit log: who changed what, for the operator.

use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::cell::gather::{Gathered, gather};
use crate::domain::audit_log::Entry;
use crate::domain::cell::CellId;
use crate::domain::money::SAFE_MAX;
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::query::audit_log;
use crate::query::page::Page;
use crate::store::audit_log::{AuditCursor, Filter};

use crate::api::openapi::description::{CURSOR, Description, SINCE, limit, text};
use crate::api::request::cursors::{AuditPosition, Cursor};
use crate::api::request::errors::ApiError;
use crate::api::request::query::encode_cursor;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::state::{ApiState, Cell};

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "AuditLog")]
struct List {
    items: Vec<Entry>,
    next_cursor: Option<String>,
    /// Cells that did not answer in time. Their entries are missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing_cells: Vec<String>,
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
    let cursor = query.cursor_of::<AuditPosition>()?;
    let Gathered { values, missing } = load(&state.cells, &filter, cursor.as_ref(), limit, request.deadline).await?;
    let pages = values.into_iter().map(|(index, page)| (&state.cells[index].id, page));
    let page = merge(pages.collect(), limit);
    let next_cursor = page.last_if_more().map(|(cell, entry, _)| {
        let cell = state.has_cells().then(|| (*cell).clone());
        encode_cursor(&AuditPosition { entry: *entry, cell }.to_text())
    });
    let items = page.rows.into_iter().map(|(_, _, entry)| entry).collect();
    Ok(json(&List { items, next_cursor, missing_cells: missing }))
}

/// A page of each cell.
async fn load<'a>(
    cells: &'a [Cell],
    filter: &'a Filter,
    after: Option<&AuditPosition>,
    limit: i64,
    deadline: Instant,
) -> Result<Gathered<Page<(AuditCursor, Entry)>>, Refusal> {
    let read = |cell: &'a Cell, deadline| {
        let before = after.map_or(AuditCursor::LAST, |after| continued(after, &cell.id));
        audit_log::list(&cell.reader, filter, before, limit, deadline)
    };
    gather(cells, deadline, read).await
}

/// The first `limit` entries of all cells, newest first. Entries of one time and number are in the order of their cells.
fn merge(pages: Vec<(&CellId, Page<(AuditCursor, Entry)>)>, limit: i64) -> Page<(&CellId, AuditCursor, Entry)> {
    let has_more = pages.iter().any(|(_, page)| page.has_more);
    let rows =
        pages.into_iter().flat_map(|(cell, page)| page.rows.into_iter().map(move |(at, entry)| (cell, at, entry)));
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by(|(cell, one, _), (other_cell, other, _)| {
        let key = |cursor: &AuditCursor| (cursor.changed_at, cursor.audit_id);
        key(other).cmp(&key(one)).then(cell.cmp(other_cell))
    });
    let merged = Page::of(rows, limit);
    Page { has_more: merged.has_more || has_more, ..merged }
}

/// Where the list of a cell continues after a page of all cells.
fn continued(after: &AuditPosition, cell: &CellId) -> AuditCursor {
    let AuditPosition { entry, cell: last } = after;
    let is_next = last.as_ref().is_some_and(|last| cell > last);
    AuditCursor { audit_id: if is_next { entry.audit_id.saturating_add(1) } else { entry.audit_id }, ..*entry }
}
