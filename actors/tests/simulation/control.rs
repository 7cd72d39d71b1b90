//! The control database: the same statements as `storage/src/database` makes, each at one moment, over rows in memory.

use async_trait::async_trait;
use longshore_domain::{
    Attempt, ChunkIndex, ChunkState, Epoch, ImportId, ImportState, LoadPlan, Problem, Progress, Trigger,
};
use longshore_parse::{Widening, join_types};
use longshore_storage::bus::ChunkJob;
use longshore_storage::database::{
    AwaitingImport, CLAIMS_AT_MOST, Change, ChunkClaim, ChunkRecord, Control, DatabaseError, ImportRecord, LEASE,
    NewChunk, OpenChunk, Started, TextPart,
};

use crate::world::{Broken, ChunkRow, ImportRow, Link, Lost, Server, State};

impl From<Lost> for DatabaseError {
    fn from(lost: Lost) -> Self {
        Self::Unavailable { reason: lost.0.to_owned() }
    }
}

const LEASE_MS: i64 = LEASE.as_millis() as i64;

impl State {
    /// The one place where an import's state changes.
    pub fn set_state(&mut self, id: ImportId, to: ImportState) {
        let Some(row) = self.imports.get_mut(&id) else { return };
        let from = row.record.state;
        row.record.state = to;
        row.record.version += 1;
        if to.is_done() {
            row.lease_until = 0;
        }
        let error = row.record.error.clone();
        self.moved(id);
        self.note(0, &format!("{id} {from} -> {to}"));
        if from.transition(to).is_err() {
            self.violation(format!("{id} went from {from} to {to}"));
        }
        self.check_state(id, to, error.as_ref());
    }

    /// An import's row, where the epoch still owns it.
    fn owned(&mut self, id: ImportId, epoch: Epoch) -> Option<&mut ImportRow> {
        let unchecked = self.broken == Some(Broken::EpochUnchecked);
        self.imports.get_mut(&id).filter(|row| unchecked || row.record.epoch == epoch)
    }

    fn clear_counters(&mut self, id: ImportId) {
        if let Some(row) = self.imports.get_mut(&id) {
            row.record.progress = Progress::default();
            row.record.scan_done = false;
            row.record.plan = None;
        }
    }

    /// `POST …/cancel`.
    pub fn cancel(&mut self, id: ImportId) {
        match self.imports[&id].record.state {
            ImportState::AwaitingUpload => self.set_state(id, ImportState::Cancelled),
            ImportState::Queued | ImportState::Planning | ImportState::Running => {
                self.set_state(id, ImportState::Cancelling);
            }
            _ => {}
        }
    }

    /// `POST …/retry`.
    pub fn retry(&mut self, id: ImportId) {
        if self.imports[&id].record.state != ImportState::Failed {
            return;
        }
        self.clear_counters(id);
        if let Some(row) = self.imports.get_mut(&id) {
            row.record.attempt = row.record.attempt.next();
            row.record.error = None;
            row.lease_until = 0;
        }
        self.set_state(id, ImportState::Queued);
    }

    fn claim(&mut self, id: ImportId, process: usize) -> Option<ImportRecord> {
        let now = self.lease_clock(process);
        let row = self.imports.get_mut(&id)?;
        if !row.record.state.needs_owner() || row.lease_until >= now {
            return None;
        }
        row.record.epoch = row.record.epoch.next();
        let unplanned =
            matches!(row.record.state, ImportState::Queued | ImportState::Planning) && row.record.plan.is_none();
        row.record.planning_deaths = if unplanned && row.lease_until > 0 { row.record.planning_deaths + 1 } else { 0 };
        row.lease_until = now + LEASE_MS;
        let record = row.record.clone();
        self.moved(id);
        Some(record)
    }

