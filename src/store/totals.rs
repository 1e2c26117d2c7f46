//! The table `tenant_totals`: what would otherwise have to be counted.
//! A tenant's rows are spread over shards, so that committers do not wait for each other.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::money::Stroops;

use super::StoreError;

/// Rows a tenant's totals are spread over.
pub const SHARDS: i16 = 16;

/// What one commit changes of a tenant's totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub pairs: i64,
    pub pairs_above_zero: i64,
    pub outstanding: i64,
    pub lifetime: i64,
    pub settlements: i64,
    pub settled_stroops: Stroops,
    pub services: i64,
}

/// Adds the changes to the tenants' rows of one shard.
pub async fn add(
    connection: &mut PgConnection,
    shard: i16,
    changes: &BTreeMap<Tenant, Change>,
) -> Result<(), StoreError> {
    let tenants: Vec<&str> = changes.keys().map(Tenant::as_str).collect();
    let column = |read: fn(&Change) -> i64| changes.values().map(read).collect::<Vec<_>>();
    let settled: Vec<String> = changes.values().map(|change| change.settled_stroops.to_string()).collect();
    sqlx::query!(
        "-- totals::add
        INSERT INTO tenant_totals AS total
            (tenant, shard, pairs, pairs_above_zero, outstanding, lifetime, settlements, settled_stroops, services)
        SELECT tenant, $1, pairs, pairs_above_zero, outstanding, lifetime, settlements, settled_stroops::numeric, services
        FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[],
                    $9::bigint[])
            AS change (tenant, pairs, pairs_above_zero, outstanding, lifetime, settlements, settled_stroops, services)
        ON CONFLICT (tenant, shard) DO UPDATE
        SET pairs = total.pairs + excluded.pairs,
            pairs_above_zero = total.pairs_above_zero + excluded.pairs_above_zero,
            outstanding = total.outstanding + excluded.outstanding,
            lifetime = total.lifetime + excluded.lifetime,
            settlements = total.settlements + excluded.settlements,
            settled_stroops = total.settled_stroops + excluded.settled_stroops,
            services = total.services + excluded.services",
        shard,
        tenants as _,
        &column(|change| change.pairs),
        &column(|change| change.pairs_above_zero),
        &column(|change| change.outstanding),
        &column(|change| change.lifetime),
        &column(|change| change.settlements),
        &settled,
        &column(|change| change.services),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// How many pairs each tenant has above zero; the result has the order of `tenants`.
pub async fn pairs_above_zero(connection: &mut PgConnection, tenants: &[&Tenant]) -> Result<Vec<i64>, StoreError> {
    let names: Vec<&str> = tenants.iter().map(|tenant| tenant.as_str()).collect();
    let rows = sqlx::query!(
        r#"-- totals::pairs_above_zero
        SELECT wanted.position AS "position!", totals.pairs AS "pairs!"
        FROM unnest($1::text[]) WITH ORDINALITY AS wanted (tenant, position)
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(pairs_above_zero), 0)::bigint AS pairs
            FROM tenant_totals WHERE tenant_totals.tenant = wanted.tenant
        ) AS totals"#,
        names as _,
    )
    .fetch_all(connection)
    .await?;
    let mut pairs = vec![0; tenants.len()];
    for row in rows {
        if let Some(place) = pairs.get_mut(row.position as usize - 1) {
            *place = row.pairs;
        }
    }
    Ok(pairs)
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
