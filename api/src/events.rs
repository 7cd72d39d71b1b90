//! Server-Sent Events (WHATWG HTML, section 9.2): an import as it changes.
//!
//! Each event carries the whole resource and its version as `id`. A reader that is slow, or changes that come quickly, get
//! the newest state and not every one between: a stream holds one event at most. A stream ends behind the event that says
//! `done`, or when the node stops; a client that comes back with `Last-Event-ID`, to whatever node, gets what it missed, or
//! `204` where nothing more will come.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, stream};

use longshore_domain::{ImportId, ProblemKind};
use longshore_storage::database::ImportRecord;

use crate::ApiState;
use crate::answers::ImportAnswer;
use crate::error::ApiError;
use crate::imports::{Named, find};
use crate::openapi::{NotFound, Unavailable};
use crate::watch::Watch;

/// Between two comments on a quiet stream, so that proxies and dead peers are noticed.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// When a client should come back behind a lost connection.
const RECONNECT: Duration = Duration::from_secs(1);

/// `GET /v1/imports/{id}/events`
///
/// # Errors
/// [`ApiError`]; a `503` where too many watch already.
#[utoipa::path(
    get,
    path = "/v1/imports/{id}/events",
    tag = "parts",
    params(("id" = ImportId, Path, description = "The import's id"), ("last-event-id" = Option<String>, Header, description = "The id of the last event that was seen")),
    responses(
        (status = OK, description = "Server-Sent Events: `import`, with the resource, for each change, until it is done", content_type = "text/event-stream", body = String),
        (status = NO_CONTENT, description = "It is done, and the last event was seen: nothing more will come"),
        NotFound, Unavailable,
    ),
)]
pub async fn events(State(state): State<ApiState>, Named(id): Named, headers: HeaderMap) -> Result<Response, ApiError> {
    let record = find(&state, &id).await?;
    let seen = last_event_id(&headers);
    if seen == Some(record.version) && record.state.is_done() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let too_many =
        || ApiError::new(ProblemKind::Unavailable, "too many watch imports on this node; poll, or try again");
    let watch = state.watchers.watch(record.id, record.version).ok_or_else(too_many)?;
    let keep_alive = KeepAlive::new().interval(HEARTBEAT).text("still here");
    let sse = Sse::new(changes(state, record.id, watch, seen)).keep_alive(keep_alive);
    // nginx would gather events in a buffer.
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    let uncached = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(([unbuffered, uncached], sse).into_response())
}

/// What the client saw last; anything that is no version of ours is as good as nothing.
fn last_event_id(headers: &HeaderMap) -> Option<i64> {
    headers.get("last-event-id")?.to_str().ok()?.parse().ok()
}

/// The import at once, unless it was seen, and whenever it changes.
fn changes(
    state: ApiState,
    id: ImportId,
    watch: Watch,
    seen: Option<i64>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some((watch, seen, true)), move |next| {
        let state = state.clone();
        async move {
            let (mut watch, seen, mut look) = next?;
            loop {
                if !look && !watch.changed().await {
                    return None;
                }
                look = false;
                let record = match state.database.import(id).await {
                    Ok(Some(record)) => record,
                    Ok(None) => return None,
                    Err(error) => {
                        // It is looked at again when the database says that it changed.
                        tracing::debug!(import_id = %id, %error, "a watched import could not be read");
                        tokio::time::sleep(RECONNECT).await;
                        look = true;
                        continue;
                    }
                };
                if seen == Some(record.version) {
                    if record.state.is_done() {
                        return None;
                    }
                    continue;
                }
                let event = event_of(&state, &record)?;
                let behind = (!record.state.is_done()).then_some((watch, Some(record.version), false));
                return Some((Ok(event), behind));
            }
        }
    })
}

fn event_of(state: &ApiState, record: &ImportRecord) -> Option<Event> {
    let data = serde_json::to_string(&ImportAnswer::of(state, record)).ok()?;
    Some(Event::default().event("import").id(record.version.to_string()).retry(RECONNECT).data(data))
}
