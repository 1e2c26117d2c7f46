//! What an asynchronous failover or a crash leaves in doubt: what a replica has cached of commits that were lost, and
//! two requests with one key that both lost their answer.

use serde_json::{Value, json};

use crate::support::{
    Answer, Client, LossyFailover, Moment, Proxy, Service, needs_one_cell, new_database, pool, usage,
};

const USAGE: &str = "/api/v1/usage";

async fn record(client: &Client, requests: i64) -> Value {
    let answer = client.post(USAGE, &usage("a", "s", requests)).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()["total"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_that_is_written_as_often_again_after_its_writes_were_lost_is_not_taken_for_the_old_one() {
    if needs_one_cell("the only database loses its latest commits") {
        return;
    }
    let mut failover = LossyFailover::start().await;
    let lane = [("COMMIT_LANES", "1")];
    let replicas =
        [Service::start_on(failover.options(), &lane).await, Service::start_on(failover.options(), &lane).await];
    let [first, second] = [replicas[0].client(), replicas[1].client()];
    // Afterwards the first replica uses its cache.
    for total in 1..=80 {
        assert_eq!(record(&first, 1).await, total);
    }
    failover.fall_behind().await;
    for lost in 81..=85 {
        assert_eq!(record(&first, 1).await, lost);
    }
    failover.fail_over().await;
    for written in 1..=5 {
        assert_eq!(record(&second, 100).await, 80 + 100 * written);
    }
    // The counter in the cache of the first one has been written as often as the one that is there now.
    assert_eq!(record(&first, 1).await, 581);
    assert_eq!(record(&second, 1).await, 582);
    let settled = first.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await.json();
    assert_eq!(settled["requests"], 582);
    replicas[0].verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terms_and_keys_that_were_lost_are_not_in_the_cache() {
    if needs_one_cell("the only database loses its latest commits") {
        return;
    }
    let mut failover = LossyFailover::start().await;
    let lane = [("COMMIT_LANES", "1")];
    let replicas =
        [Service::start_on(failover.options(), &lane).await, Service::start_on(failover.options(), &lane).await];
    let [first, second] = [replicas[0].client(), replicas[1].client()];
    let price = async |client: &Client, price: i64| {
        let body = json!({ "priceStroops": price }).to_string();
        assert_eq!(client.send("PATCH", "/api/v1/services/s/price", Some(&body)).await.status, 200);
    };
    first.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 5 })).await;
    for total in 1..=80 {
        assert_eq!(record(&first, 1).await, total);
    }
    failover.fall_behind().await;
    price(&first, 7).await;
    let lost = first.key("lost").post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!(lost.json()["total"], 81);
    failover.fail_over().await;
    // The terms change as often as they had changed.
    price(&second, 9).await;
    let again = first.key("lost").post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!((&again.text, again.replayed), (&lost.text, false));
    let settled = first.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await.json();
    assert_eq!((&settled["requests"], &settled["billedStroops"]), (&json!(81), &json!(81 * 9)));
    replicas[0].verify().await;
}

/// Two replicas on one database, each behind a proxy of its own.
async fn proxied_replicas() -> ([Service; 2], [Proxy; 2]) {
    let database = new_database().await;
    let proxies = [Proxy::start(&database).await, Proxy::start(&database).await];
    let lane = [("COMMIT_LANES", "1")];
    let mut replicas =
        [Service::start_on(proxies[0].options(), &lane).await, Service::start_on(proxies[1].options(), &lane).await];
    for replica in &mut replicas {
        replica.pool = pool(&database);
        assert_eq!(replica.client().post(USAGE, &usage("warm", "s", 1)).await.status, 201);
    }
    (replicas, proxies)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_requests_in_doubt_with_one_key_in_two_replicas_one_is_answered_as_the_first() {
    let (replicas, proxies) = proxied_replicas().await;
    // One commit lands without an answer, the other does not land. Often both begin in the same millisecond.
    for round in 0..60 {
        let ways = [Moment::AfterCommit, Moment::BeforeCommit];
        proxies.iter().zip(ways).for_each(|(proxy, way)| proxy.at_next_commit(way));
        let send = |replica: &Service| {
            let client = replica.client().key(&format!("key-{round}"));
            async move { client.post(USAGE, &usage("a", "s", 1)).await }
        };
        let (first, second): (Answer, Answer) = tokio::join!(send(&replicas[0]), send(&replicas[1]));
        assert!(first.status == 201 && first.same(&second), "{first:?} {second:?}");
        assert_eq!(first.json()["total"], round + 1);
        assert!(first.replayed != second.replayed, "round {round}: {first:?} {second:?}");
    }
    replicas[0].verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_requests_in_doubt_with_one_key_in_two_batches_one_is_answered_as_the_first() {
    let ([replica, _], [proxy, _]) = proxied_replicas().await;
    for round in 0..10 {
        let send = || {
            let client = replica.client().key(&format!("key-{round}"));
            tokio::spawn(async move { client.post(USAGE, &usage("a", "s", 1)).await })
        };
        // The first commit does not land. The next one lands, from either request, without an answer.
        proxy.at_next_commit(Moment::BeforeCommit);
        let first = send();
        proxy.happened().await;
        proxy.at_next_commit(Moment::AfterCommit);
        let second = send();
        let (first, second) = (first.await.expect("a client"), second.await.expect("a client"));
        assert!(first.status == 201 && first.same(&second), "{first:?} {second:?}");
        assert_eq!(first.json()["total"], round + 1);
        assert!(first.replayed != second.replayed, "round {round}: {first:?} {second:?}");
    }
    replica.verify().await;
}
