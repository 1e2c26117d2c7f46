//! Row types of the commit statement. Each struct corresponds to the composite type of the same name in
//! `migrations/0010_commits.up.sql`, with the same fields in the same order. A list of rows is one array parameter,
//! which costs PostgreSQL less than an array for each column.

use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::types::PgRecordEncoder;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo};
use sqlx::{Postgres, Type};

/// Encodes `$row` as the composite type `$name`, and lists of it as an array of that type.
macro_rules! composite {
    ($row:ty, $name:literal, $($field:ident),+) => {
        impl Type<Postgres> for $row {
            fn type_info() -> PgTypeInfo {
                PgTypeInfo::with_name($name)
            }
        }

        impl PgHasArrayType for $row {
            fn array_type_info() -> PgTypeInfo {
                PgTypeInfo::array_of($name)
            }
        }

        impl Encode<'_, Postgres> for $row {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                let mut encoder = PgRecordEncoder::new(buffer);
                $(encoder.encode(&self.$field)?;)+
                encoder.finish();
                Ok(IsNull::No)
            }
        }
    };
}

composite!(CounterChange, "counter_change", pair_id, version, outstanding, settled, reset);
composite!(TotalsChange<'_>, "totals_change", tenant_id, service_id, pairs_above_zero, outstanding, recorded, events);
composite!(CallerChange<'_>, "caller_change", caller, records, bytes);
composite!(NewEventRun<'_>, "new_event_run", tenant_id, position, events, event_type, payloads);
composite!(
    NewIdempotencyKey<'_>,
    "new_idempotency_key",
    caller,
    key,
    method,
    path,
    request_hash,
    status,
    response,
    request_id
);

/// New values of a counter, and the version that it must have before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterChange {
    pub pair_id: i64,
    pub version: i64,
    pub outstanding: i64,
    pub settled: i64,
    pub reset: i64,
}

/// What to add to the totals of a service, or of a tenant if `service_id` is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TotalsChange<'a> {
    pub tenant_id: &'a str,
    pub service_id: &'a str,
    pub pairs_above_zero: i64,
    pub outstanding: i64,
    pub recorded: i64,
    pub events: i64,
}

/// What to add to the totals of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallerChange<'a> {
    pub caller: &'a str,
    pub records: i64,
    pub bytes: i64,
}

/// Consecutive events of one tenant and type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEventRun<'a> {
    pub tenant_id: &'a str,
    /// Position of the first event. `None`: the statement draws it.
    pub position: Option<i64>,
    pub events: i16,
    pub event_type: &'static str,
    /// One JSON document per line.
    pub payloads: String,
}

/// An idempotency record, without the columns that are equal for the whole commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewIdempotencyKey<'a> {
    pub caller: &'a str,
    pub key: &'a str,
    pub method: &'a str,
    pub path: &'a str,
    pub request_hash: &'a [u8],
    pub status: i16,
    pub response: Option<&'a str>,
    pub request_id: &'a str,
}

impl NewIdempotencyKey<'_> {
    /// The size that counts towards the caller's cap, as the SQL function `idempotency_record_bytes` computes it.
    pub fn bytes(&self) -> i64 {
        let texts = [self.caller, self.key, self.path, self.request_id, self.response.unwrap_or_default()];
        200 + texts.iter().map(|text| text.len() as i64).sum::<i64>()
    }
}
