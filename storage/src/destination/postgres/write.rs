//! One chunk: COPY, ledger, rejects and the look at the fence in one transaction (invariant 2).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgDatabaseError, PgPool};
use tokio::sync::mpsc;

use longshore_domain::reject::VALUE_KEPT;
use longshore_domain::{
    ChunkIndex, ColumnType, LoadPlan, OnError, Problem, ProblemKind, Reject, RejectReason, RowNumber, Tally, Target,
};
use longshore_parse::Batch;

use super::fence::{self, Lock};
use super::rejects::{self, Found::InChunk};
use super::session::{self, Commit, Session, Work, failure};
use super::staging;
use crate::destination::cells;
use crate::destination::encode::{Encoder, Shape, encode};
use crate::destination::shape::{self, Extent, Found, Held, read_checked};
use crate::destination::{ChunkRows, DestinationError, RecordLookup, Ticket, Written, reader_failed, sql};
use crate::failpoint;

/// Encoded pieces between the encoder's thread and the connection.
const PIECES_IN_FLIGHT: usize = 2;
/// Rows in one COPY behind a bad row; the next ones grow again. A COPY that fails is answered at once, a small one that
/// succeeds is not: too few rows are worse than too many.
const SMALLEST_BLOCK: usize = 1_024;
/// Good rows before bad ones that wait to be copied.
const PENDING: usize = 4_096;
/// How often the ledger is read after a COMMIT without an answer, with these waits in between.
const LOOKUPS: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];

/// What a chunk's transaction finds before it begins.
struct Before {
    admitted: bool,
    /// Whether the fence was never raised so far.
    behind: bool,
    rows: Option<i64>,
    rejected: Option<i64>,
    schema: Option<String>,
}

/// See [`crate::destination::Destination::write_chunk`].
pub(super) async fn write_chunk(
    pool: &PgPool,
    ticket: Ticket,
    chunk: ChunkIndex,
    plan: &LoadPlan,
    on_error: OnError,
    rows: Arc<dyn ChunkRows>,
    lookup: &dyn RecordLookup,
) -> Result<Written, DestinationError> {
    // The rows are copied while they are read: so it goes with nearly every chunk.
    let refused = match write(pool, ticket, chunk, plan, &rows, None, lookup).await? {
        Tried::Written(written) => return Ok(written),
        Tried::Refused(error) => error,
    };
    let held = shape::hold(plan, Arc::clone(&rows), cells::rechunk).await?;
    match write(pool, ticket, chunk, plan, &rows, Some(Again { held, refused, on_error }), lookup).await? {
        Tried::Written(written) => Ok(written),
        Tried::Refused(error) => Err(failure(error)),
    }
}

/// What became of one transaction.
enum Tried {
    Written(Written),
    /// A row was refused, and nothing written.
    Refused(sqlx::Error),
}

/// A chunk of which a row was refused.
struct Again {
    /// Its rows in memory.
    held: Held,
    /// What the database said to one of them.
    refused: sqlx::Error,
    on_error: OnError,
}

