//! The S3 words that the embedded endpoint knows: PUT and GET of objects, HEAD of objects and of the bucket, DELETE
//! of the doctor's probes.
//!
//! Called by `s3s` once a signature is proven; whatever is not here is answered NotImplemented by `s3s` itself, and
//! nothing is anonymous. Publishes a storage event for every object, last.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use http::StatusCode;
use s3s::dto::{
    DeleteObjectInput, DeleteObjectOutput, ETag, ETagCondition, GetObjectInput, GetObjectOutput, HeadBucketInput,
    HeadBucketOutput, HeadObjectInput, HeadObjectOutput, PutObjectInput, PutObjectOutput, StreamingBlob, Timestamp,
};
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};
use uuid::Uuid;

use super::ObjectHead;
use super::files::{FileError, Files, blocking};
use crate::bus::{Bus, StorageEvent};
use crate::start::{PROBE_PREFIX, is_decoded_text};

/// How long an upload's body may stand still.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the bus may take over an event.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Where `s3s-fs` puts the one object of a staging folder.
const STAGED_BUCKET: &str = "upload";
const STAGED_KEY: &str = "object";

/// The bucket as S3 clients see it.
pub(super) struct EmbeddedS3 {
    files: Arc<Files>,
    bucket: String,
    max_put_size: u64,
    bus: Arc<dyn Bus>,
    /// Commits and events that outlive their request.
    tasks: TaskTracker,
}

impl EmbeddedS3 {
    pub(super) fn new(
        files: Arc<Files>,
        bucket: String,
        max_put_size: u64,
        bus: Arc<dyn Bus>,
        tasks: TaskTracker,
    ) -> Self {
        Self { files, bucket, max_put_size, bus, tasks }
    }

