//! Protects a service without required API keys. Every client that can reach it may write, which is meant for one
//! machine. A browser on that machine would send requests for any web page. This file recognises requests of other
//! sites, and requests whose host is not a name of this machine (DNS rebinding).

use std::net::IpAddr;

use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri};

use crate::settings::origin::normalise;

use crate::api::http::header_names::SEC_FETCH_SITE;

/// Whether the request comes from another site, or its `Host` is not this machine. Origins in `allowed` are not other
/// sites.
pub fn is_foreign(host: Option<&Authority>, uri: &Uri, headers: &HeaderMap, allowed: &[String]) -> bool {
    if !host.into_iter().chain(uri.authority()).all(is_loopback) {
        return true;
    }
    let mut origins = headers.get_all(ORIGIN).iter().peekable();
    let has_origin = origins.peek().is_some();
    let is_known = origins.all(|origin| {
        let origin = origin.to_str().ok().and_then(normalise);
        origin.is_some_and(|origin| is_own(&origin, headers) || allowed.contains(&origin))
    });
    // Browsers send it with every request. They send `Origin` only with some, and that is more precise.
    let is_cross_site = headers.get_all(SEC_FETCH_SITE).iter().any(|site| site == "cross-site");
    !is_known || (is_cross_site && !has_origin)
}

/// Whether the normalised `origin` is the address that the request was sent to.
fn is_own(origin: &str, headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let scheme = origin.split_once("://").map(|(scheme, _)| scheme);
    scheme.zip(host).is_some_and(|(scheme, host)| normalise(&format!("{scheme}://{host}")).as_deref() == Some(origin))
}

/// `localhost`, a name below it, or a loopback address.
fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_address = address.is_ok_and(|address| address.to_canonical().is_loopback());
    let mut labels = host.strip_suffix('.').unwrap_or(host).rsplit('.');
    let is_name = labels.next().is_some_and(|last| last.eq_ignore_ascii_case("localhost"));
    !authority.as_str().contains('@') && (is_address || is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(target: &str, lines: &[(&'static str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("a value"));
        }
        let host = headers.get(HOST).map(|host| host.to_str().expect("text").parse().expect("a host"));
        let allowed = ["https://app.example".to_owned()];
        is_foreign(host.as_ref(), &target.parse().expect("a target"), &headers, &allowed)
    }

    #[test]
    fn only_names_and_addresses_of_the_loopback_are_this_machine() {
        for host in [
            "localhost",
            "LOCALHOST:3001",
            "localhost.",
            "app.localhost:80",
            "127.0.0.1:3001",
            "127.8.9.1",
            "[::1]:3001",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(!foreign("/", &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "evil-localhost",
            "192.168.1.5:3001",
            "0.0.0.0",
            "[::]",
            "[2001:db8::1]",
            "127.0.0.1.evil.example",
            "evil@localhost",
            "billing",
        ] {
            assert!(foreign("/", &[("host", host)]), "{host}");
        }
        assert!(foreign("http://evil.example/", &[("host", "localhost")]));
        // HTTP/1.0 without a `Host`. No browser sends that.
        assert!(!foreign("/", &[]));
    }

    #[test]
    fn an_origin_is_another_site_unless_it_is_where_the_request_goes_or_is_allowed() {
        let with = |origin: &str| foreign("/", &[("host", "localhost:3001"), ("origin", origin)]);
        for origin in ["http://localhost:3001", "HTTP://LOCALHOST:3001", "https://app.example"] {
            assert!(!with(origin), "{origin}");
        }
        for origin in [
            "https://evil.example",
            "null",
            "",
            "http://localhost",
            "http://localhost:8080",
            "http://127.0.0.1:3001",
            "http://app.example",
            "file://",
            "chrome-extension://abc",
        ] {
            assert!(with(origin), "{origin}");
        }
        assert!(!foreign("/", &[("host", "localhost"), ("origin", "http://localhost:80")]));
        let two = [("host", "localhost"), ("origin", "http://localhost"), ("origin", "http://evil.example")];
        assert!(foreign("/", &two));
    }

    #[test]
    fn a_browser_that_names_another_site_is_believed() {
        let with = |site: &str, origin: &[(&'static str, &str)]| {
            foreign("/", &[&[("host", "localhost"), ("sec-fetch-site", site)], origin].concat())
        };
        assert!(with("cross-site", &[]));
        assert!(with("cross-site", &[("origin", "https://evil.example")]));
        assert!(!with("cross-site", &[("origin", "https://app.example")]));
        for site in ["same-origin", "same-site", "none"] {
            assert!(!with(site, &[]), "{site}");
        }
    }
}
