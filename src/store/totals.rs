//! The table `totals`: maintained sums, so that reads need not count. Commits add to it in `commit::write`. Each sum is
//! spread over shards, so that commits do not wait for each other.

use std::cmp::Ordering;

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::money::{Count, Price, Stroops};

use super::{StoreError, corrupt};

/// Number of rows that share one sum.
pub const SHARDS: i16 = 16;

/// A tenant with more events than the cap.
#[derive(Clone, Debug)]
pub struct EventSurplus {
    pub tenant_id: String,
    pub events: i64,
}

/// At most `tenants_max` tenants with more than `cap` events, those with the most first.
pub async fn over_event_cap(
    connection: &mut PgConnection,
    cap: i64,
    tenants_max: i64,
) -> Result<Vec<EventSurplus>, StoreError> {
    let tenants = sqlx::query_as!(
        EventSurplus,
        r#"-- totals::over_event_cap
        SELECT tenant_id, (sum(events) - $1::bigint)::bigint AS "events!" FROM totals WHERE service_id = ''
        GROUP BY tenant_id HAVING sum(events) > $1::bigint ORDER BY sum(events) DESC LIMIT $2"#,
        cap,
        tenants_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(tenants)
}

/// Subtracts `events` pruned events.
pub async fn subtract_events(connection: &mut PgConnection, tenant_id: &str, events: i64) -> Result<(), StoreError> {
    sqlx::query!(
        "-- totals::subtract_events
        INSERT INTO totals AS total (tenant_id, service_id, shard, events) VALUES ($1, '', 0, $2)
        ON CONFLICT (tenant_id, service_id, shard) DO UPDATE SET events = total.events + excluded.events",
        tenant_id,
        -events,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The totals of a tenant, or of all tenants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub pairs: i64,
    pub outstanding: i64,
    /// Requests ever recorded.
    pub recorded: i64,
    pub settlements: i64,
    pub settled_stroops: Stroops,
    pub services: i64,
    pub agents: i64,
    pub events: i64,
    pub webhooks: i64,
    pub api_keys: i64,
}

impl Totals {
    /// Adds the totals of other tenants, or of the same tenant in another cell.
    pub fn add(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.outstanding += other.outstanding;
        self.recorded += other.recorded;
        self.settlements += other.settlements;
        self.settled_stroops += other.settled_stroops;
        self.services += other.services;
        self.agents += other.agents;
        self.events += other.events;
        self.webhooks += other.webhooks;
        self.api_keys += other.api_keys;
    }
}

struct TotalsRow {
    pairs: i64,
    outstanding: i64,
    recorded: i64,
    settlements: i64,
    settled_stroops: String,
    services: i64,
    agents: i64,
    events: i64,
    webhooks: i64,
    api_keys: i64,
}

impl TotalsRow {
    fn into_totals(self) -> Result<Totals, StoreError> {
        Ok(Totals {
            pairs: self.pairs,
            outstanding: self.outstanding,
            recorded: self.recorded,
            settlements: self.settlements,
            settled_stroops: Stroops::from_digits(&self.settled_stroops).ok_or_else(|| corrupt("settled_stroops"))?,
            services: self.services,
            agents: self.agents,
            events: self.events,
            webhooks: self.webhooks,
            api_keys: self.api_keys,
        })
    }
}

/// The totals of each of `tenants`, in their order. Zeros for a tenant without rows.
pub async fn of_each(connection: &mut PgConnection, tenants: &[&str]) -> Result<Vec<Totals>, StoreError> {
    let rows = sqlx::query_as!(
        TotalsRow,
        r#"-- totals::of_each
        SELECT sums.pairs AS "pairs!", sums.outstanding AS "outstanding!", sums.recorded AS "recorded!",
               sums.settlements AS "settlements!", sums.settled_stroops AS "settled_stroops!",
               sums.services AS "services!", sums.agents AS "agents!", sums.events AS "events!",
               sums.webhooks AS "webhooks!", sums.api_keys AS "api_keys!"
        FROM unnest($1::text[]) WITH ORDINALITY AS wanted (tenant_id, number)
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(pairs), 0)::bigint AS pairs, coalesce(sum(outstanding), 0)::bigint AS outstanding,
                   coalesce(sum(recorded), 0)::bigint AS recorded, coalesce(sum(settlements), 0)::bigint AS settlements,
                   coalesce(sum(settled_stroops), 0)::text AS settled_stroops,
                   coalesce(sum(services), 0)::bigint AS services, coalesce(sum(agents), 0)::bigint AS agents,
                   coalesce(sum(events), 0)::bigint AS events, coalesce(sum(webhooks), 0)::bigint AS webhooks,
                   coalesce(sum(api_keys), 0)::bigint AS api_keys
            FROM totals WHERE totals.tenant_id = wanted.tenant_id AND totals.service_id = ''
        ) AS sums
        ORDER BY wanted.number"#,
        tenants as _,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(TotalsRow::into_totals).collect()
}

/// The totals of all tenants. Reads the rows of every tenant.
pub async fn of_all(connection: &mut PgConnection) -> Result<Totals, StoreError> {
    sqlx::query_as!(
        TotalsRow,
        r#"-- totals::of_all
        SELECT coalesce(sum(pairs), 0)::bigint AS "pairs!", coalesce(sum(outstanding), 0)::bigint AS "outstanding!",
               coalesce(sum(recorded), 0)::bigint AS "recorded!", coalesce(sum(settlements), 0)::bigint AS "settlements!",
               coalesce(sum(settled_stroops), 0)::text AS "settled_stroops!",
               coalesce(sum(services), 0)::bigint AS "services!", coalesce(sum(agents), 0)::bigint AS "agents!",
               coalesce(sum(events), 0)::bigint AS "events!", coalesce(sum(webhooks), 0)::bigint AS "webhooks!",
               coalesce(sum(api_keys), 0)::bigint AS "api_keys!"
        FROM totals WHERE service_id = ''"#,
    )
    .fetch_one(connection)
    .await?
    .into_totals()
}

/// What a tenant's outstanding usage would cost now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Includes disabled services.
    pub total_stroops: Stroops,
    pub disabled_stroops: Stroops,
    /// Requests to services that are not registered.
    pub unpriced_requests: Count,
}

