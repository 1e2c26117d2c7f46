//! `docs/configuration.md` lists exactly the environment variables that the service reads, with their defaults.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use agentpay_billing::settings::Settings;

/// The variables on the page with their defaults: those of its tables, and those for secrets in files, which its
/// introduction names.
fn documented() -> BTreeMap<String, String> {
    let page = fs::read_to_string(super::root().join("docs/configuration.md")).expect("docs/configuration.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let rows = rows.map(|(name, rest)| (name, rest.split(" | ").next().expect("a default")));
    let introduction = page.split("\n## ").next().expect("an introduction");
    let names = introduction.split('`').skip(1).step_by(2);
    let files = names.filter(|name| name.len() > "_FILE".len() && name.ends_with("_FILE")).map(|name| (name, "unset"));
    rows.chain(files).map(|(name, default)| (name.to_owned(), default.to_owned())).collect()
}

/// Without these, variables of compression and of traces have no effect.
const SWITCHES: [(&str, &str); 3] = [
    ("COMPRESSION", "on"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318"),
    ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
];

/// The settings as text, or why they are refused.
fn settings_with(variable: Option<(&str, &str)>) -> String {
    let read = |name: &str| {
        let set = variable.iter().chain(&SWITCHES).find(|(own, _)| *own == name)?;
        Some(set.1.to_owned())
    };
    // Where a value comes from makes no difference.
    let settings = Settings::read(read, false).map(|settings| Settings { variables: Vec::new(), ..settings });
    format!("{settings:?}")
}

#[test]
fn every_variable_that_is_read_is_documented_and_every_documented_one_is_read() {
    let read = RefCell::new(BTreeSet::new());
    let note = |name: &str| {
        read.borrow_mut().insert(name.to_owned());
        SWITCHES.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned())
    };
    Settings::read(note, false).expect("accepted settings");
    assert_eq!(documented().into_keys().collect::<BTreeSet<_>>(), read.into_inner());
    // Programs of the private PostgreSQL are found by PATH, and get few variables.
    assert_eq!(super::files_with("env::var", &["cli/mod.rs", "local_postgres"]), Vec::<std::path::PathBuf>::new());
}

#[test]
fn the_documented_defaults_are_those_of_the_service() {
    for (name, default) in documented() {
        let unset = if name == "COMPRESSION" { settings_with(Some((&name, ""))) } else { settings_with(None) };
        assert_ne!(settings_with(Some((&name, "?"))), unset, "{name} has an effect");
        if !["unset", "empty"].contains(&default.as_str()) {
            assert_eq!(settings_with(Some((&name, &default))), unset, "{name} is {default} by default");
        }
    }
}
