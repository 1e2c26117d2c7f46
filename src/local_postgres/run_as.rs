//! The user who runs PostgreSQL, and how programs run as that user. PostgreSQL refuses to run as root, so root gives
//! the server and its directories to an unprivileged user. The programs get neither the environment of the service,
//! which contains secrets, nor its standard streams, nor a working directory that the user cannot enter.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, lchown};
use std::path::Path;
use std::process::{Output, Stdio};

use tokio::process::Command;

use super::error::LocalPostgresError;

/// The environment variables that programs get: where programs and libraries are, and defaults of the server.
const VARIABLES: [&str; 5] = ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "TMPDIR"];

/// The user who runs PostgreSQL: the current one, unless it is root.
#[derive(Debug)]
pub(super) struct ServerUser {
    pub(super) name: String,
    pub(super) uid: u32,
    gid: u32,
    we_are_root: bool,
}

impl ServerUser {
    /// Chooses the owner of `data` if it exists, because PostgreSQL must run as the owner of its data.
    pub(super) async fn choose(data: &Path) -> Result<ServerUser, LocalPostgresError> {
        let uid = id(&["-u"]).await.map_err(|error| failed("id -u", error))?;
        let owner = std::fs::metadata(data).ok().map(|metadata| (metadata.uid(), metadata.gid()));
        if uid != 0 {
            if let Some((owner, _)) = owner.filter(|(owner, _)| *owner != uid) {
                return Err(LocalPostgresError::OtherOwner { path: data.to_owned(), owner });
            }
            let gid = id(&["-g"]).await.map_err(|error| failed("id -g", error))?;
            return Ok(ServerUser { name: uid.to_string(), uid, gid, we_are_root: false });
        }
        if let Some((uid, gid)) = owner.filter(|(owner, _)| *owner != 0) {
            return Ok(ServerUser { name: format!("with id {uid}"), uid, gid, we_are_root: true });
        }
        for name in ["postgres", "nobody"] {
            if let (Ok(uid), Ok(gid)) = (id(&["-u", name]).await, id(&["-g", name]).await) {
                return Ok(ServerUser { name: name.to_owned(), uid, gid, we_are_root: true });
            }
        }
        Err(LocalPostgresError::NoServerUser)
    }

    pub(super) fn we_are_root(&self) -> bool {
        self.we_are_root
    }

    /// A command of this user with a clean environment and without standard streams, because a daemon would keep pipes
    /// open.
    pub(super) fn command(&self, program: &Path, current_dir: &Path) -> Command {
        let mut command = clean_command(program);
        command.current_dir(current_dir).stdout(Stdio::null()).stderr(Stdio::null());
        if self.we_are_root {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Runs a command, and returns its standard output or a line that describes the error.
    pub(super) async fn run(
        &self,
        program: &Path,
        current_dir: &Path,
        arguments: &[&str],
    ) -> Result<String, LocalPostgresError> {
        let mut command = self.command(program, current_dir);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
        success_of(&name, command.output().await)
    }

    /// Whether this user can enter `dir`. Every parent directory matters, so it is tried.
    pub(super) async fn can_enter(&self, dir: &Path) -> bool {
        let status = self.command(Path::new("true"), dir).status().await;
        status.is_ok_and(|status| status.success())
    }

    /// Creates `dir` if it does not exist, accessible to this user only.
    pub(super) fn make_private_dir(&self, dir: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => self.own(dir),
        }
    }

    /// Makes this user the owner of `path`, not of what a link leads to. Only root needs that.
    pub(super) fn own(&self, path: &Path) -> io::Result<()> {
        if self.we_are_root { lchown(path, Some(self.uid), Some(self.gid)) } else { Ok(()) }
    }
}

/// The standard output of a program that succeeded, or a line that describes the error.
pub(super) fn success_of(program: &str, output: io::Result<Output>) -> Result<String, LocalPostgresError> {
    let output = output.map_err(|error| failed(program, error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let reason = telling_line(&String::from_utf8_lossy(&output.stderr)).unwrap_or(output.status.to_string());
    Err(LocalPostgresError::Command { program: program.to_owned(), reason })
}

/// The line of a program's output that describes the error. PostgreSQL adds hints around it.
pub(super) fn telling_line(output: &str) -> Option<String> {
    let lines = || output.lines().map(str::trim).filter(|line| !line.is_empty());
    let names_fault = |line: &&str| ["FATAL:", "PANIC:", "error:"].iter().any(|mark| line.contains(mark));
    lines().rfind(names_fault).or_else(|| lines().next_back()).map(str::to_owned)
}

/// Creates every child process.
fn clean_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C").stdin(Stdio::null());
    for name in VARIABLES {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

async fn id(arguments: &[&str]) -> io::Result<u32> {
    let output = clean_command(Path::new("id")).args(arguments).output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().map_err(io::Error::other)
}

fn failed(program: &str, error: io::Error) -> LocalPostgresError {
    LocalPostgresError::Command { program: program.to_owned(), reason: error.to_string() }
}
