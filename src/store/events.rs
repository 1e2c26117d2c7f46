//! The table `event_runs`: the events of each tenant, in order. Commits append to it in `commit::write`.

use std::cmp::Reverse;

use serde_json::value::RawValue;
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::timestamp::Timestamp;

use super::{StoreError, corrupt};

/// Deletes a tenant's oldest runs: at most `runs_max`, with at most `events_max` events in all. Returns the number of
/// events.
pub async fn delete_oldest(
    connection: &mut PgConnection,
    tenant_id: &str,
    events_max: i64,
    runs_max: i64,
) -> Result<i64, StoreError> {
    let deleted = sqlx::query_scalar!(
        r#"-- events::delete_oldest
        WITH deleted AS (
            DELETE FROM event_runs
            WHERE tenant_id = $1 AND position <= (
                SELECT max(position) FROM (
                    SELECT position, sum(events) OVER (ORDER BY position) AS up_to_here
                    FROM (SELECT position, events FROM event_runs WHERE tenant_id = $1
                          ORDER BY tenant_id, position LIMIT $3) AS oldest
                ) AS counted
                WHERE up_to_here <= $2
            )
            RETURNING events
        )
        SELECT coalesce(sum(events), 0)::bigint AS "events!" FROM deleted"#,
        tenant_id,
        events_max,
        runs_max,
    )
    .fetch_one(connection)
    .await?;
    Ok(deleted)
}

/// A filter of events. Both conditions must hold.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Recorded at this time or later; 0 for all.
    pub since: Timestamp,
    pub type_name: Option<String>,
}

impl Filter {
    pub fn is_empty(&self) -> bool {
        self.since == Timestamp::from_ms(0) && self.type_name.is_none()
    }
}

/// One event.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub position: i64,
    pub recorded_at: Timestamp,
    pub type_name: String,
    /// The JSON as it was written.
    pub payload: Box<RawValue>,
}

/// Position of the oldest of a tenant's `cap` newest events; 0 if there are no more than `cap`. Reads the primary key
/// entries of up to `cap` runs.
pub async fn first_visible(connection: &mut PgConnection, tenant: &Tenant, cap: i64) -> Result<i64, StoreError> {
    let position = sqlx::query_scalar!(
        r#"-- events::first_visible
        SELECT position + (up_to_here - $2::bigint)::bigint AS "position!"
        FROM (
            SELECT position, sum(events) OVER (ORDER BY position DESC) AS up_to_here
            FROM (SELECT position, events FROM event_runs WHERE tenant_id = $1
                  ORDER BY tenant_id DESC, position DESC LIMIT $2) AS newest
        ) AS counted
        WHERE up_to_here >= $2 ORDER BY position DESC LIMIT 1"#,
        tenant.as_str(),
        cap,
    )
    .fetch_optional(connection)
    .await?;
    Ok(position.unwrap_or(0))
}

/// The number of matching events from `first` on.
pub async fn count_matching(
    connection: &mut PgConnection,
    tenant: &Tenant,
    filter: &Filter,
    first: i64,
) -> Result<i64, StoreError> {
    let events = sqlx::query_scalar!(
        r#"-- events::count_matching
        SELECT coalesce(sum(least(events, position + events - $2::bigint)), 0)::bigint AS "events!" FROM event_runs
        WHERE tenant_id = $1 AND position > $2::bigint - 256 AND position + events > $2 AND recorded_at >= $3
          AND ($4::text IS NULL OR type = $4)"#,
        tenant.as_str(),
        first,
        filter.since.to_date_time(),
        filter.type_name,
    )
    .fetch_one(connection)
    .await?;
    Ok(events)
}

/// The number of events from `first` on by type.
pub async fn count_by_type(
    connection: &mut PgConnection,
    tenant: &Tenant,
    first: i64,
) -> Result<Vec<(String, i64)>, StoreError> {
    let counts = sqlx::query!(
        r#"-- events::count_by_type
        SELECT type AS type_name, sum(least(events, position + events - $2::bigint))::bigint AS "events!" FROM event_runs
        WHERE tenant_id = $1 AND position > $2::bigint - 256 AND position + events > $2 GROUP BY type"#,
        tenant.as_str(),
        first,
    )
    .fetch_all(connection)
    .await?;
    Ok(counts.into_iter().map(|row| (row.type_name, row.events)).collect())
}

/// Whether the event with this time and position exists from `first` on, and matches.
pub async fn is_visible(
    connection: &mut PgConnection,
    tenant: &Tenant,
    filter: &Filter,
    first: i64,
    (recorded_at, position): (Timestamp, i64),
) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar!(
        "-- events::is_visible
        SELECT position FROM event_runs
        WHERE tenant_id = $1 AND position > $2::bigint - 256 AND position <= $2 AND position + events > $2 AND $2 >= $3
          AND recorded_at = $4 AND recorded_at >= $5 AND ($6::text IS NULL OR type = $6)",
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

/// At most `limit` matching events from `first` on and before `before`, newest first. Only the needed part of a run is
/// expanded.
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
        SELECT run.position + event.number - 1 AS "position!", run.recorded_at, run.type AS type_name,
               event.payload AS "payload!"
        FROM (
            SELECT position, recorded_at, type, payloads,
                   sum(least(events, $3 - position)) OVER (ORDER BY position DESC)
                       - least(events, $3 - position) AS newer
            FROM (
                SELECT position, events, recorded_at, type, payloads FROM event_runs
                WHERE tenant_id = $1 AND position > $2::bigint - 256 AND position + events > $2 AND position < $3
                  AND recorded_at >= $4 AND ($5::text IS NULL OR type = $5)
                ORDER BY tenant_id DESC, position DESC LIMIT $6
            ) AS newest
        ) AS run
        CROSS JOIN LATERAL string_to_table(run.payloads, E'\n') WITH ORDINALITY AS event (payload, number)
        WHERE run.newer < $6 AND run.position + event.number - 1 BETWEEN $2 AND $3 - 1
        ORDER BY 1 DESC LIMIT $6"#,
        tenant.as_str(),
        first,
        before,
        filter.since.to_date_time(),
        filter.type_name,
        limit,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Recorded {
                position: row.position,
                recorded_at: row.recorded_at.into(),
                type_name: row.type_name,
                payload: payload(row.payload)?,
            })
        })
        .collect()
}

