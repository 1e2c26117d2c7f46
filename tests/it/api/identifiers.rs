//! HTTP contract, section 1.3: `.` and `..` are no ids, but what is stored under them can be read, settled and removed.

use serde_json::json;

use crate::support::{Head, Service, Socket, usage};

const USAGE: &str = "/api/v1/usage";

/// A client that leaves the path as it is; others take `.` and `..` for steps between directories.
async fn status(service: &Service, method: &str, path: &str) -> (Head, String) {
    let mut socket = Socket::connect(service.address).await;
    socket.send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
    socket.answer().await
}

#[tokio::test]
async fn a_dot_and_two_dots_name_nothing_new() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for dots in [".", ".."] {
        for (path, body) in [
            (USAGE, usage(dots, "s", 1)),
            (USAGE, usage("a", dots, 1)),
            ("/api/v1/settle", usage(dots, "s", 1)),
            ("/api/v1/settle", usage("a", dots, 1)),
            ("/api/v1/settle/bulk", json!({ "agent": dots })),
            ("/api/v1/services", json!({ "serviceId": dots, "priceStroops": 1 })),
        ] {
            let answer = client.post(path, &body).await;
            assert_eq!((answer.status, answer.error().1.as_str()), (400, "invalid_request"), "{path} {body}");
        }
        let items = json!({ "items": [usage(dots, "s", 1), usage("a", dots, 1), usage("...", "s", 1)] });
        let results = client.post("/api/v1/usage/bulk", &items).await.json()["results"].clone();
        let errors = results.as_array().expect("results").iter().map(|item| item["error"].as_str());
        assert_eq!(errors.collect::<Vec<_>>(), [Some("invalid_item"), Some("invalid_item"), None]);
        let items = json!({ "items": [{ "serviceId": dots, "priceStroops": 1 }] });
        let results = client.post("/api/v1/services/bulk", &items).await.json()["results"].clone();
        assert_eq!(results[0]["error"], "invalid_item");
    }
    assert_eq!(service.number("SELECT count(*) FROM usage_counters").await, 1);
    assert_eq!(service.number("SELECT count(*) FROM services").await, 0);
}

#[tokio::test]
async fn what_is_stored_under_dots_can_be_read_settled_and_removed() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for (agent, service_id) in [("stand-in", "stand-in"), ("stand-in", "other"), ("a", "stand-in")] {
        client.post(USAGE, &usage(agent, service_id, 2)).await;
    }
    client.post("/api/v1/services", &json!({ "serviceId": "stand-in", "priceStroops": 3 })).await;
    // As an earlier version would have stored them.
    for rename in [
        "ALTER TABLE usage_counters DROP CONSTRAINT usage_counters_agent_id_fkey",
        "UPDATE usage_counters SET agent_id = '..' WHERE agent_id = 'stand-in'",
        "UPDATE usage_counters SET service_id = '.' WHERE service_id = 'stand-in'",
        "UPDATE agents SET agent_id = '..' WHERE agent_id = 'stand-in'",
        "UPDATE services SET service_id = '.' WHERE service_id = 'stand-in'",
        "UPDATE totals SET service_id = '.' WHERE service_id = 'stand-in'",
    ] {
        sqlx::query(rename).execute(&service.pool).await.expect(rename);
    }
    for (path, shown) in [
        ("/api/v1/usage/../.", r#"{"agent":"..","serviceId":".","total":2}"#),
        ("/api/v1/services/%2e", r#"{"serviceId":".","priceStroops":3,"disabled":false}"#),
        ("/api/v1/agents/%2E%2E/total", r#"{"agent":"..","total":4}"#),
    ] {
        let (head, body) = status(&service, "GET", path).await;
        assert_eq!((head.status, body.as_str()), (200, shown), "{path}");
    }
    let settled = client.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "." })).await;
    assert_eq!((settled.status, settled.json()["billedStroops"].as_i64()), (200, Some(6)), "{settled:?}");
    let settled = client.post("/api/v1/settle/bulk", &json!({ "agent": ".." })).await.json();
    assert_eq!((settled["items"].as_array().map(Vec::len), settled["totalBilledStroops"].as_i64()), (Some(2), Some(6)));
    let (ledger, items) = status(&service, "GET", "/api/v1/settlements?serviceId=.").await;
    assert_eq!((ledger.status, items.matches(r#""serviceId":".""#).count()), (200, 2), "{items}");
    assert_eq!(status(&service, "DELETE", "/api/v1/usage/../.").await.0.status, 200);
    assert_eq!(status(&service, "DELETE", "/api/v1/services/.").await.0.status, 204);
    service.verify().await;
}
