//! Two services in two operating-system processes on one database: the unique index judges between them.

use std::collections::BTreeMap;

use serde_json::json;

use crate::support::{Process, new_database, pool, usage, verify};

#[tokio::test(flavor = "multi_thread")]
async fn of_200_twins_in_two_processes_one_executes() {
    let database = new_database().await;
    let processes = [Process::start(&database, 0), Process::start(&database, 0)];
    let twins: Vec<_> = (0..200_usize)
        .map(|number| {
            let client = processes[number % 2].client().key("twin");
            tokio::spawn(async move { client.post("/api/v1/usage", &usage("a", "s", 3)).await })
        })
        .collect();
    let mut answers = Vec::new();
    for twin in twins {
        answers.push(twin.await.expect("a client"));
    }
    assert!(answers.iter().all(|answer| answer.same(&answers[0]) && answer.status == 201), "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| answer.replayed).count(), 199);
    let pool = pool(&database);
    let lifetime: i64 = sqlx::query_scalar("SELECT outstanding + settled + reset FROM usage_counters")
        .fetch_one(&pool)
        .await
        .expect("a row");
    assert_eq!(lifetime, 3);
    verify(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opposite_orders_of_pairs_in_two_processes_end_in_no_deadlock() {
    let database = new_database().await;
    let processes = [Process::start(&database, 0), Process::start(&database, 0)];
    let tasks = (0..8_usize).map(|number| {
        let client = processes[number % 2].client();
        let mut items: Vec<_> = (0..50).map(|pair| usage(&format!("agent-{pair}"), "s", 1)).collect();
        if number % 2 == 1 {
            items.reverse();
        }
        tokio::spawn(async move {
            for round in 0..10 {
                let client = client.key(&format!("{number}-{round}"));
                let answer = client.post("/api/v1/usage/bulk", &json!({ "items": items })).await;
                assert_eq!(answer.status, 201, "{answer:?}");
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    for task in tasks {
        task.await.expect("a client");
    }
    let pool = pool(&database);
    let counts: BTreeMap<i64, i64> =
        sqlx::query_as("SELECT outstanding + settled + reset, count(*) FROM usage_counters GROUP BY 1")
            .fetch_all(&pool)
            .await
            .expect("counts")
            .into_iter()
            .collect();
    assert_eq!(counts, BTreeMap::from([(80, 50)]));
    verify(&pool).await;
}