    fn change(&mut self, id: ImportId, epoch: Epoch, from: ImportState, change: &Change) -> bool {
        if from.transition(change.to()).is_err() {
            self.violation(format!("{id} was to go from {from} to {}", change.to()));
        }
        let Some(row) = self.owned(id, epoch).filter(|row| row.record.state == from) else { return false };
        match change {
            Change::Restart { widened } => {
                row.record.attempt = row.record.attempt.next();
                row.record.error = None;
                row.record.widened = widened.clone();
                self.clear_counters(id);
            }
            Change::Plan => self.clear_counters(id),
            Change::Succeed { rows_loaded, rows_rejected } => {
                row.record.progress = Progress {
                    rows_read: rows_loaded + rows_rejected,
                    rows_loaded: *rows_loaded,
                    rows_rejected: *rows_rejected,
                    ..row.record.progress
                };
            }
            Change::Run | Change::Publish | Change::Fail | Change::Cancel => {}
        }
        if matches!(change, Change::Restart { .. }) && !self.expected[&id].starts_again {
            self.violation(format!("{id} starts again without a reason"));
        }
        self.set_state(id, change.to());
        true
    }

    fn claim_chunk(&mut self, job: &ChunkJob, worker: &str, process: usize) -> ChunkClaim {
        let now = self.lease_clock(process);
        let free = |row: &&mut ChunkRow| {
            row.record.state != ChunkState::Done && row.claim_until < now && row.record.claims < CLAIMS_AT_MOST
        };
        let Some(row) = self.chunk(job).filter(free) else { return ChunkClaim::NotNow };
        row.record.state = ChunkState::Running;
        row.record.worker = Some(worker.to_owned());
        row.record.claims += 1;
        row.claim_until = now + LEASE_MS;
        let claimed = ChunkClaim::Claimed(row.record.clone());
        self.moved(job.import);
        claimed
    }

    fn chunk(&mut self, job: &ChunkJob) -> Option<&mut ChunkRow> {
        self.chunks.get_mut(&(job.import, job.attempt.0, job.chunk))
    }

    /// A chunk that a worker holds.
    fn held_chunk(&mut self, job: &ChunkJob, worker: &str, claims: u32) -> Option<&mut ChunkRow> {
        let is_held = |record: &ChunkRecord| {
            record.state == ChunkState::Running && record.worker.as_deref() == Some(worker) && record.claims == claims
        };
        self.chunk(job).filter(|row| is_held(&row.record))
    }

    /// The chunks of an attempt from one on.
    fn chunks_from(&self, id: ImportId, attempt: Attempt, from: ChunkIndex) -> impl Iterator<Item = &ChunkRow> {
        self.chunks.range((id, attempt.0, from)..=(id, attempt.0, ChunkIndex(u32::MAX))).map(|(_, row)| row)
    }

    fn store_progress(&mut self, id: ImportId, attempt: Attempt, epoch: Epoch, progress: &Progress) -> bool {
        let shown = [ImportState::Running, ImportState::Publishing];
        let Some(row) =
            self.owned(id, epoch).filter(|row| row.record.attempt == attempt && shown.contains(&row.record.state))
        else {
            return false;
        };
        let before = row.record.progress;
        row.record.progress = Progress { chunks_total: before.chunks_total, ..*progress };
        let running = row.record.state == ImportState::Running;
        if progress.rows_read != progress.rows_loaded + progress.rows_rejected {
            self.violation(format!("{id} counts {progress:?}"));
        }
        if running && (progress.rows_read < before.rows_read || progress.chunks_done < before.chunks_done) {
            self.violation(format!("the counters of {id} went back from {before:?} to {progress:?}"));
        }
        true
    }

    fn store_chunks(
        &mut self,
        id: ImportId,
        attempt: Attempt,
        epoch: Epoch,
        new: &[NewChunk],
        scan_done: bool,
    ) -> bool {
        let Some(row) = self.owned(id, epoch).filter(|row| {
            row.record.attempt == attempt && matches!(row.record.state, ImportState::Planning | ImportState::Running)
        }) else {
            return false;
        };
        row.record.scan_done = scan_done;
        for planned in new {
            let record = ChunkRecord {
                planned: planned.clone(),
                state: ChunkState::Pending,
                rows_rejected: 0,
                worker: None,
                claims: 0,
            };
            self.chunks.entry((id, attempt.0, planned.chunk)).or_insert(ChunkRow { record, claim_until: 0 });
        }
        self.moved(id);
        true
    }

