//! Decoded text of packed or transcoded files: put into the storage in parts while the scan goes through it, so that chunks
//! are read from there by any node; and removed when nobody needs it any more.
//!
//! A file is decoded once an attempt, by its owner, and again from the start where another owner takes over: no codec can be
//! entered in the middle. Never more than a part and a chunk of it is in memory.

use std::collections::VecDeque;

use bytes::Bytes;

use longshore_domain::{ByteRange, ImportId, Problem};
use longshore_storage::database::{DatabaseError, DecodedText, NewChunk, TextPart};
use longshore_storage::failure::Failure as _;
use longshore_storage::objects::ObjectError;
use longshore_storage::start::decoded_text_key;

use crate::chunk::{OVERSIZED_SAMPLE, object_problem};
use crate::patience::{Gave, Patience, patiently};
use crate::planner::problem;
use crate::scan::Piece;
use crate::services::Services;

/// A part is put once it has so many bytes, or so many chunks.
const PART_BYTES: usize = 8 << 20;
const PART_CHUNKS: usize = 4096;

/// Stale parts that are read at once.
const STALE_AT_ONCE: u64 = 100;

/// The text between what was cut into chunks and what was decoded.
#[derive(Default)]
pub struct Pending {
    /// Blocks, ascending. A gap between two is the middle of a record that became too long.
    blocks: VecDeque<Block>,
    /// What of the object the text up to each place needed.
    marks: VecDeque<(u64, u64)>,
}

struct Block {
    /// Its place in the text.
    at: u64,
    bytes: Bytes,
    /// What it takes in memory, however little of it is left.
    whole: usize,
}

impl Pending {
    /// The next text, from place `at` on; `consumed` bytes of the object gave all of it so far.
    pub fn push(&mut self, at: u64, bytes: Bytes, consumed: u64) {
        self.marks.push_back((at + bytes.len() as u64, consumed));
        self.blocks.push_back(Block { at, whole: bytes.len(), bytes });
    }

    /// The next text, behind place `known`, in a block that begins at place `at` and repeats some text before it: where that is
    /// all that was not taken yet, it is in one block again.
    pub fn repeat(&mut self, at: u64, bytes: &Bytes, known: u64) {
        let start = match self.blocks.front().map(|block| block.at) {
            Some(first) if first < at => known,
            first => {
                *self = Self::default();
                first.unwrap_or(known)
            }
        };
        self.push(start, bytes.slice((start - at) as usize..), 0);
    }

    /// Forgets the middle of a record that begins at `from` and is longer than any may be: of it, only the beginning is read.
    pub fn forget_behind(&mut self, from: u64) {
        let keep = from + OVERSIZED_SAMPLE;
        while self.blocks.back().is_some_and(|block| block.at >= keep) {
            self.blocks.pop_back();
        }
        if let Some(Block { at, bytes, .. }) = self.blocks.back_mut() {
            bytes.truncate((keep - *at) as usize);
        }
    }

    /// Takes a chunk's text, which begins where the last one ended; of an oversized one the beginning. Gives what of the
    /// object was needed up to its end, too. What makes up most of one block is a part of it, and no copy.
    pub fn take(&mut self, range: ByteRange, oversized: bool) -> (Bytes, u64) {
        let end = range.end.0;
        let most = if oversized { OVERSIZED_SAMPLE } else { range.len() } as usize;
        if let Some(Block { at, bytes, whole }) = self.blocks.front_mut()
            && let length = range.len() as usize
            && end.checked_sub(*at) == Some(range.len())
            && length <= bytes.len()
            && (*whole / 2..=most).contains(&length)
        {
            *at = end;
            let text = bytes.split_to(length);
            if bytes.is_empty() {
                self.blocks.pop_front();
            }
            return (text, self.consumed_at(end));
        }
        let mut text = Vec::with_capacity(most.min(range.len() as usize));
        while let Some(Block { at, bytes, .. }) = self.blocks.front_mut().filter(|block| block.at < end) {
            let here = bytes.split_to(((end - *at) as usize).min(bytes.len()));
            *at += here.len() as u64;
            text.extend_from_slice(&here[..here.len().min(most - text.len())]);
            if bytes.is_empty() {
                self.blocks.pop_front();
            }
        }
        (text.into(), self.consumed_at(end))
    }

    fn consumed_at(&mut self, end: u64) -> u64 {
        while self.marks.len() > 1 && self.marks.front().is_some_and(|(text, _)| *text < end) {
            self.marks.pop_front();
        }
        self.marks.front().map_or(0, |(_, consumed)| *consumed)
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.bytes.len()).sum()
    }
}

