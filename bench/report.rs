//! What a mode found: measurements and targets, as Markdown and as JSON.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::error::Result;
use crate::measure::Measurement;

#[derive(Debug, Serialize)]
pub struct Report {
    mode: &'static str,
    /// The machine and PostgreSQL.
    pub facts: Vec<String>,
    pub measurements: Vec<Measurement>,
    pub targets: Vec<Target>,
    pub notes: Vec<String>,
    /// Further tables, in Markdown.
    #[serde(skip)]
    pub sections: Vec<String>,
}

/// What the project promises about its speed. A target that is missed fails nothing: a busy machine must not.
#[derive(Debug, Serialize)]
pub struct Target {
    pub name: String,
    pub bounds: Vec<Bound>,
    /// One for each bound, of which there are two where the log makes a difference: with a line for each request, and
    /// with LOG_LEVEL=warn.
    pub measured: Vec<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Report {
    pub fn new(mode: &'static str, machine: String) -> Self {
        let (measurements, targets, notes, sections) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { mode, facts: vec![machine], measurements, targets, notes, sections }
    }

    /// Adds a measurement, and prints it as progress.
    pub fn add(&mut self, measured: Measurement) {
        let Measurement { name, per_second, p50_ms, p99_ms, .. } = &measured;
        let fault = measured.fault.as_deref().unwrap_or_default();
        eprintln!("{name}: {per_second:.0}/s, p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms {fault}");
        self.measurements.push(measured);
    }

    pub fn is_valid(&self) -> bool {
        self.measurements.iter().all(|measured| measured.fault.is_none())
    }

    pub fn figures(&self, name: &str, figure: impl Fn(&Measurement) -> f64) -> Vec<f64> {
        self.measurements.iter().filter(|measured| measured.name == name).map(figure).collect()
    }

    /// The median of one figure of a scenario; NaN if it was not measured.
    pub fn median(&self, name: &str, figure: impl Fn(&Measurement) -> f64) -> f64 {
        let mut values = self.figures(name, figure);
        values.sort_by(f64::total_cmp);
        match values.len() {
            0 => f64::NAN,
            count => f64::midpoint(values[(count - 1) / 2], values[count / 2]),
        }
    }

    /// Records of usage a second.
    pub fn rate(&self, name: &str) -> f64 {
        self.median(name, |measured| measured.per_second * f64::from(measured.items))
    }

    /// The scenarios in the order of their first measurement.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for measured in &self.measurements {
            if !names.contains(&measured.name.as_str()) {
                names.push(&measured.name);
            }
        }
        names
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n", self.mode);
        for fact in &self.facts {
            text += &format!("- {fact}\n");
        }
        text += &format!("\n{}\n{}", self.target_table(), self.measurement_table());
        for note in &self.notes {
            text += &format!("\n- {note}");
        }
        for section in &self.sections {
            text += &format!("\n\n{section}");
        }
        text
    }

    fn target_table(&self) -> String {
        let mut text = "| | target | measured | met |\n|---|--:|--:|---|\n".to_owned();
        for target in &self.targets {
            let mut cells: [Vec<String>; 3] = Default::default();
            for (bound, measured) in target.bounds.iter().zip(&target.measured) {
                let (text, is_met) = match bound {
                    Bound::AtLeast(bound) => (format!("≥ {bound}"), measured >= bound),
                    Bound::AtMost(bound) => (format!("≤ {bound}"), measured <= bound),
                };
                // A latency of zero was not measured.
                let met = if is_met && *measured > 0.0 { "yes" } else { "no" };
                for (cell, text) in cells.iter_mut().zip([text, shown(*measured), met.to_owned()]) {
                    cell.push(text);
                }
            }
            text += &format!("| {} | {} |\n", target.name, cells.map(|texts| texts.join(" · ")).join(" | "));
        }
        text
    }

    fn measurement_table(&self) -> String {
        let mut text = "| | items/s | p50 ms | p99 ms | batch | cores: service | PostgreSQL | rest | stolen | MiB | \
                        WAL bytes | valid |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n"
            .to_owned();
        let figures: [fn(&Measurement) -> f64; 10] = [
            |measured| measured.per_second * f64::from(measured.items),
            |measured| measured.p50_ms,
            |measured| measured.p99_ms,
            |measured| measured.batch,
            |measured| measured.cores.services,
            |measured| measured.cores.postgres.iter().sum(),
            |measured| measured.cores.rest,
            |measured| measured.cores.stolen,
            |measured| measured.memory_mib,
            |measured| measured.wal_bytes_per_request,
        ];
        for name in self.names() {
            let cells: Vec<String> = figures.iter().map(|figure| shown(self.median(name, figure))).collect();
            let of_name = self.measurements.iter().filter(|measured| measured.name == name);
            let faults: Vec<&str> = of_name.filter_map(|measured| measured.fault.as_deref()).collect();
            let verdict = if faults.is_empty() { "yes".to_owned() } else { format!("**no**: {}", faults.join("; ")) };
            text += &format!("| {name} | {} | {verdict} |\n", cells.join(" | "));
        }
        text
    }

    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("result.json"), serde_json::to_string_pretty(self)?)?;
        Ok(fs::write(dir.join("table.md"), self.markdown())?)
    }
}

/// As many digits as mean something; nothing for a figure that is zero or was not measured.
fn shown(figure: f64) -> String {
    match figure {
        _ if figure == 0.0 || figure.is_nan() => String::new(),
        _ if figure < 100.0 => format!("{figure:.2}"),
        _ => format!("{figure:.0}"),
    }
}
