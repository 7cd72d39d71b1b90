//! What both destinations check of a chunk before they write it, and the records of rows that they refuse.

use std::collections::HashMap;

use longshore_domain::{LineNumber, LoadPlan, Problem, ProblemKind, RowNumber};
use longshore_parse::{Batch, ChunkEnd, ParsedChunk};

use super::{ChunkRows, DestinationError, RecordLookup, cells};

/// How many records are looked up at once.
const LOOKUP_ROWS: usize = 1_000;

/// The rows of a chunk, rejected ones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// The lowest number; `None` where there is no row.
    pub(super) first: Option<u64>,
    /// How many.
    pub(super) rows: u64,
}

/// A chunk as it is read. It has to fit the plan, and its row numbers have to follow each other without gap or overlap, so that
/// the ledger can prove that every record of the file went somewhere once (invariant 4).
#[derive(Debug, Default)]
struct Check {
    numbered: u64,
    span: Option<(u64, u64)>,
    misfit: Option<String>,
}

impl Check {
    /// The next batch.
    fn batch(&mut self, fields: usize, batch: &Batch) {
        if batch.columns.len() != fields || batch.columns.iter().any(|column| cells::length(column) != batch.rows) {
            self.misfit.get_or_insert_with(|| {
                format!(
                    "a batch of {} rows has {} columns, or one of another length; the plan has {fields}",
                    batch.rows,
                    batch.columns.len()
                )
            });
        }
        if batch.rows > 0 {
            self.numbers(batch.numbers.get(0), batch.numbers.get(batch.rows - 1), batch.rows);
        }
    }

    fn numbers(&mut self, low: u64, high: u64, rows: usize) {
        let (first, last) = self.span.unwrap_or((low, high));
        self.span = Some((first.min(low), last.max(high)));
        self.numbered += rows as u64;
    }

    /// # Errors
    /// [`DestinationError::Refused`], with the kind `count-mismatch`.
    fn end(mut self, end: &ChunkEnd) -> Result<Extent, DestinationError> {
        end.rejects.iter().for_each(|reject| self.numbers(reject.row.0, reject.row.0, 1));
        if let Some(misfit) = self.misfit {
            return Err(mismatch(misfit));
        }
        let spanned = self.span.map_or(0, |(first, last)| last - first + 1);
        if self.numbered != end.rows || spanned != end.rows {
            return Err(mismatch(format!(
                "a chunk of {} rows holds {}, whose numbers span {spanned}",
                end.rows, self.numbered
            )));
        }
        Ok(Extent { first: self.span.map(|(first, _)| first), rows: end.rows })
    }
}

/// Reads a chunk and checks it on the way; `None` where `sink` said to stop.
pub(super) fn read_checked(
    rows: &dyn ChunkRows,
    fields: usize,
    sink: &mut dyn FnMut(Batch) -> bool,
) -> Option<Result<(ChunkEnd, Extent), DestinationError>> {
    let mut check = Check::default();
    let end = rows.read(&mut |batch| {
        check.batch(fields, &batch);
        sink(batch)
    })?;
    Some(check.end(&end).map(|extent| (end, extent)))
}

/// Reads a chunk for what it holds alone.
///
/// # Errors
/// Those of [`Check::end`].
pub(super) fn check_rows(plan: &LoadPlan, rows: &dyn ChunkRows) -> Result<(ChunkEnd, Extent), DestinationError> {
    let read = read_checked(rows, plan.fields.len(), &mut |_| true);
    read.unwrap_or_else(|| Err(mismatch("a chunk was not read to its end".to_owned())))
}

/// The same of a chunk that is held in memory.
///
/// # Errors
/// Those of [`Check::end`].
pub(super) fn check_chunk(plan: &LoadPlan, parsed: &ParsedChunk) -> Result<Extent, DestinationError> {
    check_rows(plan, parsed).map(|(_, extent)| extent)
}

fn mismatch(detail: String) -> DestinationError {
    DestinationError::Refused(Problem::new(ProblemKind::CountMismatch, detail))
}

/// The raw records of rows, by row.
pub(super) async fn records(
    rows: &[RowNumber],
    lookup: &dyn RecordLookup,
) -> Result<HashMap<RowNumber, (LineNumber, Vec<u8>)>, DestinationError> {
    let mut records = HashMap::with_capacity(rows.len());
    for piece in rows.chunks(LOOKUP_ROWS) {
        records.extend(lookup.find(piece).await?.into_iter().map(|(row, line, record)| (row, (line, record))));
    }
    Ok(records)
}
