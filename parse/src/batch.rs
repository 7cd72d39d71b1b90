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
    /// How many good rows; perhaps none.
    pub rows: usize,
    /// Their numbers in the file.
    pub numbers: RowNumbers,
    /// One per field of the plan, in its order; where there is no row, perhaps none.
    pub columns: Vec<Values>,
    /// The bad rows that stand among and beside them, ascending. Those of the batches before have lower numbers.
    pub rejects: Vec<Reject>,
}

/// An inferred column met a cell that its type does not take: the type that takes both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Widening {
    /// The place of the column in the plan's fields.
    pub column: usize,
    /// The wider type.
    pub to: ColumnType,
}

/// What is known of a chunk behind its last batch.
#[derive(Debug, Clone, Default)]
pub struct ChunkEnd {
    /// Data records read: the rows of all batches and their rejects.
    pub rows: u64,
    /// Inferred columns that turned out too narrow. Where this is not empty, the attempt has to start anew.
    pub widenings: Vec<Widening>,
}

impl ChunkEnd {
    /// Adds what the chunk behind it holds.
    pub fn append(&mut self, next: Self) {
        self.rows += next.rows;
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
        let (mut batches, mut rejects) = (Vec::new(), Vec::new());
        let ChunkEnd { rows, widenings } = read(&mut |mut batch| {
            rejects.append(&mut batch.rejects);
            if batch.rows > 0 {
                batches.push(batch);
            }
            true
        })?;
        Some(Self { rows, batches, rejects, widenings })
    }

    /// Hands the batches out, as [`crate::read_chunk`] does, and the rejects with one more behind them.
    pub fn replay(&self, sink: &mut dyn FnMut(Batch) -> bool) -> Option<ChunkEnd> {
        let rejects = || Batch {
            rows: 0,
            numbers: RowNumbers::Listed(Vec::new()),
            columns: Vec::new(),
            rejects: self.rejects.clone(),
        };
        let goes_on =
            self.batches.iter().all(|batch| sink(batch.clone())) && (self.rejects.is_empty() || sink(rejects()));
        goes_on.then(|| ChunkEnd { rows: self.rows, widenings: self.widenings.clone() })
    }
}
