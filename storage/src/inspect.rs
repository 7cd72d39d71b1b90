//! What `longshore doctor` sees of the databases. Nothing is made: what a statement makes is rolled back with it.
//!
//! Both roles, control database and destination, are looked at in the same way; the caller knows which tables belong to
//! which.

use std::path::Path;
use std::time::Duration;

use chrono::Utc;
use rusqlite::OpenFlags;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};
use uuid::Uuid;

use crate::database::pending::MIGRATION_RECORDS;

/// How long a server may take to let us in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// How long the locks of a SQLite file are waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(3);
/// What the service does with its own tables.
const RIGHTS: [&str; 4] = ["SELECT", "INSERT", "UPDATE", "DELETE"];

/// The service's tables in the control database.
pub const CONTROL_TABLES: [&str; 3] = ["longshore_imports", "longshore_chunks", "longshore_idempotency_keys"];
/// The service's tables in the destination.
pub const DESTINATION_TABLES: [&str; 3] = ["longshore_fences", "longshore_ledger", "longshore_rejects"];

/// What was seen of a database.
#[derive(Debug, Clone, Default)]
pub struct DatabaseFacts {
    /// `PostgreSQL 15.14`, `SQLite 3.50.4`.
    pub version: String,
    /// PostgreSQL's number of it, 150014; 0 for SQLite.
    pub version_number: i32,
    /// Who we are there, and in which database; for SQLite the file.
    pub place: String,
    /// Where tables go that no schema was said for.
    pub schema: Option<String>,
    /// How far its clock is ahead of ours, in milliseconds; `None` where it is the same clock.
    pub clock_ahead_ms: Option<i64>,
    /// Why tables cannot be made and written; `None` where it was not tried.
    pub writable: Option<Result<(), String>>,
    /// Those of the asked tables that are not there.
    pub missing_tables: Vec<String>,
    /// Rights that are not granted, `UPDATE on longshore_imports`.
    pub missing_rights: Vec<String>,
    /// Migrations that it had.
    pub migrations: Vec<String>,
    /// Settings that give durability up, `fsync = off`.
    pub weak_settings: Vec<String>,
}

/// Looks at a PostgreSQL database, over one connection.
///
/// # Errors
/// What was seen instead, without credentials.
pub async fn postgres(url: &str, tables: &[&str]) -> Result<DatabaseFacts, String> {
    let (mut connection, place) = connect(url).await?;
    let facts = ask_postgres(&mut connection, place, tables).await.map_err(reason);
    // What it still holds is rolled back by that, whatever happened.
    let _ = connection.close().await;
    facts
}

/// Whether a PostgreSQL server lets us in.
///
/// # Errors
/// Why it does not, with its address, without credentials.
pub async fn reach_postgres(url: &str) -> Result<(), String> {
    let (connection, _) = connect(url).await?;
    let _ = connection.close().await;
    Ok(())
}

/// A connection, and what it leads to.
async fn connect(url: &str) -> Result<(PgConnection, String), String> {
    // The error's text may hold the URL.
    let options: PgConnectOptions = url.parse().map_err(|_| "the URL is not valid".to_owned())?;
    let options = options
        .application_name("longshore doctor")
        .options([("statement_timeout", "5s"), ("lock_timeout", "3s")])
        .disable_statement_logging();
    let place = format!(
        "{}@{}:{}/{}",
        options.get_username(),
        options.get_host(),
        options.get_port(),
        options.get_database().unwrap_or(options.get_username())
    );
    let connection = tokio::time::timeout(CONNECT_TIMEOUT, options.connect()).await;
    let connection = connection
        .map_err(|_| format!("{place} does not answer within {CONNECT_TIMEOUT:?}"))?
        .map_err(|error| format!("{place}: {}", reason(error)))?;
    Ok((connection, place))
}

async fn ask_postgres(
    connection: &mut PgConnection,
    place: String,
    tables: &[&str],
) -> Result<DatabaseFacts, sqlx::Error> {
    let before = Utc::now();
    let now: f64 = sqlx::query_scalar("SELECT (extract(epoch from clock_timestamp()) * 1000)::float8")
        .fetch_one(&mut *connection)
        .await?;
    let middle = before + (Utc::now() - before) / 2;
    let (version, version_number, schema): (String, i32, Option<String>) = sqlx::query_as(
        "SELECT current_setting('server_version'), current_setting('server_version_num')::int, current_schema()::text",
    )
    .fetch_one(&mut *connection)
    .await?;
    let weak_settings = sqlx::query_scalar(
        "SELECT name || ' = ' || setting FROM pg_settings \
         WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off' ORDER BY name",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut facts = DatabaseFacts {
        version: format!("PostgreSQL {}", version.split(' ').next().unwrap_or_default()),
        version_number,
        place,
        schema,
        clock_ahead_ms: Some(now as i64 - middle.timestamp_millis()),
        weak_settings,
        ..DatabaseFacts::default()
    };
    for table in tables {
        let there: bool =
            sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(table).fetch_one(&mut *connection).await?;
        if !there {
            facts.missing_tables.push((*table).to_owned());
            continue;
        }
        for right in RIGHTS {
            let granted: bool = sqlx::query_scalar("SELECT has_table_privilege(to_regclass($1), $2)")
                .bind(table)
                .bind(right)
                .fetch_one(&mut *connection)
                .await?;
            if !granted {
                facts.missing_rights.push(format!("{right} on {table}"));
            }
        }
    }
    for (table, column) in MIGRATION_RECORDS {
        let counted = "SELECT coalesce(has_table_privilege(to_regclass($1), 'SELECT'), false)";
        if sqlx::query_scalar(counted).bind(table).fetch_one(&mut *connection).await? {
            let sql = format!("SELECT {column} FROM {table} ORDER BY 1");
            let names: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut *connection).await?;
            facts.migrations.extend(names);
        }
    }
    facts.writable = Some(try_table(connection).await.map_err(reason));
    Ok(facts)
}

