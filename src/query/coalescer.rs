//! Combines concurrent reads: one read answers all requests that wait for it. A caller never sees data older than its
//! request, because requests that arrive during a read wait for the next one. The more requests wait, the less each of
//! them costs.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::{Instant, sleep_until};

/// Reads of one kind, by key.
#[derive(Debug)]
pub struct Coalescer<K, V> {
    waiting: Mutex<Vec<(K, oneshot::Sender<V>)>>,
    /// The request that holds this executes the read.
    turn: tokio::sync::Mutex<()>,
    /// Maximum number of different keys in one read. Further keys wait for the next read.
    keys_max: usize,
}

impl<K: Clone + Ord, V: Clone> Coalescer<K, V> {
    pub fn new(keys_max: usize) -> Self {
        Self { waiting: Mutex::default(), turn: tokio::sync::Mutex::default(), keys_max }
    }

    /// Returns the value of `key`, or `None` if `deadline` passes first. `read` takes distinct keys in ascending order
    /// and returns their values in that order. A request that executes the read completes it even after its own
    /// deadline.
    pub async fn load<F>(&self, key: K, deadline: Instant, read: impl Fn(Vec<K>) -> F) -> Option<V>
    where
        F: Future<Output = Vec<V>>,
    {
        loop {
            let (sender, mut value) = oneshot::channel();
            self.waiting().push((key.clone(), sender));
            let _turn = tokio::select! {
                biased;
                Ok(value) = &mut value => return Some(value),
                turn = self.turn.lock() => turn,
                () = sleep_until(deadline) => return None,
            };
            loop {
                match value.try_recv() {
                    Ok(value) => return Some(value),
                    // The request that was reading this key was cancelled, so the key is queued again.
                    Err(TryRecvError::Closed) => break,
                    Err(TryRecvError::Empty) => {}
                }
                let batch = self.take();
                // Boxed, so that requests that only wait do not have its size.
                let values = Box::pin(read(batch.keys().cloned().collect())).await;
                assert_eq!(values.len(), batch.len(), "every key has a value");
                for (value, senders) in values.into_iter().zip(batch.into_values()) {
                    for sender in senders {
                        // The request may have been cancelled.
                        let _ = sender.send(value.clone());
                    }
                }
            }
        }
    }

    /// Takes the next batch from the queue, without cancelled requests.
    fn take(&self) -> BTreeMap<K, Vec<oneshot::Sender<V>>> {
        let mut waiting = self.waiting();
        let mut batch: BTreeMap<K, Vec<oneshot::Sender<V>>> = BTreeMap::new();
        for (key, sender) in mem::take(&mut *waiting) {
            if sender.is_closed() {
                continue;
            }
            if batch.len() < self.keys_max || batch.contains_key(&key) {
                batch.entry(key).or_default().push(sender);
            } else {
                waiting.push((key, sender));
            }
        }
        batch
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(K, oneshot::Sender<V>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Poll;
    use std::time::Duration;

    use futures_util::poll;
    use tokio::sync::Notify;

    use super::*;

    const KEYS_MAX: usize = 8;

    /// A source that returns the keys of the read for each key, when the test lets it continue.
    struct Source {
        coalescer: Coalescer<usize, Vec<usize>>,
        permit: Notify,
    }

    impl Source {
        fn blocked() -> Arc<Self> {
            Arc::new(Self { coalescer: Coalescer::new(KEYS_MAX), permit: Notify::new() })
        }

        async fn load(&self, key: usize) -> Vec<usize> {
            let deadline = Instant::now() + Duration::from_secs(3600);
            self.load_until(key, deadline).await.expect("the deadline is far")
        }

        async fn load_until(&self, key: usize, deadline: Instant) -> Option<Vec<usize>> {
            let read = |keys: Vec<usize>| async move {
                self.permit.notified().await;
                vec![keys.clone(); keys.len()]
            };
            self.coalescer.load(key, deadline, read).await
        }
    }

    #[tokio::test]
    async fn requests_during_a_read_share_the_next_one() {
        let source = Source::blocked();
        let mut first = Box::pin(source.load(7));
        assert_eq!(poll!(&mut first), Poll::Pending);
        let mut others: Vec<_> = [7, 3, 7].into_iter().map(|key| Box::pin(source.load(key))).collect();
        for other in &mut others {
            assert_eq!(poll!(other), Poll::Pending);
        }
        source.permit.notify_one();
        assert_eq!(first.await, [7]);
        source.permit.notify_one();
        for other in others {
            assert_eq!(other.await, [3, 7]);
        }
    }

    #[tokio::test]
    async fn a_cancelled_reader_leaves_no_request_waiting() {
        let source = Source::blocked();
        let mut reader = Box::pin(source.load(1));
        let mut second = Box::pin(source.load(2));
        let mut third = Box::pin(source.load(3));
        for request in [&mut reader, &mut second, &mut third] {
            assert_eq!(poll!(request), Poll::Pending);
        }
        source.permit.notify_one();
        assert_eq!(reader.await, [1]);
        // The second request also reads for the third, and is cancelled. The fourth must not prevent the third from
        // being queued again.
        assert_eq!(poll!(&mut second), Poll::Pending);
        let mut fourth = Box::pin(source.load(4));
        assert_eq!(poll!(&mut fourth), Poll::Pending);
        drop(second);
        assert_eq!((poll!(&mut third), poll!(&mut fourth)), (Poll::Pending, Poll::Pending));
        source.permit.notify_one();
        assert_eq!(fourth.await, [3, 4]);
        assert_eq!(third.await, [3, 4]);
    }

    #[tokio::test]
    async fn a_request_past_its_deadline_is_not_read() {
        let source = Source::blocked();
        let mut reader = Box::pin(source.load(1));
        assert_eq!(poll!(&mut reader), Poll::Pending);
        assert_eq!(source.load_until(2, Instant::now()).await, None);
        let mut third = Box::pin(source.load(3));
        assert_eq!(poll!(&mut third), Poll::Pending);
        source.permit.notify_one();
        assert_eq!(reader.await, [1]);
        source.permit.notify_one();
        assert_eq!(third.await, [3]);
    }

    #[tokio::test]
    async fn one_read_has_a_limit_of_different_keys() {
        let source = Source::blocked();
        let mut first = Box::pin(source.load(0));
        assert_eq!(poll!(&mut first), Poll::Pending);
        let keys = (1..=1 + KEYS_MAX).chain([1, 1]);
        let mut others: Vec<_> = keys.map(|key| Box::pin(source.load(key))).collect();
        for other in &mut others {
            assert_eq!(poll!(other), Poll::Pending);
        }
        let mut sizes = Vec::new();
        source.permit.notify_one();
        first.await;
        for other in others {
            source.permit.notify_one();
            sizes.push(other.await.len());
        }
        assert_eq!(sizes, [8, 8, 8, 8, 8, 8, 8, 8, 1, 8, 8]);
    }
}
