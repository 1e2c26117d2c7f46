//! Citus, the distributed PostgreSQL. It keeps a distributed schema on one node, which any node finds in its catalog. The
//! catalog is no part of our schema, so these statements are not checked when the program is compiled.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::domain::cell::Dialect;

use super::address::Address;
use super::{StoreError, corrupt, server};

/// The oldest supported version of Citus: the first that distributes schemas.
pub const VERSION_MIN: i32 = 12;

/// A node of Citus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub host: String,
    pub port: u16,
    pub group: i32,
}

impl Node {
    /// How to connect to it.
    pub fn options(&self, coordinator: &PgConnectOptions) -> PgConnectOptions {
        coordinator.clone().host(&self.host).port(self.port)
    }
}

/// The major version of Citus in this database. `None`: it is not installed.
pub async fn major_version(connection: &mut PgConnection) -> Result<Option<i32>, StoreError> {
    let version = sqlx::query(
        "-- citus::major_version
        SELECT split_part(extversion, '.', 1)::int FROM pg_extension WHERE extname = 'citus'",
    );
    Ok(version.fetch_optional(connection).await?.map(|row| row.try_get(0)).transpose()?)
}

/// Whether Citus distributes the schema of this connection.
pub async fn dialect(connection: &mut PgConnection) -> Result<Dialect, StoreError> {
    if major_version(connection).await?.is_none() {
        return Ok(Dialect::PostgreSql);
    }
    let is_distributed = sqlx::query(
        "-- citus::dialect
        SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = to_regclass('tenants'))",
    );
    Ok(if is_distributed.fetch_one(connection).await?.try_get(0)? { Dialect::Citus } else { Dialect::PostgreSql })
}

/// The node that has the distributed schema of this connection. `None` if there is no such schema.
pub async fn owner(connection: &mut PgConnection) -> Result<Option<Node>, StoreError> {
    let owner = sqlx::query(
        "-- citus::owner
        SELECT node.nodename, node.nodeport, node.groupid
        FROM pg_dist_shard AS shard
        JOIN pg_dist_placement AS placement ON placement.shardid = shard.shardid
        JOIN pg_dist_node AS node ON node.groupid = placement.groupid AND node.noderole = 'primary'
        WHERE shard.logicalrelid = to_regclass('tenants')",
    );
    let Some(row) = owner.fetch_optional(connection).await? else { return Ok(None) };
    let port: i32 = row.try_get(1)?;
    Ok(Some(Node { host: row.try_get(0)?, port: port as u16, group: row.try_get(2)? }))
}

/// Whether the connection leads to a node: its name may mean another machine here than it means to the coordinator.
pub async fn is_node(connection: &mut PgConnection, node: &Node) -> Result<bool, StoreError> {
    let own = sqlx::query("-- citus::is_node\nSELECT groupid FROM pg_dist_local_group");
    let group: i32 = own.fetch_one(&mut *connection).await?.try_get(0)?;
    Ok(group == node.group && owner(connection).await?.as_ref() == Some(node))
}

/// The address of the database that `connection` leads to, and a connection to it. On Citus it is the node that has the
/// schema: only there one snapshot serves several statements.
pub async fn locate(
    mut connection: PgConnection,
    options: &PgConnectOptions,
    statement_timeout: Duration,
) -> Result<(PgConnection, Address), StoreError> {
    if !dialect(&mut connection).await?.is_citus() {
        return Ok((connection, options.clone().into()));
    }
    let node = owner(&mut connection).await?.ok_or_else(|| corrupt("the schema is on no node of Citus"))?;
    let options = node.options(options);
    let mut connection = server::connect(&options, statement_timeout).await?;
    if !is_node(&mut connection, &node).await? {
        return Err(corrupt("another node of Citus answers at the address of the one that has the schema"));
    }
    Ok((connection, Address::new(options, Dialect::Citus)))
}