/// One transaction; `again`: behind one in which a row was refused.
async fn write(
    pool: &PgPool,
    ticket: Ticket,
    chunk: ChunkIndex,
    plan: &LoadPlan,
    rows: &Arc<dyn ChunkRows>,
    again: Option<Again>,
    lookup: &dyn RecordLookup,
) -> Result<Tried, DestinationError> {
    let answer = |written| Ok(Tried::Written(written));
    let mut session = Session::begin_as(pool, &session::chunk_name(ticket, chunk), Work::Long).await?;
    let name = sql::staging_name(ticket.import, ticket.attempt);
    let before = look(&mut session, ticket, chunk, &name).await?;
    if let (Some(rows), Some(rejected)) = (before.rows, before.rejected) {
        session.rollback().await;
        return answer(Written::Committed(tally(rows, rejected)));
    }
    if before.behind {
        session.rollback().await;
        return Err(staging::set_back());
    }
    if !before.admitted {
        session.rollback().await;
        return answer(Written::Fenced);
    }
    let mut copy = match &before.schema {
        Some(schema) => Some(Copy::new(plan, schema, &name)?),
        None if plan.may_wait_in_object(ticket.attempt) => None,
        None => {
            session.rollback().await;
            return Err(staging::lost(&name));
        }
    };
    let on_error = again.as_ref().map(|again| again.on_error);
    let found = match (&mut copy, again) {
        (Some(copy), None) => match copy.stream(&mut session, Arc::clone(rows)).await {
            Ok(read) => read?,
            Err(error) if row_fault(&error).is_some() => {
                session.rollback().await;
                return Ok(Tried::Refused(error));
            }
            Err(error) => return Err(staging::staging_failure(&name, error)),
        },
        (Some(copy), Some(Again { held, refused, on_error })) => {
            let before = held.found.rejects.rows;
            copy.around_bad(&mut session, held, refused, |refused| on_error.is_exceeded(before + refused)).await?
        }
        (None, None) => shape::check_rows(plan, Arc::clone(rows)).await?,
        (None, Some(Again { held, .. })) => held.found,
    };
    let Found { extent, rejects, widenings } = found;
    if !widenings.is_empty() {
        session.rollback().await;
        return answer(Written::Widen(widenings));
    }
    failpoint::pass("chunk.copied");
    let mut refused = copy.as_mut().map(|copy| std::mem::take(&mut copy.refused)).unwrap_or_default();
    shape::add_records(&mut refused, lookup).await?;
    let rejected = rejects.rows + refused.len() as u64;
    // An import with more bad rows than it allows is never published, and nobody looks for the rest of them.
    let too_many = on_error.is_some_and(|on_error| on_error.is_exceeded(rejected));
    if let Some(Copy { copied, .. }) = copy
        && copied + rejected != extent.rows
        && !too_many
    {
        return Err(miscounted(format!(
            "chunk {chunk} has {} rows, but {copied} were copied and {rejected} rejected",
            extent.rows
        )));
    }
    match record(&mut session, ticket, chunk, extent, rejected).await {
        Ok(true) => {}
        Ok(false) => {
            // Another worker committed this chunk meanwhile; its answer is the chunk's.
            session.rollback().await;
            return match committed(pool, ticket, chunk).await? {
                Some(tally) => answer(Written::Committed(tally)),
                None => answer(Written::Fenced),
            };
        }
        Err(error) => {
            if session::is_lock_timeout(&error) {
                // Whoever had this chunk before was stopped behind its ledger row, and PostgreSQL would wait for it for
                // minutes. The chunk is ours now: the next try finds the ledger free.
                session.rollback().await;
                fence::end_chunk_sessions(pool, ticket, chunk).await?;
            }
            return Err(error);
        }
    }
    match rejects.all() {
        Some(rejects) => rejects::insert(session.connection(), ticket, InChunk, rejects).await.map_err(failure)?,
        None => insert_again(&mut session, ticket, rows, rejects.rows).await?,
    }
    rejects::insert(session.connection(), ticket, InChunk, &refused).await.map_err(failure)?;
    if !fence::admits(&mut session, ticket, Lock::Share).await? {
        session.rollback().await;
        return answer(Written::Fenced);
    }
    // Staging is made under the fence: an attempt's chunks are all staged, or none is.
    if copy.is_none() && staging::schema_of(session.connection(), &name).await?.is_some() {
        session.rollback().await;
        return Err(DestinationError::Unavailable { reason: format!("the table {name} was made meanwhile") });
    }
    failpoint::pass("chunk.commit.before");
    let committed = session.commit().await?;
    failpoint::pass("chunk.commit.after");
    match committed {
        Commit::Done => {
            let mut reasons = rejects.reasons;
            reasons.add(&refused);
            reasons.count();
            answer(Written::Committed(Tally { rows: extent.rows, rejected, ..Tally::default() }))
        }
        Commit::Unknown(error) => answer(look_up(pool, ticket, chunk, error).await?),
    }
}

