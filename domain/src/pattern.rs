//! The format of a date or time: a subset of `strftime`, read once and checked when it is given.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::column::ColumnType;

/// The longest format, in bytes.
const MAX_PATTERN: usize = 100;

/// What stands at a place of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PatternItem {
    /// This text, byte for byte.
    Literal(String),
    /// Digits; see [`NumberPart`] for what they mean.
    Number {
        /// What the digits are.
        part: NumberPart,
        /// The fewest digits.
        least: usize,
        /// The most digits.
        most: usize,
        /// Whether a space may stand before a single digit (`%e`).
        padded: bool,
    },
    /// `%f`: digits behind a second's point.
    Fraction,
    /// `%p`: `AM` or `PM` in any case.
    HalfDay,
    /// `%b`, `%B`: an English name of a month in any case, cut to three letters or whole.
    MonthName {
        /// Whether it is the whole name.
        whole: bool,
    },
    /// `%a`, `%A`: an English name of a weekday in any case, cut to three letters or whole.
    WeekdayName {
        /// Whether it is the whole name.
        whole: bool,
    },
    /// `%z`: `Z`, `+hh`, `+hhmm` or `+hh:mm`.
    Offset,
}

/// What the digits of a number are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberPart {
    /// `%Y`
    Year,
    /// `%y`: 70 to 99 are 1970 to 1999, 00 to 69 are 2000 to 2069.
    YearOfCentury,
    /// `%m`
    Month,
    /// `%d`, `%e`
    Day,
    /// `%j`
    DayOfYear,
    /// `%H`
    Hour,
    /// `%I`
    Hour12,
    /// `%M`
    Minute,
    /// `%S`
    Second,
}

/// A format that was read: it gives what a column's type needs when [`TimePattern::check`] says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimePattern {
    text: String,
    items: Vec<PatternItem>,
}

