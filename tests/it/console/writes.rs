//! Writes of the console: each asks first, says what it will do, and can be tried again.

use serde_json::{Value, json};

use crate::support::{Behaviour, Browser, Receiver, usage, wait_until};

use super::{operator, show, signed_in, tenant};

/// Records the writes of the page, and lets the first `failures` of them fail without an answer.
pub async fn watch_writes(browser: &Browser, failures: u32) {
    let watch = format!(
        "{{ const original = fetch; let failures = {failures}; window.writes = []; window.fetch = (path, options) => {{
            if (options.method !== 'GET') {{
                writes.push([options.method, path, options.body ?? '', options.headers['X-Tenant-Id'] ?? '']);
                if (failures-- > 0) return Promise.reject(new TypeError('no network'));
            }}
            return original(path, options); }}; 0 }}"
    );
    browser.value(&watch).await;
}

async fn writes(browser: &Browser) -> Vec<[String; 4]> {
    serde_json::from_value(browser.value("writes").await).expect("writes")
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_paused_and_resumed_and_an_attempt_that_failed_is_repeated() {
    let Some((service, browser)) = signed_in().await else { return };
    let (_, _, client) = tenant(&service, "acme").await;
    watch_writes(&browser, 1).await;
    browser.click("button", "Pause writes").await;
    browser.until_shown("#confirm", "Every replica refuses writes of all tenants").await;
    browser.until_shown("#confirm", "POST /api/v1/admin/pause").await;
    // Escape does nothing but close the question.
    browser.press("Escape").await;
    browser.until("!document.getElementById('confirm').open").await;
    assert_eq!(writes(&browser).await, Vec::<[String; 4]>::new());
    browser.until("document.activeElement.id === 'pause'").await;

    browser.click("button", "Pause writes").await;
    browser.click("dialog button", "Pause").await;
    browser.until_shown("#confirm-error", "It is unknown whether the request was executed.").await;
    browser.click("dialog button", "Try again").await;
    browser.until_shown("#pause-state", "Writes are paused").await;
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.error().1, "service_paused");

    browser.click("button", "Resume writes").await;
    browser.click("dialog button", "Resume").await;
    browser.until("document.getElementById('pause-state').hidden").await;
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    let writes = writes(&browser).await;
    let [first, again, resume] = writes.as_slice() else { panic!("{writes:?}") };
    assert_eq!((first[1].as_str(), first), ("/api/v1/admin/pause", again));
    assert_eq!(resume[1], "/api/v1/admin/unpause");
    // It is in the audit log, with who did it.
    show(&browser, "audit").await;
    browser.until_shown("#audit-list", "writes.paused").await;
    browser.until_shown("#audit-list", "admin from 127.0.0.1").await;
    assert_eq!(browser.problems().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_changed_and_a_refusal_is_shown() {
    let Some((service, browser)) = signed_in().await else { return };
    show(&browser, "limits").await;
    browser.until("document.getElementById('limit-bulkMaxItems')?.value === '100'").await;
    browser.fill("limit-bulkMaxItems", "1001").await;
    browser.click("button", "Change…").await;
    browser.until_shown("#confirm", "bulkMaxItems changes from 100 to 1001, for all tenants and replicas.").await;
    browser.click("dialog button", "Change").await;
    browser.until_shown("#confirm-error", "bulkMaxItems must be an integer between 1 and 1000").await;
    browser.click("dialog button", "Cancel").await;
    browser.fill("limit-bulkMaxItems", "500").await;
    browser.click("button", "Change…").await;
    browser.click("dialog button", "Change").await;
    browser.until_shown("#status", "The limits were changed.").await;
    assert_eq!(service.client().get("/api/v1/config").await.json()["config"]["bulkMaxItems"], 500);
    assert_eq!(browser.problems().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_delivery_of_a_tenant_is_sent_again() {
    let Some((service, browser)) = signed_in().await else { return };
    let (tenant_id, _, client) = tenant(&service, "acme").await;
    let receiver = Receiver::start().await;
    let hook = client.post("/api/v1/webhooks", &json!({ "url": receiver.url, "events": ["*"] })).await.json();
    let id = hook["id"].as_str().expect("an id").to_owned();
    // 410 disables the webhook.
    receiver.answer(&[Behaviour::Status(410)]);
    client.post("/api/v1/usage", &usage("a", "s", 1)).await;
    let first = receiver.reach(1).await;
    let path = format!("/api/v1/webhooks/{id}");
    wait_until(async || client.get(&path).await.json()["disabledAt"].is_number()).await;

    watch_writes(&browser, 0).await;
    show(&browser, &format!("webhooks?tenantId={tenant_id}")).await;
    browser.until_shown("#webhook-list", "disabled since").await;
    // The subscription changes after the list was read. It is still disabled.
    let change = "UPDATE webhooks SET events = ARRAY['usage.recorded', 'usage.reset']";
    sqlx::query(change).execute(&service.pool).await.expect(change);
    browser.click("button", &format!("Enable {id}")).await;
    browser.until_shown("#confirm", "usage.reset").await;
    browser.click("dialog button", "Enable").await;
    browser.until_shown("#status", "is enabled").await;
    browser.click("button", &format!("Deliveries of {id}")).await;
    browser.until_shown("#delivery-list", "failed").await;
    let delivery = first[0].header("webhook-id").to_owned();
    browser.click("button", &format!("Redeliver {delivery}")).await;
    browser
        .until_shown("#confirm", &format!("The delivery {delivery} (usage.recorded) is sent again to {}", receiver.url))
        .await;
    browser.click("dialog button", "Redeliver").await;
    let received = receiver.reach(2).await;
    assert_eq!(received[1].header("webhook-id"), delivery);
    browser.until_shown("#status", "Deliveries sent again: 1.").await;
    wait_until(async || {
        browser.click("button", &format!("Reload the deliveries of {id}")).await;
        let shown = browser.value("document.getElementById('delivery-list').innerText").await;
        shown.as_str().is_some_and(|shown| shown.contains("delivered"))
    })
    .await;
    let writes = writes(&browser).await;
    assert_eq!(writes[0][2], r#"{"events":["usage.recorded","usage.reset"]}"#);
    for [method, path, _, tenant] in writes {
        assert_eq!(tenant, tenant_id, "{method} {path}");
    }
    // The operator acted for the tenant.
    let entries = operator(&service).get("/api/v1/audit?operation=webhook.updated").await.json();
    assert_eq!(
        (&entries["items"][0]["actor"], &entries["items"][0]["tenantId"]),
        (&json!("admin"), &Value::from(tenant_id))
    );
    assert_eq!(browser.problems().await, Vec::<String>::new());
}
