//! The life of an import under one owner: enter, plan, scan and hand out chunks, publish, or abort. Run as a task by the
//! import's supervisor ([`crate::import`]); every step is one that `docs/protocol.md` names, may run twice, and is found by
//! the next owner should this one die behind it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use futures::stream::{self, Stream, StreamExt};
use ractor::{Actor, ActorRef};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use longshore_domain::protocol::{Closure, Entry, JobWindow, PlannedChunkFacts, Republish, check_tiling, enter};
use longshore_domain::{
    ChunkIndex, ImportId, ImportState, LoadPlan, Problem, ProblemKind, Progress, RejectReason, Tally,
};
use longshore_storage::bus::{Bus, ChunkJob, ChunkOutcome, ChunkReport};
use longshore_storage::database::{CLAIMS_AT_MOST, Change, ImportRecord, NewChunk};
use longshore_storage::destination::{
    DestinationError, FenceState, LedgerRow, Planned, PublishOutcome, Published, Staging, Ticket,
};
use longshore_storage::failpoint;
use longshore_storage::failure::Failure as _;
use longshore_telemetry::{AttemptReason, QueueName, Step as StepName, metrics, timed};

use crate::ahead::Ahead;
use crate::chunk::object_problem;
use crate::kept::Share;
use crate::patience::{Gave, Patience, patiently};
use crate::planner::{self, destination_problem, problem};
use crate::scan::{SCAN_AHEAD, Scan, ScanMessage};
use crate::services::Services;
use crate::source::{Known, ObjectSource};
use crate::status::{Fold, StatusActor, StatusArguments, StatusMessage, tell_watchers};
use crate::text;

/// Chunk jobs in flight at once, over all nodes: one giant import starves nobody.
const WINDOW: usize = 64;

/// How often the owner looks at the database, whatever the bus says.
const TICK: Duration = Duration::from_secs(1);

/// How often an owner whose jobs wait asks which queue they wait in.
const QUEUE_LOOK_EVERY: Duration = Duration::from_secs(3);

/// From this attempt on, work that the destination lost is no reason for another one.
const ATTEMPTS_OF_LOST_WORK: u32 = 5;

/// Of a larger file, rows never wait in the object: it would all be read again for one row that the table refuses, by one
/// process, while staged rows are moved within the database.
const LARGEST_UNSTAGED: u64 = 4 << 30;

/// A publish begins ahead for a file of at least so many chunks: with fewer, most are loaded at the same time.
const CHUNKS_TO_BEGIN_AHEAD: u64 = 4;

/// And of at most so many bytes: a larger one is not loaded within the time that its transaction may be open.
const LARGEST_AHEAD: u64 = 1 << 30;

/// Chunks that are stored in one statement.
const STORE_AT_ONCE: usize = 64;

/// How long the last counters may take to be persisted before the owner goes on without.
const FLUSH_PATIENCE_MS: u64 = 5_000;

/// Why an attempt ended without a publish.
enum Stop {
    /// The lease is lost, or the node shuts down: somebody else goes on.
    Lost,
    /// The import fails.
    Fail(Problem),
    /// Everything is read again, as a new attempt.
    Restart(AttemptReason),
    /// A cancel was asked for.
    Cancel,
}

impl From<Gave<Problem>> for Stop {
    fn from(gave: Gave<Problem>) -> Self {
        match gave {
            Gave::Stopped => Self::Lost,
            Gave::Up(problem) => Self::Fail(problem),
        }
    }
}

type Step<T> = Result<T, Stop>;

/// The scan's task is gone without a last word: it was told to stop, or it panicked.
fn scan_ended(patience: &Patience) -> Stop {
    if patience.is_stopped() {
        return Stop::Lost;
    }
    let detail =
        "the scan of the file broke off, which is a defect of the program: its log says where; retry, and report it";
    Stop::Fail(Problem::new(ProblemKind::Internal, detail))
}

/// What an owner works with.
pub struct Owner {
    services: Services,
    record: ImportRecord,
    /// Ends when the lease is lost or the node stops.
    patience: Patience,
    /// The object's first bytes, from the plan to the scan.
    head: Bytes,
    /// What is kept of the object, from the scan to the publish.
    share: Option<Arc<Share>>,
    /// The publish that began while chunks were loaded.
    ahead: Option<Ahead>,
}

impl Owner {
    /// The owner of a claimed import; `record` carries its epoch.
    #[must_use]
    pub fn new(services: Services, record: ImportRecord, stop: CancellationToken) -> Self {
        let patience = Patience::new(stop, services.settings.patience);
        Self { services, record, patience, head: Bytes::new(), share: None, ahead: None }
    }

    /// Moves the import on to its end, or until the lease is lost.
    pub async fn run(mut self) {
        self.run_to_the_end().await;
        // Of this import's attempts that are over, whichever they were. Plain files have no decoded text to look for.
        if self.record.plan.as_ref().is_some_and(|plan| plan.format.is_decoded()) {
            text::remove_or_leave(&self.services, Some(self.record.id)).await;
        }
    }

