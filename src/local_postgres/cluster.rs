//! One PostgreSQL data directory: creates it, starts and stops its server, and determines its state. pg_ctl detaches
//! the server, so it outlives a service that is killed. Every start therefore first checks what an earlier service left
//! behind.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::process::Command;

use super::directories::SOCKET_NAME;
use super::error::LocalPostgresError;
use super::find::Binaries;
use super::run_as::{ServerUser, success_of, telling_line};
use super::start_program::{Ending, StartProgram};

/// The superuser and the owner of all objects.
pub(super) const SUPERUSER: &str = "agentpay";

/// The port is only a part of the socket's name. It is fixed, so that PGPORT in the environment has no effect.
pub(super) const PORT: u16 = 5432;

/// The server's log is rotated above this size.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How long pg_ctl waits for a start, before the server itself is asked for its state, and for a stop.
const START_LIMIT_S: &str = "5";
const STOP_LIMIT_S: &str = "60";

/// The number of connections that the server allows if the caller sets none.
const CONNECTIONS_MAX: &str = "200";

#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) home: PathBuf,
    pub(super) socket_dir: PathBuf,
    pub(super) binaries: Binaries,
    pub(super) user: ServerUser,
    pub(super) settings: Vec<(String, String)>,
    pub(super) start_program: StartProgram,
}

/// The state of the data directory's server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ServerState {
    Stopped,
    /// The server's process is alive.
    Alive,
    /// The server's process is alive, but its socket is not where it is expected.
    AliveElsewhere,
    /// The server is shutting down, and waits for its connections to end.
    Stopping,
    /// The server is dead, but some of its child processes still run.
    Ending,
}

impl Cluster {
    pub(super) fn data(home: &Path) -> PathBuf {
        home.join("data")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.home.join("server.log")
    }

    /// Creates the data directory if it does not exist. It is renamed into place when it is complete, so that a crash
    /// leaves no partial data.
    pub(super) async fn initialise_once(&self) -> Result<(), LocalPostgresError> {
        let data = Self::data(&self.home);
        if data.join("PG_VERSION").exists() {
            return Ok(());
        }
        self.clear_unfinished();
        // The process id keeps this directory apart from that of an initdb whose service was killed.
        let name = format!("data.new.{}", std::process::id());
        let pgdata = format!("--pgdata={name}");
        let superuser = format!("--username={SUPERUSER}");
        let mut arguments = vec![
            &pgdata,
            &superuser,
            // No password is needed: the server listens only on a Unix socket in a directory that other users cannot
            // enter.
            "--auth=trust",
            "--encoding=UTF8",
            // Bytewise order is the same on every system, and does not change with an update of the C library, which
            // would corrupt indexes. C.UTF-8 does not exist everywhere.
            "--locale=C",
            "--data-checksums",
        ];
        if self.settings.iter().any(|(name, value)| name == "fsync" && value == "off") {
            arguments.push("--no-sync");
        }
        let mut command = self.user.command(&self.binaries.dir.join("initdb"), &self.home);
        command.args(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.start_program.run(&mut command, Ending::KillGroup).await;
        success_of("initdb", output).map_err(|error| match error {
            LocalPostgresError::Command { reason, .. } if reason.contains("could not look up effective user ID") => {
                LocalPostgresError::NamelessUser { uid: self.user.uid }
            }
            other => other,
        })?;
        fs::rename(self.home.join(&name), &data)
            .map_err(|error| step_failed("naming the new data directory", error))?;
        // Without this, a power failure could undo the rename after payments were acknowledged.
        File::open(&self.home)
            .and_then(|home| home.sync_all())
            .map_err(|error| step_failed("writing the new directory to disk", error))
    }

    pub(super) async fn state(&self) -> Result<ServerState, LocalPostgresError> {
        let Ok(pid_file) = fs::read_to_string(self.pid_file()) else {
            return Ok(ServerState::Stopped);
        };
        let pid_file = PidFile::parse(&pid_file);
        let process = pid_file.process.parse().ok().and_then(Pid::from_raw);
        if process.is_none_or(|process| test_kill_process(process) == Err(Errno::SRCH)) {
            return Ok(ServerState::Stopped);
        }
        if !self.is_our_postgres(pid_file.process).await {
            // PostgreSQL uses this file to detect child processes of a dead server.
            if pid_file.shared_memory_is_used() {
                return Ok(ServerState::Ending);
            }
            self.remove_stale_pid_files().map_err(|error| step_failed("removing a stale postmaster.pid", error))?;
            return Ok(ServerState::Stopped);
        }
        Ok(match pid_file {
            PidFile { is_stopping: true, .. } => ServerState::Stopping,
            PidFile { socket_dir: Some(dir), .. } if dir != self.socket_dir => ServerState::AliveElsewhere,
            _ => ServerState::Alive,
        })
    }

    /// The socket directory of the server of `home`, as the server reports it: a command may have another TMPDIR than
    /// its service.
    pub(super) fn socket_dir_of(home: &Path) -> io::Result<Option<PathBuf>> {
        let pid_file = fs::read_to_string(Self::data(home).join("postmaster.pid"))?;
        Ok(PidFile::parse(&pid_file).socket_dir.map(Path::to_owned))
    }

    /// Rotates a long log. It is copied and emptied, because the server keeps the file open and appends to it. The
    /// server's user does this, because root would follow a link that this user created. A failure does not matter.
    pub(super) async fn limit_log(&self) {
        let log = self.log();
        if !tokio::fs::metadata(&log).await.is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
            return;
        }
        let script = "cp server.log server.log.old; : >server.log";
        let _ = self.user.run(Path::new("sh"), &self.home, &["-c", script]).await;
    }

