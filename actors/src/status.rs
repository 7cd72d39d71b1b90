//! Status: folds chunk reports into counters and persists them, at most four times a second and at the end. One actor an
//! import, made and messaged by its owner.
//!
//! Counters come from committed chunks only, each counted once, so they never go back within an attempt and always
//! `rows_read = rows_loaded + rows_rejected`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::time::Instant;

use longshore_domain::{Attempt, Epoch, ImportId, Progress, Tally};
use longshore_storage::bus::Bus;
use longshore_storage::database::Control;
use longshore_storage::failpoint;
use longshore_storage::failure::Failure as _;

/// Between two writes of the counters: four a second.
const PERSIST_EVERY: Duration = Duration::from_millis(250);

/// Rates are measured over this long.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// What the owner tells.
pub enum StatusMessage {
    /// The scan found more chunks.
    ChunksPlanned {
        /// In all.
        total: u64,
    },
    /// Chunks were committed; each is told of once.
    ChunksFinished(Tally),
    /// Persist now, if anything changed; sent by the actor to itself.
    Persist,
    /// Persist the last counters and answer.
    Flush(RpcReplyPort<()>),
}

impl std::fmt::Debug for StatusMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ChunksPlanned { .. } => "ChunksPlanned",
            Self::ChunksFinished(_) => "ChunksFinished",
            Self::Persist => "Persist",
            Self::Flush(_) => "Flush",
        })
    }
}

/// The fold: counters and a rate, from tallies and times. Pure.
#[derive(Debug)]
pub struct Fold {
    bytes_total: u64,
    chunks_total: u64,
    done: Tally,
    /// Bytes and rows at moments of the last seconds; the first is where the rate is measured from.
    samples: VecDeque<(Instant, Tally)>,
}

impl Fold {
    /// Begins with what an earlier owner saw committed.
    #[must_use]
    pub fn new(bytes_total: u64, chunks_total: u64, done: Tally, now: Instant) -> Self {
        Self { bytes_total, chunks_total, done, samples: VecDeque::from([(now, done)]) }
    }

    fn add(&mut self, tally: Tally, now: Instant) {
        self.done += tally;
        self.samples.push_back((now, self.done));
        // One sample from before the window stays, so that a chunk that takes longer than the window still has a rate.
        while self.samples.len() > 2 && self.samples.get(1).is_some_and(|(time, _)| now - *time > RATE_WINDOW) {
            self.samples.pop_front();
        }
    }

    /// The counters, with a rate over the last seconds where one can be told.
    #[must_use]
    pub fn progress(&self, now: Instant) -> Progress {
        let mut progress = Progress::of(self.bytes_total, self.chunks_total, self.done);
        let Some((since, before)) = self.samples.front() else { return progress };
        let seconds = now.duration_since(*since).as_secs_f64();
        let (rows, bytes) = (self.done.rows - before.rows, self.done.bytes - before.bytes);
        if seconds > 0.0 && bytes > 0 {
            progress.rows_per_second = Some(round(rows as f64 / seconds));
            let left = self.bytes_total.saturating_sub(self.done.bytes) as f64;
            progress.eta_seconds = Some(round(left * seconds / bytes as f64));
        }
        progress
    }
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// The actor.
pub struct StatusActor;

/// What it knows.
pub struct StatusState {
    database: Arc<dyn Control>,
    bus: Arc<dyn Bus>,
    import: ImportId,
    attempt: Attempt,
    epoch: Epoch,
    fold: Fold,
    changed: bool,
}

/// What it begins with.
pub struct StatusArguments {
    /// Where counters are persisted.
    pub database: Arc<dyn Control>,
    /// Where watchers hear of it.
    pub bus: Arc<dyn Bus>,
    /// Whose.
    pub import: ImportId,
    /// Of which attempt.
    pub attempt: Attempt,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// What is known.
    pub fold: Fold,
}

impl Actor for StatusActor {
    type Msg = StatusMessage;
    type State = StatusState;
    type Arguments = StatusArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<StatusMessage>,
        arguments: StatusArguments,
    ) -> Result<StatusState, ActorProcessingErr> {
        let StatusArguments { database, bus, import, attempt, epoch, fold } = arguments;
        myself.send_interval(PERSIST_EVERY, || StatusMessage::Persist);
        Ok(StatusState { database, bus, import, attempt, epoch, fold, changed: true })
    }

    async fn handle(
        &self,
        _: ActorRef<StatusMessage>,
        message: StatusMessage,
        state: &mut StatusState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            StatusMessage::ChunksPlanned { total } => state.fold.chunks_total = state.fold.chunks_total.max(total),
            StatusMessage::ChunksFinished(tally) => {
                state.fold.add(tally, Instant::now());
                state.changed = true;
            }
            StatusMessage::Persist => state.persist().await,
            StatusMessage::Flush(reply) => {
                state.changed = true;
                state.persist().await;
                // The owner may have stopped waiting.
                let _ = reply.send(());
            }
        }
        Ok(())
    }
}

impl StatusState {
    async fn persist(&mut self) {
        if !self.changed {
            return;
        }
        let progress = self.fold.progress(Instant::now());
        failpoint::pass("status.before");
        match self.database.store_progress(self.import, self.attempt, self.epoch, &progress).await {
            Ok(stored) => {
                failpoint::pass("status.after");
                self.changed = false;
                if stored {
                    tell_watchers(&*self.bus, self.import).await;
                }
            }
            Err(error) => {
                error.count();
                tracing::debug!(import_id = %self.import, %error, "progress not persisted; next time");
            }
        }
    }
}

/// A hint that an import changed; it may be lost, watchers look by themselves, too.
pub(crate) async fn tell_watchers(bus: &dyn Bus, import: ImportId) {
    if let Err(error) = bus.changed(import).await {
        tracing::debug!(import_id = %import, %error, "watchers were not told of a change");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_the_last_seconds() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut fold = Fold::new(1000, 10, Tally::default(), start);
        assert_eq!(fold.progress(at(1)).rows_per_second, None, "nothing is known before the first chunk");
        fold.add(Tally { rows: 50, rejected: 5, bytes: 100, chunks: 1 }, at(1));
        let progress = fold.progress(at(1));
        assert_eq!((progress.rows_per_second, progress.eta_seconds), (Some(50.0), Some(9.0)));
        assert_eq!(progress.rows_read, progress.rows_loaded + progress.rows_rejected);
        for second in 2..30 {
            fold.add(Tally { rows: 10, rejected: 0, bytes: 20, chunks: 1 }, at(second));
        }
        let progress = fold.progress(at(29));
        let rate = progress.rows_per_second.unwrap();
        assert!((9.0..12.0).contains(&rate), "{rate}");
        assert_eq!(progress.chunks_done, 29);
    }

    #[test]
    fn a_stall_slows_the_rate_down() {
        let start = Instant::now();
        let mut fold = Fold::new(1000, 10, Tally::default(), start);
        fold.add(Tally { rows: 50, rejected: 0, bytes: 100, chunks: 1 }, start + Duration::from_secs(1));
        let later = fold.progress(start + Duration::from_secs(100));
        assert_eq!(later.rows_per_second, Some(0.5));
    }
}
