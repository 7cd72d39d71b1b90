//! A block of a file, scanned before anybody knows what stands before it: once for each state that the machine may be in at its
//! start. Any node can do that with any block, in any order; the planner then folds the results, one after the other, and has
//! the chunks that it would have found by reading the blocks itself.
//!
//! Machines that start in different states soon come to the same one (most of them within a field), and go on as one from there:
//! what is left are the two that differ for good, within quotes and out of them. The idea is that of speculative scans of CSV
//! (Ge et al., "Speculative Distributed CSV Data Parsing for Big Data Analytics", SIGMOD 2019), with all states kept instead of the
//! likely one.
//!
//! A result is small, whatever the block: it names the few line ends where the planner may have to decide something, and sums up
//! what lies between them. [`crate::planner`] says which these are.

use serde::{Deserialize, Serialize};

use crate::boundary::{Boundary, LineKind, State};
use crate::dialect::Dialect;

/// What lies between two line ends that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Between {
    /// Records that end there.
    pub(crate) records: u64,
    /// The last line end there, and how many physical lines of the block ended up to it.
    pub(crate) last: Option<(u64, u64)>,
}

/// A line end that matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// What is passed over before it.
    pub(crate) before: Between,
    /// The place behind it, from the block's start.
    pub(crate) end: u64,
    /// What ended there.
    pub(crate) kind: LineKind,
    /// Physical lines of the block that ended up to it.
    pub(crate) lines: u64,
}

/// A block, entered in one state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entered {
    /// The first two line ends and the first two records' ends: four at most.
    pub(crate) marks: Vec<Mark>,
    /// What is behind them.
    pub(crate) rest: Between,
    /// Physical lines that end in the block.
    pub(crate) lines: u64,
    /// The state at the block's end, by its place in [`State::all`].
    pub(crate) exit: usize,
}

/// A block, entered in every state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScannedBlock {
    /// Its bytes.
    pub(crate) len: u64,
    /// One for each of [`State::all`].
    pub(crate) entered: Vec<Entered>,
}

impl ScannedBlock {
    /// Its bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What the machine of this version is called: a node folds only what the same machine found. To be raised with every change of
/// where records end, of [`State::all`] or of what is marked.
pub const MACHINE: u32 = 1;

/// Line ends of either sort that are always marked.
const MARKED: u8 = 2;

/// Machines are compared after so many bytes, then after twice as many, and so on.
const FIRST_PIECE: usize = 64;

/// Scans a range of a file, block by block: each of `size` bytes, the last one perhaps less.
#[must_use]
pub fn scan_blocks(dialect: &Dialect, bytes: &[u8], size: u64) -> Vec<ScannedBlock> {
    let size = usize::try_from(size).unwrap_or(usize::MAX).max(1);
    let states = State::all(dialect);
    bytes.chunks(size).map(|block| scan(dialect, &states, block)).collect()
}

fn scan(dialect: &Dialect, states: &[State], block: &[u8]) -> ScannedBlock {
    let mut runs: Vec<Run> = states.iter().enumerate().map(|(place, state)| Run::new(place, *state)).collect();
    let (mut at, mut piece) = (0, FIRST_PIECE);
    while at < block.len() {
        let end = block.len().min(at + piece);
        for run in &mut runs {
            run.read(dialect, &block[at..end], at);
        }
        merge(&mut runs);
        (at, piece) = (end, piece.saturating_mul(2));
    }
    let mut entered: Vec<(usize, Entered)> = runs.into_iter().flat_map(|run| run.end(states)).collect();
    entered.sort_by_key(|(place, _)| *place);
    ScannedBlock { len: block.len() as u64, entered: entered.into_iter().map(|(_, entered)| entered).collect() }
}

/// Runs that came to the same state at the same place are one from there.
fn merge(runs: &mut Vec<Run>) {
    let mut place = 0;
    while place < runs.len() {
        let (known, rest) = runs.split_at_mut(place);
        match known.iter_mut().find(|run| run.machine.state == rest[0].machine.state) {
            Some(same) => {
                same.take(&mut rest[0]);
                runs.remove(place);
            }
            None => place += 1,
        }
    }
}

/// A machine, and those that entered the block in other states and are one with it by now.
struct Run {
    machine: Boundary,
    records: u64,
    /// The last line end since runs became one, and the machine's lines there.
    last: Option<(u64, u64)>,
    members: Vec<Member>,
}

/// A state in which the block may be entered.
struct Member {
    place: usize,
    /// What its own counts are ahead of the machine's; they wrap.
    records_ahead: u64,
    lines_ahead: u64,
    marks: Vec<Mark>,
    line_ends: u8,
    record_ends: u8,
    /// Its own records at the last mark.
    marked_records: u64,
    /// Its own last line end behind the last mark, as far as it is not the machine's.
    last: Option<(u64, u64)>,
}

impl Member {
    fn is_open(&self) -> bool {
        self.record_ends < MARKED
    }

