//! Which chunk jobs to publish next: a bounded window, so that one giant import starves nobody (design, invariant 10), and
//! jobs again that the bus may have lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ids::ChunkIndex;

/// When an unanswered job is published again, in ticks of the owner (a second, or sooner where it has a reason to look): soon
/// at first, then more and more rarely, since a job that merely waits for its turn must not fill the queue.
const REPUBLISH_AFTER: u32 = 5;
/// The longest wait between two publications of one job, in ticks.
const REPUBLISH_AT_MOST: u32 = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct InFlight {
    /// Ticks since it was published last.
    age: u32,
    /// Ticks until it is published again.
    patience: u32,
}

/// What the database says of a chunk whose job is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Republish {
    /// A worker holds its claim.
    Held,
    /// Nobody works on it; its job may be lost, or wait.
    Unclaimed,
    /// A worker claimed it and is gone.
    Orphaned,
}

/// The jobs of one attempt.
#[derive(Debug, Clone, Default)]
pub struct JobWindow {
    size: usize,
    waiting: VecDeque<ChunkIndex>,
    in_flight: BTreeMap<ChunkIndex, InFlight>,
    done: BTreeSet<ChunkIndex>,
}

impl JobWindow {
    /// A window of at most `size` jobs in flight.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self { size: size.max(1), ..Self::default() }
    }

    /// A chunk is stored and not done.
    pub fn add(&mut self, chunk: ChunkIndex) {
        if !self.done.contains(&chunk) && !self.in_flight.contains_key(&chunk) && !self.waiting.contains(&chunk) {
            self.waiting.push_back(chunk);
        }
    }

    /// The jobs to publish now. They are in flight from here on.
    pub fn take(&mut self) -> Vec<ChunkIndex> {
        let room = self.size.saturating_sub(self.in_flight.len()).min(self.waiting.len());
        let jobs: Vec<_> = self.waiting.drain(..room).collect();
        for job in &jobs {
            self.in_flight.insert(*job, InFlight { age: 0, patience: REPUBLISH_AFTER });
        }
        jobs
    }

    /// The bus did not take a job: it is tried again with the first patience, since it waits in no queue.
    pub fn not_taken(&mut self, chunk: ChunkIndex) {
        if let Some(flight) = self.in_flight.get_mut(&chunk) {
            *flight = InFlight { age: 0, patience: REPUBLISH_AFTER };
        }
    }

    /// A chunk is committed. Returns whether that is news.
    pub fn finish(&mut self, chunk: ChunkIndex) -> bool {
        self.in_flight.remove(&chunk);
        self.waiting.retain(|waiting| *waiting != chunk);
        self.done.insert(chunk)
    }

    /// Whether a job waits for about the first patience, or longer: then it is worth a look at the queue that holds it.
    #[must_use]
    pub fn waits_long(&self) -> bool {
        self.in_flight.values().any(|flight| flight.age + 1 >= REPUBLISH_AFTER)
    }

    /// A tick passed: which of the jobs in flight to publish once more, by what the database says of each. `lost`: no job
    /// waits on the bus, or it is another queue by now, so those that nobody holds are not there any more.
    pub fn tick(&mut self, lost: bool, look: impl Fn(ChunkIndex) -> Republish) -> Vec<ChunkIndex> {
        let mut again = Vec::new();
        for (chunk, flight) in &mut self.in_flight {
            flight.age += 1;
            if lost {
                flight.patience = REPUBLISH_AFTER;
            }
            let due = match look(*chunk) {
                Republish::Held => {
                    *flight = InFlight { age: 0, patience: REPUBLISH_AFTER };
                    false
                }
                // At the first tick behind a claim that was held until then; afterwards the job waits like any other.
                Republish::Orphaned => flight.age == 1 || flight.age >= flight.patience,
                Republish::Unclaimed => flight.age >= flight.patience,
            };
            if due {
                *flight = InFlight { age: 1, patience: (flight.patience * 2).min(REPUBLISH_AT_MOST) };
                again.push(*chunk);
            }
        }
        again
    }

    /// Chunks that are stored and not committed.
    #[must_use]
    pub fn open(&self) -> usize {
        self.waiting.len() + self.in_flight.len()
    }

    /// The lowest chunk that is not committed, among those known.
    #[must_use]
    pub fn lowest_open(&self) -> Option<ChunkIndex> {
        self.in_flight.keys().next().copied().into_iter().chain(self.waiting.iter().min().copied()).min()
    }

    /// The chunks whose jobs are in flight, ascending.
    pub fn in_flight(&self) -> impl Iterator<Item = ChunkIndex> + '_ {
        self.in_flight.keys().copied()
    }

    /// Whether a job of this chunk is in flight.
    #[must_use]
    pub fn is_in_flight(&self, chunk: ChunkIndex) -> bool {
        self.in_flight.contains_key(&chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(numbers: impl IntoIterator<Item = u32>) -> Vec<ChunkIndex> {
        numbers.into_iter().map(ChunkIndex).collect()
    }

    #[test]
    fn no_more_jobs_are_in_flight_than_the_window_holds() {
        let mut window = JobWindow::new(3);
        for chunk in chunks(0..10) {
            window.add(chunk);
        }
        assert_eq!(window.take(), chunks(0..3));
        assert!(window.take().is_empty());
        assert!(window.finish(ChunkIndex(1)));
        assert!(!window.finish(ChunkIndex(1)), "a report that comes twice is no news");
        assert_eq!(window.take(), chunks([3]));
        assert_eq!(window.open(), 9);
        assert_eq!(window.lowest_open(), Some(ChunkIndex(0)));
    }

    #[test]
    fn a_chunk_that_is_done_before_its_job_is_never_published() {
        let mut window = JobWindow::new(3);
        window.finish(ChunkIndex(0));
        window.add(ChunkIndex(0));
        window.add(ChunkIndex(1));
        window.finish(ChunkIndex(1));
        assert!(window.take().is_empty());
        assert_eq!(window.open(), 0);
    }

    #[test]
    fn an_orphan_is_published_at_once_and_a_silent_job_with_growing_patience() {
        let mut window = JobWindow::new(3);
        window.add(ChunkIndex(0));
        window.add(ChunkIndex(1));
        window.take();
        let look = |chunk: ChunkIndex| {
            if chunk.0 == 0 { Republish::Orphaned } else { Republish::Unclaimed }
        };
        let ticks: Vec<_> = (1..=16).map(|_| window.tick(false, look)).collect();
        let published =
            |chunk| (1..=16).filter(|tick| ticks[tick - 1].contains(&ChunkIndex(chunk))).collect::<Vec<_>>();
        assert_eq!(published(0), [1, 10]);
        assert_eq!(published(1), [5, 14]);
    }

    #[test]
    fn a_job_that_is_not_in_the_queue_is_published_as_soon_as_at_first() {
        let mut window = JobWindow::new(1);
        window.add(ChunkIndex(0));
        window.take();
        let ticks: Vec<usize> = (1..=30)
            .filter(|_| {
                let lost = window.waits_long();
                !window.tick(lost, |_| Republish::Unclaimed).is_empty()
            })
            .collect();
        assert_eq!(ticks, [5, 9, 13, 17, 21, 25, 29]);
    }

    #[test]
    fn jobs_of_a_queue_that_was_lost_are_all_published_as_soon_as_at_first() {
        let mut window = JobWindow::new(2);
        window.add(ChunkIndex(0));
        window.take();
        let tick = |window: &mut JobWindow, lost| window.tick(lost, |_| Republish::Unclaimed);
        let ticks: Vec<_> = (1..=14).map(|_| tick(&mut window, false)).collect();
        assert_eq!((&ticks[4], &ticks[13]), (&chunks([0]), &chunks([0])), "its patience is 20 ticks from here");
        window.add(ChunkIndex(1));
        window.take();
        // It is noticed once, while none of them is due.
        let ticks: Vec<_> = (15..=20).map(|number| tick(&mut window, number == 16)).collect();
        assert_eq!(ticks, [vec![], vec![], vec![], chunks([0]), chunks([1]), vec![]]);
    }

    #[test]
    fn a_job_that_the_bus_did_not_take_is_tried_again_as_soon_as_at_first() {
        let mut window = JobWindow::new(1);
        window.add(ChunkIndex(0));
        window.take();
        let ticks: Vec<_> = (1..=20)
            .filter(|_| {
                let again = window.tick(false, |_| Republish::Unclaimed);
                again.iter().for_each(|chunk| window.not_taken(*chunk));
                !again.is_empty()
            })
            .collect();
        assert_eq!(ticks, [5, 10, 15, 20]);
    }

    #[test]
    fn a_job_that_a_worker_holds_is_left_alone() {
        let mut window = JobWindow::new(1);
        window.add(ChunkIndex(0));
        window.take();
        assert!((0..100).all(|_| window.tick(false, |_| Republish::Held).is_empty()));
    }
}
