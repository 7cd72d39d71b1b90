//! The scan: goes once through the object with the exact state machine and hands over chunks as it finds them, so that
//! workers start while it still reads. What it read is kept for this node's workers ([`crate::kept`]) as long as they are the
//! only ones known; where others work on a large object too, its rest is scanned range by range on all nodes ([`crate::ranges`]).
//! Run by the import's owner as a task; the channel between them is bounded, so the scan never runs far ahead of what is stored.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use longshore_domain::{ByteOffset, ByteRange, ChunkIndex, LineNumber, LoadPlan, Problem, ProblemKind, RowNumber};
use longshore_parse::{ChunkPlanner, Limits, PlanStart, PlannedChunk};
use longshore_storage::database::{NewChunk, TextPart};
use longshore_storage::destination::Ticket;
use longshore_storage::objects::ObjectError;
use longshore_storage::objects::text::{Decoding, TextError, TextReader};
use longshore_telemetry::{Step, metrics, timed};

use crate::chunk::object_problem;
use crate::kept::Share;
use crate::patience::{Gave, Patience, Tries, patiently};
use crate::planner::problem;
use crate::ranges::{Ranges, dialect};
use crate::services::Services;
use crate::text::{Pending, Spool};

/// Batches that may wait to be stored.
pub const SCAN_AHEAD: usize = 8;

/// Of an object whose chunks are kept, at least and at most so many bytes are read at once.
const SMALLEST_PIECE: u64 = 1024 * 1024;
const LARGEST_PIECE: u64 = 8 * 1024 * 1024;
/// Where pieces are as long as chunks, each ends this part of its length behind the place from which on a chunk ends, and the
/// next one begins at that place again: a chunk is known once a record behind it has ended. So it need not wait for the next
/// piece, and is a part of one piece, not a copy.
const BEHIND_CHUNK: u64 = 128;

/// The planner is fed so many bytes at once.
const FED_AT_ONCE: usize = 1024 * 1024;

/// What the scan says.
#[derive(Debug)]
pub enum ScanMessage {
    /// These chunks come next; `end`: the last one ends with the object.
    Planned {
        /// In order, perhaps none.
        chunks: Vec<NewChunk>,
        /// Whether the scan is over.
        end: bool,
    },
    /// The object cannot be scanned, and never can.
    Failed(Problem),
}

/// What to scan, and from where.
pub struct Scan {
    /// The object.
    pub key: String,
    /// The object's ETag.
    pub etag: String,
    /// The object's size.
    pub size: u64,
    /// The plan.
    pub plan: LoadPlan,
    /// The size of chunks in bytes.
    pub chunk_size: u64,
    /// The last chunk that is stored, behind which to go on.
    pub after: Option<NewChunk>,
    /// The object's bytes that stored chunks count.
    pub counted: u64,
    /// Whose scan it is.
    pub ticket: Ticket,
    /// The object's first bytes, where they are known already.
    pub head: Bytes,
    /// Where chunks are kept for this node's workers, where there is room.
    pub share: Option<Arc<Share>>,
}

impl Scan {
    fn start(&self) -> PlanStart {
        match &self.after {
            None => PlanStart {
                offset: self.plan.data_start,
                row: RowNumber(1),
                line: LineNumber(self.plan.data_line),
                chunk_start: ByteOffset(0),
            },
            Some(last) => PlanStart {
                offset: last.range.end,
                row: RowNumber(last.first_row.0 + last.rows),
                line: last.next_line,
                chunk_start: last.range.end,
            },
        }
    }

    fn first_chunk(&self) -> ChunkIndex {
        self.after.as_ref().map_or(ChunkIndex(0), |last| last.chunk.next())
    }

    /// Cuts from where the scan begins; `whole`: with the bytes of the chunks.
    fn cut(&self, whole: bool) -> Result<Cut, Gave<Problem>> {
        let (dialect, start) = (dialect(&self.plan).map_err(Gave::Up)?, self.start());
        Ok(Cut {
            planner: ChunkPlanner::new(dialect, start, self.chunk_size, Limits::default()),
            pending: whole.then(Pending::default),
            next: self.first_chunk(),
            known: start.chunk_start.0,
            fed: start.offset.0,
        })
    }

