//! Destinations: where rows go, with staging, the fence, the ledger and the rejects beside them.
//!
//! `docs/protocol.md` is the text to this; `longshore_domain::protocol` its pure form. The service's own tables are
//! `longshore_fences` (one row an import: epoch, attempt, open or how it was closed), `longshore_ledger` (one row a committed
//! chunk) and `longshore_rejects`. Staging tables are `longshore_staging_<import id>_<attempt>` in the destination's schema.

mod cells;
pub mod encode;
pub mod gate;
pub mod postgres;
mod shape;
mod sql;
pub mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use longshore_domain::{
    Attempt, ChunkIndex, Epoch, ImportId, LineNumber, LoadPlan, OnError, Problem, Reject, RowNumber, TableDescription,
    TableName, Tally,
};
use longshore_parse::{Batch, ChunkEnd, ParsedChunk, Widening};

/// Who speaks: the owner of an import, or a worker on its behalf. The destination refuses a stale epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The import.
    pub import: ImportId,
    /// Its attempt.
    pub attempt: Attempt,
    /// The owner's epoch.
    pub epoch: Epoch,
}

/// How an import stands in the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceState {
    /// Chunks may commit.
    Open,
    /// Its rows are in the destination: the marker that `succeeded` is read from.
    Published(Published),
    /// Nothing of it is or will be in the destination.
    Aborted,
}

/// What a publish did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Rows that this import added to the destination.
    pub rows_loaded: u64,
    /// Rows that it rejected, those that the destination refused included.
    pub rows_rejected: u64,
}

/// Where an attempt's rows wait for their publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staging {
    /// In a table of the attempt.
    Table,
    /// Where they came from: a chunk's transaction writes its ledger row and its rejects, and the publish reads the chunks
    /// once more, straight into the table ([`LoadPlan::may_wait_in_object`]).
    Object,
}

/// What became of a chunk's transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// It is committed: by this call, or by an earlier one whose ledger row was found. `bytes` and `chunks` are not counted
    /// here.
    Committed(Tally),
    /// The fence refused: another epoch, another attempt, or closed. Nothing was written.
    Fenced,
    /// Inferred types are too narrow for this chunk. Nothing was written.
    Widen(Vec<Widening>),
}

/// What became of a publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishOutcome {
    /// Done, by this call or an earlier one.
    Published(Published),
    /// The fence refused. Nothing was moved.
    Fenced,
    /// A new table was planned, and meanwhile another import made it: plan again, as a new attempt.
    TableAppeared,
    /// With the rows that the destination refused, more are rejected than the import allows: so many so far. Nothing was moved, and
    /// those that were found are listed; the owner aborts.
    TooManyRejects(u64),
    /// The import cannot be published, and never can: counts that do not add up, a destination that does not fit. Nothing
    /// was moved; the owner aborts with it.
    Refused(Problem),
}

/// A committed chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerRow {
    /// Which.
    pub chunk: ChunkIndex,
    /// Data records in it, rejected ones included.
    pub rows: u64,
    /// Of these, rejected.
    pub rejected: u64,
}

/// Records in one answer to [`Destination::rejects`] end at so many bytes; the last one may go beyond.
pub const LISTED_BYTES: usize = 8 << 20;

/// What the owner found planned, to be checked against the ledger in the publish's transaction (invariant 4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Planned {
    /// Chunks that tile the object.
    pub chunks: u64,
    /// Data records in them.
    pub rows: u64,
}

/// Why the destination did not do it.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    /// It is away, overloaded, or a lock was not to be had: try again. Whether a COMMIT took effect is looked up.
    #[error("the destination is away: {reason}")]
    Unavailable {
        /// What was seen, without credentials.
        reason: String,
    },
    /// Trying again will not change it: the request or the destination's schema is at fault.
    #[error("{0}")]
    Refused(Problem),
    /// Staged work is gone (a crash emptied it, somebody dropped it): a new attempt is needed.
    #[error("staged work is gone: {reason}")]
    StagingLost {
        /// What was seen.
        reason: String,
    },
    /// Reading the chunk panicked: a defect of ours.
    #[error("the chunk's reader failed: {reason}")]
    ReaderFailed {
        /// What is known of it.
        reason: String,
    },
}

/// A chunk's rows, or those of some that follow each other, read as often as it takes: a destination writes them while they
/// are read.
pub trait ChunkRows: Send + Sync {
    /// Reads them on the calling thread, which is busy with it; `None` where `sink` said to stop, with false.
    fn read(&self, sink: &mut dyn FnMut(Batch) -> bool) -> Option<ChunkEnd>;
}

impl ChunkRows for ParsedChunk {
    fn read(&self, sink: &mut dyn FnMut(Batch) -> bool) -> Option<ChunkEnd> {
        self.replay(sink)
    }
}

fn reader_failed(error: tokio::task::JoinError) -> DestinationError {
    DestinationError::ReaderFailed { reason: error.to_string() }
}

