//! The schema explains itself in psql: every table, column, index, sequence, view, function and type has a comment.

use sqlx::postgres::PgPool;

use crate::support::{new_database, pool};

/// Objects of the schema without a comment. A sequence of an identity column needs none: its column has one.
const UNEXPLAINED: &str = "
    WITH class AS (
        SELECT oid, relkind FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relname NOT LIKE '\\_sqlx\\_migrations%'
    ), object (classid, objid, objsubid, comment) AS (
        SELECT 'pg_class'::regclass, oid, 0, obj_description(oid, 'pg_class') FROM class
        WHERE relkind IN ('r', 'p', 'v', 'm', 'i')
           OR relkind = 'S' AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = class.oid AND deptype = 'i')
        UNION ALL
        SELECT 'pg_class'::regclass, attrelid, attnum, col_description(attrelid, attnum)
        FROM pg_attribute JOIN class ON class.oid = attrelid
        WHERE relkind IN ('r', 'p', 'v', 'm') AND attnum > 0 AND NOT attisdropped
        UNION ALL
        SELECT 'pg_proc'::regclass, oid, 0, obj_description(oid, 'pg_proc') FROM pg_proc
        WHERE pronamespace = current_schema()::regnamespace
        UNION ALL
        SELECT 'pg_type'::regclass, pg_type.oid, 0, obj_description(pg_type.oid, 'pg_type')
        FROM pg_type LEFT JOIN class ON class.oid = typrelid
        WHERE typnamespace = current_schema()::regnamespace AND (typtype IN ('d', 'e', 'r') OR relkind = 'c')
    )
    SELECT pg_describe_object(classid, objid, objsubid) FROM object WHERE comment IS NULL ORDER BY 1";

async fn unexplained(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar(UNEXPLAINED).fetch_all(pool).await.expect("the catalog")
}

#[tokio::test]
async fn everything_in_the_schema_has_a_comment() {
    let pool = pool(&new_database().await);
    assert_eq!(unexplained(&pool).await, Vec::<String>::new());
}

#[tokio::test]
async fn an_object_of_any_kind_without_a_comment_is_found() {
    let pool = pool(&new_database().await);
    let objects = "CREATE TABLE t (c int PRIMARY KEY); CREATE VIEW v AS SELECT c FROM t; CREATE INDEX i ON t (c);
                   CREATE SEQUENCE s; CREATE DOMAIN d AS int; CREATE TYPE y AS (c int);
                   CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'";
    sqlx::raw_sql(objects).execute(&pool).await.expect("objects");
    let expected = [
        "column c of table t",
        "column c of view v",
        "function f()",
        "index i",
        "index t_pkey",
        "sequence s",
        "table t",
        "type d",
        "type y",
        "view v",
    ];
    assert_eq!(unexplained(&pool).await, expected);
}