    /// Scans to the end, telling `out` of every chunk.
    ///
    /// A stream that breaks is taken up where it broke: the planner keeps its state.
    pub async fn run(self, services: Services, out: mpsc::Sender<ScanMessage>, patience: Patience) {
        let scan = async {
            if self.plan.format.is_decoded() {
                self.scan_text(&services, &out, &patience).await
            } else {
                self.scan(&services, &out, &patience).await
            }
        };
        let last = match timed(Step::Scan, scan).await {
            Ok(message) => message,
            Err(Gave::Stopped) => return,
            Err(Gave::Up(problem)) => ScanMessage::Failed(problem),
        };
        // Whoever listened may be gone: then nobody needs to know.
        let _ = out.send(last).await;
    }

    async fn scan(
        &self,
        services: &Services,
        out: &mpsc::Sender<ScanMessage>,
        patience: &Patience,
    ) -> Result<ScanMessage, Gave<Problem>> {
        let mut cut = self.cut(self.share.is_some())?;
        if cut.known == 0 {
            self.feed(&mut cut, 0, &self.head, out, patience).await?;
        }
        let mut asked = false;
        let mut tries = Tries::new(patience, "scan the object");
        while cut.known < self.size {
            if !asked && self.is_shared() {
                asked = true;
                Ranges::new(self, services, patience).run(&mut cut.planner, &mut cut.next, out).await?;
                cut.go_on_behind();
            } else if self.share.is_some() {
                self.read_and_keep(&mut cut, asked, services, out, patience).await?;
            } else {
                self.read(&mut cut, &mut tries, services, out, patience).await?;
            }
        }
        let chunks = self.keep(cut.finish(), out, patience).await?;
        Ok(ScanMessage::Planned { chunks, end: true })
    }

    /// Whether others may take part: they are known to, or nobody looks.
    fn is_shared(&self) -> bool {
        self.share.as_ref().is_none_or(|share| share.knows_of_others())
    }

    /// Reads on until the end, or until the stream breaks; `tries` that bring nothing end with the patience.
    async fn read(
        &self,
        cut: &mut Cut,
        tries: &mut Tries<'_>,
        services: &Services,
        out: &mpsc::Sender<ScanMessage>,
        patience: &Patience,
    ) -> Result<(), Gave<Problem>> {
        let position = cut.known;
        let open = || services.objects.read_from(&self.key, position, self.size, &self.etag);
        let opened = patiently(patience, "scan the object", open).await;
        let mut blocks = opened.map_err(|gave| problem(gave, |error| object_problem(&error)))?;
        loop {
            let block: Bytes = tokio::select! {
                biased;
                () = patience.stopped() => return Err(Gave::Stopped),
                block = blocks.try_next() => match block {
                    Ok(Some(block)) => block,
                    Ok(None) => return Ok(()),
                    Err(error) => {
                        tracing::warn!(%error, position = cut.known, "the scan was cut off; going on where it was");
                        return cut_off(tries, error).await;
                    }
                },
            };
            tries.worked();
            metrics().bytes_fetched(block.len() as u64);
            self.feed(cut, cut.known, &block, out, patience).await?;
        }
    }

    /// Reads on piece by piece, the next one while the last is scanned, until the end, or until others are found to help who
    /// were not `asked` yet. No request stays open while the scan waits for room. The first piece is read as two halves at
    /// once: nobody has work before it is here.
    async fn read_and_keep(
        &self,
        cut: &mut Cut,
        asked: bool,
        services: &Services,
        out: &mpsc::Sender<ScanMessage>,
        patience: &Patience,
    ) -> Result<(), Gave<Problem>> {
        let piece = self.chunk_size.clamp(SMALLEST_PIECE, LARGEST_PIECE);
        let behind = if piece == self.chunk_size { piece / BEHIND_CHUNK } else { 0 };
        let read = |from: u64, end: u64| {
            let range = ByteRange::new(from, end);
            let (objects, patience) = (Arc::clone(&services.objects), patience.clone());
            let (key, etag) = (self.key.clone(), self.etag.clone());
            let read =
                async move { patiently(&patience, "scan the object", || objects.get_range(&key, range, &etag)).await };
            AbortOnDropHandle::new(tokio::spawn(read.in_current_span()))
        };
        let end_of = |from: u64| self.size.min((from / piece + 1) * piece + behind);
        let (from, end) = (cut.known, end_of(cut.known));
        let middle = if end - from < 2 * SMALLEST_PIECE { end } else { from + (end - from) / 2 };
        let mut reading = VecDeque::from([(from, read(from, middle))]);
        if middle < end {
            reading.push_back((middle, read(middle, end)));
        }
        while let Some((from, read_before)) = reading.pop_front() {
            let block = read_before.await.map_err(|error| {
                Gave::Up(Problem::new(ProblemKind::Internal, format!("reading a piece of the object failed: {error}")))
            })?;
            let block = block.map_err(|gave| problem(gave, |error| object_problem(&error)))?;
            metrics().bytes_fetched(block.len() as u64);
            let end = from + block.len() as u64;
            if reading.is_empty() && end < self.size {
                let next = end - behind;
                reading.push_back((next, read(next, end_of(next))));
            }
            self.feed(cut, from, &block, out, patience).await?;
            if !asked && self.is_shared() {
                break;
            }
        }
        Ok(())
    }

