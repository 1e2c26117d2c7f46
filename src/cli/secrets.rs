//! `secrets`: which keys the secrets of webhooks are encrypted with, and encrypting them with another one. Works in batches,
//! while the service runs.

use std::collections::BTreeMap;

use clap::Subcommand;
use rand::rngs::StdRng;
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;

use crate::domain::audit_log::{Change, Operation, Origin};
use crate::domain::keyring::{Keyring, StoredSecret, Unreadable};
use crate::domain::timestamp::Timestamp;
use crate::store::webhook_queues::QueueId;
use crate::store::webhook_secrets::{self, WebhookSecrets};
use crate::store::{StoreError, audit_log, server};

use super::error::CliError;
use super::progress_bar::ProgressBar;
use super::session::Session;
use super::table::{FormatOption, Table};

/// Webhooks of one transaction.
const ROWS_MAX: i64 = 500;
/// Webhooks with unreadable secrets that are named.
const NAMED_MAX: usize = 100;

#[derive(Debug, Subcommand)]
pub enum Secrets {
    /// Decrypt all secrets of webhooks, and show which keys they are encrypted with. Exit code 1 if one cannot be decrypted.
    Check {
        #[command(flatten)]
        format: FormatOption,
    },
    /// Encrypt all secrets of webhooks with the first key of ENCRYPTION_KEYS.
    ///
    /// The service may run: restart it with the same keys first. After an interruption, run the command again. When it has
    /// succeeded, no secret needs the other keys any more. Exit code 1 if one cannot be decrypted; it is not changed.
    Encrypt {
        #[command(flatten)]
        format: FormatOption,
    },
    /// Store all secrets of webhooks as plain text, before a return to a release that cannot decrypt them.
    ///
    /// Restart the service with `plain` as the first entry of ENCRYPTION_KEYS first, so that it encrypts nothing meanwhile.
    /// Exit code 1 if one cannot be decrypted; it is not changed.
    Decrypt {
        #[command(flatten)]
        format: FormatOption,
    },
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    webhooks: i64,
    /// Webhooks whose secrets were stored again.
    rewritten: i64,
    unreadable: i64,
    /// The number of secrets by key, as they are stored now.
    keys: Vec<KeyUse>,
    failures: Vec<Failure>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeyUse {
    /// None: plain text.
    key_id: Option<String>,
    secrets: i64,
}

/// A webhook with a secret that cannot be decrypted.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Failure {
    tenant_id: String,
    webhook_id: String,
    error: String,
}

impl Secrets {
    /// False if a secret cannot be decrypted.
    pub async fn run(&self, session: &Session<'_>) -> Result<bool, CliError> {
        let keyring = &session.settings.committer.keyring;
        let (target, format) = match self {
            Self::Check { format } => (None, format),
            Self::Encrypt { .. } if keyring.is_empty() => {
                return Err(CliError::Refused("ENCRYPTION_KEYS is not set".to_owned()));
            }
            Self::Encrypt { .. } if !keyring.encrypts() => {
                return Err(CliError::Refused(
                    "ENCRYPTION_KEYS begins with plain: its keys encrypt nothing".to_owned(),
                ));
            }
            Self::Encrypt { format } => (Some((keyring.clone(), Operation::SecretsEncrypted)), format),
            Self::Decrypt { format } => (Some((Keyring::default(), Operation::SecretsDecrypted)), format),
        };
        let total =
            session.read(async |connection: &mut PgConnection| webhook_secrets::count(connection).await).await?;
        let progress = ProgressBar::of(total.unsigned_abs(), "webhooks");
        let (mut report, mut keys) = (Report::default(), BTreeMap::new());
        let mut after: Option<QueueId> = None;
        loop {
            let pass = Pass { keyring, target: target.as_ref(), now: session.clock.now() };
            let step = async |connection: &mut PgConnection| pass.batch(connection, after.as_ref()).await;
            let batch = session.read(step).await?;
            progress.add(batch.len());
            for read in &batch {
                report.add(read, &mut keys);
            }
            let is_last = (batch.len() as i64) < ROWS_MAX;
            after = batch.into_iter().next_back().map(|read| read.secrets.webhook);
            if is_last {
                break;
            }
        }
        drop(progress);
        report.keys = keys.into_iter().map(|(key_id, secrets)| KeyUse { key_id, secrets }).collect();
        format.print(session, &report, Report::to_table).await?;
        Ok(report.unreadable == 0)
    }
}

