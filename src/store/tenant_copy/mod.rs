//! Copies the rows of a tenant from one cell to another with COPY, and deletes them in the source. One transaction of the
//! target copies everything. Most rows come from a first snapshot, while the tenant's writes are executed. Rows that may
//! have changed since come from a second snapshot, while its writes are refused.

mod statements;

use sqlx::PgConnection;

use crate::domain::caller::{Caller, Tenant};

use super::StoreError;
use super::reset::TABLES_OF_TENANTS;
use statements::{KeySums, copy, key_sums, merge, run, stage, sums, text};

pub use statements::Note;

/// A row that is missing in a snapshot because its commit was running is at most this much older than the snapshot.
/// Attempts to commit are much shorter.
const MARGIN: &str = "interval '2 minutes'";

/// A sequence of the target is advanced by this many steps beyond that of the source, so that values which the target draws
/// at that moment do not matter.
const SEQUENCE_MARGIN: i64 = 1000;

/// What was copied while the tenant's writes are executed.
#[derive(Clone, Debug)]
pub struct Copied {
    /// When the first snapshot began, as text.
    first: String,
    /// When the latest snapshot of settlements and idempotency records began.
    latest: String,
    /// The shortest lifetime of the source's records, as text.
    lifetime: String,
    keys: KeySums,
}

/// Copies most rows from the snapshot of `source` into the transaction of `target`.
pub async fn first(
    source: &mut PgConnection,
    target: &mut PgConnection,
    tenant: &Tenant,
    note: Note<'_>,
) -> Result<Copied, StoreError> {
    let Names { id, caller } = &Names::of(tenant);
    // Must be read before the rest of the snapshot.
    let began = text(source, "SELECT now()::text").await?;
    let lifetime =
        text(source, "SELECT coalesce(min(expires_at - created_at), interval '0')::text FROM idempotency_keys").await?;
    for (table, condition) in [
        ("agents", format!("tenant_id = {id}")),
        ("usage_counters", format!("tenant_id = {id}")),
        ("settlements", format!("tenant_id = {id}")),
        ("idempotency_keys", format!("caller = {caller}")),
        ("webhook_deliveries", format!("tenant_id = {id} AND status <> 'pending'")),
    ] {
        copy(source, target, &format!("SELECT * FROM {table} WHERE {condition}"), table, note).await?;
    }
    let keys = key_sums(target, "idempotency_keys", &format!("caller = {caller}")).await?;
    Ok(Copied { first: began.clone(), latest: began, lifetime, keys })
}

/// Copies the settlements and idempotency records since the latest snapshot. They are many if that copy took long.
pub async fn recent(
    source: &mut PgConnection,
    target: &mut PgConnection,
    tenant: &Tenant,
    copied: &mut Copied,
    note: Note<'_>,
) -> Result<(), StoreError> {
    let Names { id, caller } = &Names::of(tenant);
    let began = text(source, "SELECT now()::text").await?;
    let since = format!("timestamptz '{}' - {MARGIN}", copied.latest);
    // Their pairs are among those of the first snapshot, or new.
    for (table, key) in [("agents", "(tenant_id, agent_id)"), ("usage_counters", "(tenant_id, agent_id, service_id)")] {
        let pairs = format!("SELECT agent_id FROM settlements WHERE tenant_id = {id} AND settled_at >= {since}");
        stage(source, target, table, &format!("tenant_id = {id} AND agent_id IN ({pairs})")).await?;
        merge(target, table, &format!("{key} DO NOTHING")).await?;
    }
    stage(source, target, "settlements", &format!("tenant_id = {id} AND settled_at >= {since}")).await?;
    note(merge(target, "settlements", "(tenant_id, settlement_id) DO NOTHING").await?);
    let lifetime = copied.lifetime.clone();
    copy_recent_keys(source, target, caller, &since, &lifetime, &mut copied.keys, note).await?;
    copied.latest = began;
    Ok(())
}