/// Puts parts and says where each chunk's text is.
pub struct Spool {
    /// The next part; its number is its own under this owner.
    next: TextPart,
    text: Vec<u8>,
    chunks: Vec<NewChunk>,
    /// The object's bytes that chunks counted so far.
    counted: u64,
}

impl Spool {
    /// Nothing put yet. `counted`: the object's bytes that stored chunks count.
    #[must_use]
    pub fn new(first: TextPart, counted: u64) -> Self {
        Self { next: first, text: Vec::new(), chunks: Vec::new(), counted }
    }

    /// Adds what was cut.
    pub(crate) fn extend(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            self.add(piece.chunk, &piece.bytes, piece.consumed);
        }
    }

    /// Adds a chunk. `consumed`: what of the object was needed up to its end.
    fn add(&mut self, chunk: NewChunk, text: &[u8], consumed: u64) {
        let start = self.text.len() as u64;
        self.text.extend_from_slice(text);
        let object_bytes = consumed.saturating_sub(self.counted);
        self.counted += object_bytes;
        let range = ByteRange::new(start, self.text.len() as u64);
        // Key and ETag are the part's, known once it is put.
        let text = DecodedText { key: String::new(), etag: String::new(), range, object_bytes };
        self.chunks.push(NewChunk { text: Some(text), ..chunk });
    }

    /// The text has ended: the last chunk counts what is left of the object.
    pub fn close(&mut self, size: u64) {
        let left = size.saturating_sub(self.counted);
        if let Some(text) = self.chunks.last_mut().and_then(|chunk| chunk.text.as_mut()) {
            text.object_bytes += left;
            self.counted = size;
        }
    }

    /// Whether what was added is worth a part.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.text.len() >= PART_BYTES || self.chunks.len() >= PART_CHUNKS
    }

    /// Puts what was added as a part, recorded before; the chunks, with where their text is.
    ///
    /// # Errors
    /// [`Gave::Stopped`] where the import has another owner.
    pub async fn put(&mut self, services: &Services, patience: &Patience) -> Result<Vec<NewChunk>, Gave<Problem>> {
        if self.chunks.is_empty() {
            return Ok(Vec::new());
        }
        let (part, key) = (self.next, decoded_text_key(self.next));
        self.next.part += 1;
        let announce = || services.database.announce_text_part(part);
        let announced = patiently(patience, "record a part of decoded text", announce).await;
        if !announced.map_err(|gave| problem(gave, crate::owner::internal))? {
            return Err(Gave::Stopped);
        }
        let bytes = Bytes::from(std::mem::take(&mut self.text));
        let put = || services.objects.put(&key, bytes.clone());
        let etag = patiently(patience, "put decoded text", put).await;
        let etag = etag.map_err(|gave| problem(gave, |error| object_problem(&error)))?;
        let mut chunks = std::mem::take(&mut self.chunks);
        for text in chunks.iter_mut().filter_map(|chunk| chunk.text.as_mut()) {
            text.key.clone_from(&key);
            text.etag.clone_from(&etag);
        }
        Ok(chunks)
    }
}

/// Why stale text was not removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// The control database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The object storage.
    #[error(transparent)]
    Objects(#[from] ObjectError),
}

/// Removes decoded text that nobody needs any more: of one import, or of all. May run anywhere, twice, at once: a part that
/// is gone already is no error.
///
/// # Errors
/// [`CleanError`]: the next sweep tries again.
pub async fn remove_stale(services: &Services, import: Option<ImportId>) -> Result<(), CleanError> {
    loop {
        let stale = services.database.stale_text_parts(import, STALE_AT_ONCE).await?;
        for part in &stale {
            services.objects.delete(&decoded_text_key(*part)).await?;
            services.database.forget_text_part(*part).await?;
        }
        if (stale.len() as u64) < STALE_AT_ONCE {
            return Ok(());
        }
    }
}

