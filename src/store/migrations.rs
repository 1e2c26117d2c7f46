//! The schema's versions: what the program brings, and what the database has.

use sqlx::PgConnection;

use super::{MIGRATOR, StoreError};

/// Migrations of the program that the database does not have, and those of the database that the program does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub pending: Vec<String>,
    pub unknown: Vec<i64>,
}

/// Applies all pending migrations. Only one process does so at a time; the others wait and find nothing left.
pub async fn apply(connection: &mut PgConnection) -> Result<(), sqlx::migrate::MigrateError> {
    MIGRATOR.run(connection).await
}

pub async fn compare(connection: &mut PgConnection) -> Result<Difference, StoreError> {
    let exists = sqlx::query_scalar!(
        r#"-- migrations::exists
        SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "exists!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    let applied = if exists {
        sqlx::query_scalar!(
            "-- migrations::applied\nSELECT version FROM _sqlx_migrations WHERE success ORDER BY version"
        )
        .fetch_all(connection)
        .await?
    } else {
        Vec::new()
    };
    let ours = || MIGRATOR.iter().filter(|migration| migration.migration_type.is_up_migration());
    Ok(Difference {
        pending: ours()
            .filter(|migration| !applied.contains(&migration.version))
            .map(|migration| format!("{:04}_{}", migration.version, migration.description.replace(' ', "_")))
            .collect(),
        unknown: applied.into_iter().filter(|version| !ours().any(|migration| migration.version == *version)).collect(),
    })
}
