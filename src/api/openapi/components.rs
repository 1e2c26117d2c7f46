//! What operations share in the document: headers, path parameters, security schemes, the error envelope, and the
//! refusals by status. The example of a refusal is the body that it really has.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::domain::names::{AGENT_ID_MAX, SERVICE_ID_MAX, STORED_IDENTIFIER, ServiceId};
use crate::domain::refusal::Refusal;

/// Raw text, or a string of RFC 8941 in quotes; empty counts as absent.
const KEY_HEADER: &str = r#"^([!#-~][!-~]{0,254}|"([!#-\[\]-~]|\\["\\]){0,255}")?$"#;
/// A key as it is, without quotes around it.
const KEY_IN_PATH: &str = "^[!-~]{1,255}$";

/// A refusal of each code.
pub fn sample(code: &str) -> Refusal {
    match code {
        "invalid_request" => Refusal::AgentAndService,
        "invalid_idempotency_key" => Refusal::KeySyntax,
        "unauthorized" => Refusal::ApiKeyForWrites,
        "forbidden" => Refusal::Foreign,
        "not_found" => Refusal::ServiceNotRegistered(weather()),
        "request_timeout" => Refusal::BodyTimeout,
        "service_disabled" => Refusal::ServiceDisabled(weather()),
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
        "service_unavailable" => Refusal::StoreUnavailable,
        _ => unreachable!("an error code: {code}"),
    }
}

fn weather() -> ServiceId {
    ServiceId::parse("weather").expect("an identifier")
}

/// The shared responses, one for each set of codes that occurs.
#[derive(Default)]
pub struct Refusals(BTreeMap<String, Value>);

impl Refusals {
    /// The name of the response with these codes; `replayable` if it may be the stored answer of a key.
    pub fn name(&mut self, status: u16, codes: &[&str], replayable: bool) -> String {
        let is_replayable = replayable && matches!(status, 400 | 404 | 409);
        let words = codes.iter().map(|code| code.split('_').map(capitalised).collect::<String>());
        let name = words.collect::<Vec<_>>().join("Or") + if is_replayable { "Replayable" } else { "" };
        self.0.entry(name.clone()).or_insert_with(|| response(codes, is_replayable));
        name
    }

    pub fn into_components(self) -> Value {
        Value::Object(self.0.into_iter().collect())
    }
}

fn capitalised(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_uppercase() + rest
}

fn response(codes: &[&str], is_replayable: bool) -> Value {
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
    if is_replayable {
        names.push("Idempotency-Replayed");
    }
    let headers: Map<String, Value> = names.into_iter().map(|name| (name.to_owned(), header_reference(name))).collect();
    let schema = json!({
        "allOf": [{ "$ref": "#/components/schemas/Error" }, { "properties": { "error": { "enum": codes } } }],
    });
    json!({
        "description": format!("`{}`", codes.join("` or `")),
        "headers": headers,
        "content": { "application/json": { "schema": schema, "examples": examples } },
    })
}

pub fn error() -> Value {
    json!({
        "type": "object",
        "description": "Every refusal. Branch on `error`; `message` is for people.",
        "required": ["error", "message", "requestId"],
        "properties": {
            "error": { "type": "string" },
            "message": { "type": "string" },
            "unknownKeys": { "type": "array", "items": { "type": "string" }, "description": "PATCH config only." },
            "method": { "type": "string", "description": "500 only." },
            "path": { "type": "string", "description": "500 only." },
            "requestId": { "type": "string", "minLength": 1, "maxLength": 200 },
        },
    })
}

pub fn header_reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/headers/{name}") })
}

pub fn headers() -> Value {
    let seconds = json!({ "type": "integer", "minimum": 1 });
    let count = json!({ "type": "integer", "minimum": 0 });
    let header = |description: &str, schema: &Value| json!({ "description": description, "schema": schema });
    json!({
        "X-Request-Id": {
            "required": true,
            "description": "The one that was sent, else a new one.",
            "schema": { "type": "string", "minLength": 1, "maxLength": 200 },
        },
        "Idempotency-Replayed": header(
            "On an answer that an earlier request got; never on a first answer.",
            &json!({ "type": "string", "const": "true" }),
        ),
        "RateLimit-Limit": header("Requests per window; also as `X-RateLimit-Limit`.", &count),
        "RateLimit-Remaining": header("Requests left; also as `X-RateLimit-Remaining`.", &count),
        "RateLimit-Reset": header("Seconds until there is more; also as `X-RateLimit-Reset`.", &seconds),
        "Retry-After": header("Seconds to wait; not on `store_capacity_exceeded` and `service_paused`.", &seconds),
        "ETag": {
            "required": true,
            "description": "For `If-None-Match`.",
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
            "description": "1 to 255 visible ASCII characters, raw or as a quoted string. A new one for each thing to \
                be done, the same one for each attempt at it.",
            "schema": { "type": "string", "pattern": KEY_HEADER },
            "example": "order-1",
        },
        "IfNoneMatch": {
            "name": "If-None-Match",
            "in": "header",
            "required": false,
            "description": "ETags that are known; a hit is answered 304.",
            "schema": { "type": "string" },
        },
    })
}

pub fn security_schemes() -> Value {
    let key = |description: &str| json!({ "type": "apiKey", "in": "header", "name": "X-API-Key", "description": description });
    json!({
        "apiKey": key("A tenant's key. Writes need one while `REQUIRE_API_KEY` is true; any request may have one."),
        "adminKey": key("The operator's key, `ADMIN_API_KEY`. Where it is not set, requests without a key need none."),
        "metricsToken": {
            "type": "http",
            "scheme": "bearer",
            "description": "`METRICS_TOKEN`, for who scrapes metrics and may do nothing else.",
        },
    })
}

/// `pattern` tells whose id it is.
pub fn path_parameter(name: &str, pattern: &str) -> Value {
    let identifier =
        |max: usize| json!({ "type": "string", "minLength": 1, "maxLength": max, "pattern": STORED_IDENTIFIER });
    let (description, schema, example) = match name {
        "agent" => ("Who uses.", identifier(AGENT_ID_MAX), "agent-1"),
        "serviceId" => ("What is used.", identifier(SERVICE_ID_MAX), "weather"),
        "prefix" => (
            "The first 12 characters of the key.",
            json!({ "type": "string", "pattern": "^[A-Za-z0-9_]{1,64}$" }),
            "apk_01234567",
        ),
        "key" => (
            "The key itself, without quotes around it.",
            json!({ "type": "string", "pattern": KEY_IN_PATH }),
            "order-1",
        ),
        _ if pattern.contains("settlements") => {
            ("Id of a settlement.", json!({ "type": "string", "minLength": 1 }), "stl_0123456789abcdef0123456789abcdef")
        }
        _ => ("Id of a webhook.", json!({ "type": "string", "minLength": 1 }), "wh_0123456789abcdef"),
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
