//! What the directory of the home cell costs with many tenants: the processor time of PostgreSQL for the service's own
//! statements, each on one connection and as often as possible.

use std::time::{Duration, Instant};

use agentpay_billing::domain::identifiers::{KeyPrefix, hash_of_key};
use agentpay_billing::store::{MIGRATOR, api_keys, cells, directory};
use sqlx::PgConnection;

use crate::error::Result;
use crate::machine::Cores;
use crate::postgres;
use crate::report::Report;
use crate::scenario::Bench;

/// Keys in one statement of the service, at most.
const KEYS_MAX: u32 = 256;

pub async fn run(bench: &Bench, report: &mut Report, tenants: u32) -> Result<()> {
    let mut connection = bench.server.create_database("directory").await?;
    MIGRATOR.run(&mut connection).await?;
    fill(&mut connection, tenants).await?;
    let sizes = "SELECT sum(pg_total_relation_size(oid))::float8 FROM pg_class
                 WHERE oid IN ('tenants'::regclass, 'tenant_cells'::regclass, 'api_keys'::regclass)";
    let bytes: f64 = sqlx::query_scalar(sizes).fetch_one(&mut connection).await?;
    report.notes.push(format!("a tenant with a key needs {:.0} bytes in the directory", bytes / f64::from(tenants)));
    let key = |number: u32| hash_of_key(number.to_string().as_bytes());
    let prefix = |number: u32| KeyPrefix::from_stored(&format!("apk_{number:08x}")).ok_or("no prefix");
    // Numbers of keys that were not used for long.
    let mut next = 0..tenants;
    let mut rows = String::new();
    for keys in [1, KEYS_MAX] {
        // A factor without a common divisor, so that the keys are anywhere.
        let hashes =
            |call: u32| (0..keys).map(|place| key((call * keys + place).wrapping_mul(7919) % tenants)).collect();
        let looked_up = cost(bench, async |call| {
            let hashes: Vec<[u8; 32]> = hashes(call);
            let found = api_keys::find_all(&mut connection, &hashes).await?;
            if found.iter().all(Option::is_some) { Ok(true) } else { Err("a key was not found".into()) }
        });
        rows += &format!("| look up {keys} keys | {} |\n", looked_up.await?);
        let limit = next.start + if keys == 1 { tenants / 4 } else { tenants };
        let noted = cost(bench, async |_| {
            let numbers: Vec<u32> = next.by_ref().take(keys as usize).collect();
            let prefixes = numbers.iter().map(|number| prefix(*number)).collect::<std::result::Result<Vec<_>, _>>()?;
            api_keys::note_used(&mut connection, &prefixes).await?;
            Ok(numbers.len() == keys as usize && next.start < limit)
        });
        rows += &format!("| record the use of {keys} keys | {} |\n", noted.await?);
    }
    let placed = cost(bench, async |_| {
        api_keys::count(&mut connection).await?;
        directory::accepting(&mut connection).await?;
        Ok(true)
    });
    rows += &format!("| choose the cell of a new tenant | {} |\n", placed.await?);
    let read = cost(bench, async |_| {
        cells::identity(&mut connection).await?;
        Ok(true)
    });
    rows += &format!("| read the identity of a cell | {} |\n", read.await?);
    let head = format!("| directory of {tenants} tenants | µs of a core of PostgreSQL |\n|---|--:|\n");
    report.sections.push(head + &rows);
    Ok(())
}

/// Tenants in ten cells, each with a key, as the service stores them.
async fn fill(connection: &mut PgConnection, tenants: u32) -> Result<()> {
    let statements = format!(
        "CREATE TEMPORARY TABLE numbers AS
             SELECT n, 'tnt_' || md5(n::text) AS tenant_id, 'c-' || n % 10 AS cell_id FROM generate_series(0, {tenants} - 1) AS n;
         INSERT INTO cells (cell_id, number) SELECT 'c-' || n, n FROM generate_series(0, 9) AS n;
         INSERT INTO tenants (tenant_id, residence)
             SELECT tenant_id, CASE WHEN n % 10 = 0 THEN 'here' ELSE 'elsewhere' END FROM numbers;
         INSERT INTO tenant_cells (tenant_id, cell_id) SELECT tenant_id, cell_id FROM numbers WHERE n % 10 > 0;
         INSERT INTO api_keys (tenant_id, prefix, key_hash, label, created_at)
             SELECT tenant_id, 'apk_' || lpad(to_hex(n), 8, '0'), sha256(convert_to(n::text, 'UTF8')), 'bench', now()
             FROM numbers"
    );
    postgres::run(connection, &statements).await?;
    postgres::run(connection, "VACUUM ANALYZE").await
}

/// The processor time of PostgreSQL for a call, in µs. `call` gets its number, and returns whether it can be repeated.
async fn cost(bench: &Bench, mut call: impl AsyncFnMut(u32) -> Result<bool>) -> Result<String> {
    let limit = Duration::from_secs(bench.seconds);
    let mut calls = 0;
    let (before, began) = (Cores::ticks(&[], &[bench.server.postmaster])?, Instant::now());
    while call(calls).await? && began.elapsed() < limit {
        calls += 1;
    }
    let seconds = began.elapsed().as_secs_f64();
    let cores = Cores::ticks(&[], &[bench.server.postmaster])?.since(&before, seconds);
    Ok(format!("{:.1}", cores.postgres[0] * seconds / f64::from(calls + 1) * 1e6))
}
