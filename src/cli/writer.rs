//! Writes of commands. They go the way of every write: through a committer, which a command has to itself.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::command::{Answer, Command, Keyed, Request};
use crate::commit::Committer;
use crate::domain::audit_log::Origin;
use crate::domain::caller::Tenant;
use crate::full_callers::FullCallers;
use crate::job_health::JobHealth;
use crate::runtime_config::SharedRuntimeConfig;
use crate::settings::committer::CommitterSettings;

use super::error::CliError;
use super::session::Session;

/// How long a command waits for a write.
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// How long it waits for the lanes to end. Nothing is left in them then.
const END_LIMIT: Duration = Duration::from_secs(2);

pub struct Writer {
    committer: Committer,
    lanes: JoinSet<()>,
}

/// A write, as a request to the service would be.
pub struct Write {
    pub tenant: Tenant,
    pub keyed: Option<Keyed>,
    pub method: &'static str,
    pub path: String,
    pub command: Command,
}

impl Writer {
    pub async fn start(session: &Session<'_>, settings: &CommitterSettings) -> Result<Self, CliError> {
        let config = SharedRuntimeConfig::new(session.runtime_config().await?);
        let clock = session.clock.clone();
        let health = JobHealth::new(clock.clone());
        let (address, full, mut lanes) = (session.address.clone(), FullCallers::default(), JoinSet::new());
        let committer = Committer::start(settings, address, clock, config, health, full, &mut lanes);
        Ok(Self { committer, lanes })
    }

    pub async fn submit(&self, write: Write) -> Answer {
        let Write { tenant, keyed, method, path, command } = write;
        let request_id = Uuid::new_v4().to_string();
        let deadline = (Instant::now() + WRITE_LIMIT).into_std();
        self.committer
            .submit(Box::new(Request {
                tenant,
                trace: None,
                origin: Origin::CLI,
                keyed,
                method,
                path,
                request_id,
                deadline,
                command,
            }))
            .await
    }

    pub async fn close(self) {
        let Self { committer, mut lanes } = self;
        drop(committer);
        let _ = timeout(END_LIMIT, async { while lanes.join_next().await.is_some() {} }).await;
    }
}
