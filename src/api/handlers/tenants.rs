//! The tenants with their totals, for the operator.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::cell::gather::gather;
use crate::domain::caller::Tenant;
use crate::domain::cell::CellId;
use crate::domain::money::{Count, Stroops};
use crate::domain::refusal::Refusal;
use crate::query::tenants;
use crate::store::directory::Resident;
use crate::store::totals::{Due, Totals};

use crate::api::openapi::description::{CURSOR, Description, limit};
use crate::api::request::errors::ApiError;
use crate::api::request::query::encode_cursor;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::state::{ApiState, Cell};

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "TenantList")]
struct List {
    items: Vec<Line>,
    next_cursor: Option<String>,
    /// Cells that did not answer in time. Their tenants are missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing_cells: Vec<String>,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "TenantTotals")]
struct Line {
    tenant_id: String,
    requests_outstanding: Count,
    /// What the outstanding requests would cost at the current prices.
    outstanding_stroops: Stroops,
    /// Outstanding requests to services that are not registered.
    unpriced_requests: Count,
    settlements: i64,
    settled_stroops: Stroops,
    services: i64,
    webhooks: i64,
    api_keys: i64,
}

pub const LIST: Description = Description::of(
    "listTenants",
    "List tenants",
    "Returns the tenants by id, with their outstanding and settled amounts.",
)
.query(&[limit(50, 500), CURSOR])
.answer::<List>(
    200,
    r#"{"items":[{"tenantId":"public","requestsOutstanding":3,"outstandingStroops":750,"unpricedRequests":0,"settlements":1,
        "settledStroops":1750,"services":1,"webhooks":0,"apiKeys":0}],"nextCursor":null}"#,
);

pub async fn list(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let limit = request.query.bounded("limit", 50, 1, 500);
    let after = request.query.cursor()?.unwrap_or_default();
    let deadline = request.deadline;
    let page = tenants::list(&state.home().reader, &after, limit, deadline).await?;
    let next_cursor = page.last_if_more().map(|(last, _)| encode_cursor(last.tenant.as_str()));
    let cell_of = |resident: &Resident| resident.cell.clone().unwrap_or_else(|| state.home().id.clone());
    let mut tenants: HashMap<CellId, Vec<Tenant>> = HashMap::new();
    for (resident, _) in &page.rows {
        tenants.entry(cell_of(resident)).or_default().push(resident.tenant.clone());
    }
    let gathered = gather(&state.cells, deadline, |cell, deadline| load(cell, tenants.get(&cell.id), deadline)).await?;
    let totals: HashMap<Tenant, (Totals, Due)> = gathered.values.into_iter().flat_map(|(_, totals)| totals).collect();
    let (mut items, mut missing_cells) = (Vec::new(), BTreeSet::new());
    for (resident, api_keys) in page.rows {
        match totals.get(&resident.tenant) {
            Some((totals, due)) => items.push(Line::new(&resident.tenant, totals, due, api_keys)),
            None => drop(missing_cells.insert(cell_of(&resident).to_string())),
        }
    }
    Ok(json(&List { items, next_cursor, missing_cells: missing_cells.into_iter().collect() }))
}

/// The totals of those tenants of a page that live in `cell`.
async fn load(
    cell: &Cell,
    tenants: Option<&Vec<Tenant>>,
    deadline: Instant,
) -> Result<Vec<(Tenant, (Totals, Due))>, Refusal> {
    let Some(tenants) = tenants else { return Ok(Vec::new()) };
    let totals = tenants::totals(&cell.reader, tenants, deadline).await?;
    Ok(tenants.iter().cloned().zip(totals).collect())
}

impl Line {
    fn new(tenant: &Tenant, totals: &Totals, due: &Due, api_keys: i64) -> Self {
        Self {
            tenant_id: tenant.as_str().to_owned(),
            requests_outstanding: Count(totals.outstanding),
            outstanding_stroops: due.total_stroops,
            unpriced_requests: due.unpriced_requests,
            settlements: totals.settlements,
            settled_stroops: totals.settled_stroops,
            services: totals.services,
            webhooks: totals.webhooks,
            api_keys,
        }
    }
}
