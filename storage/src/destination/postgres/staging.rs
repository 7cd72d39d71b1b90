//! Staging tables: made for an attempt, found by name, dropped.

use sqlx::postgres::{PgConnection, PgPool};

use longshore_domain::{ColumnType, FieldPlan, ImportId, LoadPlan, Target};

use super::describe::{self, Found};
use super::fence::{self, Lock};
use super::session::{self, Session, Work, failure};
use crate::destination::{DestinationError, Staging, Ticket, sql};

/// See [`crate::destination::Destination::prepare_staging`].
pub(super) async fn prepare(
    pool: &PgPool,
    ticket: Ticket,
    plan: &LoadPlan,
    wanted: Staging,
) -> Result<Option<Staging>, DestinationError> {
    sql::check_lengths(plan)?;
    let mut session = Session::begin(pool, Some(ticket), Work::Short).await?;
    if !fence::admits(&mut session, ticket, Lock::Update).await? {
        session.rollback().await;
        return Ok(None);
    }
    clear_others(&mut session, ticket).await?;
    let name = sql::staging_name(ticket.import, ticket.attempt);
    let found = match plan.target {
        Target::NewTable => None,
        Target::ExistingTable => Some(existing(session.connection(), plan).await?),
    };
    let in_object = wanted == Staging::Object && plan.may_wait_in_object(ticket.attempt);
    let schema = match (schema_of(session.connection(), &name).await?, &found) {
        (Some(schema), _) => Some(schema),
        (None, Some(found)) if in_object && found.takes_binary(plan) => None,
        (None, found) => {
            if has_ledger(session.connection(), ticket).await? {
                session.rollback().await;
                return Err(lost(&name));
            }
            let schema = match found {
                Some(found) => found.schema.clone(),
                None => new_schema(session.connection(), plan).await?,
            };
            create(&mut session, &schema, &name, plan, found.as_ref()).await?;
            Some(schema)
        }
    };
    if found.is_some() {
        let insert = match &schema {
            Some(schema) => insert_statement(plan, schema, &name, "", true)?,
            None => insert_of_nulls(plan)?,
        };
        session.run(format!("EXPLAIN {insert}")).await.map_err(|error| misfit(plan, error))?;
    }
    fence::finish(session).await?;
    Ok(Some(if schema.is_some() { Staging::Table } else { Staging::Object }))
}

/// The same columns without a staging table, for the database to look at: plans whose rows wait in the object have no types of
/// the database's own.
pub(super) fn insert_of_nulls(plan: &LoadPlan) -> Result<String, DestinationError> {
    let (table, columns) = (describe::quoted(&plan.table)?, sql::column_list(plan)?);
    let null = |field: &FieldPlan| Ok(format!("NULL::{}", column_type(&field.kind, &field.name, None)?));
    let nulls = plan.fields.iter().map(null).collect::<Result<Vec<_>, DestinationError>>()?.join(", ");
    Ok(format!("INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {nulls}"))
}

/// Whoever hands out chunks has raised the fence to its epoch: where it is older, the database was set back.
pub(super) fn set_back() -> DestinationError {
    DestinationError::StagingLost { reason: "the fence is older than the chunk's owner".to_owned() }
}

/// Staged work is gone.
pub(super) fn lost(name: &str) -> DestinationError {
    DestinationError::StagingLost { reason: format!("the table {name} is not there") }
}

/// An attempt's rows for an existing table, in the order of the file where that matters. `OVERRIDING SYSTEM VALUE`: identity
/// columns take what the file says, as under COPY.
pub(super) fn insert_statement(
    plan: &LoadPlan,
    schema: &str,
    name: &str,
    condition: &str,
    ordered: bool,
) -> Result<String, DestinationError> {
    let (table, columns) = (describe::quoted(&plan.table)?, sql::column_list(plan)?);
    let (staging, row) = (sql::qualified(schema, name)?, sql::identifier(&sql::row_column(plan))?);
    let order = if ordered { format!(" ORDER BY {row}") } else { String::new() };
    Ok(format!(
        "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {staging} {condition}{order}"
    ))
}

/// The schema that a staging table stands in; `None` where it is not there.
pub(super) async fn schema_of(connection: &mut PgConnection, name: &str) -> Result<Option<String>, DestinationError> {
    sqlx::query_scalar(
        "SELECT n.nspname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relname = $1::name AND c.relkind = 'r'",
    )
    .bind(name)
    .fetch_optional(connection)
    .await
    .map_err(failure)
}

/// Drops an import's staging tables, but for one.
pub(super) async fn drop_all(
    session: &mut Session,
    import: ImportId,
    keep: Option<&str>,
) -> Result<(), DestinationError> {
    let tables: Vec<(String, String)> = sqlx::query_as(
        "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE starts_with(c.relname::text, $1) AND c.relkind = 'r' AND c.relname <> $2::name",
    )
    .bind(sql::staging_prefix(import))
    .bind(keep.unwrap_or_default())
    .fetch_all(session.connection())
    .await
    .map_err(failure)?;
    for (schema, name) in tables {
        let statement = format!("DROP TABLE IF EXISTS {}", sql::qualified(&schema, &name)?);
        session.run(statement).await.map_err(failure)?;
    }
    Ok(())
}

