//! Finds the PostgreSQL server programs of this machine: initdb, pg_ctl and postgres in one directory. Uses the newest
//! supported version, unless existing data has another major version, because only that version can read it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::error::LocalPostgresError;
use super::run_as::ServerUser;

/// The oldest supported major version.
const MAJOR_MIN: u32 = 14;

/// Where packages install the programs, as `<parent>/<prefix>*<suffix>`.
const USUAL_PLACES: [(&str, &str, &str); 9] = [
    ("/usr/lib/postgresql", "", "bin"),                          // Debian, Ubuntu
    ("/usr", "pgsql-", "bin"),                                   // the PostgreSQL project's RPMs
    ("/usr/libexec", "postgresql", ""),                          // Alpine
    ("/opt/homebrew/opt", "postgresql", "bin"),                  // Homebrew on Apple silicon
    ("/usr/local/opt", "postgresql", "bin"),                     // Homebrew on Intel
    ("/opt/homebrew", "bin", ""),                                // a linked Homebrew formula
    ("/usr/local", "bin", ""),                                   // the same on Intel
    ("/usr/local", "pgsql", "bin"),                              // built from source
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"), // Postgres.app
];

/// A directory of server programs, and their version.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    pub(super) dir: PathBuf,
    major: u32,
    minor: u32,
}

impl fmt::Display for Binaries {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// The newest programs that `user` can run. `fetched` is the directory of a downloaded server. `wanted_major` is the
/// version of existing data.
pub(super) async fn newest(
    user: &ServerUser,
    fetched: &Path,
    data_dir: &Path,
    wanted_major: Option<u32>,
) -> Result<Binaries, LocalPostgresError> {
    let mut found = Vec::new();
    for dir in candidates(user, fetched).await {
        if let Some(binaries) = inspect(user, dir).await {
            found.push(binaries);
        }
    }
    found.sort_by_key(|binaries: &Binaries| (binaries.major, binaries.minor));
    match wanted_major {
        Some(major) => found.iter().rfind(|binaries| binaries.major == major),
        None => found.iter().rfind(|binaries| binaries.major >= MAJOR_MIN),
    }
    .cloned()
    .ok_or_else(|| not_found(&found, data_dir, wanted_major))
}

async fn candidates(user: &ServerUser, fetched: &Path) -> Vec<PathBuf> {
    let mut dirs = vec![fetched.join("bin")];
    dirs.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).filter(|dir| dir.is_absolute()));
    if let Ok(output) = user.run(Path::new("pg_config"), Path::new("/"), &["--bindir"]).await {
        dirs.push(PathBuf::from(output.trim()));
    }
    for (parent, prefix, suffix) in USUAL_PLACES {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
                dirs.push(entry.path().join(suffix));
            }
        }
    }
    let mut real_dirs: Vec<PathBuf> = dirs.iter().filter_map(|dir| real_dir(dir)).collect();
    real_dirs.sort();
    real_dirs.dedup();
    real_dirs
}

/// The directory in which the programs really are, because package managers install links. initdb looks for `postgres`
/// there.
fn real_dir(dir: &Path) -> Option<PathBuf> {
    let postgres = std::fs::canonicalize(dir.join("postgres")).ok()?;
    let complete = |dir: &Path| ["initdb", "pg_ctl", "postgres"].iter().all(|name| dir.join(name).is_file());
    let real = postgres.parent().filter(|real| complete(real));
    real.or(Some(dir).filter(|dir| complete(dir))).map(Path::to_owned)
}

async fn inspect(user: &ServerUser, dir: PathBuf) -> Option<Binaries> {
    // As the server's user, because that user has to be able to run it.
    let output = user.run(&dir.join("postgres"), Path::new("/"), &["--version"]).await.ok()?;
    let (major, minor) = parse_version(&output)?;
    Some(Binaries { dir, major, minor })
}

/// Parses `postgres (PostgreSQL) 15.18 (Debian 15.18-1)`. Betas (`18beta1`) are ignored: a release cannot read their
/// data.
fn parse_version(output: &str) -> Option<(u32, u32)> {
    let version = output.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    let (major, rest) = version.split_once('.')?;
    let minor = rest.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn not_found(found: &[Binaries], data_dir: &Path, wanted_major: Option<u32>) -> LocalPostgresError {
    let mut versions: Vec<String> = found.iter().map(|binaries| format!("PostgreSQL {}", binaries.major)).collect();
    versions.dedup();
    match wanted_major {
        Some(needed) if !found.is_empty() => {
            LocalPostgresError::OtherVersion { data_dir: data_dir.to_owned(), needed, found: versions.join(", ") }
        }
        _ if found.is_empty() => {
            LocalPostgresError::NotFound { reason: "searched PATH, pg_config and the usual directories".to_owned() }
        }
        _ => LocalPostgresError::NotFound { reason: format!("only {}, which is too old", versions.join(", ")) },
    }
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn the_version_is_read_from_what_postgres_prints() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some((15, 18)));
        assert_eq!(parse_version("postgres (PostgreSQL) 17.0\n"), Some((17, 0)));
        assert_eq!(parse_version("postgres (PostgreSQL) 9.6.24\n"), Some((9, 6)));
    }

    #[test]
    fn a_beta_is_no_usable_version() {
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n"), None);
        assert_eq!(parse_version("postgres (PostgreSQL) 19devel\n"), None);
    }
}
