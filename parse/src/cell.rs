//! The grammar of every type: from a cell's text to its value, exact or not at all. Both readers use these, so they cannot
//! differ.
//!
//! Spaces and tabs around a cell are passed over for every type but text, json and native ones, as PostgreSQL's input
//! functions do.

/// Why a cell is not a value: shown to the user behind the cell itself.
pub type Fault = &'static str;

const MICROS_PER_SECOND: i64 = 1_000_000;
/// From 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: i32 = 719_468;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// Powers of ten that an `i128` holds.
const POWERS_OF_TEN: [i128; 39] = {
    let mut powers = [1; 39];
    let mut exponent = 1;
    while exponent < powers.len() {
        powers[exponent] = powers[exponent - 1] * 10;
        exponent += 1;
    }
    powers
};

/// So many digits fit a `u64`, whatever they are.
const DIGITS_OF_U64: usize = 19;

#[inline]
fn trim(text: &str) -> &str {
    match text.as_bytes() {
        // Almost every cell begins and ends with a letter or a digit.
        [b'!'..=b'\xFF', .., b'!'..=b'\xFF'] | [b'!'..=b'\xFF'] => text,
        _ => text.trim_matches([' ', '\t']),
    }
}

/// The short and plain whole numbers, which are almost all: an optional minus and 1 to 18 digits.
#[inline]
fn plain_int(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if !(1..DIGITS_OF_U64).contains(&digits.len()) {
        return None;
    }
    let mut value: i64 = 0;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + i64::from(digit);
    }
    Some(if negative { -value } else { value })
}

/// `true t yes y on 1` and `false f no n off 0`, in any case.
///
/// # Errors
/// The fault.
pub fn bool(text: &str) -> Result<bool, Fault> {
    let text = trim(text);
    let is = |words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is(&["true", "t", "1", "yes", "y", "on"]) {
        Ok(true)
    } else if is(&["false", "f", "0", "no", "n", "off"]) {
        Ok(false)
    } else {
        Err("is no boolean")
    }
}

/// An optional sign and digits, within 64 bits.
///
/// # Errors
/// The fault.
#[inline]
pub fn int64(text: &str) -> Result<i64, Fault> {
    if let Some(value) = plain_int(text.as_bytes()) {
        return Ok(value);
    }
    // `i64::from_str` takes exactly this grammar.
    trim(text).parse::<i64>().map_err(|error| match error.kind() {
        std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => "is out of range for int64",
        _ => "is no whole number",
    })
}

/// An optional sign and digits, within 32 bits.
///
/// # Errors
/// The fault.
#[inline]
pub fn int32(text: &str) -> Result<i32, Fault> {
    trim(text).parse::<i32>().map_err(|error| match error.kind() {
        std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => "is out of range for int32",
        _ => "is no whole number",
    })
}

/// A decimal number with an optional exponent, or `inf infinity nan` in any case; what overflows to infinity or underflows to
/// zero is refused, as PostgreSQL does.
///
/// # Errors
/// The fault.
pub fn float64(text: &str) -> Result<f64, Fault> {
    let text = trim(text);
    let value: f64 = text.parse().map_err(|_| "is no number")?;
    let has_digit = text.bytes().any(|byte| byte.is_ascii_digit());
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    if has_digit && value.is_infinite() {
        return Err("is out of range for float64");
    }
    if value == 0.0 && mantissa.bytes().any(|byte| matches!(byte, b'1'..=b'9')) {
        return Err("is out of range for float64");
    }
    Ok(value)
}

/// How many significant digits a number is written with; what a `float64` holds for sure is 15 to 17.
#[must_use]
pub fn significant_digits(text: &str) -> usize {
    let mantissa = trim(text).split(['e', 'E']).next().unwrap_or_default();
    let digits: Vec<u8> = mantissa.bytes().filter(u8::is_ascii_digit).collect();
    let from = digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len());
    digits.len() - from
}

/// Digits with an optional sign, point and exponent, as `unscaled = value * 10^scale`. Never rounded: more fractional digits
/// than `scale`, other than zeros, or more than `precision - scale` digits before the point are faults.
///
/// # Errors
/// The fault.
#[inline]
pub fn decimal(text: &str, precision: u8, scale: u8) -> Result<i128, Fault> {
    match plain_decimal(text.as_bytes(), precision, scale) {
        Some(value) => Ok(value),
        None => any_decimal(text, precision, scale),
    }
}

