//! What a client does with its import: complete, a fresh URL, cancel, retry. Each answers with the import; a state that
//! forbids the call is a `409`, and a call that took effect before is answered as it was then.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use longshore_domain::{ChunkIndex, ImportId, ImportState, ProblemKind, Trigger};
use longshore_storage::bus::{ChunkJob, ChunkOutcome, ChunkReport, ImportJob};
use longshore_storage::database::{Effect, ImportRecord};
use longshore_storage::failpoint;
use longshore_storage::start::{StartOutcome, start_import};
use longshore_telemetry::metrics;

use crate::answers::ImportAnswer;
use crate::body::Nothing;
use crate::error::ApiError;
use crate::imports::{Named, find, fresh_upload};
use crate::openapi::{BadRequest, ForeignOrigin, NotFound, RequestTimeout, TooLarge, Unavailable, WrongState};
use crate::{ApiState, Parts};

fn wrong_state(detail: String) -> ApiError {
    ApiError::new(ProblemKind::WrongState, detail)
}

fn accepted(state: &ApiState, record: &ImportRecord) -> Response {
    (StatusCode::ACCEPTED, Json(ImportAnswer::of(state, record))).into_response()
}

/// `POST /v1/imports/{id}/complete`
///
/// # Errors
/// [`ApiError`]; a `409` where no object is at its key, or the import ended without one.
#[utoipa::path(
    post,
    path = "/v1/imports/{id}/complete",
    tag = "actions",
    params(("id" = ImportId, Path, description = "The import's id")),
    responses(
        (status = ACCEPTED, description = "The file is there: the import starts", body = ImportAnswer),
        BadRequest, ForeignOrigin, NotFound, RequestTimeout, WrongState, TooLarge, Unavailable,
    ),
)]
pub async fn complete(State(state): State<ApiState>, Named(id): Named, _: Nothing) -> Result<Response, ApiError> {
    let record = find(&state, &id).await?;
    let Parts { database, objects, bus, .. } = &*state;
    failpoint::pass("complete.before");
    let started = start_import(database, &**objects, &**bus, record.id, Trigger::Complete).await?;
    failpoint::pass("complete.after");
    match started {
        StartOutcome::Unknown => return Err(ApiError::no_such_import(&id)),
        StartOutcome::NoObject => return Err(no_object(&record, "upload the file, then call this again")),
        StartOutcome::Before(ended @ (ImportState::Expired | ImportState::Cancelled)) => {
            return Err(wrong_state(format!("the import is {ended}; ask for a new one")));
        }
        StartOutcome::Started | StartOutcome::Before(_) => {}
    }
    Ok(accepted(&state, &find(&state, &id).await?))
}

fn no_object(record: &ImportRecord, advice: &str) -> ApiError {
    ApiError::new(ProblemKind::NoObject, format!("no object is at {}; {advice}", record.object_key))
}

/// `POST /v1/imports/{id}/upload`: a fresh URL while the import awaits its file.
///
/// # Errors
/// [`ApiError`]
#[utoipa::path(
    post,
    path = "/v1/imports/{id}/upload",
    tag = "actions",
    params(("id" = ImportId, Path, description = "The import's id")),
    responses(
        (status = OK, description = "A fresh URL for an import that awaits its file", body = ImportAnswer),
        BadRequest, ForeignOrigin, NotFound, RequestTimeout, WrongState, TooLarge, Unavailable,
    ),
)]
pub async fn upload(State(state): State<ApiState>, Named(id): Named, _: Nothing) -> Result<Response, ApiError> {
    let record = find(&state, &id).await?;
    match fresh_upload(&state, &record).await? {
        Some(upload) => Ok(Json(ImportAnswer::of(&state, &record).with_upload(Some(&upload))).into_response()),
        None => {
            let now = find(&state, &id).await?.state;
            Err(wrong_state(format!("the import is {now}; only one that awaits its file gets a fresh URL")))
        }
    }
}

/// `POST /v1/imports/{id}/cancel`
///
/// # Errors
/// [`ApiError`]; a `409` where it comes too late, or there is nothing to cancel.
#[utoipa::path(
    post,
    path = "/v1/imports/{id}/cancel",
    tag = "actions",
    params(("id" = ImportId, Path, description = "The import's id")),
    responses(
        (status = ACCEPTED, description = "Nothing of the import will stay in the destination", body = ImportAnswer),
        BadRequest, ForeignOrigin, NotFound, RequestTimeout, WrongState, TooLarge, Unavailable,
    ),
)]
pub async fn cancel(State(state): State<ApiState>, Named(id): Named, _: Nothing) -> Result<Response, ApiError> {
    let none = || ApiError::no_such_import(&id);
    let (effect, record) = state.database.cancel(id.parse().map_err(|_| none())?).await?.ok_or_else(none)?;
    match (effect, record.state) {
        (Effect::WrongState, ImportState::Publishing) => {
            return Err(wrong_state("the import is publishing: the cancel came too late".into()));
        }
        (Effect::WrongState, now) => {
            return Err(wrong_state(format!("the import is {now}: nothing is left to cancel")));
        }
        (Effect::Before, _) => {}
        (Effect::Now, now) => {
            tracing::info!(import_id = %record.id, "import cancelled");
            tell_owner(&state, &record).await;
            // One that nobody owned has ended with this call; of the others, the owner counts the end.
            if now == ImportState::Cancelled {
                metrics().import_ended(ImportState::Cancelled, None);
            }
        }
    }
    Ok(accepted(&state, &record))
}

/// `POST /v1/imports/{id}/retry`
///
/// # Errors
/// [`ApiError`]; a `409` where it did not fail, or its object is gone.
#[utoipa::path(
    post,
    path = "/v1/imports/{id}/retry",
    tag = "actions",
    params(("id" = ImportId, Path, description = "The import's id")),
    responses(
        (status = ACCEPTED, description = "A failed import is tried again from its object", body = ImportAnswer),
        BadRequest, ForeignOrigin, NotFound, RequestTimeout, WrongState, TooLarge, Unavailable,
    ),
)]
pub async fn retry(State(state): State<ApiState>, Named(id): Named, _: Nothing) -> Result<Response, ApiError> {
    let record = find(&state, &id).await?;
    if record.state == ImportState::Failed && state.objects.head(&record.object_key).await?.is_none() {
        return Err(no_object(&record, "there is nothing to retry; ask for a new import"));
    }
    let retried = state.database.retry(record.id).await?;
    let (effect, record) = retried.ok_or_else(|| ApiError::no_such_import(&id))?;
    match effect {
        Effect::WrongState => {
            return Err(wrong_state(format!("the import is {}; only a failed one can be retried", record.state)));
        }
        Effect::Before => {}
        Effect::Now => {
            tracing::info!(import_id = %record.id, "import retried");
            tell_owner(&state, &record).await;
        }
    }
    Ok(accepted(&state, &record))
}

/// Hints that an import changed: to its owner, where it has one, to nodes that may become it, and to whoever watches. None of
/// them is needed: owners look every second, ownerless imports are found every two.
async fn tell_owner(state: &ApiState, record: &ImportRecord) {
    let bus = &state.bus;
    let import = record.id;
    let job = ChunkJob { import, attempt: record.attempt, epoch: record.epoch, chunk: ChunkIndex(0) };
    let report = ChunkReport { job, outcome: ChunkOutcome::Changed, worker: None };
    let told = async {
        bus.report(&report).await?;
        bus.changed(import).await?;
        bus.publish_import(&ImportJob { import }).await
    };
    if let Err(error) = told.await {
        tracing::debug!(import_id = %import, %error, "nobody was told of the change; it is found in the database");
    }
}
