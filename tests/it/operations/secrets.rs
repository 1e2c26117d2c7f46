//! No secret leaves the service: the real binary at LOG_LEVEL=trace, on a database with a password, made to talk in
//! every way it can; then its log, its answers, its metrics and its events are searched.

use std::fs;
use std::path::PathBuf;

use agentpay_billing::local_postgres::LocalPostgres;
use serde_json::json;
use sqlx::postgres::PgPool;
use tokio::net::{TcpListener, UnixStream};

use crate::support::{Answer, Behaviour, Client, Logged, Receiver, free_port, usage};

const PASSWORD: &str = "pass-word-of-the-database";
const ADMIN_KEY: &str = "the-admin-key-of-this-test";
const METRICS_TOKEN: &str = "the-token-of-the-scraper";
/// Stands in bodies only.
const BODY: &str = "only-a-body-says-this";

/// A server that wants a password, and asks for it over TCP.
struct Guarded {
    postgres: LocalPostgres,
    pool: PgPool,
    dir: PathBuf,
    port: u16,
}

impl Guarded {
    async fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("agentpay-secrets-{}", uuid::Uuid::new_v4()));
        let postgres = LocalPostgres::start(&dir, &[("fsync", "off")]).await.expect("a PostgreSQL");
        let pool = PgPool::connect_with(postgres.connect_options("agentpay")).await.expect("connect");
        let role = format!("CREATE ROLE secretive LOGIN SUPERUSER PASSWORD '{PASSWORD}'");
        sqlx::query(sqlx::AssertSqlSafe(role)).execute(&pool).await.expect("a role");
        let access = "local all secretive scram-sha-256\nlocal all all trust\n";
        fs::write(dir.join("postgres/data/pg_hba.conf"), access).expect("pg_hba.conf");
        sqlx::query("SELECT pg_reload_conf()").execute(&pool).await.expect("reload");
        let port = forward(postgres.socket_dir().join(".s.PGSQL.5432")).await;
        Self { postgres, pool, dir, port }
    }

    fn url(&self, password: &str) -> String {
        format!("postgres://secretive:{password}@127.0.0.1:{}/agentpay?sslmode=disable", self.port)
    }

    async fn stop(self) {
        self.pool.close().await;
        self.postgres.stop().await.expect("stop");
        fs::remove_dir_all(self.dir).expect("the directory");
    }
}