/// The short and plain decimals, which are almost all: an optional minus, 1 to 18 digits with a point somewhere, no more of
/// them behind it than the scale, and few enough before it for sure.
#[inline]
fn plain_decimal(text: &[u8], precision: u8, scale: u8) -> Option<i128> {
    let (negative, number) = match text {
        [b'-', number @ ..] => (true, number),
        number => (false, number),
    };
    if number.len() > DIGITS_OF_U64 {
        return None;
    }
    let mut value: u64 = 0;
    let mut point = None;
    for (place, byte) in number.iter().enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit <= 9 {
            value = value * 10 + u64::from(digit);
        } else if *byte == b'.' && point.is_none() {
            point = Some(place);
        } else {
            return None;
        }
    }
    let (digits, fraction) = match point {
        Some(point) => (number.len() - 1, number.len() - 1 - point),
        None => (number.len(), 0),
    };
    let shift = usize::from(scale).checked_sub(fraction)?;
    if !(1..DIGITS_OF_U64).contains(&digits) || digits + shift > usize::from(precision) {
        return None;
    }
    let value = i128::from(value) * POWERS_OF_TEN[shift];
    Some(if negative { -value } else { value })
}

fn any_decimal(text: &str, precision: u8, scale: u8) -> Result<i128, Fault> {
    const NO_NUMBER: Fault = "is no decimal number";
    let text = trim(text);
    let (negative, digits) = match text.as_bytes() {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let mut unscaled: i128 = 0;
    // Digits behind the point, less those cut as zeros; `None` before the point.
    let mut fraction: Option<i32> = None;
    let mut seen = false;
    let mut exponent = 0;
    for (i, byte) in digits.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                seen = true;
                unscaled = unscaled
                    .checked_mul(10)
                    .and_then(|value| value.checked_add(i128::from(byte - b'0')))
                    .ok_or("has too many digits")?;
                if let Some(fraction) = &mut fraction {
                    *fraction += 1;
                }
            }
            b'.' if fraction.is_none() => fraction = Some(0),
            b'e' | b'E' if seen => {
                let text = std::str::from_utf8(&digits[i + 1..]).map_err(|_| NO_NUMBER)?;
                exponent = text.parse::<i16>().map_err(|_| NO_NUMBER)?.into();
                break;
            }
            _ => return Err(NO_NUMBER),
        }
    }
    if !seen {
        return Err(NO_NUMBER);
    }
    let mut shift = i32::from(scale) - fraction.unwrap_or(0) + exponent;
    while shift < 0 {
        if unscaled % 10 != 0 {
            return Err("has more fractional digits than the column's scale");
        }
        if unscaled == 0 {
            shift = 0;
            break;
        }
        unscaled /= 10;
        shift += 1;
    }
    if unscaled != 0 {
        for _ in 0..shift {
            unscaled = unscaled.checked_mul(10).ok_or("has more digits than the column's precision")?;
        }
    }
    if unscaled >= POWERS_OF_TEN[usize::from(precision)] {
        return Err("has more digits than the column's precision");
    }
    Ok(if negative { -unscaled } else { unscaled })
}

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
    let year = two_digits(a, b)? * 100 + two_digits(c, d)?;
    let (month, day) = (two_digits(e, f)?, two_digits(g, h)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
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
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let seconds = hour * 3600 + minute * 60 + second;
    Some(i64::from(seconds) * MICROS_PER_SECOND + i64::from(micros))
}

fn micros(fraction: &str) -> Option<u32> {
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

fn offset_minutes(text: &str) -> Option<i64> {
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

/// RFC 9562, with or without hyphens or braces, in any case.
///
/// # Errors
/// The fault.
pub fn uuid(text: &str) -> Result<[u8; 16], Fault> {
    uuid::Uuid::try_parse(trim(text)).map(uuid::Uuid::into_bytes).map_err(|_| "is no UUID")
}

/// Valid JSON (RFC 8259) that PostgreSQL's `jsonb` holds: no `\u0000`.
///
/// # Errors
/// The fault.
pub fn json(text: &str) -> Result<(), Fault> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|_| "is no JSON")?;
    if text.contains("\\u0000") { Err("holds \\u0000, which no database text can hold") } else { Ok(()) }
}

