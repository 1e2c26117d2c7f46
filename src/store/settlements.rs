//! The table `settlements`. Commits append to it in `commit::write`.

use std::ops::RangeInclusive;

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::money::{Count, Price, Stroops};
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::settlement::Settlement;
use crate::domain::timestamp::{StoredMoment, Timestamp};

use super::{StoreError, corrupt};

/// The last settlement of a page. Lists are ordered from newer to older.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettlementCursor {
    pub settled_at: StoredMoment,
    pub list_position: i64,
    /// Distinguishes equal positions. Empty: before all of that position.
    pub id: String,
}

/// A filter of settlements. All conditions that are present must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub agent: Option<AgentId>,
    pub service_id: Option<ServiceId>,
    pub since: Option<Timestamp>,
}

struct Row {
    settlement_id: String,
    agent_id: String,
    service_id: String,
    requests: i64,
    price_stroops: i64,
    billed_stroops: String,
    settled_at: OffsetDateTime,
    idempotency_key: Option<String>,
    request_id: String,
    list_position: i64,
}

impl Row {
    fn into_settlement(self) -> Result<Settlement, StoreError> {
        Ok(Settlement {
            id: self.settlement_id,
            agent: AgentId::from_stored(self.agent_id),
            service_id: ServiceId::from_stored(self.service_id),
            requests: Count(self.requests),
            price_stroops: Price::from_stored(self.price_stroops),
            billed_stroops: Stroops::from_digits(&self.billed_stroops).ok_or_else(|| corrupt("billed_stroops"))?,
            settled_at: self.settled_at.into(),
            idempotency_key: self.idempotency_key,
            request_id: self.request_id,
        })
    }
}

pub async fn find(
    connection: &mut PgConnection,
    tenant: &Tenant,
    settlement_id: &str,
) -> Result<Option<Settlement>, StoreError> {
    sqlx::query_as!(
        Row,
        r#"-- settlements::find
        SELECT settlement_id, agent_id, service_id, requests, price_stroops, billed_stroops::text AS "billed_stroops!",
               settled_at, idempotency_key, request_id, list_position
        FROM settlements WHERE tenant_id = $1 AND settlement_id = $2"#,
        tenant.as_str(),
        settlement_id,
    )
    .fetch_optional(connection)
    .await?
    .map(Row::into_settlement)
    .transpose()
}

/// At most `limit` settlements of a tenant that requests with this idempotency key made between two moments, oldest first.
/// Reads all settlements of that time.
pub async fn with_key(
    connection: &mut PgConnection,
    tenant: &Tenant,
    key: &str,
    executed: RangeInclusive<StoredMoment>,
    limit: i64,
) -> Result<Vec<Settlement>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- settlements::with_key
        SELECT settlement_id, agent_id, service_id, requests, price_stroops, billed_stroops::text AS "billed_stroops!",
               settled_at, idempotency_key, request_id, list_position
        FROM settlements
        WHERE tenant_id = $1 AND settled_at BETWEEN $2 AND $3 AND idempotency_key = $4
        ORDER BY settled_at, list_position LIMIT $5"#,
        tenant.as_str(),
        executed.start().to_date_time(),
        executed.end().to_date_time(),
        key,
        limit,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::into_settlement).collect()
}

/// At most `limit` settlements older than `before`, newest first, each with its cursor.
pub async fn list(
    connection: &mut PgConnection,
    tenant: &Tenant,
    filter: &Filter,
    before: Option<SettlementCursor>,
    limit: i64,
) -> Result<Vec<(SettlementCursor, Settlement)>, StoreError> {
    let start = || SettlementCursor { settled_at: StoredMoment::LAST, list_position: i64::MAX, id: String::new() };
    let before = before.unwrap_or_else(start);
    let since = filter.since.unwrap_or(Timestamp::from_ms(0));
    // Each filter uses another index. One statement for all filters would be planned badly for each.
    macro_rules! rows {
        ($name:literal, $condition:literal $(, $argument:expr)*) => {
            sqlx::query_as!(
                Row,
                "-- settlements::list, " + $name + "\n"
                    + r#"SELECT settlement_id, agent_id, service_id, requests, price_stroops,
                           billed_stroops::text AS "billed_stroops!", settled_at, idempotency_key, request_id,
                           list_position
                    FROM settlements
                    WHERE tenant_id = $1 AND settled_at >= $2 AND (settled_at, list_position, settlement_id) < ($3, $4, $5)"#
                    + $condition
                    + "ORDER BY settled_at DESC, list_position DESC, settlement_id DESC LIMIT $6",
                tenant.as_str(),
                since.to_date_time(),
                before.settled_at.to_date_time(),
                before.list_position,
                before.id,
                limit
                $(, $argument)*
            )
            .fetch_all(connection)
            .await?
        };
    }
    let agent = filter.agent.as_ref().map(AgentId::as_str);
    let service_id = filter.service_id.as_ref().map(ServiceId::as_str);
    let rows = match (agent, service_id) {
        (None, None) => rows!("all", " "),
        (Some(agent), None) => rows!("agent", " AND agent_id = $7 ", agent),
        (None, Some(service_id)) => rows!("service", " AND service_id = $7 ", service_id),
        (Some(agent), Some(service_id)) => {
            rows!("pair", " AND agent_id = $7 AND service_id = $8 ", agent, service_id)
        }
    };
    rows.into_iter()
        .map(|row| {
            let id = row.settlement_id.clone();
            let cursor = SettlementCursor { settled_at: row.settled_at.into(), list_position: row.list_position, id };
            Ok((cursor, row.into_settlement()?))
        })
        .collect()
}
