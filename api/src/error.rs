//! Every error as `application/problem+json` (RFC 9457).

use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use longshore_domain::{FieldError, Problem, ProblemKind};
use longshore_storage::database::DatabaseError;
use longshore_storage::destination::DestinationError;
use longshore_storage::failure::Failure as _;
use longshore_storage::objects::ObjectError;
use longshore_storage::start::StartError;

/// How many seconds a client should wait for a dependency that is away.
pub(crate) const RETRY_AFTER: &str = "2";

/// An answer that is a problem.
#[derive(Debug)]
pub struct ApiError(pub Problem);

impl ApiError {
    pub(crate) fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self(Problem::new(kind, detail))
    }

    /// A request with one fault, at a JSON pointer (RFC 6901; empty: the whole body), a header or a query parameter. `place`
    /// stands before the fault where the pointer is not seen.
    pub(crate) fn bad_request(pointer: &str, place: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let mut problem = Problem::new(ProblemKind::BadRequest, format!("{place}{detail}"));
        problem.errors.push(FieldError { pointer: pointer.to_owned(), detail });
        Self(problem)
    }

    /// A bad query parameter.
    pub(crate) fn bad_parameter(name: &str, detail: impl Into<String>) -> Self {
        Self::bad_request(&format!("?{name}"), &format!("the parameter '{name}' "), detail)
    }

    pub(crate) fn no_such_import(id: &str) -> Self {
        Self::new(ProblemKind::NotFound, format!("there is no import {id}"))
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<DatabaseError> for ApiError {
    fn from(error: DatabaseError) -> Self {
        error.count();
        match error {
            DatabaseError::Unavailable { .. } => {
                tracing::warn!(%error, "request not served");
                Self::new(ProblemKind::Unavailable, "the control database is away; try again")
            }
            DatabaseError::Corrupt { .. } => {
                tracing::error!(%error, "request not served");
                Self::new(ProblemKind::Internal, "the control database holds what this version cannot read")
            }
        }
    }
}

impl From<ObjectError> for ApiError {
    fn from(error: ObjectError) -> Self {
        error.count();
        tracing::warn!(%error, "request not served");
        Self::new(ProblemKind::Unavailable, "the object storage is away or refuses this service; try again")
    }
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Database(error) => error.into(),
            StartError::Objects(error) => error.into(),
        }
    }
}

impl From<DestinationError> for ApiError {
    fn from(error: DestinationError) -> Self {
        error.count();
        tracing::warn!(%error, "request not served");
        Self::new(ProblemKind::Unavailable, "the destination is away; try again")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A problem always serialises: it holds nothing but strings and numbers.
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        response
    }
}

/// The answer to a path that is not there.
pub async fn no_such_path(uri: Uri) -> ApiError {
    no_such_path_of(&uri)
}

/// The same of a path whose id names nothing.
pub(crate) fn no_such_path_of(uri: &Uri) -> ApiError {
    ApiError::new(ProblemKind::NotFound, format!("there is nothing at {}", uri.path()))
}

/// The answer to a method that a path does not take.
pub async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(ProblemKind::MethodNotAllowed, format!("{} does not take {method}", uri.path()))
}