    /// Cuts the next block of a plain file, which begins at `at`, and tells of what is found.
    async fn feed(
        &self,
        cut: &mut Cut,
        at: u64,
        block: &Bytes,
        out: &mpsc::Sender<ScanMessage>,
        patience: &Patience,
    ) -> Result<(), Gave<Problem>> {
        cut.take_up(at, block);
        for start in (0..block.len()).step_by(FED_AT_ONCE) {
            let part = &block[start..block.len().min(start + FED_AT_ONCE)];
            let found = cut.scan(at + start as u64, part);
            let chunks = self.keep(found, out, patience).await?;
            send(chunks, out).await?;
            // Half a millisecond each.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Keeps chunks for this node's workers; those that nobody was told of yet.
    async fn keep(
        &self,
        found: Vec<Piece>,
        out: &mpsc::Sender<ScanMessage>,
        patience: &Patience,
    ) -> Result<Vec<NewChunk>, Gave<Problem>> {
        let mut untold = Vec::with_capacity(found.len());
        for Piece { chunk, bytes, .. } in found {
            if let Some(share) = &self.share
                && !chunk.oversized
                && bytes.len() as u64 == chunk.range.len()
            {
                if !share.has_room(&bytes) {
                    // Room is made by those who take what they were told of.
                    send(std::mem::take(&mut untold), out).await?;
                }
                share.keep(&chunk, bytes, patience).await?;
            }
            untold.push(chunk);
        }
        Ok(untold)
    }

    /// The same for text that is decoded on the way: what was cut is put into the storage before anybody is told of it.
    ///
    /// A stream that breaks is decoded again from its start, and passed over as far as it was known.
    async fn scan_text(
        &self,
        services: &Services,
        out: &mpsc::Sender<ScanMessage>,
        patience: &Patience,
    ) -> Result<ScanMessage, Gave<Problem>> {
        let Ticket { import, attempt, epoch } = self.ticket;
        let mut cut = self.cut(true)?;
        let mut spool = Spool::new(TextPart { import, attempt, epoch, part: 0 }, self.counted);
        let (mut tries, mut furthest) = (Tries::new(patience, "scan the object"), 0);
        'open: loop {
            let open = || services.objects.read_from(&self.key, 0, self.size, &self.etag);
            let opened = patiently(patience, "scan the object", open).await;
            let blocks = opened.map_err(|gave| problem(gave, |error| object_problem(&error)))?;
            let mut reader = TextReader::new(blocks, Decoding::of(&self.plan.format));
            let mut position = 0;
            loop {
                let mut text = Vec::new();
                // A block is some tens of KiB: unpacking it takes about a millisecond.
                let read = tokio::select! {
                    biased;
                    () = patience.stopped() => return Err(Gave::Stopped),
                    read = reader.next(&mut text) => read,
                };
                match read {
                    Ok(true) => {}
                    Ok(false) => break 'open,
                    Err(TextError::Data(detail)) => {
                        return Err(Gave::Up(Problem::new(ProblemKind::UnsupportedFormat, detail)));
                    }
                    Err(TextError::Object(error)) => {
                        tracing::warn!(%error, position, "the scan was cut off; decoding again");
                        cut_off(&mut tries, error).await?;
                        continue 'open;
                    }
                }
                let at = position;
                position += text.len() as u64;
                if position > furthest {
                    furthest = position;
                    tries.worked();
                }
                spool.extend(cut.feed(at, text.into(), reader.consumed()));
                if spool.is_full() {
                    send(spool.put(services, patience).await?, out).await?;
                }
            }
        }
        metrics().bytes_fetched(self.size);
        spool.extend(cut.finish());
        spool.close(self.size);
        let chunks = spool.put(services, patience).await?;
        Ok(ScanMessage::Planned { chunks, end: true })
    }
}

/// A stream broke: waits before the next one, and gives up where too many of them brought nothing.
async fn cut_off(tries: &mut Tries<'_>, error: ObjectError) -> Result<(), Gave<Problem>> {
    tries.failed(error).await.map_err(|gave| problem(gave, |error| object_problem(&error)))
}

/// Cuts what it is fed into chunks.
struct Cut {
    planner: ChunkPlanner,
    /// What may belong to chunks that are not cut yet; `None` where nobody wants their bytes.
    pending: Option<Pending>,
    next: ChunkIndex,
    /// The place behind what was taken up: where chunks begin, header included.
    known: u64,
    /// The place behind what the planner was fed.
    fed: u64,
}

/// A chunk that was cut.
pub(crate) struct Piece {
    pub(crate) chunk: NewChunk,
    /// Its bytes; of an oversized one the beginning. Fewer than its range where they were not wanted, or not seen.
    pub(crate) bytes: Bytes,
    /// What of the object was needed up to its end.
    pub(crate) consumed: u64,
}

impl Cut {
    /// Takes up what is new of a block that begins at `at`; `consumed` bytes of the object gave all up to its end.
    fn feed(&mut self, at: u64, block: Bytes, consumed: u64) -> Vec<Piece> {
        let end = at + block.len() as u64;
        let new = block.slice((self.known.clamp(at, end) - at) as usize..);
        if !new.is_empty() {
            if let Some(pending) = &mut self.pending {
                pending.push(end - new.len() as u64, new, consumed);
            }
            self.known = end;
        }
        self.scan(at, &block)
    }

