//! What a batch has to know, in one statement.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::fingerprint::Fingerprint;
use crate::domain::names::ServiceId;
use crate::domain::service::Terms;
use crate::store::idempotency::{CallerKey, StoredReply};
use crate::store::usage::{Columns, Counter, CounterId};
use crate::store::{StoreError, corrupt};

/// What a batch asks for. Each list of [`Known`] has the order of the list here that it answers.
#[derive(Clone, Default)]
pub struct Wanted<'a> {
    pub keys: Vec<&'a CallerKey>,
    pub pairs: Vec<&'a CounterId>,
    pub offers: Vec<(&'a Tenant, &'a ServiceId)>,
    pub tenants: Vec<&'a Tenant>,
}

impl Wanted<'_> {
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.pairs.is_empty() && self.offers.is_empty() && self.tenants.is_empty()
    }
}

/// What a batch has to know.
#[derive(Default)]
pub struct Known {
    /// Stored answers, expired ones included.
    pub replies: Vec<Option<StoredReply>>,
    /// One for each pair; none for a pair never seen.
    pub counters: Vec<Option<Counter>>,
    /// Whether the agent of a pair that was never seen has other pairs.
    pub agents: Vec<bool>,
    /// Price and state of each offer; none for a service that is not registered.
    pub terms: Vec<Option<Terms>>,
    /// Pairs above zero of each tenant; none where nobody has to know.
    pub pairs_above_zero: Vec<Option<i64>>,
    /// Webhooks of each tenant.
    pub webhooks: Vec<i64>,
}

/// Reads, without locking anything. The lists hide behind subqueries: were their lengths known to the planner, it would
/// take a plan made for one row to be cheaper than the general one, and plan every small batch anew.
pub async fn read(connection: &mut PgConnection, wanted: &Wanted<'_>) -> Result<Known, StoreError> {
    let callers: Vec<&str> = wanted.keys.iter().map(|id| id.caller.as_str()).collect();
    let keys: Vec<&str> = wanted.keys.iter().map(|id| id.key.as_str()).collect();
    let pairs = Columns::of(wanted.pairs.iter().copied());
    let offer_tenants: Vec<&str> = wanted.offers.iter().map(|(tenant, _)| tenant.as_str()).collect();
    let offers: Vec<&str> = wanted.offers.iter().map(|(_, service)| service.as_str()).collect();
    let tenants: Vec<&str> = wanted.tenants.iter().map(|tenant| tenant.as_str()).collect();
    let rows = sqlx::query!(
        r#"-- batch::read
        SELECT 0 AS "kind!", wanted.position AS "position!", stored.status::bigint AS a, NULL::bigint AS b,
               NULL::bigint AS c, NULL::bigint AS d, NULL::boolean AS flag,
               stored.request_hash AS hash, stored.response, stored.expires_at
        FROM unnest((SELECT $1::text[]), (SELECT $2::text[])) WITH ORDINALITY AS wanted (caller, key, position)
        CROSS JOIN LATERAL (
            SELECT request_hash, status, response::text AS response, expires_at
            FROM idempotency_keys
            WHERE idempotency_keys.caller = wanted.caller AND idempotency_keys.key = wanted.key
            LIMIT 1
        ) AS stored
        UNION ALL
        SELECT 1, wanted.position, counter.outstanding, counter.settled, counter.reset, counter.version,
               agent.is_known, NULL, NULL, NULL
        FROM unnest((SELECT $3::text[]), (SELECT $4::text[]), (SELECT $5::text[]))
            WITH ORDINALITY AS wanted (tenant, agent, service_id, position)
        LEFT JOIN LATERAL (
            SELECT outstanding, settled, reset, version FROM usage_counters
            WHERE usage_counters.tenant = wanted.tenant AND usage_counters.agent = wanted.agent
              AND usage_counters.service_id = wanted.service_id
            LIMIT 1
        ) AS counter ON true
        LEFT JOIN LATERAL (
            SELECT true AS is_known FROM agents
            WHERE counter.version IS NULL AND agents.tenant = wanted.tenant AND agents.agent = wanted.agent
            LIMIT 1
        ) AS agent ON true
        UNION ALL
        SELECT 2, wanted.position, service.price_stroops, NULL, NULL, NULL, service.disabled, NULL, NULL, NULL
        FROM unnest((SELECT $6::text[]), (SELECT $7::text[])) WITH ORDINALITY AS wanted (tenant, service_id, position)
        CROSS JOIN LATERAL (
            SELECT price_stroops, disabled FROM services
            WHERE services.tenant = wanted.tenant AND services.service_id = wanted.service_id
            LIMIT 1
        ) AS service
        UNION ALL
        SELECT 3, wanted.position, totals.pairs, totals.webhooks, NULL, NULL, NULL, NULL, NULL, NULL
        FROM unnest((SELECT $8::text[])) WITH ORDINALITY AS wanted (tenant, position)
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(pairs_above_zero), 0)::bigint AS pairs, coalesce(sum(webhooks), 0)::bigint AS webhooks
            FROM tenant_totals WHERE tenant_totals.tenant = wanted.tenant
        ) AS totals"#,
        callers as _,
        keys as _,
        pairs.tenants as _,
        pairs.agents as _,
        pairs.services as _,
        offer_tenants as _,
        offers as _,
        tenants as _,
    )
    .fetch_all(connection)
    .await?;
    let mut known = Known {
        replies: vec![None; wanted.keys.len()],
        counters: vec![None; wanted.pairs.len()],
        agents: vec![false; wanted.pairs.len()],
        terms: vec![None; wanted.offers.len()],
        pairs_above_zero: vec![None; wanted.tenants.len()],
        webhooks: vec![0; wanted.tenants.len()],
    };
    for row in rows {
        let place = row.position as usize - 1;
        let number = |value: Option<i64>| value.ok_or_else(|| corrupt("a number is missing"));
        match row.kind {
            0 => {
                let hash = row.hash.and_then(|hash| hash.try_into().ok());
                known.replies[place] = Some(StoredReply {
                    fingerprint: Fingerprint(hash.ok_or_else(|| corrupt("request_hash"))?),
                    status: u16::try_from(number(row.a)?).map_err(|_| corrupt("status"))?,
                    response: row.response,
                    expires_at: row.expires_at.ok_or_else(|| corrupt("expires_at"))?.into(),
                });
            }
            1 => {
                known.agents[place] = row.flag.unwrap_or(false);
                if let Some(version) = row.d {
                    let (outstanding, settled, reset) = (number(row.a)?, number(row.b)?, number(row.c)?);
                    known.counters[place] = Some(Counter { outstanding, settled, reset, version });
                }
            }
            2 => {
                let disabled = row.flag.ok_or_else(|| corrupt("disabled"))?;
                known.terms[place] = Some(Terms { price_stroops: number(row.a)?, disabled });
            }
            _ => {
                known.pairs_above_zero[place] = Some(number(row.a)?);
                known.webhooks[place] = number(row.b)?;
            }
        }
    }
    Ok(known)
}
