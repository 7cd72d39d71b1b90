//! The accept loop behind the API and behind the embedded S3 endpoint: HTTP/1 with a bound on connections, on the size and the
//! patience of request heads, and on how long a client may leave an answer unread.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tower::Service;
use tracing::{debug, warn};

/// The pause after a failed accept: out of files, most of the time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What clients may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections at once; more wait in the socket's own queue.
    pub connections: usize,
    /// The largest head of a request in bytes, request line and headers; a larger one is a `431`. Also what is read at once.
    pub head_bytes: usize,
    /// How long a client may take over a head; a connection that is kept alive is closed behind the same time.
    pub head_patience: Duration,
    /// How long an answer may stay unread.
    pub unread_patience: Duration,
    /// How long a stop waits for requests that run.
    pub stop_patience: Duration,
}

/// Serves until `stop`, then lets requests end that run, for a while. `what` names the server in logs.
pub async fn serve<S, B>(listener: TcpListener, service: S, bounds: Bounds, what: &'static str, stop: CancellationToken)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<Box<dyn Error + Send + Sync>>, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(bounds.head_patience).max_buf_size(bounds.head_bytes);
    let service = TowerToHyperService::new(service);
    let places = Arc::new(Semaphore::new(bounds.connections));
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
            Some((Ok((stream, _)), place)) => {
                let stream = patient(stream, bounds.unread_patience);
                let connection = graceful.watch(builder.serve_connection(stream, service.clone()));
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        debug!(what, %error, "a connection broke");
                    }
                    drop(place);
                });
            }
            Some((Err(error), _)) => {
                warn!(what, %error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(bounds.stop_patience, graceful.shutdown()).await.is_err() {
        warn!(what, "requests were still running at the stop");
    }
}

/// The stream of a connection whose answers have to be read in time.
fn patient(stream: TcpStream, unread_patience: Duration) -> TokioIo<Pin<Box<TimeoutStream<TcpStream>>>> {
    // Answers are small and wait for nothing.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "no TCP_NODELAY");
    }
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(unread_patience));
    TokioIo::new(Box::pin(stream))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::SocketAddr;

    use futures::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::mpsc;

    use super::*;

    /// Longer than any of this takes on the slowest machine: it ends a test that would hang.
    const HANGS: Duration = Duration::from_secs(60);

    async fn get(address: SocketAddr) -> TcpStream {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        client
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_loses_its_place() {
        // An answer without an end; each says when it was dropped.
        let (dropped, mut drops) = mpsc::unbounded_channel();
        let service = tower::service_fn(move |_: Request<Incoming>| {
            let guard = Told(dropped.clone());
            let blocks = stream::unfold(guard, |guard| async move {
                Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b'x'; 64 << 10]))), guard))
            });
            async move { Ok::<_, Infallible>(Response::new(StreamBody::new(blocks))) }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bounds = Bounds {
            connections: 1,
            head_bytes: 32 << 10,
            head_patience: HANGS,
            unread_patience: Duration::from_millis(200),
            stop_patience: Duration::ZERO,
        };
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, service, bounds, "test", stop.clone()));

        let idle = get(address).await;
        let mut reader = get(address).await;
        let mut block = vec![0; 64 << 10];
        let read = async {
            drops.recv().await.expect("the idle client's answer is given up");
            // The only place is free again.
            reader.read_exact(&mut block).await.unwrap();
        };
        tokio::time::timeout(HANGS, read).await.expect("a client that does not read keeps others out");
        drop(idle);
        stop.cancel();
        server.await.unwrap();
    }

    struct Told(mpsc::UnboundedSender<()>);

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
}
