//! Checks the rules of the code and the documents that a program can check. Reads the sources, and needs no database.

#[path = "tidy/configuration.rs"]
mod configuration;
#[path = "tidy/imports.rs"]
mod imports;
#[path = "../bench/simulate.rs"]
mod simulate;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use agentpay_billing::api::route::{Auth, Route, braced};
use agentpay_billing::api::routes::ROUTES;
use imports::Imports;

fn sources(dir: &Path) -> Vec<(PathBuf, String)> {
    texts(dir, &["rs"])
}

/// The files under `dir` whose names end in one of `extensions`.
fn texts(dir: &Path, extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(texts(&path, extensions));
        } else if path.extension().and_then(OsStr::to_str).is_some_and(|extension| extensions.contains(&extension)) {
            let text = fs::read_to_string(&path).expect("a text");
            files.push((path, text));
        }
    }
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files under `src` that contain `text` and whose path does not start with one of `allowed`.
fn files_with(text: &str, allowed: &[&str]) -> Vec<PathBuf> {
    let src = root().join("src");
    sources(&src)
        .into_iter()
        .filter(|(path, source)| {
            let own = path.strip_prefix(&src).expect("under src");
            source.contains(text) && !allowed.iter().any(|start| own.starts_with(start))
        })
        .map(|(path, _)| path)
        .collect()
}

#[test]
fn sql_stands_in_the_store_and_axum_in_the_api() {
    for text in ["query!(", "query_as!(", "query_scalar!(", "sqlx::query("] {
        assert_eq!(files_with(text, &["store"]), Vec::<PathBuf>::new(), "{text}");
    }
    assert_eq!(files_with("axum", &["api"]), Vec::<PathBuf>::new());
}

/// Another way to use the database would have no deadline.
#[test]
fn the_database_is_used_through_the_pool_and_the_lanes() {
    let ways_in = ["acquire()", "PgPool", "PoolConnection", "PgListener"];
    for text in ways_in {
        assert_eq!(files_with(text, &["store/pool.rs", "store/listener.rs"]), Vec::<PathBuf>::new(), "{text}");
    }
    let allowed = ["store/pool.rs", "store/server.rs", "store/listener.rs", "commit/shared.rs", "start.rs"];
    for text in [".connect()", "connect_with("] {
        let mut allowed = allowed.to_vec();
        allowed.push("local_postgres");
        assert_eq!(files_with(text, &allowed), Vec::<PathBuf>::new(), "{text}");
    }
}

#[test]
fn handlers_hold_no_connection_to_the_database() {
    let holders: Vec<PathBuf> = sources(&root().join("src/api"))
        .into_iter()
        .filter(|(_, source)| source.contains("PgConnection"))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(holders, Vec::<PathBuf>::new());
}

#[test]
fn imports_point_down() {
    let imports = Imports::of(&root().join("src"), "lib");
    for (layer, above) in [
        ("domain", ["settings", "store", "query", "command", "commit", "jobs", "cell", "api", "app", "cli"].as_slice()),
        ("settings", ["store", "query", "command", "commit", "jobs", "cell", "api", "app", "cli"].as_slice()),
        ("store", ["query", "command", "commit", "jobs", "cell", "api", "app", "cli"].as_slice()),
        ("query", ["command", "commit", "jobs", "cell", "api", "app", "cli"].as_slice()),
        ("command", ["query", "commit", "jobs", "cell", "api", "app", "cli"].as_slice()),
        ("commit", ["query", "jobs", "cell", "api", "app", "cli"].as_slice()),
        ("jobs", ["query", "command", "commit", "cell", "api", "app", "cli"].as_slice()),
        ("cell", ["api", "app", "cli"].as_slice()),
        ("api", ["app", "cli"].as_slice()),
    ] {
        for (module, imported) in imports.all().filter(|(module, _)| module.first().is_some_and(|own| own == layer)) {
            let is_above = imported.first().is_some_and(|name| above.contains(&name.as_str()));
            assert!(!is_above, "{} imports {}", module.join("::"), imported.join("::"));
        }
    }
}