/// Makes a table, writes to it, and takes it all back.
async fn try_table(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let name = probe_table();
    let statement = format!("BEGIN; CREATE TABLE {name} (row_number bigint); INSERT INTO {name} VALUES (1); ROLLBACK");
    connection.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await?;
    Ok(())
}

/// Whether a SQLite file can be opened and written to; blocks. A lock of somebody else is no fault.
///
/// # Errors
/// What waiting does not mend: the file is no database, or may not be written.
pub fn sqlite_usable(path: &Path, make: bool) -> Result<(), String> {
    let access = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let flags = if make { access | OpenFlags::SQLITE_OPEN_CREATE } else { access };
    let opened = rusqlite::Connection::open_with_flags(path, flags);
    match opened.and_then(|connection| connection.execute_batch("BEGIN IMMEDIATE; ROLLBACK")) {
        Err(error) if for_good(&error) => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn for_good(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, DatabaseCorrupt, NotADatabase, PermissionDenied, ReadOnly};
    let code = error.sqlite_error_code();
    matches!(code, Some(CannotOpen | DatabaseCorrupt | NotADatabase | PermissionDenied | ReadOnly))
}

/// A name that no other table has, of digits and letters only.
fn probe_table() -> String {
    format!("longshore_doctor_{}", Uuid::now_v7().simple())
}

fn reason(error: sqlx::Error) -> String {
    match error {
        sqlx::Error::Configuration(_) => "the URL is not valid".to_owned(),
        sqlx::Error::Database(error) => match error.code() {
            Some(code) => format!("{} (SQLSTATE {code})", error.message()),
            None => error.message().to_owned(),
        },
        other => other.to_string(),
    }
}

/// Looks at a SQLite file that is there; blocks. Where somebody else owns the file, `write` is false, and nothing is locked.
///
/// # Errors
/// What was seen instead.
pub fn sqlite(path: &Path, tables: &[&str], write: bool) -> Result<DatabaseFacts, String> {
    let shown = |error: rusqlite::Error| format!("{}: {error}", path.display());
    // Reading and writing, but never making.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = rusqlite::Connection::open_with_flags(path, flags).map_err(shown)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(shown)?;
    let mut facts = DatabaseFacts {
        version: format!("SQLite {}", rusqlite::version()),
        place: path.display().to_string(),
        ..DatabaseFacts::default()
    };
    let has = |table: &str| {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1";
        connection.query_row(sql, [table], |row| row.get::<_, i64>(0)).map(|count| count > 0)
    };
    for table in tables {
        if !has(table).map_err(shown)? {
            facts.missing_tables.push((*table).to_owned());
        }
    }
    for (table, column) in MIGRATION_RECORDS {
        if has(table).map_err(shown)? {
            let mut statement =
                connection.prepare(&format!("SELECT {column} FROM {table} ORDER BY 1")).map_err(shown)?;
            let names = statement.query_map([], |row| row.get(0)).map_err(shown)?;
            facts.migrations.extend(names.collect::<Result<Vec<String>, _>>().map_err(shown)?);
        }
    }
    if write {
        let name = probe_table();
        let statements = format!(
            "BEGIN IMMEDIATE; CREATE TABLE {name} (row_number INTEGER); INSERT INTO {name} VALUES (1); ROLLBACK"
        );
        facts.writable = Some(connection.execute_batch(&statements).map_err(shown));
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sqlite_file_is_usable_unless_waiting_is_in_vain() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sqlite");
        assert!(sqlite_usable(&path, false).is_err() && !path.exists());
        assert_eq!(sqlite_usable(&path, true), Ok(()));
        let owner = rusqlite::Connection::open(&path).unwrap();
        owner.execute_batch("CREATE TABLE t (a); BEGIN EXCLUSIVE").unwrap();
        assert_eq!(sqlite_usable(&path, false), Ok(()), "another's lock passes");
        std::fs::write(folder.path().join("b.sqlite"), "a,b\n1,2\n").unwrap();
        assert!(sqlite_usable(&folder.path().join("b.sqlite"), true).unwrap_err().contains("not a database"));
        assert!(sqlite_usable(folder.path(), true).is_err());
    }

    #[test]
    fn a_look_at_a_sqlite_file_changes_nothing_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sqlite");
        assert!(sqlite(&path, &CONTROL_TABLES, true).is_err());
        assert!(!path.exists(), "a look makes no file");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE longshore_imports (id); CREATE TABLE longshore_migrations (version, applied_at); \
                 INSERT INTO longshore_migrations VALUES ('m1', 1)",
            )
            .unwrap();
        let facts = sqlite(&path, &CONTROL_TABLES, true).unwrap();
        assert_eq!(facts.missing_tables, ["longshore_chunks", "longshore_idempotency_keys"]);
        assert_eq!(facts.migrations, ["m1"]);
        assert_eq!(facts.writable, Some(Ok(())));
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        assert_eq!(tables, 2);
        // Another's lock is no reason to wait where nothing is written.
        connection.execute_batch("BEGIN EXCLUSIVE; ROLLBACK; BEGIN IMMEDIATE").unwrap();
        assert_eq!(sqlite(&path, &CONTROL_TABLES, false).unwrap().writable, None);
        assert!(matches!(sqlite(&path, &CONTROL_TABLES, true).unwrap().writable, Some(Err(_))));
    }
}
