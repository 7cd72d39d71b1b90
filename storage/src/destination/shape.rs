//! What both destinations check and hold of a chunk while they write it, and the records of rows that they refuse.

use std::collections::HashMap;
use std::sync::Arc;

use longshore_domain::{LineNumber, LoadPlan, Problem, ProblemKind, Reject, RejectReason, RowNumber};
use longshore_parse::{Batch, Widening};

use super::{ChunkRows, DestinationError, RecordLookup, cells, reader_failed};

/// How many records are looked up at once, and listed, so that no more of them are in memory.
pub(super) const LOOKUP_ROWS: usize = 1_000;
/// Bad rows of a chunk that are held until its good ones are written. Of a chunk that has more they are read again: each takes a
/// hundred times the bytes of a short row.
const REJECTS_HELD: u64 = 10_000;

/// The rows of a chunk, rejected ones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// The lowest number; `None` where there is no row.
    pub(super) first: Option<u64>,
    /// How many.
    pub(super) rows: u64,
}

/// How many rows were rejected, by reason.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reasons([u64; RejectReason::ALL.len()]);

impl Reasons {
    pub(super) fn add(&mut self, rejects: &[Reject]) {
        for reject in rejects {
            self.0[reject.reason as usize] += 1;
        }
    }

    /// Those of a chunk that was just committed, for the metrics.
    pub(super) fn count(self) {
        for reason in RejectReason::ALL {
            longshore_telemetry::metrics().rows_rejected(reason, self.0[reason as usize]);
        }
    }
}

/// The bad rows of a chunk, as its reader finds them.
#[derive(Debug, Default)]
pub(super) struct Rejects {
    pub(super) rows: u64,
    pub(super) reasons: Reasons,
    held: Vec<Reject>,
}

impl Rejects {
    fn add(&mut self, mut found: Vec<Reject>) {
        self.rows += found.len() as u64;
        self.reasons.add(&found);
        if self.rows <= REJECTS_HELD {
            self.held.append(&mut found);
        } else {
            self.held = Vec::new();
        }
    }

    /// All of them; `None` where they are too many, and have to be read again.
    pub(super) fn all(&self) -> Option<&[Reject]> {
        (self.held.len() as u64 == self.rows).then_some(self.held.as_slice())
    }
}

/// What is known of a chunk that was read.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) extent: Extent,
    pub(super) rejects: Rejects,
    pub(super) widenings: Vec<Widening>,
}

/// The same, with its good rows in memory.
pub(super) struct Held {
    pub(super) batches: Vec<Batch>,
    pub(super) found: Found,
}

/// A chunk as it is read. It has to fit the plan, and its row numbers have to follow each other without gap or overlap, so that
/// the ledger can prove that every record of the file went somewhere once (invariant 4).
#[derive(Debug, Default)]
struct Check {
    numbered: u64,
    span: Option<(u64, u64)>,
    misfit: Option<String>,
    rejects: Rejects,
}

impl Check {
    /// The next batch, out of which the bad rows are taken.
    fn batch(&mut self, fields: usize, batch: &mut Batch) {
        let rejects = std::mem::take(&mut batch.rejects);
        rejects.iter().for_each(|reject| self.numbers(reject.row.0, reject.row.0, 1));
        self.rejects.add(rejects);
        if batch.rows == 0 {
            return;
        }
        if batch.columns.len() != fields || batch.columns.iter().any(|column| cells::length(column) != batch.rows) {
            self.misfit.get_or_insert_with(|| {
                format!(
                    "a batch of {} rows has {} columns, or one of another length; the plan has {fields}",
                    batch.rows,
                    batch.columns.len()
                )
            });
        }
        self.numbers(batch.numbers.get(0), batch.numbers.get(batch.rows - 1), batch.rows);
    }

    fn numbers(&mut self, low: u64, high: u64, rows: usize) {
        let (first, last) = self.span.unwrap_or((low, high));
        self.span = Some((first.min(low), last.max(high)));
        self.numbered += rows as u64;
    }