    async fn run_to_the_end(&mut self) {
        loop {
            let stopped = match self.attempt().await {
                Ok(()) => return,
                Err(stopped) => stopped,
            };
            self.ahead = None;
            let next = match stopped {
                Stop::Lost => return,
                Stop::Fail(problem) => self.fail(&problem).await,
                Stop::Cancel => self.cancel().await,
                Stop::Restart(why) => self.restart(why).await,
            };
            match next {
                Ok(true) => {}
                Ok(false) => return,
                Err(Stop::Lost) => return,
                Err(_) => {
                    tracing::error!("the import could not be brought to an end; the next owner tries again");
                    return;
                }
            }
        }
    }

    fn ticket(&self) -> Ticket {
        Ticket { import: self.record.id, attempt: self.record.attempt, epoch: self.record.epoch }
    }

    async fn attempt(&mut self) -> Step<()> {
        let fence = self.raise_fence().await?;
        failpoint::pass("fence.after");
        let closed = match &fence {
            FenceState::Open => None,
            FenceState::Published(_) => Some(Closure::Published),
            FenceState::Aborted => Some(Closure::Aborted),
        };
        let record = &self.record;
        let entry = enter(record.state, record.plan.is_some(), record.error.is_some(), closed);
        tracing::info!(state = %record.state, ?entry, attempt = %record.attempt, "import entered");
        match (entry, fence) {
            (Entry::Nothing, _) => Ok(()),
            (Entry::RecordPublished, FenceState::Published(published)) => self.succeed(published).await,
            (Entry::Cancel, _) => Err(Stop::Cancel),
            (Entry::Fail, _) => Err(Stop::Fail(self.stored_error())),
            (Entry::Plan, _) if self.record.planning_deaths >= CLAIMS_AT_MOST => {
                let detail = format!(
                    "{CLAIMS_AT_MOST} processes ended while they looked at the file to plan its import; their logs say more"
                );
                Err(Stop::Fail(Problem::new(ProblemKind::PoisonChunk, detail)))
            }
            (Entry::Plan, _) => {
                self.plan().await?;
                self.load().await?;
                self.publish().await
            }
            (Entry::Resume, _) => {
                self.load().await?;
                self.publish().await
            }
            (Entry::Publish, _) => self.publish().await,
            (Entry::Contradiction | Entry::RecordPublished, fence) => {
                let detail = format!("the import is {} here and {fence:?} in the destination", self.record.state);
                Err(Stop::Fail(Problem::new(ProblemKind::Internal, detail)))
            }
        }
    }

    fn stored_error(&self) -> Problem {
        self.record.error.clone().unwrap_or_else(|| Problem::new(ProblemKind::Internal, "the reason was not stored"))
    }

    /// Ends older owners' sessions and raises the fence: behind this nothing of theirs can commit.
    async fn raise_fence(&self) -> Step<FenceState> {
        let ticket = self.ticket();
        let destination = &self.services.destination;
        let raised = patiently(&self.patience, "raise the fence", || destination.raise_fence(ticket)).await;
        let raised = raised.map_err(|gave| problem(gave, destination_problem))?;
        raised.ok_or(Stop::Lost)
    }

    /// One compare-and-set of the state, remembered on success.
    async fn change(&mut self, change: Change) -> Step<()> {
        let (id, epoch, from) = (self.record.id, self.record.epoch, self.record.state);
        let database = &self.services.database;
        let changed = patiently(&self.patience, "change the state", || database.change(id, epoch, from, &change)).await;
        if changed.map_err(|gave| problem(gave, internal))? {
            tracing::info!(%from, to = %change.to(), "import changed");
            self.record.state = change.to();
            self.count(&change);
            tell_watchers(&*self.services.bus, id).await;
            return Ok(());
        }
        // Somebody changed it: a cancel, an answer that was lost (this very change), or a next owner.
        self.reload().await?;
        if self.record.state == change.to() {
            return Ok(());
        }
        if self.record.state == ImportState::Cancelling { Err(Stop::Cancel) } else { Err(Stop::Lost) }
    }

    /// Counts what this owner's change brought about.
    fn count(&self, change: &Change) {
        if let Change::Succeed { rows_loaded, .. } = change {
            metrics().rows_published(*rows_loaded);
        }
        if change.to().is_done() {
            let since = self.record.uploaded_at.and_then(|at| (Utc::now() - at).to_std().ok());
            metrics().import_ended(change.to(), since);
        }
    }

    /// Reads the import again; [`Stop::Lost`] where another owner has it.
    async fn reload(&mut self) -> Step<()> {
        let (id, epoch) = (self.record.id, self.record.epoch);
        let database = &self.services.database;
        let read = patiently(&self.patience, "read the import", || database.import(id)).await;
        let record = read.map_err(|gave| problem(gave, internal))?;
        self.record = record.filter(|record| record.epoch == epoch).ok_or(Stop::Lost)?;
        Ok(())
    }

