//! A result of an expensive query that is reused for a while.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::timestamp::Timestamp;

#[derive(Debug)]
pub struct Remembered<T> {
    lifetime_ms: i64,
    /// When the last result was read, and the result.
    known: Mutex<Option<(Timestamp, T)>>,
}

impl<T: Copy> Remembered<T> {
    pub fn for_ms(lifetime_ms: i64) -> Self {
        Self { lifetime_ms, known: Mutex::new(None) }
    }

    pub fn at(&self, now: Timestamp) -> Option<T> {
        let (read_at, result) = (*self.known())?;
        (0..self.lifetime_ms).contains(&(now.as_ms() - read_at.as_ms())).then_some(result)
    }

    pub fn put(&self, result: T, now: Timestamp) -> T {
        *self.known() = Some((now, result));
        result
    }

    fn known(&self) -> MutexGuard<'_, Option<(Timestamp, T)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
