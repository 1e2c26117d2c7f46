//! Statistics: maintained totals of the caller's tenant or, for the operator, of all tenants.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::cell::gather::{Gathered, gather};
use crate::command::Reply;
use crate::domain::caller::Tenant;
use crate::domain::money::{Count, Price};
use crate::domain::refusal::Refusal;
use crate::query::stats::{self, Figures};
use crate::store::totals::{ServiceLine, ServiceSlice};

use crate::api::openapi::description::{CURSOR, Description, limit};
use crate::api::request::errors::ApiError;
use crate::api::request::etag::Tagged;
use crate::api::request::query::encode_cursor;
use crate::api::request::read::ReadRequest;
use crate::api::state::{ApiState, Cell, HOME};

/// How long the statistics of a tenant in another cell wait for the home cell.
const HOME_LIMIT: Duration = Duration::from_secs(2);

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    total_services: i64,
    total_api_keys: i64,
    total_webhooks: i64,
    usage_keys: i64,
    total_requests: Count,
    lifetime_requests: Count,
    unique_agents: i64,
    /// Stroops, always as a decimal string.
    #[schemars(regex(pattern = "^[0-9]+$"))]
    settled_stroops_total: String,
    settlements_total: i64,
    paused: bool,
    services_breakdown: Vec<Line>,
    services_breakdown_total: i64,
    next_services_breakdown_cursor: Option<String>,
    /// Cells that did not answer in time. Their figures are missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing_cells: Vec<String>,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "StatsLine")]
struct Line {
    tenant_id: String,
    service_id: String,
    price_stroops: Price,
    requests_outstanding: Count,
}

pub const SHOW: Description = Description::of(
    "getStats",
    "Get statistics",
    "Returns maintained totals of the tenant, or of all tenants for the operator, and one page of services \
         with their outstanding requests.",
)
.query(&[limit(50, 500), CURSOR])
.answer::<Stats>(
    200,
    r#"{"totalServices":1,"totalApiKeys":0,"totalWebhooks":0,"usageKeys":1,"totalRequests":3,"lifetimeRequests":10,
        "uniqueAgents":1,"settledStroopsTotal":"1750","settlementsTotal":1,"paused":false,"servicesBreakdown":
        [{"tenantId":"public","serviceId":"weather","priceStroops":250,"requestsOutstanding":3}],
        "servicesBreakdownTotal":1,"nextServicesBreakdownCursor":null}"#,
)
.conditional();

pub async fn show(
    State(state): State<ApiState>,
    headers: HeaderMap,
    request: ReadRequest,
) -> Result<Response, ApiError> {
    let limit = request.query.bounded("limit", 50, 1, 500);
    let cursor = request.query.cursor()?;
    let after = match &cursor {
        Some(cursor) => {
            cursor.split_once("::").filter(|(tenant, _)| !tenant.is_empty()).ok_or(Refusal::CursorMalformed)?
        }
        None => ("", ""),
    };
    let identity = &request.identity;
    let tenant = (!identity.sees_all_tenants()).then(|| identity.tenant.clone());
    let slice = ServiceSlice { tenant, after: (after.0.to_owned(), after.1.to_owned()), limit: limit + 1 };
    let (figures, missing) = load(&state, &request, &slice).await?;
    let Figures { totals, lines } = &*figures;
    let has_more = lines.len() as i64 > limit;
    let lines = &lines[..lines.len().min(limit as usize)];
    let last = lines.last().filter(|_| has_more);
    let stats = Stats {
        total_services: totals.services,
        total_api_keys: totals.api_keys,
        total_webhooks: totals.webhooks,
        usage_keys: totals.pairs,
        total_requests: Count(totals.outstanding),
        lifetime_requests: Count(totals.recorded),
        unique_agents: totals.agents,
        settled_stroops_total: totals.settled_stroops.to_string(),
        settlements_total: totals.settlements,
        paused: state.runtime_config.is_paused(),
        next_services_breakdown_cursor: last
            .map(|line| encode_cursor(&format!("{}::{}", line.tenant_id, line.service_id))),
        services_breakdown_total: totals.services,
        services_breakdown: lines.iter().map(Line::from).collect(),
        missing_cells: missing,
    };
    let view = format!("{} {limit} {cursor:?}", owner(&slice));
    Ok(Tagged::new(Reply::json(200, &stats), &view).answer(&headers))
}

/// The figures, and the ids of the cells that are missing in them.
async fn load<'a>(
    state: &'a ApiState,
    request: &ReadRequest,
    slice: &'a ServiceSlice,
) -> Result<(Arc<Figures>, Vec<String>), Refusal> {
    let read = |cell: &'a Cell, deadline| cell.polled.stats.load(&cell.reader, slice.clone(), deadline);
    if slice.tenant.is_none() {
        let Gathered { values, missing } = gather(&state.cells, request.deadline, read).await?;
        return Ok((stats::sum(values.into_iter().map(|(_, figures)| figures), slice.limit), missing));
    }
    let figures = read(request.cell(state), request.deadline).await?;
    if request.identity.cell == HOME {
        return Ok((figures, Vec::new()));
    }
    // The API keys of all tenants are in the home cell.
    let home = state.home();
    let of_home = match home.availability.check() {
        Ok(()) => read(home, request.deadline.min(Instant::now() + HOME_LIMIT)).await,
        Err(refusal) => Err(refusal),
    };
    match of_home {
        Ok(of_home) => Ok((stats::sum([figures, of_home].into_iter(), slice.limit), Vec::new())),
        Err(_) => Ok((figures, vec![home.id.to_string()])),
    }
}

/// Identifies whose totals `slice` is shown with, for the ETag. No tenant has the id `*`.
fn owner(slice: &ServiceSlice) -> &str {
    slice.tenant.as_ref().map_or("*", Tenant::as_str)
}

impl From<&ServiceLine> for Line {
    fn from(line: &ServiceLine) -> Self {
        Self {
            tenant_id: line.tenant_id.clone(),
            service_id: line.service_id.clone(),
            price_stroops: line.price_stroops,
            requests_outstanding: line.outstanding,
        }
    }
}