/// Copies the records since a moment. The only index that finds them is that of their expiry. An expired record may have
/// been replaced under the same key.
async fn copy_recent_keys(
    source: &mut PgConnection,
    target: &mut PgConnection,
    caller: &str,
    since: &str,
    lifetime: &str,
    keys: &mut KeySums,
    note: Note<'_>,
) -> Result<(), StoreError> {
    let expiry = format!("expires_at >= {since} + interval '{lifetime}'");
    stage(source, target, "idempotency_keys", &format!("{expiry} AND created_at >= {since} AND caller = {caller}"))
        .await?;
    let staged = key_sums(target, "arriving_idempotency_keys", "true").await?;
    // Statistics from before the copy may say that the table is empty. With LIMIT, each record is found by the primary key.
    let replaced = "(SELECT replaced.* FROM arriving_idempotency_keys AS arriving CROSS JOIN LATERAL (
            SELECT * FROM idempotency_keys AS known WHERE known.key = arriving.key AND known.caller = arriving.caller LIMIT 1
        ) AS replaced) AS replaced";
    let replaced = key_sums(target, replaced, "true").await?;
    let columns = ["method", "path", "request_hash", "status", "response", "request_id", "attempt_id", "created_at"];
    let columns = assignments(&[columns.as_slice(), &["expires_at"]].concat());
    note(merge(target, "idempotency_keys", &format!("(key, caller) DO UPDATE SET {columns}")).await?);
    keys.records += staged.records - replaced.records;
    keys.bytes += staged.bytes - replaced.bytes;
    Ok(())
}

/// Deletes the copies of records that the source has no more: a retry under an expired key deletes its record, and stores
/// another one unless it is refused. Then the copy has no record that the source does not have, so that equal sums mean equal
/// records. A replica's clock may be ahead.
async fn delete_gone_keys(
    source: &mut PgConnection,
    target: &mut PgConnection,
    caller: &str,
    keys: &mut KeySums,
) -> Result<(), StoreError> {
    let now = text(source, "SELECT now()::text").await?;
    let expired = format!("caller = {caller} AND expires_at <= timestamptz '{now}' + {MARGIN}");
    stage(source, target, "idempotency_keys", &expired).await?;
    let gone = format!(
        "{expired} AND NOT EXISTS (
            SELECT FROM arriving_idempotency_keys AS expired
            WHERE expired.key = known.key AND expired.created_at = known.created_at
        )"
    );
    // Statistics from before the copy may say that the table is empty. The planner would then compare each record with each.
    run(target, "SET LOCAL enable_nestloop = off").await?;
    let deleted = key_sums(target, "idempotency_keys AS known", &gone).await?;
    run(target, &format!("DELETE FROM idempotency_keys AS known WHERE {gone}")).await?;
    run(target, "SET LOCAL enable_nestloop TO DEFAULT").await?;
    keys.records -= deleted.records;
    keys.bytes -= deleted.bytes;
    Ok(())
}

