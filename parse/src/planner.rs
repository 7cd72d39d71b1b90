//! Cuts a file into chunks while it is being read. The import supervisor feeds it block by block and stores each chunk before its
//! job is published. It holds a few words of state whatever the file, and goes on from any chunk's end after a crash.
//!
//! Chunks are cut on a grid: with a size of `T` bytes one closes at the first record's end past the next multiple of `T` behind its
//! start. Within a block that lies on the grid (from one multiple of `T` to the next) only the first two line ends and the first
//! two records' ends can close a chunk: one may stand exactly at the block's start, where a CR before it turned out to be a line's end. So
//! a block can be scanned before its start is known ([`crate::blocks`]), and [`ChunkPlanner::fold`] cuts as
//! [`ChunkPlanner::feed`] does.

use longshore_domain::{ByteOffset, ByteRange, LineNumber, RowNumber};

use crate::blocks::{Between, ScannedBlock};
use crate::boundary::{Boundary, LineKind, State};
use crate::dialect::Dialect;

/// Where a scan begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanStart {
    /// The first byte that will be fed: a record's start (`data_start`, or the end of the last stored chunk).
    pub offset: ByteOffset,
    /// The number of the first record from there.
    pub row: RowNumber,
    /// The physical line at `offset`.
    pub line: LineNumber,
    /// Where the first chunk begins: 0 for a fresh scan, so that the header belongs to it; else `offset`.
    pub chunk_start: ByteOffset,
}

/// Bounds of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A record of more bytes than this (with its line end) becomes a chunk of its own that is never fetched whole.
    pub max_record: u64,
}

impl Default for Limits {
    /// 16 MiB.
    fn default() -> Self {
        Self { max_record: 16 * 1024 * 1024 }
    }
}

/// A chunk as the scan found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedChunk {
    /// Its bytes. The ranges of all chunks tile the file.
    pub range: ByteRange,
    /// The number of its first record.
    pub first_row: RowNumber,
    /// The physical line where its records begin; for the first chunk the line at `data_start`.
    pub first_line: LineNumber,
    /// The physical line at its end, where a scan goes on after a crash.
    pub next_line: LineNumber,
    /// How many records it holds.
    pub rows: u64,
    /// Whether it is one record (or one comment, then `rows` is 0) longer than a record may be.
    pub oversized: bool,
}

impl PlannedChunk {
    /// Blank lines behind it belong to it.
    fn reach(&mut self, end: u64, next_line: u64) {
        self.range.end = ByteOffset(end);
        self.next_line = LineNumber(next_line);
    }
}

/// The scan.
#[derive(Debug, Clone)]
pub struct ChunkPlanner {
    dialect: Dialect,
    boundary: Boundary,
    target: u64,
    max_record: u64,
    /// The offset of the next byte.
    offset: u64,
    first_line: u64,
    /// The chunk that is growing.
    chunk_start: u64,
    chunk_line: u64,
    chunk_row: u64,
    rows: u64,
    /// The line that is growing.
    line_start: u64,
    line_number: u64,
    /// The last closed chunk, until another record ends: blank lines at the file's end belong to it.
    held: Option<PlannedChunk>,
}

impl ChunkPlanner {
    /// A scan that cuts chunks of about `target_chunk_size` bytes.
    #[must_use]
    pub fn new(dialect: Dialect, start: PlanStart, target_chunk_size: u64, limits: Limits) -> Self {
        Self {
            dialect,
            boundary: Boundary::new(),
            target: target_chunk_size.max(1),
            max_record: limits.max_record.max(1),
            offset: start.offset.0,
            first_line: start.line.0,
            chunk_start: start.chunk_start.0,
            chunk_line: start.line.0,
            chunk_row: start.row.0,
            rows: 0,
            line_start: start.offset.0,
            line_number: start.line.0,
            held: None,
        }
    }

    /// Reads the next bytes of the file, blocks of any size, and adds the chunks that are certain to `out`.
    pub fn feed(&mut self, block: &[u8], out: &mut Vec<PlannedChunk>) {
        let mut at = 0;
        while let Some((end, kind)) = self.boundary.next(&self.dialect, block, at) {
            self.line_ended(self.offset + end as u64, kind, out);
            at = end;
        }
        self.offset += block.len() as u64;
    }

    /// Whether blocks of the grid can be folded: no record that is too large begins and ends within one.
    #[must_use]
    pub fn folds(&self) -> bool {
        self.target <= self.max_record
    }

