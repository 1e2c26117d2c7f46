//! Creates and revokes API keys. A key is shown once, in the response that creates it. Only its hash is stored.

use schemars::JsonSchema;
use serde::Serialize;

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
    if api_keys::count(context.connection).await? >= context.limits.api_key_store_max_keys {
        return Err(Refusal::ApiKeyCapacity.into());
    }
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
