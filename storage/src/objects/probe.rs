//! What `longshore doctor` asks an S3 server: as its clients would, and never more than it says. Nothing here is tried
//! again: a check tells what was seen.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{StatusCode, header};
use xmltree::{Element, XMLNode};

use super::cors::{admits, preflight};
use super::s3::{S3Store, causes, error_code, text};
use super::{ObjectError, PresignedPut};

/// One call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a server says of itself with any answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// The answer to a HEAD of the bucket.
    pub status: StatusCode,
    /// Its `Server` header.
    pub server: Option<String>,
    /// How far its clock is ahead of ours, in milliseconds, to half a second.
    pub clock_ahead_ms: Option<i64>,
}

/// The answer to a PUT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutAnswer {
    /// Its status.
    pub status: StatusCode,
    /// The code in an error's body, such as `SignatureDoesNotMatch`.
    pub code: Option<String>,
    /// Whether a page of the origin could read it.
    pub readable: bool,
}

/// One rule of the bucket's notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotificationRule {
    /// Where its events go.
    pub target: String,
    /// Whether it tells of every upload under our prefix.
    pub covers: bool,
}

impl S3Store {
    /// Asks for the bucket, and takes any answer.
    ///
    /// # Errors
    /// [`ObjectError::Unavailable`] where none came.
    pub async fn greet(&self) -> Result<Greeting, ObjectError> {
        let inner = self.inner();
        let before = Utc::now();
        let request = inner.client.head(inner.signer.head_bucket()).timeout(CALL_TIMEOUT);
        let response = request.send().await.map_err(|error| inner.unavailable(causes(error)))?;
        let middle = before + (Utc::now() - before) / 2;
        let date = text(response.headers(), header::DATE).and_then(|date| DateTime::parse_from_rfc2822(date).ok());
        // The header has whole seconds, rounded down.
        let clock_ahead_ms = date.map(|date| (date.with_timezone(&Utc) - middle).num_milliseconds() + 500);
        let server = text(response.headers(), header::SERVER).map(str::to_owned);
        Ok(Greeting { status: response.status(), server, clock_ahead_ms })
    }

    /// Sends a presigned PUT as a client would, with another content type where one is given, and from a page of `origin`.
    ///
    /// # Errors
    /// Why no answer came, without the URL.
    pub async fn put(
        &self,
        put: &PresignedPut,
        content_type: Option<&str>,
        origin: Option<&str>,
        body: Bytes,
    ) -> Result<PutAnswer, String> {
        let mut request = self.inner().client.put(&put.url).timeout(CALL_TIMEOUT).body(body);
        for (name, value) in &put.headers {
            let value = if name == "content-type" { content_type.unwrap_or(value) } else { value };
            request = request.header(name, value);
        }
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        let response = request.send().await.map_err(causes)?;
        let status = response.status();
        let readable = origin.is_some_and(|origin| admits(response.headers(), origin));
        let code = if status.is_success() { None } else { error_code(response).await };
        Ok(PutAnswer { status, code, readable })
    }

    /// Asks for an object on the condition that it has an ETag.
    ///
    /// # Errors
    /// [`ObjectError::Unavailable`] where no answer came.
    pub async fn get_if_match(&self, key: &str, etag: &str) -> Result<StatusCode, ObjectError> {
        let inner = self.inner();
        let request = inner.client.get(inner.signer.get(key)).timeout(CALL_TIMEOUT);
        let request = request.header(header::IF_MATCH, format!("\"{etag}\""));
        let response = request.send().await.map_err(|error| inner.unavailable(causes(error)))?;
        Ok(response.status())
    }

    /// Whether the browser of a page of `origin` would be allowed to send a presigned PUT.
    ///
    /// # Errors
    /// What the answer lacks, without the URL.
    pub async fn preflight(&self, put: &PresignedPut, origin: &str) -> Result<(), String> {
        preflight(&self.inner().client, &put.url, origin).await
    }