/// Why a text is no format, or not one of the column's type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing there, or more than a format needs.
    #[error("a format holds 1 to {MAX_PATTERN} bytes")]
    Length,
    /// A `%` with something else behind it.
    #[error(
        "'%{0}' is no part of a format; the parts are %Y %y %m %b %B %d %e %j %a %A %H %I %p %M %S %f %z %F %T and %% for a percent sign"
    )]
    Unknown(String),
    /// A zone's name does not say an offset: IST is three of them.
    #[error("'%Z' is not read, since a zone's name does not tell its offset; use %z, or write the name as it stands")]
    ZoneName,
    /// Two parts that say the same.
    #[error("the {0} stands twice")]
    Twice(&'static str),
    /// A part that the type needs.
    #[error("{0} needs {1}")]
    Missing(String, &'static str),
    /// A part that the type cannot hold.
    #[error("{0} holds no {1}")]
    Surplus(String, &'static str),
    /// A format on a type that has none.
    #[error("is an option of date, time, timestamp and timestamptz, not of {0}")]
    NotTemporal(String),
}

impl TimePattern {
    /// Its parts in order.
    #[must_use]
    pub fn items(&self) -> &[PatternItem] {
        &self.items
    }

    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it gives all that a type needs, and nothing that the type cannot hold.
    ///
    /// # Errors
    /// [`PatternError`] that names the part.
    pub fn check(&self, kind: &ColumnType) -> Result<(), PatternError> {
        let (date, time, zone) = match kind {
            ColumnType::Date => (true, false, false),
            ColumnType::Time => (false, true, false),
            ColumnType::Timestamp => (true, true, false),
            ColumnType::Timestamptz => (true, true, true),
            other => return Err(PatternError::NotTemporal(other.to_string())),
        };
        let missing = |part| Err(PatternError::Missing(format!("the format of a {kind}"), part));
        let surplus = |part| Err(PatternError::Surplus(format!("a {kind}"), part));
        let parts = self.parts();
        let has = |part: Part| parts.contains(&part);
        let has_date = [Part::Year, Part::Month, Part::Day, Part::DayOfYear, Part::Weekday].into_iter().any(has);
        let has_time = has(Part::Hour) || has(Part::HalfDay) || has(Part::Minute) || has(Part::Second);
        if !date && has_date {
            return surplus("date");
        }
        if !time && (has_time || has(Part::Fraction)) {
            return surplus("time of day");
        }
        if !zone && has(Part::Offset) {
            return surplus("offset (%z); a timestamptz does");
        }
        if date {
            self.check_date(&missing)?;
        }
        if has_time || has(Part::Fraction) || !date || has(Part::Offset) {
            self.check_time(&missing)?;
        }
        Ok(())
    }

    fn check_date(&self, missing: &impl Fn(&'static str) -> Result<(), PatternError>) -> Result<(), PatternError> {
        let parts = self.parts();
        let has = |part: Part| parts.contains(&part);
        if !has(Part::Year) {
            return missing("a year (%Y or %y)");
        }
        match (has(Part::Month), has(Part::Day), has(Part::DayOfYear)) {
            (true, true, false) | (false, false, true) => Ok(()),
            (_, _, true) => Err(PatternError::Twice("day (%j beside %m or %d)")),
            (false, _, _) => missing("a month (%m, %b or %B)"),
            (true, false, _) => missing("a day (%d or %e)"),
        }
    }

    fn check_time(&self, missing: &impl Fn(&'static str) -> Result<(), PatternError>) -> Result<(), PatternError> {
        let parts = self.parts();
        let has = |part: Part| parts.contains(&part);
        let half = self.items.iter().any(|item| matches!(item, PatternItem::Number { part: NumberPart::Hour12, .. }));
        if !has(Part::Hour) {
            return missing("an hour (%H, or %I with %p)");
        }
        if half && !has(Part::HalfDay) {
            return missing("%p beside %I");
        }
        if !half && has(Part::HalfDay) {
            return missing("%I beside %p");
        }
        if has(Part::Second) && !has(Part::Minute) {
            return missing("minutes (%M) before the seconds");
        }
        if has(Part::Fraction) && !has(Part::Second) {
            return missing("seconds (%S) before their fraction");
        }
        Ok(())
    }

    fn parts(&self) -> Vec<Part> {
        self.items.iter().filter_map(Part::of).collect()
    }
}

/// What a part of a format says, so that nothing is said twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Year,
    Month,
    Day,
    DayOfYear,
    Weekday,
    Hour,
    HalfDay,
    Minute,
    Second,
    Fraction,
    Offset,
}

impl Part {
    fn of(item: &PatternItem) -> Option<Self> {
        Some(match item {
            PatternItem::Literal(_) => return None,
            PatternItem::Number { part, .. } => match part {
                NumberPart::Year | NumberPart::YearOfCentury => Self::Year,
                NumberPart::Month => Self::Month,
                NumberPart::Day => Self::Day,
                NumberPart::DayOfYear => Self::DayOfYear,
                NumberPart::Hour | NumberPart::Hour12 => Self::Hour,
                NumberPart::Minute => Self::Minute,
                NumberPart::Second => Self::Second,
            },
            PatternItem::Fraction => Self::Fraction,
            PatternItem::HalfDay => Self::HalfDay,
            PatternItem::MonthName { .. } => Self::Month,
            PatternItem::WeekdayName { .. } => Self::Weekday,
            PatternItem::Offset => Self::Offset,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Year => "year",
            Self::Month => "month",
            Self::Day => "day",
            Self::DayOfYear => "day of the year",
            Self::Weekday => "weekday",
            Self::Hour => "hour",
            Self::HalfDay => "half of the day (%p)",
            Self::Minute => "minute",
            Self::Second => "second",
            Self::Fraction => "second's fraction",
            Self::Offset => "offset",
        }
    }
}

/// Puts what a letter behind a `%` stands for.
fn push(items: &mut Vec<PatternItem>, letter: char) -> Result<(), PatternError> {
    let number = |part, least, most| PatternItem::Number { part, least, most, padded: letter == 'e' };
    items.push(match letter {
        'Y' => number(NumberPart::Year, 4, 4),
        'y' => number(NumberPart::YearOfCentury, 2, 2),
        'm' => number(NumberPart::Month, 1, 2),
        'd' | 'e' => number(NumberPart::Day, 1, 2),
        'j' => number(NumberPart::DayOfYear, 3, 3),
        'H' => number(NumberPart::Hour, 1, 2),
        'I' => number(NumberPart::Hour12, 1, 2),
        'M' => number(NumberPart::Minute, 2, 2),
        'S' => number(NumberPart::Second, 2, 2),
        'f' => PatternItem::Fraction,
        'p' => PatternItem::HalfDay,
        'b' => PatternItem::MonthName { whole: false },
        'B' => PatternItem::MonthName { whole: true },
        'a' => PatternItem::WeekdayName { whole: false },
        'A' => PatternItem::WeekdayName { whole: true },
        'z' => PatternItem::Offset,
        'F' => return push_all(items, "Y-m-d"),
        'T' => return push_all(items, "H:M:S"),
        '%' => {
            push_literal(items, '%');
            return Ok(());
        }
        'Z' => return Err(PatternError::ZoneName),
        other => return Err(PatternError::Unknown(other.to_string())),
    });
    Ok(())
}

fn push_all(items: &mut Vec<PatternItem>, letters: &str) -> Result<(), PatternError> {
    letters.chars().try_for_each(|c| {
        if c.is_ascii_alphabetic() {
            return push(items, c);
        }
        push_literal(items, c);
        Ok(())
    })
}

fn push_literal(items: &mut Vec<PatternItem>, c: char) {
    match items.last_mut() {
        Some(PatternItem::Literal(text)) => text.push(c),
        _ => items.push(PatternItem::Literal(c.to_string())),
    }
}

impl FromStr for TimePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !(1..=MAX_PATTERN).contains(&text.len()) {
            return Err(PatternError::Length);
        }
        let mut items = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '%' => push(&mut items, chars.next().ok_or_else(|| PatternError::Unknown(String::new()))?)?,
                c => push_literal(&mut items, c),
            }
        }
        // `%Y%m%d`: where digits touch, only a fixed number of them tells where one part ends.
        let digits = |item: Option<&PatternItem>| match item {
            Some(PatternItem::Number { .. } | PatternItem::Fraction) => true,
            Some(PatternItem::Literal(text)) => text.ends_with(|c: char| c.is_ascii_digit()),
            _ => false,
        };
        let begins = |item: Option<&PatternItem>| match item {
            Some(PatternItem::Literal(text)) => text.starts_with(|c: char| c.is_ascii_digit()),
            item => digits(item),
        };
        let touching: Vec<bool> = (0..items.len())
            .map(|at| at.checked_sub(1).is_some_and(|before| digits(items.get(before))) || begins(items.get(at + 1)))
            .collect();
        for (item, touches) in items.iter_mut().zip(touching) {
            if let PatternItem::Number { least, most, .. } = item
                && touches
            {
                *least = *most;
            }
        }
        let pattern = Self { text: text.to_owned(), items };
        let parts = pattern.parts();
        match parts.iter().enumerate().find(|(at, part)| parts[..*at].contains(part)) {
            Some((_, part)) => Err(PatternError::Twice(part.name())),
            None => Ok(pattern),
        }
    }
}

