//! Calls from web pages of other origins, as `LONGSHORE_CORS_ORIGINS` allows them.
//!
//! CORS keeps a page from reading an answer, not from sending a simple POST: any page that somebody on this network looks at
//! could start and cancel imports. Browsers say where a request comes from (`Sec-Fetch-Site`, W3C Fetch Metadata), and one
//! from elsewhere that would change something is refused unless its origin is allowed. Clients that are no browsers send
//! no such header.

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};

use longshore_domain::ProblemKind;
use longshore_storage::objects::CorsOrigins;

use crate::error::ApiError;

/// Answers preflights, and marks every answer of `router`, errors included, for pages of these origins: they create an
/// import, follow it by polling or by its events, and read why something failed. Pages of other origins change nothing.
pub fn allow(router: Router, origins: &CorsOrigins) -> Router {
    let headers = [
        header::ACCEPT,
        header::CONTENT_TYPE,
        header::IF_NONE_MATCH,
        HeaderName::from_static("idempotency-key"),
        HeaderName::from_static("last-event-id"),
    ];
    let exposed = [header::ETAG, header::LOCATION, header::RETRY_AFTER];
    let guard = origins.clone();
    let router = router.layer(middleware::from_fn(move |request: Request, next: Next| {
        let refused = is_foreign(request.method(), request.headers(), &guard);
        async move { if refused { foreign() } else { next.run(request).await } }
    }));
    match origins.layer(&[Method::GET, Method::HEAD, Method::POST], &headers, &exposed) {
        Some(layer) => router.layer(layer),
        None => router,
    }
}

/// Whether a browser sends this for a page of an origin that may not change anything.
fn is_foreign(method: &Method, headers: &HeaderMap, origins: &CorsOrigins) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let elsewhere = matches!(text("sec-fetch-site"), Some("cross-site" | "same-site"));
    let allowed = origins.is_any() || text("origin").is_some_and(|origin| origins.iter().any(|known| known == origin));
    elsewhere && !allowed && !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

fn foreign() -> Response {
    let detail = "a web page of another origin sent this; LONGSHORE_CORS_ORIGINS lists the origins that may";
    ApiError::new(ProblemKind::ForeignOrigin, detail).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_browsers_with_pages_of_other_origins_are_refused() {
        let origins: CorsOrigins = "https://app.example.com".parse().unwrap();
        let refused =
            |method: Method, site: Option<&'static str>, origin: Option<&'static str>, origins: &CorsOrigins| {
                let mut headers = HeaderMap::new();
                for (name, value) in [("sec-fetch-site", site), ("origin", origin)] {
                    if let Some(value) = value {
                        headers.insert(name, HeaderValue::from_static(value));
                    }
                }
                is_foreign(&method, &headers, origins)
            };
        let evil = Some("https://evil.example");
        assert!(refused(Method::POST, Some("cross-site"), evil, &origins));
        assert!(refused(Method::POST, Some("same-site"), evil, &origins));
        assert!(refused(Method::POST, Some("cross-site"), None, &origins));
        assert!(!refused(Method::GET, Some("cross-site"), evil, &origins), "CORS keeps it from being read");
        assert!(!refused(Method::POST, Some("cross-site"), Some("https://app.example.com"), &origins));
        assert!(!refused(Method::POST, Some("cross-site"), evil, &"*".parse().unwrap()));
        assert!(!refused(Method::POST, Some("same-origin"), Some("http://127.0.0.1:8080"), &origins));
        assert!(!refused(Method::POST, None, None, &origins), "no browser");
    }
}
