//! The event log of a tenant: its newest `eventLogCap` events are visible, whatever else is still stored.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

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
use crate::store::StoreError;
use crate::store::events::{self, Filter, Recorded};
use crate::store::{server, totals};

use crate::api::openapi::description::{CURSOR, Description, SINCE, limit, text};
use crate::api::request::etag::Tagged;
use crate::api::request::exchange::{Failure, Read, check_query, json};
use crate::api::request::query::encode_cursor;
use crate::api::state::ApiState;

/// Events of a page, unless the request or the cap says otherwise.
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
    if before.is_none() && filter.is_empty() && limit < events::HEAD_MAX {
        let wanted = WantedHead { tenant: tenant.clone(), limit, cap };
        let page = state.ask(&state.reads.events, wanted, exchange.deadline, heads).await?;
        return Ok(page.tagged(&view).answer(&headers));
    }
    let read = async |connection: &mut PgConnection| part(connection, tenant, &filter, before, cap, limit).await;
    let page = state.read(exchange.deadline, read).await?.ok_or(Refusal::CursorExpired)?;
    Ok(page.tagged(&view).answer(&headers))
}

/// A page of the log.
#[derive(Debug)]
pub struct Page {
    total: i64,
    /// Newest first.
    events: Vec<Recorded>,
    has_older: bool,
    /// Rendered once, for all who share the page.
    tagged: OnceLock<Tagged>,
}

impl Page {
    /// The first `limit` of `events`.
    fn new(total: i64, mut events: Vec<Recorded>, limit: i64, has_older: bool) -> Self {
        events.truncate(limit as usize);
        Self { total, events, has_older, tagged: OnceLock::new() }
    }

    fn tagged(&self, view: &str) -> Tagged {
        let render = || {
            let oldest = self.events.last().filter(|_| self.has_older);
            let next_cursor = oldest.map(|row| encode_cursor(&format!("{}:{}", row.recorded_at.as_ms(), row.id())));
            let items = self.events.iter().rev().map(Item::from).collect();
            Tagged::new(Reply::json(200, &List { total: self.total, items, next_cursor }), view)
        };
        self.tagged.get_or_init(render).clone()
    }
}

/// Which newest events are wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WantedHead {
    tenant: Tenant,
    limit: i64,
    /// How many are visible at most.
    cap: i64,
}

async fn heads(connection: &mut PgConnection, wanted: &[WantedHead]) -> Result<Vec<Arc<Page>>, StoreError> {
    let and_one_more: Vec<_> = wanted.iter().map(|head| (&head.tenant, head.limit + 1)).collect();
    let found = events::heads(connection, &and_one_more).await?;
    let pages = found.into_iter().zip(wanted).map(|(found, head)| {
        let total = found.stored.min(head.cap);
        // In a log at its cap the row behind the page may be one that is not visible; `total` knows.
        let has_older = found.newest.len() as i64 > head.limit && total > head.limit;
        Arc::new(Page::new(total, found.newest, head.limit, has_older))
    });
    Ok(pages.collect())
}

/// A page that is long, or not the head of the whole log: it has to know where the visible log begins. None if `before`
/// is no event that is visible.
async fn part(
    connection: &mut PgConnection,
    tenant: &Tenant,
    filter: &Filter,
    before: Option<(Timestamp, i64)>,
    cap: i64,
    limit: i64,
) -> Result<Option<Page>, StoreError> {
    // One snapshot, so that total, items and cursor speak of the same log.
    let mut log = server::begin_snapshot(connection).await?;
    let first = events::first_visible(&mut log, tenant, cap).await?;
    if let Some(place) = before
        && !events::is_visible(&mut log, tenant, filter, first, place).await?
    {
        return Ok(None);
    }
    let total = if filter.is_empty() {
        totals::of_each(&mut log, &[tenant.as_str()]).await?.pop().unwrap_or_default().events.min(cap)
    } else {
        events::count_matching(&mut log, tenant, filter, first).await?
    };
    let before_position = before.map_or(i64::MAX, |(_, position)| position);
    let events = events::newest(&mut log, tenant, filter, first, before_position, limit + 1).await?;
    let has_older = events.len() as i64 > limit && (before.is_some() || total > limit);
    Ok(Some(Page::new(total, events, limit, has_older)))
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

pub async fn summary(State(state): State<ApiState>, Read(exchange): Read) -> Result<Response, Failure> {
    check_query(&exchange, &[])?;
    let tenant = &exchange.identity.tenant;
    let cap = state.limits.now().event_log_cap;
    let read = async |connection: &mut PgConnection| {
        let mut log = server::begin_snapshot(connection).await?;
        let first = events::first_visible(&mut log, tenant, cap).await?;
        events::count_by_type(&mut log, tenant, first).await
    };
    let counts: BTreeMap<String, i64> = state.read(exchange.deadline, read).await?.into_iter().collect();
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