    fn widen(&mut self, id: ImportId, attempt: Attempt, epoch: Epoch, widenings: &[Widening]) -> bool {
        let Some(row) = self.owned(id, epoch).filter(|row| row.record.attempt == attempt) else { return false };
        let Some(plan) = row.record.plan.clone() else { return false };
        for widening in widenings {
            let Some(field) = plan.fields.get(widening.column) else { continue };
            let wider = match row.record.widened.get(&field.name) {
                Some(known) => join_types(known, &widening.to),
                None => widening.to.clone(),
            };
            row.record.widened.insert(field.name.clone(), wider);
        }
        true
    }
}

/// The control database as one process knows it.
pub struct SimControl(pub Link);

impl SimControl {
    async fn call<T>(&self, what: String, effect: impl FnOnce(&mut State) -> T) -> Result<T, DatabaseError> {
        Ok(self.0.call(Server::Control, &what, effect).await?)
    }
}

#[async_trait]
impl Control for SimControl {
    async fn import(&self, id: ImportId) -> Result<Option<ImportRecord>, DatabaseError> {
        let read = |state: &mut State| state.imports.get(&id).map(|row| row.record.clone());
        self.call(format!("reads {id}"), read).await
    }

    async fn start(&self, id: ImportId, trigger: Trigger, size: u64, etag: &str) -> Result<Started, DatabaseError> {
        let start = |state: &mut State| {
            let unconditional = state.broken == Some(Broken::SweepUnconditional) && trigger == Trigger::Sweep;
            let Some(row) = state.imports.get_mut(&id) else { return Started::Unknown };
            if row.record.state != ImportState::AwaitingUpload && !unconditional {
                return Started::Before(row.record.state);
            }
            row.record.trigger = Some(trigger);
            row.record.size = Some(size);
            row.record.etag = Some(etag.to_owned());
            state.set_state(id, ImportState::Queued);
            Started::Now
        };
        self.call(format!("starts {id} by {}", trigger.as_str()), start).await
    }

    async fn newest_awaiting(&self) -> Result<Option<ImportId>, DatabaseError> {
        let newest = |state: &mut State| {
            let mut awaiting = state.imports.values().filter(|row| row.record.state == ImportState::AwaitingUpload);
            awaiting.next_back().map(|row| row.record.id)
        };
        self.call("looks for the newest awaiting import".to_owned(), newest).await
    }

    async fn awaiting(
        &self,
        after: Option<ImportId>,
        last: Option<ImportId>,
        limit: u64,
    ) -> Result<Vec<AwaitingImport>, DatabaseError> {
        let list = |state: &mut State| {
            let rows = state.imports.values().map(|row| &row.record);
            rows.filter(|record| record.state == ImportState::AwaitingUpload)
                .filter(|record| after.is_none_or(|after| record.id > after))
                .filter(|record| last.is_none_or(|last| record.id <= last))
                .take(limit as usize)
                .map(|record| AwaitingImport { id: record.id, object_key: record.object_key.clone() })
                .collect()
        };
        self.call("lists awaiting imports".to_owned(), list).await
    }

    async fn ownerless(&self, limit: u64) -> Result<Vec<ImportId>, DatabaseError> {
        let process = self.0.process;
        let list = |state: &mut State| {
            let now = state.lease_clock(process);
            let rows = state.imports.values();
            rows.filter(|row| row.record.state.needs_owner() && row.lease_until < now)
                .take(limit as usize)
                .map(|row| row.record.id)
                .collect()
        };
        self.call("lists ownerless imports".to_owned(), list).await
    }

    /// No URL ends here: an import whose time is over is made by the tests of the database.
    async fn expire(&self, id: ImportId, _: i64) -> Result<bool, DatabaseError> {
        let expire = |state: &mut State| {
            let given_up = state.expected.get(&id).is_some_and(|expected| expected.never_uploaded);
            let awaits = state.imports.get(&id).is_some_and(|row| row.record.state == ImportState::AwaitingUpload);
            let unconditional = state.broken == Some(Broken::SweepUnconditional);
            if !given_up || !(awaits || unconditional) {
                return false;
            }
            state.set_state(id, ImportState::Expired);
            true
        };
        self.call(format!("expires {id}"), expire).await
    }

