//! One chunk: rows, rejects and ledger row in one transaction, behind the look at the fence (invariant 2). With one writer
//! under `BEGIN IMMEDIATE` the fence cannot change in between.

use rusqlite::types::{Null, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension as _, Statement, params};

use longshore_domain::{
    Attempt, ChunkIndex, ImportId, LineNumber, LoadPlan, Reject, RejectReason, RowNumber, Tally, Target,
};
use longshore_parse::Batch;

use super::connection::failure;
use super::fence::Fence;
use super::staging;
use crate::destination::cells::{self, Cell, Column};
use crate::destination::shape::{self, Held};
use crate::destination::{ChunkRows, DestinationError, LISTED_BYTES, LedgerRow, Ticket, Written, sql};

/// Values of a statement that inserts rows, where a row has fewer: what a statement costs, rows share. More no longer fit into
/// the processor's nearest cache, and cost more than they save.
const VALUES_AT_ONCE: usize = 128;

/// Within a transaction, which the caller commits where the answer is `Committed`. Batches are [`prepare`]d; `rows` is
/// read again where not all rejects are held.
pub(super) fn write_chunk(
    connection: &Connection,
    ticket: Ticket,
    chunk: ChunkIndex,
    plan: &LoadPlan,
    held: &Held,
    rows: &dyn ChunkRows,
) -> Result<Written, DestinationError> {
    if let Some(row) = committed(connection, ticket, chunk)? {
        return Ok(Written::Committed(Tally { rows: row.rows, rejected: row.rejected, ..Tally::default() }));
    }
    let fence = Fence::read(connection, ticket.import)?;
    let Some(fence) = fence.filter(|fence| fence.epoch >= ticket.epoch.0) else { return Err(staging::set_back()) };
    if !fence.admits(ticket) {
        return Ok(Written::Fenced);
    }
    let name = sql::staging_name(ticket.import, ticket.attempt);
    if !staging::exists(connection, &name)? {
        return Err(staging::lost(&name));
    }
    insert_rows(connection, plan, &name, &held.batches)?;
    let (extent, rejects) = (held.found.extent, &held.found.rejects);
    match rejects.all() {
        Some(rejects) => insert_rejects(connection, ticket, false, rejects)?,
        None => {
            shape::read_rejects(rows, rejects.rows, &mut |found| insert_rejects(connection, ticket, false, &found))?
        }
    }
    let rejected = rejects.rows;
    connection
        .execute(
            "INSERT INTO longshore_ledger (import, attempt, chunk, first_row, row_count, rejected) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                ticket.import.to_string(),
                i64::from(ticket.attempt.0),
                i64::from(chunk.0),
                extent.first.map(|row| row as i64),
                extent.rows as i64,
                rejected as i64
            ],
        )
        .map_err(failure)?;
    Ok(Written::Committed(Tally { rows: extent.rows, rejected, ..Tally::default() }))
}

fn insert_rows(
    connection: &Connection,
    plan: &LoadPlan,
    name: &str,
    batches: &[Batch],
) -> Result<(), DestinationError> {
    let numbered = plan.target == Target::ExistingTable;
    let mut columns = sql::column_list(plan)?;
    if numbered {
        columns = format!("{columns}, {}", sql::identifier(&sql::row_column(plan))?);
    }
    let width = plan.fields.len() + usize::from(numbered);
    let table = sql::identifier(name)?;
    let values = format!("({})", vec!["?"; width].join(", "));
    let prepare = |rows: usize| {
        let values = vec![values.as_str(); rows].join(", ");
        connection.prepare(&format!("INSERT INTO main.{table} ({columns}) VALUES {values}")).map_err(failure)
    };
    let at_once = (VALUES_AT_ONCE / width.max(1)).max(1);
    let (mut many, mut one) = (prepare(at_once)?, prepare(1)?);
    for batch in batches {
        let columns: Vec<Column<'_>> = batch.columns.iter().map(Column::of).collect();
        let mut next = 0;
        while next < batch.rows {
            let (insert, rows) = if next + at_once <= batch.rows { (&mut many, at_once) } else { (&mut one, 1) };
            let mut place = 0;
            for row in next..next + rows {
                for column in &columns {
                    place += 1;
                    bind(insert, place, column.cell(row)).map_err(failure)?;
                }
                if numbered {
                    place += 1;
                    insert.raw_bind_parameter(place, batch.numbers.get(row) as i64).map_err(failure)?;
                }
            }
            insert.raw_execute().map_err(failure)?;
            next += rows;
        }
    }
    Ok(())
}

/// Makes of a batch what [`write_chunk`] binds: in one piece, and as text whatever SQLite has no type for. To be done before
/// the writer is taken, of which there is one.
pub(super) fn prepare(batch: &mut Batch) {
    cells::rechunk(batch);
    batch.columns.iter_mut().for_each(cells::textual);
}

