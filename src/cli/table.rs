//! How commands show what they found: a table for people, JSON for programs.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::error::CliError;
use super::session::Session;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table for people.
    #[default]
    Table,
    /// One JSON document, with the names and units of the HTTP API.
    Json,
}

#[derive(Args, Clone, Copy, Debug)]
pub struct FormatOption {
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

impl FormatOption {
    /// Prints what a command found.
    pub async fn print<T: Serialize>(
        self,
        session: &Session<'_>,
        found: &T,
        table: impl FnOnce(&T) -> Table,
    ) -> Result<(), CliError> {
        session.print(self.text(found, table)).await
    }

    pub fn text<T: Serialize>(self, found: &T, table: impl FnOnce(&T) -> Table) -> String {
        match self.format {
            Format::Table => table(found).into_text(),
            Format::Json => serde_json::to_string(found).expect("plain data"),
        }
    }
}

/// Rows of cells in aligned columns. A cell is one line without control characters, which a terminal would obey.
#[derive(Debug, Default)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    pub fn with_header<const N: usize>(header: [&str; N]) -> Self {
        let mut table = Self::default();
        table.add(header);
        table
    }

    pub fn add<const N: usize>(&mut self, cells: [impl AsRef<str>; N]) {
        self.0.push(cells.iter().map(|cell| printable(cell.as_ref())).collect());
    }

    pub fn into_text(self) -> String {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or_default();
        let width =
            |column: usize| self.0.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.0.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            control if control.is_control() => shown.extend(control.escape_default()),
            other => shown.push(other),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_control_characters_are_shown() {
        let mut table = Table::with_header(["KEY", "LABEL"]);
        table.add(["apk_01234567", "é \u{1b}[31m\n"]);
        table.add(["a", ""]);
        assert_eq!(table.into_text(), "KEY           LABEL\napk_01234567  é \\u{1b}[31m\\n\na");
    }
}