    /// Takes up a piece that begins at `at`, where a chunk may begin, and repeats what was read behind that place before. To be
    /// scanned afterwards: a chunk that it holds as a whole is a part of it.
    fn take_up(&mut self, at: u64, piece: &Bytes) {
        let end = at + piece.len() as u64;
        if end > self.known {
            if let Some(pending) = &mut self.pending {
                pending.repeat(at, piece, self.known);
            }
            self.known = end;
        }
    }

    /// Scans what of a block that begins at `at` was not scanned before.
    fn scan(&mut self, at: u64, block: &[u8]) -> Vec<Piece> {
        let end = at + block.len() as u64;
        let fed = &block[(self.fed.clamp(at, end) - at) as usize..];
        let mut found = Vec::new();
        if !fed.is_empty() {
            self.planner.feed(fed, &mut found);
            self.fed = end;
        }
        let pieces = self.pieces(&mut found);
        let growing = self.planner.growing_from().0;
        if let Some(pending) = &mut self.pending
            && self.fed > growing
            && self.fed - growing > Limits::default().max_record
        {
            pending.forget_behind(growing);
        }
        pieces
    }

    fn pieces(&mut self, found: &mut Vec<PlannedChunk>) -> Vec<Piece> {
        let chunks = number(found, &mut self.next).into_iter();
        chunks
            .map(|chunk| {
                let pending = self.pending.as_mut();
                let taken = pending.map(|pending| pending.take(chunk.range, chunk.oversized));
                let (bytes, consumed) = taken.unwrap_or_default();
                Piece { chunk, bytes, consumed }
            })
            .collect()
    }

    /// The planner was moved on: what it passed over was not seen here.
    fn go_on_behind(&mut self) {
        let offset = self.planner.offset().0;
        if offset > self.fed {
            (self.known, self.fed) = (offset, offset);
            self.pending = self.pending.take().map(|_| Pending::default());
        }
    }

    /// The file has ended.
    fn finish(&mut self) -> Vec<Piece> {
        let mut found = Vec::new();
        self.planner.clone().finish(&mut found);
        self.pieces(&mut found)
    }
}

/// Says what was found so far, where it was anything.
pub(crate) async fn tell(
    found: &mut Vec<PlannedChunk>,
    next: &mut ChunkIndex,
    out: &mpsc::Sender<ScanMessage>,
) -> Result<(), Gave<Problem>> {
    send(number(found, next), out).await
}

async fn send(chunks: Vec<NewChunk>, out: &mpsc::Sender<ScanMessage>) -> Result<(), Gave<Problem>> {
    if chunks.is_empty() {
        return Ok(());
    }
    out.send(ScanMessage::Planned { chunks, end: false }).await.map_err(|_| Gave::Stopped)
}

fn number(found: &mut Vec<PlannedChunk>, next: &mut ChunkIndex) -> Vec<NewChunk> {
    found
        .drain(..)
        .map(|planned| {
            let chunk = *next;
            *next = next.next();
            NewChunk {
                chunk,
                range: planned.range,
                first_row: planned.first_row,
                first_line: planned.first_line,
                next_line: planned.next_line,
                rows: planned.rows,
                oversized: planned.oversized,
                text: None,
            }
        })
        .collect()
}
