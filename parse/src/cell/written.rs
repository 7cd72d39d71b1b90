//! Numbers as people write them: other separators, a percent or currency sign. Rewritten into the plain way and then read by
//! the same functions as all numbers, so that value, range and scale are theirs to judge.

use longshore_domain::{Notation, Unit};

use super::{Fault, trim};

const SHAPE: Fault = "is no number with the column's separators";
const GROUPS: Fault = "has thousands separators elsewhere than between groups of three digits";
const NO_PERCENT: Fault = "has no percent sign behind a number (12.5%)";
const NO_AMOUNT: Fault =
    "is no number with at most one currency sign or code ($5, 5 EUR, -$5, ($5)) and the column's separators";

/// Spaces of which one may stand between a number and its sign.
const SPACES: [char; 3] = [' ', '\u{a0}', '\u{202f}'];

/// ISO 4217: those in use, and some that files of the last years hold. Ascending.
const CODES: &[&str] = &[
    "AED", "AFN", "ALL", "AMD", "ANG", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BGN", "BHD", "BIF",
    "BMD", "BND", "BOB", "BOV", "BRL", "BSD", "BTN", "BWP", "BYN", "BZD", "CAD", "CDF", "CHE", "CHF", "CHW", "CLF",
    "CLP", "CNY", "COP", "COU", "CRC", "CUC", "CUP", "CVE", "CZK", "DJF", "DKK", "DOP", "DZD", "EGP", "ERN", "ETB",
    "EUR", "FJD", "FKP", "GBP", "GEL", "GHS", "GIP", "GMD", "GNF", "GTQ", "GYD", "HKD", "HNL", "HRK", "HTG", "HUF",
    "IDR", "ILS", "INR", "IQD", "IRR", "ISK", "JMD", "JOD", "JPY", "KES", "KGS", "KHR", "KMF", "KPW", "KRW", "KWD",
    "KYD", "KZT", "LAK", "LBP", "LKR", "LRD", "LSL", "LYD", "MAD", "MDL", "MGA", "MKD", "MMK", "MNT", "MOP", "MRU",
    "MUR", "MVR", "MWK", "MXN", "MXV", "MYR", "MZN", "NAD", "NGN", "NIO", "NOK", "NPR", "NZD", "OMR", "PAB", "PEN",
    "PGK", "PHP", "PKR", "PLN", "PYG", "QAR", "RON", "RSD", "RUB", "RWF", "SAR", "SBD", "SCR", "SDG", "SEK", "SGD",
    "SHP", "SLE", "SLL", "SOS", "SRD", "SSP", "STN", "SVC", "SYP", "SZL", "THB", "TJS", "TMT", "TND", "TOP", "TRY",
    "TTD", "TWD", "TZS", "UAH", "UGX", "USD", "USN", "UYI", "UYU", "UYW", "UZS", "VED", "VES", "VND", "VUV", "WST",
    "XAF", "XCD", "XCG", "XOF", "XPF", "YER", "ZAR", "ZMW", "ZWG", "ZWL",
];

/// Reads a column's numbers as they are written; made once for a block of cells.
pub struct WrittenNumber {
    decimal: char,
    thousands: Option<&'static str>,
    unit: Option<Unit>,
    /// The number at hand, in the plain way.
    buffer: String,
}

impl WrittenNumber {
    /// A reader for a notation.
    #[must_use]
    pub fn new(notation: &Notation) -> Self {
        Self {
            decimal: if notation.decimal_separator.unwrap_or_default().as_str() == "," { ',' } else { '.' },
            thousands: notation.thousands_separator.map(|separator| separator.as_str()),
            unit: notation.unit,
            buffer: String::new(),
        }
    }

    /// The cell's number in the plain way: a minus, digits, a point, digits, an exponent.
    ///
    /// # Errors
    /// The fault; what is given back may still be no number of the column's type.
    pub fn plain(&mut self, text: &str) -> Result<&str, Fault> {
        let text = trim(text);
        self.buffer.clear();
        match self.unit {
            None => {
                let (negative, number) = sign(text);
                if number.starts_with(|c: char| c.is_ascii_alphabetic()) {
                    // `nan` and `inf` have no separators.
                    self.buffer.push_str(text);
                    return Ok(&self.buffer);
                }
                self.write(negative, number, SHAPE)?;
            }
            Some(Unit::Percent) => {
                let number = text.strip_suffix('%').ok_or(NO_PERCENT)?;
                let (negative, number) = sign(number.strip_suffix(SPACES).unwrap_or(number));
                self.write(negative, number, NO_PERCENT)?;
                self.buffer.push_str("e-2");
            }
            Some(Unit::Currency) => {
                let (negative, number) = amount(text);
                self.write(negative, number, NO_AMOUNT)?;
            }
        }
        Ok(&self.buffer)
    }

