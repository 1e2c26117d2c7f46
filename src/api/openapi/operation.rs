//! One operation of the document: a row of the table of routes, and its description.

use std::collections::BTreeMap;

use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use super::super::routes::{Auth, Route};
use super::components::{Refusals, header_reference, path_parameter, sample};
use super::description::{Answer, Content, Parameter};

pub fn of(route: &Route, generator: &mut SchemaGenerator, refusals: &mut Refusals) -> Value {
    let description = &route.description;
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": description.summary,
        "tags": [tag(route.pattern)],
        "security": security(route.auth),
    });
    let parameters = parameters(route);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = description.body {
        let mut content = json!({ "schema": (body.schema)() });
        if let Some(example) = body.example {
            content["example"] = parsed(example);
        }
        operation["requestBody"] =
            json!({ "required": body.example.is_some(), "content": { "application/json": content } });
    }
    operation["responses"] = responses(route, generator, refusals);
    operation
}

/// `POST /api/v1/usage/bulk` is `postUsageBulk`.
fn operation_id(route: &Route) -> String {
    let words = route.pattern.strip_prefix("/api/v1").unwrap_or(route.pattern).split(['/', '.', '-']);
    let words = words.filter(|word| !word.is_empty()).map(|word| match word.strip_prefix(':') {
        Some(name) => format!("By{}", capitalised(name)),
        None => capitalised(word),
    });
    route.method.to_lowercase() + &words.collect::<String>()
}

fn capitalised(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_uppercase() + rest
}

/// The group that people look for it in.
fn tag(pattern: &str) -> &str {
    match pattern.strip_prefix("/api/v1").unwrap_or(pattern).split('/').nth(1).unwrap_or_default() {
        "settle" => "settlements",
        "metrics" | "stats" => "figures",
        "version" | "changelog" | "openapi.json" => "about",
        segment => segment,
    }
}

/// Keys are optional where the service does not require them.
fn security(auth: Auth) -> Value {
    match auth {
        Auth::Open | Auth::Tenant => json!([{ "apiKey": [] }, {}]),
        Auth::Operator => json!([{ "adminKey": [] }, {}]),
        Auth::Metrics => json!([{ "adminKey": [] }, { "metricsToken": [] }, {}]),
    }
}

fn parameters(route: &Route) -> Vec<Value> {
    let names = route.pattern.split('/').filter_map(|segment| segment.strip_prefix(':'));
    let mut parameters: Vec<Value> = names.map(|name| path_parameter(name, route.pattern)).collect();
    parameters.extend(route.description.query.iter().map(query_parameter));
    if route.idempotent {
        parameters.push(json!({ "$ref": "#/components/parameters/IdempotencyKey" }));
    }
    if route.description.is_conditional {
        parameters.push(json!({ "$ref": "#/components/parameters/IfNoneMatch" }));
    }
    parameters
}

fn query_parameter(parameter: &Parameter) -> Value {
    let mut described = json!({
        "name": parameter.name,
        "in": "query",
        "required": false,
        "description": parameter.description,
        "schema": parameter.schema(),
    });
    if parameter.is_lenient() {
        described["x-lenient"] = true.into();
    }
    described
}

fn responses(route: &Route, generator: &mut SchemaGenerator, refusals: &mut Refusals) -> Value {
    let mut responses = BTreeMap::new();
    for answer in route.description.answers.iter().flatten() {
        responses.insert(answer.status, response(route, answer, generator));
    }
    if route.description.is_conditional {
        let headers = headers(route, 304);
        responses
            .insert(304, json!({ "description": "Not modified: what `If-None-Match` names.", "headers": headers }));
    }
    for (status, codes) in codes(route) {
        let name = refusals.name(status, &codes, route.idempotent);
        responses.insert(status, json!({ "$ref": format!("#/components/responses/{name}") }));
    }
    let named = responses.into_iter().map(|(status, response)| (status.to_string(), response));
    Value::Object(named.collect::<Map<_, _>>())
}

fn response(route: &Route, answer: &Answer, generator: &mut SchemaGenerator) -> Value {
    let mut headers = headers(route, answer.status);
    let content = match answer.content {
        Content::None => None,
        Content::Json(schema) => Some(("application/json", json!(schema(generator)), parsed(answer.example))),
        Content::File(schema, name) => {
            headers.insert("Content-Disposition".to_owned(), disposition(name));
            Some(("application/json", json!(schema(generator)), parsed(answer.example)))
        }
        Content::Text(media_type) => {
            if media_type == "text/csv" {
                headers.insert("Content-Disposition".to_owned(), disposition("usage.csv"));
            }
            Some((media_type, json!({ "type": "string" }), answer.example.into()))
        }
    };
    let mut response = json!({ "description": meaning(answer.status), "headers": headers });
    if let Some((media_type, schema, example)) = content {
        response["content"] = json!({ media_type: { "schema": schema, "example": example } });
    }
    response
}

fn disposition(name: &str) -> Value {
    json!({
        "required": true,
        "description": "A file to keep.",
        "schema": { "type": "string", "const": format!("attachment; filename={name}") },
    })
}

fn meaning(status: u16) -> &'static str {
    match status {
        201 => "Done; something new.",
        204 => "Done; nothing to show.",
        503 => "Not now.",
        _ => "Done.",
    }
}

fn headers(route: &Route, status: u16) -> Map<String, Value> {
    let mut names = vec!["X-Request-Id"];
    if route.limited {
        names.extend(["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"]);
    }
    if route.idempotent {
        names.push("Idempotency-Replayed");
    }
    if route.description.is_conditional && matches!(status, 200 | 304) {
        names.push("ETag");
    }
    names.into_iter().map(|name| (name.to_owned(), header_reference(name))).collect()
}

/// The codes of all refusals of a route, by status: those of its flags, and its own.
fn codes(route: &Route) -> BTreeMap<u16, Vec<&'static str>> {
    let reads_body = matches!(route.method, "POST" | "PUT" | "PATCH");
    let mut codes = vec!["invalid_request", "internal_error"];
    let mut add = |applies: bool, more: &[&'static str]| {
        if applies {
            codes.extend(more);
        }
    };
    add(route.auth != Auth::Open, &["unauthorized"]);
    add(matches!(route.auth, Auth::Tenant | Auth::Operator), &["forbidden"]);
    add(route.limited || route.auth != Auth::Open, &["rate_limited"]);
    add(route.pausable, &["service_paused"]);
    add(!route.works_alone, &["service_unavailable"]);
    add(reads_body, &["request_timeout", "payload_too_large", "unsupported_media_type"]);
    add(route.idempotent, &["invalid_idempotency_key", "idempotency_conflict", "idempotency_in_flight"]);
    add(true, route.description.refusals);
    let mut by_status: BTreeMap<u16, Vec<&'static str>> = BTreeMap::new();
    for code in codes {
        by_status.entry(sample(code).status_and_code().0).or_default().push(code);
    }
    by_status
}

fn parsed(example: &str) -> Value {
    serde_json::from_str(example).expect("an example in JSON")
}
