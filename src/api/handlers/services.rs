//! Services: register, list, read, change, enable, disable and delete them.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::command::answers::{Registered, Results, ServiceMetadata, ServicePrice, ServiceState};
use crate::command::{Reply, TransactionalCommand};
use crate::domain::money::Price;
use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::domain::service::{METADATA_TEXT_MAX, Metadata, PricedService, Registration, Service, ServiceEdit};
use crate::domain::usage::integer;
use crate::query::page::Pages;
use crate::query::services;
use crate::store::services::Filter;

use crate::api::openapi::bodies;
use crate::api::openapi::description::{Description, PAGE, flag, limit, price, text};
use crate::api::request::errors::ApiError;
use crate::api::request::etag::Tagged;
use crate::api::request::fields;
use crate::api::request::path::ServicePath;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::json;
use crate::api::request::write::WriteRequest;
use crate::api::state::ApiState;

pub const REGISTER: Description = Description::of(
    "registerService",
    "Register a service",
    "Creates the service, or sets its price if it exists. Metadata that is not sent stays unchanged. Send \
         `description` and `owner` together or not at all.",
)
.body(bodies::SERVICE, r#"{"serviceId":"weather","priceStroops":250}"#)
.answer::<Registered<'static>>(201, r#"{"serviceId":"weather","priceStroops":250}"#)
.answer::<Registered<'static>>(200, r#"{"serviceId":"weather","priceStroops":250}"#)
.refuses(&["store_capacity_exceeded"]);

pub async fn register(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let command = parse_registration(&write.body).map(TransactionalCommand::RegisterService);
    write.submit(&state, command).await
}

pub const REGISTER_BULK: Description = Description::of(
    "registerServicesBulk",
    "Register services in bulk",
    "Creates or updates services. Each item is handled separately, and the results are in the order of the items.",
)
.body(bodies::SERVICES, r#"{"items":[{"serviceId":"weather","priceStroops":250}]}"#)
.answer::<Results<'static>>(
    201,
    r#"{"results":[{"index":0,"ok":true,"serviceId":"weather","priceStroops":250,"created":true}]}"#,
);

pub async fn register_bulk(State(state): State<ApiState>, write: WriteRequest) -> Result<Response, ApiError> {
    let command = parse_items(&write.body, state.runtime_config.limits().bulk_max_items)
        .map(TransactionalCommand::RegisterServices);
    write.submit(&state, command).await
}

pub const SET_PRICE: Description = Description::of(
    "setServicePrice",
    "Set the price of a service",
    "The new price applies from the next settlement on, also to usage that is already recorded.",
)
.body(bodies::PRICE, r#"{"priceStroops":300}"#)
.answer::<ServicePrice>(200, r#"{"serviceId":"weather","priceStroops":300}"#)
.refuses(&["not_found"]);

pub async fn set_price(
    State(state): State<ApiState>,
    service: Result<ServicePath, ApiError>,
    write: WriteRequest,
) -> Result<Response, ApiError> {
    let edit = parse_price(&write.body).map(ServiceEdit::Price);
    write.submit(&state, service.map(|service| change(service, edit))).await
}

pub const SET_METADATA: Description = Description::of(
    "setServiceMetadata",
    "Set service metadata",
    "Replaces the description and the owner of the service.",
)
.body(bodies::METADATA, r#"{"description":"Forecasts","owner":"ops"}"#)
.answer::<ServiceMetadata<'static>>(200, r#"{"serviceId":"weather","description":"Forecasts","owner":"ops"}"#)
.refuses(&["not_found"]);

pub async fn set_metadata(
    State(state): State<ApiState>,
    service: Result<ServicePath, ApiError>,
    write: WriteRequest,
) -> Result<Response, ApiError> {
    let edit = parse_metadata(&write.body).map(ServiceEdit::Metadata);
    write.submit(&state, service.map(|service| change(service, edit))).await
}

pub const SET_DISABLED: Description = Description::of(
    "setServiceDisabled",
    "Set whether a service is disabled",
    "Disables or enables the service without an event.",
)
.body(bodies::DISABLED, r#"{"disabled":true}"#)
.answer::<ServiceState<'static>>(200, r#"{"serviceId":"weather","disabled":true}"#)
.refuses(&["not_found"]);

pub async fn set_disabled(
    State(state): State<ApiState>,
    service: Result<ServicePath, ApiError>,
    write: WriteRequest,
) -> Result<Response, ApiError> {
    // Unlike the other changes, this one is validated before the service is looked up.
    let command = match service {
        Ok(service) => parse_disabled(&write.body).map(|disabled| change(service, Ok(ServiceEdit::Disabled(disabled)))),
        Err(error) => Err(error.into()),
    };
    write.submit(&state, command).await
}

fn change(ServicePath(service_id): ServicePath, edit: Result<ServiceEdit, Refusal>) -> TransactionalCommand {
    TransactionalCommand::ChangeService { service_id, edit }
}

pub const REMOVE: Description = Description::of(
    "deleteService",
    "Delete a service",
    "Deletes the service with its metadata and its state. Its pairs and what is outstanding stay.",
)
.empty()
.refuses(&["not_found"]);

pub async fn remove(
    State(state): State<ApiState>,
    service: Result<ServicePath, ApiError>,
    write: WriteRequest,
) -> Result<Response, ApiError> {
    let command = service.map(|ServicePath(service_id)| TransactionalCommand::DeleteService(service_id));
    write.submit(&state, command).await
}

pub const DISABLE: Description = Description::of(
    "disableService",
    "Disable a service",
    "Refuses further usage of the service with `service_disabled`. Recorded usage can still be settled. \
         Each call records an event.",
)
.answer::<ServiceState<'static>>(200, r#"{"serviceId":"weather","disabled":true}"#)
.refuses(&["not_found"]);

pub async fn disable(
    State(state): State<ApiState>,
    service: Result<ServicePath, ApiError>,
    write: WriteRequest,
) -> Result<Response, ApiError> {
    write.submit(&state, service.map(|service| set_enabled(service, false))).await
}

pub const ENABLE: Description = Description::of(
    "enableService",
    "Enable a service",
    "Accepts usage of the service again. Each call records an event.",
)
.answer::<ServiceState<'static>>(200, r#"{"serviceId":"weather","disabled":false}"#)
.refuses(&["not_found"]);

pub async fn enable(
    State(state): State<ApiState>,
    service: Result<ServicePath, ApiError>,
    write: WriteRequest,
) -> Result<Response, ApiError> {
    write.submit(&state, service.map(|service| set_enabled(service, true))).await
}

fn set_enabled(ServicePath(service_id): ServicePath, enabled: bool) -> TransactionalCommand {
    TransactionalCommand::SetServiceEnabled { service_id, enabled }
}

pub const SHOW: Description = Description::of(
    "getService",
    "Get a service",
    "Returns the price, the state and, if set, the metadata of the service.",
)
.answer::<Service>(
    200,
    r#"{"serviceId":"weather","priceStroops":250,"disabled":false,"description":"Forecasts","owner":"ops"}"#,
)
.refuses(&["not_found"]);

pub async fn show(
    State(state): State<ApiState>,
    request: ReadRequest,
    ServicePath(service_id): ServicePath,
) -> Result<Response, ApiError> {
    let cell = request.cell(&state);
    let service = services::find(&cell.reader, request.tenant(), &service_id, request.deadline).await?;
    Ok(json(&service.ok_or(Refusal::ServiceNotRegistered(service_id))?))
}

pub const METADATA: Description = Description::of(
    "getServiceMetadata",
    "Get service metadata",
    "Returns the description and the owner, or 404 if the service has none.",
)
.answer::<ServiceMetadata<'static>>(200, r#"{"serviceId":"weather","description":"Forecasts","owner":"ops"}"#)
.refuses(&["not_found"]);

pub async fn metadata(
    State(state): State<ApiState>,
    request: ReadRequest,
    ServicePath(service_id): ServicePath,
) -> Result<Response, ApiError> {
    let cell = request.cell(&state);
    let service = services::find(&cell.reader, request.tenant(), &service_id, request.deadline).await?;
    let metadata = service.and_then(|service| service.metadata);
    let metadata = metadata.ok_or_else(|| Refusal::NoMetadata(service_id.clone()))?;
    Ok(json(&ServiceMetadata { service_id: &service_id, metadata: &metadata }))
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ServiceList")]
struct List {
    services: Vec<Service>,
    #[serde(flatten)]
    pages: Option<Pages>,
}

pub const LIST: Description = Description::of(
    "listServices",
    "List services",
    "Returns the services that match all filters, in order of creation.",
)
.query(&[
    text("prefix", "Text that the id starts with."),
    text("q", "Text that the id contains, in upper or lower case."),
    flag("disabled", "State of the services to return."),
    price("minPrice", "Lowest price to return."),
    price("maxPrice", "Highest price to return."),
    limit(200, 1000),
    PAGE,
])
.answer::<List>(200, r#"{"services":[{"serviceId":"weather","priceStroops":250,"disabled":false}]}"#)
.conditional();

pub async fn list(
    State(state): State<ApiState>,
    headers: HeaderMap,
    request: ReadRequest,
) -> Result<Response, ApiError> {
    let query = &request.query;
    let text = |name: &str| query.text(name).filter(|text| !text.is_empty()).map(str::to_owned);
    let filter = Filter {
        prefix: text("prefix"),
        contains: text("q"),
        disabled: query.flag("disabled"),
        price_min: query.integer("minPrice"),
        price_max: query.integer("maxPrice"),
    };
    let slice = query.slice(200, 1000);
    let tenant = request.tenant();
    let cell = request.cell(&state);
    let (services, count) = services::list(&cell.reader, tenant, &filter, slice, request.deadline).await?;
    Ok(Tagged::new(Reply::json(200, &List { services, pages: slice.pages(count) }), "").answer(&headers))
}

fn parse_registration(body: &Value) -> Result<Registration, Refusal> {
    fields::check(body, &["serviceId", "priceStroops", "description", "owner"])?;
    let PricedService { service_id, price_stroops } = parse_item(body)?;
    let has_metadata = body.get("description").is_some() || body.get("owner").is_some();
    let metadata = has_metadata.then(|| parse_metadata(body)).transpose()?;
    Ok(Registration { service_id, price_stroops, metadata })
}

fn parse_items(body: &Value, bulk_max_items: i64) -> Result<Vec<Option<PricedService>>, Refusal> {
    match body.get("items").and_then(Value::as_array) {
        Some(items) if (1..=bulk_max_items).contains(&(items.len() as i64)) => {
            Ok(items.iter().map(|item| parse_item(item).ok()).collect())
        }
        _ => Err(Refusal::ServiceItems { bulk_max_items }),
    }
}

fn parse_item(item: &Value) -> Result<PricedService, Refusal> {
    let service_id = item.get("serviceId").and_then(Value::as_str).and_then(ServiceId::parse);
    let service_id = service_id.ok_or(Refusal::Service)?;
    Ok(PricedService { service_id, price_stroops: parse_price(item)? })
}

fn parse_price(body: &Value) -> Result<Price, Refusal> {
    body.get("priceStroops").and_then(integer).and_then(Price::new).ok_or(Refusal::Price)
}

fn parse_disabled(body: &Value) -> Result<bool, Refusal> {
    fields::check(body, &["disabled"])?;
    body.get("disabled").and_then(Value::as_bool).ok_or(Refusal::Disabled)
}

fn parse_metadata(body: &Value) -> Result<Metadata, Refusal> {
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    let fits = |text: &&str| fields::length(text) <= METADATA_TEXT_MAX;
    let description = text("description").filter(fits).ok_or(Refusal::Description)?;
    let owner = text("owner").filter(fits).filter(|owner| !owner.is_empty()).ok_or(Refusal::Owner)?;
    Ok(Metadata { description: description.to_owned(), owner: owner.to_owned() })
}
