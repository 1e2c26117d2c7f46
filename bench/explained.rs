//! A few requests of every kind on the grown database, each statement explained by the server itself.

use std::sync::atomic::{AtomicU32, Ordering};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::fill::{Extent, TENANTS};
use crate::full::READS;
use crate::grown::{GROWN, PRUNING, load_of};
use crate::load::{self, Kind};
use crate::report::Report;
use crate::service::{self, Service};
use crate::{Bench, Result, plans, postgres};

const OPERATOR: &str = "bench-operator-0123456789abcdef";

pub async fn run(bench: &Bench, report: &mut Report, grown: &mut PgConnection, extent: Extent) -> Result<()> {
    let log = bench.server.log().await?;
    let offset = std::fs::metadata(&log)?.len();
    plans::switch_on(grown, GROWN).await?;
    by_requests(bench, grown, extent).await?;
    by_the_janitor(bench, extent).await?;
    plans::switch_off(grown, GROWN).await?;
    let plans = plans::read(&log, offset)?;
    report.notes.push(format!("statements that were not explained: {}", plans::missing(&plans)?.join(", ")));
    report.details.push(("plans", json!(plans)));
    report.sections.push(plans::markdown(&plans));
    Ok(())
}

/// Callers are over their cap, and there is too much in all.
async fn by_the_janitor(bench: &Bench, extent: Extent) -> Result<()> {
    let of_caller = (extent.rows / u64::from(TENANTS) * 9 / 10).max(1).to_string();
    let of_all = (extent.rows * 8 / 10).max(1).to_string();
    let mut settings = bench.settings(PRUNING);
    settings.push(("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", &of_caller));
    settings.push(("IDEMPOTENCY_CACHE_MAX_ENTRIES", &of_all));
    let service = Service::start(&bench.server.url(GROWN), &settings).await?;
    let load = load_of(Kind::Usage, 4, extent.pairs_per_tenant);
    load::wrk(bench, service.port, &load, &bench.new_run(), bench.seconds.max(2)).await?;
    service.stop().await
}

async fn by_requests(bench: &Bench, grown: &mut PgConnection, extent: Extent) -> Result<()> {
    let own = [("ADMIN_API_KEY", OPERATOR), ("WEBHOOK_ALLOW_PRIVATE", "true"), ("JANITOR_INTERVAL_MS", "3600000")];
    let service = Service::start(&bench.server.url(GROWN), &bench.settings(&own)).await?;
    for kind in [Kind::Usage, Kind::Bulk { items: 100 }, Kind::Mixed] {
        let load = load_of(kind, 4, extent.pairs_per_tenant);
        load::wrk(bench, service.port, &load, &bench.new_run(), 1).await?;
    }
    let client = Client { http: reqwest::Client::new(), service: &service, keys: AtomicU32::new(1) };
    writes(&client, grown).await?;
    for path in READS.iter().map(|(_, path)| *path).chain(LISTS.iter().copied()) {
        client.get(&path.replace("{agent}", "agent-1")).await?;
    }
    client.send(Method::GET, "/api/v1/api-keys", OPERATOR, None, None).await?;
    // What a page leads to.
    for path in ["/api/v1/events?limit=100", "/api/v1/settlements?limit=1"] {
        let page = client.get(path).await?;
        let cursor = page["nextCursor"].as_str().ok_or_else(|| format!("{path} has no second page"))?;
        client.get(&format!("{path}&cursor={cursor}")).await?;
    }
    service.stop().await
}

