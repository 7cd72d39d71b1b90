//! Types from cells. Prefers text over a type that would lose anything: leading zeros, digits, an offset.

use longshore_domain::column::MAX_PRECISION;
use longshore_domain::{ColumnType, TimePattern};

use crate::candidates::Candidates;
use crate::cell;

/// What a `float64` holds for sure, in significant digits.
const FLOAT_DIGITS: usize = 17;

/// The narrowest type of one cell that is not null.
#[must_use]
pub fn type_of(text: &str) -> ColumnType {
    if text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false") {
        return ColumnType::Bool;
    }
    match text.as_bytes() {
        [b'-', b'0'..=b'9', ..] | [b'0'..=b'9', ..] => type_of_number_or_time(text),
        [b'a'..=b'f' | b'A'..=b'F', ..] if is_uuid(text) => ColumnType::Uuid,
        [b'.', b'0'..=b'9', ..] => type_of_number(text),
        _ => ColumnType::Text,
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && cell::uuid(text).is_ok()
}

fn type_of_number_or_time(text: &str) -> ColumnType {
    if cell::date(text).is_ok() && text.len() == 10 {
        ColumnType::Date
    } else if text.len() > 10 && cell::timestamp(text).is_ok() {
        ColumnType::Timestamp
    } else if text.len() > 10 && cell::timestamptz(text).is_ok() {
        ColumnType::Timestamptz
    } else if cell::time(text).is_ok() {
        ColumnType::Time
    } else if is_uuid(text) {
        ColumnType::Uuid
    } else {
        type_of_number(text)
    }
}

fn type_of_number(text: &str) -> ColumnType {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, rest) = unsigned.split_at(unsigned.bytes().take_while(u8::is_ascii_digit).count());
    if whole.len() > 1 && whole.starts_with('0') {
        return ColumnType::Text;
    }
    let fraction = rest.strip_prefix('.').unwrap_or_default();
    let is_decimal = rest.is_empty() || (!fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit()));
    if rest.is_empty() && cell::int64(text).is_ok() {
        return ColumnType::Int64;
    }
    if is_decimal && whole.len() + fraction.len() <= usize::from(MAX_PRECISION) {
        return ColumnType::Decimal { precision: MAX_PRECISION, scale: fraction.len() as u8 };
    }
    let has_exponent = rest.contains(['e', 'E']);
    if has_exponent && cell::float64(text).is_ok() && cell::significant_digits(text) <= FLOAT_DIGITS {
        return ColumnType::Float64;
    }
    ColumnType::Text
}

/// Whether a cell of an inferred `float64` column would lose digits.
#[must_use]
pub fn loses_digits(text: &str) -> bool {
    cell::significant_digits(text) > FLOAT_DIGITS
}

/// The narrowest type that takes the cells of both.
#[must_use]
pub fn join_types(a: &ColumnType, b: &ColumnType) -> ColumnType {
    use ColumnType::{Date, Decimal, Float64, Int32, Int64, Text, Timestamp};
    match (a, b) {
        (a, b) if a == b => a.clone(),
        (Int32, Int64) | (Int64, Int32) => Int64,
        (Int32 | Int64, Decimal { scale, .. }) | (Decimal { scale, .. }, Int32 | Int64) => {
            Decimal { precision: MAX_PRECISION, scale: *scale }
        }
        (Decimal { scale: a, .. }, Decimal { scale: b, .. }) => Decimal { precision: MAX_PRECISION, scale: *a.max(b) },
        (Int32 | Int64 | Decimal { .. }, Float64) | (Float64, Int32 | Int64 | Decimal { .. }) => Float64,
        // A date alone reads as its midnight.
        (Date, Timestamp) | (Timestamp, Date) => Timestamp,
        _ => Text,
    }
}

/// What a column seems to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inferred {
    /// Its type.
    pub kind: ColumnType,
    /// How its dates or timestamps are written, where that is not ISO 8601.
    pub format: Option<TimePattern>,
}

impl From<ColumnType> for Inferred {
    fn from(kind: ColumnType) -> Self {
        Self { kind, format: None }
    }
}

impl PartialEq<ColumnType> for Inferred {
    /// Whether it is that type, written in the plain way.
    fn eq(&self, kind: &ColumnType) -> bool {
        self.format.is_none() && self.kind == *kind
    }
}

/// Whether a cell is of some type other than text: a number, a date in any format that is recognised, or the like.
#[must_use]
pub fn is_typed(text: &str) -> bool {
    type_of(text) != ColumnType::Text || Candidates::default().keep(text)
}

/// What the cells of a column told so far. Cells may come in any number of samples: the type is that of all of them together.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tally {
    kind: Option<ColumnType>,
    most_whole: usize,
    most_digits: usize,
    /// The formats of dates that all cells so far are written in.
    candidates: Candidates,
}

impl Tally {
    /// Takes a cell that is not null.
    pub fn add(&mut self, text: &str) {
        self.candidates.keep(text);
        if self.kind == Some(ColumnType::Text) {
            return;
        }
        let next = type_of(text);
        if matches!(next, ColumnType::Int64 | ColumnType::Decimal { .. }) {
            let whole = text.bytes().skip_while(|byte| *byte == b'-').take_while(u8::is_ascii_digit).count();
            self.most_whole = self.most_whole.max(whole);
            self.most_digits = self.most_digits.max(cell::significant_digits(text));
        }
        self.kind = Some(match &self.kind {
            Some(kind) => join_types(kind, &next),
            None => next,
        });
    }