/// Copies the other rows, while the tenant's writes are refused. Returns the names of the tables whose sums differ, each
/// with both sums.
pub async fn rest(
    source: &mut PgConnection,
    target: &mut PgConnection,
    tenant: &Tenant,
    mut copied: Copied,
    note: Note<'_>,
) -> Result<Vec<String>, StoreError> {
    let Names { id, caller } = &Names::of(tenant);
    let since = format!("timestamptz '{}' - {MARGIN}", copied.first);
    let of_tenant = format!("tenant_id = {id}");
    for (table, condition, on_conflict) in [
        ("agents", of_tenant.clone(), "(tenant_id, agent_id) DO NOTHING".to_owned()),
        (
            "usage_counters",
            of_tenant.clone(),
            format!(
                "(tenant_id, agent_id, service_id) DO UPDATE SET {} WHERE known.version <> excluded.version",
                assignments(&["outstanding", "settled", "reset", "version"])
            ),
        ),
        (
            "webhook_deliveries",
            format!("{of_tenant} AND (status = 'pending' OR finished_at >= {since})"),
            format!(
                "(tenant_id, webhook_id, event_position) DO UPDATE SET {}",
                assignments(&[
                    "status",
                    "attempts",
                    "requested",
                    "last_attempt_at",
                    "next_attempt_at",
                    "response_status",
                    "error",
                    "finished_at",
                ])
            ),
        ),
    ] {
        stage(source, target, table, &condition).await?;
        note(merge(target, table, &on_conflict).await?);
    }
    recent(source, target, tenant, &mut copied, note).await?;
    delete_gone_keys(source, target, caller, &mut copied.keys).await?;
    if maintained_keys(source, caller).await? != copied.keys {
        // Records are missing: those with a shorter lifetime than all before. To find them takes longer.
        copy_recent_keys(source, target, caller, &since, "0", &mut copied.keys, note).await?;
    }
    for (table, columns, condition) in [
        ("services", "*", &of_tenant),
        ("webhooks", "*", &of_tenant),
        ("event_runs", "*", &of_tenant),
        ("outbox", "*", &of_tenant),
        ("webhook_queues", "tenant_id, webhook_id, due_at, NULL::timestamptz", &of_tenant),
        ("caller_totals", "*", &format!("caller = {caller}")),
    ] {
        copy(source, target, &format!("SELECT {columns} FROM {table} WHERE {condition}"), table, note).await?;
    }
    // API keys stay in the home cell, and so does their number.
    stage(source, target, "totals", &of_tenant).await?;
    run(target, "UPDATE arriving_totals SET api_keys = 0").await?;
    let sums: Vec<String> = TOTALS.iter().map(|name| format!("{name} = known.{name} + excluded.{name}")).collect();
    note(merge(target, "totals", &format!("(tenant_id, service_id, shard) DO UPDATE SET {}", sums.join(", "))).await?);
    advance_sequences(source, target).await?;
    compare(source, target, tenant, copied.keys).await
}

/// The columns of `totals` that move with the tenant.
const TOTALS: [&str; 10] = [
    "pairs",
    "pairs_above_zero",
    "outstanding",
    "recorded",
    "settlements",
    "settled_stroops",
    "agents",
    "events",
    "services",
    "webhooks",
];

/// The sums of each table. Those of idempotency records are maintained, because no index finds the records of a caller.
fn sums_of(id: &str, caller: &str) -> String {
    let columns = |columns: &[&str]| {
        let sums: Vec<String> = columns.iter().map(|column| format!("coalesce(sum({column}::numeric), 0)")).collect();
        format!("concat_ws(' ', count(*), {})", sums.join(", "))
    };
    let tables = [
        ("agents", columns(&["list_position"]), "true"),
        ("usage_counters", columns(&["pair_id", "outstanding", "settled", "reset", "version"]), "true"),
        ("settlements", columns(&["requests", "billed_stroops", "list_position"]), "true"),
        ("services", columns(&["price_stroops", "list_position"]), "true"),
        ("webhooks", columns(&["from_position"]), "true"),
        ("event_runs", columns(&["events", "position"]), "true"),
        ("outbox", columns(&["position"]), "true"),
        ("webhook_deliveries", columns(&["event_position", "attempts"]), "status = 'pending'"),
        ("webhook_queues", "count(*)::text".to_owned(), "true"),
        // Rows that only count API keys are in the home cell.
        ("totals", columns(&TOTALS).replace("count(*), ", ""), "true"),
    ];
    let selects = tables.iter().map(|(table, sums, condition)| {
        format!("SELECT '{table}' AS name, {sums} AS sums FROM {table} WHERE tenant_id = {id} AND {condition}")
    });
    let callers = format!(
        "SELECT 'caller_totals', concat_ws(' ', coalesce(sum(records), 0), coalesce(sum(bytes), 0)) FROM caller_totals WHERE caller = {caller}"
    );
    selects.chain([callers]).collect::<Vec<_>>().join(" UNION ALL ")
}

/// The tables whose sums differ.
async fn compare(
    source: &mut PgConnection,
    target: &mut PgConnection,
    tenant: &Tenant,
    keys: KeySums,
) -> Result<Vec<String>, StoreError> {
    let Names { id, caller } = &Names::of(tenant);
    let sql = sums_of(id, caller);
    let (there, here) = (sums(source, &sql).await?, sums(target, &sql).await?);
    let both = there.iter().zip(&here).filter(|(there, here)| there != here);
    let mut differing: Vec<String> =
        both.map(|((name, there), (_, here))| format!("{name} ({there} there, {here} here)")).collect();
    let maintained = maintained_keys(source, caller).await?;
    if maintained != keys {
        differing.push(format!("idempotency_keys ({maintained} there, {keys} here)"));
    }
    Ok(differing)
}

