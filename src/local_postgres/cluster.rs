//! One PostgreSQL data directory: making it, starting and stopping its server, and telling what state it is in.
//! The server outlives its starter by design (pg_ctl gives it a session of its own), so every start first looks
//! at what an earlier service left behind.

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

/// The superuser and owner of everything in the private PostgreSQL.
pub(super) const SUPERUSER: &str = "agentpay";

/// The port names the socket file only; fixed, so that a PGPORT in the environment cannot lead elsewhere.
pub(super) const PORT: u16 = 5432;

/// The log of the server is set aside once it is larger than this.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How long pg_ctl waits for a start, before we ask the server itself how far it is, and for a stop.
const START_LIMIT_S: &str = "5";
const STOP_LIMIT_S: &str = "60";

/// How many connections the server allows, if its starter has no wish.
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

/// What stands behind the data directory right now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ServerState {
    Stopped,
    /// A server of this directory is alive, at least as a process.
    Alive,
    /// The same, but its socket is not where we would look for it.
    AliveElsewhere,
    /// A server of this directory waits for its connections to end, and ends then.
    Stopping,
    /// A server of this directory is dead, and its children have not noticed.
    Ending,
}

impl Cluster {
    pub(super) fn data(home: &Path) -> PathBuf {
        home.join("data")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.home.join("server.log")
    }

    /// Makes the data directory unless it is there. It gets its name only when it is complete, so that a crash in the
    /// middle leaves nothing that looks like data.
    pub(super) async fn initialise_once(&self) -> Result<(), LocalPostgresError> {
        let data = Self::data(&self.home);
        if data.join("PG_VERSION").exists() {
            return Ok(());
        }
        self.clear_unfinished();
        // The process id keeps an initdb that outlived its killed service from writing into ours.
        let name = format!("data.new.{}", std::process::id());
        let pgdata = format!("--pgdata={name}");
        let superuser = format!("--username={SUPERUSER}");
        let mut arguments = vec![
            &pgdata,
            &superuser,
            // No password: the server listens on nothing but a Unix socket in a directory closed to all other users.
            "--auth=trust",
            "--encoding=UTF8",
            // Bytewise order is the same on every system and never changes with an update of the C library, which
            // would corrupt the indexes; C.UTF-8 does not exist everywhere.
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
        // Without this a power failure could undo the rename after the first payments were acknowledged.
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
            // By this file PostgreSQL would see that children of the dead server still work on the data.
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

    /// Where the server of `home` has its socket, as it says itself: a command may have another TMPDIR than its service.
    pub(super) fn socket_dir_of(home: &Path) -> io::Result<Option<PathBuf>> {
        let pid_file = fs::read_to_string(Self::data(home).join("postmaster.pid"))?;
        Ok(PidFile::parse(&pid_file).socket_dir.map(Path::to_owned))
    }

    /// Sets a long log aside: copied and emptied, because the server keeps the file open, and appends to it. Its user does
    /// that: root would follow a link of that user's. Failing at it is no reason not to serve.
    pub(super) async fn limit_log(&self) {
        let log = self.log();
        if !tokio::fs::metadata(&log).await.is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
            return;
        }
        let script = "cp server.log server.log.old; : >server.log";
        let _ = self.user.run(Path::new("sh"), &self.home, &["-c", script]).await;
    }

    /// Starts the server, and waits a little for it to accept connections. One that needs longer is alive; a failure comes
    /// with the telling line of its log.
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

    /// Stops the server in one of pg_ctl's modes; one that is stopped already is fine. A start that was given up half-way
    /// is undone.
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

    /// Runs pg_ctl without pipes: the server inherits what pg_ctl has open, and would keep a pipe open for ever.
    async fn pg_ctl(&self, arguments: &[&str]) -> Result<std::process::ExitStatus, LocalPostgresError> {
        self.pg_ctl_command(arguments).status().await.map_err(|error| step_failed("pg_ctl", error))
    }

    fn pg_ctl_command(&self, arguments: &[&str]) -> Command {
        // Relative to its home, because pg_ctl hands these paths to a shell without quoting them properly.
        let mut command = self.user.command(&self.binaries.dir.join("pg_ctl"), &self.home);
        command.arg("-D").arg("data").args(arguments);
        command
    }

    /// Ends the server, or the program that starts it, without waiting for anything. The next start recovers.
    pub(super) fn abort(&self) {
        self.start_program.end();
        let pid_file = fs::read_to_string(self.pid_file()).unwrap_or_default();
        let pid = pid_file.lines().next().unwrap_or_default().trim();
        // Without a sign that the process works in our data directory the number may belong to another one by now.
        let is_ours = fs::read_link(format!("/proc/{pid}/cwd"))
            .map_or(!cfg!(target_os = "linux"), |dir| dir == Self::data(&self.home));
        if is_ours && let Some(process) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(process, Signal::QUIT);
        }
    }

