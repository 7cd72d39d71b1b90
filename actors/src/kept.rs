//! Chunks that a scan has read and nobody has loaded, or copied, yet: kept for the workers and the publish of the scan's own
//! node, so that an object is read once where one node does all the work (`docs/decisions.md`, "The object is read once").
//!
//! What is kept is a shortcut, and nothing depends on it: a chunk that is not here is read from the storage. Memory is
//! bounded for the node and for each import; an import that finds no room keeps nothing, and is scanned as if this were not
//! there. It ends with its owner's run, whatever becomes of that.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use longshore_domain::{Attempt, ChunkIndex, ImportId, Problem};
use longshore_storage::bus::ChunkJob;
use longshore_storage::database::NewChunk;

use crate::patience::{Gave, Patience};
use crate::planner::LARGEST_CHUNK;
use crate::services::NodeSettings;

/// What is kept on a node. Cheap to clone.
#[derive(Clone)]
pub struct Kept {
    /// Bytes that are not promised to an import.
    room: Arc<Semaphore>,
    /// Of these, one import may have.
    largest_share: u32,
    imports: Arc<Mutex<HashMap<ImportId, Weak<Share>>>>,
    /// Publishes that may read their chunks again at the same time.
    publishes: Arc<Semaphore>,
    /// And those that may do so while their import is loaded.
    ahead: Arc<Semaphore>,
}

/// How long a scan waits for a publish that copies what is kept.
const COPY_PATIENCE: Duration = Duration::from_secs(1);
/// Publishes of a node that begin ahead, at once.
const AHEAD_AT_ONCE: usize = 1;

impl Kept {
    /// A chunk for each worker of a node, and two more.
    #[must_use]
    pub fn of(settings: &NodeSettings) -> Self {
        let chunk = settings.chunk_size.unwrap_or(0).max(LARGEST_CHUNK);
        Self::new(chunk.saturating_mul(settings.workers.get() as u64 + 2), settings.workers.get())
    }

    /// At most so many bytes, and of these three quarters for one import: a large one leaves room for small ones. `publishes`
    /// may read chunks again at the same time.
    #[must_use]
    pub fn new(bytes: u64, publishes: usize) -> Self {
        let bytes = permits(bytes);
        Self {
            room: Arc::new(Semaphore::new(bytes as usize)),
            largest_share: bytes / 4 * 3,
            imports: Arc::default(),
            publishes: Arc::new(Semaphore::new(publishes)),
            ahead: Arc::new(Semaphore::new(AHEAD_AT_ONCE)),
        }
    }

    /// Waits until one more publish may read its chunks again.
    pub(crate) async fn publish(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.publishes).acquire_owned().await.ok()
    }

    /// Whether one more publish may begin ahead, just now.
    pub(crate) fn ahead(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.ahead).try_acquire_owned().ok()
    }

    /// Room for an import that is being scanned: all of its object, or the largest share. `None`: there is none. What will be
    /// read `again` stays, where there is room for all of it.
    pub(crate) fn share(
        &self,
        import: ImportId,
        attempt: Attempt,
        etag: &str,
        size: u64,
        again: bool,
    ) -> Option<Arc<Share>> {
        let bytes = permits(size).min(self.largest_share);
        let reserved = Arc::clone(&self.room).try_acquire_many_owned(bytes).ok()?;
        let share = Arc::new(Share {
            attempt,
            etag: etag.to_owned(),
            stays: again && u64::from(bytes) == size,
            bytes,
            room: Arc::new(Semaphore::new(bytes as usize)),
            others: CancellationToken::new(),
            chunks: Mutex::default(),
            _reserved: reserved,
        });
        let mut imports = locked(&self.imports);
        imports.retain(|_, share| share.strong_count() > 0);
        imports.insert(import, Arc::downgrade(&share));
        Some(share)
    }

    /// Takes a chunk's bytes, if they are here.
    pub(crate) fn take(&self, job: &ChunkJob, chunk: &NewChunk, etag: &str) -> Option<Bytes> {
        let share = locked(&self.imports).get(&job.import)?.upgrade()?;
        if share.attempt != job.attempt || share.etag != etag {
            return None;
        }
        let bytes = share.look(chunk);
        share.forget(job.chunk);
        bytes
    }
}

