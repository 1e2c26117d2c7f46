//! Pruning costs what it deletes, not what the table keeps: shown at a million records by counts of buffers, with the
//! very statements of the store, and with a whole run of the janitor.

use std::fs;
use std::path::Path;
use std::time::Duration;

use agentpay_billing::clock::Clock;
use agentpay_billing::job_health::JobHealth;
use agentpay_billing::jobs::janitor::Janitor;
use agentpay_billing::runtime_config::SharedRuntimeConfig;
use agentpay_billing::settings::janitor::JanitorSettings;
use agentpay_billing::store::pool::Pool;
use agentpay_billing::store::runtime_config;
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};

use crate::support::{new_database, pool, store_records, wait_until};

const RECORDS: i64 = 1_000_000;
/// Every hundredth record has expired; the oldest have.
const EXPIRED: i64 = RECORDS / 100;
const DELETED: i64 = 1000;
const DAY_MS: i64 = 86_400_000;
/// A row is found in an index, locked and deleted in the table: some buffers each, whatever the size of the table.
const BUFFERS_PER_ROW_MAX: i64 = 6;

/// Records `first` to `last`, in the order of their making: two callers, and keys in no order.
async fn load(pool: &PgPool, first: i64, last: i64) {
    sqlx::query(
        "WITH loaded AS (
             INSERT INTO idempotency_keys
             SELECT 'ip:192.0.2.' || number % 2, sha256(number::text::bytea)::text, 'POST', '/api/v1/usage',
                    sha256(''), 201, '{\"agent\":\"a\",\"serviceId\":\"s\",\"total\":1}', 'request', 1,
                    now() - interval '1 day' + number * interval '1 ms',
                    now() + CASE WHEN number <= $3 THEN '-1 hour' ELSE interval '1 hour' END + number * interval '1 ms'
             FROM generate_series($1, $2) AS number
             RETURNING caller, idempotency_record_bytes(caller, key, path, request_id, response) AS bytes
         )
         INSERT INTO caller_totals AS total (caller, shard, records, bytes)
         SELECT caller, 0, count(*), sum(bytes) FROM loaded GROUP BY caller
         ON CONFLICT (caller, shard) DO UPDATE
         SET records = total.records + excluded.records, bytes = total.bytes + excluded.bytes",
    )
    .bind(first)
    .bind(last)
    .bind(EXPIRED)
    .execute(pool)
    .await
    .expect("records");
}

/// The text of a statement of the store, as the build has checked it.
pub fn statement(name: &str) -> String {
    let mark = format!("-- {name}\n");
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx")).expect(".sqlx");
    let texts = entries.map(|entry| fs::read_to_string(entry.expect("an entry").path()).expect("a statement"));
    let mut queries = texts.map(|text| serde_json::from_str::<Value>(&text).expect("JSON")["query"].clone());
    let query = queries.find(|query| query.as_str().is_some_and(|query| query.starts_with(&mark)));
    query.and_then(|query| query.as_str().map(str::to_owned)).unwrap_or_else(|| panic!("{name} is not in .sqlx"))
}

