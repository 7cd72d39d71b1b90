//! An object storage that is slow, away, and whose objects change.

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use longshore_domain::ByteRange;
use longshore_storage::objects::{ObjectError, ObjectHead, ObjectStore, PresignedPut, PutTerms};
use rand::RngExt as _;

use crate::world::{Link, Lost, Server, State};

/// The bucket.
pub const BUCKET: &str = "imports";

impl From<Lost> for ObjectError {
    fn from(lost: Lost) -> Self {
        Self::Unavailable { endpoint: "simulated".to_owned(), reason: lost.0.to_owned() }
    }
}

/// The storage as one process knows it.
pub struct SimObjects(pub Link);

impl SimObjects {
    async fn read(&self, key: &str, range: ByteRange, etag: &str) -> Result<Bytes, ObjectError> {
        let get = |state: &mut State| {
            let object = state.objects.get(key).ok_or_else(|| ObjectError::Missing { key: key.to_owned() })?;
            if object.etag != etag {
                return Err(ObjectError::Changed { key: key.to_owned() });
            }
            let bytes = &object.bytes[range.start.0 as usize..range.end.0 as usize];
            Ok(Bytes::copy_from_slice(bytes))
        };
        self.0.call(Server::Objects, &format!("gets {key} {}..{}", range.start, range.end), get).await?
    }
}

#[async_trait]
impl ObjectStore for SimObjects {
    fn bucket(&self) -> &str {
        BUCKET
    }

    async fn prepare(&self) -> Result<(), ObjectError> {
        Ok(())
    }

    async fn check(&self) -> Result<(), ObjectError> {
        Ok(())
    }

    fn presign_put(&self, _: &str, _: &PutTerms) -> PresignedPut {
        unreachable!("no actor presigns")
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectHead>, ObjectError> {
        let head = |state: &mut State| {
            let object = state.objects.get(key)?;
            Some(ObjectHead { size: object.bytes.len() as u64, etag: object.etag.clone(), last_modified: None })
        };
        Ok(self.0.call(Server::Objects, &format!("looks at {key}"), head).await?)
    }

    async fn put(&self, _: &str, _: Bytes) -> Result<String, ObjectError> {
        unreachable!("only decoded text is put, and no file here is packed")
    }

    async fn delete(&self, _: &str) -> Result<(), ObjectError> {
        unreachable!("only decoded text is deleted, and no file here is packed")
    }

    async fn get_range(&self, key: &str, range: ByteRange, etag: &str) -> Result<Bytes, ObjectError> {
        self.read(key, range, etag).await
    }

    async fn read_from(
        &self,
        key: &str,
        start: u64,
        size: u64,
        etag: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, ObjectError>>, ObjectError> {
        let bytes = self.read(key, ByteRange::new(start, size), etag).await?;
        // In pieces; the stream may break between two.
        let link = self.0.clone();
        let pieces = stream::unfold(bytes, move |mut rest| {
            let link = link.clone();
            async move {
                if rest.is_empty() {
                    return None;
                }
                if let Err(lost) = link.moment(Server::Objects).await {
                    return Some((Err(lost.into()), Bytes::new()));
                }
                let length = link.world.state().random.random_range(1..=rest.len());
                let piece = rest.split_to(length);
                Some((Ok(piece), rest))
            }
        });
        Ok(pieces.boxed())
    }
}
