//! Exports: all pairs of the tenant as one file, streamed from one snapshot. Memory is bounded by two parts of it, and
//! an export that cannot be finished breaks its connection, so that it never looks complete.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use sqlx::PgConnection;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::domain::caller::Tenant;
use crate::domain::money::Count;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::store::exports::{Exported, Place, pairs_after};
use crate::store::pool::Held;
use crate::store::{StoreError, server};

use crate::api::openapi::description::{Content, Description};
use crate::api::request::exchange::{Exchange, Failure, Read};
use crate::api::state::{ApiState, read_refusal};

/// Pairs of one part, which is at most 400 kB long.
const PAIRS_OF_PART: i64 = 1000;

/// How long PostgreSQL may take for one part.
const STATEMENT_LIMIT: Duration = Duration::from_secs(10);

/// How long an export may take. The deadline of a request bounds its first part only, for a large file takes its time:
/// at the slowest rate an answer may be read at, this is enough for 54 MB. But while a snapshot is held PostgreSQL can
/// clean up no row version that it may see, and busy counters make many.
const EXPORT_LIMIT: Duration = Duration::from_secs(900);

pub const JSON: Description = Description::of(
    "exportUsageJson",
    "Export usage as JSON",
    "Streams the outstanding requests of all pairs of the tenant from one snapshot, in order of creation.",
)
.content(
    200,
    Content::File(SchemaGenerator::subschema_for::<Document<'static>>, "usage.json"),
    r#"{"exportedAt":1767225600000,"items":[{"agent":"agent-1","serviceId":"weather","total":3}]}"#,
);

pub async fn json(State(state): State<ApiState>, Read(exchange): Read) -> Result<Response, Failure> {
    let headers = [
        (header::CONTENT_TYPE, "application/json; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=usage.json"),
    ];
    let exported_at = state.clock.now();
    let body = export(&state, &exchange, Format::Json { exported_at }).await?;
    Ok((headers, body).into_response())
}

pub const CSV: Description = Description::of(
    "exportUsageCsv",
    "Export usage as CSV",
    "Streams the outstanding requests of all pairs of the tenant from one snapshot, in order of creation. A \
         field that a spreadsheet could run as a formula is prefixed with `'`.",
)
.content(200, Content::Text("text/csv"), "agent,serviceId,total\nagent-1,weather,3\n");

pub async fn csv(State(state): State<ApiState>, Read(exchange): Read) -> Result<Response, Failure> {
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=usage.csv"),
    ];
    let body = export(&state, &exchange, Format::Csv).await?;
    Ok((headers, body).into_response())
}

/// Turns for exports. Each keeps a connection while its client reads, so a tenant has one at a time, and all together have
/// no more than a quarter of the connections there are for reads.
pub struct ExportTurns {
    places: Arc<Semaphore>,
    /// Those with an export.
    tenants: Mutex<HashSet<Tenant>>,
    ended: Notify,
}

impl ExportTurns {
    pub fn new(connections_max: u32) -> Arc<Self> {
        let places = Arc::new(Semaphore::new((connections_max as usize / 4).max(1)));
        Arc::new(Self { places, tenants: Mutex::default(), ended: Notify::new() })
    }

    /// Waits for the tenant's turn, and then for a place, so that one tenant's requests do not wait before another's.
    async fn acquire(self: &Arc<Self>, tenant: &Tenant) -> Result<ExportTurn, Refusal> {
        loop {
            let ended = self.ended.notified();
            if self.tenants().insert(tenant.clone()) {
                break;
            }
            ended.await;
        }
        let mut turn = ExportTurn { turns: self.clone(), tenant: tenant.clone(), _place: None };
        let place = self.places.clone().acquire_owned().await;
        turn._place = Some(place.map_err(|_| Refusal::StoreUnavailable)?);
        Ok(turn)
    }

