//! The leased webhooks and the attempts in progress of a dispatcher. A slot is one webhook. The fewer slots are free,
//! the fewer a tenant may hold.

use std::collections::BTreeMap;

use tokio::task::JoinSet;

use crate::domain::caller::Tenant;
use crate::domain::timestamp::Timestamp;
use crate::store::webhook_queues::{Head, QueueId};

use super::outcome::Attempted;

/// Maximum number of webhooks that one dispatcher leases.
const WEBHOOKS_MAX: usize = 128;
/// Maximum number of webhooks of one tenant. A tenant gets only a share of the free slots, so that many tenants with
/// slow receivers leave slots for others.
const OF_TENANT_MAX: usize = 32;

#[derive(Default)]
pub struct InFlight {
    pub attempts: JoinSet<Attempted>,
    leased: BTreeMap<QueueId, Leased>,
    of_tenant: BTreeMap<Tenant, usize>,
}

struct Leased {
    until: Timestamp,
    attempts: usize,
}

impl InFlight {
    pub fn free(&self) -> usize {
        WEBHOOKS_MAX - self.leased.len()
    }

    /// How many webhooks to lease for each tenant, in the order of `heads`, and how many tenants were considered.
    pub fn share(&self, heads: &[Head]) -> (Vec<(Tenant, i64)>, usize) {
        let mut free = self.free();
        let mut turns = Vec::new();
        for (index, head) in heads.iter().enumerate() {
            if free == 0 {
                return (turns, index);
            }
            let share = (free / 4).clamp(1, OF_TENANT_MAX);
            let own = self.of_tenant.get(&head.tenant).copied().unwrap_or(0);
            let most = share.saturating_sub(own);
            if head.is_due && most > 0 {
                turns.push((head.tenant.clone(), most as i64));
                free -= most;
            }
        }
        (turns, heads.len())
    }

    pub fn add(&mut self, queue: &QueueId, until: Timestamp, attempts: usize) {
        *self.of_tenant.entry(queue.tenant.clone()).or_default() += 1;
        self.leased.insert(queue.clone(), Leased { until, attempts });
    }

    /// Records the end of an attempt under the lease until `until`.
    pub fn note_end(&mut self, queue: &QueueId, until: Timestamp) {
        if let Some(leased) = self.leased.get_mut(queue).filter(|leased| leased.until == until) {
            leased.attempts = leased.attempts.saturating_sub(1);
        }
    }

    /// Removes and returns the webhooks to release: their attempts have all ended, or their lease has expired.
    pub fn take_done(&mut self, now: Timestamp) -> Vec<(QueueId, Timestamp)> {
        let is_done = |_: &QueueId, leased: &mut Leased| leased.attempts == 0 || leased.until <= now;
        let done: Vec<_> = self.leased.extract_if(.., is_done).map(|(queue, leased)| (queue, leased.until)).collect();
        for (queue, _) in &done {
            if let Some(count) = self.of_tenant.get_mut(&queue.tenant) {
                *count -= 1;
                if *count == 0 {
                    self.of_tenant.remove(&queue.tenant);
                }
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(tenant: &str, webhook: usize) -> QueueId {
        QueueId { tenant: Tenant::from_stored(tenant.to_owned()), webhook: webhook.to_string() }
    }

    fn head(tenant: &str) -> Head {
        Head { tenant: Tenant::from_stored(tenant.to_owned()), is_due: true }
    }

    fn shares(in_flight: &InFlight, heads: &[Head]) -> Vec<i64> {
        in_flight.share(heads).0.iter().map(|(_, webhooks_max)| *webhooks_max).collect()
    }

    #[test]
    fn a_tenant_has_its_share_and_no_more() {
        let mut in_flight = InFlight::default();
        assert_eq!(shares(&in_flight, &[head("a")]), [32]);
        (0..32).for_each(|webhook| in_flight.add(&queue("a", webhook), Timestamp::from_ms(1), 1));
        assert_eq!(in_flight.share(&[head("a"), head("b")]).0, [(head("b").tenant, 24)]);
        assert!(shares(&in_flight, &[Head { is_due: false, ..head("b") }]).is_empty());
    }

    #[test]
    fn many_tenants_with_slow_receivers_leave_slots_for_others() {
        let mut in_flight = InFlight::default();
        for tenant in 0..16 {
            let tenant = format!("t{tenant}");
            for (_, most) in in_flight.share(&[head(&tenant)]).0 {
                (0..most as usize)
                    .for_each(|webhook| in_flight.add(&queue(&tenant, webhook), Timestamp::from_ms(1), 1));
            }
        }
        assert!(in_flight.free() > 0);
        assert_eq!(shares(&in_flight, &[head("late")]), [1]);
    }

    #[test]
    fn a_round_goes_on_where_there_was_no_room() {
        let in_flight = InFlight::default();
        let heads: Vec<Head> = (0..200).map(|number| head(&format!("t{number:03}"))).collect();
        let (turns, considered) = in_flight.share(&heads);
        assert_eq!(turns.iter().map(|(_, webhooks_max)| webhooks_max).sum::<i64>(), WEBHOOKS_MAX as i64);
        assert!(considered == turns.len() && considered < heads.len(), "{considered}");
    }

    #[test]
    fn a_webhook_is_done_when_its_last_attempt_ended() {
        let mut in_flight = InFlight::default();
        let (one, lost) = (queue("a", 1), queue("a", 2));
        in_flight.add(&one, Timestamp::from_ms(100), 2);
        in_flight.add(&lost, Timestamp::from_ms(50), 1);
        in_flight.note_end(&one, Timestamp::from_ms(100));
        assert_eq!(in_flight.take_done(Timestamp::from_ms(1)), []);
        in_flight.note_end(&one, Timestamp::from_ms(100));
        assert_eq!(in_flight.take_done(Timestamp::from_ms(1)), [(one, Timestamp::from_ms(100))]);
        assert_eq!(in_flight.take_done(Timestamp::from_ms(50)), [(lost, Timestamp::from_ms(50))]);
        assert_eq!((in_flight.free(), in_flight.of_tenant.len()), (WEBHOOKS_MAX, 0));
    }
}