    /// Takes the next bytes of the file, a block of the grid, from somebody who scanned it. False: it is no such block, and nothing
    /// was done.
    #[must_use]
    pub fn fold(&mut self, block: &ScannedBlock, out: &mut Vec<PlannedChunk>) -> bool {
        let states = State::all(&self.dialect);
        let place = states.iter().position(|state| *state == self.boundary.state);
        let Some(entered) = place.and_then(|place| block.entered.get(place)) else { return false };
        let Some(exit) = states.get(entered.exit) else { return false };
        if !self.folds() || !self.offset.is_multiple_of(self.target) || block.len > self.target {
            return false;
        }
        let lines = self.boundary.lines;
        for mark in &entered.marks {
            self.pass(&mark.before, lines, out);
            self.boundary.lines = lines + mark.lines;
            self.line_ended(self.offset + mark.end, mark.kind, out);
        }
        self.pass(&entered.rest, lines, out);
        self.boundary = Boundary { state: *exit, lines: lines + entered.lines };
        self.offset += block.len;
        true
    }

    /// Passes over lines that decide nothing.
    fn pass(&mut self, between: &Between, lines: u64, out: &mut Vec<PlannedChunk>) {
        let Some((end, lines_there)) = between.last else { return };
        if between.records > 0 {
            out.extend(self.held.take());
            self.rows += between.records;
        }
        self.line_start = self.offset + end;
        self.line_number = self.first_line + lines + lines_there;
    }

    /// The place of the next byte to be fed.
    #[must_use]
    pub fn offset(&self) -> ByteOffset {
        ByteOffset(self.offset)
    }

    /// Where the line that is growing began.
    #[must_use]
    pub fn growing_from(&self) -> ByteOffset {
        ByteOffset(self.line_start)
    }

    /// The file has ended: adds what is left.
    pub fn finish(mut self, out: &mut Vec<PlannedChunk>) {
        if let Some(kind) = self.boundary.finish() {
            self.line_ended(self.offset, kind, out);
        }
        let end = self.offset;
        let line = self.first_line + self.boundary.lines;
        if self.rows > 0 {
            self.close(end, line, false);
        } else if end > self.chunk_start {
            match &mut self.held {
                Some(held) => held.reach(end, line),
                None => self.close(end, line, false),
            }
        }
        out.extend(self.held);
    }

    fn line_ended(&mut self, end: u64, kind: LineKind, out: &mut Vec<PlannedChunk>) {
        let record = kind == LineKind::Record;
        let next_line = self.first_line + self.boundary.lines;
        if kind != LineKind::Blank && end - self.line_start > self.max_record {
            self.close_oversized(end, record, out);
        } else if record {
            out.extend(self.held.take());
            self.rows += 1;
            if self.steps_past(end) > 0 {
                self.close(end, next_line, false);
            }
        } else if self.steps_past(end) > self.max_record.div_ceil(self.target) {
            // Endless blank lines or comments must not grow into one endless chunk.
            out.extend(self.held.take());
            self.close(end, next_line, false);
        }
        self.line_start = end;
        self.line_number = next_line;
        if self.chunk_start == end {
            self.chunk_line = self.line_number;
        }
    }

    /// How many multiples of the size lie behind the chunk's start and before `end`.
    fn steps_past(&self, end: u64) -> u64 {
        (end - 1) / self.target - self.chunk_start / self.target
    }

    fn close_oversized(&mut self, end: u64, record: bool, out: &mut Vec<PlannedChunk>) {
        let before = self.line_start;
        if self.rows == 0 && before > self.chunk_start && self.held.is_some() {
            if let Some(held) = &mut self.held {
                held.reach(before, self.line_number);
            }
            self.chunk_start = before;
        } else if before > self.chunk_start {
            out.extend(self.held.take());
            self.close(before, self.line_number, false);
        }
        out.extend(self.held.take());
        self.chunk_line = self.line_number;
        self.rows = u64::from(record);
        self.close(end, self.first_line + self.boundary.lines, true);
    }

    fn close(&mut self, end: u64, next_line: u64, oversized: bool) {
        self.held = Some(PlannedChunk {
            range: ByteRange::new(self.chunk_start, end),
            first_row: RowNumber(self.chunk_row),
            first_line: LineNumber(self.chunk_line),
            next_line: LineNumber(next_line),
            rows: self.rows,
            oversized,
        });
        self.chunk_start = end;
        self.chunk_row += self.rows;
        self.rows = 0;
    }
}
