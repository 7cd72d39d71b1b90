//! The search through all worlds, what must hold in each, and the tests.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::*;

/// A quick hash: there are millions of worlds, and nobody chooses them to collide.
#[derive(Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }
}

/// What a search found.
#[derive(Debug)]
struct Found {
    worlds: usize,
    /// What is wrong, and the steps that lead there.
    fault: Option<(&'static str, Vec<&'static str>)>,
}

impl World {
    /// What must hold in every world.
    fn fault(&self) -> Option<&'static str> {
        let nothing_staged = self.staging.iter().all(|there| *there == Staging::default());
        let rows = |count| self.destination.iter().all(|rows| *rows == count);
        if self.wrong.is_some() {
            return self.wrong;
        }
        if self.destination.iter().any(|rows| *rows > 1) {
            return Some("rows are in the destination twice");
        }
        match self.control.state {
            Succeeded if !rows(1) => Some("succeeded without all rows"),
            Failed | Cancelled | Expired if !rows(0) => Some("rows of an import that did not succeed"),
            state if state.is_done() && !nothing_staged => Some("staging is left behind"),
            Failed if self.control.error != self.control.attempt => Some("failed without a reason of this attempt"),
            _ => None,
        }
    }
}

/// Breadth-first through every world, then backwards from the ends through the steps that come by themselves.
fn search(budget: Budget, broken: &[Broken]) -> Found {
    let first = World::new(budget);
    let mut known: HashMap<World, u32, BuildHasherDefault<Quick>> = HashMap::default();
    known.insert(first, 0);
    let mut from: Vec<(u32, &'static str)> = vec![(0, "")];
    let mut queue = VecDeque::from([(0_u32, first)]);
    let (mut ends, mut fair_steps) = (Vec::new(), Vec::new());
    while let Some((number, world)) = queue.pop_front() {
        if let Some(fault) = world.fault() {
            return Found { worlds: known.len(), fault: Some((fault, way(&from, number))) };
        }
        if world.control.state.is_done() {
            ends.push(number);
        }
        for (name, fair, next) in world.next(broken) {
            let fresh = known.len() as u32;
            let to = *known.entry(next).or_insert(fresh);
            if to == fresh {
                from.push((number, name));
                queue.push_back((to, next));
            }
            if fair {
                fair_steps.push((to, number));
            }
        }
    }
    fair_steps.sort_unstable();
    let mut ending = vec![false; known.len()];
    while let Some(end) = ends.pop() {
        if std::mem::replace(&mut ending[end as usize], true) {
            continue;
        }
        let begin = fair_steps.partition_point(|(to, _)| *to < end);
        ends.extend(fair_steps[begin..].iter().take_while(|(to, _)| *to == end).map(|(_, before)| *before));
    }
    let stuck = ending.iter().position(|ending| !ending);
    Found { worlds: known.len(), fault: stuck.map(|number| ("no way leads to an end", way(&from, number as u32))) }
}

/// The steps to a world.
fn way(from: &[(u32, &'static str)], mut number: u32) -> Vec<&'static str> {
    let mut steps = Vec::new();
    while number != 0 {
        let (before, name) = from[number as usize];
        steps.push(name);
        number = before;
    }
    steps.reverse();
    steps
}

const QUIET: Budget =
    Budget { crashes: 0, pauses: 0, faults: 0, losses: 0, cancels: 0, retries: 0, late: 0, widens: false };

/// Nothing breaks a promise, whatever happens within the budget.
fn holds(budget: Budget) {
    let Found { worlds, fault } = search(budget, &[]);
    assert_eq!(fault, None, "{budget:?}");
    assert!(worlds > 1000, "the search saw {worlds} worlds of {budget:?} only");
}

#[test]
fn holds_without_trouble() {
    holds(QUIET);
    holds(Budget { late: 2, ..QUIET });
    holds(Budget { widens: true, ..QUIET });
}

#[test]
fn holds_when_owners_die() {
    holds(Budget { crashes: 2, ..QUIET });
    holds(Budget { crashes: 1, cancels: 1, ..QUIET });
    holds(Budget { crashes: 2, widens: true, ..QUIET });
    holds(Budget { crashes: 1, faults: 1, retries: 1, ..QUIET });
    holds(Budget { crashes: 1, losses: 1, ..QUIET });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "a search of half a million worlds: run it with --release")]
fn holds_when_a_paused_owner_or_worker_wakes() {
    holds(Budget { pauses: 2, ..QUIET });
    holds(Budget { crashes: 1, pauses: 1, ..QUIET });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "a search of half a million worlds: run it with --release")]
fn holds_when_a_cancel_meets_a_sleeper() {
    holds(Budget { crashes: 1, pauses: 1, cancels: 1, ..QUIET });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "a search of half a million worlds: run it with --release")]
fn holds_when_an_import_fails_and_is_tried_again_beside_a_sleeper() {
    holds(Budget { pauses: 1, faults: 1, retries: 1, ..QUIET });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "a search of half a million worlds: run it with --release")]
fn holds_when_attempts_are_repeated_beside_a_sleeper() {
    holds(Budget { pauses: 1, widens: true, ..QUIET });
    holds(Budget { pauses: 1, losses: 1, ..QUIET });
    holds(Budget { pauses: 1, faults: 1, ..QUIET });
}

/// Each rule, broken on purpose, is found, with the least trouble that shows it.
#[test]
fn a_broken_rule_is_found() {
    use Broken::*;
    let dies = Budget { crashes: 1, ..QUIET };
    let wakes = Budget { pauses: 1, ..QUIET };
    for (rule, budget) in [
        (EpochUnchecked, Budget { faults: 1, ..wakes }),
        (PublishUnfenced, wakes),
        (FailsBeforeAbort, Budget { faults: 1, ..QUIET }),
        (MarkerApart, dies),
        (StartUnconditional, Budget { late: 1, ..QUIET }),
        (FenceNotRaised, dies),
        (EndsSessionsBefore, Budget { widens: true, ..wakes }),
        (WaitsForSessions, wakes),
        (LedgerUnchecked, QUIET),
        (WidenedComparedWithRecord, Budget { widens: true, ..dies }),
        (LookForgetsStaging, Budget { losses: 1, ..QUIET }),
        (ErrorOfAnyAttempt, Budget { faults: 1, widens: true, ..QUIET }),
        (ChangeOfAnyEpoch, Budget { faults: 1, ..wakes }),
    ] {
        let found = search(budget, &[rule]);
        assert!(found.fault.is_some(), "{rule:?} was not noticed in {} worlds", found.worlds);
    }
}

/// The fence's attempt is a second line: attempts have staging tables of their own, and a raised fence ends older sessions.
/// Should this fail, it has become the first line.
#[test]
fn the_attempt_is_a_second_line_of_the_fence() {
    for budget in [Budget { crashes: 1, widens: true, ..QUIET }, Budget { faults: 1, retries: 1, ..QUIET }] {
        assert_eq!(search(budget, &[Broken::AttemptUnchecked]).fault, None);
    }
}
