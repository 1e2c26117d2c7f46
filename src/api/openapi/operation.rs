//! One operation of the document, built from a row of the table of routes.

use std::collections::BTreeMap;

use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use super::super::route::{Auth, Route};
use super::bodies::reference;
use super::components::{error_reference, header_reference, path_parameter, status_of};
use super::description::{Answer, Content, Parameter};

pub fn of(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let description = &route.description;
    let mut operation = json!({
        "operationId": description.operation_id,
        "summary": description.summary,
        "description": description.details,
        "tags": [tag(route.pattern)],
        "security": security(route.auth),
    });
    let parameters = parameters(route);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = description.body {
        let content = json!({ "schema": reference(body.schema), "example": parsed(body.example) });
        operation["requestBody"] = json!({ "required": body.is_required, "content": { "application/json": content } });
    }
    let codes = codes(route);
    operation["responses"] = responses(route, generator, codes.keys());
    let codes = codes.into_iter().map(|(status, codes)| (status.to_string(), json!(codes)));
    operation["x-error-codes"] = Value::Object(codes.collect());
    operation
}

/// The tags with their descriptions, in the order in which they are shown.
pub fn tags() -> Value {
    let tag = |(name, description): &(&str, &str)| json!({ "name": name, "description": description });
    TAGS.iter().map(tag).collect()
}

const TAGS: [(&str, &str); 15] = [
    ("usage", "Record the requests that agents make, and read what is outstanding."),
    ("settlements", "Bill outstanding usage, and read the permanent record of bills."),
    ("billing", "Quote what a settlement would bill now."),
    ("services", "Register services with their prices and metadata."),
    ("agents", "Read outstanding usage by agent."),
    ("idempotency", "Look up what a key was used for."),
    ("events", "Read the event log of the tenant."),
    ("webhooks", "Subscribe URLs to events, and follow the deliveries."),
    ("api-keys", "Manage the keys of tenants. For the operator."),
    ("config", "Read and change the runtime configuration."),
    ("admin", "Pause writes and reset data. For the operator."),
    ("audit", "Read who changed what. For the operator."),
    ("statistics", "Totals for dashboards and metrics for Prometheus."),
    ("health", "Liveness, readiness and a report on each part of the service."),
    ("about", "The version, the changelog and this document."),
];

/// An API key is optional where the service does not require one.
fn security(auth: Auth) -> Value {
    match auth {
        Auth::Open | Auth::Tenant => json!([{ "apiKey": [] }, {}]),
        Auth::Operator => json!([{ "adminKey": [] }, {}]),
        Auth::Metrics => json!([{ "adminKey": [] }, { "metricsToken": [] }, {}]),
    }
}

/// The tag of a route, by the first segment of its path.
fn tag(pattern: &str) -> &str {
    match pattern.strip_prefix("/api/v1").unwrap_or(pattern).split('/').nth(1).unwrap_or_default() {
        "settle" => "settlements",
        "metrics" | "stats" => "statistics",
        "version" | "changelog" | "openapi.json" => "about",
        segment => segment,
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

fn responses<'a>(
    route: &Route,
    generator: &mut SchemaGenerator,
    error_statuses: impl Iterator<Item = &'a u16>,
) -> Value {
    let mut responses = BTreeMap::new();
    for answer in route.description.answers.iter().flatten() {
        responses.insert(answer.status, response(route, answer, generator));
    }
    if route.description.is_conditional {
        let headers = headers(route, 304);
        responses.insert(
            304,
            json!({ "description": "Not modified: a tag of `If-None-Match` matches.", "headers": headers }),
        );
    }
    responses.extend(error_statuses.map(|status| (*status, error_reference(*status))));
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
        "description": "Suggested name of the file.",
        "schema": { "type": "string", "const": format!("attachment; filename={name}") },
    })
}

fn meaning(status: u16) -> &'static str {
    match status {
        201 => "Created.",
        204 => "Deleted.",
        503 => "Not ready.",
        _ => "Success.",
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

/// All error codes of a route by status: those that its flags imply, and its own.
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
    add(!route.scopes.is_empty(), &["insufficient_scope"]);
    add(route.limited || route.auth != Auth::Open, &["rate_limited"]);
    add(route.pausable, &["service_paused"]);
    add(route.uses_tenant(), &["tenant_moving"]);
    add(!route.needs_no_database, &["service_unavailable"]);
    add(reads_body, &["request_timeout", "payload_too_large", "unsupported_media_type"]);
    add(route.idempotent, &["invalid_idempotency_key", "idempotency_conflict", "idempotency_in_flight"]);
    add(true, route.description.refusals);
    let mut by_status: BTreeMap<u16, Vec<&'static str>> = BTreeMap::new();
    for code in codes {
        by_status.entry(status_of(code)).or_default().push(code);
    }
    by_status
}

fn parsed(example: &str) -> Value {
    serde_json::from_str(example).expect("an example in JSON")
}
