//! Where the table begins in a file, and how many records are its header.
//!
//! A wrong guess here loses rows without a word, so each needs evidence that data does not give by chance; without it, the first
//! record is the header.

use longshore_domain::{ColumnType, Format};

use crate::dialect::Dialect;
use crate::error::FormatError;
use crate::head::lines::Lines;
use crate::infer::{is_typed, join_types, type_of};

/// Records that are looked at.
const SEEN: usize = 100;
/// Records before a table, at most.
const MOST_PREAMBLE: usize = 30;
/// Header records, at most.
const MOST_HEADER: usize = 5;

/// The first records of a text.
pub(super) struct Layout {
    records: Vec<Record>,
    /// The most frequent number of fields.
    mode: usize,
}

struct Record {
    /// Where it begins, and the line ends before it.
    start: usize,
    line: u64,
    /// An empty line stands before it.
    is_apart: bool,
    is_faulty: bool,
    /// `None`: null.
    cells: Vec<Option<String>>,
}

impl Record {
    fn cell(&self, place: usize) -> Option<&str> {
        self.cells.get(place).and_then(Option::as_deref).filter(|cell| !cell.trim().is_empty())
    }

    fn filled(&self) -> usize {
        (0..self.cells.len()).filter(|place| self.cell(*place).is_some()).count()
    }

    fn is_comment(&self) -> bool {
        self.cell(0).is_some_and(|cell| cell.trim_start().starts_with(['#', '%']))
    }

    /// Whether it names columns: every cell is text, and no two are the same.
    fn is_names(&self) -> bool {
        let cells: Vec<&str> = (0..self.cells.len()).filter_map(|place| self.cell(place)).collect();
        let unique: std::collections::HashSet<&str> = cells.iter().copied().collect();
        cells.len() == self.cells.len() && unique.len() == cells.len() && self.is_text()
    }

    /// Whether no cell of it is a number, a date or the like.
    fn is_text(&self) -> bool {
        (0..self.cells.len()).filter_map(|place| self.cell(place)).all(|cell| !is_typed(cell))
    }
}

impl Layout {
    /// Reads the first records.
    pub(super) fn new(text: &[u8], whole: bool, format: &Format, mode: usize) -> Result<Self, FormatError> {
        let mut lines = Lines::new(text, whole, Dialect::new(format, 0)?);
        let mut records = Vec::new();
        let mut lines_read = 0;
        while records.len() < SEEN
            && let Some(fields) = lines.next()
        {
            records.push(Record {
                start: lines.start,
                line: lines.start_line,
                is_apart: lines.start_line > lines_read,
                is_faulty: lines.fault.is_some(),
                cells: fields.iter().map(|field| lines.value(*field, &format.null_values)).collect(),
            });
            lines_read = lines.line;
        }
        Ok(Self { records, mode })
    }

    /// Passes over what stands before the table; gives the bytes and the line ends that it takes.
    pub(super) fn pass_preamble(&mut self) -> Option<(usize, u64)> {
        let (mode, records) = (self.mode, &self.records);
        if mode < 2 {
            return None;
        }
        let before = records.iter().take_while(|record| is_no_row(record, mode)).count();
        if before == 0 || before > MOST_PREAMBLE || before >= records.len() {
            return None;
        }
        let (preamble, table) = records.split_at(before);
        let (first, rows) = table.split_first()?;
        let fitting = rows.iter().filter(|row| row.cells.len() == mode && !row.is_faulty).count();
        let is_table = first.cells.len() == mode && fitting >= 2 && fitting * 10 >= rows.len() * 9;
        if !is_table || !first.is_names() {
            return None;
        }
        let is_said = first.is_apart
            || (preamble.iter().all(Record::is_comment) && !rows.iter().any(Record::is_comment))
            || (0..mode).any(|place| is_named(first, rows, place));
        if !is_said {
            return None;
        }
        let (start, line) = (first.start, first.line);
        self.records.drain(..before);
        Some((start, line))
    }

