//! Publishing in SQLite: all rows or none, and the marker, in one transaction (invariants 3 and 4).
//!
//! A new table is a rename, at once. Rows for an existing table are inserted in one transaction, for which control writes
//! have to wait: all or nothing leaves no other way with one writer.

use rusqlite::{Connection, params};

use longshore_domain::{LoadPlan, OnError, Problem, ProblemKind, Reject, RejectReason, RowNumber, Target};

use super::connection::{self, failure};
use super::fence::Fence;
use super::staging;
use crate::destination::shape;
use crate::destination::{DestinationError, FenceState, Planned, PublishOutcome, Published, Ticket, sql};

/// How far the transaction came.
pub(super) enum Moved {
    /// There is an answer, and nothing to commit.
    Answer(PublishOutcome),
    /// The rows are moved but for those found refused; list them, then [`mark`] and commit.
    Within {
        /// What was done.
        published: Published,
        /// The refused rows, without their records.
        found: Vec<Reject>,
    },
    /// Too many rows were refused: roll back, list these, and answer with how many.
    TooMany {
        /// All that are rejected so far.
        rejected: u64,
        /// The refused rows, without their records.
        found: Vec<Reject>,
    },
}

/// What the ledger says of an attempt.
struct Ledger {
    chunks: u64,
    rows: u64,
    rejected: u64,
    tiled: bool,
    listed: u64,
}

/// Within a transaction: checks everything and moves the rows.
pub(super) fn moved(
    connection: &Connection,
    ticket: Ticket,
    plan: &LoadPlan,
    planned: Planned,
    on_error: OnError,
) -> Result<Moved, DestinationError> {
    if let Some(outcome) = closed(connection, ticket)? {
        return Ok(Moved::Answer(outcome));
    }
    let ledger = read_ledger(connection, ticket)?;
    let name = sql::staging_name(ticket.import, ticket.attempt);
    if !staging::exists(connection, &name)? {
        return Err(staging::lost(&name));
    }
    if let Err(outcome) = check(&ledger, planned, on_error) {
        return Ok(Moved::Answer(outcome));
    }
    let staged = ledger.rows - ledger.rejected;
    if plan.target == Target::NewTable {
        if staging::exists(connection, plan.table.name())? {
            return Ok(Moved::Answer(PublishOutcome::TableAppeared));
        }
        let rename =
            format!("ALTER TABLE main.{} RENAME TO {}", sql::identifier(&name)?, sql::identifier(plan.table.name())?);
        connection.execute_batch(&rename).map_err(failure)?;
        let published = Published { rows_loaded: staged, rows_rejected: ledger.rejected };
        return Ok(Moved::Within { published, found: Vec::new() });
    }
    let mut moving =
        Moving { connection, plan, name: &name, on_error, rejected: ledger.rejected, loaded: 0, found: Vec::new() };
    if !moving.all(planned.rows, staged)? {
        return Ok(Moved::TooMany { rejected: moving.rejected, found: moving.found });
    }
    let published = Published { rows_loaded: moving.loaded, rows_rejected: moving.rejected };
    if published.rows_loaded + published.rows_rejected != planned.rows {
        let detail = format!(
            "{} rows were planned, but {} loaded and {} rejected",
            planned.rows, published.rows_loaded, published.rows_rejected
        );
        return Ok(Moved::Answer(PublishOutcome::Refused(Problem::new(ProblemKind::CountMismatch, detail))));
    }
    let found = moving.found;
    connection.execute_batch(&format!("DROP TABLE main.{}", sql::identifier(&name)?)).map_err(failure)?;
    Ok(Moved::Within { published, found })
}

/// The marker; the ledger is not needed any more.
pub(super) fn mark(connection: &Connection, ticket: Ticket, published: Published) -> Result<(), DestinationError> {
    let import = ticket.import.to_string();
    connection
        .execute(
            "UPDATE longshore_fences SET state = 'published', rows_loaded = ?2, rows_rejected = ?3 WHERE import = ?1",
            params![import, published.rows_loaded as i64, published.rows_rejected as i64],
        )
        .map_err(failure)?;
    connection.execute("DELETE FROM longshore_ledger WHERE import = ?1", params![import]).map_err(failure)?;
    Ok(())
}

/// The answer, where the fence gives it already.
fn closed(connection: &Connection, ticket: Ticket) -> Result<Option<PublishOutcome>, DestinationError> {
    Ok(match Fence::read(connection, ticket.import)? {
        Some(fence) if fence.admits(ticket) => None,
        Some(fence) if fence.epoch <= ticket.epoch.0 => match fence.standing() {
            FenceState::Published(published) => Some(PublishOutcome::Published(published)),
            _ => Some(PublishOutcome::Fenced),
        },
        _ => Some(PublishOutcome::Fenced),
    })
}

