//! The table `events`: what happened, per tenant, in order. Batches append to it, in `batch::write`.

use std::cmp::Reverse;

use serde_json::value::RawValue;
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::timestamp::Timestamp;

use super::{StoreError, corrupt};

/// Draws the places of `count` events that are about to be appended, in ascending order.
pub async fn draw_positions(connection: &mut PgConnection, count: usize) -> Result<Vec<i64>, StoreError> {
    let mut positions = sqlx::query_scalar!(
        r#"-- events::draw_positions
        SELECT nextval('events_position_seq') AS "position!" FROM generate_series(1, $1::bigint)"#,
        count as i64,
    )
    .fetch_all(connection)
    .await?;
    positions.sort_unstable();
    Ok(positions)
}

/// Deletes a tenant's `events_max` oldest events. Returns how many there were to delete.
pub async fn delete_oldest(connection: &mut PgConnection, tenant: &str, events_max: i64) -> Result<i64, StoreError> {
    let deleted = sqlx::query!(
        "-- events::delete_oldest
        DELETE FROM events WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM events WHERE tenant = $1 ORDER BY tenant, position LIMIT $2))",
        tenant,
        events_max,
    )
    .execute(connection)
    .await?;
    Ok(deleted.rows_affected() as i64)
}

/// Which events a read shows. Both must hold.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Recorded at this moment or later; 0 for all.
    pub since: Timestamp,
    pub type_name: Option<String>,
}

impl Filter {
    pub fn is_empty(&self) -> bool {
        self.since == Timestamp::from_ms(0) && self.type_name.is_none()
    }
}

/// One row of the log.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub position: i64,
    pub recorded_at: Timestamp,
    pub type_name: String,
    /// As it was written.
    pub payload: Box<RawValue>,
}

/// Position of the oldest event that is among a tenant's `cap` newest; 0 if it has no more than that. It passes over
/// `cap` entries of the primary key.
pub async fn first_visible(connection: &mut PgConnection, tenant: &Tenant, cap: i64) -> Result<i64, StoreError> {
    let position = sqlx::query_scalar!(
        "-- events::first_visible
        SELECT position FROM events WHERE tenant = $1 ORDER BY tenant DESC, position DESC LIMIT 1 OFFSET $2",
        tenant.as_str(),
        cap - 1,
    )
    .fetch_optional(connection)
    .await?;
    Ok(position.unwrap_or(0))
}

/// How many events from `first` on match.
pub async fn count_matching(
    connection: &mut PgConnection,
    tenant: &Tenant,
    filter: &Filter,
    first: i64,
) -> Result<i64, StoreError> {
    let events = sqlx::query_scalar!(
        r#"-- events::count_matching
        SELECT count(*) AS "events!" FROM events
        WHERE tenant = $1 AND position >= $2 AND recorded_at >= $3 AND ($4::text IS NULL OR type = $4)"#,
        tenant.as_str(),
        first,
        filter.since.to_date_time(),
        filter.type_name,
    )
    .fetch_one(connection)
    .await?;
    Ok(events)
}

/// How many events from `first` on there are of each type.
pub async fn count_by_type(
    connection: &mut PgConnection,
    tenant: &Tenant,
    first: i64,
) -> Result<Vec<(String, i64)>, StoreError> {
    let counts = sqlx::query!(
        r#"-- events::count_by_type
        SELECT type AS type_name, count(*) AS "events!" FROM events WHERE tenant = $1 AND position >= $2 GROUP BY type"#,
        tenant.as_str(),
        first,
    )
    .fetch_all(connection)
    .await?;
    Ok(counts.into_iter().map(|row| (row.type_name, row.events)).collect())
}

/// Whether the event of this moment and position is in the log from `first` on, and matches.
pub async fn is_visible(
    connection: &mut PgConnection,
    tenant: &Tenant,
    filter: &Filter,
    first: i64,
    (recorded_at, position): (Timestamp, i64),
) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar!(
        "-- events::is_visible
        SELECT position FROM events
        WHERE tenant = $1 AND position = $2 AND position >= $3 AND recorded_at = $4 AND recorded_at >= $5
          AND ($6::text IS NULL OR type = $6)",
        tenant.as_str(),
        position,
        first,
        recorded_at.to_date_time(),
        filter.since.to_date_time(),
        filter.type_name,
    )
    .fetch_optional(connection)
    .await?;
    Ok(found.is_some())
}

