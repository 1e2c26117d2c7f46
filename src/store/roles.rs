//! The rights of the database roles. The file is also for psql, and the same for both.

use sqlx::{AssertSqlSafe, PgConnection};

use super::StoreError;

const GRANTS: &str = include_str!("../../deploy/postgres/grants.sql");

/// Gives the roles of `deploy/postgres/roles.sql` their rights on all tables of the current schema. The connection must belong
/// to the owner of the tables.
pub async fn grant(connection: &mut PgConnection) -> Result<(), StoreError> {
    let schema = sqlx::query_scalar!(
        r#"-- roles::grant
        SELECT quote_ident(current_schema()) AS "schema!""#
    );
    let schema = schema.fetch_one(&mut *connection).await?;
    let grants = GRANTS.replace(" IN SCHEMA public ", &format!(" IN SCHEMA {schema} "));
    sqlx::raw_sql(AssertSqlSafe(grants)).execute(connection).await?;
    Ok(())
}
