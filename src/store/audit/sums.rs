//! Checks of sums: maintained totals against the rows that they summarise.

use sqlx::PgConnection;
use tokio::sync::mpsc::Sender;

use super::part::{Ended, Finding, Part, next, tell};

/// Reports pairs whose settlements do not add up.
pub(super) async fn pairs(connection: &mut PgConnection, part: &Part, findings: &Sender<Finding>) -> Result<(), Ended> {
    let mut rows = sqlx::query!(
        r#"-- audit::pairs
        SELECT counter.tenant_id, counter.agent_id, counter.service_id, counter.settled,
               coalesce(bills.requests, 0) AS "billed!: i64"
        FROM usage_counters AS counter
        LEFT JOIN (
            SELECT tenant_id, agent_id, service_id, sum(requests)::bigint AS requests
            FROM settlements WHERE tenant_id >= $1 AND ($2::text IS NULL OR tenant_id < $2)
            GROUP BY tenant_id, agent_id, service_id
        ) AS bills USING (tenant_id, agent_id, service_id)
        WHERE counter.tenant_id >= $1 AND ($2::text IS NULL OR counter.tenant_id < $2)
          AND counter.settled <> coalesce(bills.requests, 0)
        ORDER BY counter.tenant_id, counter.agent_id, counter.service_id"#,
        part.from,
        part.to.as_deref(),
    )
    .fetch(connection);
    while let Some(row) = next(&mut rows).await? {
        let name = format!("{} {}/{}", row.tenant_id, row.agent_id, row.service_id);
        tell(findings, format!("{name}: settled {} but the ledger bills {}", row.settled, row.billed)).await?;
    }
    Ok(())
}

/// Reports settlements that are not requests times price, and settlements without a pair.
pub(super) async fn settlements(
    connection: &mut PgConnection,
    part: &Part,
    findings: &Sender<Finding>,
) -> Result<(), Ended> {
    let mut rows = sqlx::query!(
        r#"-- audit::settlements
        SELECT bill.tenant_id, bill.settlement_id, bill.requests, bill.price_stroops,
               bill.billed_stroops::text AS "billed_stroops!", counter.tenant_id IS NULL AS "orphan!"
        FROM settlements AS bill
        LEFT JOIN usage_counters AS counter USING (tenant_id, agent_id, service_id)
        WHERE bill.tenant_id >= $1 AND ($2::text IS NULL OR bill.tenant_id < $2)
          AND (counter.tenant_id IS NULL OR bill.billed_stroops <> bill.requests::numeric * bill.price_stroops)
        ORDER BY bill.tenant_id, bill.settlement_id"#,
        part.from,
        part.to.as_deref(),
    )
    .fetch(connection);
    while let Some(row) = next(&mut rows).await? {
        let problem = if row.orphan { "no such pair" } else { "billed is not requests times price" };
        tell(
            findings,
            format!(
                "{} {}: {problem} ({} requests at {}, billed {})",
                row.tenant_id, row.settlement_id, row.requests, row.price_stroops, row.billed_stroops
            ),
        )
        .await?;
    }
    Ok(())
}

/// Reports tenants whose totals differ from the sum of their rows.
pub(super) async fn totals(
    connection: &mut PgConnection,
    part: &Part,
    findings: &Sender<Finding>,
) -> Result<(), Ended> {
    let mut rows = sqlx::query!(
        r#"-- audit::totals
        WITH maintained AS (
            SELECT tenant_id, name, figure FROM (
                SELECT tenant_id, sum(pairs) AS pairs, sum(pairs_above_zero) AS pairs_above_zero,
                       sum(outstanding) AS outstanding, sum(recorded) AS recorded, sum(services) AS services,
                       sum(settled_stroops) AS settled_stroops, sum(agents) AS agents, sum(events) AS events,
                       sum(api_keys) AS api_keys, sum(webhooks) AS webhooks
                FROM totals WHERE service_id = '' GROUP BY tenant_id
            ) AS summed
            CROSS JOIN LATERAL (VALUES
                ('pairs', pairs), ('pairs_above_zero', pairs_above_zero), ('outstanding', outstanding),
                ('recorded', recorded), ('services', services), ('settled_stroops', settled_stroops),
                ('agents', agents), ('events', events), ('api_keys', api_keys), ('webhooks', webhooks)
            ) AS figure (name, figure)
        ), counted AS (
            SELECT tenant_id, name, figure FROM (
                SELECT tenant_id, count(*) AS pairs, count(*) FILTER (WHERE outstanding > 0) AS pairs_above_zero,
                       sum(outstanding) AS outstanding, sum(outstanding::numeric + settled + reset) AS recorded,
                       count(DISTINCT agent_id) AS agents
                FROM usage_counters GROUP BY tenant_id
            ) AS counted
            CROSS JOIN LATERAL (VALUES
                ('pairs', pairs::numeric), ('pairs_above_zero', pairs_above_zero::numeric),
                ('outstanding', outstanding), ('recorded', recorded), ('agents', agents::numeric)
            ) AS figure (name, figure)
            UNION ALL SELECT tenant_id, 'services', count(*) FROM services GROUP BY tenant_id
            UNION ALL SELECT tenant_id, 'settled_stroops', sum(billed_stroops) FROM settlements GROUP BY tenant_id
            UNION ALL SELECT tenant_id, 'events', sum(events) FROM event_runs GROUP BY tenant_id
            UNION ALL SELECT tenant_id, 'api_keys', count(*) FROM api_keys GROUP BY tenant_id
            UNION ALL SELECT tenant_id, 'webhooks', count(*) FROM webhooks GROUP BY tenant_id
        )
        SELECT tenant_id AS "tenant_id!", name AS "name!", coalesce(maintained.figure, 0)::text AS "maintained!",
               coalesce(counted.figure, 0)::text AS "must_be!"
        FROM (SELECT * FROM maintained WHERE tenant_id >= $1 AND ($2::text IS NULL OR tenant_id < $2)) AS maintained
        FULL JOIN (SELECT * FROM counted WHERE tenant_id >= $1 AND ($2::text IS NULL OR tenant_id < $2)) AS counted
            USING (tenant_id, name)
        WHERE coalesce(maintained.figure, 0) <> coalesce(counted.figure, 0)
        ORDER BY tenant_id, name"#,
        part.from,
        part.to.as_deref(),
    )
    .fetch(connection);
    while let Some(row) = next(&mut rows).await? {
        tell(findings, wrong_total(&row.tenant_id, &row.name, &row.maintained, &row.must_be)).await?;
    }
    Ok(())
}

