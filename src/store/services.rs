//! The table `services`: the services of each tenant with their prices.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::money::Price;
use crate::domain::names::ServiceId;
use crate::domain::service::{Metadata, PricedService, Service};
use crate::domain::timestamp::Timestamp;

use super::{StoreError, corrupt};

/// A filter of services. All conditions that are present must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The beginning of the id, case-sensitive.
    pub prefix: Option<String>,
    /// A part of the id, case-insensitive.
    pub contains: Option<String>,
    pub disabled: Option<bool>,
    pub price_min: Option<i64>,
    pub price_max: Option<i64>,
}

struct Row {
    service_id: String,
    price_stroops: i64,
    disabled: bool,
    description: Option<String>,
    owner: Option<String>,
}

impl From<Row> for Service {
    fn from(row: Row) -> Self {
        Self {
            service_id: ServiceId::from_stored(row.service_id),
            price_stroops: Price::from_stored(row.price_stroops),
            disabled: row.disabled,
            metadata: row.description.zip(row.owner).map(|(description, owner)| Metadata { description, owner }),
        }
    }
}

/// One service, if it is registered.
pub async fn find(
    connection: &mut PgConnection,
    tenant: &Tenant,
    service_id: &ServiceId,
) -> Result<Option<Service>, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "-- services::find
        SELECT service_id, price_stroops, disabled, description, owner
        FROM services WHERE tenant_id = $1 AND service_id = $2",
        tenant.as_str(),
        service_id.as_str(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(Service::from))
}

/// The same, and keeps others from changing it until the transaction ends.
pub async fn lock(
    connection: &mut PgConnection,
    tenant: &Tenant,
    service_id: &ServiceId,
) -> Result<Option<Service>, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "-- services::lock
        SELECT service_id, price_stroops, disabled, description, owner
        FROM services WHERE tenant_id = $1 AND service_id = $2 FOR NO KEY UPDATE",
        tenant.as_str(),
        service_id.as_str(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(Service::from))
}

