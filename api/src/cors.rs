//! Calls from web pages of other origins, as `LONGSHORE_CORS_ORIGINS` allows them.

use axum::Router;
use axum::http::{HeaderName, Method, header};

use longshore_storage::objects::CorsOrigins;

/// Answers preflights, and marks every answer of `router`, errors included, for pages of these origins: they create an
/// import, follow it by polling or by its events, and read why something failed.
pub fn allow(router: Router, origins: &CorsOrigins) -> Router {
    let headers = [
        header::ACCEPT,
        header::CONTENT_TYPE,
        header::IF_NONE_MATCH,
        HeaderName::from_static("idempotency-key"),
        HeaderName::from_static("last-event-id"),
    ];
    let exposed = [header::ETAG, header::LOCATION, header::RETRY_AFTER];
    match origins.layer(&[Method::GET, Method::HEAD, Method::POST], &headers, &exposed) {
        Some(layer) => router.layer(layer),
        None => router,
    }
}
