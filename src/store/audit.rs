//! The audit of `verify`: checks every sum in the whole database. It reads every row, and must run in one snapshot.

use std::ops::ControlFlow;
use std::time::Duration;

use futures_util::{TryStream, TryStreamExt};
use sqlx::PgConnection;

use super::StoreError;

/// Time limit of PostgreSQL for the next row.
const ROW_LIMIT: Duration = Duration::from_secs(3600);

/// A description of one error that was found.
pub type Finding = String;

/// Calls `report` for each error, until `report` breaks. Returns the number of pairs.
pub async fn everything(
    connection: &mut PgConnection,
    report: &mut impl AsyncFnMut(Finding) -> ControlFlow<()>,
) -> Result<u64, StoreError> {
    let mut counted = 0;
    let ended = async {
        pairs(connection, report, &mut counted).await?;
        settlements(connection, report).await?;
        totals(connection, report).await?;
        forms(connection, report).await?;
        lists(connection, report).await?;
        sequences(connection, report).await
    };
    match ended.await {
        Ok(()) | Err(Ended::Enough) => Ok(counted),
        Err(Ended::Failed(error)) => Err(error),
    }
}

/// Why the audit ended early.
enum Ended {
    /// `report` asked to stop.
    Enough,
    Failed(StoreError),
}

