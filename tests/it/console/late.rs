//! Answers that arrive late: after a newer request for the same place, or after the operator signed out.

use serde_json::json;

use crate::support::Browser;

use super::{show, signed_in, tenant};

/// Holds the answers to requests for this path back, until `window.release()`.
async fn hold(browser: &Browser, path: &str) {
    let path = json!(path);
    let hold = format!(
        "{{ const original = fetch; window.held = 0; const released = new Promise((resolve) => window.release = resolve);
            window.fetch = async (path, options) => {{
                const answer = await original(path, options);
                if (path.includes({path})) {{ held += 1; await released; window.arrived = true; }}
                return answer; }}; 0 }}"
    );
    browser.value(&hold).await;
}

/// Lets the answers arrive, and the page do with them what it does.
async fn release(browser: &Browser) {
    browser.value("release()").await;
    browser.until("window.arrived === true").await;
    browser.value("new Promise((resolve) => setTimeout(resolve))").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_deliveries_are_not_shown_below_the_webhooks_of_another_tenant() {
    let Some((service, browser)) = signed_in().await else { return };
    let (acme, _, client) = tenant(&service, "acme").await;
    let (other, _, _) = tenant(&service, "other").await;
    let webhook = json!({ "url": "https://example.com/hook", "events": ["*"] });
    let made = client.post("/api/v1/webhooks", &webhook).await.json();
    let id = made["id"].as_str().expect("an id");
    show(&browser, &format!("webhooks?tenantId={acme}")).await;
    browser.until_shown("#webhook-list", id).await;
    hold(&browser, "/deliveries").await;
    browser.click("button", &format!("Deliveries of {id}")).await;
    browser.until("held === 1").await;
    browser.fill("webhooks-tenant", &other).await;
    browser.click("#webhooks-form button", "Show").await;
    browser.until_shown("#webhook-list", "No webhooks.").await;
    release(&browser).await;
    assert_eq!(browser.value("document.getElementById('delivery-list').textContent").await, "");
    assert_eq!(browser.problems().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_look_up_does_not_replace_a_newer_one() {
    let Some((_service, browser)) = signed_in().await else { return };
    show(&browser, "lookup").await;
    browser.fill("lookup-tenant", "public").await;
    hold(&browser, "/first").await;
    for key in ["first", "second"] {
        browser.fill("lookup-key", key).await;
        browser.click("button", "Look up").await;
    }
    browser.until_shown("#lookup-result", "There is no record of the key second").await;
    browser.until("held === 1").await;
    release(&browser).await;
    browser.until_shown("#lookup-result", "There is no record of the key second").await;
    assert_eq!(browser.problems().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_ends_after_signing_out_shows_nothing() {
    let Some((service, browser)) = signed_in().await else { return };
    tenant(&service, "acme").await;
    hold(&browser, "/api-keys").await;
    show(&browser, "keys").await;
    browser.until("held === 1").await;
    browser.click("button", "Sign out").await;
    browser.until_shown("#status", "You are signed out.").await;
    release(&browser).await;
    assert_eq!(browser.value("document.getElementById('key-list').textContent").await, "");
    browser.until_shown("#status", "You are signed out.").await;
    assert_eq!(browser.problems().await, Vec::<String>::new());
}