/// PostgreSQL's statistics and logs then show where a statement is.
#[test]
fn every_statement_begins_with_the_names_of_its_file_and_function() {
    let store = root().join("src/store");
    for (path, source) in sources(&store) {
        let own = path.strip_prefix(&store).expect("under store").with_extension("");
        let module = own.iter().next().and_then(|name| name.to_str()).expect("a name");
        let statements = ["query!(", "query_as!(", "query_scalar!(", "sqlx::query("];
        let count: usize = statements.iter().map(|text| source.matches(text).count()).sum();
        let labels: Vec<&str> = source.split("\"-- ").skip(1).collect();
        assert_eq!(labels.len(), count, "{}", path.display());
        for label in labels {
            let is_name = |character: char| character.is_ascii_lowercase() || "_:".contains(character);
            let label = label.split(|character| !is_name(character)).next().expect("a label");
            let function = label.strip_prefix(module).and_then(|rest| rest.strip_prefix("::"));
            let is_here = function
                .is_some_and(|function| ["(", "<"].iter().any(|end| source.contains(&format!("fn {function}{end}"))));
            assert!(is_here, "{}: {label}", path.display());
        }
    }
}

#[test]
fn no_two_files_import_each_other() {
    for (dir, root_file) in [("src", "lib"), ("bench", "main")] {
        let imports = Imports::of(&root().join(dir), root_file);
        assert!(imports.all().count() > 10, "the imports of {dir} are found");
        assert_eq!(imports.cycles(), Vec::<String>::new());
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for dir in ["src", "tests", "bench"] {
        for (path, source) in sources(&root().join(dir)) {
            assert!(source.starts_with("//!"), "{}", path.display());
        }
    }
}

#[test]
fn every_table_is_in_the_data_model() {
    let document = fs::read_to_string(root().join("docs/data-model.md")).expect("docs/data-model.md");
    let mut tables = 0;
    for entry in fs::read_dir(root().join("migrations")).expect("migrations") {
        let text = fs::read_to_string(entry.expect("an entry").path()).expect("a migration");
        for line in text.lines().filter_map(|line| line.strip_prefix("CREATE TABLE ")) {
            let table = line.split(' ').next().expect("a name");
            assert!(document.contains(&format!("`{table}`")), "{table}");
            tables += 1;
        }
    }
    assert!(tables > 0);
}

/// Programs that still run must work with the schema of the next release (docs/contributing.md).
#[test]
fn migrations_say_whether_they_expand_or_contract_the_schema() {
    for entry in fs::read_dir(root().join("migrations")).expect("migrations") {
        let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
        let (version, rest) = name.split_once('_').expect("a version");
        let is_baseline = version.parse::<u32>().expect("a number") <= 12;
        assert!(is_baseline || rest.starts_with("expand_") || rest.starts_with("contract_"), "{name}");
    }
}

/// The row of a route in docs/api.md.
fn documented(route: &Route) -> String {
    let description = &route.description;
    let mut statuses: Vec<String> =
        description.answers.iter().flatten().map(|answer| answer.status.to_string()).collect();
    if description.is_conditional {
        statuses.push("304".to_owned());
    }
    let key = match route.auth {
        Auth::Open => "",
        Auth::Tenant => "tenant",
        Auth::Operator => "operator",
        Auth::Metrics => "metrics",
    };
    let yes = |applies: bool| if applies { "yes" } else { "" };
    let (path, statuses) = (braced(route.pattern), statuses.join(", "));
    let scopes = route.scopes;
    let flags = [yes(route.idempotent), yes(route.limited), yes(route.pausable)].join(" | ");
    format!("| {} | `{path}` | {} | {statuses} | {key} | {scopes} | {flags} |", route.method, description.summary)
}

#[test]
fn the_keys_of_idempotency_are_honoured_by_the_routes_that_its_page_names() {
    let document = fs::read_to_string(root().join("docs/idempotency.md")).expect("docs/idempotency.md");
    let rows: Vec<&str> = document.lines().filter(|line| line.contains("| `/api/v1/")).collect();
    let honouring = ROUTES.iter().filter(|route| route.idempotent);
    let expected: Vec<String> = honouring
        .map(|route| format!("| {} | `{}` | {} |", route.method, braced(route.pattern), route.description.summary))
        .collect();
    assert_eq!(rows, expected);
    assert_eq!(rows.len(), 13);
}

#[test]
fn the_table_of_the_api_is_the_table_of_routes() {
    let document = fs::read_to_string(root().join("docs/api.md")).expect("docs/api.md");
    let rows: Vec<&str> = document.lines().filter(|line| line.contains("| `/")).collect();
    assert_eq!(rows, ROUTES.iter().map(documented).collect::<Vec<_>>());
}

fn http_contract() -> String {
    fs::read_to_string(root().join("docs/http-contract.md")).expect("docs/http-contract.md")
}

/// The headings of a page, without its code blocks.
fn headings(page: &str) -> Vec<&str> {
    let mut is_code = false;
    let mut headings = Vec::new();
    for line in page.lines() {
        is_code ^= line.starts_with("```");
        if !is_code && let Some(heading) = line.strip_prefix('#') {
            headings.push(heading.trim_start_matches('#').trim());
        }
    }
    headings
}

/// The anchors of a page, as GitHub derives them from its headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let kept = |character: &char| character.is_alphanumeric() || matches!(character, ' ' | '-' | '_');
    let anchor = |heading: &&str| heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-");
    headings(page).iter().map(anchor).collect()
}