    /// The rules of the bucket's notification; `None` where the server has no such thing.
    ///
    /// # Errors
    /// [`ObjectError`] where they cannot be read.
    pub async fn notification(&self) -> Result<Option<Vec<NotificationRule>>, ObjectError> {
        let inner = self.inner();
        let request = inner.client.get(inner.signer.get_configuration("notification")).timeout(CALL_TIMEOUT);
        let response = request.send().await.map_err(|error| inner.unavailable(causes(error)))?;
        let status = response.status();
        if !status.is_success() {
            let code = error_code(response).await;
            if status == StatusCode::NOT_IMPLEMENTED || code.as_deref() == Some("NotImplemented") {
                return Ok(None);
            }
            let code = code.map(|code| format!(", {code}")).unwrap_or_default();
            return Err(inner.refused(format!("the bucket's notification cannot be read ({status}{code})")));
        }
        let body = response.bytes().await.map_err(|error| inner.unavailable(causes(error)))?;
        let rules = read_rules(&body, &inner.config.events_prefix);
        rules.map(Some).map_err(|reason| inner.refused(format!("the bucket's notification is no XML: {reason}")))
    }
}

/// Rules of all kinds: queues, topics, functions.
fn read_rules(body: &[u8], prefix: &str) -> Result<Vec<NotificationRule>, String> {
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let root = Element::parse(body).map_err(|error| error.to_string())?;
    let rules = children(&root).filter(|rule| rule.name.ends_with("Configuration"));
    Ok(rules.map(|rule| read_rule(rule, prefix)).collect())
}

fn read_rule(rule: &Element, prefix: &str) -> NotificationRule {
    let values = |name: &'static str| children(rule).filter(move |child| child.name == name).map(value_of);
    let target = ["Queue", "Topic", "CloudFunction"].into_iter().find_map(|kind| values(kind).next());
    let created = values("Event").any(|event| event == "s3:ObjectCreated:*" || event == "s3:ObjectCreated:Put");
    let filters = rule.get_child("Filter").and_then(|filter| filter.get_child("S3Key"));
    let passes = filters.into_iter().flat_map(children).filter(|filter| filter.name == "FilterRule").all(|filter| {
        let part = |name: &str| filter.get_child(name).map(value_of).unwrap_or_default();
        part("Name").eq_ignore_ascii_case("prefix") && prefix.starts_with(&part("Value")) || part("Value").is_empty()
    });
    NotificationRule { target: target.unwrap_or_else(|| rule.name.clone()), covers: created && passes }
}

fn children(element: &Element) -> impl Iterator<Item = &Element> {
    element.children.iter().filter_map(XMLNode::as_element)
}

fn value_of(element: &Element) -> String {
    element.get_text().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(inner: &str) -> Vec<(String, bool)> {
        let body = format!("<NotificationConfiguration xmlns=\"http://x/\">{inner}</NotificationConfiguration>");
        let rules = read_rules(body.as_bytes(), "imports/").unwrap();
        rules.into_iter().map(|rule| (rule.target, rule.covers)).collect()
    }

    fn queue(event: &str, filters: &str) -> String {
        format!(
            "<QueueConfiguration><Id>a</Id><Event>{event}</Event><Filter><S3Key>{filters}</S3Key></Filter>\
             <Queue>arn</Queue></QueueConfiguration>"
        )
    }

    fn filter(name: &str, value: &str) -> String {
        format!("<FilterRule><Name>{name}</Name><Value>{value}</Value></FilterRule>")
    }

    #[test]
    fn a_rule_covers_uploads_under_our_prefix_or_does_not() {
        let created = "s3:ObjectCreated:*";
        for (filters, covers) in [
            (String::new(), true),
            (filter("prefix", "imports/"), true),
            (filter("Prefix", "imp"), true),
            (filter("prefix", "imports/") + &filter("suffix", ""), true),
            (filter("prefix", "other/"), false),
            (filter("prefix", "imports/") + &filter("suffix", ".csv"), false),
        ] {
            assert_eq!(rules(&queue(created, &filters)), [("arn".to_owned(), covers)], "{filters}");
        }
        assert_eq!(rules(&queue("s3:ObjectRemoved:*", "")), [("arn".to_owned(), false)]);
        assert!(rules("").is_empty());
        let topic = "<TopicConfiguration><Event>s3:ObjectCreated:Put</Event><Topic>t</Topic></TopicConfiguration>";
        assert_eq!(rules(topic), [("t".to_owned(), true)]);
    }
}
