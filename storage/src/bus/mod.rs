//! The bus: storage events in, import and chunk jobs to whoever has capacity, reports as hints.
//!
//! Every message is a hint (invariant 1): whoever takes it looks everything up again. Losing, repeating or reordering any
//! message changes nothing but the time an import takes. Messages of kinds or shapes that cannot be read are logged and
//! dropped by the implementation.
//!
//! - [`nats`]: NATS JetStream between nodes; `s3_event` is the storage's own words on it.
//! - [`in_process`]: the same inside one process.

pub mod in_process;
pub mod nats;
mod s3_event;

pub use in_process::InProcessBus;
pub use nats::{NatsBus, NatsConfig};

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use longshore_domain::{Attempt, ByteRange, ChunkIndex, Epoch, ImportId, Tally};
use longshore_parse::ScannedBlock;
use longshore_telemetry::QueueName;

/// An object arrived, says the storage. The key is decoded; nothing else of the message is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageEvent {
    /// The bucket.
    pub bucket: String,
    /// The key, decoded.
    pub key: String,
}

/// An import waits for an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportJob {
    /// Which.
    pub import: ImportId,
}

/// A chunk waits for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkJob {
    /// Of which import.
    pub import: ImportId,
    /// Of which attempt.
    pub attempt: Attempt,
    /// The epoch of the owner that published it.
    pub epoch: Epoch,
    /// Which.
    pub chunk: ChunkIndex,
}

/// What a worker says of a chunk, to the import's owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkReport {
    /// Which.
    pub job: ChunkJob,
    /// What became of it.
    pub outcome: ChunkOutcome,
    /// The name of the worker's process, where one says so.
    #[serde(default)]
    pub worker: Option<String>,
}

/// What became of a chunk job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChunkOutcome {
    /// It is committed.
    Finished(Tally),
    /// Something about the import changed in the database: look.
    Changed,
}

/// A range of a large file that its owner would have scanned by somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanJob {
    /// Of which import.
    pub import: ImportId,
    /// Of which attempt.
    pub attempt: Attempt,
    /// Which bytes.
    pub range: ByteRange,
    /// The size of a block, in bytes.
    pub block: u64,
    /// The owner's [`longshore_parse::MACHINE`]: another one's findings are of no use to it.
    pub machine: u32,
}

/// A scan job with the way back.
pub struct ScanCall {
    /// What to scan.
    pub job: ScanJob,
    /// How to answer.
    pub answer: Box<dyn ScanAnswer>,
}

/// The way back to the owner who asked. Dropping it without a word makes the owner wait until it gives up.
#[async_trait]
pub trait ScanAnswer: Send + Sync {
    /// The blocks of the range; none where they could not be scanned: the owner does it.
    async fn send(&self, blocks: &[ScannedBlock]) -> Result<(), BusError>;
}

/// Why the bus did not do it.
#[derive(Debug, thiserror::Error)]
#[error("the bus at {endpoint} did not do it: {reason}")]
pub struct BusError {
    /// Where, without credentials.
    pub endpoint: String,
    /// What was seen.
    pub reason: String,
}

/// What can be done with a delivery. Dropping it without a word means: deliver again after the ack wait.
#[async_trait]
pub trait Receipt: Send + Sync {
    /// Done; never again.
    async fn ack(&self) -> Result<(), BusError>;
    /// Not now: deliver again after `delay`, to anyone.
    async fn hand_back(&self, delay: Duration) -> Result<(), BusError>;
    /// Still at it: the ack wait begins anew.
    async fn keep(&self) -> Result<(), BusError>;
}

/// A message with its receipt.
pub struct Delivery<T> {
    /// The message.
    pub message: T,
    /// How to answer for it.
    pub receipt: Box<dyn Receipt>,
}

/// How full a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueDepth {
    /// Which.
    pub queue: QueueName,
    /// Messages that nobody has.
    pub waiting: u64,
    /// Messages that were delivered and are not answered for. One that was handed back counts until it is delivered again.
    pub delivered: u64,
    /// Which queue of this name it is, by when it was made: another one behind the loss of a store, and of all messages with it.
    pub made: i128,
}

/// How long a delivery may stay unanswered before it is delivered again.
pub const ACK_WAIT: Duration = Duration::from_secs(10);

/// A bus. One conformance suite: `tests/bus.rs`. Every `publish_*` answers only once the bus has taken the message; every
/// `pull_*` waits at most `wait` and brings at most `most` (so that no more is in flight than there is capacity for).
#[async_trait]
pub trait Bus: Send + Sync {
    /// Makes what is missing (streams, consumers) and leaves alone what is there. May run twice, on two nodes at once, and
    /// again after the store was wiped.
    async fn prepare(&self) -> Result<(), BusError>;

    /// Whether the bus answers, for `/readyz`.
    async fn check(&self) -> Result<(), BusError>;

    /// How full a queue is, of all nodes together.
    async fn depth(&self, queue: QueueName) -> Result<QueueDepth, BusError>;

    /// Publishes a storage event (embedded endpoint; S3 servers publish their own).
    async fn publish_event(&self, event: &StorageEvent) -> Result<(), BusError>;
    /// Publishes an import job.
    async fn publish_import(&self, job: &ImportJob) -> Result<(), BusError>;
    /// Publishes a chunk job.
    async fn publish_chunk(&self, job: &ChunkJob) -> Result<(), BusError>;

    /// Takes storage events.
    async fn pull_events(&self, most: usize, wait: Duration) -> Result<Vec<Delivery<StorageEvent>>, BusError>;
    /// Takes import jobs.
    async fn pull_imports(&self, most: usize, wait: Duration) -> Result<Vec<Delivery<ImportJob>>, BusError>;
    /// Takes chunk jobs.
    async fn pull_chunks(&self, most: usize, wait: Duration) -> Result<Vec<Delivery<ChunkJob>>, BusError>;

    /// Tells whoever listens; nobody may.
    async fn report(&self, report: &ChunkReport) -> Result<(), BusError>;
    /// Listens to the reports of one import, from now on. A slow listener loses the oldest.
    async fn reports(&self, import: ImportId) -> Result<BoxStream<'static, ChunkReport>, BusError>;

    /// Asks one of the workers, and waits at most `wait` for its answer: a pure function of the object, so that asking twice, or not
    /// at all, changes nothing. `None`: nobody is there to ask.
    async fn ask_scan(&self, job: &ScanJob, wait: Duration) -> Result<Option<Vec<ScannedBlock>>, BusError>;
    /// Takes scan jobs, from now on, each of which goes to one taker. A slow taker loses the oldest.
    async fn scan_calls(&self) -> Result<BoxStream<'static, ScanCall>, BusError>;

    /// Tells whoever watches that an import changed in the database; nobody may.
    async fn changed(&self, import: ImportId) -> Result<(), BusError>;
    /// Listens to the changes of all imports, from now on. A slow listener loses the oldest.
    async fn changes(&self) -> Result<BoxStream<'static, ImportId>, BusError>;
}
