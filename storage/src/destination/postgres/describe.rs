//! An existing table, as the catalogue has it.

use sqlx::postgres::{PgConnection, PgPool};

use longshore_domain::{ColumnType, FieldPlan, LoadPlan, TableColumn, TableDescription, TableName};

use super::session::{Session, Work, failure};
use crate::destination::{DestinationError, sql};

/// A table that rows can be inserted into.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// Its schema.
    pub(super) schema: String,
    /// Whether row-level security is on.
    pub(super) row_security: bool,
    /// Its columns, with their types as the database writes them.
    pub(super) columns: Vec<FoundColumn>,
}

impl Found {
    /// Whether COPY may take a plan's rows in the binary format, which says nothing of types: each column has to be what the
    /// plan says, since eight bytes are as good a number as a moment. COPY does not go through row-level security, either.
    pub(super) fn takes_binary(&self, plan: &LoadPlan) -> bool {
        let is_same = |field: &FieldPlan| {
            let column = self.columns.iter().map(|found| &found.column).find(|column| column.name == field.name);
            column.is_some_and(|column| column.kind == field.kind)
        };
        !self.row_security && plan.fields.iter().all(is_same)
    }
}

/// A column of it.
#[derive(Debug, Clone)]
pub(super) struct FoundColumn {
    /// As the rest of the service sees it.
    pub(super) column: TableColumn,
    /// `format_type`: fit for a CREATE TABLE.
    pub(super) native: String,
}

/// The fields of a [`Row`], in its order.
type Fields = (String, String, String, bool, i32, bool, bool, bool);

/// A row of the catalogue.
struct Row {
    name: String,
    native: String,
    type_name: String,
    built_in: bool,
    modifier: i32,
    not_null: bool,
    has_default: bool,
    generated: bool,
}

/// See [`crate::destination::Destination::describe`].
pub(super) async fn describe(pool: &PgPool, table: &TableName) -> Result<Option<TableDescription>, DestinationError> {
    let mut session = Session::begin(pool, None, Work::Short).await?;
    let found = find(session.connection(), table).await?;
    session.rollback().await;
    Ok(found.map(|found| TableDescription { columns: found.columns.into_iter().map(|found| found.column).collect() }))
}

/// A table's name, quoted, with its schema where one was given.
pub(super) fn quoted(table: &TableName) -> Result<String, DestinationError> {
    match table.schema() {
        Some(schema) => sql::qualified(schema, table.name()),
        None => sql::identifier(table.name()),
    }
}

/// Looks a table up as a statement would.
pub(super) async fn find(connection: &mut PgConnection, table: &TableName) -> Result<Option<Found>, DestinationError> {
    if let Some(schema) = table.schema() {
        let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)")
            .bind(schema)
            .fetch_one(&mut *connection)
            .await
            .map_err(failure)?;
        if !exists {
            return Err(sql::refused(format!("the schema '{schema}' does not exist: create it first")));
        }
    }
    let relation: Option<(i64, String, String, bool, bool, bool)> = sqlx::query_as(
        "SELECT c.oid::bigint, n.nspname::text, c.relkind::text, c.relrowsecurity, \
                EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_type = '3'), \
                EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') \
                        AND t.tgtype & 7 = 7) \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)",
    )
    .bind(quoted(table)?)
    .fetch_optional(&mut *connection)
    .await
    .map_err(failure)?;
    let Some((oid, schema, kind, row_security, has_insert_rule, has_row_trigger)) = relation else { return Ok(None) };
    check_kind(table, &schema, &kind)?;
    if has_insert_rule {
        return Err(sql::refused(format!(
            "'{table}' has a rule ON INSERT, which would not act as under COPY: drop it"
        )));
    }
    let rows: Vec<Fields> = sqlx::query_as(
        "SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS native, t.typname::text AS type_name, \
                tn.nspname = 'pg_catalog' AND t.typtype = 'b' AS built_in, a.atttypmod AS modifier, a.attnotnull AS not_null, \
                a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL AS has_default, a.attgenerated <> '' AS generated \
         FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace tn ON tn.oid = t.typnamespace \
         WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
    )
    .bind(oid)
    .fetch_all(&mut *connection)
    .await
    .map_err(failure)?;
    let columns = rows
        .into_iter()
        .map(|(name, native, type_name, built_in, modifier, not_null, has_default, generated)| {
            Row { name, native, type_name, built_in, modifier, not_null, has_default, generated }
                .into_column(has_row_trigger)
        })
        .collect();
    Ok(Some(Found { schema, row_security, columns }))
}

/// Rows are inserted into tables only.
fn check_kind(table: &TableName, schema: &str, kind: &str) -> Result<(), DestinationError> {
    if schema == "information_schema" || schema.starts_with("pg_") {
        return Err(sql::refused(format!("'{table}' belongs to the database itself")));
    }
    let word = match kind {
        "r" | "p" => return Ok(()),
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table",
        "S" => "a sequence",
        "i" | "I" => "an index",
        "c" => "a composite type",
        _ => "no table",
    };
    Err(sql::refused(format!("'{table}' is {word}; rows are imported into tables only")))
}

impl Row {
    fn into_column(self, has_row_trigger: bool) -> FoundColumn {
        let column = TableColumn {
            kind: self.kind(),
            name: self.name,
            // A trigger before each row may fill a null in, as under COPY.
            nullable: !self.not_null || has_row_trigger,
            has_default: self.has_default,
            generated: self.generated,
            flexible: false,
        };
        FoundColumn { column, native: self.native }
    }

    /// The contract's type where the column is exactly that, else native: what rounds or cuts (`timestamp(0)`,
    /// `varchar(3)`) or keeps the text (`json`) is left to the database's own input function.
    fn kind(&self) -> ColumnType {
        let plain = self.modifier < 0;
        match self.type_name.as_str() {
            _ if !self.built_in => None,
            "bool" => Some(ColumnType::Bool),
            "int4" => Some(ColumnType::Int32),
            "int8" => Some(ColumnType::Int64),
            "float8" => Some(ColumnType::Float64),
            "numeric" => decimal(self.modifier),
            "text" => Some(ColumnType::Text),
            "date" => Some(ColumnType::Date),
            "time" if plain => Some(ColumnType::Time),
            "timestamp" if plain => Some(ColumnType::Timestamp),
            "timestamptz" if plain => Some(ColumnType::Timestamptz),
            "uuid" => Some(ColumnType::Uuid),
            "jsonb" => Some(ColumnType::Json),
            _ => None,
        }
        .unwrap_or_else(|| ColumnType::Native(self.native.clone()))
    }
}

/// `numeric(p,s)` from its modifier, where it is a decimal of the contract.
fn decimal(modifier: i32) -> Option<ColumnType> {
    let modifier = modifier.checked_sub(4).filter(|modifier| *modifier >= 0)?;
    let precision = u8::try_from(modifier >> 16 & 0xffff).ok().filter(|precision| *precision <= 38)?;
    // Eleven bits with a sign.
    let scale = ((modifier & 0x7ff) ^ 1024) - 1024;
    let scale = u8::try_from(scale).ok().filter(|scale| *scale <= precision)?;
    Some(ColumnType::Decimal { precision, scale })
}