/// The size of the distributed schema of this connection. The tables that a connection sees are empty: rows are in others.
pub async fn bytes(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let bytes = sqlx::query(
        "-- citus::bytes
        SELECT coalesce(sum(citus_total_relation_size(logicalrelid)), 0)::bigint FROM pg_dist_partition
        WHERE logicalrelid IN (SELECT oid FROM pg_class WHERE relnamespace = current_schema()::regnamespace)",
    );
    Ok(bytes.fetch_one(connection).await?.try_get(0)?)
}

/// Creates a schema, unless it exists. Its name is as in CELLS_FILE.
pub async fn create_schema(connection: &mut PgConnection, schema: &str) -> Result<(), StoreError> {
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\""))).execute(connection).await?;
    Ok(())
}

/// Distributes the schema of an empty cell. The numbers of the cell, which now come from a row, begin at 1.
pub async fn distribute(connection: &mut PgConnection, schema: &str, cell_number: i16) -> Result<(), StoreError> {
    let row = format!(
        "INSERT INTO citus_positions (cell_number, last_position) VALUES ({cell_number}, 0) ON CONFLICT DO NOTHING"
    );
    sqlx::raw_sql(AssertSqlSafe(row)).execute(&mut *connection).await?;
    let distribute = format!("SELECT citus_schema_distribute('{schema}')");
    sqlx::raw_sql(AssertSqlSafe(distribute)).execute(connection).await?;
    Ok(())
}

/// The commands of an SQL text, without those that are empty. Citus runs one at a time.
pub fn commands(text: &str) -> Vec<&str> {
    let mut commands = Vec::new();
    let (mut start, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text[at..];
        // What a semicolon does not end, with its closing mark.
        at += match rest.as_bytes()[0] {
            b';' => {
                commands.push(&text[start..at]);
                start = at + 1;
                1
            }
            b'\'' => through(rest, 1, "'"),
            b'"' => through(rest, 1, "\""),
            b'-' if rest.starts_with("--") => through(rest, 2, "\n"),
            b'/' if rest.starts_with("/*") => through(rest, 2, "*/"),
            b'$' => match rest[1..].find('$') {
                Some(end) if rest[1..=end].bytes().all(|byte| byte == b'_' || byte.is_ascii_alphabetic()) => {
                    through(rest, end + 2, &rest[..end + 2])
                }
                _ => 1,
            },
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
    }
    commands.push(&text[start..]);
    let has_text = |command: &&str| {
        let mut lines = command.lines().map(str::trim);
        lines.any(|line| !line.is_empty() && !line.starts_with("--"))
    };
    commands.into_iter().filter(has_text).collect()
}

/// The length of what begins `text` and ends with the first `end` after `from`. A doubled quote begins the next part.
fn through(text: &str, from: usize, end: &str) -> usize {
    text[from..].find(end).map_or(text.len(), |found| from + found + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MIGRATOR;

    #[test]
    fn commands_end_at_semicolons_outside_of_quotes_and_comments() {
        let text = "/* a; b */\nSELECT 'x;''y';\n\n/* ; */ SELECT $$ ; $$, $a$ ; $$ ; $a$, \"c;d\", $1;\n-- the end;\n";
        let parts: Vec<&str> = commands(text).into_iter().map(str::trim).collect();
        assert_eq!(parts, ["/* a; b */\nSELECT 'x;''y'", "/* ; */ SELECT $$ ; $$, $a$ ; $$ ; $a$, \"c;d\", $1"]);
        assert_eq!(commands(" ;; -- nothing\n").len(), 0);
    }

    #[test]
    fn the_migrations_consist_of_commands() {
        let words = ["CREATE", "COMMENT", "INSERT", "ALTER", "DROP", "UPDATE", "SELECT"];
        for migration in MIGRATOR.iter() {
            for command in commands(migration.sql.as_str()) {
                let line = command.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("--"));
                let first = line.and_then(|line| line.split(' ').next()).unwrap_or_default();
                assert!(words.contains(&first), "{}: {command}", migration.version);
            }
        }
    }
}
