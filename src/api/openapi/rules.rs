//! Tests the rules of the document that a program can check: what generators of typed clients need.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::document;
use crate::api::routes::ROUTES;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| document(ROUTES));

/// Every summary begins with one of these.
const VERBS: [&str; 21] = [
    "Check", "Count", "Create", "Delete", "Disable", "Enable", "Export", "Get", "List", "Pause", "Record", "Register",
    "Request", "Reset", "Resume", "Revoke", "Rotate", "Set", "Settle", "Test", "Update",
];

fn operations() -> impl Iterator<Item = &'static Value> {
    let paths = DOCUMENT["paths"].as_object().expect("paths").values();
    paths.flat_map(|methods| methods.as_object().expect("methods").values())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// Visits every object under `node` together with its path.
fn walk(node: &'static Value, path: &str, visit: &mut impl FnMut(&str, &'static Map<String, Value>)) {
    if let Some(object) = node.as_object() {
        visit(path, object);
        // Examples are data, not schemas.
        for (name, child) in object.iter().filter(|(name, _)| !name.starts_with("example")) {
            walk(child, &format!("{path}/{name}"), visit);
        }
    }
    for (index, child) in node.as_array().into_iter().flatten().enumerate() {
        walk(child, &format!("{path}/{index}"), visit);
    }
}

/// The contents of the request and of its successful responses.
fn contents(operation: &'static Value) -> impl Iterator<Item = (&'static String, &'static Value)> {
    let answers = operation["responses"].as_object().expect("responses").values();
    let holders = answers.chain([&operation["requestBody"]]);
    holders.filter_map(|holder| holder["content"].as_object()).flatten()
}

#[test]
fn operation_ids_are_a_verb_and_a_noun_and_occur_once() {
    let mut seen = BTreeSet::new();
    for operation in operations() {
        let id = text(&operation["operationId"]);
        // `recordUsage` splits into `record` and `sage`.
        let words: Vec<&str> = id.split(|letter: char| letter.is_ascii_uppercase()).collect();
        let is_word = |word: &&str| !word.is_empty() && word.bytes().all(|letter| letter.is_ascii_lowercase());
        assert!(words.len() > 1 && words.iter().all(is_word), "{id}");
        assert!(seen.insert(id), "{id} occurs twice");
    }
}

#[test]
fn operations_have_a_summary_a_description_and_a_described_tag() {
    let tags: Vec<&str> = DOCUMENT["tags"].as_array().expect("tags").iter().map(|tag| text(&tag["name"])).collect();
    for tag in DOCUMENT["tags"].as_array().expect("tags") {
        assert!(text(&tag["description"]).ends_with('.'), "{tag}");
    }
    let mut used = BTreeSet::new();
    for operation in operations() {
        let id = text(&operation["operationId"]);
        let summary = text(&operation["summary"]);
        let verb = summary.split(' ').next().expect("a word");
        assert!(VERBS.contains(&verb) && summary.contains(' ') && !summary.ends_with('.'), "{id}: {summary}");
        assert!(text(&operation["description"]).ends_with('.'), "{id}");
        let [tag] = operation["tags"].as_array().expect("tags").as_slice() else { panic!("{id} has one tag") };
        used.insert(text(tag));
    }
    assert_eq!(used, tags.into_iter().collect());
}

#[test]
fn operations_have_examples() {
    for operation in operations() {
        let id = text(&operation["operationId"]);
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let in_path = parameters.filter(|parameter| parameter["in"] == "path");
        let described: Vec<&Value> = in_path.chain(contents(operation).map(|(_, content)| content)).collect();
        assert!(!described.is_empty(), "{id}");
        for value in described {
            assert!(value.get("example").is_some(), "{id}: {value}");
        }
    }
}

#[test]
fn bodies_have_named_schemas() {
    for operation in operations() {
        let id = text(&operation["operationId"]);
        for (media_type, content) in contents(operation) {
            let is_named =
                content["schema"]["$ref"].as_str().is_some_and(|name| name.starts_with("#/components/schemas/"));
            assert!(is_named || media_type.starts_with("text/"), "{id}: {}", content["schema"]);
        }
    }
}

#[test]
fn errors_have_one_answer_per_status() {
    for operation in operations() {
        let id = text(&operation["operationId"]);
        let shared = operation["responses"].as_object().expect("responses").iter().filter_map(|(status, response)| {
            response.get("$ref").map(|reference| (status.clone(), text(reference).to_owned()))
        });
        let mut statuses = BTreeSet::new();
        for (status, reference) in shared {
            let codes = operation["x-error-codes"][&status].as_array().expect("codes");
            let response = DOCUMENT.pointer(&reference[1..]).expect("a response");
            let content = &response["content"]["application/json"];
            assert_eq!(content["schema"], json!({ "$ref": "#/components/schemas/ApiError" }), "{id}: {status}");
            for code in codes {
                assert!(content["examples"].get(text(code)).is_some(), "{id}: {status} {code}");
            }
            statuses.insert(status);
        }
        let described: BTreeSet<String> =
            operation["x-error-codes"].as_object().expect("codes by status").keys().cloned().collect();
        assert_eq!(statuses, described, "{id}");
    }
    let responses = DOCUMENT["components"]["responses"].as_object().expect("responses");
    assert_eq!(responses.len(), 12);
}

#[test]
fn integers_have_a_format_that_holds_them() {
    let mut integers = 0;
    walk(&DOCUMENT, "", &mut |path, schema| {
        let is_integer = match &schema.get("type") {
            Some(Value::String(name)) => name == "integer",
            Some(Value::Array(names)) => names.iter().any(|name| name == "integer"),
            _ => false,
        };
        if is_integer {
            let is_narrow = schema.get("maximum").and_then(Value::as_i64).is_some_and(|max| max <= i32::MAX.into());
            assert_eq!(schema["format"], if is_narrow { "int32" } else { "int64" }, "{path}");
            integers += 1;
        }
    });
    assert!(integers > 50);
}

#[test]
fn no_schema_is_a_boolean() {
    walk(&DOCUMENT, "", &mut |path, object| {
        for name in ["schema", "items", "additionalProperties", "not"] {
            let Some(schema) = object.get(name) else { continue };
            // `false` is valid where it closes an object.
            let is_closed = name == "additionalProperties" && *schema == Value::Bool(false);
            assert!(!schema.is_boolean() || is_closed, "{path}/{name}");
        }
        let members =
            object.get("properties").and_then(Value::as_object).into_iter().flatten().map(|(_, member)| member);
        let groups = ["allOf", "anyOf", "oneOf"].into_iter().filter_map(|name| object.get(name)?.as_array()).flatten();
        assert!(!members.chain(groups).any(Value::is_boolean), "{path}");
    });
}

#[test]
fn every_reference_points_somewhere() {
    walk(&DOCUMENT, "", &mut |path, object| {
        if let Some(reference) = object.get("$ref") {
            let found = text(reference).strip_prefix('#').and_then(|pointer| DOCUMENT.pointer(pointer));
            assert!(found.is_some(), "{path}: {reference}");
        }
    });
}