/// What is kept of one import.
pub(crate) struct Share {
    attempt: Attempt,
    etag: String,
    /// Whether chunks stay when they are loaded.
    stays: bool,
    bytes: u32,
    room: Arc<Semaphore>,
    /// Cancelled once other nodes are known to work on the import.
    others: CancellationToken,
    chunks: Mutex<Chunks>,
    _reserved: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Chunks {
    /// Whether a publish that began ahead copies them behind their workers.
    held: bool,
    kept: BTreeMap<ChunkIndex, Entry>,
}

/// Where it starts, what it holds, whether only a publish still wants it, and the room that it takes.
struct Entry {
    start: u64,
    bytes: Bytes,
    loaded: bool,
    _room: OwnedSemaphorePermit,
}

impl Share {
    /// Keeps a chunk, as soon as there is room: a scan runs no further ahead of the workers than that. Once other nodes work on
    /// the import, it runs ahead as it can, for them to have work, and keeps what there is room for.
    pub(crate) async fn keep(&self, chunk: &NewChunk, bytes: Bytes, patience: &Patience) -> Result<(), Gave<Problem>> {
        let wanted = permits(bytes.len() as u64);
        if wanted > self.bytes {
            return Ok(());
        }
        let mut room = std::pin::pin!(Arc::clone(&self.room).acquire_many_owned(wanted));
        let room = loop {
            let held = locked(&self.chunks).held;
            tokio::select! {
                biased;
                () = patience.stopped() => return Err(Gave::Stopped),
                room = &mut room => break room.ok(),
                () = self.others.cancelled() => break None,
                // A publish that is slower than the workers makes room chunk by chunk; one that waits for a chunk does not.
                () = tokio::time::sleep(COPY_PATIENCE), if held => self.release(),
            }
        };
        if let Some(room) = room {
            let entry = Entry { start: chunk.range.start.0, bytes, loaded: false, _room: room };
            locked(&self.chunks).kept.insert(chunk.chunk, entry);
        }
        Ok(())
    }

    /// Whether [`Self::keep`] would answer at once.
    pub(crate) fn has_room(&self, bytes: &[u8]) -> bool {
        let wanted = permits(bytes.len() as u64);
        wanted > self.bytes || self.room.available_permits() >= wanted as usize
    }

    /// It is loaded: nobody here will want it, but a publish that began ahead, or where all stays until then.
    pub(crate) fn forget(&self, chunk: ChunkIndex) {
        let mut chunks = locked(&self.chunks);
        if chunks.held {
            if let Some(entry) = chunks.kept.get_mut(&chunk) {
                entry.loaded = true;
            }
        } else if !self.stays {
            chunks.kept.remove(&chunk);
        }
    }

    /// A publish that began ahead will copy what is here.
    pub(crate) fn hold(&self) {
        locked(&self.chunks).held = true;
    }

    /// It has copied a chunk.
    pub(crate) fn copied(&self, chunk: ChunkIndex) {
        let mut chunks = locked(&self.chunks);
        if chunks.held && !self.stays {
            chunks.kept.remove(&chunk);
        }
    }

    /// What is loaded is not held any more: whoever wants it reads it from the storage.
    pub(crate) fn release(&self) {
        let mut chunks = locked(&self.chunks);
        if std::mem::take(&mut chunks.held) && !self.stays {
            chunks.kept.retain(|_, entry| !entry.loaded);
        }
    }

    /// A chunk's bytes, if they are here: a chunk is what the control database says that it is.
    pub(crate) fn look(&self, chunk: &NewChunk) -> Option<Bytes> {
        let chunks = locked(&self.chunks);
        let entry = chunks.kept.get(&chunk.chunk)?;
        let same = chunk.range.start.0 == entry.start && chunk.range.len() == entry.bytes.len() as u64;
        same.then(|| entry.bytes.clone())
    }

