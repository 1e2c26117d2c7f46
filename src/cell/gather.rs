//! Reads from all cells concurrently, for the operator. Cells that do not respond in time are left out and named, so that
//! a cell that is down does not prevent the response. Each cell is read at a different moment: there is no snapshot.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::domain::refusal::Refusal;

use super::Cell;

/// Time limit of a read from several cells.
const LIMIT: Duration = Duration::from_secs(2);

/// What the cells returned.
#[derive(Debug)]
pub struct Gathered<T> {
    /// Each with the index of its cell.
    pub values: Vec<(usize, T)>,
    /// The ids of the cells that are left out.
    pub missing: Vec<String>,
}

/// Runs `read` on each cell. A refusal is the result only if all cells refuse.
pub async fn gather<'a, R, T, F: Future<Output = Result<T, Refusal>>>(
    cells: &'a [Cell<R>],
    deadline: Instant,
    read: impl Fn(&'a Cell<R>, Instant) -> F,
) -> Result<Gathered<T>, Refusal> {
    if let [cell] = cells {
        return Ok(Gathered { values: vec![(0, read(cell, deadline).await?)], missing: Vec::new() });
    }
    let deadline = deadline.min(Instant::now() + LIMIT);
    let read_one = |cell: &'a Cell<R>| {
        let reading =
            cell.availability.check().map(|()| tokio::time::timeout_at(deadline.into(), read(cell, deadline)));
        async { reading?.await.unwrap_or(Err(Refusal::StoreUnavailable)) }
    };
    let mut gathered = Gathered { values: Vec::new(), missing: Vec::new() };
    let mut last_refusal = Refusal::StoreUnavailable;
    for (index, result) in join_all(cells.iter().map(read_one)).await.into_iter().enumerate() {
        match result {
            Ok(value) => gathered.values.push((index, value)),
            Err(refusal) => {
                gathered.missing.push(cells[index].id.to_string());
                last_refusal = refusal;
            }
        }
    }
    if gathered.values.is_empty() { Err(last_refusal) } else { Ok(gathered) }
}
