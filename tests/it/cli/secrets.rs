//! `secrets check`, `encrypt` and `decrypt`, beside a service.

use serde_json::{Value, json};

use crate::support::{Logged, Service, free_port, url};

use super::{as_json, command_with, printed};

/// `a` and `b`: the base64 of 32 bytes of 1, and of 2.
const A: &str = "a:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const B: &str = "b:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

/// Runs a command with these keys. Its exit code, and what it printed as JSON.
async fn secrets(service: &Service, verb: &str, keys: &str) -> (i32, Value) {
    let arguments = ["secrets", verb, "--format", "json"];
    let (code, stdout, stderr) = command_with(service, &arguments, &[("ENCRYPTION_KEYS", keys)]).await;
    assert_eq!(stderr, "");
    (code, serde_json::from_str(&stdout).expect("JSON"))
}

/// Adds webhooks of one tenant with secrets in plain text.
async fn webhooks(service: &Service, count: i32) {
    let rows = "INSERT INTO webhooks (tenant_id, webhook_id, url, events, secret, created_at, from_position)
        SELECT 'public', 'wh_' || lpad(to_hex(n), 16, '0'), 'http://example.com', '{*}', sha256(n::text::bytea), now(), 0
        FROM generate_series(1, $1) AS n";
    sqlx::query(rows).bind(count).execute(&service.pool).await.expect("webhooks");
}

