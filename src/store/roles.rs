//! The rights of the database roles. The file is also for psql, and the same for both.

use sqlx::PgConnection;

use super::StoreError;

const GRANTS: &str = include_str!("../../deploy/postgres/grants.sql");

/// Gives the roles of `deploy/postgres/roles.sql` their rights on all tables. The connection must belong to the owner of the
/// tables.
pub async fn grant(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::raw_sql(GRANTS).execute(connection).await?;
    Ok(())
}