/// Binds a cell as the contract's table has it. SQLite turns a bound NaN into NULL: it is bound as the text `NaN`, which a
/// column with the affinity REAL keeps.
#[inline]
fn bind(insert: &mut Statement<'_>, place: usize, cell: Cell<'_>) -> rusqlite::Result<()> {
    match cell {
        Cell::Null => insert.raw_bind_parameter(place, Null),
        Cell::Bool(value) => insert.raw_bind_parameter(place, i64::from(value)),
        Cell::Int32(value) => insert.raw_bind_parameter(place, i64::from(value)),
        Cell::Int64(value) => insert.raw_bind_parameter(place, value),
        Cell::Float64(value) if !value.is_nan() => insert.raw_bind_parameter(place, value),
        Cell::Float64(_) => bind_text(insert, place, "NaN"),
        Cell::Text(text) | Cell::Json(text) => bind_text(insert, place, text),
        // Made text by `prepare`.
        cell => bind_text(insert, place, &cells::to_text(cell).unwrap_or_default()),
    }
}

#[inline]
fn bind_text(insert: &mut Statement<'_>, place: usize, text: &str) -> rusqlite::Result<()> {
    insert.raw_bind_parameter(place, ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())))
}

/// A chunk's ledger row.
fn committed(
    connection: &Connection,
    ticket: Ticket,
    chunk: ChunkIndex,
) -> Result<Option<LedgerRow>, DestinationError> {
    connection
        .query_row(
            "SELECT row_count, rejected FROM longshore_ledger WHERE import = ?1 AND attempt = ?2 AND chunk = ?3",
            params![ticket.import.to_string(), i64::from(ticket.attempt.0), i64::from(chunk.0)],
            |row| Ok(LedgerRow { chunk, rows: row.get::<_, i64>(0)? as u64, rejected: row.get::<_, i64>(1)? as u64 }),
        )
        .optional()
        .map_err(failure)
}

/// See [`crate::destination::Destination::ledger`].
pub(super) fn ledger(
    connection: &Connection,
    import: ImportId,
    attempt: Attempt,
) -> Result<Vec<LedgerRow>, DestinationError> {
    let mut statement = connection
        .prepare(
            "SELECT chunk, row_count, rejected FROM longshore_ledger WHERE import = ?1 AND attempt = ?2 ORDER BY chunk",
        )
        .map_err(failure)?;
    statement
        .query_map(params![import.to_string(), i64::from(attempt.0)], |row| {
            Ok(LedgerRow {
                // Chunks are numbered with 32 bits.
                chunk: ChunkIndex(row.get::<_, i64>(0)? as u32),
                rows: row.get::<_, i64>(1)? as u64,
                rejected: row.get::<_, i64>(2)? as u64,
            })
        })
        .and_then(Iterator::collect)
        .map_err(failure)
}

/// Inserts rejects. Rows that are listed already stay as they are.
pub(super) fn insert_rejects(
    connection: &Connection,
    ticket: Ticket,
    by_publish: bool,
    rejects: &[Reject],
) -> Result<(), DestinationError> {
    let mut insert = connection
        .prepare(
            "INSERT INTO longshore_rejects \
                 (import, attempt, row_number, line, column_name, value, reason, detail, record, by_publish) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT DO NOTHING",
        )
        .map_err(failure)?;
    for reject in rejects {
        insert
            .execute(params![
                ticket.import.to_string(),
                i64::from(ticket.attempt.0),
                reject.row.0 as i64,
                reject.line.0 as i64,
                reject.column,
                reject.value,
                reject.reason.as_str(),
                reject.detail,
                reject.record,
                by_publish
            ])
            .map_err(failure)?;
    }
    Ok(())
}

/// See [`crate::destination::Destination::rejects`].
pub(super) fn rejects(
    connection: &Connection,
    import: ImportId,
    attempt: Attempt,
    after: RowNumber,
    limit: usize,
) -> Result<Vec<Reject>, DestinationError> {
    let mut statement = connection
        .prepare(
            "SELECT row_number, line, column_name, value, reason, detail, record FROM longshore_rejects \
             WHERE import = ?1 AND attempt = ?2 AND row_number > ?3 ORDER BY row_number LIMIT ?4",
        )
        .map_err(failure)?;
    let after = i64::try_from(after.0).unwrap_or(i64::MAX);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let (mut found, mut bytes) = (Vec::new(), 0);
    let rows = statement
        .query_map(params![import.to_string(), i64::from(attempt.0), after, limit], |row| {
            Ok(Reject {
                row: RowNumber(row.get::<_, i64>(0)? as u64),
                line: LineNumber(row.get::<_, i64>(1)? as u64),
                column: row.get(2)?,
                value: row.get(3)?,
                // Only words of this enum are written.
                reason: RejectReason::from_word(&row.get::<_, String>(4)?).unwrap_or(RejectReason::InvalidValue),
                detail: row.get(5)?,
                record: row.get(6)?,
            })
        })
        .map_err(failure)?;
    for reject in rows {
        let reject = reject.map_err(failure)?;
        bytes += reject.record.len();
        found.push(reject);
        if bytes >= LISTED_BYTES {
            break;
        }
    }
    Ok(found)
}
