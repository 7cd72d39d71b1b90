//! An upload as a client does it, and the reads of a worker, on an object that no import has; then it is removed.
//!
//! The key is under `imports/`, so that the bucket's notification tells of it, and is none of an import's, so that intake
//! and sweep pass over it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use longshore_domain::ByteRange;
use longshore_storage::bus::nats::NatsConfig;
use longshore_storage::bus::nats::inspect::EventListener;
use longshore_storage::objects::probe::PutAnswer;
use longshore_storage::objects::{ObjectError, ObjectStore as _, PresignedPut, PutTerms, S3Config, S3Store};
use longshore_storage::start::probe_key;

use super::report::{Check, Status};
use crate::settings::{S3Settings, Settings};
use crate::wire::s3_config;

const BODY: &[u8] = b"probe\nof longshore doctor\n";
/// As long as all of it may take.
const URL_LASTS: Duration = Duration::from_secs(300);
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an event may take; MinIO with a queue folder takes 3 s.
const EVENT_PATIENCE: Duration = Duration::from_secs(10);
/// The same where nothing seems to be set up that would tell.
const EVENT_LOOK: Duration = Duration::from_secs(4);

/// What is to be seen of storage events.
pub enum Events {
    /// Nothing, and why.
    Skipped(String),
    /// They come over NATS.
    Awaited {
        /// Whether the bucket is set up so that they have to.
        must_come: bool,
    },
}

/// What the checks of one exchange share.
struct Exchange<'a> {
    settings: &'a Settings,
    store: S3Store,
    key: String,
    put: PresignedPut,
    /// Where clients reach the storage, and the setting that says so.
    place: String,
    setting: &'static str,
}

/// Uploads, reads, listens, removes.
pub async fn check(
    settings: &Settings,
    s3: &S3Settings,
    store: S3Store,
    events: Events,
    api: Option<String>,
) -> Vec<Check> {
    let key = probe_key();
    let config = s3_config(settings, s3);
    let differs = config.public_endpoint != config.endpoint;
    let setting = if differs { "LONGSHORE_S3_PUBLIC_ENDPOINT" } else { "LONGSHORE_S3_ENDPOINT" };
    let place = config.public_endpoint.origin().ascii_serialization();
    let public = Exchange::new(settings, store, &key, place, setting);
    let mut listener = listen(settings, &events).await;
    let begun = Instant::now();
    let mut upload = public.upload().await;
    let mut exchange = public;
    if upload.check.status == Status::Fail && !upload.stored && differs {
        // Whether only the clients' address is at fault; what follows needs an object, too.
        let place = config.endpoint.origin().ascii_serialization();
        let inner = S3Config { public_endpoint: config.endpoint.clone(), ..config };
        if let Ok(store) = S3Store::new(inner) {
            exchange = Exchange::new(settings, store, &key, place, "LONGSHORE_S3_ENDPOINT");
            let second = exchange.upload().await;
            if second.check.status == Status::Ok {
                upload.check.detail += "; the same upload to LONGSHORE_S3_ENDPOINT works";
            }
            upload.stored = second.stored;
        }
    }
    if !upload.stored {
        let skipped = |name: &'static str| Check::skipped(name, "there is no upload to look at");
        let cors = exchange.cors(upload.readable, api.as_deref()).await;
        return vec![upload.check, skipped("reads"), cors, skipped("events")];
    }
    let (reads, cors, events) = tokio::join!(
        exchange.reads(),
        exchange.cors(upload.readable, api.as_deref()),
        exchange.events(&events, listener.as_mut(), begun),
    );
    let upload = exchange.tidy(upload.check).await;
    vec![upload, reads, cors, events]
}

type Listener = Result<EventListener, String>;

async fn listen(settings: &Settings, events: &Events) -> Option<Listener> {
    let (Events::Awaited { .. }, Some(url)) = (events, &settings.nats_url) else { return None };
    let config = NatsConfig::new(url.expose(), &settings.nats_events_subject);
    Some(EventListener::listen(&config).await.map_err(|error| error.to_string()))
}

/// What became of the upload.
struct Upload {
    check: Check,
    stored: bool,
    /// Whether a page of the first origin could have read the refusal.
    readable: bool,
}

impl<'a> Exchange<'a> {
    fn new(settings: &'a Settings, store: S3Store, key: &str, place: String, setting: &'static str) -> Self {
        let terms = PutTerms {
            content_type: "text/csv".to_owned(),
            content_length: Some(BODY.len() as u64),
            expires_in: URL_LASTS,
        };
        let put = store.presign_put(key, &terms);
        Self { settings, store, key: key.to_owned(), put, place, setting }
    }

    /// The page that an upload comes from, where pages may.
    fn origin(&self) -> Option<&str> {
        self.settings
            .cors_origins
            .iter()
            .next()
            .map(|origin| if origin == "*" { "https://longshore.invalid" } else { origin })
    }