    async fn claim(&self, id: ImportId, owner: &str) -> Result<Option<ImportRecord>, DatabaseError> {
        let process = self.0.process;
        self.call(format!("{owner} claims {id}"), |state| state.claim(id, process)).await
    }

    async fn renew(&self, id: ImportId, epoch: Epoch) -> Result<Option<ImportState>, DatabaseError> {
        let process = self.0.process;
        let renew = |state: &mut State| {
            let until = state.lease_clock(process) + LEASE_MS;
            let row = state.owned(id, epoch)?;
            row.lease_until = until;
            Some(row.record.state)
        };
        self.call(format!("renews {id}"), renew).await
    }

    async fn release(&self, id: ImportId, epoch: Epoch) -> Result<(), DatabaseError> {
        let release = |state: &mut State| {
            if let Some(row) = state.owned(id, epoch) {
                row.lease_until = 0;
            }
        };
        self.call(format!("releases {id}"), release).await
    }

    async fn change(
        &self,
        id: ImportId,
        epoch: Epoch,
        from: ImportState,
        change: &Change,
    ) -> Result<bool, DatabaseError> {
        self.call(format!("changes {id} to {}", change.to()), |state| state.change(id, epoch, from, change)).await
    }

    async fn store_plan(&self, id: ImportId, epoch: Epoch, plan: &LoadPlan) -> Result<bool, DatabaseError> {
        let store = |state: &mut State| {
            let planning = |row: &&mut ImportRow| row.record.state == ImportState::Planning;
            let Some(row) = state.owned(id, epoch).filter(planning) else { return false };
            row.record.plan = Some(plan.clone());
            state.moved(id);
            true
        };
        self.call(format!("stores the plan of {id}"), store).await
    }

    async fn store_error(
        &self,
        id: ImportId,
        attempt: Attempt,
        epoch: Epoch,
        states: &[ImportState],
        problem: &Problem,
    ) -> Result<bool, DatabaseError> {
        let store = |state: &mut State| {
            let Some(row) = state
                .owned(id, epoch)
                .filter(|row| row.record.attempt == attempt && states.contains(&row.record.state))
            else {
                return false;
            };
            row.record.error = Some(problem.clone());
            true
        };
        self.call(format!("stores an error of {id}: {problem}"), store).await
    }

    async fn store_progress(
        &self,
        id: ImportId,
        attempt: Attempt,
        epoch: Epoch,
        progress: &Progress,
    ) -> Result<bool, DatabaseError> {
        self.call(format!("stores counters of {id}"), |state| state.store_progress(id, attempt, epoch, progress)).await
    }

    async fn store_chunks(
        &self,
        id: ImportId,
        attempt: Attempt,
        epoch: Epoch,
        new: &[NewChunk],
        scan_done: bool,
    ) -> Result<bool, DatabaseError> {
        let store = |state: &mut State| state.store_chunks(id, attempt, epoch, new, scan_done);
        self.call(format!("stores {} chunks of {id}, attempt {attempt}", new.len()), store).await
    }

    async fn chunks(
        &self,
        id: ImportId,
        attempt: Attempt,
        from: ChunkIndex,
        limit: u64,
    ) -> Result<Vec<ChunkRecord>, DatabaseError> {
        let read = |state: &mut State| {
            state.chunks_from(id, attempt, from).take(limit as usize).map(|row| row.record.clone()).collect()
        };
        self.call(format!("reads chunks of {id}"), read).await
    }