/// Nothing of other attempts is needed any more.
async fn clear_others(session: &mut Session, ticket: Ticket) -> Result<(), DestinationError> {
    let name = sql::staging_name(ticket.import, ticket.attempt);
    drop_all(session, ticket.import, Some(&name)).await?;
    for statement in [
        "DELETE FROM longshore_ledger WHERE import = $1 AND attempt <> $2",
        "DELETE FROM longshore_rejects WHERE import = $1 AND attempt <> $2",
    ] {
        sqlx::query(statement)
            .bind(ticket.import.0)
            .bind(i64::from(ticket.attempt.0))
            .execute(session.connection())
            .await
            .map_err(failure)?;
    }
    Ok(())
}

async fn has_ledger(connection: &mut PgConnection, ticket: Ticket) -> Result<bool, DestinationError> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM longshore_ledger WHERE import = $1 AND attempt = $2)")
        .bind(ticket.import.0)
        .bind(i64::from(ticket.attempt.0))
        .fetch_one(connection)
        .await
        .map_err(failure)
}

/// The table that the plan was made for.
pub(super) async fn existing(connection: &mut PgConnection, plan: &LoadPlan) -> Result<Found, DestinationError> {
    describe::find(connection, &plan.table)
        .await?
        .ok_or_else(|| sql::refused(format!("the table '{}' is gone since the import was planned", plan.table)))
}

/// Where a new table goes.
async fn new_schema(connection: &mut PgConnection, plan: &LoadPlan) -> Result<String, DestinationError> {
    if let Some(schema) = plan.table.schema() {
        return Ok(schema.to_owned());
    }
    let schema: Option<String> =
        sqlx::query_scalar("SELECT current_schema()::text").fetch_one(connection).await.map_err(failure)?;
    schema.ok_or_else(|| sql::refused("the search_path of the service's role names no schema that exists"))
}

pub(super) async fn create(
    session: &mut Session,
    schema: &str,
    name: &str,
    plan: &LoadPlan,
    found: Option<&Found>,
) -> Result<(), DestinationError> {
    let mut columns = Vec::with_capacity(plan.fields.len() + 1);
    for field in &plan.fields {
        let kind = column_type(&field.kind, &field.name, found)?;
        let null = if found.is_none() && !field.nullable { " NOT NULL" } else { "" };
        columns.push(format!("{} {kind}{null}", sql::identifier(&field.name)?));
    }
    if found.is_some() {
        columns.push(format!("{} bigint NOT NULL", sql::identifier(&sql::row_column(plan))?));
    }
    // LOGGED, so that the ledger never outlives the rows.
    let statement = format!("CREATE TABLE {} ({})", sql::qualified(schema, name)?, columns.join(", "));
    session.run(statement).await.map_err(|error| misfit(plan, error))?;
    Ok(())
}

/// The type of a column in PostgreSQL. A native one is taken from the catalogue, never from the plan.
fn column_type(kind: &ColumnType, name: &str, found: Option<&Found>) -> Result<String, DestinationError> {
    Ok(match kind {
        ColumnType::Bool => "boolean".to_owned(),
        ColumnType::Int32 => "integer".to_owned(),
        ColumnType::Int64 => "bigint".to_owned(),
        ColumnType::Float64 => "double precision".to_owned(),
        ColumnType::Decimal { precision, scale } => format!("numeric({precision},{scale})"),
        ColumnType::Text => "text".to_owned(),
        ColumnType::Date => "date".to_owned(),
        ColumnType::Time => "time".to_owned(),
        ColumnType::Timestamp => "timestamp".to_owned(),
        ColumnType::Timestamptz => "timestamptz".to_owned(),
        ColumnType::Uuid => "uuid".to_owned(),
        ColumnType::Json => "jsonb".to_owned(),
        ColumnType::Native(_) => {
            let column = found.and_then(|found| found.columns.iter().find(|column| column.column.name == name));
            column
                .map(|column| column.native.clone())
                .ok_or_else(|| sql::refused(format!("the column '{name}' is not in the table any more")))?
        }
    })
}

/// An error of the database that says that plan and table do not fit.
fn misfit(plan: &LoadPlan, error: sqlx::Error) -> DestinationError {
    match failure(error) {
        DestinationError::Refused(problem) => {
            sql::refused(format!("the rows do not fit the table '{}': {}", plan.table, problem.detail))
        }
        other => other,
    }
}

/// What an error of a statement on a staging table means.
pub(super) fn staging_failure(name: &str, error: sqlx::Error) -> DestinationError {
    if session::is_undefined_table(&error) { lost(name) } else { failure(error) }
}
