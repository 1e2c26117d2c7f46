//! Operator routes: pause, unpause, and the reset of all data.

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::command::TransactionalCommand;
use crate::command::answers::Reset;
use crate::domain::refusal::Refusal;
use crate::metrics;

use crate::api::openapi::description::Description;
use crate::api::request::errors::ApiError;
use crate::api::request::response::json;
use crate::api::request::write::WriteRequest;
use crate::api::state::ApiState;

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "PauseState")]
struct Paused {
    paused: bool,
}

pub const PAUSE: Description = Description::of(
    "pauseWrites",
    "Pause writes",
    "Refuses writes with `service_paused`, on every replica. Reads, configuration and the admin routes continue.",
)
.answer::<Paused>(200, r#"{"paused":true}"#);

pub async fn pause(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    set_paused(&state, write, true).await
}

pub const UNPAUSE: Description = Description::of("resumeWrites", "Resume writes", "Ends a pause, on every replica.")
    .answer::<Paused>(200, r#"{"paused":false}"#);

pub async fn unpause(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    set_paused(&state, write, false).await
}

async fn set_paused(state: &ApiState, write: WriteRequest, paused: bool) -> Result<Response, ApiError> {
    let deadline = write.context.deadline;
    let response = write.submit(state, Ok::<_, Refusal>(TransactionalCommand::SetPaused(paused))).await;
    state.follow_config(deadline, response).await
}

pub const STATUS: Description =
    Description::of("getPauseState", "Get the pause state", "Returns whether writes are refused.")
        .answer::<Paused>(200, r#"{"paused":false}"#);

pub async fn status(State(state): State<ApiState>) -> Result<Response, ApiError> {
    Ok(json(&Paused { paused: state.runtime_config.is_paused() }))
}

const RESET_EXAMPLE: &str = r#"{"reset":true,"cleared":{"usage":1,"services":1,"servicesMetadata":0,"servicesDisabled":0,"apiKeys":0,"webhooks":0,"eventLog":1,
    "rateBuckets":1,"paused":false,"config":{"rateLimitPerWindow":60,"rateLimitWindowMs":60000,"bulkMaxItems":100,"eventLogCap":10000,
    "usageStoreMaxKeys":100000,"servicesStoreMaxKeys":10000,"webhookStoreMaxKeys":10000,"apiKeyStoreMaxKeys":10000}},
    "paused":false,"config":{"rateLimitPerWindow":60,"rateLimitWindowMs":60000,"bulkMaxItems":100,"eventLogCap":10000,
    "usageStoreMaxKeys":100000,"servicesStoreMaxKeys":10000,"webhookStoreMaxKeys":10000,"apiKeyStoreMaxKeys":10000},
    "auditEvent":{"id":"6f1c1f0e-0000-4000-8000-000000000001","ts":1767225600000,"type":"admin.reset",
    "payload":{"cleared":{"usage":1,"services":1,"servicesMetadata":0,"servicesDisabled":0,"apiKeys":0,"webhooks":0,"eventLog":1,
    "rateBuckets":1,"paused":false,"config":{"rateLimitPerWindow":60,"rateLimitWindowMs":60000,"bulkMaxItems":100,"eventLogCap":10000,
    "usageStoreMaxKeys":100000,"servicesStoreMaxKeys":10000,"webhookStoreMaxKeys":10000,"apiKeyStoreMaxKeys":10000}}}}}"#;

pub const RESET: Description = Description::of(
    "resetData",
    "Reset all data",
    "Deletes the data of all tenants and restores the default configuration. Returns 404 unless \
         `ALLOW_ADMIN_RESET` is on.",
)
.answer::<Reset>(200, RESET_EXAMPLE)
.refuses(&["not_found"]);

pub async fn reset(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    if !state.settings.allow_admin_reset {
        return Err(Refusal::AdminResetDisabled.into());
    }
    let window_ms = state.runtime_config.limits().rate_limit_window_ms.unsigned_abs();
    let now_ms = state.home().clock.elapsed_ms();
    let rate_buckets = state.limiter.as_ref().map_or(0, |limiter| limiter.callers(now_ms, window_ms));
    let deadline = write.context.deadline;
    let response = write.submit(&state, Ok::<_, Refusal>(TransactionalCommand::Reset { rate_buckets })).await;
    let response = state.follow_config(deadline, response).await;
    if response.is_ok() {
        if let Some(limiter) = &state.limiter {
            limiter.clear();
            state.key_limiter.clear();
        }
        metrics::restart();
    }
    response
}
