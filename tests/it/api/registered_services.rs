//! Usage of services that are not registered: refused where REQUIRE_REGISTERED_SERVICES says so, otherwise settled at
//! no price, which is counted and warned of.

use serde_json::json;

use crate::support::{Client, Logged, Service, free_port, new_database, url, usage, wait_until};

const USAGE: &str = "/api/v1/usage";
const REQUIRED: &[(&str, &str)] = &[("REQUIRE_REGISTERED_SERVICES", "true")];

async fn register(client: &Client, service_id: &str, price: i64) {
    let body = json!({ "serviceId": service_id, "priceStroops": price });
    assert_eq!(client.post("/api/v1/services", &body).await.status, 201);
}

fn unregistered(service_id: &str) -> (u16, String, String) {
    (404, "not_found".to_owned(), format!("service {service_id} is not registered"))
}

#[tokio::test]
async fn usage_of_an_unregistered_service_is_refused_each_item_for_itself() {
    let service = Service::start(REQUIRED).await;
    let client = service.client();
    register(&client, "weather", 250).await;
    register(&client, "free", 0).await;
    register(&client, "off", 5).await;
    client.send("POST", "/api/v1/services/off/disable", None).await;
    assert_eq!(client.post(USAGE, &usage("a", "wether", 3)).await.error(), unregistered("wether"));
    let items = ["weather", "wether", "free", "off"].map(|service_id| usage("a", service_id, 3));
    assert_eq!(
        client.post("/api/v1/usage/bulk", &json!({ "items": items })).await.text,
        concat!(
            r#"{"results":[{"index":0,"ok":true,"total":3},{"index":1,"ok":false,"error":"not_found"},"#,
            r#"{"index":2,"ok":true,"total":3},{"index":3,"ok":false,"error":"service_disabled"}]}"#
        )
    );
    // As every 404, it is the answer to its key.
    let first = client.key("k").post(USAGE, &usage("a", "maps", 1)).await;
    register(&client, "maps", 1).await;
    let again = client.key("k").post(USAGE, &usage("a", "maps", 1)).await;
    assert!(again.same(&first) && again.replayed && again.status == 404, "{again:?}");
    assert_eq!(client.post(USAGE, &usage("a", "maps", 1)).await.status, 201);
    // A deleted service takes no more, even if a lane has its price in its cache.
    assert_eq!(client.send("DELETE", "/api/v1/services/maps", None).await.status, 204);
    assert_eq!(client.post(USAGE, &usage("a", "maps", 1)).await.error(), unregistered("maps"));
    service.verify().await;
}

#[tokio::test]
async fn settlements_leave_alone_what_has_no_price() {
    let service = Service::start(REQUIRED).await;
    let client = service.client();
    for service_id in ["weather", "gone"] {
        register(&client, service_id, 250).await;
        client.post(USAGE, &usage("a", service_id, 3)).await;
    }
    client.send("DELETE", "/api/v1/services/gone", None).await;
    let pair = json!({ "agent": "a", "serviceId": "gone" });
    assert_eq!(client.post("/api/v1/settle", &pair).await.error(), unregistered("gone"));
    assert_eq!(
        client.post("/api/v1/settle/bulk", &json!({ "agent": "a" })).await.text,
        concat!(
            r#"{"agent":"a","items":[{"serviceId":"weather","requests":3,"priceStroops":250,"billedStroops":750},"#,
            r#"{"serviceId":"gone","requests":0,"priceStroops":0,"billedStroops":0}],"totalBilledStroops":750}"#
        )
    );
    assert_eq!(client.get("/api/v1/usage/a/gone").await.json()["total"], 3);
    assert_eq!(service.number("SELECT count(*) FROM settlements").await, 1);
    // Registered again it is due at the price of now.
    register(&client, "gone", 2).await;
    assert_eq!(client.post("/api/v1/settle", &pair).await.json()["billedStroops"], 6);
    service.verify().await;
}

#[tokio::test]
async fn what_a_misspelt_service_has_can_be_found_and_cleared() {
    let service = Service::start(&[]).await;
    let client = service.client();
    register(&client, "weather", 1).await;
    for service_id in ["weather", "wether"] {
        client.post(USAGE, &usage("a", service_id, 3)).await;
    }
    let document = include_str!("../../../docs/operations.md");
    let (_, query) = document.split_once("Before you switch it on, register what is missing:").expect("its paragraph");
    let (query, _) = query.split_once(';').expect("a statement");
    let missing: Vec<(String, String)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT tenant_id::text, service_id::text FROM ({query}) AS missing"
    )))
    .fetch_all(&service.pool)
    .await
    .expect(query);
    assert_eq!(missing, [("public".to_owned(), "wether".to_owned())]);
    let cleared = client.send("DELETE", "/api/v1/usage/a/wether", None).await;
    assert_eq!((cleared.status, cleared.json()["clearedTotal"].as_i64()), (200, Some(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn settlements_at_no_price_are_counted_and_warned_of_once_for_each_service() {
    let database = url(&new_database().await);
    let port = free_port();
    let text = port.to_string();
    let mut process =
        Logged::start(&[("DATABASE_URL", &database), ("PORT", &text), ("LOG_LEVEL", "warn"), ("RATE_LIMIT", "off")]);
    let client = Client::new(([127, 0, 0, 1], port).into());
    let ready =
        async || client.try_send("GET", "/api/v1/health/ready", None).await.is_ok_and(|answer| answer.status == 200);
    wait_until(ready).await;
    register(&client, "free", 0).await;
    for _ in 0..2 {
        for service_id in ["wether", "mpas", "free"] {
            client.post(USAGE, &usage("a", service_id, 3)).await;
        }
        client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "wether" })).await;
        client.post("/api/v1/settle/bulk", &json!({ "agent": "a" })).await;
    }
    // Nothing was due, so nothing was given away.
    client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "never" })).await;
    let metrics = client.get("/api/v1/metrics").await.text;
    assert!(metrics.contains("agentpay_unpriced_settlements_total 4\n"), "{metrics}");
    process.terminate();
    process.exit().await;
    let log = process.text();
    for service_id in ["wether", "mpas"] {
        let warned = log.lines().filter(|line| line.contains("settled without a price") && line.contains(service_id));
        assert_eq!(warned.count(), 1, "{log}");
    }
    assert_eq!(log.matches("settled without a price").count(), 2, "{log}");
}
