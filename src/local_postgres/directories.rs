//! The directories of the private PostgreSQL below DATA_DIR, and the lock that keeps a second service out.
//! `<DATA_DIR>/lock` is the service's; `<DATA_DIR>/postgres` is the server's home (data, log, socket). Nothing lies anywhere
//! else but a socket whose path would be too long: DATA_DIR holds all data.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::LocalPostgresError;
use super::run_as::ServerUser;

/// The name PostgreSQL gives its socket, after its port.
pub(super) const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// The longest path of a Unix socket: 107 bytes on Linux, 103 on macOS.
const SOCKET_PATH_BYTES_MAX: usize = 103;

/// Creates DATA_DIR if needed, gives its absolute path, and the lock that says it is ours while it is held.
pub(super) fn open_data_dir(data_dir: &Path, we_are_root: bool) -> Result<(PathBuf, File), LocalPostgresError> {
    let not_writable = |error| not_writable(data_dir, error);
    make_data_dir(data_dir, we_are_root).map_err(not_writable)?;
    let data_dir_absolute = fs::canonicalize(data_dir).map_err(not_writable)?;
    let mut options = OpenOptions::new();
    let lock = options
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(data_dir_absolute.join("lock"))
        .map_err(not_writable)?;
    match lock.try_lock() {
        Ok(()) => Ok((data_dir_absolute, lock)),
        Err(TryLockError::WouldBlock) => Err(LocalPostgresError::InUse { data_dir: data_dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(not_writable(error)),
    }
}

/// Makes DATA_DIR and what is missing above it. Root keeps the lock to itself, but lets the user who runs PostgreSQL pass
/// through to the server's home, whatever umask says; what was there before stays as its owner wants it.
fn make_data_dir(data_dir: &Path, we_are_root: bool) -> io::Result<()> {
    if data_dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = data_dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_data_dir(parent, we_are_root)?;
    }
    let mode = if we_are_root { 0o711 } else { 0o700 };
    match DirBuilder::new().mode(mode).create(data_dir) {
        Ok(()) => fs::set_permissions(data_dir, fs::Permissions::from_mode(mode)),
        // Another process created it first.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && data_dir.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The directory of everything the server owns, made if it is missing.
pub(super) async fn open_home(data_dir: &Path, user: &ServerUser) -> Result<PathBuf, LocalPostgresError> {
    let home = home(data_dir)?;
    // Every directory above counts, so each is tried, from the top.
    let above: Vec<&Path> = data_dir.ancestors().collect();
    for dir in above.into_iter().rev() {
        if !user.can_enter(dir).await {
            let mode = fs::metadata(dir).map_or(0, |metadata| metadata.mode() & 0o7777);
            let data_dir = data_dir.to_owned();
            return Err(LocalPostgresError::Unreachable {
                data_dir,
                dir: dir.to_owned(),
                mode,
                user: user.name.clone(),
            });
        }
    }
    user.make_private_dir(&home).map_err(|error| not_writable(data_dir, error))?;
    if !user.can_enter(&home).await {
        let owner = fs::metadata(&home).map_or(0, |metadata| metadata.uid());
        return Err(LocalPostgresError::OtherOwner { path: home, owner });
    }
    Ok(home)
}

/// Where the server's directory is or will be. A link there once led out of DATA_DIR, to data that a new container would
/// not have; it is never followed.
pub(super) fn home(data_dir: &Path) -> Result<PathBuf, LocalPostgresError> {
    let home = data_dir.join("postgres");
    match fs::read_link(&home) {
        Ok(target) => Err(LocalPostgresError::Linked { link: home, target }),
        Err(_) => Ok(home),
    }
}

/// The directory of the socket: in the server's home unless the socket's path would become too long there.
pub(super) async fn open_socket_dir(home: &Path, user: &ServerUser) -> Result<PathBuf, LocalPostgresError> {
    let in_home = home.join("run");
    if fits_socket(&in_home) {
        user.make_private_dir(&in_home).map_err(|error| unusable(&in_home, error))?;
        return Ok(in_home);
    }
    let name = format!("agentpay-{}", short_hash(home));
    for parent in [std::env::temp_dir(), PathBuf::from("/tmp")] {
        let dir = parent.join(&name);
        if parent.is_absolute() && fits_socket(&dir) && user.can_enter(&parent).await {
            claim_dir_in_public(&dir, user).map_err(|error| unusable(&dir, error))?;
            return Ok(dir);
        }
    }
    Err(LocalPostgresError::SocketDirectory {
        reason: format!("{} is too long or has a comma, and no temporary directory is usable", in_home.display()),
    })
}

fn fits_socket(dir: &Path) -> bool {
    // A path that is no UTF-8 cannot be written into a connection URL, and psql takes one with a comma for two hosts.
    dir.to_str().is_some_and(|dir| dir.len() + SOCKET_NAME.len() < SOCKET_PATH_BYTES_MAX && !dir.contains(','))
}

/// Anybody may create a directory of this name in a public place, so one that exists must prove to be the server's.
fn claim_dir_in_public(dir: &Path, user: &ServerUser) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return user.own(dir),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let metadata = fs::symlink_metadata(dir)?;
    let ours = metadata.uid() == user.uid || (user.we_are_root() && metadata.uid() == 0);
    if !metadata.is_dir() || !ours || metadata.mode() & 0o077 != 0 {
        return Err(io::Error::other("it exists and is not a private directory of the user who runs PostgreSQL"));
    }
    user.own(dir)
}

/// Sixteen hexadecimal digits that tell one path from another.
fn short_hash(path: &Path) -> String {
    hex::encode(&Sha256::digest(path.as_os_str().as_encoded_bytes())[..8])
}

fn not_writable(data_dir: &Path, error: io::Error) -> LocalPostgresError {
    LocalPostgresError::NotWritable { data_dir: data_dir.to_owned(), reason: error.to_string() }
}

fn unusable(dir: &Path, error: io::Error) -> LocalPostgresError {
    LocalPostgresError::SocketDirectory { reason: format!("{}: {error}", dir.display()) }
}
