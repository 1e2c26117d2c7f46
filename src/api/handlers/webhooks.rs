//! Webhooks: create, list, change, delete and test them, and list their deliveries.

use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::answers::{CreatedWebhook, Resent, RotatedWebhookSecret};
use crate::command::{Answer, TransactionalCommand};
use crate::domain::api_key::{Scope, Scopes};
use crate::domain::caller::Tenant;
use crate::domain::delivery::Delivery;
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::domain::usage::integer;
use crate::domain::webhook::{Change, KNOWN_TYPES, Webhook, check_types, check_url};
use crate::jobs::webhooks::sender;
use crate::query::reader::read_refusal;
use crate::query::webhooks;
use crate::store::redeliveries::Resend;
use crate::telemetry::RequestSpan;

use crate::api::openapi::bodies;
use crate::api::openapi::description::{CURSOR, Description, limit};
use crate::api::request::cursors::{Cursor, DeliveryCursor};
use crate::api::request::errors::ApiError;
use crate::api::request::fields;
use crate::api::request::query::encode_cursor;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::request::write::WriteRequest;
use crate::api::state::{ApiState, Cell};

/// Time that a test reserves, out of its request's deadline, to record its result.
const NOTING: Duration = Duration::from_millis(500);
/// Maximum number of deliveries that one request names.
const DELIVERY_IDS_MAX: usize = 100;

pub const CREATE: Description = Description::of(
    "createWebhook",
    "Create a webhook",
    "Subscribes a URL to events of the tenant. The signing secret is shown only in this response.",
)
.body(bodies::WEBHOOK, r#"{"url":"https://example.com/hook","events":["usage.settled"]}"#)
.answer::<CreatedWebhook<'static>>(
    201,
    r#"{"id":"wh_0123456789abcdef","url":"https://example.com/hook","events":["usage.settled"],
        "secret":"whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}"#,
)
.refuses(&["store_capacity_exceeded"]);

pub async fn create(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let command = parse_creation(&write.body, state.settings.webhook_allow_private);
    let mut response = write.submit(&state, command).await?;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

pub const CHANGE: Description = Description::of(
    "updateWebhook",
    "Update a webhook",
    "Replaces the URL, the events or both. A webhook that was disabled after failures is enabled again.",
)
.body(bodies::WEBHOOK_CHANGE, r#"{"events":["usage.settled"]}"#)
.answer::<Webhook>(
    200,
    r#"{"id":"wh_0123456789abcdef","url":"https://example.com/hook","events":["usage.settled"],
        "createdAt":1767225600000}"#,
)
.refuses(&["not_found"]);

pub async fn change(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let id = write.context.parameter("id").to_owned();
    let change = parse_change(&write.body, state.settings.webhook_allow_private);
    write.submit(&state, change.map(|change| TransactionalCommand::ChangeWebhook { id, change })).await
}

pub const ROTATE_SECRET: Description = Description::of(
    "rotateWebhookSecret",
    "Rotate the secret of a webhook",
    "Returns a new signing secret, which is shown only in this response. Until the overlap ends, each delivery has a \
         signature of the new and one of the previous secret.",
)
.optional_body(bodies::SECRET_ROTATION, r#"{"overlapSeconds":3600}"#)
.answer::<RotatedWebhookSecret<'static>>(
    200,
    r#"{"id":"wh_0123456789abcdef","secret":"whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
        "previousSecretExpiresAt":1767229200000}"#,
)
.refuses(&["not_found"]);

pub async fn rotate_secret(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let id = write.context.parameter("id").to_owned();
    let overlap_ms = fields::check(&write.body, &["overlapSeconds"]).and_then(|()| fields::overlap_ms(&write.body));
    let command = overlap_ms.map(|overlap_ms| TransactionalCommand::RotateWebhookSecret { id, overlap_ms });
    let mut response = write.submit(&state, command).await?;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

pub const REDELIVER: Description = Description::of(
    "requestDeliveries",
    "Request deliveries again",
    "Sends finished deliveries again: those of `deliveryIds`, or all that failed or were cancelled since `failedSince`. With \
         `missedSince`, sends the events that happened while the webhook was disabled, which also needs the scope read. Takes up to 1000: repeat the \
         request while `hasMore` is true. Takes none while the webhook is disabled.",
)
.body(bodies::REDELIVERY, r#"{"failedSince":1767225600000}"#)
.answer::<Resent>(200, r#"{"resent":3,"hasMore":false}"#)
.refuses(&["not_found"]);

pub async fn redeliver(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let command = parse_redelivery(&write.body, write.context.parameter("id"));
    // It shows events, which is what reading them needs.
    if matches!(command, Ok(TransactionalCommand::RequestMissedEvents { .. })) {
        let read = Scopes::NONE.and(Scope::Read);
        if write.context.identity.scopes.is_some_and(|scopes| !scopes.permit(read)) {
            return Err(Refusal::MissingScope(read).into());
        }
    }
    write.submit(&state, command).await
}

pub const DELETE: Description =
    Description::of("deleteWebhook", "Delete a webhook", "Deletes the webhook and drops its pending deliveries.")
        .empty()
        .refuses(&["not_found"]);

pub async fn delete(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let id = write.context.parameter("id").to_owned();
    write.submit(&state, Ok::<_, Refusal>(TransactionalCommand::DeleteWebhook { id })).await
}

#[derive(Deserialize)]
struct Recorded {
    delivery: String,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "TestedWebhook")]
struct Tested<'a> {
    id: &'a str,
    delivered_at: Timestamp,
    simulated: bool,
    status: u16,
}

pub const TEST: Description = Description::of(
    "testWebhook",
    "Test a webhook",
    "Records a `webhook.test` event and sends it to this webhook once, whatever events it subscribes to. \
         Returns 502 if the receiver does not accept it.",
)
.answer::<Tested<'static>>(
    200,
    r#"{"id":"wh_0123456789abcdef","deliveredAt":1767225600000,"simulated":false,"status":204}"#,
)
.refuses(&["not_found", "webhook_failed"]);

