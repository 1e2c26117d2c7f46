//! Pages of the event log. The newest events are polled, so their reads are coalesced. Other pages are each read from
//! one snapshot.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::store::events::{self, Filter, Recorded};
use crate::store::{StoreError, server, totals};

use super::reader::{Reader, Reads};

/// The part of a tenant's visible events that a request selects.
#[derive(Clone, Debug)]
pub struct Part {
    pub tenant: Tenant,
    pub filter: Filter,
    /// Only events older than this one, given by its time and position.
    pub before: Option<(Timestamp, i64)>,
    pub limit: i64,
    /// Maximum number of visible events.
    pub cap: i64,
}

/// A page of the log. `R` is the rendered page.
#[derive(Debug)]
pub struct EventPage<R> {
    /// Number of visible events that match the filter.
    pub total: i64,
    /// Newest first.
    pub events: Vec<Recorded>,
    pub has_older: bool,
    /// The page is rendered once for all requests that share it.
    pub rendered: OnceLock<R>,
}

/// A request for the newest events of a tenant, without a filter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    tenant: Tenant,
    limit: i64,
    cap: i64,
}

/// Coalesced reads of the newest events.
#[derive(Debug)]
pub struct EventLog<R>(Reads<Head, Arc<EventPage<R>>>);

impl<R> Default for EventLog<R> {
    fn default() -> Self {
        Self(Reads::new(64))
    }
}

impl<R> EventLog<R> {
    /// `None` if `before` is not a visible event.
    pub async fn load(
        &self,
        reader: &Reader,
        part: Part,
        deadline: Instant,
    ) -> Result<Option<Arc<EventPage<R>>>, Refusal> {
        let Part { tenant, filter, before, limit, cap } = &part;
        if before.is_none() && filter.is_empty() && *limit < events::HEAD_MAX {
            let head = Head { tenant: tenant.clone(), limit: *limit, cap: *cap };
            return reader.load(&self.0, head, deadline, read_heads).await.map(Some);
        }
        let read = async |connection: &mut PgConnection| read_part(connection, &part).await;
        Ok(reader.read(deadline, read).await?.map(Arc::new))
    }
}

async fn read_heads<R>(connection: &mut PgConnection, heads: &[Head]) -> Result<Vec<Arc<EventPage<R>>>, StoreError> {
    let and_one_more: Vec<_> = heads.iter().map(|head| (&head.tenant, head.limit + 1)).collect();
    let found = events::heads(connection, &and_one_more).await?;
    let pages = found.into_iter().zip(heads).map(|(found, head)| {
        let total = found.stored.min(head.cap);
        // If the log is at its cap, the row after the page may no longer be visible, so `total` decides.
        let has_older = found.newest.len() as i64 > head.limit && total > head.limit;
        Arc::new(EventPage::new(total, found.newest, head.limit, has_older))
    });
    Ok(pages.collect())
}

/// Reads a page that is long, or not the newest of the whole log. Such a page must know where the visible log begins.
async fn read_part<R>(connection: &mut PgConnection, part: &Part) -> Result<Option<EventPage<R>>, StoreError> {
    let Part { tenant, filter, before, limit, cap } = part;
    // One snapshot, so that total, items and cursor agree.
    let mut log = server::begin_snapshot(connection).await?;
    let first = events::first_visible(&mut log, tenant, *cap).await?;
    if let Some(event) = *before
        && !events::is_visible(&mut log, tenant, filter, first, event).await?
    {
        return Ok(None);
    }
    let total = if filter.is_empty() {
        totals::of_each(&mut log, &[tenant.as_str()]).await?.pop().unwrap_or_default().events.min(*cap)
    } else {
        events::count_matching(&mut log, tenant, filter, first).await?
    };
    let before_position = before.map_or(i64::MAX, |(_, position)| position);
    let events = events::newest(&mut log, tenant, filter, first, before_position, limit + 1).await?;
    let has_older = events.len() as i64 > *limit && (before.is_some() || total > *limit);
    Ok(Some(EventPage::new(total, events, *limit, has_older)))
}

/// The number of visible events of `tenant` by type.
pub async fn count_by_type(
    reader: &Reader,
    tenant: &Tenant,
    cap: i64,
    deadline: Instant,
) -> Result<Vec<(String, i64)>, Refusal> {
    let read = async |connection: &mut PgConnection| {
        let mut log = server::begin_snapshot(connection).await?;
        let first = events::first_visible(&mut log, tenant, cap).await?;
        events::count_by_type(&mut log, tenant, first).await
    };
    reader.read(deadline, read).await
}

impl<R> EventPage<R> {
    /// Keeps the first `limit` of `events`.
    fn new(total: i64, mut events: Vec<Recorded>, limit: i64, has_older: bool) -> Self {
        events.truncate(limit as usize);
        Self { total, events, has_older, rendered: OnceLock::new() }
    }
}
