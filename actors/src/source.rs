//! An import's chunks for its publish: read once more where they wait in the object, and the raw records of rows that the
//! destination refused.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use tokio_util::sync::CancellationToken;

use longshore_domain::{LineNumber, LoadPlan, RowNumber};
use longshore_parse::{Batch, ChunkEnd, find_records};
use longshore_storage::database::{ChunkRecord, ImportRecord, NewChunk};
use longshore_storage::destination::{ChunkRows, ChunkSource, DestinationError, RecordLookup};
use longshore_storage::objects::ObjectError;
use longshore_telemetry::metrics;

use crate::chunk::{chunk_input, object_problem, place_of, read_rows};
use crate::kept::Share;
use crate::patience::{Gave, Patience, patiently};
use crate::services::Services;

/// How long a read is tried again. It stands within the publish's transaction, so it is short: the owner tries the whole
/// publish again.
const READ_PATIENCE: Duration = Duration::from_secs(10);

/// The chunks of an attempt, in order.
pub struct ObjectSource {
    services: Services,
    key: String,
    etag: String,
    plan: Arc<LoadPlan>,
    chunks: Vec<ChunkRecord>,
    /// What is at hand of the object.
    share: Option<Arc<Share>>,
}

impl ObjectSource {
    /// A source of an import's chunks.
    pub(crate) fn new(
        services: &Services,
        record: &ImportRecord,
        plan: LoadPlan,
        chunks: Vec<ChunkRecord>,
        share: Option<Arc<Share>>,
    ) -> Self {
        Self {
            services: services.clone(),
            key: record.object_key.clone(),
            etag: record.etag.clone().unwrap_or_default(),
            plan: Arc::new(plan),
            chunks,
            share,
        }
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
        for chunk in &self.chunks {
            let behind = chunk.planned.first_row.0 + chunk.planned.rows;
            let (here, later) = rest.split_at(rest.partition_point(|row| row.0 < behind));
            rest = later;
            if here.is_empty() {
                continue;
            }
            let bytes = self.bytes(&chunk.planned).await?;
            found.extend(find_records(&self.plan, chunk_input(&bytes, &chunk.planned), here));
        }
        Ok(found)
    }
}

impl ChunkSource for ObjectSource {
    fn chunks(&self) -> BoxStream<'_, Result<Arc<dyn ChunkRows>, DestinationError>> {
        let read = move |chunk: &NewChunk| {
            let chunk = chunk.clone();
            async move {
                let bytes = self.bytes(&chunk).await?;
                Ok(Arc::new(Again { plan: Arc::clone(&self.plan), bytes, chunk }) as Arc<dyn ChunkRows>)
            }
        };
        stream::iter(&self.chunks).then(move |chunk| read(&chunk.planned)).boxed()
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