    /// Writes a number without its sign.
    fn write(&mut self, negative: bool, number: &str, shape: Fault) -> Result<(), Fault> {
        if negative {
            self.buffer.push('-');
        }
        let decimal = self.decimal;
        let (whole, rest) = number.split_at(number.find([decimal, 'e', 'E']).unwrap_or(number.len()));
        self.write_whole(whole, shape)?;
        let exponent = match rest.strip_prefix(decimal) {
            None => rest,
            Some(rest) => {
                let (fraction, exponent) = rest.split_at(rest.find(['e', 'E']).unwrap_or(rest.len()));
                if !is_digits(fraction) {
                    return Err(shape);
                }
                self.buffer.push('.');
                self.buffer.push_str(fraction);
                exponent
            }
        };
        if !exponent.is_empty() && self.unit.is_some() {
            return Err(shape);
        }
        self.buffer.push_str(exponent);
        Ok(())
    }

    /// Writes the digits before the fraction. With separators, each of them has to stand where a group of three ends, and the
    /// first group is no zero: `0,123` is a fraction with another separator.
    fn write_whole(&mut self, whole: &str, shape: Fault) -> Result<(), Fault> {
        let Some(separator) = self.thousands.filter(|separator| whole.contains(separator)) else {
            self.buffer.push_str(whole);
            return if is_digits(whole) { Ok(()) } else { Err(shape) };
        };
        for (place, group) in whole.split(separator).enumerate() {
            if !is_digits(group) {
                return Err(shape);
            }
            let fits =
                if place == 0 { (1..=3).contains(&group.len()) && !group.starts_with('0') } else { group.len() == 3 };
            if !fits {
                return Err(GROUPS);
            }
            self.buffer.push_str(group);
        }
        Ok(())
    }
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a minus stands before a number, and the number.
fn sign(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// Takes one sign or code, one plus or minus, or the parentheses of book-keepers off an amount. What else stands there is no
/// digit, and refused as such.
fn amount(text: &str) -> (bool, &str) {
    if let Some(inner) = text.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        return (true, strip_currency(inner).unwrap_or(inner));
    }
    let (negative, number) = sign(text);
    let signed = number.len() < text.len();
    match strip_currency(number) {
        // `$-5`: the sign may stand behind the currency, but only once.
        Some(number) if !signed => sign(number),
        Some(number) => (negative, number),
        None => (negative, number),
    }
}

/// The number beside a currency sign or code, before or behind it.
fn strip_currency(text: &str) -> Option<&str> {
    let first = text.chars().next()?;
    let (front, behind) = if is_currency(first) {
        text.split_at(first.len_utf8())
    } else {
        text.split_at_checked(3).unwrap_or(("", text))
    };
    if is_currency(first) || CODES.binary_search(&front).is_ok() {
        return Some(behind.strip_prefix(SPACES).unwrap_or(behind));
    }
    let last = text.chars().next_back()?;
    let length = if is_currency(last) { last.len_utf8() } else { 3 };
    let (number, back) = text.split_at_checked(text.len().checked_sub(length)?)?;
    let is_sign = is_currency(last) || CODES.binary_search(&back).is_ok();
    is_sign.then(|| number.strip_suffix(SPACES).unwrap_or(number))
}

/// Currency signs of Unicode but those of hundredths (`¢`), whose numbers mean something else.
fn is_currency(c: char) -> bool {
    matches!(
        c,
        '$' | '£' | '¤' | '¥' | '֏' | '؋' | '৳' | '૱' | '௹' | '฿' | '៛' | '\u{20a0}'
            ..='\u{20c1}' | '﷼' | '﹩' | '＄' | '￡' | '￥' | '￦'
    )
}

#[cfg(test)]
mod tests {
    use super::super::{decimal, float64, int64};
    use super::*;
    use proptest::prelude::*;

    fn notation(json: &str) -> Notation {
        serde_json::from_str(json).unwrap()
    }

