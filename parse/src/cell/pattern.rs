//! Dates and times in a column's own format ([`TimePattern`]): byte for byte, with nothing before or behind, never rounded.
//!
//! Libraries that parse such formats are lenient where an import must not be: they pass over spaces, take signs and any number of
//! digits, and read `%f` as a count of nanoseconds. So the grammar is ours; a library is the oracle of its tests.

use longshore_domain::{NumberPart, PatternItem, TimePattern};

use super::iso::{MICROS_PER_DAY, MICROS_PER_SECOND, days_of, micros, offset_minutes};
use super::{Fault, trim};

const NOT_AS: Fault = "is not written in the column's format";
const NO_DAY: Fault = "names a day that the calendar does not have";
const NO_TIME: Fault = "names a time of day that the clock does not have";
const WEEKDAY: Fault = "names another weekday than that of its date";
const DIGITS: Fault = "has more than six digits behind the second, or none";
const BEHIND: Fault = "goes on behind the end of the column's format";

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// From Monday, as days since 1970-01-01 are counted below.
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// What a cell says, part by part.
#[derive(Default)]
struct Parts {
    year: u32,
    month: u32,
    day: u32,
    day_of_year: Option<u32>,
    weekday: Option<usize>,
    hour: u32,
    hour12: Option<u32>,
    afternoon: bool,
    minute: u32,
    second: u32,
    micros: u32,
    offset_minutes: i64,
}

/// A date in a format that gives one, as days since 1970-01-01.
///
/// # Errors
/// The fault.
pub fn date_as(text: &str, format: &TimePattern) -> Result<i32, Fault> {
    Parts::read(text, format)?.days()
}

/// A time in a format that gives one, as microseconds since midnight.
///
/// # Errors
/// The fault.
pub fn time_as(text: &str, format: &TimePattern) -> Result<i64, Fault> {
    Parts::read(text, format)?.time_of_day()
}

/// A date and, where the format holds it, a time, as microseconds since 1970-01-01T00:00:00.
///
/// # Errors
/// The fault.
pub fn timestamp_as(text: &str, format: &TimePattern) -> Result<i64, Fault> {
    Parts::read(text, format)?.local()
}

/// As [`timestamp_as`]; the offset is taken off, and without one it is UTC.
///
/// # Errors
/// The fault.
pub fn timestamptz_as(text: &str, format: &TimePattern) -> Result<i64, Fault> {
    let parts = Parts::read(text, format)?;
    Ok(parts.local()? - parts.offset_minutes * 60 * MICROS_PER_SECOND)
}

impl Parts {
    fn read(text: &str, format: &TimePattern) -> Result<Self, Fault> {
        let mut parts = Self::default();
        let mut rest = trim(text);
        for item in format.items() {
            rest = parts.take(rest, item)?;
        }
        if rest.is_empty() { Ok(parts) } else { Err(BEHIND) }
    }

