//! An import's chunks for its publish: read once more where they wait in the object, and the raw records of rows that the
//! destination refused.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use longshore_domain::{LineNumber, LoadPlan, RowNumber};
use longshore_parse::{Batch, ChunkEnd, find_records};
use longshore_storage::database::{ImportRecord, NewChunk};
use longshore_storage::destination::{ChunkRows, ChunkSource, DestinationError, Planned, RecordLookup};
use longshore_storage::objects::ObjectError;
use longshore_telemetry::metrics;

use crate::chunk::{chunk_input, object_problem, place_of, read_rows};
use crate::kept::Share;
use crate::patience::{Gave, Patience, patiently};
use crate::services::Services;

/// How long a read is tried again. It stands within the publish's transaction, so it is short: the owner tries the whole
/// publish again.
const READ_PATIENCE: Duration = Duration::from_secs(10);
/// How long a publish that began ahead waits for its next chunk, with a transaction open: then it begins again behind the last.
const CHUNK_PATIENCE: Duration = Duration::from_secs(10);

/// What is known of an attempt's chunks.
#[derive(Default)]
pub(crate) struct Known {
    /// Those that are committed, from the first without a gap.
    pub chunks: Vec<NewChunk>,
    /// Once these are all, and the import may be published.
    pub planned: Option<Planned>,
}

/// The chunks of an attempt, in order, as far as they are known.
pub struct ObjectSource {
    services: Services,
    key: String,
    etag: String,
    plan: Arc<LoadPlan>,
    known: watch::Receiver<Known>,
    /// What is at hand of the object.
    share: Option<Arc<Share>>,
}

impl ObjectSource {
    /// A source of an import's chunks.
    pub(crate) fn new(
        services: &Services,
        record: &ImportRecord,
        plan: LoadPlan,
        known: watch::Receiver<Known>,
        share: Option<Arc<Share>>,
    ) -> Self {
        Self {
            services: services.clone(),
            key: record.object_key.clone(),
            etag: record.etag.clone().unwrap_or_default(),
            plan: Arc::new(plan),
            known,
            share,
        }
    }

    /// Waits until something is known.
    async fn wait_for<T>(&self, look: impl Fn(&Known) -> Option<T>) -> Result<T, DestinationError> {
        let mut known = self.known.clone();
        let wait = async {
            loop {
                let found = look(&known.borrow_and_update());
                if found.is_some() || known.changed().await.is_err() {
                    return found;
                }
            }
        };
        let found = tokio::time::timeout(CHUNK_PATIENCE, wait).await.ok().flatten();
        found.ok_or_else(|| DestinationError::Unavailable { reason: "no further chunk was loaded in time".to_owned() })
    }

    async fn bytes(&self, chunk: &NewChunk) -> Result<Bytes, DestinationError> {
        if let Some(bytes) = self.share.as_ref().and_then(|share| share.look(chunk)) {
            return Ok(bytes);
        }
        let (key, range, etag) = place_of(chunk, &self.key, &self.etag);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        // It ends with the publish.
        let patience = Patience::new(CancellationToken::new(), READ_PATIENCE);
        let get = || self.services.objects.get_range(key, range, etag);
        let bytes = match patiently(&patience, "read a chunk again", get).await {
            Ok(bytes) => bytes,
            Err(Gave::Stopped) => return Err(DestinationError::Unavailable { reason: "stopped".to_owned() }),
            Err(Gave::Up(error)) => {
                return Err(match error {
                    ObjectError::Missing { .. } | ObjectError::Changed { .. } if chunk.text.is_some() => {
                        DestinationError::StagingLost { reason: error.to_string() }
                    }
                    ObjectError::Missing { .. } | ObjectError::Changed { .. } => {
                        DestinationError::Refused(object_problem(&error))
                    }
                    error => DestinationError::Unavailable { reason: format!("its object cannot be read: {error}") },
                });
            }
        };
        metrics().bytes_fetched(bytes.len() as u64);
        Ok(bytes)
    }
}

#[async_trait]
impl RecordLookup for ObjectSource {
    async fn find(&self, rows: &[RowNumber]) -> Result<Vec<(RowNumber, LineNumber, Vec<u8>)>, DestinationError> {
        let mut rows = rows.to_vec();
        rows.sort_unstable();
        let mut found = Vec::with_capacity(rows.len());
        let mut rest = rows.as_slice();
        let chunks = self.known.borrow().chunks.clone();
        for chunk in &chunks {
            let behind = chunk.first_row.0 + chunk.rows;
            let (here, later) = rest.split_at(rest.partition_point(|row| row.0 < behind));
            rest = later;
            if here.is_empty() {
                continue;
            }
            let bytes = self.bytes(chunk).await?;
            found.extend(find_records(&self.plan, chunk_input(&bytes, chunk), here));
        }
        Ok(found)
    }
}

#[async_trait]
impl ChunkSource for ObjectSource {
    fn chunks(&self) -> BoxStream<'_, Result<Arc<dyn ChunkRows>, DestinationError>> {
        let next = move |at: usize| async move {
            let look = |known: &Known| match known.chunks.get(at) {
                Some(chunk) => Some(Some(chunk.clone())),
                None => known.planned.map(|_| None),
            };
            let Some(chunk) = self.wait_for(look).await? else { return Ok(None) };
            let bytes = self.bytes(&chunk).await?;
            if let Some(share) = &self.share {
                share.copied(chunk.chunk);
            }
            let rows = Arc::new(Again { plan: Arc::clone(&self.plan), bytes, chunk }) as Arc<dyn ChunkRows>;
            Ok(Some((rows, at + 1)))
        };
        stream::try_unfold(0, next).boxed()
    }

    async fn planned(&self) -> Result<Planned, DestinationError> {
        self.wait_for(|known| known.planned).await
    }
}

/// A chunk that was read before.
struct Again {
    plan: Arc<LoadPlan>,
    bytes: Bytes,
    chunk: NewChunk,
}

impl ChunkRows for Again {
    fn read(&self, sink: &mut dyn FnMut(Batch) -> bool) -> Option<ChunkEnd> {
        read_rows(&self.plan, &self.bytes, &self.chunk, sink)
    }
}
