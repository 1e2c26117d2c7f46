//! The audit: every sum that must hold, checked over the whole database. Reads every row; run it in one snapshot.

use std::ops::ControlFlow;
use std::time::Duration;

use futures_util::{TryStream, TryStreamExt};
use sqlx::PgConnection;

use super::StoreError;

/// How long PostgreSQL may take for a row.
const ROW_LIMIT: Duration = Duration::from_secs(3600);

/// One thing that does not add up, as a line for people.
pub type Finding = String;

/// Calls `report` for each thing that does not add up, until it breaks. Returns how many pairs there are.
pub async fn everything(
    connection: &mut PgConnection,
    report: &mut impl AsyncFnMut(Finding) -> ControlFlow<()>,
) -> Result<u64, StoreError> {
    let mut counted = 0;
    let ended = async {
        pairs(connection, report, &mut counted).await?;
        settlements(connection, report).await?;
        totals(connection, report).await?;
        lists(connection, report).await?;
        sequences(connection, report).await
    };
    match ended.await {
        Ok(()) | Err(Ended::Enough) => Ok(counted),
        Err(Ended::Failed(error)) => Err(error),
    }
}

/// Why an audit ended early.
enum Ended {
    /// Whoever gets the findings has got enough.
    Enough,
    Failed(StoreError),
}

impl From<sqlx::Error> for Ended {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// The next row of a sum, or of what does not add up. Over a large table the first one takes minutes.
async fn next<T>(rows: &mut (impl TryStream<Ok = T, Error = sqlx::Error> + Unpin)) -> Result<Option<T>, Ended> {
    match tokio::time::timeout(ROW_LIMIT, rows.try_next()).await {
        Ok(row) => Ok(row?),
        Err(_) => Err(Ended::Failed(StoreError::TimedOut)),
    }
}

async fn tell(report: &mut impl AsyncFnMut(Finding) -> ControlFlow<()>, finding: Finding) -> Result<(), Ended> {
    match report(finding).await {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Ended::Enough),
    }
}

/// Calls `report` for each pair whose counters or ledger rows do not add up, and counts the pairs.
async fn pairs(
    connection: &mut PgConnection,
    report: &mut impl AsyncFnMut(Finding) -> ControlFlow<()>,
    counted: &mut u64,
) -> Result<(), Ended> {
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
    while let Some(row) = next(&mut rows).await? {
        *counted += 1;
        let name = format!("{} {}/{}", row.tenant, row.agent, row.service_id);
        let sum = i128::from(row.outstanding) + i128::from(row.settled) + i128::from(row.reset);
        if i128::from(row.lifetime) != sum {
            tell(
                report,
                format!(
                    "{name}: lifetime {} is not outstanding {} + settled {} + reset {}",
                    row.lifetime, row.outstanding, row.settled, row.reset
                ),
            )
            .await?;
        }
        if row.settled != row.billed {
            tell(report, format!("{name}: settled {} but the ledger bills {}", row.settled, row.billed)).await?;
        }
    }
    Ok(())
}

/// Calls `report` for each bill that is not requests times price, and for each without a pair.
async fn settlements(
    connection: &mut PgConnection,
    report: &mut impl AsyncFnMut(Finding) -> ControlFlow<()>,
) -> Result<(), Ended> {
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
    while let Some(row) = next(&mut rows).await? {
        let problem = if row.orphan { "no such pair" } else { "billed is not requests times price" };
        tell(
            report,
            format!(
                "{} {}: {problem} ({} requests at {}, billed {})",
                row.tenant, row.settlement_id, row.requests, row.price_stroops, row.billed_stroops
            ),
        )
        .await?;
    }
    Ok(())
}

