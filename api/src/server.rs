//! The API's socket: bounds connections, the size and the patience of request heads, and how long a client may leave an
//! answer unread. Called by the program with a router.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// The largest head of a request in bytes: request line and headers. A larger one is a `431`.
const HEAD_LIMIT: usize = 32 * 1024;
/// How long a client may take over a head; a connection that is kept alive is closed behind the same time.
const HEAD_PATIENCE: Duration = Duration::from_secs(20);
/// How long an answer may stay unread.
const UNREAD_PATIENCE: Duration = Duration::from_secs(60);
/// How long a stop waits for requests that run.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// The pause after a failed accept: out of files, most of the time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then lets requests end that run, for a while. At most `connections` at once; more wait in the socket's
/// own queue.
pub async fn serve(listener: TcpListener, router: Router, connections: usize, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(connections));
    let graceful = GracefulShutdown::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            Some((listener.accept().await, place))
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = next => accepted,
        };
        match accepted {
            None => break,
            Some((Ok((stream, _)), place)) => answer(stream, place, router.clone(), &graceful),
            Some((Err(error), _)) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(STOP_PATIENCE, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still running at the stop");
    }
}

fn answer(stream: TcpStream, place: OwnedSemaphorePermit, router: Router, graceful: &GracefulShutdown) {
    // Answers are small and wait for nothing.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(UNREAD_PATIENCE));
    let handle = service_fn(move |request: Request<Incoming>| router.clone().oneshot(request));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE).max_buf_size(HEAD_LIMIT);
    let connection = graceful.watch(builder.serve_connection(TokioIo::new(Box::pin(stream)), handle));
    tokio::spawn(async move {
        if let Err(error) = pin!(connection).await {
            tracing::debug!(%error, "a connection broke");
        }
        drop(place);
    });
}
