//! An owner's steps, as the text names them. Each takes the world without the owner and says which owner is left.

use super::*;

/// A step's name, whether it comes by itself in the end, the owner behind it (`None`: it is gone, its lease is let go), and
/// the world behind it.
type OwnerStep = (&'static str, bool, Option<Owner>, World);

impl Owner {
    fn at(self, step: Step) -> Option<Self> {
        Some(Self { step, ..self })
    }

    /// Reads the import again; `None`: another owner has it.
    fn reload(self, world: &World) -> Option<Self> {
        let record = Control { done: 0, ..world.control };
        (record.epoch == self.epoch).then_some(Self { record, widened: record.widened, ..self })
    }

    /// A compare-and-set of the state, and where the owner goes on: at `step`, or where a cancel or another owner sends it.
    fn change(self, world: &mut World, to: ImportState, step: Step, broken: &[Broken]) -> Option<Self> {
        let owned = world.control.epoch == self.epoch || broken.contains(&Broken::ChangeOfAnyEpoch);
        if owned && world.control.state == self.record.state {
            world.set_state(to);
            if to == Queued {
                let state = world.control.state;
                world.control.next_attempt();
                world.control.state = state;
                world.jobs = 0;
                return self.reload(world)?.at(step);
            }
            let record = Control { state: to, ..self.record };
            return Self { record, ..self }.at(step);
        }
        let owner = self.reload(world)?;
        match owner.record.state {
            state if state == to => owner.at(step),
            Cancelling => owner.at(Step::AbortCancelled),
            _ => None,
        }
    }
}

impl World {
    pub(super) fn owner_steps(self, owner: Owner, broken: &[Broken]) -> Vec<OwnerStep> {
        let mut world = self;
        let (epoch, attempt) = (owner.epoch, owner.record.attempt);
        let has = |rule| broken.contains(&rule);
        let one = |name, owner, world| vec![(name, true, owner, world)];
        match owner.step {
            Step::RaiseFence => {
                let (e, a) = (Epoch(i64::from(epoch)), Attempt(u32::from(attempt)));
                if has(Broken::FenceNotRaised) && world.fence.is_some() {
                    let closed = world.fence.and_then(|fence| fence.closed);
                    return one("O2 left out", owner.at(Step::Enter(closed)), world);
                }
                let Some(fence) = Fence::raise(world.fence, e, a) else { return one("O2 refused", None, world) };
                if has(Broken::EndsSessionsBefore) {
                    world.end_sessions(epoch, attempt, false);
                    return one("O2 end sessions", owner.at(Step::EndSessions { raised: false, closed: None }), world);
                }
                world.fence = Some(fence);
                let step = Step::EndSessions { raised: true, closed: fence.closed };
                one("O2 raise the fence", owner.at(step), world)
            }
            Step::EndSessions { raised: true, closed } => {
                world.end_sessions(epoch, attempt, false);
                one("O2 end sessions", owner.at(Step::Enter(closed)), world)
            }
            Step::EndSessions { raised: false, .. } => {
                let raised = Fence::raise(world.fence, Epoch(i64::from(epoch)), Attempt(u32::from(attempt)));
                let Some(fence) = raised else { return one("O2 refused", None, world) };
                world.fence = Some(fence);
                one("O2 raise the fence", owner.at(Step::Enter(fence.closed)), world)
            }
            Step::Enter(closed) => {
                let Control { state, plan, error, .. } = owner.record;
                let step = match enter(state, plan != Plan::None, error != 0, closed) {
                    Entry::Plan => Step::Plan,
                    Entry::Resume => Step::Prepare,
                    Entry::Publish => Step::Publish,
                    Entry::RecordPublished => Step::Succeed,
                    Entry::Fail => Step::Abort,
                    Entry::Cancel => Step::AbortCancelled,
                    Entry::Nothing => return one("O2 nothing to own", None, world),
                    Entry::Contradiction => {
                        world.wrong = Some("the databases contradict each other");
                        return one("O2 contradiction", None, world);
                    }
                };
                // An owner that fails with a stored error, and would say so first.
                let early = step == Step::Abort && has(Broken::FailsBeforeAbort);
                one("O2 enter", owner.at(if early { Step::Fail } else { step }), world)
            }
            Step::Plan if owner.record.state == Queued => {
                let after = owner.change(&mut world, Planning, Step::StorePlan, broken);
                one("O3 queued -> planning", after, world)
            }
            Step::Plan => one("O4 plan", owner.at(Step::StorePlan), world),
            Step::StorePlan => {
                let plan = if owner.record.widened { Plan::Wide } else { Plan::Narrow };
                if world.control.epoch == epoch && world.control.state == Planning {
                    world.control.plan = plan;
                    let record = Control { plan, ..owner.record };
                    return one("O4 store the plan", Owner { record, ..owner }.at(Step::Prepare), world);
                }
                let cancelling = world.control.state == Cancelling;
                let after = owner.reload(&world).filter(|_| cancelling);
                one("O4 refused", after.and_then(|owner| owner.at(Step::AbortCancelled)), world)
            }
            Step::Prepare => world.prepare(owner, broken),
            Step::Load => world.load(owner, broken),
            Step::Publish => world.publish(owner, broken),
            Step::Mark => {
                world.fence = world.fence.map(|fence| Fence { closed: Some(Closure::Published), ..fence });
                one("O9 mark", owner.at(Step::Succeed), world)
            }
            Step::Succeed => {
                let done = owner.change(&mut world, Succeeded, Step::Succeed, broken);
                one("O10 succeed", done.filter(|owner| owner.step != Step::Succeed), world)
            }
            Step::StoreError => {
                if world.control.epoch != epoch {
                    return one("A0 refused", None, world);
                }
                world.control.error = attempt;
                let record = Control { error: attempt, ..owner.record };
                let step = if has(Broken::FailsBeforeAbort) { Step::Fail } else { Step::Abort };
                one("A0 store the reason", Owner { record, ..owner }.at(step), world)
            }
            Step::Abort | Step::AbortCancelled => {
                let owner = if owner.step == Step::Abort { Some(owner) } else { owner.reload(&world) };
                let Some(owner) = owner else { return one("A1 lost", None, world) };
                world.abort(owner, broken)
            }
            Step::Fail => {
                let after = owner.change(&mut world, Failed, Step::Fail, broken);
                let late = has(Broken::FailsBeforeAbort) && after.is_some_and(|owner| owner.step == Step::Fail);
                let after = if late { owner.at(Step::Abort) } else { after.filter(|owner| owner.step != Step::Fail) };
                one("A2 fail", after, world)
            }
            Step::Cancel => {
                let after = owner.change(&mut world, Cancelled, Step::Cancel, broken);
                one("A2 cancel", after.filter(|owner| owner.step != Step::Cancel), world)
            }
            Step::Restart => {
                let Some(owner) = owner.reload(&world) else { return one("R1 lost", None, world) };
                if usize::from(attempt) == ATTEMPTS {
                    world.wrong = Some("one attempt more than there were reasons for");
                    return one("R1 once too often", None, world);
                }
                let after = owner.change(&mut world, Queued, Step::RaiseFence, broken);
                one("R1 restart", after, world)
            }
        }
    }

    /// O5: drops what other attempts left, makes this one's staging table.
    fn prepare(mut self, owner: Owner, broken: &[Broken]) -> Vec<OwnerStep> {
        let (epoch, attempt) = (owner.epoch, owner.record.attempt);
        if !self.admits(epoch, attempt, broken) {
            return vec![("O5 refused", true, None, self)];
        }
        for other in 0..ATTEMPTS {
            if other + 1 == usize::from(attempt) {
                continue;
            }
            if !self.unlocked(other as u8 + 1) {
                if broken.contains(&Broken::WaitsForSessions) || broken.contains(&Broken::EndsSessionsBefore) {
                    return Vec::new();
                }
                self.end_sessions(epoch, attempt, false);
            }
            self.staging[other] = Staging::default();
        }
        let there = &mut self.staging[usize::from(attempt) - 1];
        if !there.exists && there.ledger != 0 {
            return vec![("O5 staging lost", true, owner.at(Step::Restart), self)];
        }
        there.exists = true;
        vec![("O5 prepare", true, owner.at(Step::Load), self)]
    }

    /// O6 to O8: chunks are stored, handed out, waited for.
    fn load(self, owner: Owner, broken: &[Broken]) -> Vec<OwnerStep> {
        let mut next = Vec::new();
        let (epoch, attempt) = (owner.epoch, owner.record.attempt);
        let now = self.control;
        let mine = now.epoch == epoch && now.attempt == attempt;
        if usize::from(owner.record.stored) < CHUNKS {
            if mine && matches!(now.state, Planning | Running) {
                let mut world = self;
                world.control.stored = owner.record.stored + 1;
                let record = Control { stored: world.control.stored, ..owner.record };
                next.push(("O6 store a chunk", true, Some(Owner { record, ..owner }), world));
            } else {
                let after = owner.reload(&self).filter(|owner| owner.record.state == Cancelling);
                next.push(("O6 refused", true, after.and_then(|owner| owner.at(Step::AbortCancelled)), self));
            }
        }
        for chunk in 0..owner.record.stored {
            if self.jobs & bit(chunk) != 0 && mine || now.done & bit(chunk) != 0 {
                continue;
            }
            let mut world = self;
            let after = match owner.record.state {
                Planning => owner.change(&mut world, Running, Step::Load, broken),
                _ => Some(owner),
            };
            if mine && after.is_some_and(|owner| owner.step == Step::Load) {
                world.jobs |= bit(chunk);
            }
            next.push(("O7 publish a job", true, after, world));
        }
        let looked =
            owner.reload(&self).filter(|owner| owner.record.attempt == attempt && !owner.record.state.is_done());
        let narrow = if broken.contains(&Broken::WidenedComparedWithRecord) {
            now.widened != owner.widened
        } else {
            now.widened && owner.record.plan == Plan::Narrow
        };
        let looked = looked.and_then(|looked| match looked.record.state {
            Cancelling => looked.at(Step::AbortCancelled),
            _ if looked.record.error != 0 => {
                looked.at(if broken.contains(&Broken::FailsBeforeAbort) { Step::Fail } else { Step::Abort })
            }
            _ if narrow => looked.at(Step::Restart),
            _ => Some(looked),
        });
        next.push(("O7 look", true, looked, self));
        if !broken.contains(&Broken::LookForgetsStaging) {
            next.push(("O7 look at staging", true, owner.at(Step::Prepare), self));
        }
        if usize::from(owner.record.stored) == CHUNKS && now.done == ALL && mine {
            let mut world = self;
            let after = owner.change(&mut world, Publishing, Step::Publish, broken);
            next.push(("O8 publishing", true, after, world));
        }
        if self.budget.faults > 0 {
            let mut world = self;
            world.budget.faults -= 1;
            next.push(("too many rejects", false, owner.at(Step::StoreError), world));
        }
        next
    }

    /// O9: fence, ledger, move and marker in one transaction.
    fn publish(mut self, owner: Owner, broken: &[Broken]) -> Vec<OwnerStep> {
        let (epoch, attempt) = (owner.epoch, owner.record.attempt);
        if !self.admits(epoch, attempt, broken) && !broken.contains(&Broken::PublishUnfenced) {
            let published = self.fence.is_some_and(|fence| {
                fence.epoch <= Epoch(i64::from(epoch)) && fence.closed == Some(Closure::Published)
            });
            return vec![("O9 the fence answers", true, owner.at(Step::Succeed).filter(|_| published), self)];
        }
        let mut next = Vec::new();
        if self.budget.faults > 0 && usize::from(attempt) < ATTEMPTS {
            let mut world = self;
            world.budget.faults -= 1;
            next.push(("O9 the table appeared", false, owner.at(Step::Restart), world));
        }
        let there = self.staging[usize::from(attempt) - 1];
        if !there.exists {
            next.push(("O9 staging lost", true, owner.at(Step::Restart), self));
            return next;
        }
        if there.ledger != ALL {
            next.push(("O9 counts differ", true, owner.at(Step::StoreError), self));
            return next;
        }
        if !self.unlocked(attempt) {
            if broken.contains(&Broken::WaitsForSessions) {
                return next;
            }
            self.end_sessions(epoch, attempt, true);
        }
        for (chunk, rows) in there.rows.iter().enumerate() {
            self.destination[chunk] += rows;
        }
        self.staging[usize::from(attempt) - 1] = Staging::default();
        if broken.contains(&Broken::MarkerApart) {
            next.push(("O9 move", true, owner.at(Step::Mark), self));
            return next;
        }
        self.fence = self.fence.map(|fence| Fence { closed: Some(Closure::Published), ..fence });
        next.push(("O9 publish", true, owner.at(Step::Succeed), self));
        next.push(("O9 publish, answer lost", false, Some(owner), self));
        next
    }

    /// A1: closes the fence and drops what was staged.
    fn abort(mut self, owner: Owner, broken: &[Broken]) -> Vec<OwnerStep> {
        let (epoch, attempt) = (owner.epoch, owner.record.attempt);
        let (e, a) = (Epoch(i64::from(epoch)), Attempt(u32::from(attempt)));
        let newer = |fence: Fence| fence.epoch > e || (fence.epoch == e && fence.attempt > a);
        if self.fence.is_some_and(newer) {
            return vec![("A1 refused", true, None, self)];
        }
        if self.fence.is_some_and(|fence| fence.closed == Some(Closure::Published)) {
            let again = owner.reload(&self).and_then(|owner| owner.at(Step::RaiseFence));
            return vec![("A1 published before", true, again, self)];
        }
        self.end_sessions(epoch, attempt, true);
        self.staging = [Staging::default(); ATTEMPTS];
        self.fence = Some(Fence { epoch: e, attempt: a, closed: Some(Closure::Aborted) });
        let step = match owner.step {
            Step::AbortCancelled => owner.at(Step::Cancel),
            _ if broken.contains(&Broken::FailsBeforeAbort) => None,
            _ => owner.at(Step::Fail),
        };
        vec![("A1 abort", true, step, self)]
    }
}
