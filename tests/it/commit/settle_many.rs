//! Settling an agent with more pairs than one call takes.

use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::support::{Answer, Client, Service, usage};

const SETTLE: &str = "/api/v1/settle/bulk";

/// Pairs of one agent with services named by `name`, an SQL expression over `number`, each with `outstanding` requests.
async fn fill(service: &Service, agent: &str, pairs: i64, name: &str, outstanding: i64) {
    let above_zero = if outstanding > 0 { pairs } else { 0 };
    // What is not outstanding was cleared.
    let reset = i64::from(outstanding <= 0);
    let recorded = pairs * (outstanding + reset);
    let sql = format!(
        "INSERT INTO agents (tenant_id, agent_id) VALUES ('public', '{agent}');
         INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, reset, version)
         SELECT 'public', '{agent}', {name}, {outstanding}, {reset}, 1 FROM generate_series(1, {pairs}) AS number
         ORDER BY number;
         INSERT INTO totals AS total (tenant_id, service_id, shard, pairs, pairs_above_zero, outstanding, recorded, agents)
         VALUES ('public', '', 0, {pairs}, {above_zero}, {pairs} * {outstanding}, {recorded}, 1)
         ON CONFLICT (tenant_id, service_id, shard) DO UPDATE
         SET pairs = total.pairs + excluded.pairs, pairs_above_zero = total.pairs_above_zero + excluded.pairs_above_zero,
             outstanding = total.outstanding + excluded.outstanding, recorded = total.recorded + excluded.recorded,
             agents = total.agents + excluded.agents;
         INSERT INTO totals (tenant_id, service_id, shard, pairs, pairs_above_zero, outstanding, recorded)
         SELECT 'public', {name}, 0, 1, {above_zero} / {pairs}, {outstanding}, {outstanding} + {reset}
         FROM generate_series(1, {pairs}) AS number"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&service.pool).await.expect("pairs");
}

async fn settle(client: &Client, agent: &str) -> Answer {
    let answer = client.post(SETTLE, &json!({ "agent": agent })).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer
}

fn items(answer: &Answer) -> Vec<Value> {
    answer.json()["items"].as_array().expect("items").clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_call_settles_five_thousand_pairs_and_says_that_more_are_due() {
    let service = Service::start(&[]).await;
    let client = service.client();
    fill(&service, "large", 11_000, "'s' || number", 3).await;
    let mut settled = Vec::new();
    for (expected, ending) in [(5000, r#","hasMore":true}"#), (5000, r#","hasMore":true}"#), (1000, "}")] {
        let answer = settle(&client.key(&format!("k{}", settled.len())), "large").await;
        assert!(answer.text.ends_with(&format!(r#""totalBilledStroops":0{ending}"#)), "{}", &answer.text[..200]);
        assert!(answer.text.len() < 1 << 20);
        let again = settle(&client.key(&format!("k{}", settled.len())), "large").await;
        assert!(again.replayed && again.same(&answer));
        let of_call = items(&answer);
        assert!(of_call.len() == expected && of_call.iter().all(|item| item["requests"] == 3), "{}", of_call.len());
        settled.extend(of_call.iter().map(|item| item["serviceId"].as_str().expect("an id").to_owned()));
    }
    // In the order of their first records.
    assert_eq!(settled, (1..=11_000).map(|number| format!("s{number}")).collect::<Vec<_>>());
    assert_eq!(service.number("SELECT count(*) FROM settlements").await, 11_000);
    // What is at zero is not listed where there are so many.
    assert_eq!(settle(&client, "large").await.text, r#"{"agent":"large","items":[],"totalBilledStroops":0}"#);
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_at_zero_are_listed_where_one_answer_holds_all_pairs() {
    let service = Service::start(&[]).await;
    let client = service.client();
    fill(&service, "a", 5000, "'s' || number", 0).await;
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s7", 2)).await.status, 201);
    let answer = settle(&client, "a").await;
    let listed = items(&answer);
    assert_eq!((listed.len(), answer.json().get("hasMore")), (5000, None));
    assert!((1..).zip(&listed).all(|(number, item)| item["requests"] == if number == 7 { 2 } else { 0 }));
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_long_names_stays_below_one_mebibyte_and_no_pair_is_forgotten() {
    let service = Service::start(&[]).await;
    let client = service.client();
    fill(&service, "a", 5000, "repeat('x', 120) || number", 1).await;
    let first = settle(&client.key("k"), "a").await;
    assert!(first.text.len() < 1 << 20 && first.text.ends_with(r#","hasMore":true}"#), "{}", first.text.len());
    let second = settle(&client, "a").await;
    assert_eq!(items(&first).len() + items(&second).len(), 5000);
    assert_eq!(service.number("SELECT count(*) FROM settlements").await, 5000);
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_without_a_price_hide_none_that_have_one() {
    let service = Service::start(&[("REQUIRE_REGISTERED_SERVICES", "true")]).await;
    let client = service.client();
    fill(&service, "a", 6000, "'unpriced' || number", 1).await;
    let offer = json!({ "serviceId": "priced", "priceStroops": 5 });
    assert_eq!(client.post("/api/v1/services", &offer).await.status, 201);
    assert_eq!(client.post("/api/v1/usage", &usage("a", "priced", 2)).await.status, 201);
    let expected = r#"{"agent":"a","items":[{"serviceId":"priced","requests":2,"priceStroops":5,"billedStroops":10}],"totalBilledStroops":10}"#;
    assert_eq!(settle(&client, "a").await.text, expected);
    service.verify().await;
}