pub async fn test(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let context = write.context.clone();
    let id = context.parameter("id");
    let command = Ok::<_, Refusal>(TransactionalCommand::TestWebhook { id: id.to_owned() });
    let cell = context.cell(&state);
    let recorded = match cell.committer.submit(write.into_request(command)?).await {
        Answer::Fresh(reply) | Answer::Replayed(reply) => reply.body.unwrap_or_default(),
        Answer::Refused(refusal) => return Err(refusal.into()),
    };
    let Recorded { delivery } = serde_json::from_slice(&recorded).map_err(|_| Refusal::Internal)?;
    let limit = context.deadline.saturating_duration_since(Instant::now()).saturating_sub(NOTING);
    match attempt(cell, context.tenant().clone(), id.to_owned(), delivery, limit).await? {
        None => Err(Refusal::WebhookNotFound(id.to_owned()).into()),
        Some(Ok(status)) => Ok(json(&Tested { id, delivered_at: cell.clock.now(), simulated: false, status })),
        Some(Err(failure)) => Err(Refusal::WebhookFailed { id: id.to_owned(), reason: failure.to_string() }.into()),
    }
}

/// Runs in a separate task, so that the result is recorded even if the client disconnects.
async fn attempt(
    cell: &Cell,
    tenant: Tenant,
    webhook: String,
    delivery: String,
    limit: Duration,
) -> Result<Option<Result<u16, sender::Failure>>, Refusal> {
    let dispatcher = cell.jobs.dispatcher.clone();
    let attempt = async move { dispatcher.attempt_test(&tenant, &webhook, &delivery, limit).await };
    let attempted = tokio::spawn(RequestSpan::carry(attempt)).await.map_err(|_| Refusal::Internal)?;
    // The event of the test is committed, but the result of the attempt is not known.
    attempted.map_err(|error| match read_refusal(&error) {
        Refusal::StoreUnavailable => Refusal::OutcomeUnknown,
        other => other,
    })
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "WebhookList")]
struct List {
    items: Vec<Webhook>,
    total: i64,
    next_cursor: Option<String>,
}

pub const LIST: Description = Description::of(
    "listWebhooks",
    "List webhooks",
    "Returns the webhooks of the tenant, oldest first. Secrets are not shown.",
)
.query(&[limit(50, 500), CURSOR])
.answer::<List>(
    200,
    r#"{"items":[{"id":"wh_0123456789abcdef","url":"https://example.com/hook","events":["usage.settled"],
        "createdAt":1767225600000}],"total":1,"nextCursor":null}"#,
);

pub async fn list(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let limit = request.query.bounded("limit", 50, 1, 500);
    let after = request.query.cursor_of()?;
    let tenant = request.tenant();
    let cell = request.cell(&state);
    let (page, total) = webhooks::list(&cell.reader, tenant, after.as_ref(), limit, request.deadline).await?;
    let next_cursor = page.last_if_more().map(|(cursor, _)| encode_cursor(&cursor.to_text()));
    let items = page.rows.into_iter().map(|(_, webhook)| webhook).collect();
    Ok(json(&List { items, total, next_cursor }))
}

pub const SHOW: Description = Description::of("getWebhook", "Get a webhook", "Returns one webhook without its secret.")
    .answer::<Webhook>(
        200,
        r#"{"id":"wh_0123456789abcdef","url":"https://example.com/hook","events":["usage.settled"],
        "createdAt":1767225600000}"#,
    )
    .refuses(&["not_found"]);

