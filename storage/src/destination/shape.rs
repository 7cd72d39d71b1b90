//! What both destinations check of a chunk before they write it, and the records of rows that they refuse.

use std::collections::HashMap;

use longshore_domain::{LineNumber, LoadPlan, Problem, ProblemKind, RowNumber};
use longshore_parse::ParsedChunk;

use super::{DestinationError, RecordLookup, cells};

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

/// A chunk has to fit the plan, and its row numbers have to follow each other without gap or overlap, so that the ledger
/// can prove that every record of the file went somewhere once (invariant 4).
///
/// # Errors
/// [`DestinationError::Refused`], with the kind `count-mismatch`.
pub(super) fn check_chunk(plan: &LoadPlan, parsed: &ParsedChunk) -> Result<Extent, DestinationError> {
    let mut numbered = parsed.rejects.len() as u64;
    let mut first = parsed.rejects.iter().map(|reject| reject.row.0).min();
    let mut last = parsed.rejects.iter().map(|reject| reject.row.0).max();
    for batch in &parsed.batches {
        if batch.columns.len() != plan.fields.len()
            || batch.columns.iter().any(|column| cells::length(column) != batch.rows)
        {
            return Err(mismatch(format!(
                "a batch of {} rows has {} columns, or one of another length; the plan has {}",
                batch.rows,
                batch.columns.len(),
                plan.fields.len()
            )));
        }
        if batch.rows == 0 {
            continue;
        }
        let (low, high) = (batch.numbers.get(0), batch.numbers.get(batch.rows - 1));
        first = Some(first.map_or(low, |first| first.min(low)));
        last = Some(last.map_or(high, |last| last.max(high)));
        numbered += batch.rows as u64;
    }
    let spanned = match (first, last) {
        (Some(first), Some(last)) => last - first + 1,
        _ => 0,
    };
    if numbered != parsed.rows || spanned != parsed.rows {
        return Err(mismatch(format!(
            "a chunk of {} rows holds {numbered}, whose numbers span {spanned}",
            parsed.rows
        )));
    }
    Ok(Extent { first, rows: parsed.rows })
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