    async fn open_chunks(
        &self,
        id: ImportId,
        attempt: Attempt,
        from: ChunkIndex,
        limit: u64,
    ) -> Result<Vec<OpenChunk>, DatabaseError> {
        let process = self.0.process;
        let read = |state: &mut State| {
            let now = state.lease_clock(process);
            let open = state.chunks_from(id, attempt, from).filter(|row| row.record.state != ChunkState::Done);
            open.take(limit as usize)
                .map(|row| OpenChunk {
                    chunk: row.record.planned.chunk,
                    claimed: row.record.state == ChunkState::Running,
                    held: row.claim_until >= now,
                    claims: row.record.claims,
                })
                .collect()
        };
        self.call(format!("looks at open chunks of {id}"), read).await
    }

    async fn free_chunks(&self, id: ImportId, attempt: Attempt) -> Result<(), DatabaseError> {
        let free = |state: &mut State| {
            let chunks = state.chunks.range_mut((id, attempt.0, ChunkIndex(0))..=(id, attempt.0, ChunkIndex(u32::MAX)));
            for (_, row) in chunks.filter(|(_, row)| row.record.state == ChunkState::Running) {
                row.record.state = ChunkState::Pending;
                row.claim_until = 0;
            }
        };
        self.call(format!("frees chunks of {id}"), free).await
    }

    async fn claim_chunk(&self, job: &ChunkJob, worker: &str) -> Result<ChunkClaim, DatabaseError> {
        let process = self.0.process;
        let what = format!("claims chunk {} of {}, attempt {}", job.chunk, job.import, job.attempt);
        self.call(what, |state| state.claim_chunk(job, worker, process)).await
    }

    async fn keep_chunk(&self, job: &ChunkJob, worker: &str, claims: u32) -> Result<bool, DatabaseError> {
        let process = self.0.process;
        let keep = |state: &mut State| {
            let until = state.lease_clock(process) + LEASE_MS;
            let Some(row) = state.held_chunk(job, worker, claims) else { return false };
            row.claim_until = until;
            true
        };
        self.call(format!("keeps chunk {} of {}", job.chunk, job.import), keep).await
    }

    async fn release_chunk(&self, job: &ChunkJob, worker: &str, claims: u32) -> Result<(), DatabaseError> {
        let release = |state: &mut State| {
            if let Some(row) = state.held_chunk(job, worker, claims) {
                row.record.state = ChunkState::Pending;
                row.record.claims = row.record.claims.saturating_sub(1);
                row.claim_until = 0;
            }
        };
        self.call(format!("releases chunk {} of {}", job.chunk, job.import), release).await
    }

    async fn widen(
        &self,
        id: ImportId,
        attempt: Attempt,
        epoch: Epoch,
        widenings: &[Widening],
    ) -> Result<bool, DatabaseError> {
        self.call(format!("widens {id}"), |state| state.widen(id, attempt, epoch, widenings)).await
    }

    async fn finish_chunk(
        &self,
        id: ImportId,
        attempt: Attempt,
        chunk: ChunkIndex,
        rejected: u64,
    ) -> Result<bool, DatabaseError> {
        let finish = |state: &mut State| {
            let Some(row) = state.chunks.get_mut(&(id, attempt.0, chunk)) else { return false };
            if row.record.state == ChunkState::Done {
                return false;
            }
            row.record.state = ChunkState::Done;
            row.record.rows_rejected = rejected;
            state.moved(id);
            true
        };
        self.call(format!("marks chunk {chunk} of {id}, attempt {attempt}, done"), finish).await
    }

    async fn rejected(&self, id: ImportId, attempt: Attempt) -> Result<u64, DatabaseError> {
        let sum = |state: &mut State| {
            let done = state.chunks_from(id, attempt, ChunkIndex(0)).filter(|row| row.record.state == ChunkState::Done);
            done.map(|row| row.record.rows_rejected).sum()
        };
        self.call(format!("counts rejects of {id}"), sum).await
    }

    async fn announce_text_part(&self, _: TextPart) -> Result<bool, DatabaseError> {
        unreachable!("no file here is packed")
    }

    async fn stale_text_parts(&self, _: Option<ImportId>, _: u64) -> Result<Vec<TextPart>, DatabaseError> {
        Ok(Vec::new())
    }

    async fn forget_text_part(&self, _: TextPart) -> Result<(), DatabaseError> {
        unreachable!("no file here is packed")
    }
}
