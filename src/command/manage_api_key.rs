//! Makes and revokes API keys. A key is shown once, in the answer that makes it, and stored only as its hash.

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::caller::Tenant;
use crate::domain::identifiers::{self, ApiKey};
use crate::domain::refusal::Refusal;
use crate::store::{StoreError, api_keys, limits, tenants};

use super::reply::Reply;
use super::work::{Outcome, Work};

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "CreatedApiKey")]
pub struct Created<'a> {
    key: &'a str,
    label: &'a str,
    tenant_id: &'a str,
}

/// Without `tenant_id` the key founds a new tenant.
pub async fn create(work: &mut Work<'_>, label: &str, tenant_id: Option<&str>) -> Result<Outcome, StoreError> {
    // One at a time over all tenants, which makes the count exact and a drawn prefix stay free.
    limits::lock(work.connection).await?;
    let tenant = match tenant_id {
        Some(id) => {
            let tenant = Tenant::from_stored(id.to_owned());
            if !tenants::lock(work.connection, &tenant).await? {
                return Ok(Err(Refusal::TenantNotFound(id.to_owned())));
            }
            tenant
        }
        None => Tenant::from_stored(identifiers::draw(work.dice, "tnt_", 16)),
    };
    if api_keys::count(work.connection).await? >= work.limits.api_key_store_max_keys {
        return Ok(Err(Refusal::ApiKeyCapacity));
    }
    if tenant_id.is_none() {
        tenants::insert(work.connection, &tenant, work.now).await?;
    }
    let mut key = ApiKey::draw(work.dice);
    while api_keys::prefix_exists(work.connection, key.prefix()).await? {
        key = ApiKey::draw(work.dice);
    }
    api_keys::insert(work.connection, &tenant, key.prefix(), &key.hash(), label, work.now).await?;
    work.totals_of(&tenant).api_keys += 1;
    limits::note_keys(work.connection).await?;
    Ok(Ok(Reply::json(201, &Created { key: key.reveal(), label, tenant_id: tenant.as_str() })))
}

pub async fn revoke(work: &mut Work<'_>, prefix: &str) -> Result<Outcome, StoreError> {
    limits::lock(work.connection).await?;
    let Some(tenant) = api_keys::delete(work.connection, prefix).await? else {
        return Ok(Err(Refusal::ApiKeyNotFound(prefix.to_owned())));
    };
    limits::note_keys(work.connection).await?;
    work.totals_of(&tenant).api_keys -= 1;
    Ok(Ok(Reply::no_content()))
}