/// [`remove_stale`], where a failure is left to the next sweep.
pub async fn remove_or_leave(services: &Services, import: Option<ImportId>) {
    match remove_stale(services, import).await {
        Ok(()) => {}
        Err(CleanError::Database(error)) => {
            error.count();
            tracing::warn!(%error, "decoded text was not removed; the next sweep tries again");
        }
        Err(CleanError::Objects(error)) => {
            error.count();
            tracing::warn!(%error, "decoded text was not removed; the next sweep tries again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_domain::{Attempt, ChunkIndex, Epoch, LineNumber, RowNumber};

    #[test]
    fn chunks_take_their_text_and_count_what_it_cost() {
        let mut pending = Pending::default();
        pending.push(0, Bytes::from_static(b"id\n1\n2"), 10);
        pending.push(6, Bytes::from_static(b"\n3\n"), 25);
        assert_eq!(pending.take(ByteRange::new(0, 5), false), (Bytes::from_static(b"id\n1\n"), 10));
        assert_eq!(pending.take(ByteRange::new(5, 7), false), (Bytes::from_static(b"2\n"), 25));
        assert_eq!(pending.take(ByteRange::new(7, 9), false), (Bytes::from_static(b"3\n"), 25));
        assert_eq!(pending.bytes(), 0);
    }

    #[test]
    fn blocks_that_repeat_text_give_each_chunk_as_a_part_of_one() {
        let text: Bytes = (0..=255).cycle().take(4_000).collect();
        // Chunks end up to 20 behind multiples of 1000, where the pieces begin; or not at all before the next piece.
        for ends in [[1_000, 2_000, 3_000, 4_000], [1_020, 2_020, 3_007, 4_000], [1_019, 2_500, 3_020, 4_000]] {
            let (mut pending, mut known, mut taken) = (Pending::default(), 0, 0);
            let mut ends = ends.into_iter().peekable();
            for at in (0..4_000).step_by(1_000) {
                let piece = text.slice(at as usize..(at as usize + 1_020).min(text.len()));
                let last = at + piece.len() as u64;
                pending.repeat(at, &piece, known);
                known = last;
                while let Some(end) = ends.next_if(|end| *end <= last) {
                    let (chunk, _) = pending.take(ByteRange::new(taken, end), false);
                    assert_eq!(chunk, text[taken as usize..end as usize], "{taken} to {end}");
                    let place = chunk.as_ptr() as usize;
                    let within = (piece.as_ptr() as usize..piece.as_ptr() as usize + piece.len()).contains(&place);
                    assert_eq!(within, taken >= at, "{taken} to {end} is a part of the piece at {at}");
                    taken = end;
                }
            }
            assert_eq!((taken, pending.bytes()), (4_000, 0));
        }
    }

    #[test]
    fn of_a_record_that_is_too_long_only_the_beginning_is_kept() {
        let sample = OVERSIZED_SAMPLE;
        let mut pending = Pending::default();
        pending.push(0, Bytes::from_static(b"a\n"), 1);
        let mut at = 2;
        // Two of them, one behind the other, before any chunk is cut.
        let mut ends = Vec::new();
        for record in [b'x', b'y'] {
            let start = at;
            for _ in 0..100 {
                pending.push(at, Bytes::from(vec![record; sample as usize - 1]), at);
                at += sample - 1;
                pending.forget_behind(start);
            }
            pending.push(at, Bytes::from_static(b"z\n"), at);
            at += 2;
            ends.push(at);
        }
        pending.push(at, Bytes::from_static(b"b\n"), at + 7);
        assert!(pending.bytes() < 3 * sample as usize, "{}", pending.bytes());
        assert_eq!(pending.take(ByteRange::new(0, 2), false), (Bytes::from_static(b"a\n"), 1));
        let (text, _) = pending.take(ByteRange::new(2, ends[0]), true);
        assert_eq!(text, vec![b'x'; sample as usize]);
        let (text, _) = pending.take(ByteRange::new(ends[0], ends[1]), true);
        assert_eq!(text, vec![b'y'; sample as usize]);
        assert_eq!(pending.take(ByteRange::new(at, at + 2), false), (Bytes::from_static(b"b\n"), at + 7));
    }

    #[test]
    fn chunks_count_the_whole_object() {
        let part = TextPart { import: ImportId::generate(), attempt: Attempt(1), epoch: Epoch(1), part: 0 };
        let chunk = |n: u32| NewChunk {
            chunk: ChunkIndex(n),
            range: ByteRange::new(u64::from(n) * 2, u64::from(n) * 2 + 2),
            first_row: RowNumber(1),
            first_line: LineNumber(1),
            next_line: LineNumber(1),
            rows: 1,
            oversized: false,
            text: None,
        };
        let mut spool = Spool::new(part, 0);
        spool.add(chunk(0), b"a\n", 10);
        spool.add(chunk(1), b"b\n", 10);
        spool.close(33);
        let counted: Vec<u64> = spool.chunks.iter().map(NewChunk::object_bytes).collect();
        assert_eq!(counted, [10, 23]);
    }
}
