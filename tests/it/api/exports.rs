//! HTTP contract, section 10.6: what exports contain, and how they take turns.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Service, usage, wait_until};

const JSON: &str = "/api/v1/usage/export.json";
const CSV: &str = "/api/v1/usage/export.csv";

/// Pairs whose export is longer than what fits into the buffers of the sockets.
const MANY: i64 = 40_000;

/// Makes [`MANY`] pairs of the tenant `public` with long names, by hand.
async fn fill(service: &Service) {
    let sql = "WITH agents AS (
                   INSERT INTO agents (tenant_id, agent_id)
                   SELECT 'public', 'agent-' || number || repeat('x', 240) FROM generate_series(1, $1) AS number
               )
               INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, version)
               SELECT 'public', 'agent-' || number || repeat('x', 240), repeat('s', 128), number, 1
               FROM generate_series(1, $1) AS number ORDER BY number";
    sqlx::query(sql).bind(MANY).execute(&service.pool).await.expect("pairs");
}

#[tokio::test]
async fn all_pairs_are_exported_in_the_order_of_their_first_record() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let empty = client.get(CSV).await;
    assert_eq!((empty.status, empty.text.as_str()), (200, "agent,serviceId,total\n"));
    assert_eq!(client.get(JSON).await.json()["items"], json!([]));
    for (agent, service_id, requests) in [("z", "s", 1), ("-a", "-b", 2), ("z", "a.b_c", 3)] {
        client.post("/api/v1/usage", &usage(agent, service_id, requests)).await;
    }
    client.post("/api/v1/settle", &json!({ "agent": "z", "serviceId": "s" })).await;
    let csv = client.get(CSV).await;
    assert_eq!(csv.text, "agent,serviceId,total\nz,s,0\n'-a,'-b,2\nz,a.b_c,3\n");
    assert_eq!(csv.headers["content-type"], "text/csv; charset=utf-8");
    assert_eq!(csv.headers["content-disposition"], "attachment; filename=usage.csv");
    assert_eq!(csv.headers["cache-control"], "private, no-cache");
    let exported = client.get(JSON).await;
    let exported_at = exported.json()["exportedAt"].as_i64().expect("a moment");
    assert!((exported_at - service.clock.now().as_ms()).abs() < 60_000);
    let items = concat!(
        r#"[{"agent":"z","serviceId":"s","total":0},{"agent":"-a","serviceId":"-b","total":2},"#,
        r#"{"agent":"z","serviceId":"a.b_c","total":3}]"#
    );
    assert_eq!(exported.text, format!(r#"{{"exportedAt":{exported_at},"items":{items}}}"#));
    assert_eq!(exported.headers["content-type"], "application/json; charset=utf-8");
    assert_eq!(exported.headers["content-disposition"], "attachment; filename=usage.json");
    let head = client.send("HEAD", CSV, None).await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    assert_eq!(head.headers["content-disposition"], "attachment; filename=usage.csv");
    let tenant = service.tenant().await;
    assert_eq!(tenant.get(CSV).await.text, "agent,serviceId,total\n");
}

#[tokio::test]
async fn an_export_of_many_parts_is_whole_also_at_exact_boundaries() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for (added, pairs) in [(999, 999), (1, 1000), (1, 1001), (1999, 3000)] {
        add_pairs(&service, added).await;
        let lines: Vec<String> = client.get(CSV).await.text.lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), pairs + 1);
        let items = client.get(JSON).await.json()["items"].as_array().expect("items").clone();
        assert_eq!(items.len(), pairs);
        for (line, item) in lines[1..].iter().zip(&items) {
            let shown = format!("{},{},{}", item["agent"].as_str().expect("an agent"), "service", item["total"]);
            assert_eq!(*line, shown);
        }
    }
}

/// Adds pairs with names that are new.
async fn add_pairs(service: &Service, pairs: i64) {
    let sql = "WITH added AS (
                   SELECT 'agent-' || held || '-' || number AS agent_id, number
                   FROM (SELECT count(*) AS held FROM usage_counters) AS held, generate_series(1, $1) AS number
               ), agents AS (
                   INSERT INTO agents (tenant_id, agent_id) SELECT 'public', agent_id FROM added ORDER BY number
               )
               INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, version)
               SELECT 'public', agent_id, 'service', number, 1 FROM added ORDER BY number";
    sqlx::query(sql).bind(pairs).execute(&service.pool).await.expect("pairs");
}

/// The head and the first bytes of an export, and the connection it goes on coming through.
async fn begin(service: &Service, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(service.address).await.expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut start = [0; 15];
    stream.read_exact(&mut start).await.expect("an answer");
    assert_eq!(&start, b"HTTP/1.1 200 OK");
    stream
}

#[tokio::test]
async fn an_export_shows_one_moment_whatever_is_recorded_meanwhile() {
    let service = Service::start(&[]).await;
    fill(&service).await;
    let mut stream = begin(&service, CSV).await;
    sqlx::query("UPDATE usage_counters SET outstanding = outstanding + 1000000")
        .execute(&service.pool)
        .await
        .expect("an update");
    service.client().post("/api/v1/usage", &usage("late", "s", 1)).await;
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n0\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut text).await.expect("more"), 0);
    }
    let text = String::from_utf8_lossy(&text);
    assert!(!text.contains("late"));
    let totals = text.lines().filter(|line| line.starts_with("agent-")).filter_map(|line| line.rsplit(',').next());
    let totals: Vec<i64> = totals.filter_map(|total| total.parse().ok()).collect();
    // A few lines are cut by the chunks they came in.
    assert!(totals.len() as i64 > MANY - 1000 && totals.iter().all(|total| *total <= MANY), "{}", totals.len());
}

#[tokio::test]
async fn exports_take_turns_so_that_reads_keep_their_connections() {
    let service = Service::start(&[("DATABASE_POOL_MAX", "4"), ("REQUEST_TIMEOUT_MS", "4000")]).await;
    fill(&service).await;
    let first = begin(&service, CSV).await;
    // The only turn is taken: the next one waits until its deadline, and other reads do not notice.
    let refused = service.client().get(CSV).await.error();
    let message = "the store is unavailable; nothing was changed".to_owned();
    assert_eq!(refused, (503, "service_unavailable".to_owned(), message));
    assert_eq!(service.client().get("/api/v1/agents/a/total").await.status, 200);
    // A client that hangs up gives its turn back at once.
    drop(first);
    // HEAD, because it does not wait for the whole file.
    wait_until(async || service.client().send("HEAD", CSV, None).await.status == 200).await;
}
