//! The operator's console, in a headless Chromium against a running service.

mod accessibility;
mod files;
mod keys;
mod late;
mod pictures;
mod sections;
mod sign_in;
mod writes;

use serde_json::{Value, json};

use crate::support::{Browser, Client, Service};

const ADMIN_KEY: &str = "the-admin-key-of-the-test";

/// A service that requires keys.
const GUARDED: &[(&str, &str)] =
    &[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", ADMIN_KEY), ("WEBHOOK_ALLOW_PRIVATE", "true")];

fn console(service: &Service) -> String {
    format!("http://{}/console", service.address)
}

/// A service and a browser that shows the overview of its console. `None` without Chromium.
async fn signed_in() -> Option<(Service, Browser)> {
    let browser = Browser::start().await?;
    let service = Service::start(GUARDED).await;
    browser.open(&console(&service)).await;
    sign_in(&browser, ADMIN_KEY).await;
    browser.until_shown("#totals", "Settlements").await;
    Some((service, browser))
}

async fn sign_in(browser: &Browser, key: &str) {
    browser.until("document.activeElement.id === 'admin-key'").await;
    browser.type_text(key).await;
    browser.press("Enter").await;
}

/// Shows a section, as its link does.
async fn show(browser: &Browser, section: &str) {
    browser.value(&format!("location.hash = {}", json!(section))).await;
    let name = section.split('?').next().unwrap_or_default();
    browser
        .until(&format!(
            "!document.getElementById({0}).hidden && document.activeElement.id === {0} + '-title'",
            json!(name)
        ))
        .await;
}

fn operator(service: &Service) -> Client {
    service.client().with("x-api-key", ADMIN_KEY)
}

/// A new tenant, its key, and a client with it.
async fn tenant(service: &Service, label: &str) -> (String, String, Client) {
    let made = operator(service).post("/api/v1/api-keys", &json!({ "label": label })).await.json();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let key = text(&made["key"]);
    let client = service.client().with("x-api-key", &key);
    (text(&made["tenantId"]), key, client)
}
