//! The socket of the embedded endpoint: accepts connections, bounds their number and their patience, answers the
//! preflights of browsers, hands requests to `s3s`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::poll_fn;
use http::{Method, Request, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use s3s::service::S3Service;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tower::{Layer as _, service_fn, util::option_layer};
use tower_http::cors::CorsLayer;
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;
use tracing::{debug, warn};

use super::CorsOrigins;

/// Connections at once; more wait in the socket's own queue.
const CONNECTIONS: usize = 512;
/// How long a client may take over the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// What is read of a refused upload, so that its client sees the answer and not a broken connection.
const LINGER_BYTES: u64 = 64 << 20;
const LINGER_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a failed accept: out of files, most of the time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
        let stop = CancellationToken::new();
        let task = TaskTracker::new();
        task.spawn(accept(socket, service, cors, stop.clone()));
        task.close();
        Self { _guard: stop.clone().drop_guard(), stop, task }
    }

    pub(super) fn is_running(&self) -> bool {
        !self.stop.is_cancelled() && !self.task.is_empty()
    }

    /// Accepts nothing more and waits for the requests that run, but not for ever.
    pub(super) async fn stop(&self, patience: Duration) {
        self.stop.cancel();
        if tokio::time::timeout(patience, self.task.wait()).await.is_err() {
            warn!("requests to the embedded S3 endpoint were still running at the stop");
        }
    }
}

async fn accept(socket: TcpListener, service: S3Service, cors: Option<CorsLayer>, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let graceful = GracefulShutdown::new();
    loop {
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await.ok()?;
            Some((socket.accept().await, permit))
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = next => accepted,
        };
        match accepted {
            None => break,
            Some((Ok((stream, _)), permit)) => serve(stream, permit, &service, cors.as_ref(), &graceful),
            Some((Err(error), _)) => {
                warn!(%error, "the embedded S3 endpoint could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(socket);
    graceful.shutdown().await;
}

fn serve(
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    service: &S3Service,
    cors: Option<&CorsLayer>,
    graceful: &GracefulShutdown,
) {
    let service = service.clone();
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
    let handle = TowerToHyperService::new(option_layer(cors.cloned()).layer(handle));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), handle));
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "a connection to the embedded S3 endpoint broke");
        }
        drop(permit);
    });
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
