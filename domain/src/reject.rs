//! Rows that were not loaded, and why.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{LineNumber, RowNumber};

/// At this many bytes a listing cuts a raw record, with a mark. The database keeps it whole.
pub const RECORD_LISTED: usize = 4096;
/// To this many bytes the value of a reject is cut; the whole cell stands in the record.
pub const VALUE_KEPT: usize = 4096;

/// Why a row was rejected (contract, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// A cell does not read as its column's type.
    InvalidValue,
    /// Fewer fields than the header has.
    MissingField,
    /// More fields than the header has.
    ExtraField,
    /// Bytes that are not the file's encoding.
    InvalidEncoding,
    /// A quote that never closes, or text behind a closing quote.
    MalformedQuotes,
    /// Longer than a record may be.
    RecordTooLarge,
    /// A null in a column that takes none.
    NullInRequired,
    /// The destination refused it.
    ConstraintViolation,
}

impl RejectReason {
    /// All reasons.
    pub const ALL: [Self; 8] = [
        Self::InvalidValue,
        Self::MissingField,
        Self::ExtraField,
        Self::InvalidEncoding,
        Self::MalformedQuotes,
        Self::RecordTooLarge,
        Self::NullInRequired,
        Self::ConstraintViolation,
    ];

    /// The word for it in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidValue => "invalid_value",
            Self::MissingField => "missing_field",
            Self::ExtraField => "extra_field",
            Self::InvalidEncoding => "invalid_encoding",
            Self::MalformedQuotes => "malformed_quotes",
            Self::RecordTooLarge => "record_too_large",
            Self::NullInRequired => "null_in_required",
            Self::ConstraintViolation => "constraint_violation",
        }
    }

    /// Reads a word back.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}

/// One row that was not loaded. Bytes are kept as they stand in the file, so that the file of rejects is byte-exact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// The data record's number.
    pub row: RowNumber,
    /// The physical line where the record begins.
    pub line: LineNumber,
    /// The column at fault, where it is one.
    pub column: Option<String>,
    /// The cell at fault, unquoted, where it is one.
    pub value: Option<Vec<u8>>,
    /// Why.
    pub reason: RejectReason,
    /// Why, in words, with what to do about it.
    pub detail: String,
    /// The raw record without its line end.
    pub record: Vec<u8>,
}