/// The newest matching events from `first` on and before `before`, newest first, at most `limit`.
pub async fn newest(
    connection: &mut PgConnection,
    tenant: &Tenant,
    filter: &Filter,
    first: i64,
    before: i64,
    limit: i64,
) -> Result<Vec<Recorded>, StoreError> {
    let rows = sqlx::query!(
        r#"-- events::newest
        SELECT position, recorded_at, type AS type_name, payload AS "payload!: Json<Box<RawValue>>" FROM events
        WHERE tenant = $1 AND position >= $2 AND position < $3 AND recorded_at >= $4
          AND ($5::text IS NULL OR type = $5)
        ORDER BY tenant DESC, position DESC LIMIT $6"#,
        tenant.as_str(),
        first,
        before,
        filter.since.to_date_time(),
        filter.type_name,
        limit,
    )
    .fetch_all(connection)
    .await?;
    let events = rows.into_iter().map(|row| Recorded {
        position: row.position,
        recorded_at: row.recorded_at.into(),
        type_name: row.type_name,
        payload: row.payload.0,
    });
    Ok(events.collect())
}

/// The newest events of a tenant.
#[derive(Clone, Debug)]
pub struct Head {
    /// How many are stored in all.
    pub stored: i64,
    /// Newest first.
    pub newest: Vec<Recorded>,
}

/// Most newest events that [`heads`] gives of a tenant: the number in its statement.
pub const HEAD_MAX: i64 = 101;

/// At most so many of each tenant, in the order of `wanted`: as of one moment, in one statement. A tenant's events come as
/// one row of arrays, which is less work than a row for each.
pub async fn heads(connection: &mut PgConnection, wanted: &[(&Tenant, i64)]) -> Result<Vec<Head>, StoreError> {
    let rows = sqlx::query!(
        r#"-- events::heads
        SELECT wanted.place AS "place!", totals.events AS "events!", newest.positions AS "positions!",
               newest.moments AS "moments!", newest.types AS "types!", newest.payloads AS "payloads!: Vec<Json<Box<RawValue>>>"
        FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS wanted (tenant, most, place)
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(events), 0)::bigint AS events FROM tenant_totals
            WHERE tenant_totals.tenant = wanted.tenant
        ) AS totals
        CROSS JOIN LATERAL (
            SELECT coalesce(array_agg(position), '{}') AS positions, coalesce(array_agg(recorded_at), '{}') AS moments,
                   coalesce(array_agg(type::text), '{}') AS types,
                   coalesce(array_agg(payload::json), '{}') AS payloads
            FROM (
                SELECT * FROM (
                    -- A number that the planner knows: without it, it prepares for a tenth of the log.
                    SELECT position, recorded_at, type, payload FROM events
                    WHERE events.tenant = wanted.tenant
                    ORDER BY events.tenant DESC, position DESC LIMIT 101
                ) AS head
                ORDER BY position DESC LIMIT wanted.most
            ) AS shown
        ) AS newest"#,
        wanted.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>() as _,
        &wanted.iter().map(|(_, limit)| *limit).collect::<Vec<_>>(),
    )
    .fetch_all(connection)
    .await?;
    let mut heads = vec![Head { stored: 0, newest: Vec::new() }; wanted.len()];
    for row in rows {
        let head = heads.get_mut(row.place as usize - 1).ok_or_else(|| corrupt("place"))?;
        head.stored = row.events;
        let contents = row.types.into_iter().zip(row.payloads);
        let places = row.positions.into_iter().zip(row.moments);
        let recorded = |((position, recorded_at), (type_name, Json(payload))): ((_, OffsetDateTime), _)| Recorded {
            position,
            recorded_at: recorded_at.into(),
            type_name,
            payload,
        };
        head.newest = places.zip(contents).map(recorded).collect();
        // The order within an aggregate is nobody's promise.
        head.newest.sort_unstable_by_key(|event| Reverse(event.position));
    }
    Ok(heads)
}
