//! Staging tables in SQLite. All functions run within a transaction.

use rusqlite::{Connection, params};

use longshore_domain::{ColumnType, ImportId, LoadPlan, Target};

use super::connection::{self, failure};
use super::describe;
use super::fence;
use crate::destination::{DestinationError, Ticket, sql};

/// See [`crate::destination::Destination::prepare_staging`].
pub(super) fn prepare(connection: &Connection, ticket: Ticket, plan: &LoadPlan) -> Result<bool, DestinationError> {
    describe::check_schema(&plan.table)?;
    if !fence::admits(connection, ticket)? {
        return Ok(false);
    }
    let name = sql::staging_name(ticket.import, ticket.attempt);
    drop_all(connection, ticket.import, Some(&name))?;
    let (import, attempt) = (ticket.import.to_string(), i64::from(ticket.attempt.0));
    for statement in [
        "DELETE FROM longshore_ledger WHERE import = ?1 AND attempt <> ?2",
        "DELETE FROM longshore_rejects WHERE import = ?1 AND attempt <> ?2",
    ] {
        connection.execute(statement, params![import, attempt]).map_err(failure)?;
    }
    if !exists(connection, &name)? {
        let has_ledger: bool = connection
            .query_row(
                "SELECT EXISTS (SELECT 1 FROM longshore_ledger WHERE import = ?1 AND attempt = ?2)",
                params![import, attempt],
                |row| row.get(0),
            )
            .map_err(failure)?;
        if has_ledger {
            return Err(lost(&name));
        }
        connection.execute_batch(&create_statement(plan, &name)?).map_err(|error| misfit(plan, &error))?;
    }
    if plan.target == Target::ExistingTable {
        let insert = insert_statement(plan, &name, "")?;
        connection.prepare(&format!("EXPLAIN {insert}")).map_err(|error| misfit(plan, &error))?;
    }
    Ok(true)
}

/// Whoever hands out chunks has raised the fence to its epoch: where it is older, the database was set back.
pub(super) fn set_back() -> DestinationError {
    DestinationError::StagingLost { reason: "the fence is older than the chunk's owner".to_owned() }
}

/// Staged work is gone.
pub(super) fn lost(name: &str) -> DestinationError {
    DestinationError::StagingLost { reason: format!("the table {name} is not there") }
}

/// Whether a table is there.
pub(super) fn exists(connection: &Connection, name: &str) -> Result<bool, DestinationError> {
    connection
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE AND type IN ('table', 'view'))",
            params![name],
            |row| row.get(0),
        )
        .map_err(failure)
}

/// Drops an import's staging tables, but for one.
pub(super) fn drop_all(connection: &Connection, import: ImportId, keep: Option<&str>) -> Result<(), DestinationError> {
    let mut statement = connection
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND substr(name, 1, length(?1)) = ?1")
        .map_err(failure)?;
    let names = statement
        .query_map(params![sql::staging_prefix(import)], |row| row.get::<_, String>(0))
        .and_then(Iterator::collect::<Result<Vec<String>, _>>)
        .map_err(failure)?;
    for name in names.iter().filter(|name| keep != Some(name.as_str())) {
        connection.execute_batch(&format!("DROP TABLE {}", sql::identifier(name)?)).map_err(failure)?;
    }
    Ok(())
}

/// An attempt's rows, in the order of the file, for an existing table.
pub(super) fn insert_statement(plan: &LoadPlan, name: &str, condition: &str) -> Result<String, DestinationError> {
    let (table, columns) = (table(plan)?, sql::column_list(plan)?);
    let (staging, row) = (sql::identifier(name)?, sql::identifier(&sql::row_column(plan))?);
    Ok(format!("INSERT INTO {table} ({columns}) SELECT {columns} FROM main.{staging} {condition} ORDER BY {row}"))
}

/// The destination table, quoted.
pub(super) fn table(plan: &LoadPlan) -> Result<String, DestinationError> {
    sql::qualified("main", plan.table.name())
}

/// For a new table, the table itself. For an existing one the row's number is the key, so that its order and ranges of it
/// cost nothing.
fn create_statement(plan: &LoadPlan, name: &str) -> Result<String, DestinationError> {
    let mut columns = Vec::with_capacity(plan.fields.len() + 1);
    let new = plan.target == Target::NewTable;
    if !new {
        columns.push(format!("{} INTEGER PRIMARY KEY", sql::identifier(&sql::row_column(plan))?));
    }
    for field in &plan.fields {
        let null = if new && !field.nullable { " NOT NULL" } else { "" };
        columns.push(format!("{} {}{null}", sql::identifier(&field.name)?, column_type(&field.kind)));
    }
    Ok(format!("CREATE TABLE main.{} ({})", sql::identifier(name)?, columns.join(", ")))
}

fn column_type(kind: &ColumnType) -> &'static str {
    match kind {
        ColumnType::Bool | ColumnType::Int32 | ColumnType::Int64 => "INTEGER",
        ColumnType::Float64 => "REAL",
        ColumnType::Decimal { .. }
        | ColumnType::Text
        | ColumnType::Date
        | ColumnType::Time
        | ColumnType::Timestamp
        | ColumnType::Timestamptz
        | ColumnType::Uuid
        | ColumnType::Json => "TEXT",
        // No affinity: the text stays as it is until the table's own column takes it.
        ColumnType::Native(_) => "",
    }
}

fn misfit(plan: &LoadPlan, error: &rusqlite::Error) -> DestinationError {
    sql::refused(format!("the rows do not fit the table '{}': {}", plan.table, connection::describe(error)))
}
