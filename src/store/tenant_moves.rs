//! The tables `tenant_cells` and `tenant_moves` of the home cell, and `tenants.residence` of each cell: where a tenant
//! lives, and how far its move got.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use time::OffsetDateTime;

use crate::domain::caller::Tenant;
use crate::domain::cell::{CellId, Residence};

use super::server::RESET_LOCK;
use super::{FaultKind, StoreError, corrupt, runtime_config};

/// A move that is not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    pub tenant: Tenant,
    pub from: CellId,
    pub to: CellId,
    /// `copying`, `fenced`, `copied` or `switched`.
    pub step: String,
}

pub async fn find(home: &mut PgConnection, tenant: &Tenant) -> Result<Option<Move>, StoreError> {
    Ok(list(home).await?.into_iter().find(|unfinished| unfinished.tenant == *tenant))
}

/// All moves that are not complete. They are few.
pub async fn list(home: &mut PgConnection) -> Result<Vec<Move>, StoreError> {
    let rows = sqlx::query!(
        "-- tenant_moves::list\nSELECT tenant_id, from_cell, to_cell, step FROM tenant_moves ORDER BY started_at, tenant_id"
    )
    .fetch_all(home)
    .await?;
    let unfinished = rows.into_iter().map(|row| Move {
        tenant: Tenant::from_stored(row.tenant_id),
        from: CellId::from_stored(row.from_cell),
        to: CellId::from_stored(row.to_cell),
        step: row.step,
    });
    Ok(unfinished.collect())
}

/// The moves of one step that are not complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Unfinished {
    pub step: &'static str,
    pub moves: i64,
    /// How long ago the oldest of them began.
    pub oldest_seconds: f64,
}

/// The steps of a move, as they are stored.
const STEPS: [&str; 4] = ["copying", "fenced", "copied", "switched"];

/// One entry for each step.
pub async fn unfinished(home: &mut PgConnection) -> Result<Vec<Unfinished>, StoreError> {
    let rows = sqlx::query!(
        r#"-- tenant_moves::unfinished
        SELECT step, count(*) AS "moves!", extract(epoch FROM now() - min(started_at))::float8 AS "oldest_seconds!"
        FROM tenant_moves GROUP BY step"#
    )
    .fetch_all(home)
    .await?;
    let of_step = |step: &'static str| {
        let found = rows.iter().find(|row| row.step == step);
        let (moves, oldest_seconds) = found.map_or((0, 0.0), |row| (row.moves, row.oldest_seconds));
        Unfinished { step, moves, oldest_seconds }
    };
    Ok(STEPS.map(of_step).into())
}

/// Records that a move begins, unless it has begun. Returns when that was, which tells it from other moves of the tenant.
pub async fn begin(
    home: &mut PgConnection,
    tenant: &Tenant,
    from: &CellId,
    to: &CellId,
) -> Result<OffsetDateTime, StoreError> {
    sqlx::query!(
        "-- tenant_moves::begin
        INSERT INTO tenant_moves (tenant_id, from_cell, to_cell, step) VALUES ($1, $2, $3, 'copying')
        ON CONFLICT (tenant_id) DO NOTHING",
        tenant.as_str(),
        from.as_str(),
        to.as_str(),
    )
    .execute(&mut *home)
    .await?;
    let started_at = sqlx::query_scalar!(
        "-- tenant_moves::begin\nSELECT started_at FROM tenant_moves WHERE tenant_id = $1",
        tenant.as_str()
    );
    Ok(started_at.fetch_one(home).await?)
}

pub async fn note_step(home: &mut PgConnection, tenant: &Tenant, step: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "-- tenant_moves::note_step\nUPDATE tenant_moves SET step = $2 WHERE tenant_id = $1",
        tenant.as_str(),
        step,
    )
    .execute(home)
    .await?;
    Ok(())
}

pub async fn end(home: &mut PgConnection, tenant: &Tenant) -> Result<(), StoreError> {
    sqlx::query!("-- tenant_moves::end\nDELETE FROM tenant_moves WHERE tenant_id = $1", tenant.as_str())
        .execute(home)
        .await?;
    Ok(())
}

