//! The table of rejects.

use sqlx::postgres::{PgConnection, PgPool};

use longshore_domain::{Attempt, ImportId, LineNumber, Reject, RejectReason, RowNumber};

use super::session::{Session, Work, failure};
use crate::destination::{DestinationError, LISTED_BYTES, Ticket};

/// How many rows and bytes one INSERT takes.
const PIECE_ROWS: usize = 2_000;
const PIECE_BYTES: usize = 4 << 20;

/// When a row was refused: a publish that is given up and tried again finds its own anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// While its chunk was written.
    InChunk,
    /// By the destination table.
    InPublish,
}

/// Inserts rejects, in statements of bounded size. Rows that are listed already stay as they are.
pub(super) async fn insert(
    connection: &mut PgConnection,
    ticket: Ticket,
    found: Found,
    rejects: &[Reject],
) -> Result<(), sqlx::Error> {
    let mut rest = rejects;
    while !rest.is_empty() {
        let mut bytes = 0;
        let count = rest
            .iter()
            .take(PIECE_ROWS)
            .take_while(|reject| {
                let fits = bytes < PIECE_BYTES;
                bytes += reject.record.len() + reject.detail.len() + reject.value.as_ref().map_or(0, Vec::len);
                fits
            })
            .count();
        let (piece, after) = rest.split_at(count);
        insert_piece(connection, ticket, found, piece).await?;
        rest = after;
    }
    Ok(())
}

async fn insert_piece(
    connection: &mut PgConnection,
    ticket: Ticket,
    found: Found,
    piece: &[Reject],
) -> Result<(), sqlx::Error> {
    let rows: Vec<i64> = piece.iter().map(|reject| reject.row.0 as i64).collect();
    let lines: Vec<i64> = piece.iter().map(|reject| reject.line.0 as i64).collect();
    // A text cannot hold a NUL, and a detail may quote a cell.
    let columns: Vec<Option<String>> = piece.iter().map(|reject| reject.column.as_deref().map(without_nul)).collect();
    let details: Vec<String> = piece.iter().map(|reject| without_nul(&reject.detail)).collect();
    let values: Vec<Option<&[u8]>> = piece.iter().map(|reject| reject.value.as_deref()).collect();
    let reasons: Vec<&str> = piece.iter().map(|reject| reject.reason.as_str()).collect();
    let records: Vec<&[u8]> = piece.iter().map(|reject| reject.record.as_slice()).collect();
    sqlx::query(
        "INSERT INTO longshore_rejects \
             (import, attempt, by_publish, row_number, line, column_name, value, reason, detail, record) \
         SELECT $1, $2, $10, * FROM unnest($3::bigint[], $4::bigint[], $5::text[], $6::bytea[], $7::text[], $8::text[], $9::bytea[]) \
         ON CONFLICT DO NOTHING",
    )
    .bind(ticket.import.0)
    .bind(i64::from(ticket.attempt.0))
    .bind(rows)
    .bind(lines)
    .bind(columns)
    .bind(values)
    .bind(reasons)
    .bind(details)
    .bind(records)
    .bind(found == Found::InPublish)
    .execute(connection)
    .await?;
    Ok(())
}

fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// A row of the table: number, line, column, value, reason, detail, record.
type Row = (i64, i64, Option<String>, Option<Vec<u8>>, String, String, Vec<u8>);

/// See [`crate::destination::Destination::rejects`].
pub(super) async fn list(
    pool: &PgPool,
    import: ImportId,
    attempt: Attempt,
    after: RowNumber,
    limit: usize,
) -> Result<Vec<Reject>, DestinationError> {
    let mut session = Session::begin(pool, None, Work::Short).await?;
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT row_number, line, column_name, value, reason, detail, record FROM \
             (SELECT *, sum(octet_length(record)) OVER (ORDER BY row_number ROWS UNBOUNDED PRECEDING) - octet_length(record) AS before \
              FROM longshore_rejects WHERE import = $1 AND attempt = $2 AND row_number > $3 ORDER BY row_number LIMIT $4) AS page \
         WHERE before < $5 ORDER BY row_number",
    )
    .bind(import.0)
    .bind(i64::from(attempt.0))
    .bind(i64::try_from(after.0).unwrap_or(i64::MAX))
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .bind(LISTED_BYTES as i64)
    .fetch_all(session.connection())
    .await
    .map_err(failure)?;
    session.rollback().await;
    Ok(rows.into_iter().map(to_reject).collect())
}

fn to_reject((row, line, column, value, reason, detail, record): Row) -> Reject {
    Reject {
        row: RowNumber(row as u64),
        line: LineNumber(line as u64),
        column,
        value,
        // Only words of this enum are written.
        reason: RejectReason::from_word(&reason).unwrap_or(RejectReason::InvalidValue),
        detail,
        record,
    }
}