/// Runs a statement that deletes [`DELETED`] rows, undoes it, and gives the buffers it touched.
async fn buffers(pool: &PgPool, name: &str) -> i64 {
    let mut transaction = pool.begin().await.expect("transaction");
    // As `server::begin_walk` begins it.
    let settings = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off";
    sqlx::raw_sql(settings).execute(&mut *transaction).await.expect("settings");
    let explain = AssertSqlSafe(format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {}", statement(name)));
    let plan = sqlx::query_scalar::<_, Value>(explain).bind(DELETED).fetch_one(&mut *transaction).await.expect(name);
    transaction.rollback().await.expect("rollback");
    let text = plan.to_string();
    assert!(!text.contains("Seq Scan"), "{name}: {text}");
    assert_eq!(deleted(&plan[0]["Plan"]), Some(DELETED), "{name}: {text}");
    let count = |kind: &str| plan[0]["Plan"][kind].as_i64().expect(kind);
    count("Shared Hit Blocks") + count("Shared Read Blocks")
}

/// Rows of the DELETE in a plan.
fn deleted(node: &Value) -> Option<i64> {
    if node["Operation"] == "Delete" {
        return node["Actual Rows"].as_f64().map(|rows| rows as i64);
    }
    node["Plans"].as_array()?.iter().find_map(deleted)
}

/// What the server knows of the work on the table.
#[derive(sqlx::FromRow, Debug)]
struct Work {
    /// Of the table and its indexes.
    buffers: i64,
    /// Rows read by scanning the table.
    scanned: i64,
    deleted: i64,
    /// Read in its indexes.
    entries: i64,
    /// Other sessions, which may not have reported their work yet.
    sessions: i64,
}

async fn work(pool: &PgPool) -> Work {
    sqlx::query_as(
        "SELECT (heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)::bigint AS buffers, \
                seq_tup_read::bigint AS scanned, n_tup_del::bigint AS deleted, \
                (SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes AS index \
                 WHERE index.relid = 'idempotency_keys'::regclass) AS entries, \
                (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND backend_type = 'client backend' AND pid <> pg_backend_pid()) AS sessions \
         FROM pg_statio_user_tables JOIN pg_stat_user_tables USING (relid) WHERE relid = 'idempotency_keys'::regclass",
    )
    .fetch_one(pool)
    .await
    .expect("statistics")
}

/// A session reports its work at its end at the latest.
async fn work_once_alone(pool: &PgPool) -> Work {
    let mut seen = None;
    wait_until(async || seen.insert(work(pool).await).sessions == 0).await;
    seen.expect("statistics")
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_a_million_records_costs_what_it_deletes() {
    let database = new_database().await;
    let pool = pool(&database);
    // Its work would be counted with the janitor's.
    sqlx::query("ALTER TABLE idempotency_keys SET (autovacuum_enabled = off)").execute(&pool).await.expect("alter");
    let names = ["retention::prune_expired"];
    let mut measured = Vec::new();
    load(&pool, 1, 2 * EXPIRED).await;
    for name in names {
        measured.push((name, "small", buffers(&pool, name).await));
    }
    load(&pool, 2 * EXPIRED + 1, RECORDS).await;
    for state in ["a million, never analysed", "a million"] {
        for name in names {
            measured.push((name, state, buffers(&pool, name).await));
        }
        sqlx::query("ANALYZE idempotency_keys").execute(&pool).await.expect("analyse");
    }
    println!("buffers for {DELETED} rows: {measured:?}");
    for measure in &measured {
        assert!(measure.2 < BUFFERS_PER_ROW_MAX * DELETED, "{measure:?}");
    }
    pool.close().await;
    a_whole_run_does_no_more(&database).await;
}

async fn janitor(outside: &PgPool, database: &PgConnectOptions, settings: JanitorSettings) -> Janitor {
    let config = runtime_config::read(&mut outside.acquire().await.expect("connection")).await.expect("the row");
    let clock = Clock::default();
    Janitor {
        last_run: Default::default(),
        settings,
        pool: Pool::new(database.clone(), 1, Duration::from_secs(60)),
        health: JobHealth::new(clock.clone()),
        clock,
        runtime_config: SharedRuntimeConfig::new(config),
        full: Default::default(),
        cursors: Default::default(),
    }
}

async fn a_whole_run_does_no_more(database: &PgConnectOptions) {
    let outside = PgPoolOptions::new().max_connections(1).connect_lazy_with(database.clone());
    let before = work_once_alone(&outside).await;
    let settings = JanitorSettings {
        pause: Duration::from_secs(3600),
        records_max: RECORDS - EXPIRED - 3000,
        records_of_caller_max: (RECORDS - EXPIRED) / 2 - 1000,
        bytes_of_caller_max: i64::MAX,
        ttl_ms: DAY_MS,
    };
    let janitor = janitor(&outside, database, settings).await;
    let report = janitor.run_once().await.expect("janitor");
    assert_eq!((report.expired, report.over_caller_cap, report.over_total_cap), (EXPIRED, 3000, 0));
    janitor.pool.close(Duration::from_secs(1)).await;
    let after = work_once_alone(&outside).await;
    let (rows, buffers) = (EXPIRED + 3000, after.buffers - before.buffers);
    println!("buffers for a run that deletes {rows} rows: {buffers}");
    assert_eq!((after.deleted - before.deleted, after.scanned - before.scanned), (rows, 0));
    assert!(buffers < BUFFERS_PER_ROW_MAX * rows, "{buffers}");
}

/// A caller that stays at its cap: its walk goes on where it stopped, past the records of others that it has seen.
#[tokio::test(flavor = "multi_thread")]
async fn eviction_walks_nothing_twice() {
    const HOUR_MS: i64 = 3_600_000;
    let database = new_database().await;
    let outside = PgPoolOptions::new().max_connections(1).connect_lazy_with(database.clone());
    sqlx::query("ALTER TABLE idempotency_keys SET (autovacuum_enabled = off)").execute(&outside).await.expect("alter");
    // The records of two callers alternate. One has too many.
    for part in 0..20 {
        for (caller, count) in [("ip:192.0.2.1", 1000), ("ip:192.0.2.2", 200)] {
            store_records(&outside, caller, count, 4 * HOUR_MS - 1000 * part, 10).await;
        }
    }
    let settings = JanitorSettings {
        pause: Duration::from_secs(3600),
        records_max: RECORDS,
        records_of_caller_max: 5000,
        bytes_of_caller_max: i64::MAX,
        ttl_ms: DAY_MS,
    };
    let mut janitor = janitor(&outside, &database, settings).await;
    let mut evict = async || {
        let before = work_once_alone(&outside).await;
        janitor.pool = Pool::new(database.clone(), 1, Duration::from_secs(60));
        let report = janitor.run_once().await.expect("janitor");
        janitor.pool.close(Duration::from_secs(1)).await;
        (report.over_caller_cap, work_once_alone(&outside).await.entries - before.entries)
    };
    let (evicted, entries) = evict().await;
    assert_eq!(evicted, 15_000);
    // Fifteen thousand and the other one's among them, each for the walk and for its removal.
    assert!(entries < 40_000, "{entries}");
    store_records(&outside, "ip:192.0.2.1", 500, 3 * HOUR_MS, 10).await;
    let (evicted, entries) = evict().await;
    assert_eq!(evicted, 500);
    assert!(entries < 3000, "{entries}");
    // Who is within its caps is not walked for.
    let (evicted, entries) = evict().await;
    assert!(evicted == 0 && entries < 10, "{evicted} {entries}");
}
