//! Numbers that ascend: positions of events and in lists, and the ids of pairs. They come from sequences. Each node of Citus
//! has its own sequences, which are not in order with each other, so there they come from the row of `citus_positions`,
//! which moves with the schema.
//! A transaction that draws from the row holds it until it ends. It draws after it has locked the rows that it reads, and
//! before it writes. An optimistic commit draws before its transaction begins.

use sqlx::PgConnection;

use crate::domain::cell::Dialect;

use super::{StoreError, corrupt};

/// Maximum number of events in one run: the increment of the sequence `event_positions`.
pub const EVENTS_PER_RUN_MAX: usize = 256;

/// Each cell draws the numbers of pairs with one remainder of this, the number of the cell, so that a tenant keeps its
/// numbers when it moves. On Citus, a `pair_id` is a position times this, plus the number of the cell.
pub const PAIR_ID_STEP: i64 = 1024;

/// What is numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbered {
    /// Runs of up to [`EVENTS_PER_RUN_MAX`] events.
    EventRuns,
    Agents,
    Services,
    Pairs,
}

/// The numbers of one commit on Citus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitNumbers {
    pub event_runs: Vec<i64>,
    pub agents: Vec<i64>,
    pub pairs: Vec<i64>,
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
        Dialect::Citus => {
            Ok(draw_from_row(connection, count).await?.map(|position| position.number(numbered)).collect())
        }
    }
}

/// Draws all numbers of a commit on Citus at once.
pub async fn draw_for_commit(
    connection: &mut PgConnection,
    event_runs: usize,
    agents: usize,
    pairs: usize,
) -> Result<CommitNumbers, StoreError> {
    let count = event_runs + agents + pairs;
    if count == 0 {
        return Ok(CommitNumbers::default());
    }
    let mut positions = draw_from_row(connection, count).await?;
    let mut take = |numbered, count| positions.by_ref().take(count).map(|position| position.number(numbered)).collect();
    Ok(CommitNumbers {
        event_runs: take(Numbered::EventRuns, event_runs),
        agents: take(Numbered::Agents, agents),
        pairs: take(Numbered::Pairs, pairs),
    })
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

/// A number of `citus_positions`. What is numbered uses it in different ways.
struct Position {
    position: i64,
    cell_number: i16,
}

impl Position {
    fn number(&self, numbered: Numbered) -> i64 {
        match numbered {
            Numbered::EventRuns => self.position * EVENTS_PER_RUN_MAX as i64,
            Numbered::Agents | Numbered::Services => self.position,
            Numbered::Pairs => self.position * PAIR_ID_STEP + i64::from(self.cell_number),
        }
    }
}

/// Outside of a transaction, the row is released at once. The draw is flushed to disk even then: a move of the schema copies
/// only what is in the write-ahead log, and a draw that it missed would be made again on the other node.
async fn draw_from_row(
    connection: &mut PgConnection,
    count: usize,
) -> Result<impl Iterator<Item = Position>, StoreError> {
    let row = sqlx::query!(
        "-- positions::draw_from_row
        UPDATE citus_positions SET last_position = last_position + $1 RETURNING last_position, cell_number",
        count as i64,
    )
    .fetch_optional(connection)
    .await?
    .ok_or_else(|| corrupt("citus_positions has no row"))?;
    let (last, cell_number) = (row.last_position, row.cell_number);
    Ok((last - count as i64 + 1..=last).map(move |position| Position { position, cell_number }))
}
