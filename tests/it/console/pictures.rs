//! The pictures of docs/console.md. `UPDATE_DOCUMENTS=1` takes them again.

use std::path::Path;

use agentpay_billing::metrics::snapshot::Snapshot;
use serde_json::json;

use crate::support::{Service, usage};

use super::{show, signed_in, tenant};

const WIDE: (u32, u32) = (1280, 800);
const PHONE: (u32, u32) = (360, 1000);

/// An hour of figures like those of a busy morning.
fn fill_history(service: &Service) {
    let history = &service.history_sampler.history;
    let (mut total, now) = (Snapshot::default(), service.clock.now());
    let bounds = [0.005, 0.01, 0.025, 0.05, 0.1];
    total.durations = bounds.map(|bound| (bound, 0)).to_vec();
    for sample in 0..=360_u64 {
        let wave = |length: f64, height: f64| height * (sample as f64 / length).sin();
        let is_slow = (200..215).contains(&sample);
        let requests = 4000.0 + wave(40.0, 1500.0) + wave(7.0, 400.0) + wave(2.3, 200.0);
        total.requests += requests as u64;
        total.commands += (requests * 0.9) as u64;
        total.replays += (requests * if is_slow { 0.12 } else { 0.02 + wave(9.0, 0.006) }) as u64;
        total.failures += if sample == 204 { 12 } else { 0 };
        let shares = [0.82 + wave(11.0, 0.05), 0.96, 0.985 + wave(6.0, 0.003), 0.997, 1.0];
        for (share, (_, count)) in shares.into_iter().zip(&mut total.durations) {
            *count += (requests * if is_slow { share * share * share } else { share }) as u64;
        }
        let queue = if is_slow { 140.0 + wave(2.0, 20.0) } else { 7.0 + wave(3.0, 6.0) };
        history.add(now.plus_ms((sample as i64 - 360) * 10_000), total.clone(), queue as usize);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documents_have_pictures_of_the_console() {
    let Some((service, browser)) = signed_in().await else { return };
    fill_history(&service);
    let (cirrus, _, client) = tenant(&service, "Cirrus billing").await;
    tenant(&service, "Nimbus meter").await;
    client.post("/api/v1/services", &json!({ "serviceId": "weather", "priceStroops": 250 })).await;
    client.key("order-1").with("x-request-id", "r-1").post("/api/v1/usage", &usage("agent-1", "weather", 3)).await;
    client.key("bill-1").post("/api/v1/settle", &json!({ "agent": "agent-1", "serviceId": "weather" })).await;
    let updates = std::env::var("UPDATE_DOCUMENTS").is_ok_and(|value| value == "1");
    for (name, (width, height), scheme) in [("light", WIDE, "light"), ("dark", WIDE, "dark"), ("phone", PHONE, "light")]
    {
        browser.show_as(width, height, scheme).await;
        for section in ["overview", "lookup", "keys"] {
            show(&browser, section).await;
            match section {
                "overview" => browser.until_shown("#totals", "Settlements").await,
                "keys" => browser.until_shown("#key-list", "Cirrus billing").await,
                _ => {
                    browser.fill("lookup-key", "order-1").await;
                    browser.fill("lookup-tenant", &cirrus).await;
                    browser.click("button", "Look up").await;
                    browser.until_shown("#lookup-result", "Usage recorded").await;
                }
            }
            browser.value("scrollTo(0, 0)").await;
            if updates {
                let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images");
                browser.picture(&images.join(format!("console-{section}-{name}.png"))).await;
            }
        }
    }
    assert_eq!(browser.problems().await, Vec::<String>::new());
}