/// Registers a new service. Lists show it at `list_position`.
pub async fn insert(
    connection: &mut PgConnection,
    tenant: &Tenant,
    service: &Service,
    list_position: i64,
    now: Timestamp,
) -> Result<(), StoreError> {
    let metadata = service.metadata.as_ref();
    sqlx::query!(
        "-- services::insert
        INSERT INTO services (tenant_id, service_id, price_stroops, disabled, description, owner, created_at, list_position)
        OVERRIDING SYSTEM VALUE
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        tenant.as_str(),
        service.service_id.as_str(),
        service.price_stroops.stroops(),
        service.disabled,
        metadata.map(|metadata| metadata.description.as_str()),
        metadata.map(|metadata| metadata.owner.as_str()),
        now.to_date_time(),
        list_position,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Stores a changed service: its price, its metadata and its flag.
pub async fn update(connection: &mut PgConnection, tenant: &Tenant, service: &Service) -> Result<(), StoreError> {
    let metadata = service.metadata.as_ref();
    sqlx::query!(
        "-- services::update
        UPDATE services SET price_stroops = $3, disabled = $4, description = $5, owner = $6
        WHERE tenant_id = $1 AND service_id = $2",
        tenant.as_str(),
        service.service_id.as_str(),
        service.price_stroops.stroops(),
        service.disabled,
        metadata.map(|metadata| metadata.description.as_str()),
        metadata.map(|metadata| metadata.owner.as_str()),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Those of `ids` that are registered, in any order.
pub async fn find_all(
    connection: &mut PgConnection,
    tenant: &Tenant,
    ids: &[&ServiceId],
) -> Result<Vec<Service>, StoreError> {
    let ids: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"-- services::find_all
        SELECT service.service_id AS "service_id!", service.price_stroops AS "price_stroops!",
               service.disabled AS "disabled!", service.description, service.owner
        FROM unnest($2::text[]) AS wanted (service_id)
        CROSS JOIN LATERAL (
            SELECT service_id, price_stroops, disabled, description, owner FROM services
            WHERE services.tenant_id = $1 AND services.service_id = wanted.service_id
            LIMIT 1
        ) AS service"#,
        tenant.as_str(),
        ids as _,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(Service::from).collect())
}

/// Registers new, distinct services. Lists show them at `list_positions`.
pub async fn insert_all(
    connection: &mut PgConnection,
    tenant: &Tenant,
    services: &[&PricedService],
    list_positions: &[i64],
    now: Timestamp,
) -> Result<(), StoreError> {
    let ids: Vec<&str> = services.iter().map(|service| service.service_id.as_str()).collect();
    let prices: Vec<i64> = services.iter().map(|service| service.price_stroops.stroops()).collect();
    sqlx::query!(
        "-- services::insert_all
        INSERT INTO services (tenant_id, service_id, price_stroops, created_at, list_position)
        OVERRIDING SYSTEM VALUE
        SELECT $1, service_id, price_stroops, $2, list_position
        FROM unnest($3::text[], $4::bigint[], $5::bigint[]) AS service (service_id, price_stroops, list_position)",
        tenant.as_str(),
        now.to_date_time() as OffsetDateTime,
        ids as _,
        &prices,
        list_positions,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Sets the prices of registered services, which are sorted and distinct.
pub async fn set_prices(
    connection: &mut PgConnection,
    tenant: &Tenant,
    services: &[&PricedService],
) -> Result<(), StoreError> {
    let ids: Vec<&str> = services.iter().map(|service| service.service_id.as_str()).collect();
    let prices: Vec<i64> = services.iter().map(|service| service.price_stroops.stroops()).collect();
    // An upsert that always finds its row. Unlike UPDATE … FROM, it cannot be planned as a scan of the table.
    let updated = sqlx::query_scalar!(
        r#"-- services::set_prices
        INSERT INTO services AS service (tenant_id, service_id, price_stroops, created_at)
        SELECT $1, service_id, price_stroops, now()
        FROM unnest($2::text[], $3::bigint[]) AS priced (service_id, price_stroops)
        ON CONFLICT (tenant_id, service_id) DO UPDATE SET price_stroops = excluded.price_stroops
        RETURNING xmax <> 0 AS "was_there!""#,
        tenant.as_str(),
        ids as _,
        &prices,
    )
    .fetch_all(connection)
    .await?;
    if updated.iter().all(|was_there| *was_there) { Ok(()) } else { Err(corrupt("a service vanished under its lock")) }
}

/// Deletes a service with its metadata and its flag.
pub async fn delete(connection: &mut PgConnection, tenant: &Tenant, service_id: &ServiceId) -> Result<(), StoreError> {
    sqlx::query!(
        "-- services::delete\nDELETE FROM services WHERE tenant_id = $1 AND service_id = $2",
        tenant.as_str(),
        service_id.as_str(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Services in the order of their creation, without the first `offset`, and the length of the whole filtered list.
pub async fn list(
    connection: &mut PgConnection,
    tenant: &Tenant,
    filter: &Filter,
    limit: i64,
    offset: i64,
) -> Result<(Vec<Service>, i64), StoreError> {
    // `services_store_max_keys` bounds a tenant's services, so filtering reads a bounded part of the index.
    let rows = sqlx::query!(
        r#"-- services::list
        SELECT service_id, price_stroops, disabled, description, owner, count(*) OVER () AS "count!"
        FROM services
        WHERE tenant_id COLLATE "POSIX" = $1
          AND ($2::text IS NULL OR starts_with(service_id, $2))
          AND ($3::text IS NULL OR position(lower($3) IN lower(service_id)) > 0)
          AND ($4::boolean IS NULL OR disabled = $4)
          AND ($5::bigint IS NULL OR price_stroops >= $5)
          AND ($6::bigint IS NULL OR price_stroops <= $6)
        ORDER BY tenant_id COLLATE "POSIX", list_position, service_id
        LIMIT $7 OFFSET $8"#,
        tenant.as_str(),
        filter.prefix,
        filter.contains,
        filter.disabled,
        filter.price_min,
        filter.price_max,
        limit,
        offset,
    )
    .fetch_all(&mut *connection)
    .await?;
    let Some(first) = rows.first() else {
        // An empty page does not contain the length. Only a page after the first can be empty although the list is not.
        let count = if offset > 0 { Box::pin(list(connection, tenant, filter, 1, 0)).await?.1 } else { 0 };
        return Ok((Vec::new(), count));
    };
    let count = first.count;
    let services = rows
        .into_iter()
        .map(|row| {
            Service::from(Row {
                service_id: row.service_id,
                price_stroops: row.price_stroops,
                disabled: row.disabled,
                description: row.description,
                owner: row.owner,
            })
        })
        .collect();
    Ok((services, count))
}
