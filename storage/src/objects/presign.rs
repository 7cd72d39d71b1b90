//! Signatures (SigV4 in the query string), shared by every storage. Nothing here talks to anyone.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use jiff::Timestamp;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use url::Url;

use super::{AccessKey, ObjectError, PresignedPut, PutTerms, Secret};

/// S3's own limit.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How long our own requests are valid: as much as S3 servers forgive clocks that disagree.
const OWN_REQUESTS: Duration = Duration::from_secs(15 * 60);

/// Clocks that differ by no more than this are taken for the same, in seconds.
const SAME_CLOCK: i64 = 60;

/// Where a storage is reached and with what rights.
pub(super) struct Signer {
    internal: Bucket,
    public: Bucket,
    /// Our own requests.
    credentials: Credentials,
    /// What clients get; where they may do less than we.
    upload_credentials: Option<Credentials>,
    /// How far the storage's clock is ahead of ours, in seconds: signatures count by its clock, so they are dated by it.
    clock_ahead: AtomicI64,
}

impl Signer {
    /// Signs our own requests for `endpoint`, and what clients get for `public_endpoint`: the host is part of a signature.
    pub(super) fn new(
        endpoint: &Url,
        public_endpoint: &Url,
        bucket: &str,
        region: &str,
        access_key_id: &str,
        secret_access_key: &Secret,
    ) -> Result<Self, ObjectError> {
        let at = |endpoint: &Url| {
            Bucket::new(endpoint.clone(), UrlStyle::Path, bucket.to_owned(), region.to_owned()).map_err(|error| {
                ObjectError::Refused {
                    endpoint: shown(endpoint),
                    reason: format!("this is no address of an S3 server ({error}): it looks like http://host:port"),
                }
            })
        };
        Ok(Self {
            internal: at(endpoint)?,
            public: at(public_endpoint)?,
            credentials: Credentials::new(access_key_id, secret_access_key.expose()),
            upload_credentials: None,
            clock_ahead: AtomicI64::new(0),
        })
    }

    /// Signs what clients get with a key of its own, which need not be able to do anything but PUT.
    pub(super) fn with_upload_key(mut self, key: &AccessKey) -> Self {
        self.upload_credentials = Some(Credentials::new(&key.id, key.secret.expose()));
        self
    }

    /// What a client needs for its upload.
    pub(super) fn put(&self, key: &str, terms: &PutTerms) -> PresignedPut {
        let content_type = tidy(&terms.content_type);
        let expires_in = terms.expires_in.clamp(Duration::from_secs(1), LONGEST);
        let mut headers = vec![("content-type".to_owned(), content_type), ("if-none-match".to_owned(), "*".to_owned())];
        if let Some(length) = terms.content_length {
            headers.push(("content-length".to_owned(), length.to_string()));
        }
        let credentials = self.upload_credentials.as_ref().unwrap_or(&self.credentials);
        let mut action = self.public.put_object(Some(credentials), key);
        for (name, value) in &headers {
            action.headers_mut().insert(name.as_str(), value.as_str());
        }
        let now = self.now();
        let seconds = i64::try_from(expires_in.as_secs()).unwrap_or(i64::MAX);
        let url = action.sign_with_time(expires_in, &timestamp(now)).into();
        let expires_at = now + TimeDelta::seconds(seconds);
        PresignedPut { url, headers, expires_at }
    }

    /// The time by the storage's clock, in whole seconds.
    fn now(&self) -> DateTime<Utc> {
        let now = Utc::now().timestamp() + self.clock_ahead.load(Ordering::Relaxed);
        DateTime::from_timestamp(now, 0).unwrap_or_default()
    }

    /// The storage said what time it is: where its clock is another one, what is signed from here on is dated by it.
    pub(super) fn learn(&self, time: DateTime<Utc>) {
        if (time - self.now()).num_seconds().abs() <= SAME_CLOCK {
            return;
        }
        let ahead = (time - Utc::now()).num_seconds();
        let ahead = if ahead.abs() <= SAME_CLOCK { 0 } else { ahead };
        self.clock_ahead.store(ahead, Ordering::Relaxed);
        tracing::warn!(
            ahead,
            "the object storage's clock is another one, in seconds: signatures are dated by it from here on"
        );
    }

    /// Whether a signed URL is dated so far from this time that a server refuses it.
    pub(super) fn is_misdated(url: &Url, time: DateTime<Utc>) -> bool {
        let date = url.query_pairs().find(|(name, _)| name == "X-Amz-Date");
        let date = date.and_then(|(_, date)| NaiveDateTime::parse_from_str(&date, "%Y%m%dT%H%M%SZ").ok());
        date.is_some_and(|date| (date.and_utc() - time).num_seconds().abs() > SAME_CLOCK)
    }

    fn sign<'a>(&self, action: impl S3Action<'a>) -> Url {
        action.sign_with_time(OWN_REQUESTS, &timestamp(self.now()))
    }

    pub(super) fn head(&self, key: &str) -> Url {
        self.sign(self.internal.head_object(Some(&self.credentials), key))
    }

    pub(super) fn get(&self, key: &str) -> Url {
        self.sign(self.internal.get_object(Some(&self.credentials), key))
    }

    /// A PUT of our own, with our own rights.
    pub(super) fn put_own(&self, key: &str) -> Url {
        self.sign(self.internal.put_object(Some(&self.credentials), key))
    }

    pub(super) fn delete(&self, key: &str) -> Url {
        self.sign(self.internal.delete_object(Some(&self.credentials), key))
    }

    pub(super) fn head_bucket(&self) -> Url {
        self.sign(self.internal.head_bucket(Some(&self.credentials)))
    }

    /// A GET of one of the bucket's configurations, `cors` or `notification`: the bucket is the object without a name.
    pub(super) fn get_configuration(&self, name: &'static str) -> Url {
        let mut action = self.internal.get_object(Some(&self.credentials), "");
        action.query_mut().insert(name, "");
        self.sign(action)
    }

    /// Replaces one of the bucket's configurations.
    pub(super) fn put_configuration(&self, name: &'static str) -> Url {
        let mut action = self.internal.put_object(Some(&self.credentials), "");
        action.query_mut().insert(name, "");
        self.sign(action)
    }

    /// Where a key is, without a signature.
    pub(super) fn object_address(&self, key: &str) -> Url {
        self.internal.object_url(key)
    }
}

