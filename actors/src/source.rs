//! An import's chunks for its publish: read once more where they wait in the object, and the raw records of rows that the
//! destination refused.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use longshore_domain::{ByteRange, LineNumber, LoadPlan, RowNumber};
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
/// Chunks up to so many bytes together are read and written as one: where chunks are small, each would cost the storage and
/// the destination a round trip or more of its own.
const RUN_BYTES: u64 = 4 << 20;

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

    fn place<'a>(&'a self, chunk: &'a NewChunk) -> (&'a str, ByteRange, &'a str) {
        place_of(chunk, &self.key, &self.etag)
    }

    fn kept(&self, chunk: &NewChunk) -> Option<Bytes> {
        self.share.as_ref()?.look(chunk)
    }

    /// The first of these chunks, and those that follow it in the same place, as long as they are small.
    fn run<'a>(&self, chunks: &'a [NewChunk]) -> &'a [NewChunk] {
        let piece = |chunk| (self.place(chunk), self.kept(chunk).is_some());
        &chunks[..run_length(chunks.iter().map(piece))]
    }

    /// The bytes of each chunk of a run.
    async fn bytes(&self, run: &[NewChunk]) -> Result<Vec<Bytes>, DestinationError> {
        if let Some(kept) = run.iter().map(|chunk| self.kept(chunk)).collect() {
            return Ok(kept);
        }
        let [first, ..] = run else { return Ok(Vec::new()) };
        let (key, ByteRange { start, .. }, etag) = self.place(first);
        let length: u64 = run.iter().map(|chunk| self.place(chunk).1.len()).sum();
        let mut bytes = self.read(first, key, ByteRange::new(start.0, start.0 + length), etag).await?;
        // Each begins where the one before ends.
        let piece = |chunk| bytes.split_to(bytes.len().min(self.place(chunk).1.len() as usize));
        Ok(run.iter().map(piece).collect())
    }

    async fn read(&self, chunk: &NewChunk, key: &str, range: ByteRange, etag: &str) -> Result<Bytes, DestinationError> {
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
        let behind = |chunk: &NewChunk| chunk.first_row.0 + chunk.rows;
        let has = |chunk: &&NewChunk| {
            let next = rows.partition_point(|row| row.0 < chunk.first_row.0);
            rows.get(next).is_some_and(|row| row.0 < behind(chunk))
        };
        let chunks: Vec<NewChunk> = self.known.borrow().chunks.iter().filter(has).cloned().collect();
        let (mut chunks, mut rest) = (chunks.as_slice(), rows.as_slice());
        while !chunks.is_empty() {
            let (run, later) = chunks.split_at(self.run(chunks).len());
            chunks = later;
            for (chunk, bytes) in run.iter().zip(self.bytes(run).await?) {
                let (here, later) = rest.split_at(rest.partition_point(|row| row.0 < behind(chunk)));
                rest = later;
                found.extend(find_records(&self.plan, chunk_input(&bytes, chunk), here));
            }
        }
        Ok(found)
    }
}

#[async_trait]
impl ChunkSource for ObjectSource {
    fn chunks(&self) -> BoxStream<'_, Result<Arc<dyn ChunkRows>, DestinationError>> {
        let next = move |at: usize| async move {
            let look = |known: &Known| match known.chunks.get(at..) {
                Some(chunks @ [_, ..]) => Some(self.run(chunks).to_vec()),
                _ => known.planned.map(|_| Vec::new()),
            };
            let run = self.wait_for(look).await?;
            if run.is_empty() {
                return Ok(None);
            }
            let bytes = self.bytes(&run).await?;
            if let Some(share) = &self.share {
                run.iter().for_each(|chunk| share.copied(chunk.chunk));
            }
            let behind = at + run.len();
            let rows = Again { plan: Arc::clone(&self.plan), chunks: run.into_iter().zip(bytes).collect() };
            Ok(Some((Arc::new(rows) as Arc<dyn ChunkRows>, behind)))
        };
        stream::try_unfold(0, next).boxed()
    }

    async fn planned(&self) -> Result<Planned, DestinationError> {
        self.wait_for(|known| known.planned).await
    }
}

/// Where a chunk's bytes are in the storage, and whether they are at hand.
type Piece<'a> = ((&'a str, ByteRange, &'a str), bool);

/// How many pieces, from the first, follow each other without a gap and are small together; the first may be as large as it is.
fn run_length<'a>(pieces: impl Iterator<Item = Piece<'a>>) -> usize {
    let (mut bytes, mut before) = (0, None);
    let goes_on = |((key, range, etag), kept): &Piece<'a>| {
        bytes += range.len();
        let behind = before.replace((*key, *etag, *kept, range.end));
        behind.is_none_or(|behind| behind == (*key, *etag, *kept, range.start) && bytes <= RUN_BYTES)
    };
    pieces.take_while(goes_on).count()
}

/// Chunks that were read before.
struct Again {
    plan: Arc<LoadPlan>,
    chunks: Vec<(NewChunk, Bytes)>,
}

impl ChunkRows for Again {
    fn read(&self, sink: &mut dyn FnMut(Batch) -> bool) -> Option<ChunkEnd> {
        let mut all = ChunkEnd::default();
        for (chunk, bytes) in &self.chunks {
            all.append(read_rows(&self.plan, bytes, chunk, sink)?);
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_that_follow_each_other_are_read_as_one_while_they_are_small() {
        let piece = |key, start, end, kept| ((key, ByteRange::new(start, end), "etag"), kept);
        let length = |pieces: &[Piece<'_>]| run_length(pieces.iter().copied());
        assert_eq!(length(&[]), 0);
        let (first, second) = (piece("a", 0, 10, false), piece("a", 10, 30, false));
        assert_eq!(length(&[first, second, piece("a", 30, 31, false)]), 3);
        for other in [piece("a", 31, 40, false), piece("b", 30, 40, false), piece("a", 30, 40, true)] {
            assert_eq!(length(&[first, second, other]), 2, "{other:?}");
        }
        assert_eq!(length(&[first, (("a", ByteRange::new(10, 20), "another"), false)]), 1);
        assert_eq!(length(&[first, piece("a", 10, RUN_BYTES, false), piece("a", RUN_BYTES, RUN_BYTES + 1, false)]), 2);
        assert_eq!(
            length(&[piece("a", 0, RUN_BYTES * 9, false), piece("a", RUN_BYTES * 9, RUN_BYTES * 9 + 1, false)]),
            1
        );
    }
}
