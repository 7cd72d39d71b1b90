//! Create, read, list.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, Path, RawQuery, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tracing::Instrument as _;

use longshore_domain::{CreateRequest, Import, ImportId, ImportState, ProblemKind};
use longshore_storage::database::{Created, IdempotencyKey, ImportFilter, ImportRecord, Listed, NewImport};
use longshore_storage::failpoint;
use longshore_storage::objects::{PresignedPut, PutTerms};
use longshore_storage::start::object_key;
use longshore_telemetry::{metrics, trace};

use crate::ApiState;
use crate::answers::{ImportAnswer, Page};
use crate::body::Whole;
use crate::error::{ApiError, no_such_path_of};
use crate::idempotency::idempotency_key;
use crate::openapi::{BadRequest, ForeignOrigin, KeyReused, NotFound, RequestTimeout, TooLarge, Unavailable};

/// Items of a listing when the request says nothing.
const DEFAULT_LIMIT: u64 = 50;
/// The most items of a listing.
const MAX_LIMIT: u64 = 1000;

/// `POST /v1/imports`: `201`, or `200` with the import that an equal request made under the same key.
///
/// # Errors
/// [`ApiError`]
#[utoipa::path(
    post,
    path = "/v1/imports",
    tag = "imports",
    params(("idempotency-key" = Option<String>, Header, min_length = 1, max_length = 255, description = "The same request may be sent again under it")),
    request_body(content = CreateRequest, content_type = "application/json"),
    responses(
        (status = CREATED, description = "A new import", body = ImportAnswer, headers(("location" = String, description = "Its path"))),
        (status = OK, description = "The import that an equal request made under this key", body = ImportAnswer, headers(("location" = String, description = "Its path"))),
        BadRequest, ForeignOrigin, RequestTimeout, TooLarge, KeyReused, Unavailable,
    ),
)]
pub async fn create(State(state): State<ApiState>, headers: HeaderMap, body: Whole) -> Result<Response, ApiError> {
    let value: Value = serde_json::from_slice(&body.bytes)
        .map_err(|error| ApiError::bad_request("", "", format!("the body is not JSON: {error}")))?;
    let request = CreateRequest::from_value(&value)?;
    let key = idempotency_key(&headers, &value)?;
    drop((value, body));
    check_size(&request, state.objects.max_put_size())?;
    let id = ImportId::generate();
    let span = tracing::info_span!("create", import_id = %id);
    trace::join(&span, id);
    store(&state, id, request, key.as_ref()).instrument(span).await
}

/// Signs the URL and stores the import, or finds the one that was stored under the key.
async fn store(
    state: &ApiState,
    id: ImportId,
    request: CreateRequest,
    key: Option<&IdempotencyKey>,
) -> Result<Response, ApiError> {
    let object_key = object_key(id, &request.file.name);
    let upload = state.objects.presign_put(&object_key, &terms_of(&request));
    let new = NewImport { id, request, object_key, url_expires_at: upload.expires_at };
    failpoint::pass("create.before");
    let created = state.database.create(&new, key).await?;
    failpoint::pass("create.after");
    let (status, record, upload) = match created {
        Created::New(record) => {
            tracing::info!(table = %record.request.destination.table, "import created");
            metrics().import_created();
            (StatusCode::CREATED, record, Some(upload))
        }
        Created::Before(record) => {
            let upload = fresh_upload(state, &record).await?;
            (StatusCode::OK, find(state, &record.id.to_string()).await?, upload)
        }
        Created::KeyOfAnother => {
            let detail = "another request was made under this key; a key belongs to one request for good";
            return Err(ApiError::new(ProblemKind::IdempotencyKeyReused, detail));
        }
    };
    let location = HeaderValue::from_str(&format!("/v1/imports/{}", record.id))
        .map_err(|error| ApiError::new(ProblemKind::Internal, error.to_string()))?;
    let answer = ImportAnswer::of(state, &record).with_upload(upload.as_ref());
    Ok((status, [(header::LOCATION, location)], Json(answer)).into_response())
}

fn terms_of(request: &CreateRequest) -> PutTerms {
    PutTerms {
        content_type: request.file.content_type.clone(),
        content_length: request.file.size,
        expires_in: Duration::from_secs(request.upload.expires_in.into()),
    }
}

/// A fresh URL, while the import awaits its file; the import does not expire before it ends.
pub(crate) async fn fresh_upload(state: &ApiState, record: &ImportRecord) -> Result<Option<PresignedPut>, ApiError> {
    let upload = state.objects.presign_put(&record.object_key, &terms_of(&record.request));
    let awaits = state.database.extend_upload(record.id, upload.expires_at).await?;
    Ok(awaits.then_some(upload))
}

fn check_size(request: &CreateRequest, most: u64) -> Result<(), ApiError> {
    match request.file.size {
        Some(size) if size > most => {
            let detail = format!("{size} bytes is more than the storage takes in one PUT ({most}); split the file");
            Err(ApiError::bad_request("/file/size", "/file/size: ", detail))
        }
        _ => Ok(()),
    }
}

/// The id in a path, as it stands there. One that is no text names no import.
pub struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        id.map(|Path(id)| Self(id)).map_err(|_| no_such_path_of(&parts.uri))
    }
}

