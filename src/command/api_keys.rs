//! Creates, rotates and revokes API keys. A key is shown once, in the response that creates it. Only its hash is stored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::api_key::{ApiKeyInfo, KeyLimits};
use crate::domain::audit_log::{Change, Operation};
use crate::domain::caller::Tenant;
use crate::domain::cell::Residence;
use crate::domain::identifiers::{self, ApiKey};
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::store::{api_keys, directory, runtime_config, tenants};

use super::context::{Stop, TransactionContext};
use super::reply::Reply;
use super::request::TenantOfKey;

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "CreatedApiKey")]
pub struct Created<'a> {
    key: &'a str,
    label: &'a str,
    tenant_id: &'a str,
    #[serde(flatten)]
    limits: &'a KeyLimits,
}

/// A key that replaces another one.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "RotatedApiKey")]
pub struct Rotated<'a> {
    #[serde(flatten)]
    created: Created<'a>,
    previous: Previous<'a>,
}

/// The key that was replaced, and the end of the overlap.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "PreviousApiKey")]
struct Previous<'a> {
    prefix: &'a str,
    expires_at: Timestamp,
}

impl<'a> Created<'a> {
    fn of(key: &'a ApiKey, info: &'a ApiKeyInfo) -> Self {
        Self { key: key.reveal(), label: &info.label, tenant_id: &info.tenant_id, limits: &info.limits }
    }
}

/// Also creates the tenant, unless it exists.
pub async fn create(
    context: &mut TransactionContext<'_>,
    label: &str,
    tenant: &TenantOfKey,
    limits: &KeyLimits,
) -> Result<Reply, Stop> {
    // One creation at a time over all tenants, so that the count is exact and no other creation can draw the same
    // prefix.
    runtime_config::lock(context.connection).await?;
    if let TenantOfKey::Existing(id) = tenant
        && !tenants::lock(context.connection, &Tenant::from_stored(id.clone())).await?
    {
        return Err(Refusal::TenantNotFound(id.clone()).into());
    }
    check_capacity(context).await?;
    let tenant = match tenant {
        TenantOfKey::Existing(id) => Tenant::from_stored(id.clone()),
        TenantOfKey::New => {
            let tenant = Tenant::from_stored(identifiers::draw(context.rng, "tnt_", 16));
            tenants::insert(context.connection, &tenant, Residence::Here, context.now).await?;
            tenant
        }
        TenantOfKey::Placed { tenant, cell } => {
            tenants::insert(context.connection, tenant, Residence::Elsewhere, context.now).await?;
            directory::insert(context.connection, tenant, cell).await?;
            tenant.clone()
        }
    };
    let key = draw(context).await?;
    let info = insert(context, &tenant, (key.prefix(), &key.hash()), label, limits.clone()).await?;
    context.changes.push(Change::of(Operation::ApiKeyCreated, &tenant, &info.prefix).to(&info));
    Ok(Reply::json(201, &Created::of(&key, &info)))
}

/// Creates a key that may do the same, and ends the old one after the overlap. Without `expires_at` the new key lives as
/// long as the old one was to live.
pub async fn rotate(
    context: &mut TransactionContext<'_>,
    prefix: &str,
    overlap_ms: i64,
    expires_at: Option<Timestamp>,
) -> Result<Reply, Stop> {
    runtime_config::lock(context.connection).await?;
    let Some(old) = api_keys::lock(context.connection, prefix).await? else {
        return Err(Refusal::ApiKeyNotFound(prefix.to_owned()).into());
    };
    if old.rotated {
        return Err(Refusal::ApiKeyRotated(prefix.to_owned()).into());
    }
    let tenant = Tenant::from_stored(old.tenant_id.clone());
    let lifetime_ms = old.limits.expires_at.map(|end| end.as_ms() - old.created_at.as_ms());
    let limits = KeyLimits {
        expires_at: expires_at.or(lifetime_ms.map(|lifetime_ms| context.now.plus_ms(lifetime_ms))),
        ..old.limits.clone()
    };
    if limits.expires_at.is_some_and(|end| end > Timestamp::LAST) {
        return Err(Refusal::KeyLifetime.into());
    }
    let key = draw(context).await?;
    let info = insert(context, &tenant, (key.prefix(), &key.hash()), &old.label, limits).await?;
    let until = context.now.plus_ms(overlap_ms);
    api_keys::set_overlap(context.connection, prefix, Some(until)).await?;
    context.changes.push(Change::of(Operation::ApiKeyRotated, &tenant, prefix).from(&old).to(&info));
    let until = old.limits.expires_at.map_or(until, |end| end.min(until));
    let previous = Previous { prefix, expires_at: until };
    Ok(Reply::json(201, &Rotated { created: Created::of(&key, &info), previous }))
}

