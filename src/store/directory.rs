//! The table `tenant_cells`: where tenants live, and how many live in each cell.

use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::cell::CellId;

use super::StoreError;

/// The number of tenants of a cell that accepts new ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellTenants {
    pub cell: CellId,
    pub tenants: i64,
}

/// The cells that accept tenants. Only in the home cell.
pub async fn accepting(connection: &mut PgConnection) -> Result<Vec<CellTenants>, StoreError> {
    let rows = sqlx::query!(
        r#"-- directory::accepting
        SELECT cell_id,
               CASE WHEN number = 0 THEN (SELECT count(*) FROM tenants WHERE residence <> 'elsewhere')
                    ELSE (SELECT count(*) FROM tenant_cells WHERE tenant_cells.cell_id = cells.cell_id)
               END AS "tenants!"
        FROM cells WHERE accepts_tenants ORDER BY number"#,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| CellTenants { cell: CellId::from_stored(row.cell_id), tenants: row.tenants })
        .collect())
}

/// A tenant and where it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    pub tenant: Tenant,
    /// `None`: the home cell.
    pub cell: Option<CellId>,
}

/// `None` if there is no such tenant. Read in the home cell.
pub async fn find(connection: &mut PgConnection, tenant: &Tenant) -> Result<Option<Resident>, StoreError> {
    let row = sqlx::query!(
        r#"-- directory::find
        SELECT tenant_cells.cell_id AS "cell_id?" FROM tenants LEFT JOIN tenant_cells USING (tenant_id)
        WHERE tenants.tenant_id = $1"#,
        tenant.as_str(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Resident { tenant: tenant.clone(), cell: row.cell_id.map(CellId::from_stored) }))
}

/// Tenants after `after` in the order of their ids, at most `limit`. Read in the home cell.
pub async fn list(connection: &mut PgConnection, after: &str, limit: i64) -> Result<Vec<Resident>, StoreError> {
    let rows = sqlx::query!(
        r#"-- directory::list
        SELECT tenants.tenant_id, tenant_cells.cell_id AS "cell_id?"
        FROM tenants LEFT JOIN tenant_cells USING (tenant_id)
        WHERE tenants.tenant_id > $1 ORDER BY tenants.tenant_id LIMIT $2"#,
        after,
        limit,
    )
    .fetch_all(connection)
    .await?;
    let resident = |tenant, cell: Option<String>| Resident {
        tenant: Tenant::from_stored(tenant),
        cell: cell.map(CellId::from_stored),
    };
    Ok(rows.into_iter().map(|row| resident(row.tenant_id, row.cell_id)).collect())
}

/// Records that a new tenant lives in `cell`, which is not the home cell.
pub async fn insert(connection: &mut PgConnection, tenant: &Tenant, cell: &CellId) -> Result<(), StoreError> {
    sqlx::query!(
        "-- directory::insert\nINSERT INTO tenant_cells (tenant_id, cell_id) VALUES ($1, $2)",
        tenant.as_str(),
        cell.as_str(),
    )
    .execute(connection)
    .await?;
    Ok(())
}
