//! The HTTP API (contract, section 2): thin, and never in the way of file bytes. It reads and writes the databases, signs
//! URLs and publishes hints; it never touches an actor.
//!
//! - [`server`]: the socket, and what a client may ask of it at most.
//! - [`error`], [`body`]: every error as `application/problem+json`; bodies, bounded.
//! - [`answers`], [`openapi`]: what is answered, and the document that says so.
//! - [`imports`], [`idempotency`]: create, read, list.
//! - [`actions`]: complete, fresh URL, cancel, retry.
//! - [`parts`]: chunks and rejects of an import.
//! - [`events`], [`watch`]: an import as it changes.
//! - [`health`]: liveness and readiness.
//! - [`metrics`]: what Prometheus reads, and what is counted of each request.
//! - [`cors`]: which web pages may call all of it.

pub mod actions;
pub mod answers;
pub mod body;
pub mod cors;
pub mod error;
pub mod events;
pub mod health;
pub mod idempotency;
pub mod imports;
pub mod metrics;
pub mod openapi;
pub mod parts;
pub mod server;
pub mod watch;

use std::sync::Arc;

use axum::Router;
use axum::middleware;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use longshore_storage::bus::Bus;
use longshore_storage::database::Database;
use longshore_storage::destination::Destination;
use longshore_storage::objects::ObjectStore;

use body::LargeBodies;
use metrics::Sampler;
use watch::Watchers;

/// What the API works with. Cheap to clone, which every request does more than once.
#[derive(Clone)]
pub struct ApiState(Arc<Parts>);

impl std::ops::Deref for ApiState {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// The parts of [`ApiState`].
#[derive(Clone)]
pub struct Parts {
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
    /// Room for bodies that are not small.
    large_bodies: LargeBodies,
    /// The OpenAPI document as JSON.
    document: Bytes,
    /// What the dependencies looked like a moment ago.
    sampler: Sampler,
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
        let (large_bodies, document, sampler) = (LargeBodies::default(), Bytes::new(), Sampler::default());
        Self(Arc::new(Parts { database, objects, bus, destination, watchers, large_bodies, document, sampler }))
    }
}

/// The whole API.
pub fn router(state: ApiState) -> Router {
    let (routes, document) = routes().split_for_parts();
    let document = openapi::complete(document);
    longshore_telemetry::metrics().http_routes(&metrics::routes_of(&document));
    // A document always serialises: it holds nothing but strings and numbers.
    let document = serde_json::to_vec(&document).unwrap_or_default().into();
    let state = ApiState(Arc::new(Parts { document, ..Parts::clone(&state) }));
    finish(routes.method_not_allowed_fallback(error::method_not_allowed), state)
}

/// What is routed, and with it what is documented.
fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(openapi::Api::openapi())
        .routes(routes!(imports::create, imports::list))
        .routes(routes!(imports::read))
        .routes(routes!(actions::complete))
        .routes(routes!(actions::upload))
        .routes(routes!(actions::cancel))
        .routes(routes!(actions::retry))
        .routes(routes!(parts::chunks))
        .routes(routes!(parts::rejects))
        .routes(routes!(events::events))
        .routes(routes!(openapi::document))
        .merge(health_routes())
}

/// Only liveness, readiness and metrics, for a worker.
pub fn health_router(state: ApiState) -> Router {
    let (routes, document) = health_routes().split_for_parts();
    longshore_telemetry::metrics().http_routes(&metrics::routes_of(&document));
    finish(routes, state)
}

fn health_routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(health::live)).routes(routes!(health::ready)).routes(routes!(metrics::scrape))
}

/// What every request goes through.
fn finish(routes: Router<ApiState>, state: ApiState) -> Router {
    routes.fallback(error::no_such_path).layer(middleware::from_fn(metrics::observe)).with_state(state)
}