fn wrong_total(owner: &str, name: &str, maintained: &str, must_be: &str) -> Finding {
    format!("{owner}: total {name} is {maintained} but the rows add up to {must_be}")
}

/// Reports callers whose totals differ from the sum of their records.
pub(super) async fn callers(connection: &mut PgConnection, findings: &Sender<Finding>) -> Result<(), Ended> {
    let mut rows = sqlx::query!(
        r#"-- audit::callers
        SELECT caller AS "caller!", name AS "name!", figure.maintained::text AS "maintained!", must_be::text AS "must_be!"
        FROM (SELECT caller, sum(records) AS records, sum(bytes) AS bytes FROM caller_totals GROUP BY caller) AS maintained
        FULL JOIN (
            SELECT caller, count(*) AS records, sum(idempotency_record_bytes(caller, key, path, request_id, response)) AS bytes
            FROM idempotency_keys GROUP BY caller
        ) AS counted USING (caller)
        CROSS JOIN LATERAL (VALUES
            ('bytes', coalesce(maintained.bytes, 0), coalesce(counted.bytes, 0)),
            ('records', coalesce(maintained.records, 0), coalesce(counted.records, 0))
        ) AS figure (name, maintained, must_be)
        WHERE figure.maintained <> figure.must_be
        ORDER BY caller, name"#,
    )
    .fetch(connection);
    while let Some(row) = next(&mut rows).await? {
        tell(findings, wrong_total(&row.caller, &row.name, &row.maintained, &row.must_be)).await?;
    }
    Ok(())
}

/// Reports services whose totals differ from the sum of their pairs, agents that are listed without a pair, and agents
/// with a pair that are not listed.
pub(super) async fn lists(connection: &mut PgConnection, part: &Part, findings: &Sender<Finding>) -> Result<(), Ended> {
    let mut rows = sqlx::query!(
        r#"-- audit::lists
        SELECT tenant_id AS "tenant_id!", service_id AS "service_id!",
               coalesce(maintained.outstanding, 0)::text AS "maintained_outstanding!",
               coalesce(counted.outstanding, 0)::text AS "outstanding!",
               coalesce(maintained.pairs_above_zero, 0)::text AS "maintained_pairs!", coalesce(counted.pairs, 0)::text AS "pairs!"
        FROM (
            SELECT tenant_id, service_id, sum(outstanding) AS outstanding, sum(pairs_above_zero) AS pairs_above_zero
            FROM totals WHERE service_id > '' AND tenant_id >= $1 AND ($2::text IS NULL OR tenant_id < $2)
            GROUP BY tenant_id, service_id
        ) AS maintained
        FULL JOIN (
            SELECT tenant_id, service_id, sum(outstanding) AS outstanding,
                   count(*) FILTER (WHERE outstanding > 0)::numeric AS pairs
            FROM usage_counters WHERE tenant_id >= $1 AND ($2::text IS NULL OR tenant_id < $2)
            GROUP BY tenant_id, service_id
        ) AS counted USING (tenant_id, service_id)
        WHERE coalesce(maintained.outstanding, 0) <> coalesce(counted.outstanding, 0)
           OR coalesce(maintained.pairs_above_zero, 0) <> coalesce(counted.pairs, 0)
        ORDER BY tenant_id, service_id"#,
        part.from,
        part.to.as_deref(),
    )
    .fetch(&mut *connection);
    while let Some(row) = next(&mut rows).await? {
        tell(
            findings,
            format!(
                "{} {}: totals say {} outstanding of {} pairs but the rows add up to {} of {}",
                row.tenant_id,
                row.service_id,
                row.maintained_outstanding,
                row.maintained_pairs,
                row.outstanding,
                row.pairs
            ),
        )
        .await?;
    }
    drop(rows);
    let mut strays = sqlx::query!(
        r#"-- audit::lists
        SELECT tenant_id AS "tenant_id!", agent_id AS "agent_id!", listed.is_listed IS NOT NULL AS "is_listed!"
        FROM (
            SELECT tenant_id, agent_id, true AS is_listed FROM agents
            WHERE tenant_id >= $1 AND ($2::text IS NULL OR tenant_id < $2)
        ) AS listed
        FULL JOIN (
            SELECT DISTINCT tenant_id, agent_id, true AS is_used FROM usage_counters
            WHERE tenant_id >= $1 AND ($2::text IS NULL OR tenant_id < $2)
        ) AS used USING (tenant_id, agent_id)
        WHERE is_listed IS NULL OR is_used IS NULL
        ORDER BY tenant_id, agent_id"#,
        part.from,
        part.to.as_deref(),
    )
    .fetch(connection);
    while let Some(row) = next(&mut strays).await? {
        let problem = if row.is_listed { "is listed without a pair" } else { "has pairs and is not listed" };
        tell(findings, format!("{} {}: {problem}", row.tenant_id, row.agent_id)).await?;
    }
    Ok(())
}
