//! Chunks and rejects of an import.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use serde_json::{Value, json};

use longshore_domain::reject::RECORD_LISTED;
use longshore_domain::{ChunkIndex, Reject, RowNumber};
use longshore_parse::RejectsCsv;
use longshore_parse::columns::REJECT_COLUMNS;
use longshore_storage::database::ImportRecord;

use crate::ApiState;
use crate::error::ApiError;
use crate::imports::{find, limit, page, parameters};

/// Rejects read at once for the file of rejects.
const CSV_PAGE: usize = 1000;

/// `GET /v1/imports/{id}/chunks`
///
/// # Errors
/// [`ApiError`]
pub async fn chunks(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let record = find(&state, &id).await?;
    let parameters = parameters(query.as_deref(), &["limit", "cursor"])?;
    let limit = limit(&parameters)?;
    let from = match parameters.get("cursor") {
        None => ChunkIndex(0),
        Some(text) => text
            .parse()
            .map(|last| ChunkIndex(last).next())
            .map_err(|_| ApiError::bad_parameter("cursor", "is none that was handed out"))?,
    };
    let chunks = state.database.chunks(record.id, record.attempt, from, limit + 1).await?;
    page(chunks, limit, |chunk| chunk.planned.chunk.to_string(), |chunk| Ok(json!(chunk.to_resource())))
}

/// `GET /v1/imports/{id}/rejects`: JSON in pages, or with `Accept: text/csv` the file of rejects.
///
/// # Errors
/// [`ApiError`]
pub async fn rejects(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let record = find(&state, &id).await?;
    let parameters = parameters(query.as_deref(), &["limit", "cursor"])?;
    let limit = limit(&parameters)?;
    let after = match parameters.get("cursor") {
        None => RowNumber(0),
        Some(text) => {
            text.parse().map(RowNumber).map_err(|_| ApiError::bad_parameter("cursor", "is none that was handed out"))?
        }
    };
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    if accepts.flat_map(|value| value.split(',')).any(|kind| kind.trim().starts_with("text/csv")) {
        return csv(&state, &record, after).await;
    }
    let rejects = state.destination.rejects(record.id, record.attempt, after, limit as usize + 1).await?;
    Ok(page(rejects, limit, |reject| reject.row.to_string(), |reject| Ok(show(reject)))?.into_response())
}

fn show(reject: &Reject) -> Value {
    json!({
        "row": reject.row,
        "line": reject.line,
        "column": reject.column,
        "value": reject.value.as_deref().map(cut),
        "reason": reject.reason,
        "detail": reject.detail,
        "record": cut(&reject.record),
    })
}

/// Text for a listing: at most 4 KiB, with a mark where it was cut.
fn cut(bytes: &[u8]) -> String {
    if bytes.len() <= RECORD_LISTED {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let mut end = RECORD_LISTED;
    // Not inside a character: its first byte is at most three back.
    while end > RECORD_LISTED - 3 && bytes[end] & 0xC0 == 0x80 {
        end -= 1;
    }
    format!("{}… ({} bytes in all)", String::from_utf8_lossy(&bytes[..end]), bytes.len())
}

/// The file of rejects, streamed page by page.
async fn csv(state: &ApiState, record: &ImportRecord, after: RowNumber) -> Result<Response, ApiError> {
    let writer = record.plan.as_ref().map(RejectsCsv::new);
    let header = match &writer {
        Some(writer) => writer.header(),
        // It failed before its columns were known: there are no rejects.
        None => format!("{}\n", REJECT_COLUMNS.join(",")).into_bytes(),
    };
    // The first page is read before the answer begins, so that a destination that is away is a 503.
    let first = state.destination.rejects(record.id, record.attempt, after, CSV_PAGE).await?;
    let (destination, id, attempt) = (state.destination.clone(), record.id, record.attempt);
    let rest = stream::try_unfold((writer, Some(first)), move |(writer, next)| {
        let destination = destination.clone();
        async move {
            let (Some(writer), Some(page)) = (writer, next) else { return Ok(None) };
            let lines: Vec<u8> = page.iter().flat_map(|reject| writer.line_of(reject)).collect();
            let last = page.last().map(|reject| reject.row).filter(|_| page.len() == CSV_PAGE);
            let next = match last {
                Some(last) => Some(destination.rejects(id, attempt, last, CSV_PAGE).await?),
                None => None,
            };
            Ok::<_, longshore_storage::destination::DestinationError>(Some((Bytes::from(lines), (Some(writer), next))))
        }
    });
    let body = futures::StreamExt::chain(stream::iter([Ok(Bytes::from(header))]), rest);
    Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], Body::from_stream(body)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_records_are_cut_with_a_mark_and_never_inside_a_character() {
        assert_eq!(cut(b"abc"), "abc");
        let long = "é".repeat(3000);
        for shift in 0..3 {
            let text = cut(&long.as_bytes()[shift..]);
            assert!(text.contains("bytes in all"), "{text}");
            assert!(!text.trim_start_matches('\u{fffd}').contains('\u{fffd}'));
        }
    }
}
