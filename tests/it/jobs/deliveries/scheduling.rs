//! HTTP contract, section 13.2: deliveries of many webhooks at once: dispatchers share what is due, and a slow receiver
//! delays no other.

use std::collections::BTreeSet;
use std::sync::Arc;

use agentpay_billing::jobs::webhooks::dispatcher::Dispatcher;
use agentpay_billing::jobs::webhooks::outcome::Outcome;
use agentpay_billing::store::pool::Pool;
use serde_json::{Value, json};

use super::{DAY_MS, Hook, PRIVATE, USAGE};
use crate::jobs::outbox::copy_webhook;
use crate::support::{
    Behaviour, LIMIT, Received, Receiver, Service, needs_one_cell, new_database, pause, usage, wait_until,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_receiver_does_not_keep_the_others_waiting() {
    let service = Service::start(PRIVATE).await;
    let (client, slow, quick) = (service.client(), Receiver::start().await, Receiver::start().await);
    slow.usually(Behaviour::Silence);
    Hook::make(&client, &slow, &["*"]).await;
    Hook::make(&client, &quick, &["*"]).await;
    let _turn = service.dispatcher.turn.lock().await;
    // No attempt is given up while this test runs.
    let dispatcher = Dispatcher { turn: Arc::default(), attempt_limit: 10 * LIMIT, ..service.dispatcher.clone() };
    let items: Vec<Value> = (0..100).map(|number| usage(&format!("agent-{number}"), "s", 1)).collect();
    client.post("/api/v1/usage/bulk", &json!({ "items": items })).await;
    let run = tokio::spawn(async move { dispatcher.run_once().await });
    quick.reach(100).await;
    assert!(slow.received().len() < 10, "{}", slow.received().len());
    run.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_dispatchers_share_the_work_and_send_nothing_twice() {
    let database = new_database().await;
    let services = [Service::start_on(database.clone(), PRIVATE).await, Service::start_on(database, PRIVATE).await];
    let turns = (
        services[0].dispatcher.turn.clone().lock_owned().await,
        services[1].dispatcher.turn.clone().lock_owned().await,
    );
    let (client, receivers) = (services[0].client(), [Receiver::start().await, Receiver::start().await]);
    for receiver in &receivers {
        Hook::make(&client, receiver, &["*"]).await;
        Hook::make(&client, receiver, &["usage.recorded"]).await;
    }
    for _ in 0..2 {
        let items: Vec<Value> = (0..100).map(|number| usage(&format!("agent-{number}"), "s", 1)).collect();
        client.post("/api/v1/usage/bulk", &json!({ "items": items })).await;
    }
    let run = |service: &Service| {
        let dispatcher = Dispatcher { turn: Arc::default(), ..service.dispatcher.clone() };
        let receivers = receivers.clone();
        tokio::spawn(async move {
            let mut delivered = 0;
            // While the other one expands the events, there is nothing to do.
            while receivers.iter().map(|receiver| receiver.received().len()).sum::<usize>() < 800 {
                let report = dispatcher.run_once().await.expect("dispatcher");
                assert!(report.outcomes.keys().all(|outcome| *outcome == Outcome::Delivered), "{report:?}");
                delivered += report.outcomes.get(&Outcome::Delivered).copied().unwrap_or_default();
                pause().await;
            }
            delivered
        })
    };
    let both = async { tokio::join!(run(&services[0]), run(&services[1])) };
    let (left, right) = tokio::time::timeout(LIMIT, both).await.expect("the end of both within the limit");
    let delivered = [left.expect("a task"), right.expect("a task")];
    assert!(delivered[0] + delivered[1] == 800 && delivered[0] > 0 && delivered[1] > 0, "{delivered:?}");
    let received: Vec<Received> = receivers.iter().flat_map(Receiver::received).collect();
    let ids: BTreeSet<&str> = received.iter().map(|one| one.header("webhook-id")).collect();
    assert_eq!((received.len(), ids.len()), (800, 800));
    drop(turns);
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_that_never_answer_do_not_keep_another_tenants_delivery_waiting() {
    if needs_one_cell("a dispatcher serves the tenants of one cell") {
        return;
    }
    let service = Service::start(PRIVATE).await;
    let (silent, quick) = (Receiver::start().await, Receiver::start().await);
    silent.usually(Behaviour::Silence);
    let (first, second) = (service.tenant().await, service.tenant().await);
    Hook::make(&first, &silent, &["*"]).await;
    copy_webhook(&service, 511).await;
    Hook::make(&second, &quick, &["*"]).await;
    let _turn = service.dispatcher.turn.lock().await;
    // No attempt is given up while this test runs.
    let dispatcher = Dispatcher { turn: Arc::default(), attempt_limit: 10 * LIMIT, ..service.dispatcher.clone() };
    first.post(USAGE, &usage("a", "s", 1)).await;
    let run = tokio::spawn(async move { dispatcher.run_once().await });
    let tried = silent.reach(32).await;
    let began = std::time::Instant::now();
    second.post(USAGE, &usage("a", "s", 1)).await;
    quick.reach(1).await;
    println!("the other tenant's delivery arrived after {:?}, with {} unanswered", began.elapsed(), tried.len());
    run.abort();
}

#[tokio::test]
async fn webhooks_that_are_not_due_are_not_read() {
    let service = Service::start(PRIVATE).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    Hook::make(&client, &receiver, &["*"]).await;
    let _turn = service.dispatcher.turn.lock().await;
    copy_webhook(&service, 3000).await;
    let retries = "INSERT INTO webhook_deliveries
            (tenant_id, webhook_id, event_position, delivery_id, created_at, type, payload, attempts, next_attempt_at)
        SELECT tenant_id, webhook_id, 0, 'dlv_' || md5(webhook_id), now(), 'usage.reset', '{}', 1, now() + interval '1 day'
        FROM webhooks;
        INSERT INTO webhook_queues (tenant_id, webhook_id, due_at)
        SELECT tenant_id, webhook_id, next_attempt_at FROM webhook_deliveries";
    sqlx::raw_sql(retries).execute(&service.pool).await.expect("retries");
    // A session reports its reads at its end at the latest.
    let probes = async || {
        service
            .number(
                "SELECT sum(seq_scan + idx_scan)::bigint FROM pg_stat_user_tables
                 WHERE relname IN ('webhooks', 'webhook_queues', 'webhook_deliveries', 'outbox')",
            )
            .await
    };
    let before = probes().await;
    let options = (*service.pool.connect_options()).clone().application_name("counted");
    let pool = Pool::new(options, 1, LIMIT);
    let dispatcher = Dispatcher { turn: Arc::default(), pool: pool.clone(), ..service.dispatcher.clone() };
    assert!(dispatcher.run_once().await.expect("dispatcher").outcomes.is_empty());
    pool.close(LIMIT).await;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'counted'";
    wait_until(async || service.number(sessions).await == 0).await;
    let made = probes().await - before;
    assert!((1..20).contains(&made), "{made} probes");
}

#[tokio::test]
async fn finished_deliveries_are_pruned_while_a_receiver_is_slow() {
    let service = Service::start(PRIVATE).await;
    let (client, quick, slow) = (service.client(), Receiver::start().await, Receiver::start().await);
    Hook::make(&client, &quick, &["usage.recorded"]).await;
    Hook::make(&client, &slow, &["usage.reset"]).await;
    client.post(USAGE, &usage("a", "s", 1)).await;
    quick.reach(1).await;
    service.dispatcher.run_once().await.expect("dispatcher");
    slow.usually(Behaviour::Silence);
    let _turn = service.dispatcher.turn.lock().await;
    let dispatcher = Dispatcher { turn: Arc::default(), attempt_limit: 10 * LIMIT, ..service.dispatcher.clone() };
    client.send("DELETE", "/api/v1/usage/a/s", None).await;
    let run = tokio::spawn(async move { dispatcher.run_once().await });
    slow.reach(1).await;
    service.clock.advance_ms(8 * DAY_MS);
    wait_until(async || {
        service.number("SELECT count(*) FROM webhook_deliveries WHERE status = 'delivered'").await == 0
    })
    .await;
    assert_eq!(service.number("SELECT count(*) FROM webhook_deliveries").await, 1);
    run.abort();
}
