//! The words of longshore: what an import, a chunk, a format, a column and a reject are, and the protocol that ties them together.
//!
//! Pure: no I/O, no async, no clock. In reading order:
//!
//! - [`ids`]: newtypes for every id, number and offset.
//! - [`state`]: the states of imports and chunks, and the one function that says which change is legal.
//! - [`format`](mod@format), [`column`], [`table`]: what a file is and what it becomes.
//! - [`notation`], [`pattern`]: how the cells of a column are written, where that is not the plain way.
//! - [`request`]: a create request, read strictly.
//! - [`reject`], [`progress`], [`problem`]: bad rows, counters, errors.
//! - [`plan`]: everything a worker must know to read one chunk.
//! - [`import`]: the resource that clients see.
//! - [`protocol`]: commit, fence and publish as pure state machines (`docs/protocol.md` is their text).

pub mod column;
pub mod format;
pub mod ids;
pub mod import;
pub mod notation;
pub mod pattern;
pub mod plan;
pub mod problem;
pub mod progress;
pub mod protocol;
pub mod reject;
pub mod request;
pub mod state;
pub mod table;

pub use column::{Column, ColumnSource, ColumnType};
pub use format::{
    Compression, Encoding, EncodingErrors, Format, FormatType, GivenFormat, LineEnd, Ragged, ShownFormat,
};
pub use ids::{Attempt, ByteOffset, ByteRange, ChunkIndex, Epoch, ImportId, LineNumber, RowNumber};
pub use import::{Chunk, Import, SourceObject, Trigger};
pub use notation::{DecimalSeparator, Notation, ThousandsSeparator, Unit};
pub use pattern::{NumberPart, PatternError, PatternItem, TimePattern};
pub use plan::{FieldPlan, LoadPlan, Target};
pub use problem::{FieldError, Problem, ProblemKind};
pub use progress::{Progress, Tally};
pub use reject::{Reject, RejectReason};
pub use request::{CreateRequest, Destination, FileInfo, Mode, OnError, UploadWish};
pub use state::{ChunkState, IllegalTransition, ImportState};
pub use table::{TableColumn, TableDescription, TableName};
