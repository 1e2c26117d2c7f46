//! The outbox: a commit appends one row per event, and the dispatcher expands it to exactly one delivery per webhook.

use std::collections::BTreeSet;
use std::sync::Arc;

use agentpay_billing::jobs::webhooks::dispatcher::{Dispatcher, Report};
use agentpay_billing::store::StoreError;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;

use crate::support::{Client, Hold, Receiver, Service, usage, wait_until};

const WEBHOOKS: &str = "/api/v1/webhooks";
const USAGE: &str = "/api/v1/usage";
const PRIVATE: &[(&str, &str)] = &[("WEBHOOK_ALLOW_PRIVATE", "true")];

/// A service whose own dispatcher rests, and one that is run by hand.
async fn start() -> (Service, Dispatcher, OwnedMutexGuard<()>) {
    let service = Service::start(PRIVATE).await;
    let turn = service.dispatcher.turn.clone().lock_owned().await;
    let dispatcher = Dispatcher { turn: Arc::default(), ..service.dispatcher.clone() };
    (service, dispatcher, turn)
}

async fn make(client: &Client, receiver: &Receiver, events: &[&str]) -> String {
    let made = client.post(WEBHOOKS, &json!({ "url": receiver.url, "events": events })).await.json();
    made["id"].as_str().expect("an id").to_owned()
}

/// Copies the one webhook of the table, with ids in the order of their numbers, from 1 on.
pub async fn copy_webhook(service: &Service, copies: i64) {
    let copy = "INSERT INTO webhooks (tenant_id, webhook_id, url, events, secret, created_at, from_position)
        SELECT tenant_id, 'wh_' || lpad(to_hex(number), 16, '0'), url, events, secret, created_at, from_position
        FROM webhooks CROSS JOIN generate_series(1, $1) AS number";
    // A session reports what it has read when it ends, and some time later otherwise.
    let mut connection = PgConnection::connect_with(&service.pool.connect_options()).await.expect("a connection");
    sqlx::query(copy).bind(copies).execute(&mut connection).await.expect("webhooks");
    connection.close().await.expect("closed");
}

async fn deliveries(client: &Client, webhook: &str) -> Vec<Value> {
    let page = client.get(&format!("{WEBHOOKS}/{webhook}/deliveries")).await.json();
    page["items"].as_array().expect("items").clone()
}

fn bulk(items: usize) -> Value {
    json!({ "items": (0..items).map(|number| usage(&format!("agent-{number}"), "s", 1)).collect::<Vec<_>>() })
}

/// No webhook has two deliveries of one event, and each has `events`.
async fn check_deliveries(service: &Service, webhooks: i64, events: i64) {
    assert_eq!(service.number("SELECT count(*) FROM webhook_deliveries").await, webhooks * events);
    let distinct = "SELECT count(DISTINCT (webhook_id, event_position)) FROM webhook_deliveries";
    assert_eq!(service.number(distinct).await, webhooks * events);
    assert_eq!(service.number("SELECT count(DISTINCT delivery_id) FROM webhook_deliveries").await, webhooks * events);
}

/// Starts a run that is held up in the middle of expanding 20 events for 10 webhooks.
async fn held_in_expansion(
    service: &Service,
    dispatcher: &Dispatcher,
    receiver: &Receiver,
) -> (Hold, JoinHandle<Result<Report, StoreError>>) {
    let client = service.client();
    make(&client, receiver, &["*"]).await;
    copy_webhook(service, 9).await;
    client.post("/api/v1/usage/bulk", &bulk(20)).await;
    let hold = Hold::begin(&service.pool, "BEFORE DELETE ON outbox FOR EACH STATEMENT").await;
    let dispatcher = dispatcher.clone();
    let run = tokio::spawn(async move { dispatcher.run_once().await });
    hold.has_one().await;
    (hold, run)
}

