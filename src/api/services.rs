//! Services: registering, listing, showing and switching them.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::command::{Command, Reply};
use crate::domain::money::PRICE_MAX;
use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::domain::service::{METADATA_TEXT_MAX, Metadata, Registration, Service};
use crate::domain::usage::integer;
use crate::store::services;

use super::exchange::{Exchange, Failure, Read, Write, json, respond};
use super::fields;
use super::state::ApiState;

pub async fn register(State(state): State<ApiState>, request: Request) -> Result<Response, Failure> {
    let write = Write::read(request, &[]).await?;
    let command = parse_registration(&write.body).map(Command::RegisterService);
    write.submit(&state, command).await
}

pub async fn disable(State(state): State<ApiState>, request: Request) -> Result<Response, Failure> {
    switch(&state, request, true).await
}

pub async fn enable(State(state): State<ApiState>, request: Request) -> Result<Response, Failure> {
    switch(&state, request, false).await
}

async fn switch(state: &ApiState, request: Request, disabled: bool) -> Result<Response, Failure> {
    let write = Write::read(request, &[]).await?;
    let command = path_service(&write.exchange).map(|service_id| Command::SwitchService { service_id, disabled });
    write.submit(state, command).await
}

pub async fn show(State(state): State<ApiState>, Read(exchange): Read) -> Result<Response, Failure> {
    let service_id = path_service(&exchange)?;
    let mut connection = state.connection().await?;
    let service = services::find(&mut connection, &exchange.identity.tenant, &service_id).await?;
    Ok(json(&service.ok_or(Refusal::ServiceNotRegistered(service_id))?))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List {
    services: Vec<Service>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page_count: Option<i64>,
}

pub async fn list(
    State(state): State<ApiState>,
    headers: HeaderMap,
    Read(exchange): Read,
) -> Result<Response, Failure> {
    let query = &exchange.query;
    let text = |name: &str| query.text(name).filter(|text| !text.is_empty()).map(str::to_owned);
    let filter = services::Filter {
        prefix: text("prefix"),
        contains: text("q"),
        disabled: query.flag("disabled"),
        price_min: query.integer("minPrice"),
        price_max: query.integer("maxPrice"),
    };
    let limit = query.bounded("limit", 200, 1, 1000);
    let page = text("page").map(|_| query.bounded("page", 1, 1, 1 << 40));
    let offset = page.map_or(0, |page| (page - 1) * limit);
    let mut connection = state.connection().await?;
    let (services, count) = services::list(&mut connection, &exchange.identity.tenant, &filter, limit, offset).await?;
    let page_count = page.map(|_| ((count + limit - 1) / limit).max(1));
    Ok(with_etag(&headers, Reply::json(200, &List { services, page, page_count })))
}

/// Adds a weak ETag of the body, and answers 304 where the client has it.
fn with_etag(headers: &HeaderMap, reply: Reply) -> Response {
    let digest = Sha256::digest(reply.body.as_deref().unwrap_or_default());
    let opaque: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let tag = format!("W/\"{opaque}\"");
    let is_known = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == &tag[2..]);
    let mut response = if is_known { StatusCode::NOT_MODIFIED.into_response() } else { respond(reply) };
    response.headers_mut().insert(header::ETAG, HeaderValue::from_str(&tag).expect("hexadecimal"));
    response
}

fn path_service(exchange: &Exchange) -> Result<ServiceId, Refusal> {
    ServiceId::parse(exchange.parameter("serviceId")).ok_or(Refusal::Service)
}

fn parse_registration(body: &Value) -> Result<Registration, Refusal> {
    fields::check(body, &["serviceId", "priceStroops", "description", "owner"])?;
    let service_id =
        body.get("serviceId").and_then(Value::as_str).and_then(ServiceId::parse).ok_or(Refusal::Service)?;
    let price_stroops = body.get("priceStroops").and_then(integer).filter(|price| (0..=PRICE_MAX).contains(price));
    let price_stroops = price_stroops.ok_or(Refusal::Price)?;
    let members = body.as_object().ok_or(Refusal::BodyNotObject)?;
    let has_metadata = members.contains_key("description") || members.contains_key("owner");
    let metadata = has_metadata.then(|| parse_metadata(members)).transpose()?;
    Ok(Registration { service_id, price_stroops, metadata })
}

fn parse_metadata(members: &Map<String, Value>) -> Result<Metadata, Refusal> {
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    let fits = |text: &&str| fields::length(text) <= METADATA_TEXT_MAX;
    let description = text("description").filter(fits).ok_or(Refusal::Description)?;
    let owner = text("owner").filter(fits).filter(|owner| !owner.is_empty()).ok_or(Refusal::Owner)?;
    Ok(Metadata { description: description.to_owned(), owner: owner.to_owned() })
}
