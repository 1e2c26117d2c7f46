//! `deliveries list` and `deliveries retry`, beside a service that sends.

use serde_json::{Value, json};

use crate::support::{Behaviour, Client, Receiver, Service, usage};

use super::{as_json, command, printed, tenant};

const SETTINGS: &[(&str, &str)] = &[("WEBHOOK_ALLOW_PRIVATE", "true")];

async fn hook(client: &Client, receiver: &Receiver) -> String {
    let hook = json!({ "url": receiver.url, "events": ["usage.recorded"] });
    client.post("/api/v1/webhooks", &hook).await.json()["id"].as_str().expect("an id").to_owned()
}

/// Has deliveries to receivers fail for good: so many of each client.
async fn fail(service: &Service, failing: &[(&Client, &Receiver, usize)]) {
    for (client, receiver, count) in failing {
        receiver.usually(Behaviour::Status(500));
        for _ in 0..*count {
            client.post("/api/v1/usage", &usage("a", "s", 1)).await;
        }
    }
    for _ in 0..10 {
        service.dispatcher.run_once().await.expect("a run");
        // Longer than the longest pause between two attempts.
        service.clock.advance_ms(30 * 3_600_000);
    }
    failing.iter().for_each(|(_, receiver, _)| receiver.usually(Behaviour::Status(200)));
}

/// As its tenant does, who has repaired the receiver.
async fn enable(client: &Client, webhook: &str) {
    let path = format!("/api/v1/webhooks/{webhook}");
    let answer = client.send("PATCH", &path, Some(&json!({ "events": ["usage.recorded"] }).to_string())).await;
    assert_eq!(answer.status, 200);
}

fn ids(deliveries: &Value) -> Vec<String> {
    let ids = deliveries.as_array().expect("a list").iter().map(|delivery| delivery["id"].as_str().expect("an id"));
    ids.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_deliveries_are_listed_and_sent_again_with_their_ids() {
    let service = Service::start(SETTINGS).await;
    let (receiver, other) = (Receiver::start().await, Receiver::start().await);
    let (tenant, key) = tenant(&service, "acme").await;
    let client = service.client().with("x-api-key", &key);
    let webhook = hook(&client, &receiver).await;
    // Another tenant's, which nobody asks for.
    let public = service.client();
    let others = hook(&public, &other).await;
    fail(&service, &[(&client, &receiver, 3), (&public, &other, 1)]).await;

    // The first that failed for good disabled the webhook, which cancelled the others.
    let list = ["deliveries", "list", "--tenant", &tenant];
    let all = as_json(&service, &list).await;
    assert_eq!(ids(&all).len(), 3, "{all}");
    let failed = as_json(&service, &[&list[..], &["--status", "failed"]].concat()).await;
    assert_eq!((&failed[0]["tenantId"], &failed[0]["webhookId"]), (&json!(tenant), &json!(webhook)));
    assert_eq!((&failed[0]["attempts"], &failed[0]["responseStatus"]), (&json!(10), &json!(500)));
    let table = printed(&service, &["deliveries", "list", "--webhook", &others, "--limit", "10"]).await;
    assert!(table.lines().count() == 2 && table.contains(" failed ") && table.contains(" 500: "), "{table}");

    // One by its id, then what is left since a moment.
    let one = ids(&failed).remove(0);
    let skipped = as_json(&service, &["deliveries", "retry", &one]).await;
    assert_eq!(skipped, json!({ "retried": 0, "skipped": 1 }));
    enable(&client, &webhook).await;
    let retried = printed(&service, &["deliveries", "retry", &one, &one]).await;
    assert_eq!(retried, "sent again  1\nskipped     0\n");
    let requested = as_json(&service, &["audit", "export"]).await;
    let entries = requested.as_array().expect("a list").iter();
    let entries: Vec<&Value> = entries.filter(|entry| entry["operation"] == "webhook.deliveries_requested").collect();
    assert_eq!((entries.len(), &entries[0]["actor"], &entries[0]["objectId"]), (1, &json!("cli"), &json!(webhook)));
    assert_eq!(entries[0]["after"], json!({ "resent": 1, "deliveryIds": [one] }));
    service.dispatcher.run_once().await.expect("a run");
    let (code, _, stderr) = command(&service, &["deliveries", "retry", "dlv_00000000000000000000000000000000"]).await;
    assert_eq!((code, stderr.as_str()), (1, "1 of these deliveries do not exist or are pending\n"));
    let delivered = as_json(&service, &[&list[..], &["--status", "delivered"]].concat()).await;
    assert_eq!(ids(&delivered), [one.as_str()]);
    assert_eq!(delivered[0]["attempts"], 1);
    let retried =
        as_json(&service, &["deliveries", "retry", "--failed-since", "2026-01-01", "--tenant", &tenant]).await;
    assert_eq!(retried, json!({ "retried": 2, "skipped": 0 }));
    service.dispatcher.run_once().await.expect("a run");
    let delivered = as_json(&service, &["deliveries", "list", "--status", "delivered"]).await;
    assert_eq!(ids(&delivered), ids(&all));
    let received = receiver.received();
    let last: Vec<&str> = received[received.len() - 3..].iter().map(|received| received.header("webhook-id")).collect();
    assert_eq!(last[0], one);
    assert!(ids(&all).iter().all(|id| last.contains(&id.as_str())), "{last:?}");
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requested_delivery_to_a_webhook_that_is_disabled_meanwhile_is_cancelled() {
    let service = Service::start(SETTINGS).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let webhook = hook(&client, &receiver).await;
    fail(&service, &[(&client, &receiver, 1)]).await;
    enable(&client, &webhook).await;
    let count = receiver.received().len();
    let disabled = "CREATE FUNCTION disable() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN UPDATE webhooks SET disabled_at = now(); RETURN NULL; END $$;
        CREATE TRIGGER disable AFTER UPDATE OF requested ON webhook_deliveries FOR EACH STATEMENT EXECUTE FUNCTION disable()";
    sqlx::raw_sql(disabled).execute(&service.pool).await.expect("a trigger");
    let retried = as_json(&service, &["deliveries", "retry", "--failed-since", "2026-01-01"]).await;
    assert_eq!(retried["retried"], 1);
    service.dispatcher.run_once().await.expect("a run");
    let cancelled = as_json(&service, &["deliveries", "list", "--status", "cancelled"]).await;
    assert_eq!((ids(&cancelled).len(), receiver.received().len()), (1, count));
    let (code, _, _) = command(&service, &["deliveries", "retry"]).await;
    assert_eq!(code, 2);
}
