//! The scan of a large file by all nodes. Its owner cuts the file into ranges and asks for each on the bus; a worker reads the range
//! and scans it for every state that it may begin in; the owner folds the answers in order, and has the chunks that its own
//! scan would have found ([`longshore_parse::blocks`]).
//!
//! An answer is a pure function of the object (its ETag is part of every read) and of the plan, so nothing is stored, fenced or
//! cleaned: one that does not come in time is found by the owner itself, and one that comes twice is passed over by the bus.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use longshore_domain::{ByteRange, ChunkIndex, LoadPlan, Problem, ProblemKind};
use longshore_parse::{ChunkPlanner, Dialect, Limits, MACHINE, ScannedBlock, scan_blocks};
use longshore_storage::bus::{ScanCall, ScanJob};
use longshore_storage::failure::Failure as _;
use longshore_telemetry::{Step, metrics, timed, trace};

use crate::chunk::object_problem;
use crate::off_thread::off_thread;
use crate::patience::{Gave, Patience, patiently};
use crate::planner::problem;
use crate::scan::{Scan, ScanMessage, tell};
use crate::services::Services;

/// A file of so many chunks is large: with chunks of 8 MiB, one of 1 GiB.
const LARGE: u64 = 128;
/// A range is about this long in bytes.
const RANGE: u64 = 8 * 1024 * 1024;
/// And holds at most so many blocks: an answer has to go through the bus in one message of 1 MiB, and a block takes some KiB.
const BLOCKS_AT_MOST: u64 = 32;
/// Ranges that are asked for at once.
const ASKED_AT_ONCE: usize = 16;
/// How long an answer is waited for.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// The pause after a subscription that failed or ended.
const LISTEN_PAUSE: Duration = Duration::from_millis(500);

/// Commands to the listener.
#[derive(Debug)]
pub enum RangesMessage {
    /// Listen for scan jobs.
    Listen,
}

/// Scans ranges for owners on any node, at most as many at once as this node works on chunks.
pub struct RangesActor;

impl Actor for RangesActor {
    type Msg = RangesMessage;
    type State = (Services, CancellationToken);
    type Arguments = (Services, CancellationToken);

    async fn pre_start(
        &self,
        myself: ActorRef<RangesMessage>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        myself.cast(RangesMessage::Listen)?;
        Ok(arguments)
    }

    async fn handle(
        &self,
        myself: ActorRef<RangesMessage>,
        message: RangesMessage,
        (services, stop): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RangesMessage::Listen => listen(services, stop).await,
        }
        if !stop.is_cancelled() {
            tokio::time::sleep(LISTEN_PAUSE).await;
            myself.cast(RangesMessage::Listen)?;
        }
        Ok(())
    }
}

/// Until the node stops, or the bus ends the subscription.
async fn listen(services: &Services, stop: &CancellationToken) {
    match services.bus.scan_calls().await {
        Ok(calls) => {
            let at_once = services.settings.workers.get();
            calls.take_until(stop.cancelled()).for_each_concurrent(at_once, |call| answer(services, call)).await;
        }
        Err(error) => {
            error.count();
            metrics().dependency_retry(error.dependency());
            tracing::debug!(%error, "no scan jobs to be had; trying again");
        }
    }
}

async fn answer(services: &Services, ScanCall { job, answer }: ScanCall) {
    let span = tracing::info_span!("range", import_id = %job.import, start = job.range.start.0);
    trace::join(&span, job.import);
    let scan = async {
        let blocks = scan_for_owner(services, job).await.unwrap_or_else(|reason| {
            tracing::debug!(reason, "a range was not scanned; its owner does it");
            Vec::new()
        });
        if let Err(error) = answer.send(&blocks).await {
            error.count();
            tracing::debug!(%error, "an answer was not sent; the owner scans the range itself");
        }
    };
    timed(Step::ScanRange, scan).instrument(span).await;
}

async fn scan_for_owner(services: &Services, job: ScanJob) -> Result<Vec<ScannedBlock>, String> {
    if job.machine != MACHINE {
        return Err(format!("the owner's version wants machine {}, this one is {MACHINE}", job.machine));
    }
    if job.block == 0 || job.block > Limits::default().max_record || job.range.len() > range_size(job.block) {
        return Err(format!("a range of {} bytes in blocks of {}", job.range.len(), job.block));
    }
    let record = services.database.import(job.import).await.map_err(|error| error.to_string())?;
    let record = record.filter(|record| record.attempt == job.attempt).ok_or("no such attempt")?;
    let (Some(plan), Some(etag)) = (&record.plan, &record.etag) else { return Err("it is not planned".to_owned()) };
    let read = services.objects.get_range(&record.object_key, job.range, etag).await;
    let bytes = read.map_err(|error| error.to_string())?;
    metrics().bytes_fetched(bytes.len() as u64);
    scan(plan, bytes, job.block).await.map_err(|problem| problem.to_string())
}

/// How long a range of such blocks is, in bytes.
fn range_size(block: u64) -> u64 {
    block.saturating_mul((RANGE / block.max(1)).clamp(1, BLOCKS_AT_MOST))
}

