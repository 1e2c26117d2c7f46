//! One read for all who ask at the same time. Nobody is told anything older than their question: who asks while a read is
//! under way waits for the next one, together with all others who wait. So the more ask, the less each answer costs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Most questions of one read; the others wait for the one after it.
const QUESTIONS_MAX: usize = 256;

/// Questions of one kind and their answers.
#[derive(Debug)]
pub struct SharedRead<Q, A> {
    waiting: Mutex<Vec<(Q, oneshot::Sender<A>)>>,
    /// Whoever has it reads for all who wait.
    turn: tokio::sync::Mutex<()>,
}

impl<Q, A> Default for SharedRead<Q, A> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }
}

impl<Q: Clone + Ord, A: Clone> SharedRead<Q, A> {
    /// `read` is given questions without repetition, sorted, and answers all of them in that order.
    pub async fn ask<F>(&self, question: Q, read: impl Fn(Vec<Q>) -> F) -> A
    where
        F: Future<Output = Vec<A>>,
    {
        loop {
            let (sender, mut answer) = oneshot::channel();
            self.waiting().push((question.clone(), sender));
            let _turn = tokio::select! {
                biased;
                Ok(answer) = &mut answer => return answer,
                turn = self.turn.lock() => turn,
            };
            loop {
                if let Ok(answer) = answer.try_recv() {
                    return answer;
                }
                let asked = self.take();
                if asked.is_empty() {
                    // The one who read for this question was cut off: it is asked again.
                    break;
                }
                let mut questions: Vec<Q> = asked.iter().map(|(question, _)| question.clone()).collect();
                questions.sort_unstable();
                questions.dedup();
                let answers = read(questions.clone()).await;
                for (question, sender) in asked {
                    let place = questions.binary_search(&question).expect("it is one of them");
                    // Who hung up meanwhile needs no answer.
                    let _ = sender.send(answers[place].clone());
                }
            }
        }
    }

    /// The next to be answered. Who hung up is passed over.
    fn take(&self) -> Vec<(Q, oneshot::Sender<A>)> {
        let mut waiting = self.waiting();
        waiting.retain(|(_, sender)| !sender.is_closed());
        let count = waiting.len().min(QUESTIONS_MAX);
        waiting.drain(..count).collect()
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(Q, oneshot::Sender<A>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Poll;

    use futures_util::poll;
    use tokio::sync::Notify;

    use super::*;

    /// Answers each question with the questions of its read, when told to.
    struct Library {
        desk: SharedRead<u32, Vec<u32>>,
        open: Notify,
    }

    impl Library {
        fn closed() -> Arc<Self> {
            Arc::new(Self { desk: SharedRead::default(), open: Notify::new() })
        }

        async fn ask(&self, question: u32) -> Vec<u32> {
            let read = |questions: Vec<u32>| async move {
                self.open.notified().await;
                vec![questions.clone(); questions.len()]
            };
            self.desk.ask(question, read).await
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
        assert_eq!(poll!(&mut reader), Poll::Pending);
        let mut waiting = Box::pin(library.ask(2));
        assert_eq!(poll!(&mut waiting), Poll::Pending);
        library.open.notify_one();
        assert_eq!(reader.await, [1]);
        // Now it reads for itself and a third, and ends in the middle.
        assert_eq!(poll!(&mut waiting), Poll::Pending);
        drop(waiting);
        let mut third = Box::pin(library.ask(3));
        assert_eq!(poll!(&mut third), Poll::Pending);
        library.open.notify_one();
        assert_eq!(third.await, [3]);
    }

    #[tokio::test]
    async fn a_question_whose_reader_is_cut_off_is_asked_again() {
        let library = Library::closed();
        let mut reader = Box::pin(library.ask(1));
        assert_eq!(poll!(&mut reader), Poll::Pending);
        let mut second = Box::pin(library.ask(2));
        let mut third = Box::pin(library.ask(3));
        assert_eq!((poll!(&mut second), poll!(&mut third)), (Poll::Pending, Poll::Pending));
        library.open.notify_one();
        assert_eq!(reader.await, [1]);
        // The second reads for the third too, and is cut off.
        assert_eq!(poll!(&mut second), Poll::Pending);
        drop(second);
        library.open.notify_one();
        assert_eq!(third.await, [3]);
    }

    #[tokio::test]
    async fn one_read_answers_only_so_many() {
        let library = Library::closed();
        let mut asked: Vec<_> =
            (0..=1 + QUESTIONS_MAX as u32).map(|question| Box::pin(library.ask(question))).collect();
        for question in &mut asked {
            assert_eq!(poll!(question), Poll::Pending);
        }
        let mut sizes = Vec::new();
        for question in asked {
            library.open.notify_one();
            sizes.push(question.await.len());
        }
        let mut expected = vec![QUESTIONS_MAX; 1 + QUESTIONS_MAX];
        (expected[0], sizes[0]) = (1, 1);
        expected.push(1);
        assert_eq!(sizes, expected);
    }
}
