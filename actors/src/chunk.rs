//! One chunk on a worker: claim, get, parse, write, commit, and only then acknowledge. Three functions in a row, not three
//! actors. Called by the worker factory ([`crate::pool`]); tells the import's owner by a report, which is a hint.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use longshore_domain::{ByteRange, ImportState, LineNumber, LoadPlan, OnError, Problem, ProblemKind, RowNumber, Tally};
use longshore_parse::{Batch, ChunkEnd, ChunkInput, Widening, find_records, oversized_reject, read_chunk};
use longshore_storage::bus::{ChunkJob, ChunkOutcome, ChunkReport, Receipt};
use longshore_storage::database::{ChunkClaim, ImportRecord, LEASE, NewChunk, RENEW_EVERY};
use longshore_storage::destination::{ChunkRows, DestinationError, RecordLookup, Ticket, Written};
use longshore_storage::failpoint;
use longshore_storage::failure::Failure as _;
use longshore_storage::objects::ObjectError;
use longshore_telemetry::{JobOutcome, Step, metrics, step_span, timed};

use crate::off_thread::off_thread;
use crate::patience::{Gave, Patience, Tries, patiently};
use crate::planner::{destination_problem, problem};
use crate::services::Services;

/// Of a record that is too large, this much is fetched for the reject.
pub(crate) const OVERSIZED_SAMPLE: u64 = 64 * 1024;

/// What became of a job. In every case the message is answered for; the database is the truth.
#[derive(Debug)]
enum Outcome {
    /// The chunk is committed.
    Finished(Tally),
    /// Nothing to do here: another worker, another epoch, or done before.
    NotOurs,
    /// The owner has to look at the import.
    LookAgain,
    /// This node stops; somebody else has to do it.
    HandBack,
    /// Reading it panicked. The claim stays, and runs out, as that of a worker that died: so it counts.
    Panicked,
}

impl Outcome {
    /// Its word in the metrics.
    fn label(&self) -> JobOutcome {
        match self {
            Self::Finished(_) => JobOutcome::Finished,
            Self::NotOurs => JobOutcome::NotOurs,
            Self::LookAgain => JobOutcome::LookAgain,
            Self::HandBack | Self::Panicked => JobOutcome::HandedBack,
        }
    }
}

/// Works on a chunk job to its end, or until patience ends: with this node, or with a dependency.
pub async fn work_on_chunk(services: &Services, job: ChunkJob, receipt: &dyn Receipt, patience: &Patience) {
    let begun = Instant::now();
    let _busy = metrics().chunk_worker_busy();
    let outcome = match try_chunk(services, job, receipt, patience).await {
        Ok(outcome) => outcome,
        Err(Gave::Stopped) => Outcome::HandBack,
        Err(Gave::Up(problem)) => fail_import(services, job, &problem).await,
    };
    metrics().chunk_job(outcome.label(), begun.elapsed());
    tracing::debug!(?outcome, "chunk job ended");
    let report = match outcome {
        Outcome::Finished(tally) => Some(ChunkOutcome::Finished(tally)),
        Outcome::LookAgain => Some(ChunkOutcome::Changed),
        Outcome::NotOurs | Outcome::HandBack | Outcome::Panicked => None,
    };
    if let Some(outcome) = report
        && let worker = Some(services.settings.name.clone())
        && let Err(error) = services.bus.report(&ChunkReport { job, outcome, worker }).await
    {
        error.count();
        tracing::debug!(%error, "report not sent; the owner finds the chunk in the database");
    }
    failpoint::pass("chunk.reported");
    let answered = match outcome {
        Outcome::HandBack => receipt.hand_back(Duration::ZERO).await,
        Outcome::Panicked => receipt.hand_back(LEASE).await,
        _ => receipt.ack().await,
    };
    if let Err(error) = answered {
        error.count();
        tracing::debug!(%error, "job not acknowledged; it comes again and finds its chunk done");
    }
}