    /// Reads one item at the beginning of `text`; gives what is behind it.
    fn take<'a>(&mut self, text: &'a str, item: &PatternItem) -> Result<&'a str, Fault> {
        match item {
            PatternItem::Literal(literal) => text.strip_prefix(literal.as_str()).ok_or(NOT_AS),
            PatternItem::Number { part, least, most, padded } => {
                let (number, rest) = match text.strip_prefix(' ') {
                    Some(digit) if *padded => digits(digit, 1, 1)?,
                    _ => digits(text, *least, *most)?,
                };
                self.set(*part, number);
                Ok(rest)
            }
            PatternItem::Fraction => {
                let (fraction, rest) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
                self.micros = micros(fraction).ok_or(DIGITS)?;
                Ok(rest)
            }
            PatternItem::HalfDay => {
                let (half, rest) = text.split_at_checked(2).ok_or(NOT_AS)?;
                self.afternoon = half.eq_ignore_ascii_case("PM");
                if self.afternoon || half.eq_ignore_ascii_case("AM") { Ok(rest) } else { Err(NOT_AS) }
            }
            PatternItem::MonthName { whole } => {
                let (month, rest) = name(text, &MONTHS, *whole)?;
                self.month = month as u32 + 1;
                Ok(rest)
            }
            PatternItem::WeekdayName { whole } => {
                let (weekday, rest) = name(text, &WEEKDAYS, *whole)?;
                self.weekday = Some(weekday);
                Ok(rest)
            }
            PatternItem::Offset => {
                let (minutes, rest) = offset(text)?;
                self.offset_minutes = minutes;
                Ok(rest)
            }
        }
    }

    fn set(&mut self, part: NumberPart, number: u32) {
        match part {
            NumberPart::Year => self.year = number,
            // The pivot of PostgreSQL's to_timestamp.
            NumberPart::YearOfCentury => self.year = number + if number < 70 { 2000 } else { 1900 },
            NumberPart::Month => self.month = number,
            NumberPart::Day => self.day = number,
            NumberPart::DayOfYear => self.day_of_year = Some(number),
            NumberPart::Hour => self.hour = number,
            NumberPart::Hour12 => self.hour12 = Some(number),
            NumberPart::Minute => self.minute = number,
            NumberPart::Second => self.second = number,
        }
    }

    fn days(&self) -> Result<i32, Fault> {
        let days = match self.day_of_year {
            None => days_of(self.year, self.month, self.day),
            Some(day) => {
                let last = days_of(self.year, 12, 31);
                let nth = |first: i32| i32::try_from(day).ok().filter(|day| *day > 0).map(|day| first + day - 1);
                days_of(self.year, 1, 1).and_then(nth).filter(|days| Some(*days) <= last)
            }
        };
        let days = days.ok_or(NO_DAY)?;
        // 1970-01-01 was a Thursday.
        let weekday = (days + 3).rem_euclid(7) as usize;
        if self.weekday.is_some_and(|said| said != weekday) { Err(WEEKDAY) } else { Ok(days) }
    }

    fn time_of_day(&self) -> Result<i64, Fault> {
        let hour = match self.hour12 {
            None => self.hour,
            Some(hour @ 1..=12) => hour % 12 + if self.afternoon { 12 } else { 0 },
            Some(_) => return Err(NO_TIME),
        };
        if hour > 23 || self.minute > 59 || self.second > 59 {
            return Err(NO_TIME);
        }
        let seconds = hour * 3600 + self.minute * 60 + self.second;
        Ok(i64::from(seconds) * MICROS_PER_SECOND + i64::from(self.micros))
    }

    fn local(&self) -> Result<i64, Fault> {
        Ok(i64::from(self.days()?) * MICROS_PER_DAY + self.time_of_day()?)
    }
}

/// The number that the first digits of a text are, as many as there are up to `most`.
#[inline]
fn digits(text: &str, least: usize, most: usize) -> Result<(u32, &str), Fault> {
    let count = text.bytes().take(most).take_while(u8::is_ascii_digit).count();
    if count < least {
        return Err(NOT_AS);
    }
    let number = text.bytes().take(count).fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
    Ok((number, &text[count..]))
}

/// The place of the name that a text begins with.
fn name<'a>(text: &'a str, names: &[&str], whole: bool) -> Result<(usize, &'a str), Fault> {
    names
        .iter()
        .enumerate()
        .find_map(|(place, name)| {
            let name = if whole { name } else { &name[..3] };
            let (said, rest) = text.split_at_checked(name.len())?;
            said.eq_ignore_ascii_case(name).then_some((place, rest))
        })
        .ok_or(NOT_AS)
}

