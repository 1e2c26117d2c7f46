//! Checks of RFC 9112 on a request head that hyper does not make: its `Host`, and how its body is framed.

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Version, header};

use crate::domain::refusal::Refusal;

/// Returns the host.
pub fn check(request: &Request) -> Result<Option<Authority>, Refusal> {
    let host = host(request.version(), request.headers())?;
    check_transfer_encoding(request.headers())?;
    Ok(host)
}

/// HTTP/1.1 needs exactly one. HTTP/1.0 needs none.
fn host(version: Version, headers: &HeaderMap) -> Result<Option<Authority>, Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version < Version::HTTP_11 => Ok(None),
        (Some(host), None) => parse_host(host.as_bytes()).map(Some).ok_or(Refusal::Host),
        _ => Err(Refusal::Host),
    }
}

/// A name or an address, with an optional port.
fn parse_host(text: &[u8]) -> Option<Authority> {
    let authority = Authority::try_from(text).ok()?;
    let port = authority.as_str().strip_prefix(authority.host()).unwrap_or("@");
    let is_port = port.strip_prefix(':').is_none_or(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()));
    // A comma joins two values, and a proxy in front may use the other one.
    let is_host = !authority.host().is_empty() && !authority.as_str().contains(['@', ',']) && is_port;
    is_host.then_some(authority)
}

/// hyper has checked that `chunked` comes last.
fn check_transfer_encoding(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = 0;
    for value in headers.get_all(header::TRANSFER_ENCODING) {
        for coding in value.as_bytes().split(|byte| *byte == b',') {
            if !coding.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::TransferCoding);
            }
            codings += 1;
        }
    }
    if codings > 1 { Err(Refusal::TransferEncoding) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_perhaps_with_a_port() {
        for host in ["x", "example.com", "example.com:80", "127.0.0.1:3001", "[::1]", "[::1]:80", "a_b", "x:"] {
            assert!(parse_host(host.as_bytes()).is_some(), "{host}");
        }
        for host in ["", "a b", "a/b", "user@host", "a:b", "a,b", "[::1", ":80", "a?b", "a#b", "\u{e9}"] {
            assert!(parse_host(host.as_bytes()).is_none(), "{host}");
        }
    }
}
