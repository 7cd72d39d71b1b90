//! Bytes in, typed rows and rejects out. Pure and synchronous: no I/O, no clock, no async.
//!
//! ```text
//! sample ─ head ─ columns ──────────────► LoadPlan          (once an import)
//! stream ─ planner ─────────────────────► chunks            (once an import, block by block)
//! chunk's bytes ─ record ─ decode ──────► batches, rejects  (each chunk)
//! rejects ─ rejects_csv ────────────────► a file to mend
//! ```
//!
//! - [`dialect`], `delimiter`, `boundary`, [`blocks`], [`planner`], [`record`]: where records begin and end, exactly (design, invariant 5).
//! - [`head`], [`infer`], `candidates`, [`columns`]: what a file is, and which field becomes which column.
//! - [`cell`], [`decode`]: from text to values.
//! - [`chunk`]: a chunk's bytes to [`batch`]es and rejects.
//! - [`rejects_csv`]: rejects as a file.
//! - [`transcode`]: text of other encodings, before any of this.

pub mod batch;
pub mod blocks;
mod boundary;
mod candidates;
pub mod cell;
pub mod chunk;
pub mod columns;
pub mod decode;
mod delimiter;
pub mod dialect;
pub mod error;
pub mod head;
pub mod infer;
mod places;
pub mod planner;
pub mod quoted;
pub mod record;
pub mod rejects_csv;
pub mod transcode;

pub use batch::{Batch, ChunkEnd, ParsedChunk, RowNumbers, Values, Widening};
pub use blocks::{MACHINE, ScannedBlock, scan_blocks};
pub use chunk::{ChunkInput, find_records, is_cut, oversized_reject, parse_chunk, read_chunk};
pub use columns::{Mapped, map_columns};
pub use dialect::Dialect;
pub use error::{FormatError, FormatErrorKind};
pub use head::encoding::{Detected, detect, detect_compression};
pub use head::{Head, infer_from_middle, infer_more, read_head};
pub use infer::{Inferred, join_types};
pub use planner::{ChunkPlanner, Limits, PlanStart, PlannedChunk};
pub use rejects_csv::RejectsCsv;
pub use transcode::Transcoder;
