//! The tables `tenant_totals` and `service_totals`: what would otherwise have to be counted. Batches add to them, in
//! `batch::write`. The rows of one owner are spread over shards, so that committers do not wait for each other.

use std::cmp::Ordering;
use std::ops::AddAssign;

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::money::Stroops;

use super::{StoreError, corrupt};

/// Rows that the totals of one tenant or service are spread over.
pub const SHARDS: i16 = 16;

/// Stands for all tenants together. No tenant can have this id.
pub const ALL_TENANTS: &str = "*";

/// What one commit changes of a tenant's totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantChange {
    pub pairs: i64,
    pub pairs_above_zero: i64,
    pub outstanding: i64,
    pub lifetime: i64,
    pub settlements: i64,
    pub settled_stroops: Stroops,
    pub services: i64,
    pub agents: i64,
    pub events: i64,
    pub webhooks: i64,
    pub api_keys: i64,
    /// Kept for all tenants together only.
    pub replies: i64,
}

impl AddAssign<&TenantChange> for TenantChange {
    fn add_assign(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.pairs_above_zero += other.pairs_above_zero;
        self.outstanding += other.outstanding;
        self.lifetime += other.lifetime;
        self.settlements += other.settlements;
        self.settled_stroops += other.settled_stroops;
        self.services += other.services;
        self.agents += other.agents;
        self.events += other.events;
        self.webhooks += other.webhooks;
        self.api_keys += other.api_keys;
        self.replies += other.replies;
    }
}

/// What one commit changes of a service's totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceChange {
    pub outstanding: i64,
    pub pairs_above_zero: i64,
}

/// Notes that `events` of a tenant's events were pruned.
pub async fn subtract_events(connection: &mut PgConnection, tenant: &str, events: i64) -> Result<(), StoreError> {
    sqlx::query!(
        "-- totals::subtract_events
        INSERT INTO tenant_totals AS total (tenant, shard, events)
        SELECT tenant, 0, $2 FROM unnest(ARRAY[$3, $1]) AS pruned (tenant)
        ON CONFLICT (tenant, shard) DO UPDATE SET events = total.events + excluded.events",
        tenant,
        -events,
        ALL_TENANTS,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that `replies` of the idempotency records were pruned.
pub async fn subtract_replies(connection: &mut PgConnection, replies: i64) -> Result<(), StoreError> {
    sqlx::query!(
        "-- totals::subtract_replies
        INSERT INTO tenant_totals AS total (tenant, shard, replies) VALUES ($1, 0, $2)
        ON CONFLICT (tenant, shard) DO UPDATE SET replies = total.replies + excluded.replies",
        ALL_TENANTS,
        -replies,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A tenant's totals, or those of all tenants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub pairs: i64,
    pub outstanding: i64,
    pub lifetime: i64,
    pub settlements: i64,
    pub settled_stroops: Stroops,
    pub services: i64,
    pub agents: i64,
    pub events: i64,
    pub webhooks: i64,
    pub api_keys: i64,
    /// Kept for all tenants together only.
    pub replies: i64,
}

/// The totals of `owner`: a tenant's id, or [`ALL_TENANTS`]. Zeros for one that has nothing.
pub async fn of(connection: &mut PgConnection, owner: &str) -> Result<Totals, StoreError> {
    of_each(connection, &[owner]).await?.pop().ok_or_else(|| corrupt("totals"))
}

/// The totals of each of `owners`, in their order.
pub async fn of_each(connection: &mut PgConnection, owners: &[&str]) -> Result<Vec<Totals>, StoreError> {
    let rows = sqlx::query!(
        r#"-- totals::of_each
        SELECT kept.pairs AS "pairs!", kept.outstanding AS "outstanding!", kept.lifetime AS "lifetime!",
               kept.settlements AS "settlements!", kept.settled_stroops AS "settled_stroops!",
               kept.services AS "services!", kept.agents AS "agents!", kept.events AS "events!",
               kept.webhooks AS "webhooks!", kept.api_keys AS "api_keys!", kept.replies AS "replies!"
        FROM unnest($1::text[]) WITH ORDINALITY AS wanted (owner, place)
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(pairs), 0)::bigint AS pairs, coalesce(sum(outstanding), 0)::bigint AS outstanding,
                   coalesce(sum(lifetime), 0)::bigint AS lifetime, coalesce(sum(settlements), 0)::bigint AS settlements,
                   coalesce(sum(settled_stroops), 0)::text AS settled_stroops,
                   coalesce(sum(services), 0)::bigint AS services, coalesce(sum(agents), 0)::bigint AS agents,
                   coalesce(sum(events), 0)::bigint AS events, coalesce(sum(webhooks), 0)::bigint AS webhooks,
                   coalesce(sum(api_keys), 0)::bigint AS api_keys, coalesce(sum(replies), 0)::bigint AS replies
            FROM tenant_totals WHERE tenant = wanted.owner
        ) AS kept
        ORDER BY place"#,
        owners as _,
    )
    .fetch_all(connection)
    .await?;
    let totals = rows.into_iter().map(|row| {
        Ok(Totals {
            pairs: row.pairs,
            outstanding: row.outstanding,
            lifetime: row.lifetime,
            settlements: row.settlements,
            settled_stroops: Stroops::from_digits(&row.settled_stroops).ok_or_else(|| corrupt("settled_stroops"))?,
            services: row.services,
            agents: row.agents,
            events: row.events,
            webhooks: row.webhooks,
            api_keys: row.api_keys,
            replies: row.replies,
        })
    });
    totals.collect()
}

/// What a tenant's outstanding requests would be billed now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The part of disabled services included.
    pub total_stroops: Stroops,
    pub disabled_stroops: Stroops,
    /// Requests of services that are not registered.
    pub unpriced_requests: i64,
}

