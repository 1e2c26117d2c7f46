//! Numbers that ascend: positions of events and in lists, and the ids of pairs. They come from sequences. Each node of Citus
//! has its own sequences, which are not in order with each other, so there they come from the row of `citus_positions`,
//! which moves with the schema.

use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::domain::cell::Dialect;

use super::{StoreError, corrupt};

/// Maximum number of events in one run: the increment of the sequence `event_positions`.
pub const EVENTS_PER_RUN_MAX: usize = 256;

/// A `pair_id` on Citus is a position times this, plus the number of the cell.
const PAIR_ID_STEP: i64 = 1024;

/// What is numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbered {
    /// Runs of up to [`EVENTS_PER_RUN_MAX`] events.
    EventRuns,
    Agents,
    Services,
    Pairs,
}

/// Draws numbers in ascending order.
pub async fn draw(
    connection: &mut PgConnection,
    dialect: Dialect,
    numbered: Numbered,
    count: usize,
) -> Result<Vec<i64>, StoreError> {
    match dialect {
        Dialect::PostgreSql => draw_from_sequence(connection, numbered, count).await,
        Dialect::Citus => draw_from_row(connection, numbered, count, "", "").await,
    }
}

/// The same outside of a transaction. The row of Citus is released at once, and not written to disk: the commit that uses
/// the numbers comes later in the write-ahead log, so a crash that loses the draw loses that commit too.
pub async fn draw_ahead(
    connection: &mut PgConnection,
    dialect: Dialect,
    numbered: Numbered,
    count: usize,
) -> Result<Vec<i64>, StoreError> {
    match dialect {
        Dialect::PostgreSql => draw_from_sequence(connection, numbered, count).await,
        Dialect::Citus => {
            let begin = "BEGIN; SET LOCAL synchronous_commit = off; ";
            let drawn = draw_from_row(connection, numbered, count, begin, "; COMMIT").await;
            if drawn.is_err() {
                // BEGIN may have succeeded.
                let _ = sqlx::raw_sql("ROLLBACK").execute(connection).await;
            }
            drawn
        }
    }
}

async fn draw_from_sequence(
    connection: &mut PgConnection,
    numbered: Numbered,
    count: usize,
) -> Result<Vec<i64>, StoreError> {
    let (table, column) = match numbered {
        Numbered::EventRuns => return draw_event_positions(connection, count).await,
        Numbered::Agents => ("agents", "list_position"),
        Numbered::Services => ("services", "list_position"),
        Numbered::Pairs => ("usage_counters", "pair_id"),
    };
    let mut numbers = sqlx::query_scalar!(
        r#"-- positions::draw_from_sequence
        SELECT nextval(pg_get_serial_sequence($1, $2)) AS "number!" FROM generate_series(1, $3::bigint)"#,
        table,
        column,
        count as i64,
    )
    .fetch_all(connection)
    .await?;
    numbers.sort_unstable();
    Ok(numbers)
}

async fn draw_event_positions(connection: &mut PgConnection, count: usize) -> Result<Vec<i64>, StoreError> {
    let mut positions = sqlx::query_scalar!(
        r#"-- positions::draw_event_positions
        SELECT nextval('event_positions') AS "position!" FROM generate_series(1, $1::bigint)"#,
        count as i64,
    )
    .fetch_all(connection)
    .await?;
    positions.sort_unstable();
    Ok(positions)
}

/// `before` and `after` are commands of the same message.
async fn draw_from_row(
    connection: &mut PgConnection,
    numbered: Numbered,
    count: usize,
    before: &str,
    after: &str,
) -> Result<Vec<i64>, StoreError> {
    // One message of several commands cannot be prepared and has no parameters.
    let text = format!(
        "{before}UPDATE citus_positions SET last_position = last_position + {count} \
         RETURNING last_position, cell_number{after}"
    );
    let rows = sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(connection).await?;
    let row = rows.first().ok_or_else(|| corrupt("citus_positions has no row"))?;
    let (last, cell_number): (i64, i16) = (row.try_get(0)?, row.try_get(1)?);
    let number = |position: i64| match numbered {
        Numbered::EventRuns => position * EVENTS_PER_RUN_MAX as i64,
        Numbered::Agents | Numbered::Services => position,
        Numbered::Pairs => position * PAIR_ID_STEP + i64::from(cell_number),
    };
    Ok((last - count as i64 + 1..=last).map(number).collect())
}
