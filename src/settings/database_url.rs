//! Parses DATABASE_URL. An error describes the mistake, and never repeats a part that may be the password.

use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::{ParseError, Url};

use super::error::SettingsError;

const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

/// The connection options for `url`.
pub(super) fn parse(url: &str) -> Result<PgConnectOptions, SettingsError> {
    parse_named(url).map_err(|problem| SettingsError(format!("DATABASE_URL {problem}")))
}

/// The same for a URL with another name, which the caller puts before the description of the mistake.
pub(super) fn parse_named(url: &str) -> Result<PgConnectOptions, String> {
    explain(url).map_or_else(|| read(url), Err)
}

fn read(url: &str) -> Result<PgConnectOptions, String> {
    // The driver's message may contain a part of the URL.
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| "is no valid URL: one of its parameters has a value that is not accepted".to_owned())?;
    // The driver would resolve the brackets of an IPv6 address as a part of the name.
    let address = options.get_host().strip_prefix('[').and_then(|host| host.strip_suffix(']')).map(str::to_owned);
    Ok(match address {
        Some(address) => options.host(&address),
        None => options,
    })
}

/// Describes common mistakes.
fn explain(url: &str) -> Option<String> {
    if url.starts_with(['"', '\'']) {
        return Some("has quotes around it, which belong to the shell: remove them".to_owned());
    }
    if url.starts_with("jdbc:") {
        let form = "postgres://user:password@host:5432/database";
        return Some(format!("is a JDBC URL: remove jdbc: and put user and password before the host, as in {form}"));
    }
    let Some(rest) = SCHEMES.iter().find_map(|scheme| url.strip_prefix(scheme)) else {
        let is_key_value = !url.contains("://") && url.contains('=');
        let found = if is_key_value { ", not key=value pairs" } else { "" };
        return Some(format!("must be a postgres:// or postgresql:// URL{found}"));
    };
    if url.contains(|symbol: char| symbol.is_whitespace() || symbol.is_control()) {
        return Some("contains a space or a line break: write a space as %20".to_owned());
    }
    if rest.contains('#') {
        return Some("contains a #, which ends a URL: in a password write it as %23".to_owned());
    }
    let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path_and_query) = rest.split_at(authority_end);
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    if path.contains('@') {
        return Some("has a / before its @: in a password write / as %2F".to_owned());
    }
    if !authority.contains('@')
        && query.split('&').next().is_some_and(|first| first.contains('@') && !first.contains('='))
    {
        return Some("has a ? before its @: in a password write ? as %3F".to_owned());
    }
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.contains(',') {
        return Some(
            "names several hosts: name one, such as the address of a pooler or a name that follows the primary"
                .to_owned(),
        );
    }
    let parsed = match Url::parse(url) {
        Ok(parsed) => parsed,
        Err(error) => return Some(unparsed(error).to_owned()),
    };
    let parameter =
        |names: &[&str]| parsed.query_pairs().find(|(name, _)| names.contains(&&**name)).map(|(_, value)| value);
    if let Some(mode) = parameter(&["sslmode", "ssl-mode"])
        && mode.parse::<PgSslMode>().is_err()
    {
        return Some(
            "has an unknown sslmode: disable, allow, prefer, require, verify-ca and verify-full are known".to_owned(),
        );
    }
    if let Some(hosts) = parameter(&["host", "hostaddr"])
        && hosts.contains(',')
    {
        return Some(
            "names several hosts: name one, such as the address of a pooler or a name that follows the primary"
                .to_owned(),
        );
    }
    // Otherwise the start would wait for the file to appear.
    for name in ["sslrootcert", "sslcert", "sslkey"] {
        if let Some(path) = parameter(&[name])
            && !path.starts_with("-----BEGIN")
            && let Err(error) = std::fs::File::open(&*path)
        {
            return Some(format!("names the {name} {path}, which cannot be read: {error}"));
        }
    }
    let names_database = !parsed.path().trim_start_matches('/').is_empty() || parameter(&["dbname"]).is_some();
    (!names_database).then(|| "names no database: it ends in /database".to_owned())
}

fn unparsed(error: ParseError) -> &'static str {
    match error {
        ParseError::InvalidPort => {
            "has no valid port: it is a number between 1 and 65535, and a : in a user name is written as %3A"
        }
        ParseError::InvalidIpv6Address => "has no valid IPv6 address between [ and ]",
        ParseError::EmptyHost => {
            "names no host: for a Unix socket write localhost, and its directory as ?host=/directory"
        }
        _ => "is no valid URL: in user and password, everything but letters and digits is percent-encoded",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for (url, expected) in [
            ("mysql://u:secret@h/db", "must be a postgres:// or postgresql:// URL"),
            ("host=h user=u password=secret dbname=db", "not key=value pairs"),
            ("jdbc:postgresql://h/db?user=u&password=secret", "remove jdbc:"),
            ("\"postgres://u:secret@h/db\"", "quotes"),
            ("'postgres://u:secret@h/db'", "quotes"),
            ("postgres://u:sec#ret@h/db", "%23"),
            ("postgres://u:12#secret@h/db", "%23"),
            ("postgres://u:sec/ret@h/db", "%2F"),
            ("postgres://u:12/secret@h/db", "%2F"),
            ("postgres://u:p@secret/x@h/db", "%2F"),
            ("postgres://u:sec?ret@h/db", "%3F"),
            ("postgres://u:12?secret@h/db", "%3F"),
            ("postgres://u:sec ret@h/db", "%20"),
            ("postgres://u:secret@h1:5432,h2:5432/db", "several hosts"),
            ("postgres://u:secret@h/db?host=h1,h2", "several hosts"),
            ("postgres://u:secret@/db?host=h", "names no host"),
            ("postgres://u:secret@h:port/db", "port"),
            ("postgres://u:secret@h:99999/db", "port"),
            ("postgres://u:secret@[::1/db", "IPv6"),
            ("postgres://u:secret@h/db?sslmode=secret", "unknown sslmode"),
            ("postgres://u:secret@h", "names no database"),
            ("postgres://u:secret@h/?sslmode=require", "names no database"),
            ("postgres://u:secret@h/db?port=secret", "no valid URL"),
            ("postgres://u:secret@h/db?sslmode=verify-full&sslrootcert=/nowhere/ca.pem", "/nowhere/ca.pem"),
        ] {
            let error = parse(url).expect_err(url).to_string();
            assert!(error.starts_with("DATABASE_URL ") && error.contains(expected), "{url}: {error}");
            assert!(
                !error.contains("secret") && !error.contains("ret@") && error.lines().count() == 1,
                "{url}: {error}"
            );
        }
    }

    #[test]
    fn what_is_right_is_taken_as_it_is() {
        for (url, host, database) in [
            ("postgres://u:p%23%2F%3F%40@h:6432/db", "h", "db"),
            ("postgresql://u:p@ss@h/db?sslmode=verify-full&application_name=a@b", "h", "db"),
            ("postgres://u@[::1]:5432/db", "::1", "db"),
            ("postgres://h?dbname=db&user=u&password=p@ss", "h", "db"),
            ("postgres:///db?host=h", "h", "db"),
        ] {
            let options = parse(url).expect(url);
            assert_eq!((options.get_host(), options.get_database()), (host, Some(database)), "{url}");
        }
    }
}
