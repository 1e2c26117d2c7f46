//! Checks of single rows, for the rules that the service enforces instead of the tables, and of sequences.

use sqlx::PgConnection;
use tokio::sync::mpsc::Sender;

use super::part::{Ended, Finding, Part, next, tell};

/// Reports rows of tenants that violate a rule which the service enforces instead of the table.
pub(super) async fn forms(connection: &mut PgConnection, part: &Part, findings: &Sender<Finding>) -> Result<(), Ended> {
    let mut rows = sqlx::query!(
        r#"-- audit::forms
        SELECT name AS "name!", problem AS "problem!" FROM (
            SELECT tenant_id, format('%s %s/%s', tenant_id, agent_id, service_id) AS name, CASE
                WHEN outstanding < 0 OR settled < 0 OR reset < 0 THEN 'a counter is negative'
                WHEN service_id !~ '^[A-Za-z0-9._-]+$' THEN 'service_id has another form'
            END AS problem
            FROM usage_counters
            UNION ALL
            SELECT tenant_id, format('%s %s', tenant_id, position), CASE
                WHEN type NOT IN ('usage.recorded', 'usage.settled', 'usage.reset', 'service.disabled',
                                  'service.enabled', 'service.deleted', 'webhook.test') THEN 'type is unknown'
                WHEN events NOT BETWEEN 1 AND 256 THEN 'events is out of range'
                WHEN events <> 1 + length(payloads) - length(replace(payloads, E'\n', '')) THEN 'events and payloads differ'
            END
            FROM event_runs
            UNION ALL
            SELECT tenant_id, format('%s %s', tenant_id, service_id),
                   CASE WHEN shard NOT BETWEEN 0 AND 15 THEN 'shard is out of range' END
            FROM totals
        ) AS checked
        WHERE tenant_id >= $1 AND ($2::text IS NULL OR tenant_id < $2) AND problem IS NOT NULL"#,
        part.from,
        part.to.as_deref(),
    )
    .fetch(connection);
    while let Some(row) = next(&mut rows).await? {
        tell(findings, format!("{}: {}", row.name, row.problem)).await?;
    }
    Ok(())
}

/// The same for idempotency records. Names a record by its caller and request, because logs must not contain its key.
pub(super) async fn records(
    connection: &mut PgConnection,
    part: &Part,
    findings: &Sender<Finding>,
) -> Result<(), Ended> {
    let mut rows = sqlx::query!(
        r#"-- audit::records
        SELECT caller AS "caller!", request_id AS "request_id!", problem AS "problem!" FROM (
            SELECT caller, request_id, CASE
                WHEN caller !~ '^(tenant|ip):' THEN 'caller has another form'
                WHEN key !~ '^[!-~]+$' THEN 'key has another form'
                WHEN method NOT IN ('POST', 'PUT', 'PATCH', 'DELETE') THEN 'method is not one of a write'
                WHEN path = '' OR request_id = '' THEN 'path or request_id is empty'
                WHEN octet_length(request_hash) <> 32 THEN 'request_hash is no SHA-256'
                WHEN NOT (status BETWEEN 200 AND 299 OR status IN (400, 404, 409)) THEN 'status is not replayable'
                WHEN (response IS NULL) <> (status = 204) THEN 'response and status do not belong together'
                WHEN octet_length(response) > 1048576 THEN 'response is larger than 1 MiB'
                WHEN expires_at <= created_at THEN 'expires_at is not after created_at'
            END AS problem
            FROM idempotency_keys
            WHERE ctid >= $1::text::tid AND ($2::text IS NULL OR ctid < $2::text::tid)
        ) AS checked
        WHERE problem IS NOT NULL"#,
        part.from,
        part.to.as_deref(),
    )
    .fetch(connection);
    while let Some(row) = next(&mut rows).await? {
        tell(findings, format!("{}, request {}: {}", row.caller, row.request_id, row.problem)).await?;
    }
    Ok(())
}

/// Reports sequences that are behind their table, for example after a logical copy: their next value already exists.
pub(super) async fn sequences(connection: &mut PgConnection, findings: &Sender<Finding>) -> Result<(), Ended> {
    let last = sqlx::query_scalar!("-- audit::sequences\nSELECT last_position FROM citus_positions");
    if let Some(last) = last.fetch_optional(&mut *connection).await? {
        return citus_positions(connection, last, findings).await;
    }
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
        tell(findings, finding).await?;
    }
    Ok(())
}

/// Reports tables whose numbers are beyond the last one that was drawn. The other numbers come from sequences of each node,
/// with ranges of their own.
async fn citus_positions(connection: &mut PgConnection, last: i64, findings: &Sender<Finding>) -> Result<(), Ended> {
    let rows = sqlx::query!(
        r#"-- audit::citus_positions
        SELECT name AS "name!", highest AS "highest!"
        FROM (
            SELECT 'agents.list_position', (SELECT max(list_position) FROM agents)
            UNION ALL SELECT 'event_runs.position', (SELECT max(position) / 256 FROM event_runs)
            UNION ALL SELECT 'services.list_position', (SELECT max(list_position) FROM services)
            UNION ALL SELECT 'usage_counters.pair_id', (SELECT max(pair_id) / 1024 FROM usage_counters)
        ) AS numbered (name, highest)
        WHERE highest > $1 ORDER BY name"#,
        last,
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        let finding = format!("{}: citus_positions is at {last} but the table holds {}", row.name, row.highest);
        tell(findings, finding).await?;
    }
    Ok(())
}
