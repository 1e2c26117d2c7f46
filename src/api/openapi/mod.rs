//! The OpenAPI document, made of the table that mounts the routes: a row's flags give its rights, headers and refusals,
//! its description the rest, and the types that are serialised give the schemas of the answers.

pub mod bodies;
mod components;
pub mod description;
mod operation;

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::routes::{ROUTES, braced};
use components::Refusals;
use description::{Content, Description};

pub const SHOW: Description = Description::of("Read this document").content(
    200,
    Content::Json(|_: &mut SchemaGenerator| -> Schema { json_schema!({ "type": "object" }) }),
    r#"{"openapi":"3.1.0"}"#,
);

/// The document: made once, at the first look at it.
pub static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

static BYTES: LazyLock<Bytes> = LazyLock::new(|| DOCUMENT.to_string().into());

pub async fn show() -> Response {
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], Body::from(BYTES.clone())).into_response()
}

const ABOUT: &str = "Usage metering and settlement for machine-to-machine payments, exactly once: a write repeated with \
    its `Idempotency-Key` is executed once, and every repetition gets the first answer. Amounts are stroops, moments are \
    milliseconds since the Unix epoch. What a request sees and changes belongs to the tenant of its `X-API-Key`. \
    Where it says `x-lenient`, values that break the schema are not refused: a query parameter is clamped or counts as \
    absent, and an item of a bulk request is refused alone.";

fn document() -> Value {
    let mut generator = schemas();
    let mut refusals = Refusals::default();
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(braced(route.pattern)).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation::of(route, &mut generator, &mut refusals);
    }
    // All definitions that operations refer to, which only now are known.
    let mut schemas = generator.take_definitions(true);
    schemas.values_mut().for_each(tidy);
    schemas.insert("Error".to_owned(), components::error());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "AgentPay Backend",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE") },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": refusals.into_components(),
            "headers": components::headers(),
            "parameters": components::parameters(),
            "securitySchemes": components::security_schemes(),
        },
    })
}

/// Makes a derived schema say what clients have to know: members that are left out are never null, and the width of an
/// integer in memory is none of theirs.
fn tidy(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    if schema.get("format").and_then(Value::as_str).is_some_and(|format| format.contains("int")) {
        schema.remove("format");
        if schema.remove("maximum").is_some() {
            schema.insert("minimum".to_owned(), json!(0));
        }
    }
    let required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    for (name, member) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        tidy(member);
        if !required.iter().any(|own| own == name) {
            forbid_null(member);
        }
    }
}

fn forbid_null(schema: &mut Value) {
    if let Some([shown, _]) = schema["type"].as_array().map(Vec::as_slice) {
        schema["type"] = shown.clone();
    } else if let Some([shown, _]) = schema["anyOf"].as_array().map(Vec::as_slice) {
        *schema = shown.clone();
    }
}

/// Of what is serialised, in the dialect of OpenAPI 3.1.
fn schemas() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    settings.into_generator()
}