    async fn send(&self, content_type: Option<&str>) -> Result<PutAnswer, String> {
        self.store.put(&self.put, content_type, self.origin(), Bytes::from_static(BODY)).await
    }

    /// With a wrong content type, as signed, and once more.
    async fn upload(&self) -> Upload {
        const NAME: &str = "upload";
        let place = &self.place;
        let failed = |check: Check, stored: bool| Upload { check, stored, readable: false };
        let unreachable = |reason: String| {
            let advice = format!(
                "check {}: it is the address that URLs are signed for; where only clients can reach it, run the doctor there",
                self.setting
            );
            failed(Check::fail(NAME, format!("the storage is not reached at {place}: {reason}"), advice), false)
        };
        let wrong = match self.send(Some("text/plain")).await {
            Ok(answer) => answer,
            Err(reason) => return unreachable(reason),
        };
        let right = match self.send(None).await {
            Ok(answer) => answer,
            Err(reason) => return unreachable(reason),
        };
        if wrong.status.is_success() {
            let detail = format!("{place} took a content type that was not signed");
            let advice = "this server does not hold clients to what was signed: take another one";
            return failed(Check::fail(NAME, detail, advice), true);
        }
        if !right.status.is_success() {
            let detail = format!("{place} refused an upload as it was signed: {}", shown(&right));
            return failed(Check::fail(NAME, detail, self.advice_for_refusal(&right)), false);
        }
        if wrong.status != 403 {
            let detail = format!("{place} answered a wrong content type with {}, not 403", shown(&wrong));
            let advice = "clients tell a wrong upload by its 403: look what stands between them and the storage";
            return failed(Check::warn(NAME, detail, advice), true);
        }
        match self.send(None).await {
            Err(reason) => unreachable(reason),
            Ok(again) if again.status == 412 => {
                let detail = format!(
                    "{place} took a presigned PUT, and refused a wrong content type (403) and a second upload (412)"
                );
                Upload { check: Check::ok(NAME, detail), stored: true, readable: wrong.readable && again.readable }
            }
            Ok(again) if again.status.is_success() => {
                let advice =
                    "this server passes over `if-none-match: *`: a client could replace its file; take another one";
                failed(Check::fail(NAME, format!("{place} took a second upload to the same URL"), advice), true)
            }
            Ok(again) => {
                let detail = format!("{place} answered a second upload with {}, not 412", shown(&again));
                let advice =
                    "clients tell by the 412 that their file is there: look what stands between them and the storage";
                failed(Check::warn(NAME, detail, advice), true)
            }
        }
    }

    fn advice_for_refusal(&self, answer: &PutAnswer) -> String {
        match answer.code.as_deref() {
            Some("SignatureDoesNotMatch") if self.setting == "LONGSHORE_S3_PUBLIC_ENDPOINT" => {
                "a proxy in front of the storage has to pass the Host header on as LONGSHORE_S3_PUBLIC_ENDPOINT names it".to_owned()
            }
            Some("AccessDenied") => {
                "let the access key of LONGSHORE_S3_ACCESS_KEY_ID put objects (s3:PutObject under imports/)".to_owned()
            }
            Some("NotImplemented") => {
                "this server does not know `if-none-match` at a PUT: take a newer one, or another".to_owned()
            }
            _ => format!(
                "check LONGSHORE_S3_SECRET_ACCESS_KEY, LONGSHORE_S3_REGION, {}, and the clock below",
                self.setting
            ),
        }
    }

    /// HEAD, a range, and a range of another object than is there.
    async fn reads(&self) -> Check {
        const NAME: &str = "reads";
        let advice = "let the access key read objects (s3:GetObject under imports/)";
        match tokio::time::timeout(READ_TIMEOUT, self.read()).await {
            Ok(Ok(check)) => check,
            Ok(Err(error)) => Check::fail(NAME, error.to_string(), advice),
            Err(_) => Check::fail(NAME, format!("no end within {} s", READ_TIMEOUT.as_secs()), advice),
        }
    }

    async fn read(&self) -> Result<Check, ObjectError> {
        const NAME: &str = "reads";
        let other_server = "workers rely on it: take another server, or look what stands between them and the storage";
        let Some(head) = self.store.head(&self.key).await? else {
            return Ok(Check::fail(NAME, "HEAD does not find what was just uploaded", other_server));
        };
        if head.size != BODY.len() as u64 {
            return Ok(Check::fail(NAME, format!("HEAD says {} bytes, not {}", head.size, BODY.len()), other_server));
        }
        let range = ByteRange::new(2, 9);
        if self.store.get_range(&self.key, range, &head.etag).await? != BODY[2..9] {
            return Ok(Check::fail(NAME, "a range is not what was uploaded", other_server));
        }
        let status = self.store.get_if_match(&self.key, "0123456789abcdef0123456789abcdef").await?;
        if status == 412 {
            return Ok(Check::ok(NAME, "HEAD and ranges are exact; another ETag is refused (412)"));
        }
        let advice = "workers compare the ETag of each answer, too, so nothing is mixed up; a server that keeps to If-Match saves \
                      them reads in vain";
        Ok(Check::warn(NAME, format!("If-Match with another ETag was answered {status}, not 412"), advice))
    }

