//! Simulates a failover to a read-only server: sessions that begin meanwhile are read-only, and stay so.

use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, Executor};

use super::pool;

pub struct ReadOnly {
    pool: PgPool,
    database: String,
}

impl ReadOnly {
    /// Ends all sessions of the database. New ones are read-only.
    pub async fn begin(database: &PgConnectOptions) -> Self {
        let name = database.get_database().expect("a database").to_owned();
        // This connection itself stays writable.
        let options = database.clone().options([("default_transaction_read_only", "off")]);
        let own = Self { pool: pool(&options), database: name };
        own.execute(format!("ALTER DATABASE {} SET default_transaction_read_only = on", own.database)).await;
        own.terminate_others().await;
        own
    }

    /// New sessions are writable again. Existing ones are not.
    pub async fn end(self) {
        self.execute(format!("ALTER DATABASE {} RESET default_transaction_read_only", self.database)).await;
    }

    async fn terminate_others(&self) {
        let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                         WHERE datname = current_database() AND pid <> pg_backend_pid()";
        self.execute(terminate.to_owned()).await;
    }

    async fn execute(&self, sql: String) {
        self.pool.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect("the instrument works");
    }
}
