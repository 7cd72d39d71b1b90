//! Any S3 server: path-style requests, SigV4 in the query string.
//!
//! Called by the API and the actors through [`ObjectStore`]. Trouble of the moment (connections, 5xx, short bodies) is
//! tried again here, a bounded number of times; everything else is the caller's.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures::stream::{self, BoxStream, StreamExt};
use http::{HeaderMap, StatusCode, header};
use reqwest::{Client, ClientBuilder, RequestBuilder, Response};
use tracing::debug;
use url::Url;

use longshore_domain::ByteRange;
use longshore_telemetry::{Dependency, metrics};

use super::notification;
use super::origins::CorsOrigins;
use super::presign::{Signer, shown};
use super::{AccessKey, ObjectError, ObjectHead, ObjectStore, PresignedPut, PutTerms, Secret, cors};

/// How often a request is tried.
const TRIES: u32 = 4;
/// The pause before the second try; it doubles, and half of it is random.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long what is read may stand still, its head included: a connection that died without a word costs this much.
/// Whole bodies have no limit: they may be large.
const IDLE_TIMEOUT: Duration = Duration::from_secs(8);
/// Answers without a body.
const HEAD_TIMEOUT: Duration = Duration::from_secs(8);
/// A body of some MiB.
const PUT_TIMEOUT: Duration = Duration::from_secs(120);
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// The end of a key that no import has: their second part is an id.
const PROBE: &str = "is-the-bucket-there";
/// How much of an error's body is read.
const ERROR_BODY: usize = 16 * 1024;

/// How to reach an S3 server.
#[derive(Clone)]
pub struct S3Config {
    /// Where this process reaches it.
    pub endpoint: Url,
    /// Where clients reach it; the endpoint where they are the same.
    pub public_endpoint: Url,
    /// The bucket that imports are uploaded to.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// Who we are.
    pub access_key_id: String,
    /// The secret of that key.
    pub secret_access_key: Secret,
    /// Who signs uploads; `None`: we. It needs no right but to put below `events_prefix`, and then we need none to put.
    pub upload_key: Option<AccessKey>,
    /// The target of the bucket's notification; `None`: its notifications are left alone.
    pub notification_arn: Option<String>,
    /// The prefix of the keys that events are wanted of, `imports/`.
    pub events_prefix: String,
    /// Web pages that may upload; none: the bucket's CORS is left alone.
    pub cors_origins: CorsOrigins,
}

impl std::fmt::Debug for S3Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Config")
            .field("endpoint", &shown(&self.endpoint))
            .field("public_endpoint", &shown(&self.public_endpoint))
            .field("bucket", &self.bucket)
            .field("region", &self.region)
            .field("notification_arn", &self.notification_arn)
            .field("events_prefix", &self.events_prefix)
            .field("cors_origins", &self.cors_origins)
            .finish_non_exhaustive()
    }
}

/// An S3 server.
pub struct S3Store {
    inner: Arc<Inner>,
}

/// What `cors` and `probe` work with, too.
pub(super) struct Inner {
    pub(super) config: S3Config,
    pub(super) endpoint: String,
    pub(super) signer: Signer,
    pub(super) client: Client,
    /// Gives up what stands still. Not for what is sent: an answer to that begins behind its last byte.
    reader: Client,
}

/// What became of one try.
pub(super) enum Failure {
    /// Of the moment: try again.
    Again(String),
    /// Trying again changes nothing.
    Final(ObjectError),
}