    /// How many records are the header.
    pub(super) fn header_rows(&self) -> u32 {
        let Some((first, rows)) = self.records.split_first() else { return 1 };
        if self.is_headless(first, rows) {
            return 0;
        }
        let same = rows.iter().take_while(|row| row.cells == first.cells).count();
        if (1..MOST_HEADER).contains(&same) && first.cells.len() >= 2 && first.is_names() {
            return 1 + same as u32;
        }
        self.grouped_header(first, rows).unwrap_or(1)
    }

    /// A record that groups columns, over one that names them: the first has gaps or repeats itself and so can be no header alone.
    fn grouped_header(&self, first: &Record, rows: &[Record]) -> Option<u32> {
        let (second, rows) = rows.split_first()?;
        let fits = first.cells.len() == self.mode && second.cells.len() == self.mode;
        let is_group = first.filled() > 0 && first.is_text() && !first.is_names();
        let named = (0..self.mode).filter(|place| is_named(second, rows, *place)).count();
        (fits && self.mode >= 3 && is_group && second.is_names() && named >= 2 && rows.len() >= 3).then_some(2)
    }

    /// Whether the first record is data.
    fn is_headless(&self, first: &Record, rows: &[Record]) -> bool {
        let typed = |place: usize| first.cell(place).map(type_of).filter(|kind| *kind != ColumnType::Text);
        let known: Vec<usize> = (0..first.cells.len()).filter(|place| first.cells[*place].is_some()).collect();
        if !known.is_empty() && known.len() == first.cells.len() && known.iter().all(|place| typed(*place).is_some()) {
            return true;
        }
        if first.cells.len() != self.mode || (0..self.mode).any(|place| is_named(first, rows, place)) {
            return false;
        }
        (0..self.mode).any(|place| {
            let below = cells_below(rows, self.mode, place);
            // A number may be a name (a year, a code); a time or a date over such is none.
            let is_value = typed(place).is_some_and(|kind| {
                !matches!(kind, ColumnType::Int64 | ColumnType::Decimal { .. })
                    && !below.is_empty()
                    && below.iter().all(|cell| type_of(cell) == kind)
            });
            let is_shaped = first.cell(place).is_some_and(|cell| {
                let shape = shape(cell);
                // `col1` over `val2` is a name: a number of three digits beside a sign is none.
                shape.contains("999")
                    && shape.contains(|letter: char| !letter.is_alphanumeric())
                    && below.len() >= 3
                    && below.iter().all(|cell| self::shape(cell) == shape)
            });
            is_value || is_shaped
        })
    }
}

/// Whether a record before a table is none of its rows: a title, a comment, a line that a spreadsheet padded.
fn is_no_row(record: &Record, mode: usize) -> bool {
    let fields = record.cells.len();
    let is_short = fields == 1 || (fields < mode && fields * 2 <= mode);
    let is_sparse = mode >= 3 && record.filled() <= 1;
    is_short || is_sparse || (record.is_comment() && fields != mode)
}

/// The cells of the rows at a place, of rows that have all their fields.
fn cells_below(rows: &[Record], mode: usize, place: usize) -> Vec<&str> {
    rows.iter().filter(|row| row.cells.len() == mode).filter_map(|row| row.cell(place)).collect()
}

/// Whether the cell is text, and all below it are numbers, dates or the like: it is their name.
fn is_named(names: &Record, rows: &[Record], place: usize) -> bool {
    let Some(name) = names.cell(place) else { return false };
    let below = cells_below(rows, names.cells.len(), place);
    let kind = below.iter().map(|cell| type_of(cell)).reduce(|a, b| join_types(&a, &b));
    type_of(name) == ColumnType::Text && kind.is_some_and(|kind| kind != ColumnType::Text)
}

/// A cell with every digit a 9 and every letter an A.
fn shape(cell: &str) -> String {
    let of = |letter: char| match letter {
        letter if letter.is_ascii_digit() => '9',
        letter if letter.is_alphabetic() => 'A',
        letter => letter,
    };
    cell.chars().map(of).collect()
}