/// Claims the chunk and works on it while a heartbeat keeps claim and message.
async fn try_chunk(
    services: &Services,
    job: ChunkJob,
    receipt: &dyn Receipt,
    patience: &Patience,
) -> Result<Outcome, Gave<Problem>> {
    let database = &services.database;
    let read = || database.import(job.import);
    let Some(record) = patiently(patience, "read import", read).await.map_err(no_problem)? else {
        return Ok(Outcome::NotOurs);
    };
    let current = record.epoch == job.epoch
        && record.attempt == job.attempt
        && matches!(record.state, ImportState::Planning | ImportState::Running)
        // What fails begins no new chunk.
        && record.error.is_none();
    let (Some(plan), Some(etag), true) = (&record.plan, &record.etag, current) else {
        return Ok(Outcome::NotOurs);
    };
    let worker = &services.settings.name;
    failpoint::pass("chunk.before");
    let claim = patiently(patience, "claim chunk", || database.claim_chunk(&job, worker)).await.map_err(no_problem)?;
    let ChunkClaim::Claimed(chunk) = claim else {
        return Ok(Outcome::NotOurs);
    };
    failpoint::pass("chunk.claimed");
    // Cancelled when the claim is lost, or the node stops.
    let lost = patience.child();
    let work = load(services, job, &record, plan, etag, chunk.planned, &lost);
    let outcome = tokio::select! {
        biased;
        outcome = work => outcome,
        () = keep(services, job, chunk.claims, receipt, &lost) => Err(Gave::Stopped),
    };
    match &outcome {
        Ok(Outcome::Finished(_) | Outcome::Panicked) => {}
        // Done or not, this worker no longer works on it: the next one need not wait for the claim to run out.
        _ => {
            if let Err(error) = database.release_chunk(&job, worker, chunk.claims).await {
                error.count();
                tracing::debug!(%error, "claim not released; it runs out");
            }
        }
    }
    outcome
}

/// Renews claim and message; returns when the claim is lost.
async fn keep(services: &Services, job: ChunkJob, claims: u32, receipt: &dyn Receipt, lost: &Patience) {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        if let Err(error) = receipt.keep().await {
            error.count();
            tracing::debug!(%error, "job not kept");
        }
        match services.database.keep_chunk(&job, &services.settings.name, claims).await {
            Ok(true) => {}
            Ok(false) => {
                metrics().chunk_claim_lost();
                tracing::warn!("the claim of this chunk was lost");
                lost.stop();
                return;
            }
            // The fence decides at the commit, not this clock.
            Err(error) => {
                error.count();
                tracing::warn!(%error, "the claim of this chunk was not renewed");
            }
        }
    }
}

