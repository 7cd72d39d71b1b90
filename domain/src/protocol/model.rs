//! The protocol of `docs/protocol.md` as a model: every order in which an owner, a paused old owner, workers, crashes, lost
//! answers and lost messages can take their steps, with two chunks and two attempts. [`check`] searches all of it.
//!
//! A step is one statement or transaction of the program. Messages are hints: a job that was published is delivered any
//! number of times, or lost. Claims of chunks only save work, so the model knows none: any worker may take any chunk.
//! Time is left out: a lease that can run out may do so at once.

mod check;
mod owner;
mod worker;

use super::{Closure, Entry, Fence, enter};
use crate::ids::{Attempt, Epoch};
use crate::state::ImportState::{self, *};

/// Chunks of the file.
const CHUNKS: usize = 2;
/// Attempts at most.
const ATTEMPTS: usize = 2;
/// Epochs at most: an owner may lose its import to trouble only.
const EPOCHS: u8 = 6;
/// All chunks, as bits.
const ALL: u8 = (1 << CHUNKS) - 1;

/// Rules that a test breaks, to see that the model notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// The fence is not asked for its epoch.
    EpochUnchecked,
    /// The fence is not asked for its attempt.
    AttemptUnchecked,
    /// A publish does not ask the fence at all.
    PublishUnfenced,
    /// `failed` is said before the destination is told.
    FailsBeforeAbort,
    /// The marker is written in a transaction behind the move.
    MarkerApart,
    /// A start does not compare the state.
    StartUnconditional,
    /// A new owner leaves the fence as it is.
    FenceNotRaised,
    /// A new owner ends older sessions before it raises the fence, and not behind it.
    EndsSessionsBefore,
    /// A publish, or the drop of an old attempt's staging, waits for other sessions instead of ending them.
    WaitsForSessions,
    /// A chunk is committed without a ledger row of its own.
    LedgerUnchecked,
    /// An owner compares wider types with those it knew when it came, not with the plan.
    WidenedComparedWithRecord,
    /// An owner that is told of lost staging only looks at the control database.
    LookForgetsStaging,
    /// A worker's error is stored by its epoch alone.
    ErrorOfAnyAttempt,
    /// A change of state is not compared with the epoch.
    ChangeOfAnyEpoch,
}

/// What may happen, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Budget {
    /// Owners killed.
    crashes: u8,
    /// Owners and workers paused.
    pauses: u8,
    /// Errors of workers, too many rejects, a table that appears.
    faults: u8,
    /// Staging tables dropped by a stranger.
    losses: u8,
    /// Cancels asked for.
    cancels: u8,
    /// Retries asked for.
    retries: u8,
    /// Triggers that start once more, whatever they saw.
    late: u8,
    /// Whether chunk 1 needs wider types than the first plan has.
    widens: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Plan {
    None,
    Narrow,
    Wide,
}

/// The control row, with the chunks of its attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Control {
    state: ImportState,
    attempt: u8,
    epoch: u8,
    plan: Plan,
    /// The attempt whose error is stored; 0: none.
    error: u8,
    widened: bool,
    /// Chunks stored.
    stored: u8,
    /// Chunks marked done.
    done: u8,
}

/// An attempt's staging table and ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Staging {
    exists: bool,
    rows: [u8; CHUNKS],
    ledger: u8,
}

/// The step that an owner takes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    RaiseFence,
    EndSessions { raised: bool, closed: Option<Closure> },
    Enter(Option<Closure>),
    Plan,
    StorePlan,
    Prepare,
    Load,
    Publish,
    Mark,
    Succeed,
    StoreError,
    Abort,
    Fail,
    AbortCancelled,
    Cancel,
    Restart,
}

