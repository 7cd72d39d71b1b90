//! Numbers as programs write them: digits, an optional sign, a point, an exponent.

use super::{Fault, trim};

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
        _ => "is no whole number (digits, with a sign or without)",
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
        _ => "is no whole number (digits, with a sign or without)",
    })
}

/// A decimal number with an optional exponent, or `inf infinity nan` in any case; what overflows to infinity or underflows to
/// zero is refused, as PostgreSQL does.
///
/// # Errors
/// The fault.
pub fn float64(text: &str) -> Result<f64, Fault> {
    let text = trim(text);
    let value: f64 =
        text.parse().map_err(|_| "is no number (digits with a sign, a point and an exponent, as far as needed)")?;
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
    const NO_NUMBER: Fault = "is no decimal number (digits with a sign, a point and an exponent, as far as needed)";
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