    /// Starts the server, and waits briefly for it to accept connections. A server that needs longer counts as alive.
    /// An error includes the relevant line of the server's log.
    pub(super) async fn launch(&self) -> Result<(), LocalPostgresError> {
        let log = self.log();
        self.limit_log().await;
        let old_log_bytes = fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let options = self.server_options();
        let arguments = ["start", "-w", "-t", START_LIMIT_S, "-l", "server.log", "-o", &options];
        let started = self.start_program.run(&mut self.pg_ctl_command(&arguments), Ending::Interrupt).await;
        if started.map_err(|error| step_failed("pg_ctl", error))?.status.success() {
            return Ok(());
        }
        if self.state().await? != ServerState::Stopped {
            return Ok(());
        }
        let written = fs::read(&log).unwrap_or_default();
        let written = written.get(usize::try_from(old_log_bytes).unwrap_or(0)..).unwrap_or_default();
        let reason =
            telling_line(&String::from_utf8_lossy(written)).unwrap_or("it wrote nothing to its log".to_owned());
        Err(LocalPostgresError::StartFailed { reason, log })
    }

    /// Stops the server in one of pg_ctl's modes. A server that is already stopped is no error. Ends a start that is in
    /// progress.
    pub(super) async fn halt(&self, mode: &str) -> Result<(), LocalPostgresError> {
        self.start_program.end();
        self.start_program.ended().await;
        self.clear_unfinished();
        if self.state().await? == ServerState::Stopped {
            return Ok(());
        }
        let status = self.pg_ctl(&["stop", "-w", "-t", STOP_LIMIT_S, "-m", mode]).await?;
        if status.success() || self.state().await? == ServerState::Stopped {
            return Ok(());
        }
        Err(step_failed("pg_ctl stop", io::Error::other(status.to_string())))
    }

    /// Runs pg_ctl without pipes: the server inherits its open files, and would keep a pipe open.
    async fn pg_ctl(&self, arguments: &[&str]) -> Result<std::process::ExitStatus, LocalPostgresError> {
        self.pg_ctl_command(arguments).status().await.map_err(|error| step_failed("pg_ctl", error))
    }

    fn pg_ctl_command(&self, arguments: &[&str]) -> Command {
        // Relative to the home directory, because pg_ctl passes these paths to a shell without quoting them correctly.
        let mut command = self.user.command(&self.binaries.dir.join("pg_ctl"), &self.home);
        command.arg("-D").arg("data").args(arguments);
        command
    }