/// An owner and what it knows: its copy of the control row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Owner {
    epoch: u8,
    record: Control,
    /// What was known of wider types when it looked last.
    widened: bool,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Stage {
    /// It has read the import; it gets and parses.
    Read,
    /// Its transaction is open: it looked at fence and ledger and copies, with a lock on the staging table.
    Open,
    /// Its chunk is committed, and not marked.
    Committed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Worker {
    epoch: u8,
    attempt: u8,
    chunk: u8,
    wide: bool,
    paused: bool,
    stage: Stage,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct World {
    control: Control,
    fence: Option<Fence>,
    staging: [Staging; ATTEMPTS],
    /// How often each chunk's rows are in the destination.
    destination: [u8; CHUNKS],
    owner: Option<Owner>,
    /// An owner that lost its lease while it was paused.
    zombie: Option<Owner>,
    workers: [Option<Worker>; 2],
    /// Jobs of the newest epoch and attempt on the bus.
    jobs: u8,
    /// A trigger saw the object and the state before the start.
    trigger: bool,
    budget: Budget,
    /// What a step did that no step may do.
    wrong: Option<&'static str>,
}

/// A step that may come next: its name, whether it comes by itself in the end, and the world behind it.
type Next = (&'static str, bool, World);

fn bit(chunk: u8) -> u8 {
    1 << chunk
}

impl Control {
    fn next_attempt(&mut self) {
        *self = Self { attempt: self.attempt + 1, plan: Plan::None, error: 0, stored: 0, done: 0, ..*self };
    }
}

impl World {
    fn new(budget: Budget) -> Self {
        let control = Control {
            state: AwaitingUpload,
            attempt: 1,
            epoch: 0,
            plan: Plan::None,
            error: 0,
            widened: false,
            stored: 0,
            done: 0,
        };
        Self {
            control,
            fence: None,
            staging: [Staging::default(); ATTEMPTS],
            destination: [0; CHUNKS],
            owner: None,
            zombie: None,
            workers: [None; 2],
            jobs: 0,
            trigger: false,
            budget,
            wrong: None,
        }
    }

    fn set_state(&mut self, to: ImportState) {
        match self.control.state.transition(to) {
            Ok(to) => self.control.state = to,
            Err(_) => self.wrong = Some("an illegal change of state"),
        }
    }

    /// All steps that may come next.
    fn next(&self, broken: &[Broken]) -> Vec<Next> {
        let mut next = Vec::new();
        self.clients(broken, &mut next);
        if let Some(owner) = self.owner {
            let world = Self { owner: None, ..*self };
            for (name, fair, owner, world) in world.owner_steps(owner, broken) {
                next.push((name, fair, Self { owner, ..world }));
            }
            if self.budget.crashes > 0 {
                let budget = Budget { crashes: self.budget.crashes - 1, ..self.budget };
                next.push(("the owner dies", false, Self { owner: None, budget, ..*self }));
            }
            if self.budget.pauses > 0 && self.zombie.is_none() {
                let budget = Budget { pauses: self.budget.pauses - 1, ..self.budget };
                next.push(("the owner pauses", false, Self { owner: None, zombie: Some(owner), budget, ..*self }));
            }
        } else if self.control.state.needs_owner() {
            let mut world = *self;
            world.control.epoch += 1;
            if world.control.epoch > EPOCHS {
                world.wrong = Some("owners come and go without end");
            }
            world.jobs = 0;
            let (epoch, record) = (world.control.epoch, Control { done: 0, ..world.control });
            world.owner = Some(Owner { epoch, record, widened: record.widened, step: Step::RaiseFence });
            next.push(("O1 claim", true, world));
        }
        if let Some(zombie) = self.zombie {
            let world = Self { zombie: None, ..*self };
            for (name, _, zombie, world) in world.owner_steps(zombie, broken) {
                next.push((name, false, Self { zombie, ..world }));
            }
        }
        for place in 0..self.workers.len() {
            match self.workers[place] {
                Some(worker) => self.worker_steps(place, worker, broken, &mut next),
                None if place == 0 || self.workers[0].is_some() => self.deliver(place, &mut next),
                None => {}
            }
        }
        for (_, _, world) in &mut next {
            world.workers.sort_unstable();
            world.workers.reverse();
        }
        next
    }

    fn clients(&self, broken: &[Broken], next: &mut Vec<Next>) {
        let state = self.control.state;
        if state == AwaitingUpload && !self.trigger {
            next.push(("a trigger sees the object", true, Self { trigger: true, ..*self }));
            let mut world = *self;
            world.set_state(Expired);
            next.push(("S2 expire", false, world));
        }
        if self.trigger {
            let mut world = Self { trigger: false, ..*self };
            if state == AwaitingUpload || broken.contains(&Broken::StartUnconditional) {
                world.set_state(Queued);
            }
            next.push(("start", true, world));
            if self.budget.late > 0 {
                let budget = Budget { late: self.budget.late - 1, ..self.budget };
                next.push(("start, and a late trigger", false, Self { trigger: true, budget, ..world }));
            }
        }
        if self.budget.cancels > 0 && matches!(state, AwaitingUpload | Queued | Planning | Running) {
            let mut world = *self;
            world.budget.cancels -= 1;
            world.set_state(if state == AwaitingUpload { Cancelled } else { Cancelling });
            next.push(("cancel", false, world));
        }
        if self.budget.retries > 0 && state == Failed && usize::from(self.control.attempt) < ATTEMPTS {
            let mut world = *self;
            world.budget.retries -= 1;
            world.control.next_attempt();
            world.set_state(Queued);
            next.push(("retry", false, world));
        }
        let staging = usize::from(self.control.attempt) - 1;
        let free = self.workers.iter().flatten().all(|worker| worker.stage != Stage::Open);
        if self.budget.losses > 0 && staging + 1 < ATTEMPTS && free && self.staging[staging].exists {
            let mut world = *self;
            world.budget.losses -= 1;
            world.staging[staging].exists = false;
            world.staging[staging].rows = [0; CHUNKS];
            next.push(("a stranger drops the staging table", false, world));
        }
        if self.jobs != 0 {
            next.push(("the bus loses its jobs", false, Self { jobs: 0, ..*self }));
        }
    }
}