fn read_ledger(connection: &Connection, ticket: Ticket) -> Result<Ledger, DestinationError> {
    let (import, attempt) = (ticket.import.to_string(), i64::from(ticket.attempt.0));
    // A publish that was given up may have listed rows that this one takes, or finds again.
    connection
        .execute(
            "DELETE FROM longshore_rejects WHERE import = ?1 AND attempt = ?2 AND by_publish",
            params![import, attempt],
        )
        .map_err(failure)?;
    connection
        .query_row(
            "SELECT count(*), coalesce(sum(row_count), 0), coalesce(sum(rejected), 0), \
                    coalesce(min(chunk = place AND (row_count = 0 OR first_row = next_row)), 1), \
                    (SELECT count(*) FROM longshore_rejects WHERE import = ?1 AND attempt = ?2) \
             FROM (SELECT chunk, first_row, row_count, rejected, row_number() OVER (ORDER BY chunk) - 1 AS place, \
                          1 + coalesce(sum(row_count) OVER (ORDER BY chunk ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS next_row \
                   FROM longshore_ledger WHERE import = ?1 AND attempt = ?2)",
            params![import, attempt],
            |row| {
                Ok(Ledger {
                    chunks: row.get::<_, i64>(0)? as u64,
                    rows: row.get::<_, i64>(1)? as u64,
                    rejected: row.get::<_, i64>(2)? as u64,
                    tiled: row.get(3)?,
                    listed: row.get::<_, i64>(4)? as u64,
                })
            },
        )
        .map_err(failure)
}

/// Whether what is staged is what was planned.
fn check(ledger: &Ledger, planned: Planned, on_error: OnError) -> Result<(), PublishOutcome> {
    let mismatch = |detail: String| Err(PublishOutcome::Refused(Problem::new(ProblemKind::CountMismatch, detail)));
    if ledger.chunks != planned.chunks || ledger.rows != planned.rows {
        return mismatch(format!(
            "{} chunks with {} rows were planned, but {} chunks with {} rows are committed",
            planned.chunks, planned.rows, ledger.chunks, ledger.rows
        ));
    }
    if !ledger.tiled {
        return mismatch(format!("the row numbers of the {} chunks do not follow each other", ledger.chunks));
    }
    if ledger.listed != ledger.rejected {
        return mismatch(format!("{} rows were rejected, but {} are listed", ledger.rejected, ledger.listed));
    }
    if on_error.is_exceeded(ledger.rejected) {
        return Err(PublishOutcome::TooManyRejects(ledger.rejected));
    }
    Ok(())
}

/// The way of staged rows into an existing table.
struct Moving<'a> {
    connection: &'a Connection,
    plan: &'a LoadPlan,
    name: &'a str,
    on_error: OnError,
    rejected: u64,
    loaded: u64,
    found: Vec<Reject>,
}

impl Moving<'_> {
    /// Moves all rows; where some are refused, halves the batch until each stands alone. Ascending, so that of rows that
    /// collide the lowest stays. False: more were refused than the import allows.
    fn all(&mut self, last: u64, staged: u64) -> Result<bool, DestinationError> {
        let Some(mut fault) = self.insert("", staged)? else { return Ok(true) };
        // Ranges of row numbers, the lowest on top. The whole is known to hold a refused row.
        let mut ranges = vec![(1, last)];
        let mut whole = true;
        while let Some((low, high)) = ranges.pop() {
            if !whole {
                let condition =
                    format!("WHERE {} BETWEEN {low} AND {high}", sql::identifier(&sql::row_column(self.plan))?);
                let staged = self.count(&condition)?;
                if staged == 0 {
                    continue;
                }
                match self.insert(&condition, staged)? {
                    None => continue,
                    Some(found) => fault = found,
                }
            }
            whole = false;
            if low == high {
                self.reject(RowNumber(low), &fault);
                if self.on_error.is_exceeded(self.rejected) {
                    return Ok(false);
                }
                continue;
            }
            let middle = low + (high - low) / 2;
            ranges.push((middle + 1, high));
            ranges.push((low, middle));
        }
        Ok(true)
    }

    /// Inserts rows under a savepoint; a fault of rows leaves everything as it was, and is told.
    fn insert(&mut self, condition: &str, staged: u64) -> Result<Option<String>, DestinationError> {
        let statement = staging::insert_statement(self.plan, self.name, condition)?;
        self.connection.execute_batch("SAVEPOINT longshore_move").map_err(failure)?;
        let fault = match self.connection.execute(&statement, []) {
            Ok(inserted) if inserted as u64 == staged => {
                self.connection.execute_batch("RELEASE longshore_move").map_err(failure)?;
                self.loaded += staged;
                return Ok(None);
            }
            Ok(_) => "the table passed over the row (ON CONFLICT IGNORE, or a trigger)".to_owned(),
            Err(error) if connection::is_row_fault(&error) && !self.connection.is_autocommit() => {
                connection::describe(&error)
            }
            // `ON CONFLICT ROLLBACK` ended the transaction: nothing was moved.
            Err(error) => return Err(failure(error)),
        };
        self.connection.execute_batch("ROLLBACK TO longshore_move; RELEASE longshore_move").map_err(failure)?;
        Ok(Some(fault))
    }

    fn count(&self, condition: &str) -> Result<u64, DestinationError> {
        let statement = format!("SELECT count(*) FROM main.{} {condition}", sql::identifier(self.name)?);
        let count: i64 = self.connection.query_row(&statement, [], |row| row.get(0)).map_err(failure)?;
        Ok(count as u64)
    }

    fn reject(&mut self, row: RowNumber, fault: &str) {
        // "NOT NULL constraint failed: trips.price"
        let place = fault.split_once(": ").map(|(_, place)| place);
        let column = self.plan.fields.iter().find(|field| {
            place.is_some_and(|place| place.eq_ignore_ascii_case(&format!("{}.{}", self.plan.table.name(), field.name)))
        });
        let column = column.map(|field| field.name.clone());
        self.found.push(shape::refused(row, column, None, RejectReason::ConstraintViolation, fault.to_owned()));
        self.rejected += 1;
    }
}