    /// Whether all that is kept is here until the publish.
    pub(crate) fn stays(&self) -> bool {
        self.stays
    }

    /// Other nodes work on the import.
    pub(crate) fn tell_of_others(&self) {
        self.others.cancel();
    }

    /// Whether they do, as far as is known.
    pub(crate) fn knows_of_others(&self) -> bool {
        self.others.is_cancelled()
    }
}

fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// No lock is held where anything can panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_domain::{ByteRange, Epoch, LineNumber, RowNumber};

    fn chunk(n: u32) -> NewChunk {
        let start = u64::from(n) * 10;
        NewChunk {
            chunk: ChunkIndex(n),
            range: ByteRange::new(start, start + 10),
            first_row: RowNumber(1),
            first_line: LineNumber(1),
            next_line: LineNumber(1),
            rows: 1,
            oversized: false,
            text: None,
        }
    }

    fn patience() -> Patience {
        Patience::new(CancellationToken::new(), Duration::from_secs(1))
    }

    fn ten(n: u32) -> Bytes {
        Bytes::from(vec![n as u8; 10])
    }

    struct Import {
        id: ImportId,
        share: Arc<Share>,
    }

    impl Import {
        fn of(kept: &Kept, size: u64) -> Option<Self> {
            let id = ImportId::generate();
            Some(Self { id, share: kept.share(id, Attempt(1), "e", size, false)? })
        }

        fn job(&self, n: u32) -> ChunkJob {
            ChunkJob { import: self.id, attempt: Attempt(1), epoch: Epoch(1), chunk: ChunkIndex(n) }
        }
    }

    #[tokio::test]
    async fn a_chunk_is_taken_once_and_only_as_what_it_is() {
        let kept = Kept::new(100, 1);
        let import = Import::of(&kept, 50).unwrap();
        for n in 0..4 {
            import.share.keep(&chunk(n), ten(n), &patience()).await.unwrap();
        }
        assert_eq!(kept.take(&import.job(0), &chunk(0), "e"), Some(ten(0)));
        assert_eq!(kept.take(&import.job(0), &chunk(0), "e"), None);
        assert_eq!(kept.take(&import.job(1), &chunk(1), "another"), None, "another object");
        let later = ChunkJob { attempt: Attempt(2), ..import.job(1) };
        assert_eq!(kept.take(&later, &chunk(1), "e"), None, "another attempt");
        let shorter = NewChunk { range: ByteRange::new(10, 15), ..chunk(1) };
        assert_eq!(kept.take(&import.job(1), &shorter, "e"), None, "another range");
        let elsewhere = NewChunk { range: ByteRange::new(21, 31), ..chunk(2) };
        assert_eq!(kept.take(&import.job(2), &elsewhere, "e"), None, "another range");
        let job = import.job(3);
        drop(import);
        assert_eq!(kept.take(&job, &chunk(3), "e"), None, "its import's run is over");
    }

    #[tokio::test]
    async fn a_scan_waits_for_room_until_others_work_too() {
        let kept = Kept::new(40, 1);
        let import = Import::of(&kept, 1_000).unwrap();
        let patience = patience();
        for n in 0..3 {
            import.share.keep(&chunk(n), ten(n), &patience).await.unwrap();
        }
        let (third, fourth) = (chunk(3), chunk(4));
        let mut waiting = std::pin::pin!(import.share.keep(&third, ten(3), &patience));
        assert!(futures::poll!(&mut waiting).is_pending());
        kept.take(&import.job(1), &chunk(1), "e").unwrap();
        waiting.await.unwrap();
        let mut waiting = std::pin::pin!(import.share.keep(&fourth, ten(4), &patience));
        assert!(futures::poll!(&mut waiting).is_pending());
        import.share.tell_of_others();
        waiting.await.unwrap();
        assert_eq!(kept.take(&import.job(4), &chunk(4), "e"), None, "there was no room for it");
        import.share.keep(&fourth, ten(4), &patience).await.unwrap();
        assert_eq!(kept.take(&import.job(4), &chunk(4), "e"), None, "and nobody waited for it");
        import.share.forget(ChunkIndex(0));
        import.share.keep(&fourth, ten(4), &patience).await.unwrap();
        assert_eq!(kept.take(&import.job(4), &chunk(4), "e"), Some(ten(4)));
        patience.stop();
        assert!(matches!(import.share.keep(&fourth, ten(4), &patience).await, Err(Gave::Stopped)));
    }

