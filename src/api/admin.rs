//! The operator's switches: pause, unpause, and the reset of everything.

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::json as value;

use crate::command::Command;
use crate::domain::refusal::Refusal;
use crate::metrics;
use crate::store::limits;

use super::exchange::{Failure, Write, json};
use super::state::ApiState;

pub async fn pause(State(state): State<ApiState>, request: Request) -> Result<Response, Failure> {
    set_paused(&state, request, true).await
}

pub async fn unpause(State(state): State<ApiState>, request: Request) -> Result<Response, Failure> {
    set_paused(&state, request, false).await
}

async fn set_paused(state: &ApiState, request: Request, paused: bool) -> Result<Response, Failure> {
    let write = Write::read(request, &[]).await?;
    let response = write.submit(state, Ok(Command::SetPaused(paused))).await;
    // Whatever came of it: what is in the database counts.
    state.follow_controls().await;
    response
}

pub async fn status(State(state): State<ApiState>) -> Result<Response, Failure> {
    let mut connection = state.connection().await?;
    let controls = limits::read(&mut connection).await?;
    Ok(json(&value!({ "paused": controls.paused })))
}

pub async fn reset(State(state): State<ApiState>, request: Request) -> Result<Response, Failure> {
    let write = Write::read(request, &[]).await?;
    if !state.settings.allow_admin_reset {
        return Err(Failure(Refusal::AdminResetDisabled));
    }
    let window_ms = state.limits.now().rate_limit_window_ms.unsigned_abs();
    let now_ms = state.clock.elapsed_ms();
    let rate_buckets = state.limiter.as_ref().map_or(0, |limiter| limiter.callers(now_ms, window_ms));
    let response = write.submit(&state, Ok(Command::Reset { rate_buckets })).await;
    state.follow_controls().await;
    if response.is_ok() {
        if let Some(limiter) = &state.limiter {
            limiter.restart();
        }
        metrics::restart();
    }
    response
}