    /// Whether pages of each origin may upload, and may call the API of a service that runs here.
    async fn cors(&self, readable: bool, api: Option<&str>) -> Check {
        const NAME: &str = "cors";
        let origins = &self.settings.cors_origins;
        if origins.is_empty() {
            return Check::skipped(NAME, "LONGSHORE_CORS_ORIGINS is not set: no uploads from web pages");
        }
        let mut refused = Vec::new();
        for origin in origins.iter() {
            if let Err(reason) = self.store.preflight(&self.put, origin).await {
                refused.push(format!("{origin}: {reason}"));
            }
            if let Some(base) = api
                && let Err(reason) = api_preflight(base, origin).await
            {
                refused.push(format!("{origin} at {base}: {reason}"));
            }
        }
        let advice = format!(
            "start the service with LONGSHORE_CORS_ORIGINS={origins}, which sets the bucket's CORS where the server can; on MinIO set \
             MINIO_API_CORS_ALLOW_ORIGIN={origins} for the server"
        );
        if !refused.is_empty() {
            return Check::fail(NAME, format!("not let in: {}", refused.join("; ")), advice);
        }
        if !readable {
            return Check::warn(NAME, "pages may upload, but cannot read why an upload was refused", advice);
        }
        Check::ok(NAME, format!("pages of {origins} may upload, and read refusals"))
    }

    async fn events(&self, events: &Events, listener: Option<&mut Listener>, begun: Instant) -> Check {
        const NAME: &str = "events";
        let must_come = match events {
            Events::Skipped(why) => return Check::skipped(NAME, why),
            Events::Awaited { must_come } => *must_come,
        };
        let listener = match listener {
            Some(Ok(listener)) => listener,
            Some(Err(reason)) => return Check::skipped(NAME, format!("NATS does not let the doctor listen: {reason}")),
            None => return Check::skipped(NAME, "there is nothing to listen to"),
        };
        let subject = &self.settings.nats_events_subject;
        let patience = if must_come { EVENT_PATIENCE } else { EVENT_LOOK };
        let silent = format!("nothing told of the upload on {subject} within {} s", patience.as_secs());
        match listener.hears_of(self.store.bucket(), &self.key, patience).await {
            Ok(true) => {
                let delay = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                Check::ok(NAME, format!("{delay} ms from the upload to its event on {subject}")).with("delay_ms", delay)
            }
            Ok(false) if must_come => Check::fail(
                NAME,
                silent,
                "let the storage publish to the NATS of LONGSHORE_NATS_URL and the subject of LONGSHORE_NATS_EVENTS_SUBJECT \
                 (MinIO: MINIO_NOTIFY_NATS_ADDRESS_<id> and _SUBJECT_<id>); until then imports start by the complete call or the \
                 sweep",
            ),
            Ok(false) => Check::warn(
                NAME,
                silent,
                "see notification; without events imports start by the complete call or the sweep",
            ),
            Err(error) => Check::warn(NAME, error.to_string(), "see nats"),
        }
    }

    /// Removes what was uploaded, or says where it stays.
    async fn tidy(&self, upload: Check) -> Check {
        let removed = tokio::time::timeout(READ_TIMEOUT, self.store.delete(&self.key)).await;
        let reason = match removed {
            Ok(Ok(())) => return upload,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", READ_TIMEOUT.as_secs()),
        };
        let mut upload = upload.with("left", self.key.clone());
        upload.detail += &format!("; {} stays, which no import has: {reason}", self.key);
        upload
    }
}

fn shown(answer: &PutAnswer) -> String {
    match &answer.code {
        Some(code) => format!("{} ({code})", answer.status),
        None => answer.status.to_string(),
    }
}

/// Whether a page may create an import at a service.
async fn api_preflight(base: &str, origin: &str) -> Result<(), String> {
    let asked = if origin == "*" { "https://longshore.invalid" } else { origin };
    let client =
        reqwest::Client::builder().timeout(READ_TIMEOUT).no_proxy().build().map_err(|error| error.to_string())?;
    let answer = client
        .request(reqwest::Method::OPTIONS, format!("{base}/v1/imports"))
        .header("origin", asked)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type")
        .send()
        .await
        .map_err(|error| error.without_url().to_string())?;
    match answer.headers().get("access-control-allow-origin") {
        Some(allowed) if allowed == asked || allowed == "*" => Ok(()),
        _ => Err("the service runs with other origins: start it anew".to_owned()),
    }
}
