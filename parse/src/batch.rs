//! Typed rows of one chunk, column by column, as the destination writes them.

use polars_core::prelude::{
    BinaryChunked, BooleanChunked, Float64Chunked, Int32Chunked, Int64Chunked, Int128Chunked, StringChunked,
};

use longshore_domain::{ColumnType, Reject};

/// The cells of one column. A null is a null of the array.
#[derive(Debug, Clone)]
pub enum Values {
    /// `bool`
    Bool(BooleanChunked),
    /// `int32`
    Int32(Int32Chunked),
    /// `int64`
    Int64(Int64Chunked),
    /// `float64`
    Float64(Float64Chunked),
    /// `decimal(p,s)`: unscaled, `value * 10^scale`
    Decimal {
        /// The unscaled values.
        unscaled: Int128Chunked,
        /// Digits behind the point.
        scale: u8,
    },
    /// `text`
    Text(StringChunked),
    /// `date`: days since 1970-01-01
    Date(Int32Chunked),
    /// `time`: microseconds since midnight
    Time(Int64Chunked),
    /// `timestamp`: microseconds since 1970-01-01T00:00:00, no zone
    Timestamp(Int64Chunked),
    /// `timestamptz`: microseconds since 1970-01-01T00:00:00Z
    Timestamptz(Int64Chunked),
    /// `uuid`: 16 bytes each
    Uuid(BinaryChunked),
    /// `json`: valid JSON text
    Json(StringChunked),
    /// A type that the database's own input function reads: the text as it stands in the file, unquoted
    Native(StringChunked),
}

/// The numbers of a batch's rows in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowNumbers {
    /// Row `i` of the batch is data record `first + i`.
    From(u64),
    /// Row `i` of the batch is data record `list[i]`; ascending.
    Listed(Vec<u64>),
}

impl RowNumbers {
    /// The number of the batch's row `i`.
    #[must_use]
    pub fn get(&self, i: usize) -> u64 {
        match self {
            Self::From(first) => first + i as u64,
            Self::Listed(list) => list[i],
        }
    }
}

/// Some rows of a chunk: one array per column of the plan, all of one length.
#[derive(Debug, Clone)]
pub struct Batch {
    /// How many rows.
    pub rows: usize,
    /// Their numbers in the file.
    pub numbers: RowNumbers,
    /// One per field of the plan, in its order.
    pub columns: Vec<Values>,
}

/// An inferred column met a cell that its type does not take: the type that takes both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Widening {
    /// The place of the column in the plan's fields.
    pub column: usize,
    /// The wider type.
    pub to: ColumnType,
}

/// What one chunk holds besides its good rows.
#[derive(Debug, Clone, Default)]
pub struct ChunkEnd {
    /// Data records read: the rows of all batches and the rejects.
    pub rows: u64,
    /// The bad rows, ascending.
    pub rejects: Vec<Reject>,
    /// Inferred columns that turned out too narrow. Where this is not empty, the attempt has to start anew.
    pub widenings: Vec<Widening>,
}

impl ChunkEnd {
    /// Adds what the chunk behind it holds.
    pub fn append(&mut self, next: Self) {
        self.rows += next.rows;
        self.rejects.extend(next.rejects);
        self.widenings.extend(next.widenings);
    }
}

/// What one chunk holds, all of it in memory.
#[derive(Debug, Clone, Default)]
pub struct ParsedChunk {
    /// Data records read: the rows of all batches and the rejects.
    pub rows: u64,
    /// The good rows; a row stands in exactly one batch.
    pub batches: Vec<Batch>,
    /// The bad rows, ascending.
    pub rejects: Vec<Reject>,
    /// Inferred columns that turned out too narrow. Where this is not empty, the attempt has to start anew.
    pub widenings: Vec<Widening>,
}

impl ParsedChunk {
    /// All that `read` hands out; `None` where it answers so.
    pub fn collect(read: impl FnOnce(&mut dyn FnMut(Batch) -> bool) -> Option<ChunkEnd>) -> Option<Self> {
        let mut batches = Vec::new();
        let ChunkEnd { rows, rejects, widenings } = read(&mut |batch| {
            batches.push(batch);
            true
        })?;
        Some(Self { rows, batches, rejects, widenings })
    }

    /// Hands the batches out, as [`crate::read_chunk`] does.
    pub fn replay(&self, sink: &mut dyn FnMut(Batch) -> bool) -> Option<ChunkEnd> {
        self.batches.iter().all(|batch| sink(batch.clone())).then(|| ChunkEnd {
            rows: self.rows,
            rejects: self.rejects.clone(),
            widenings: self.widenings.clone(),
        })
    }
}
