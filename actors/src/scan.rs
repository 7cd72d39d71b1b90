//! The scan: streams once through the object with the exact state machine and hands over chunks as it finds them, so that
//! workers start while it still reads; a large object is scanned range by range on all nodes first ([`crate::ranges`]). Run by the
//! import's owner as a task; the channel between them is bounded, so the scan never runs far ahead of what is stored.

use bytes::Bytes;
use futures::TryStreamExt;
use tokio::sync::mpsc;

use longshore_domain::{ByteOffset, ChunkIndex, LineNumber, LoadPlan, Problem, ProblemKind, RowNumber};
use longshore_parse::{ChunkPlanner, Limits, PlanStart, PlannedChunk};
use longshore_storage::database::{NewChunk, TextPart};
use longshore_storage::destination::Ticket;
use longshore_storage::failure::Failure as _;
use longshore_storage::objects::text::{Decoding, TextError, TextReader};
use longshore_telemetry::{Step, metrics, timed};

use crate::chunk::object_problem;
use crate::patience::{Gave, Patience, patiently};
use crate::ranges::{Ranges, dialect};
use crate::services::Services;
use crate::text::{Pending, Spool};

/// Batches that may wait to be stored.
pub const SCAN_AHEAD: usize = 8;

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

    fn planner(&self) -> Result<ChunkPlanner, Gave<Problem>> {
        let dialect = dialect(&self.plan).map_err(Gave::Up)?;
        Ok(ChunkPlanner::new(dialect, self.start(), self.chunk_size, Limits::default()))
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
        let mut next = self.first_chunk();
        let mut planner = self.planner()?;
        Ranges::new(self, services, patience).run(&mut planner, &mut next, out).await?;
        let mut position = planner.offset().0;
        let mut found = Vec::new();
        while position < self.size {
            let open = || services.objects.read_from(&self.key, position, self.size, &self.etag);
            let opened = patiently(patience, "scan the object", open).await;
            let mut blocks = opened.map_err(|gave| crate::planner::problem(gave, |error| object_problem(&error)))?;
            loop {
                let block: Bytes = tokio::select! {
                    biased;
                    () = patience.stopped() => return Err(Gave::Stopped),
                    block = blocks.try_next() => match block {
                        Ok(Some(block)) => block,
                        Ok(None) => break,
                        Err(error) => {
                            error.count();
                            tracing::warn!(%error, position, "the scan was cut off; going on where it was");
                            break;
                        }
                    },
                };
                // Blocks are what the network brings, some tens of KiB: well under a millisecond each.
                planner.feed(&block, &mut found);
                metrics().bytes_fetched(block.len() as u64);
                position += block.len() as u64;
                tell(&mut found, &mut next, out).await?;
            }
        }
        planner.finish(&mut found);
        Ok(ScanMessage::Planned { chunks: number(&mut found, &mut next), end: true })
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
        let mut cut = Cut {
            planner: self.planner()?,
            pending: Pending::default(),
            spool: Spool::new(TextPart { import, attempt, epoch, part: 0 }, self.counted),
            next: self.first_chunk(),
            known: self.start().chunk_start.0,
            fed: self.start().offset.0,
        };
        'open: loop {
            let open = || services.objects.read_from(&self.key, 0, self.size, &self.etag);
            let opened = patiently(patience, "scan the object", open).await;
            let blocks = opened.map_err(|gave| crate::planner::problem(gave, |error| object_problem(&error)))?;
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
                        error.count();
                        tracing::warn!(%error, position, "the scan was cut off; decoding again");
                        continue 'open;
                    }
                }
                let at = position;
                position += text.len() as u64;
                cut.feed(at, text.into(), reader.consumed());
                if cut.spool.is_full() {
                    let chunks = cut.spool.put(services, patience).await?;
                    out.send(ScanMessage::Planned { chunks, end: false }).await.map_err(|_| Gave::Stopped)?;
                }
            }
        }
        metrics().bytes_fetched(self.size);
        let mut spool = cut.finish(self.size);
        let chunks = spool.put(services, patience).await?;
        Ok(ScanMessage::Planned { chunks, end: true })
    }
}

/// Cuts decoded text.
struct Cut {
    planner: ChunkPlanner,
    pending: Pending,
    spool: Spool,
    next: ChunkIndex,
    /// The place in the text behind what was taken up: where chunks begin, header included.
    known: u64,
    /// The place behind what the planner was fed.
    fed: u64,
}

impl Cut {
    /// Takes up what is new of a block of text that begins at `at`.
    fn feed(&mut self, at: u64, block: Bytes, consumed: u64) {
        let end = at + block.len() as u64;
        let behind = |place: u64| block.slice((place.clamp(at, end) - at) as usize..);
        let (new, fed) = (behind(self.known), behind(self.fed));
        if !new.is_empty() {
            self.pending.push(end - new.len() as u64, new, consumed);
            self.known = end;
        }
        let mut found = Vec::new();
        if !fed.is_empty() {
            self.planner.feed(&fed, &mut found);
            self.fed = end;
        }
        self.cut(&mut found);
        let growing = self.planner.growing_from().0;
        if self.fed > growing && self.fed - growing > Limits::default().max_record {
            self.pending.forget_behind(growing);
        }
    }

    fn cut(&mut self, found: &mut Vec<PlannedChunk>) {
        for chunk in number(found, &mut self.next) {
            let (text, consumed) = self.pending.take(chunk.range, chunk.oversized);
            self.spool.add(chunk, &text, consumed);
        }
    }

    /// The text has ended.
    fn finish(mut self, size: u64) -> Spool {
        let mut found = Vec::new();
        self.planner.clone().finish(&mut found);
        self.cut(&mut found);
        self.spool.close(size);
        self.spool
    }
}

/// Says what was found so far, where it was anything.
pub(crate) async fn tell(
    found: &mut Vec<PlannedChunk>,
    next: &mut ChunkIndex,
    out: &mpsc::Sender<ScanMessage>,
) -> Result<(), Gave<Problem>> {
    if found.is_empty() {
        return Ok(());
    }
    let chunks = number(found, next);
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