/// Reads a chunk for its bad rows alone, and lists each batch's.
async fn insert_again(
    session: &mut Session,
    ticket: Ticket,
    rows: &Arc<dyn ChunkRows>,
    expected: u64,
) -> Result<(), DestinationError> {
    let (hand_over, mut handed) = mpsc::channel(1);
    let rows = Arc::clone(rows);
    let reader = tokio::task::spawn_blocking(move || {
        shape::read_rejects(&*rows, expected, &mut |rejects| {
            let gone = |_| DestinationError::Unavailable { reason: "the connection has failed".to_owned() };
            hand_over.blocking_send(rejects).map_err(gone)
        })
    });
    while let Some(rejects) = handed.recv().await {
        rejects::insert(session.connection(), ticket, InChunk, &rejects).await.map_err(failure)?;
    }
    reader.await.map_err(reader_failed)?
}

fn tally(rows: i64, rejected: i64) -> Tally {
    Tally { rows: rows as u64, rejected: rejected as u64, ..Tally::default() }
}

fn miscounted(detail: String) -> DestinationError {
    DestinationError::Refused(Problem::new(ProblemKind::CountMismatch, detail))
}

/// Fence, ledger row and staging table in one round trip. The fence is looked at again, under a lock, before COMMIT.
async fn look(
    session: &mut Session,
    ticket: Ticket,
    chunk: ChunkIndex,
    name: &str,
) -> Result<Before, DestinationError> {
    let row: (bool, bool, Option<i64>, Option<i64>, Option<String>) = sqlx::query_as(
        "SELECT EXISTS (SELECT FROM longshore_fences WHERE import = $1 AND attempt = $2 AND epoch = $4 AND state = 'open') AS admitted, \
                NOT EXISTS (SELECT FROM longshore_fences WHERE import = $1 AND epoch >= $4) AS behind, \
                l.row_count AS rows, l.rejected, \
                (SELECT n.nspname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relname = $5::name AND c.relkind = 'r' LIMIT 1) AS schema \
         FROM (VALUES (1)) AS one LEFT JOIN longshore_ledger l ON l.import = $1 AND l.attempt = $2 AND l.chunk = $3",
    )
    .bind(ticket.import.0)
    .bind(i64::from(ticket.attempt.0))
    .bind(i64::from(chunk.0))
    .bind(ticket.epoch.0)
    .bind(name)
    .fetch_one(session.connection())
    .await
    .map_err(failure)?;
    let (admitted, behind, rows, rejected, schema) = row;
    Ok(Before { admitted, behind, rows, rejected, schema })
}

/// Inserts the ledger row; false where it is there already. A transaction that is about to commit the same chunk is waited for.
async fn record(
    session: &mut Session,
    ticket: Ticket,
    chunk: ChunkIndex,
    extent: Extent,
    rejected: u64,
) -> Result<bool, DestinationError> {
    let done = sqlx::query(
        "INSERT INTO longshore_ledger (import, attempt, chunk, first_row, row_count, rejected) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
    )
    .bind(ticket.import.0)
    .bind(i64::from(ticket.attempt.0))
    .bind(i64::from(chunk.0))
    .bind(extent.first.map(|row| row as i64))
    .bind(extent.rows as i64)
    .bind(rejected as i64)
    .execute(session.connection())
    .await
    .map_err(failure)?;
    Ok(done.rows_affected() == 1)
}

/// A chunk's ledger row, over a fresh connection.
async fn committed(pool: &PgPool, ticket: Ticket, chunk: ChunkIndex) -> Result<Option<Tally>, DestinationError> {
    let mut session = Session::begin(pool, None, Work::Short).await?;
    let row: Option<(i64, i64)> = sqlx::query_as(
        "SELECT row_count, rejected FROM longshore_ledger WHERE import = $1 AND attempt = $2 AND chunk = $3",
    )
    .bind(ticket.import.0)
    .bind(i64::from(ticket.attempt.0))
    .bind(i64::from(chunk.0))
    .fetch_optional(session.connection())
    .await
    .map_err(failure)?;
    session.rollback().await;
    Ok(row.map(|(rows, rejected)| tally(rows, rejected)))
}