impl TryFrom<String> for TimePattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TimePattern> for String {
    fn from(pattern: TimePattern) -> Self {
        pattern.text
    }
}

impl fmt::Display for TimePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, kind: &str) -> Result<(), String> {
        let pattern: TimePattern = pattern.parse().map_err(|error: PatternError| error.to_string())?;
        pattern.check(&kind.parse().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn formats_give_what_their_type_needs() {
        for (pattern, kind) in [
            ("%d/%m/%Y", "date"),
            ("%F", "date"),
            ("%e. %B %y", "date"),
            ("%A, %b %d, %Y", "date"),
            ("%Y%j", "date"),
            ("%d/%m/%Y", "timestamp"),
            ("%F %T.%f", "timestamp"),
            ("%m/%d/%Y %I:%M %p", "timestamp"),
            ("%FT%T%z", "timestamptz"),
            ("%F %H", "timestamptz"),
            ("%I %p", "time"),
            ("%H%M%S", "time"),
            ("100%% %H h", "time"),
        ] {
            assert_eq!(check(pattern, kind), Ok(()), "{pattern} {kind}");
        }
    }

    #[test]
    fn what_is_missing_or_too_much_is_named() {
        for (pattern, kind, part) in [
            ("%m/%Y", "date", "needs a day"),
            ("%d %Y", "date", "needs a month"),
            ("%d/%m", "date", "needs a year"),
            ("%d/%m/%Y %H:%M", "date", "no time of day"),
            ("%F %M", "timestamp", "needs an hour"),
            ("%F %I:%M", "timestamp", "needs %p"),
            ("%F %H:%M %p", "timestamp", "needs %I"),
            ("%F %H:%S", "timestamp", "needs minutes"),
            ("%F %H:%M.%f", "timestamp", "needs seconds"),
            ("%F %T%z", "timestamp", "no offset"),
            ("%F%z", "timestamptz", "needs an hour"),
            ("%F %T", "time", "no date"),
            ("noon", "time", "needs an hour"),
            ("%F", "text", "not of text"),
            ("%d %e %m %Y", "date", "day stands twice"),
            ("%y %Y %m %d", "date", "year stands twice"),
            ("%H %I", "time", "hour stands twice"),
            ("%F %j", "date", "stands twice"),
            ("%-d.%m.%Y", "date", "'%-' is no part"),
            ("%F %Z", "timestamptz", "name"),
            ("%F %", "date", "is no part"),
            ("", "date", "1 to 100"),
        ] {
            let error = check(pattern, kind).unwrap_err();
            assert!(error.contains(part), "{pattern} {kind}: {error}");
        }
    }

    #[test]
    fn digits_that_touch_are_of_a_fixed_number() {
        let least = |pattern: &str| {
            let pattern: TimePattern = pattern.parse().unwrap();
            let least = pattern.items().iter().filter_map(|item| match item {
                PatternItem::Number { least, .. } => Some(*least),
                _ => None,
            });
            least.collect::<Vec<_>>()
        };
        assert_eq!(least("%Y%m%d"), [4, 2, 2]);
        assert_eq!(least("%d/%m/%Y"), [1, 1, 4]);
        assert_eq!(least("%d1%m"), [2, 2]);
        assert_eq!(least("%H%f"), [2]);
    }
}
