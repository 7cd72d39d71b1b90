//! What every actor of a node works with, wired together once by the program.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use longshore_storage::bus::Bus;
use longshore_storage::database::Control;
use longshore_storage::destination::Destination;
use longshore_storage::objects::ObjectStore;

use crate::kept::Kept;

/// The dependencies of a node. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    /// Imports, plans, leases, status.
    pub database: Arc<dyn Control>,
    /// The object storage.
    pub objects: Arc<dyn ObjectStore>,
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// Where rows go.
    pub destination: Arc<dyn Destination>,
    /// How this node works.
    pub settings: NodeSettings,
    /// What runs on this node, for a stop that waits for it.
    pub running: Running,
    /// Chunks that this node's scans have read.
    pub kept: Kept,
}

/// What a node does that must not be cut off without a word: owned imports, whose leases are let go, and chunks, which are
/// finished or handed back.
#[derive(Clone, Default)]
pub struct Running {
    /// Owners and chunk jobs, each until its lease or claim is let go.
    pub tasks: TaskTracker,
    /// Cancelled when chunks were waited for long enough: what still runs is handed back.
    pub abandon: CancellationToken,
}

/// How a node works.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// The name of this process, different for each: `<host>-<pid>-<a few random letters>`.
    pub name: String,
    /// Chunks worked on at once.
    pub workers: NonZeroUsize,
    /// The size of chunks in bytes; chosen for the file when `None`.
    pub chunk_size: Option<u64>,
    /// How often awaiting imports are looked up in the storage.
    pub sweep_interval: Duration,
    /// How long storage and destination may be away before that fails an import.
    pub patience: Duration,
}
