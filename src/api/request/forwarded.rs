//! The client's address behind proxies, in any notation: the entry that the outermost trusted proxy wrote. An entry
//! that is not an address is a separate caller, identified by its text. `Forwarded` is parsed from its right end, so
//! that an unclosed quote from a client cannot hide what a proxy added.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use tracing::warn;

use crate::domain::caller::ClientAddress;
use crate::metrics;
use crate::settings::trusted_proxies::{ForwardedHeader, TrustedProxies};

/// Why the address may not be the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The proxy's entry is not an address.
    Unreadable,
    /// There are fewer entries than trusted proxies.
    Short,
    /// There is no entry: the request bypassed the proxies, or they do not write the header.
    Missing,
}

/// The address behind `proxies`. With fewer entries than proxies it is the leftmost entry; without entries it is the
/// peer.
pub fn client_address(headers: &HeaderMap, peer: IpAddr, proxies: TrustedProxies) -> (ClientAddress, Option<Doubt>) {
    if proxies.hops == 0 {
        return (peer.into(), None);
    }
    let is_forwarded = match proxies.header {
        ForwardedHeader::XForwardedFor => false,
        ForwardedHeader::Forwarded => true,
        ForwardedHeader::Either => !headers.contains_key("x-forwarded-for"),
    };
    let values = headers.get_all(if is_forwarded { "forwarded" } else { "x-forwarded-for" });
    let mut entries = values.iter().rev().flat_map(|value| ElementsFromRight::of(value.as_bytes(), is_forwarded));
    let mut found = None;
    let mut count = 0;
    for entry in entries.by_ref().take(proxies.hops) {
        found = Some(entry);
        count += 1;
    }
    let Some(entry) = found else { return (peer.into(), Some(Doubt::Missing)) };
    let node = unquoted(if is_forwarded { node_of(entry).unwrap_or(entry) } else { entry });
    match read_address(node) {
        Some(address) => (address.into(), (count < proxies.hops).then_some(Doubt::Short)),
        None => (ClientAddress::unreadable(node), Some(Doubt::Unreadable)),
    }
}

/// The elements of a list, last one first.
struct ElementsFromRight<'a> {
    /// The unread part; `None` after the first element.
    rest: Option<&'a [u8]>,
    /// Commas inside quotes are not separators.
    has_quotes: bool,
}

impl<'a> ElementsFromRight<'a> {
    fn of(list: &'a [u8], has_quotes: bool) -> Self {
        Self { rest: Some(list), has_quotes }
    }
}

impl<'a> Iterator for ElementsFromRight<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let list = self.rest.take()?;
        let mut is_quoted = false;
        for (index, byte) in list.iter().enumerate().rev() {
            match byte {
                b'"' if self.has_quotes && !(is_quoted && is_escaped(list, index)) => is_quoted = !is_quoted,
                b',' if !is_quoted => {
                    self.rest = Some(&list[..index]);
                    return Some(list[index + 1..].trim_ascii());
                }
                _ => {}
            }
        }
        Some(list.trim_ascii())
    }
}

/// Whether an odd number of backslashes precedes `index`.
fn is_escaped(text: &[u8], index: usize) -> bool {
    text[..index].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// The value of `for` in an element of `Forwarded`, if there is exactly one.
fn node_of(element: &[u8]) -> Option<&[u8]> {
    let mut node = None;
    for pair in element.split(|byte| *byte == b';') {
        let Some(equals) = pair.iter().position(|byte| *byte == b'=') else { continue };
        if pair[..equals].trim_ascii().eq_ignore_ascii_case(b"for") && node.replace(&pair[equals + 1..]).is_some() {
            return None;
        }
    }
    node.map(<[u8]>::trim_ascii)
}

fn unquoted(entry: &[u8]) -> &[u8] {
    entry.strip_prefix(b"\"").and_then(|entry| entry.strip_suffix(b"\"")).unwrap_or(entry)
}

/// An address as proxies write it: plain, in brackets, with a port or with a zone.
fn read_address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    if let Some(bracketed) = text.strip_prefix('[') {
        let (address, rest) = bracketed.split_once(']')?;
        let is_port = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
        return read_bare(address).filter(|_| is_port);
    }
    read_bare(text).or_else(|| {
        let (address, port) = text.rsplit_once(':')?;
        read_bare(address).filter(|_| is_port(port))
    })
}