pub async fn show(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let id = request.parameter("id");
    let tenant = request.tenant();
    let cell = request.cell(&state);
    let webhook = webhooks::find(&cell.reader, tenant, id, request.deadline).await?;
    Ok(json(&webhook.ok_or_else(|| Refusal::WebhookNotFound(id.to_owned()))?))
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "DeliveryList")]
struct Deliveries {
    items: Vec<Delivery>,
    next_cursor: Option<String>,
}

pub const LIST_DELIVERIES: Description = Description::of(
    "listWebhookDeliveries",
    "List webhook deliveries",
    "Returns the deliveries to the webhook, newest first. Finished ones are kept for seven days.",
)
.query(&[limit(50, 500), CURSOR])
.answer::<Deliveries>(
    200,
    r#"{"items":[{"id":"dlv_0123456789abcdef0123456789abcdef","eventId":"019b76da-a800-8000-8000-000000000001",
        "type":"usage.settled","status":"pending","attempts":0,"createdAt":1767225600000,"lastAttemptAt":null,
        "nextAttemptAt":1767225600000,"responseStatus":null,"error":null}],"nextCursor":null}"#,
)
.refuses(&["not_found"]);

pub async fn list_deliveries(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let limit = request.query.bounded("limit", 50, 1, 500);
    let before = request.query.cursor_of()?.map_or(i64::MAX, |DeliveryCursor(position)| position);
    let (tenant, id) = (request.tenant(), request.parameter("id"));
    let cell = request.cell(&state);
    let page = webhooks::deliveries(&cell.reader, tenant, id, before, limit, request.deadline).await?;
    let page = page.ok_or_else(|| Refusal::WebhookNotFound(id.to_owned()))?;
    let next_cursor = page.last_if_more().map(|(position, _)| encode_cursor(&DeliveryCursor(*position).to_text()));
    let items = page.rows.into_iter().map(|(_, delivery)| delivery).collect();
    Ok(json(&Deliveries { items, next_cursor }))
}

fn parse_creation(body: &Value, allow_private: bool) -> Result<TransactionalCommand, Refusal> {
    fields::check(body, &["url", "events"])?;
    let url = parse_url(body.get("url"), allow_private)?;
    let events = parse_events(body.get("events"))?;
    check_types(&events)?;
    Ok(TransactionalCommand::CreateWebhook { url, events })
}

/// Event types are validated later, after the webhook was found.
fn parse_change(body: &Value, allow_private: bool) -> Result<Change, Refusal> {
    fields::check(body, &["url", "events"])?;
    let url = body.get("url").map(|url| parse_url(Some(url), allow_private)).transpose()?;
    let events = body.get("events").map(|events| parse_events(Some(events))).transpose()?;
    Ok(Change { url, events })
}

fn parse_url(value: Option<&Value>, allow_private: bool) -> Result<String, Refusal> {
    let url = value.and_then(Value::as_str).ok_or(Refusal::WebhookUrl)?;
    check_url(url, allow_private)?;
    Ok(url.to_owned())
}

fn parse_redelivery(body: &Value, webhook: &str) -> Result<TransactionalCommand, Refusal> {
    fields::check(body, &["deliveryIds", "failedSince", "missedSince"])?;
    let webhook = webhook.to_owned();
    let moment = |value: &Value| {
        let moment = integer(value).filter(|ms| *ms >= 0).map(Timestamp::from_ms);
        moment.ok_or(Refusal::Redelivery)
    };
    match (body.get("deliveryIds"), body.get("failedSince"), body.get("missedSince")) {
        (Some(ids), None, None) => {
            let ids = ids.as_array().filter(|ids| (1..=DELIVERY_IDS_MAX).contains(&ids.len()));
            let ids = ids.and_then(|ids| ids.iter().map(|id| id.as_str().map(str::to_owned)).collect());
            let which = Resend::Deliveries(ids.ok_or(Refusal::Redelivery)?);
            Ok(TransactionalCommand::ResendDeliveries { webhook, which })
        }
        (None, Some(since), None) => {
            let which = Resend::FailedSince(moment(since)?);
            Ok(TransactionalCommand::ResendDeliveries { webhook, which })
        }
        (None, None, Some(since)) => Ok(TransactionalCommand::RequestMissedEvents { webhook, since: moment(since)? }),
        _ => Err(Refusal::Redelivery),
    }
}

/// Each name once, in the order in which they were sent.
fn parse_events(value: Option<&Value>) -> Result<Vec<String>, Refusal> {
    let names = value.and_then(Value::as_array).filter(|names| !names.is_empty()).ok_or(Refusal::WebhookEvents)?;
    let mut distinct: Vec<String> = Vec::new();
    for name in names {
        let name = name.as_str().ok_or(Refusal::WebhookEvents)?;
        // Keeps at most one name more than there are known types. The first unknown name is then among them.
        if distinct.len() <= KNOWN_TYPES.len() && !distinct.iter().any(|own| own == name) {
            distinct.push(name.to_owned());
        }
    }
    Ok(distinct)
}