    /// Removes what a crash in the middle of initdb left; should that fail, it takes up space and nothing else.
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

    /// PostgreSQL removes stale files itself only when no process at all has the id in them. After a reboot, in a new
    /// container or while a dead server is not reaped some process has it, and PostgreSQL would refuse to start.
    fn remove_stale_pid_files(&self) -> io::Result<()> {
        match fs::remove_file(self.socket_dir.join(format!("{SOCKET_NAME}.lock"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::remove_file(self.pid_file())
    }

    /// How many connections the server is told to allow.
    pub(super) fn connections_max(&self) -> u32 {
        let wished = self.settings.iter().rfind(|(name, _)| name == "max_connections");
        wished.map_or(CONNECTIONS_MAX, |(_, value)| value).parse().unwrap_or(0)
    }

    /// The `-o` of pg_ctl, which a shell reads.
    fn server_options(&self) -> String {
        // The setting is a list with commas, in which a name may stand in double quotes.
        let socket_dir = self.socket_dir.to_string_lossy().replace('"', "\"\"");
        let own = [
            ("listen_addresses", String::new()),
            ("port", PORT.to_string()),
            ("unix_socket_directories", format!("\"{socket_dir}\"")),
            ("unix_socket_permissions", "0700".to_owned()),
            ("max_connections", CONNECTIONS_MAX.to_owned()),
            // Its log would hold the whole statement of each commit that met another one.
            ("log_min_error_statement", "panic".to_owned()),
        ];
        let own = own.iter().map(|(name, value)| (*name, value.as_str()));
        let extra = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let options: Vec<String> = own.chain(extra).map(|(name, value)| shell_setting(name, value)).collect();
        options.join(" ")
    }

    /// Whether process `pid` is a PostgreSQL server in our data directory.
    async fn is_our_postgres(&self, pid: &str) -> bool {
        let command_line = if cfg!(target_os = "linux") {
            // Empty for a process that is dead but not yet reaped, as happens below a container's first process.
            fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
        } else {
            let mut command = self.user.command(Path::new("ps"), &self.home);
            command.args(["-o", "command=", "-p", pid]).stdout(Stdio::piped());
            command.output().await.map(|output| output.stdout).unwrap_or_default()
        };
        let command_line = String::from_utf8_lossy(&command_line);
        let program = command_line.split(['\0', ' ', '\n']).next().unwrap_or_default();
        let is_postgres = program.ends_with("postgres") || program.ends_with("postmaster");
        // The server works in its data directory; where that cannot be read, the name has to do.
        let in_our_data = fs::read_link(format!("/proc/{pid}/cwd")).map_or(true, |dir| dir == Self::data(&self.home));
        is_postgres && in_our_data
    }
}

/// What a server writes about itself while it runs, line by line (documented in PostgreSQL's pidfile.h).
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
            // Negative for a server in single-user mode, without a postmaster.
            process: line(1).trim_start_matches('-'),
            socket_dir: Some(line(5)).filter(|dir| !dir.is_empty()).map(Path::new),
            // A key and an id.
            shared_memory: line(7).split_whitespace().nth(1),
            is_stopping: line(8) == "stopping",
        }
    }

    /// Whether some process has the server's shared memory. Only Linux says so in a file.
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