    /// # Errors
    /// [`DestinationError::Refused`], with the kind `count-mismatch`.
    fn end(self, rows: u64, widenings: Vec<Widening>) -> Result<Found, DestinationError> {
        if let Some(misfit) = self.misfit {
            return Err(mismatch(misfit));
        }
        let spanned = self.span.map_or(0, |(first, last)| last - first + 1);
        if self.numbered != rows || spanned != rows {
            return Err(mismatch(format!(
                "a chunk of {rows} rows holds {}, whose numbers span {spanned}",
                self.numbered
            )));
        }
        let extent = Extent { first: self.span.map(|(first, _)| first), rows };
        Ok(Found { extent, rejects: self.rejects, widenings })
    }
}

/// Reads a chunk and checks it on the way; `sink` gets the good rows. `None` where it said to stop.
pub(super) fn read_checked(
    rows: &dyn ChunkRows,
    fields: usize,
    sink: &mut dyn FnMut(Batch) -> bool,
) -> Option<Result<Found, DestinationError>> {
    let mut check = Check::default();
    let end = rows.read(&mut |mut batch| {
        check.batch(fields, &mut batch);
        batch.rows == 0 || sink(batch)
    })?;
    Some(check.end(end.rows, end.widenings))
}

/// Reads a chunk into memory, on a thread of its own; each batch is prepared on the way.
///
/// # Errors
/// Those of [`Check::end`].
pub(super) async fn hold(
    plan: &LoadPlan,
    rows: Arc<dyn ChunkRows>,
    prepare: fn(&mut Batch),
) -> Result<Held, DestinationError> {
    let fields = plan.fields.len();
    let read = move || {
        let mut batches = Vec::new();
        let found = read_whole(&*rows, fields, &mut |mut batch| {
            prepare(&mut batch);
            batches.push(batch);
        })?;
        Ok(Held { batches, found })
    };
    tokio::task::spawn_blocking(read).await.map_err(reader_failed)?
}

/// Reads a chunk for what it holds alone, on a thread of its own.
///
/// # Errors
/// Those of [`Check::end`].
pub(super) async fn check_rows(plan: &LoadPlan, rows: Arc<dyn ChunkRows>) -> Result<Found, DestinationError> {
    let fields = plan.fields.len();
    tokio::task::spawn_blocking(move || read_whole(&*rows, fields, &mut |_| ())).await.map_err(reader_failed)?
}

fn read_whole(rows: &dyn ChunkRows, fields: usize, each: &mut dyn FnMut(Batch)) -> Result<Found, DestinationError> {
    let read = read_checked(rows, fields, &mut |batch| {
        each(batch);
        true
    });
    read.unwrap_or_else(|| Err(mismatch("a chunk was not read to its end".to_owned())))
}

/// Reads a chunk once more for its bad rows alone, those of a batch at a time.
///
/// # Errors
/// Those of `each`; [`DestinationError::Refused`], with the kind `count-mismatch`, where there are not as many as before.
pub(super) fn read_rejects(
    rows: &dyn ChunkRows,
    expected: u64,
    each: &mut dyn FnMut(Vec<Reject>) -> Result<(), DestinationError>,
) -> Result<(), DestinationError> {
    let (mut read, mut done) = (0, Ok(()));
    rows.read(&mut |batch| {
        read += batch.rejects.len() as u64;
        done = each(batch.rejects);
        done.is_ok()
    });
    done?;
    if read == expected {
        return Ok(());
    }
    Err(mismatch(format!("a chunk had {expected} rejects, and {read} when it was read again")))
}

fn mismatch(detail: String) -> DestinationError {
    DestinationError::Refused(Problem::new(ProblemKind::CountMismatch, detail))
}

/// A row that the destination refused, until its record is looked up.
pub(super) fn refused(
    row: RowNumber,
    column: Option<String>,
    value: Option<Vec<u8>>,
    reason: RejectReason,
    detail: String,
) -> Reject {
    Reject { row, line: LineNumber(0), column, value, reason, detail, record: Vec::new() }
}

/// Looks up the records of refused rows.
pub(super) async fn add_records(refused: &mut [Reject], lookup: &dyn RecordLookup) -> Result<(), DestinationError> {
    for piece in refused.chunks_mut(LOOKUP_ROWS) {
        let rows: Vec<RowNumber> = piece.iter().map(|reject| reject.row).collect();
        let found = lookup.find(&rows).await?;
        let mut records: HashMap<_, _> = found.into_iter().map(|(row, line, record)| (row, (line, record))).collect();
        for reject in piece {
            (reject.line, reject.record) = records.remove(&reject.row).unwrap_or_default();
        }
    }
    Ok(())
}
