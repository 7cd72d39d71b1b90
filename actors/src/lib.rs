//! The actors of a node. Messages are hints; everything they say is looked up in the databases (design, invariant 1).
//!
//! ```text
//!                      NodeActor (root: makes the others, and makes them anew)
//!        ┌──────────────┬──────────┴───────────┬───────────────────┐
//!   IntakeActor     SweepActor          RegistrarActor       ChunkPoolActor
//!   events ──► start  every second and     import jobs           chunk jobs, as many as workers are free
//!   (32 at once)      sweep_interval     (32 owned at most)        │ one permit a worker
//!                        └── Considered ──►  │                 Factory ─► ChunkWorker × LONGSHORE_WORKERS
//!                                       ImportActor                    claim ─► get ─► parse ─► write ─► commit ─► ack
//!                                       (lease, Owner task)                 │
//!                                        │    ▲ 8 scan batches             │ ChunkReport (a hint)
//!                                        │   Scan task ◄── ranges ──────────┼──── RangesActor (large files)
//!                                        ├── 64 chunk jobs in flight ◄── bus
//!                                        └─► StatusActor ─► 4 writes a second
//! ```
//!
//! Mailboxes have no bound of their own, so the work is bounded at its source: the numbers above. In reading order:
//!
//! - [`services`], [`patience`]: what actors work with, and how they wait for it.
//! - [`node`], [`intake`], [`sweep`], [`registrar`]: from hints to owned imports.
//! - [`import`], [`owner`], `planner`, `scan`, [`kept`], `ranges`, `text`, `source`, [`status`]: the life of an import.
//! - [`pool`], `chunk`: chunks.

mod ahead;
mod chunk;
pub mod import;
pub mod intake;
pub mod kept;
pub mod node;
mod off_thread;
pub mod owner;
pub mod patience;
mod planner;
pub mod pool;
mod ranges;
pub mod registrar;
mod scan;
pub mod services;
mod source;
pub mod status;
pub mod sweep;
mod text;

pub use kept::Kept;
pub use node::Node;
pub use services::{NodeSettings, Running, Services};
