//! Reads what a batch must know: at most one statement each for counters, terms and stored responses.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::cell::Residence;
use crate::domain::fingerprint::Fingerprint;
use crate::domain::money::Price;
use crate::domain::names::ServiceId;
use crate::domain::service::Terms;
use crate::store::idempotency::{CallerKey, StoredResponse};
use crate::store::usage::{Columns, Counter, CounterId};
use crate::store::{StoreError, corrupt};

/// What a batch must read. Each list of [`Known`] has the order of the list that it answers.
#[derive(Clone, Debug, Default)]
pub struct Wanted<'a> {
    pub keys: Vec<&'a CallerKey>,
    pub pairs: Vec<&'a CounterId>,
    pub tenants: Vec<&'a Tenant>,
    pub services: Vec<(&'a Tenant, &'a ServiceId)>,
    /// Tenants that may get more pairs above zero.
    pub rising: Vec<&'a Tenant>,
}

/// The terms of a tenant, without its services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantTerms {
    /// Drawn at random when a service, a price, a flag or the presence of webhooks changes.
    pub revision: i64,
    pub has_webhooks: bool,
    /// Each change of it draws a new revision, too.
    pub residence: Residence,
}

/// The result of a lookup.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Stored responses, including expired ones.
    pub responses: Vec<Option<StoredResponse>>,
    /// `None` for a pair that does not exist.
    pub counters: Vec<Option<Counter>>,
    /// For a pair that does not exist: whether its agent has other pairs.
    pub agents: Vec<bool>,
    pub tenants: Vec<TenantTerms>,
    /// `None` for a service that is not registered.
    pub services: Vec<Option<Terms>>,
    /// For the tenants in [`Wanted::rising`].
    pub pairs_above_zero: Vec<(Tenant, i64)>,
}

/// Reads without locks. Stored responses are read last: if a request is refused because of earlier data and its key has
/// no record then, its key had no record before either.
pub async fn lookup(connection: &mut PgConnection, wanted: &Wanted<'_>) -> Result<Known, StoreError> {
    let mut known = Known {
        responses: vec![None; wanted.keys.len()],
        counters: vec![None; wanted.pairs.len()],
        agents: vec![false; wanted.pairs.len()],
        // A tenant without a row does not live here.
        tenants: vec![TenantTerms::default(); wanted.tenants.len()],
        services: vec![None; wanted.services.len()],
        pairs_above_zero: wanted.rising.iter().map(|tenant| ((*tenant).clone(), 0)).collect(),
    };
    if !wanted.pairs.is_empty() || !wanted.rising.is_empty() {
        read_counters(connection, wanted, &mut known).await?;
    }
    if !wanted.tenants.is_empty() || !wanted.services.is_empty() {
        read_terms(connection, wanted, &mut known).await?;
    }
    if !wanted.keys.is_empty() {
        read_responses(connection, wanted, &mut known).await?;
    }
    Ok(known)
}

/// The counters of pairs, whether their agents exist, and the numbers of pairs above zero, all read in one statement.
async fn read_counters(
    connection: &mut PgConnection,
    wanted: &Wanted<'_>,
    known: &mut Known,
) -> Result<(), StoreError> {
    let pairs = Columns::of(wanted.pairs.iter().copied());
    let rising: Vec<&str> = wanted.rising.iter().map(|tenant| tenant.as_str()).collect();
    let rows = sqlx::query!(
        r#"-- commit::read_counters
        SELECT wanted.number AS "number!", counter.pair_id, counter.outstanding, counter.settled, counter.reset,
               counter.version, agent.is_known, NULL::bigint AS pairs_above_zero
        FROM unnest($1::text[], $2::text[], $3::text[])
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
        SELECT wanted.number, NULL, NULL, NULL, NULL, NULL, NULL, sums.pairs_above_zero
        FROM unnest($4::text[]) WITH ORDINALITY AS wanted (tenant_id, number)
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(pairs_above_zero), 0)::bigint AS pairs_above_zero
            FROM totals WHERE totals.tenant_id = wanted.tenant_id AND totals.service_id = ''
        ) AS sums"#,
        pairs.tenants as _,
        pairs.agents as _,
        pairs.services as _,
        rising as _,
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        let index = row.number as usize - 1;
        if let Some(pairs_above_zero) = row.pairs_above_zero {
            known.pairs_above_zero[index].1 = pairs_above_zero;
            continue;
        }
        known.agents[index] = row.is_known.unwrap_or(false);
        if let Some(pair_id) = row.pair_id {
            let number = |value: Option<i64>| value.ok_or_else(|| corrupt("a counter without a number"));
            known.counters[index] = Some(Counter {
                pair_id,
                outstanding: number(row.outstanding)?,
                settled: number(row.settled)?,
                reset: number(row.reset)?,
                version: number(row.version)?,
            });
        }
    }
    Ok(())
}

