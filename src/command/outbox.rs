//! What the events of a transaction mean for the outbox: one delivery per event and enabled, subscribed webhook of its
//! tenant, written in the same transaction. A tenant without webhooks costs nothing but the question.

use std::collections::BTreeMap;

use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::identifiers;
use crate::domain::webhook::EVERY_TYPE;
use crate::store::outbox::{self, Entry, Subscriber};
use crate::store::{StoreError, events};

use super::work::Work;

/// Writes the deliveries of the gathered events. Returns the places drawn for the events; none if nobody wants them.
pub async fn write(work: &mut Work<'_>) -> Result<Vec<i64>, StoreError> {
    let (tenants, subscribers) = subscribers(work).await?;
    if subscribers.is_empty() && work.webhook_tests.is_empty() {
        return Ok(Vec::new());
    }
    let positions = events::draw_positions(work.connection, work.events.len()).await?;
    let payload = |event: &Event| serde_json::to_string(event).expect("an event is plain data");
    for test in &work.webhook_tests {
        let (tenant, event) = &work.events[test.event];
        let payload = payload(event);
        let position = positions[test.event];
        let delivery = test.delivery.clone();
        let event_type = event.type_name();
        let entry = Entry { tenant, delivery, webhook: &test.webhook, position, event_type, payload: &payload };
        outbox::insert_test(work.connection, &entry, work.now).await?;
    }
    let payloads: Vec<String> = work.events.iter().map(|(_, event)| payload(event)).collect();
    let mut entries = Vec::new();
    for (((tenant, event), position), payload) in work.events.iter().zip(&positions).zip(&payloads) {
        let of_tenant = tenants.get(tenant).and_then(|place| subscribers.get(place));
        for subscriber in of_tenant.into_iter().flatten().filter(|subscriber| wants(subscriber, event)) {
            let delivery = identifiers::draw(work.dice, "dlv_", 16);
            let (webhook, position, event_type) = (subscriber.webhook.as_str(), *position, event.type_name());
            entries.push(Entry { tenant, delivery, webhook, position, event_type, payload });
        }
    }
    outbox::insert(work.connection, &entries, work.now).await?;
    work.has_deliveries = !entries.is_empty();
    Ok(positions)
}

/// The places of the tenants that something happened to, and the subscribers of each place.
async fn subscribers(
    work: &mut Work<'_>,
) -> Result<(BTreeMap<Tenant, usize>, BTreeMap<usize, Vec<Subscriber>>), StoreError> {
    let mut tenants: Vec<&Tenant> = Vec::new();
    let mut types = vec![EVERY_TYPE];
    for (tenant, event) in work.events.iter().filter(|(_, event)| !is_test(event)) {
        if !tenants.contains(&tenant) {
            tenants.push(tenant);
        }
        if !types.contains(&event.type_name()) {
            types.push(event.type_name());
        }
    }
    let mut by_tenant: BTreeMap<usize, Vec<Subscriber>> = BTreeMap::new();
    if !tenants.is_empty() {
        for subscriber in outbox::subscribers(work.connection, &tenants, &types).await? {
            by_tenant.entry(subscriber.tenant).or_default().push(subscriber);
        }
    }
    let places = tenants.into_iter().cloned().zip(0..).collect();
    Ok((places, by_tenant))
}

/// A test goes to the webhook that is tested, whatever it subscribes to, and to no other.
fn is_test(event: &Event) -> bool {
    matches!(event, Event::WebhookTest { .. })
}

fn wants(subscriber: &Subscriber, event: &Event) -> bool {
    !is_test(event) && subscriber.events.iter().any(|name| name == EVERY_TYPE || name == event.type_name())
}
