//! Request bodies: bounded in size, in time, and in what all of them take.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use bytes::BytesMut;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use longshore_domain::ProblemKind;

use crate::ApiState;
use crate::error::ApiError;

/// The largest request body in bytes: thousands of columns fit.
pub const BODY_LIMIT: usize = 2 * 1024 * 1024;
/// Bodies beyond this are read a few at a time, in bytes: there may be a thousand connections.
const SMALL: usize = 64 * 1024;
/// What is read of a body beyond its limit, in bytes.
const LINGER: usize = 16 * 1024 * 1024;
/// How long a body may take to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// Room for larger bodies, each until it was worked on.
#[derive(Debug, Clone)]
pub struct LargeBodies(Arc<Semaphore>);

impl Default for LargeBodies {
    /// Eight: read as JSON, a body may take thirty times its bytes.
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(8)))
    }
}

/// A body that was read to its end.
#[derive(Debug)]
pub struct Whole {
    /// All of it.
    pub bytes: Bytes,
    /// Of a large one.
    _room: Option<OwnedSemaphorePermit>,
}

impl FromRequest<ApiState> for Whole {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        read(request.into_body(), BODY_LIMIT, &state.large_bodies).await
    }
}

/// The body of a call that takes none: nothing, or an empty object. What somebody sent is not passed over in silence.
pub struct Nothing;

impl FromRequest<ApiState> for Nothing {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let body = Whole::from_request(request, state).await?.bytes;
        let empty = body.is_empty()
            || serde_json::from_slice(&body)
                .is_ok_and(|value| matches!(value, serde_json::Value::Object(keys) if keys.is_empty()));
        if empty {
            return Ok(Self);
        }
        Err(ApiError::bad_request("", "", "this call takes no body, or an empty object"))
    }
}

async fn read(body: Body, limit: usize, large: &LargeBodies) -> Result<Whole, ApiError> {
    match tokio::time::timeout(BODY_PATIENCE, collect(body, limit, large)).await {
        Ok(collected) => collected,
        Err(_) => {
            let detail = format!("the body did not arrive within {} s", BODY_PATIENCE.as_secs());
            Err(ApiError::new(ProblemKind::RequestTimeout, detail))
        }
    }
}

/// All of a body, or a refusal. One that is too large is read on for a while and thrown away: closing a connection with unread
/// bytes resets it, and the client never sees why it was refused.
async fn collect(body: Body, limit: usize, large: &LargeBodies) -> Result<Whole, ApiError> {
    let mut blocks = body.into_data_stream();
    let mut bytes = BytesMut::new();
    let mut room = None;
    let mut size = 0;
    while let Some(block) = blocks.next().await {
        let block = block.map_err(|error| {
            tracing::debug!(%error, "a body broke off");
            ApiError::bad_request("", "", "the body did not arrive whole")
        })?;
        size += block.len();
        if size <= limit {
            if size > SMALL && room.is_none() {
                // Nobody closes the semaphore.
                room = Arc::clone(&large.0).acquire_owned().await.ok();
            }
            bytes.extend_from_slice(&block);
        } else if size > limit + LINGER {
            break;
        }
    }
    if size > limit {
        return Err(ApiError::new(ProblemKind::TooLarge, format!("the body is larger than {limit} bytes")));
    }
    Ok(Whole { bytes: bytes.freeze(), _room: room })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn status_of(body: Body) -> Option<u16> {
        read(body, 8, &LargeBodies::default()).await.err().map(|error| error.0.status)
    }

    #[tokio::test(start_paused = true)]
    async fn large_bodies_are_held_a_few_at_a_time() {
        let large = LargeBodies(Arc::new(Semaphore::new(1)));
        let body = |bytes: usize| Body::from(vec![b' '; bytes]);
        let held = read(body(SMALL + 1), BODY_LIMIT, &large).await.unwrap();
        assert_eq!(read(body(SMALL + 1), BODY_LIMIT, &large).await.unwrap_err().0.status, 408);
        assert_eq!(read(body(SMALL), BODY_LIMIT, &large).await.unwrap().bytes.len(), SMALL);
        drop(held);
        assert_eq!(read(body(SMALL + 1), BODY_LIMIT, &large).await.unwrap().bytes.len(), SMALL + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_bounded_in_size_and_time() {
        assert_eq!(status_of(Body::from("12345678")).await, None);
        assert_eq!(status_of(Body::from("123456789")).await, Some(413));
        let never = futures::stream::pending::<Result<Bytes, std::io::Error>>();
        assert_eq!(status_of(Body::from_stream(never)).await, Some(408));
        let broken = futures::stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]);
        assert_eq!(status_of(Body::from_stream(broken)).await, Some(400));
    }
}
