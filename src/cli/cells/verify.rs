//! `cells verify`: the audit of each cell, and where each tenant lives.

use std::collections::HashMap;

use tokio::sync::mpsc;

use crate::cli::error::CliError;
use crate::cli::output::OutputError;
use crate::cli::progress_bar::ProgressBar;
use crate::cli::session::Session;
use crate::domain::caller::Tenant;
use crate::domain::cell::CellId;
use crate::settings::cells::CellSettings;
use crate::start;
use crate::store::{audit, directory, server, tenant_moves};

use super::listed;

/// Returns whether everything adds up.
pub async fn run(session: &Session<'_>) -> Result<bool, CliError> {
    let cells = &session.settings.cells;
    let progress = ProgressBar::of(cells.len() as u64, "cells");
    let mut findings = 0;
    let mut residents: HashMap<Tenant, Vec<CellId>> = HashMap::new();
    for cell in cells {
        findings += audit_cell(session, cell).await?;
        for tenant in tenant_moves::residents(&mut listed::connect(cell).await?).await? {
            residents.entry(tenant).or_default().push(cell.id.clone());
        }
        progress.add(1);
    }
    // Read last: a tenant that moved meanwhile may be found twice, so those that move are left out.
    let mut home = listed::connect(listed::home(session)).await?;
    let moving = tenant_moves::list(&mut home).await?;
    let directory: HashMap<Tenant, CellId> = tenant_moves::directory(&mut home).await?.into_iter().collect();
    drop(progress);
    // A tenant whose first key could not be created is used by nobody, and the home cell does not know it.
    for tenant in residents.keys().cloned().collect::<Vec<_>>() {
        if directory::find(&mut home, &tenant).await?.is_none() {
            residents.remove(&tenant);
        }
    }
    let mut wrong: Vec<String> = residents
        .iter()
        .filter(|(tenant, _)| !moving.iter().any(|unfinished| unfinished.tenant == **tenant))
        .filter_map(|(tenant, found)| {
            let named = directory.get(tenant).unwrap_or(&listed::home(session).id);
            (found.as_slice() != [named.clone()]).then(|| {
                let found: Vec<&str> = found.iter().map(CellId::as_str).collect();
                format!("{tenant} lives in {}, but the directory says {named}", found.join(" and "))
            })
        })
        .collect();
    let lost = directory.iter().filter(|(tenant, _)| !residents.contains_key(tenant));
    wrong.extend(lost.map(|(tenant, named)| format!("{tenant} lives in no cell, but the directory says {named}")));
    wrong.sort();
    findings += wrong.len();
    for finding in wrong {
        print(session, finding).await?;
    }
    if findings == 0 {
        print(session, format!("{} cells and {} tenants add up", cells.len(), residents.len())).await?;
    }
    Ok(findings == 0)
}

/// Prints what is wrong in a cell. Returns the number of findings.
async fn audit_cell(session: &Session<'_>, cell: &CellSettings) -> Result<usize, CliError> {
    let mut connection = listed::connect(cell).await?;
    start::check_identity(&mut connection, &cell.id, false).await?;
    // The checks of large tables take long.
    server::unbound_statements(&mut connection).await?;
    let mut snapshot = server::begin_snapshot(&mut connection).await?;
    let (sender, mut receiver) = mpsc::channel(1);
    let tell = async move {
        let mut findings = 0;
        while let Some(finding) = receiver.recv().await {
            findings += 1;
            print(session, format!("{}: {finding}", cell.id)).await?;
        }
        Ok::<usize, CliError>(findings)
    };
    let (audited, findings) = tokio::join!(audit::everything(&mut snapshot, sender), tell);
    audited?;
    findings
}

/// A reader that has closed the pipe does not end the verification, whose exit code counts.
async fn print(session: &Session<'_>, line: String) -> Result<(), CliError> {
    match session.print(line).await {
        Err(CliError::Output(OutputError::Closed)) => Ok(()),
        printed => printed,
    }
}
