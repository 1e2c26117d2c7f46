//! Forwarded addresses: whatever a client sends, the address is the one that the outermost trusted proxy saw.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agentpay_billing::api::request::forwarded::{Doubt, client_address};
use agentpay_billing::domain::caller::ClientAddress;
use agentpay_billing::settings::trusted_proxies::{ForwardedHeader, TrustedProxies};
use axum::http::{HeaderMap, HeaderValue};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
/// The length of a caller in the database, without its prefix.
const CALLER_MAX: usize = 125;

pub fn run(data: &[u8]) {
    let [choices, text @ ..] = data else { return };
    let hops = 1 + usize::from(choices & 3);
    let (is_forwarded, appends, notation) = (choices & 4 != 0, choices & 8 != 0, choices >> 4);
    let header = if is_forwarded { ForwardedHeader::Forwarded } else { ForwardedHeader::XForwardedFor };
    let name = if is_forwarded { "forwarded" } else { "x-forwarded-for" };
    let mut sent = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            sent.append(name, value);
        }
    }

    // As the client sent it: any result, but a caller that fits into the database.
    for hops in 0..4 {
        let (address, doubt) = client_address(&sent, PEER, TrustedProxies { hops, header });
        assert!(address.to_string().len() <= CALLER_MAX, "{address}");
        if hops == 0 || sent.is_empty() {
            assert_eq!(address, ClientAddress::from(PEER));
        }
        assert_eq!(doubt == Some(Doubt::Missing), hops > 0 && sent.is_empty());
    }

    // As it arrives behind the proxies: each adds the address that it saw, to the last line or on a line of its own.
    let mut arrived = sent;
    for proxy in 0..hops {
        let entry = entry(seen(notation, proxy), notation, is_forwarded);
        let last = arrived.get_all(name).iter().next_back().cloned();
        match last {
            Some(last) if appends => {
                let joined = [last.as_bytes(), b", ", entry.as_bytes()].concat();
                let mut lines: Vec<HeaderValue> = arrived.get_all(name).iter().cloned().collect();
                lines.pop();
                lines.push(HeaderValue::from_bytes(&joined).expect("two values"));
                arrived.remove(name);
                for line in lines {
                    arrived.append(name, line);
                }
            }
            _ => {
                arrived.append(name, HeaderValue::from_str(&entry).expect("an entry"));
            }
        }
    }
    let found = client_address(&arrived, PEER, TrustedProxies { hops, header });
    assert_eq!(found, (seen(notation, 0).into(), None), "{arrived:?}");
}

/// What a proxy saw. The first one saw the client.
fn seen(notation: u8, proxy: usize) -> IpAddr {
    let number = proxy as u8 + 1;
    if notation & 1 == 0 {
        Ipv4Addr::new(192, 0, 2, number).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, number.into(), 0, 0, 0, 1).into()
    }
}

/// The spellings of proxies.
fn entry(address: IpAddr, notation: u8, is_forwarded: bool) -> String {
    let has_port = notation & 2 != 0;
    let node = match (address, has_port) {
        (IpAddr::V4(v4), false) => v4.to_string(),
        (IpAddr::V4(v4), true) => format!("{v4}:4711"),
        (IpAddr::V6(v6), false) if is_forwarded => format!("[{v6}]"),
        (IpAddr::V6(v6), false) => v6.to_string(),
        (IpAddr::V6(v6), true) => format!("[{v6}]:4711"),
    };
    match (is_forwarded, address.is_ipv6() || has_port) {
        (false, _) => node,
        (true, true) => format!("for=\"{node}\";proto=https;by=_proxy"),
        (true, false) => format!("proto=https;for={node}"),
    }
}
