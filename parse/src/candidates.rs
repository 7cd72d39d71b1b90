//! The formats of dates and timestamps that inference recognises beside ISO 8601, and which of them a column's cells leave.
//!
//! Four-digit years only: with two digits, day, month and year look alike.

use std::sync::LazyLock;

use longshore_domain::{ColumnType, TimePattern};

use crate::cell;
use crate::infer::Inferred;

const DATES: [&str; 7] = ["%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d"];
const TIMES: [&str; 9] =
    ["", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", "T%H:%M", "T%H:%M:%S", "T%H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p"];

/// Each date beside each time.
static FORMATS: LazyLock<Vec<TimePattern>> = LazyLock::new(|| {
    let all = DATES.iter().flat_map(|date| TIMES.iter().map(move |time| format!("{date}{time}")));
    all.map(|format| format.parse().expect("a format of the list above")).collect()
});

/// The formats that every cell so far is written in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Candidates(Vec<&'static TimePattern>);

impl Default for Candidates {
    fn default() -> Self {
        Self(FORMATS.iter().collect())
    }
}

impl Candidates {
    /// Strikes the formats that a cell is not written in; whether any is left.
    pub(crate) fn keep(&mut self, text: &str) -> bool {
        // Cells that begin otherwise are most of those of a text column.
        let may = text.len() >= 8 && text.as_bytes()[0].is_ascii_digit() && !text.ends_with([' ', '\t']);
        self.0.retain(|format| may && cell::timestamp_as(text, format).is_ok());
        !self.0.is_empty()
    }

    /// The format, where it is the only one.
    pub(crate) fn only(&self) -> Option<Inferred> {
        let [format] = self.0[..] else { return None };
        let kind = if format.check(&ColumnType::Date).is_ok() { ColumnType::Date } else { ColumnType::Timestamp };
        Some(Inferred { kind, format: Some(format.clone()) })
    }
}
