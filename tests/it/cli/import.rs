//! `import`: a tenant moves over exactly once, also when the command is killed half-way.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Service, binary, url, wait_until};

use super::{command, printed, tenant};

/// A directory with exports, which is removed in the end.
struct Exports(PathBuf);

impl Exports {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("agentpay-import-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }

    fn write(&self, name: &str, content: &Value) -> String {
        std::fs::write(self.0.join(name), content.to_string()).expect("a file");
        self.path(name)
    }

    fn read(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.0.join(name)).expect("a file")).expect("JSON")
    }

    /// Of so many pairs, each of one request. The agent with the given number is `slow`.
    fn usage(&self, pairs: usize, slow: Option<usize>) -> String {
        let agent = |number| if Some(number) == slow { "slow".to_owned() } else { format!("agent-{number}") };
        let item = |number| json!({ "agent": agent(number), "serviceId": "s", "total": 1 });
        self.write("usage.json", &json!({ "exportedAt": 1, "items": (0..pairs).map(item).collect::<Vec<_>>() }))
    }
}

impl Drop for Exports {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const RECORDED: &str = "SELECT coalesce(sum(outstanding), 0)::bigint FROM usage_counters";

async fn report(service: &Service, arguments: &[&str]) -> Value {
    super::as_json(service, &[&["import"], arguments].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_half_way_goes_on_and_counts_nothing_twice() {
    let service = Service::start(&[]).await;
    let (tenant, _) = tenant(&service, "shop").await;
    let exports = Exports::new();
    let usage = exports.usage(1700, Some(1200));
    let arguments = ["import", "--tenant", &tenant, "--usage", &usage];
    service.slow_down().await;
    let database = url(&service.pool.connect_options());
    let mut command = binary(&[("DATABASE_URL", &database)]);
    let mut killed = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary");
    // Two parts are committed, and the third is under way.
    wait_until(async || service.number(crate::support::SLEEPING).await > 0).await;
    assert_eq!(service.number(RECORDED).await, 1000);
    killed.kill().expect("a process");
    killed.wait().expect("its end");
    service.speed_up().await;

    let resumed = report(&service, &arguments[1..]).await;
    // Whether the third part was committed is for the database to know.
    let (now, earlier) = (&resumed["pairs"]["now"], &resumed["pairs"]["earlier"]);
    assert_eq!(now.as_i64().expect("a number") + earlier.as_i64().expect("a number"), 1700);
    assert!(earlier.as_i64() >= Some(1000), "{resumed}");
    assert_eq!(service.number(RECORDED).await, 1700);
    let again = report(&service, &arguments[1..]).await;
    assert_eq!((&again["pairs"], &again["requests"]), (&json!({ "now": 0, "earlier": 1700 }), &again["pairs"]));
    assert_eq!(service.number(RECORDED).await, 1700);
    let shown =
        super::as_json(&service, &["idempotency", "show", "import-original-usage-3", "--tenant", &tenant]).await;
    assert_eq!(shown["usage"].as_array().map(Vec::len), Some(200));
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_services_and_usage_are_imported_by_one_command() {
    let service = Service::start(&[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "admin")]).await;
    let exports = Exports::new();
    let keys = exports.write(
        "keys.json",
        &json!({
            "items": [
                { "prefix": "apk_aaaaaaaa", "label": "shop", "createdAt": 1 },
                { "prefix": "apk_bbbb", "label": "é 'quoted'", "createdAt": 2 },
            ],
            "total": 2, "nextCursor": null,
        }),
    );
    let services = exports.write(
        "services.json",
        &json!({ "services": [
            { "serviceId": "plain", "priceStroops": 3, "disabled": false },
            { "serviceId": "described", "priceStroops": 0, "disabled": false, "description": "d", "owner": "o" },
            { "serviceId": "off", "priceStroops": 5, "disabled": true },
        ]}),
    );
    let usage = exports.write(
        "usage.json",
        &json!({ "exportedAt": 1, "items": [
            { "agent": "a", "serviceId": "plain", "total": 2_000_001 },
            { "agent": "b", "serviceId": "off", "total": 7 },
            { "agent": "c", "serviceId": "unregistered", "total": 9_007_199_254_740_991_i64 },
            { "agent": "d", "serviceId": "plain", "total": 0 },
        ]}),
    );
    let new_keys = exports.path("new-keys.json");
    let of_keys = ["--keys", &keys, "--new-keys", &new_keys];
    let of_usage = ["--services", &services, "--usage", &usage];
    let (code, _, stderr) = command(&service, &[&["import"], &of_keys[..], &of_usage].concat()).await;
    assert!(code == 1 && stderr.contains("--old-key"), "{stderr}");
    assert_eq!(service.number("SELECT count(*) FROM api_keys").await, 0);

    let arguments = [&of_keys[..], &of_usage, &["--old-key", "apk_bbbbbbbb"]].concat();
    let first = report(&service, &arguments).await;
    let made = exports.read("new-keys.json");
    let key = made[1]["key"].as_str().expect("a key").to_owned();
    let count = |now: i64, earlier: i64| json!({ "now": now, "earlier": earlier });
    assert_eq!(
        first,
        json!({
            "tenantId": made[1]["tenantId"], "keys": count(2, 0), "services": count(3, 0), "pairs": count(3, 0),
            "requests": count(9_007_199_256_741_000 - 1, 0), "disabledServices": count(1, 0), "failures": [],
        })
    );
    let client = service.client().with("x-api-key", &key);
    let exported = client.get("/api/v1/usage/export.json").await.json();
    let kept: Vec<Value> = exports.read("usage.json")["items"].as_array().expect("items")[..3].to_vec();
    assert_eq!(exported["items"], json!(kept));
    assert_eq!(client.get("/api/v1/services").await.json(), exports.read("services.json"));
    assert_eq!(client.post("/api/v1/usage", &crate::support::usage("a", "plain", 1)).await.status, 201);
    let labels = service.client().with("x-api-key", "admin").get("/api/v1/api-keys").await.json();
    assert_eq!((&labels["items"][0]["label"], &labels["items"][1]["label"]), (&json!("shop"), &json!("é 'quoted'")));

    // A tenant that has changed something since keeps its change.
    client.send("PATCH", "/api/v1/services/plain/price", Some(r#"{"priceStroops":9}"#)).await;
    let second = report(&service, &arguments).await;
    assert_eq!((&second["keys"], &second["services"], &second["pairs"]), (&count(0, 2), &count(0, 3), &count(0, 3)));
    assert_eq!(client.get("/api/v1/services/plain").await.json()["priceStroops"], 9);
    assert_eq!(exports.read("new-keys.json"), made);
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_created_once_wherever_an_import_ended() {
    let service = Service::start(&[]).await;
    let exports = Exports::new();
    let item = |number: u32| json!({ "prefix": format!("apk_{number:08x}"), "label": format!("key {number}") });
    let keys = exports.write("keys.json", &json!({ "items": [item(1), item(2), item(3)], "nextCursor": null }));
    let new_keys = exports.path("new-keys.json");
    let arguments = ["--keys", &keys, "--new-keys", &new_keys];
    report(&service, &arguments).await;
    let made = exports.read("new-keys.json");
    let permissions =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&new_keys).expect("a file").permissions());
    assert_eq!(permissions & 0o777, 0o600);
    // Killed when the first was noted, the second created and the third only drawn; the first was revoked since.
    let mut file = made.clone();
    file[1]["tenantId"] = Value::Null;
    file[2]["tenantId"] = Value::Null;
    exports.write("new-keys.json", &file);
    for place in [0, 2] {
        let prefix = &made[place]["key"].as_str().expect("a key")[..12];
        printed(&service, &["keys", "revoke", prefix]).await;
    }
    let resumed = report(&service, &arguments).await;
    assert_eq!(resumed["keys"], json!({ "now": 2, "earlier": 1 }));
    let resumed = exports.read("new-keys.json");
    assert_eq!((&resumed[0], &resumed[1], &resumed[2]["key"]), (&made[0], &made[1], &made[2]["key"]));
    assert_eq!(service.number("SELECT count(*) FROM api_keys").await, 2);
    let other = exports.write("keys.json", &json!({ "items": [item(1), item(4)], "nextCursor": null }));
    let (code, _, stderr) = command(&service, &["import", "--keys", &other, "--new-keys", &new_keys]).await;
    assert!(code == 1 && stderr.contains("another export"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_exports_under_the_same_name_are_refused() {
    let service = Service::start(&[]).await;
    let exports = Exports::new();
    let usage = exports.usage(3, None);
    let arguments = ["import", "--tenant", "public", "--usage", &usage];
    printed(&service, &arguments).await;
    exports.usage(4, None);
    let (code, stdout, stderr) = command(&service, &arguments).await;
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("import-original-usage-0 differs"), "{stderr}");
    assert_eq!(service.number(RECORDED).await, 3);
    printed(&service, &[&arguments[..], &["--name", "second"]].concat()).await;
    assert_eq!(service.number(RECORDED).await, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_named_and_tried_again_by_a_repetition() {
    let service = Service::start(&[]).await;
    let exports = Exports::new();
    let usage = exports.usage(5, None);
    let limit = |pairs: i64| json!({ "usageStoreMaxKeys": pairs }).to_string();
    let import = ["import", "--tenant", "public", "--usage", &usage];
    for (pairs, recorded, left) in [(2, 2, 3), (4, 4, 1), (4, 4, 1), (9, 5, 0)] {
        service.client().send("PATCH", "/api/v1/config", Some(&limit(pairs))).await;
        let (code, stdout, _) = command(&service, &import).await;
        assert_eq!(stdout.matches("store_capacity_exceeded").count(), left, "{stdout}");
        assert_eq!((code, service.number(RECORDED).await), (i32::from(left > 0), recorded));
    }
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_imported_of_exports_that_break_a_rule() {
    let service = Service::start(&[]).await;
    let exports = Exports::new();
    let services = exports.write("services.json", &json!({ "services": [{ "serviceId": "s", "priceStroops": 1 }] }));
    let usage = exports.write(
        "usage.json",
        &json!({ "items": [
            { "agent": "a", "serviceId": "s", "total": 1 }, { "agent": "a b", "serviceId": "s", "total": 1 },
        ]}),
    );
    let arguments = ["import", "--tenant", "public", "--services", &services, "--usage", &usage];
    let (code, stdout, stderr) = command(&service, &arguments).await;
    assert_eq!((code, stderr.as_str()), (1, "nothing was imported: problems: 1\n"));
    assert_eq!(stdout, format!("{usage}: item 1: no valid agent id: \"a b\"\n"));
    assert_eq!(service.number("SELECT count(*) FROM services").await, 0);
    for (arguments, reason) in [
        (["import", "--tenant", "tnt_none", "--services", &services].as_slice(), "no tenant with id tnt_none"),
        (&["import", "--tenant", "public"], "nothing to import"),
        (&["import", "--services", &services], "--tenant"),
        (&["import", "--tenant", "public", "--usage", &services], "missing field `items`"),
        (&["import", "--tenant", "public", "--usage", "/nowhere"], "cannot be read"),
    ] {
        let (code, _, stderr) = command(&service, arguments).await;
        assert!(code == 1 && stderr.contains(reason) && stderr.lines().count() == 1, "{arguments:?}: {stderr}");
    }
    let (code, _, _) = command(&service, &["import", "--tenant", "public", "--usage", &usage, "--name", "a b"]).await;
    assert_eq!(code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_import_of_the_same_keys_waits_for_the_first_one() {
    let service = Service::start(&[]).await;
    let exports = Exports::new();
    let keys =
        exports.write("keys.json", &json!({ "items": [{ "prefix": "apk_a", "label": "l" }], "nextCursor": null }));
    let new_keys = exports.path("new-keys.json");
    let arguments = ["import", "--keys", &keys, "--new-keys", &new_keys];
    // As the first import holds it.
    let lock = std::fs::File::open(&exports.0).expect("the directory");
    lock.try_lock().expect("nobody else");
    let (code, _, stderr) = command(&service, &arguments).await;
    let text = format!("another import writes its new keys to {}: wait until it has ended", exports.0.display());
    assert!(code == 1 && stderr.starts_with(&text), "{stderr}");
    assert_eq!(service.number("SELECT count(*) FROM api_keys").await, 0);
    drop(lock);
    assert_eq!(report(&service, &arguments[1..]).await["keys"]["now"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_whose_prefix_is_taken_is_drawn_again() {
    let service = Service::start(&[]).await;
    let exports = Exports::new();
    let old = json!([{ "prefix": "apk_a", "label": "l" }, { "prefix": "apk_b", "label": "m" }]);
    let keys = exports.write("keys.json", &json!({ "items": old, "nextCursor": null }));
    // Drawn by an earlier run, which was interrupted. The second has the prefix of the first.
    let drawn = |old: &str, label: &str, end: &str| json!({ "oldPrefix": old, "label": label, "key": format!("apk_0123456789abcdef0123456789abcd{end}"), "tenantId": null });
    let new_keys = exports.write("new-keys.json", &json!([drawn("apk_a", "l", "00"), drawn("apk_b", "m", "01")]));
    // Another key has it already.
    let taken = "INSERT INTO api_keys (tenant_id, prefix, key_hash, label, created_at)
        VALUES ('public', 'apk_01234567', sha256('x'), 'label', now())";
    sqlx::query(taken).execute(&service.pool).await.expect("a key");
    let imported = report(&service, &["--keys", &keys, "--new-keys", &new_keys]).await;
    assert_eq!(imported["keys"], json!({ "now": 2, "earlier": 0 }));
    let made = exports.read("new-keys.json");
    let prefixes = |number: usize| made[number]["key"].as_str().expect("a key")[..12].to_owned();
    assert!(prefixes(0) != "apk_01234567" && prefixes(1) != "apk_01234567" && prefixes(0) != prefixes(1), "{made}");
}
