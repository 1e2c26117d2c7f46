//! Expands events of the outbox to deliveries, one for each enabled webhook of the tenant that subscribes to the
//! event's type and was created or enabled before the event. Transactions are bounded. If an event has more webhooks
//! than one transaction may write, its outbox row records how far the expansion got.

use sqlx::PgConnection;
use tracing::error;

use crate::domain::caller::Tenant;
use crate::domain::delivery;
use crate::domain::timestamp::Timestamp;
use crate::domain::webhook::EVERY_TYPE;
use crate::store::delivery_queue::{self, NewDelivery};
use crate::store::outbox::{self, Unexpanded};
use crate::store::webhooks::{self, Subscriber};
use crate::store::{StoreError, server, webhook_queues};

/// Maximum number of deliveries and of events in one transaction.
const DELIVERIES_MAX: usize = 1000;
const EVENTS_MAX: i64 = 500;

/// Expands a tenant's oldest events in one transaction. False if there are none, or if another dispatcher has locked
/// them.
pub async fn expand(connection: &mut PgConnection, tenant: &Tenant, now: Timestamp) -> Result<bool, StoreError> {
    let mut transaction = server::begin_dispatch(connection).await?;
    let events = outbox::take(&mut transaction, tenant, EVENTS_MAX).await?;
    let Some(first) = events.first() else { return Ok(false) };
    let subscribers =
        webhooks::subscribers(&mut transaction, tenant, &first.last_webhook_id, DELIVERIES_MAX as i64).await?;
    let Expansion { deliveries, done, partial } = plan(tenant, &events, &subscribers, DELIVERIES_MAX);
    if !deliveries.is_empty() {
        let added = delivery_queue::insert(&mut transaction, tenant, &deliveries, now).await?;
        if added < deliveries.len() as u64 {
            // Happens only if a sequence is behind its table, for example after a copy without sequences.
            let count = deliveries.len() as u64 - added;
            error!(count, "deliveries were not written: others have the positions of their events");
        }
        let mut webhooks: Vec<&str> = deliveries.iter().map(|delivery| delivery.webhook).collect();
        webhooks.sort_unstable();
        webhooks.dedup();
        webhook_queues::note_due(&mut transaction, tenant, &webhooks, now).await?;
    }
    if let Some((position, webhook)) = partial {
        outbox::note_expanded(&mut transaction, tenant, position, webhook).await?;
    }
    outbox::delete(&mut transaction, tenant, &done).await?;
    transaction.commit().await?;
    Ok(true)
}

/// The changes of one transaction.
#[derive(Debug, PartialEq, Eq)]
struct Expansion<'a> {
    deliveries: Vec<NewDelivery<'a>>,
    /// Positions of events that are then completely expanded.
    done: Vec<i64>,
    /// An event that is then expanded up to this webhook.
    partial: Option<(i64, &'a str)>,
}

/// `subscribers` are at most `deliveries_max` webhooks, beginning after the one that the first event was expanded to.
fn plan<'a>(
    tenant: &Tenant,
    events: &'a [Unexpanded],
    subscribers: &'a [Subscriber],
    deliveries_max: usize,
) -> Expansion<'a> {
    let mut expansion = Expansion { deliveries: Vec::new(), done: Vec::new(), partial: None };
    let Some(first) = events.first() else { return expansion };
    let are_all = subscribers.len() < deliveries_max;
    // The other events also need the webhooks that this list does not contain.
    let events = if are_all && first.last_webhook_id.is_empty() { events } else { &events[..1] };
    for event in events {
        let own =
            subscribers.iter().filter(|subscriber| subscriber.id > event.last_webhook_id && takes(subscriber, event));
        let own = own.map(|subscriber| NewDelivery {
            position: event.position,
            webhook: &subscriber.id,
            id: delivery::id(tenant, &subscriber.id, event.recorded_at, event.position),
        });
        let before = expansion.deliveries.len();
        expansion.deliveries.extend(own);
        if before > 0 && expansion.deliveries.len() > deliveries_max {
            expansion.deliveries.truncate(before);
            break;
        }
        match subscribers.last() {
            Some(last) if !are_all => expansion.partial = Some((event.position, &last.id)),
            _ => expansion.done.push(event.position),
        }
    }
    expansion
}

fn takes(subscriber: &Subscriber, event: &Unexpanded) -> bool {
    subscriber.from_position <= event.position
        && subscriber.events.iter().any(|name| name == EVERY_TYPE || *name == event.event_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(position: i64, event_type: &str, last_webhook_id: &str) -> Unexpanded {
        Unexpanded {
            position,
            recorded_at: Timestamp::from_ms(position),
            event_type: event_type.to_owned(),
            last_webhook_id: last_webhook_id.to_owned(),
        }
    }

    fn subscriber(id: &str, name: &str, from_position: i64) -> Subscriber {
        Subscriber { id: id.to_owned(), events: vec![name.to_owned()], from_position }
    }

    fn written<'a>(expansion: &'a Expansion<'_>) -> Vec<(i64, &'a str)> {
        expansion.deliveries.iter().map(|delivery| (delivery.position, delivery.webhook)).collect()
    }

    #[test]
    fn events_go_to_those_who_take_them_and_were_there_before() {
        let events = [event(5, "usage.recorded", ""), event(6, "usage.settled", ""), event(7, "usage.reset", "")];
        let subscribers =
            [subscriber("a", "*", 6), subscriber("b", "usage.recorded", 1), subscriber("c", "usage.settled", 7)];
        let expansion = plan(&Tenant::public(), &events, &subscribers, 10);
        assert_eq!(written(&expansion), [(5, "b"), (6, "a"), (7, "a")]);
        assert_eq!((expansion.done, expansion.partial), (vec![5, 6, 7], None));
    }

    #[test]
    fn events_that_nobody_takes_are_done() {
        let events = [event(5, "usage.recorded", ""), event(6, "usage.recorded", "")];
        assert_eq!(plan(&Tenant::public(), &events, &[], 10).done, [5, 6]);
    }

    #[test]
    fn a_transaction_writes_no_more_than_it_may() {
        let events = [event(5, "x", ""), event(6, "x", ""), event(7, "x", "")];
        let subscribers = [subscriber("a", "*", 0), subscriber("b", "*", 0)];
        let expansion = plan(&Tenant::public(), &events, &subscribers, 5);
        assert_eq!((written(&expansion).len(), expansion.done, expansion.partial), (4, vec![5, 6], None));
    }

    #[test]
    fn an_event_for_many_is_expanded_in_parts() {
        let events = [event(5, "x", ""), event(6, "x", "")];
        let subscribers = [subscriber("a", "*", 0), subscriber("b", "y", 0)];
        let first = plan(&Tenant::public(), &events, &subscribers, 2);
        assert_eq!(written(&first), [(5, "a")]);
        assert_eq!((first.done, first.partial), (vec![], Some((5, "b"))));
        // The list is the rest of the first event's webhooks. The second event also needs those before, so it must
        // wait.
        let events = [event(5, "x", "b"), event(6, "x", "")];
        let rest = [subscriber("c", "*", 0)];
        let second = plan(&Tenant::public(), &events, &rest, 2);
        assert_eq!(written(&second), [(5, "c")]);
        assert_eq!((second.done, second.partial), (vec![5], None));
        // The rest may be empty.
        let last = plan(&Tenant::public(), &events, &[], 2);
        assert_eq!((written(&last).len(), last.done, last.partial), (0, vec![5], None));
    }
}