fn timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp::from_second(time.timestamp()).unwrap_or_default()
}

/// An endpoint for logs and errors: no credentials, no path.
pub(super) fn shown(endpoint: &Url) -> String {
    let host = endpoint.host_str().unwrap_or("?");
    match endpoint.port() {
        Some(port) => format!("{}://{host}:{port}", endpoint.scheme()),
        None => format!("{}://{host}", endpoint.scheme()),
    }
}

/// A header's value as SigV4 signs it: trimmed, runs of spaces are one.
fn tidy(value: &str) -> String {
    value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        let internal = Url::parse("http://10.0.0.7:9000").unwrap();
        let public = Url::parse("https://user:password@files.example.com").unwrap();
        Signer::new(&internal, &public, "imports", "eu-west-1", "key-id", &Secret::new("hunter2")).unwrap()
    }

    fn terms(content_length: Option<u64>) -> PutTerms {
        PutTerms { content_type: "text/csv".into(), content_length, expires_in: Duration::from_secs(900) }
    }

    #[test]
    fn signs_every_promise_under_the_public_address() {
        let put = signer().put("imports/1/a.csv", &terms(Some(12)));
        let url = Url::parse(&put.url).unwrap();
        assert_eq!(shown(&url), "https://files.example.com");
        assert_eq!(url.username(), "");
        let signed = url.query_pairs().find(|(name, _)| name == "X-Amz-SignedHeaders").unwrap().1.into_owned();
        assert_eq!(signed, "content-length;content-type;host;if-none-match");
        assert!(put.headers.contains(&("content-length".into(), "12".into())));
        assert!(!format!("{put:?}").contains("Signature"));
    }

    #[test]
    fn signs_no_length_that_was_not_declared() {
        let put = signer().put("imports/1/a.csv", &terms(None));
        assert!(put.url.contains("X-Amz-SignedHeaders=content-type%3Bhost%3Bif-none-match&"));
        assert!(!put.headers.iter().any(|(name, _)| name == "content-length"));
    }

    #[test]
    fn keeps_the_validity_within_the_bounds_of_s3() {
        let mut terms = terms(None);
        terms.expires_in = Duration::from_secs(30 * 24 * 60 * 60);
        assert!(signer().put("k", &terms).url.contains("X-Amz-Expires=604800&"));
        terms.expires_in = Duration::ZERO;
        assert!(signer().put("k", &terms).url.contains("X-Amz-Expires=1&"));
    }

    #[test]
    fn uploads_are_signed_with_the_key_for_uploads_and_nothing_else_is() {
        let signer = signer().with_upload_key(&AccessKey { id: "put-only".into(), secret: Secret::new("hunter3") });
        let put = signer.put("imports/1/a.csv", &terms(None));
        assert!(put.url.contains("X-Amz-Credential=put-only%2F"), "{}", put.url);
        for own in [signer.head("k"), signer.get("k"), signer.head_bucket()] {
            assert!(own.as_str().contains("X-Amz-Credential=key-id%2F"), "{own}");
        }
    }

    #[test]
    fn own_requests_go_to_the_internal_address() {
        assert!(signer().get("a b/ü.csv").as_str().starts_with("http://10.0.0.7:9000/imports/a%20b/%C3%BC.csv?"));
    }

    #[test]
    fn the_configuration_of_the_bucket_is_asked_for_by_its_name() {
        for url in [signer().get_configuration("cors"), signer().put_configuration("cors")] {
            assert_eq!(url.path(), "/imports/");
            assert!(url.query_pairs().any(|(name, value)| name == "cors" && value.is_empty()), "{url}");
        }
    }

    #[test]
    fn signatures_are_dated_by_the_storages_clock() {
        let signer = signer();
        let there = |hours| Utc::now() + TimeDelta::hours(hours);
        let (before, put) = (signer.get("k"), signer.put("k", &terms(None)));
        assert!(!Signer::is_misdated(&before, there(0)) && Signer::is_misdated(&before, there(1)));
        for hours in [1, -1] {
            signer.learn(there(hours));
            for url in [signer.get("k"), signer.head_bucket(), signer.put_configuration("cors")] {
                assert!(!Signer::is_misdated(&url, there(hours)), "{url}");
            }
            let later = signer.put("k", &terms(None));
            assert!(!Signer::is_misdated(&Url::parse(&later.url).unwrap(), there(hours)), "{}", later.url);
            let moved = (later.expires_at - put.expires_at).num_seconds();
            assert!((moved - hours * 3600).abs() < SAME_CLOCK, "{moved}");
        }
        // Our clock was set right.
        signer.learn(there(0) + TimeDelta::seconds(2));
        assert_eq!(signer.clock_ahead.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn addresses_lose_their_credentials_when_shown() {
        assert_eq!(shown(&Url::parse("http://user:pw@host:9000/x?y").unwrap()), "http://host:9000");
    }
}