/// Any text but NUL, which PostgreSQL cannot hold.
///
/// # Errors
/// The fault.
#[inline]
pub fn text(text: &str) -> Result<(), Fault> {
    if memchr::memchr(0, text.as_bytes()).is_some() {
        Err("holds a NUL byte, which no database text can hold")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans() {
        for text in ["true", "T", "yes", "Y", "on", "1", " true "] {
            assert_eq!(bool(text), Ok(true), "{text}");
        }
        for text in ["false", "F", "no", "n", "OFF", "0"] {
            assert_eq!(bool(text), Ok(false), "{text}");
        }
        for text in ["", "2", "ja", "tru"] {
            assert!(bool(text).is_err(), "{text}");
        }
    }

    #[test]
    fn whole_numbers() {
        for (text, value) in
            [("0", 0), ("-1", -1), ("+5", 5), (" 7\t", 7), ("007", 7), ("9223372036854775807", i64::MAX)]
        {
            assert_eq!(int64(text), Ok(value), "{text}");
        }
        for text in ["", "-", "1.0", "1e3", "0x10", "1 2", "9223372036854775808", "-9223372036854775809", "١"] {
            assert!(int64(text).is_err(), "{text}");
        }
        assert_eq!(int32("-2147483648"), Ok(i32::MIN));
        assert!(int32("2147483648").is_err());
    }

    #[test]
    fn floats_never_change_size_silently() {
        assert_eq!(float64("1.5e3"), Ok(1500.0));
        assert_eq!(float64("-Infinity"), Ok(f64::NEG_INFINITY));
        assert!(float64("NaN").unwrap().is_nan());
        assert_eq!(float64("0e10"), Ok(0.0));
        for text in ["1e400", "1e-400", "", ".", "1,5", "1e", "0x1p3"] {
            assert!(float64(text).is_err(), "{text}");
        }
        assert_eq!(significant_digits("-0.00123400e5"), 6);
    }

    #[test]
    fn decimals_are_exact_or_refused() {
        let max = "9".repeat(38);
        for (text, precision, scale, value) in [
            ("1.5", 15, 2, 150),
            ("-0.01", 15, 2, -1),
            ("+.5", 15, 2, 50),
            ("5.", 15, 2, 500),
            ("1.500", 15, 2, 150),
            ("1.5e2", 15, 2, 15_000),
            ("150e-2", 15, 2, 150),
            ("0", 38, 38, 0),
            ("0.000000", 5, 0, 0),
            ("0e-99", 5, 0, 0),
            (" 12 ", 2, 0, 12),
            (&max, 38, 0, 10_i128.pow(38) - 1),
            (&format!("0.{max}"), 38, 38, 10_i128.pow(38) - 1),
        ] {
            assert_eq!(decimal(text, precision, scale), Ok(value), "{text}");
        }
        for (text, precision, scale) in [
            ("1.555", 15, 2),
            ("100", 2, 0),
            ("1", 38, 38),
            ("", 5, 0),
            (".", 5, 0),
            ("1.2.3", 5, 2),
            ("1e", 5, 0),
            ("e5", 5, 0),
            ("1,5", 5, 2),
            ("--1", 5, 2),
            ("1e30000", 38, 0),
            (&format!("1{max}"), 38, 0),
        ] {
            assert!(decimal(text, precision, scale).is_err(), "{text}");
        }
    }

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

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            failure_persistence: None, ..proptest::prelude::ProptestConfig::with_cases(100_000)
        })]

        #[test]
        fn short_cuts_end_where_the_grammar_does(
            text in "[ +-]?[0-9]{0,12}[0-9.]{0,3}[0-9]{0,12}([eE][+-]?[0-9])?[ x]?",
            precision in 1_u8..=38,
            scale in 0_u8..=38,
        ) {
            let scale = scale.min(precision);
            if let Some(value) = plain_decimal(text.as_bytes(), precision, scale) {
                proptest::prop_assert_eq!(Ok(value), any_decimal(&text, precision, scale));
            }
            if let Some(value) = plain_int(text.as_bytes()) {
                proptest::prop_assert_eq!(Ok(value), text.parse::<i64>());
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

    #[test]
    fn uuids_and_json() {
        let bytes = uuid("67e55044-10b1-426f-9247-bb680e5fe0c8").unwrap();
        assert_eq!(uuid("{67E55044-10B1-426F-9247-BB680E5FE0C8}"), Ok(bytes));
        assert_eq!(uuid("67e5504410b1426f9247bb680e5fe0c8"), Ok(bytes));
        assert!(uuid("67e55044").is_err());
        assert!(json("{\"a\": [1, null]}").is_ok());
        for text in ["", "{a: 1}", "1 2", "\"\\u0000\""] {
            assert!(json(text).is_err(), "{text}");
        }
        assert!(text("a\0b").is_err());
    }
}