/// For each of `tenants`, in their order. Sums over the services of a tenant, not over its pairs.
pub async fn due(connection: &mut PgConnection, tenants: &[Tenant]) -> Result<Vec<Due>, StoreError> {
    let rows = sqlx::query!(
        r#"-- totals::due
        SELECT due.total AS "total!", due.disabled AS "disabled!", due.unpriced AS "unpriced!"
        FROM unnest($1::text[]) WITH ORDINALITY AS wanted (tenant_id, place)
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(used.outstanding * service.price_stroops), 0)::text AS total,
                   coalesce(sum(used.outstanding * service.price_stroops) FILTER (WHERE service.disabled), 0)::text
                       AS disabled,
                   coalesce(sum(used.outstanding) FILTER (WHERE service.price_stroops IS NULL), 0)::bigint AS unpriced
            FROM (
                SELECT service_id, sum(outstanding) AS outstanding
                FROM totals WHERE tenant_id = wanted.tenant_id AND service_id > '' GROUP BY service_id
            ) AS used
            LEFT JOIN LATERAL (
                SELECT price_stroops, disabled FROM services
                WHERE services.tenant_id = wanted.tenant_id AND services.service_id = used.service_id
                LIMIT 1
            ) AS service ON true
        ) AS due
        ORDER BY place"#,
        tenants.iter().map(Tenant::as_str).collect::<Vec<_>>() as _,
    )
    .fetch_all(connection)
    .await?;
    let amount = |digits: &str| Stroops::from_digits(digits).ok_or_else(|| corrupt("an amount"));
    let due = rows.into_iter().map(|row| {
        Ok(Due {
            total_stroops: amount(&row.total)?,
            disabled_stroops: amount(&row.disabled)?,
            unpriced_requests: Count(row.unpriced),
        })
    });
    due.collect()
}

/// A registered service and its outstanding requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceLine {
    pub tenant_id: String,
    pub service_id: String,
    pub price_stroops: Price,
    pub outstanding: Count,
}

/// The part of the registered services to read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceSlice {
    /// `None`: the services of all tenants.
    pub tenant: Option<Tenant>,
    /// Tenant and id of the last service before the slice.
    pub after: (String, String),
    pub limit: i64,
}