    async fn plan(&mut self) -> Step<()> {
        if self.record.state == ImportState::Queued {
            self.change(Change::Plan).await?;
        }
        failpoint::pass("plan.before");
        let planned = timed(StepName::Plan, planner::plan(&self.services, &self.record, &self.patience)).await?;
        let (plan, head) = planned;
        let (id, epoch) = (self.record.id, self.record.epoch);
        let database = &self.services.database;
        failpoint::pass("plan.made");
        let stored = patiently(&self.patience, "store the plan", || database.store_plan(id, epoch, &plan)).await;
        if !stored.map_err(|gave| problem(gave, internal))? {
            self.reload().await?;
            return if self.record.state == ImportState::Cancelling { Err(Stop::Cancel) } else { Err(Stop::Lost) };
        }
        failpoint::pass("plan.after");
        self.record.plan = Some(plan);
        self.head = head;
        Ok(())
    }

    fn load_plan(&self) -> Step<LoadPlan> {
        let missing = || Stop::Fail(Problem::new(ProblemKind::Internal, "the import has no plan"));
        self.record.plan.clone().ok_or_else(missing)
    }

    /// Whether a worker found an inferred column too narrow: asked of the plan, not of what this owner saw before, since an
    /// earlier owner may have died between the two.
    fn check_widened(&self) -> Step<()> {
        let plan = self.load_plan()?;
        let mut inferred = plan.fields.iter().filter(|field| field.inferred);
        let wider = inferred.any(|field| {
            let found = self.record.widened.get(&field.name);
            found.is_some_and(|found| longshore_parse::join_types(&field.kind, found) != field.kind)
        });
        if wider { Err(Stop::Restart(AttemptReason::Widened)) } else { Ok(()) }
    }

    /// Makes sure that what the ledger counts is staged, or need not be.
    async fn prepare_staging(&self, plan: &LoadPlan, wanted: Staging) -> Step<Staging> {
        let ticket = self.ticket();
        let destination = &self.services.destination;
        let prepare = || destination.prepare_staging(ticket, plan, wanted);
        match patiently(&self.patience, "prepare staging", prepare).await {
            Ok(Some(staging)) => Ok(staging),
            Ok(None) | Err(Gave::Stopped) => Err(Stop::Lost),
            Err(Gave::Up(DestinationError::StagingLost { .. })) => Err(Stop::Restart(AttemptReason::StagingLost)),
            Err(Gave::Up(error)) => Err(Stop::Fail(destination_problem(error))),
        }
    }

    /// Where rows are to wait for the publish.
    fn wanted(&self) -> Staging {
        if self.record.size.unwrap_or(0) <= LARGEST_UNSTAGED { Staging::Object } else { Staging::Table }
    }

    /// Makes sure of the staging, then scans, hands out chunks and waits until all are committed.
    async fn load(&mut self) -> Step<()> {
        let plan = self.load_plan()?;
        self.check_widened()?;
        let staging = self.prepare_staging(&plan, self.wanted()).await?;
        failpoint::pass("staging.after");
        let ticket = self.ticket();
        let database = &self.services.database;
        let free = || database.free_chunks(ticket.import, ticket.attempt);
        patiently(&self.patience, "free chunks", free).await.map_err(|gave| problem(gave, internal))?;
        let mut run = Run::begin(self, plan, staging).await?;
        let ended = run.work(self).await;
        self.share = run.share.take().filter(|share| share.stays());
        self.ahead = run.ahead.take();
        run.end().await;
        ended
    }

    /// Chunks of the attempt, all of them.
    async fn chunks(&self) -> Step<Vec<longshore_storage::database::ChunkRecord>> {
        const PAGE: u64 = 5_000;
        let (id, attempt) = (self.record.id, self.record.attempt);
        let database = &self.services.database;
        let mut chunks = Vec::new();
        loop {
            let from = ChunkIndex(chunks.len() as u32);
            let page = patiently(&self.patience, "read chunks", || database.chunks(id, attempt, from, PAGE)).await;
            let page = page.map_err(|gave| problem(gave, internal))?;
            let last = (page.len() as u64) < PAGE;
            chunks.extend(page);
            if last {
                return Ok(chunks);
            }
        }
    }

    /// The committed chunks of the attempt, as the destination knows them.
    async fn ledger(&self) -> Step<Vec<LedgerRow>> {
        let (id, attempt) = (self.record.id, self.record.attempt);
        let destination = &self.services.destination;
        let ledger = patiently(&self.patience, "read the ledger", || destination.ledger(id, attempt)).await;
        ledger.map_err(|gave| problem(gave, destination_problem).into())
    }

    /// Chunks that are done, and that the ledger does not know: the destination was set back to an older state, and what was
    /// staged is lost. Not for ever: where every attempt loses some, the reason is another one, and the counts say so.
    fn check_committed(&self, done: &[ChunkIndex], ledger: &[LedgerRow]) -> Step<()> {
        let known: BTreeSet<ChunkIndex> = ledger.iter().map(|row| row.chunk).collect();
        let lost = done.iter().filter(|chunk| !known.contains(chunk)).count();
        if lost == 0 || self.record.attempt.0 >= ATTEMPTS_OF_LOST_WORK {
            return Ok(());
        }
        tracing::warn!(chunks = lost, "the destination does not know chunks that were committed: it was set back");
        Err(Stop::Restart(AttemptReason::StagingLost))
    }