impl From<sqlx::Error> for Ended {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// Reads the next row. With large tables the first row takes minutes.
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

/// Reports pairs whose counters or settlements do not add up, and counts the pairs.
async fn pairs(
    connection: &mut PgConnection,
    report: &mut impl AsyncFnMut(Finding) -> ControlFlow<()>,
    counted: &mut u64,
) -> Result<(), Ended> {
    let mut rows = sqlx::query!(
        r#"-- audit::pairs
        SELECT counter.tenant_id, counter.agent_id, counter.service_id, counter.outstanding,
               counter.settled, counter.reset, coalesce(bills.requests, 0) AS "billed!: i64"
        FROM usage_counters AS counter
        LEFT JOIN (
            SELECT tenant_id, agent_id, service_id, sum(requests)::bigint AS requests
            FROM settlements GROUP BY tenant_id, agent_id, service_id
        ) AS bills USING (tenant_id, agent_id, service_id)
        ORDER BY counter.tenant_id, counter.agent_id, counter.service_id"#,
    )
    .fetch(connection);
    while let Some(row) = next(&mut rows).await? {
        *counted += 1;
        let name = format!("{} {}/{}", row.tenant_id, row.agent_id, row.service_id);
        if row.settled != row.billed {
            tell(report, format!("{name}: settled {} but the ledger bills {}", row.settled, row.billed)).await?;
        }
    }
    Ok(())
}

/// Reports settlements that are not requests times price, and settlements without a pair.
async fn settlements(
    connection: &mut PgConnection,
    report: &mut impl AsyncFnMut(Finding) -> ControlFlow<()>,
) -> Result<(), Ended> {
    let mut rows = sqlx::query!(
        r#"-- audit::settlements
        SELECT bill.tenant_id, bill.settlement_id, bill.requests, bill.price_stroops,
               bill.billed_stroops::text AS "billed_stroops!", counter.tenant_id IS NULL AS "orphan!"
        FROM settlements AS bill
        LEFT JOIN usage_counters AS counter USING (tenant_id, agent_id, service_id)
        WHERE counter.tenant_id IS NULL OR bill.billed_stroops <> bill.requests::numeric * bill.price_stroops
        ORDER BY bill.tenant_id, bill.settlement_id"#,
    )
    .fetch(connection);
    while let Some(row) = next(&mut rows).await? {
        let problem = if row.orphan { "no such pair" } else { "billed is not requests times price" };
        tell(
            report,
            format!(
                "{} {}: {problem} ({} requests at {}, billed {})",
                row.tenant_id, row.settlement_id, row.requests, row.price_stroops, row.billed_stroops
            ),
        )
        .await?;
    }
    Ok(())
}

/// Reports tenants and callers whose totals differ from the sum of their rows.
async fn totals(
    connection: &mut PgConnection,
    report: &mut impl AsyncFnMut(Finding) -> ControlFlow<()>,
) -> Result<(), Ended> {
    let mut rows = sqlx::query!(
        r#"-- audit::totals
        WITH maintained AS (
            SELECT tenant_id, sum(pairs) AS pairs, sum(pairs_above_zero) AS pairs_above_zero,
                   sum(outstanding) AS outstanding, sum(recorded) AS recorded, sum(services) AS services,
                   sum(settled_stroops) AS settled_stroops, sum(agents) AS agents, sum(events) AS events,
                   sum(api_keys) AS api_keys, sum(webhooks) AS webhooks
            FROM totals WHERE service_id = '' GROUP BY tenant_id
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
            UNION ALL SELECT caller, 'records', count(*) FROM idempotency_keys GROUP BY caller
            UNION ALL SELECT caller, 'bytes', sum(idempotency_key_bytes(idempotency_keys)) FROM idempotency_keys
                      GROUP BY caller
        ), maintained_figures AS (
            SELECT tenant_id, name, figure FROM maintained
            CROSS JOIN LATERAL (VALUES
                ('pairs', pairs), ('pairs_above_zero', pairs_above_zero), ('outstanding', outstanding),
                ('recorded', recorded), ('services', services), ('settled_stroops', settled_stroops),
                ('agents', agents), ('events', events), ('api_keys', api_keys), ('webhooks', webhooks)
            ) AS figure (name, figure)
            UNION ALL SELECT caller, 'records', sum(records) FROM caller_totals GROUP BY caller
            UNION ALL SELECT caller, 'bytes', sum(bytes) FROM caller_totals GROUP BY caller
        )
        SELECT tenant_id AS "owner!", name AS "name!", coalesce(maintained_figures.figure, 0)::text AS "maintained!",
               coalesce(counted.figure, 0)::text AS "must_be!"
        FROM maintained_figures FULL JOIN counted USING (tenant_id, name)
        WHERE coalesce(maintained_figures.figure, 0) <> coalesce(counted.figure, 0)
        ORDER BY tenant_id, name"#,
    )
    .fetch(connection);
    while let Some(row) = next(&mut rows).await? {
        tell(
            report,
            format!("{}: total {} is {} but the rows add up to {}", row.owner, row.name, row.maintained, row.must_be),
        )
        .await?;
    }
    Ok(())
}

/// Reports rows that violate a rule which the service enforces instead of the table.
async fn forms(
    connection: &mut PgConnection,
    report: &mut impl AsyncFnMut(Finding) -> ControlFlow<()>,
) -> Result<(), Ended> {
    let mut rows = sqlx::query!(
        r#"-- audit::forms
        SELECT name AS "name!", problem AS "problem!" FROM (
            SELECT format('%s %s/%s', tenant_id, agent_id, service_id) AS name, CASE
                WHEN outstanding < 0 OR settled < 0 OR reset < 0 THEN 'a counter is negative'
                WHEN service_id !~ '^[A-Za-z0-9._-]+$' THEN 'service_id has another form'
            END AS problem
            FROM usage_counters
            UNION ALL
            SELECT format('%s %s', caller, key), CASE
                WHEN caller !~ '^(tenant|ip):' THEN 'caller has another form'
                WHEN key !~ '^[!-~]+$' THEN 'key has another form'
                WHEN method NOT IN ('POST', 'PUT', 'PATCH', 'DELETE') THEN 'method is not one of a write'
                WHEN path = '' OR request_id = '' THEN 'path or request_id is empty'
                WHEN octet_length(request_hash) <> 32 THEN 'request_hash is no SHA-256'
                WHEN NOT (status BETWEEN 200 AND 299 OR status IN (400, 404, 409)) THEN 'status is not replayable'
                WHEN (response IS NULL) <> (status = 204) THEN 'response and status do not belong together'
                WHEN octet_length(response) > 1048576 THEN 'response is larger than 1 MiB'
                WHEN expires_at <= created_at THEN 'expires_at is not after created_at'
            END
            FROM idempotency_keys
            UNION ALL
            SELECT format('%s %s', tenant_id, position), CASE
                WHEN type NOT IN ('usage.recorded', 'usage.settled', 'usage.reset', 'service.disabled',
                                  'service.enabled', 'service.deleted', 'webhook.test') THEN 'type is unknown'
                WHEN events NOT BETWEEN 1 AND 256 THEN 'events is out of range'
                WHEN events <> 1 + length(payloads) - length(replace(payloads, E'\n', '')) THEN 'events and payloads differ'
            END
            FROM event_runs
            UNION ALL
            SELECT format('%s %s', tenant_id, service_id), CASE WHEN shard NOT BETWEEN 0 AND 15 THEN 'shard is out of range' END
            FROM totals
        ) AS checked
        WHERE problem IS NOT NULL"#,
    )
    .fetch(connection);
    while let Some(row) = next(&mut rows).await? {
        tell(report, format!("{}: {}", row.name, row.problem)).await?;
    }
    Ok(())
}

/// Reports services whose totals differ from the sum of their pairs, agents that are listed without a pair, and agents
/// with a pair that are not listed.
async fn lists(
    connection: &mut PgConnection,
    report: &mut impl AsyncFnMut(Finding) -> ControlFlow<()>,
) -> Result<(), Ended> {
    let mut rows = sqlx::query!(
        r#"-- audit::lists
        SELECT tenant_id AS "tenant_id!", service_id AS "service_id!",
               coalesce(maintained.outstanding, 0)::text AS "maintained_outstanding!",
               coalesce(counted.outstanding, 0)::text AS "outstanding!",
               coalesce(maintained.pairs_above_zero, 0)::text AS "maintained_pairs!", coalesce(counted.pairs, 0)::text AS "pairs!"
        FROM (
            SELECT tenant_id, service_id, sum(outstanding) AS outstanding, sum(pairs_above_zero) AS pairs_above_zero
            FROM totals WHERE service_id > '' GROUP BY tenant_id, service_id
        ) AS maintained
        FULL JOIN (
            SELECT tenant_id, service_id, sum(outstanding) AS outstanding,
                   count(*) FILTER (WHERE outstanding > 0)::numeric AS pairs
            FROM usage_counters GROUP BY tenant_id, service_id
        ) AS counted USING (tenant_id, service_id)
        WHERE coalesce(maintained.outstanding, 0) <> coalesce(counted.outstanding, 0)
           OR coalesce(maintained.pairs_above_zero, 0) <> coalesce(counted.pairs, 0)
        ORDER BY tenant_id, service_id"#,
    )
    .fetch(&mut *connection);
    while let Some(row) = next(&mut rows).await? {
        tell(
            report,
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
        FROM (SELECT tenant_id, agent_id, true AS is_listed FROM agents) AS listed
        FULL JOIN (SELECT DISTINCT tenant_id, agent_id, true AS is_used FROM usage_counters) AS used USING (tenant_id, agent_id)
        WHERE is_listed IS NULL OR is_used IS NULL
        ORDER BY tenant_id, agent_id"#,
    )
    .fetch(connection);
    while let Some(row) = next(&mut strays).await? {
        let problem = if row.is_listed { "is listed without a pair" } else { "has pairs and is not listed" };
        tell(report, format!("{} {}: {problem}", row.tenant_id, row.agent_id)).await?;
    }
    Ok(())
}

/// Reports sequences that are behind their table, for example after a logical copy: their next value already exists.
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
            UNION ALL SELECT 'audit_log.audit_id', pg_get_serial_sequence('audit_log', 'audit_id'),
                   (SELECT max(audit_id) FROM audit_log)
            UNION ALL SELECT 'event_runs.position', 'event_positions', (SELECT max(position) FROM event_runs)
            UNION ALL SELECT 'services.list_position', pg_get_serial_sequence('services', 'list_position'),
                   (SELECT max(list_position) FROM services)
            UNION ALL SELECT 'settlements.list_position', pg_get_serial_sequence('settlements', 'list_position'),
                   (SELECT max(list_position) FROM settlements)
            UNION ALL SELECT 'usage_counters.pair_id', pg_get_serial_sequence('usage_counters', 'pair_id'),
                   (SELECT max(pair_id) FROM usage_counters)
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
