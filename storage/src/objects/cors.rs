//! The bucket's CORS configuration: what `prepare` sets on an S3 server so that browsers of `LONGSHORE_CORS_ORIGINS` may
//! upload. Called by `s3`.
//!
//! `PutBucketCors` replaces the whole configuration, so it is read, merged and written, and read again. Only the rule with
//! our id is ours; rules of others stay as they are. A server that cannot do it is asked by a preflight whether it answers
//! browsers anyhow (MinIO does, by a setting of its own), else reported, and never stops the start.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use md5::{Digest as _, Md5};
use reqwest::Client;
use tracing::{debug, info, warn};
use xmltree::{Element, Namespace, XMLNode};

use super::ObjectError;
use super::origins::{CorsOrigins, MAX_AGE};
use super::s3::{Failure, Inner, causes, error_code};

/// What a presigned PUT is sent with. A browser does not ask for `content-length`: it sets that itself.
pub(super) const UPLOAD_HEADERS: [&str; 2] = ["content-type", "if-none-match"];

/// The rule that is ours.
const RULE_ID: &str = "longshore";
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";
const METHODS: [&str; 3] = ["PUT", "GET", "HEAD"];
const HEADERS: [&str; 3] = ["content-type", "if-none-match", "content-length"];
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the configuration is merged and written when others write it too.
const MERGES: u32 = 5;
const MERGE_PAUSE: Duration = Duration::from_millis(100);

/// Sees to it that pages of the configured origins may upload.
pub(super) async fn prepare(inner: &Inner) -> Result<(), ObjectError> {
    let origins = &inner.config.cors_origins;
    if origins.is_empty() {
        return Ok(());
    }
    match ensure(inner, origins).await {
        Ok(()) => Ok(()),
        // The whole server is away: the start waits for it anyhow.
        Err(error @ ObjectError::Unavailable { .. }) if !answers(inner).await => Err(error),
        Err(error) => {
            report(inner, origins, &error).await;
            Ok(())
        }
    }
}

/// Whether the server has the bucket, whatever it makes of this wish.
async fn answers(inner: &Inner) -> bool {
    let request = inner.client.head(inner.signer.head_bucket()).timeout(CALL_TIMEOUT);
    request.send().await.is_ok_and(|response| response.status().is_success())
}

/// The server did not take a configuration. It may answer browsers all the same.
async fn report(inner: &Inner, origins: &CorsOrigins, error: &ObjectError) {
    let url = inner.signer.object_address("imports/preflight");
    let mut refused = Vec::new();
    for origin in origins.iter() {
        if let Err(reason) = preflight(&inner.client, url.as_str(), origin).await {
            refused.push(format!("{origin}: {reason}"));
        }
    }
    if refused.is_empty() {
        info!(%origins, %error, "the bucket's CORS could not be set, but the server lets browsers upload by itself");
        return;
    }
    warn!(
        %error,
        refused = refused.join("; "),
        "the bucket's CORS could not be set: browsers cannot upload; set it by hand, or MINIO_API_CORS_ALLOW_ORIGIN={origins} \
         on a MinIO server, or unset LONGSHORE_CORS_ORIGINS"
    );
}

async fn ensure(inner: &Inner, origins: &CorsOrigins) -> Result<(), ObjectError> {
    for merge in 0..MERGES {
        let mut configuration = read(inner).await?;
        if is_set(&configuration, origins) {
            debug!(bucket = inner.config.bucket, %origins, "the bucket's CORS is set");
            return Ok(());
        }
        if merge > 0 {
            tokio::time::sleep(MERGE_PAUSE * merge).await;
        }
        let kept = set(&mut configuration, origins);
        write(inner, &configuration).await?;
        info!(bucket = inner.config.bucket, %origins, kept, "set the bucket's CORS");
    }
    Err(inner.refused("the bucket's CORS is another each time it was set: is someone else setting it too?".into()))
}

/// The configuration that is there; an empty one where there is none.
async fn read(inner: &Inner) -> Result<Element, ObjectError> {
    let response = inner.retrying(async || {
        let request = inner.client.get(inner.signer.get_configuration("cors")).timeout(CALL_TIMEOUT);
        let response = inner.send(request).await?;
        let status = response.status();
        if status.is_success() {
            return response.bytes().await.map(Some).map_err(|error| Failure::Again(causes(error)));
        }
        let code = error_code(response).await;
        match (status, code.as_deref()) {
            (StatusCode::NOT_FOUND, Some("NoSuchCORSConfiguration")) => Ok(None),
            (status, code) => Err(inner.failure_of("read the bucket's CORS", status, code)),
        }
    });
    let Some(body) = response.await? else { return Ok(empty()) };
    if body.is_empty() {
        return Ok(empty());
    }
    Element::parse(&body[..])
        .map_err(|error| inner.refused(format!("the bucket's CORS configuration cannot be read: {error}")))
}