    /// Where chunks are read again, some of them are in memory: so many publishes at once, on a node. Who waits holds nothing,
    /// and may be cancelled.
    async fn turn_to_publish(&mut self, plan: &LoadPlan) -> Step<Option<OwnedSemaphorePermit>> {
        if !plan.may_wait_in_object(self.record.attempt) {
            return Ok(None);
        }
        let kept = self.services.kept.clone();
        let mut turn = std::pin::pin!(kept.publish());
        loop {
            tokio::select! {
                biased;
                () = self.patience.stopped() => return Err(Stop::Lost),
                turn = &mut turn => return Ok(turn),
                () = tokio::time::sleep(TICK) => self.reload().await?,
            }
            if self.record.state == ImportState::Cancelling {
                return Err(Stop::Cancel);
            }
        }
    }

    /// Everything is staged, or counted: move it, all or nothing.
    async fn publish(&mut self) -> Step<()> {
        let plan = self.load_plan()?;
        let chunks = self.chunks().await?;
        let facts = chunks.iter().map(|chunk| PlannedChunkFacts {
            range: chunk.planned.range,
            first_row: chunk.planned.first_row.0,
            rows: chunk.planned.rows,
        });
        let size = self.record.size.unwrap_or(0);
        let end = chunks.last().map_or(0, |chunk| chunk.planned.range.end.0);
        // How long decoded text is, only its own scan can tell; that the chunks stand for all of the object is known.
        let tiled = check_tiling(facts, if plan.format.is_decoded() { end } else { size });
        let counted: u64 = chunks.iter().map(|chunk| chunk.planned.object_bytes()).sum();
        let rows = match tiled {
            Ok(rows) if counted == size => rows,
            tiled => {
                let fault = tiled.err().map(|fault| fault.to_string());
                let detail = fault.unwrap_or_else(|| format!("the chunks stand for {counted} of {size} bytes"));
                return Err(Stop::Fail(Problem::new(ProblemKind::CountMismatch, detail)));
            }
        };
        let mut ahead = self.ahead.take().filter(Ahead::is_under_way);
        // One that began ahead has a turn of another sort, which ends with it.
        let began_ahead = ahead.is_some();
        let _turn = if began_ahead { None } else { self.turn_to_publish(&plan).await? };
        if self.record.state != ImportState::Publishing {
            self.change(Change::Publish).await?;
        }
        failpoint::pass("publish.before");
        let rejected_before: u64 = chunks.iter().map(|chunk| chunk.rows_rejected).sum();
        let planned = Planned { chunks: chunks.len() as u64, rows };
        let done: Vec<ChunkIndex> = chunks.iter().map(|chunk| chunk.planned.chunk).collect();
        let known = Known { chunks: chunks.into_iter().map(|chunk| chunk.planned).collect(), planned: Some(planned) };
        let (_, known) = watch::channel(known);
        let source = ObjectSource::new(&self.services, &self.record, plan.clone(), known, self.share.take());
        let (ticket, on_error) = (self.ticket(), self.record.request.on_error);
        let (services, plan, source) = (&self.services, &plan, &source);
        let publish = || {
            let ahead = ahead.take();
            async move {
                if let Some(ahead) = ahead {
                    return ahead.finish(planned).await;
                }
                let _turn = if began_ahead { services.kept.publish().await } else { None };
                services.destination.publish(ticket, plan, on_error, source).await
            }
        };
        match timed(StepName::Publish, patiently(&self.patience, "publish", publish)).await {
            Ok(PublishOutcome::Published(published)) => {
                let refused = published.rows_rejected.saturating_sub(rejected_before);
                metrics().rows_rejected(RejectReason::ConstraintViolation, refused);
                self.succeed(published).await
            }
            Ok(PublishOutcome::Fenced) => {
                metrics().fence_refused();
                Err(Stop::Lost)
            }
            Ok(PublishOutcome::TableAppeared) => Err(Stop::Restart(AttemptReason::TableAppeared)),
            Ok(PublishOutcome::TooManyRejects(rejected)) => {
                let all = Tally { rows, rejected, bytes: size, chunks: planned.chunks };
                self.count_refused(all).await?;
                Err(Stop::Fail(on_error.too_many(rejected)))
            }
            Ok(PublishOutcome::Refused(problem)) => {
                if problem.kind == ProblemKind::CountMismatch {
                    let ledger = self.ledger().await?;
                    self.check_committed(&done, &ledger)?;
                }
                Err(Stop::Fail(problem))
            }
            Err(Gave::Stopped) => Err(Stop::Lost),
            Err(Gave::Up(DestinationError::StagingLost { .. })) => Err(Stop::Restart(AttemptReason::StagingLost)),
            Err(Gave::Up(error)) => Err(Stop::Fail(destination_problem(error))),
        }
    }

    /// Rows that the destination refused were staged before, and are rejected now. All chunks are committed, whatever of them
    /// was counted before.
    async fn count_refused(&self, all: Tally) -> Step<()> {
        let progress = Progress::of(all.bytes, all.chunks, all);
        let (database, record) = (&self.services.database, &self.record);
        let store = || database.store_progress(record.id, record.attempt, record.epoch, &progress);
        let stored = patiently(&self.patience, "store the counters", store).await;
        if stored.map_err(|gave| problem(gave, internal))? { Ok(()) } else { Err(Stop::Lost) }
    }

