//! Records of a sample.

use crate::dialect::Dialect;
use crate::quoted::unescape;
use crate::record::{Field, Next, QuoteFault, read_record};

/// Records of the sample, one by one. A last record that the sample cuts off is none.
pub(super) struct Lines<'a> {
    pub(super) text: &'a [u8],
    pub(super) whole: bool,
    pub(super) dialect: Dialect,
    pub(super) at: usize,
    pub(super) line: u64,
    /// Where the last record began, and the line ends before it.
    pub(super) start: usize,
    pub(super) start_line: u64,
    fields: Vec<Field>,
    pub(super) fault: Option<QuoteFault>,
    /// Whether a quote stands inside an unquoted field: allowed, yet a hint that the delimiter is another one.
    pub(super) stray: bool,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a [u8], whole: bool, dialect: Dialect) -> Self {
        Self {
            text,
            whole,
            dialect,
            at: 0,
            line: 0,
            start: 0,
            start_line: 0,
            fields: Vec::new(),
            fault: None,
            stray: false,
        }
    }

    /// The fields of the next record, or `None` behind the last.
    pub(super) fn next(&mut self) -> Option<Vec<Field>> {
        loop {
            self.fields.clear();
            match read_record(&self.dialect, self.text, self.at, 0, &mut self.fields) {
                Next::End => return None,
                Next::Skipped(next) => {
                    self.at = next;
                    self.line += 1;
                }
                Next::Record(record) => {
                    let cut = record.next == self.text.len() && !self.text.ends_with(b"\n");
                    if cut && !self.whole {
                        return None;
                    }
                    (self.start, self.start_line) = (self.at, self.line);
                    self.at = record.next;
                    self.line += record.lines;
                    self.fault = record.fault.map(|fault| fault.kind);
                    self.stray = self.dialect.quote.is_some_and(|quote| {
                        let mut unquoted = self.fields.iter().filter(|field| !field.is_quoted());
                        unquoted.any(|field| self.text[field.range()].contains(&quote))
                    });
                    return Some(self.fields.clone());
                }
            }
        }
    }

    pub(super) fn cell(&self, field: Field) -> Option<String> {
        let raw = self.text.get(field.range())?;
        let mut cell = raw.to_vec();
        if field.is_escaped() {
            unescape(&self.dialect, raw, &mut cell);
        }
        if self.dialect.replaces {
            return Some(String::from_utf8_lossy(&cell).into_owned());
        }
        String::from_utf8(cell).ok()
    }

    /// The cell's text; `None`: null, or no UTF-8, which says nothing of a type.
    pub(super) fn value(&self, field: Field, null_values: &[String]) -> Option<String> {
        let cell = self.cell(field)?;
        let null = !field.is_quoted() && null_values.contains(&cell);
        (!null).then_some(cell)
    }
}
