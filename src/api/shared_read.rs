//! One read for all who ask at the same time. Nobody is told anything older than their question: who asks while a read is
//! under way waits for the next one, and shares it with all others who wait.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

#[derive(Debug)]
pub struct SharedRead<T> {
    /// Numbers questions and reads in the order in which they began.
    clock: AtomicU64,
    latest: Mutex<Option<(u64, T)>>,
}

impl<T> Default for SharedRead<T> {
    fn default() -> Self {
        Self { clock: AtomicU64::new(0), latest: Mutex::new(None) }
    }
}

impl<T: Clone> SharedRead<T> {
    pub async fn get(&self, read: impl Future<Output = T>) -> T {
        let asked = self.clock.fetch_add(1, Ordering::SeqCst);
        let mut latest = self.latest.lock().await;
        if let Some((began, value)) = &*latest
            && *began > asked
        {
            return value.clone();
        }
        let began = self.clock.fetch_add(1, Ordering::SeqCst);
        let value = read.await;
        *latest = Some((began, value.clone()));
        value
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::poll;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn who_asks_during_a_read_shares_the_next_one() {
        let shared = SharedRead::default();
        let (end_first, first_ends) = oneshot::channel();
        let mut first = Box::pin(shared.get(async { first_ends.await.expect("a value") }));
        assert_eq!(poll!(&mut first), Poll::Pending);
        let mut second = Box::pin(shared.get(async { 2 }));
        let mut third = Box::pin(shared.get(async { 3 }));
        assert_eq!((poll!(&mut second), poll!(&mut third)), (Poll::Pending, Poll::Pending));
        end_first.send(1).expect("sent");
        assert_eq!((first.await, second.await, third.await), (1, 2, 2));
        assert_eq!(shared.get(async { 4 }).await, 4);
    }
}
