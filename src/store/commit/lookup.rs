//! What a batch has to know, in one statement.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::fingerprint::Fingerprint;
use crate::domain::names::ServiceId;
use crate::domain::service::Terms;
use crate::store::idempotency::{CallerKey, StoredResponse};
use crate::store::usage::{Columns, Counter, CounterId};
use crate::store::{StoreError, corrupt};

/// What a batch asks for. Each list of [`Known`] has the order of the list here that it answers.
#[derive(Clone, Debug, Default)]
pub struct Wanted<'a> {
    pub keys: Vec<&'a CallerKey>,
    pub pairs: Vec<&'a CounterId>,
    pub tenants: Vec<&'a Tenant>,
    pub services: Vec<(&'a Tenant, &'a ServiceId)>,
    /// Tenants of which a pair may rise above zero.
    pub rising: Vec<&'a Tenant>,
}

impl Wanted<'_> {
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
            && self.pairs.is_empty()
            && self.tenants.is_empty()
            && self.services.is_empty()
            && self.rising.is_empty()
    }
}

/// What the terms of a tenant are known by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantTerms {
    /// Drawn again whenever a service, a price, a flag or the presence of webhooks changes.
    pub revision: i64,
    pub has_webhooks: bool,
}

/// What a batch has to know.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Stored responses, expired ones included.
    pub responses: Vec<Option<StoredResponse>>,
    /// None for a pair without a record.
    pub counters: Vec<Option<Counter>>,
    /// Whether the agent of a pair without a record has other pairs.
    pub agents: Vec<bool>,
    pub tenants: Vec<TenantTerms>,
    /// None for a service that is not registered.
    pub services: Vec<Option<Terms>>,
    /// Of the tenants in [`Wanted::rising`].
    pub pairs_above_zero: Vec<(Tenant, i64)>,
}

