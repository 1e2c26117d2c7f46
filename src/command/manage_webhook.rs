//! Makes, changes, deletes and tests webhooks. The secret is drawn here and shown once, in the answer that makes it.

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::identifiers;
use crate::domain::refusal::Refusal;
use crate::domain::webhook::{Change, Secret, Webhook, check_types};
use crate::store::{StoreError, deliveries, tenants, webhooks};

use super::reply::Reply;
use super::work::{Outcome, WebhookTest, Work};

/// Open deliveries that go with their webhook at once; the dispatcher drops the others when they are due.
const DROPPED_MAX: i64 = 1000;

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "CreatedWebhook")]
pub struct Created<'a> {
    id: &'a str,
    url: &'a str,
    events: &'a [String],
    secret: String,
}

pub async fn create(work: &mut Work<'_>, tenant: &Tenant, url: &str, events: &[String]) -> Result<Outcome, StoreError> {
    // The lock makes the count exact: whoever else makes one for this tenant waits.
    tenants::lock(work.connection, tenant).await?;
    if webhooks::count(work.connection, tenant).await? >= work.limits.webhook_store_max_keys {
        return Ok(Err(Refusal::WebhookCapacity));
    }
    let webhook = Webhook {
        id: identifiers::draw(work.dice, "wh_", 8),
        url: url.to_owned(),
        events: events.to_vec(),
        created_at: work.now,
        disabled_at: None,
    };
    let secret = Secret::draw(work.dice);
    webhooks::insert(work.connection, tenant, &webhook, &secret).await?;
    work.totals_of(tenant).webhooks += 1;
    let created = Created { id: &webhook.id, url, events, secret: secret.reveal() };
    Ok(Ok(Reply::json(201, &created)))
}

/// All or nothing; a success enables a disabled webhook.
pub async fn change(work: &mut Work<'_>, tenant: &Tenant, id: &str, change: &Change) -> Result<Outcome, StoreError> {
    let Some(mut webhook) = webhooks::lock(work.connection, tenant, id).await? else {
        return Ok(Err(Refusal::WebhookNotFound(id.to_owned())));
    };
    if change.url.is_none() && change.events.is_none() {
        return Ok(Err(Refusal::WebhookNothing));
    }
    if let Err(refusal) = check_types(change.events.as_deref().unwrap_or_default()) {
        return Ok(Err(refusal));
    }
    if let Some(url) = &change.url {
        webhook.url.clone_from(url);
    }
    if let Some(events) = &change.events {
        webhook.events.clone_from(events);
    }
    webhook.disabled_at = None;
    webhooks::update(work.connection, tenant, &webhook).await?;
    Ok(Ok(Reply::json(200, &webhook)))
}

pub async fn delete(work: &mut Work<'_>, tenant: &Tenant, id: &str) -> Result<Outcome, StoreError> {
    if !webhooks::delete(work.connection, tenant, id).await? {
        return Ok(Err(Refusal::WebhookNotFound(id.to_owned())));
    }
    work.totals_of(tenant).webhooks -= 1;
    deliveries::drop_of_webhook(work.connection, tenant, id, DROPPED_MAX).await?;
    Ok(Ok(Reply::no_content()))
}

/// What the one who asked for a test has to attempt, once this is committed.
#[derive(Serialize)]
struct Recorded<'a> {
    delivery: &'a str,
}

/// Records a test: its event, and its delivery to this webhook only.
pub async fn test(work: &mut Work<'_>, tenant: &Tenant, id: &str) -> Result<Outcome, StoreError> {
    let Some(webhook) = webhooks::find(work.connection, tenant, id).await? else {
        return Ok(Err(Refusal::WebhookNotFound(id.to_owned())));
    };
    let delivery = identifiers::draw(work.dice, "dlv_", 16);
    let reply = Reply::json(200, &Recorded { delivery: &delivery });
    work.webhook_tests.push(WebhookTest { event: work.events.len(), webhook: webhook.id.clone(), delivery });
    work.events.push((tenant.clone(), Event::WebhookTest { id: webhook.id, url: webhook.url }));
    Ok(Ok(reply))
}