    /// Ends the server, or the program that starts it, without waiting. The next start recovers.
    pub(super) fn abort(&self) {
        self.start_program.end();
        let pid_file = fs::read_to_string(self.pid_file()).unwrap_or_default();
        let pid = pid_file.lines().next().unwrap_or_default().trim();
        // Unless the process works in this data directory, its number may belong to another process by now.
        let is_ours = fs::read_link(format!("/proc/{pid}/cwd"))
            .map_or(!cfg!(target_os = "linux"), |dir| dir == Self::data(&self.home));
        if is_ours && let Some(process) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(process, Signal::QUIT);
        }
    }

    /// Removes what a crash during initdb left. If that fails, it only uses disk space.
    fn clear_unfinished(&self) {
        for entry in fs::read_dir(&self.home).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b"data.new.") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    fn pid_file(&self) -> PathBuf {
        Self::data(&self.home).join("postmaster.pid")
    }

    /// Removes stale lock files. PostgreSQL keeps them if any process has the id in them, which is likely after a
    /// reboot or in a new container, and would then refuse to start.
    fn remove_stale_pid_files(&self) -> io::Result<()> {
        match fs::remove_file(self.socket_dir.join(format!("{SOCKET_NAME}.lock"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::remove_file(self.pid_file())
    }

    /// The number of connections that the server allows.
    pub(super) fn connections_max(&self) -> u32 {
        let wished = self.settings.iter().rfind(|(name, _)| name == "max_connections");
        wished.map_or(CONNECTIONS_MAX, |(_, value)| value).parse().unwrap_or(0)
    }

    /// The value of pg_ctl's `-o`, which a shell parses.
    fn server_options(&self) -> String {
        // The setting is a list with commas, in which a name may be in double quotes.
        let socket_dir = self.socket_dir.to_string_lossy().replace('"', "\"\"");
        let own = [
            ("listen_addresses", String::new()),
            ("port", PORT.to_string()),
            ("unix_socket_directories", format!("\"{socket_dir}\"")),
            ("unix_socket_permissions", "0700".to_owned()),
            ("max_connections", CONNECTIONS_MAX.to_owned()),
            // Otherwise the log would contain the whole statement of each commit that conflicts.
            ("log_min_error_statement", "panic".to_owned()),
        ];
        let own = own.iter().map(|(name, value)| (*name, value.as_str()));
        let extra = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let options: Vec<String> = own.chain(extra).map(|(name, value)| shell_setting(name, value)).collect();
        options.join(" ")
    }

    /// Whether process `pid` is a PostgreSQL server in this data directory.
    async fn is_our_postgres(&self, pid: &str) -> bool {
        let command_line = if cfg!(target_os = "linux") {
            // Empty for a process that has ended and is not yet reaped.
            fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
        } else {
            let mut command = self.user.command(Path::new("ps"), &self.home);
            command.args(["-o", "command=", "-p", pid]).stdout(Stdio::piped());
            command.output().await.map(|output| output.stdout).unwrap_or_default()
        };
        let command_line = String::from_utf8_lossy(&command_line);
        let program = command_line.split(['\0', ' ', '\n']).next().unwrap_or_default();
        let is_postgres = program.ends_with("postgres") || program.ends_with("postmaster");
        // The server works in its data directory. If that cannot be read, the name has to be enough.
        let in_our_data = fs::read_link(format!("/proc/{pid}/cwd")).map_or(true, |dir| dir == Self::data(&self.home));
        is_postgres && in_our_data
    }
}

/// The lines that a running server writes about itself, as documented in PostgreSQL's pidfile.h.
struct PidFile<'a> {
    process: &'a str,
    socket_dir: Option<&'a Path>,
    shared_memory: Option<&'a str>,
    is_stopping: bool,
}

impl<'a> PidFile<'a> {
    fn parse(text: &'a str) -> Self {
        let line = |number: usize| text.lines().nth(number - 1).unwrap_or_default().trim();
        Self {
            // Negative for a server in single-user mode.
            process: line(1).trim_start_matches('-'),
            socket_dir: Some(line(5)).filter(|dir| !dir.is_empty()).map(Path::new),
            // The key and the id of the shared memory.
            shared_memory: line(7).split_whitespace().nth(1),
            is_stopping: line(8) == "stopping",
        }
    }

    /// Whether any process uses the server's shared memory. Known only on Linux.
    fn shared_memory_is_used(&self) -> bool {
        let table = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        // The columns are key, shmid, perms, size, cpid, lpid, nattch and others.
        rows.filter(|row| row.get(1).copied() == self.shared_memory)
            .any(|row| row.get(6).is_some_and(|attached| *attached != "0"))
    }
}

fn shell_setting(name: &str, value: &str) -> String {
    format!("-c '{}'", format!("{name}={value}").replace('\'', r"'\''"))
}

fn step_failed(program: &str, error: io::Error) -> LocalPostgresError {
    LocalPostgresError::Command { program: program.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::shell_setting;

    #[test]
    fn a_setting_reaches_the_server_through_the_shell_unchanged() {
        assert_eq!(shell_setting("fsync", "off"), "-c 'fsync=off'");
        assert_eq!(shell_setting("cluster_name", "it's $HOME"), r"-c 'cluster_name=it'\''s $HOME'");
    }
}