    fn check_bucket(&self, bucket: &str) -> S3Result<()> {
        if bucket == self.bucket { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
    }

    /// The length that an upload declares. Without one nobody could tell a whole body from half of one.
    fn declared_length(&self, request: &S3Request<PutObjectInput>) -> S3Result<u64> {
        let decoded = request.headers.get("x-amz-decoded-content-length");
        let length = match decoded.map(|length| length.to_str().ok().and_then(|length| length.parse().ok())) {
            Some(length) => length,
            None => request.input.content_length.and_then(|length| u64::try_from(length).ok()),
        };
        match length {
            None => Err(s3_error!(MissingContentLength)),
            Some(length) if length > self.max_put_size => Err(s3_error!(EntityTooLarge)),
            Some(length) => Ok(length),
        }
    }

    /// Takes the body into a folder of its own, with every check that `s3s-fs` makes.
    async fn stage(&self, mut request: S3Request<PutObjectInput>) -> S3Result<(Staged, S3Response<PutObjectOutput>)> {
        let files = Arc::clone(&self.files);
        let folder = blocking(move || files.stage(&Uuid::now_v7().simple().to_string())).await.map_err(internal)?;
        let staged = Staged { folder };
        let system = FileSystem::new(&staged.folder).map_err(|error| internal(format!("{error:?}")))?;
        let input = &mut request.input;
        input.bucket = STAGED_BUCKET.to_owned();
        input.key = STAGED_KEY.to_owned();
        input.if_none_match = None;
        input.body = input.body.take().map(|body| StreamingBlob::wrap(impatient(body)));
        let response = system.put_object(request).await.map_err(with_reason)?;
        Ok((staged, response))
    }

    /// Makes a staged upload an object, even where the client is gone by now, and tells the bus.
    async fn commit(&self, staged: Staged, size: u64, key: String) -> Result<ObjectHead, FileError> {
        let (answer, committed) = oneshot::channel();
        let (files, bus) = (Arc::clone(&self.files), Arc::clone(&self.bus));
        let event = StorageEvent { bucket: self.bucket.clone(), key: key.clone() };
        self.tasks.spawn(async move {
            let done = blocking(move || files.commit(&staged.object(), size, &key)).await;
            let stored = done.is_ok();
            let _ = answer.send(done);
            if stored {
                publish(bus, event).await;
            }
        });
        committed.await.unwrap_or_else(|_| Err(FileError::Io(io::Error::other("the commit was interrupted"))))
    }
}

async fn publish(bus: Arc<dyn Bus>, event: StorageEvent) {
    match tokio::time::timeout(EVENT_TIMEOUT, bus.publish_event(&event)).await {
        Ok(Ok(())) => debug!(key = event.key, "published a storage event"),
        Ok(Err(error)) => {
            warn!(key = event.key, %error, "a storage event was not published: the sweep finds the object")
        }
        Err(_) => warn!(key = event.key, "a storage event was not published in time: the sweep finds the object"),
    }
}

/// The folder of one upload. Whatever becomes of the upload, it is removed.
struct Staged {
    folder: PathBuf,
}

impl Staged {
    fn object(&self) -> PathBuf {
        self.folder.join(STAGED_BUCKET).join(STAGED_KEY)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let folder = std::mem::take(&mut self.folder);
        let remove = move || {
            if let Err(error) = std::fs::remove_dir_all(&folder) {
                warn!(folder = %folder.display(), %error, "what is left of an upload stays until the next start");
            }
        };
        // Removing a large file takes a while.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// A body that ends in an error where nothing comes for too long.
fn impatient(body: StreamingBlob) -> impl Stream<Item = Result<Bytes, io::Error>> + Send + Sync + 'static {
    stream::unfold(Some(body), |body| async {
        let mut body = body?;
        match tokio::time::timeout(IDLE_TIMEOUT, body.next()).await {
            Ok(Some(Ok(block))) => Some((Ok(block), Some(body))),
            Ok(Some(Err(error))) => Some((Err(io::Error::other(error)), None)),
            Ok(None) => None,
            Err(_) => Some((Err(io::Error::from(io::ErrorKind::TimedOut)), None)),
        }
    })
}

#[async_trait::async_trait]
impl S3 for EmbeddedS3 {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        self.check_bucket(&request.input.bucket)?;
        let key = request.input.key.clone();
        if self.files.path(&key).is_none() {
            return Err(s3_error!(InvalidArgument, "this key cannot be a file's name here"));
        }
        if request.input.if_match.is_some() {
            return Err(s3_error!(NotImplemented, "objects are never replaced"));
        }
        let size = self.declared_length(&request)?;
        // Before the body is sent; the commit decides.
        if self.exists(&key).await? {
            return Err(already_there());
        }
        let (staged, mut response) = self.stage(request).await?;
        let head = self.commit(staged, size, key).await.map_err(|error| match error {
            FileError::Exists => already_there(),
            FileError::Short => s3_error!(IncompleteBody),
            error => internal(error),
        })?;
        response.output.e_tag = Some(ETag::Strong(head.etag));
        Ok(response)
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        self.check_bucket(&input.bucket)?;
        let (files, key) = (Arc::clone(&self.files), input.key);
        let object = blocking(move || files.open_object(&key)).await.map_err(reading)?;
        let size = object.head.size;
        check_conditions(&object.head, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let (start, end, content_range) = match &input.range {
            None => (0, size, None),
            Some(range) => {
                let range = range.check(size)?;
                let shown = format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1));
                (range.start, range.end, Some(shown))
            }
        };
        let output = GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: i64::try_from(end - start).ok(),
            content_range,
            e_tag: Some(ETag::Strong(object.head.etag.clone())),
            last_modified: modified(&object.head),
            body: Some(StreamingBlob::wrap(object.blocks(start, end))),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        self.check_bucket(&input.bucket)?;
        let (files, key) = (Arc::clone(&self.files), input.key);
        let head = blocking(move || files.head(&key)).await.map_err(reading)?;
        check_conditions(&head, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let output = HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: i64::try_from(head.size).ok(),
            last_modified: modified(&head),
            e_tag: Some(ETag::Strong(head.etag)),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.check_bucket(&request.input.bucket)?;
        let (files, key) = (Arc::clone(&self.files), request.input.key);
        if !key.starts_with(PROBE_PREFIX) && !is_decoded_text(&key) {
            return Err(s3_error!(AccessDenied, "the object of an import is not removed"));
        }
        blocking(move || files.remove(&key)).await.map_err(internal)?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.check_bucket(&request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }
}

impl EmbeddedS3 {
    async fn exists(&self, key: &str) -> S3Result<bool> {
        let (files, key) = (Arc::clone(&self.files), key.to_owned());
        blocking(move || Ok(files.exists(&key))).await.map_err(internal)
    }
}

fn check_conditions(
    head: &ObjectHead,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<()> {
    let holds = |condition: &ETagCondition| match condition.as_etag() {
        None => condition.is_any(),
        Some(etag) => etag.as_strong() == Some(head.etag.as_str()),
    };
    if if_match.is_some_and(|condition| !holds(condition)) {
        return Err(s3_error!(PreconditionFailed));
    }
    if if_none_match.is_some_and(holds) {
        return Err(s3_error!(NotModified));
    }
    Ok(())
}

fn modified(head: &ObjectHead) -> Option<Timestamp> {
    head.last_modified.map(|time| Timestamp::from(SystemTime::from(time)))
}

fn already_there() -> S3Error {
    s3_error!(PreconditionFailed, "an object is at this key: the file has arrived")
}

fn reading(error: FileError) -> S3Error {
    match error {
        FileError::Missing => s3_error!(NoSuchKey),
        error => internal(error),
    }
}

/// An error of the disk with the words for it; that it is full has a status of its own.
fn with_reason(mut error: S3Error) -> S3Error {
    if *error.code() != S3ErrorCode::InternalError || error.message().is_some() {
        return error;
    }
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    let Some(kind) = source.map(io::Error::kind) else { return error };
    if matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        error.set_status_code(StatusCode::INSUFFICIENT_STORAGE);
        error.set_message("there is no room for this file where the service keeps its objects");
    } else {
        error.set_message(format!("the file could not be written: {kind}"));
    }
    let reason = error.message().unwrap_or_default().to_owned();
    tokio::spawn(async move { error!(reason, "the embedded S3 endpoint failed") });
    error
}

/// What went wrong is for our log; the client learns that it was us.
fn internal(reason: impl std::fmt::Display) -> S3Error {
    let reason = reason.to_string();
    // In a task of its own: where `s3s` runs, logs are off (`listener`).
    tokio::spawn(async move { error!(reason, "the embedded S3 endpoint failed") });
    s3_error!(InternalError)
}
