//! SQLite as the destination: prepared INSERTs into staging, published by rename or `INSERT … SELECT`.
//!
//! Called by the actors. The control tables are in the same file, written by `sea-orm`; both take turns at the
//! [`WriteGate`], and control writes go first (invariant 14). All work happens on blocking threads, writing in
//! `BEGIN IMMEDIATE`. In reading order: `connection` (the writer, and what errors mean), `fence`, `describe`, `staging`,
//! `write`, `publish`.

mod connection;
mod describe;
mod fence;
mod publish;
mod staging;
mod write;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::sync::Mutex;

use longshore_domain::{
    Attempt, ChunkIndex, ImportId, LoadPlan, OnError, Reject, RowNumber, TableDescription, TableName,
};

use self::connection::{Class, Writer, failure, panicked};
use self::publish::Moved;
use super::gate::WriteGate;
use super::{
    ChunkRows, ChunkSource, Destination, DestinationError, FenceState, LedgerRow, PublishOutcome, RecordLookup,
    Staging, Ticket, Written, shape,
};
use crate::failpoint;

/// The service's own tables.
const SERVICE_TABLES: &str = "\
    CREATE TABLE IF NOT EXISTS longshore_fences (\
        import TEXT PRIMARY KEY, epoch INTEGER NOT NULL, attempt INTEGER NOT NULL, \
        state TEXT NOT NULL CHECK (state IN ('open', 'published', 'aborted')), \
        rows_loaded INTEGER, rows_rejected INTEGER) WITHOUT ROWID; \
    CREATE TABLE IF NOT EXISTS longshore_ledger (\
        import TEXT NOT NULL, attempt INTEGER NOT NULL, chunk INTEGER NOT NULL, first_row INTEGER, \
        row_count INTEGER NOT NULL, rejected INTEGER NOT NULL, PRIMARY KEY (import, attempt, chunk)) WITHOUT ROWID; \
    CREATE TABLE IF NOT EXISTS longshore_rejects (\
        import TEXT NOT NULL, attempt INTEGER NOT NULL, row_number INTEGER NOT NULL, line INTEGER NOT NULL, \
        column_name TEXT, value BLOB, reason TEXT NOT NULL, detail TEXT NOT NULL, record BLOB NOT NULL, \
        by_publish INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (import, attempt, row_number))";

/// A SQLite file that tables are loaded into. Cheap to clone.
#[derive(Clone)]
pub struct SqliteDestination {
    gate: Arc<WriteGate>,
    writer: Arc<Mutex<Connection>>,
    reader: Arc<Mutex<Connection>>,
    /// For checkpoints.
    mover: Arc<Mutex<Connection>>,
}

impl SqliteDestination {
    /// Opens a file, and makes it where it is missing. The gate is shared with everybody else who writes to it.
    ///
    /// # Errors
    /// [`DestinationError`] where it cannot be opened.
    pub fn open(path: impl AsRef<Path>, gate: Arc<WriteGate>) -> Result<Self, DestinationError> {
        let open = || Ok(Arc::new(Mutex::new(connection::open(path.as_ref())?)));
        Ok(Self { gate, writer: open()?, reader: open()?, mover: open()? })
    }

    /// Begins a transaction with work in it; what the work did is committed where `keep` says so.
    async fn write<T, F>(&self, class: Class, work: F, keep: fn(&T) -> bool) -> Result<T, DestinationError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, DestinationError> + Send + 'static,
    {
        let writer = Writer::take(&self.gate, &self.writer, class).await;
        let (_, done) = writer
            .run(move |connection| {
                connection.execute_batch("BEGIN IMMEDIATE").map_err(failure)?;
                let done = work(connection)?;
                if keep(&done) {
                    connection.execute_batch("COMMIT").map_err(failure)?;
                }
                Ok(done)
            })
            .await?;
        if class == Class::Bulk {
            self.move_pages();
        }
        Ok(done)
    }

    /// Moves what is committed from the log into the file, beside the next writer; not where that is being done.
    fn move_pages(&self) {
        if let Ok(mover) = Arc::clone(&self.mover).try_lock_owned() {
            tokio::task::spawn_blocking(move || {
                if let Err(error) = mover.execute_batch("PRAGMA wal_checkpoint(PASSIVE)") {
                    tracing::debug!(%error, "no checkpoint; the next one does it");
                }
            });
        }
    }

    async fn read<T, F>(&self, work: F) -> Result<T, DestinationError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, DestinationError> + Send + 'static,
    {
        let connection = Arc::clone(&self.reader).lock_owned().await;
        tokio::task::spawn_blocking(move || work(&connection)).await.unwrap_or_else(|error| Err(panicked(&error)))
    }
}

/// Looks up the records of refused rows and lists them, in the writer's transaction.
async fn list(
    mut writer: Writer,
    ticket: Ticket,
    found: Vec<Reject>,
    lookup: &dyn RecordLookup,
) -> Result<Writer, DestinationError> {
    let mut found = found.into_iter();
    loop {
        let mut piece: Vec<Reject> = found.by_ref().take(shape::LOOKUP_ROWS).collect();
        if piece.is_empty() {
            return Ok(writer);
        }
        shape::add_records(&mut piece, lookup).await?;
        (writer, ()) = writer.run(move |connection| write::insert_rejects(connection, ticket, true, &piece)).await?;
    }
}

