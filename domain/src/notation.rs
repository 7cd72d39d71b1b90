//! How the cells of a column are written, where that is not the plain way: separators, a percent or currency sign, the format
//! of a date or time. Given in a request, or found by inference (date formats only); never guessed for a single cell.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::column::ColumnType;
use crate::pattern::TimePattern;

/// What stands between a number's whole part and its fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub enum DecimalSeparator {
    /// `1.5`
    #[default]
    #[serde(rename = ".")]
    Point,
    /// `1,5`
    #[serde(rename = ",")]
    Comma,
}

impl DecimalSeparator {
    /// The separator itself.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Point => ".",
            Self::Comma => ",",
        }
    }
}

/// What stands between groups of three digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ThousandsSeparator {
    /// `1,234`
    #[serde(rename = ",")]
    Comma,
    /// `1.234`
    #[serde(rename = ".")]
    Point,
    /// `1'234`
    #[serde(rename = "'")]
    Apostrophe,
    /// `1 234`
    #[serde(rename = " ")]
    Space,
    /// With a no-break space, U+00A0.
    #[serde(rename = "\u{a0}")]
    NoBreakSpace,
    /// With a narrow no-break space, U+202F.
    #[serde(rename = "\u{202f}")]
    NarrowNoBreakSpace,
    /// `1_234`
    #[serde(rename = "_")]
    Underscore,
}

impl ThousandsSeparator {
    /// The separator itself.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Comma => ",",
            Self::Point => ".",
            Self::Apostrophe => "'",
            Self::Space => " ",
            Self::NoBreakSpace => "\u{a0}",
            Self::NarrowNoBreakSpace => "\u{202f}",
            Self::Underscore => "_",
        }
    }
}

/// A sign that stands beside a column's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Every cell ends with `%`, and its value is a hundredth of the number: `12.5%` is 0.125. A number without the sign is no
    /// value of such a column, since nobody knows which of the two it means.
    Percent,
    /// A cell may have one currency sign (`$`) or ISO 4217 code (`USD`) before or behind the number; `-$5`, `$-5` and `($5)` are
    /// negative. The sign says nothing of the value and is not kept, so a number without one is a value, too.
    Currency,
}

/// How the cells of a column are written; the default is the plain way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Notation {
    /// What stands before a fraction; a point where nothing was said.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub decimal_separator: Option<DecimalSeparator>,
    /// What stands between groups of three digits; nothing may where nothing was said.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub thousands_separator: Option<ThousandsSeparator>,
    /// A sign beside the numbers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unit: Option<Unit>,
    /// The format of dates and times; ISO 8601 where nothing was said.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub format: Option<TimePattern>,
}

impl Notation {
    /// Whether nothing was said.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Whether numbers are written in another way than the plain one.
    #[must_use]
    pub fn has_numbers(&self) -> bool {
        self.decimal_separator.is_some() || self.thousands_separator.is_some() || self.unit.is_some()
    }

    /// What does not fit the column's type, or together: a key and what is wrong with it.
    #[must_use]
    pub fn faults(&self, kind: &ColumnType) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let whole = matches!(kind, ColumnType::Int32 | ColumnType::Int64);
        let fraction = matches!(kind, ColumnType::Float64 | ColumnType::Decimal { .. });
        let mut check = |key, given: bool, fits: bool, types: &str| {
            if given && !fits {
                faults.push((key, format!("is an option of {types}, not of {kind}")));
            }
        };
        let numbers = "int32, int64, float64 and decimal";
        check("decimal_separator", self.decimal_separator.is_some(), whole || fraction, numbers);
        check("thousands_separator", self.thousands_separator.is_some(), whole || fraction, numbers);
        check("unit", self.unit == Some(Unit::Currency), whole || fraction, numbers);
        check("unit", self.unit == Some(Unit::Percent), fraction, "float64 and decimal where it is \"percent\"");
        let decimal = self.decimal_separator.unwrap_or_default().as_str();
        if self.thousands_separator.is_some_and(|thousands| thousands.as_str() == decimal) {
            faults
                .push(("thousands_separator", format!("must differ from the decimal separator, which is '{decimal}'")));
        }
        if let Some(Err(error)) = self.format.as_ref().map(|format| format.check(kind)) {
            faults.push(("format", error.to_string()));
        }
        faults
    }
}

impl std::fmt::Display for Notation {
    /// For people, behind the type: `, decimal separator ',', percent`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(separator) = self.decimal_separator {
            write!(f, ", decimal separator '{}'", separator.as_str())?;
        }
        if let Some(separator) = self.thousands_separator {
            write!(f, ", thousands separator '{}'", separator.as_str())?;
        }
        match self.unit {
            Some(Unit::Percent) => f.write_str(", percent")?,
            Some(Unit::Currency) => f.write_str(", currency")?,
            None => {}
        }
        match &self.format {
            Some(format) => write!(f, ", format '{format}'"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(kind: &str, notation: &str) -> Vec<&'static str> {
        let notation: Notation = serde_json::from_str(notation).unwrap();
        notation.faults(&kind.parse().unwrap()).into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn options_fit_their_types_only() {
        for kind in ["int32", "int64", "float64", "decimal(9,2)"] {
            assert!(faults(kind, r#"{"decimal_separator":",","thousands_separator":"."}"#).is_empty(), "{kind}");
            assert!(faults(kind, r#"{"unit":"currency"}"#).is_empty(), "{kind}");
            assert_eq!(faults(kind, r#"{"format":"%F"}"#), ["format"], "{kind}");
            let whole = kind.starts_with("int");
            assert_eq!(faults(kind, r#"{"unit":"percent"}"#).is_empty(), !whole, "{kind}");
        }
        for kind in ["bool", "text", "date", "time", "timestamp", "timestamptz", "uuid", "json"] {
            let all = r#"{"decimal_separator":",","thousands_separator":".","unit":"currency"}"#;
            assert_eq!(faults(kind, all), ["decimal_separator", "thousands_separator", "unit"], "{kind}");
        }
        assert_eq!(faults("int64", r#"{"thousands_separator":"."}"#), ["thousands_separator"]);
        assert_eq!(faults("int64", r#"{"decimal_separator":",","thousands_separator":","}"#), ["thousands_separator"]);
    }

    #[test]
    fn every_separator_is_what_its_key_says() {
        for text in [",", ".", "'", " ", "\u{a0}", "\u{202f}", "_"] {
            let separator: ThousandsSeparator = serde_json::from_value(serde_json::json!(text)).unwrap();
            assert_eq!(separator.as_str(), text);
        }
        for text in [",", "."] {
            let separator: DecimalSeparator = serde_json::from_value(serde_json::json!(text)).unwrap();
            assert_eq!(separator.as_str(), text);
        }
    }

    #[test]
    fn nothing_said_is_nothing_stored() {
        assert_eq!(serde_json::to_string(&Notation::default()).unwrap(), "{}");
        let text = r#"{"decimal_separator":",","unit":"percent","format":"%d/%m/%Y"}"#;
        let notation: Notation = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&notation).unwrap(), text);
    }
}
