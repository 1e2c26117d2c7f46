//! Services: registering, listing, reading, changing, switching and deleting them.

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;

use crate::command::answers::{Registered, Results, ServiceState};
use crate::command::{Reply, TransactionalCommand};
use crate::domain::money::PRICE_MAX;
use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::domain::service::{METADATA_TEXT_MAX, Metadata, PricedService, Registration, Service, ServiceEdit};
use crate::domain::usage::integer;
use crate::store::services;

use crate::api::openapi::bodies;
use crate::api::openapi::description::{Content, Description, PAGE, flag, limit, price, text};
use crate::api::request::etag::Tagged;
use crate::api::request::exchange::{Exchange, Failure, Read, Write, json};
use crate::api::request::fields;
use crate::api::request::query::{Pages, Slice};
use crate::api::state::ApiState;

pub const REGISTER: Description = Description::of("Register a service or set its price")
    .body(bodies::registration, r#"{"serviceId":"weather","priceStroops":250}"#)
    .answer::<Registered<'static>>(201, r#"{"serviceId":"weather","priceStroops":250}"#)
    .answer::<Registered<'static>>(200, r#"{"serviceId":"weather","priceStroops":250}"#)
    .refuses(&["store_capacity_exceeded"]);

pub async fn register(State(state): State<ApiState>, request: Request) -> Result<Response, Failure> {
    let write = Write::read(request, &[]).await?;
    let command = parse_registration(&write.body).map(TransactionalCommand::RegisterService);
    write.submit(&state, command).await
}

pub const REGISTER_BULK: Description = Description::of("Register many, each for itself")
    .body(bodies::registrations, r#"{"items":[{"serviceId":"weather","priceStroops":250}]}"#)
    .answer::<Results<'static>>(
        201,
        r#"{"results":[{"index":0,"ok":true,"serviceId":"weather","priceStroops":250,"created":true}]}"#,
    );

pub async fn register_bulk(State(state): State<ApiState>, request: Request) -> Result<Response, Failure> {
    let write = Write::read(request, &[]).await?;
    let command =
        parse_items(&write.body, state.limits.now().bulk_max_items).map(TransactionalCommand::RegisterServices);
    write.submit(&state, command).await
}

pub const SET_PRICE: Description = Description::of("Change the price; it counts from the next settlement")
    .body(bodies::new_price, r#"{"priceStroops":300}"#)
    .content(200, Content::Json(priced), r#"{"serviceId":"weather","priceStroops":300}"#)
    .refuses(&["not_found"]);

pub async fn set_price(State(state): State<ApiState>, request: Request) -> Result<Response, Failure> {
    let write = Write::read(request, &[]).await?;
    let edit = parse_price(&write.body).map(ServiceEdit::Price);
    change(&state, write, edit).await
}

pub const SET_METADATA: Description = Description::of("Say what a service is and whose")
    .body(bodies::metadata, r#"{"description":"Forecasts","owner":"ops"}"#)
    .answer::<Described<'static>>(200, r#"{"serviceId":"weather","description":"Forecasts","owner":"ops"}"#)
    .refuses(&["not_found"]);

pub async fn set_metadata(State(state): State<ApiState>, request: Request) -> Result<Response, Failure> {
    let write = Write::read(request, &[]).await?;
    let edit = parse_metadata(&write.body).map(ServiceEdit::Metadata);
    change(&state, write, edit).await
}

pub const SET_DISABLED: Description = Description::of("Disable or enable a service, without an event")
    .body(bodies::disabled, r#"{"disabled":true}"#)
    .answer::<ServiceState<'static>>(200, r#"{"serviceId":"weather","disabled":true}"#)
    .refuses(&["not_found"]);

pub async fn set_disabled(State(state): State<ApiState>, request: Request) -> Result<Response, Failure> {
    let write = Write::read(request, &[]).await?;
    // Unlike the other edits this one is judged before the service is looked up.
    match path_service(&write.exchange).and_then(|_| parse_disabled(&write.body)) {
        Ok(disabled) => change(&state, write, Ok(ServiceEdit::Disabled(disabled))).await,
        Err(refusal) => write.submit(&state, Err::<TransactionalCommand, _>(refusal)).await,
    }
}

fn priced(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["serviceId", "priceStroops"],
        "properties": {
            "serviceId": generator.subschema_for::<ServiceId>(),
            "priceStroops": { "type": "integer", "minimum": 0, "maximum": PRICE_MAX },
        },
    })
}

async fn change(state: &ApiState, write: Write, edit: Result<ServiceEdit, Refusal>) -> Result<Response, Failure> {
    let command =
        path_service(&write.exchange).map(|service_id| TransactionalCommand::ChangeService { service_id, edit });
    write.submit(state, command).await
}

pub const REMOVE: Description = Description::of("Delete a service; its pairs stay").empty().refuses(&["not_found"]);

pub async fn remove(State(state): State<ApiState>, request: Request) -> Result<Response, Failure> {
    let write = Write::read(request, &[]).await?;
    let command = path_service(&write.exchange).map(TransactionalCommand::DeleteService);
    write.submit(&state, command).await
}

pub const DISABLE: Description = Description::of("Take no usage of a service any more")
    .answer::<ServiceState<'static>>(200, r#"{"serviceId":"weather","disabled":true}"#)
    .refuses(&["not_found"]);

pub async fn disable(State(state): State<ApiState>, request: Request) -> Result<Response, Failure> {
    switch(&state, request, true).await
}

pub const ENABLE: Description = Description::of("Take usage of a service again")
    .answer::<ServiceState<'static>>(200, r#"{"serviceId":"weather","disabled":false}"#)
    .refuses(&["not_found"]);

pub async fn enable(State(state): State<ApiState>, request: Request) -> Result<Response, Failure> {
    switch(&state, request, false).await
}

async fn switch(state: &ApiState, request: Request, disabled: bool) -> Result<Response, Failure> {
    let write = Write::read(request, &[]).await?;
    let command = path_service(&write.exchange)
        .map(|service_id| TransactionalCommand::SetServiceEnabled { service_id, enabled: !disabled });
    write.submit(state, command).await
}

pub const SHOW: Description = Description::of("Read a service")
    .answer::<Service>(
        200,
        r#"{"serviceId":"weather","priceStroops":250,"disabled":false,"description":"Forecasts","owner":"ops"}"#,
    )
    .refuses(&["not_found"]);

pub async fn show(State(state): State<ApiState>, Read(exchange): Read) -> Result<Response, Failure> {
    let service_id = path_service(&exchange)?;
    let service = find(&state, &exchange, &service_id).await?;
    Ok(json(&service.ok_or(Refusal::ServiceNotRegistered(service_id))?))
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ServiceMetadata")]
struct Described<'a> {
    service_id: &'a ServiceId,
    #[serde(flatten)]
    metadata: Metadata,
}

pub const METADATA: Description = Description::of("Read what a service is and whose")
    .answer::<Described<'static>>(200, r#"{"serviceId":"weather","description":"Forecasts","owner":"ops"}"#)
    .refuses(&["not_found"]);

pub async fn metadata(State(state): State<ApiState>, Read(exchange): Read) -> Result<Response, Failure> {
    let service_id = path_service(&exchange)?;
    let service = find(&state, &exchange, &service_id).await?;
    let metadata = service.and_then(|service| service.metadata);
    let metadata = metadata.ok_or_else(|| Refusal::NoMetadata(service_id.clone()))?;
    Ok(json(&Described { service_id: &service_id, metadata }))
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ServiceList")]
struct List {
    services: Vec<Service>,
    #[serde(flatten)]
    pages: Option<Pages>,
}

pub const LIST: Description = Description::of("Services, in order of creation")
    .query(&[
        text("prefix", "Ids that start like this."),
        text("q", "Ids that contain this, in any case."),
        flag("disabled", "Only disabled ones, or only the others."),
        price("minPrice", "Priced at this or more."),
        price("maxPrice", "Priced at this or less."),
        limit(200, 1000),
        PAGE,
    ])
    .answer::<List>(200, r#"{"services":[{"serviceId":"weather","priceStroops":250,"disabled":false}]}"#)
    .conditional();

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
    let slice = Slice::read(query, 200, 1000);
    let tenant = &exchange.identity.tenant;
    let read = async |connection: &mut PgConnection| {
        services::list(connection, tenant, &filter, slice.limit, slice.offset()).await
    };
    let (services, count) = state.read(exchange.deadline, read).await?;
    Ok(Tagged::new(Reply::json(200, &List { services, pages: slice.pages(count) }), "").answer(&headers))
}

async fn find(state: &ApiState, exchange: &Exchange, service_id: &ServiceId) -> Result<Option<Service>, Refusal> {
    let tenant = &exchange.identity.tenant;
    let read = async |connection: &mut PgConnection| services::find(connection, tenant, service_id).await;
    state.read(exchange.deadline, read).await
}

/// The service a path names.
pub fn path_service(exchange: &Exchange) -> Result<ServiceId, Refusal> {
    ServiceId::parse_existing(exchange.parameter("serviceId")).ok_or(Refusal::Service)
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

fn parse_price(body: &Value) -> Result<i64, Refusal> {
    let price = body.get("priceStroops").and_then(integer);
    price.filter(|price| (0..=PRICE_MAX).contains(price)).ok_or(Refusal::Price)
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
