//! Liveness, and readiness with each dependency named.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::ApiState;

/// How long a dependency may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// `GET /healthz`: the process answers.
pub async fn live() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// `GET /readyz`: every dependency answers.
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
    let dependencies: BTreeMap<_, _> = checks
        .into_iter()
        .map(|(name, check)| match check {
            Ok(()) => (name, json!({"ready": true})),
            Err(detail) => (name, json!({"ready": false, "detail": detail})),
        })
        .collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if ready { "ready" } else { "unavailable" };
    (status, Json(json!({"status": word, "dependencies": dependencies}))).into_response()
}

async fn check<E: std::fmt::Display>(answer: impl Future<Output = Result<(), E>>) -> Result<(), String> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
