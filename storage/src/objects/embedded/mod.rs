//! Our own S3 endpoint over a folder, for a process that needs no server beside it.
//!
//! Clients reach it as they would reach any S3 server (`listener`, `service`: real SigV4 checks by `s3s`, bodies taken by
//! `s3s-fs`); this process reads the files directly (`files`). An upload is staged, checked, made durable and only then
//! linked to its key, which fails where an object is; the storage event follows last.
//!
//! Folder: `objects/<bucket>/<key>` are the objects, `staging/` what is being uploaded. What a killed process left in
//! `staging/` is removed at the start. One process owns the folder at a time; the caller sees to that.

mod files;
mod listener;
mod service;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use s3s::auth::SimpleAuth;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use url::Url;

use longshore_domain::ByteRange;

use super::presign::{Signer, shown};
use super::{CorsOrigins, ObjectError, ObjectHead, ObjectStore, PresignedPut, PutTerms, Secret};
use crate::bus::Bus;
use files::{FileError, Files};
use listener::Listener;
use service::EmbeddedS3;

/// How many bytes the endpoint takes in one PUT: 5 TiB, as much as S3 allows an object.
const MAX_PUT_SIZE: u64 = 5 << 40;
/// How long a stop waits for uploads that are being stored.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How to run the embedded endpoint.
#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    /// The folder, made where it is missing. One process owns it.
    pub root: PathBuf,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where clients reach it, if not there.
    pub public_endpoint: Option<Url>,
    /// The bucket that imports are uploaded to.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// The one key that is known.
    pub access_key_id: String,
    /// The secret of that key.
    pub secret_access_key: Secret,
    /// Web pages that may upload.
    pub cors_origins: CorsOrigins,
}

/// The embedded endpoint. It stops when dropped; [`EmbeddedStore::shutdown`] lets uploads end first.
pub struct EmbeddedStore {
    bucket: String,
    endpoint: Url,
    files: Arc<Files>,
    signer: Signer,
    listener: Listener,
    tasks: TaskTracker,
}

impl EmbeddedStore {
    /// Cleans the folder, listens, and answers from now on. `bus` hears of every object once it is durable.
    ///
    /// # Errors
    ///
    /// [`ObjectError::Unavailable`] where the folder cannot be written or the address is taken,
    /// [`ObjectError::Refused`] for an endpoint that is no HTTP address.
    pub async fn start(config: EmbeddedConfig, bus: Arc<dyn Bus>) -> Result<Self, ObjectError> {
        let unavailable = |reason: String| ObjectError::Unavailable { endpoint: config.listen.to_string(), reason };
        let files = {
            let (root, bucket) = (config.root.clone(), config.bucket.clone());
            let opened = tokio::task::spawn_blocking(move || Files::open(&root, &bucket)).await;
            opened
                .map_err(|error| unavailable(error.to_string()))?
                .map_err(|error| unavailable(format!("the folder {} cannot be used: {error}", config.root.display())))?
        };
        let files = Arc::new(files);
        let socket = TcpListener::bind(config.listen).await.map_err(|error| {
            unavailable(format!("cannot listen on {}: {error}; choose another LONGSHORE_S3_LISTEN", config.listen))
        })?;
        let address = socket.local_addr().map_err(|error| unavailable(error.to_string()))?;
        let endpoint: Url = format!("http://{}", reachable(address))
            .parse()
            .map_err(|error| unavailable(format!("no address can be made of {address}: {error}")))?;
        let signer = Signer::new(
            &endpoint,
            config.public_endpoint.as_ref().unwrap_or(&endpoint),
            &config.bucket,
            &config.region,
            &config.access_key_id,
            &config.secret_access_key,
        )?;

        let tasks = TaskTracker::new();
        let service = EmbeddedS3::new(Arc::clone(&files), config.bucket.clone(), MAX_PUT_SIZE, bus, tasks.clone());
        let mut builder = S3ServiceBuilder::new(service);
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(limits()))));
        builder.set_auth(SimpleAuth::from_single(config.access_key_id.clone(), config.secret_access_key.expose()));
        let listener = Listener::start(socket, builder.build(), &config.cors_origins);
        info!(endpoint = shown(&endpoint), root = %config.root.display(), "the embedded S3 endpoint listens");
        Ok(Self { bucket: config.bucket, endpoint, files, signer, listener, tasks })
    }

    /// Where it is reached from this machine, with the port that was chosen.
    #[must_use]
    pub fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    /// Takes no more requests, and waits a while for those that run.
    pub async fn shutdown(&self) {
        self.listener.stop().await;
        self.tasks.close();
        if tokio::time::timeout(STOP_TIMEOUT, self.tasks.wait()).await.is_err() {
            warn!("an upload was still being stored at the stop; the sweep finds it");
        }
    }

    fn error(&self, key: &str, error: FileError) -> ObjectError {
        match error {
            FileError::Missing => ObjectError::Missing { key: key.to_owned() },
            FileError::Changed => ObjectError::Changed { key: key.to_owned() },
            FileError::Short => self.unavailable(format!("{key} is shorter than the range that was asked for")),
            FileError::Exists => self.unavailable(format!("{key} is there already")),
            FileError::Io(error) => self.unavailable(format!("{key} cannot be read: {error}")),
        }
    }

    fn unavailable(&self, reason: String) -> ObjectError {
        ObjectError::Unavailable { endpoint: shown(&self.endpoint), reason }
    }
}