    fn tenants(&self) -> MutexGuard<'_, HashSet<Tenant>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct ExportTurn {
    turns: Arc<ExportTurns>,
    tenant: Tenant,
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for ExportTurn {
    fn drop(&mut self) {
        self.turns.tenants().remove(&self.tenant);
        self.turns.ended.notify_waiters();
    }
}

/// What the task that reads says to the one that sends. A channel that closes without `End` is an export that broke off.
enum Message {
    Part(Bytes),
    End,
    Fault(StoreError),
}

/// The body, once its first part is there: until then a fault still is an answer of its own.
async fn export(state: &ApiState, exchange: &Exchange, format: Format) -> Result<Body, Failure> {
    let turn = state.export_turns.acquire(&exchange.identity.tenant).await?;
    let deadline = Instant::from_std(exchange.deadline);
    let connection = state.pool.hold(deadline).await?;
    let (sender, mut receiver) = channel(1);
    let tenant = exchange.identity.tenant.clone();
    // A task of its own, because what reads a snapshot must not be cut off between two statements. It ends when the body
    // is dropped, which the connection does with an answer that is read too slowly.
    tokio::spawn(async move {
        read_all(connection, &tenant, format, sender).await;
        drop(turn);
    });
    match receiver.recv().await {
        Some(Message::Part(first)) => Ok(body(first, receiver)),
        Some(Message::Fault(error)) => Err(Failure(read_refusal(&error))),
        Some(Message::End) | None => Err(Failure(Refusal::StoreUnavailable)),
    }
}

fn body(first: Bytes, receiver: Receiver<Message>) -> Body {
    let parts = stream::unfold((Some(Message::Part(first)), receiver), |(first, mut receiver)| async move {
        let message = match first {
            Some(message) => Some(message),
            None => receiver.recv().await,
        };
        match message {
            Some(Message::Part(part)) => Some((Ok(part), (None, receiver))),
            Some(Message::End) => None,
            // hyper closes the connection without the end of the body.
            Some(Message::Fault(_)) | None => Some((Err("the export broke off"), (None, receiver))),
        }
    });
    Body::from_stream(parts)
}

async fn read_all(connection: Held, tenant: &Tenant, format: Format, sender: Sender<Message>) {
    let last = match timeout(EXPORT_LIMIT, read_parts(connection, tenant, &format, &sender)).await {
        Ok(Ok(true)) => Message::End,
        Ok(Ok(false)) => return warn!("an export was given up, because its client stopped reading"),
        Ok(Err(error)) => {
            warn!(%error, "an export broke off");
            Message::Fault(error)
        }
        Err(_) => return warn!("an export was given up, because it took too long"),
    };
    // The client may be gone.
    let _ = sender.send(last).await;
}

/// False if the client does not take what was read.
async fn read_parts(
    mut connection: Held,
    tenant: &Tenant,
    format: &Format,
    sender: &Sender<Message>,
) -> Result<bool, StoreError> {
    connection.run(Instant::now() + STATEMENT_LIMIT, server::hold_snapshot).await?;
    let mut last = Place::start();
    let mut is_first = true;
    let mut text = format.start();
    loop {
        // Steps by position rather than one long result: a result that is given up halfway has to be read to its end
        // before the connection is of use again.
        let read = async |snapshot: &mut PgConnection| pairs_after(snapshot, tenant, &last, PAIRS_OF_PART).await;
        let pairs = connection.run(Instant::now() + STATEMENT_LIMIT, read).await?;
        format.write(&mut text, &pairs, is_first);
        is_first = false;
        last = pairs.last().map_or(last, Place::of);
        let is_last = (pairs.len() as i64) < PAIRS_OF_PART;
        if is_last {
            text.extend_from_slice(format.end());
        }
        let part = Message::Part(std::mem::take(&mut text).into());
        if sender.send(part).await.is_err() {
            return Ok(false);
        }
        if is_last {
            break;
        }
    }
    let deadline = Instant::now() + STATEMENT_LIMIT;
    connection.run(deadline, server::end_snapshot).await?;
    connection.release(deadline).await;
    Ok(true)
}

/// The shape of the file.
enum Format {
    Json { exported_at: Timestamp },
    Csv,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ExportedPair")]
struct Item<'a> {
    agent: &'a AgentId,
    service_id: &'a ServiceId,
    total: Count,
}

/// The exported file.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ExportedUsage")]
struct Document<'a> {
    exported_at: Timestamp,
    items: Vec<Item<'a>>,
}