/// The targets of the links of a page, without its code blocks and code spans.
fn links(page: &str) -> Vec<&str> {
    let prose = page.split("```").step_by(2).flat_map(|prose| prose.split('`').step_by(2));
    prose.flat_map(|prose| prose.split("](").skip(1)).filter_map(|rest| Some(rest.split_once(')')?.0)).collect()
}

/// A claim about security is worth as much as its test.
#[test]
fn every_claim_of_the_threat_model_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("SECURITY.md")).expect("SECURITY.md");
    let mut code: String = sources(&root().join("tests")).into_iter().map(|(_, source)| source).collect();
    code.extend(sources(&root().join("src")).into_iter().map(|(_, source)| source));
    let is_target = |name: &str| root().join("tests/fuzz/corpus").join(name).is_dir();
    let mut claims = 0;
    for row in page.lines().filter(|line| line.starts_with("| ") && !line.ends_with("| test |")) {
        let cell = row.trim_end_matches('|').rsplit(" | ").next().expect("a cell");
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{row}");
        for name in names {
            assert!(code.contains(&format!("fn {name}(")) || is_target(name), "{name}");
        }
        claims += 1;
    }
    assert!(claims > 30, "{claims}");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut pages = texts(&root().join("docs"), &["md"]);
    for name in ["README.md", "CHANGELOG.md", "SECURITY.md"] {
        pages.push((root().join(name), fs::read_to_string(root().join(name)).expect(name)));
    }
    let mut checked = 0;
    for (path, page) in &pages {
        for link in links(page).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().expect("a directory").join(file) };
            assert!(target.exists(), "{} links to {link}", path.display());
            if !anchor.is_empty() {
                let target = fs::read_to_string(&target).expect("a page");
                assert!(anchors(&target).contains(anchor), "{} links to {link}", path.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 0);
}

