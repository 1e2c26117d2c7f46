//! One read for all who ask at the same time. Nobody is told anything older than their question: who asks while a read is
//! under way waits for the next one, together with all others who wait. So the more ask, the less each answer costs.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::{Instant, sleep_until};

/// Questions of one kind and their answers.
#[derive(Debug)]
pub struct SharedRead<Q, A> {
    waiting: Mutex<Vec<(Q, oneshot::Sender<A>)>>,
    /// Its holder reads for all that wait.
    turn: tokio::sync::Mutex<()>,
    /// Most different questions of one read; the others wait for the one after it.
    questions_max: usize,
}

impl<Q: Clone + Ord, A: Clone> SharedRead<Q, A> {
    pub fn new(questions_max: usize) -> Self {
        Self { waiting: Mutex::default(), turn: tokio::sync::Mutex::default(), questions_max }
    }

    /// `read` is given questions without repetition, sorted, and answers all of them in that order. None if the deadline
    /// passes before the answer is there, except for the one who reads.
    pub async fn ask<F>(&self, question: Q, deadline: Instant, read: impl Fn(Vec<Q>) -> F) -> Option<A>
    where
        F: Future<Output = Vec<A>>,
    {
        loop {
            let (sender, mut answer) = oneshot::channel();
            self.waiting().push((question.clone(), sender));
            let _turn = tokio::select! {
                biased;
                Ok(answer) = &mut answer => return Some(answer),
                turn = self.turn.lock() => turn,
                () = sleep_until(deadline) => return None,
            };
            loop {
                match answer.try_recv() {
                    Ok(answer) => return Some(answer),
                    // The one who read for this question was cut off: it is asked again.
                    Err(TryRecvError::Closed) => break,
                    Err(TryRecvError::Empty) => {}
                }
                let asked = self.take();
                // Boxed, or all who only wait would carry its size.
                let answers = Box::pin(read(asked.keys().cloned().collect())).await;
                assert_eq!(answers.len(), asked.len(), "every question has its answer");
                for (answer, senders) in answers.into_iter().zip(asked.into_values()) {
                    for sender in senders {
                        // Who hung up meanwhile needs no answer.
                        let _ = sender.send(answer.clone());
                    }
                }
            }
        }
    }

    /// The next to be answered. Who hung up is passed over.
    fn take(&self) -> BTreeMap<Q, Vec<oneshot::Sender<A>>> {
        let mut waiting = self.waiting();
        let mut taken: BTreeMap<Q, Vec<oneshot::Sender<A>>> = BTreeMap::new();
        for (question, sender) in mem::take(&mut *waiting) {
            if sender.is_closed() {
                continue;
            }
            if taken.len() < self.questions_max || taken.contains_key(&question) {
                taken.entry(question).or_default().push(sender);
            } else {
                waiting.push((question, sender));
            }
        }
        taken
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(Q, oneshot::Sender<A>)>> {
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

    const QUESTIONS_MAX: usize = 8;

    /// Answers each question with the questions of its read, when told to.
    struct Library {
        desk: SharedRead<usize, Vec<usize>>,
        open: Notify,
    }

    impl Library {
        fn closed() -> Arc<Self> {
            Arc::new(Self { desk: SharedRead::new(QUESTIONS_MAX), open: Notify::new() })
        }

        async fn ask(&self, question: usize) -> Vec<usize> {
            let deadline = Instant::now() + Duration::from_secs(3600);
            self.ask_until(question, deadline).await.expect("the deadline is far")
        }

        async fn ask_until(&self, question: usize, deadline: Instant) -> Option<Vec<usize>> {
            let read = |questions: Vec<usize>| async move {
                self.open.notified().await;
                vec![questions.clone(); questions.len()]
            };
            self.desk.ask(question, deadline, read).await
        }
    }

    #[tokio::test]
    async fn who_asks_during_a_read_shares_the_next_one() {
        let library = Library::closed();
        let mut first = Box::pin(library.ask(7));
        assert_eq!(poll!(&mut first), Poll::Pending);
        let mut others: Vec<_> = [7, 3, 7].into_iter().map(|question| Box::pin(library.ask(question))).collect();
        for other in &mut others {
            assert_eq!(poll!(other), Poll::Pending);
        }
        library.open.notify_one();
        assert_eq!(first.await, [7]);
        library.open.notify_one();
        for other in others {
            assert_eq!(other.await, [3, 7]);
        }
    }

    #[tokio::test]
    async fn who_reads_and_is_cut_off_leaves_nobody_waiting() {
        let library = Library::closed();
        let mut reader = Box::pin(library.ask(1));
        let mut second = Box::pin(library.ask(2));
        let mut third = Box::pin(library.ask(3));
        for asked in [&mut reader, &mut second, &mut third] {
            assert_eq!(poll!(asked), Poll::Pending);
        }
        library.open.notify_one();
        assert_eq!(reader.await, [1]);
        // The second reads for the third too, and is cut off. A fourth must not keep the third from asking again.
        assert_eq!(poll!(&mut second), Poll::Pending);
        let mut fourth = Box::pin(library.ask(4));
        assert_eq!(poll!(&mut fourth), Poll::Pending);
        drop(second);
        assert_eq!((poll!(&mut third), poll!(&mut fourth)), (Poll::Pending, Poll::Pending));
        library.open.notify_one();
        assert_eq!(fourth.await, [3, 4]);
        assert_eq!(third.await, [3, 4]);
    }

    #[tokio::test]
    async fn who_waits_beyond_the_deadline_is_not_read_for() {
        let library = Library::closed();
        let mut reader = Box::pin(library.ask(1));
        assert_eq!(poll!(&mut reader), Poll::Pending);
        assert_eq!(library.ask_until(2, Instant::now()).await, None);
        let mut third = Box::pin(library.ask(3));
        assert_eq!(poll!(&mut third), Poll::Pending);
        library.open.notify_one();
        assert_eq!(reader.await, [1]);
        library.open.notify_one();
        assert_eq!(third.await, [3]);
    }

    #[tokio::test]
    async fn one_read_answers_only_so_many_different_questions() {
        let library = Library::closed();
        let mut first = Box::pin(library.ask(0));
        assert_eq!(poll!(&mut first), Poll::Pending);
        let questions = (1..=1 + QUESTIONS_MAX).chain([1, 1]);
        let mut others: Vec<_> = questions.map(|question| Box::pin(library.ask(question))).collect();
        for other in &mut others {
            assert_eq!(poll!(other), Poll::Pending);
        }
        let mut sizes = Vec::new();
        library.open.notify_one();
        first.await;
        for other in others {
            library.open.notify_one();
            sizes.push(other.await.len());
        }
        assert_eq!(sizes, [8, 8, 8, 8, 8, 8, 8, 8, 1, 8, 8]);
    }
}