/// The COMMIT's answer was lost. A ledger row is the answer; without one nothing is assumed: the caller tries again, and the
/// ledger's primary key makes it wait for a transaction that is still being committed.
async fn look_up(
    pool: &PgPool,
    ticket: Ticket,
    chunk: ChunkIndex,
    error: DestinationError,
) -> Result<Written, DestinationError> {
    tracing::warn!(import_id = %ticket.import, chunk = chunk.0, %error, "the answer to a commit was lost; reading the ledger");
    for wait in LOOKUPS {
        match committed(pool, ticket, chunk).await {
            Ok(Some(tally)) => return Ok(Written::Committed(tally)),
            Ok(None) => break,
            Err(DestinationError::Unavailable { .. }) => tokio::time::sleep(wait).await,
            Err(other) => return Err(other),
        }
    }
    Err(error)
}

/// The COPY of chunks into staging, without the rows that are refused.
pub(super) struct Copy<'a> {
    plan: &'a LoadPlan,
    name: &'a str,
    statement: String,
    shape: Shape,
    /// Rows in it so far.
    pub(super) copied: u64,
    /// Rows that PostgreSQL cannot hold; their records are not looked up.
    pub(super) refused: Vec<Reject>,
}

impl<'a> Copy<'a> {
    pub(super) fn new(plan: &'a LoadPlan, schema: &str, name: &'a str) -> Result<Self, DestinationError> {
        let shape = Shape {
            text: plan.fields.iter().any(|field| matches!(field.kind, ColumnType::Native(_))),
            numbered: plan.target == Target::ExistingTable,
        };
        let mut columns = sql::column_list(plan)?;
        if shape.numbered {
            columns = format!("{columns}, {}", sql::identifier(&sql::row_column(plan))?);
        }
        let format = if shape.text { "text" } else { "binary" };
        let statement = format!("COPY {} ({columns}) FROM STDIN (FORMAT {format})", sql::qualified(schema, name)?);
        Ok(Self { plan, name, statement, shape, copied: 0, refused: Vec::new() })
    }

    /// A chunk within a transaction that goes on whatever becomes of its rows.
    pub(super) async fn stage(
        &mut self,
        session: &mut Session,
        rows: Arc<dyn ChunkRows>,
        too_many: impl Fn(u64) -> bool,
    ) -> Result<(), DestinationError> {
        session.run("SAVEPOINT longshore_stage").await.map_err(failure)?;
        let refused = match self.stream(session, Arc::clone(&rows)).await {
            Ok(read) => {
                session.run("RELEASE SAVEPOINT longshore_stage").await.map_err(failure)?;
                return read.map(drop);
            }
            Err(error) if row_fault(&error).is_some() => error,
            Err(error) => return Err(staging::staging_failure(self.name, error)),
        };
        session
            .run("ROLLBACK TO SAVEPOINT longshore_stage; RELEASE SAVEPOINT longshore_stage")
            .await
            .map_err(failure)?;
        let held = shape::hold(self.plan, rows, cells::rechunk).await?;
        self.around_bad(session, held, refused, too_many).await.map(drop)
    }

    /// Reads, encodes and sends at the same time.
    async fn stream(
        &mut self,
        session: &mut Session,
        rows: Arc<dyn ChunkRows>,
    ) -> Result<Result<Found, DestinationError>, sqlx::Error> {
        let (shape, fields) = (self.shape, self.plan.fields.len());
        let read = move |sink: &mut dyn FnMut(Vec<u8>) -> bool| {
            let mut encoder = Encoder::new(shape, sink);
            let read = read_checked(&*rows, fields, &mut |mut batch| {
                cells::rechunk(&mut batch);
                encoder.rows(&batch, 0..batch.rows)
            })?;
            encoder.finish();
            Some(read)
        };
        match send(session, &self.statement, read).await? {
            Ok((copied, Some(read))) => {
                self.copied += copied;
                Ok(read)
            }
            // Whoever says stop is the connection, and that has failed.
            Ok((_, None)) => Err(sqlx::Error::Protocol("the COPY ended before its rows".to_owned())),
            Err(panicked) => Ok(Err(panicked)),
        }
    }

