//! A worker's steps, and the destination's answers that owners and workers share.

use super::*;

impl World {
    /// Whether a transaction of that epoch and attempt may commit.
    pub(super) fn admits(&self, epoch: u8, attempt: u8, broken: &[Broken]) -> bool {
        self.fence.is_some_and(|fence| {
            let epoch = if broken.contains(&Broken::EpochUnchecked) { fence.epoch } else { Epoch(i64::from(epoch)) };
            let attempt =
                if broken.contains(&Broken::AttemptUnchecked) { fence.attempt } else { Attempt(u32::from(attempt)) };
            fence.admits(epoch, attempt)
        })
    }

    /// Ends sessions: what they did is rolled back, and their workers try again. `all`: the newest epoch's too.
    pub(super) fn end_sessions(&mut self, epoch: u8, attempt: u8, all: bool) {
        for worker in self.workers.iter_mut().flatten().filter(|worker| worker.stage == Stage::Open) {
            let whose = (worker.epoch, worker.attempt);
            if whose < (epoch, attempt) || (all && whose == (epoch, attempt)) {
                worker.stage = Stage::Read;
            }
        }
    }

    /// Whether no open transaction holds a lock on an attempt's staging table.
    pub(super) fn unlocked(&self, attempt: u8) -> bool {
        !self.workers.iter().flatten().any(|worker| worker.stage == Stage::Open && worker.attempt == attempt)
    }

    /// W1: a job comes, and the worker reads the import.
    pub(super) fn deliver(&self, place: usize, next: &mut Vec<Next>) {
        let Control { state, attempt, epoch, plan, stored, done, .. } = self.control;
        for chunk in 0..CHUNKS as u8 {
            let known = self.jobs & bit(chunk) != 0 && chunk < stored && done & bit(chunk) == 0;
            if known && matches!(state, Planning | Running) && plan != Plan::None {
                let worker =
                    Worker { epoch, attempt, chunk, wide: plan == Plan::Wide, paused: false, stage: Stage::Read };
                let mut world = *self;
                world.workers[place] = Some(worker);
                next.push(("W1 claim the chunk", true, world));
            }
        }
    }

    pub(super) fn worker_steps(&self, place: usize, worker: Worker, broken: &[Broken], next: &mut Vec<Next>) {
        let mut push = |name, fair, worker: Option<Worker>, world: Self| {
            let mut world = world;
            world.workers[place] = worker;
            next.push((name, fair, world));
        };
        push("a worker dies, or its answer is lost", false, None, *self);
        if self.budget.pauses > 0 && !self.workers.iter().flatten().any(|worker| worker.paused) {
            let mut world = *self;
            world.budget.pauses -= 1;
            push("a worker pauses", false, Some(Worker { paused: true, ..worker }), world);
        }
        let Worker { epoch, attempt, chunk, .. } = worker;
        let (fair, staging) = (!worker.paused, usize::from(attempt) - 1);
        let mut world = *self;
        let mine = world.control.epoch == epoch && world.control.attempt == attempt;
        match worker.stage {
            Stage::Read if self.budget.widens && chunk == 1 && !worker.wide => {
                world.control.widened |= mine;
                push("W3 store wider types", fair, None, world);
            }
            Stage::Read => {
                if self.budget.faults > 0 {
                    let mut world = *self;
                    world.budget.faults -= 1;
                    let loading = matches!(world.control.state, Planning | Running);
                    if (mine && loading)
                        || (world.control.epoch == epoch && broken.contains(&Broken::ErrorOfAnyAttempt))
                    {
                        world.control.error = attempt;
                    }
                    push("W2 store an error", false, None, world);
                }
                let there = self.staging[staging];
                let after = if there.ledger & bit(chunk) != 0 {
                    Some(Worker { stage: Stage::Committed, ..worker })
                } else if self.admits(epoch, attempt, broken) && there.exists {
                    Some(Worker { stage: Stage::Open, ..worker })
                } else {
                    None
                };
                push("W4 begin", fair, after, *self);
            }
            Stage::Open => {
                let there = &mut world.staging[staging];
                let twice = there.ledger & bit(chunk) != 0;
                if twice && !broken.contains(&Broken::LedgerUnchecked) {
                    push("W4 find the ledger row", fair, Some(Worker { stage: Stage::Committed, ..worker }), world);
                } else if self.admits(epoch, attempt, broken) {
                    there.rows[usize::from(chunk)] += 1;
                    there.ledger |= bit(chunk);
                    push("W4 commit", fair, Some(Worker { stage: Stage::Committed, ..worker }), world);
                } else {
                    push("W4 the fence refuses", fair, None, world);
                }
            }
            Stage::Committed => {
                if world.control.attempt == attempt {
                    world.control.done |= bit(chunk);
                }
                push("W5 mark done", fair, None, world);
            }
        }
    }
}