/// One pass over all webhooks.
struct Pass<'a> {
    keyring: &'a Keyring,
    /// What encrypts the secrets, and what the audit log calls it. `None`: nothing is changed.
    target: Option<&'a (Keyring, Operation)>,
    now: Timestamp,
}

/// The secrets of a webhook as they are stored after the batch.
struct Read {
    secrets: WebhookSecrets,
    is_rewritten: bool,
    unreadable: Option<Unreadable>,
}

impl Pass<'_> {
    async fn batch(&self, connection: &mut PgConnection, after: Option<&QueueId>) -> Result<Vec<Read>, StoreError> {
        let mut transaction = server::begin_walk(connection).await?;
        let secrets = match self.target {
            Some(_) => webhook_secrets::lock_after(&mut transaction, after, ROWS_MAX).await?,
            None => webhook_secrets::after(&mut transaction, after, ROWS_MAX).await?,
        };
        let batch: Vec<Read> = secrets.into_iter().map(|secrets| self.read(secrets)).collect();
        let rewritten: Vec<WebhookSecrets> =
            batch.iter().filter(|read| read.is_rewritten).map(|read| read.secrets.clone()).collect();
        if let Some((_, operation)) = self.target.filter(|_| !rewritten.is_empty()) {
            webhook_secrets::store(&mut transaction, &rewritten).await?;
            let first = &rewritten[0].current.key_id;
            let change = Change::of_service(*operation).to(json!({ "webhooks": rewritten.len(), "keyId": first }));
            audit_log::append(&mut transaction, &Origin::CLI, None, self.now, &[change]).await?;
        }
        transaction.commit().await?;
        Ok(batch)
    }

    fn read(&self, secrets: WebhookSecrets) -> Read {
        match self.rewrite(&secrets) {
            Ok(Some(rewritten)) => Read { secrets: rewritten, is_rewritten: true, unreadable: None },
            Ok(None) => Read { secrets, is_rewritten: false, unreadable: None },
            Err(unreadable) => Read { secrets, is_rewritten: false, unreadable: Some(unreadable) },
        }
    }

    /// The secrets as they are to be stored. `None` if they are stored so already. A previous secret whose overlap has ended
    /// is left out.
    fn rewrite(&self, secrets: &WebhookSecrets) -> Result<Option<WebhookSecrets>, Unreadable> {
        let QueueId { tenant, webhook } = &secrets.webhook;
        let seal = |stored: &StoredSecret| {
            let secret = self.keyring.open(tenant, webhook, stored)?;
            Ok(match self.target {
                Some((target, _)) if !target.is_current(stored) => {
                    target.seal(tenant, webhook, &secret, &mut rand::make_rng::<StdRng>())
                }
                _ => stored.clone(),
            })
        };
        let current = seal(&secrets.current)?;
        let previous = secrets.previous.as_ref().map(seal).transpose()?;
        let rewritten = WebhookSecrets { webhook: secrets.webhook.clone(), current, previous, has_expired: false };
        Ok(Some(rewritten).filter(|rewritten| self.target.is_some() && rewritten != secrets))
    }
}

impl Report {
    fn add(&mut self, read: &Read, keys: &mut BTreeMap<Option<String>, i64>) {
        let Read { secrets, is_rewritten, unreadable } = read;
        self.webhooks += 1;
        self.rewritten += i64::from(*is_rewritten);
        for stored in [&secrets.current].into_iter().chain(&secrets.previous) {
            *keys.entry(stored.key_id.clone()).or_default() += 1;
        }
        if let Some(error) = unreadable {
            self.unreadable += 1;
            if self.failures.len() < NAMED_MAX {
                let QueueId { tenant, webhook } = &secrets.webhook;
                let (tenant_id, webhook_id) = (tenant.to_string(), webhook.clone());
                self.failures.push(Failure { tenant_id, webhook_id, error: error.to_string() });
            }
        }
    }

    fn to_table(&self) -> Table {
        let mut table = Table::default();
        table.add(["webhooks", &self.webhooks.to_string()]);
        table.add(["stored again", &self.rewritten.to_string()]);
        table.add(["cannot be decrypted", &self.unreadable.to_string()]);
        for KeyUse { key_id, secrets } in &self.keys {
            let name = key_id.as_ref().map_or("plain text".to_owned(), |key_id| format!("key {key_id}"));
            table.add([&name, &format!("{secrets} secrets")]);
        }
        for Failure { tenant_id, webhook_id, error } in &self.failures {
            table.add([&format!("{tenant_id} {webhook_id}"), error]);
        }
        table
    }
}