    async fn succeed(&mut self, published: Published) -> Step<()> {
        let Published { rows_loaded, rows_rejected } = published;
        self.change(Change::Succeed { rows_loaded, rows_rejected }).await?;
        failpoint::pass("succeed.after");
        tracing::info!(rows_loaded, rows_rejected, "import succeeded");
        Ok(())
    }

    /// Stores the reason, closes the fence, drops what was staged, and only then says `failed`. Answers whether to enter
    /// again: a publish may have been first.
    async fn fail(&mut self, reason: &Problem) -> Step<bool> {
        let Ticket { import, attempt, epoch } = self.ticket();
        if self.record.error.is_none() {
            let database = &self.services.database;
            let store = || database.store_error(import, attempt, epoch, &ImportState::MAY_FAIL, reason);
            let stored = patiently(&self.patience, "store the reason", store).await;
            if !stored.map_err(|gave| problem(gave, internal))? {
                self.reload().await?;
                return if self.record.state == ImportState::Cancelling {
                    self.cancel().await
                } else {
                    Err(Stop::Lost)
                };
            }
        }
        failpoint::pass("error.after");
        // A publish that was first wins. In any other state its marker contradicts the control database: the import fails
        // and says so, with the rows where they are.
        if self.abort().await? && self.record.state == ImportState::Publishing {
            return self.enter_again().await;
        }
        failpoint::pass("abort.after");
        match self.change(Change::Fail).await {
            Ok(()) => {
                failpoint::pass("fail.after");
                tracing::info!(reason = %self.record.error.as_ref().unwrap_or(reason), "import failed");
                Ok(false)
            }
            Err(Stop::Cancel) => self.cancel().await,
            Err(stop) => Err(stop),
        }
    }

    async fn cancel(&mut self) -> Step<bool> {
        self.reload().await?;
        if self.abort().await? {
            return self.enter_again().await;
        }
        self.change(Change::Cancel).await?;
        Ok(false)
    }

    /// Closes the fence and drops what was staged. `true`: the rows are published already.
    async fn abort(&self) -> Step<bool> {
        let ticket = self.ticket();
        let destination = &self.services.destination;
        let abort = patiently(&self.patience, "abort", || destination.abort(ticket));
        let aborted = timed(StepName::Abort, abort).await;
        match aborted.map_err(|gave| problem(gave, destination_problem))? {
            None => Err(Stop::Lost),
            Some(FenceState::Published(_)) => Ok(true),
            Some(FenceState::Open | FenceState::Aborted) => Ok(false),
        }
    }

    async fn enter_again(&mut self) -> Step<bool> {
        self.reload().await?;
        Ok(true)
    }

    /// A new attempt under the same owner.
    async fn restart(&mut self, reason: AttemptReason) -> Step<bool> {
        self.reload().await?;
        if self.record.state == ImportState::Cancelling {
            return self.cancel().await;
        }
        tracing::warn!(reason = reason.as_str(), attempt = %self.record.attempt, "the import starts a new attempt");
        let widened = self.record.widened.clone();
        match self.change(Change::Restart { widened }).await {
            Ok(()) => {
                metrics().import_restarted(reason);
                self.enter_again().await
            }
            Err(Stop::Cancel) => self.cancel().await,
            Err(stop) => Err(stop),
        }
    }
}

/// The reports of an import's workers, over one subscription after the other: hints, for what the database says as well.
fn listen(bus: Arc<dyn Bus>, import: ImportId) -> impl Stream<Item = ChunkReport> {
    stream::iter(0_u64..)
        .then(move |tries| {
            let bus = Arc::clone(&bus);
            async move {
                if tries > 0 {
                    tokio::time::sleep(TICK).await;
                }
                bus.reports(import).await.unwrap_or_else(|error| {
                    error.count();
                    tracing::warn!(%error, "no reports to be had; the database is looked at instead");
                    stream::empty().boxed()
                })
            }
        })
        .flatten()
}

/// A control database that holds what cannot be read.
pub(crate) fn internal(error: longshore_storage::database::DatabaseError) -> Problem {
    Problem::new(ProblemKind::Internal, error.to_string())
}

/// The running phase: chunks found, handed out, committed.
struct Run {
    scan: mpsc::Receiver<ScanMessage>,
    scan_patience: Patience,
    scan_done: bool,
    window: JobWindow,
    /// When the queue of jobs was looked at last, and which it was.
    queue: Option<(Instant, i128)>,
    status: ActorRef<StatusMessage>,
    chunks_total: u64,
    rejected: u64,
    /// What of the object is kept for this node's workers.
    share: Option<Arc<Share>>,
    ahead: Option<Ahead>,
}

