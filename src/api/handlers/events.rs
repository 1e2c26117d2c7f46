//! The event log of a tenant. Only its newest `eventLogCap` events are visible, even if older ones are still stored.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::command::Reply;
use crate::domain::event::event_id;
use crate::domain::money::SAFE_MAX;
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::query::events::{self, EventPage, Part};
use crate::store::events::{Filter, Recorded};

use crate::api::openapi::description::{CURSOR, Description, SINCE, limit, text};
use crate::api::request::cursors::{Cursor, EventCursor};
use crate::api::request::errors::ApiError;
use crate::api::request::etag::Tagged;
use crate::api::request::query::encode_cursor;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::state::ApiState;

/// Default page size, unless the cap is smaller.
const LIMIT_DEFAULT: i64 = 100;

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Event")]
struct Item<'a> {
    #[schemars(with = "String")]
    id: Uuid,
    ts: Timestamp,
    #[serde(rename = "type")]
    type_name: &'a str,
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    payload: &'a RawValue,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "EventList")]
struct List<'a> {
    total: i64,
    items: Vec<Item<'a>>,
    next_cursor: Option<String>,
}

pub const LIST: Description = Description::of(
    "listEvents",
    "List events",
    "Returns the newest matching events of the tenant, the oldest of them first. The cursor leads to older \
         ones. Only the newest `eventLogCap` events are visible.",
)
.query(&[limit(LIMIT_DEFAULT, 100_000), SINCE, text("type", "Type of the events to return."), CURSOR])
.answer::<List<'static>>(
    200,
    r#"{"total":1,"items":[{"id":"019b76da-a800-8000-8000-000000000001","ts":1767225600000,"type":"usage.recorded",
        "payload":{"agent":"agent-1","serviceId":"weather","requests":3,"total":3}}],"nextCursor":null}"#,
)
.conditional();

pub async fn list(
    State(state): State<ApiState>,
    headers: HeaderMap,
    request: ReadRequest,
) -> Result<Response, ApiError> {
    let query = &request.query;
    let cap = state.runtime_config.limits().event_log_cap;
    let limit = query.bounded("limit", LIMIT_DEFAULT.min(cap), 1, cap);
    let since = Timestamp::from_ms(query.bounded("since", 0, 0, SAFE_MAX as i64));
    let filter = Filter { since, type_name: query.text("type").map(str::to_owned) };
    let cursor = query.cursor()?;
    let before = cursor.as_deref().map(EventCursor::parse).transpose()?;
    let before = before.map(|cursor| (cursor.recorded_at, cursor.position));
    let view = format!("{limit} {} {:?} {cursor:?}", since.as_ms(), filter.type_name);

    let part = Part { tenant: request.tenant().clone(), filter, before, limit, cap };
    let cell = request.cell(&state);
    let page = cell.polled.events.load(&cell.reader, part, request.deadline).await?.ok_or(Refusal::CursorExpired)?;
    Ok(page.rendered.get_or_init(|| render(&page, &view)).clone().answer(&headers))
}

fn render(page: &EventPage<Tagged>, view: &str) -> Tagged {
    let oldest = page.events.last().filter(|_| page.has_older);
    let cursor = |row: &Recorded| EventCursor { recorded_at: row.recorded_at, position: row.position };
    let next_cursor = oldest.map(|row| encode_cursor(&cursor(row).to_text()));
    let items = page.events.iter().rev().map(Item::from).collect();
    Tagged::new(Reply::json(200, &List { total: page.total, items, next_cursor }), view)
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "EventSummary")]
struct Summary {
    counts: BTreeMap<String, i64>,
    total: i64,
}

pub const SUMMARY: Description =
    Description::of("countEvents", "Count events by type", "Returns the number of visible events of each type.")
        .answer::<Summary>(200, r#"{"counts":{"usage.recorded":1},"total":1}"#);

pub async fn summary(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let cap = state.runtime_config.limits().event_log_cap;
    let cell = request.cell(&state);
    let counts = events::count_by_type(&cell.reader, request.tenant(), cap, request.deadline).await?;
    let counts: BTreeMap<String, i64> = counts.into_iter().collect();
    let total = counts.values().sum();
    Ok(json(&Summary { counts, total }))
}

impl Recorded {
    fn id(&self) -> Uuid {
        event_id(self.recorded_at, self.position)
    }
}

impl<'a> From<&'a Recorded> for Item<'a> {
    fn from(row: &'a Recorded) -> Self {
        Self { id: row.id(), ts: row.recorded_at, type_name: &row.type_name, payload: &row.payload }
    }
}
