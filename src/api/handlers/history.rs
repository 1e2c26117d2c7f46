//! What this replica did in the last hour, for the operator's console.

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::money::SAFE_MAX;
use crate::domain::timestamp::Timestamp;
use crate::history::{INTERVAL, Sample};

use crate::api::openapi::description::{Description, SINCE};
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::state::ApiState;

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
struct History {
    /// The time that a sample covers.
    interval_ms: u64,
    /// Oldest first.
    samples: Vec<Sample>,
    /// Commands that wait for a commit now.
    queue_depth: usize,
    queue_capacity: usize,
}

pub const LIST: Description = Description::of(
    "listHistory",
    "List the history of this replica",
    "Returns what the replica that responds did in the last hour, in samples of ten seconds. The samples are in memory and begin \
         with the process.",
)
.query(&[SINCE])
.answer::<History>(
    200,
    r#"{"intervalMs":10000,"samples":[{"at":1767225600000,"requests":1200,"failures":0,"commands":1150,"replays":30,"p50Ms":1.25,
        "p99Ms":8.4,"queueDepth":3}],"queueDepth":0,"queueCapacity":10000}"#,
);

pub async fn list(State(state): State<ApiState>, request: ReadRequest) -> Response {
    let since = Timestamp::from_ms(request.query.bounded("since", 0, 0, SAFE_MAX as i64));
    json(&History {
        interval_ms: INTERVAL.as_millis() as u64,
        samples: state.history.since(since),
        queue_depth: state.cells.iter().map(|cell| cell.committer.queue_depth()).sum(),
        queue_capacity: state.cells.iter().map(|cell| cell.committer.queue_max()).sum(),
    })
}