impl Run {
    /// Takes up what is stored and committed, and starts the scan behind it.
    async fn begin(owner: &mut Owner, plan: LoadPlan, staging: Staging) -> Step<Self> {
        let chunks = owner.chunks().await?;
        let (id, attempt) = (owner.record.id, owner.record.attempt);
        let ledger = owner.ledger().await?;
        let done = chunks.iter().filter(|chunk| chunk.state == longshore_domain::ChunkState::Done);
        let done: Vec<ChunkIndex> = done.map(|chunk| chunk.planned.chunk).collect();
        owner.check_committed(&done, &ledger)?;

        let mut window = JobWindow::new(WINDOW);
        let mut committed = Tally::default();
        for row in &ledger {
            let Some(chunk) = chunks.get(row.chunk.0 as usize) else { continue };
            window.finish(row.chunk);
            let tally =
                Tally { rows: row.rows, rejected: row.rejected, bytes: chunk.planned.object_bytes(), chunks: 1 };
            committed += tally;
            if chunk.state != longshore_domain::ChunkState::Done {
                let database = &owner.services.database;
                let finish = || database.finish_chunk(id, attempt, row.chunk, row.rejected);
                let marked = patiently(&owner.patience, "mark chunk done", finish).await;
                if marked.map_err(|gave| problem(gave, internal))? {
                    metrics().chunk_committed(tally);
                }
            }
        }
        for chunk in &chunks {
            window.add(chunk.planned.chunk);
        }
        let fold = Fold::new(owner.record.size.unwrap_or(0), chunks.len() as u64, committed, Instant::now());
        let (database, bus) = (owner.services.database.clone(), owner.services.bus.clone());
        let arguments = StatusArguments { database, bus, import: id, attempt, epoch: owner.record.epoch, fold };
        let (status, _) = Actor::spawn(None, StatusActor, arguments).await.map_err(|error| {
            tracing::error!(%error, "the status actor did not start");
            Stop::Lost
        })?;

        let (out, scan) = mpsc::channel(SCAN_AHEAD);
        let scan_patience = owner.patience.child();
        let scan_done = owner.record.scan_done;
        let head = std::mem::take(&mut owner.head);
        owner.share = None;
        let mut share = None;
        let (key, etag, size) = planner::source(&owner.record)?;
        let chunk_size = planner::chunk_size(owner.services.settings.chunk_size, size);
        if !scan_done {
            if !plan.format.is_decoded() {
                share = owner.services.kept.share(id, attempt, etag, size, staging == Staging::Object);
            }
            let scan = Scan {
                key: key.to_owned(),
                etag: etag.to_owned(),
                size,
                chunk_size,
                plan: plan.clone(),
                after: chunks.last().map(|chunk| chunk.planned.clone()),
                counted: chunks.iter().map(|chunk| chunk.planned.object_bytes()).sum(),
                ticket: owner.ticket(),
                head,
                share: share.clone(),
            };
            tokio::spawn(scan.run(owner.services.clone(), out, scan_patience.clone()).in_current_span());
        }
        let chunks_total = chunks.len() as u64;
        let is_worth_it = staging == Staging::Object
            && size >= CHUNKS_TO_BEGIN_AHEAD.saturating_mul(chunk_size)
            && size <= LARGEST_AHEAD;
        let turn = if is_worth_it { owner.services.kept.ahead() } else { None };
        let ahead = turn.map(|turn| {
            let mut ahead = Ahead::new(&owner.services, &owner.record, owner.ticket(), plan, share.clone(), turn);
            ahead.plan(chunks.into_iter().map(|chunk| chunk.planned));
            ledger.iter().for_each(|row| ahead.commit(row.chunk));
            ahead
        });
        let rejected = committed.rejected;
        Ok(Self { scan, scan_patience, scan_done, window, queue: None, status, chunks_total, rejected, share, ahead })
    }

    /// Until every chunk is committed.
    async fn work(&mut self, owner: &mut Owner) -> Step<()> {
        let mut reports = std::pin::pin!(listen(Arc::clone(&owner.services.bus), owner.record.id));
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.hand_out(owner).await?;
        while !(self.scan_done && self.window.open() == 0) {
            // In this order, so that a scan that runs ahead does not keep reports waiting.
            tokio::select! {
                biased;
                () = owner.patience.stopped() => return Err(Stop::Lost),
                _ = tick.tick() => self.look(owner).await?,
                Some(report) = reports.next() => match report.outcome {
                    _ if report.job.attempt != owner.record.attempt => {}
                    ChunkOutcome::Finished(tally) => {
                        self.see_worker(owner, report.worker.as_deref());
                        self.finished(owner, report.job.chunk, tally)?;
                    }
                    ChunkOutcome::Changed => {
                        self.look(owner).await?;
                        // A worker of the version before does not write a chunk without a staging table.
                        self.check_staged(owner, Staging::Table).await?;
                    }
                },
                message = self.scan.recv(), if !self.scan_done => match message {
                    Some(message) => self.scanned(owner, message).await?,
                    None => return Err(scan_ended(&owner.patience)),
                },
            }
            self.hand_out(owner).await?;
        }
        Ok(())
    }

