//! Which web pages may call from a browser: the origins of `LONGSHORE_CORS_ORIGINS`.
//!
//! The API and the embedded endpoint answer browsers through [`CorsOrigins::layer`]; an S3 server answers them by its
//! bucket's configuration, which `cors` sees to.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};
use url::Url;

/// How long a browser may keep the answer to a preflight.
pub(super) const MAX_AGE: Duration = Duration::from_secs(60 * 60);

/// The origins that pages may have: none, some, or any (`*`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CorsOrigins {
    /// As browsers write them; `*` stands alone.
    origins: Vec<String>,
}

impl CorsOrigins {
    /// Whether no page of another origin may call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    /// Whether any page may call.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.origins.iter().any(|origin| origin == "*")
    }

    /// The origins as a browser sends them, or `*`.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.origins.iter().map(String::as_str)
    }

    /// Answers preflights and marks every answer, errors included, for these origins: a page could not read a refusal
    /// without. `None` where no origin is allowed.
    #[must_use]
    pub fn layer(&self, methods: &[Method], headers: &[HeaderName], exposed: &[HeaderName]) -> Option<CorsLayer> {
        if self.is_empty() {
            return None;
        }
        let origin = if self.is_any() {
            AllowOrigin::any()
        } else {
            // What was read as an origin is ASCII.
            AllowOrigin::list(self.origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
        };
        let layer = CorsLayer::new()
            .allow_origin(origin)
            .allow_methods(methods.to_vec())
            .allow_headers(headers.to_vec())
            .expose_headers(exposed.to_vec())
            .max_age(MAX_AGE);
        Some(layer)
    }
}

impl FromStr for CorsOrigins {
    type Err = String;

    /// Reads `https://app.example.com,http://localhost:3000`, or `*`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut origins: Vec<String> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let origin = if part == "*" { part.to_owned() } else { read_origin(part)? };
            if !origins.contains(&origin) {
                origins.push(origin);
            }
        }
        if origins.len() > 1 && origins.iter().any(|origin| origin == "*") {
            return Err("* stands for every origin and stands alone".to_owned());
        }
        Ok(Self { origins })
    }
}

impl fmt::Display for CorsOrigins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origins.join(","))
    }
}

/// An origin as browsers send it: lower case, without a port that is the scheme's own.
fn read_origin(text: &str) -> Result<String, String> {
    let bad = || format!("'{text}' is no origin: one looks like https://app.example.com, without a path");
    let url: Url = text.parse().map_err(|_| bad())?;
    let rest = text.split_once("://").map(|(_, rest)| rest).ok_or_else(bad)?;
    let plain = matches!(url.scheme(), "http" | "https") && !rest.contains(['/', '?', '#', '@', '*', '\\']);
    if plain && url.host_str().is_some_and(|host| !host.is_empty()) {
        Ok(url.origin().ascii_serialization())
    } else {
        Err(bad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read_as_browsers_send_them() {
        let read = |text: &str| text.parse::<CorsOrigins>().map(|origins| origins.to_string());
        assert_eq!(read("https://app.example.com"), Ok("https://app.example.com".into()));
        assert_eq!(
            read(" HTTPS://App.Example.com:443 , http://localhost:3000"),
            Ok("https://app.example.com,http://localhost:3000".into())
        );
        assert_eq!(read("http://a:80,http://a"), Ok("http://a".into()));
        assert_eq!(read("http://[::1]:5173"), Ok("http://[::1]:5173".into()));
        assert_eq!(read("*"), Ok("*".into()));
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in [
            "",
            "https://a/",
            "https://a/path",
            "a.example.com",
            "ftp://a",
            "null",
            "https://*.example.com",
            "https://user:pw@a",
            "https://",
            "https://a,",
            "https://a,*",
            "file:///x",
        ] {
            assert!(text.parse::<CorsOrigins>().is_err(), "{text}");
        }
    }
}
