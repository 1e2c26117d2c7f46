//! A trigger that keeps statements waiting. A lock would do so only for the half second that a commit waits for locks,
//! which a busy machine may need for the next step of a test.

use sqlx::{AssertSqlSafe, PgPool};

use super::{SLEEPING, wait_until};

pub struct Hold(PgPool);

impl Hold {
    /// Statements that fire the trigger wait until [`Hold::release`]. `trigger` is its definition without name and
    /// function, such as `BEFORE DELETE ON outbox FOR EACH STATEMENT`.
    pub async fn begin(pool: &PgPool, trigger: &str) -> Self {
        Self::begin_then(pool, trigger, "").await
    }

    /// The same. The trigger executes `then` when the wait is over.
    pub async fn begin_then(pool: &PgPool, trigger: &str, then: &str) -> Self {
        let rule = format!(
            "CREATE TABLE IF NOT EXISTS held ();
             INSERT INTO held DEFAULT VALUES;
             CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN WHILE EXISTS (SELECT FROM held) LOOP PERFORM pg_sleep(0.01); END LOOP; {then} RETURN NEW; END $$;
             CREATE OR REPLACE TRIGGER hold {trigger} EXECUTE FUNCTION hold()"
        );
        sqlx::raw_sql(AssertSqlSafe(rule)).execute(pool).await.expect("a trigger");
        Self(pool.clone())
    }

    /// Waits until a statement waits.
    pub async fn has_one(&self) {
        let sleeping = async || sqlx::query_scalar::<_, i64>(SLEEPING).fetch_one(&self.0).await.expect("a number");
        wait_until(async || sleeping().await > 0).await;
    }

    pub async fn release(&self) {
        sqlx::raw_sql("DELETE FROM held").execute(&self.0).await.expect("a deletion");
    }
}

/// The trigger that holds what is recorded for an agent.
pub fn of_agent(agent: &str) -> String {
    format!("BEFORE INSERT OR UPDATE ON usage_counters FOR EACH ROW WHEN (NEW.agent_id = '{agent}')")
}