    /// Stores what the scan found, and only then hands it out.
    async fn scanned(&mut self, owner: &mut Owner, message: ScanMessage) -> Step<()> {
        let (mut chunks, mut end) = match message {
            ScanMessage::Planned { chunks, end } => (chunks, end),
            ScanMessage::Failed(problem) => return Err(Stop::Fail(problem)),
        };
        // What waits already is stored along.
        while chunks.len() < STORE_AT_ONCE && !end {
            match self.scan.try_recv() {
                Ok(ScanMessage::Planned { chunks: more, end: last }) => {
                    chunks.extend(more);
                    end = last;
                }
                Ok(ScanMessage::Failed(problem)) => return Err(Stop::Fail(problem)),
                Err(_) => break,
            }
        }
        failpoint::pass("chunks.before");
        self.store(owner, &chunks, end).await?;
        failpoint::pass("chunks.after");
        self.chunks_total += chunks.len() as u64;
        for chunk in &chunks {
            self.window.add(chunk.chunk);
        }
        if let Some(ahead) = &mut self.ahead {
            ahead.plan(chunks);
        }
        self.scan_done = end;
        self.tell(StatusMessage::ChunksPlanned { total: self.chunks_total });
        Ok(())
    }

    async fn store(&self, owner: &mut Owner, chunks: &[NewChunk], end: bool) -> Step<()> {
        let ticket = owner.ticket();
        let database = &owner.services.database;
        let store = || database.store_chunks(ticket.import, ticket.attempt, ticket.epoch, chunks, end);
        let stored = patiently(&owner.patience, "store chunks", store).await;
        if stored.map_err(|gave| problem(gave, internal))? {
            owner.record.scan_done = end;
            return Ok(());
        }
        owner.reload().await?;
        if owner.record.state == ImportState::Cancelling { Err(Stop::Cancel) } else { Err(Stop::Lost) }
    }

    /// Publishes the jobs that the window has room for. `running` begins with the first.
    async fn hand_out(&mut self, owner: &mut Owner) -> Step<()> {
        let jobs = self.window.take();
        if !jobs.is_empty() && owner.record.state == ImportState::Planning {
            owner.change(Change::Run).await?;
        }
        self.publish_jobs(owner, jobs).await;
        Ok(())
    }

    /// Those that the bus did not take are published again by the window's patience.
    async fn publish_jobs(&mut self, owner: &Owner, jobs: Vec<ChunkIndex>) {
        let Ticket { import, attempt, epoch } = owner.ticket();
        let mut jobs = jobs.into_iter();
        while let Some(chunk) = jobs.next() {
            failpoint::pass("job.before");
            if let Err(error) = owner.services.bus.publish_chunk(&ChunkJob { import, attempt, epoch, chunk }).await {
                error.count();
                tracing::warn!(%error, chunk = chunk.0, "chunk jobs not published; they will be again");
                std::iter::once(chunk).chain(jobs).for_each(|chunk| self.window.not_taken(chunk));
                return;
            }
            failpoint::pass("job.after");
        }
    }

    /// A worker of another node, or of a version that does not say who it is.
    fn see_worker(&self, owner: &Owner, worker: Option<&str>) {
        if let Some(share) = &self.share
            && worker != Some(owner.services.settings.name.as_str())
        {
            share.tell_of_others();
        }
    }

    fn finished(&mut self, owner: &Owner, chunk: ChunkIndex, tally: Tally) -> Step<()> {
        if let Some(share) = &self.share {
            share.forget(chunk);
        }
        if !self.window.is_in_flight(chunk) || !self.window.finish(chunk) {
            return Ok(());
        }
        if let Some(ahead) = &mut self.ahead {
            ahead.commit(chunk);
        }
        self.rejected += tally.rejected;
        self.tell(StatusMessage::ChunksFinished(tally));
        let on_error = owner.record.request.on_error;
        if on_error.is_exceeded(self.rejected) {
            return Err(Stop::Fail(on_error.too_many(self.rejected)));
        }
        Ok(())
    }

    /// What the databases say: the truth, whatever was reported.
    async fn look(&mut self, owner: &mut Owner) -> Step<()> {
        self.ahead.take_if(|ahead| !ahead.is_under_way());
        let (was, attempt) = (owner.record.state, owner.record.attempt);
        owner.reload().await?;
        if owner.record.state == ImportState::Cancelling {
            return Err(Stop::Cancel);
        }
        if owner.record.attempt != attempt || (owner.record.state != was && owner.record.state.is_done()) {
            return Err(Stop::Lost);
        }
        if owner.record.error.is_some() {
            // What is committed by now counts, reported or not.
            if let Some(lowest) = self.window.lowest_open() {
                self.collect_done(owner, lowest, |_| true).await?;
            }
            return Err(Stop::Fail(owner.stored_error()));
        }
        owner.check_widened()?;
        let Some(lowest) = self.window.lowest_open() else { return Ok(()) };
        let id = owner.record.id;
        let database = &owner.services.database;
        let open = || database.open_chunks(id, attempt, lowest, 4 * WINDOW as u64);
        let open = patiently(&owner.patience, "look at chunks", open).await.map_err(|gave| problem(gave, internal))?;
        if let Some(poison) = open.iter().find(|chunk| chunk.claims >= CLAIMS_AT_MOST && !chunk.held) {
            let detail = format!(
                "chunk {} was tried {} times and every worker that took it ended; the workers' logs say more",
                poison.chunk, poison.claims
            );
            return Err(Stop::Fail(Problem::new(ProblemKind::PoisonChunk, detail)));
        }
        let known = |chunk: ChunkIndex| open.iter().find(|open| open.chunk == chunk);
        self.collect_done(owner, lowest, |chunk| known(chunk).is_none()).await?;
        let lost = self.window.waits_long() && self.jobs_are_lost(&*owner.services.bus).await;
        let again = self.window.tick(lost, |chunk| match known(chunk) {
            Some(open) if open.held => Republish::Held,
            Some(open) if open.claimed => Republish::Orphaned,
            _ => Republish::Unclaimed,
        });
        if !again.is_empty() {
            // Lost jobs are one reason why nobody has these chunks; another may be that whoever takes them cannot write.
            self.check_staged(owner, owner.wanted()).await?;
        }
        metrics().chunk_jobs_republished(again.len());
        self.publish_jobs(owner, again).await;
        Ok(())
    }

