//! Creates, changes, deletes and tests webhooks. The secret is generated here, and shown once in the response that
//! creates the webhook.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::domain::audit_log::{Change, Operation};
use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::identifiers;
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::domain::webhook::{self, Secret, Webhook, check_types};
use crate::store::positions::{self, Numbered};
use crate::store::{delivery_queue, webhooks};

use super::context::{Stop, TransactionContext, WebhookTest};
use super::reply::Reply;

/// Maximum number of pending deliveries that are deleted with their webhook. The dispatcher deletes the others when
/// they are due.
const DROPPED_MAX: i64 = 1000;

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "CreatedWebhook")]
pub struct Created<'a> {
    id: &'a str,
    url: &'a str,
    events: &'a [String],
    secret: String,
}

pub async fn create(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    url: &str,
    events: &[String],
) -> Result<Reply, Stop> {
    if webhooks::count(context.connection, tenant).await? >= context.limits.webhook_store_max_keys {
        return Err(Refusal::WebhookCapacity.into());
    }
    let webhook = Webhook {
        id: identifiers::draw(context.rng, "wh_", 8),
        url: url.to_owned(),
        events: events.to_vec(),
        created_at: context.now,
        disabled_at: None,
    };
    let secret = Secret::draw(context.rng);
    let stored = context.keyring.seal(tenant, &webhook.id, &secret, context.rng);
    let from_position = positions::draw(context.connection, context.dialect, Numbered::EventRuns, 1).await?[0];
    webhooks::insert(context.connection, tenant, &webhook, &stored, from_position).await?;
    context.effects.counts_of(tenant).webhooks += 1;
    context.changed_terms.push(tenant.clone());
    let change = Change::of(Operation::WebhookCreated, tenant, &webhook.id);
    context.changes.push(change.to(webhook.without_credentials()));
    let created = Created { id: &webhook.id, url, events, secret: secret.reveal() };
    Ok(Reply::json(201, &created))
}

/// Applies all changes or none. A success enables a disabled webhook.
pub async fn change(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    id: &str,
    change: &webhook::Change,
) -> Result<Reply, Stop> {
    let Some(mut webhook) = webhooks::lock(context.connection, tenant, id).await? else {
        return Err(Refusal::WebhookNotFound(id.to_owned()).into());
    };
    if change.url.is_none() && change.events.is_none() {
        return Err(Refusal::WebhookNothing.into());
    }
    if let Err(refusal) = check_types(change.events.as_deref().unwrap_or_default()) {
        return Err(refusal.into());
    }
    let before = webhook.clone();
    if let Some(url) = &change.url {
        webhook.url.clone_from(url);
    }
    if let Some(events) = &change.events {
        webhook.events.clone_from(events);
    }
    let was_disabled = webhook.disabled_at.take().is_some();
    let mut from_position = None;
    if was_disabled {
        from_position = Some(positions::draw(context.connection, context.dialect, Numbered::EventRuns, 1).await?[0]);
    }
    webhooks::update(context.connection, tenant, &webhook, from_position).await?;
    if webhook != before {
        let change = Change::of(Operation::WebhookUpdated, tenant, id);
        context.changes.push(change.from(before.without_credentials()).to(webhook.without_credentials()));
    }
    Ok(Reply::json(200, &webhook))
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "RotatedWebhookSecret")]
pub struct RotatedSecret<'a> {
    id: &'a str,
    secret: String,
    /// Deliveries are also signed with the previous secret until then.
    previous_secret_expires_at: Timestamp,
}

/// A rotation during an overlap ends that overlap.
pub async fn rotate_secret(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    id: &str,
    overlap_ms: i64,
) -> Result<Reply, Stop> {
    let Some(webhook) = webhooks::lock(context.connection, tenant, id).await? else {
        return Err(Refusal::WebhookNotFound(id.to_owned()).into());
    };
    let (secret, until) = (Secret::draw(context.rng), context.now.plus_ms(overlap_ms));
    let stored = context.keyring.seal(tenant, id, &secret, context.rng);
    webhooks::rotate_secret(context.connection, tenant, id, &stored, until).await?;
    let shown = webhook.without_credentials();
    let mut after = json!(shown);
    after["previousSecretExpiresAt"] = json!(until);
    context.changes.push(Change::of(Operation::WebhookSecretRotated, tenant, id).from(shown).to(after));
    let rotated = RotatedSecret { id, secret: secret.reveal(), previous_secret_expires_at: until };
    Ok(Reply::json(200, &rotated))
}

pub async fn delete(context: &mut TransactionContext<'_>, tenant: &Tenant, id: &str) -> Result<Reply, Stop> {
    let Some(webhook) = webhooks::delete(context.connection, tenant, id).await? else {
        return Err(Refusal::WebhookNotFound(id.to_owned()).into());
    };
    let change = Change::of(Operation::WebhookDeleted, tenant, id);
    context.changes.push(change.from(webhook.without_credentials()));
    context.effects.counts_of(tenant).webhooks -= 1;
    context.changed_terms.push(tenant.clone());
    delivery_queue::drop_of_webhook(context.connection, tenant, id, DROPPED_MAX).await?;
    Ok(Reply::no_content())
}

/// What the handler of a test needs for its attempt after the commit.
#[derive(Serialize)]
struct Recorded<'a> {
    delivery: &'a str,
}

/// Records a test: its event, and a delivery to this webhook only.
pub async fn test(context: &mut TransactionContext<'_>, tenant: &Tenant, id: &str) -> Result<Reply, Stop> {
    let Some(webhook) = webhooks::find(context.connection, tenant, id).await? else {
        return Err(Refusal::WebhookNotFound(id.to_owned()).into());
    };
    let delivery = identifiers::draw(context.rng, "dlv_", 16);
    let reply = Reply::json(200, &Recorded { delivery: &delivery });
    context.webhook_test = Some(WebhookTest { webhook: webhook.id.clone(), delivery });
    context.effects.events.push((tenant.clone(), Event::WebhookTest { id: webhook.id, url: webhook.url }));
    Ok(reply)
}