/// The revisions of the tenants' terms, and the services, read in one statement.
async fn read_terms(connection: &mut PgConnection, wanted: &Wanted<'_>, known: &mut Known) -> Result<(), StoreError> {
    let tenants: Vec<&str> = wanted.tenants.iter().map(|tenant| tenant.as_str()).collect();
    let service_tenants: Vec<&str> = wanted.services.iter().map(|(tenant, _)| tenant.as_str()).collect();
    let services: Vec<&str> = wanted.services.iter().map(|(_, service)| service.as_str()).collect();
    let rows = sqlx::query!(
        r#"-- commit::read_terms
        SELECT wanted.number AS "number!", tenant.terms_revision, tenant.residence, webhook.is_there AS has_webhooks,
               NULL::bigint AS price_stroops, NULL::boolean AS disabled
        FROM unnest($1::text[]) WITH ORDINALITY AS wanted (tenant_id, number)
        CROSS JOIN LATERAL (
            SELECT terms_revision, residence FROM tenants WHERE tenants.tenant_id = wanted.tenant_id LIMIT 1
        ) AS tenant
        LEFT JOIN LATERAL (
            SELECT true AS is_there FROM webhooks WHERE webhooks.tenant_id = wanted.tenant_id LIMIT 1
        ) AS webhook ON true
        UNION ALL
        SELECT wanted.number, NULL, NULL, NULL, service.price_stroops, service.disabled
        FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS wanted (tenant_id, service_id, number)
        CROSS JOIN LATERAL (
            SELECT price_stroops, disabled FROM services
            WHERE services.tenant_id = wanted.tenant_id AND services.service_id = wanted.service_id
            LIMIT 1
        ) AS service"#,
        tenants as _,
        service_tenants as _,
        services as _,
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        let index = row.number as usize - 1;
        if let Some(revision) = row.terms_revision {
            let residence = Residence::parse(&row.residence.unwrap_or_default());
            known.tenants[index] = TenantTerms {
                revision,
                has_webhooks: row.has_webhooks.unwrap_or(false),
                residence: residence.ok_or_else(|| corrupt("tenants.residence"))?,
            };
        } else if let (Some(price_stroops), Some(disabled)) = (row.price_stroops, row.disabled) {
            known.services[index] = Some(Terms { price_stroops: Price::from_stored(price_stroops), disabled });
        }
    }
    Ok(())
}

/// A stored response is valid only where its tenant lives, so the two are read in one statement.
async fn read_responses(
    connection: &mut PgConnection,
    wanted: &Wanted<'_>,
    known: &mut Known,
) -> Result<(), StoreError> {
    let callers: Vec<&str> = wanted.keys.iter().map(|id| id.caller.as_str()).collect();
    let keys: Vec<&str> = wanted.keys.iter().map(|id| id.key.as_str()).collect();
    let tenants: Vec<&str> = wanted.keys.iter().map(|id| id.tenant_id()).collect();
    let rows = sqlx::query!(
        r#"-- commit::read_responses
        SELECT wanted.number AS "number!", stored.request_hash, stored.status, stored.response, stored.attempt_id,
               stored.expires_at,
               (SELECT residence FROM tenants WHERE tenants.tenant_id = wanted.tenant_id LIMIT 1) AS residence
        FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS wanted (caller, key, tenant_id, number)
        CROSS JOIN LATERAL (
            SELECT request_hash, status, response, attempt_id, expires_at FROM idempotency_keys
            WHERE idempotency_keys.key = wanted.key AND idempotency_keys.caller = wanted.caller
            LIMIT 1
        ) AS stored"#,
        callers as _,
        keys as _,
        tenants as _,
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        let hash = row.request_hash.try_into().map_err(|_| corrupt("request_hash"))?;
        known.responses[row.number as usize - 1] = Some(StoredResponse {
            fingerprint: Fingerprint(hash),
            status: u16::try_from(row.status).map_err(|_| corrupt("status"))?,
            response: row.response,
            attempt_id: row.attempt_id,
            expires_at: row.expires_at.into(),
            residence: row.residence.and_then(|residence| Residence::parse(&residence)).unwrap_or_default(),
        });
    }
    Ok(())
}
