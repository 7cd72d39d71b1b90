//! The scan: streams once through the object with the exact state machine and hands over chunks as it finds them, so that
//! workers start while it still reads. Run by the import's owner as a task; the channel between them is bounded, so the scan
//! never runs far ahead of what is stored.

use bytes::Bytes;
use futures::TryStreamExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use longshore_domain::{ByteOffset, ChunkIndex, LineNumber, LoadPlan, Problem, ProblemKind, RowNumber};
use longshore_parse::{ChunkPlanner, Dialect, Limits, PlanStart, PlannedChunk};
use longshore_storage::database::NewChunk;
use longshore_storage::failure::Failure as _;
use longshore_telemetry::{Step, metrics, timed};

use crate::chunk::object_problem;
use crate::patience::{Gave, patiently};
use crate::services::Services;

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

    /// Scans to the end, telling `out` of every chunk.
    ///
    /// A stream that breaks is taken up where it broke: the planner keeps its state.
    pub async fn run(self, services: Services, out: mpsc::Sender<ScanMessage>, stop: CancellationToken) {
        let last = match timed(Step::Scan, self.scan(&services, &out, &stop)).await {
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
        stop: &CancellationToken,
    ) -> Result<ScanMessage, Gave<Problem>> {
        let dialect = Dialect::new(&self.plan.format, self.plan.width)
            .map_err(|error| Gave::Up(Problem::new(ProblemKind::UnsupportedFormat, error.to_string())))?;
        let start = self.start();
        let mut position = start.offset.0;
        let mut next = self.after.map_or(ChunkIndex(0), |last| last.chunk.next());
        let mut planner = ChunkPlanner::new(dialect, start, self.chunk_size, Limits::default());
        let mut found = Vec::new();
        while position < self.size {
            let open = || services.objects.read_from(&self.key, position, self.size, &self.etag);
            let opened = patiently(stop, "scan the object", open).await;
            let mut blocks = opened.map_err(|gave| crate::planner::problem(gave, |error| object_problem(&error)))?;
            loop {
                let block: Bytes = tokio::select! {
                    () = stop.cancelled() => return Err(Gave::Stopped),
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
                if !found.is_empty() {
                    let chunks = number(&mut found, &mut next);
                    out.send(ScanMessage::Planned { chunks, end: false }).await.map_err(|_| Gave::Stopped)?;
                }
            }
        }
        planner.finish(&mut found);
        Ok(ScanMessage::Planned { chunks: number(&mut found, &mut next), end: true })
    }
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
            }
        })
        .collect()
}