/// Reads, without locking anything. The lists hide behind subqueries: if their lengths were known to the planner, it would
/// consider a plan made for one row cheaper than the generic one, and plan every small batch again.
pub async fn lookup(connection: &mut PgConnection, wanted: &Wanted<'_>) -> Result<Known, StoreError> {
    let callers: Vec<&str> = wanted.keys.iter().map(|id| id.caller.as_str()).collect();
    let keys: Vec<&str> = wanted.keys.iter().map(|id| id.key.as_str()).collect();
    let pairs = Columns::of(wanted.pairs.iter().copied());
    let tenants: Vec<&str> = wanted.tenants.iter().map(|tenant| tenant.as_str()).collect();
    let service_tenants: Vec<&str> = wanted.services.iter().map(|(tenant, _)| tenant.as_str()).collect();
    let services: Vec<&str> = wanted.services.iter().map(|(_, service)| service.as_str()).collect();
    let rising: Vec<&str> = wanted.rising.iter().map(|tenant| tenant.as_str()).collect();
    let rows = sqlx::query!(
        r#"-- commit::lookup
        SELECT 'key' AS "kind!", wanted.number AS "number!", stored.status::bigint AS a, stored.attempt_id AS b,
               NULL::bigint AS c, NULL::bigint AS d, NULL::bigint AS e, NULL::boolean AS flag,
               stored.request_hash AS hash, stored.response, stored.expires_at
        FROM unnest((SELECT $1::text[]), (SELECT $2::text[])) WITH ORDINALITY AS wanted (caller, key, number)
        CROSS JOIN LATERAL (
            SELECT request_hash, status, response, attempt_id, expires_at FROM idempotency_keys
            WHERE idempotency_keys.key = wanted.key AND idempotency_keys.caller = wanted.caller
            LIMIT 1
        ) AS stored
        UNION ALL
        SELECT 'counter', wanted.number, counter.outstanding, counter.settled, counter.reset, counter.version,
               counter.pair_id, agent.is_known, NULL, NULL, NULL
        FROM unnest((SELECT $3::text[]), (SELECT $4::text[]), (SELECT $5::text[]))
            WITH ORDINALITY AS wanted (tenant_id, agent_id, service_id, number)
        LEFT JOIN LATERAL (
            SELECT pair_id, outstanding, settled, reset, version FROM usage_counters
            WHERE usage_counters.tenant_id = wanted.tenant_id AND usage_counters.agent_id = wanted.agent_id
              AND usage_counters.service_id = wanted.service_id
            LIMIT 1
        ) AS counter ON true
        LEFT JOIN LATERAL (
            SELECT true AS is_known FROM agents
            WHERE counter.pair_id IS NULL AND agents.tenant_id = wanted.tenant_id AND agents.agent_id = wanted.agent_id
            LIMIT 1
        ) AS agent ON true
        UNION ALL
        SELECT 'tenant', wanted.number, tenant.terms_revision, NULL, NULL, NULL, NULL, webhook.is_there, NULL, NULL, NULL
        FROM unnest((SELECT $6::text[])) WITH ORDINALITY AS wanted (tenant_id, number)
        CROSS JOIN LATERAL (
            SELECT terms_revision FROM tenants WHERE tenants.tenant_id = wanted.tenant_id LIMIT 1
        ) AS tenant
        LEFT JOIN LATERAL (
            SELECT true AS is_there FROM webhooks WHERE webhooks.tenant_id = wanted.tenant_id LIMIT 1
        ) AS webhook ON true
        UNION ALL
        SELECT 'service', wanted.number, service.price_stroops, NULL, NULL, NULL, NULL, service.disabled, NULL, NULL, NULL
        FROM unnest((SELECT $7::text[]), (SELECT $8::text[])) WITH ORDINALITY AS wanted (tenant_id, service_id, number)
        CROSS JOIN LATERAL (
            SELECT price_stroops, disabled FROM services
            WHERE services.tenant_id = wanted.tenant_id AND services.service_id = wanted.service_id
            LIMIT 1
        ) AS service
        UNION ALL
        SELECT 'rising', wanted.number, sums.pairs_above_zero, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
        FROM unnest((SELECT $9::text[])) WITH ORDINALITY AS wanted (tenant_id, number)
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(pairs_above_zero), 0)::bigint AS pairs_above_zero
            FROM totals WHERE totals.tenant_id = wanted.tenant_id AND totals.service_id = ''
        ) AS sums"#,
        callers as _,
        keys as _,
        pairs.tenants as _,
        pairs.agents as _,
        pairs.services as _,
        tenants as _,
        service_tenants as _,
        services as _,
        rising as _,
    )
    .fetch_all(connection)
    .await?;
    let mut known = Known {
        responses: vec![None; wanted.keys.len()],
        counters: vec![None; wanted.pairs.len()],
        agents: vec![false; wanted.pairs.len()],
        // A tenant that is gone, after a reset, has no terms. Its revision differs from that of every other time.
        tenants: vec![TenantTerms { revision: i64::MIN, has_webhooks: false }; wanted.tenants.len()],
        services: vec![None; wanted.services.len()],
        pairs_above_zero: wanted.rising.iter().map(|tenant| ((*tenant).clone(), 0)).collect(),
    };
    for row in rows {
        let index = row.number as usize - 1;
        let number = |value: Option<i64>| value.ok_or_else(|| corrupt("a number is missing"));
        match row.kind.as_str() {
            "key" => {
                let hash = row.hash.and_then(|hash| hash.try_into().ok());
                known.responses[index] = Some(StoredResponse {
                    fingerprint: Fingerprint(hash.ok_or_else(|| corrupt("request_hash"))?),
                    status: u16::try_from(number(row.a)?).map_err(|_| corrupt("status"))?,
                    response: row.response,
                    attempt_id: number(row.b)?,
                    expires_at: row.expires_at.ok_or_else(|| corrupt("expires_at"))?.into(),
                });
            }
            "counter" => {
                known.agents[index] = row.flag.unwrap_or(false);
                if let Some(pair_id) = row.e {
                    let (outstanding, settled, reset) = (number(row.a)?, number(row.b)?, number(row.c)?);
                    known.counters[index] =
                        Some(Counter { pair_id, outstanding, settled, reset, version: number(row.d)? });
                }
            }
            "tenant" => {
                known.tenants[index] =
                    TenantTerms { revision: number(row.a)?, has_webhooks: row.flag.unwrap_or(false) };
            }
            "service" => {
                let disabled = row.flag.ok_or_else(|| corrupt("disabled"))?;
                known.services[index] = Some(Terms { price_stroops: number(row.a)?, disabled });
            }
            _ => known.pairs_above_zero[index].1 = number(row.a)?,
        }
    }
    Ok(known)
}