    /// The narrowest type that loses nothing of the cells; of none, text. Dates that are not in ISO 8601 where every cell is
    /// written in one format; where two of them fit all cells, nobody knows which is meant, and it is text.
    #[must_use]
    pub fn inferred(&self) -> Inferred {
        let kind = match &self.kind {
            Some(ColumnType::Decimal { scale, .. })
                if self.most_whole + usize::from(*scale) > usize::from(MAX_PRECISION) =>
            {
                ColumnType::Text
            }
            Some(ColumnType::Float64) if self.most_digits > FLOAT_DIGITS => ColumnType::Text,
            Some(ColumnType::Text) => return self.candidates.only().unwrap_or_else(|| ColumnType::Text.into()),
            Some(kind) => kind.clone(),
            None => ColumnType::Text,
        };
        kind.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cells: &[&str]) -> String {
        let mut tally = Tally::default();
        cells.iter().filter(|cell| !cell.is_empty()).for_each(|cell| tally.add(cell));
        let found = tally.inferred();
        found.format.map_or(found.kind.to_string(), |format| format!("{} {format}", found.kind))
    }

    #[test]
    fn columns_take_the_narrowest_type_that_loses_nothing() {
        for (cells, kind) in [
            (&["1", "-2", ""][..], "int64"),
            (&["00123"], "text"),
            (&["+5"], "text"),
            (&["1", "2.50"], "decimal(38,2)"),
            (&["0.1", "10.123"], "decimal(38,3)"),
            (&["9223372036854775808"], "decimal(38,0)"),
            (&["1", "2.5", "1e-5"], "float64"),
            (&["1e5", "12345678901234567890"], "text"),
            (&["1", "x"], "text"),
            (&["true", "FALSE"], "bool"),
            (&["true", "1"], "text"),
            (&["2013-01-01", "2013-01-02"], "date"),
            (&["2013-01-01", "2013-01-02 10:00"], "timestamp"),
            (&["2013-01-01T10:00:00Z"], "timestamptz"),
            (&["2013-01-01T10:00:00", "2013-01-01T10:00:00Z"], "text"),
            (&["10:00", "11:00:01.5"], "time"),
            (&["67e55044-10b1-426f-9247-bb680e5fe0c8", "a7e55044-10b1-426f-9247-bb680e5fe0c8"], "uuid"),
            (&["", ""], "text"),
            (&["nan", "1.5"], "text"),
            (&["1.5.2"], "text"),
            (&["{\"a\":1}"], "text"),
        ] {
            assert_eq!(of(cells), kind, "{cells:?}");
        }
        let (long, scaled) = ("1".repeat(30), format!("0.{}", "1".repeat(20)));
        assert_eq!(of(&[&long, &scaled]), "text", "no decimal holds both");
    }

    #[test]
    fn a_format_is_that_of_every_cell_or_there_is_none() {
        for (cells, kind) in [
            (&["13/05/2024", "01/06/2024", ""][..], "date %d/%m/%Y"),
            (&["01/06/2024", "05/13/2024"], "date %m/%d/%Y"),
            (&["1/6/2024", "5/13/2024"], "date %m/%d/%Y"),
            (&["13.05.2024"], "date %d.%m.%Y"),
            (&["01.06.2024"], "date %d.%m.%Y"),
            (&["13-05-2024"], "date %d-%m-%Y"),
            (&["05-13-2024"], "date %m-%d-%Y"),
            (&["2024/05/13"], "date %Y/%m/%d"),
            (&["2024.05.13"], "date %Y.%m.%d"),
            (&["13/05/2024 10:00", "01/06/2024 9:30"], "timestamp %d/%m/%Y %H:%M"),
            (&["13.05.2024T10:00:01"], "timestamp %d.%m.%YT%H:%M:%S"),
            (&["5/13/2024 3:45:00 PM"], "timestamp %m/%d/%Y %I:%M:%S %p"),
            (&["2024/05/13 10:00:01.25"], "timestamp %Y/%m/%d %H:%M:%S.%f"),
            // Nobody knows which is meant.
            (&["01/06/2024", "02/06/2024"], "text"),
            (&["05-06-2024"], "text"),
            // No one format.
            (&["13/05/2024", "05/13/2024"], "text"),
            (&["13/05/2024", "13.05.2024"], "text"),
            (&["13/05/2024", "2024-05-13"], "text"),
            (&["2024-05-13", "13/05/2024"], "text"),
            (&["13/05/2024", "13/05/2024 10:00"], "text"),
            (&["13/05/2024", "x"], "text"),
            (&["32/05/2024"], "text"),
            (&["13/05/24"], "text"),
            (&["13/05/2024 "], "text"),
            (&["20240513"], "int64"),
        ] {
            assert_eq!(of(cells), kind, "{cells:?}");
        }
    }

    #[test]
    fn what_another_type_would_lose_or_guess_stays_text() {
        for cell in [
            "00123",
            "+1",
            "NaN",
            "inf",
            "1_000",
            "1,000",
            "1 000",
            "1'000",
            "1,5",
            "1.234,56",
            "1,234.56",
            "12.5%",
            "$5",
            "5 EUR",
            "(5)",
            "+49 30 123456",
            "030/123456",
            "1e400",
            "0x1f",
            "1.2.3",
            "yes",
            "t",
            "5-",
            "--1",
            "1.",
            "Infinity",
        ] {
            assert_eq!(of(&[cell]), "text", "{cell}");
        }
    }
}
