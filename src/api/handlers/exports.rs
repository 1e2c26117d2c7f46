//! Exports: all pairs of a tenant as one streamed file.

use std::future::ready;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;

use crate::domain::csv_field::guarded;
use crate::domain::money::Count;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::timestamp::Timestamp;
use crate::query::exports;
use crate::store::exports::Exported;

use crate::api::openapi::description::{Content, Description};
use crate::api::request::errors::ApiError;
use crate::api::request::read::ReadRequest;
use crate::api::state::ApiState;

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

pub async fn json(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let headers = [
        (header::CONTENT_TYPE, "application/json; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=usage.json"),
    ];
    let exported_at = request.cell(&state).clock.now();
    let body = export(&state, &request, Format::Json { exported_at }).await?;
    Ok((headers, body).into_response())
}

pub const CSV: Description = Description::of(
    "exportUsageCsv",
    "Export usage as CSV",
    "Streams the outstanding requests of all pairs of the tenant from one snapshot, in order of creation. A \
         field that a spreadsheet could run as a formula is prefixed with `'`.",
)
.content(200, Content::Text("text/csv"), "agent,serviceId,total\nagent-1,weather,3\n");

pub async fn csv(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=usage.csv"),
    ];
    let body = export(&state, &request, Format::Csv).await?;
    Ok((headers, body).into_response())
}

/// Reads the first part before it returns, so that a failure up to there is an error response. A later failure resets
/// the connection, so that the file never looks complete.
async fn export(state: &ApiState, request: &ReadRequest, format: Format) -> Result<Body, ApiError> {
    let tenant = request.tenant();
    let cell = request.cell(state);
    let parts = exports::pairs(&cell.reader, &cell.export_turns, tenant, request.deadline).await?;
    let mut start = Some(format.start());
    let end = stream::once(ready(Ok(Bytes::from_static(format.end()))));
    let parts = parts.map_ok(move |pairs| {
        let is_first = start.is_some();
        let mut text = start.take().unwrap_or_default();
        format.write(&mut text, &pairs, is_first);
        Bytes::from(text)
    });
    Ok(Body::from_stream(parts.chain(end)))
}

/// The format of the file.
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
