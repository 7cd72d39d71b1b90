//! The file of rejects: the original columns, byte for byte, with `_row`, `_column` and `_reason` behind them. Mended, it
//! imports again as it is. Called by the API, reject by reject.

use longshore_domain::{LoadPlan, Reject, RejectReason};

use crate::chunk::{dialect_of, is_cut};
use crate::columns::REJECT_COLUMNS;
use crate::dialect::Dialect;
use crate::record::{Field, Next, read_record};

/// What stands behind the beginning of a record that is too large.
const CUT: &[u8] = b"only the beginning of the record";

/// Writes the file of rejects of one import.
#[derive(Debug)]
pub struct RejectsCsv {
    dialect: Dialect,
    header: Vec<String>,
    spreadsheet: bool,
}

impl RejectsCsv {
    /// A writer in the file's own dialect.
    #[must_use]
    pub fn new(plan: &LoadPlan) -> Self {
        let mut header = plan.header.clone();
        let last = header.len().saturating_sub(REJECT_COLUMNS.len());
        // Rejects of a file of rejects do not carry the columns twice.
        if header[last..] == REJECT_COLUMNS {
            header.truncate(last);
        }
        Self { dialect: dialect_of(plan), header, spreadsheet: false }
    }

    /// Escapes cells that a spreadsheet would run as formulas (OWASP, "CSV Injection"): an apostrophe before them, and quotes
    /// around. Such a file is for looking at; its cells are not the file's any more.
    #[must_use]
    pub fn for_spreadsheets(self) -> Self {
        Self { spreadsheet: true, ..self }
    }

    /// The header line.
    #[must_use]
    pub fn header(&self) -> Vec<u8> {
        let names = self.header.iter().map(String::as_str).chain(REJECT_COLUMNS);
        let mut line = Vec::new();
        self.append(&mut line, names.map(|name| self.ours(name)));
        self.end(line)
    }

    /// The line of one reject.
    #[must_use]
    pub fn line_of(&self, reject: &Reject) -> Vec<u8> {
        let mut fields: Vec<Field> = Vec::new();
        // One record, whatever it looks like: an empty line is an empty cell.
        let dialect = Dialect { width: 1, comment: None, ..self.dialect.clone() };
        let found = match read_record(&dialect, &reject.record, 0, 0, &mut fields) {
            Next::Record(record) => record.fields,
            Next::Skipped(_) | Next::End => 0,
        };
        let mut read = fields.len();
        let width = self.header.len();
        let (first, extra) = fields.split_at(read.min(width));
        let ours = [
            reject.row.to_string().into_bytes(),
            self.ours(reject.column.as_deref().unwrap_or_default()),
            reject.reason.as_str().as_bytes().to_vec(),
        ];
        // A record that is not whole must not go in as if it were: a cell too many makes it a reject again.
        let cut = is_cut(reject).then(|| self.quoted(CUT, false));
        // One after the other: there may be millions.
        let raw = |field: &Field| self.raw_cell(&reject.record, field);
        let missing = std::iter::repeat_n(Vec::new(), width - first.len());
        let mut line = Vec::new();
        self.append(&mut line, first.iter().map(raw).chain(missing).chain(ours));
        // The columns of a file of rejects that is imported again are replaced by this import's.
        if reject.reason == RejectReason::ExtraField {
            self.append(&mut line, extra.iter().map(raw));
            // Of very many fields, only the first ones were told: it is read on behind them.
            while read < found
                && let Some(last) = fields.last()
            {
                let behind = last.range().end + usize::from(last.is_quoted()) + self.dialect.delimiter.as_bytes().len();
                fields.clear();
                match read_record(&dialect, &reject.record, behind, 0, &mut fields) {
                    Next::Record(_) => self.append(&mut line, fields.iter().map(raw)),
                    // An empty cell at the end.
                    Next::Skipped(_) | Next::End => self.append(&mut line, std::iter::once(Vec::new())),
                }
                read += fields.len();
            }
        }
        self.append(&mut line, cut.into_iter());
        self.end(line)
    }

    /// A cell as it stands in the file, with its quotes. One whose quotes would break the new file is quoted anew.
    fn raw_cell(&self, record: &[u8], field: &Field) -> Vec<u8> {
        let range = field.range();
        // Between its quotes, doubled ones are still doubled.
        if self.spreadsheet && would_run(&record[range.clone()]) {
            return self.enclosed(&[b"'", &record[range]].concat(), field.is_quoted());
        }
        let unclosed = field.is_quoted() && range.end == record.len();
        if unclosed {
            return self.quoted(&record[range], true);
        }
        // The record's last cell may end with the beginning of a delimiter, and another one follows now.
        if !field.is_quoted() && !self.dialect.delimiter.ends(&record[range.clone()]) {
            return self.quoted(&record[range], true);
        }
        // The quotes stand around the range.
        let raw = if field.is_quoted() { range.start - 1..range.end + 1 } else { range };
        record[raw].to_vec()
    }

    /// A name of ours.
    fn ours(&self, name: &str) -> Vec<u8> {
        if self.spreadsheet && would_run(name.as_bytes()) {
            return self.quoted(&[b"'", name.as_bytes()].concat(), true);
        }
        self.quoted(name.as_bytes(), false)
    }

    /// A cell between quotes; `escaped`: what is in it was between quotes before.
    fn enclosed(&self, cell: &[u8], escaped: bool) -> Vec<u8> {
        match self.dialect.quote {
            Some(quote) if escaped => [&[quote], cell, &[quote]].concat(),
            _ => self.quoted(cell, true),
        }
    }

    /// A cell of ours, in quotes where it needs them.
    fn quoted(&self, cell: &[u8], always: bool) -> Vec<u8> {
        let Some(quote) = self.dialect.quote else { return cell.to_vec() };
        let special = |byte: &u8| *byte == quote || matches!(*byte, b'\n' | b'\r');
        let comment = self.dialect.comment.as_ref().is_some_and(|comment| cell.starts_with(comment));
        if !always && !comment && !cell.iter().any(special) && self.dialect.delimiter.ends(cell) {
            return cell.to_vec();
        }
        let escape = self.dialect.escape.unwrap_or(quote);
        let mut out = vec![quote];
        for byte in cell {
            if *byte == quote || *byte == escape {
                out.push(escape);
            }
            out.push(*byte);
        }
        out.push(quote);
        out
    }

    /// Cells, each behind a delimiter.
    fn append(&self, line: &mut Vec<u8>, cells: impl Iterator<Item = Vec<u8>>) {
        for cell in cells {
            line.extend_from_slice(self.dialect.delimiter.as_bytes());
            line.extend(cell);
        }
    }

    /// The line of cells that were appended.
    fn end(&self, mut line: Vec<u8>) -> Vec<u8> {
        line.drain(..self.dialect.delimiter.as_bytes().len());
        line.push(b'\n');
        line
    }
}

/// Whether a spreadsheet would take a cell for a formula: by its first character, whatever stands behind it.
fn would_run(cell: &[u8]) -> bool {
    matches!(cell.first(), Some(b'=' | b'+' | b'-' | b'@' | b'\t' | b'\r' | b'\n'))
}