async fn writes(client: &Client<'_>, grown: &mut PgConnection) -> Result<()> {
    // Nobody listens there: each attempt fails, and is due again later.
    let target = format!("http://127.0.0.1:{}/", service::free_port().await?);
    let webhook = client.post("/api/v1/webhooks", &json!({ "url": target, "events": ["usage.recorded"] })).await?;
    let webhook = webhook["id"].as_str().ok_or("a webhook without an id")?.to_owned();
    let usage = |agent: &str| json!({ "agent": agent, "serviceId": "svc", "requests": 3 });
    client.post("/api/v1/usage", &usage("an-agent-nobody-knew")).await?;
    client.post("/api/v1/usage", &usage("agent-1")).await?;
    client.post("/api/v1/usage", &usage("agent-2")).await?;
    client.post("/api/v1/settle", &json!({ "agent": "agent-2", "serviceId": "svc" })).await?;
    client.post("/api/v1/settle/bulk", &json!({ "agent": "agent-1" })).await?;
    client.send(Method::DELETE, "/api/v1/usage/agent-3/svc", &tenant(), Some("reset".into()), None).await?;
    // A key whose record has expired.
    let again = async || {
        client.send(Method::POST, "/api/v1/usage", &tenant(), Some("again".into()), Some(&usage("agent-4"))).await
    };
    again().await?;
    let expire = "UPDATE idempotency_keys SET expires_at = created_at + interval '1 ms' WHERE key = 'again'";
    postgres::run(grown, &format!("{expire} AND caller = '{}'", caller())).await?;
    again().await?;
    let service = json!({ "serviceId": "another", "priceStroops": 1, "description": "d", "owner": "o" });
    client.post("/api/v1/services", &service).await?;
    client.post("/api/v1/services/bulk", &json!({ "items": [{ "serviceId": "third", "priceStroops": 1 }] })).await?;
    client.post("/api/v1/services/another/disable", &Value::Null).await?;
    client.send(Method::DELETE, "/api/v1/services/another", &tenant(), None, None).await?;
    for path in ["webhooks", &format!("webhooks/{webhook}"), &format!("webhooks/{webhook}/deliveries")] {
        client.get(&format!("/api/v1/{path}")).await?;
    }
    client.send(Method::DELETE, &format!("/api/v1/webhooks/{webhook}"), &tenant(), None, None).await?;
    Ok(())
}

/// The API key of the first tenant, as load.lua makes it.
fn tenant() -> String {
    format!("apk_{:08x}{:024x}", 1, 0)
}

/// That tenant as a caller.
fn caller() -> String {
    format!("tenant:tnt_{:032x}", 1)
}

struct Client<'a> {
    http: reqwest::Client,
    service: &'a Service,
    keys: AtomicU32,
}

impl Client<'_> {
    async fn get(&self, path: &str) -> Result<Value> {
        self.send(Method::GET, path, &tenant(), None, None).await
    }

    /// With an Idempotency-Key of its own.
    async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let key = format!("bench-{}", self.keys.fetch_add(1, Ordering::Relaxed));
        self.send(Method::POST, path, &tenant(), Some(key), Some(body)).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        api_key: &str,
        key: Option<String>,
        body: Option<&Value>,
    ) -> Result<Value> {
        let mut request = self.http.request(method.clone(), self.service.url(path)).header("x-api-key", api_key);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body.filter(|body| !body.is_null()) {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        if !status.is_success() {
            return Err(format!("{method} {path}: {status} {text}").into());
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }
}

/// Every other read that has a statement of its own.
const LISTS: &[&str] = &[
    "/api/v1/services",
    "/api/v1/services/svc",
    "/api/v1/services/svc/usage",
    "/api/v1/services/svc/agents",
    "/api/v1/services/svc/agents/top",
    "/api/v1/agents",
    "/api/v1/agents/agent-1/total",
    "/api/v1/agents/agent-1/usage",
    "/api/v1/settlements",
    "/api/v1/settlements?agent=agent-2",
    "/api/v1/settlements?serviceId=svc",
    "/api/v1/settlements?agent=agent-2&serviceId=svc",
    "/api/v1/events?type=usage.recorded",
    "/api/v1/events/summary",
    "/api/v1/idempotency/again",
    "/api/v1/usage/export.csv",
];