impl S3Store {
    /// Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`ObjectError::Refused`] for an endpoint that is no HTTP address.
    pub fn new(config: S3Config) -> Result<Self, ObjectError> {
        let signer = Signer::new(
            &config.endpoint,
            &config.public_endpoint,
            &config.bucket,
            &config.region,
            &config.access_key_id,
            &config.secret_access_key,
        )?;
        let signer = match &config.upload_key {
            Some(key) => signer.with_upload_key(key),
            None => signer,
        };
        let endpoint = shown(&config.endpoint);
        let build = |client: ClientBuilder| {
            // A redirect would need another signature.
            let client = client.connect_timeout(CONNECT_TIMEOUT).redirect(reqwest::redirect::Policy::none());
            client.build().map_err(|error| ObjectError::Refused {
                endpoint: endpoint.clone(),
                reason: format!("the HTTP client does not start: {}", causes(error)),
            })
        };
        let client = build(Client::builder().read_timeout(PUT_TIMEOUT))?;
        let reader = build(Client::builder().read_timeout(IDLE_TIMEOUT))?;
        Ok(Self { inner: Arc::new(Inner { config, endpoint, signer, client, reader }) })
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    fn bucket(&self) -> &str {
        &self.inner.config.bucket
    }

    async fn prepare(&self) -> Result<(), ObjectError> {
        let there = self.inner.bucket_exists().await?;
        notification::prepare(&self.inner.config, &self.inner.endpoint, there).await?;
        cors::prepare(&self.inner).await
    }

    async fn check(&self) -> Result<(), ObjectError> {
        if self.inner.bucket_exists().await? { Ok(()) } else { Err(self.inner.no_bucket()) }
    }

    fn presign_put(&self, key: &str, terms: &PutTerms) -> PresignedPut {
        self.inner.signer.put(key, terms)
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectHead>, ObjectError> {
        self.inner.retrying(|| self.inner.head_once(key)).await
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<String, ObjectError> {
        self.inner.retrying(|| self.inner.put_once(key, bytes.clone())).await
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.inner.retrying(|| self.inner.delete_once(key)).await
    }

    async fn get_range(&self, key: &str, range: ByteRange, etag: &str) -> Result<Bytes, ObjectError> {
        if range.is_empty() {
            self.inner.verify(key, etag).await?;
            return Ok(Bytes::new());
        }
        self.inner.retrying(|| self.inner.get_once(key, range, etag)).await
    }

    async fn read_from(
        &self,
        key: &str,
        start: u64,
        size: u64,
        etag: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, ObjectError>>, ObjectError> {
        if start >= size {
            self.inner.verify(key, etag).await?;
            return Ok(stream::empty().boxed());
        }
        let mut reading = Reading {
            inner: Arc::clone(&self.inner),
            key: key.to_owned(),
            etag: etag.to_owned(),
            position: start,
            size,
            body: None,
            failures: 0,
        };
        reading.open().await?;
        Ok(stream::unfold(Some(reading), |reading| async {
            let mut reading = reading?;
            match reading.next().await {
                Ok(Some(block)) => Some((Ok(block), Some(reading))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }
}

/// A long read. A connection that breaks is opened anew where it broke.
struct Reading {
    inner: Arc<Inner>,
    key: String,
    etag: String,
    position: u64,
    size: u64,
    body: Option<Response>,
    /// Since the last block.
    failures: u32,
}

impl Reading {
    async fn open(&mut self) -> Result<(), ObjectError> {
        let range = ByteRange::new(self.position, self.size);
        self.body = Some(self.inner.retrying(|| self.inner.open_once(&self.key, range, &self.etag)).await?);
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ObjectError> {
        while self.position < self.size {
            let reason = match &mut self.body {
                None => {
                    self.open().await?;
                    continue;
                }
                Some(body) => match body.chunk().await {
                    Ok(Some(block)) => {
                        let position = self.position + block.len() as u64;
                        if position > self.size {
                            return Err(self.inner.unavailable("the answer was longer than was asked for".into()));
                        }
                        self.position = position;
                        self.failures = 0;
                        return Ok(Some(block));
                    }
                    Ok(None) => "the answer ended early".to_owned(),
                    Err(error) => causes(error),
                },
            };
            self.body = None;
            self.failures += 1;
            if self.failures >= TRIES {
                return Err(self.inner.unavailable(reason));
            }
            debug!(key = self.key, position = self.position, reason, "reading on after a broken answer");
            metrics().dependency_retry(Dependency::Objects);
            pause(self.failures).await;
        }
        Ok(None)
    }
}

impl Inner {
    pub(super) async fn retrying<T, F, A>(&self, attempt: F) -> Result<T, ObjectError>
    where
        F: Fn() -> A,
        A: Future<Output = Result<T, Failure>>,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            match attempt().await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(reason)) if tries >= TRIES => return Err(self.unavailable(reason)),
                Err(Failure::Again(reason)) => {
                    debug!(endpoint = self.endpoint, tries, reason, "asking the object storage again");
                    metrics().dependency_retry(Dependency::Objects);
                    pause(tries).await;
                }
            }
        }
    }

    /// Sends a request. The answer says what time it is at the storage: what was refused under a date of our own clock, where that
    /// is another one, is worth another try under the right date.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        match self.send_dated(request).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Failure::Again("it was signed under another date than the storage's".into())),
            Err(error) => Err(Failure::Again(causes(error))),
        }
    }

    /// `None`: refused, under a date that is not the storage's.
    async fn send_dated(&self, request: RequestBuilder) -> Result<Option<Response>, reqwest::Error> {
        // By the client that it was made with: how long an answer may stand still is that one's.
        let (client, request) = request.build_split();
        let request = request?;
        let url = request.url().clone();
        let answer = client.execute(request).await?;
        let Some(time) = text(answer.headers(), header::DATE).and_then(|date| DateTime::parse_from_rfc2822(date).ok())
        else {
            return Ok(Some(answer));
        };
        let time = time.with_timezone(&Utc);
        self.signer.learn(time);
        let misdated = answer.status().is_client_error() && Signer::is_misdated(&url, time);
        Ok(Some(answer).filter(|_| !misdated))
    }

    /// One look, without another try. A key that may only read objects may not look at the bucket: then an object that
    /// nobody has says whether there is one.
    async fn bucket_exists(&self) -> Result<bool, ObjectError> {
        match self.look_once(|| self.client.head(self.signer.head_bucket())).await?.status() {
            status if status.is_success() => return Ok(true),
            StatusCode::NOT_FOUND => return Ok(false),
            StatusCode::FORBIDDEN => {}
            status => return Err(self.final_failure(status, None)),
        }
        let key = format!("{}{PROBE}", self.config.events_prefix);
        let answer = self.look_once(|| self.client.get(self.signer.get(&key))).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(true);
        }
        match error_code(answer).await.as_deref() {
            Some("NoSuchKey") => Ok(true),
            Some("NoSuchBucket") => Ok(false),
            code => Err(self.final_failure(status, code)),
        }
    }

    /// Twice only where the first was under a wrong date.
    async fn look_once(&self, request: impl Fn() -> RequestBuilder) -> Result<Response, ObjectError> {
        for _ in 0..2 {
            match self.send_dated(request().timeout(CHECK_TIMEOUT)).await {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {}
                Err(error) => return Err(self.unavailable(causes(error))),
            }
        }
        Err(self.unavailable("its clock jumps".into()))
    }

    /// [`Self::failure`], where nothing is tried again.
    fn final_failure(&self, status: StatusCode, code: Option<&str>) -> ObjectError {
        match self.failure(status, code, "") {
            Failure::Again(reason) => self.unavailable(reason),
            Failure::Final(error) => error,
        }
    }

    async fn head_once(&self, key: &str) -> Result<Option<ObjectHead>, Failure> {
        let request = self.client.head(self.signer.head(key)).timeout(HEAD_TIMEOUT);
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status => return Err(self.failure(status, None, key)),
        }
        let headers = response.headers();
        let size = text(headers, header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let (Some(size), Some(etag)) = (size, etag_of(headers)) else {
            return Err(Failure::Again("the answer to HEAD has no length or no ETag".into()));
        };
        let last_modified = text(headers, header::LAST_MODIFIED)
            .and_then(|time| DateTime::parse_from_rfc2822(time).ok())
            .map(|time| time.with_timezone(&Utc));
        Ok(Some(ObjectHead { size, etag, last_modified }))
    }

    async fn put_once(&self, key: &str, bytes: Bytes) -> Result<String, Failure> {
        let request = self.client.put(self.signer.put_own(key)).body(bytes).timeout(PUT_TIMEOUT);
        let response = self.send(request).await?;
        let status = response.status();
        if !status.is_success() {
            let code = error_code(response).await;
            return Err(self.failure_of("put decoded text (s3:PutObject)", status, code.as_deref()));
        }
        etag_of(response.headers()).ok_or_else(|| Failure::Again("the answer to PUT has no ETag".into()))
    }

    async fn delete_once(&self, key: &str) -> Result<(), Failure> {
        let request = self.client.delete(self.signer.delete(key)).timeout(HEAD_TIMEOUT);
        let response = self.send(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let code = error_code(response).await;
        match (status, code.as_deref()) {
            (StatusCode::NOT_FOUND, Some("NoSuchKey")) => Ok(()),
            (status, code) => Err(self.failure(status, code, key)),
        }
    }

    /// Whether the planned object is there, for reads of nothing: S3 has no empty range.
    async fn verify(&self, key: &str, etag: &str) -> Result<(), ObjectError> {
        match self.retrying(|| self.head_once(key)).await? {
            None => Err(ObjectError::Missing { key: key.to_owned() }),
            Some(head) if head.etag != etag => Err(ObjectError::Changed { key: key.to_owned() }),
            Some(_) => Ok(()),
        }
    }

    /// Asks for a range that is not empty, and believes the answer only where its headers say the same.
    async fn open_once(&self, key: &str, range: ByteRange, etag: &str) -> Result<Response, Failure> {
        let (start, last) = (range.start.0, range.end.0 - 1);
        let request = self
            .reader
            .get(self.signer.get(key))
            .header(header::RANGE, format!("bytes={start}-{last}"))
            .header(header::IF_MATCH, format!("\"{etag}\""));
        let response = self.send(request).await?;
        let status = response.status();
        if status != StatusCode::PARTIAL_CONTENT {
            if status.is_success() {
                return Err(Failure::Again(format!("the answer to a range was {status}")));
            }
            let code = error_code(response).await;
            return Err(self.failure(status, code.as_deref(), key));
        }
        match etag_of(response.headers()) {
            Some(found) if found == etag => {}
            Some(_) => return Err(Failure::Final(ObjectError::Changed { key: key.to_owned() })),
            None => return Err(Failure::Again("the answer has no ETag".into())),
        }
        let wanted = format!("bytes {start}-{last}/");
        match text(response.headers(), header::CONTENT_RANGE) {
            Some(found) if found.starts_with(&wanted) => Ok(response),
            found => Err(Failure::Again(format!("asked for {wanted}*, got {}", found.unwrap_or("no range")))),
        }
    }

    async fn get_once(&self, key: &str, range: ByteRange, etag: &str) -> Result<Bytes, Failure> {
        let wanted = usize::try_from(range.len()).map_err(|_| Failure::Again("the range is too large".into()))?;
        let mut response = self.open_once(key, range, etag).await?;
        let mut bytes = BytesMut::with_capacity(wanted);
        while let Some(block) = response.chunk().await.map_err(|error| Failure::Again(causes(error)))? {
            if bytes.len() + block.len() > wanted {
                return Err(Failure::Again("the answer was longer than was asked for".into()));
            }
            bytes.extend_from_slice(&block);
        }
        if bytes.len() < wanted {
            return Err(Failure::Again(format!("the answer ended after {} of {wanted} bytes", bytes.len())));
        }
        Ok(bytes.freeze())
    }

    /// What an answer without success means.
    fn failure(&self, status: StatusCode, code: Option<&str>, key: &str) -> Failure {
        let seen = match code {
            Some(code) => format!("{status}, {code}"),
            None => status.to_string(),
        };
        let error = match status {
            StatusCode::NOT_FOUND if code == Some("NoSuchBucket") => self.no_bucket(),
            StatusCode::NOT_FOUND => ObjectError::Missing { key: key.to_owned() },
            StatusCode::PRECONDITION_FAILED => ObjectError::Changed { key: key.to_owned() },
            StatusCode::RANGE_NOT_SATISFIABLE => self.unavailable(format!("the range is outside of {key} ({seen})")),
            StatusCode::NOT_IMPLEMENTED => self.refused(format!("it cannot do that ({seen})")),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => return Failure::Again(seen),
            status if status.is_server_error() => return Failure::Again(seen),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => self.refused(format!(
                "the credentials are not allowed to ({seen}): check the access key, its rights on the bucket {}, the \
                 region and this machine's clock",
                self.config.bucket
            )),
            status if status.is_redirection() => {
                self.refused(format!("it sends us elsewhere ({seen}): check the endpoint and the region"))
            }
            _ => self.refused(seen),
        };
        Failure::Final(error)
    }

    /// The same for a wish that is no object's.
    pub(super) fn failure_of(&self, wish: &str, status: StatusCode, code: Option<&str>) -> Failure {
        match self.failure(status, code, wish) {
            Failure::Final(ObjectError::Missing { .. } | ObjectError::Changed { .. }) => {
                let code = code.map(|code| format!(", {code}")).unwrap_or_default();
                Failure::Final(self.refused(format!("it does not let us {wish} ({status}{code})")))
            }
            Failure::Final(ObjectError::Refused { endpoint, reason }) => Failure::Final(ObjectError::Refused {
                endpoint,
                reason: format!("it does not let us {wish}: {reason}"),
            }),
            failure => failure,
        }
    }

    fn no_bucket(&self) -> ObjectError {
        self.refused(format!(
            "there is no bucket {}: create it (deploy/minio/setup does), or start longshore with credentials that may",
            self.config.bucket
        ))
    }

    pub(super) fn unavailable(&self, reason: String) -> ObjectError {
        ObjectError::Unavailable { endpoint: self.endpoint.clone(), reason }
    }

    pub(super) fn refused(&self, reason: String) -> ObjectError {
        ObjectError::Refused { endpoint: self.endpoint.clone(), reason }
    }
}

/// Waits before the next try.
async fn pause(tries: u32) {
    let longest = FIRST_PAUSE * 2_u32.pow(tries.min(8) - 1);
    let random = rand::random_range(0..=longest.as_millis() as u64 / 2);
    tokio::time::sleep(longest / 2 + Duration::from_millis(random)).await;
}

pub(super) fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// The ETag without quotes. A proxy that compresses may have made it a weak one; the length is checked anyway.
fn etag_of(headers: &HeaderMap) -> Option<String> {
    let etag = text(headers, header::ETAG)?;
    Some(etag.trim_start_matches("W/").trim_matches('"').to_owned()).filter(|etag| !etag.is_empty())
}

/// The code that S3 puts into an error's body.
pub(super) async fn error_code(mut response: Response) -> Option<String> {
    let mut body = Vec::new();
    while let Ok(Some(block)) = response.chunk().await {
        body.extend_from_slice(&block);
        if body.len() > ERROR_BODY {
            break;
        }
    }
    let body = String::from_utf8_lossy(&body);
    let code = body.split_once("<Code>")?.1.split_once("</Code>")?.0;
    let plain = !code.is_empty() && code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    plain.then(|| code.to_owned())
}

/// An error with its causes, without its URL: that one carries a signature.
pub(super) fn causes(error: reqwest::Error) -> String {
    chain(&error.without_url())
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut shown = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        shown = format!("{shown}: {cause}");
        source = cause.source();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> S3Store {
        let endpoint = Url::parse("http://user:password@127.0.0.1:1").unwrap();
        S3Store::new(S3Config {
            endpoint: endpoint.clone(),
            public_endpoint: endpoint,
            bucket: "imports".into(),
            region: "us-east-1".into(),
            access_key_id: "key-id".into(),
            secret_access_key: Secret::new("hunter2"),
            upload_key: None,
            notification_arn: None,
            events_prefix: "imports/".into(),
            cors_origins: CorsOrigins::default(),
        })
        .unwrap()
    }

    #[test]
    fn answers_are_sorted_into_kinds() {
        let store = store();
        let kind = |status: u16, code: Option<&str>| match store.inner.failure(
            StatusCode::from_u16(status).unwrap(),
            code,
            "k",
        ) {
            Failure::Again(_) => "again",
            Failure::Final(ObjectError::Missing { .. }) => "missing",
            Failure::Final(ObjectError::Changed { .. }) => "changed",
            Failure::Final(ObjectError::Unavailable { .. }) => "unavailable",
            Failure::Final(ObjectError::Refused { .. }) => "refused",
        };
        assert_eq!(kind(404, Some("NoSuchKey")), "missing");
        assert_eq!(kind(404, Some("NoSuchBucket")), "refused");
        assert_eq!(kind(412, None), "changed");
        assert_eq!(kind(416, None), "unavailable");
        for status in [408, 429, 500, 502, 503, 504] {
            assert_eq!(kind(status, None), "again", "{status}");
        }
        for status in [301, 307, 400, 401, 403, 501] {
            assert_eq!(kind(status, None), "refused", "{status}");
        }
    }

    #[tokio::test]
    async fn errors_show_neither_credentials_nor_signatures() {
        let error = store().check().await.unwrap_err();
        let shown = format!("{error} {error:?} {:?}", store().inner.config);
        for secret in ["hunter2", "password", "Signature", "X-Amz", "key-id"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert!(shown.contains("http://127.0.0.1:1"), "{shown}");
    }
}
