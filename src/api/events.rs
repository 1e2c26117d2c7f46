//! The event log of a tenant: its newest `eventLogCap` events are visible, whatever else is still stored.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::command::Reply;
use crate::domain::caller::Tenant;
use crate::domain::event::{event_id, place_of};
use crate::domain::money::SAFE_MAX;
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::store::events::{self, Filter, Recorded};
use crate::store::{server, totals};

use super::etag;
use super::exchange::{Failure, Read, check_query, json};
use super::openapi::description::{CURSOR, Description, SINCE, limit, text};
use super::query::encode_cursor;
use super::state::ApiState;

/// Events of a page, unless the request or the cap says otherwise.
const LIMIT_DEFAULT: i64 = 100;

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Event")]
struct Item {
    id: String,
    ts: Timestamp,
    #[serde(rename = "type")]
    type_name: String,
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    payload: Box<RawValue>,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "EventList")]
struct List {
    total: i64,
    items: Vec<Item>,
    next_cursor: Option<String>,
}

pub const LIST: Description = Description::of("The newest events, oldest of them first")
    .query(&[limit(LIMIT_DEFAULT, 100_000), SINCE, text("type", "Of this type only."), CURSOR])
    .answer::<List>(
        200,
        r#"{"total":1,"items":[{"id":"019b76da-a800-8000-8000-000000000001","ts":1767225600000,"type":"usage.recorded",
        "payload":{"agent":"agent-1","serviceId":"weather","requests":3,"total":3}}],"nextCursor":null}"#,
    )
    .conditional();

pub async fn list(
    State(state): State<ApiState>,
    headers: HeaderMap,
    Read(exchange): Read,
) -> Result<Response, Failure> {
    check_query(&exchange, &["limit", "since", "type", "cursor"])?;
    let query = &exchange.query;
    let cap = state.limits.now().event_log_cap;
    let limit = query.bounded("limit", LIMIT_DEFAULT.min(cap), 1, cap);
    let since = Timestamp::from_ms(query.bounded("since", 0, 0, SAFE_MAX as i64));
    let filter = Filter { since, type_name: query.text("type").map(str::to_owned) };
    let cursor = query.cursor()?;
    let before = cursor.as_deref().map(parse_cursor).transpose()?;
    let view = format!("{limit} {} {:?} {cursor:?}", since.as_ms(), filter.type_name);

    let tenant = &exchange.identity.tenant;
    let mut connection = state.connection().await?;
    let (total, mut rows) = match before {
        None if filter.is_empty() => {
            let (stored, rows) = events::head(&mut connection, tenant, limit + 1).await?;
            (stored.min(cap), rows)
        }
        _ => part(&mut connection, tenant, &filter, before, cap, limit + 1).await?,
    };
    // At the head of a log at its cap the row behind the page may be one that is not visible; `total` knows.
    let has_more = rows.len() as i64 > limit && (before.is_some() || total > limit);
    rows.truncate(limit as usize);
    let oldest = rows.last().filter(|_| has_more);
    let next_cursor = oldest.map(|row| encode_cursor(&format!("{}:{}", row.recorded_at.as_ms(), row.id())));
    let items = rows.into_iter().rev().map(Item::try_from).collect::<Result<_, _>>()?;
    Ok(etag::conditional(&headers, Reply::json(200, &List { total, items, next_cursor }), &view))
}

/// A page that is not the head of the whole log: it has to know where the visible log begins.
async fn part(
    connection: &mut PgConnection,
    tenant: &Tenant,
    filter: &Filter,
    before: Option<(Timestamp, i64)>,
    cap: i64,
    limit: i64,
) -> Result<(i64, Vec<Recorded>), Failure> {
    // One snapshot, so that total, items and cursor speak of the same log.
    let mut log = server::begin_snapshot(connection).await?;
    let first = events::first_visible(&mut log, tenant, cap).await?;
    if let Some(place) = before
        && !events::is_visible(&mut log, tenant, filter, first, place).await?
    {
        return Err(Failure(Refusal::CursorExpired));
    }
    let total = if filter.is_empty() {
        totals::of(&mut log, tenant.as_str()).await?.events.min(cap)
    } else {
        events::count_matching(&mut log, tenant, filter, first).await?
    };
    let before_position = before.map_or(i64::MAX, |(_, position)| position);
    Ok((total, events::newest(&mut log, tenant, filter, first, before_position, limit).await?))
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "EventSummary")]
struct Summary {
    counts: BTreeMap<String, i64>,
    total: i64,
}

pub const SUMMARY: Description = Description::of("Visible events, counted by type")
    .answer::<Summary>(200, r#"{"counts":{"usage.recorded":1},"total":1}"#);

pub async fn summary(State(state): State<ApiState>, Read(exchange): Read) -> Result<Response, Failure> {
    check_query(&exchange, &[])?;
    let tenant = &exchange.identity.tenant;
    let cap = state.limits.now().event_log_cap;
    let mut connection = state.connection().await?;
    let mut log = server::begin_snapshot(&mut connection).await?;
    let first = events::first_visible(&mut log, tenant, cap).await?;
    let counts: BTreeMap<String, i64> = events::count_by_type(&mut log, tenant, first).await?.into_iter().collect();
    let total = counts.values().sum();
    Ok(json(&Summary { counts, total }))
}

impl Recorded {
    fn id(&self) -> Uuid {
        event_id(self.recorded_at, self.position)
    }
}

impl TryFrom<Recorded> for Item {
    type Error = Failure;

    fn try_from(row: Recorded) -> Result<Self, Failure> {
        let id = row.id().to_string();
        let payload = RawValue::from_string(row.payload).map_err(|_| Failure(Refusal::Internal))?;
        Ok(Self { id, ts: row.recorded_at, type_name: row.type_name, payload })
    }
}

/// `<ts>:<id>`. What has this form and is the id of no event was never a cursor of ours, or no longer is one.
fn parse_cursor(cursor: &str) -> Result<(Timestamp, i64), Refusal> {
    let (ts, id) = cursor.split_once(':').ok_or(Refusal::CursorMalformed)?;
    let digits = ts.strip_prefix('-').unwrap_or(ts);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) || id.is_empty() {
        return Err(Refusal::CursorMalformed);
    }
    let place = Uuid::parse_str(id).ok().filter(|uuid| uuid.to_string() == id).and_then(place_of);
    place.filter(|(recorded_at, _)| recorded_at.as_ms().to_string() == ts).ok_or(Refusal::CursorExpired)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_a_moment_and_the_id_of_an_event() {
        let id = event_id(Timestamp::from_ms(7), 3);
        assert_eq!(parse_cursor(&format!("7:{id}")), Ok((Timestamp::from_ms(7), 3)));
        for malformed in ["", "7", "7:", ":x", "x:y", "1.5:x", "-:x", &format!("{id}")] {
            assert_eq!(parse_cursor(malformed), Err(Refusal::CursorMalformed), "{malformed}");
        }
        // 11 is b, which has another upper case.
        let shouted = event_id(Timestamp::from_ms(11), 3).to_string().to_uppercase();
        for unknown in ["7:x", "-7:x", "99999999999999999999:x", &format!("8:{id}"), &format!("11:{shouted}")] {
            assert_eq!(parse_cursor(unknown), Err(Refusal::CursorExpired), "{unknown}");
        }
    }
}
