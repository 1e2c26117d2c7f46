//! Fills a database as it would look after a long time. The service makes one row of each kind for each tenant, which are
//! then copied; so few names of the schema stand here, and every value is one that the service wrote.

use std::time::Instant;

use serde_json::json;
use sqlx::PgConnection;

use crate::error::Result;
use crate::postgres;
use crate::service::Service;

const TENANTS: u32 = 100;

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub pairs_per_tenant: u32,
    /// Keys, and as many events.
    rows_per_tenant: u32,
    /// The share of the keys that has expired.
    expired: f64,
}

impl Extent {
    pub fn new(rows: f64, expired: f64) -> Self {
        let per_tenant = |rows: f64| (rows / f64::from(TENANTS)).round().max(2.0) as u32;
        Self { pairs_per_tenant: per_tenant(rows / 10.0), rows_per_tenant: per_tenant(rows), expired }
    }

    fn rows(&self) -> u32 {
        self.rows_per_tenant * TENANTS
    }
}

impl std::fmt::Display for Extent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rows, pairs) = (self.rows(), self.pairs_per_tenant * TENANTS);
        write!(formatter, "{rows} keys, {rows} events, {pairs} pairs, {TENANTS} tenants")
    }
}

/// Makes the tenants, each with one recorded request, and returns their API keys.
pub async fn tenants(service: &Service, extent: Extent) -> Result<Vec<String>> {
    let Extent { pairs_per_tenant, rows_per_tenant, .. } = extent;
    // Every tenant's log of events is full.
    let config = json!({ "eventLogCap": rows_per_tenant.min(100_000) });
    service.send_json(reqwest::Method::PATCH, "/api/v1/config", "", config).await?;
    let mut api_keys = Vec::new();
    for _ in 0..TENANTS {
        let api_key = service.new_tenant().await?;
        let usage = json!({ "agent": format!("agent-{pairs_per_tenant}"), "serviceId": "svc", "requests": 3 });
        service.record(&api_key, "k-seed-of-copies", usage).await?;
        api_keys.push(api_key);
    }
    Ok(api_keys)
}

/// Copies the rows of `tenants`.
pub async fn rows(connection: &mut PgConnection, extent: Extent) -> Result<()> {
    let pairs = (extent.pairs_per_tenant - 1) * TENANTS;
    let agent = format!("'agent-' || 1 + n / {TENANTS}");
    copy(connection, "agents", pairs, &[("agent", &agent), ("agent_id", &agent)]).await?;
    copy(connection, "usage_counters", pairs, &[("agent", &agent), ("agent_id", &agent)]).await?;
    let rows = extent.rows() - TENANTS;
    // Rows come in the order of time, and a key lives for 24 hours.
    let age = format!("interval '24 hours' / {}", 1.0 - extent.expired);
    let moment = format!("now() + {age} * (n::float8 / {rows} - 1)");
    let expiry = format!("{moment} + interval '24 hours'");
    // As long as the key of the row that is copied, because bytes are counted.
    let key = "'k-' || lpad((n::bigint * 618033989 % 1000000000000)::text, 14, '0')";
    let columns = [("key", key), ("created_at", &moment), ("expires_at", &expiry)];
    copy(connection, "idempotency_keys", rows, &columns).await?;
    // In older versions `events` is a table, whose positions are drawn by themselves.
    let runs = "SELECT coalesce(to_regclass('event_runs'), to_regclass('events'))::text";
    let events: String = sqlx::query_scalar(runs).fetch_one(&mut *connection).await?;
    let columns = [("recorded_at", moment.as_str()), ("position", "nextval('event_positions')")];
    copy(connection, &events, rows, &columns).await?;
    multiply_totals(connection, extent).await?;
    step("VACUUM ANALYZE", postgres::run(connection, "VACUUM ANALYZE")).await
}

/// Copies each row of a table that has one for each tenant, all tenants in turns, `count` copies in all. `n` counts them
/// from 0; `columns` says which differ. Indexes are made after the rows, which takes a tenth of the time.
async fn copy(connection: &mut PgConnection, table: &str, count: u32, columns: &[(&str, &str)]) -> Result<()> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT attname::text FROM pg_attribute
         LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
         WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND attidentity = '' AND attgenerated = ''
           AND coalesce(pg_get_expr(adbin, adrelid) NOT LIKE 'nextval(%', true)",
    )
    .bind(table)
    .fetch_all(&mut *connection)
    .await?;
    let value = |name: &String| match columns.iter().find(|(column, _)| column == name) {
        Some((_, expression)) => (*expression).to_owned(),
        None => format!("seed.{name}"),
    };
    let values: Vec<String> = names.iter().map(value).collect();
    let insert = format!(
        "INSERT INTO {table} ({}) SELECT {} FROM generate_series(0, {count} - 1) AS n
         JOIN (SELECT row_number() OVER () - 1 AS place, * FROM {table}) AS seed ON seed.place = n % {TENANTS}",
        names.join(", "),
        values.join(", "),
    );
    // An index that is not ready gets no entries.
    let unready = format!("UPDATE pg_index SET indisready = false WHERE indrelid = '{table}'::regclass");
    postgres::run(connection, &unready).await?;
    step(table, postgres::run(connection, &insert)).await?;
    step("its indexes", postgres::run(connection, &format!("REINDEX TABLE {table}"))).await
}

/// The totals that the service keeps were those of one row of each kind for each tenant.
async fn multiply_totals(connection: &mut PgConnection, extent: Extent) -> Result<()> {
    let (pairs, rows) = (extent.pairs_per_tenant, extent.rows_per_tenant);
    let factor = format!(
        "CASE WHEN column_name IN ('pairs', 'pairs_above_zero', 'agents', 'outstanding', 'lifetime', 'recorded') THEN {pairs}
              WHEN column_name IN ('events', 'replies', 'records', 'bytes') THEN {rows} END"
    );
    let statements = format!(
        "SELECT format('UPDATE %I SET ', table_name) || string_agg(format('%1$I = %1$I * %2$s', column_name, {factor}), ', ')
         FROM information_schema.columns
         WHERE table_schema = 'public' AND table_name ~ 'totals$|^record_c' AND {factor} IS NOT NULL GROUP BY table_name"
    );
    let statements: Vec<String> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(statements)).fetch_all(&mut *connection).await?;
    postgres::run(connection, &statements.join(";")).await
}

async fn step(name: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    let began = Instant::now();
    work.await?;
    eprintln!("filling: {name}: {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}
