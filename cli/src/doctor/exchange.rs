//! An upload as a client does it, and the reads of a worker, on an object that no import has; then it is removed.
//!
//! The key is under `imports/`, so that the bucket's notification tells of it, and is none of an import's, so that intake
//! and sweep pass over it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use longshore_domain::ByteRange;
use longshore_storage::objects::probe::PutAnswer;
use longshore_storage::objects::{ObjectError, ObjectStore as _, PresignedPut, PutTerms, S3Config, S3Store};
use longshore_storage::start::probe_key;

use super::Role;
use super::events::{self, Events};
use super::reader;
use super::report::{Check, Status};
use crate::settings::{S3Settings, Settings};
use crate::wire::s3_config;

const BODY: &[u8] = b"probe\nof longshore doctor\n";
/// As long as all of it may take.
const URL_LASTS: Duration = Duration::from_secs(300);
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// What the checks of one exchange share.
struct Exchange<'a> {
    settings: &'a Settings,
    role: Role,
    store: S3Store,
    key: String,
    put: PresignedPut,
    /// Where clients reach the storage, and the setting that says so.
    place: String,
    setting: &'static str,
    /// What begins the settings of the key that signs.
    signer: &'static str,
    /// Whether the storage is the service's own endpoint.
    embedded: bool,
}

/// Uploads, reads, listens, removes.
pub async fn check(
    settings: &Settings,
    role: Role,
    s3: &S3Settings,
    store: S3Store,
    awaited: Events,
    api: Option<String>,
) -> Vec<Check> {
    let key = probe_key();
    let config = s3_config(settings, s3);
    let differs = config.public_endpoint != config.endpoint;
    let setting = if differs { "LONGSHORE_S3_PUBLIC_ENDPOINT" } else { "LONGSHORE_S3_ENDPOINT" };
    let place = config.public_endpoint.origin().ascii_serialization();
    let terms = PutTerms {
        content_type: "text/csv".to_owned(),
        content_length: Some(BODY.len() as u64),
        expires_in: URL_LASTS,
    };
    let public = Exchange {
        put: store.presign_put(&key, &terms),
        signer: if s3.signer.is_some() { "LONGSHORE_S3_SIGNER_" } else { "LONGSHORE_S3_" },
        embedded: settings.s3.is_none(),
        settings,
        role,
        store,
        key,
        place,
        setting,
    };
    let mut listener = events::listen(settings, &awaited).await;
    let begun = Instant::now();
    let mut upload = public.upload().await;
    let mut exchange = public;
    if upload.check.status == Status::Fail && !upload.stored && differs {
        // Whether only the clients' address is at fault; what follows needs an object, too.
        let place = config.endpoint.origin().ascii_serialization();
        let inner = S3Config { public_endpoint: config.endpoint.clone(), ..config };
        if let Ok(store) = S3Store::new(inner) {
            let put = store.presign_put(&exchange.key, &terms);
            exchange = Exchange { store, put, place, setting: "LONGSHORE_S3_ENDPOINT", ..exchange };
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
        events::heard(settings, &awaited, listener.as_mut(), &exchange.key, begun),
    );
    let upload = exchange.tidy(upload.check).await;
    // Behind the events, which may only be counted.
    let decodes = role.works() && !exchange.embedded;
    let reads = if decodes { reader::with_decoded_text(reads, &exchange.store).await } else { reads };
    vec![upload, reads, cors, events]
}

/// What became of the upload.
struct Upload {
    check: Check,
    stored: bool,
    /// Whether a page of the first origin could have read the refusal.
    readable: bool,
}

impl Exchange<'_> {
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
                let worker = match self.role {
                    Role::Serve if self.signer == "LONGSHORE_S3_" => {
                        "; a worker needs no such right: longshore doctor --role worker"
                    }
                    _ => "",
                };
                format!(
                    "let the key of {}ACCESS_KEY_ID put objects (s3:PutObject under imports/ of the bucket {}, which \
                     LONGSHORE_S3_BUCKET names){worker}",
                    self.signer, self.settings.s3_bucket
                )
            }
            Some("InvalidAccessKeyId") => format!("check {}ACCESS_KEY_ID: the storage does not know this key", self.signer),
            Some("NotImplemented") => {
                "this server does not know `if-none-match` at a PUT: take a newer one, or another".to_owned()
            }
            _ => format!(
                "check {}SECRET_ACCESS_KEY, LONGSHORE_S3_REGION, {}, and the clock below",
                self.signer, self.setting
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
        let (mut refused, mut by_storage) = (Vec::new(), false);
        for origin in origins.iter() {
            if let Err(reason) = self.store.preflight(&self.put, origin).await {
                refused.push(format!("{origin}: {reason}"));
                by_storage = true;
            }
            if let Some(base) = api
                && let Err(reason) = api_preflight(base, origin).await
            {
                refused.push(format!("{origin} at {base}: {reason}"));
            }
        }
        let advice = if self.embedded || (!by_storage && !refused.is_empty()) {
            format!("start the service anew with LONGSHORE_CORS_ORIGINS={origins}")
        } else {
            format!(
                "MinIO knows no rule of a bucket: start it with MINIO_API_CORS_ALLOW_ORIGIN={origins}; other servers get the rule at \
                 the start of the service, where its key may set it (s3:PutBucketCORS), or from an administrator"
            )
        };
        if !refused.is_empty() {
            return Check::fail(NAME, format!("not let in: {}", refused.join("; ")), advice);
        }
        if !readable {
            return Check::warn(NAME, "pages may upload, but cannot read why an upload was refused", advice);
        }
        Check::ok(NAME, format!("pages of {origins} may upload, and read refusals"))
    }

    /// Removes what was uploaded, or says where it stays.
    async fn tidy(&self, upload: Check) -> Check {
        let removed = tokio::time::timeout(READ_TIMEOUT, self.store.delete(&self.key)).await;
        let reason = match removed {
            Ok(Ok(())) => return upload,
            // Longshore removes nothing else, so its key need not.
            Ok(Err(ObjectError::Refused { .. })) => "this key may not remove it, and need not".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", READ_TIMEOUT.as_secs()),
        };
        let (key, bucket) = (&self.key, self.store.bucket());
        let mut upload = upload.with("left", key.clone());
        upload.detail += &format!(
            "; {key} stays, which no import has: {reason}; an administrator removes it: mc rm ALIAS/{bucket}/{key}"
        );
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
