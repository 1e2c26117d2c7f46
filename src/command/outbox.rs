//! What the events of a batch mean for the outbox: one delivery per event and enabled, subscribed webhook of its
//! tenant, written with the events. A tenant without webhooks costs nothing.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::identifiers;
use crate::domain::timestamp::Timestamp;
use crate::domain::webhook::EVERY_TYPE;
use crate::store::outbox::{self, Entry, Subscriber};
use crate::store::{StoreError, events};

use super::work::WebhookTest;

/// The deliveries of a batch.
#[derive(Default)]
pub struct Outbox<'a> {
    /// The places drawn for all events of the batch; none if nobody is told of them.
    pub positions: Vec<i64>,
    pub entries: Vec<Entry<'a>>,
}

/// What happened, and the payload of each event.
pub struct Happened<'a> {
    pub events: &'a [(Tenant, Event)],
    pub payloads: &'a [String],
    pub tests: &'a [WebhookTest],
    pub now: Timestamp,
}

/// Finds out who is to be told. `listening` are the tenants that have webhooks at all. The delivery of a test is written
/// at once, because the one who asked for it makes the attempt.
pub async fn fill<'a>(
    connection: &mut PgConnection,
    happened: &Happened<'a>,
    listening: &[&Tenant],
    dice: &mut StdRng,
) -> Result<Outbox<'a>, StoreError> {
    let subscribers = subscribers(connection, happened.events, listening).await?;
    if subscribers.is_empty() && happened.tests.is_empty() {
        return Ok(Outbox::default());
    }
    let positions = events::draw_positions(connection, happened.events.len()).await?;
    let entry = |place: usize, delivery: String, webhook: &str| {
        let (tenant, event) = &happened.events[place];
        Entry {
            tenant,
            delivery,
            webhook: webhook.to_owned(),
            position: positions[place],
            event_type: event.type_name(),
            payload: &happened.payloads[place],
        }
    };
    for test in happened.tests {
        let entry = entry(test.event, test.delivery.clone(), &test.webhook);
        outbox::insert_test(connection, &entry, happened.now).await?;
    }
    let mut entries = Vec::new();
    for (place, (tenant, event)) in happened.events.iter().enumerate() {
        let of_tenant = subscribers.get(tenant).into_iter().flatten();
        for subscriber in of_tenant.filter(|subscriber| wants(subscriber, event)) {
            entries.push(entry(place, identifiers::draw(dice, "dlv_", 16), &subscriber.webhook));
        }
    }
    Ok(Outbox { positions, entries })
}

/// The subscribers of each tenant that something happened to.
async fn subscribers<'a>(
    connection: &mut PgConnection,
    events: &[(Tenant, Event)],
    listening: &[&'a Tenant],
) -> Result<BTreeMap<&'a Tenant, Vec<Subscriber>>, StoreError> {
    let mut types = vec![EVERY_TYPE];
    for (_, event) in events.iter().filter(|(_, event)| !is_test(event)) {
        if !types.contains(&event.type_name()) {
            types.push(event.type_name());
        }
    }
    let mut by_tenant: BTreeMap<&Tenant, Vec<Subscriber>> = BTreeMap::new();
    if types.len() > 1 && !listening.is_empty() {
        for subscriber in outbox::subscribers(connection, listening, &types).await? {
            by_tenant.entry(listening[subscriber.tenant]).or_default().push(subscriber);
        }
    }
    Ok(by_tenant)
}

/// A test goes to the webhook that is tested, whatever it subscribes to, and to no other.
fn is_test(event: &Event) -> bool {
    matches!(event, Event::WebhookTest { .. })
}

fn wants(subscriber: &Subscriber, event: &Event) -> bool {
    !is_test(event) && subscriber.events.iter().any(|name| name == EVERY_TYPE || name == event.type_name())
}