    fn plain(text: &str, json: &str) -> Result<String, Fault> {
        WrittenNumber::new(&notation(json)).plain(text).map(str::to_owned)
    }

    const ENGLISH: &str = r#"{"thousands_separator":","}"#;
    const GERMAN: &str = r#"{"decimal_separator":",","thousands_separator":"."}"#;
    const FRENCH: &str = "{\"decimal_separator\":\",\",\"thousands_separator\":\"\u{202f}\"}";

    #[test]
    fn separators_are_those_that_were_given() {
        for (text, json, expected) in [
            ("1,234.56", ENGLISH, "1234.56"),
            ("-1,234,567", ENGLISH, "-1234567"),
            ("1234.5", ENGLISH, "1234.5"),
            (" +.5 ", ENGLISH, ".5"),
            ("1,000e3", ENGLISH, "1000e3"),
            ("1.234,56", GERMAN, "1234.56"),
            ("0,5", GERMAN, "0.5"),
            ("1\u{202f}234,5", FRENCH, "1234.5"),
            ("1'234.5", r#"{"thousands_separator":"'"}"#, "1234.5"),
            ("1_000", r#"{"thousands_separator":"_"}"#, "1000"),
            ("1 000", r#"{"thousands_separator":" "}"#, "1000"),
            ("NaN", GERMAN, "NaN"),
            ("-inf", GERMAN, "-inf"),
        ] {
            assert_eq!(plain(text, json), Ok(expected.into()), "{text}");
        }
        for (text, json, fault) in [
            ("12,34.5", ENGLISH, GROUPS),
            ("1234,567", ENGLISH, GROUPS),
            ("12,34,567", ENGLISH, GROUPS),
            ("0,123", ENGLISH, GROUPS),
            (",123", ENGLISH, GROUPS),
            ("1,,234", ENGLISH, GROUPS),
            ("1,234,", ENGLISH, GROUPS),
            ("1.234,567", ENGLISH, SHAPE),
            ("1,234.567,8", ENGLISH, SHAPE),
            ("1.5", r#"{"decimal_separator":","}"#, SHAPE),
            ("1 234,5", FRENCH, SHAPE),
            ("--1", ENGLISH, SHAPE),
            ("1 2", ENGLISH, SHAPE),
            ("5%", ENGLISH, SHAPE),
            ("$5", ENGLISH, SHAPE),
        ] {
            assert_eq!(plain(text, json), Err(fault), "{text}");
        }
    }

    #[test]
    fn percent_is_a_hundredth_and_exact() {
        let percent = |text: &str, json: &str, scale| {
            let plain = plain(text, json)?;
            decimal(&plain, 20, scale)
        };
        let json = r#"{"unit":"percent"}"#;
        for (text, scale, expected) in
            [("12.5%", 3, 125), ("-3 %", 2, -3), ("100\u{a0}%", 0, 1), ("0%", 0, 0), ("12.50%", 3, 125), (".5%", 3, 5)]
        {
            assert_eq!(percent(text, json, scale), Ok(expected), "{text}");
        }
        assert!(percent("12.5%", json, 2).is_err(), "the fraction grows by two digits");
        for text in ["12.5", "%", "12.5%%", "12.5  %", "1e2%", "nan%", "5% "] {
            let read = percent(text, json, 5);
            assert_eq!(read.is_err(), text != "5% ", "{text}");
        }
        assert_eq!(percent("1.234,5 %", &GERMAN.replace('}', ",\"unit\":\"percent\"}"), 3), Ok(12_345));
        assert_eq!(float64(&plain("12.5%", json).unwrap()), Ok(0.125));
    }

    #[test]
    fn an_amount_has_at_most_one_currency() {
        let json = ENGLISH.replace('}', ",\"unit\":\"currency\"}");
        for (text, expected) in [
            ("5", 5),
            ("$5", 5),
            ("5 $", 5),
            ("€ 1,234", 1234),
            ("1,234\u{a0}€", 1234),
            ("USD 5", 5),
            ("5CHF", 5),
            ("-$5", -5),
            ("$-5", -5),
            ("-5 EUR", -5),
            ("-5", -5),
            ("($5)", -5),
            ("(5)", -5),
            ("(5 EUR)", -5),
            ("+5", 5),
        ] {
            assert_eq!(plain(text, &json).and_then(|plain| int64(&plain)), Ok(expected), "{text}");
        }
        for text in [
            "$", "()", "($)", "$5 USD", "$$5", "5¢", "-$-5", "(-$5)", "($-5)", "($5", "ABC 5", "usd 5", "$  5", "5-",
            "$1e3", "R$5", "EUR", "$(5)",
        ] {
            assert!(plain(text, &json).and_then(|plain| int64(&plain)).is_err(), "{text}");
        }
    }

    #[test]
    fn codes_are_in_order() {
        assert!(CODES.is_sorted());
    }

    /// A whole number with a separator between groups of three.
    fn grouped(number: u128, separator: &str) -> String {
        let digits = number.to_string();
        let first = (digits.len() - 1) % 3 + 1;
        let mut text = digits[..first].to_owned();
        for group in digits.as_bytes()[first..].chunks(3) {
            text.push_str(separator);
            text.push_str(std::str::from_utf8(group).unwrap());
        }
        text
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

        /// Whatever the value and the notation: printed in it, it reads back exactly.
        #[test]
        fn printed_numbers_read_back(
            value in -(10_i128.pow(34))..10_i128.pow(34),
            shift in 0_u32..34,
            scale in 0_usize..=4,
            decimal_separator in prop::sample::select(&[".", ","][..]),
            thousands in prop::sample::select(&[None, Some(","), Some("."), Some("'"), Some(" "), Some("\u{a0}"), Some("\u{202f}"), Some("_")][..]),
            unit in prop::sample::select(&[None, Some("percent"), Some("currency")][..]),
            code in prop::sample::select(&["$", "€ ", "USD ", "£"][..]),
        ) {
            let thousands = thousands.filter(|separator| *separator != decimal_separator);
            let value = value / 10_i128.pow(shift);
            let json = serde_json::json!({"decimal_separator": decimal_separator, "thousands_separator": thousands, "unit": unit});
            let notation: Notation = serde_json::from_value(json).unwrap();
            let (whole, fraction) = (value.unsigned_abs() / 10_u128.pow(scale as u32), value.unsigned_abs() % 10_u128.pow(scale as u32));
            let mut text = grouped(whole, thousands.unwrap_or(""));
            if scale > 0 {
                text.push_str(decimal_separator);
                text.push_str(&format!("{fraction:0scale$}"));
            }
            let minus = if value < 0 { "-" } else { "" };
            let (text, scale) = match unit {
                Some("percent") => (format!("{minus}{text} %"), scale + 2),
                Some("currency") => (format!("{minus}{code}{text}"), scale),
                _ => (format!("{minus}{text}"), scale),
            };
            let mut written = WrittenNumber::new(&notation);
            let read = written.plain(&text).and_then(|plain| decimal(plain, 38, scale as u8));
            prop_assert_eq!(read, Ok(value), "{}", text);
        }

        /// Whatever stands in a cell: it is refused, or its value printed in the notation means the same.
        #[test]
        fn what_is_taken_reads_back_in_its_canonical_form(
            text in "[-+(]?[$€]?[ -]?[0-9]{0,4}([.,' ][0-9]{2,4}){0,3}[.,]?[0-9]{0,3}( ?[%$)e]| EUR)?[0-9)]?|.{0,6}",
            decimal_separator in prop::sample::select(&[".", ","][..]),
            thousands in prop::sample::select(&[None, Some(","), Some("."), Some("'"), Some(" ")][..]),
            unit in prop::sample::select(&[None, Some("percent"), Some("currency")][..]),
        ) {
            let thousands = thousands.filter(|separator| *separator != decimal_separator);
            let json = serde_json::json!({"decimal_separator": decimal_separator, "thousands_separator": thousands, "unit": unit});
            let mut written = WrittenNumber::new(&serde_json::from_value(json).unwrap());
            let read = written.plain(&text).and_then(|plain| decimal(plain, 38, 10));
            if let Ok(value) = read {
                let minus = if value < 0 { "-" } else { "" };
                let unsigned = value.unsigned_abs() * if unit == Some("percent") { 100 } else { 1 };
                let (whole, fraction) = (unsigned / 10_u128.pow(10), unsigned % 10_u128.pow(10));
                let sign = if unit == Some("percent") { "%" } else { "" };
                let canonical = format!("{minus}{}{decimal_separator}{fraction:010}{sign}", grouped(whole, thousands.unwrap_or("")));
                prop_assert_eq!(written.plain(&canonical).and_then(|plain| decimal(plain, 38, 10)), Ok(value), "{} {}", text, canonical);
            }
        }
    }
}
