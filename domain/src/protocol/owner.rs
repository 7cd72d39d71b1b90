//! Where a new owner begins, and when an attempt can be published.

use super::fence::Closure;
use crate::ids::ByteRange;
use crate::state::ImportState;

/// Where a new owner goes on, once it has raised the fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Entry {
    /// Make a plan: nothing of this attempt is stored.
    Plan,
    /// The plan is stored: make sure of the staging, go on with the scan and the chunks.
    Resume,
    /// Everything was staged: publish.
    Publish,
    /// The marker is there: only the control database does not know it yet.
    RecordPublished,
    /// The import fails; the reason is stored.
    Fail,
    /// A cancel was asked for.
    Cancel,
    /// The databases contradict each other: fail, and say so.
    Contradiction,
    /// There is nothing to own.
    Nothing,
}

/// What to do next, from what the control database and the destination say. `has_plan` and `has_error` are the control
/// row's columns; `closed` is the fence's.
#[must_use]
pub fn enter(state: ImportState, has_plan: bool, has_error: bool, closed: Option<Closure>) -> Entry {
    use ImportState::{Cancelling, Planning, Publishing, Queued, Running};
    match (state, closed) {
        (state, _) if !state.needs_owner() => Entry::Nothing,
        // A publish needs `publishing`, which is never cancelled, so its marker decides.
        (Publishing, Some(Closure::Published)) => Entry::RecordPublished,
        (_, Some(Closure::Published)) => Entry::Contradiction,
        (Cancelling, _) => Entry::Cancel,
        _ if has_error => Entry::Fail,
        (_, Some(Closure::Aborted)) => Entry::Contradiction,
        (Queued, None) => Entry::Plan,
        (Planning | Running, None) if has_plan => Entry::Resume,
        (Planning, None) => Entry::Plan,
        (Publishing, None) if has_plan => Entry::Publish,
        _ => Entry::Contradiction,
    }
}

/// What publishing has to know of a stored chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedChunkFacts {
    /// Its bytes.
    pub range: ByteRange,
    /// The number of its first data record.
    pub first_row: u64,
    /// Data records in it.
    pub rows: u64,
}

/// Chunks that do not tile the file (invariant 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TilingFault {
    /// A chunk does not begin where the one before it ends.
    #[error("chunk {chunk} begins at byte {found} instead of {expected}")]
    Gap {
        /// Its place.
        chunk: usize,
        /// Where the one before ends.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// A chunk's first row is not the one behind the chunk before it.
    #[error("chunk {chunk} begins with row {found} instead of {expected}")]
    Rows {
        /// Its place.
        chunk: usize,
        /// The row behind the chunk before.
        expected: u64,
        /// Its first row.
        found: u64,
    },
    /// The last chunk does not end with the file.
    #[error("the chunks end at byte {found} of {expected}")]
    End {
        /// The file's size.
        expected: u64,
        /// Where the last chunk ends.
        found: u64,
    },
}

/// Checks that chunks, in order, tile a file of `size` bytes and number its rows without gap; returns the rows.
///
/// # Errors
/// The first [`TilingFault`].
pub fn check_tiling(chunks: impl IntoIterator<Item = PlannedChunkFacts>, size: u64) -> Result<u64, TilingFault> {
    let (mut end, mut next_row) = (0, 1);
    for (chunk, facts) in chunks.into_iter().enumerate() {
        if facts.range.start.0 != end || facts.range.end.0 < end {
            return Err(TilingFault::Gap { chunk, expected: end, found: facts.range.start.0 });
        }
        if facts.first_row != next_row {
            return Err(TilingFault::Rows { chunk, expected: next_row, found: facts.first_row });
        }
        end = facts.range.end.0;
        next_row += facts.rows;
    }
    if end == size { Ok(next_row - 1) } else { Err(TilingFault::End { expected: size, found: end }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ImportState::*;

    #[test]
    fn every_state_has_its_entry() {
        let (published, aborted) = (Some(Closure::Published), Some(Closure::Aborted));
        for (state, plan, error, closed, entry) in [
            (Queued, false, false, None, Entry::Plan),
            (Planning, false, false, None, Entry::Plan),
            (Planning, true, false, None, Entry::Resume),
            (Running, true, false, None, Entry::Resume),
            (Publishing, true, false, None, Entry::Publish),
            (Publishing, true, false, published, Entry::RecordPublished),
            // The owner stored its error and died before, or after, the destination was told.
            (Running, true, true, None, Entry::Fail),
            (Running, true, true, aborted, Entry::Fail),
            (Publishing, true, true, aborted, Entry::Fail),
            // A publish that took effect beats an error that was stored over it.
            (Publishing, true, true, published, Entry::RecordPublished),
            (Cancelling, true, false, None, Entry::Cancel),
            (Cancelling, true, true, aborted, Entry::Cancel),
            (Running, true, false, published, Entry::Contradiction),
            (Running, true, false, aborted, Entry::Contradiction),
            (Running, false, false, None, Entry::Contradiction),
            (Succeeded, true, false, published, Entry::Nothing),
            (AwaitingUpload, false, false, None, Entry::Nothing),
        ] {
            assert_eq!(enter(state, plan, error, closed), entry, "{state} {plan} {error} {closed:?}");
        }
    }

    fn facts(start: u64, end: u64, first_row: u64, rows: u64) -> PlannedChunkFacts {
        PlannedChunkFacts { range: ByteRange::new(start, end), first_row, rows }
    }

    #[test]
    fn chunks_tile_the_file_or_nothing_is_published() {
        assert_eq!(check_tiling([facts(0, 10, 1, 2), facts(10, 30, 3, 4)], 30), Ok(6));
        assert_eq!(check_tiling([], 0), Ok(0));
        assert_eq!(check_tiling([facts(0, 10, 1, 0)], 10), Ok(0), "only a header");
        assert!(matches!(
            check_tiling([facts(0, 10, 1, 2), facts(11, 30, 3, 4)], 30),
            Err(TilingFault::Gap { chunk: 1, .. })
        ));
        assert!(matches!(check_tiling([facts(0, 10, 1, 2), facts(9, 30, 3, 4)], 30), Err(TilingFault::Gap { .. })));
        assert!(matches!(
            check_tiling([facts(0, 10, 1, 2), facts(10, 30, 4, 4)], 30),
            Err(TilingFault::Rows { chunk: 1, .. })
        ));
        assert!(matches!(check_tiling([facts(0, 10, 1, 2)], 30), Err(TilingFault::End { .. })));
        assert!(matches!(check_tiling([facts(5, 30, 1, 2)], 30), Err(TilingFault::Gap { chunk: 0, .. })));
    }
}
