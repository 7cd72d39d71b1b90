//! Liveness, and readiness with each dependency named.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::ApiState;
use crate::error::RETRY_AFTER;

/// How long a dependency may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The process answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct Live {
    /// Always `ok`.
    #[schema(value_type = String, example = "ok")]
    status: &'static str,
}

/// Whether the process can do its work.
#[derive(Debug, Serialize, ToSchema)]
pub struct Ready {
    /// `ready` or `unavailable`.
    #[schema(value_type = String, example = "ready")]
    status: &'static str,
    /// By name: `database`, `destination`, `objects`, `bus`.
    #[schema(value_type = BTreeMap<String, Dependency>)]
    dependencies: BTreeMap<&'static str, Dependency>,
}

/// How a dependency answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct Dependency {
    ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    detail: Option<String>,
}

/// `GET /healthz`: the process answers.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "service",
    responses((status = OK, description = "The process answers", body = Live)),
)]
pub async fn live() -> Json<Live> {
    Json(Live { status: "ok" })
}

/// `GET /readyz`: every dependency answers.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "service",
    responses(
        (status = OK, description = "Every dependency answers", body = Ready),
        (
            status = SERVICE_UNAVAILABLE,
            description = "One does not; it is named",
            body = Ready,
            headers(("retry-after" = u32, description = "Seconds until the next try is worth while")),
        ),
    ),
)]
pub async fn ready(State(state): State<ApiState>) -> Response {
    let (database, destination, objects, bus) = futures::join!(
        check(state.database.check()),
        check(state.destination.check()),
        check(state.objects.check()),
        check(state.bus.check()),
    );
    let checks =
        BTreeMap::from([("database", database), ("destination", destination), ("objects", objects), ("bus", bus)]);
    let ready = checks.values().all(Result::is_ok);
    let dependencies = checks
        .into_iter()
        .map(|(name, check)| (name, Dependency { ready: check.is_ok(), detail: check.err() }))
        .collect();
    let (code, status) =
        if ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "unavailable") };
    let mut response = (code, Json(Ready { status, dependencies })).into_response();
    if !ready {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    }
    response
}

async fn check<E: std::fmt::Display>(answer: impl Future<Output = Result<(), E>>) -> Result<(), String> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
