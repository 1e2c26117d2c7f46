//! The releases listed in CHANGELOG.md. The file is compiled into the program, so the two cannot differ.

use std::sync::LazyLock;

use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::openapi::description::Description;
use crate::api::request::response::json;

#[derive(Debug, PartialEq, Eq, JsonSchema, Serialize)]
struct Release {
    version: String,
    date: String,
    notes: Vec<String>,
}

#[derive(JsonSchema, Serialize)]
struct Changelog {
    entries: Vec<Release>,
}

static CHANGELOG: LazyLock<Changelog> =
    LazyLock::new(|| Changelog { entries: parse(include_str!("../../../CHANGELOG.md")) });

pub const LIST: Description = Description::of(
    "getChangelog",
    "Get the changelog",
    "Returns the released versions with their notes, newest first.",
)
.answer::<Changelog>(200, r#"{"entries":[{"version":"0.1.0","date":"2026-11-24","notes":["Usage."]}]}"#);

pub async fn list() -> Response {
    json(&*CHANGELOG)
}

/// The released sections of a file in the form of Keep a Changelog, newest first, as in the file. A release is `##
/// version - date`. A note is a list item; its continuation lines are indented. The section "Unreleased" is left out.
fn parse(text: &str) -> Vec<Release> {
    let mut releases: Vec<Release> = Vec::new();
    let mut is_release = false;
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            let named = title.split_once(" - ");
            is_release = named.is_some();
            releases.extend(named.map(|(version, date)| Release {
                version: version.trim_matches(['[', ']']).to_owned(),
                date: date.to_owned(),
                notes: Vec::new(),
            }));
        }
        let Some(release) = releases.last_mut().filter(|_| is_release) else { continue };
        if let Some(note) = line.strip_prefix("- ") {
            release.notes.push(note.to_owned());
        } else if let Some(more) = line.strip_prefix("  ")
            && let Some(note) = release.notes.last_mut()
        {
            note.push(' ');
            note.push_str(more.trim());
        }
    }
    releases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_releases_are_told_newest_first() {
        let text = "# Changelog\n\n- no\n\n## Unreleased\n\n- not yet\n\n## [2.0.0] - 2026-02-01\n\n### Added\n\n\
                    - One\n  and more.\n- Two\n\n## 1.0.0 - 2026-01-01\n\n- Three\n";
        let release = |version: &str, date: &str, notes: &[&str]| Release {
            version: version.to_owned(),
            date: date.to_owned(),
            notes: notes.iter().map(|note| (*note).to_owned()).collect(),
        };
        let expected =
            [release("2.0.0", "2026-02-01", &["One and more.", "Two"]), release("1.0.0", "2026-01-01", &["Three"])];
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn the_newest_release_is_this_version() {
        let newest = &CHANGELOG.entries[0];
        assert_eq!(newest.version, env!("CARGO_PKG_VERSION"));
        assert!(!newest.notes.is_empty());
    }
}
