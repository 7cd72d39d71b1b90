//! The API's socket and what its clients may take of it. Called by the program with a router.

use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use longshore_storage::server::{self, Bounds};

/// Serves until `stop`, then lets requests end that run, for a while. At most `connections` at once; more wait in the socket's
/// own queue.
pub async fn serve(listener: TcpListener, router: Router, connections: usize, stop: CancellationToken) {
    let bounds = Bounds {
        connections,
        head_bytes: 32 << 10,
        head_patience: Duration::from_secs(20),
        unread_patience: Duration::from_secs(60),
        stop_patience: Duration::from_secs(5),
    };
    server::serve(listener, router, bounds, "API", stop).await;
}
