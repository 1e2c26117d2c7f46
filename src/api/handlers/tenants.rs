//! The tenants with their totals, for the operator.

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::caller::Tenant;
use crate::domain::money::{Count, Stroops};
use crate::query::tenants::{self, TenantTotals};

use crate::api::openapi::description::{CURSOR, Description, limit};
use crate::api::request::errors::ApiError;
use crate::api::request::query::encode_cursor;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::state::ApiState;

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "TenantList")]
struct List {
    items: Vec<Line>,
    next_cursor: Option<String>,
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
    let page = tenants::list(&state.reader, &after, limit, request.deadline).await?;
    let next_cursor = page.last_if_more().map(|last| encode_cursor(last.tenant.as_str()));
    Ok(json(&List { items: page.rows.iter().map(Line::from).collect(), next_cursor }))
}

impl From<&TenantTotals> for Line {
    fn from(TenantTotals { tenant, totals, due }: &TenantTotals) -> Self {
        Self {
            tenant_id: Tenant::as_str(tenant).to_owned(),
            requests_outstanding: Count(totals.outstanding),
            outstanding_stroops: due.total_stroops,
            unpriced_requests: due.unpriced_requests,
            settlements: totals.settlements,
            settled_stroops: totals.settled_stroops,
            services: totals.services,
            webhooks: totals.webhooks,
            api_keys: totals.api_keys,
        }
    }
}
