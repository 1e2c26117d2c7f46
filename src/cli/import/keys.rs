//! The new keys of an import. They are drawn and written to a file before any of them is created, so that a crash loses no
//! secret, and a repetition goes on with the same keys.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::cli::error::CliError;
use crate::cli::progress_bar::ProgressBar;
use crate::cli::session::Session;
use crate::cli::writer::{Write, Writer};
use crate::command::answers::ImportedApiKey;
use crate::command::{Answer, TransactionalCommand};
use crate::domain::caller::Tenant;
use crate::domain::identifiers::{ApiKey, hash_of_key};
use crate::store::api_keys;

use super::exports::OldKey;
use super::report::Count;

/// A new key in the file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NewKey {
    /// Of the key in the original.
    old_prefix: String,
    label: String,
    key: String,
    /// None until it is created. Once it was, it is not created again, even if it is revoked.
    pub tenant_id: Option<String>,
}

/// The new keys, in the order of the old ones.
pub async fn import(
    session: &Session<'_>,
    writer: &Writer,
    old: &[OldKey],
    path: &Path,
    count: &mut Count,
) -> Result<Vec<NewKey>, CliError> {
    let _lock = lock(path)?;
    let mut keys = match read(path)? {
        Some(keys) => keys,
        None => draw(old),
    };
    let of_file = keys.iter().map(|key| (&key.old_prefix, &key.label));
    if !of_file.eq(old.iter().map(|key| (&key.prefix, &key.label))) {
        let text = format!("{} holds the new keys of another export", path.display());
        return Err(CliError::Refused(text));
    }
    replace_taken(session, &mut keys).await?;
    write(path, &keys)?;
    let progress = ProgressBar::of(keys.len() as u64, "keys");
    for key in &mut keys {
        let was_earlier = key.tenant_id.is_some();
        if !was_earlier {
            key.tenant_id = Some(create(session, writer, key).await?);
        }
        count.add(1, was_earlier);
        progress.add(1);
    }
    write(path, &keys)?;
    Ok(keys)
}

/// Refuses a second import with a file in the same directory while the first one runs. Both would draw keys, and everything
/// would be counted twice. The lock ends when it is dropped, or with the process.
fn lock(path: &Path) -> Result<File, CliError> {
    let dir = dir_of(path);
    let refuse = |error: String| CliError::Refused(format!("{} cannot be locked: {error}", dir.display()));
    let lock = File::open(dir).map_err(|error| refuse(error.to_string()))?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => CliError::Refused(format!(
            "another import writes its new keys to {}: wait until it has ended, and run the same command again",
            dir.display()
        )),
        TryLockError::Error(error) => refuse(error.to_string()),
    })?;
    Ok(lock)
}

fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn draw(old: &[OldKey]) -> Vec<NewKey> {
    let keys = old.iter().map(|old| NewKey {
        old_prefix: old.prefix.clone(),
        label: old.label.clone(),
        key: draw_key(),
        tenant_id: None,
    });
    keys.collect()
}

fn draw_key() -> String {
    ApiKey::draw(&mut rand::make_rng::<StdRng>()).reveal().to_owned()
}

fn prefix_of(key: &str) -> &str {
    key.get(..ApiKey::PREFIX_LENGTH).unwrap_or(key)
}

/// Draws keys again that are not created yet, and whose prefix another key has, in the file or in the database.
async fn replace_taken(session: &Session<'_>, keys: &mut [NewKey]) -> Result<(), CliError> {
    let mut prefixes = HashSet::new();
    for new in keys.iter_mut().filter(|new| new.tenant_id.is_none()) {
        loop {
            let (hash, prefix) = (hash_of_key(new.key.as_bytes()), prefix_of(&new.key));
            let is_taken = async |connection: &mut PgConnection| {
                // An earlier run may have created it.
                let is_own = api_keys::find_all(connection, &[hash]).await?.pop().flatten().is_some();
                Ok(!is_own && api_keys::prefix_exists(connection, prefix).await?)
            };
            if !session.read(is_taken).await? && prefixes.insert(prefix.to_owned()) {
                break;
            }
            new.key = draw_key();
        }
    }
    Ok(())
}

/// Creates a key, unless an earlier run did. Returns its tenant.
async fn create(session: &Session<'_>, writer: &Writer, key: &NewKey) -> Result<String, CliError> {
    let hash = hash_of_key(key.key.as_bytes());
    let find = async |connection: &mut PgConnection| api_keys::find_all(connection, &[hash]).await;
    if let Some(known) = session.read(find).await?.pop().flatten() {
        return Ok(known.tenant.to_string());
    }
    let prefix = prefix_of(&key.key).to_owned();
    let command = TransactionalCommand::ImportApiKey { label: key.label.clone(), prefix, hash }.into();
    let path = "/api/v1/api-keys".to_owned();
    match writer.submit(Write { tenant: Tenant::public(), keyed: None, method: "POST", path, command }).await {
        Answer::Fresh(reply) | Answer::Replayed(reply) => {
            let body = reply.body.unwrap_or_default();
            let made: ImportedApiKey = serde_json::from_slice(&body).expect("the command's own answer");
            Ok(made.tenant_id)
        }
        Answer::Refused(refusal) => Err(CliError::Refused(format!("key {}: {refusal}", key.old_prefix))),
    }
}

fn read(path: &Path) -> Result<Option<Vec<NewKey>>, CliError> {
    let refuse = |error: String| CliError::Refused(format!("{} cannot be read: {error}", path.display()));
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| refuse(error.to_string())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(refuse(error.to_string())),
    }
}

/// Replaces the file as a whole. Nobody else may read it.
fn write(path: &Path, keys: &[NewKey]) -> Result<(), CliError> {
    let replace = || -> io::Result<()> {
        let mut draft = path.as_os_str().to_owned();
        draft.push(".new");
        // A file that exists would keep its own mode, and a link would be followed.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(&serde_json::to_vec_pretty(keys).expect("plain data"))?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(dir_of(path))?.sync_all()
    };
    replace().map_err(|error| CliError::Refused(format!("{} cannot be written: {error}", path.display())))
}