/// A tenant's events of one moment and type, in order, at most `limit`. Reads all runs of the tenant.
pub async fn at(
    connection: &mut PgConnection,
    tenant: &Tenant,
    recorded_at: OffsetDateTime,
    type_name: &str,
    limit: i64,
) -> Result<Vec<Recorded>, StoreError> {
    let rows = sqlx::query!(
        r#"-- events::at
        SELECT run.position + event.number - 1 AS "position!", event.payload AS "payload!"
        FROM event_runs AS run
        CROSS JOIN LATERAL string_to_table(run.payloads, E'\n') WITH ORDINALITY AS event (payload, number)
        WHERE run.tenant_id = $1 AND run.recorded_at = $2 AND run.type = $3
        ORDER BY 1 LIMIT $4"#,
        tenant.as_str(),
        recorded_at,
        type_name,
        limit,
    )
    .fetch_all(connection)
    .await?;
    let recorded = rows.into_iter().map(|row| {
        let (recorded_at, type_name) = (recorded_at.into(), type_name.to_owned());
        Ok(Recorded { position: row.position, recorded_at, type_name, payload: payload(row.payload)? })
    });
    recorded.collect()
}

fn payload(text: String) -> Result<Box<RawValue>, StoreError> {
    RawValue::from_string(text).map_err(|_| corrupt("payloads"))
}

/// The newest events of a tenant.
#[derive(Clone, Debug)]
pub struct Head {
    /// Number of all stored events.
    pub stored: i64,
    /// Newest first.
    pub newest: Vec<Recorded>,
}

/// Maximum number of events of a tenant that [`heads`] returns. Its statement contains this number.
pub const HEAD_MAX: i64 = 101;

/// The newest events of each tenant, at most the wanted number, in the order of `wanted`, all read in one statement.
/// The runs of a tenant are returned as arrays, which costs less than a row for each. They are split into events here.
pub async fn heads(connection: &mut PgConnection, wanted: &[(&Tenant, i64)]) -> Result<Vec<Head>, StoreError> {
    let rows = sqlx::query!(
        r#"-- events::heads
        SELECT wanted.number AS "number!", sums.events AS "events!", newest.positions AS "positions!",
               newest.moments AS "moments!", newest.types AS "types!", newest.payloads AS "payloads!"
        FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS wanted (tenant_id, most, number)
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(events), 0)::bigint AS events FROM totals
            WHERE totals.tenant_id = wanted.tenant_id AND totals.service_id = ''
        ) AS sums
        CROSS JOIN LATERAL (
            SELECT coalesce(array_agg(position), '{}') AS positions, coalesce(array_agg(recorded_at), '{}') AS moments,
                   coalesce(array_agg(type::text), '{}') AS types, coalesce(array_agg(payloads), '{}') AS payloads
            FROM (
                SELECT position, recorded_at, type, payloads,
                       sum(events) OVER (ORDER BY position DESC) - events AS newer
                FROM (
                    -- A number that the planner knows: without it, it prepares for a tenth of the log.
                    SELECT position, events, recorded_at, type, payloads FROM event_runs
                    WHERE event_runs.tenant_id = wanted.tenant_id
                    ORDER BY event_runs.tenant_id DESC, position DESC LIMIT 101
                ) AS head
            ) AS counted
            WHERE newer < wanted.most
        ) AS newest"#,
        wanted.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>() as _,
        &wanted.iter().map(|(_, limit)| *limit).collect::<Vec<_>>(),
    )
    .fetch_all(connection)
    .await?;
    let mut heads = vec![Head { stored: 0, newest: Vec::new() }; wanted.len()];
    for row in rows {
        let index = row.number as usize - 1;
        let head = heads.get_mut(index).ok_or_else(|| corrupt("number"))?;
        head.stored = row.events;
        let contents = row.types.into_iter().zip(row.payloads);
        for ((position, recorded_at), (type_name, payloads)) in row.positions.into_iter().zip(row.moments).zip(contents)
        {
            for (position, text) in (position..).zip(payloads.split('\n')) {
                head.newest.push(Recorded {
                    position,
                    recorded_at: OffsetDateTime::into(recorded_at),
                    type_name: type_name.clone(),
                    payload: payload(text.to_owned())?,
                });
            }
        }
        // The order within an aggregate is not guaranteed.
        head.newest.sort_unstable_by_key(|event| Reverse(event.position));
        head.newest.truncate(wanted[index].1.max(0) as usize);
    }
    Ok(heads)
}