/// An address that this machine can call, for one that listens everywhere.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, address.port())),
        _ => address,
    }
}

/// Forms and XML are held in memory whole, before anybody asks who sent them; nothing here takes either.
fn limits() -> S3Config {
    let mut config = S3Config::default();
    config.xml_max_body_size = 64 << 10;
    config.form_max_field_size = 64 << 10;
    config.form_max_fields_size = 64 << 10;
    config.post_object_max_file_size = 0;
    config
}

#[async_trait]
impl ObjectStore for EmbeddedStore {
    fn bucket(&self) -> &str {
        &self.bucket
    }

    async fn prepare(&self) -> Result<(), ObjectError> {
        let files = Arc::clone(&self.files);
        files::blocking(move || files.prepare()).await.map_err(|error| self.error(&self.bucket, error))
    }

    async fn check(&self) -> Result<(), ObjectError> {
        if !self.listener.is_running() {
            return Err(self.unavailable("it has stopped".into()));
        }
        let files = Arc::clone(&self.files);
        files::blocking(move || files.check()).await.map_err(|error| self.error(&self.bucket, error))
    }

    fn presign_put(&self, key: &str, terms: &PutTerms) -> PresignedPut {
        self.signer.put(key, terms)
    }

    fn max_put_size(&self) -> u64 {
        MAX_PUT_SIZE
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectHead>, ObjectError> {
        let (files, name) = (Arc::clone(&self.files), key.to_owned());
        match files::blocking(move || files.head(&name)).await {
            Ok(head) => Ok(Some(head)),
            Err(FileError::Missing) => Ok(None),
            Err(error) => Err(self.error(key, error)),
        }
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<String, ObjectError> {
        let (files, name) = (Arc::clone(&self.files), key.to_owned());
        let put = files::blocking(move || files.put(&name, &bytes)).await;
        put.map(|head| head.etag).map_err(|error| self.error(key, error))
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let (files, name) = (Arc::clone(&self.files), key.to_owned());
        files::blocking(move || files.remove(&name)).await.map_err(|error| self.error(key, error))
    }

    async fn get_range(&self, key: &str, range: ByteRange, etag: &str) -> Result<Bytes, ObjectError> {
        let (files, name, etag) = (Arc::clone(&self.files), key.to_owned(), etag.to_owned());
        files::blocking(move || files.open_planned(&name, &etag)?.read(range.start.0, range.len()))
            .await
            .map_err(|error| self.error(key, error))
    }

    async fn read_from(
        &self,
        key: &str,
        start: u64,
        size: u64,
        etag: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, ObjectError>>, ObjectError> {
        let (files, name, planned) = (Arc::clone(&self.files), key.to_owned(), etag.to_owned());
        let object = files::blocking(move || files.open_planned(&name, &planned)).await;
        let object = object.map_err(|error| self.error(key, error))?;
        if start >= size {
            return Ok(stream::empty().boxed());
        }
        let (key, endpoint) = (key.to_owned(), shown(&self.endpoint));
        let blocks = object.blocks(start, size).map(move |block| {
            block.map_err(|error| match error {
                FileError::Changed => ObjectError::Changed { key: key.clone() },
                FileError::Missing => ObjectError::Missing { key: key.clone() },
                error => ObjectError::Unavailable { endpoint: endpoint.clone(), reason: format!("{key}: {error}") },
            })
        });
        Ok(blocks.boxed())
    }
}