/// Get; parse and write at the same time; commit.
async fn load(
    services: &Services,
    job: ChunkJob,
    record: &ImportRecord,
    plan: &LoadPlan,
    etag: &str,
    chunk: NewChunk,
    patience: &Patience,
) -> Result<Outcome, Gave<Problem>> {
    let bytes = match services.kept.take(&job, &chunk, etag) {
        Some(bytes) => bytes,
        None => {
            let fetched = timed(Step::Fetch, fetch(services, &record.object_key, etag, &chunk, patience)).await?;
            let Some(bytes) = fetched else { return Ok(Outcome::LookAgain) };
            metrics().bytes_fetched(bytes.len() as u64);
            bytes
        }
    };
    failpoint::pass("chunk.got");
    let source =
        Arc::new(ChunkAtHand { plan: plan.clone(), bytes, chunk: chunk.clone(), work: tracing::Span::current() });
    let lookup = ChunkLookup(Arc::clone(&source));
    let ticket = Ticket { import: job.import, attempt: job.attempt, epoch: job.epoch };
    let on_error = record.request.on_error;
    let mut tries = Tries::new(patience, "write chunk");
    let written = loop {
        let rows = Arc::clone(&source) as Arc<dyn ChunkRows>;
        let write = services.destination.write_chunk(ticket, job.chunk, plan, on_error, rows, &lookup);
        let error = match timed(Step::Write, write).await {
            Ok(written) => break written,
            Err(error) => error,
        };
        match tries.failed(error).await {
            Ok(()) => {}
            Err(Gave::Up(DestinationError::StagingLost { reason })) => {
                tracing::warn!(reason, "staging is gone");
                return Ok(Outcome::LookAgain);
            }
            Err(Gave::Up(error @ DestinationError::ReaderFailed { .. })) => {
                tracing::error!(%error, "reading a chunk panicked");
                return Ok(Outcome::Panicked);
            }
            Err(gave) => return Err(problem(gave, destination_problem)),
        }
    };
    let tally = match written {
        Written::Committed(tally) => tally,
        Written::Fenced => {
            metrics().fence_refused();
            tracing::info!("the fence refused this chunk");
            return Ok(Outcome::NotOurs);
        }
        Written::Widen(widenings) => {
            return match store_widenings(services, job, &widenings, patience).await? {
                true => Ok(Outcome::LookAgain),
                false => Ok(Outcome::NotOurs),
            };
        }
    };
    let finish = || services.database.finish_chunk(job.import, job.attempt, job.chunk, tally.rejected);
    let marked = patiently(patience, "mark chunk done", finish).await.map_err(no_problem)?;
    failpoint::pass("chunk.marked");
    let tally = Tally { bytes: chunk.object_bytes(), chunks: 1, ..tally };
    if marked {
        metrics().chunk_committed(tally);
    }
    if tally.rejected > 0 {
        check_rejects(services, job, on_error, patience).await?;
    }
    Ok(Outcome::Finished(tally))
}

/// Past the limit nobody begins a new chunk, whether the owner heard of this one or not.
async fn check_rejects(
    services: &Services,
    job: ChunkJob,
    on_error: OnError,
    patience: &Patience,
) -> Result<(), Gave<Problem>> {
    if on_error.max_rejects.is_none() {
        return Ok(());
    }
    let count = || services.database.rejected(job.import, job.attempt);
    let rejected = patiently(patience, "count rejects", count).await.map_err(no_problem)?;
    if on_error.is_exceeded(rejected) {
        // The owner comes to the same by its own count, should this be lost.
        fail_import(services, job, &on_error.too_many(rejected)).await;
    }
    Ok(())
}

/// Where a chunk's bytes are: of the object that was planned, or of its decoded text; of an oversized record the beginning.
pub(crate) fn place_of<'a>(chunk: &'a NewChunk, key: &'a str, etag: &'a str) -> (&'a str, ByteRange, &'a str) {
    match &chunk.text {
        Some(text) => (&text.key, text.range, &text.etag),
        None if chunk.oversized => {
            let start = chunk.range.start.0;
            (key, ByteRange::new(start, chunk.range.end.0.min(start + OVERSIZED_SAMPLE)), etag)
        }
        None => (key, chunk.range, etag),
    }
}

/// The chunk's bytes; `None` where they were decoded text that is gone.
async fn fetch(
    services: &Services,
    key: &str,
    etag: &str,
    chunk: &NewChunk,
    patience: &Patience,
) -> Result<Option<Bytes>, Gave<Problem>> {
    let (key, range, etag) = place_of(chunk, key, etag);
    if range.is_empty() {
        return Ok(Some(Bytes::new()));
    }
    match patiently(patience, "get chunk", || services.objects.get_range(key, range, etag)).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Gave::Stopped) => Err(Gave::Stopped),
        Err(Gave::Up(error @ (ObjectError::Missing { .. } | ObjectError::Changed { .. }))) if chunk.text.is_some() => {
            tracing::warn!(%error, "decoded text is gone");
            Ok(None)
        }
        Err(Gave::Up(error)) => Err(Gave::Up(object_problem(&error))),
    }
}