/// The sums of the records that a cell maintains.
async fn maintained_keys(cell: &mut PgConnection, caller: &str) -> Result<KeySums, StoreError> {
    let sql = format!(
        "SELECT coalesce(sum(records), 0)::text AS name, coalesce(sum(bytes), 0)::text AS sums FROM caller_totals WHERE caller = {caller}"
    );
    Ok(KeySums::of(sums(cell, &sql).await?))
}

/// Advances each sequence of the target beyond that of the source, in the target's own steps, so that new rows of the
/// tenant come after the copied ones.
async fn advance_sequences(source: &mut PgConnection, target: &mut PgConnection) -> Result<(), StoreError> {
    let mut sequences = vec!["event_positions".to_owned()];
    for (table, column) in [
        ("agents", "list_position"),
        ("services", "list_position"),
        ("settlements", "list_position"),
        ("usage_counters", "pair_id"),
    ] {
        sequences.push(text(target, &format!("SELECT pg_get_serial_sequence('{table}', '{column}')")).await?);
    }
    for sequence in sequences {
        let own = sequence.rsplit('.').next().unwrap_or_default();
        let there = text(source, &format!("SELECT last_value::text FROM {own}")).await?;
        run(
            target,
            &format!(
                "SELECT setval('{sequence}', last_value + seqincrement
                     * (ceil(({there} - last_value)::numeric / seqincrement)::bigint + {SEQUENCE_MARGIN}))
                 FROM {sequence}, pg_sequence WHERE seqrelid = '{sequence}'::regclass AND last_value <= {there}"
            ),
        )
        .await?;
    }
    Ok(())
}

/// The number of rows of each table that a move copies.
pub async fn count(source: &mut PgConnection, tenant: &Tenant) -> Result<Vec<(String, i64)>, StoreError> {
    let Names { id, caller } = &Names::of(tenant);
    let tables =
        TABLES_OF_TENANTS.map(|table| format!("SELECT '{table}', count(*)::text FROM {table} WHERE tenant_id = {id}"));
    let keys = format!("SELECT 'idempotency_keys', count(*)::text FROM idempotency_keys WHERE caller = {caller}");
    let counts = sums(source, &tables.into_iter().chain([keys]).collect::<Vec<_>>().join(" UNION ALL ")).await?;
    Ok(counts.into_iter().map(|(table, count)| (table, count.parse().unwrap_or_default())).collect())
}

/// Deletes all rows of the tenant except those that belong to the home cell: the tenant itself, its API keys and their
/// number. Needs a transaction, so that all sums add up at any time.
pub async fn delete(cell: &mut PgConnection, tenant: &Tenant) -> Result<(), StoreError> {
    let Names { id, caller } = &Names::of(tenant);
    for table in TABLES_OF_TENANTS {
        run(cell, &format!("DELETE FROM {table} WHERE tenant_id = {id}")).await?;
    }
    for table in ["idempotency_keys", "caller_totals", "full_callers"] {
        run(cell, &format!("DELETE FROM {table} WHERE caller = {caller}")).await?;
    }
    run(cell, &format!("DELETE FROM totals WHERE tenant_id = {id} AND (service_id <> '' OR api_keys = 0)")).await?;
    let zeros: Vec<String> = TOTALS.iter().map(|name| format!("{name} = 0")).collect();
    run(cell, &format!("UPDATE totals SET {} WHERE tenant_id = {id}", zeros.join(", "))).await
}

/// The tenant and its caller as SQL literals: COPY takes no parameters.
struct Names {
    id: String,
    caller: String,
}

impl Names {
    fn of(tenant: &Tenant) -> Self {
        let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
        Self { id: literal(tenant.as_str()), caller: literal(&Caller::Tenant(tenant.clone()).to_string()) }
    }
}

fn assignments(columns: &[&str]) -> String {
    let assignments: Vec<String> = columns.iter().map(|column| format!("{column} = excluded.{column}")).collect();
    assignments.join(", ")
}
