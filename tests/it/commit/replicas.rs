//! Two services in two operating-system processes on one database: the unique index decides between them.

use crate::support::{Process, new_database, pool, usage, verify};

#[tokio::test(flavor = "multi_thread")]
async fn of_200_concurrent_requests_with_one_key_in_two_processes_one_executes() {
    let database = new_database().await;
    let processes = [Process::start(&database, 0), Process::start(&database, 0)];
    let requests: Vec<_> = (0..200_usize)
        .map(|number| {
            let client = processes[number % 2].client().key("k");
            tokio::spawn(async move { client.post("/api/v1/usage", &usage("a", "s", 3)).await })
        })
        .collect();
    let mut answers = Vec::new();
    for request in requests {
        answers.push(request.await.expect("a client"));
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
