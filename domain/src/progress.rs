//! Counters of an import (contract, section 3).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What one committed chunk, or several, did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Data records read, rejected ones included.
    pub rows: u64,
    /// Of these, rejected.
    pub rejected: u64,
    /// Bytes of the object.
    pub bytes: u64,
    /// How many chunks this counts.
    pub chunks: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.rejected += other.rejected;
        self.bytes += other.bytes;
        self.chunks += other.chunks;
    }
}

/// What a client polls. `rows_read = rows_loaded + rows_rejected`, always.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// The object's size.
    pub bytes_total: u64,
    /// Bytes in committed chunks.
    pub bytes_done: u64,
    /// `bytes_done` of `bytes_total`, 0 to 100, one digit behind the point.
    pub percent: f64,
    /// Data records in committed chunks.
    pub rows_read: u64,
    /// Of these, staged (until `succeeded`) or added to the destination.
    pub rows_loaded: u64,
    /// Of these, rejected.
    pub rows_rejected: u64,
    /// Chunks planned so far.
    pub chunks_total: u64,
    /// Chunks committed.
    pub chunks_done: u64,
    /// Rows a second, over the last seconds while running, over the whole import when done; null before the first chunk.
    pub rows_per_second: Option<f64>,
    /// Seconds until the end at the present rate; null where nothing can be said.
    pub eta_seconds: Option<f64>,
}

impl Progress {
    /// The counters of what is committed, without a rate.
    #[must_use]
    pub fn of(bytes_total: u64, chunks_total: u64, done: Tally) -> Self {
        Self {
            bytes_total,
            bytes_done: done.bytes,
            percent: percent(done.bytes, bytes_total),
            rows_read: done.rows,
            rows_loaded: done.rows - done.rejected,
            rows_rejected: done.rejected,
            chunks_total,
            chunks_done: done.chunks,
            rows_per_second: None,
            eta_seconds: None,
        }
    }
}

/// Rounded down to one digit, so that 100 means all of it.
#[must_use]
pub fn percent(done: u64, total: u64) -> f64 {
    if total == 0 {
        return 0.0;
    }
    let tenths = u128::from(done.min(total)) * 1000 / u128::from(total);
    tenths as f64 / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_percent_is_all_of_it() {
        assert_eq!(percent(0, 0), 0.0);
        assert_eq!(percent(999_999_999, 1_000_000_000), 99.9);
        assert_eq!(percent(1_000_000_000, 1_000_000_000), 100.0);
        assert_eq!(percent(8_388_608, 12_345_678), 67.9);
    }

    #[test]
    fn rows_read_are_loaded_or_rejected() {
        let progress = Progress::of(100, 2, Tally { rows: 10, rejected: 3, bytes: 50, chunks: 1 });
        assert_eq!(progress.rows_read, progress.rows_loaded + progress.rows_rejected);
    }
}