/// Scans on a thread of its own.
async fn scan(plan: &LoadPlan, bytes: Bytes, block: u64) -> Result<Vec<ScannedBlock>, Problem> {
    let dialect = dialect(plan)?;
    off_thread(move || scan_blocks(&dialect, &bytes, block))
        .await
        .map_err(|error| Problem::new(ProblemKind::Internal, format!("scanning a range failed: {error}")))
}

pub(crate) fn dialect(plan: &LoadPlan) -> Result<Dialect, Problem> {
    Dialect::new(&plan.format, plan.width)
        .map_err(|error| Problem::new(ProblemKind::UnsupportedFormat, error.to_string()))
}

/// The owner's side.
pub(crate) struct Ranges<'a> {
    scan: &'a Scan,
    services: &'a Services,
    patience: &'a Patience,
    /// Held while a range is scanned here.
    alone: Semaphore,
}

impl<'a> Ranges<'a> {
    pub(crate) fn new(scan: &'a Scan, services: &'a Services, patience: &'a Patience) -> Self {
        Self { scan, services, patience, alone: Semaphore::new(services.settings.workers.get()) }
    }

    /// Scans as far as others help: where the file is not large, or nobody is there, the planner stays where it is.
    pub(crate) async fn run(
        &self,
        planner: &mut ChunkPlanner,
        next: &mut ChunkIndex,
        out: &mpsc::Sender<ScanMessage>,
    ) -> Result<(), Gave<Problem>> {
        let (block, size) = (self.scan.chunk_size, self.scan.size);
        let from = planner.offset().0;
        let fits = block <= Limits::default().max_record;
        let large = fits && planner.folds() && size.saturating_sub(from) / block >= LARGE;
        if !large {
            return Ok(());
        }
        let mut found = Vec::new();
        // Up to the first block that begins on the grid.
        let grid = from.next_multiple_of(block);
        if grid > from {
            planner.feed(&self.read(ByteRange::new(from, grid)).await?, &mut found);
        }
        let ends = (grid..size).step_by(usize::try_from(range_size(block)).unwrap_or(usize::MAX));
        let ranges = ends.map(|start| ByteRange::new(start, size.min(start + range_size(block))));
        let mut answers = stream::iter(ranges).map(|range| self.ask(range)).buffered(ASKED_AT_ONCE);
        while let Some(blocks) = answers.next().await {
            let Some(blocks) = blocks? else {
                tracing::debug!("nobody helps with the scan");
                break;
            };
            let folded = blocks.iter().all(|block| planner.fold(block, &mut found));
            tell(&mut found, next, out).await?;
            if !folded {
                tracing::warn!(offset = planner.offset().0, "a scanned block does not fit; scanning alone from here");
                break;
            }
        }
        // What the first bytes gave, where nothing came behind them.
        tell(&mut found, next, out).await
    }

    async fn read(&self, range: ByteRange) -> Result<Bytes, Gave<Problem>> {
        let Scan { key, etag, .. } = self.scan;
        let read =
            patiently(self.patience, "scan the object", || self.services.objects.get_range(key, range, etag)).await;
        let bytes = read.map_err(|gave| problem(gave, |error| object_problem(&error)))?;
        metrics().bytes_fetched(bytes.len() as u64);
        Ok(bytes)
    }

    /// The blocks of a range, from a worker or by itself; `None`: nobody is there to ask.
    async fn ask(&self, range: ByteRange) -> Result<Option<Vec<ScannedBlock>>, Gave<Problem>> {
        let (ticket, block) = (self.scan.ticket, self.scan.chunk_size);
        let job = ScanJob { import: ticket.import, attempt: ticket.attempt, range, block, machine: MACHINE };
        let asked = tokio::select! {
            biased;
            () = self.patience.stopped() => return Err(Gave::Stopped),
            asked = self.services.bus.ask_scan(&job, ANSWER_PATIENCE) => asked,
        };
        match asked {
            Ok(None) => return Ok(None),
            Ok(Some(blocks)) if blocks.iter().map(ScannedBlock::len).sum::<u64>() == range.len() => {
                return Ok(Some(blocks));
            }
            Ok(Some(_)) => tracing::debug!(start = range.start.0, "a worker could not scan a range"),
            Err(error) => {
                error.count();
                tracing::debug!(%error, start = range.start.0, "no answer to a scan");
            }
        }
        let Ok(_permit) = self.alone.acquire().await else { return Err(Gave::Stopped) };
        let bytes = self.read(range).await?;
        scan(&self.scan.plan, bytes, block).await.map(Some).map_err(Gave::Up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_whole_blocks_and_not_too_many() {
        assert_eq!(range_size(8 * 1024 * 1024), 8 * 1024 * 1024);
        assert_eq!(range_size(1024 * 1024), 8 * 1024 * 1024);
        assert_eq!(range_size(8192), 32 * 8192);
        assert_eq!(range_size(1), 32);
        assert_eq!(range_size(16 * 1024 * 1024), 16 * 1024 * 1024);
    }
}
