//! The architecture as a test: what may stand where. It reads the sources, and needs no database.

use std::fs;
use std::path::{Path, PathBuf};

use agentpay_billing::api::routes::{Auth, ROUTES, Route, braced};

fn sources(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source");
            files.push((path, text));
        }
    }
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files under `src` whose path does not start with one of `homes` and that hold `text`.
fn strays(text: &str, homes: &[&str]) -> Vec<PathBuf> {
    let src = root().join("src");
    sources(&src)
        .into_iter()
        .filter(|(path, source)| {
            let own = path.strip_prefix(&src).expect("under src");
            source.contains(text) && !homes.iter().any(|home| own.starts_with(home))
        })
        .map(|(path, _)| path)
        .collect()
}

#[test]
fn sql_stands_in_the_store_and_axum_in_the_api() {
    for text in ["query!(", "query_as!(", "query_scalar!(", "sqlx::query("] {
        assert_eq!(strays(text, &["store"]), Vec::<PathBuf>::new(), "{text}");
    }
    assert_eq!(strays("axum", &["api"]), Vec::<PathBuf>::new());
}

/// Whoever used the database in another way would wait for one that is silent, and for ever.
#[test]
fn the_database_is_used_through_the_pool_and_the_lanes() {
    let ways_in = ["acquire()", "PgPool", "PoolConnection", "PgListener"];
    for text in ways_in {
        assert_eq!(strays(text, &["store/pool.rs", "store/listener.rs"]), Vec::<PathBuf>::new(), "{text}");
    }
    let homes = ["store/pool.rs", "store/server.rs", "store/listener.rs", "commit/committer.rs", "start.rs"];
    for text in [".connect()", "connect_with("] {
        let mut homes = homes.to_vec();
        homes.push("local_postgres");
        assert_eq!(strays(text, &homes), Vec::<PathBuf>::new(), "{text}");
    }
}

#[test]
fn imports_point_down() {
    for (layer, above) in [
        ("domain", ["store", "command", "commit", "jobs", "api"].as_slice()),
        ("store", ["command", "commit", "jobs", "api"].as_slice()),
        ("command", ["commit", "jobs", "api"].as_slice()),
        ("commit", ["jobs", "api"].as_slice()),
        ("jobs", ["command", "commit", "api"].as_slice()),
    ] {
        for (path, source) in sources(&root().join("src").join(layer)) {
            for upper in above {
                assert!(!source.contains(&format!("use crate::{upper}")), "{} imports {upper}", path.display());
            }
        }
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

/// The row that docs/api.md has of a route.
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
    let flags = [yes(route.idempotent), yes(route.limited), yes(route.pausable)].join(" | ");
    format!("| {} | `{path}` | {} | {statuses} | {key} | {flags} |", route.method, description.summary)
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
