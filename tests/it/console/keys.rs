//! API keys in the console: create one, replace it while the old one works, and revoke it.

use crate::support::{Browser, Client, Service, usage};

use super::writes::watch_writes;
use super::{show, signed_in, tenant};

async fn records(client: &Client) -> u16 {
    client.post("/api/v1/usage", &usage("a", "s", 1)).await.status
}

/// The key that the dialog shows once.
async fn shown_key(browser: &Browser) -> String {
    browser.until("document.getElementById('secret') !== null").await;
    // It is shown once, so Escape does not hide it.
    for _ in 0..2 {
        browser.press("Escape").await;
    }
    let key = browser.value("document.getElementById('secret').value").await;
    browser.click("dialog button", "Close").await;
    key.as_str().expect("a key").to_owned()
}

fn with(service: &Service, key: &str) -> Client {
    service.client().with("x-api-key", key)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_created_with_its_limits_and_revoked() {
    let Some((service, browser)) = signed_in().await else { return };
    show(&browser, "keys").await;
    browser.until_shown("#key-list", "No keys.").await;
    browser.fill("key-label", "meter of acme").await;
    browser.fill("key-limit", "600").await;
    browser.value("document.querySelector('[value=\"usage:write\"]').click()").await;
    browser.click("button", "Create…").await;
    browser.until_shown("#confirm", "A new key with the label \"meter of acme\" is created for a new tenant.").await;
    browser.until_shown("#confirm", "It has only these scopes: usage:write.").await;
    // Nothing happens before the confirmation.
    assert_eq!(service.number("SELECT count(*) FROM api_keys").await, 0);
    browser.click("dialog button", "Create").await;
    let key = shown_key(&browser).await;
    assert_eq!(records(&with(&service, &key)).await, 201);
    browser.until_shown("#key-list", "meter of acme").await;
    browser.until_shown("#key-list", "600").await;
    assert_eq!(
        browser.value("document.documentElement.outerHTML").await.as_str().map(|page| page.contains(&key)),
        Some(false)
    );

    let prefix = &key[..12];
    browser.click("button", &format!("Revoke {prefix}")).await;
    browser.until_shown("#confirm", "This cannot be undone.").await;
    browser.click("dialog button", "Cancel").await;
    assert_eq!(records(&with(&service, &key)).await, 201);
    browser.click("button", &format!("Revoke {prefix}")).await;
    browser.click("dialog button", "Revoke").await;
    browser.until_shown("#key-list", "No keys.").await;
    assert_eq!(records(&with(&service, &key)).await, 401);
    assert_eq!(browser.problems().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_rotated_while_the_old_one_still_works() {
    let Some((service, browser)) = signed_in().await else { return };
    let (tenant_id, old, client) = tenant(&service, "acme").await;
    assert_eq!(records(&client).await, 201);
    show(&browser, "keys").await;
    let prefix = &old[..12];
    browser.click("button", &format!("Rotate {prefix}")).await;
    browser.until("document.activeElement.id === 'overlap'").await;
    browser.fill("overlap", "3600").await;
    browser.click("button", "Continue…").await;
    browser.until_shown("#confirm", &format!("{prefix} remains valid for 1 hour, and is then refused.")).await;
    browser.click("dialog button", "Rotate").await;
    let new = shown_key(&browser).await;
    browser.until_shown("#status", "was rotated").await;
    // Both belong to one tenant.
    for key in [&old, &new] {
        assert_eq!(records(&with(&service, key)).await, 201);
    }
    assert_eq!(with(&service, &new).get("/api/v1/usage/a/s").await.json()["total"], 3);
    browser.until_shown("#key-list", "(rotated)").await;
    browser.until_shown("#key-list", &tenant_id).await;
    // It can be rotated once.
    let again = format!("document.querySelector('[aria-label=\"Rotate {prefix}\"]') === null");
    assert_eq!(browser.value(&again).await, true);
    browser.click("button", &format!("Revoke {prefix}")).await;
    browser.click("dialog button", "Revoke").await;
    browser.until_shown("#status", "was revoked").await;
    assert_eq!((records(&client).await, records(&with(&service, &new)).await), (401, 201));
    assert_eq!(browser.problems().await, Vec::<String>::new());
}

/// Without the answer nobody knows the new key, so another request would leave a key behind that nobody uses.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_answer_was_lost_is_not_made_twice() {
    let Some((service, browser)) = signed_in().await else { return };
    let (_, old, _) = tenant(&service, "acme").await;
    show(&browser, "keys").await;
    let lose = "{ const original = fetch; window.fetch = async (path, options) => { const answer = await original(path, options); \
                if (options.method !== 'GET') throw new TypeError('no network'); return answer; }; 0 }";
    browser.value(lose).await;
    watch_writes(&browser, 0).await;
    let is_over = "document.getElementById('confirm-go').hidden && document.activeElement.id === 'confirm-cancel'";

    browser.fill("key-label", "meter of acme").await;
    browser.click("button", "Create…").await;
    browser
        .until_shown("#confirm", "If the response is lost, revoke the new key in the list, and create another.")
        .await;
    browser.click("dialog button", "Create").await;
    browser.until_shown("#confirm-error", "If the list has a new key, revoke it, and create another.").await;
    browser.until(is_over).await;
    // The list has it already.
    browser.until_shown("#key-list", "meter of acme").await;
    browser.click("dialog button", "Close").await;

    browser.click("button", &format!("Rotate {}", &old[..12])).await;
    browser.click("button", "Continue…").await;
    browser.until_shown("#confirm", "revoke the new key in the list, and create another for the same tenant.").await;
    assert_eq!(browser.value("document.getElementById('confirm').innerText.includes('Idempotency-Key')").await, false);
    browser.click("dialog button", "Rotate").await;
    browser.until_shown("#confirm-error", "If the list has a new key, revoke it, and create another.").await;
    browser.until(is_over).await;
    browser.until_shown("#key-list", "(rotated)").await;
    browser.click("dialog button", "Close").await;
    assert_eq!(browser.value("writes.length").await, 2);
    assert_eq!(service.number("SELECT count(*) FROM api_keys").await, 3);
    assert_eq!(browser.problems().await, Vec::<String>::new());
}