/// The cell that the directory names. `None`: the home cell, or there is no such tenant.
pub async fn cell_of(home: &mut PgConnection, tenant: &Tenant) -> Result<Option<CellId>, StoreError> {
    let id = sqlx::query_scalar!(
        "-- tenant_moves::cell_of\nSELECT cell_id FROM tenant_cells WHERE tenant_id = $1",
        tenant.as_str(),
    );
    Ok(id.fetch_optional(home).await?.map(CellId::from_stored))
}

/// The tenants that live in another cell than the home cell, with their cells.
pub async fn directory(home: &mut PgConnection) -> Result<Vec<(Tenant, CellId)>, StoreError> {
    let rows =
        sqlx::query!("-- tenant_moves::directory\nSELECT tenant_id, cell_id FROM tenant_cells ORDER BY tenant_id")
            .fetch_all(home)
            .await?;
    let entry = |tenant, cell| (Tenant::from_stored(tenant), CellId::from_stored(cell));
    Ok(rows.into_iter().map(|row| entry(row.tenant_id, row.cell_id)).collect())
}

/// Writes where a tenant lives, and makes all replicas look up its keys again. `None`: in the home cell. False if the move
/// that began at `started_at` has ended, so that this command was overtaken.
pub async fn switch(
    home: &mut PgConnection,
    tenant: &Tenant,
    to: Option<&CellId>,
    started_at: OffsetDateTime,
) -> Result<bool, StoreError> {
    let mut transaction = home.begin().await?;
    let own = sqlx::query!(
        "-- tenant_moves::switch
        SELECT step FROM tenant_moves WHERE tenant_id = $1 AND started_at = $2 FOR UPDATE",
        tenant.as_str(),
        started_at,
    );
    if own.fetch_optional(&mut *transaction).await?.is_none() {
        return Ok(false);
    }
    match to {
        Some(to) => {
            sqlx::query!(
                "-- tenant_moves::switch
                INSERT INTO tenant_cells (tenant_id, cell_id) VALUES ($1, $2)
                ON CONFLICT (tenant_id) DO UPDATE SET cell_id = excluded.cell_id",
                tenant.as_str(),
                to.as_str(),
            )
            .execute(&mut *transaction)
            .await?;
        }
        None => {
            sqlx::query!("-- tenant_moves::switch\nDELETE FROM tenant_cells WHERE tenant_id = $1", tenant.as_str())
                .execute(&mut *transaction)
                .await?;
        }
    }
    note_step(&mut transaction, tenant, "switched").await?;
    runtime_config::note_keys(&mut transaction).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Whether the tenant lives in this cell. `None`: the cell has no row of it.
pub async fn residence(cell: &mut PgConnection, tenant: &Tenant) -> Result<Option<Residence>, StoreError> {
    let residence = sqlx::query_scalar!(
        "-- tenant_moves::residence\nSELECT residence FROM tenants WHERE tenant_id = $1",
        tenant.as_str(),
    );
    let residence = residence.fetch_optional(cell).await?;
    residence.map(|text| Residence::parse(&text).ok_or_else(|| corrupt("tenants.residence"))).transpose()
}

/// Whether a cell has, or had until a moment ago, all that is known of a tenant. Read after other data of the tenant, or in the
/// same snapshot, it tells whether they were complete.
pub async fn is_complete(cell: &mut PgConnection, tenant: &Tenant) -> Result<bool, StoreError> {
    Ok(residence(cell, tenant).await?.is_some_and(|residence| residence != Residence::Elsewhere))
}

/// The tenants that live in this cell.
pub async fn residents(cell: &mut PgConnection) -> Result<Vec<Tenant>, StoreError> {
    let ids = sqlx::query_scalar!(
        "-- tenant_moves::residents\nSELECT tenant_id FROM tenants WHERE residence <> 'elsewhere' ORDER BY tenant_id"
    );
    Ok(ids.fetch_all(cell).await?.into_iter().map(Tenant::from_stored).collect())
}

/// Changes the residence. `revision` is a random number, by which commits notice the change.
pub async fn set_residence(
    cell: &mut PgConnection,
    tenant: &Tenant,
    residence: Residence,
    revision: i64,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- tenant_moves::set_residence
        UPDATE tenants SET residence = $2, terms_revision = $3 WHERE tenant_id = $1",
        tenant.as_str(),
        residence.as_str(),
        revision,
    )
    .execute(cell)
    .await?;
    Ok(())
}

