//! The search through all worlds, what must hold in each, and the tests.

use std::collections::{HashMap, VecDeque};

use super::*;

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
    let mut known = HashMap::from([(first, 0_u32)]);
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

const QUIET: Budget = Budget { crashes: 0, pauses: 0, faults: 0, losses: 0, cancels: 0, retries: 0, widens: false };

#[test]
fn explore() {
    for budget in [
        QUIET,
        Budget { crashes: 1, ..QUIET },
        Budget { crashes: 1, pauses: 1, ..QUIET },
        Budget { crashes: 1, pauses: 1, cancels: 1, ..QUIET },
        Budget { pauses: 1, losses: 1, ..QUIET },
        Budget { pauses: 1, faults: 1, ..QUIET },
        Budget { pauses: 1, widens: true, ..QUIET },
        Budget { pauses: 1, faults: 1, retries: 1, ..QUIET },
    ] {
        let time = std::time::Instant::now();
        let found = search(budget, &[]);
        eprintln!("{budget:?} {found:?} {:?}", time.elapsed());
    }
}
