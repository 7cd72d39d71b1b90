//! Chunks and rejects of an import.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;

use longshore_domain::{Chunk, ChunkIndex, ChunkState, ImportId, ImportState, Reject, RowNumber};
use longshore_parse::RejectsCsv;
use longshore_parse::columns::REJECT_COLUMNS;
use longshore_storage::database::ImportRecord;
use longshore_storage::destination::{DestinationError, LISTED_BYTES};

use crate::ApiState;
use crate::answers::{Page, RejectAnswer, page};
use crate::error::ApiError;
use crate::imports::{Named, cursor, find, limit, parameters};
use crate::openapi::{BadRequest, NotFound, Unavailable};

/// Rejects read at once, at most, for the file of rejects.
const CSV_PAGE: usize = 1000;

/// `GET /v1/imports/{id}/chunks`
///
/// # Errors
/// [`ApiError`]
#[utoipa::path(
    get,
    path = "/v1/imports/{id}/chunks",
    tag = "parts",
    params(
        ("id" = ImportId, Path, description = "The import's id"),
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 1000, description = "Items at most; 50 when left out"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = OK, description = "Its chunks, by place", body = Page<Chunk>), BadRequest, NotFound, Unavailable),
)]
pub async fn chunks(
    State(state): State<ApiState>,
    Named(id): Named,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<Chunk>>, ApiError> {
    let record = find(&state, &id).await?;
    let parameters = parameters(query.as_deref(), &["limit", "cursor"])?;
    let limit = limit(&parameters)?;
    let from = cursor(&parameters)?.map_or(ChunkIndex(0), |last| ChunkIndex(last).next());
    let chunks = state.database.chunks(record.id, record.attempt, from, limit + 1).await?;
    // Nobody works on it any more.
    let failed = |chunk: Chunk| match (record.state, chunk.state) {
        (ImportState::Failed, ChunkState::Running) => Chunk { state: ChunkState::Failed, ..chunk },
        _ => chunk,
    };
    Ok(page(chunks, limit, |chunk| chunk.planned.chunk.to_string(), |chunk| failed(chunk.to_resource())))
}

/// `GET /v1/imports/{id}/rejects`: JSON in pages, or with `Accept: text/csv` the file of rejects.
///
/// # Errors
/// [`ApiError`]
#[utoipa::path(
    get,
    path = "/v1/imports/{id}/rejects",
    tag = "parts",
    params(
        ("id" = ImportId, Path, description = "The import's id"),
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 1000, description = "Items at most; 50 when left out; JSON only"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("spreadsheet" = Option<bool>, Query, description = "Escapes cells that a spreadsheet would run; CSV only"),
    ),
    responses(
        (
            status = OK,
            description = "Rejected rows, by row; as `text/csv` where that is accepted: the original columns, `_row`, `_column` and `_reason`, ready to be mended and imported again",
            content((Page<RejectAnswer> = "application/json"), (String = "text/csv")),
        ),
        BadRequest, NotFound, Unavailable,
    ),
)]
pub async fn rejects(
    State(state): State<ApiState>,
    Named(id): Named,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let record = find(&state, &id).await?;
    let parameters = parameters(query.as_deref(), &["limit", "cursor", "spreadsheet"])?;
    let limit = limit(&parameters)?;
    let spreadsheet = flag(&parameters, "spreadsheet")?;
    let after = RowNumber(cursor(&parameters)?.unwrap_or(0));
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    if accepts.flat_map(|value| value.split(',')).any(|kind| kind.trim().starts_with("text/csv")) {
        return csv(&state, &record, after, spreadsheet).await;
    }
    // One more tells whether there is another page. Long records come a few at a time, and are cut.
    let (wanted, mut rejects, mut after) = (limit as usize + 1, Vec::new(), after);
    while rejects.len() < wanted {
        let found = state.destination.rejects(record.id, record.attempt, after, wanted - rejects.len()).await?;
        let next = behind(&found, wanted - rejects.len());
        rejects.extend(found.iter().map(RejectAnswer::of));
        let Some(next) = next else { break };
        after = next;
    }
    Ok(page(rejects, limit, |reject| reject.row.to_string(), |reject| reject).into_response())
}

/// Where the next rejects are asked for, behind those that were asked for with a limit; `None` where there are none.
fn behind(found: &[Reject], limit: usize) -> Option<RowNumber> {
    let bytes: usize = found.iter().map(|reject| reject.record.len()).sum();
    let may_be_more = found.len() >= limit || bytes >= LISTED_BYTES;
    found.last().filter(|_| may_be_more).map(|reject| reject.row)
}

/// `true` or `false`; left out, it is false.
fn flag(parameters: &BTreeMap<String, String>, name: &str) -> Result<bool, ApiError> {
    match parameters.get(name).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(ApiError::bad_parameter(name, "must be true or false")),
    }
}

/// What comes next in the file of rejects.
enum Next {
    Page(Vec<Reject>),
    Behind(RowNumber),
}

/// The file of rejects, streamed page by page.
async fn csv(
    state: &ApiState,
    record: &ImportRecord,
    after: RowNumber,
    spreadsheet: bool,
) -> Result<Response, ApiError> {
    let writer = record.plan.as_ref().map(RejectsCsv::new);
    let writer = if spreadsheet { writer.map(RejectsCsv::for_spreadsheets) } else { writer };
    let header = match &writer {
        Some(writer) => writer.header(),
        // It failed before its columns were known: there are no rejects.
        None => format!("{}\n", REJECT_COLUMNS.join(",")).into_bytes(),
    };
    // The first page is read before the answer begins, so that a destination that is away is a 503.
    let first = state.destination.rejects(record.id, record.attempt, after, CSV_PAGE).await?;
    let (destination, id, attempt) = (state.destination.clone(), record.id, record.attempt);
    // A page is read once the one before was taken: a slow reader costs one.
    let rest = stream::try_unfold((writer, Some(Next::Page(first))), move |(writer, next)| {
        let destination = destination.clone();
        async move {
            let (Some(writer), Some(next)) = (writer, next) else { return Ok(None) };
            let page = match next {
                Next::Page(page) => page,
                Next::Behind(last) => destination.rejects(id, attempt, last, CSV_PAGE).await?,
            };
            let lines: Vec<u8> = page.iter().flat_map(|reject| writer.line_of(reject)).collect();
            let next = behind(&page, CSV_PAGE).map(Next::Behind);
            Ok::<_, DestinationError>(Some((Bytes::from(lines), (Some(writer), next))))
        }
    });
    let body = futures::StreamExt::chain(stream::iter([Ok(Bytes::from(header))]), rest);
    Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], Body::from_stream(body)).into_response())
}
