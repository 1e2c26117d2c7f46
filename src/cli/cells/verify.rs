//! `cells verify`: the audit of each cell, and where each tenant lives.

use std::collections::HashMap;

use sqlx::PgConnection;
use tokio::sync::mpsc;

use crate::cli::error::CliError;
use crate::cli::output::OutputError;
use crate::cli::progress_bar::ProgressBar;
use crate::cli::session::Session;
use crate::domain::caller::Tenant;
use crate::domain::cell::{CellId, Residence};
use crate::settings::cells::CellSettings;
use crate::start;
use crate::store::{audit, directory, server, tenant_moves};

use super::listed;

/// Returns whether everything adds up.
pub async fn run(session: &Session<'_>) -> Result<bool, CliError> {
    let cells = &session.settings.cells;
    let deployment = start::deployment(listed::home(session)).await?;
    let progress = ProgressBar::of(cells.len() as u64, "cells");
    let mut findings = 0;
    let mut residents: HashMap<Tenant, Vec<CellId>> = HashMap::new();
    for cell in cells {
        findings += audit_cell(session, cell, deployment.as_deref()).await?;
        for tenant in tenant_moves::residents(&mut listed::connect(cell).await?).await? {
            residents.entry(tenant).or_default().push(cell.id.clone());
        }
        progress.add(1);
    }
    let mut home = listed::connect(listed::home(session)).await?;
    let directory: HashMap<Tenant, CellId> = tenant_moves::directory(&mut home).await?.into_iter().collect();
    drop(progress);
    // A tenant whose first key could not be created is used by nobody, and the home cell does not know it.
    for tenant in residents.keys().cloned().collect::<Vec<_>>() {
        if directory::find(&mut home, &tenant).await?.is_none() {
            residents.remove(&tenant);
        }
    }
    let is_wrong = |(tenant, found): &(&Tenant, &Vec<CellId>)| {
        found.as_slice() != [directory.get(*tenant).unwrap_or(&listed::home(session).id).clone()]
    };
    let mut doubtful: Vec<&Tenant> = residents.iter().filter(is_wrong).map(|(tenant, _)| tenant).collect();
    doubtful.extend(directory.keys().filter(|tenant| !residents.contains_key(tenant)));
    doubtful.sort_unstable_by_key(|tenant| tenant.as_str());
    for tenant in doubtful {
        if let Some(finding) = check_again(session, &mut home, tenant).await? {
            findings += 1;
            print(session, finding).await?;
        }
    }
    if findings == 0 {
        print(session, format!("{} cells and {} tenants add up", cells.len(), residents.len())).await?;
    }
    Ok(findings == 0)
}

/// What is wrong with where a tenant lives. The cells were read one after the other, and the tenant may have been moved
/// meanwhile: nothing is wrong if it is being moved, or if the directory has changed.
async fn check_again(
    session: &Session<'_>,
    home: &mut PgConnection,
    tenant: &Tenant,
) -> Result<Option<String>, CliError> {
    let before = (tenant_moves::find(home, tenant).await?, tenant_moves::cell_of(home, tenant).await?);
    let mut found = Vec::new();
    for cell in &session.settings.cells {
        let residence = tenant_moves::residence(&mut listed::connect(cell).await?, tenant).await?;
        if residence.is_some_and(|residence| residence != Residence::Elsewhere) {
            found.push(&cell.id);
        }
    }
    let after = (tenant_moves::find(home, tenant).await?, tenant_moves::cell_of(home, tenant).await?);
    let named = after.1.as_ref().unwrap_or(&listed::home(session).id);
    if before != after || after.0.is_some() || found == [named] {
        return Ok(None);
    }
    let found: Vec<&str> = found.into_iter().map(CellId::as_str).collect();
    let lives_in = if found.is_empty() { "no cell".to_owned() } else { found.join(" and ") };
    Ok(Some(format!("{tenant} lives in {lives_in}, but the directory says {named}")))
}

/// Prints what is wrong in a cell. Returns the number of findings.
async fn audit_cell(session: &Session<'_>, cell: &CellSettings, deployment: Option<&str>) -> Result<usize, CliError> {
    let mut connection = listed::connect(cell).await?;
    start::check_cell(&mut connection, &cell.id, deployment).await?;
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
