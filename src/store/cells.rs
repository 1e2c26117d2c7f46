//! The tables `cells` and `cell_identity`: which cells there are, and which one a database is.

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::domain::caller::Tenant;
use crate::domain::cell::CellId;

use super::positions::PAIR_ID_STEP;
use super::{StoreError, citus, corrupt, runtime_config};

/// A cell that was added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    pub id: CellId,
    /// 0 for the home cell.
    pub number: i16,
    /// Whether new tenants may be created in it.
    pub accepts_tenants: bool,
}

/// All cells by their numbers. Read in the home cell.
pub async fn list(connection: &mut PgConnection) -> Result<Vec<Cell>, StoreError> {
    let rows = sqlx::query!("-- cells::list\nSELECT cell_id, number, accepts_tenants FROM cells ORDER BY number")
        .fetch_all(connection)
        .await?;
    let cell = |id, number, accepts_tenants| Cell { id: CellId::from_stored(id), number, accepts_tenants };
    Ok(rows.into_iter().map(|row| cell(row.cell_id, row.number, row.accepts_tenants)).collect())
}

/// Which cell a database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cell: CellId,
    /// The same in all cells of a home cell. Other home cells may have cells with the same ids.
    pub deployment: String,
}

/// `None`: the database was not added to any cells.
pub async fn identity(connection: &mut PgConnection) -> Result<Option<Identity>, StoreError> {
    let row = sqlx::query!("-- cells::identity\nSELECT cell_id, deployment_id FROM cell_identity");
    let row = row.fetch_optional(connection).await?;
    Ok(row.map(|row| Identity { cell: CellId::from_stored(row.cell_id), deployment: row.deployment_id }))
}

/// What a database is, also while its schema is older than this program's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It has no table of the service.
    Empty,
    /// It has tables of the service, and was not added to any cells.
    Unassigned,
    Cell(Identity),
}

