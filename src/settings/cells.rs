//! Parses CELLS_FILE, the list of the databases that hold the tenants. An error never repeats a part of a URL, which may be
//! the password.

use std::collections::HashSet;
use std::fs;

use serde::Deserialize;
use sqlx::postgres::PgConnectOptions;

use crate::domain::cell::{CellId, Dialect};

use super::database_url;
use super::error::SettingsError;

/// Maximum number of cells: their numbers are remainders of this (`cells.number`).
pub const CELLS_MAX: usize = 1024;

/// One cell of the file.
#[derive(Clone, Debug)]
pub struct CellSettings {
    pub id: CellId,
    pub database: PgConnectOptions,
    /// Share of the new tenants that the cell gets.
    pub weight: u32,
    /// The schema of a cell on Citus, which distributes it. The database is then that of the coordinator.
    pub citus_schema: Option<String>,
}

impl CellSettings {
    pub fn dialect(&self) -> Dialect {
        if self.citus_schema.is_some() { Dialect::Citus } else { Dialect::PostgreSql }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cell: Vec<Cell>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cell {
    id: String,
    url: String,
    schema: Option<String>,
    weight: Option<u32>,
    #[serde(default)]
    citus: bool,
}

/// The cells that the file at `path` lists. The first one is the home cell.
pub(super) fn read(path: &str) -> Result<Vec<CellSettings>, SettingsError> {
    let text = fs::read_to_string(path)
        .map_err(|error| SettingsError(format!("CELLS_FILE names {path}, which cannot be read: {error}")))?;
    parse(&text).map_err(|problem| SettingsError(format!("CELLS_FILE {path}: {problem}")))
}

fn parse(text: &str) -> Result<Vec<CellSettings>, String> {
    let file: File = toml::from_str(text).map_err(|error| {
        let before = text.as_bytes().iter().take(error.span().map_or(0, |span| span.start));
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        // The whole error would show the line.
        format!("line {line}: {}", error.message())
    })?;
    if file.cell.is_empty() || file.cell.len() > CELLS_MAX {
        return Err(format!("it must list 1 to {CELLS_MAX} cells, each in a table [[cell]]"));
    }
    let mut ids = HashSet::new();
    let mut cells = Vec::new();
    for cell in file.cell {
        let form = "lowercase letters, digits and hyphens, at most 32";
        let id = CellId::parse(&cell.id).ok_or_else(|| format!("id must be {form}, got \"{}\"", cell.id))?;
        if !ids.insert(id.clone()) {
            return Err(format!("two cells have the id {id}"));
        }
        let named = |problem: String| format!("url of the cell {id} {problem}");
        let mut database = database_url::parse_named(&cell.url).map_err(named)?;
        if let Some(schema) = &cell.schema {
            let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            if schema.is_empty() || !schema.bytes().all(is_plain) {
                return Err(format!("schema of the cell {id} must be lowercase letters, digits and underscores"));
            }
            database = database.options([("search_path", schema)]);
        }
        let weight = cell.weight.unwrap_or(1);
        if !(1..=1_000_000).contains(&weight) {
            return Err(format!("weight of the cell {id} must be between 1 and 1000000"));
        }
        if cell.citus && cell.schema.is_none() {
            return Err(format!("the cell {id} has citus = true, and needs a schema, which Citus distributes"));
        }
        // The home cell has the notifications, the locks and the keys that all cells rely on.
        if cell.citus && cells.is_empty() {
            return Err(format!("the cell {id} is the home cell, which cannot be on Citus"));
        }
        let citus_schema = cell.schema.filter(|_| cell.citus);
        cells.push(CellSettings { id, database, weight, citus_schema });
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_lists_the_home_cell_first() {
        let text = "[[cell]]\nid = \"home\"\nurl = \"postgres://h/a\"\n\n\
                    [[cell]]\nid = \"eu-1\"\nurl = \"postgres://i/b\"\nschema = \"cell_1\"\nweight = 3\ncitus = true\n";
        let cells = parse(text).expect("cells");
        let shown: Vec<_> =
            cells.iter().map(|cell| (cell.id.as_str(), cell.weight, cell.citus_schema.as_deref())).collect();
        assert_eq!(shown, [("home", 1, None), ("eu-1", 3, Some("cell_1"))]);
        assert_eq!((cells[1].database.get_host(), cells[1].database.get_database()), ("i", Some("b")));
        assert_eq!(cells[1].database.get_options(), Some("-c search_path=cell_1"));
    }

    #[test]
    fn mistakes_are_described_without_the_url() {
        let cell = |more: &str| format!("[[cell]]\nid = \"home\"\nurl = \"postgres://u:hunter2@h/a\"\n{more}\n");
        let (id, schema) = ("id must be", "schema of the cell home must be");
        for (text, problem) in [
            (String::new(), "line 1: missing field `cell`"),
            (cell("colour = 1"), "line 4: unknown field `colour`"),
            (cell("weight = -1"), "line 4: invalid value"),
            (cell("weight = 0"), "weight of the cell home must be between 1 and 1000000"),
            (cell("schema = \"a b\""), schema),
            (cell(&cell("")), "two cells have the id home"),
            (cell("").replace("home", "Home"), id),
            (cell("citus = true"), "the cell home has citus = true, and needs a schema"),
            (cell("citus = true\nschema = \"c\""), "the cell home is the home cell, which cannot be on Citus"),
            (cell("").replace("postgres:", "mysql:"), "url of the cell home must be a postgres://"),
            ("[[cell]]\nid = \"a\"\nurl = \"postgres://u:hunter2@h/a".to_owned(), "line 3: "),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(error.starts_with(problem) && !error.contains("hunter2"), "{error}");
        }
    }
}