/// Calls `report` for each tenant whose kept totals are not what its rows add up to.
async fn totals(
    connection: &mut PgConnection,
    report: &mut impl AsyncFnMut(Finding) -> ControlFlow<()>,
) -> Result<(), Ended> {
    let mut rows = sqlx::query!(
        r#"-- audit::totals
        WITH kept AS (
            SELECT tenant, sum(pairs) AS pairs, sum(pairs_above_zero) AS pairs_above_zero,
                   sum(outstanding) AS outstanding, sum(lifetime) AS lifetime, sum(services) AS services,
                   sum(settled_stroops) AS settled_stroops, sum(agents) AS agents, sum(events) AS events,
                   sum(api_keys) AS api_keys, sum(webhooks) AS webhooks, sum(replies) AS replies
            FROM tenant_totals GROUP BY tenant
        ), figures AS (
            SELECT tenant, name, figure FROM (
                SELECT tenant, count(*) AS pairs, count(*) FILTER (WHERE outstanding > 0) AS pairs_above_zero,
                       sum(outstanding) AS outstanding, sum(lifetime) AS lifetime, count(DISTINCT agent) AS agents
                FROM usage_counters GROUP BY tenant
            ) AS counted
            CROSS JOIN LATERAL (VALUES
                ('pairs', pairs::numeric), ('pairs_above_zero', pairs_above_zero::numeric),
                ('outstanding', outstanding), ('lifetime', lifetime), ('agents', agents::numeric)
            ) AS figure (name, figure)
            UNION ALL SELECT tenant, 'services', count(*) FROM services GROUP BY tenant
            UNION ALL SELECT tenant, 'settled_stroops', sum(billed_stroops) FROM settlements GROUP BY tenant
            UNION ALL SELECT tenant, 'events', count(*) FROM events GROUP BY tenant
            UNION ALL SELECT tenant, 'api_keys', count(*) FROM api_keys GROUP BY tenant
            UNION ALL SELECT tenant, 'webhooks', count(*) FROM webhooks GROUP BY tenant
        ), counted AS (
            SELECT tenant, name, figure FROM figures
            UNION ALL SELECT '*', name, sum(figure) FROM figures GROUP BY name
            UNION ALL SELECT '*', 'replies', count(*) FROM idempotency_keys
        ), kept_figures AS (
            SELECT tenant, name, figure FROM kept
            CROSS JOIN LATERAL (VALUES
                ('pairs', pairs), ('pairs_above_zero', pairs_above_zero), ('outstanding', outstanding),
                ('lifetime', lifetime), ('services', services), ('settled_stroops', settled_stroops),
                ('agents', agents), ('events', events), ('api_keys', api_keys), ('webhooks', webhooks),
                ('replies', replies)
            ) AS figure (name, figure)
        )
        SELECT tenant AS "tenant!", name AS "name!", coalesce(kept_figures.figure, 0)::text AS "is_kept!",
               coalesce(counted.figure, 0)::text AS "must_be!"
        FROM kept_figures FULL JOIN counted USING (tenant, name)
        WHERE coalesce(kept_figures.figure, 0) <> coalesce(counted.figure, 0)
        ORDER BY tenant, name"#,
    )
    .fetch(connection);
    while let Some(row) = next(&mut rows).await? {
        tell(
            report,
            format!(
                "{}: kept total {} is {} but the rows add up to {}",
                row.tenant, row.name, row.is_kept, row.must_be
            ),
        )
        .await?;
    }
    Ok(())
}

