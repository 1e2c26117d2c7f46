//! The key of the operator: asked for, checked, kept in the memory of the page only, and not needed where there is none.

use serde_json::json;

use crate::support::{Browser, Service};

use super::{ADMIN_KEY, GUARDED, console, show, sign_in, signed_in};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_refused_and_the_right_one_is_kept_in_memory_only() {
    let Some(browser) = Browser::start().await else { return };
    let service = Service::start(GUARDED).await;
    browser.open(&format!("http://{}/", service.address)).await;
    browser.until("location.pathname === '/console'").await;
    sign_in(&browser, "not-the-key").await;
    browser.until_shown("#sign-in-error", "The admin key is not accepted.").await;
    assert_eq!(browser.value("document.getElementById('console').hidden").await, true);
    sign_in(&browser, ADMIN_KEY).await;
    browser.until_shown("#overview-title", "Overview").await;
    browser.until_shown("#totals", "Outstanding requests").await;
    assert_eq!(browser.value("document.activeElement.id").await, "overview-title");

    let kept = browser
        .value("[localStorage.length, sessionStorage.length, document.cookie, location.href, document.documentElement.outerHTML].join()")
        .await;
    let kept = kept.as_str().expect("a text");
    assert!(kept.starts_with("0,0,,http") && !kept.contains(ADMIN_KEY), "{kept}");
    assert_eq!(browser.value("document.getElementById('admin-key').value").await, "");

    // Signing out and reloading forget it, and what it showed.
    show(&browser, "keys").await;
    browser.until_shown("#status", "Keys: 0").await;
    browser.click("button", "Sign out").await;
    browser.until("!document.getElementById('sign-in').hidden").await;
    assert_eq!(browser.value("document.getElementById('key-list').textContent").await, "");
    sign_in(&browser, ADMIN_KEY).await;
    browser.until_shown("#keys-title", "API keys").await;
    browser.send("Page.reload", json!({})).await;
    browser.until("document.activeElement?.id === 'admin-key'").await;
    assert_eq!(browser.problems().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_no_longer_accepted_leads_back_to_the_form() {
    let Some(browser) = Browser::start().await else { return };
    let service = Service::start(GUARDED).await;
    browser.open(&console(&service)).await;
    sign_in(&browser, ADMIN_KEY).await;
    browser.until_shown("#totals", "Settlements").await;
    // As after the key was replaced.
    let other = r#"const original = fetch; window.fetch = (path, options) => original(path, {
        ...options, headers: { ...options.headers, "X-API-Key": "old" } })"#;
    browser.value(&format!("{{ {other}; 0 }}")).await;
    browser.value("location.hash = 'audit'").await;
    browser.until_shown("#status", "The admin key is not accepted. Sign in again.").await;
    browser.until("document.activeElement.id === 'admin-key'").await;
}

/// The answer to each request, reads and writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_refused_leads_back_to_the_form() {
    let Some((_service, browser)) = signed_in().await else { return };
    let refuse = |status: u32| {
        format!(
            "{{ window.original ??= fetch; window.fetch = (path, options) => options.method === 'GET' && {status} === 401
                ? original(path, options) : Promise.resolve(Response.json({{ error: 'forbidden' }}, {{ status: {status} }})); 0 }}"
        )
    };
    browser.value(&refuse(401)).await;
    browser.click("button", "Pause writes").await;
    browser.click("dialog button", "Pause").await;
    browser.until_shown("#status", "The admin key is not accepted. Sign in again.").await;
    browser.until("!document.getElementById('confirm').open && document.activeElement.id === 'admin-key'").await;
    sign_in(&browser, ADMIN_KEY).await;
    browser.until_shown("#totals", "Settlements").await;
    browser.value(&refuse(403)).await;
    browser.value("location.hash = 'webhooks'").await;
    browser.until_shown("#status", "The admin key is not accepted. Sign in again.").await;
    browser.until("document.activeElement.id === 'admin-key'").await;
    assert_eq!(browser.value("document.getElementById('webhook-list').textContent").await, "");
    sign_in(&browser, ADMIN_KEY).await;
    browser.until_shown("#sign-in-error", "The admin key is not accepted. forbidden").await;
    assert_eq!(browser.problems().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_admin_key_the_page_says_that_everyone_is_the_operator() {
    let Some(browser) = Browser::start().await else { return };
    let service = Service::start(&[]).await;
    browser.open(&console(&service)).await;
    browser.until_shown("#notice", "No admin key is configured").await;
    browser.until_shown("#totals", "Settlements").await;
    assert_eq!(browser.value("document.getElementById('sign-out').hidden").await, true);
    show(&browser, "keys").await;
    browser.until_shown("#key-list", "No keys.").await;
    assert_eq!(browser.problems().await, Vec::<String>::new());
}