impl Format {
    fn start(&self) -> Vec<u8> {
        match self {
            Self::Json { exported_at } => format!(r#"{{"exportedAt":{},"items":["#, exported_at.as_ms()).into_bytes(),
            Self::Csv => b"agent,serviceId,total\n".to_vec(),
        }
    }

    fn write(&self, text: &mut Vec<u8>, pairs: &[Exported], is_first_part: bool) {
        match self {
            Self::Json { .. } => {
                for (index, exported) in pairs.iter().enumerate() {
                    if index > 0 || !is_first_part {
                        text.push(b',');
                    }
                    let (agent, service_id) = (&exported.pair.agent, &exported.pair.service_id);
                    let item = Item { agent, service_id, total: Count(exported.outstanding) };
                    serde_json::to_writer(&mut *text, &item).expect("writing to memory cannot fail");
                }
            }
            Self::Csv => {
                let mut writer = ::csv::Writer::from_writer(text);
                for exported in pairs {
                    let total = Count(exported.outstanding).to_string();
                    let fields = [exported.pair.agent.as_str(), exported.pair.service_id.as_str(), &total];
                    writer.write_record(fields.map(|field| guarded(field).into_owned())).expect("memory cannot fail");
                }
                writer.flush().expect("memory cannot fail");
            }
        }
    }

    fn end(&self) -> &'static [u8] {
        match self {
            Self::Json { .. } => b"]}",
            Self::Csv => b"",
        }
    }
}

/// Keeps a spreadsheet from taking a field for a formula.
fn guarded(field: &str) -> Cow<'_, str> {
    if field.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{field}").into() } else { field.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(agent: &str, outstanding: i64) -> Exported {
        let (agent, service_id) = (AgentId::from_stored(agent.to_owned()), ServiceId::from_stored("s".to_owned()));
        let pair = crate::domain::usage::Pair { agent, service_id };
        Exported { pair, outstanding, pair_id: 1 }
    }

    #[test]
    fn fields_that_a_spreadsheet_would_run_or_split_are_guarded_and_quoted() {
        for (field, shown) in [
            ("plain", "plain"),
            ("-x", "'-x"),
            ("+x", "'+x"),
            ("@x", "'@x"),
            ("\tx", "'\tx"),
            ("x-=+@", "x-=+@"),
            ("=cmd", "'=cmd"),
            ("needs,quote", "\"needs,quote\""),
            ("=\"quoted\"", "\"'=\"\"quoted\"\"\""),
            ("\rCarriage", "\"'\rCarriage\""),
            ("two\nlines", "\"two\nlines\""),
            ("it's; #1", "it's; #1"),
        ] {
            let mut text = Vec::new();
            Format::Csv.write(&mut text, &[pair(field, 7)], true);
            assert_eq!(String::from_utf8_lossy(&text), format!("{shown},s,7\n"));
        }
    }

    #[test]
    fn parts_join_to_one_document() {
        let format = Format::Json { exported_at: Timestamp::from_ms(5) };
        let mut text = format.start();
        format.write(&mut text, &[pair("a", 1), pair("b", i64::MAX)], true);
        format.write(&mut text, &[pair("c", 0)], false);
        text.extend_from_slice(format.end());
        assert_eq!(
            String::from_utf8_lossy(&text),
            concat!(
                r#"{"exportedAt":5,"items":[{"agent":"a","serviceId":"s","total":1},"#,
                r#"{"agent":"b","serviceId":"s","total":9007199254740991},{"agent":"c","serviceId":"s","total":0}]}"#
            )
        );
    }
}
