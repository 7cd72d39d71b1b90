//! What Prometheus reads, and what is counted of each request.
//!
//! A scrape costs the process little and its dependencies nothing that matters: what they are asked for is kept for
//! [`KEEP`], one look at a time, each with a time-out. A dependency that is away makes its series absent, never the scrape late.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Mutex;
use tracing::Instrument as _;
use utoipa::openapi::OpenApi;

use longshore_domain::ImportId;
use longshore_storage::failure::Failure;
use longshore_telemetry::metrics::CONTENT_TYPE;
use longshore_telemetry::{Dependency, DependencyFault, MessageState, QueueName, Sampled, metrics, render, trace};

use crate::{ApiState, Parts};

/// How long a look at the dependencies is kept.
const KEEP: Duration = Duration::from_secs(5);
/// How long a dependency may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Methods and paths of what is routed, as the document names them.
pub(crate) fn routes_of(document: &OpenApi) -> Vec<(&'static str, &str)> {
    let paths = document.paths.paths.iter();
    paths
        .flat_map(|(path, item)| {
            let methods = [("GET", &item.get), ("POST", &item.post)];
            methods.into_iter().filter(|(_, operation)| operation.is_some()).map(|(method, _)| (method, path.as_str()))
        })
        .collect()
}

/// A look, and when it was taken.
type Seen = (Instant, Arc<Sampled>);

/// Looks at the dependencies, and keeps what it saw for a while.
#[derive(Clone, Default)]
pub struct Sampler(Arc<Mutex<Option<Seen>>>);

impl Sampler {
    /// What was seen at most [`KEEP`] ago. Scrapes that come together share one look.
    async fn sample(&self, state: &ApiState) -> Arc<Sampled> {
        let mut seen = self.0.lock().await;
        if let Some((when, sampled)) = &*seen
            && when.elapsed() < KEEP
        {
            return Arc::clone(sampled);
        }
        let sampled = Arc::new(look(state).await);
        *seen = Some((Instant::now(), Arc::clone(&sampled)));
        sampled
    }
}

async fn look(state: &ApiState) -> Sampled {
    let Parts { database, objects, bus, destination, .. } = &**state;
    let sampled = Sampled::default();
    let (backlog, depths, destination, objects) = futures::join!(
        within(Dependency::Database, database.backlog()),
        within(Dependency::Bus, futures::future::try_join_all(QueueName::ALL.iter().map(|queue| bus.depth(*queue)))),
        within(Dependency::Destination, destination.check()),
        within(Dependency::Objects, objects.check()),
    );
    sampled.up(Dependency::Database, backlog.is_some());
    sampled.up(Dependency::Bus, depths.is_some());
    sampled.up(Dependency::Destination, destination.is_some());
    sampled.up(Dependency::Objects, objects.is_some());
    if let Some(backlog) = backlog {
        sampled.backlog(backlog.iter().map(|b| b.chunks).sum(), backlog.iter().map(|b| b.bytes).sum());
        sampled.imports(backlog.iter().map(|b| (b.state, b.imports, b.oldest)));
    }
    for depth in depths.unwrap_or_default() {
        sampled.messages(depth.queue, MessageState::Waiting, depth.waiting);
        sampled.messages(depth.queue, MessageState::Delivered, depth.delivered);
    }
    sampled
}

/// The answer, where there is one in time. `/readyz` says what is wrong.
async fn within<T, E: Failure + std::fmt::Display>(
    dependency: Dependency,
    answer: impl Future<Output = Result<T, E>>,
) -> Option<T> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            error.count();
            tracing::debug!(%error, "a dependency was not looked at");
            None
        }
        Err(_) => {
            metrics().dependency_error(dependency, DependencyFault::Unavailable);
            None
        }
    }
}

/// `GET /metrics`
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "service",
    responses((status = OK, description = "Metrics in Prometheus' text format", content_type = "text/plain", body = String)),
)]
pub async fn scrape(State(state): State<ApiState>) -> Response {
    let sampled = state.sampler.sample(&state).await;
    (StatusCode::OK, [(header::CONTENT_TYPE, CONTENT_TYPE)], render(&sampled)).into_response()
}

/// Counts a request by its route, and puts one that names an import into the import's trace.
pub async fn observe(
    parameters: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
    next: Next,
) -> Response {
    let method = word(request.method());
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("none", MatchedPath::as_str);
    let mut counted = Counted { method, route, status: None, begun: Instant::now() };
    let _in_flight = metrics().http_request();
    // A path that is not there has none.
    let response = match parameters.ok().as_ref().and_then(import_of) {
        None => next.run(request).await,
        Some(import) => {
            let span = tracing::info_span!("request", import_id = %import, method, route);
            trace::join(&span, import);
            next.run(request).instrument(span).await
        }
    };
    counted.status = Some(response.status().as_u16());
    response
}

fn import_of(parameters: &RawPathParams) -> Option<ImportId> {
    let (_, id) = parameters.iter().find(|(name, _)| *name == "id")?;
    id.parse().ok()
}

/// The method, where it is one of HTTP's own: anything may be sent as one.
fn word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// A request, counted when it is over: answered, or given up by the client.
struct Counted<'a> {
    method: &'static str,
    route: &'a str,
    status: Option<u16>,
    begun: Instant,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        metrics().http_answered(self.method, self.route, self.status, self.begun.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_that_is_none_of_https_makes_no_series_of_its_own() {
        assert_eq!(word(&Method::from_bytes(b"PURGE").unwrap()), "other");
        assert_eq!(word(&Method::POST), "POST");
    }
}