#[async_trait]
impl Destination for SqliteDestination {
    async fn prepare(&self) -> Result<(), DestinationError> {
        let work = |connection: &Connection| connection.execute_batch(SERVICE_TABLES).map_err(failure);
        self.write(Class::Control, work, |()| true).await
    }

    async fn check(&self) -> Result<(), DestinationError> {
        self.read(|connection| connection.query_row("SELECT 1", [], |_| Ok(())).map_err(failure)).await
    }

    async fn describe(&self, table: &TableName) -> Result<Option<TableDescription>, DestinationError> {
        let table = table.clone();
        self.read(move |connection| describe::describe(connection, &table)).await
    }

    async fn raise_fence(&self, ticket: Ticket) -> Result<Option<FenceState>, DestinationError> {
        self.write(Class::Control, move |connection| fence::raise(connection, ticket), Option::is_some).await
    }

    /// There is always a table.
    async fn prepare_staging(
        &self,
        ticket: Ticket,
        plan: &LoadPlan,
        _wanted: Staging,
    ) -> Result<Option<Staging>, DestinationError> {
        let plan = plan.clone();
        let prepare = move |connection: &Connection| staging::prepare(connection, ticket, &plan);
        let admitted = self.write(Class::Bulk, prepare, |admitted| *admitted).await?;
        Ok(admitted.then_some(Staging::Table))
    }

    async fn write_chunk(
        &self,
        ticket: Ticket,
        chunk: ChunkIndex,
        plan: &LoadPlan,
        _on_error: OnError,
        rows: Arc<dyn ChunkRows>,
        _lookup: &dyn RecordLookup,
    ) -> Result<Written, DestinationError> {
        // There is one writer: chunks are read beside it, not while it waits.
        let mut held = shape::hold(plan, Arc::clone(&rows), write::prepare).await?;
        if !held.found.widenings.is_empty() {
            return Ok(Written::Widen(std::mem::take(&mut held.found.widenings)));
        }
        // Staging takes whatever a batch can hold: no row is refused here.
        let plan = plan.clone();
        let write = move |connection: &Connection| {
            let written = write::write_chunk(connection, ticket, chunk, &plan, &held, &*rows)?;
            failpoint::pass("chunk.copied");
            failpoint::pass("chunk.commit.before");
            // Its memory is freed when others may write again.
            Ok((written, held))
        };
        let (written, held) =
            self.write(Class::Bulk, write, |(written, _)| matches!(written, Written::Committed(_))).await?;
        failpoint::pass("chunk.commit.after");
        if matches!(written, Written::Committed(_)) {
            held.found.rejects.reasons.count();
        }
        Ok(written)
    }

    async fn ledger(&self, import: ImportId, attempt: Attempt) -> Result<Vec<LedgerRow>, DestinationError> {
        self.read(move |connection| write::ledger(connection, import, attempt)).await
    }

    async fn publish(
        &self,
        ticket: Ticket,
        plan: &LoadPlan,
        on_error: OnError,
        source: &dyn ChunkSource,
    ) -> Result<PublishOutcome, DestinationError> {
        // Before the one writer is taken, whom the chunks need.
        let planned = source.planned().await?;
        let plan = plan.clone();
        let writer = Writer::take(&self.gate, &self.writer, Class::Bulk).await;
        let (writer, moved) = writer
            .run(move |connection| {
                connection.execute_batch("BEGIN IMMEDIATE").map_err(failure)?;
                publish::moved(connection, ticket, &plan, planned, on_error)
            })
            .await?;
        match moved {
            // The writer rolls back.
            Moved::Answer(outcome) => Ok(outcome),
            Moved::Within { published, found } => {
                let writer = list(writer, ticket, found, source).await?;
                let work = move |connection: &mut Connection| {
                    publish::mark(connection, ticket, published)?;
                    failpoint::pass("publish.commit.before");
                    connection.execute_batch("COMMIT").map_err(failure)?;
                    failpoint::pass("publish.commit.after");
                    Ok(())
                };
                writer.run(work).await?;
                self.move_pages();
                Ok(PublishOutcome::Published(published))
            }
            Moved::TooMany { rejected, found } => {
                let restart = move |connection: &mut Connection| {
                    connection.execute_batch("ROLLBACK; BEGIN IMMEDIATE").map_err(failure)?;
                    fence::admits(connection, ticket)
                };
                let (writer, admitted) = writer.run(restart).await?;
                if !admitted {
                    return Ok(PublishOutcome::Fenced);
                }
                let writer = list(writer, ticket, found, source).await?;
                writer.run(|connection| connection.execute_batch("COMMIT").map_err(failure)).await?;
                Ok(PublishOutcome::TooManyRejects(rejected))
            }
        }
    }

    async fn abort(&self, ticket: Ticket) -> Result<Option<FenceState>, DestinationError> {
        self.write(Class::Bulk, move |connection| fence::abort(connection, ticket), Option::is_some).await
    }

    async fn rejects(
        &self,
        import: ImportId,
        attempt: Attempt,
        after: RowNumber,
        limit: usize,
    ) -> Result<Vec<Reject>, DestinationError> {
        self.read(move |connection| write::rejects(connection, import, attempt, after, limit)).await
    }
}
