//! TLS with certificates of a test's own authority: to PostgreSQL, by the client's certificate too, and to receivers of
//! webhooks.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use agentpay_billing::local_postgres::LocalPostgres;
use serde_json::json;
use sqlx::postgres::PgPool;

use crate::support::{
    Authority, DataDir, Issued, Process, Receiver, free_port, new_database, run, url, usage, wait_until,
};

/// Encrypted connections only: one role has a password, the other a certificate.
const ACCESS: &str = "local all all trust\n\
                      hostssl all billing 127.0.0.1/32 scram-sha-256\n\
                      hostssl all certified 127.0.0.1/32 cert\n";

/// A PostgreSQL with TLS whose name is `localhost`.
struct TlsServer {
    postgres: LocalPostgres,
    pool: PgPool,
    port: u16,
    authority: Authority,
    _dir: DataDir,
}

impl TlsServer {
    async fn start() -> Self {
        let (dir, authority, port) = (DataDir::new(), Authority::new(), free_port());
        let port_text = port.to_string();
        let settings = [("fsync", "off"), ("listen_addresses", "127.0.0.1"), ("port", &port_text)];
        let postgres = LocalPostgres::open(dir.path(), &settings).await.expect("a directory");
        // The private PostgreSQL is looked for under its usual port.
        let sockets = postgres.socket_dir();
        symlink(format!(".s.PGSQL.{port}"), sockets.join(".s.PGSQL.5432")).expect("a link");
        postgres.run().await.expect("a PostgreSQL");
        let data = dir.path().join("postgres/data");
        let server = authority.issue("localhost");
        for (from, to) in
            [(&server.certificate, "server.crt"), (&server.key, "server.key"), (&authority.root(), "root.crt")]
        {
            give(&data, from, to);
        }
        fs::write(data.join("pg_hba.conf"), ACCESS).expect("pg_hba.conf");
        let pool = PgPool::connect_with(postgres.connect_options("agentpay")).await.expect("connect");
        for sql in [
            "CREATE ROLE billing SUPERUSER LOGIN PASSWORD 'hunter2'",
            "CREATE ROLE certified SUPERUSER LOGIN",
            "ALTER SYSTEM SET ssl_ca_file = 'root.crt'",
            "ALTER SYSTEM SET ssl = on",
            "SELECT pg_reload_conf()",
        ] {
            sqlx::query(sql).execute(&pool).await.expect(sql);
        }
        let is_on = "SELECT setting FROM pg_settings WHERE name = 'ssl'";
        wait_until(async || sqlx::query_scalar::<_, String>(is_on).fetch_one(&pool).await.expect("ssl") == "on").await;
        Self { postgres, pool, port, authority, _dir: dir }
    }

    fn url(&self, user: &str, host: &str, parameters: &str) -> String {
        format!("postgres://{user}:hunter2@{host}:{}/agentpay?{parameters}", self.port)
    }

    /// Connections of the service, and how many of them are encrypted.
    async fn connections(&self, user: &str) -> (i64, i64) {
        let count = "SELECT count(*), count(*) FILTER (WHERE ssl) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)
                     WHERE usename = $1";
        sqlx::query_as(count).bind(user).fetch_one(&self.pool).await.expect("a count")
    }

    async fn stop(self) {
        self.pool.close().await;
        self.postgres.stop().await.expect("stop");
    }
}

/// Copies a file into a data directory, for the server alone.
fn give(data: &Path, from: &Path, name: &str) {
    let (to, owner) = (data.join(name), fs::metadata(data).expect("the data"));
    fs::copy(from, &to).expect("a copy");
    fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("permissions");
    chown(&to, Some(owner.uid()), Some(owner.gid())).expect("an owner");
}

fn verify_full(root: &Path, client: Option<&Issued>) -> String {
    let mut parameters = format!("sslmode=verify-full&sslrootcert={}", root.display());
    if let Some(Issued { certificate, key }) = client {
        parameters += &format!("&sslcert={}&sslkey={}", certificate.display(), key.display());
    }
    parameters
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_to_a_database_with_a_verified_certificate_is_encrypted() {
    let server = TlsServer::start().await;
    let client = server.authority.issue("certified");
    for (user, client) in [("billing", None), ("certified", Some(&client))] {
        let url = server.url(user, "localhost", &verify_full(&server.authority.root(), client));
        let process = Process::start_with(&[("DATABASE_URL", &url)], 0);
        let recorded = process.client().key(user).post("/api/v1/usage", &usage("a", "s", 1)).await;
        assert_eq!(recorded.status, 201, "{recorded:?}");
        // A lane, the watcher of the configuration, and the pool.
        wait_until(async || server.connections(user).await.0 >= 3).await;
        let (all, encrypted) = server.connections(user).await;
        assert_eq!(all, encrypted);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_trusted_or_does_not_trust_us_ends_the_start_at_once() {
    let server = TlsServer::start().await;
    let (root, other) = (server.authority.root(), Authority::new());
    let (known, unknown) = (server.authority.issue("certified"), other.issue("certified"));
    let nowhere = Path::new("/nowhere/root.pem");
    for (user, host, parameters, reason) in [
        ("billing", "localhost", verify_full(&other.root(), None), "invalid peer certificate"),
        ("billing", "127.0.0.1", verify_full(&root, None), "not valid for name"),
        ("billing", "localhost", verify_full(nowhere, None), "sslrootcert /nowhere/root.pem, which cannot be read"),
        ("billing", "localhost", "sslmode=disable".to_owned(), "no encryption"),
        ("certified", "localhost", verify_full(&root, None), "requires a valid client certificate"),
        ("certified", "localhost", verify_full(&root, Some(&unknown)), "TLS failed"),
        ("billing", "localhost", verify_full(&root, Some(&known)).replace(".key", ".csr"), "no keys found"),
    ] {
        let url = server.url(user, host, &parameters);
        let output = run(&["verify"], &[("DATABASE_URL", &url)]).await;
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1), "{parameters}: {told}");
        assert!(told.contains(reason) && !told.contains("hunter2"), "{parameters}: {told}");
        assert!(!told.contains("no answer within"), "{parameters}: {told}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_sent_to_receivers_whose_certificate_the_machine_trusts() {
    let (database, authority, other) = (url(&new_database().await), Authority::new(), Authority::new());
    let root = authority.root();
    let environment = [
        ("DATABASE_URL", database.as_str()),
        ("WEBHOOK_ALLOW_PRIVATE", "true"),
        ("SSL_CERT_FILE", root.to_str().expect("UTF-8")),
    ];
    let process = Process::start_with(&environment, 0);
    let client = process.client();
    let known = Receiver::start_tls(&authority.issue("localhost")).await;
    let unknown = Receiver::start_tls(&other.issue("localhost")).await;
    let misnamed = Receiver::start_tls(&authority.issue("receiver.example")).await;
    for (receiver, status) in [(&known, 200), (&unknown, 502), (&misnamed, 502)] {
        let hook = json!({ "url": receiver.url, "events": ["usage.recorded"] });
        let made = client.post("/api/v1/webhooks", &hook).await.json();
        let test = format!("/api/v1/webhooks/{}/test", made["id"].as_str().expect("an id"));
        let tested = client.send("POST", &test, None).await;
        assert_eq!(tested.status, status, "{tested:?}");
    }
    client.post("/api/v1/usage", &usage("a", "s", 1)).await;
    known.reach(2).await;
    assert_eq!((unknown.received().len(), misnamed.received().len()), (0, 0));
}
