//! What a mode found: printed as one Markdown table, written as JSON, as Markdown and as figures.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::Result;
use crate::measure::Measurement;

pub struct Report {
    pub mode: &'static str,
    /// The machine and PostgreSQL.
    pub facts: Vec<String>,
    pub measurements: Vec<Measurement>,
    /// What was skipped or has to be known.
    pub notes: Vec<String>,
    /// Further Markdown.
    pub sections: Vec<String>,
    /// Name of the file and its SVG.
    pub figures: Vec<(&'static str, String)>,
    /// Further facts for the JSON.
    pub details: Vec<(&'static str, Value)>,
}

impl Report {
    pub fn new(mode: &'static str) -> Self {
        let (facts, measurements, notes) = (Vec::new(), Vec::new(), Vec::new());
        Self { mode, facts, measurements, notes, sections: Vec::new(), figures: Vec::new(), details: Vec::new() }
    }

    /// Notes a measurement, and tells who waits that it is done.
    pub fn add(&mut self, measured: Measurement) {
        eprintln!(
            "round {} {}: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms {}",
            measured.round,
            measured.name,
            measured.per_second,
            measured.p50_ms,
            measured.p99_ms,
            measured.faults.join("; ")
        );
        self.measurements.push(measured);
    }

    pub fn is_valid(&self) -> bool {
        self.measurements.iter().all(|measured| measured.faults.is_empty())
    }

    /// The scenarios in the order of their first measurement.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for measured in &self.measurements {
            if !names.contains(&measured.name.as_str()) {
                names.push(&measured.name);
            }
        }
        names
    }

    /// The median over the rounds of one figure of a scenario.
    pub fn median(&self, name: &str, figure: impl Fn(&Measurement) -> f64) -> Option<f64> {
        let of_name = self.measurements.iter().filter(|measured| measured.name == name);
        let mut values: Vec<f64> = of_name.map(figure).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            count if count % 2 == 1 => Some(values[middle]),
            _ => Some(f64::midpoint(values[middle - 1], values[middle])),
        }
    }

    pub fn rate(&self, name: &str) -> Option<f64> {
        self.median(name, |measured| measured.per_second)
    }

    /// Records of usage per second.
    pub fn item_rate(&self, name: &str) -> Option<f64> {
        self.median(name, |measured| measured.per_second * f64::from(measured.items))
    }

    /// The textbook's best rate over its client counts.
    pub fn best_textbook(&self, is_hot: bool) -> Option<f64> {
        let prefix = if is_hot { "textbook, hot pair, " } else { "textbook, " };
        let names = self.names().into_iter().filter(|name| name.starts_with(prefix));
        let names = names.filter(|name| is_hot || !name.contains("hot pair"));
        names.filter_map(|name| self.rate(name)).reduce(f64::max)
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n", self.mode);
        for fact in &self.facts {
            text += &format!("- {fact}\n");
        }
        text += &format!("\n{}", self.table());
        for note in &self.notes {
            text += &format!("\n- {note}");
        }
        text += "\n";
        for section in &self.sections {
            text += &format!("\n{section}\n");
        }
        text
    }

    fn table(&self) -> String {
        // Where no textbook was measured there is nothing to compare with.
        let has_textbook = self.best_textbook(false).is_some();
        let mut columns = vec!["", "requests/s", "items/s", "p50 ms", "p99 ms"];
        columns.extend(["× textbook at 64", "× its best"].into_iter().filter(|_| has_textbook));
        columns.extend([
            "batch",
            "cores: service",
            "PostgreSQL",
            "rest",
            "stolen",
            "MiB",
            "bytes each",
            "WAL bytes each",
        ]);
        columns.push("valid");
        let mut text = format!("| {} |\n|---|{}---|\n", columns.join(" | "), "--:|".repeat(columns.len() - 2));
        for name in self.names() {
            let value = |figure: &dyn Fn(&Measurement) -> f64| self.median(name, figure).unwrap_or(0.0);
            let mut cells = vec![
                name.to_owned(),
                format!("{:.0}", value(&|measured| measured.per_second)),
                format!("{:.0}", self.item_rate(name).unwrap_or(0.0)),
                format!("{:.2}", value(&|measured| measured.p50_ms)),
                format!("{:.2}", value(&|measured| measured.p99_ms)),
            ];
            if has_textbook {
                let is_hot = name.contains("hot pair");
                let at_64 = if is_hot { "textbook, hot pair, 64 clients" } else { "textbook, 64 clients" };
                for base in [self.rate(at_64), self.best_textbook(is_hot)] {
                    let ratio = self.item_rate(name).zip(base).filter(|_| !name.starts_with("read "));
                    cells.push(ratio.map(|(rate, base)| format!("{:.1}", rate / base)).unwrap_or_default());
                }
            }
            cells.extend([
                shown(value(&|measured| measured.batch.unwrap_or(0.0)), 1),
                format!("{:.2}", value(&|measured| measured.cores.services)),
                format!("{:.2}", value(&|measured| measured.cores.postgres)),
                format!("{:.2}", value(&|measured| measured.cores.rest)),
                format!("{:.2}", value(&|measured| measured.cores.stolen)),
                shown(value(&|measured| measured.memory.unwrap_or_default().resident_bytes as f64 / 1_048_576.0), 0),
                shown(value(&Measurement::growth_per_request), 0),
                shown(value(&|measured| measured.wal_bytes_per_request), 0),
                self.verdict(name),
            ]);
            text += &format!("| {} |\n", cells.join(" | "));
        }
        text
    }

    fn verdict(&self, name: &str) -> String {
        let of_name = self.measurements.iter().filter(|measured| measured.name == name);
        let faults: Vec<&str> = of_name.flat_map(|measured| &measured.faults).map(String::as_str).collect();
        if faults.is_empty() { "yes".to_owned() } else { format!("**NO**: {}", faults.join("; ")) }
    }

    fn json(&self) -> Value {
        let summary: Vec<Value> = self
            .names()
            .iter()
            .map(|name| {
                json!({
                    "name": name,
                    "requests_per_second": self.rate(name),
                    "items_per_second": self.item_rate(name),
                    "p50_ms": self.median(name, |measured| measured.p50_ms),
                    "p99_ms": self.median(name, |measured| measured.p99_ms),
                    "batch": self.median(name, |measured| measured.batch.unwrap_or(0.0)),
                    "bytes_per_request": self.median(name, Measurement::growth_per_request),
                    "wal_bytes_per_request": self.median(name, |measured| measured.wal_bytes_per_request),
                })
            })
            .collect();
        let mut whole = json!({
            "mode": self.mode,
            "facts": self.facts,
            "valid": self.is_valid(),
            "summary": summary,
            "measurements": self.measurements,
            "notes": self.notes,
        });
        for (name, value) in &self.details {
            whole[*name] = value.clone();
        }
        whole
    }

    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("result.json"), serde_json::to_string_pretty(&self.json())?)?;
        fs::write(dir.join("table.md"), self.markdown())?;
        for (name, svg) in &self.figures {
            fs::write(dir.join(name), svg)?;
        }
        Ok(())
    }
}

/// A figure that is not there is left out.
fn shown(figure: f64, decimals: usize) -> String {
    if figure == 0.0 { String::new() } else { format!("{figure:.decimals$}") }
}