/// Of each of `tenants`, in their order. Sums over the services of a tenant, not over its pairs.
pub async fn due(connection: &mut PgConnection, tenants: &[Tenant]) -> Result<Vec<Due>, StoreError> {
    let rows = sqlx::query!(
        r#"-- totals::due
        SELECT due.total AS "total!", due.disabled AS "disabled!", due.unpriced AS "unpriced!"
        FROM unnest($1::text[]) WITH ORDINALITY AS wanted (tenant, place)
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(used.outstanding * service.price_stroops), 0)::text AS total,
                   coalesce(sum(used.outstanding * service.price_stroops) FILTER (WHERE service.disabled), 0)::text
                       AS disabled,
                   coalesce(sum(used.outstanding) FILTER (WHERE service.price_stroops IS NULL), 0)::bigint AS unpriced
            FROM (
                SELECT service_id, sum(outstanding) AS outstanding
                FROM service_totals WHERE tenant = wanted.tenant GROUP BY service_id
            ) AS used
            LEFT JOIN LATERAL (
                SELECT price_stroops, disabled FROM services
                WHERE services.tenant = wanted.tenant AND services.service_id = used.service_id
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
            unpriced_requests: row.unpriced,
        })
    });
    due.collect()
}

/// A registered service of a tenant with what is outstanding of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceLine {
    pub tenant: String,
    pub service_id: String,
    pub price_stroops: i64,
    pub outstanding: i64,
}

/// Which part of the registered services.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceSlice {
    /// None: of all tenants.
    pub tenant: Option<Tenant>,
    /// Tenant and id of the service before the first.
    pub after: (String, String),
    pub limit: i64,
}

impl ServiceSlice {
    /// The tenant, and the id before its first service. None if they are of all tenants, or none.
    fn of_tenant(&self) -> Option<(&str, &str)> {
        let tenant = self.tenant.as_ref()?.as_str();
        match self.after.0.as_str().cmp(tenant) {
            Ordering::Less => Some((tenant, "")),
            Ordering::Equal => Some((tenant, self.after.1.as_str())),
            Ordering::Greater => None,
        }
    }
}

/// Registered services by tenant and id: those of each slice, in the order of `slices`.
pub async fn service_lines(
    connection: &mut PgConnection,
    slices: &[ServiceSlice],
) -> Result<Vec<Vec<ServiceLine>>, StoreError> {
    let mut lines = vec![Vec::new(); slices.len()];
    let of_tenants: Vec<_> = (0..).zip(slices).filter_map(|(place, slice)| Some((place, slice.of_tenant()?))).collect();
    if !of_tenants.is_empty() {
        let rows = sqlx::query!(
            r#"-- totals::service_lines
            SELECT wanted.place AS "place!", line.tenant AS "tenant!", line.service_id AS "service_id!",
                   line.price_stroops AS "price_stroops!", used.outstanding AS "outstanding!"
            FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[]) AS wanted (place, tenant, after, most)
            CROSS JOIN LATERAL (
                SELECT tenant, service_id, price_stroops FROM services
                WHERE services.tenant = wanted.tenant AND services.service_id > wanted.after
                ORDER BY services.tenant, services.service_id LIMIT wanted.most
            ) AS line
            CROSS JOIN LATERAL (
                SELECT coalesce(sum(outstanding), 0)::bigint AS outstanding FROM service_totals
                WHERE service_totals.tenant = line.tenant AND service_totals.service_id = line.service_id
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
                tenant: row.tenant,
                service_id: row.service_id,
                price_stroops: row.price_stroops,
                outstanding: row.outstanding,
            });
        }
    }
    for (slice, lines) in slices.iter().zip(&mut lines).filter(|(slice, _)| slice.tenant.is_none()) {
        *lines = lines_of_all(connection, slice).await?;
    }
    Ok(lines)
}

async fn lines_of_all(connection: &mut PgConnection, slice: &ServiceSlice) -> Result<Vec<ServiceLine>, StoreError> {
    let lines = sqlx::query_as!(
        ServiceLine,
        r#"-- totals::lines_of_all
        SELECT tenant, service_id, price_stroops, used.outstanding AS "outstanding!"
        FROM services
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(outstanding), 0)::bigint AS outstanding FROM service_totals
            WHERE service_totals.tenant = services.tenant AND service_totals.service_id = services.service_id
        ) AS used
        WHERE (tenant, service_id) > ($1, $2) ORDER BY tenant, service_id LIMIT $3"#,
        slice.after.0,
        slice.after.1,
        slice.limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(lines)
}

/// How many services a tenant has.
pub async fn services(connection: &mut PgConnection, tenant: &Tenant) -> Result<i64, StoreError> {
    let services = sqlx::query_scalar!(
        r#"-- totals::services
        SELECT coalesce(sum(services), 0)::bigint AS "services!" FROM tenant_totals WHERE tenant = $1"#,
        tenant.as_str(),
    )
    .fetch_one(connection)
    .await?;
    Ok(services)
}