pub async fn state(connection: &mut PgConnection) -> Result<State, StoreError> {
    let tables = sqlx::query!(
        r#"-- cells::state
        SELECT to_regclass('tenants') IS NOT NULL OR to_regclass('_sqlx_migrations') IS NOT NULL AS "any!",
               to_regclass('cell_identity') IS NOT NULL AS "identity!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    let identity = if tables.identity { identity(connection).await? } else { None };
    Ok(match identity {
        Some(identity) => State::Cell(identity),
        None if tables.any => State::Unassigned,
        None => State::Empty,
    })
}

/// Whether new tenants may be created in a cell. Written in the home cell.
pub async fn set_accepts(connection: &mut PgConnection, id: &CellId, accepts: bool) -> Result<(), StoreError> {
    sqlx::query!(
        "-- cells::set_accepts\nUPDATE cells SET accepts_tenants = $2 WHERE cell_id = $1",
        id.as_str(),
        accepts
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes a database the home cell, number 0, of a new deployment. Does nothing if it is a cell.
pub async fn found(home: &mut PgConnection, id: &CellId) -> Result<(), StoreError> {
    let mut transaction = home.begin().await?;
    runtime_config::lock(&mut transaction).await?;
    if identity(&mut transaction).await?.is_none() {
        insert(&mut transaction, id, 0, true).await?;
        let own = Identity { cell: id.clone(), deployment: Uuid::new_v4().to_string() };
        identify(&mut transaction, &own, 0, 0).await?;
    }
    Ok(transaction.commit().await?)
}

/// Adds an empty database as a cell, and distributes its schema if that is to be on Citus. Can be repeated after an
/// interruption. The cell accepts tenants once it is complete.
pub async fn add(
    home: &mut PgConnection,
    member: &mut PgConnection,
    id: &CellId,
    citus_schema: Option<&str>,
) -> Result<Cell, StoreError> {
    let mut transaction = home.begin().await?;
    runtime_config::lock(&mut transaction).await?;
    let cells = list(&mut transaction).await?;
    let number = match cells.iter().find(|cell| cell.id == *id) {
        Some(cell) => cell.number,
        None => {
            let number = cells.iter().map(|cell| cell.number + 1).max().unwrap_or_default();
            insert(&mut transaction, id, number, false).await?;
            number
        }
    };
    let floor = last_pair_id(&mut transaction).await?;
    let own = identity(&mut transaction).await?.ok_or_else(|| corrupt("cell_identity"))?;
    transaction.commit().await?;
    let own = Identity { cell: id.clone(), ..own };
    let mut transaction = member.begin().await?;
    if identity(&mut transaction).await?.is_none() {
        identify(&mut transaction, &own, number, floor).await?;
        // Requests without a key belong to the home cell.
        sqlx::query!(
            "-- cells::add
            UPDATE tenants SET residence = 'elsewhere', terms_revision = terms_revision + 1 WHERE tenant_id = $1",
            Tenant::PUBLIC,
        )
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    if let Some(schema) = citus_schema {
        distribute(member, schema, number).await?;
    }
    set_accepts(home, id, true).await?;
    Ok(Cell { id: id.clone(), number, accepts_tenants: true })
}

/// Distributes the schema, unless that is done. Fails if the cell has data, whose numbers would be drawn again.
async fn distribute(member: &mut PgConnection, schema: &str, number: i16) -> Result<(), StoreError> {
    if citus::dialect(member).await?.is_citus() {
        return Ok(());
    }
    let mut transaction = member.begin().await?;
    // A replica, or a move to this cell, may write until now.
    sqlx::raw_sql("LOCK TABLE tenants IN SHARE MODE").execute(&mut *transaction).await?;
    if !is_empty(&mut transaction).await? {
        return Err(corrupt("the cell has data, so Citus cannot distribute its schema"));
    }
    citus::distribute(&mut transaction, schema, number).await?;
    Ok(transaction.commit().await?)
}

async fn insert(connection: &mut PgConnection, id: &CellId, number: i16, accepts: bool) -> Result<(), StoreError> {
    sqlx::query!(
        "-- cells::insert\nINSERT INTO cells (cell_id, number, accepts_tenants) VALUES ($1, $2, $3)",
        id.as_str(),
        number,
        accepts,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes the identity of a cell, and gives it its remainder of pair numbers, above `floor`. The lock of the sequence, which
/// ALTER takes, keeps commits from drawing numbers until the transaction ends.
async fn identify(connection: &mut PgConnection, own: &Identity, number: i16, floor: i64) -> Result<(), StoreError> {
    sqlx::query!(
        "-- cells::identify\nINSERT INTO cell_identity (cell_id, deployment_id) VALUES ($1, $2)",
        own.cell.as_str(),
        own.deployment,
    )
    .execute(&mut *connection)
    .await?;
    let sequence = pair_id_sequence(connection).await?;
    let step = format!("ALTER SEQUENCE {sequence} INCREMENT BY {PAIR_ID_STEP}");
    sqlx::raw_sql(AssertSqlSafe(step)).execute(&mut *connection).await?;
    let last = last_pair_id(connection).await?.max(floor);
    // The next one is a step further. With RESTART the sequence would count as unused.
    let last = (last / PAIR_ID_STEP + 1) * PAIR_ID_STEP + i64::from(number);
    sqlx::raw_sql(AssertSqlSafe(format!("SELECT setval('{sequence}', {last})"))).execute(connection).await?;
    Ok(())
}

async fn pair_id_sequence(connection: &mut PgConnection) -> Result<String, StoreError> {
    let name = sqlx::query_scalar!(
        r#"-- cells::pair_id_sequence
        SELECT pg_get_serial_sequence('usage_counters', 'pair_id') AS "name!""#
    );
    Ok(name.fetch_one(connection).await?)
}

async fn last_pair_id(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let last = sqlx::query_scalar!(
        r#"-- cells::last_pair_id
        SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('usage_counters', 'pair_id')::regclass), 0) AS "last!""#
    );
    Ok(last.fetch_one(connection).await?)
}

/// What a cell holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Those that live in it.
    pub tenants: i64,
    pub bytes: i64,
    /// Requests ever recorded.
    pub recorded: i64,
}

pub async fn contents(connection: &mut PgConnection) -> Result<Contents, StoreError> {
    let contents = sqlx::query_as!(
        Contents,
        r#"-- cells::contents
        SELECT (SELECT count(*) FROM tenants WHERE residence <> 'elsewhere') AS "tenants!",
               (SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
                WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace) AS "bytes!",
               (SELECT coalesce(sum(recorded), 0)::bigint FROM totals WHERE service_id = '') AS "recorded!""#,
    );
    let mut contents = contents.fetch_one(&mut *connection).await?;
    if citus::dialect(connection).await?.is_citus() {
        contents.bytes = citus::bytes(connection).await?;
    }
    Ok(contents)
}

/// Whether a database has no data of tenants. One without all of these tables was never used: its first migration was
/// interrupted.
pub async fn is_empty(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let is_empty = sqlx::query_scalar!(
        r#"-- cells::is_empty
        SELECT NOT EXISTS (SELECT FROM tenants WHERE tenant_id <> $1) AND NOT EXISTS (SELECT FROM usage_counters)
           AND NOT EXISTS (SELECT FROM idempotency_keys) AND NOT EXISTS (SELECT FROM services) AS "is_empty!""#,
        Tenant::PUBLIC,
    );
    match is_empty.fetch_one(connection).await {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => Ok(true),
        is_empty => Ok(is_empty?),
    }
}