impl ServiceSlice {
    /// The tenant, and the last id before the slice. `None` if the slice covers all tenants, or is empty.
    fn of_tenant(&self) -> Option<(&str, &str)> {
        let tenant = self.tenant.as_ref()?.as_str();
        match self.after.0.as_str().cmp(tenant) {
            Ordering::Less => Some((tenant, "")),
            Ordering::Equal => Some((tenant, self.after.1.as_str())),
            Ordering::Greater => None,
        }
    }
}

/// Registered services by tenant and id, for each of `slices`, in their order.
pub async fn service_lines(
    connection: &mut PgConnection,
    slices: &[ServiceSlice],
) -> Result<Vec<Vec<ServiceLine>>, StoreError> {
    let mut lines = vec![Vec::new(); slices.len()];
    let of_tenants: Vec<_> = (0..).zip(slices).filter_map(|(place, slice)| Some((place, slice.of_tenant()?))).collect();
    if !of_tenants.is_empty() {
        let rows = sqlx::query!(
            r#"-- totals::service_lines
            SELECT wanted.place AS "place!", line.tenant_id AS "tenant_id!", line.service_id AS "service_id!",
                   line.price_stroops AS "price_stroops!", used.outstanding AS "outstanding!"
            FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[]) AS wanted (place, tenant_id, after, most)
            CROSS JOIN LATERAL (
                SELECT tenant_id, service_id, price_stroops FROM services
                WHERE services.tenant_id = wanted.tenant_id AND services.service_id > wanted.after
                ORDER BY services.tenant_id, services.service_id LIMIT wanted.most
            ) AS line
            CROSS JOIN LATERAL (
                SELECT coalesce(sum(outstanding), 0)::bigint AS outstanding FROM totals
                WHERE totals.tenant_id = line.tenant_id AND totals.service_id = line.service_id
            ) AS used
            ORDER BY wanted.place, line.service_id"#,
            &of_tenants.iter().map(|(place, _)| *place).collect::<Vec<i64>>(),
            of_tenants.iter().map(|(_, (tenant, _))| *tenant).collect::<Vec<_>>() as _,
            of_tenants.iter().map(|(_, (_, after))| *after).collect::<Vec<_>>() as _,
            &of_tenants.iter().map(|(place, _)| slices[*place as usize].limit).collect::<Vec<_>>(),
        )
        .fetch_all(&mut *connection)
        .await?;
        for row in rows {
            lines[row.place as usize].push(ServiceLine {
                tenant_id: row.tenant_id,
                service_id: row.service_id,
                price_stroops: Price::from_stored(row.price_stroops),
                outstanding: Count(row.outstanding),
            });
        }
    }
    for (slice, lines) in slices.iter().zip(&mut lines).filter(|(slice, _)| slice.tenant.is_none()) {
        *lines = lines_of_all(connection, slice).await?;
    }
    Ok(lines)
}

async fn lines_of_all(connection: &mut PgConnection, slice: &ServiceSlice) -> Result<Vec<ServiceLine>, StoreError> {
    let rows = sqlx::query!(
        r#"-- totals::lines_of_all
        SELECT tenant_id, service_id, price_stroops, used.outstanding AS "outstanding!"
        FROM services
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(outstanding), 0)::bigint AS outstanding FROM totals
            WHERE totals.tenant_id = services.tenant_id AND totals.service_id = services.service_id
        ) AS used
        WHERE (tenant_id, service_id) > ($1, $2) ORDER BY tenant_id, service_id LIMIT $3"#,
        slice.after.0,
        slice.after.1,
        slice.limit,
    )
    .fetch_all(connection)
    .await?;
    let lines = rows.into_iter().map(|row| ServiceLine {
        tenant_id: row.tenant_id,
        service_id: row.service_id,
        price_stroops: Price::from_stored(row.price_stroops),
        outstanding: Count(row.outstanding),
    });
    Ok(lines.collect())
}

/// The number of a tenant's services.
pub async fn services(connection: &mut PgConnection, tenant: &Tenant) -> Result<i64, StoreError> {
    let services = sqlx::query_scalar!(
        r#"-- totals::services
        SELECT coalesce(sum(services), 0)::bigint AS "services!" FROM totals WHERE tenant_id = $1 AND service_id = ''"#,
        tenant.as_str(),
    )
    .fetch_one(connection)
    .await?;
    Ok(services)
}
