//! The directories of the private PostgreSQL in DATA_DIR, and the lock that excludes a second service.
//! `<DATA_DIR>/lock` belongs to the service. `<DATA_DIR>/postgres` is the server's home: data, log and socket. Only a
//! socket whose path would be too long is elsewhere.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::LocalPostgresError;
use super::run_as::ServerUser;

/// The name that PostgreSQL gives its socket, which ends in the port.
pub(super) const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// Maximum length of a socket's path: 107 bytes on Linux, 103 on macOS.
const SOCKET_PATH_BYTES_MAX: usize = 103;

/// Creates DATA_DIR if needed. Returns its absolute path and the lock on it.
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

/// Creates DATA_DIR and missing parent directories. If the service is root, the user who runs PostgreSQL can enter new
/// directories, whatever the umask. Existing directories are not changed.
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
        // Another process has created it meanwhile.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && data_dir.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Returns the server's home directory. Creates it if it is missing.
pub(super) async fn open_home(data_dir: &Path, user: &ServerUser) -> Result<PathBuf, LocalPostgresError> {
    let home = home(data_dir)?;
    // The user must be able to enter every parent directory, so each is checked, from the top.
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

/// The server's home directory, whether or not it exists. A link is refused: it would lead out of DATA_DIR, to data
/// that a new container does not have.
pub(super) fn home(data_dir: &Path) -> Result<PathBuf, LocalPostgresError> {
    let home = data_dir.join("postgres");
    match fs::read_link(&home) {
        Ok(target) => Err(LocalPostgresError::Linked { link: home, target }),
        Err(_) => Ok(home),
    }
}

/// The directory of the socket: the server's home, unless the socket's path would be too long there.
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
    // A path that is not UTF-8 cannot be part of a connection URL, and psql reads one with a comma as two hosts.
    dir.to_str().is_some_and(|dir| dir.len() + SOCKET_NAME.len() < SOCKET_PATH_BYTES_MAX && !dir.contains(','))
}

/// Creates or checks a directory in a public place. Any user may have created one of this name, so an existing one must
/// belong to the server's user.
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

/// Sixteen hexadecimal digits that identify a path.
fn short_hash(path: &Path) -> String {
    hex::encode(&Sha256::digest(path.as_os_str().as_encoded_bytes())[..8])
}

fn not_writable(data_dir: &Path, error: io::Error) -> LocalPostgresError {
    LocalPostgresError::NotWritable { data_dir: data_dir.to_owned(), reason: error.to_string() }
}

fn unusable(dir: &Path, error: io::Error) -> LocalPostgresError {
    LocalPostgresError::SocketDirectory { reason: format!("{}: {error}", dir.display()) }
}
