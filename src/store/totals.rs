//! The tables `tenant_totals` and `service_totals`: what would otherwise have to be counted. Batches add to them, in
//! `batch::write`. The rows of one owner are spread over shards, so that committers do not wait for each other.

use std::ops::AddAssign;

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::money::Stroops;

use super::StoreError;

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
