//! What stands before a load: a service with a priced service `svc`, pairs that exist, and keys that were answered once.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::load::{self, Kind, Load};
use crate::service::Service;
use crate::{Bench, Result};

/// Agents of the loads that do not ask for one hot pair.
pub const PAIRS: u32 = 10_000;

/// Registers `svc`, and records usage of its pairs for a moment: a service that just started is not what is measured.
pub async fn warm(bench: &Bench, service: &Service) -> Result<()> {
    let body = json!({ "serviceId": "svc", "priceStroops": 100 });
    post(&reqwest::Client::new(), service.url("/api/v1/services"), None, &body).await?;
    let load = Load::new(Kind::Usage, 64, PAIRS);
    load::wrk(bench, service.port, &load, &bench.new_run(), bench.seconds.min(2)).await?;
    Ok(())
}

/// Sends the requests that a replay load repeats, each once.
pub async fn answer_keys(service: &Service, run: &str, keys: u32, pairs: u32) -> Result<()> {
    let client = reqwest::Client::new();
    let places = Arc::new(Semaphore::new(64));
    let mut requests = JoinSet::new();
    for number in 1..=keys {
        let place = places.clone().acquire_owned().await?;
        let (client, url) = (client.clone(), service.url("/api/v1/usage"));
        let key = format!("r-{run}-{number}");
        let agent = format!("agent-{}", (number - 1) % pairs + 1);
        requests.spawn(async move {
            let _place = place;
            post(&client, url, Some(key), &json!({ "agent": agent, "serviceId": "svc", "requests": 3 })).await
        });
    }
    while let Some(request) = requests.join_next().await {
        request??;
    }
    Ok(())
}

async fn post(client: &reqwest::Client, url: String, key: Option<String>, body: &Value) -> Result<()> {
    let mut request = client.post(&url).header("content-type", "application/json").body(body.to_string());
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let answer = request.send().await?;
    let status = answer.status();
    if status.is_success() { Ok(()) } else { Err(format!("POST {url}: {status} {}", answer.text().await?).into()) }
}
