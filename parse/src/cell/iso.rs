//! Dates, times and timestamps in ISO 8601.

use super::{Fault, trim};

pub(super) const MICROS_PER_SECOND: i64 = 1_000_000;
/// From 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: i32 = 719_468;
pub(super) const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

fn number(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    (digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

/// Two ASCII digits.
#[inline]
fn two_digits(tens: u8, ones: u8) -> Option<u32> {
    let (tens, ones) = (tens.wrapping_sub(b'0'), ones.wrapping_sub(b'0'));
    (tens <= 9 && ones <= 9).then(|| u32::from(tens) * 10 + u32::from(ones))
}

/// `yyyy-mm-dd`, years 0001 to 9999, as days since 1970-01-01.
#[inline]
fn days(text: &[u8]) -> Option<i32> {
    let [a, b, c, d, b'-', e, f, b'-', g, h] = *text else { return None };
    days_of(two_digits(a, b)? * 100 + two_digits(c, d)?, two_digits(e, f)?, two_digits(g, h)?)
}

/// A day of the calendar, years 0001 to 9999, as days since 1970-01-01.
#[inline]
pub(super) fn days_of(year: u32, month: u32, day: u32) -> Option<i32> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let in_month = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        _ => return None,
    };
    if year == 0 || day == 0 || day > in_month {
        return None;
    }
    // Years begin in March here, so that the leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let since_year_0 = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    Some(since_year_0 as i32 - DAYS_TO_1970)
}

/// ISO 8601 `yyyy-mm-dd`, years 0001 to 9999, as days since 1970-01-01.
///
/// # Errors
/// The fault.
#[inline]
pub fn date(text: &str) -> Result<i32, Fault> {
    days(trim(text).as_bytes()).ok_or("is no date (yyyy-mm-dd)")
}

/// `hh:mm[:ss[.ffffff]]`; more than six digits only as zeros. Microseconds since midnight.
fn time_of_day(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    // As almost all are written.
    if let [a, b, b':', c, d, b':', e, f] = *bytes {
        return instant_of_day(two_digits(a, b)?, two_digits(c, d)?, two_digits(e, f)?, 0);
    }
    if !text.is_ascii() || !matches!(bytes.len(), 5 | 8 | 10..) || bytes[2] != b':' {
        return None;
    }
    let (hour, minute) = (number(&text[..2], 2..=2)?, number(&text[3..5], 2..=2)?);
    let (second, micros) = match text[5..].strip_prefix(':') {
        None if bytes.len() == 5 => (0, 0),
        None => return None,
        Some(seconds) => match seconds.split_once('.') {
            None => (number(seconds, 2..=2)?, 0),
            Some((seconds, fraction)) => (number(seconds, 2..=2)?, micros(fraction)?),
        },
    };
    instant_of_day(hour, minute, second, micros)
}

#[inline]
fn instant_of_day(hour: u32, minute: u32, second: u32, micros: u32) -> Option<i64> {
    let seconds = hour * 3600 + minute * 60 + second;
    (hour < 24 && minute < 60 && second < 60).then(|| i64::from(seconds) * MICROS_PER_SECOND + i64::from(micros))
}

pub(super) fn micros(fraction: &str) -> Option<u32> {
    let (kept, cut) = fraction.split_at(fraction.len().min(6));
    if cut.bytes().any(|byte| byte != b'0') {
        return None;
    }
    let value = number(kept, 1..=6)?;
    Some(value * 10_u32.pow(6 - kept.len() as u32))
}

/// `hh:mm[:ss[.ffffff]]` as microseconds since midnight.
///
/// # Errors
/// The fault.
pub fn time(text: &str) -> Result<i64, Fault> {
    time_of_day(trim(text)).ok_or("is no time (hh:mm:ss, at most six digits behind the point)")
}

/// A date and, behind a `T` or a space, a time; a date alone is its midnight.
fn date_and_time(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    let date = i64::from(days(date.as_bytes())?) * MICROS_PER_DAY;
    match rest.as_bytes() {
        [] => Some(date),
        [b'T' | b't' | b' ', ..] => Some(date + time_of_day(&rest[1..])?),
        _ => None,
    }
}

/// ISO 8601 without an offset, as microseconds since 1970-01-01T00:00:00.
///
/// # Errors
/// The fault; a cell with an offset is one.
pub fn timestamp(text: &str) -> Result<i64, Fault> {
    date_and_time(trim(text)).ok_or("is no timestamp without an offset (yyyy-mm-ddThh:mm:ss)")
}

