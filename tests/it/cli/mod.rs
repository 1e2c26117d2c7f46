//! The commands of the binary, run on the database of a service.

mod audit_log;
mod cells;
mod config;
mod deliveries;
mod idempotency;
mod import;
mod manual;
mod prune;
mod secrets;
mod settlements;

use serde_json::Value;

use crate::support::{Service, run, url};

/// Runs a command on the service's database. Its exit code, and what it wrote to standard output and standard error.
async fn command(service: &Service, arguments: &[&str]) -> (i32, String, String) {
    command_with(service, arguments, &[]).await
}

/// The same with more settings.
async fn command_with(service: &Service, arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let database = url(&service.pool.connect_options());
    let environment = [&[("DATABASE_URL", database.as_str())], environment].concat();
    let output = run(arguments, &environment).await;
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("no signal"), text(output.stdout), text(output.stderr))
}

/// What a command prints that succeeds.
async fn printed(service: &Service, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = command(service, arguments).await;
    assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}: {stdout}");
    stdout
}

/// The same as JSON.
async fn as_json(service: &Service, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--format", "json"]].concat();
    serde_json::from_str(&printed(service, &arguments).await).expect("JSON")
}

/// Makes a tenant and its key.
async fn tenant(service: &Service, label: &str) -> (String, String) {
    let made = json_of_key(&printed(service, &["keys", "create", "--label", label]).await);
    let text = |name: &str| made[name].as_str().expect("a text").to_owned();
    (text("tenantId"), text("key"))
}

fn json_of_key(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}
