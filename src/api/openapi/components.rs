//! What operations share in the document: headers, path parameters, security schemes, the error envelope, and one error
//! response for each status. The examples of errors are bodies that the service produces.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::bodies::reference;
use super::description::integer;
use crate::domain::api_key::{Scope, Scopes};
use crate::domain::names::{AGENT_ID_MAX, SERVICE_ID_MAX, STORED_IDENTIFIER, ServiceId};
use crate::domain::refusal::Refusal;

/// Raw text, or a string of RFC 8941 in quotes. Empty counts as absent.
const KEY_HEADER: &str = r#"^([!#-~][!-~]{0,254}|"([!#-\[\]-~]|\\["\\]){0,255}")?$"#;
/// A key without quotes around it.
const KEY_IN_PATH: &str = "^[!-~]{1,255}$";

/// The error codes of operations.
const CODES: [&str; 20] = [
    "invalid_request",
    "invalid_idempotency_key",
    "unauthorized",
    "forbidden",
    "insufficient_scope",
    "not_found",
    "request_timeout",
    "service_disabled",
    "already_rotated",
    "idempotency_conflict",
    "idempotency_in_flight",
    "payload_too_large",
    "unsupported_media_type",
    "rate_limited",
    "store_capacity_exceeded",
    "internal_error",
    "webhook_failed",
    "service_paused",
    "tenant_moving",
    "service_unavailable",
];

/// The error codes of requests that reach no operation.
const OTHER_CODES: [&str; 4] =
    ["method_not_allowed", "uri_too_long", "request_header_fields_too_large", "not_implemented"];

/// A refusal for each code.
fn sample(code: &str) -> Refusal {
    match code {
        "invalid_request" => Refusal::AgentAndService,
        "invalid_idempotency_key" => Refusal::KeySyntax,
        "unauthorized" => Refusal::ApiKeyForWrites,
        "forbidden" => Refusal::Foreign,
        "insufficient_scope" => Refusal::MissingScope(Scopes::NONE.and(Scope::Read)),
        "not_found" => Refusal::ServiceNotRegistered(weather()),
        "request_timeout" => Refusal::BodyTimeout,
        "service_disabled" => Refusal::ServiceDisabled(weather()),
        "already_rotated" => Refusal::ApiKeyRotated("apk_01234567".to_owned()),
        "idempotency_conflict" => Refusal::KeyConflict,
        "idempotency_in_flight" => Refusal::KeyInFlight,
        "payload_too_large" => Refusal::BodyTooLarge,
        "unsupported_media_type" => Refusal::MediaType,
        "rate_limited" => Refusal::RateLimited { limit: 60, window_ms: 60_000 },
        "store_capacity_exceeded" => Refusal::UsageCapacity,
        "internal_error" => Refusal::Internal,
        "webhook_failed" => {
            Refusal::WebhookFailed { id: "wh_0123456789abcdef".to_owned(), reason: "status 500".to_owned() }
        }
        "service_paused" => Refusal::Paused,
        "tenant_moving" => Refusal::TenantMoving,
        "service_unavailable" => Refusal::StoreUnavailable,
        _ => unreachable!("an error code: {code}"),
    }
}

fn weather() -> ServiceId {
    ServiceId::parse("weather").expect("an identifier")
}

/// The status of a code.
pub fn status_of(code: &str) -> u16 {
    sample(code).status_and_code().0
}

/// The error responses by name.
pub fn error_responses() -> Value {
    let mut by_status: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for code in CODES {
        by_status.entry(status_of(code)).or_default().push(code);
    }
    let named = by_status.into_iter().map(|(status, codes)| {
        let (name, meaning) = error_answer(status);
        (name.to_owned(), error_response(status, meaning, &codes))
    });
    Value::Object(named.collect())
}

pub fn error_reference(status: u16) -> Value {
    json!({ "$ref": format!("#/components/responses/{}", error_answer(status).0) })
}

fn error_answer(status: u16) -> (&'static str, &'static str) {
    match status {
        400 => ("BadRequest", "The request is invalid."),
        401 => ("Unauthorized", "A valid key is required."),
        403 => ("Forbidden", "The caller may not do this."),
        404 => ("NotFound", "The resource does not exist."),
        408 => ("RequestTimeout", "The request body did not arrive in time."),
        409 => ("Conflict", "The request conflicts with the current state."),
        413 => ("ContentTooLarge", "The request body is too large."),
        415 => ("UnsupportedMediaType", "The request body is not JSON."),
        429 => ("TooManyRequests", "A limit is reached."),
        500 => ("InternalServerError", "The service failed."),
        502 => ("BadGateway", "The receiver of the webhook failed."),
        503 => ("ServiceUnavailable", "The service cannot serve the request now."),
        _ => unreachable!("a status of a code: {status}"),
    }
}

