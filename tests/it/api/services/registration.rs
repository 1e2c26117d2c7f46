//! HTTP contract, section 11: one registration and many, and the cap that holds between replicas.

use serde_json::{Value, json};

use super::{DESCRIPTION, OWNER, PRICE, SERVICE_ID, SERVICES, ids, invalid, register};
use crate::support::{Service, new_database};

/// Sets one column of the limits, as a change by the operator would.
async fn limit(service: &Service, column: &'static str, value: i64) {
    let sql = format!("UPDATE runtime_config SET {column} = $1");
    sqlx::query(sqlx::AssertSqlSafe(sql)).bind(value).execute(&service.pool).await.expect("limits");
    service.config_watcher.run_once().await.expect("limits");
}

#[tokio::test]
async fn checks_of_a_registration_come_in_order() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for (body, message) in [
        ("[]", "body must be a JSON object"),
        (r#"{"serviceId":"a b","x":1}"#, "unexpected field: x"),
        (r#"{"priceStroops":-1}"#, SERVICE_ID),
        (r#"{"serviceId":"s","description":1}"#, PRICE),
        (r#"{"serviceId":"s","priceStroops":1,"owner":"o"}"#, DESCRIPTION),
        (r#"{"serviceId":"s","priceStroops":1,"description":"d"}"#, OWNER),
        (r#"{"serviceId":"s","priceStroops":1,"description":null,"owner":"o"}"#, DESCRIPTION),
    ] {
        assert_eq!(client.send("POST", SERVICES, Some(body)).await.error(), invalid(message), "{body}");
    }
    limit(&service, "services_store_max_keys", 1).await;
    assert_eq!(register(&client, "one", 1).await.status, 201);
    let full = (429, "store_capacity_exceeded".to_owned(), "service store capacity exceeded".to_owned());
    assert_eq!(register(&client, "two", 1).await.error(), full);
    assert_eq!(register(&client, "one", 2).await.status, 200);
    client.send("DELETE", "/api/v1/services/one", None).await;
    assert_eq!(register(&client, "two", 1).await.status, 201);
    service.verify().await;
}

#[tokio::test]
async fn a_bulk_registration_answers_each_item_in_its_place() {
    let service = Service::start(&[]).await;
    let client = service.client();
    limit(&service, "services_store_max_keys", 3).await;
    let metadata = json!({ "serviceId": "old", "priceStroops": 1, "description": "d", "owner": "o" });
    client.post(SERVICES, &metadata).await;
    let body = json!({ "x": 1, "items": [
        { "serviceId": "z", "priceStroops": 1, "owner": "ignored" }, null, { "serviceId": "z", "priceStroops": -1 },
        { "serviceId": "old", "priceStroops": 2 }, { "serviceId": "z", "priceStroops": 3 },
        { "serviceId": "a", "priceStroops": 4 }, { "serviceId": "more", "priceStroops": 5 },
        { "serviceId": "more", "priceStroops": 5 }, { "serviceId": "a b", "priceStroops": 1 }, 7,
        { "serviceId": "old", "priceStroops": 9 }
    ] });
    let answer = client.key("bulk").post("/api/v1/services/bulk", &body).await;
    let expected = concat!(
        r#"{"results":[{"index":0,"ok":true,"serviceId":"z","priceStroops":1,"created":true},"#,
        r#"{"index":1,"ok":false,"error":"invalid_item"},{"index":2,"ok":false,"error":"invalid_item"},"#,
        r#"{"index":3,"ok":true,"serviceId":"old","priceStroops":2,"created":false},"#,
        r#"{"index":4,"ok":false,"serviceId":"z","error":"duplicate_in_batch"},"#,
        r#"{"index":5,"ok":true,"serviceId":"a","priceStroops":4,"created":true},"#,
        r#"{"index":6,"ok":false,"serviceId":"more","error":"store_capacity_exceeded"},"#,
        r#"{"index":7,"ok":false,"serviceId":"more","error":"duplicate_in_batch"},"#,
        r#"{"index":8,"ok":false,"error":"invalid_item"},{"index":9,"ok":false,"error":"invalid_item"},"#,
        r#"{"index":10,"ok":false,"serviceId":"old","error":"duplicate_in_batch"}]}"#
    );
    assert_eq!((answer.status, answer.text.as_str()), (201, expected));
    let again = client.key("bulk").post("/api/v1/services/bulk", &body).await;
    assert!(again.same(&answer) && again.replayed);
    // New ones are listed in the order of the request, and metadata stays as it was.
    assert_eq!(ids(&client, "").await, ["old", "z", "a"]);
    let old = client.get("/api/v1/services/old").await.text;
    assert_eq!(old, r#"{"serviceId":"old","priceStroops":2,"disabled":false,"description":"d","owner":"o"}"#);
    assert_eq!(service.number("SELECT count(*) FROM events").await, 0);
    let too_many = json!({ "items": vec![Value::Null; 101] }).to_string();
    for body in ["{}", "[]", r#"{"items":[]}"#, r#"{"items":{}}"#, &too_many] {
        let answer = client.send("POST", "/api/v1/services/bulk", Some(body)).await;
        assert_eq!(answer.error(), invalid("items must be 1-100 entries"));
    }
    limit(&service, "bulk_max_items", 1000).await;
    let thousand: Vec<Value> = (0..1000).map(|n| json!({ "serviceId": format!("n{n}"), "priceStroops": n })).collect();
    let full = client.post("/api/v1/services/bulk", &json!({ "items": thousand })).await;
    assert_eq!(full.text.matches("store_capacity_exceeded").count(), 1000);
    limit(&service, "services_store_max_keys", 10_000).await;
    let made = client.post("/api/v1/services/bulk", &json!({ "items": thousand })).await;
    assert_eq!(made.text.matches("\"created\":true").count(), 1000);
    assert_eq!(client.post("/api/v1/services/bulk", &json!({ "items": thousand })).await.status, 201);
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cap_holds_when_two_processes_register_at_once() {
    let database = new_database().await;
    let services =
        [Service::start_on(database.clone(), &[]).await, Service::start_on(database, &[("COMMIT_LANES", "4")]).await];
    for service in &services {
        limit(service, "services_store_max_keys", 30).await;
    }
    let requests = (0..20).map(|number: usize| {
        let client = services[number % 2].client();
        tokio::spawn(async move {
            let item = |n: usize| json!({ "serviceId": format!("s{}", (number * 3 + n) % 40), "priceStroops": number });
            let items: Vec<Value> = (0..8).map(item).collect();
            let made = client.post("/api/v1/services/bulk", &json!({ "items": items })).await;
            let deleted = client.send("DELETE", &format!("/api/v1/services/s{number}"), None).await;
            let single = register(&client, &format!("single{number}"), 1).await;
            assert!(made.status == 201 && [204, 404].contains(&deleted.status), "{made:?} {deleted:?}");
            assert!([201, 429].contains(&single.status), "{single:?}");
        })
    });
    for request in requests.collect::<Vec<_>>() {
        request.await.expect("a request");
    }
    assert!(service_count(&services[0]).await <= 30);
    // What is free can still be taken, and no more.
    for number in 0..30 {
        register(&services[1].client(), &format!("last{number}"), 1).await;
    }
    assert_eq!(service_count(&services[0]).await, 30);
    services[0].verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_concurrent_bulk_registrations_share_the_capacity_that_is_left() {
    let database = new_database().await;
    let services = [Service::start_on(database.clone(), &[]).await, Service::start_on(database, &[]).await];
    for service in &services {
        limit(service, "services_store_max_keys", 30).await;
    }
    // Readers pass and writers wait, so that both have counted before either can insert, unless one waits for the other.
    let mut table = services[0].pool.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE services IN SHARE MODE").execute(&mut *table).await.expect("a lock");
    let requests = (0..2).map(|number: usize| {
        let client = services[number].client();
        let item = |n: usize| json!({ "serviceId": format!("s{number}-{n}"), "priceStroops": 1 });
        let items: Vec<Value> = (0..20).map(item).collect();
        tokio::spawn(async move { client.post("/api/v1/services/bulk", &json!({ "items": items })).await })
    });
    let requests: Vec<_> = requests.collect();
    services[0].blocked(2).await;
    table.rollback().await.expect("a rollback");
    let mut created = 0;
    for request in requests {
        let answer = request.await.expect("a request");
        assert_eq!(answer.status, 201, "{answer:?}");
        created += answer.text.matches(r#""created":true"#).count();
    }
    assert_eq!(created, 30);
    assert_eq!(service_count(&services[0]).await, 30);
    services[0].verify().await;
}

async fn service_count(service: &Service) -> i64 {
    service.number("SELECT count(*) FROM services").await
}