/// The server listens on a Unix socket only; this port of ours leads to it.
async fn forward(socket: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let socket = socket.clone();
            tokio::spawn(async move {
                if let Ok(mut server) = UnixStream::connect(socket).await {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    port
}

fn start(url: &str, port: u16, format: &str) -> Logged {
    let port = port.to_string();
    Logged::start(&[
        ("DATABASE_URL", url),
        ("PORT", &port),
        ("LOG_FORMAT", format),
        ("LOG_LEVEL", "trace"),
        // What other programs take for a level must not open the drivers' logs.
        ("RUST_LOG", "trace"),
        ("ADMIN_API_KEY", ADMIN_KEY),
        ("METRICS_TOKEN", METRICS_TOKEN),
        ("REQUIRE_API_KEY", "true"),
        ("WEBHOOK_ALLOW_PRIVATE", "true"),
        ("RATE_LIMIT", "off"),
        ("JANITOR_INTERVAL_MS", "50"),
    ])
}

/// Uses everything that has to do with secrets. Gives the secrets, and all answers but the two that make one.
async fn talk(client: &Client, guarded: &Guarded, receiver: &Receiver) -> (Vec<String>, Vec<Answer>) {
    let admin = client.with("x-api-key", ADMIN_KEY);
    let key = admin.post("/api/v1/api-keys", &json!({ "label": "l" })).await.json()["key"].clone();
    let key = key.as_str().expect("a key").to_owned();
    let tenant = client.with("x-api-key", &key);
    let hook = json!({ "url": receiver.url, "events": ["*"] });
    let made = tenant.post("/api/v1/webhooks", &hook).await.json();
    let (id, secret) = (made["id"].as_str().expect("an id"), made["secret"].as_str().expect("a secret"));
    let described = json!({ "serviceId": "s", "priceStroops": 1, "description": BODY, "owner": "o" });
    let malformed = format!(r#"{{"agent":"{key}","x":"{BODY}"#);
    let strict = format!(r#"{{"label":"l","{BODY}":"{secret}"}}"#);
    let one = format!("/api/v1/webhooks/{id}");
    let mut answers = vec![
        tenant.post("/api/v1/services", &described).await,
        tenant.key("k").post("/api/v1/usage", &usage("a", "s", 1)).await,
        tenant.key("k").post("/api/v1/usage", &usage("a", "s", 1)).await,
        tenant.key("k").post("/api/v1/usage", &usage("a", "s", 2)).await,
        tenant.send("POST", "/api/v1/usage", Some(&malformed)).await,
        tenant.send("POST", "/api/v1/usage", Some(&format!(r#"["{key}"]"#))).await,
        admin.send("POST", "/api/v1/api-keys", Some(&strict)).await,
        client.with("x-api-key", &key[..35]).post("/api/v1/usage", &usage("a", "s", 1)).await,
        client.with("x-api-key", &format!("{ADMIN_KEY}x")).send("POST", "/api/v1/admin/pause", None).await,
        tenant.post("/api/v1/settle", &json!({ "agent": "a", "serviceId": "s" })).await,
        tenant.send("POST", &format!("{one}/test"), None).await,
        tenant.send("PATCH", &one, Some(r#"{"events":["*"]}"#)).await,
        tenant.get(&format!("{one}?key={key}&secret={secret}")).await,
        admin.send("POST", "/api/v1/admin/pause", None).await,
        admin.send("POST", "/api/v1/admin/unpause", None).await,
    ];
    // A delivery that fails, and one whose receiver is gone.
    receiver.reach(3).await;
    receiver.usually(Behaviour::Status(500));
    answers.push(tenant.send("POST", &format!("{one}/test"), None).await);
    // A fault whose details hold the row, and with it the body.
    let check = "ALTER TABLE services ADD CONSTRAINT never CHECK (service_id <> 'refused') NOT VALID";
    sqlx::query(check).execute(&guarded.pool).await.expect("a constraint");
    let refused = json!({ "serviceId": "refused", "priceStroops": 1, "description": BODY, "owner": key });
    let fault = tenant.key("f").post("/api/v1/services", &refused).await;
    assert_eq!(fault.status, 500, "{fault:?}");
    answers.push(fault);
    // A key where its prefix belongs: the answer repeats what was sent, the log does not.
    assert_eq!(admin.send("DELETE", &format!("/api/v1/api-keys/{key}"), None).await.status, 404);
    // Without its connections, and without its database.
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'secretive'";
    sqlx::query(cut).execute(&guarded.pool).await.expect("terminate");
    answers.push(tenant.post("/api/v1/usage", &usage("a", "s", 1)).await);
    for path in [
        "/api/v1/stats",
        "/api/v1/config",
        "/api/v1/metrics",
        "/api/v1/events",
        "/api/v1/events/summary",
        "/api/v1/webhooks",
        &one,
        &format!("{one}/deliveries"),
        "/api/v1/settlements",
        "/api/v1/services",
        "/api/v1/usage/export.csv",
        "/api/v1/idempotency/k",
        "/api/v1/health/deep",
        "/nothing",
    ] {
        answers.push(tenant.get(path).await);
    }
    answers.push(client.with("authorization", &format!("Bearer {METRICS_TOKEN}")).get("/api/v1/metrics").await);
    answers.push(admin.get("/api/v1/api-keys").await);
    answers.push(admin.get("/api/v1/stats").await);
    guarded.postgres.stop_immediately().await.expect("stop");
    answers.push(client.with("x-api-key", &key.replace('a', "b")).get("/api/v1/services").await);
    answers.push(tenant.post("/api/v1/usage", &usage("a", "s", 1)).await);
    answers.push(tenant.get("/api/v1/health/deep").await);
    guarded.postgres.start_again().await.expect("start");
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &secret[6..]).expect("base64");
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let secrets =
        vec![PASSWORD.to_owned(), ADMIN_KEY.to_owned(), METRICS_TOKEN.to_owned(), key, secret[6..].to_owned(), hex];
    (secrets, answers)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_body_is_logged_or_told() {
    for format in ["json", "pretty"] {
        let (guarded, receiver) = (Guarded::start().await, Receiver::start().await);
        let port = free_port();
        let mut service = start(&guarded.url(PASSWORD), port, format);
        service.says("server started").await;
        let client = Client::new(([127, 0, 0, 1], port).into());
        let (secrets, answers) = talk(&client, &guarded, &receiver).await;
        service.terminate();
        service.exit().await;

        let log = service.text();
        // It did log, and what went wrong too.
        for said in ["request completed", "request failed", "/api/v1/webhooks", "shutdown signal received"] {
            assert!(log.contains(said), "{said} is not in {log}");
        }
        for answer in &answers {
            let told = format!("{:?} {}", answer.headers, answer.text);
            assert!(!secrets.iter().any(|secret| told.contains(secret.as_str())), "{told}");
        }
        let kept: Vec<(String, String)> = sqlx::query_as(
            "SELECT payload::text, '' FROM events UNION ALL SELECT payload::text, coalesce(error, '')
             FROM webhook_deliveries UNION ALL SELECT response::text, path FROM idempotency_keys",
        )
        .fetch_all(&guarded.pool)
        .await
        .expect("rows");
        assert!(kept.len() > 5, "{kept:?}");
        for secret in &secrets {
            assert!(!format!("{kept:?}").contains(secret.as_str()), "{kept:?}");
            let line = log.lines().find(|line| line.contains(secret.as_str()));
            assert_eq!(line, None, "a secret in the log ({format})");
        }
        for words in [BODY, "Failing row", "whsec_", "scram", "INSERT INTO"] {
            assert_eq!(log.lines().find(|line| line.contains(words)), None, "{words} in the log ({format})");
        }
        drop(service);
        guarded.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_password_is_not_repeated() {
    let guarded = Guarded::start().await;
    for url in [guarded.url("wrong-pass-word"), "postgres://u:wrong-pass-word@[bad/x".to_owned()] {
        let mut service = start(&url, free_port(), "json");
        let status = service.exit().await;
        let log = service.text();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(!log.contains("wrong-pass-word") && !log.contains(ADMIN_KEY), "{log}");
        assert!(log.contains("agentpay") || log.contains("DATABASE_URL"), "{log}");
    }
    guarded.stop().await;
}
