//! A PostgreSQL in a container. TEST_POSTGRES_IMAGE names another image; `off` disables containers. If anything fails
//! or the pull takes too long, the tests use another server.

use std::process::Child;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection};
use testcontainers::core::IntoContainerPort;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};

use super::postgres::{SETTINGS, after_us};

const IMAGE: &str = "postgres:15-alpine";

/// Time limit for pulling and starting an image, and for the first response of its server.
const START_LIMIT: Duration = Duration::from_secs(120);
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Returns connection options and the process that removes the container at the end, or the reason why there is no
/// container.
pub async fn start() -> Result<(PgConnectOptions, Child), String> {
    let image = std::env::var("TEST_POSTGRES_IMAGE").unwrap_or_default();
    let image = if image.is_empty() { IMAGE } else { &image };
    if image == "off" {
        return Err("TEST_POSTGRES_IMAGE is off".to_owned());
    }
    let (name, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
    let settings = SETTINGS.iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]);
    let request = GenericImage::new(name, tag)
        .with_exposed_port(5432.tcp())
        .with_env_var("POSTGRES_PASSWORD", "test")
        .with_cmd(["postgres".to_owned()].into_iter().chain(settings));
    let started = tokio::time::timeout(START_LIMIT, request.start()).await;
    let container = started.map_err(|_| "the engine took too long")?.map_err(|error| one_line(&error.to_string()))?;
    let options = reach(&container).await?;
    let script = "read -r _; docker rm -fv \"$0\" || \
        curl -s --unix-socket /var/run/docker.sock -X DELETE \"http://docker/containers/$0?force=true&v=true\"";
    let watcher = after_us(script, container.id());
    // Dropping it would remove the container now.
    std::mem::forget(container);
    Ok((options, watcher))
}

async fn reach(container: &ContainerAsync<GenericImage>) -> Result<PgConnectOptions, String> {
    let host = container.get_host().await.map_err(|error| one_line(&error.to_string()))?.to_string();
    let port = container.get_host_port_ipv4(5432).await.map_err(|error| one_line(&error.to_string()))?;
    let options = PgConnectOptions::new_without_pgpass().host(&host).port(port);
    let options = options.username("postgres").password("test").database("postgres").ssl_mode(PgSslMode::Disable);
    let answer = async {
        // The image starts its server twice, and only the second one listens on the network.
        while ping(&options).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(READY_LIMIT, answer).await.map_err(|_| "its PostgreSQL does not answer")?;
    Ok(options)
}

async fn ping(options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    options.connect().await?.close().await
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}
