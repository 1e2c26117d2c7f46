//! Who is asking behind proxies: each spelling of one address is one caller, and no two clients are ever taken for one
//! because of how a proxy writes.

use crate::support::{Client, Process, Service, new_database, usage};

const USAGE: &str = "/api/v1/usage";
const ONE_PROXY: &[(&str, &str)] = &[("TRUST_PROXY", "1")];

/// Whether two clients have one space of keys: what the one sent, the other is replayed.
async fn share_keys(service: &Service, key: &str, first: &Client, second: &Client) -> bool {
    let record = usage("a", "s", 1);
    let mine = first.key(key).post(USAGE, &record).await;
    assert_eq!((mine.status, mine.replayed), (201, false), "{mine:?}");
    let theirs = second.key(key).post(USAGE, &record).await;
    assert_eq!(theirs.status, 201, "{theirs:?}");
    service.verify().await;
    theirs.replayed
}

#[tokio::test]
async fn every_spelling_of_the_usual_proxies_is_the_client_behind_them() {
    let service = Service::start(ONE_PROXY).await;
    for (number, (proxy, header, entries)) in [
        ("Azure Application Gateway", "x-forwarded-for", &["198.51.100.9:40001", "198.51.100.9:40002"][..]),
        ("Azure Application Gateway, IPv6", "x-forwarded-for", &["[2001:db8::9]:40001", "[2001:db8::9]:40002"]),
        ("AWS ALB", "x-forwarded-for", &["198.51.100.10", "203.0.113.5, 198.51.100.10"]),
        ("AWS ALB, client port", "x-forwarded-for", &["198.51.100.11:40001", "198.51.100.11:9"]),
        ("AWS ALB, client port, IPv6", "x-forwarded-for", &["[2001:db8:0:1::9]:1", "[2001:db8:0:1::9]:2"]),
        ("nginx", "x-forwarded-for", &["198.51.100.12", "fake, 198.51.100.12", "::ffff:198.51.100.12"]),
        ("HAProxy, forwardfor", "x-forwarded-for", &["198.51.100.13", "198.51.100.13 "]),
        ("Envoy", "x-forwarded-for", &["198.51.100.14", "unknown,198.51.100.14", "2001:db8:9::1, 198.51.100.14"]),
        ("Cloudflare", "x-forwarded-for", &["2001:db8:5:1::1", "2001:db8:5:1:ffff::2"]),
        ("HAProxy, option forwarded", "forwarded", &["for=198.51.100.15", "proto=http;for=\"198.51.100.15:4711\""]),
        ("RFC 7239, IPv6", "forwarded", &["for=\"[2001:db8:7::1]\"", "For=\"[2001:db8:7::1]:47011\";by=_proxy"]),
        ("a zone", "x-forwarded-for", &["fe80::1%eth0", "[fe80::1%eth1]:443"]),
    ]
    .into_iter()
    .enumerate()
    {
        let client = |entry: &str| service.client().with(header, entry);
        for (spelling, entry) in entries.iter().enumerate().skip(1) {
            let key = format!("same-{number}-{spelling}");
            assert!(share_keys(&service, &key, &client(entries[0]), &client(entry)).await, "{proxy}: {entry}");
        }
        // The next one behind the same proxy, and the proxy itself.
        let stranger = client(entries[0]).with("x-unused", "");
        for (kind, other) in [("stranger", service.client().with(header, "for=192.0.2.99")), ("peer", service.client())]
        {
            let key = format!("{kind}-{number}");
            assert!(!share_keys(&service, &key, &stranger, &other).await, "{proxy}: {kind}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_a_caller_of_its_own_and_never_the_proxy() {
    let service = Service::start(ONE_PROXY).await;
    let long = "x".repeat(2000);
    let entries = ["_hidden", "_other", "unknown", "client.example", "198.51.100.9:", "[::1", "a b", "", &long];
    for (number, entry) in entries.iter().enumerate() {
        let own = service.client().with("x-forwarded-for", entry);
        let again = service.client().with("x-forwarded-for", &format!("203.0.113.5, {entry}"));
        assert!(share_keys(&service, &format!("own-{number}"), &own, &again).await, "{entry}");
        for (place, other) in entries.iter().enumerate().filter(|(place, _)| *place != number) {
            let other = service.client().with("x-forwarded-for", other);
            assert!(!share_keys(&service, &format!("{number}-{place}"), &own, &other).await, "{entry}");
        }
        assert!(!share_keys(&service, &format!("peer-{number}"), &own, &service.client()).await, "{entry}");
    }
    let longest = service.number("SELECT max(length(caller))::bigint FROM idempotency_keys").await;
    assert!(longest <= 128, "{longest}");
    // They have quotas of their own as well.
    let limited = Service::start(&[("TRUST_PROXY", "1"), ("RATE_LIMIT", "on")]).await;
    for entry in entries {
        let answer = limited.client().with("x-forwarded-for", entry).get("/api/v1/services").await;
        assert_eq!(answer.header("ratelimit-remaining"), "59", "{entry}");
    }
}

#[tokio::test]
async fn a_client_cannot_speak_for_another_one() {
    let named = [("TRUST_PROXY", "1"), ("FORWARDED_HEADER", "forwarded")];
    let (either, named) = (Service::start(ONE_PROXY).await, Service::start(&named).await);
    for (service, by_proxy, by_client) in [
        // What the proxy writes stands at the right end, or in the header that it writes.
        (&either, ("x-forwarded-for", "X, 198.51.100.1"), ("forwarded", "for=203.0.113.5")),
        (&named, ("forwarded", "for=\"X, for=198.51.100.1"), ("x-forwarded-for", "203.0.113.5")),
    ] {
        let victim = by_proxy.1.replace('X', "192.0.2.1");
        let attacker = by_proxy.1.replace('X', "203.0.113.5");
        let plain = service.client().with(by_proxy.0, &victim);
        let forged = service.client().with(by_proxy.0, &attacker).with(by_client.0, by_client.1);
        // Both are 198.51.100.1, whatever they claim.
        assert!(share_keys(service, "k", &plain, &forged).await, "{by_proxy:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_in_doubt_are_counted() {
    let process = Process::start_on(&new_database().await, &[("TRUST_PROXY", "2")]);
    let record = usage("a", "s", 1);
    let client = process.client();
    for entries in ["_hidden, 10.0.0.1", "198.51.100.1, 10.0.0.1", "198.51.100.1"] {
        client.with("x-forwarded-for", entries).post(USAGE, &record).await;
    }
    client.post(USAGE, &record).await;
    // Probes and scrapes come from within.
    client.get("/health").await;
    let metrics = client.get("/api/v1/metrics").await.text;
    for reason in ["unreadable", "short", "missing"] {
        let line = format!("agentpay_unreadable_forwarded_total{{reason=\"{reason}\"}} 1\n");
        assert!(metrics.contains(&line), "{reason}: {metrics}");
    }
}
