//! The reads that production polls. Each goes to the database together with all others of its kind that are asked at the
//! same time, so that many who poll cost little more than one.

use std::sync::Arc;

use axum::body::Bytes;
use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::refusal::Refusal;
use crate::store::StoreError;
use crate::store::totals::{Due, Slice};
use crate::store::usage::{CounterId, Quote};

use super::events::{Head, Page};
use super::shared_read::SharedRead;
use super::state::{ApiState, read_refusal};
use super::stats::Figures;

/// A kind of read from the database.
pub type Desk<Q, A> = SharedRead<Q, Result<A, Refusal>>;

#[derive(Default)]
pub struct Reads {
    pub metrics: SharedRead<(), Bytes>,
    pub quotes: Desk<CounterId, Quote>,
    pub due: Desk<Tenant, Due>,
    pub stats: Desk<Slice, Arc<Figures>>,
    pub events: Desk<Head, Arc<Page>>,
}

impl ApiState {
    /// Asks at `desk`. `read` answers several questions in their order.
    pub async fn ask<Q: Clone + Ord, A: Clone>(
        &self,
        desk: &Desk<Q, A>,
        question: Q,
        read: impl AsyncFn(&mut PgConnection, &[Q]) -> Result<Vec<A>, StoreError>,
    ) -> Result<A, Refusal> {
        let all = async |questions: Vec<Q>| match self.read(&questions, &read).await {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(refusal) => vec![Err(refusal); questions.len()],
        };
        desk.ask(question, all).await
    }

    async fn read<Q, A>(
        &self,
        questions: &[Q],
        read: &impl AsyncFn(&mut PgConnection, &[Q]) -> Result<Vec<A>, StoreError>,
    ) -> Result<Vec<A>, Refusal> {
        let mut connection = self.connection().await?;
        match tokio::time::timeout(self.settings.request_timeout, read(&mut connection, questions)).await {
            Ok(answers) => answers.map_err(|error| read_refusal(&error)),
            Err(_) => {
                // Whatever it still does, nobody else should wait for it.
                connection.close_on_drop();
                Err(Refusal::StoreUnavailable)
            }
        }
    }
}
