//! What PostgreSQL does for each statement of the service, with real parameters and plans: auto_explain writes every
//! plan to the server's log while a few requests of each kind run, and here they are read back, one per statement.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use sqlx::PgConnection;

use crate::{Result, postgres};

/// From the next connection on, every statement of `database` is explained in the log.
pub async fn switch_on(connection: &mut PgConnection, database: &str) -> Result<()> {
    for (name, value) in [
        ("session_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
        ("auto_explain.log_analyze", "on"),
        ("auto_explain.log_buffers", "on"),
        ("auto_explain.log_timing", "off"),
        ("auto_explain.log_level", "log"),
    ] {
        postgres::run(connection, &format!("ALTER DATABASE {database} SET {name} = '{value}'")).await?;
    }
    Ok(())
}

pub async fn switch_off(connection: &mut PgConnection, database: &str) -> Result<()> {
    postgres::run(connection, &format!("ALTER DATABASE {database} RESET ALL")).await
}

/// The last plan of each statement that the log shows behind `offset`, by the statement's name. Of two forms of one
/// statement the shorter is the first.
pub fn read(log: &Path, offset: u64) -> Result<BTreeMap<String, String>> {
    let mut file = fs::File::open(log)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let mut plans = BTreeMap::new();
    for ((name, _, _), plan) in parse(&String::from_utf8_lossy(&text)) {
        let name = if plans.contains_key(&name) { format!("{name}, longer form") } else { name };
        plans.insert(name, plan);
    }
    Ok(plans)
}

/// Plans by the name, length and text of their statement. An entry of auto_explain is a line with "plan:" and then lines
/// that begin with a tab.
fn parse(text: &str) -> BTreeMap<(String, usize, String), String> {
    let mut plans = BTreeMap::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.contains("  plan:") {
            continue;
        }
        let mut entry = Vec::new();
        while let Some(own) = lines.next_if(|line| line.starts_with('\t')) {
            entry.push(own.trim_start_matches('\t'));
        }
        let Some(name) = entry.first().and_then(|first| first.strip_prefix("Query Text: -- ")) else { continue };
        // The plan begins at the first line that has a cost; what stands before is the statement.
        let start = entry.iter().position(|line| line.contains("(cost=")).unwrap_or(entry.len());
        let statement = entry[1..start].join("\n");
        plans.insert((name.trim().to_owned(), statement.len(), statement), entry[start..].join("\n"));
    }
    plans
}

/// The statements the program is built with that have no plan here.
pub fn missing(plans: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx"))? {
        let statement: serde_json::Value = serde_json::from_str(&fs::read_to_string(entry?.path())?)?;
        let first_line = statement["query"].as_str().and_then(|query| query.lines().next()?.strip_prefix("-- "));
        missing.extend(first_line.map(str::to_owned).filter(|name| !plans.contains_key(name)));
    }
    missing.sort();
    missing.dedup();
    Ok(missing)
}

/// All plans, and at the top what none of them may do: read a large table from end to end, or compile itself.
pub fn markdown(plans: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (name, plan) in plans {
        let scans = plan.lines().filter(|line| line.contains("Seq Scan on")).map(|line| format!("`{}`", line.trim()));
        let mut findings: Vec<String> = scans.collect();
        if plan.contains("JIT:") {
            findings.push("JIT".to_owned());
        }
        if !findings.is_empty() {
            text += &format!("- {name}: {}\n", findings.join(", "));
        }
    }
    let findings = if text.is_empty() { "None.\n".to_owned() } else { text };
    let mut text = format!("#### Sequential scans and compiled plans\n\n{findings}\n#### Plans\n");
    for (name, plan) in plans {
        text += &format!("\n`{name}`\n\n```\n{plan}\n```\n");
    }
    text
}
