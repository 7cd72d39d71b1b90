//! Create, read, list, complete.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tracing::Instrument as _;

use longshore_domain::import::format_time;
use longshore_domain::{CreateRequest, FieldError, ImportId, ImportState, Problem, ProblemKind, Trigger};
use longshore_storage::database::{ImportFilter, ImportRecord, NewImport};
use longshore_storage::objects::{PresignedPut, PutTerms};
use longshore_storage::start::{StartOutcome, object_key, start_import};
use longshore_telemetry::{metrics, trace};

use crate::ApiState;
use crate::error::ApiError;

/// Items of a listing when the request says nothing.
const DEFAULT_LIMIT: u64 = 50;
/// The most items of a listing.
const MAX_LIMIT: u64 = 1000;

/// `POST /v1/imports`
///
/// # Errors
/// [`ApiError`]
pub async fn create(State(state): State<ApiState>, body: Result<Bytes, BytesRejection>) -> Result<Response, ApiError> {
    let body = body.map_err(|error| {
        let kind = if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
            ProblemKind::TooLarge
        } else {
            ProblemKind::BadRequest
        };
        ApiError::new(kind, error.body_text())
    })?;
    let request = CreateRequest::from_json(&body)?;
    check_size(&request, state.objects.max_put_size())?;
    let id = ImportId::generate();
    let span = tracing::info_span!("create", import_id = %id);
    trace::join(&span, id);
    store(&state, id, request).instrument(span).await
}

/// Signs the URL and stores the import.
async fn store(state: &ApiState, id: ImportId, request: CreateRequest) -> Result<Response, ApiError> {
    let key = object_key(id, &request.file.name);
    let terms = PutTerms {
        content_type: request.file.content_type.clone(),
        content_length: request.file.size,
        expires_in: Duration::from_secs(request.upload.expires_in.into()),
    };
    let upload = state.objects.presign_put(&key, &terms);
    let new = NewImport { id, request, object_key: key, url_expires_at: upload.expires_at };
    let record = state.database.create(&new).await?;
    tracing::info!(import_id = %id, table = %record.request.destination.table, "import created");
    metrics().import_created();
    let mut resource = resource(state, &record)?;
    resource["upload"] = upload_json(&upload);
    let location = HeaderValue::from_str(&format!("/v1/imports/{id}"))
        .map_err(|error| ApiError::new(ProblemKind::Internal, error.to_string()))?;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(resource)).into_response())
}

fn check_size(request: &CreateRequest, most: u64) -> Result<(), ApiError> {
    match request.file.size {
        Some(size) if size > most => {
            let detail = format!("{size} bytes is more than the storage takes in one PUT ({most}); split the file");
            let mut problem = Problem::new(ProblemKind::BadRequest, format!("/file/size: {detail}"));
            problem.errors.push(FieldError { pointer: "/file/size".into(), detail });
            Err(problem.into())
        }
        _ => Ok(()),
    }
}

fn upload_json(upload: &PresignedPut) -> Value {
    let headers: BTreeMap<&str, &str> =
        upload.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    json!({"method": "PUT", "url": upload.url, "headers": headers, "expires_at": format_time(upload.expires_at)})
}

fn resource(state: &ApiState, record: &ImportRecord) -> Result<Value, ApiError> {
    serde_json::to_value(record.to_resource(state.objects.bucket()))
        .map_err(|error| ApiError::new(ProblemKind::Internal, error.to_string()))
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
pub async fn read(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let record = find(&state, &id).await?;
    let etag = format!("\"{}\"", record.version);
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let is_known = known
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim() == "*" || tag.trim().trim_start_matches("W/") == etag);
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Json(resource(&state, &record)?).into_response()
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

/// A page: `{"items": […], "next_cursor": …}`. One item more than `limit` was read to know whether there is a next page.
pub(crate) fn page<T>(
    mut items: Vec<T>,
    limit: u64,
    cursor: impl Fn(&T) -> String,
    show: impl Fn(&T) -> Result<Value, ApiError>,
) -> Result<Json<Value>, ApiError> {
    let more = items.len() as u64 > limit;
    items.truncate(limit as usize);
    let next_cursor = if more { items.last().map(cursor) } else { None };
    let items = items.iter().map(show).collect::<Result<Vec<_>, _>>()?;
    Ok(Json(json!({"items": items, "next_cursor": next_cursor})))
}

/// `GET /v1/imports`
///
/// # Errors
/// [`ApiError`]
pub async fn list(State(state): State<ApiState>, RawQuery(query): RawQuery) -> Result<Json<Value>, ApiError> {
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
        before: parameters
            .get("cursor")
            .map(|text| text.parse().map_err(|_| ApiError::bad_parameter("cursor", "is none that was handed out")))
            .transpose()?,
    };
    let records = state.database.imports(&filter, limit + 1).await?;
    page(records, limit, |record| record.id.to_string(), |record| resource(&state, record))
}

/// `POST /v1/imports/{id}/complete`
///
/// # Errors
/// [`ApiError`]; a `409` where no object is at its key, or the import ended without one.
pub async fn complete(State(state): State<ApiState>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let record = find(&state, &id).await?;
    let ApiState { database, objects, bus, .. } = &state;
    match start_import(database, &**objects, &**bus, record.id, Trigger::Complete).await? {
        StartOutcome::Unknown => return Err(ApiError::no_such_import(&id)),
        StartOutcome::NoObject => {
            let detail = format!("no object is at {}; upload the file, then call this again", record.object_key);
            return Err(ApiError::new(ProblemKind::NoObject, detail));
        }
        StartOutcome::Before(ended @ (ImportState::Expired | ImportState::Cancelled)) => {
            let detail = format!("the import is {ended}; ask for a new one");
            return Err(ApiError::new(ProblemKind::WrongState, detail));
        }
        StartOutcome::Started | StartOutcome::Before(_) => {}
    }
    let record = find(&state, &id).await?;
    Ok((StatusCode::ACCEPTED, Json(resource(&state, &record)?)).into_response())
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

    #[test]
    fn a_page_knows_whether_there_is_a_next_one() {
        let show = |n: &i32| Ok(json!(n));
        let page_of = |items: Vec<i32>| page(items, 2, |n| n.to_string(), show).unwrap().0;
        assert_eq!(page_of(vec![1, 2, 3]), json!({"items": [1, 2], "next_cursor": "2"}));
        assert_eq!(page_of(vec![1, 2]), json!({"items": [1, 2], "next_cursor": null}));
    }
}
