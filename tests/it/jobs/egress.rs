//! WEBHOOK_PROXY: deliveries through an egress proxy, and what is still checked before it.

use std::net::IpAddr;
use std::time::Duration;

use agentpay_billing::domain::caller::Tenant;
use agentpay_billing::domain::timestamp::Timestamp;
use agentpay_billing::domain::webhook::Secret;
use agentpay_billing::jobs::webhooks::sender::{Egress, Endpoint, Failure, Names, Sender};
use agentpay_billing::settings::egress_proxy::EgressProxy;
use agentpay_billing::store::delivery_queue::Outgoing;
use agentpay_billing::store::webhook_queues::QueueId;
use serde_json::json;

use crate::support::{Process, Receiver, Service, free_port, new_database, url, usage};

/// A receiver takes what a proxy gets for plain HTTP: the target stands in the header Host.
fn proxy_url(proxy: &Receiver) -> String {
    proxy.url.replace("/hook", "")
}

#[tokio::test]
async fn deliveries_go_through_the_proxy_that_is_set() {
    let proxy = Receiver::start().await;
    let service = Service::start(&[("WEBHOOK_PROXY", &proxy_url(&proxy))]).await;
    let hook = json!({ "url": "http://receiver.invalid/hook", "events": ["*"] });
    assert_eq!(service.client().post("/api/v1/webhooks", &hook).await.status, 201);
    service.client().post("/api/v1/usage", &usage("a", "s", 1)).await;
    let received = proxy.reach(1).await.remove(0);
    assert_eq!((received.header("host"), received.path.as_str()), ("receiver.invalid", "/hook"));
}

/// A delivery to attempt that no database holds.
pub fn outgoing() -> Outgoing {
    Outgoing {
        queue: QueueId { tenant: Tenant::public(), webhook: "wh_0123456789abcdef".to_owned() },
        id: "dlv_0123456789abcdef0123456789abcdef".to_owned(),
        recorded_at: Timestamp::from_ms(1_767_225_600_000),
        position: 1,
        event_type: "webhook.test".to_owned(),
        payload: "{}".to_owned(),
        attempts: 0,
        trace: None,
        is_requested: false,
    }
}

#[tokio::test]
async fn a_proxy_is_asked_for_no_private_target() {
    let proxy = Receiver::start().await;
    let outgoing = outgoing();
    let send = async |host: &str, allow_private: bool| {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let names = [("inside.example", address("10.0.0.1")), ("outside.example", address("93.184.215.14"))];
        let names = Names::Fixed(names.map(|(name, address)| (name.to_owned(), address)).into());
        let endpoint = Endpoint { url: format!("http://{host}/hook"), secrets: vec![Secret::from_stored([7; 32])] };
        let sender = Sender::new(Egress { allow_private, names, proxy: EgressProxy::parse(&proxy_url(&proxy)) });
        sender.send(&outgoing, &endpoint, Timestamp::from_ms(0), Duration::from_secs(5)).await
    };
    for host in ["127.0.0.1", "169.254.169.254", "[::1]", "localhost", "inside.example"] {
        assert_eq!(send(host, false).await, Err(Failure::PrivateAddress), "{host}");
    }
    assert_eq!(proxy.received().len(), 0);
    // A name that is unknown here is left to the proxy.
    for (host, allow_private) in [("outside.example", false), ("unknown.example", false), ("inside.example", true)] {
        assert_eq!(send(host, allow_private).await, Ok(200), "{host}");
    }
    assert_eq!(proxy.received().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_of_the_environment_is_ignored() {
    let (database, receiver) = (new_database().await, Receiver::start().await);
    let nothing = format!("http://127.0.0.1:{}", free_port());
    let environment = [
        ("DATABASE_URL", url(&database)),
        ("WEBHOOK_ALLOW_PRIVATE", "true".to_owned()),
        ("HTTP_PROXY", nothing.clone()),
        ("http_proxy", nothing.clone()),
        ("HTTPS_PROXY", nothing.clone()),
        ("ALL_PROXY", nothing),
    ];
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let process = Process::start_with(&environment, free_port());
    process.is_ready().await;
    let client = process.client();
    let hook = json!({ "url": receiver.url, "events": ["*"] });
    assert_eq!(client.post("/api/v1/webhooks", &hook).await.status, 201);
    client.post("/api/v1/usage", &usage("a", "s", 1)).await;
    receiver.reach(1).await;
}

#[tokio::test]
async fn addresses_are_checked_when_they_are_connected_to() {
    let receiver = Receiver::start().await;
    let outgoing = outgoing();
    let send = async |host: &str, allow_private: bool| {
        // A name server of the attacker's: the name was fine at registration.
        let loopback: IpAddr = "127.0.0.1".parse().expect("an address");
        let names = Names::Fixed([("rebound.example".to_owned(), loopback)].into());
        let url = receiver.url.replace("127.0.0.1", host);
        let endpoint = Endpoint { url, secrets: vec![Secret::from_stored([7; 32])] };
        let sender = Sender::new(Egress { allow_private, names, proxy: None });
        sender.send(&outgoing, &endpoint, Timestamp::from_ms(0), Duration::from_secs(5)).await
    };
    for host in ["rebound.example", "127.0.0.1", "[::ffff:127.0.0.1]", "2130706433", "localhost"] {
        assert_eq!(send(host, false).await, Err(Failure::PrivateAddress), "{host}");
    }
    assert_eq!(receiver.received().len(), 0);
    assert_eq!(send("rebound.example", true).await, Ok(200));
    assert_eq!(send("nowhere.example", true).await, Err(Failure::Connection));
    assert_eq!(receiver.received().len(), 1);
}

#[tokio::test]
async fn a_delivery_without_a_secret_is_not_sent() {
    let receiver = Receiver::start().await;
    let sender = Sender::new(Egress { allow_private: true, names: Names::System, proxy: None });
    let endpoint = Endpoint { url: receiver.url.clone(), secrets: Vec::new() };
    let sent = sender.send(&outgoing(), &endpoint, Timestamp::from_ms(0), Duration::from_secs(5)).await;
    assert_eq!((sent, receiver.received().len()), (Err(Failure::Secret), 0));
}