/// An address without a port. A zone is dropped: it names an interface of the proxy.
fn read_bare(text: &str) -> Option<IpAddr> {
    match text.split_once('%') {
        Some((address, zone)) if !zone.is_empty() => address.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => text.parse().ok(),
    }
}

/// A number, or an obfuscated port of RFC 7239.
fn is_port(text: &str) -> bool {
    match text.strip_prefix('_') {
        Some(name) => {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        }
        None => (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

/// Minimum time between two warnings.
const WARNING_PAUSE: Duration = Duration::from_secs(60);

/// When the last warning was logged.
static WARNED_AT: Mutex<Option<Instant>> = Mutex::new(None);

/// Counts a request with an uncertain address, and warns once a minute.
pub fn report(doubt: Doubt, address: &ClientAddress) {
    let (reason, text) = match doubt {
        Doubt::Unreadable => ("unreadable", "a forwarded address cannot be read: its text is the caller"),
        Doubt::Short => ("short", "fewer forwarded addresses than TRUST_PROXY: the leftmost is the caller"),
        Doubt::Missing => ("missing", "no forwarded address, though TRUST_PROXY is set: the peer is the caller"),
    };
    metrics::forwarded_in_doubt(reason);
    let mut warned_at = WARNED_AT.lock().unwrap_or_else(PoisonError::into_inner);
    if warned_at.is_none_or(|warned_at| warned_at.elapsed() >= WARNING_PAUSE) {
        *warned_at = Some(Instant::now());
        warn!(reason, caller = %address, "{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "198.51.100.1";

    fn behind(hops: usize, header: ForwardedHeader, lines: &[(&'static str, &str)]) -> (String, Option<Doubt>) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("a value"));
        }
        let peer = PEER.parse().expect("an address");
        let (address, doubt) = client_address(&headers, peer, TrustedProxies { hops, header });
        (address.to_string(), doubt)
    }

    fn known(address: &str) -> (String, Option<Doubt>) {
        (address.to_owned(), None)
    }

    fn unreadable(text: &str) -> (String, Option<Doubt>) {
        (format!("?{text}"), Some(Doubt::Unreadable))
    }

    #[test]
    fn the_client_is_found_behind_its_proxies() {
        let lines = [("x-forwarded-for", "192.0.2.1, 192.0.2.2"), ("x-forwarded-for", "192.0.2.3")];
        let client = |hops| behind(hops, ForwardedHeader::XForwardedFor, &lines);
        assert_eq!(client(0), known(PEER));
        assert_eq!(client(1), known("192.0.2.3"));
        assert_eq!(client(2), known("192.0.2.2"));
        assert_eq!(client(3), known("192.0.2.1"));
        assert_eq!(client(9), ("192.0.2.1".to_owned(), Some(Doubt::Short)));
        let missing = (PEER.to_owned(), Some(Doubt::Missing));
        assert_eq!(behind(1, ForwardedHeader::XForwardedFor, &[]), missing);
    }

    #[test]
    fn every_spelling_of_an_address_is_read() {
        for (entry, address) in [
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7:40001", "192.0.2.7"),
            ("\"192.0.2.7\"", "192.0.2.7"),
            ("\"192.0.2.7:40001\"", "192.0.2.7"),
            ("192.0.2.7:_hidden", "192.0.2.7"),
            ("[192.0.2.7]:80", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("[::ffff:192.0.2.7]:1", "192.0.2.7"),
            ("::ffff:192.0.2.7:40001", "192.0.2.7"),
            ("64:ff9b::192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:DB8:1:2::6", "2001:db8:1:2::/64"),
            ("[2001:db8:1:2::6]", "2001:db8:1:2::/64"),
            ("[2001:db8:1:2::6]:40001", "2001:db8:1:2::/64"),
            ("\"[2001:db8:1:2::6]:40001\"", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::6:40001", "2001:db8:1:2::/64"),
            ("2001:db8:1:2:3:4:5:6:443", "2001:db8:1:2::/64"),
            ("[2001:db8:1:2::6%eth0]:1", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::6%25eth0", "2001:db8:1:2::/64"),
            // The zone does not distinguish clients.
            ("fe80::1%eth0", "fe80::1"),
            ("[fe80::2%eth0]:80", "fe80::2"),
        ] {
            let found = behind(1, ForwardedHeader::XForwardedFor, &[("x-forwarded-for", entry)]);
            assert_eq!(found, known(address), "{entry}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_a_caller_by_its_text_and_never_another_address() {
        for entry in [
            "unknown",
            "_hidden",
            "client.example",
            "unix:",
            "192.0.2.256",
            "192.0.2.7:",
            "192.0.2.7:123456",
            "192.0.2.7:http",
            "192.0.2.7%eth0",
            "010.0.0.1",
            "[192.0.2.7",
            "\"192.0.2.7",
            "[::1]x",
            "fe80::1%",
            "",
        ] {
            let lines = [("x-forwarded-for", &*format!("203.0.113.5, {entry}"))];
            assert_eq!(behind(1, ForwardedHeader::XForwardedFor, &lines), unreadable(entry), "{entry}");
            // What an inner proxy writes about the outer one does not matter.
            assert_eq!(behind(2, ForwardedHeader::XForwardedFor, &lines), known("203.0.113.5"), "{entry}");
        }
    }

    #[test]
    fn the_header_of_rfc_7239_is_understood_and_quotes_of_clients_swallow_nothing() {
        for (value, found) in [
            ("for=192.0.2.7", known("192.0.2.7")),
            ("For=\"192.0.2.7:47011\"; Proto=https;by=203.0.113.43", known("192.0.2.7")),
            ("proto=http; FOR=\"[2001:db8:1:2::6]:4711\"", known("2001:db8:1:2::/64")),
            ("for=203.0.113.5, for=192.0.2.7", known("192.0.2.7")),
            ("for=192.0.2.7;host=\"a,b\"", known("192.0.2.7")),
            ("for=192.0.2.7;host=\"a\\\",b\"", known("192.0.2.7")),
            ("for=\"open, for=192.0.2.7", known("192.0.2.7")),
            ("for=\"open\\, for=\"192.0.2.7\"", known("192.0.2.7")),
            ("for=203.0.113.5, for=unknown", unreadable("unknown")),
            ("for=\"_gazonk\"", unreadable("_gazonk")),
            ("by=203.0.113.43", unreadable("by=203.0.113.43")),
            ("for=192.0.2.7;for=192.0.2.8", unreadable("for=192.0.2.7;for=192.0.2.8")),
            ("for=203.0.113.5,", unreadable("")),
        ] {
            assert_eq!(behind(1, ForwardedHeader::Forwarded, &[("forwarded", value)]), found, "{value}");
        }
        let lines = [("forwarded", "for=192.0.2.1"), ("forwarded", "for=192.0.2.2, for=192.0.2.3")];
        assert_eq!(behind(3, ForwardedHeader::Forwarded, &lines), known("192.0.2.1"));
    }

    #[test]
    fn of_both_headers_the_one_that_is_named_is_read() {
        let both = [("forwarded", "for=192.0.2.1"), ("x-forwarded-for", "192.0.2.2")];
        assert_eq!(behind(1, ForwardedHeader::XForwardedFor, &both), known("192.0.2.2"));
        assert_eq!(behind(1, ForwardedHeader::Forwarded, &both), known("192.0.2.1"));
        assert_eq!(behind(1, ForwardedHeader::Either, &both), known("192.0.2.2"));
        assert_eq!(behind(1, ForwardedHeader::Either, &both[..1]), known("192.0.2.1"));
        let missing = (PEER.to_owned(), Some(Doubt::Missing));
        assert_eq!(behind(1, ForwardedHeader::XForwardedFor, &both[..1]), missing);
    }
}
