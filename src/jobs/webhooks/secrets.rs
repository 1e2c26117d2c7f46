//! Decrypts the secrets of webhooks, and reports those that it cannot decrypt. Their deliveries stay pending.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{error, warn};

use crate::clock::Clock;
use crate::domain::keyring::{Keyring, StoredSecret, Unreadable};
use crate::job_health::{Job, JobHealth};
use crate::store::webhook_queues::QueueId;
use crate::store::webhooks::Target;

use super::sender::Endpoint;

/// How long a failure counts after it was noted. Each webhook with pending deliveries is tried again before.
const FAILURE_COUNTS_MS: u64 = 120_000;

/// All clones share what has failed.
#[derive(Clone, Debug)]
pub struct SecretReader {
    keyring: Keyring,
    clock: Clock,
    health: JobHealth,
    /// In [`Clock::elapsed_ms`].
    failing_until_ms: Arc<AtomicU64>,
}

impl SecretReader {
    pub fn new(keyring: Keyring, clock: Clock, health: JobHealth) -> Self {
        Self { keyring, clock, health, failing_until_ms: Arc::default() }
    }

    /// Tries the keys at the start, and warns about plain text where an operator does not expect it.
    pub fn check(&self, sample: &[(QueueId, StoredSecret)], requires_api_key: bool) {
        let is_plain = sample.iter().any(|(_, stored)| stored.key_id.is_none());
        if is_plain && self.keyring.encrypts() {
            warn!("secrets of webhooks are stored as plain text: run `agentpay-billing secrets encrypt`");
        } else if is_plain && !self.keyring.is_empty() {
            warn!("secrets of webhooks are stored as plain text, because ENCRYPTION_KEYS begins with `plain`");
        } else if is_plain && requires_api_key {
            warn!("secrets of webhooks are stored as plain text: set ENCRYPTION_KEYS");
        }
        let open = |(webhook, stored): &(QueueId, StoredSecret)| {
            self.keyring.open(&webhook.tenant, &webhook.webhook, stored).err().map(|error| (webhook.clone(), error))
        };
        match sample.iter().find_map(open) {
            Some((webhook, error)) => self.note_failure(&webhook, error),
            None => self.note_pass(),
        }
    }

    /// Where deliveries of a webhook go, with its decrypted secrets. `None`, after a report, if one cannot be decrypted.
    pub fn endpoint(&self, webhook: &QueueId, target: &Target) -> Option<Endpoint> {
        let open = |stored| self.keyring.open(&webhook.tenant, &webhook.webhook, stored);
        match target.secrets.iter().map(open).collect::<Result<Vec<_>, _>>() {
            Ok(secrets) => Some(Endpoint { url: target.url.clone(), secrets }),
            Err(error) => {
                self.note_failure(webhook, error);
                None
            }
        }
    }

    fn note_failure(&self, webhook: &QueueId, error: Unreadable) {
        let QueueId { tenant, webhook } = webhook;
        error!(%tenant, webhook, %error, "the secret of a webhook cannot be used: its deliveries wait");
        self.failing_until_ms.store(self.clock.elapsed_ms() + FAILURE_COUNTS_MS, Ordering::Relaxed);
        self.health.note::<()>(Job::WebhookSecrets, &Err(error.into()));
    }

    /// Called after each search for due webhooks. Those that failed are found again while they have pending deliveries.
    pub fn note_pass(&self) {
        if self.clock.elapsed_ms() >= self.failing_until_ms.load(Ordering::Relaxed) {
            self.health.note(Job::WebhookSecrets, &Ok(()));
        }
    }
}
