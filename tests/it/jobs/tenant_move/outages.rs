//! A move while keys expire and are retried, and a target that fails.

use agentpay_billing::domain::cell::Residence;
use agentpay_billing::jobs::tenant_move::{MoveError, Step};
use agentpay_billing::store::{tenant_copy, tenant_moves};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::{Forwarder, Service, usage};

use super::{Cells, SETTINGS, USAGE, code};

#[tokio::test(flavor = "multi_thread")]
async fn expired_keys_that_are_retried_during_the_copy_do_not_fail_the_move() {
    let cells = Cells::start().await;
    let (service, client) = (&cells.services[0], cells.client(0));
    for number in 0..4 {
        assert_eq!(client.key(&format!("k{number}")).post(USAGE, &usage("a", "s", 1)).await.status, 201);
    }
    service.age_records(90_000_000).await;
    let limits = service.client().send("PATCH", "/api/v1/config", Some(r#"{"usageStoreMaxKeys":1}"#)).await;
    assert_eq!(limits.status, 200);
    let brief = [SETTINGS, &[("IDEMPOTENCY_CACHE_TTL_MS", "60000")]].concat();
    let brief = Service::start_on(cells.settings[0].database.clone(), &brief).await;
    let watch = async |step| {
        if step != Step::CopiedFirst {
            return;
        }
        // Replaces the record.
        let again = client.key("k0").post(USAGE, &usage("a", "s", 2)).await;
        assert!(again.status == 201 && !again.replayed, "{again:?}");
        // Deletes the record, and stores none, because a repetition may succeed.
        assert_eq!(client.key("k1").post(USAGE, &usage("b", "s", 1)).await.status, 429);
        // Stores a record that expires before all others.
        let client = brief.client().with("x-api-key", &cells.key);
        assert_eq!(client.key("brief").post(USAGE, &usage("a", "s", 3)).await.status, 201);
    };
    cells.find(1).await.run(&|_| {}, watch).await.expect("a move");
    cells.verify(1).await;
    let records = "SELECT count(*) FROM idempotency_keys WHERE key IN ('k0', 'k2', 'k3', 'brief')";
    let all = "SELECT count(*) FROM idempotency_keys";
    assert_eq!([cells.services[1].number(records).await, cells.services[1].number(all).await], [4, 4]);
    for (key, requests) in [("k0", 2), ("brief", 3)] {
        let again = cells.client(1).key(key).post(USAGE, &usage("a", "s", requests)).await;
        assert!(again.status == 201 && again.replayed, "{key}: {again:?}");
    }
}

/// SQL that stores so many records of the tenant, like the one under `k`, and counts them. $1 is the time since their expiry.
fn store_many(prefix: &str, count: u32) -> String {
    format!(
        "WITH stored AS (
            INSERT INTO idempotency_keys
            SELECT caller, '{prefix}-' || number, method, path, request_hash, status, response, request_id, attempt_id,
                   now() - $1::interval - interval '1 day', now() - $1::interval
            FROM idempotency_keys, generate_series(1, {count}) AS number WHERE key = 'k'
            RETURNING *
        )
        UPDATE caller_totals AS total SET records = total.records + added.records, bytes = total.bytes + added.bytes
        FROM (
            SELECT caller, count(*) AS records, sum(idempotency_record_bytes(caller, key, path, request_id, response)) AS bytes
            FROM stored GROUP BY caller
        ) AS added
        WHERE total.caller = added.caller
            AND total.shard = (SELECT min(shard) FROM caller_totals AS other WHERE other.caller = added.caller)"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn many_expired_and_recent_records_are_compared_although_the_target_seems_empty() {
    let cells = Cells::start().await;
    assert_eq!(cells.client(0).key("k").post(USAGE, &usage("a", "s", 1)).await.status, 201);
    let source = &cells.services[0].pool;
    // The statistics of the target are those of a cell that all tenants have left.
    cells.move_to(1).await;
    let target = &cells.services[1].pool;
    sqlx::query(AssertSqlSafe(store_many("left", 1000))).bind("-1 hour").execute(target).await.expect("records");
    cells.move_to(0).await;
    sqlx::query("ANALYZE idempotency_keys").execute(target).await.expect("statistics");
    sqlx::query(AssertSqlSafe(store_many("old", 30_000))).bind("1 hour").execute(source).await.expect("records");
    let watch = async |step| {
        if step != Step::CopiedFirst {
            return;
        }
        sqlx::query(AssertSqlSafe(store_many("new", 5000))).bind("-1 day").execute(source).await.expect("records");
        // A retry deletes a record, and another record of the same size, which expires early, takes its place in the sums.
        let replace = "
            INSERT INTO idempotency_keys
            SELECT caller, 'few-1', method, path, request_hash, status, response, request_id, attempt_id, now(),
                   now() + interval '5 minutes'
            FROM idempotency_keys WHERE key = 'k';
            DELETE FROM idempotency_keys WHERE key = 'old-1'";
        sqlx::raw_sql(replace).execute(source).await.expect("another record");
    };
    let moved = cells.find(1).await.run(&|_| {}, watch).await.expect("a move");
    println!("moved {moved:?}");
    let found =
        "SELECT count(*) FILTER (WHERE key = 'few-1') - count(*) FILTER (WHERE key = 'old-1') FROM idempotency_keys";
    assert_eq!(cells.services[1].number(found).await, 1);
    assert_eq!(cells.services[1].number("SELECT count(*) FROM idempotency_keys").await, 36_001);
    cells.verify(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_fails_before_the_commit_leaves_the_tenant_where_it_was() {
    let mut cells = Cells::start().await;
    let database = cells.settings[1].database.clone();
    let forwarder = Forwarder::start(&database).await;
    cells.settings[1].database = forwarder.options();
    let client = cells.client(0);
    let fail_after = async |last: Step| {
        let watch = async |step| {
            if step == last {
                forwarder.lead_to(&database.clone().socket("/nowhere"));
                forwarder.cut();
            }
        };
        cells.find(1).await.run(&|_| {}, watch).await.expect_err("a failure")
    };
    for last in [Step::CopiedFirst, Step::DeliveriesStopped, Step::Fenced] {
        let key = format!("{last:?}");
        assert_eq!(client.key(&key).post(USAGE, &usage("a", "s", 1)).await.status, 201);
        let error = fail_after(last).await;
        assert!(error.to_string().ends_with("; the tenant stays in home"), "{last:?}: {error}");
        // Nobody has to repair the target before the source goes on.
        let again = client.key(&key).post(USAGE, &usage("a", "s", 1)).await;
        assert!(again.status == 201 && again.replayed, "{last:?}: {again:?}");
        assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.status, 201, "{last:?}");
        assert_eq!(tenant_moves::list(&mut cells.home().await).await.expect("moves"), []);
        forwarder.lead_to(&database);
    }

    // A COMMIT without an answer may have been executed: only the target knows.
    let error = fail_after(Step::CopiedAll).await;
    assert!(matches!(error, MoveError::Store(_)), "{error}");
    assert_eq!(code(&client.post(USAGE, &usage("a", "s", 1)).await), "tenant_moving");
    assert!(cells.find(1).await.undo().await.is_err());
    forwarder.lead_to(&database);
    cells.find(1).await.undo().await.expect("undone");
    assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.status, 201);
    cells.move_to(1).await;
    cells.verify(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_restored_from_before_the_commit_leaves_the_tenant_in_the_source() {
    let cells = Cells::start().await;
    let client = cells.client(0);
    let client = client.key("k");
    assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.status, 201);
    let mut source = cells.home().await;
    let mut target = PgConnection::connect_with(&cells.settings[1].database).await.expect("the target");
    let leave = async |cell: &mut PgConnection| {
        tenant_moves::set_residence(cell, &cells.tenant, Residence::Elsewhere, 1).await.expect("a residence");
    };
    let restore_target = async |target: &mut PgConnection| {
        let mut transaction = target.begin().await.expect("a transaction");
        tenant_copy::delete(&mut transaction, &cells.tenant).await.expect("a deletion");
        leave(&mut transaction).await;
        transaction.commit().await.expect("a commit");
    };
    for undoes in [true, false] {
        // The next step was to change the directory.
        cells.move_until(1, Step::Committed).await;
        leave(&mut source).await;
        let has_arrived = cells.find(1).await.undo().await;
        assert!(matches!(has_arrived, Err(MoveError::Arrived(_))), "{has_arrived:?}");
        restore_target(&mut target).await;
        if undoes {
            cells.find(1).await.undo().await.expect("undone");
            let again = client.post(USAGE, &usage("a", "s", 1)).await;
            assert!(again.status == 201 && again.replayed, "{again:?}");
            cells.verify(0).await;
        }
    }
    cells.move_to(1).await;
    cells.verify(1).await;
    // After the switch nothing says that the source still has the rows.
    cells.move_until(0, Step::Switched).await;
    for cell in [&mut source, &mut target] {
        leave(cell).await;
    }
    assert!(cells.find(0).await.undo().await.is_err());
}