/// The import of a path, or a 404.
pub(crate) async fn find(state: &ApiState, id: &str) -> Result<ImportRecord, ApiError> {
    let Ok(parsed) = id.parse::<ImportId>() else { return Err(ApiError::no_such_import(id)) };
    state.database.import(parsed).await?.ok_or_else(|| ApiError::no_such_import(id))
}

/// `GET /v1/imports/{id}`
///
/// # Errors
/// [`ApiError`]
#[utoipa::path(
    get,
    path = "/v1/imports/{id}",
    tag = "imports",
    params(("id" = ImportId, Path, description = "The import's id"), ("if-none-match" = Option<String>, Header, description = "The ETag of an earlier answer")),
    responses(
        (
            status = OK,
            description = "The import",
            body = ImportAnswer,
            headers(("etag" = String, description = "Of this state"), ("retry-after" = Option<u32>, description = "Seconds until the next poll is worth while; while it is not done")),
        ),
        (status = NOT_MODIFIED, description = "It has not changed"),
        NotFound, Unavailable,
    ),
)]
pub async fn read(State(state): State<ApiState>, Named(id): Named, headers: HeaderMap) -> Result<Response, ApiError> {
    let record = find(&state, &id).await?;
    let etag = format!("\"{}\"", record.version);
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let is_known = known
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim() == "*" || tag.trim().trim_start_matches("W/") == etag);
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Json(ImportAnswer::of(&state, &record)).into_response()
    };
    let etag = HeaderValue::from_str(&etag).map_err(|error| ApiError::new(ProblemKind::Internal, error.to_string()))?;
    response.headers_mut().insert(header::ETAG, etag);
    if !record.state.is_done() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    Ok(response)
}

/// Query parameters, each once, none unknown.
pub(crate) fn parameters(query: Option<&str>, known: &[&str]) -> Result<BTreeMap<String, String>, ApiError> {
    let mut parameters = BTreeMap::new();
    for (name, value) in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    }) {
        if !known.contains(&name.as_str()) {
            return Err(ApiError::bad_parameter(&name, format!("is unknown; known here: {}", known.join(", "))));
        }
        if parameters.insert(name.clone(), value).is_some() {
            return Err(ApiError::bad_parameter(&name, "stands twice"));
        }
    }
    Ok(parameters)
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// `limit`, from 1 to `MAX_LIMIT`.
pub(crate) fn limit(parameters: &BTreeMap<String, String>) -> Result<u64, ApiError> {
    let Some(text) = parameters.get("limit") else { return Ok(DEFAULT_LIMIT) };
    text.parse()
        .ok()
        .filter(|limit| (1..=MAX_LIMIT).contains(limit))
        .ok_or_else(|| ApiError::bad_parameter("limit", format!("must be a whole number from 1 to {MAX_LIMIT}")))
}

/// `cursor`: what the page before gave.
pub(crate) fn cursor<T: FromStr>(parameters: &BTreeMap<String, String>) -> Result<Option<T>, ApiError> {
    let parse =
        |text: &String| text.parse().map_err(|_| ApiError::bad_parameter("cursor", "is none that was handed out"));
    parameters.get("cursor").map(parse).transpose()
}

/// `GET /v1/imports`
///
/// # Errors
/// [`ApiError`]
#[utoipa::path(
    get,
    path = "/v1/imports",
    tag = "imports",
    params(
        ("state" = Option<ImportState>, Query, description = "Only those in this state"),
        ("table" = Option<String>, Query, description = "Only those into this table, as the requests name it"),
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 1000, description = "Items at most; 50 when left out"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = OK, description = "Imports, newest first", body = Page<Import>), BadRequest, Unavailable),
)]
pub async fn list(State(state): State<ApiState>, RawQuery(query): RawQuery) -> Result<Json<Page<Import>>, ApiError> {
    let parameters = parameters(query.as_deref(), &["state", "table", "limit", "cursor"])?;
    let limit = limit(&parameters)?;
    let filter = ImportFilter {
        state: parameters
            .get("state")
            .map(|text| {
                text.parse::<ImportState>().map_err(|error| ApiError::bad_parameter("state", error.to_string()))
            })
            .transpose()?,
        table: parameters
            .get("table")
            .map(|text| {
                let name = text.parse::<longshore_domain::TableName>();
                name.map(|name| name.to_string()).map_err(|error| ApiError::bad_parameter("table", error.to_string()))
            })
            .transpose()?,
        before: cursor(&parameters)?,
    };
    let Listed { imports, more } = state.database.imports(&filter, limit).await?;
    let next_cursor = imports.last().filter(|_| more).map(|last| last.id.to_string());
    let show = |record: &ImportRecord| record.to_resource(state.objects.bucket());
    Ok(Json(Page { items: imports.iter().map(show).collect(), next_cursor }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_strictly() {
        let read = |query: &'static str| parameters(Some(query), &["table", "limit"]);
        assert_eq!(read("table=a%20b+c&limit=5").unwrap()["table"], "a b c");
        assert!(read("").unwrap().is_empty());
        assert_eq!(read("x=1").unwrap_err().0.status, 400);
        assert_eq!(read("limit=1&limit=2").unwrap_err().0.status, 400);
        for bad in ["0", "1001", "-1", "a", ""] {
            let parameters = BTreeMap::from([("limit".to_owned(), bad.to_owned())]);
            assert_eq!(limit(&parameters).unwrap_err().0.status, 400, "{bad}");
        }
    }
}
