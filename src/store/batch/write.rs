//! What a batch changes, in one statement that compares what the batch was decided on.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::service::Terms;
use crate::domain::settlement::Settlement;
use crate::domain::timestamp::Timestamp;
use crate::store::StoreError;
use crate::store::idempotency::NewRecord;
use crate::store::outbox::Entry;
use crate::store::record_counts;
use crate::store::server::GATE;
use crate::store::totals::{ServiceChange, TenantChange};
use crate::store::usage::{Columns, Counter, CounterId};

/// A counter to be written. Its version is one higher than what was read.
#[derive(Clone, Copy, Debug)]
pub struct ChangedCounter<'a> {
    pub id: &'a CounterId,
    pub counter: Counter,
    /// For a pair that is new: its rank among the new ones of this batch, from 1, in the order of their first records.
    pub arrival: Option<i64>,
}

/// All that a batch changes. Lists are sorted by primary key where a row may be wanted by others, too.
#[derive(Default)]
pub struct Changes<'a> {
    pub counters: Vec<ChangedCounter<'a>>,
    /// Agents never seen before, sorted, each with its rank from 1 in the order of its first record.
    pub agents: Vec<(&'a Tenant, &'a AgentId, i64)>,
    pub services: BTreeMap<(&'a Tenant, &'a ServiceId), ServiceChange>,
    pub tenants: BTreeMap<Tenant, TenantChange>,
    pub settlements: &'a [(Tenant, Settlement)],
    pub events: &'a [(Tenant, Event)],
    /// The JSON of each event.
    pub payloads: &'a [String],
    /// The places drawn for the events. None: they are drawn now.
    pub positions: Vec<i64>,
    /// Deliveries that are due at once.
    pub deliveries: Vec<Entry<'a>>,
    pub records: Vec<NewRecord<'a>>,
    pub record_counts: Vec<record_counts::Change<'a>>,
    /// What the batch was decided on besides its counters: if it is not so any more, nothing is written.
    pub offers: Vec<(&'a Tenant, &'a ServiceId, Option<Terms>)>,
    pub webhooks: Vec<(&'a Tenant, i64)>,
}

