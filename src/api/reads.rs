//! The reads that production polls. Each goes to the database together with all others of its kind that are asked at the
//! same time, so that many who poll cost little more than one.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::refusal::Refusal;
use crate::store::totals::{Due, ServiceSlice};
use crate::store::usage::{CounterId, Quoted};
use crate::store::{FaultKind, StoreError};

use crate::api::handlers::events::{Page, WantedHead};
use crate::api::handlers::stats::Figures;
use crate::api::shared_read::SharedRead;
use crate::api::state::{ApiState, read_refusal};

/// A kind of read from the database.
pub type Desk<Q, A> = SharedRead<Q, Result<A, Refusal>>;

pub struct Reads {
    pub metrics: SharedRead<(), Bytes>,
    /// Why the database cannot be used; none if it can.
    pub readiness: SharedRead<(), Option<String>>,
    pub quotes: Desk<CounterId, Quoted>,
    pub due: Desk<Tenant, Due>,
    pub stats: Desk<ServiceSlice, Arc<Figures>>,
    pub events: Desk<WantedHead, Arc<Page>>,
}

impl Default for Reads {
    fn default() -> Self {
        // By what an answer may cost: a tenant may have ten thousand services.
        Self {
            metrics: SharedRead::new(1),
            readiness: SharedRead::new(1),
            quotes: SharedRead::new(256),
            due: SharedRead::new(64),
            stats: SharedRead::new(64),
            events: SharedRead::new(64),
        }
    }
}

impl ApiState {
    /// Asks at `desk`. `read` answers several questions in their order.
    pub async fn ask<Q: Clone + Ord, A: Clone>(
        &self,
        desk: &Desk<Q, A>,
        question: Q,
        deadline: Instant,
        read: impl AsyncFn(&mut PgConnection, &[Q]) -> Result<Vec<A>, StoreError>,
    ) -> Result<A, Refusal> {
        let all = async |questions: Vec<Q>| match self.read_all(&questions, &read).await {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(error) if error.kind() == FaultKind::Rejected && questions.len() > 1 => {
                self.read_one_by_one(&questions, &read).await
            }
            Err(error) => vec![Err(read_refusal(&error)); questions.len()],
        };
        desk.ask(question, deadline.into(), all).await.unwrap_or(Err(Refusal::StoreUnavailable))
    }

    /// What breaks one answer is no reason to refuse the others. If the database goes, it is.
    async fn read_one_by_one<Q, A: Clone>(
        &self,
        questions: &[Q],
        read: &impl AsyncFn(&mut PgConnection, &[Q]) -> Result<Vec<A>, StoreError>,
    ) -> Vec<Result<A, Refusal>> {
        let mut answers = Vec::with_capacity(questions.len());
        for question in questions {
            let answer = self.read_all(std::slice::from_ref(question), read).await;
            let is_gone = answer.as_ref().is_err_and(|error| error.kind() != FaultKind::Rejected);
            answers.push(answer.map(|mut own| own.remove(0)).map_err(|error| read_refusal(&error)));
            if is_gone {
                break;
            }
        }
        answers.resize(questions.len(), Err(Refusal::StoreUnavailable));
        answers
    }

    async fn read_all<Q, A>(
        &self,
        questions: &[Q],
        read: &impl AsyncFn(&mut PgConnection, &[Q]) -> Result<Vec<A>, StoreError>,
    ) -> Result<Vec<A>, StoreError> {
        let deadline = Instant::now() + self.settings.request_timeout;
        self.pool.run(deadline.into(), async |connection: &mut PgConnection| read(connection, questions).await).await
    }
}