#[tokio::test]
async fn a_commit_costs_the_same_with_one_webhook_and_with_three_hundred() {
    let mut costs = Vec::new();
    for copies in [0, 299] {
        let (service, _, _turn) = start().await;
        let (client, receiver) = (service.client(), Receiver::start().await);
        make(&client, &receiver, &["*"]).await;
        copy_webhook(&service, copies).await;
        let sum = async |what: &str, table: &str| {
            let sql =
                format!("SELECT coalesce(sum({what}), 0)::bigint FROM pg_stat_user_tables WHERE relname = '{table}'");
            sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(sql)).fetch_one(&service.pool).await.expect("a number")
        };
        // A session reports its statistics of all tables at once, some time after the transaction.
        client.post(USAGE, &usage("a", "s", 1)).await;
        wait_until(async || sum("n_tup_ins", "outbox").await == 1).await;
        let reads = async || sum("seq_tup_read + idx_tup_fetch", "webhooks").await;
        let before = reads().await;
        for _ in 0..3 {
            client.post("/api/v1/usage/bulk", &bulk(50)).await;
        }
        wait_until(async || sum("n_tup_ins", "outbox").await >= 151).await;
        costs.push((
            sum("n_tup_ins", "outbox").await,
            sum("n_tup_ins", "webhook_deliveries").await + sum("n_tup_ins", "webhook_queues").await,
            reads().await - before,
        ));
    }
    // Each commit that reads asks whether there is a webhook: one row of them.
    assert_eq!(costs, [(151, 0, 3), (151, 0, 3)]);
}

#[tokio::test]
async fn an_event_is_listed_before_it_is_expanded() {
    let (service, dispatcher, _turn) = start().await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let (all, settled) = (make(&client, &receiver, &["*"]).await, make(&client, &receiver, &["usage.settled"]).await);
    client.post(USAGE, &usage("a", "s", 1)).await;
    let late = make(&client, &receiver, &["*"]).await;
    let listed = deliveries(&client, &all).await;
    assert_eq!((listed.len(), &listed[0]["status"], &listed[0]["attempts"]), (1, &json!("pending"), &json!(0)));
    assert_eq!(listed[0]["nextAttemptAt"], listed[0]["createdAt"]);
    assert!(deliveries(&client, &settled).await.is_empty() && deliveries(&client, &late).await.is_empty());
    // It waits, and counts as waiting.
    let report = client.get("/api/v1/health/deep").await.json();
    assert_eq!(report["checks"][4]["detail"]["pending"], 1, "{report}");
    assert!(service.metrics().await.contains("agentpay_webhook_backlog 1\n"));
    dispatcher.run_once().await.expect("dispatcher");
    let delivered = deliveries(&client, &all).await;
    assert_eq!((delivered.len(), &delivered[0]["status"]), (1, &json!("delivered")));
    assert_eq!((&delivered[0]["id"], &delivered[0]["eventId"]), (&listed[0]["id"], &listed[0]["eventId"]));
    assert_eq!(receiver.received()[0].header("webhook-id"), listed[0]["id"].as_str().expect("an id"));
    check_deliveries(&service, 1, 1).await;
    assert_eq!(service.number("SELECT count(*) FROM outbox").await, 0);
}

#[tokio::test]
async fn pages_of_deliveries_go_through_what_is_expanded_and_what_is_not() {
    let (service, dispatcher, _turn) = start().await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let webhook = make(&client, &receiver, &["*"]).await;
    client.post("/api/v1/usage/bulk", &bulk(3)).await;
    dispatcher.run_once().await.expect("dispatcher");
    client.post("/api/v1/usage/bulk", &bulk(3)).await;
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("{WEBHOOKS}/{webhook}/deliveries?limit=2{cursor}")).await.json();
        listed.extend(page["items"].as_array().expect("items").clone());
        // What is expanded between two pages keeps its place.
        dispatcher.run_once().await.expect("dispatcher");
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let ids: Vec<&str> = listed.iter().map(|delivery| delivery["id"].as_str().expect("an id")).collect();
    let all: Vec<Value> = deliveries(&client, &webhook).await;
    assert_eq!(ids, all.iter().map(|delivery| delivery["id"].as_str().expect("an id")).collect::<Vec<_>>());
    assert_eq!(ids.len(), 6);
}