/// The problem of an object that is not what was planned.
pub(crate) fn object_problem(error: &ObjectError) -> Problem {
    let kind = match error {
        ObjectError::Missing { .. } | ObjectError::Changed { .. } => ProblemKind::ObjectChanged,
        ObjectError::Unavailable { .. } | ObjectError::Refused { .. } => ProblemKind::Unavailable,
    };
    let what_to_do = match kind {
        ProblemKind::ObjectChanged => "upload it again as a new import",
        _ => "retry the import once it answers",
    };
    Problem::new(kind, format!("{error}; {what_to_do}"))
}

pub(crate) fn chunk_input<'a>(bytes: &'a [u8], chunk: &NewChunk) -> ChunkInput<'a> {
    ChunkInput { bytes, start: chunk.range.start, first_row: chunk.first_row, first_line: chunk.first_line }
}

/// See [`ChunkRows::read`].
pub(crate) fn read_rows(
    plan: &LoadPlan,
    bytes: &[u8],
    chunk: &NewChunk,
    sink: &mut dyn FnMut(Batch) -> bool,
) -> Option<ChunkEnd> {
    let input = chunk_input(bytes, chunk);
    if chunk.oversized { oversized_reject(plan, input).replay(sink) } else { read_chunk(plan, input, sink) }
}

/// Stores the types that this chunk needs, for the owner to start a new attempt with.
async fn store_widenings(
    services: &Services,
    job: ChunkJob,
    widenings: &[Widening],
    patience: &Patience,
) -> Result<bool, Gave<Problem>> {
    let store = || services.database.widen(job.import, job.attempt, job.epoch, widenings);
    patiently(patience, "store wider types", store).await.map_err(no_problem)
}

/// Stores why the import cannot go on; the owner aborts it.
async fn fail_import(services: &Services, job: ChunkJob, problem: &Problem) -> Outcome {
    let working = [ImportState::Planning, ImportState::Running];
    match services.database.store_error(job.import, job.attempt, job.epoch, &working, problem).await {
        Ok(_) => Outcome::LookAgain,
        Err(error) => {
            error.count();
            tracing::warn!(%error, "the reason was not stored; the chunk will be tried again");
            Outcome::HandBack
        }
    }
}

/// A control database that holds what cannot be read is no fault of the file's.
fn no_problem(gave: Gave<longshore_storage::database::DatabaseError>) -> Gave<Problem> {
    match gave {
        Gave::Stopped => Gave::Stopped,
        Gave::Up(error) => Gave::Up(Problem::new(ProblemKind::Internal, error.to_string())),
    }
}

/// The chunk that is at hand.
struct ChunkAtHand {
    plan: LoadPlan,
    bytes: Bytes,
    chunk: NewChunk,
    /// Whose step it is: it is read on another thread.
    work: tracing::Span,
}

impl ChunkRows for ChunkAtHand {
    fn read(&self, sink: &mut dyn FnMut(Batch) -> bool) -> Option<ChunkEnd> {
        let _step = self.work.in_scope(|| step_span(Step::Parse)).entered();
        let begun = Instant::now();
        let mut elsewhere = Duration::ZERO;
        let end = read_rows(&self.plan, &self.bytes, &self.chunk, &mut |batch| {
            let handed = Instant::now();
            let go_on = sink(batch);
            elsewhere += handed.elapsed();
            go_on
        });
        metrics().step(Step::Parse, begun.elapsed().saturating_sub(elsewhere));
        failpoint::pass("chunk.parsed");
        end
    }
}

/// Finds raw records in it.
struct ChunkLookup(Arc<ChunkAtHand>);

#[async_trait]
impl RecordLookup for ChunkLookup {
    async fn find(&self, rows: &[RowNumber]) -> Result<Vec<(RowNumber, LineNumber, Vec<u8>)>, DestinationError> {
        let (source, rows) = (Arc::clone(&self.0), rows.to_vec());
        off_thread(move || find_records(&source.plan, chunk_input(&source.bytes, &source.chunk), &rows))
            .await
            .map_err(|error| DestinationError::Unavailable { reason: error.to_string() })
    }
}