/// The sections that `line` names after "HTTP contract, section", as in "sections 2.1, 2.5 and 4" or "sections 2 to 4".
fn cited_sections(line: &str) -> Vec<&str> {
    let mut sections = Vec::new();
    for citation in line.split("HTTP contract, section").skip(1) {
        let mut rest = citation.strip_prefix('s').unwrap_or(citation);
        while let Some(numbered) = [" and ", " to ", ", ", " "].iter().find_map(|before| rest.strip_prefix(before)) {
            let end = numbered.find(|character: char| !character.is_ascii_digit() && character != '.');
            let (section, after) = numbered.split_at(end.unwrap_or(numbered.len()));
            if !section.starts_with(|character: char| character.is_ascii_digit()) {
                break;
            }
            sections.push(section.trim_end_matches('.'));
            rest = after;
        }
    }
    sections
}

#[test]
fn citations_of_the_http_contract_name_its_sections() {
    assert_eq!(
        cited_sections("HTTP contract, sections 2.1, 2.5 and 4; HTTP contract, section 6.1."),
        ["2.1", "2.5", "4", "6.1"]
    );
    let page = http_contract();
    let sections: BTreeSet<&str> =
        headings(&page).iter().filter_map(|heading| Some(heading.split_once(' ')?.0.trim_end_matches('.'))).collect();
    let anchors = anchors(&page);
    for dir in ["src", "tests", "bench", "docs"] {
        for (path, text) in texts(&root().join(dir), &["rs", "md", "py", "toml", "sql"]) {
            if path.ends_with("tests/tidy.rs") {
                continue;
            }
            let is_program = path.extension().is_none_or(|extension| extension != "md");
            for line in text.lines().filter(|line| line.to_lowercase().contains("contract")) {
                let cited = cited_sections(line);
                let unknown: Vec<&&str> = cited.iter().filter(|section| !sections.contains(**section)).collect();
                assert!(unknown.is_empty(), "{}: no such section: {line}", path.display());
                let linked = line.split_once("http-contract.md#").map(|(_, rest)| rest);
                let anchor = linked.and_then(|rest| rest.split([')', '`', ' ']).next());
                assert!(anchor.is_none_or(|anchor| anchors.contains(anchor)), "{}: {line}", path.display());
                let is_comment = line.trim_start().starts_with("//") || line.trim_start().starts_with('#');
                let says_where = !cited.is_empty() || line.contains("http-contract.md");
                assert!(!is_program || !is_comment || says_where, "{} cites no section: {line}", path.display());
            }
        }
    }
}

#[test]
fn the_http_contract_has_every_error_and_every_metric() {
    let page = http_contract();
    let refusals = fs::read_to_string(root().join("src/domain/refusal.rs")).expect("src/domain/refusal.rs");
    let (mut codes, mut messages, mut metrics) = (0, 0, 0);
    for line in refusals.lines().filter_map(|line| Some(line.trim().split_once("=> ")?.1)) {
        if let Some((status, code)) = line.strip_prefix('(').and_then(|line| line.split_once(", \"")) {
            let code = code.trim_end_matches("\"),");
            assert!(page.contains(&format!("| {status} | `{code}` |")), "{status} {code}");
            codes += 1;
        } else if let Some(message) = line.strip_prefix('"').and_then(|line| line.strip_suffix("\",")) {
            assert!(page.contains(&format!("`{message}`")), "{message}");
            messages += 1;
        }
    }
    for (_, source) in sources(&root().join("src")) {
        for name in source.split("\"agentpay_").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0)) {
            let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            // A channel of PostgreSQL.
            if is_name && name != "runtime_config" {
                assert!(page.contains(&format!("`agentpay_{name}`")), "agentpay_{name}");
                metrics += 1;
            }
        }
    }
    assert!(codes > 20 && messages > 50 && metrics > 30, "{codes} {messages} {metrics}");
}

#[test]
fn the_model_of_cells_shows_the_output_of_the_simulation() {
    let page = fs::read_to_string(root().join("docs/scaling.md")).expect("a page");
    for table in simulate::tables() {
        assert!(page.contains(&table), "docs/scaling.md lacks a table that `cargo bench -- simulate` prints:\n{table}");
    }
}