/// Revokes the replacement of a rotated key, which nobody has seen, and gives the old key its former expiry again.
pub async fn cancel_rotation(
    context: &mut TransactionContext<'_>,
    prefix: &str,
    replacement: &str,
) -> Result<Reply, Stop> {
    revoke(context, replacement).await?;
    let Some(old) = api_keys::lock_rotated(context.connection, prefix).await? else {
        // It ended at once, and is deleted.
        return Ok(Reply::no_content());
    };
    api_keys::set_overlap(context.connection, prefix, None).await?;
    let restored = api_keys::lock(context.connection, prefix).await?;
    let tenant = Tenant::from_stored(old.tenant_id.clone());
    let change = Change::of(Operation::ApiKeyRotationCancelled, &tenant, prefix).from(&old);
    context.changes.push(change.to(restored));
    Ok(Reply::no_content())
}

/// A key with a prefix that no other one has.
async fn draw(context: &mut TransactionContext<'_>) -> Result<ApiKey, Stop> {
    loop {
        let key = ApiKey::draw(context.rng);
        if !api_keys::prefix_exists(context.connection, key.prefix()).await? {
            return Ok(key);
        }
    }
}

async fn insert(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    (prefix, hash): (&str, &[u8; 32]),
    label: &str,
    limits: KeyLimits,
) -> Result<ApiKeyInfo, Stop> {
    let info = ApiKeyInfo {
        prefix: prefix.to_owned(),
        label: label.to_owned(),
        created_at: context.now,
        tenant_id: tenant.to_string(),
        limits,
        rotated: false,
        last_used_at: None,
    };
    api_keys::insert(context.connection, &info, hash).await?;
    context.effects.counts_of(tenant).api_keys += 1;
    runtime_config::note_keys(context.connection).await?;
    Ok(info)
}

/// The tenant of a key that was imported.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    pub tenant_id: String,
}

/// The key founds a new tenant. Its owner knows it already.
pub async fn import(
    context: &mut TransactionContext<'_>,
    label: &str,
    prefix: &str,
    hash: &[u8; 32],
) -> Result<Reply, Stop> {
    runtime_config::lock(context.connection).await?;
    check_capacity(context).await?;
    let tenant = Tenant::from_stored(identifiers::draw(context.rng, "tnt_", 16));
    tenants::insert(context.connection, &tenant, Residence::Here, context.now).await?;
    let info = insert(context, &tenant, (prefix, hash), label, KeyLimits::default()).await?;
    context.changes.push(Change::of(Operation::ApiKeyCreated, &tenant, prefix).to(info));
    Ok(Reply::json(201, &Imported { tenant_id: tenant.to_string() }))
}

async fn check_capacity(context: &mut TransactionContext<'_>) -> Result<(), Stop> {
    let count = api_keys::count(context.connection).await?;
    if count >= context.limits.api_key_store_max_keys { Err(Refusal::ApiKeyCapacity.into()) } else { Ok(()) }
}

pub async fn revoke(context: &mut TransactionContext<'_>, prefix: &str) -> Result<Reply, Stop> {
    runtime_config::lock(context.connection).await?;
    let Some(info) = api_keys::lock(context.connection, prefix).await? else {
        return Err(Refusal::ApiKeyNotFound(prefix.to_owned()).into());
    };
    api_keys::delete(context.connection, prefix).await?;
    runtime_config::note_keys(context.connection).await?;
    let tenant = Tenant::from_stored(info.tenant_id.clone());
    context.effects.counts_of(&tenant).api_keys -= 1;
    context.changes.push(Change::of(Operation::ApiKeyRevoked, &tenant, prefix).from(info));
    Ok(Reply::no_content())
}
