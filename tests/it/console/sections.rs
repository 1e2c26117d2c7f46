//! What the sections of the console show: keys, prices and who changed them, settlements, tenants, health; and that text stays
//! text.

use serde_json::json;

use crate::support::usage;

use super::{operator, show, signed_in, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_finds_out_what_became_of_a_key() {
    let Some((service, browser)) = signed_in().await else { return };
    let (tenant_id, _, client) = tenant(&service, "acme").await;
    client.post("/api/v1/services", &json!({ "serviceId": "weather", "priceStroops": 250 })).await;
    client.key("order-1").post("/api/v1/usage", &usage("agent-1", "weather", 3)).await;
    let pair = json!({ "agent": "agent-1", "serviceId": "weather" });
    client.key("bill-1").post("/api/v1/settle", &pair).await;
    service.client().key("order-2").post("/api/v1/usage", &usage("b", "s", 1)).await;

    show(&browser, "lookup").await;
    browser.fill("lookup-key", "order-1").await;
    browser.fill("lookup-tenant", &tenant_id).await;
    browser.click("button", "Look up").await;
    for text in [
        "A repeated request gets the stored response.",
        "POST /api/v1/usage",
        "201",
        "\"total\": 3",
        "Usage recorded or reset",
    ] {
        browser.until_shown("#lookup-result", text).await;
    }
    browser.fill("lookup-key", "bill-1").await;
    browser.click("button", "Look up").await;
    browser.until_shown("#lookup-result", "Settlements created").await;
    browser.until_shown("#lookup-result", "750").await;
    browser.fill("lookup-key", "order-9").await;
    browser.click("button", "Look up").await;
    browser.until_shown("#lookup-result", "There is no record of the key order-9").await;
    browser.fill("lookup-address", "127.0.0.1").await;
    browser.click("button", "Look up").await;
    browser.until_shown("#lookup-result", "exactly one of tenantId and address is required").await;

    show(&browser, "tenants").await;
    browser.until_shown("#tenant-list", &tenant_id).await;
    browser.click("#tenant-list tbody a", "1").await;
    browser.until_shown("#settlement-list", &format!("Settlements of {tenant_id}")).await;
    browser.until_shown("#settlement-list", "bill-1").await;
    browser.fill("settlements-agent", "agent-2").await;
    browser.click("#settlements-form button", "Show").await;
    browser.until_shown("#settlement-list", "No settlements.").await;
    assert_eq!(browser.problems().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_who_changed_a_price() {
    let Some((service, browser)) = signed_in().await else { return };
    let (tenant_id, key, client) = tenant(&service, "acme").await;
    client.post("/api/v1/services", &json!({ "serviceId": "weather", "priceStroops": 250 })).await;
    client.send("PATCH", "/api/v1/services/weather/price", Some(r#"{"priceStroops":300}"#)).await;
    show(&browser, &format!("audit?tenantId={tenant_id}")).await;
    browser.fill("audit-operation", "service.updated").await;
    browser.click("#audit-form button", "Show").await;
    browser.until("document.querySelectorAll('#audit-list tbody tr').length === 1").await;
    browser.until_shown("#audit-list", "priceStroops: 250 → 300").await;
    browser.until_shown("#audit-list", &format!("{} from 127.0.0.1", &key[..12])).await;
    assert_eq!(browser.problems().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_and_the_health_show_figures() {
    let Some((service, browser)) = signed_in().await else { return };
    let (_, _, client) = tenant(&service, "acme").await;
    for _ in 0..3 {
        client.key("same").post("/api/v1/usage", &usage("a", "s", 1)).await;
        service.clock.advance_ms(10_000);
        service.history_sampler.run_once(7);
    }
    show(&browser, "health").await;
    browser.until_shown("#check-list", "database").await;
    browser.until_shown("#job-list", "webhook_lease").await;
    show(&browser, "overview").await;
    browser.until("document.querySelectorAll('#plots svg[role=img][aria-label]').length === 6").await;
    browser
        .until("[...document.querySelectorAll('#plots path')].some((path) => path.getAttribute('d').length > 20)")
        .await;
    browser.until_shown("#plots", "Queue").await;
    assert_eq!(browser.problems().await, Vec::<String>::new());
}

/// Every text that a client chooses freely, and that the console shows.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_text_is_shown_as_text() {
    let Some((service, browser)) = signed_in().await else { return };
    let hostile = "<img src=x onerror=hacked=1><script>hacked=1</script>";
    let (tenant_id, _, client) = tenant(&service, hostile).await;
    let service_of = json!({ "serviceId": "s", "priceStroops": 1, "description": hostile, "owner": hostile });
    client.with("x-request-id", hostile).post("/api/v1/services", &service_of).await;
    let key = "<img/src=x/onerror=hacked=1>";
    client.key(key).post("/api/v1/usage", &usage("a", "s", 1)).await;
    client.key("<img/src=x>").post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await;
    let url = format!("https://example.com/{key}?{key}");
    assert_eq!(client.post("/api/v1/webhooks", &json!({ "url": url, "events": ["*"] })).await.status, 201);

    show(&browser, "keys").await;
    browser.until_shown("#key-list", hostile).await;
    show(&browser, "audit").await;
    browser.until_shown("#audit-list", hostile).await;
    show(&browser, &format!("webhooks?tenantId={tenant_id}")).await;
    browser.until_shown("#webhook-list", key).await;
    show(&browser, &format!("settlements?tenantId={tenant_id}")).await;
    browser.until_shown("#settlement-list", "<img/src=x>").await;
    show(&browser, "lookup").await;
    browser.fill("lookup-key", key).await;
    browser.fill("lookup-tenant", &tenant_id).await;
    browser.click("button", "Look up").await;
    browser.until_shown("#lookup-result", &format!("Key {key}")).await;
    let entries = operator(&service).get("/api/v1/api-keys").await.json();
    let prefix = entries["items"][0]["prefix"].as_str().expect("a prefix").to_owned();
    show(&browser, "keys").await;
    browser.click("button", &format!("Revoke {prefix}")).await;
    browser.until_shown("#confirm", hostile).await;
    let built = "document.querySelectorAll('#content img, #content script, dialog img, dialog script').length";
    assert_eq!(browser.value(built).await, 0);
    assert_eq!(browser.value("typeof hacked").await, "undefined");
    assert_eq!(browser.problems().await, Vec::<String>::new());
}