/// Makes the tenant live in this cell, which may have no row of it yet.
pub async fn settle_in(cell: &mut PgConnection, tenant: &Tenant, revision: i64) -> Result<(), StoreError> {
    sqlx::query!(
        "-- tenant_moves::settle_in
        INSERT INTO tenants AS tenant (tenant_id, residence, terms_revision) VALUES ($1, 'here', $2)
        ON CONFLICT (tenant_id) DO UPDATE SET residence = excluded.residence, terms_revision = excluded.terms_revision",
        tenant.as_str(),
        revision,
    )
    .execute(cell)
    .await?;
    Ok(())
}

/// Lets no dispatcher begin deliveries of the tenant. Those that have begun end with their leases.
pub async fn stop_deliveries(cell: &mut PgConnection, tenant: &Tenant, revision: i64) -> Result<(), StoreError> {
    set_residence(cell, tenant, Residence::Departing, revision).await
}

/// Waits until dispatchers that did not see the change of [`stop_deliveries`] have ended their transactions, so that their
/// leases are visible. False if they did not end in `lock_wait`, during which other dispatchers wait, too.
pub async fn wait_for_dispatchers(cell: &mut PgConnection, lock_wait: Duration) -> Result<bool, StoreError> {
    let mut transaction = cell.begin().await?;
    let wait = format!("SET LOCAL lock_timeout = {}; LOCK TABLE webhook_queues IN SHARE MODE", lock_wait.as_millis());
    match sqlx::raw_sql(AssertSqlSafe(wait)).execute(&mut *transaction).await.map_err(StoreError::from) {
        Err(error) if error.kind() == FaultKind::LockTimeout => return Ok(false),
        locked => locked.map(drop)?,
    }
    transaction.commit().await?;
    Ok(true)
}

/// Whether a dispatcher serves one of the tenant's webhooks.
pub async fn has_leases(cell: &mut PgConnection, tenant: &Tenant) -> Result<bool, StoreError> {
    let has_leases = sqlx::query_scalar!(
        r#"-- tenant_moves::has_leases
        SELECT EXISTS (SELECT FROM webhook_queues WHERE tenant_id = $1 AND leased_until > now()) AS "has_leases!""#,
        tenant.as_str(),
    );
    Ok(has_leases.fetch_one(cell).await?)
}

/// Refuses the tenant's writes from now on. When this returns, no commit that was decided before can succeed: it has waited
/// for all commits that were running. False if they did not end in `lock_wait`, during which later commits wait, too.
pub async fn fence(
    cell: &mut PgConnection,
    tenant: &Tenant,
    revision: i64,
    lock_wait: Duration,
) -> Result<bool, StoreError> {
    let mut transaction = cell.begin().await?;
    let wait = format!("SET LOCAL lock_timeout = {}", lock_wait.as_millis());
    sqlx::raw_sql(AssertSqlSafe(wait)).execute(&mut *transaction).await?;
    let locked = sqlx::query!("-- tenant_moves::fence\nSELECT pg_advisory_xact_lock($1)", RESET_LOCK)
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::from);
    match locked {
        Err(error) if error.kind() == FaultKind::LockTimeout => return Ok(false),
        locked => locked.map(drop)?,
    }
    match set_residence(&mut transaction, tenant, Residence::Leaving, revision).await {
        Err(error) if error.kind() == FaultKind::LockTimeout => return Ok(false),
        set => set?,
    }
    transaction.commit().await?;
    Ok(true)
}

/// Only a connection that holds this lock moves the tenant into this cell or out of it. It is free when that connection has
/// ended, and with it the transaction of an interrupted move, with COMMIT or without. False if another one holds it for longer
/// than the lock timeout.
pub async fn claim(cell: &mut PgConnection, tenant: &Tenant) -> Result<bool, StoreError> {
    let locked = sqlx::query!(
        "-- tenant_moves::claim\nSELECT pg_advisory_lock(hashtext('tenant_moves'), hashtext($1))",
        tenant.as_str(),
    )
    .execute(cell)
    .await
    .map_err(StoreError::from);
    match locked {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == FaultKind::LockTimeout => Ok(false),
        Err(error) => Err(error),
    }
}
