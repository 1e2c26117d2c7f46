//! Creates and revokes API keys. A key is shown once, in the response that creates it. Only its hash is stored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::api_key::ApiKeyInfo;
use crate::domain::audit_log::{Change, Operation};
use crate::domain::caller::Tenant;
use crate::domain::identifiers::{self, ApiKey};
use crate::domain::refusal::Refusal;
use crate::store::{api_keys, runtime_config, tenants};

use super::context::{Stop, TransactionContext};
use super::reply::Reply;

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "CreatedApiKey")]
pub struct Created<'a> {
    key: &'a str,
    label: &'a str,
    tenant_id: &'a str,
}

/// Without `tenant_id`, also creates a new tenant.
pub async fn create(context: &mut TransactionContext<'_>, label: &str, tenant_id: Option<&str>) -> Result<Reply, Stop> {
    // One creation at a time over all tenants, so that the count is exact and no other creation can draw the same
    // prefix.
    runtime_config::lock(context.connection).await?;
    let tenant = match tenant_id {
        Some(id) => {
            let tenant = Tenant::from_stored(id.to_owned());
            if !tenants::lock(context.connection, &tenant).await? {
                return Err(Refusal::TenantNotFound(id.to_owned()).into());
            }
            tenant
        }
        None => Tenant::from_stored(identifiers::draw(context.rng, "tnt_", 16)),
    };
    check_capacity(context).await?;
    if tenant_id.is_none() {
        tenants::insert(context.connection, &tenant, context.now).await?;
    }
    let mut key = ApiKey::draw(context.rng);
    while api_keys::prefix_exists(context.connection, key.prefix()).await? {
        key = ApiKey::draw(context.rng);
    }
    let info = ApiKeyInfo {
        prefix: key.prefix().to_owned(),
        label: label.to_owned(),
        created_at: context.now,
        tenant_id: tenant.to_string(),
    };
    api_keys::insert(context.connection, &info, &key.hash()).await?;
    context.effects.counts_of(&tenant).api_keys += 1;
    runtime_config::note_keys(context.connection).await?;
    context.changes.push(Change::of(Operation::ApiKeyCreated, &tenant, key.prefix()).to(info));
    Ok(Reply::json(201, &Created { key: key.reveal(), label, tenant_id: tenant.as_str() }))
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
    tenants::insert(context.connection, &tenant, context.now).await?;
    api_keys::insert(context.connection, &tenant, prefix, hash, label, context.now).await?;
    context.effects.counts_of(&tenant).api_keys += 1;
    runtime_config::note_keys(context.connection).await?;
    Ok(Reply::json(201, &Imported { tenant_id: tenant.to_string() }))
}

async fn check_capacity(context: &mut TransactionContext<'_>) -> Result<(), Stop> {
    let count = api_keys::count(context.connection).await?;
    if count >= context.limits.api_key_store_max_keys { Err(Refusal::ApiKeyCapacity.into()) } else { Ok(()) }
}

pub async fn revoke(context: &mut TransactionContext<'_>, prefix: &str) -> Result<Reply, Stop> {
    runtime_config::lock(context.connection).await?;
    let Some(info) = api_keys::delete(context.connection, prefix).await? else {
        return Err(Refusal::ApiKeyNotFound(prefix.to_owned()).into());
    };
    runtime_config::note_keys(context.connection).await?;
    let tenant = Tenant::from_stored(info.tenant_id.clone());
    context.effects.counts_of(&tenant).api_keys -= 1;
    context.changes.push(Change::of(Operation::ApiKeyRevoked, &tenant, prefix).from(info));
    Ok(Reply::no_content())
}