    /// Whether jobs that nobody took may wait no more: the queue is empty, or another one than at the last look.
    async fn jobs_are_lost(&mut self, bus: &dyn Bus) -> bool {
        if self.queue.is_some_and(|(looked, _)| looked.elapsed() < QUEUE_LOOK_EVERY) {
            return false;
        }
        match bus.depth(QueueName::Chunks).await {
            Ok(queue) => {
                let seen = self.queue.replace((Instant::now(), queue.made));
                queue.waiting == 0 || seen.is_none_or(|(_, made)| made != queue.made)
            }
            Err(error) => {
                error.count();
                tracing::debug!(%error, "the queue of chunk jobs was not looked at");
                false
            }
        }
    }

    /// Whether what was done so far is still there: staging that somebody dropped, decoded text that is gone.
    async fn check_staged(&mut self, owner: &mut Owner, wanted: Staging) -> Step<()> {
        let plan = owner.load_plan()?;
        if owner.prepare_staging(&plan, wanted).await? == Staging::Table {
            self.ahead = None;
        }
        if plan.format.is_decoded() {
            self.check_text(owner).await?;
        }
        Ok(())
    }

    /// Whether the decoded text of chunks in flight is still there.
    async fn check_text(&self, owner: &Owner) -> Step<()> {
        let (id, attempt) = (owner.record.id, owner.record.attempt);
        let Some(lowest) = self.window.lowest_open() else { return Ok(()) };
        let database = &owner.services.database;
        let read = || database.chunks(id, attempt, lowest, 4 * WINDOW as u64);
        let chunks = patiently(&owner.patience, "read chunks", read).await.map_err(|gave| problem(gave, internal))?;
        let open = chunks.into_iter().filter(|chunk| chunk.state != longshore_domain::ChunkState::Done);
        let mut parts: Vec<_> = open.filter_map(|chunk| chunk.planned.text).map(|text| (text.key, text.etag)).collect();
        parts.dedup();
        for (key, etag) in parts {
            let objects = &owner.services.objects;
            let head = patiently(&owner.patience, "look at decoded text", || objects.head(&key)).await;
            let head = head.map_err(|gave| problem(gave, |error| object_problem(&error)))?;
            if head.is_none_or(|head| head.etag != etag) {
                return Err(Stop::Restart(AttemptReason::StagingLost));
            }
        }
        Ok(())
    }

    /// Chunks in flight that the database no longer lists as open are committed, reported or not.
    async fn collect_done(
        &mut self,
        owner: &Owner,
        lowest: ChunkIndex,
        is_done: impl Fn(ChunkIndex) -> bool,
    ) -> Step<()> {
        let (id, attempt) = (owner.record.id, owner.record.attempt);
        let waiting: Vec<ChunkIndex> = self.window.in_flight().filter(|chunk| is_done(*chunk)).collect();
        let Some(last) = waiting.last() else { return Ok(()) };
        let database = &owner.services.database;
        let count = u64::from(last.0 - lowest.0) + 1;
        let read = || database.chunks(id, attempt, lowest, count);
        let chunks = patiently(&owner.patience, "read chunks", read).await.map_err(|gave| problem(gave, internal))?;
        for chunk in chunks.iter().filter(|chunk| chunk.state == longshore_domain::ChunkState::Done) {
            let tally = Tally {
                rows: chunk.planned.rows,
                rejected: chunk.rows_rejected,
                bytes: chunk.planned.object_bytes(),
                chunks: 1,
            };
            self.finished(owner, chunk.planned.chunk, tally)?;
        }
        Ok(())
    }

    fn tell(&self, message: StatusMessage) {
        if let Err(error) = self.status.cast(message) {
            tracing::warn!(%error, "the status actor is gone");
        }
    }

    /// Persists the last counters and ends scan and status.
    async fn end(self) {
        self.scan_patience.stop();
        if let Err(error) = ractor::call_t!(self.status, StatusMessage::Flush, FLUSH_PATIENCE_MS) {
            tracing::warn!(%error, "the last counters were not persisted");
        }
        self.status.stop(None);
    }
}