fn error_response(status: u16, meaning: &str, codes: &[&str]) -> Value {
    let example = |code: &&str| {
        let body = sample(code).to_body("POST", "/api/v1/usage", "6f1c1f0e-0000-4000-8000-000000000001");
        let body: Value = serde_json::from_slice(&body).expect("an envelope");
        ((*code).to_owned(), json!({ "value": body }))
    };
    let examples: Map<String, Value> = codes.iter().map(example).collect();
    let mut names = vec!["X-Request-Id", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"];
    if codes.iter().any(|code| *code == "rate_limited" || sample(code).retry_after().is_some()) {
        names.push("Retry-After");
    }
    // Responses that may be stored with a key.
    if matches!(status, 400 | 404 | 409) {
        names.push("Idempotency-Replayed");
    }
    let headers: Map<String, Value> = names.into_iter().map(|name| (name.to_owned(), header_reference(name))).collect();
    json!({
        "description": format!("{meaning} Codes: `{}`.", codes.join("`, `")),
        "headers": headers,
        "content": { "application/json": { "schema": reference("ApiError"), "examples": examples } },
    })
}

/// The schemas of the error envelope.
pub fn error_schemas() -> [(&'static str, Value); 2] {
    let codes: Vec<&str> = CODES.into_iter().chain(OTHER_CODES).collect();
    let error = json!({
        "type": "object",
        "description": "The body of every error.",
        "required": ["error", "message", "requestId"],
        "properties": {
            "error": reference("ErrorCode"),
            "message": { "type": "string", "description": "Explanation for people. The text may change." },
            "unknownKeys": {
                "type": "array",
                "items": { "type": "string" },
                "description": "Unknown members of a change of the configuration.",
            },
            "method": { "type": "string", "description": "Method of the request. Only on status 500." },
            "path": { "type": "string", "description": "Path of the request. Only on status 500." },
            "requestId": { "type": "string", "minLength": 1, "maxLength": 200 },
        },
    });
    // Not an enum, so that clients accept codes that they do not know.
    let code = json!({
        "type": "string",
        "description": format!("Reason of an error, for programs. Codes: `{}`.", codes.join("`, `")),
        "x-extensible-enum": codes,
    });
    [("ApiError", error), ("ErrorCode", code)]
}

pub fn header_reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/headers/{name}") })
}

pub fn headers() -> Value {
    let seconds = integer(1, i32::MAX.into());
    let count = integer(0, i32::MAX.into());
    let header = |description: &str, schema: &Value| json!({ "description": description, "schema": schema });
    json!({
        "X-Request-Id": {
            "required": true,
            "description": "Id of the request: the one that was sent, or a new one.",
            "schema": { "type": "string", "minLength": 1, "maxLength": 200 },
        },
        "Idempotency-Replayed": header(
            "Present if the response is a stored one: the request was executed earlier with the same key.",
            &json!({ "type": "string", "const": "true" }),
        ),
        "RateLimit-Limit": header("Requests per window. Also sent as `X-RateLimit-Limit`.", &count),
        "RateLimit-Remaining": header("Requests left in the window. Also sent as `X-RateLimit-Remaining`.", &count),
        "RateLimit-Reset": header("Seconds until more requests are allowed. Also sent as `X-RateLimit-Reset`.", &seconds),
        "Retry-After": header("Seconds to wait before the next attempt. Not sent with `store_capacity_exceeded` and `service_paused`.", &seconds),
        "ETag": {
            "required": true,
            "description": "Tag of this representation, for `If-None-Match`.",
            "schema": { "type": "string", "pattern": "^W/\"[0-9a-f]{32}\"$" },
        },
    })
}

pub fn parameters() -> Value {
    json!({
        "IdempotencyKey": {
            "name": "Idempotency-Key",
            "in": "header",
            "required": false,
            "description": "1 to 255 visible ASCII characters, raw or as a quoted string. Use a new key for each \
                operation, and the same key for each attempt at it.",
            "schema": { "type": "string", "pattern": KEY_HEADER },
            "example": "order-1",
        },
        "IfNoneMatch": {
            "name": "If-None-Match",
            "in": "header",
            "required": false,
            "description": "Known entity tags. If one of them matches, the response is 304.",
            "schema": { "type": "string" },
        },
    })
}

pub fn security_schemes() -> Value {
    let key = |description: &str| json!({ "type": "apiKey", "in": "header", "name": "X-API-Key", "description": description });
    json!({
        "apiKey": key("Key of a tenant. Writes require it while `REQUIRE_API_KEY` is true."),
        "adminKey": key("Key of the operator, `ADMIN_API_KEY`. Not required where that setting is absent. With it, the header \
            `X-Tenant-Id` names the tenant whose data a request reads or changes. Usage is recorded, reset and settled with \
            a key of the tenant only."),
        "metricsToken": {
            "type": "http",
            "scheme": "bearer",
            "description": "The token `METRICS_TOKEN`, which gives access to the metrics only.",
        },
    })
}

/// `pattern` is that of the route. It decides what `id` identifies.
pub fn path_parameter(name: &str, pattern: &str) -> Value {
    let identifier =
        |max: usize| json!({ "type": "string", "minLength": 1, "maxLength": max, "pattern": STORED_IDENTIFIER });
    let (description, schema, example) = match name {
        "agent" => ("Id of the agent that uses the service.", identifier(AGENT_ID_MAX), "agent-1"),
        "serviceId" => ("Id of the service.", identifier(SERVICE_ID_MAX), "weather"),
        "prefix" => (
            "First 12 characters of the API key.",
            json!({ "type": "string", "pattern": "^[A-Za-z0-9_]{1,64}$" }),
            "apk_01234567",
        ),
        "key" => (
            "Idempotency key, without quotes around it.",
            json!({ "type": "string", "pattern": KEY_IN_PATH }),
            "order-1",
        ),
        _ if pattern.contains("settlements") => (
            "Id of the settlement.",
            json!({ "type": "string", "minLength": 1 }),
            "stl_0123456789abcdef0123456789abcdef",
        ),
        _ => ("Id of the webhook.", json!({ "type": "string", "minLength": 1 }), "wh_0123456789abcdef"),
    };
    json!({
        "name": name,
        "in": "path",
        "required": true,
        "description": description,
        "schema": schema,
        "example": example,
    })
}
