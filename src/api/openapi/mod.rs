//! Builds the OpenAPI document from the table of routes: the flags of a row give access, headers and errors, its
//! description the texts, and the serialised types the schemas of responses.

pub mod bodies;
mod components;
pub mod description;
mod operation;
#[cfg(test)]
mod rules;

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::route::{Route, braced};
use description::Description;

/// Stands for the OpenAPI document itself in the schema of its own response.
struct OpenApiDocument;

impl JsonSchema for OpenApiDocument {
    fn schema_name() -> Cow<'static, str> {
        "OpenApiDocument".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": {} })
    }
}

pub const SHOW: Description =
    Description::of("getOpenapiDocument", "Get the OpenAPI document", "Returns this document as JSON.")
        .answer::<OpenApiDocument>(200, r#"{"openapi":"3.1.0"}"#);

const ABOUT: &str = "Exactly-once usage metering and settlement for machine-to-machine payments. A write that is \
    repeated with its `Idempotency-Key` is executed once, and every repetition gets the stored response. Amounts are \
    whole stroops. `x-lenient` marks values that are accepted although they break their schema: a query parameter is \
    clamped or ignored, and in a bulk request only the invalid item is refused. `x-error-codes` lists the error codes \
    of an operation by status.";

pub fn document(routes: &[Route]) -> Value {
    let mut generator = schemas();
    let mut paths = Map::new();
    for route in routes {
        let path = paths.entry(braced(route.pattern)).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation::of(route, &mut generator);
    }
    // All definitions that operations refer to are known only now.
    let mut schemas = generator.take_definitions(true);
    schemas.values_mut().for_each(tidy);
    let written = bodies::schemas().into_iter().chain(components::error_schemas());
    schemas.extend(written.map(|(name, schema)| (name.to_owned(), schema)));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "AgentPay Backend",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE") },
        },
        "servers": [{ "url": "/" }],
        "tags": operation::tags(),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": components::error_responses(),
            "headers": components::headers(),
            "parameters": components::parameters(),
            "securitySchemes": components::security_schemes(),
        },
    })
}

/// Adds what clients must know to a derived schema: members that may be absent are never null, integers have a format
/// that typed clients know, and no schema is a boolean.
fn tidy(schema: &mut Value) {
    if *schema == Value::Bool(true) {
        *schema = json!({});
    }
    let Some(schema) = schema.as_object_mut() else { return };
    if let Some(format) = schema.get("format").and_then(Value::as_str).filter(|format| format.contains("int")) {
        let is_narrow = matches!(format, "uint8" | "int16" | "uint16" | "int32");
        schema.insert("format".to_owned(), if is_narrow { "int32" } else { "int64" }.into());
        // No narrow integer is negative, whatever its Rust type allows.
        if is_narrow {
            schema.insert("minimum".to_owned(), json!(0));
        }
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(name) {
            tidy(inner);
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

/// Schemas of serialised types, in the dialect of OpenAPI 3.1.
fn schemas() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    settings.into_generator()
}
