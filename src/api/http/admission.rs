//! Counts the connections of clients and the bytes buffered for them. Both have a limit for each address, so that one
//! client cannot use up what the others need, and a limit in total.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::caller::ClientAddress;

use crate::settings::http_limits::HttpLimits;

/// The counts of all clients.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    limits: HttpLimits,
    held_bytes: AtomicUsize,
    /// Addresses with open connections.
    addresses: Mutex<HashMap<ClientAddress, Arc<Address>>>,
    connections: AtomicUsize,
}

#[derive(Debug, Default)]
struct Address {
    connections: AtomicUsize,
    held_bytes: AtomicUsize,
}

impl Admission {
    pub fn new(limits: HttpLimits) -> Self {
        Self(Arc::new(Counts {
            limits,
            held_bytes: AtomicUsize::new(0),
            addresses: Mutex::default(),
            connections: AtomicUsize::new(0),
        }))
    }

    /// Counts a connection until the result is dropped. `None` if there are too many.
    pub fn connect(&self, peer: IpAddr) -> Option<ConnectionPermit> {
        let counts = &self.0;
        let key = ClientAddress::from(peer);
        let mut addresses = counts.addresses();
        let address = addresses.entry(key.clone()).or_default();
        let limits = &counts.limits;
        let of_address = address.connections.load(Ordering::Relaxed);
        let in_all = counts.connections.load(Ordering::Relaxed);
        if of_address >= limits.connections_per_address_max || in_all >= limits.connections_max {
            if of_address == 0 {
                addresses.remove(&key);
            }
            return None;
        }
        // Both change only while this lock is held.
        address.connections.store(of_address + 1, Ordering::Relaxed);
        counts.connections.store(in_all + 1, Ordering::Relaxed);
        let client = Client { peer, counts: counts.clone(), address: address.clone() };
        Some(ConnectionPermit { key, client })
    }

    pub fn limits(&self) -> &HttpLimits {
        &self.0.limits
    }

    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    pub fn held_bytes(&self) -> usize {
        self.0.held_bytes.load(Ordering::Relaxed)
    }
}

impl Counts {
    fn addresses(&self) -> MutexGuard<'_, HashMap<ClientAddress, Arc<Address>>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A counted connection.
#[derive(Debug)]
pub struct ConnectionPermit {
    key: ClientAddress,
    client: Client,
}

impl ConnectionPermit {
    pub fn client(&self) -> Client {
        self.client.clone()
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let counts = &self.client.counts;
        let mut addresses = counts.addresses();
        counts.connections.fetch_sub(1, Ordering::Relaxed);
        if self.client.address.connections.fetch_sub(1, Ordering::Relaxed) == 1 {
            addresses.remove(&self.key);
        }
    }
}

/// The client of one connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where its connection comes from.
    pub peer: IpAddr,
    counts: Arc<Counts>,
    address: Arc<Address>,
}

/// Bytes counted for a client until this is dropped.
#[derive(Debug)]
pub struct HeldBytes {
    client: Client,
    bytes: usize,
}

impl Client {
    /// Counts bytes that are buffered for this client, or fails if there are too many. Small buffers are not counted:
    /// the limit on connections bounds them.
    pub fn hold(&self, bytes: usize) -> Result<Option<HeldBytes>, TooManyHeld> {
        let limits = &self.counts.limits;
        if bytes <= limits.uncounted_bytes_max {
            return Ok(None);
        }
        let held = self.hold_always(bytes);
        let of_address = self.address.held_bytes.load(Ordering::Relaxed);
        let in_all = self.counts.held_bytes.load(Ordering::Relaxed);
        // A single buffer may be larger than the limit.
        let fits_address = of_address <= limits.held_bytes_per_address_max.max(bytes);
        let fits_in_all = in_all <= limits.held_bytes_max.max(bytes);
        if fits_address && fits_in_all { Ok(Some(held)) } else { Err(TooManyHeld) }
    }

    /// Like [`Self::hold`], for bytes that can no longer be refused.
    pub fn hold_always(&self, bytes: usize) -> HeldBytes {
        self.address.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.counts.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        HeldBytes { client: self.clone(), bytes }
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.client.address.held_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.client.counts.held_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyHeld;

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        Admission::new(HttpLimits {
            connections_per_address_max: 2,
            connections_max: 3,
            held_bytes_per_address_max: 100,
            held_bytes_max: 150,
            uncounted_bytes_max: 10,
            ..HttpLimits::default()
        })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn connections_are_bounded_for_an_address_and_in_all() {
        let admission = admission();
        let one = (0..2).map(|_| admission.connect(address("192.0.2.1"))).collect::<Vec<_>>();
        assert!(one.iter().all(Option::is_some) && admission.connect(address("::ffff:192.0.2.1")).is_none());
        let other = admission.connect(address("192.0.2.2"));
        assert!(other.is_some() && admission.connect(address("192.0.2.3")).is_none());
        drop(one);
        assert_eq!((admission.connections(), admission.0.addresses().len()), (1, 1));
        assert!(admission.connect(address("192.0.2.3")).is_some());
    }

    #[test]
    fn bytes_are_bounded_for_an_address_and_in_all_but_one_alone_may_be_long() {
        let admission = admission();
        let permits: Vec<_> = ["192.0.2.1", "192.0.2.2"].map(|text| admission.connect(address(text))).into();
        let clients: Vec<_> = permits.iter().flatten().map(ConnectionPermit::client).collect();
        assert!(matches!(clients[0].hold(10), Ok(None)));
        let long = clients[0].hold(500).expect("alone");
        assert!(clients[0].hold(11).is_err() && clients[1].hold(11).is_err());
        drop(long);
        let held = clients[0].hold(100).expect("fits");
        assert!(clients[0].hold(11).is_err());
        let other = clients[1].hold(50).expect("fits");
        assert!(clients[1].hold(11).is_err());
        drop((held, other));
        assert_eq!(admission.held_bytes(), 0);
    }
}
