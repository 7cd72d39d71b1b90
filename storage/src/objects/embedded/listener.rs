//! The socket of the embedded endpoint: bounds its clients (`crate::server`), answers the preflights of browsers, hands
//! requests to `s3s`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::poll_fn;
use http::{Method, Request, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use s3s::service::S3Service;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tower::{Layer as _, service_fn, util::option_layer};
use tracing::debug;
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

use super::{CorsOrigins, STOP_TIMEOUT};
use crate::server::{Bounds, serve};

const BOUNDS: Bounds = Bounds {
    connections: 512,
    // Also what is read of an upload at once.
    head_bytes: 400 << 10,
    head_patience: Duration::from_secs(15),
    unread_patience: Duration::from_secs(60),
    stop_patience: STOP_TIMEOUT,
};
/// What is read of a refused upload, so that its client sees the answer and not a broken connection.
const LINGER_BYTES: u64 = 64 << 20;
const LINGER_TIMEOUT: Duration = Duration::from_secs(10);
/// A listening endpoint; it stops when dropped.
pub(super) struct Listener {
    stop: CancellationToken,
    _guard: DropGuard,
    task: TaskTracker,
}

impl Listener {
    pub(super) fn start(socket: TcpListener, service: S3Service, origins: &CorsOrigins) -> Self {
        let methods = [Method::PUT, Method::GET, Method::HEAD];
        let cors = origins.layer(&methods, &[header::CONTENT_TYPE, header::IF_NONE_MATCH], &[header::ETAG]);
        let handle = service_fn(move |request: Request<Incoming>| {
            let service = service.clone();
            async move {
                let expects = request.headers().contains_key(header::EXPECT);
                let (method, path) = (request.method().clone(), request.uri().path().to_owned());
                let request = request.map(|body| s3s::Body::http_body_unsync(Lingering::new(body, expects)));
                // `s3s` logs whole requests, signatures included, and every refusal as an error of ours.
                let answer = service.call(request).with_subscriber(NoSubscriber::default()).await;
                if let Ok(response) = &answer {
                    debug!(%method, path, status = response.status().as_u16(), "answered a request");
                }
                answer
            }
        });
        // A preflight carries no signature: it is answered before `s3s` asks for one.
        let handle = option_layer(cors).layer(handle);
        let stop = CancellationToken::new();
        let task = TaskTracker::new();
        task.spawn(serve(socket, handle, BOUNDS, "embedded S3 endpoint", stop.clone()));
        task.close();
        Self { _guard: stop.clone().drop_guard(), stop, task }
    }

    pub(super) fn is_running(&self) -> bool {
        !self.stop.is_cancelled() && !self.task.is_empty()
    }

    /// Accepts nothing more and waits for the requests that run, but not for ever.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.task.wait().await;
    }
}

/// A request's body that is read on for a while where nobody wanted it to the end: closing a socket with unread bytes
/// resets the connection, and the client never sees why it was refused.
struct Lingering {
    body: Option<Incoming>,
    /// The client waits to be asked for the body (`Expect: 100-continue`): nothing to read where nobody asked.
    unasked: bool,
}

impl Lingering {
    fn new(body: Incoming, expects: bool) -> Self {
        Self { body: Some(body), unasked: expects }
    }
}

impl Body for Lingering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.unasked = false;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(body) = self.body.take() else { return };
        if self.unasked || body.is_end_stream() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { tokio::time::timeout(LINGER_TIMEOUT, discard(body)).await });
        }
    }
}

async fn discard(mut body: Incoming) -> Result<(), Infallible> {
    let mut read = 0;
    while read < LINGER_BYTES {
        match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            Some(Ok(frame)) => read += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(_)) | None => break,
        }
    }
    Ok(())
}
