//! The HTTP API (contract, section 2): thin, and never in the way of file bytes. It reads and writes the databases, signs
//! URLs and publishes hints; it never touches an actor.
//!
//! - [`error`]: every error as `application/problem+json`.
//! - [`imports`]: create, read, list, complete.
//! - [`parts`]: chunks and rejects of an import.
//! - [`health`]: liveness and readiness.
//! - [`cors`]: which web pages may call all of it.

pub mod cors;
pub mod error;
pub mod health;
pub mod imports;
pub mod parts;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};

use longshore_storage::bus::Bus;
use longshore_storage::database::Database;
use longshore_storage::destination::Destination;
use longshore_storage::objects::ObjectStore;

/// The largest request body in bytes: thousands of columns fit.
const BODY_LIMIT: usize = 2 * 1024 * 1024;

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
}

/// The whole API.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/v1/imports", post(imports::create).get(imports::list))
        .route("/v1/imports/{id}", get(imports::read))
        .route("/v1/imports/{id}/complete", post(imports::complete))
        .route("/v1/imports/{id}/chunks", get(parts::chunks))
        .route("/v1/imports/{id}/rejects", get(parts::rejects))
        .merge(health_router_of())
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(state)
}

/// Only liveness and readiness, for a worker.
pub fn health_router(state: ApiState) -> Router {
    health_router_of().fallback(error::no_such_path).with_state(state)
}

fn health_router_of() -> Router<ApiState> {
    Router::new().route("/healthz", get(health::live)).route("/readyz", get(health::ready))
}
