//! Objects: where clients upload and workers read. Called by the API (presign, head) and the actors (head, ranged get).
//!
//! Every read carries the ETag that was planned (`If-Match`, invariant 7).
//!
//! - [`s3`]: any S3 server, over the network. `notification` asks it for events, where it can send them.
//! - [`embedded`]: our own S3 endpoint over a folder, for a process that needs no server beside it.
//! - [`text`]: an object as UTF-8 text, unpacked and transcoded.
//! - [`secret`], `presign`: credentials, and the signatures that both share.
//! - [`probe`]: what `longshore doctor` asks an S3 server.
//! - [`origins`], `cors`: which web pages may upload, and the bucket's configuration that says so.

mod cors;
pub mod embedded;
mod notification;
pub mod origins;
mod presign;
pub mod probe;
pub mod s3;
pub mod secret;
pub mod text;

pub use embedded::{EmbeddedConfig, EmbeddedStore};
pub use origins::CorsOrigins;
pub use s3::{S3Config, S3Store};
pub use secret::{AccessKey, Secret};

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;

use longshore_domain::ByteRange;

/// What a presigned PUT is valid for. Everything here is signed, so that the storage itself refuses anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutTerms {
    /// The one content type.
    pub content_type: String,
    /// The one length in bytes, where the client declared it.
    pub content_length: Option<u64>,
    /// Validity from now, 1 second to 7 days.
    pub expires_in: Duration,
}

/// A presigned PUT. The URL is a secret until it expires: it never reaches a log.
#[derive(Clone, PartialEq, Eq)]
pub struct PresignedPut {
    /// The URL under the public endpoint.
    pub url: String,
    /// Every header that the client has to send, names in lower case.
    pub headers: Vec<(String, String)>,
    /// When the storage stops to take it.
    pub expires_at: DateTime<Utc>,
}

impl std::fmt::Debug for PresignedPut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PresignedPut").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// What a HEAD says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHead {
    /// In bytes.
    pub size: u64,
    /// The entity tag without the quotes around it.
    pub etag: String,
    /// When the storage took it.
    pub last_modified: Option<DateTime<Utc>>,
}

/// Why an object could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// No object is at the key.
    #[error("no object is at {key}")]
    Missing {
        /// The key.
        key: String,
    },
    /// The object at the key is another one than was planned.
    #[error("the object at {key} is not the one that was planned")]
    Changed {
        /// The key.
        key: String,
    },
    /// The storage is away or overloaded: try again.
    #[error("the object storage at {endpoint} is away: {reason}")]
    Unavailable {
        /// Its endpoint, without credentials.
        endpoint: String,
        /// What was seen.
        reason: String,
    },
    /// The storage answered what trying again will not change: credentials, rights, a missing bucket.
    #[error("the object storage at {endpoint} refused: {reason}")]
    Refused {
        /// Its endpoint, without credentials.
        endpoint: String,
        /// What was seen.
        reason: String,
    },
}

/// What every S3 server takes in one PUT, in bytes: 5 GiB.
pub const MAX_PUT_SIZE: u64 = 5 << 30;

/// A storage that speaks S3's words. One conformance suite: `tests/objects.rs`.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// The bucket that imports are uploaded to.
    fn bucket(&self) -> &str;

    /// Makes what is missing (the bucket, and where configured the notification and the CORS rule) and leaves alone what is there. May run
    /// twice, on two nodes at once.
    async fn prepare(&self) -> Result<(), ObjectError>;

    /// Whether the storage answers, for `/readyz`.
    async fn check(&self) -> Result<(), ObjectError>;

    /// Signs a PUT of `key` (SigV4, query string): `host`, `content-type`, `if-none-match: *`, and `content-length` where
    /// declared.
    fn presign_put(&self, key: &str, terms: &PutTerms) -> PresignedPut;

    /// How many bytes the storage takes in one PUT.
    fn max_put_size(&self) -> u64 {
        MAX_PUT_SIZE
    }

    /// Looks at an object; `None` where there is none.
    async fn head(&self, key: &str) -> Result<Option<ObjectHead>, ObjectError>;

    /// Stores an object of our own, some MiB, at a key that is this caller's alone; answers with its ETag. Tried again until
    /// it is there. Clients' objects are put under [`ObjectStore::presign_put`].
    async fn put(&self, key: &str, bytes: Bytes) -> Result<String, ObjectError>;

    /// Removes an object; none at the key is no error. Imports are never removed: this is for what `longshore doctor` put
    /// there, and for decoded text.
    async fn delete(&self, key: &str) -> Result<(), ObjectError>;

    /// Reads exactly `range`, of the object with that ETag. A short or long answer is [`ObjectError::Unavailable`].
    async fn get_range(&self, key: &str, range: ByteRange, etag: &str) -> Result<Bytes, ObjectError>;

    /// Reads from `start` to `size`, of the object with that ETag, as a stream of blocks. A short body ends in an error.
    async fn read_from(
        &self,
        key: &str,
        start: u64,
        size: u64,
        etag: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, ObjectError>>, ObjectError>;
}
