//! Reads that many ask at the same time: each gets its own answer, and none that is older than its question.

use std::collections::BTreeMap;

use agentpay_billing::domain::caller::Tenant;
use agentpay_billing::domain::money::{Count, Price};
use agentpay_billing::domain::names::{AgentId, ServiceId};
use agentpay_billing::domain::timestamp::Timestamp;
use agentpay_billing::domain::usage::Pair;
use agentpay_billing::store;
use agentpay_billing::store::events::Filter;
use agentpay_billing::store::totals::{self, ServiceSlice};
use agentpay_billing::store::usage::{CounterId, Quoted};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Row};

use crate::jobs::janitor_cost::statement;
use crate::support::{BLOCKED, Client, Service, needs_one_cell, usage, wait_until};

const CLIENTS: i64 = 24;

/// A tenant of its own, told apart by its price and by what it used.
async fn tenant(service: &Service, number: i64) -> Client {
    let client = service.tenant().await;
    let body = json!({ "serviceId": "s", "priceStroops": number });
    assert_eq!(client.post("/api/v1/services", &body).await.status, 201);
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", number)).await.status, 201);
    client
}

/// What one client sees of its tenant in five reads.
async fn view(client: &Client) -> [Value; 5] {
    let mut view = [const { Value::Null }; 5];
    for (place, path) in ["usage/a/s", "billing/a/s", "billing/total", "stats", "events"].into_iter().enumerate() {
        let answer = client.get(&format!("/api/v1/{path}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        view[place] = answer.json();
    }
    view
}

#[tokio::test]
async fn each_caller_gets_its_own_answer_from_a_shared_read() {
    let service = Service::start(&[]).await;
    let mut clients = Vec::new();
    for number in 1..=CLIENTS {
        clients.push((number, tenant(&service, number).await));
    }
    let tasks = clients.into_iter().flat_map(|(number, client)| {
        [client.clone(), client].map(|client| {
            tokio::spawn(async move {
                for _ in 0..5 {
                    let [usage, quote, total, stats, events] = view(&client).await;
                    assert_eq!(usage, json!({ "agent": "a", "serviceId": "s", "total": number }));
                    assert_eq!((&quote["requests"], &quote["priceStroops"]), (&json!(number), &json!(number)));
                    assert_eq!(total["totalStroops"], json!(number * number));
                    assert_eq!(stats["totalRequests"], json!(number));
                    assert_eq!(stats["servicesBreakdown"].as_array().map(Vec::len), Some(1));
                    assert_eq!(stats["servicesBreakdown"][0]["requestsOutstanding"], json!(number));
                    assert_eq!(
                        (&events["total"], &events["items"][0]["payload"]["total"]),
                        (&json!(1), &json!(number))
                    );
                }
            })
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a client");
    }
}

#[tokio::test]
async fn a_caller_reads_its_own_writes() {
    let service = Service::start(&[]).await;
    let made = service.client().post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 1 })).await;
    assert_eq!(made.status, 201);
    let tasks = (0..CLIENTS).map(|number| {
        let client = service.client();
        tokio::spawn(async move {
            let agent = format!("agent-{number}");
            for count in 1..=10 {
                assert_eq!(client.post("/api/v1/usage", &usage(&agent, "s", 1)).await.status, 201);
                let read = client.get(&format!("/api/v1/usage/{agent}/s")).await.json();
                assert_eq!(read["total"], json!(count));
                // Others record too, so these only grow.
                let least = json!(count);
                let total = client.get("/api/v1/billing/total").await.json();
                assert!(total["totalStroops"].as_i64() >= least.as_i64(), "{total}");
                let stats = client.get("/api/v1/stats").await.json();
                assert!(stats["totalRequests"].as_i64() >= least.as_i64(), "{stats}");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a client");
    }
    service.verify().await;
}

/// While a table is locked, all reads of it are refused in time, and none still waits here or in the database.
#[tokio::test]
async fn a_read_that_is_kept_waiting_is_refused_to_all_callers_and_ends() {
    if needs_one_cell("it locks a table of the only database") {
        return;
    }
    let service = Service::start(&[("REQUEST_TIMEOUT_MS", "4000"), ("DATABASE_POOL_MAX", "4")]).await;
    let client = tenant(&service, 3).await;
    let mut holder = service.pool.acquire().await.expect("a connection").detach();
    let mut lock = holder.begin().await.expect("a transaction");
    sqlx::raw_sql("LOCK TABLE usage_counters IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.expect("a lock");
    let tasks = (0..CLIENTS).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.get("/api/v1/usage/a/s").await.status })
    });
    let mut statuses: BTreeMap<u16, i64> = BTreeMap::new();
    for task in tasks.collect::<Vec<_>>() {
        *statuses.entry(task.await.expect("a client")).or_default() += 1;
    }
    assert_eq!(statuses, BTreeMap::from([(503, CLIENTS)]));
    // Reads of other tables go on meanwhile.
    assert_eq!(client.get("/api/v1/stats").await.status, 200);
    wait_until(async || service.number(BLOCKED).await == 0).await;
    lock.rollback().await.expect("rolled back");
    let answer = client.get("/api/v1/usage/a/s").await;
    assert_eq!(answer.json()["total"], json!(3), "{answer:?}");
}

/// The answer of one tenant cannot be given: the others get theirs.
#[tokio::test]
async fn an_error_in_one_answer_of_a_shared_read_does_not_affect_the_others() {
    if needs_one_cell("tenants share a statement only in one cell") {
        return;
    }
    let service = Service::start(&[]).await;
    let (broken, sound) = (tenant(&service, 1).await, tenant(&service, 2).await);
    // More than any figure can be. Shards of it are summed for the answer.
    sqlx::raw_sql(
        "INSERT INTO totals (tenant_id, service_id, shard, outstanding) \
         SELECT services.tenant_id, 's', 15 - shard, 9223372036854775807 FROM services, generate_series(0, 1) AS shard \
         WHERE price_stroops = 1 ON CONFLICT (tenant_id, service_id, shard) DO UPDATE SET outstanding = excluded.outstanding",
    )
    .execute(&service.pool)
    .await
    .expect("rows");
    let tasks = (0..CLIENTS).map(|number| {
        let client = if number % 2 == 0 { broken.clone() } else { sound.clone() };
        tokio::spawn(async move { (number % 2, client.get("/api/v1/stats").await) })
    });
    for task in tasks.collect::<Vec<_>>() {
        let (is_sound, answer) = task.await.expect("a client");
        let expected = if is_sound == 1 { (200, json!(2)) } else { (500, Value::Null) };
        assert_eq!((answer.status, answer.json()["totalRequests"].clone()), expected, "{answer:?}");
    }
}

#[tokio::test]
async fn one_statement_answers_different_keys_in_their_order() {
    if needs_one_cell("tenants share a statement only in one cell") {
        return;
    }
    let service = Service::start(&[]).await;
    let mut tenants = Vec::new();
    for number in 1..=3 {
        let client = tenant(&service, number).await;
        assert_eq!(client.post("/api/v1/usage", &usage("a", "s", number)).await.status, 201);
        assert_eq!(client.post("/api/v1/usage", &usage("b", "unregistered", 7)).await.status, 201);
        let id = client.get("/api/v1/stats").await.json()["servicesBreakdown"][0]["tenantId"].clone();
        tenants.push(Tenant::from_stored(id.as_str().expect("an id").to_owned()));
    }
    let mut connection = service.pool.acquire().await.expect("a connection");
    tenants.push(Tenant::from_stored("nobody".to_owned()));
    tenants.reverse();

    let pair = |agent, service| Pair {
        agent: AgentId::parse(agent).expect("an agent"),
        service_id: ServiceId::parse(service).expect("a service"),
    };
    let ids = tenants.iter().flat_map(|tenant| {
        [pair("a", "s"), pair("b", "unregistered")].map(|pair| CounterId { tenant: tenant.clone(), pair })
    });
    let quotes = store::usage::quotes(&mut connection, &ids.collect::<Vec<_>>()).await.expect("quotes");
    let quoted = |outstanding, price: Option<i64>| Quoted {
        outstanding: Count(outstanding),
        price_stroops: price.and_then(Price::new),
    };
    let expected = [3, 2, 1].into_iter().flat_map(|number| [quoted(2 * number, Some(number)), quoted(7, None)]);
    assert_eq!(quotes, [quoted(0, None); 2].into_iter().chain(expected).collect::<Vec<_>>());

    let due = totals::due(&mut connection, &tenants).await.expect("due");
    let due: Vec<_> = due.iter().map(|due| (due.total_stroops.to_string(), due.unpriced_requests.0)).collect();
    let expected = [("0", 0), ("18", 7), ("8", 7), ("2", 7)];
    assert_eq!(due, expected.map(|(total, unpriced)| (total.to_owned(), unpriced)));

    let wanted: Vec<_> = tenants.iter().zip([5, 1, 2, 9]).collect();
    let heads = store::events::heads(&mut connection, &wanted).await.expect("heads");
    let lengths: Vec<_> = heads.iter().map(|head| (head.stored, head.newest.len())).collect();
    assert_eq!(lengths, [(0, 0), (3, 1), (3, 2), (3, 3)]);
    let every = Filter { since: Timestamp::from_ms(0), type_name: None };
    for ((tenant, most), head) in wanted.into_iter().zip(heads) {
        let alone = store::events::newest(&mut connection, tenant, &every, 0, i64::MAX, most).await.expect("events");
        assert_eq!(format!("{:?}", head.newest), format!("{alone:?}"));
    }

    let slice = |tenant: Option<&Tenant>, after: (&str, &str), limit| ServiceSlice {
        tenant: tenant.cloned(),
        after: (after.0.to_owned(), after.1.to_owned()),
        limit,
    };
    let own = tenants[1].as_str();
    let slices = [
        slice(Some(&tenants[0]), ("", ""), 9),
        slice(Some(&tenants[1]), ("", ""), 9),
        slice(Some(&tenants[1]), (own, "r"), 9),
        slice(Some(&tenants[1]), (own, "s"), 9),
        slice(Some(&tenants[1]), ("a tenant before it", "z"), 9),
        slice(Some(&tenants[1]), ("~", ""), 9),
        slice(None, ("", ""), 2),
        slice(None, ("~", ""), 2),
    ];
    let lines = totals::service_lines(&mut connection, &slices).await.expect("lines");
    assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 1, 0, 1, 0, 2, 0]);
    assert_eq!((lines[1][0].tenant_id.as_str(), lines[1][0].outstanding), (own, Count(6)));
}

/// A page of services is read from where it begins to where it ends, whatever the planner thinks of its length.
#[tokio::test]
async fn a_page_of_many_services_costs_a_page() {
    let service = Service::start(&[]).await;
    sqlx::raw_sql(
        "INSERT INTO services (tenant_id, service_id, price_stroops, created_at) \
         SELECT 'public', 's' || number, 1, now() FROM generate_series(1, 10000) AS number; ANALYZE services",
    )
    .execute(&service.pool)
    .await
    .expect("services");
    let mut connection = service.pool.acquire().await.expect("a connection").detach();
    for mode in ["force_generic_plan", "force_custom_plan"] {
        for name in ["totals::service_lines", "totals::lines_of_all"] {
            let arguments = match name {
                "totals::service_lines" => "ARRAY[0], ARRAY['public'], ARRAY[''], ARRAY[51]",
                _ => "'', '', 51",
            };
            let query = statement(name);
            let prepare = format!("DEALLOCATE ALL; SET plan_cache_mode = {mode}; PREPARE planned AS {query}");
            sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut connection).await.expect("prepared");
            let explain = format!("EXPLAIN EXECUTE planned ({arguments})");
            let lines = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut connection).await.expect("a plan");
            let plan: Vec<String> = lines.iter().map(|line| line.get(0)).collect();
            assert!(plan.iter().any(|line| line.contains("using services_pkey")), "{mode}: {plan:#?}");
        }
    }
}