#[tokio::test]
async fn a_webhook_takes_events_from_its_making_and_its_enabling_on() {
    let (service, dispatcher, _turn) = start().await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let first = make(&client, &receiver, &["*"]).await;
    client.post(USAGE, &usage("a", "s", 1)).await;
    let second = make(&client, &receiver, &["*"]).await;
    client.post(USAGE, &usage("a", "s", 2)).await;
    // As the dispatcher does it, but before it has expanded what is recorded meanwhile.
    sqlx::query("UPDATE webhooks SET disabled_at = now() WHERE webhook_id = $1")
        .bind(&first)
        .execute(&service.pool)
        .await
        .expect("disabled");
    client.post(USAGE, &usage("a", "s", 3)).await;
    let path = format!("{WEBHOOKS}/{first}");
    assert_eq!(client.send("PATCH", &path, Some(r#"{"events":["*"]}"#)).await.status, 200);
    client.post(USAGE, &usage("a", "s", 4)).await;
    dispatcher.run_once().await.expect("dispatcher");
    let requests = |webhook: &str| {
        let (client, webhook) = (client.clone(), webhook.to_owned());
        let received = receiver.received();
        async move {
            let listed = deliveries(&client, &webhook).await;
            let of = |id: &Value| {
                let one = received.iter().find(|one| one.header("webhook-id") == id).expect("a request");
                one.json()["data"]["requests"].as_i64().expect("a number")
            };
            listed.iter().map(|delivery| of(&delivery["id"])).collect::<Vec<_>>()
        }
    };
    assert_eq!(requests(&second).await, [4, 3, 2]);
    assert_eq!(requests(&first).await, [4]);
}

#[tokio::test]
async fn what_was_pending_for_a_disabled_webhook_is_cancelled_though_it_was_enabled_again() {
    let (service, dispatcher, _turn) = start().await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let webhook = make(&client, &receiver, &["*"]).await;
    let pending = "INSERT INTO webhook_deliveries
            (tenant_id, webhook_id, event_position, delivery_id, created_at, type, payload, next_attempt_at)
        SELECT tenant_id, webhook_id, -number, 'dlv_' || md5(number::text), now(), 'usage.reset', '{}', now()
        FROM webhooks CROSS JOIN generate_series(1, 2500) AS number;
        INSERT INTO webhook_queues (tenant_id, webhook_id, due_at) SELECT tenant_id, webhook_id, now() FROM webhooks;
        UPDATE webhooks SET disabled_at = now()";
    sqlx::raw_sql(pending).execute(&service.pool).await.expect("deliveries");
    let path = format!("{WEBHOOKS}/{webhook}");
    assert_eq!(client.send("PATCH", &path, Some(r#"{"events":["*"]}"#)).await.status, 200);
    client.post(USAGE, &usage("a", "s", 1)).await;
    dispatcher.run_once().await.expect("dispatcher");
    let with = async |status: &'static str| {
        let count = "SELECT count(*) FROM webhook_deliveries WHERE status = $1";
        sqlx::query_scalar::<_, i64>(count).bind(status).fetch_one(&service.pool).await.expect("a number")
    };
    assert_eq!((with("cancelled").await, with("delivered").await, receiver.received().len()), (2500, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_one_dispatcher_expands_are_left_alone_by_another() {
    let (service, dispatcher, _turn) = start().await;
    let receiver = Receiver::start().await;
    let (hold, first) = held_in_expansion(&service, &dispatcher, &receiver).await;
    let second = Dispatcher { turn: Arc::default(), ..dispatcher };
    assert!(second.run_once().await.expect("dispatcher").outcomes.is_empty());
    hold.release().await;
    first.await.expect("a task").expect("dispatcher");
    second.run_once().await.expect("dispatcher");
    check_deliveries(&service, 10, 20).await;
    let ids: BTreeSet<String> = receiver.received().iter().map(|one| one.header("webhook-id").to_owned()).collect();
    assert_eq!((receiver.received().len(), ids.len()), (200, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expansion_that_was_cut_off_is_done_again_as_a_whole() {
    let (service, dispatcher, _turn) = start().await;
    let receiver = Receiver::start().await;
    let (hold, cut_off) = held_in_expansion(&service, &dispatcher, &receiver).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event = 'PgSleep'";
    // Between two of its naps it is not found.
    wait_until(async || {
        sqlx::query(kill).execute(&service.pool).await.expect("killed");
        cut_off.is_finished()
    })
    .await;
    assert!(cut_off.await.expect("a task").is_err());
    assert_eq!(service.number("SELECT count(*) FROM webhook_deliveries").await, 0);
    assert_eq!(service.number("SELECT count(*) FROM outbox").await, 20);
    hold.release().await;
    dispatcher.run_once().await.expect("dispatcher");
    check_deliveries(&service, 10, 20).await;
    assert_eq!(receiver.received().len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_for_many_webhooks_is_expanded_in_parts() {
    let (service, dispatcher, _turn) = start().await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let webhook = make(&client, &receiver, &["*"]).await;
    sqlx::query("UPDATE webhooks SET webhook_id = 'wh_ffffffffffffffff'").execute(&service.pool).await.expect("last");
    drop(webhook);
    copy_webhook(&service, 1499).await;
    client.post(USAGE, &usage("a", "s", 1)).await;
    let last = "wh_ffffffffffffffff";
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'not now'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON webhook_deliveries
        FOR EACH ROW WHEN (NEW.webhook_id = 'wh_ffffffffffffffff') EXECUTE FUNCTION refuse()";
    sqlx::raw_sql(refuse).execute(&service.pool).await.expect("a trigger");
    assert!(dispatcher.run_once().await.is_err());
    assert_eq!(service.number("SELECT count(*) FROM webhook_deliveries WHERE status = 'delivered'").await, 1000);
    let last_webhook_id: String =
        sqlx::query_scalar("SELECT last_webhook_id FROM outbox").fetch_one(&service.pool).await.expect("the event");
    assert_eq!(last_webhook_id, format!("wh_{:016x}", 1000));
    // Who has the delivery, and who waits for it, has it listed once.
    assert_eq!(deliveries(&client, &last_webhook_id).await.len(), 1);
    let waiting = deliveries(&client, last).await;
    assert_eq!((waiting.len(), &waiting[0]["status"]), (1, &json!("pending")));
    sqlx::raw_sql("DROP TRIGGER refuse ON webhook_deliveries").execute(&service.pool).await.expect("no trigger");
    dispatcher.run_once().await.expect("dispatcher");
    check_deliveries(&service, 1500, 1).await;
    assert_eq!(receiver.received().len(), 1500);
    assert_eq!(service.number("SELECT count(*) FROM outbox").await, 0);
    assert_eq!(deliveries(&client, last).await[0]["id"], waiting[0]["id"]);
}

#[tokio::test]
async fn a_reset_empties_the_outbox() {
    let service = Service::start(&[("ALLOW_ADMIN_RESET", "true"), PRIVATE[0]]).await;
    let _turn = service.dispatcher.turn.lock().await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    make(&client, &receiver, &["*"]).await;
    client.post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!(service.number("SELECT count(*) FROM outbox").await, 1);
    assert_eq!(client.post("/api/v1/admin/reset", &json!({})).await.status, 200);
    assert_eq!(service.number("SELECT count(*) FROM outbox").await, 0);
}