    #[tokio::test]
    async fn what_is_read_again_stays_where_there_is_room_for_all_of_it() {
        let kept = Kept::new(40, 1);
        for (size, stays) in [(20, true), (1_000, false)] {
            let id = ImportId::generate();
            let share = kept.share(id, Attempt(1), "e", size, true).unwrap();
            assert_eq!(share.stays(), stays);
            share.keep(&chunk(0), ten(0), &patience()).await.unwrap();
            let job = ChunkJob { import: id, attempt: Attempt(1), epoch: Epoch(1), chunk: ChunkIndex(0) };
            assert_eq!(kept.take(&job, &chunk(0), "e"), Some(ten(0)));
            share.forget(ChunkIndex(0));
            assert_eq!(share.look(&chunk(0)), stays.then(|| ten(0)));
        }
    }

    #[tokio::test]
    async fn what_a_publish_copies_is_held_until_it_did() {
        let kept = Kept::new(40, 1);
        let import = Import::of(&kept, 1_000).unwrap();
        import.share.hold();
        for n in 0..3 {
            import.share.keep(&chunk(n), ten(n), &patience()).await.unwrap();
            assert_eq!(kept.take(&import.job(n), &chunk(n), "e"), Some(ten(n)));
            import.share.forget(ChunkIndex(n));
            assert_eq!(import.share.look(&chunk(n)), Some(ten(n)));
        }
        let (third, patience) = (chunk(3), patience());
        let mut waiting = std::pin::pin!(import.share.keep(&third, ten(3), &patience));
        assert!(futures::poll!(&mut waiting).is_pending());
        import.share.copied(ChunkIndex(0));
        waiting.await.unwrap();
        assert_eq!(import.share.look(&chunk(0)), None);
        import.share.release();
        assert_eq!(import.share.look(&chunk(1)), None, "it was loaded");
        assert_eq!(kept.take(&import.job(3), &chunk(3), "e"), Some(ten(3)), "it was not");
        assert_eq!(import.share.look(&chunk(3)), None, "nothing is held any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_scan_does_not_wait_for_a_publish_that_does_not_copy() {
        let kept = Kept::new(40, 1);
        let import = Import::of(&kept, 1_000).unwrap();
        import.share.hold();
        for n in 0..3 {
            import.share.keep(&chunk(n), ten(n), &patience()).await.unwrap();
        }
        for n in 0..2 {
            kept.take(&import.job(n), &chunk(n), "e").unwrap();
        }
        for n in 3..5 {
            import.share.keep(&chunk(n), ten(n), &patience()).await.unwrap();
        }
        let there: Vec<u32> = (0..5).filter(|n| import.share.look(&chunk(*n)).is_some()).collect();
        assert_eq!(there, [2, 3, 4]);
    }

    #[test]
    fn large_imports_leave_room_for_small_ones() {
        let kept = Kept::new(40, 1);
        let large = Import::of(&kept, 1 << 40).unwrap();
        assert!(Import::of(&kept, 1 << 40).is_none(), "there is no room for two");
        let small = Import::of(&kept, 10).unwrap();
        assert!(Import::of(&kept, 1).is_none());
        drop(small);
        assert!(Import::of(&kept, 10).is_some());
        drop(large);
        assert!(Import::of(&kept, 1 << 40).is_some());
    }

    #[tokio::test]
    async fn a_chunk_that_never_fits_is_not_waited_for() {
        let kept = Kept::new(12, 1);
        let import = Import::of(&kept, 1_000).unwrap();
        import.share.keep(&chunk(0), ten(0), &patience()).await.unwrap();
        assert_eq!(kept.take(&import.job(0), &chunk(0), "e"), None);
    }
}
