//! The directories of the private PostgreSQL below DATA_DIR, and the lock that keeps a second service out.
//! `<DATA_DIR>/lock` is the service's; `<DATA_DIR>/postgres` is the server's home (data, log, socket). When the user
//! who runs PostgreSQL cannot reach DATA_DIR, that home lies in /var/lib and `<DATA_DIR>/postgres` is a link to it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::LocalPostgresError;
use super::run_as::ServerUser;

/// The home of servers whose user cannot reach DATA_DIR.
const HOMES_ELSEWHERE: &str = "/var/lib/agentpay-billing";

/// The name PostgreSQL gives its socket, after its port.
pub(super) const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// The longest path of a Unix socket: 107 bytes on Linux, 103 on macOS.
const SOCKET_PATH_BYTES_MAX: usize = 103;

/// Creates DATA_DIR if needed, gives its absolute path, and the lock that says it is ours while it is held.
pub(super) fn open_data_dir(data_dir: &Path, we_are_root: bool) -> Result<(PathBuf, File), LocalPostgresError> {
    let not_writable = |error| not_writable(data_dir, error);
    // Root keeps the lock to itself, but lets the user who runs PostgreSQL pass through to the server's home.
    let mode = if we_are_root { 0o711 } else { 0o700 };
    DirBuilder::new().recursive(true).mode(mode).create(data_dir).map_err(not_writable)?;
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

/// The directory of everything the server owns, made if it is missing.
pub(super) async fn open_home(data_dir: &Path, user: &ServerUser) -> Result<PathBuf, LocalPostgresError> {
    let not_writable = |error| not_writable(data_dir, error);
    let link = data_dir.join("postgres");
    match fs::symlink_metadata(&link) {
        Ok(metadata) if metadata.is_symlink() => {}
        Ok(_) => user.own(&link).map_err(not_writable)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if user.we_are_root() && !user.can_enter(data_dir).await {
                make_home_elsewhere(data_dir, &link, user).map_err(not_writable)?;
            } else {
                user.make_private_dir(&link).map_err(not_writable)?;
            }
        }
        Err(error) => return Err(not_writable(error)),
    }
    // A dangling link is never filled anew: the data may be on a volume that is not mounted yet.
    let home = fs::canonicalize(&link).map_err(|_| LocalPostgresError::DataGone { link })?;
    if !user.can_enter(&home).await {
        return Err(LocalPostgresError::Unreachable { path: home, user: user.name.clone() });
    }
    Ok(home)
}

/// The directory of everything a server owns that somebody else has started or is about to.
pub(super) fn find_home(data_dir: &Path) -> Result<PathBuf, LocalPostgresError> {
    let link = data_dir.join("postgres");
    fs::canonicalize(&link).map_err(|_| LocalPostgresError::DataGone { link })
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
        if fits_socket(&dir) && user.can_enter(&parent).await {
            claim_dir_in_public(&dir, user).map_err(|error| unusable(&dir, error))?;
            return Ok(dir);
        }
    }
    Err(LocalPostgresError::SocketDirectory {
        reason: format!("{} is too long or has a comma, and no temporary directory is usable", in_home.display()),
    })
}

fn make_home_elsewhere(data_dir: &Path, link: &Path, user: &ServerUser) -> io::Result<()> {
    // Data that lost its link, for example because DATA_DIR was cleared by hand, is taken up again rather than erased.
    DirBuilder::new().recursive(true).mode(0o711).create(HOMES_ELSEWHERE)?;
    let home = Path::new(HOMES_ELSEWHERE).join(short_hash(data_dir));
    user.make_private_dir(&home)?;
    symlink(home, link)
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
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn not_writable(data_dir: &Path, error: io::Error) -> LocalPostgresError {
    LocalPostgresError::NotWritable { data_dir: data_dir.to_owned(), reason: error.to_string() }
}

fn unusable(dir: &Path, error: io::Error) -> LocalPostgresError {
    LocalPostgresError::SocketDirectory { reason: format!("{}: {error}", dir.display()) }
}
