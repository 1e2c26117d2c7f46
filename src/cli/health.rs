//! Asking the running service whether it is ready, as the health check of a container does.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::CliError;

/// HTTP/1.0, because the end of the connection is then the end of the body.
const REQUEST: &str = "GET /api/v1/health/ready HTTP/1.0\r\nHost: localhost\r\n\r\n";
/// The service itself takes up to three seconds to find out that its database does not respond.
const LIMIT: Duration = Duration::from_secs(5);
const RESPONSE_BYTES_MAX: u64 = 64 * 1024;

/// Returns the body of the response if the service is ready.
pub async fn check(host: IpAddr, port: u16) -> Result<String, CliError> {
    let address = SocketAddr::new(reachable(host), port);
    let refused = |reason: &str| CliError::Refused(format!("the service on {address} is not ready: {reason}"));
    let response = match timeout(LIMIT, ask(address)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(refused(&error.to_string())),
        Err(_) => return Err(refused(&format!("no response within {} s", LIMIT.as_secs()))),
    };
    let (head, body) = response.split_once("\r\n\r\n").ok_or_else(|| refused("it does not speak HTTP"))?;
    let status_line = head.lines().next().unwrap_or_default();
    match status_line.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        Some("503") => Err(refused(body)),
        _ => Err(refused(status_line)),
    }
}

/// An address of this machine, on which a service that listens on `host` can be reached.
fn reachable(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        host => host,
    }
}

async fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(REQUEST.as_bytes()).await?;
    let mut response = String::new();
    stream.take(RESPONSE_BYTES_MAX).read_to_string(&mut response).await?;
    Ok(response)
}
