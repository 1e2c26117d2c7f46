//! The service as a process of its own: started as in production, asked whether it is ready, stopped by SIGTERM.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use crate::error::Result;
use crate::scenario::Bench;

const READY_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);

pub struct Service {
    process: Child,
    pub pid: u32,
    pub port: u16,
    http: reqwest::Client,
}

impl Service {
    /// Its log is written, at the default level unless `settings` say otherwise, and thrown away.
    pub async fn start(bench: &Bench, database: &str, settings: &[(&str, &str)]) -> Result<Self> {
        Self::start_on(bench, "DATABASE_URL", &bench.server.url(database), settings).await
    }

    /// `source` is the variable that says where the data is.
    pub async fn start_on(bench: &Bench, source: &str, value: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0)).await?.local_addr()?.port();
        let mut command = Command::new(&bench.service);
        command.arg("serve").env_clear().env(source, value).env("PORT", port.to_string());
        command.envs([("RATE_LIMIT", "off"), ("HOST", "127.0.0.1"), ("LOG_LEVEL", "info"), ("LOG_FORMAT", "json")]);
        // One caller sends everything: within an hour more than it may have by default, and then it would be refused.
        command.envs([
            ("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", "1000000000"),
            ("IDEMPOTENCY_MAX_BYTES_PER_CALLER", "1000000000000"),
            ("IDEMPOTENCY_CACHE_MAX_ENTRIES", "1000000000"),
        ]);
        // It would run in the midst of a long measurement.
        command.env("VERIFY_INTERVAL_MS", "0");
        command.envs(bench.settings(settings));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
        let process = command.spawn()?;
        let pid = process.id().ok_or("the service has no process id")?;
        let mut service = Self { process, pid, port, http: reqwest::Client::new() };
        let began = Instant::now();
        while service.get("/api/v1/health/ready").await.is_err() {
            if let Some(status) = service.process.try_wait()? {
                return Err(format!("the service did not start: {status}").into());
            }
            if began.elapsed() > READY_LIMIT {
                return Err("the service is not ready after 60 s".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(service)
    }

    /// Has the service check what it finds in a database.
    pub async fn verify(bench: &Bench, database: &str) -> Result<()> {
        Self::command(bench, "DATABASE_URL", &bench.server.url(database), &["verify"]).await
    }

    /// Runs a command of the service.
    pub async fn command(bench: &Bench, source: &str, value: &str, arguments: &[&str]) -> Result<()> {
        let output = Command::new(&bench.service).args(arguments).env_clear().env(source, value).output().await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(format!("{}: {text}", arguments.join(" ")).into()) }
    }

    pub async fn get(&self, path: &str) -> Result<String> {
        self.send(self.http.get(self.url(path))).await
    }

    /// Sends a JSON body, as the tenant of `api_key` if there is one.
    pub async fn send_json(&self, method: reqwest::Method, path: &str, api_key: &str, body: Value) -> Result<Value> {
        let request = self.http.request(method, self.url(path)).header("content-type", "application/json");
        let answer = self.send(request.header("x-api-key", api_key).body(body.to_string())).await?;
        Ok(serde_json::from_str(&answer)?)
    }

    pub async fn record(&self, api_key: &str, key: &str, usage: Value) -> Result<()> {
        let request = self.http.post(self.url("/api/v1/usage")).header("content-type", "application/json");
        let request = request.header("x-api-key", api_key).header("idempotency-key", key);
        self.send(request.body(usage.to_string())).await.map(drop)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<String> {
        let answer = request.send().await?;
        let (status, url, text) = (answer.status(), answer.url().clone(), answer.text().await?);
        if status.is_success() { Ok(text) } else { Err(format!("{url}: {status} {text}").into()) }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Makes a tenant with a priced service `svc`, and returns its API key.
    pub async fn new_tenant(&self) -> Result<String> {
        let post = reqwest::Method::POST;
        let created = self.send_json(post.clone(), "/api/v1/api-keys", "", json!({ "label": "bench" })).await?;
        let api_key = created["key"].as_str().ok_or("a tenant without a key")?.to_owned();
        let service = json!({ "serviceId": "svc", "priceStroops": 100 });
        self.send_json(post, "/api/v1/services", &api_key, service).await?;
        Ok(api_key)
    }

    /// Commands and commits so far, from the service's metrics.
    pub async fn batches(&self) -> Result<(f64, f64)> {
        let text = self.get("/api/v1/metrics").await?;
        // With several cells there is one line for each.
        let value = |name: &str| -> Result<f64> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix([' ', '{']));
            let values: Vec<f64> = lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
            if values.is_empty() { Err(format!("the metrics lack {name}").into()) } else { Ok(values.iter().sum()) }
        };
        Ok((value("agentpay_commit_batch_size_sum")?, value("agentpay_commit_batch_size_count")?))
    }

    /// Drains it; an error if that fails.
    pub async fn stop(mut self) -> Result<()> {
        Command::new("kill").args(["-TERM", &self.pid.to_string()]).status().await?;
        let status = tokio::time::timeout(STOP_LIMIT, self.process.wait()).await??;
        if status.success() { Ok(()) } else { Err(format!("the service ended with {status}").into()) }
    }
}