/// `Z`, `+hh`, `+hhmm` or `+hh:mm`, in minutes to the east.
fn offset(text: &str) -> Result<(i64, &str), Fault> {
    if let Some(rest) = text.strip_prefix(['Z', 'z']) {
        return Ok((0, rest));
    }
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let number = text.strip_prefix(['+', '-']).ok_or(NOT_AS)?;
    // The longest that reads is meant: `+0130` is no `+01` with digits behind it.
    let read = |length: usize| {
        let (offset, rest) = number.split_at_checked(length)?;
        offset_minutes(offset).map(|minutes| (sign * minutes, rest))
    };
    read(5).or_else(|| read(4)).or_else(|| read(2)).ok_or(NOT_AS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, NaiveDate, NaiveTime};
    use proptest::prelude::*;

    fn format(text: &str) -> TimePattern {
        text.parse().unwrap()
    }

    fn day(year: i32, month: u32, day: u32) -> i32 {
        (NaiveDate::from_ymd_opt(year, month, day).unwrap() - NaiveDate::default()).num_days() as i32
    }

    #[test]
    fn dates_read_as_their_format_says() {
        let expected = Ok(day(2024, 5, 13));
        for (text, pattern) in [
            ("13/05/2024", "%d/%m/%Y"),
            ("13/5/2024", "%d/%m/%Y"),
            ("05/13/2024", "%m/%d/%Y"),
            (" 13.05.24\t", "%d.%m.%y"),
            ("20240513", "%Y%m%d"),
            ("Monday, may 13, 2024", "%A, %B %e, %Y"),
            ("MON 13 May 2024", "%a %d %b %Y"),
            ("2024-134", "%Y-%j"),
            ("2024年5月13日", "%Y年%m月%d日"),
        ] {
            assert_eq!(date_as(text, &format(pattern)), expected, "{text} {pattern}");
        }
        assert_eq!(date_as(" 5 May 2024", &format("%e %b %Y")), Ok(day(2024, 5, 5)));
        assert_eq!(date_as("May  5 2024", &format("%b %e %Y")), Ok(day(2024, 5, 5)));
        assert_eq!(date_as("1.1.69", &format("%d.%m.%y")), Ok(day(2069, 1, 1)));
        assert_eq!(date_as("1.1.70", &format("%d.%m.%y")), Ok(day(1970, 1, 1)));
    }

    #[test]
    fn every_misfit_says_what_it_is() {
        for (text, pattern, fault) in [
            ("05/13/2024", "%d/%m/%Y", NO_DAY),
            ("29/02/2023", "%d/%m/%Y", NO_DAY),
            ("01/01/0000", "%d/%m/%Y", NO_DAY),
            ("2023-366", "%Y-%j", NO_DAY),
            ("2024-000", "%Y-%j", NO_DAY),
            ("13/05/24", "%d/%m/%Y", NOT_AS),
            ("13/05/20245", "%d/%m/%Y", BEHIND),
            ("13/05/2024 10:00", "%d/%m/%Y", BEHIND),
            ("13 /05/2024", "%d/%m/%Y", NOT_AS),
            ("+3/05/2024", "%d/%m/%Y", NOT_AS),
            ("2024513", "%Y%m%d", NOT_AS),
            ("Tue 13 May 2024", "%a %d %b %Y", WEEKDAY),
            ("13 Mai 2024", "%d %b %Y", NOT_AS),
            ("１３/05/2024", "%d/%m/%Y", NOT_AS),
            ("", "%d/%m/%Y", NOT_AS),
        ] {
            assert_eq!(date_as(text, &format(pattern)), Err(fault), "{text} {pattern}");
        }
        for (text, pattern, fault) in [
            ("24:00", "%H:%M", NO_TIME),
            ("10:60", "%H:%M", NO_TIME),
            ("10:00:60", "%T", NO_TIME),
            ("13:00 PM", "%I:%M %p", NO_TIME),
            ("0:30 AM", "%I:%M %p", NO_TIME),
            ("1:00 XM", "%I:%M %p", NOT_AS),
            ("10:00:00.1234567", "%T.%f", DIGITS),
            ("10:00:00.", "%T.%f", DIGITS),
        ] {
            assert_eq!(time_as(text, &format(pattern)), Err(fault), "{text} {pattern}");
        }
    }

    #[test]
    fn times_and_offsets() {
        for (text, pattern, seconds) in [
            ("12:00 AM", "%I:%M %p", 0),
            ("12:30 pm", "%I:%M %p", 12 * 3600 + 1800),
            ("9:05 PM", "%I:%M %p", 21 * 3600 + 300),
            ("0905", "%H%M", 9 * 3600 + 300),
        ] {
            assert_eq!(time_as(text, &format(pattern)), Ok(seconds * MICROS_PER_SECOND), "{text}");
        }
        assert_eq!(time_as("00:00:01.5", &format("%T.%f")), Ok(1_500_000));
        assert_eq!(time_as("00:00:01.123456000", &format("%T.%f")), Ok(1_123_456));
        let ten = DateTime::parse_from_rfc3339("2024-05-13T10:00:00Z").unwrap().timestamp_micros();
        for text in ["13/05/2024 10:00Z", "13/05/2024 11:30+01:30", "13/05/2024 05:00-0500", "13/05/2024 12:00+02"] {
            assert_eq!(timestamptz_as(text, &format("%d/%m/%Y %H:%M%z")), Ok(ten), "{text}");
        }
        for text in ["13/05/2024 10:00", "13/05/2024 10:00+1", "13/05/2024 10:00+16", "13/05/2024 10:00é1"] {
            assert!(timestamptz_as(text, &format("%d/%m/%Y %H:%M%z")).is_err(), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

        /// What another library prints in a format reads back as the same moment.
        #[test]
        fn printed_moments_read_back(
            days in -719_162_i32..=2_932_896,
            seconds in 0_u32..86_400,
            micros in 0_u32..1_000_000,
            date in prop::sample::select(&[
                "%d/%m/%Y", "%m-%d-%Y", "%Y%m%d", "%F", "%e %b %Y", "%A, %B %d, %Y", "%a %j %Y", "%d.%m.%Y%%",
            ][..]),
            time in prop::sample::select(&["%T", "%H%M%S", "%I:%M:%S %p", "%p %I-%M-%S"][..]),
            fraction in prop::sample::select(&["", ".%f"][..]),
        ) {
            // chrono's `%f` are nine digits; ours take them where the last three are zeros.
            let micros = if fraction.is_empty() { 0 } else { micros };
            let day = NaiveDate::default() + chrono::Duration::days(days.into());
            let clock = NaiveTime::from_num_seconds_from_midnight_opt(seconds, micros * 1000).unwrap();
            let of_day = i64::from(seconds) * MICROS_PER_SECOND + i64::from(micros);
            prop_assert_eq!(date_as(&day.format(date).to_string(), &format(date)), Ok(days));
            let time = format!("{time}{fraction}");
            prop_assert_eq!(time_as(&clock.format(&time).to_string(), &format(&time)), Ok(of_day));
            let both = format!("{date} {time}");
            let printed = day.and_time(clock).format(&both).to_string();
            prop_assert_eq!(timestamp_as(&printed, &format(&both)), Ok(i64::from(days) * MICROS_PER_DAY + of_day));
            let zoned = format!("{both} +0530");
            let printed = format!("{printed} +0530");
            let offset = 330 * 60 * MICROS_PER_SECOND;
            prop_assert_eq!(
                timestamptz_as(&printed, &format(&zoned.replace("+0530", "%z"))),
                Ok(i64::from(days) * MICROS_PER_DAY + of_day - offset)
            );
        }

        /// Whatever stands in a cell: it is refused, or it is what the library reads there, too.
        #[test]
        fn what_is_taken_is_what_another_library_takes(
            text in "[0-9]{1,3}[/.-][0-9]{1,3}[/.-][0-9]{2,5}( [0-9]{1,2}:[0-9]{1,2})?|[0-9/ é:-]{0,12}",
            pattern in prop::sample::select(&["%d/%m/%Y", "%m-%d-%Y", "%d.%m.%Y", "%Y/%m/%d"][..]),
        ) {
            if let Ok(days) = date_as(&text, &format(pattern)) {
                let theirs = NaiveDate::parse_from_str(text.trim(), pattern).unwrap();
                prop_assert_eq!(days, (theirs - NaiveDate::default()).num_days() as i32);
            }
            if let Ok(micros) = timestamp_as(&text, &format(&format!("{pattern} %H:%M"))) {
                let theirs = chrono::NaiveDateTime::parse_from_str(text.trim(), &format!("{pattern} %H:%M")).unwrap();
                prop_assert_eq!(micros, theirs.and_utc().timestamp_micros());
            }
        }
    }
}