async fn write(inner: &Inner, configuration: &Element) -> Result<(), ObjectError> {
    let mut body = Vec::new();
    configuration
        .write(&mut body)
        .map_err(|error| inner.refused(format!("the bucket's CORS configuration cannot be written: {error}")))?;
    let sum = STANDARD.encode(Md5::digest(&body));
    let body = Bytes::from(body);
    inner
        .retrying(async || {
            let request = inner
                .client
                .put(inner.signer.put_configuration("cors"))
                .timeout(CALL_TIMEOUT)
                .header(header::CONTENT_TYPE, "application/xml")
                // S3 wants a checksum of this one.
                .header("content-md5", &sum)
                .body(body.clone());
            let response = inner.send(request).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(());
            }
            let code = error_code(response).await;
            Err(inner.failure_of("set the bucket's CORS", status, code.as_deref()))
        })
        .await
}

/// Whether a page of `origin` may PUT to `url`, as its browser would ask; why not.
///
/// # Errors
/// What the server's answer lacks, without the URL.
pub(super) async fn preflight(client: &Client, url: &str, origin: &str) -> Result<(), String> {
    // Where any page may call, any will do.
    let asked = if origin == "*" { "https://longshore.invalid" } else { origin };
    let request = client
        .request(http::Method::OPTIONS, url)
        .timeout(CALL_TIMEOUT)
        .header(header::ORIGIN, asked)
        .header(header::ACCESS_CONTROL_REQUEST_METHOD, "PUT")
        .header(header::ACCESS_CONTROL_REQUEST_HEADERS, UPLOAD_HEADERS.join(","));
    let response = request.send().await.map_err(causes)?;
    let status = response.status();
    if !status.is_success() {
        return Err(format!("the preflight was answered {status}"));
    }
    let headers = response.headers();
    if !admits(headers, asked) {
        return Err("the answer to the preflight does not allow the origin".to_owned());
    }
    if !lists(headers, header::ACCESS_CONTROL_ALLOW_METHODS, "PUT") {
        return Err("the answer to the preflight does not allow PUT".to_owned());
    }
    match UPLOAD_HEADERS.iter().find(|name| !lists(headers, header::ACCESS_CONTROL_ALLOW_HEADERS, name)) {
        Some(name) => Err(format!("the answer to the preflight does not allow the header {name}")),
        None => Ok(()),
    }
}

/// Whether an answer may be read by a page of `origin`.
pub(super) fn admits(headers: &HeaderMap, origin: &str) -> bool {
    headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).is_some_and(|allowed| allowed == origin || allowed == "*")
}

fn lists(headers: &HeaderMap, list: header::HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(list).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(wanted) || value.trim() == "*")
}

/// Whether nothing has to be written: our rule says what it should, or there is none and others allow every origin.
fn is_set(configuration: &Element, origins: &CorsOrigins) -> bool {
    match rules(configuration).find(|rule| is_ours(rule)) {
        // Servers write a rule down in an order of their own.
        Some(ours) => said_by(ours) == said_by(&our_rule(origins, configuration)),
        None => origins.iter().all(|origin| rules(configuration).any(|rule| allows(rule, origin))),
    }
}

/// Puts our rule behind those of others; how many these are.
fn set(configuration: &mut Element, origins: &CorsOrigins) -> usize {
    configuration.children.retain(|node| node.as_element().is_none_or(|rule| !is_ours(rule)));
    let kept = rules(configuration).count();
    let ours = our_rule(origins, configuration);
    configuration.children.push(XMLNode::Element(ours));
    kept
}

fn empty() -> Element {
    let mut namespaces = Namespace::empty();
    namespaces.put("", NAMESPACE);
    Element { namespaces: Some(namespaces), namespace: Some(NAMESPACE.to_owned()), ..Element::new("CORSConfiguration") }
}

fn rules(configuration: &Element) -> impl Iterator<Item = &Element> {
    configuration.children.iter().filter_map(XMLNode::as_element).filter(|child| child.name == "CORSRule")
}