/// Writes everything, or nothing: a counter that is not at the version before its new one, or an offer or a number of
/// webhooks that is not as it was known, is [`Moved`](crate::store::FaultKind::Moved), a key that was stored meanwhile
/// [`KeyTaken`](crate::store::FaultKind::KeyTaken).
/// `lock_timeout` is how long a locked row is waited for, as PostgreSQL writes it.
pub async fn write(
    connection: &mut PgConnection,
    changes: &Changes<'_>,
    shard: i16,
    now: Timestamp,
    lock_timeout: &str,
) -> Result<(), StoreError> {
    let counters = &changes.counters;
    let pairs = Columns::of(counters.iter().map(|changed| changed.id));
    let counter = |read: fn(&Counter) -> i64| counters.iter().map(|changed| read(&changed.counter)).collect::<Vec<_>>();
    let arrivals: Vec<Option<i64>> = counters.iter().map(|changed| changed.arrival).collect();

    let agents = &changes.agents;
    let service = |read: fn(&ServiceChange) -> i64| changes.services.values().map(read).collect::<Vec<_>>();
    let tenant = |read: fn(&TenantChange) -> i64| changes.tenants.values().map(read).collect::<Vec<_>>();

    let bills = changes.settlements;
    let bill = |read: fn(&Settlement) -> &str| bills.iter().map(|(_, row)| read(row)).collect::<Vec<_>>();
    let bill_keys: Vec<Option<&str>> = bills.iter().map(|(_, row)| row.idempotency_key.as_deref()).collect();

    let deliveries = &changes.deliveries;
    let records = &changes.records;
    let record = |read: for<'b> fn(&'b NewRecord<'_>) -> &'b str| records.iter().map(read).collect::<Vec<_>>();
    let responses: Vec<Option<&str>> = records.iter().map(|record| record.response).collect();
    let expires: Vec<OffsetDateTime> = records.iter().map(|record| record.expires_at.to_date_time()).collect();

    let offers = &changes.offers;
    let price = |terms: Option<Terms>| terms.map(|terms| terms.price_stroops);
    let disabled = |terms: Option<Terms>| terms.map(|terms| terms.disabled);

    // PostgreSQL sets up every part of a statement, empty or not; most batches can do without the rest.
    macro_rules! write_with {
        ($rest:literal $(, $argument:expr)*) => {
            sqlx::query_scalar!(
                r#"-- batch::write
                WITH patience AS (
                    SELECT set_config('lock_timeout', $1, true) AS lock_timeout, pg_advisory_xact_lock_shared($2) AS gate
                ), counters AS (
                    INSERT INTO usage_counters AS counter
                        (tenant, agent, service_id, outstanding, lifetime, settled, reset, version, list_position)
                    OVERRIDING SYSTEM VALUE
                    SELECT tenant, agent, service_id, outstanding, outstanding + settled + reset, settled, reset, version,
                           coalesce(positions.drawn[arrival], 0)
                    FROM patience
                    CROSS JOIN (
                        SELECT ARRAY(SELECT nextval(pg_get_serial_sequence('usage_counters', 'list_position'))
                                     FROM generate_series(1, $5::bigint)) AS drawn
                    ) AS positions
                    CROSS JOIN unnest($6::text[], $7::text[], $8::text[], $9::bigint[], $10::bigint[], $11::bigint[],
                                      $12::bigint[], $13::bigint[])
                        AS changed (tenant, agent, service_id, outstanding, settled, reset, version, arrival)
                    WHERE patience.lock_timeout IS NOT NULL
                    ON CONFLICT (tenant, agent, service_id) DO UPDATE
                    SET outstanding = excluded.outstanding, lifetime = excluded.lifetime, settled = excluded.settled,
                        reset = excluded.reset, version = excluded.version
                    WHERE counter.version = excluded.version - 1
                    RETURNING list_position
                ), service_sums AS (
                    INSERT INTO service_totals AS total (tenant, service_id, shard, outstanding, pairs_above_zero)
                    SELECT tenant, service_id, $3, outstanding, pairs_above_zero
                    FROM unnest($14::text[], $15::text[], $16::bigint[], $17::bigint[])
                        AS change (tenant, service_id, outstanding, pairs_above_zero)
                    ON CONFLICT (tenant, service_id, shard) DO UPDATE
                    SET outstanding = total.outstanding + excluded.outstanding,
                        pairs_above_zero = total.pairs_above_zero + excluded.pairs_above_zero
                ), tenant_sums AS (
                    INSERT INTO tenant_totals AS total
                        (tenant, shard, pairs, pairs_above_zero, outstanding, lifetime, settlements, settled_stroops,
                         services, agents, events, webhooks, api_keys, replies)
                    SELECT tenant, $3, pairs, pairs_above_zero, outstanding, lifetime, settlements,
                           settled_stroops::numeric, services, agents, events, webhooks, api_keys, replies
                    FROM unnest($18::text[], $19::bigint[], $20::bigint[], $21::bigint[], $22::bigint[], $23::bigint[],
                                $24::text[], $25::bigint[], $26::bigint[], $27::bigint[], $28::bigint[], $29::bigint[],
                                $52::bigint[])
                        AS change (tenant, pairs, pairs_above_zero, outstanding, lifetime, settlements,
                                   settled_stroops, services, agents, events, webhooks, api_keys, replies)
                    ON CONFLICT (tenant, shard) DO UPDATE
                    SET pairs = total.pairs + excluded.pairs,
                        pairs_above_zero = total.pairs_above_zero + excluded.pairs_above_zero,
                        outstanding = total.outstanding + excluded.outstanding,
                        lifetime = total.lifetime + excluded.lifetime,
                        settlements = total.settlements + excluded.settlements,
                        settled_stroops = total.settled_stroops + excluded.settled_stroops,
                        services = total.services + excluded.services,
                        agents = total.agents + excluded.agents,
                        events = total.events + excluded.events,
                        webhooks = total.webhooks + excluded.webhooks,
                        api_keys = total.api_keys + excluded.api_keys,
                        replies = total.replies + excluded.replies
                ), log AS (
                    INSERT INTO events (tenant, recorded_at, type, payload, position)
                    OVERRIDING SYSTEM VALUE
                    SELECT tenant, $4, type, payload::json, coalesce(position, nextval('events_position_seq'))
                    FROM unnest($30::text[], $31::text[], $32::text[], $33::bigint[])
                        AS event (tenant, type, payload, position)
                ), replies AS (
                    INSERT INTO idempotency_keys
                        (caller, key, method, path, request_hash, status, response, request_id, created_at, expires_at)
                    SELECT caller, key, method, path, request_hash, status, response::json, request_id, $4, expires_at
                    FROM unnest($34::text[], $35::text[], $36::text[], $37::text[], $38::bytea[], $39::smallint[],
                                $40::text[], $41::text[], $42::timestamptz[])
                        AS record (caller, key, method, path, request_hash, status, response, request_id, expires_at)
                ), counts AS (
                    INSERT INTO record_changes (kinds, owners, changes)
                    SELECT $43::text[], $44::text[], $45::bigint[] WHERE cardinality($43::text[]) > 0
                )"# + $rest + r#"
                -- Every counter must have come back, and none of them as a new row in the place of a vanished one.
                SELECT 1 / (
                    count(*) FILTER (WHERE list_position > 0) = cardinality($6::text[])
                    AND NOT EXISTS (
                        SELECT FROM unnest($46::text[], $47::text[], $48::bigint[], $49::boolean[])
                            AS offer (tenant, service_id, price_stroops, disabled)
                        LEFT JOIN LATERAL (
                            SELECT price_stroops, disabled FROM services
                            WHERE services.tenant = offer.tenant AND services.service_id = offer.service_id
                            LIMIT 1
                        ) AS service ON true
                        WHERE service.price_stroops IS DISTINCT FROM offer.price_stroops
                           OR service.disabled IS DISTINCT FROM offer.disabled
                    )
                    AND NOT EXISTS (
                        SELECT FROM unnest($50::text[], $51::bigint[]) AS listener (tenant, webhooks)
                        CROSS JOIN LATERAL (
                            SELECT coalesce(sum(webhooks), 0) AS webhooks FROM tenant_totals
                            WHERE tenant_totals.tenant = listener.tenant
                        ) AS kept
                        WHERE kept.webhooks <> listener.webhooks
                    )
                )::int AS "unmoved!"
                FROM counters"#,
                lock_timeout,
                GATE,
                shard,
                now.to_date_time(),
                arrivals.iter().flatten().count() as i64,
                pairs.tenants as _,
                pairs.agents as _,
                pairs.services as _,
                &counter(|counter| counter.outstanding),
                &counter(|counter| counter.settled),
                &counter(|counter| counter.reset),
                &counter(|counter| counter.version),
                arrivals as _,
                changes.services.keys().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>() as _,
                changes.services.keys().map(|(_, service)| service.as_str()).collect::<Vec<_>>() as _,
                &service(|change| change.outstanding),
                &service(|change| change.pairs_above_zero),
                changes.tenants.keys().map(Tenant::as_str).collect::<Vec<_>>() as _,
                &tenant(|change| change.pairs),
                &tenant(|change| change.pairs_above_zero),
                &tenant(|change| change.outstanding),
                &tenant(|change| change.lifetime),
                &tenant(|change| change.settlements),
                &changes.tenants.values().map(|change| change.settled_stroops.to_string()).collect::<Vec<_>>(),
                &tenant(|change| change.services),
                &tenant(|change| change.agents),
                &tenant(|change| change.events),
                &tenant(|change| change.webhooks),
                &tenant(|change| change.api_keys),
                changes.events.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>() as _,
                changes.events.iter().map(|(_, event)| event.type_name()).collect::<Vec<_>>() as _,
                changes.payloads,
                &changes.positions,
                record(|record| &record.id.caller) as _,
                record(|record| &record.id.key) as _,
                record(|record| record.method) as _,
                record(|record| record.path) as _,
                records.iter().map(|record| record.fingerprint.0.as_slice()).collect::<Vec<_>>() as _,
                &records.iter().map(|record| record.status as i16).collect::<Vec<_>>(),
                responses as _,
                record(|record| record.request_id) as _,
                &expires,
                changes.record_counts.iter().map(|change| change.kind.name()).collect::<Vec<_>>() as _,
                changes.record_counts.iter().map(|change| change.owner).collect::<Vec<_>>() as _,
                &changes.record_counts.iter().map(|change| change.change).collect::<Vec<_>>(),
                offers.iter().map(|(tenant, ..)| tenant.as_str()).collect::<Vec<_>>() as _,
                offers.iter().map(|(_, service, _)| service.as_str()).collect::<Vec<_>>() as _,
                offers.iter().map(|(.., terms)| price(*terms)).collect::<Vec<_>>() as _,
                offers.iter().map(|(.., terms)| disabled(*terms)).collect::<Vec<_>>() as _,
                changes.webhooks.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>() as _,
                &changes.webhooks.iter().map(|(_, webhooks)| *webhooks).collect::<Vec<_>>(),
                &tenant(|change| change.replies)
                $(, $argument)*
            )
            .fetch_one(connection)
            .await?
        };
    }
    if agents.is_empty() && bills.is_empty() && deliveries.is_empty() {
        write_with!("");
        return Ok(());
    }
    write_with!(
        r#", new_agents AS (
            INSERT INTO agents (tenant, agent, list_position)
            OVERRIDING SYSTEM VALUE
            SELECT tenant, agent, positions.drawn[arrival]
            FROM (SELECT ARRAY(SELECT nextval(pg_get_serial_sequence('agents', 'list_position'))
                               FROM generate_series(1, cardinality($53::text[]))) AS drawn) AS positions
            CROSS JOIN unnest($53::text[], $54::text[], $55::bigint[]) AS added (tenant, agent, arrival)
        ), bills AS (
            INSERT INTO settlements (tenant, settlement_id, agent, service_id, requests, price_stroops, billed_stroops,
                                     settled_at, idempotency_key, request_id)
            SELECT tenant, settlement_id, agent, service_id, requests, price_stroops, billed_stroops::numeric,
                   $4, idempotency_key, request_id
            FROM unnest($56::text[], $57::text[], $58::text[], $59::text[], $60::bigint[], $61::bigint[], $62::text[],
                        $63::text[], $64::text[])
                AS bill (tenant, settlement_id, agent, service_id, requests, price_stroops, billed_stroops,
                         idempotency_key, request_id)
        ), outbox AS (
            INSERT INTO webhook_deliveries
                (tenant, delivery, webhook, created_at, event_position, type, payload, next_attempt_at, due_at)
            SELECT tenant, delivery, webhook, $4, position, type, payload::json, $4, $4
            FROM unnest($65::text[], $66::text[], $67::text[], $68::bigint[], $69::text[], $70::text[])
                AS entry (tenant, delivery, webhook, position, type, payload)
        )"#,
        agents.iter().map(|(tenant, ..)| tenant.as_str()).collect::<Vec<_>>() as _,
        agents.iter().map(|(_, agent, _)| agent.as_str()).collect::<Vec<_>>() as _,
        &agents.iter().map(|(.., arrival)| *arrival).collect::<Vec<_>>(),
        bills.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>() as _,
        bill(|row| &row.id) as _,
        bill(|row| row.agent.as_str()) as _,
        bill(|row| row.service_id.as_str()) as _,
        &bills.iter().map(|(_, row)| row.requests.0).collect::<Vec<_>>(),
        &bills.iter().map(|(_, row)| row.price_stroops).collect::<Vec<_>>(),
        &bills.iter().map(|(_, row)| row.billed_stroops.to_string()).collect::<Vec<_>>(),
        bill_keys as _,
        bill(|row| &row.request_id) as _,
        deliveries.iter().map(|entry| entry.tenant.as_str()).collect::<Vec<_>>() as _,
        deliveries.iter().map(|entry| entry.delivery.as_str()).collect::<Vec<_>>() as _,
        deliveries.iter().map(|entry| entry.webhook.as_str()).collect::<Vec<_>>() as _,
        &deliveries.iter().map(|entry| entry.position).collect::<Vec<_>>(),
        deliveries.iter().map(|entry| entry.event_type).collect::<Vec<_>>() as _,
        deliveries.iter().map(|entry| entry.payload).collect::<Vec<_>>() as _
    );
    Ok(())
}
