//! The audit: every sum that must hold, checked over the whole database. Reads every row; run it in one snapshot.

use futures_util::TryStreamExt;
use sqlx::PgConnection;

use super::StoreError;

/// One thing that does not add up, as a line for people.
pub type Finding = String;

/// Calls `report` for each pair whose counters or ledger rows do not add up. Returns how many pairs there are.
pub async fn pairs(connection: &mut PgConnection, report: &mut dyn FnMut(Finding)) -> Result<u64, StoreError> {
    let mut pairs = 0;
    let mut rows = sqlx::query!(
        r#"-- audit::pairs
        SELECT counter.tenant, counter.agent, counter.service_id, counter.outstanding, counter.lifetime,
               counter.settled, counter.reset, coalesce(bills.requests, 0) AS "billed!: i64"
        FROM usage_counters AS counter
        LEFT JOIN (
            SELECT tenant, agent, service_id, sum(requests)::bigint AS requests
            FROM settlements GROUP BY tenant, agent, service_id
        ) AS bills USING (tenant, agent, service_id)
        ORDER BY counter.tenant, counter.agent, counter.service_id"#,
    )
    .fetch(connection);
    while let Some(row) = rows.try_next().await? {
        pairs += 1;
        let name = format!("{} {}/{}", row.tenant, row.agent, row.service_id);
        let sum = i128::from(row.outstanding) + i128::from(row.settled) + i128::from(row.reset);
        if i128::from(row.lifetime) != sum {
            report(format!(
                "{name}: lifetime {} is not outstanding {} + settled {} + reset {}",
                row.lifetime, row.outstanding, row.settled, row.reset
            ));
        }
        if row.settled != row.billed {
            report(format!("{name}: settled {} but the ledger bills {}", row.settled, row.billed));
        }
    }
    Ok(pairs)
}

/// Calls `report` for each bill that is not requests times price, and for each without a pair.
pub async fn settlements(connection: &mut PgConnection, report: &mut dyn FnMut(Finding)) -> Result<(), StoreError> {
    let mut rows = sqlx::query!(
        r#"-- audit::settlements
        SELECT bill.tenant, bill.settlement_id, bill.requests, bill.price_stroops,
               bill.billed_stroops::text AS "billed_stroops!", counter.tenant IS NULL AS "orphan!"
        FROM settlements AS bill
        LEFT JOIN usage_counters AS counter USING (tenant, agent, service_id)
        WHERE counter.tenant IS NULL OR bill.billed_stroops <> bill.requests::numeric * bill.price_stroops
        ORDER BY bill.tenant, bill.settlement_id"#,
    )
    .fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let problem = if row.orphan { "no such pair" } else { "billed is not requests times price" };
        report(format!(
            "{} {}: {problem} ({} requests at {}, billed {})",
            row.tenant, row.settlement_id, row.requests, row.price_stroops, row.billed_stroops
        ));
    }
    Ok(())
}

/// Calls `report` for each tenant whose kept totals are not what its rows add up to.
pub async fn totals(connection: &mut PgConnection, report: &mut dyn FnMut(Finding)) -> Result<(), StoreError> {
    let mut rows = sqlx::query!(
        r#"-- audit::totals
        WITH kept AS (
            SELECT tenant, sum(pairs) AS pairs, sum(pairs_above_zero) AS pairs_above_zero,
                   sum(outstanding) AS outstanding, sum(lifetime) AS lifetime, sum(services) AS services,
                   sum(settled_stroops) AS settled_stroops
            FROM tenant_totals GROUP BY tenant
        ), counted AS (
            SELECT tenant, count(*) AS pairs, count(*) FILTER (WHERE outstanding > 0) AS pairs_above_zero,
                   sum(outstanding) AS outstanding, sum(lifetime) AS lifetime
            FROM usage_counters GROUP BY tenant
        ), offered AS (SELECT tenant, count(*) AS services FROM services GROUP BY tenant
        ), billed AS (SELECT tenant, sum(billed_stroops) AS settled_stroops FROM settlements GROUP BY tenant
        ), compared AS (
            SELECT tenant, name, coalesce(is_kept, 0) AS is_kept, coalesce(must_be, 0) AS must_be
            FROM kept FULL JOIN counted USING (tenant) FULL JOIN offered USING (tenant) FULL JOIN billed USING (tenant)
            CROSS JOIN LATERAL (VALUES
                ('pairs', kept.pairs, counted.pairs::numeric),
                ('pairs_above_zero', kept.pairs_above_zero, counted.pairs_above_zero::numeric),
                ('outstanding', kept.outstanding, counted.outstanding),
                ('lifetime', kept.lifetime, counted.lifetime),
                ('services', kept.services, offered.services::numeric),
                ('settled_stroops', kept.settled_stroops, billed.settled_stroops)
            ) AS figure (name, is_kept, must_be)
        )
        SELECT tenant AS "tenant!", name AS "name!", is_kept::text AS "is_kept!", must_be::text AS "must_be!"
        FROM compared WHERE is_kept <> must_be ORDER BY tenant, name"#,
    )
    .fetch(connection);
    while let Some(row) = rows.try_next().await? {
        report(format!(
            "{}: kept total {} is {} but the rows add up to {}",
            row.tenant, row.name, row.is_kept, row.must_be
        ));
    }
    Ok(())
}
