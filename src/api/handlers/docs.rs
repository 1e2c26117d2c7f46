//! Serves the OpenAPI document, and an HTML page rendered from it. Both are rendered once. The page has one style
//! sheet, no script, and nothing from other sites.

use std::sync::OnceLock;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use maud::{DOCTYPE, Markup, html};
use serde_json::Value;

/// The policy of all other responses, except that it allows the page's own style sheet.
const CSP: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

const STYLE: &str = include_str!("docs.css");

/// The OpenAPI document itself, rendered once.
pub fn document(document: &Value) -> Response {
    static BYTES: OnceLock<Bytes> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| document.to_string().into());
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], Body::from(bytes.clone())).into_response()
}

/// The page, rendered once.
pub fn page_of_all(document: &Value) -> Response {
    static PAGE: OnceLock<Bytes> = OnceLock::new();
    let bytes = PAGE.get_or_init(|| page(document).into_string().into());
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, CSP),
    ];
    (headers, Body::from(bytes.clone())).into_response()
}

pub async fn style() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE).into_response()
}

/// An operation as the page shows it.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    content: &'a Value,
}

impl Operation<'_> {
    fn id(&self) -> &str {
        text(&self.content["operationId"])
    }
}

fn page(document: &Value) -> Markup {
    let groups = groups(document);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (text(&document["info"]["title"])) }
                link rel="stylesheet" href="/docs/style.css";
            }
            body {
                nav { (contents(&groups)) }
                main {
                    h1 { (text(&document["info"]["title"])) " " small { (text(&document["info"]["version"])) } }
                    p { (prose(text(&document["info"]["description"]))) }
                    p { "The same for machines: " a href="/api/v1/openapi.json" { "openapi.json" } "." }
                    @for group in &groups {
                        h2 id=(group.tag) { (group.tag) }
                        p { (prose(group.description)) }
                        @for operation in &group.operations { (section(document, operation)) }
                    }
                }
            }
        }
    }
}

/// A tag of the document with its operations.
struct Group<'a> {
    tag: &'a str,
    description: &'a str,
    operations: Vec<Operation<'a>>,
}

/// In the order of the document.
fn groups(document: &Value) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = document["tags"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|tag| Group { tag: text(&tag["name"]), description: text(&tag["description"]), operations: Vec::new() })
        .collect();
    for (path, operations) in document["paths"].as_object().into_iter().flatten() {
        for (method, content) in operations.as_object().into_iter().flatten() {
            let tag = text(&content["tags"][0]);
            let group = groups.iter_mut().find(|group| group.tag == tag);
            group.expect("a tag of the document").operations.push(Operation { method, path, content });
        }
    }
    groups
}

fn contents(groups: &[Group<'_>]) -> Markup {
    html! {
        @for group in groups {
            a.tag href={ "#" (group.tag) } { (group.tag) }
            ul {
                @for operation in &group.operations {
                    li { a href={ "#" (operation.id()) } { (text(&operation.content["summary"])) } }
                }
            }
        }
    }
}

fn section(document: &Value, operation: &Operation<'_>) -> Markup {
    let content = operation.content;
    let parameters = content["parameters"].as_array().map_or([].as_slice(), Vec::as_slice);
    let body = &content["requestBody"]["content"]["application/json"];
    let body_schema = resolve(document, &body["schema"]);
    let responses = content["responses"].as_object().into_iter().flatten();
    let answers = responses.filter(|(_, response)| response.get("$ref").is_none());
    let errors = content["x-error-codes"].as_object().into_iter().flatten();
    html! {
        section id=(operation.id()) {
            h3 { (text(&content["summary"])) }
            p { (prose(text(&content["description"]))) }
            p.route { span.method { (operation.method.to_uppercase()) } " " code { (operation.path) } }
            @if content["security"][0].get("adminKey").is_some() { p.note { "For the operator." } }
            @if !parameters.is_empty() {
                table {
                    @for parameter in parameters { (parameter_row(resolve(document, parameter))) }
                }
            }
            @if let Some(properties) = body_schema["properties"].as_object() {
                h4 { "Body" }
                table {
                    @for (name, schema) in properties {
                        (member_row(name, schema, is_required(body_schema, name)))
                    }
                }
                @if body["example"].is_object() { pre { (body["example"]) } }
            }
            h4 { "Responses" }
            table {
                @for (status, response) in answers { (answer_row(status, response)) }
            }
            p.refusals {
                @for (status, codes) in errors {
                    span {
                        (status)
                        @for code in codes.as_array().into_iter().flatten() { " " code { (text(code)) } }
                    }
                    " "
                }
            }
        }
    }
}

fn is_required(schema: &Value, name: &str) -> bool {
    schema["required"].as_array().is_some_and(|names| names.iter().any(|own| own == name))
}

fn parameter_row(parameter: &Value) -> Markup {
    html! {
        tr {
            td { code { (text(&parameter["name"])) } }
            td.note { (text(&parameter["in"])) }
            td { (text(&parameter["description"])) " " span.note { (bounds(&parameter["schema"])) } }
        }
    }
}

fn member_row(name: &str, schema: &Value, required: bool) -> Markup {
    html! {
        tr {
            td { code { (name) } }
            td.note { @if required { "required" } }
            td { (prose(text(&schema["description"]))) " " span.note { (bounds(schema)) } }
        }
    }
}

fn answer_row(status: &str, response: &Value) -> Markup {
    let example = response["content"].as_object().and_then(|content| content.values().next()?.get("example"));
    html! {
        tr {
            td { code { (status) } }
            td {
                (prose(text(&response["description"])))
                @match example {
                    Some(Value::String(example)) => pre { (example) },
                    Some(example) => pre { (example) },
                    None => {},
                }
            }
        }
    }
}

/// Type and bounds of a schema in a few words.
fn bounds(schema: &Value) -> String {
    let mut words = vec![text(&schema["type"]).to_owned()];
    let range = |low: &str, high: &str| match (schema.get(low), schema.get(high)) {
        (Some(low), Some(high)) => Some(format!("{low} to {high}")),
        (None, Some(high)) => Some(format!("up to {high}")),
        (Some(low), None) => Some(format!("from {low}")),
        (None, None) => None,
    };
    words.extend(range("minimum", "maximum"));
    words.extend(range("minLength", "maxLength").map(|range| range + " characters"));
    words.extend(range("minItems", "maxItems").map(|range| range + " items"));
    words.extend(schema.get("default").map(|default| format!("default {default}")));
    words.join(", ")
}

/// Text with `code` in backquotes.
fn prose(text: &str) -> Markup {
    html! {
        @for (index, part) in text.split('`').enumerate() {
            @if index % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The value that a `$ref` points to.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let pointer = value["$ref"].as_str().map(|reference| reference.trim_start_matches('#'));
    pointer.and_then(|pointer| document.pointer(pointer)).unwrap_or(value)
}