    /// A line ended; the machine had counted `records` before it, and `lines` with it.
    fn ended(&mut self, end: u64, kind: LineKind, records: u64, lines: u64) {
        let lines = lines.wrapping_add(self.lines_ahead);
        let record = kind == LineKind::Record;
        if self.line_ends >= MARKED && !record {
            self.last = Some((end, lines));
            return;
        }
        let own = records.wrapping_add(self.records_ahead);
        let before = Between { records: own.wrapping_sub(self.marked_records), last: self.last.take() };
        self.marks.push(Mark { before, end, kind, lines });
        self.line_ends = self.line_ends.saturating_add(1);
        self.record_ends += u8::from(record);
        self.marked_records = own.wrapping_add(u64::from(record));
    }

    /// Takes over the machine's last line end; an open member has seen it itself.
    fn settle(&mut self, last: Option<(u64, u64)>) {
        let marked = self.marks.last().map_or(0, |mark| mark.end);
        if let Some((end, lines)) = last.filter(|(end, _)| !self.is_open() && *end > marked) {
            self.last = Some((end, lines.wrapping_add(self.lines_ahead)));
        }
    }
}

impl Run {
    fn new(place: usize, state: State) -> Self {
        let member = Member {
            place,
            records_ahead: 0,
            lines_ahead: 0,
            marks: Vec::new(),
            line_ends: 0,
            record_ends: 0,
            marked_records: 0,
            last: None,
        };
        Self { machine: Boundary { state, lines: 0 }, records: 0, last: None, members: vec![member] }
    }

    /// Reads a piece of the block that begins at `offset`.
    fn read(&mut self, dialect: &Dialect, piece: &[u8], offset: usize) {
        let mut open = self.members.iter().any(Member::is_open);
        let mut at = 0;
        while let Some((end, kind)) = self.machine.next(dialect, piece, at) {
            at = end;
            let (end, lines) = ((offset + end) as u64, self.machine.lines);
            if open {
                let members = self.members.iter_mut().filter(|member| member.is_open());
                members.for_each(|member| member.ended(end, kind, self.records, lines));
                open = self.members.iter().any(Member::is_open);
            }
            self.records += u64::from(kind == LineKind::Record);
            self.last = Some((end, lines));
        }
    }

    /// `other` is in the same state at the same place.
    fn take(&mut self, other: &mut Self) {
        let (mine, theirs) = (self.last.take(), other.last.take());
        self.members.iter_mut().for_each(|member| member.settle(mine));
        for mut member in other.members.drain(..) {
            member.settle(theirs);
            let records = other.records.wrapping_sub(self.records);
            let lines = other.machine.lines.wrapping_sub(self.machine.lines);
            member.records_ahead = member.records_ahead.wrapping_add(records);
            member.lines_ahead = member.lines_ahead.wrapping_add(lines);
            self.members.push(member);
        }
    }

    /// The block has ended.
    fn end(mut self, states: &[State]) -> Vec<(usize, Entered)> {
        let exit = states.iter().position(|state| *state == self.machine.state).unwrap_or_default();
        let last = self.last;
        self.members.iter_mut().for_each(|member| member.settle(last));
        let entered = |member: Member| Entered {
            rest: Between {
                records: self.records.wrapping_add(member.records_ahead).wrapping_sub(member.marked_records),
                last: member.last,
            },
            lines: self.machine.lines.wrapping_add(member.lines_ahead),
            marks: member.marks,
            exit,
        };
        self.members.into_iter().map(|member| (member.place, entered(member))).collect()
    }
}