/// What a rule says: values by name.
fn said_by(rule: &Element) -> BTreeSet<(&str, String)> {
    let values = rule.children.iter().filter_map(XMLNode::as_element);
    values
        .map(|value| (value.name.as_str(), value.get_text().unwrap_or_default().trim().to_ascii_lowercase()))
        .collect()
}

fn is_ours(rule: &Element) -> bool {
    said_by(rule).contains(&("ID", RULE_ID.to_owned()))
}

/// Whether a rule of somebody else lets pages of an origin upload.
fn allows(rule: &Element, origin: &str) -> bool {
    let said = said_by(rule);
    let has = |name: &'static str, wanted: &str| {
        said.contains(&(name, wanted.to_ascii_lowercase())) || said.contains(&(name, "*".to_owned()))
    };
    has("AllowedOrigin", origin)
        && has("AllowedMethod", "PUT")
        && UPLOAD_HEADERS.iter().all(|name| has("AllowedHeader", name))
}

/// Our rule, in the namespace of the configuration.
fn our_rule(origins: &CorsOrigins, configuration: &Element) -> Element {
    let element = |name: &str| Element {
        namespace: configuration.namespace.clone(),
        prefix: configuration.prefix.clone(),
        ..Element::new(name)
    };
    let mut rule = element("CORSRule");
    let mut add = |name: &str, value: &str| {
        let mut child = element(name);
        child.children.push(XMLNode::Text(value.to_owned()));
        rule.children.push(XMLNode::Element(child));
    };
    add("ID", RULE_ID);
    origins.iter().for_each(|origin| add("AllowedOrigin", origin));
    METHODS.iter().for_each(|method| add("AllowedMethod", method));
    HEADERS.iter().for_each(|name| add("AllowedHeader", name));
    add("ExposeHeader", "ETag");
    add("MaxAgeSeconds", &MAX_AGE.as_secs().to_string());
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOREIGN: &str = "<CORSConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><CORSRule><ID>theirs</ID>\
        <AllowedOrigin>https://a.example.com</AllowedOrigin><AllowedMethod>PUT</AllowedMethod>\
        <AllowedHeader>Content-Type</AllowedHeader><AllowedHeader>If-None-Match</AllowedHeader><Odd>a&amp;b</Odd>\
        </CORSRule></CORSConfiguration>";

    fn origins(text: &str) -> CorsOrigins {
        text.parse().unwrap()
    }

    fn written(configuration: &Element) -> String {
        let mut body = Vec::new();
        configuration.write(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    }

    fn parsed(text: &str) -> Element {
        Element::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_written_is_read_as_set() {
        let wanted = origins("https://app.example.com,http://localhost:3000");
        let mut configuration = empty();
        assert!(!is_set(&configuration, &wanted));
        assert_eq!(set(&mut configuration, &wanted), 0);
        let text = written(&configuration);
        assert!(
            text.contains("<CORSConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><CORSRule><ID>"),
            "{text}"
        );
        assert!(is_set(&parsed(&text), &wanted), "{text}");
        assert!(!is_set(&parsed(&text), &origins("https://app.example.com")), "an origin that is not wanted any more");
    }

    #[test]
    fn rules_of_others_are_kept_and_ours_is_replaced() {
        let mut configuration = parsed(FOREIGN);
        assert_eq!(set(&mut configuration, &origins("https://b.example.com")), 1);
        let mut configuration = parsed(&written(&configuration));
        assert_eq!(set(&mut configuration, &origins("https://c.example.com")), 1);
        let text = written(&configuration);
        assert!(text.contains("<ID>theirs</ID>") && text.contains("<Odd>a&amp;b</Odd>"), "{text}");
        assert!(!text.contains("b.example.com") && text.contains("c.example.com"), "{text}");
    }

    #[test]
    fn a_rule_of_others_that_is_good_enough_is_left_alone() {
        assert!(is_set(&parsed(FOREIGN), &origins("https://a.example.com")));
        assert!(!is_set(&parsed(FOREIGN), &origins("https://a.example.com,https://b.example.com")));
        assert!(!is_set(&parsed(&FOREIGN.replace(">PUT<", ">GET<")), &origins("https://a.example.com")));
        assert!(!is_set(&parsed(&FOREIGN.replace("If-None-Match", "Range")), &origins("https://a.example.com")));
    }
}