    /// Copies all rows, of which one was refused. Those before it are known to be good and are sent again together with what
    /// follows. The work is linear: what is sent again is bounded by [`PENDING`] and the distance of bad rows. (The driver
    /// leaves Nagle's algorithm on: over TCP the end of a COPY that succeeds waits for the server's delayed acknowledgement.)
    /// It ends early where so many rows are refused that it is `too_many`: each costs milliseconds, and a chunk may have a
    /// hundred thousand.
    async fn around_bad(
        &mut self,
        session: &mut Session,
        held: Held,
        refused: sqlx::Error,
        too_many: impl Fn(u64) -> bool,
    ) -> Result<Found, DestinationError> {
        let Held { batches, found } = held;
        if !found.widenings.is_empty() {
            return Ok(found);
        }
        let batches = Arc::new(batches);
        let total: usize = batches.iter().map(|batch| batch.rows).sum();
        let (mut start, mut block) = (0, total);
        let mut good: Vec<Range<usize>> = Vec::new();
        let mut refused = Some(refused);
        while (start < total || !good.is_empty()) && !too_many(self.refused.len() as u64) {
            let full = good.iter().map(Range::len).sum::<usize>() >= PENDING;
            let end = if full { start } else { total.min(start.saturating_add(block)) };
            let mut ranges = good.clone();
            ranges.push(start..end);
            session.run("SAVEPOINT longshore_copy").await.map_err(failure)?;
            let error = match refused.take() {
                // That of the transaction before.
                Some(error) => error,
                None => match self.copy(session, &batches, &ranges).await? {
                    None => {
                        session.run("RELEASE SAVEPOINT longshore_copy").await.map_err(failure)?;
                        good.clear();
                        start = end;
                        block = block.saturating_mul(4);
                        continue;
                    }
                    Some(error) => error,
                },
            };
            let Some(fault) = row_fault(&error) else { return Err(staging::staging_failure(self.name, error)) };
            session
                .run("ROLLBACK TO SAVEPOINT longshore_copy; RELEASE SAVEPOINT longshore_copy")
                .await
                .map_err(failure)?;
            let at = bad_line(fault, self.name).and_then(|line| ranges.iter().cloned().flatten().nth(line - 1));
            match at.filter(|at| (start..end).contains(at)) {
                Some(at) => {
                    self.refused.push(self.reject(&batches, at, fault));
                    block = (8 * (at - start + 1)).max(SMALLEST_BLOCK);
                    if at > start {
                        good.push(start..at);
                    }
                    start = at + 1;
                }
                // The message does not say where, or names a row that was good before: narrow it down, that one alone.
                None if end - start > 1 => block = (end - start) / 2,
                None if end > start && good.is_empty() => {
                    self.refused.push(self.reject(&batches, start, fault));
                    start = end;
                    block = SMALLEST_BLOCK;
                }
                None => {
                    return Err(sql::refused(format!(
                        "rows that the table took once are refused when they are sent again: {}",
                        session::describe(fault)
                    )));
                }
            }
        }
        Ok(found)
    }

