//! Columns and their types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::notation::{DecimalSeparator, Notation, ThousandsSeparator, Unit};
use crate::pattern::TimePattern;

/// The widest decimal: 38 digits fit an `i128`.
pub const MAX_PRECISION: u8 = 38;

/// The type of a column (contract, section 3).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ColumnType {
    /// True or false.
    Bool,
    /// 32 bits, signed.
    Int32,
    /// 64 bits, signed.
    Int64,
    /// IEEE 754 double precision.
    Float64,
    /// Exact: `precision` digits, `scale` of them behind the point.
    Decimal {
        /// Digits in all, 1 to 38.
        precision: u8,
        /// Digits behind the point, at most `precision`.
        scale: u8,
    },
    /// UTF-8 text.
    Text,
    /// A calendar date.
    Date,
    /// A time of day, to the microsecond.
    Time,
    /// A date and time without a zone, to the microsecond.
    Timestamp,
    /// An instant, to the microsecond; without an offset it is UTC.
    Timestamptz,
    /// RFC 9562.
    Uuid,
    /// RFC 8259.
    Json,
    /// Another type of an existing table's column, as the database writes it (`character varying(10)`): the database's own
    /// input function reads it. Never given in a request.
    Native(String),
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("bool"),
            Self::Int32 => f.write_str("int32"),
            Self::Int64 => f.write_str("int64"),
            Self::Float64 => f.write_str("float64"),
            Self::Decimal { precision, scale } => write!(f, "decimal({precision},{scale})"),
            Self::Text => f.write_str("text"),
            Self::Date => f.write_str("date"),
            Self::Time => f.write_str("time"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Timestamptz => f.write_str("timestamptz"),
            Self::Uuid => f.write_str("uuid"),
            Self::Json => f.write_str("json"),
            Self::Native(name) => write!(f, "native:{name}"),
        }
    }
}

/// A text that names no type of the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no column type; the types are bool, int32, int64, float64, decimal(p,s), text, date, time, timestamp, timestamptz, uuid, json"
)]
pub struct UnknownType(String);

impl FromStr for ColumnType {
    type Err = UnknownType;

    /// Reads the types of the contract only; [`ColumnType::Native`] is no word of a request.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "bool" => Self::Bool,
            "int32" => Self::Int32,
            "int64" => Self::Int64,
            "float64" => Self::Float64,
            "text" => Self::Text,
            "date" => Self::Date,
            "time" => Self::Time,
            "timestamp" => Self::Timestamp,
            "timestamptz" => Self::Timestamptz,
            "uuid" => Self::Uuid,
            "json" => Self::Json,
            other => return read_decimal(other).ok_or_else(|| UnknownType(text.to_owned())),
        })
    }
}

/// `decimal(p,s)`, with optional spaces around the numbers.
fn read_decimal(text: &str) -> Option<ColumnType> {
    let (precision, scale) = text.strip_prefix("decimal(")?.strip_suffix(')')?.split_once(',')?;
    let number = |part: &str| {
        let part = part.trim();
        part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<u8>().ok()).flatten()
    };
    let (precision, scale) = (number(precision)?, number(scale)?);
    (1..=MAX_PRECISION).contains(&precision).then_some(())?;
    (scale <= precision).then_some(ColumnType::Decimal { precision, scale })
}

impl TryFrom<String> for ColumnType {
    type Error = UnknownType;

    /// As [`FromStr`], and reads [`ColumnType::Native`] back from the database.
    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.strip_prefix("native:") {
            Some(native) => Ok(Self::Native(native.to_owned())),
            None => text.parse(),
        }
    }
}

impl From<ColumnType> for String {
    fn from(kind: ColumnType) -> Self {
        kind.to_string()
    }
}

/// Where a column's cells come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ColumnSource {
    /// A place in the record, from 1.
    Place(u32),
    /// A name in the header.
    Header(String),
}

/// A column of an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Column {
    /// Its name in the destination.
    #[schema(min_length = 1, max_length = 63)]
    pub name: String,
    /// What its cells become.
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "decimal(15,2)")]
    pub kind: ColumnType,
    /// Where its cells come from; left out in a request, the column's own place in the list.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<ColumnSource>,
    /// Whether a cell may be null.
    #[schema(required = false)]
    pub nullable: bool,
    /// What stands between a number's whole part and its fraction: a point where it is left out. For `int32`, `int64`,
    /// `float64` and `decimal`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub decimal_separator: Option<DecimalSeparator>,
    /// What may stand between groups of three digits. For `int32`, `int64`, `float64` and `decimal`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub thousands_separator: Option<ThousandsSeparator>,
    /// A sign beside the numbers. Currency: for `int32`, `int64`, `float64` and `decimal`; percent: for `float64` and `decimal`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unit: Option<Unit>,
    /// The format of a `date`, `time`, `timestamp` or `timestamptz`, in parts of strftime: %Y %y %m %b %B %d %e %j %a %A %H %I %p
    /// %M %S %f %z %F %T %%. Given, or found by inference. ISO 8601 where it is left out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 100, example = "%d/%m/%Y")]
    pub format: Option<TimePattern>,
}

impl Column {
    /// A column that takes nulls, with its place in the list as its source and its cells in the plain notation.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: ColumnType) -> Self {
        Self {
            name: name.into(),
            kind,
            source: None,
            nullable: true,
            decimal_separator: None,
            thousands_separator: None,
            unit: None,
            format: None,
        }
    }

    /// How its cells are written.
    #[must_use]
    pub fn notation(&self) -> Notation {
        Notation {
            decimal_separator: self.decimal_separator,
            thousands_separator: self.thousands_separator,
            unit: self.unit,
            format: self.format.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_read_back() {
        for text in [
            "bool",
            "int32",
            "int64",
            "float64",
            "decimal(15,2)",
            "decimal(38,38)",
            "text",
            "date",
            "time",
            "timestamp",
            "timestamptz",
            "uuid",
            "json",
        ] {
            assert_eq!(text.parse::<ColumnType>().map(|kind| kind.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn other_words_are_no_types() {
        for text in [
            "",
            "int",
            "INT64",
            "decimal",
            "decimal(39,2)",
            "decimal(5,6)",
            "decimal(0,0)",
            "decimal(+5,1)",
            "native:inet",
            "varchar(3)",
        ] {
            assert!(text.parse::<ColumnType>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_native_type_survives_the_database() {
        let kind = ColumnType::Native("character varying(10)".into());
        let json = serde_json::to_string(&kind).unwrap();
        assert_eq!(serde_json::from_str::<ColumnType>(&json).unwrap(), kind);
    }

    #[test]
    fn a_source_is_a_name_or_a_place() {
        let column: Column =
            serde_json::from_str(r#"{"name":"id","type":"int64","source":2,"nullable":false}"#).unwrap();
        assert_eq!(column.source, Some(ColumnSource::Place(2)));
        let column: Column =
            serde_json::from_str(r#"{"name":"id","type":"int64","source":"2","nullable":false}"#).unwrap();
        assert_eq!(column.source, Some(ColumnSource::Header("2".into())));
    }
}
