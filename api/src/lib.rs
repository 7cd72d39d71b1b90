//! The HTTP API (contract, section 2): thin, and never in the way of file bytes. It reads and writes the databases, signs
//! URLs and publishes hints; it never touches an actor.
//!
//! - [`server`]: the socket, and what a client may ask of it at most.
//! - [`error`], [`body`]: every error as `application/problem+json`; bodies, bounded.
//! - [`imports`], [`idempotency`]: create, read, list.
//! - [`actions`]: complete, fresh URL, cancel, retry.
//! - [`parts`]: chunks and rejects of an import.
//! - [`events`], [`watch`]: an import as it changes.
//! - [`health`]: liveness and readiness.

pub mod actions;
pub mod body;
pub mod error;
pub mod events;
pub mod health;
pub mod idempotency;
pub mod imports;
pub mod parts;
pub mod server;
pub mod watch;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use tokio_util::sync::CancellationToken;

use longshore_storage::bus::Bus;
use longshore_storage::database::Database;
use longshore_storage::destination::Destination;
use longshore_storage::objects::ObjectStore;

use watch::Watchers;

/// What the API works with. Cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    /// Imports, plans, status.
    pub database: Database,
    /// The object storage.
    pub objects: Arc<dyn ObjectStore>,
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// Where the rejects are.
    pub destination: Arc<dyn Destination>,
    /// Who watches which import.
    pub watchers: Watchers,
}

impl ApiState {
    /// The API's parts; it listens to changes until `stop`.
    #[must_use]
    pub fn new(
        database: Database,
        objects: Arc<dyn ObjectStore>,
        bus: Arc<dyn Bus>,
        destination: Arc<dyn Destination>,
        stop: CancellationToken,
    ) -> Self {
        let watchers = Watchers::start(database.clone(), Arc::clone(&bus), stop);
        Self { database, objects, bus, destination, watchers }
    }
}

/// The whole API.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/v1/imports", post(imports::create).get(imports::list))
        .route("/v1/imports/{id}", get(imports::read))
        .route("/v1/imports/{id}/complete", post(actions::complete))
        .route("/v1/imports/{id}/upload", post(actions::upload))
        .route("/v1/imports/{id}/cancel", post(actions::cancel))
        .route("/v1/imports/{id}/retry", post(actions::retry))
        .route("/v1/imports/{id}/chunks", get(parts::chunks))
        .route("/v1/imports/{id}/rejects", get(parts::rejects))
        .route("/v1/imports/{id}/events", get(events::events))
        .merge(health_router_of())
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::method_not_allowed)
        .with_state(state)
}

/// Only liveness and readiness, for a worker.
pub fn health_router(state: ApiState) -> Router {
    health_router_of().fallback(error::no_such_path).with_state(state)
}

fn health_router_of() -> Router<ApiState> {
    Router::new().route("/healthz", get(health::live)).route("/readyz", get(health::ready))
}
