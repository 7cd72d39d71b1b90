//! An existing table, as SQLite's schema has it.

use rusqlite::{Connection, OptionalExtension as _, params};

use longshore_domain::{ColumnType, TableColumn, TableDescription, TableName};

use super::connection::failure;
use crate::destination::{DestinationError, sql};

/// SQLite has one schema here.
pub(super) fn check_schema(table: &TableName) -> Result<(), DestinationError> {
    match table.schema() {
        None => Ok(()),
        Some(schema) if schema.eq_ignore_ascii_case("main") => Ok(()),
        Some(schema) => Err(sql::refused(format!("SQLite has no schema '{schema}'; leave it out, or say 'main'"))),
    }
}

/// See [`crate::destination::Destination::describe`].
pub(super) fn describe(
    connection: &Connection,
    table: &TableName,
) -> Result<Option<TableDescription>, DestinationError> {
    check_schema(table)?;
    let found: Option<(String, bool, bool)> = connection
        .query_row(
            "SELECT type, wr, strict FROM pragma_table_list WHERE schema = 'main' AND name = ?1 COLLATE NOCASE",
            params![table.name()],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()
        .map_err(failure)?;
    let Some((kind, without_rowid, strict)) = found else {
        return check_index(connection, table).map(|()| None);
    };
    if kind != "table" {
        return Err(sql::refused(format!("'{table}' is a {kind}; rows are imported into ordinary tables only")));
    }
    let mut statement = connection
        .prepare("SELECT name, type, \"notnull\", dflt_value IS NOT NULL, pk, hidden FROM pragma_table_xinfo(?1) ORDER BY cid")
        .map_err(failure)?;
    let rows = statement
        .query_map(params![table.name()], |row| {
            Ok(Row {
                name: row.get(0)?,
                declared: row.get(1)?,
                not_null: row.get(2)?,
                has_default: row.get(3)?,
                key: row.get(4)?,
                hidden: row.get(5)?,
            })
        })
        .and_then(Iterator::collect::<Result<Vec<Row>, _>>)
        .map_err(failure)?;
    let single_key = rows.iter().filter(|row| row.key > 0).count() == 1;
    let columns = rows.into_iter().map(|row| row.into_column(single_key && !without_rowid, strict)).collect();
    Ok(Some(TableDescription { columns }))
}

/// An index takes its name from the tables.
fn check_index(connection: &Connection, table: &TableName) -> Result<(), DestinationError> {
    let taken: bool = connection
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE AND type = 'index')",
            params![table.name()],
            |row| row.get(0),
        )
        .map_err(failure)?;
    if taken { Err(sql::refused(format!("'{table}' is an index; rows are imported into tables only"))) } else { Ok(()) }
}

/// A row of `table_xinfo`.
struct Row {
    name: String,
    declared: String,
    not_null: bool,
    has_default: bool,
    key: i64,
    /// 2 and 3: generated.
    hidden: i64,
}

impl Row {
    fn into_column(self, may_be_rowid: bool, strict: bool) -> TableColumn {
        // A null in it means the next number.
        let is_rowid = may_be_rowid && self.key > 0 && self.declared.eq_ignore_ascii_case("INTEGER");
        TableColumn {
            kind: kind(&self.declared),
            nullable: is_rowid || !self.not_null,
            has_default: is_rowid || self.has_default,
            generated: self.hidden >= 2,
            flexible: !strict || self.declared.eq_ignore_ascii_case("ANY"),
            name: self.name,
        }
    }
}

/// What a declared type holds, by SQLite's rules of affinity. Numbers of any form (`NUMERIC`, `DECIMAL(10,2)`) are native:
/// the text is written, and the column's affinity makes a number of it.
fn kind(declared: &str) -> ColumnType {
    let upper = declared.to_ascii_uppercase();
    let holds = |words: &[&str]| words.iter().any(|word| upper.contains(word));
    if holds(&["INT"]) {
        ColumnType::Int64
    } else if holds(&["CHAR", "CLOB", "TEXT", "BLOB", "DATE", "TIME", "JSON", "UUID", "ANY"]) || upper.is_empty() {
        ColumnType::Text
    } else if holds(&["REAL", "FLOA", "DOUB"]) {
        ColumnType::Float64
    } else if holds(&["BOOL"]) {
        ColumnType::Bool
    } else {
        ColumnType::Native(declared.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_types_follow_affinity() {
        for (declared, expected) in [
            ("INTEGER", ColumnType::Int64),
            ("bigint unsigned", ColumnType::Int64),
            ("varchar(3)", ColumnType::Text),
            ("", ColumnType::Text),
            ("DATETIME", ColumnType::Text),
            ("double precision", ColumnType::Float64),
            ("BOOLEAN", ColumnType::Bool),
            ("DECIMAL(10,2)", ColumnType::Native("DECIMAL(10,2)".into())),
        ] {
            assert_eq!(kind(declared), expected, "{declared}");
        }
    }
}