const PLAIN: &str = "SELECT count(*) FROM webhooks WHERE octet_length(secret) = 32";

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_encrypted_in_batches_with_another_key_and_decrypted_again() {
    let service = Service::start(&[]).await;
    webhooks(&service, 1201).await;
    let digest = "SELECT md5(string_agg(secret::text, '' ORDER BY webhook_id)) FROM webhooks";
    let before: String = sqlx::query_scalar(digest).fetch_one(&service.pool).await.expect("a digest");
    let keys = |id: &str| json!([{ "keyId": id, "secrets": 1201 }]);
    let plain = as_json(&service, &["secrets", "check"]).await;
    assert_eq!((&plain["webhooks"], &plain["keys"]), (&json!(1201), &json!([{ "keyId": null, "secrets": 1201 }])));

    let (code, report) = secrets(&service, "encrypt", A).await;
    assert_eq!((code, &report["rewritten"], &report["keys"]), (0, &json!(1201), &keys("a")));
    assert_eq!(service.number(PLAIN).await, 0);
    // The same command again changes nothing.
    let (code, report) = secrets(&service, "encrypt", A).await;
    assert_eq!((code, &report["rewritten"]), (0, &json!(0)));
    let (code, report) = secrets(&service, "encrypt", &format!("{B} {A}")).await;
    assert_eq!((code, &report["rewritten"], &report["keys"]), (0, &json!(1201), &keys("b")));
    let (code, report) = secrets(&service, "check", A).await;
    assert_eq!(
        (code, &report["unreadable"], report["failures"].as_array().map(Vec::len)),
        (1, &json!(1201), Some(100))
    );
    let error = "it is encrypted with the key b, which ENCRYPTION_KEYS does not have";
    let first = json!({ "tenantId": "public", "webhookId": "wh_0000000000000001", "error": error });
    assert_eq!(report["failures"][0], first);
    let (code, report) = secrets(&service, "decrypt", B).await;
    assert_eq!((code, &report["rewritten"]), (0, &json!(1201)));
    let after: String = sqlx::query_scalar(digest).fetch_one(&service.pool).await.expect("a digest");
    assert_eq!(after, before);

    let log = as_json(&service, &["audit", "export"]).await;
    let entries = log.as_array().expect("a list").iter();
    let entries: Vec<String> = entries.map(|entry| format!("{} {}", entry["operation"], entry["after"])).collect();
    assert_eq!(entries.len(), 9, "{entries:?}");
    assert_eq!(entries[0], r#""secrets.encrypted" {"keyId":"a","webhooks":500}"#);
    assert_eq!(entries[8], r#""secrets.decrypted" {"keyId":null,"webhooks":201}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_decrypted_stays_and_an_expired_secret_is_deleted() {
    let service = Service::start(&[]).await;
    webhooks(&service, 3).await;
    assert_eq!(secrets(&service, "encrypt", A).await.0, 0);
    let changes = "UPDATE webhooks SET secret = decode(repeat('00', 60), 'hex') WHERE webhook_id LIKE '%1';
        UPDATE webhooks SET previous_secret = secret, previous_secret_key_id = 'a', previous_secret_until = now()
        WHERE webhook_id LIKE '%2'";
    sqlx::raw_sql(changes).execute(&service.pool).await.expect("changes");
    let (code, report) = secrets(&service, "encrypt", &format!("{B},{A}")).await;
    assert_eq!((code, &report["rewritten"], &report["unreadable"]), (1, &json!(2), &json!(1)));
    let keys = json!([{ "keyId": "a", "secrets": 1 }, { "keyId": "b", "secrets": 2 }]);
    assert_eq!((&report["keys"], &report["failures"][0]["webhookId"]), (&keys, &json!("wh_0000000000000001")));
    assert_eq!(service.number("SELECT count(*) FROM webhooks WHERE previous_secret IS NOT NULL").await, 0);
    let arguments = ["secrets", "encrypt"];
    let refused = command_with(&service, &arguments, &[]).await;
    assert_eq!(refused, (1, String::new(), "ENCRYPTION_KEYS is not set\n".to_owned()));
    let (code, _, stderr) = command_with(&service, &arguments, &[("ENCRYPTION_KEYS", "a:hunter2")]).await;
    assert!(
        code == 1 && stderr.starts_with("ENCRYPTION_KEYS must be a list of ") && !stderr.contains("hunter2"),
        "{stderr}"
    );
    assert!(printed(&service, &["config", "show"]).await.contains("ENCRYPTION_KEYS"));
    let table = command_with(&service, &["secrets", "check"], &[("ENCRYPTION_KEYS", B)]).await.1;
    let has = |start: &str, end: &str| table.lines().any(|line| line.starts_with(start) && line.ends_with(end));
    assert!(has("cannot be decrypted", " 1") && has("key b", " 2 secrets"), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_plain_keys_decrypt_and_encrypt_nothing() {
    let service = Service::start(&[]).await;
    webhooks(&service, 3).await;
    assert_eq!(secrets(&service, "encrypt", A).await.0, 0);
    let keys = format!("plain,{A}");
    let refused = command_with(&service, &["secrets", "encrypt"], &[("ENCRYPTION_KEYS", &keys)]).await;
    assert_eq!((refused.0, refused.2.as_str()), (1, "ENCRYPTION_KEYS begins with plain: its keys encrypt nothing\n"));
    let (code, report) = secrets(&service, "decrypt", &keys).await;
    assert_eq!((code, &report["rewritten"], service.number(PLAIN).await), (0, &json!(3), 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_locks_nothing() {
    let service = Service::start(&[]).await;
    webhooks(&service, 3).await;
    let mut transaction = service.pool.begin().await.expect("a transaction");
    sqlx::query("SELECT FROM webhooks FOR UPDATE").execute(&mut *transaction).await.expect("locks");
    let (code, report) = secrets(&service, "check", A).await;
    assert_eq!((code, &report["webhooks"]), (0, &json!(3)));
    transaction.rollback().await.expect("the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_says_what_is_wrong_with_stored_secrets() {
    let service = Service::start(&[]).await;
    webhooks(&service, 1).await;
    let database = url(&service.pool.connect_options());
    let says = async |environment: &[(&str, &str)], text: &str| {
        let port = free_port().to_string();
        let started = Logged::start(&[&[("DATABASE_URL", database.as_str()), ("PORT", &port)], environment].concat());
        started.says(text).await;
        started.says("server started").await;
        started.text()
    };
    let plain = "secrets of webhooks are stored as plain text";
    let [required, admin] = [("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "admin")];
    says(&[required, admin], &format!("{plain}: set ENCRYPTION_KEYS")).await;
    says(&[("ENCRYPTION_KEYS", &format!("plain {A}"))], &format!("{plain}, because ENCRYPTION_KEYS begins")).await;
    says(&[("ENCRYPTION_KEYS", A)], &format!("{plain}: run `agentpay-billing secrets encrypt`")).await;
    assert!(!says(&[], "server started").await.contains(plain));
    assert_eq!(secrets(&service, "encrypt", A).await.0, 0);
    assert!(!says(&[required, admin, ("ENCRYPTION_KEYS", A)], "server started").await.contains("secret of a webhook"));
    let wrong = "the key a of ENCRYPTION_KEYS does not decrypt it";
    says(&[required, admin, ("ENCRYPTION_KEYS", &A.replace("AQE=", "AQI="))], wrong).await;
}
