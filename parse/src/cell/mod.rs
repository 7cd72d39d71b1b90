//! The grammar of every type: from a cell's text to its value, exact or not at all. Both readers use these, so they cannot
//! differ.
//!
//! Spaces and tabs around a cell are passed over for every type but text, json and native ones, as PostgreSQL's input
//! functions do.

/// Why a cell is not a value: shown to the user behind the cell itself.
pub type Fault = &'static str;

mod iso;
mod number;
mod pattern;
mod written;

pub use iso::{date, time, timestamp, timestamptz};
pub use number::{decimal, float64, int32, int64, significant_digits};
pub use pattern::{date_as, time_as, timestamp_as, timestamptz_as};
pub use written::WrittenNumber;

#[inline]
fn trim(text: &str) -> &str {
    match text.as_bytes() {
        // Almost every cell begins and ends with a letter or a digit.
        [b'!'..=b'\xFF', .., b'!'..=b'\xFF'] | [b'!'..=b'\xFF'] => text,
        _ => text.trim_matches([' ', '\t']),
    }
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
        Err("is no boolean (true/false, t/f, yes/no, y/n, on/off, 1/0)")
    }
}

/// RFC 9562, with or without hyphens or braces, in any case.
///
/// # Errors
/// The fault.
pub fn uuid(text: &str) -> Result<[u8; 16], Fault> {
    uuid::Uuid::try_parse(trim(text))
        .map(uuid::Uuid::into_bytes)
        .map_err(|_| "is no UUID (32 hexadecimal digits, with or without hyphens)")
}

/// Valid JSON (RFC 8259) that PostgreSQL's `jsonb` holds: no `\u0000`, and no half of a surrogate pair.
///
/// # Errors
/// The fault.
pub fn json(text: &str) -> Result<(), Fault> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|_| "is no JSON")?;
    let mut rest = text;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        let (unit, behind) = escape(&rest[at..]);
        rest = match unit {
            Some(0) => return Err("holds \\u0000, which no database text can hold"),
            Some(0xD800..=0xDBFF) => match escape(behind) {
                (Some(0xDC00..=0xDFFF), behind) => behind,
                _ => return Err(HALF_A_PAIR),
            },
            Some(0xDC00..=0xDFFF) => return Err(HALF_A_PAIR),
            _ => behind,
        };
    }
    Ok(())
}

const HALF_A_PAIR: Fault = "holds half of a surrogate pair, which is no character";

/// The UTF-16 unit of an escape at the start of valid JSON, where it is of that kind, and what is behind it.
fn escape(json: &str) -> (Option<u16>, &str) {
    match json.strip_prefix("\\u").and_then(|digits| digits.split_at_checked(4)) {
        Some((digits, behind)) => (u16::from_str_radix(digits, 16).ok(), behind),
        None => (None, json.get(2..).unwrap_or_default()),
    }
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
    fn uuids_and_json() {
        let bytes = uuid("67e55044-10b1-426f-9247-bb680e5fe0c8").unwrap();
        assert_eq!(uuid("{67E55044-10B1-426F-9247-BB680E5FE0C8}"), Ok(bytes));
        assert_eq!(uuid("67e5504410b1426f9247bb680e5fe0c8"), Ok(bytes));
        assert!(uuid("67e55044").is_err());
        assert!(json("{\"a\": [1, null]}").is_ok());
        for text in ["", "{a: 1}", "1 2"] {
            assert!(json(text).is_err(), "{text}");
        }
        assert!(text("a\0b").is_err());
    }

    #[test]
    fn json_escapes_are_refused_only_where_jsonb_refuses_them() {
        for text in [
            r#""\\u0000""#,
            r#""\\\\u0000""#,
            r#"{"\\u0000": "C:\\users\\u0000"}"#,
            r#""\u00e9\ud83d\ude00\n""#,
            r#""\\ud800""#,
        ] {
            assert_eq!(json(text), Ok(()), "{text}");
        }
        for text in [r#""\u0000""#, r#""\\\u0000""#, r#"{"a\u0000": 1}"#] {
            assert!(json(text).unwrap_err().contains("u0000"), "{text}");
        }
        for text in [r#""\ud800""#, r#""\udc00""#, r#""\ud83d\ud83d\ude00""#, r#""\uD83D\\uDE00""#, r#""\ud83dude00""#]
        {
            assert!(json(text).unwrap_err().contains("surrogate"), "{text}");
        }
    }
}