/// Calls `report` for each service whose kept totals are not what its pairs add up to, and for each agent that is
/// listed without a pair or has a pair without being listed.
async fn lists(
    connection: &mut PgConnection,
    report: &mut impl AsyncFnMut(Finding) -> ControlFlow<()>,
) -> Result<(), Ended> {
    let mut rows = sqlx::query!(
        r#"-- audit::lists
        SELECT tenant AS "tenant!", service_id AS "service_id!",
               coalesce(kept.outstanding, 0)::text AS "kept_outstanding!",
               coalesce(counted.outstanding, 0)::text AS "outstanding!",
               coalesce(kept.pairs_above_zero, 0)::text AS "kept_pairs!", coalesce(counted.pairs, 0)::text AS "pairs!"
        FROM (
            SELECT tenant, service_id, sum(outstanding) AS outstanding, sum(pairs_above_zero) AS pairs_above_zero
            FROM service_totals GROUP BY tenant, service_id
        ) AS kept
        FULL JOIN (
            SELECT tenant, service_id, sum(outstanding) AS outstanding,
                   count(*) FILTER (WHERE outstanding > 0)::numeric AS pairs
            FROM usage_counters GROUP BY tenant, service_id
        ) AS counted USING (tenant, service_id)
        WHERE coalesce(kept.outstanding, 0) <> coalesce(counted.outstanding, 0)
           OR coalesce(kept.pairs_above_zero, 0) <> coalesce(counted.pairs, 0)
        ORDER BY tenant, service_id"#,
    )
    .fetch(&mut *connection);
    while let Some(row) = next(&mut rows).await? {
        tell(
            report,
            format!(
                "{} {}: kept {} outstanding of {} pairs but the rows add up to {} of {}",
                row.tenant, row.service_id, row.kept_outstanding, row.kept_pairs, row.outstanding, row.pairs
            ),
        )
        .await?;
    }
    drop(rows);
    let mut strays = sqlx::query!(
        r#"-- audit::agents
        SELECT tenant AS "tenant!", agent AS "agent!", listed.is_listed IS NOT NULL AS "is_listed!"
        FROM (SELECT tenant, agent, true AS is_listed FROM agents) AS listed
        FULL JOIN (SELECT DISTINCT tenant, agent, true AS is_used FROM usage_counters) AS used USING (tenant, agent)
        WHERE is_listed IS NULL OR is_used IS NULL
        ORDER BY tenant, agent"#,
    )
    .fetch(connection);
    while let Some(row) = next(&mut strays).await? {
        let problem = if row.is_listed { "is listed without a pair" } else { "has pairs and is not listed" };
        tell(report, format!("{} {}: {problem}", row.tenant, row.agent)).await?;
    }
    Ok(())
}

/// Calls `report` for each sequence that is behind its table, as after a logical copy: what it gives next is there already.
async fn sequences(
    connection: &mut PgConnection,
    report: &mut impl AsyncFnMut(Finding) -> ControlFlow<()>,
) -> Result<(), Ended> {
    let rows = sqlx::query!(
        r#"-- audit::sequences
        SELECT name AS "name!", coalesce(pg_sequence_last_value(to_regclass(sequence)), 0) AS "last!", highest AS "highest!"
        FROM (
            SELECT 'agents.list_position', pg_get_serial_sequence('agents', 'list_position'),
                   (SELECT max(list_position) FROM agents)
            UNION ALL SELECT 'events.position', pg_get_serial_sequence('events', 'position'),
                   (SELECT max(position) FROM events)
            UNION ALL SELECT 'record_changes.change_id', pg_get_serial_sequence('record_changes', 'change_id'),
                   (SELECT max(change_id) FROM record_changes)
            UNION ALL SELECT 'services.list_position', pg_get_serial_sequence('services', 'list_position'),
                   (SELECT max(list_position) FROM services)
            UNION ALL SELECT 'settlements.list_position', pg_get_serial_sequence('settlements', 'list_position'),
                   (SELECT max(list_position) FROM settlements)
            UNION ALL SELECT 'usage_counters.list_position', pg_get_serial_sequence('usage_counters', 'list_position'),
                   (SELECT max(list_position) FROM usage_counters)
        ) AS numbered (name, sequence, highest)
        WHERE highest > coalesce(pg_sequence_last_value(to_regclass(sequence)), 0)
        ORDER BY name"#,
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        let finding = format!("{}: the sequence is at {} but the table holds {}", row.name, row.last, row.highest);
        tell(report, finding).await?;
    }
    Ok(())
}