/// ISO 8601 with `Z` or an offset (`+hh`, `+hhmm`, `+hh:mm`); without one it is UTC. Microseconds since 1970-01-01T00:00:00Z.
///
/// # Errors
/// The fault.
pub fn timestamptz(text: &str) -> Result<i64, Fault> {
    const FAULT: Fault = "is no timestamp (yyyy-mm-ddThh:mm:ssZ)";
    let text = trim(text);
    if let Some(local) = text.strip_suffix(['Z', 'z']) {
        return if local.len() > 10 { date_and_time(local).ok_or(FAULT) } else { Err(FAULT) };
    }
    let sign = text.get(11..).and_then(|time| time.find(['+', '-'])).map(|at| at + 11);
    let Some(sign) = sign else { return date_and_time(text).ok_or(FAULT) };
    let local = date_and_time(text[..sign].trim_end_matches(' ')).ok_or(FAULT)?;
    let offset = offset_minutes(&text[sign + 1..]).ok_or(FAULT)? * 60 * MICROS_PER_SECOND;
    Ok(if text.as_bytes()[sign] == b'-' { local + offset } else { local - offset })
}

pub(super) fn offset_minutes(text: &str) -> Option<i64> {
    let (hours, minutes) = match text.len() {
        2 => (text, "00"),
        4 if text.is_ascii() => text.split_at(2),
        5 => text.split_once(':')?,
        _ => return None,
    };
    let (hours, minutes) = (number(hours, 2..=2)?, number(minutes, 2..=2)?);
    // PostgreSQL's bounds.
    (hours <= 15 && minutes < 60).then(|| i64::from(hours * 60 + minutes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times() {
        assert_eq!(date("1970-01-01"), Ok(0));
        assert_eq!(date("1969-12-31"), Ok(-1));
        assert_eq!(date("0001-01-01"), Ok(-719_162));
        assert_eq!(date("2024-02-29"), Ok(19_782));
        for text in
            ["2023-02-29", "0000-01-01", "1-1-1", "01/02/2023", "2023-1-01", "2023-01-01x", "２０２３-01-01", ""]
        {
            assert!(date(text).is_err(), "{text}");
        }
        assert_eq!(time("00:00"), Ok(0));
        assert_eq!(time("23:59:59.999999"), Ok(MICROS_PER_DAY - 1));
        assert_eq!(time("01:02:03.5"), Ok(3_723_500_000));
        assert_eq!(time("01:02:03.120000000"), Ok(3_723_120_000));
        for text in ["24:00", "1:00", "01:60", "01:02:61", "01:02:03.1234567", "01:02:", "01:02:03.", "0102"] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_day_is_counted_as_the_calendar_does() {
        for year in 0..=9999 {
            for month in 0..=13 {
                for day in 0..=32 {
                    let known = chrono::NaiveDate::from_ymd_opt(year, month, day)
                        .filter(|_| year > 0)
                        .map(|date| (date - chrono::NaiveDate::default()).num_days() as i32);
                    let text = format!("{year:04}-{month:02}-{day:02}");
                    assert_eq!(days(text.as_bytes()), known, "{text}");
                }
            }
        }
    }

    #[test]
    fn timestamps_keep_their_offset_apart() {
        let ten = 1_357_034_400 * MICROS_PER_SECOND;
        assert_eq!(timestamp("2013-01-01T10:00:00"), Ok(ten));
        assert_eq!(timestamp("2013-01-01 10:00"), Ok(ten));
        assert_eq!(timestamp("1970-01-02"), Ok(MICROS_PER_DAY));
        for text in ["2013-01-01T10:00:00Z", "2013-01-01T10:00:00+01", "2013-01-01x10:00:00", "2013-01-01T", "x"] {
            assert!(timestamp(text).is_err(), "{text}");
        }
        for text in [
            "2013-01-01T10:00:00Z",
            "2013-01-01 10:00:00",
            "2013-01-01T11:30:00+01:30",
            "2013-01-01T05:00:00-0500",
            "2013-01-01 12:00:00 +02",
            "2013-01-01 10:00z",
        ] {
            assert_eq!(timestamptz(text), Ok(ten), "{text}");
        }
        for text in
            ["2013-01-01Z", "2013-01-01T10:00:00+16", "2013-01-01T10:00:00+1", "2013-01-01T10:00:00 UTC", "é2013-01-01"]
        {
            assert!(timestamptz(text).is_err(), "{text}");
        }
    }
}
