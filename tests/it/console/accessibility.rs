//! The console with a keyboard, a screen reader, in both colour schemes and on a phone, as far as a program can check it.

use serde_json::json;

use crate::support::{Behaviour, Browser, Client, Receiver, Service, usage, wait_until};

use super::{console, operator, show, sign_in, signed_in, tenant};

const CHECKS: &str = include_str!("accessibility.js");

async fn check(browser: &Browser, case: &str) {
    let found: Vec<String> = serde_json::from_value(browser.value(CHECKS).await).expect("a list");
    assert_eq!(found, Vec::<String>::new(), "{case}");
}

/// Something for every section to show, with long texts.
pub async fn fill(service: &Service) -> (String, Client) {
    let (tenant_id, _, client) =
        tenant(service, "a label of nearly the greatest length that a key can have at all").await;
    let agent = format!("agent-{}", "x".repeat(200));
    client.post("/api/v1/services", &json!({ "serviceId": "weather", "priceStroops": 9_007_199_254_i64 })).await;
    client.send("PATCH", "/api/v1/services/weather/price", Some(r#"{"priceStroops":9007199253}"#)).await;
    for (name, requests) in [(agent.as_str(), 1_000_000), ("agent-2", 3)] {
        client.key(name).post("/api/v1/usage", &usage(name, "weather", requests)).await;
        client.post("/api/v1/settle", &json!({ "agent": name, "serviceId": "weather" })).await;
    }
    client.key("order-1").post("/api/v1/usage", &usage("agent-2", "weather", 7)).await;
    let receiver = Receiver::start().await;
    receiver.answer(&[Behaviour::Status(410)]);
    let hook = client.post("/api/v1/webhooks", &json!({ "url": receiver.url, "events": ["*"] })).await.json();
    client.post("/api/v1/usage", &usage("agent-2", "weather", 1)).await;
    let path = format!("/api/v1/webhooks/{}", hook["id"].as_str().expect("an id"));
    wait_until(async || client.get(&path).await.json()["disabledAt"].is_number()).await;
    operator(service).send("PATCH", "/api/v1/config", Some(r#"{"bulkMaxItems":200}"#)).await;
    (tenant_id, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_section_is_accessible_in_both_schemes_and_fits_on_a_phone() {
    let Some((service, browser)) = signed_in().await else { return };
    let (tenant_id, client) = fill(&service).await;
    let webhooks = client.get("/api/v1/webhooks").await.json();
    let deliveries = format!("Deliveries of {}", webhooks["items"][0]["id"].as_str().expect("an id"));
    let ready = [
        ("overview", "#totals", "Settlements"),
        ("tenants", "#tenant-list", tenant_id.as_str()),
        ("lookup", "#lookup-result", "Usage recorded"),
        ("settlements", "#settlement-list", "agent-2"),
        ("webhooks", "#delivery-list", "failed"),
        ("keys", "#key-list", "nearly the greatest length"),
        ("limits", "#limits-form", "bulkMaxItems"),
        ("health", "#job-list", "webhook_lease"),
        ("audit", "#audit-list", "priceStroops"),
    ];
    for (width, height) in [(1280, 800), (800, 600), (360, 740)] {
        for scheme in ["light", "dark"] {
            browser.show_as(width, height, scheme).await;
            for (section, place, text) in ready {
                let case = format!("{section}, {width} pixels, {scheme}");
                show(&browser, &format!("{section}?tenantId={tenant_id}")).await;
                if section == "lookup" {
                    browser.fill("lookup-key", "order-1").await;
                    browser.fill("lookup-tenant", &tenant_id).await;
                    browser.click("button", "Look up").await;
                } else if section == "webhooks" {
                    browser.until_shown("#webhook-list", "disabled since").await;
                    browser.click("#webhook-list button", &deliveries).await;
                }
                browser.until_shown(place, text).await;
                check(&browser, &case).await;
            }
            // The question before a write.
            show(&browser, "overview").await;
            browser.click("button", "Pause writes").await;
            browser.until_shown("#confirm", "Nothing is lost").await;
            check(&browser, &format!("the dialog, {width} pixels, {scheme}")).await;
            browser.click("dialog button", "Cancel").await;
        }
    }
    browser.click("button", "Sign out").await;
    for scheme in ["light", "dark"] {
        browser.show_as(360, 740, scheme).await;
        check(&browser, &format!("signing in, {scheme}")).await;
    }
    assert_eq!(browser.problems().await, Vec::<String>::new());
}

/// The colours of the page follow the scheme of the system.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_dark_where_the_system_is() {
    let Some((_service, browser)) = signed_in().await else { return };
    let mut backgrounds = Vec::new();
    for scheme in ["light", "dark"] {
        browser.show_as(1280, 800, scheme).await;
        backgrounds.push(browser.value("getComputedStyle(document.body).backgroundColor").await);
    }
    assert_eq!(backgrounds, ["rgb(255, 255, 255)", "rgb(19, 25, 23)"]);
}

/// Signs in, pauses and resumes without a mouse.
#[tokio::test(flavor = "multi_thread")]
async fn everything_works_with_the_keyboard_alone() {
    let Some(browser) = Browser::start().await else { return };
    let service = Service::start(super::GUARDED).await;
    browser.open(&console(&service)).await;
    sign_in(&browser, super::ADMIN_KEY).await;
    browser.until_shown("#totals", "Settlements").await;
    browser.until("document.activeElement.id === 'overview-title'").await;
    browser.tab_to("Pause writes").await;
    // A focused element is visible as such.
    let outline = browser.value("getComputedStyle(document.activeElement).outlineStyle").await;
    assert_eq!(outline, "solid");
    browser.press("Enter").await;
    // The focus is in the dialog, on the button that does nothing, and does not leave the dialog.
    browser.until("document.activeElement.id === 'confirm-cancel'").await;
    for _ in 0..5 {
        browser.press("Tab").await;
        let inside = "document.activeElement === document.body || document.activeElement.closest('dialog') !== null";
        assert_eq!(browser.value(inside).await, true);
    }
    browser.press("Escape").await;
    browser.until("document.activeElement.id === 'pause'").await;
    browser.press("Space").await;
    browser.tab_to("Pause").await;
    browser.press("Enter").await;
    browser.until_shown("#pause-state", "Writes are paused").await;
    browser.until_shown("#status", "Writes are paused.").await;
    browser.until("document.activeElement.id === 'pause'").await;
    browser.press("Enter").await;
    browser.tab_to("Resume").await;
    browser.press("Enter").await;
    browser.until("document.getElementById('pause-state').hidden").await;
    // To another section by its link; the heading has the focus.
    browser.value("document.querySelector('.skip').focus()").await;
    browser.tab_to("API keys").await;
    browser.press("Enter").await;
    browser.until("document.activeElement.id === 'keys-title'").await;
    browser.tab_to("Label").await;
    browser.type_text("with the keyboard").await;
    browser.press("Enter").await;
    browser.until("document.activeElement.id === 'confirm-cancel'").await;
    browser.tab_to("Create").await;
    browser.press("Enter").await;
    browser.until("document.activeElement.id === 'confirm-title'").await;
    browser.tab_to("Close").await;
    browser.press("Enter").await;
    browser.until_shown("#key-list", "with the keyboard").await;
    assert_eq!(browser.problems().await, Vec::<String>::new());
}