/// Finds the raw records of rows that the destination refused, in the object.
#[async_trait]
pub trait RecordLookup: Send + Sync {
    /// The records, in any order; one that cannot be found may be missing.
    async fn find(&self, rows: &[RowNumber]) -> Result<Vec<(RowNumber, LineNumber, Vec<u8>)>, DestinationError>;
}

/// An import's chunks, to be read again.
#[async_trait]
pub trait ChunkSource: RecordLookup {
    /// All of them in the order of the file, from the first, once they are known to be committed; several that follow each
    /// other may come as one. An error ends it.
    fn chunks(&self) -> BoxStream<'_, Result<Arc<dyn ChunkRows>, DestinationError>>;

    /// What was planned, once all of it is committed and the import may be published. A publish begins ahead of that where it
    /// can, and commits nothing before.
    async fn planned(&self) -> Result<Planned, DestinationError>;
}

/// A destination. One conformance suite: `tests/destination.rs`. Every method may run twice without harm.
#[async_trait]
pub trait Destination: Send + Sync {
    /// Makes the service's own tables where they are missing. Two nodes may do so at the same moment.
    async fn prepare(&self) -> Result<(), DestinationError>;

    /// Whether it answers, for `/readyz`.
    async fn check(&self) -> Result<(), DestinationError>;

    /// The table as it stands; `None` where there is none. A view, or a name that the database cannot have, is
    /// [`DestinationError::Refused`].
    async fn describe(&self, table: &TableName) -> Result<Option<TableDescription>, DestinationError>;

    /// A new owner's first step: ends the sessions of older epochs, raises the fence to the ticket's epoch and attempt, and
    /// says how the import stands here. An older epoch than the fence's is refused by answering `None`. A closed fence
    /// (`Published`) stays closed; `Aborted` opens again only for a higher attempt.
    async fn raise_fence(&self, ticket: Ticket) -> Result<Option<FenceState>, DestinationError>;

    /// Makes this attempt's staging table where it is missing, drops those of other attempts with their ledger rows and
    /// rejects, and lets the database check that its rows could be inserted into an existing table (types, names,
    /// rights). Where rows may wait in the object, they do if that is `wanted`, no staging table is there, and the destination
    /// can do it; the answer says where they wait. `None`: the fence refuses. [`DestinationError::StagingLost`]: the ledger has rows of
    /// this attempt, but the staging table that it needs is gone.
    async fn prepare_staging(
        &self,
        ticket: Ticket,
        plan: &LoadPlan,
        wanted: Staging,
    ) -> Result<Option<Staging>, DestinationError>;

    /// Commits a chunk's rows, rejects and ledger row in one transaction, with the fence check in it (invariant 2). Where a
    /// ledger row is there already, it is the answer and nothing is written. When the connection breaks during COMMIT, the
    /// ledger is read over a new one. A row that the database cannot hold (a column of a type of its own, a NUL in a text)
    /// becomes a reject, with its record from `lookup`. Where rows may wait in the object and there is no staging table, they
    /// are only counted. Once more of the chunk's rows are rejected than `on_error` allows, the rest of it may be left out: such an
    /// attempt is not published. [`DestinationError::StagingLost`]: the staging table is gone, or the fence is older than the
    /// ticket, which is handed out behind its raise: the database was set back.
    async fn write_chunk(
        &self,
        ticket: Ticket,
        chunk: ChunkIndex,
        plan: &LoadPlan,
        on_error: OnError,
        rows: Arc<dyn ChunkRows>,
        lookup: &dyn RecordLookup,
    ) -> Result<Written, DestinationError>;

    /// The committed chunks of an attempt, by chunk.
    async fn ledger(&self, import: ImportId, attempt: Attempt) -> Result<Vec<LedgerRow>, DestinationError>;

    /// Moves the staged rows to the destination, all or nothing, and writes the marker, in one transaction; ledger and
    /// staging are gone with it. Rows that wait in the object are read from `source`, perhaps while later chunks are still
    /// loaded: what is planned is asked for at the end, and compared with the ledger under the fence. Rows that the destination
    /// refuses (SQLSTATE classes 22 and 23) become rejects (`constraint_violation`), found by splitting the failing batch by
    /// row number, so that of rows that collide the lowest stays. Dropped, it leaves nothing behind but a session that ends.
    async fn publish(
        &self,
        ticket: Ticket,
        plan: &LoadPlan,
        on_error: OnError,
        source: &dyn ChunkSource,
    ) -> Result<PublishOutcome, DestinationError>;

    /// Closes the fence as aborted and drops staging and ledger in one transaction; the attempt's rejects stay. Answers how
    /// the import stands: `Published` where a publish was first. `None`: the fence refuses the epoch.
    async fn abort(&self, ticket: Ticket) -> Result<Option<FenceState>, DestinationError>;

    /// Rejects of an attempt in ascending row order, behind `after`: at most `limit`, and behind [`LISTED_BYTES`] of records no
    /// more. An answer with less of both is the last.
    async fn rejects(
        &self,
        import: ImportId,
        attempt: Attempt,
        after: RowNumber,
        limit: usize,
    ) -> Result<Vec<Reject>, DestinationError>;
}
