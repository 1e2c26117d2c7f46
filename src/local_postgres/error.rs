//! Errors of the private PostgreSQL. Each message is one line, says what to do, and contains no secret, because startup
//! prints it unchanged.

use std::path::PathBuf;

/// Why the private PostgreSQL could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum LocalPostgresError {
    #[error(
        "DATABASE_URL is unset and no usable PostgreSQL was found ({reason}): install PostgreSQL 14 or newer \
         (for example `apt-get install postgresql`), run the service in a container that has it, or set DATABASE_URL"
    )]
    NotFound { reason: String },
    #[error(
        "DATA_DIR {} was made by PostgreSQL {needed}, but only {found} was found: \
         install PostgreSQL {needed}, choose another DATA_DIR or set DATABASE_URL",
        data_dir.display()
    )]
    OtherVersion { data_dir: PathBuf, needed: u32, found: String },
    #[error(
        "DATA_DIR {} is in use by another agentpay-billing: stop that one, choose another DATA_DIR or set DATABASE_URL",
        data_dir.display()
    )]
    InUse { data_dir: PathBuf },
    #[error(
        "DATA_DIR {} is not writable ({reason}): make it writable for this user, choose another DATA_DIR or set DATABASE_URL",
        data_dir.display()
    )]
    NotWritable { data_dir: PathBuf, reason: String },
    #[error(
        "{} belongs to the user with id {owner}: run the service as that user, choose another DATA_DIR or set DATABASE_URL",
        path.display()
    )]
    OtherOwner { path: PathBuf, owner: u32 },
    #[error(
        "{} is a link, and the data have to lie in DATA_DIR: remove the link and move {} to its place, or set DATABASE_URL",
        link.display(), target.display()
    )]
    Linked { link: PathBuf, target: PathBuf },
    #[error(
        "DATA_DIR {} cannot be used: the user {user}, who runs PostgreSQL because root may not, cannot enter {} (mode {mode:04o}): \
         `chmod o+x {}`, choose a DATA_DIR elsewhere, such as /var/lib/agentpay-billing, or set DATABASE_URL",
        data_dir.display(), dir.display(), dir.display()
    )]
    Unreachable { data_dir: PathBuf, dir: PathBuf, mode: u32, user: String },
    #[error(
        "initdb needs a name for the user with id {uid}, who has none: add a line for it to /etc/passwd \
         (such as `agentpay:x:{uid}:{uid}::/:/sbin/nologin`), run the service as a user that has one, or set DATABASE_URL"
    )]
    NamelessUser { uid: u32 },
    #[error(
        "the PostgreSQL of DATA_DIR {} belongs to a service that has not started it ({reason}): look into the log of that \
         service, or run the command as its user",
        data_dir.display()
    )]
    NotStarted { data_dir: PathBuf, reason: String },
    #[error(
        "PostgreSQL refuses to run as root and neither of the users postgres and nobody exists: \
         run the service as an ordinary user or set DATABASE_URL"
    )]
    NoServerUser,
    #[error(
        "no directory for the PostgreSQL socket ({reason}): remove what is in the way, choose a shorter DATA_DIR or set DATABASE_URL"
    )]
    SocketDirectory { reason: String },
    #[error("{program} failed ({reason}): repair that, choose another DATA_DIR or set DATABASE_URL")]
    Command { program: String, reason: String },
    #[error("PostgreSQL did not start ({reason}): look into {}, or set DATABASE_URL", log.display())]
    StartFailed { reason: String, log: PathBuf },
    #[error("PostgreSQL runs but refuses us ({reason}): look into {}, or set DATABASE_URL", log.display())]
    Refused { reason: String, log: PathBuf },
    #[error("PostgreSQL said nothing for {limit_s} s: look into {}, or set DATABASE_URL", log.display())]
    NotReady { limit_s: u64, log: PathBuf },
    #[error("PostgreSQL runs but the database {database} could not be made: {reason}")]
    Database { database: String, reason: String },
}