    /// Copies ranges of rows; the error where that is the database's or the connection's.
    async fn copy(
        &mut self,
        session: &mut Session,
        batches: &Arc<Vec<Batch>>,
        ranges: &[Range<usize>],
    ) -> Result<Option<sqlx::Error>, DestinationError> {
        let expected = ranges.iter().map(Range::len).sum::<usize>() as u64;
        let (batches, shape, ranges) = (Arc::clone(batches), self.shape, ranges.to_vec());
        let make = move |sink: &mut dyn FnMut(Vec<u8>) -> bool| encode(&batches, &ranges, shape, sink);
        let (copied, ()) = match send(session, &self.statement, make).await {
            Ok(sent) => sent?,
            Err(error) => return Ok(Some(error)),
        };
        if copied != expected {
            return Ok(Some(sqlx::Error::Protocol(format!("{expected} rows were sent, and {copied} copied"))));
        }
        self.copied += copied;
        Ok(None)
    }

    /// What is known of a row that was refused.
    fn reject(&self, batches: &[Batch], mut at: usize, fault: &PgDatabaseError) -> Reject {
        let column = bad_column(fault, self.name, self.plan);
        let (mut row, mut value) = (RowNumber(0), None);
        for batch in batches {
            if at < batch.rows {
                row = RowNumber(batch.numbers.get(at));
                value = column.and_then(|column| cells::text_at(&batch.columns[column], at));
                break;
            }
            at -= batch.rows;
        }
        let value = value.map(|value: String| value.as_bytes()[..value.len().min(VALUE_KEPT)].to_vec());
        let column = column.map(|column| self.plan.fields[column].name.clone());
        let reason =
            if session::is_constraint(fault) { RejectReason::ConstraintViolation } else { RejectReason::InvalidValue };
        shape::refused(row, column, value, reason, session::describe(fault))
    }
}

/// A COPY of what is made on a thread for blocking work, and sent from here; the rows that were copied.
pub(super) async fn send<T: Send + 'static>(
    session: &mut Session,
    statement: &str,
    make: impl FnOnce(&mut dyn FnMut(Vec<u8>) -> bool) -> T + Send + 'static,
) -> Result<Result<(u64, T), DestinationError>, sqlx::Error> {
    let mut copy = session.connection().copy_in_raw(statement).await?;
    let (pieces, mut ready) = mpsc::channel(PIECES_IN_FLIGHT);
    let maker = tokio::task::spawn_blocking(move || make(&mut |piece| pieces.blocking_send(piece).is_ok()));
    while let Some(piece) = ready.recv().await {
        copy.send(piece).await?;
    }
    match maker.await {
        Ok(made) => Ok(Ok((copy.finish().await?, made))),
        Err(panicked) => {
            copy.abort("the reader failed").await?;
            Ok(Err(reader_failed(panicked)))
        }
    }
}

/// The fault of a row that a COPY ended with.
pub(super) fn row_fault(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    session::database_error(error).filter(|error| session::is_row_fault(error))
}

/// What the error's context says of the COPY: `COPY <table>, line 3, column c: "x"`. Its words may be translated, its
/// order is not.
fn context<'a>(fault: &'a PgDatabaseError, name: &str) -> Option<&'a str> {
    fault.r#where()?.lines().find_map(|line| line.strip_prefix("COPY ")?.strip_prefix(name)?.strip_prefix(", "))
}

/// The number of the row within the COPY, from 1.
fn bad_line(fault: &PgDatabaseError, name: &str) -> Option<usize> {
    let digits = context(fault, name)?.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok().filter(|line| *line > 0)
}

/// The place of the column at fault in the plan.
fn bad_column(fault: &PgDatabaseError, name: &str, plan: &LoadPlan) -> Option<usize> {
    if let Some(column) = fault.column() {
        return plan.fields.iter().position(|field| field.name == column);
    }
    let line = context(fault, name)?.trim_start_matches(|c: char| !c.is_ascii_digit());
    let after = line.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix(", ")?;
    // The longest name that fits: one may be the beginning of another.
    (0..plan.fields.len())
        .filter(|i| {
            let name = plan.fields[*i].name.as_str();
            after.split_once(' ').is_some_and(|(_, rest)| {
                rest.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
            })
        })
        .max_by_key(|i| plan.fields[*i].name.len())
}
