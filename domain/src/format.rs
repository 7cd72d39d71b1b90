//! What a file is: given by the client, or found by looking at it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a record with too few or too many fields is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ragged {
    /// A reject.
    #[default]
    Reject,
    /// Missing fields are null, extra ones dropped.
    Pad,
}

/// The encoding of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default, ToSchema)]
pub enum Encoding {
    /// UTF-8, with or without a byte order mark.
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    /// UTF-16, little endian.
    #[serde(rename = "utf-16le")]
    Utf16Le,
    /// UTF-16, big endian.
    #[serde(rename = "utf-16be")]
    Utf16Be,
    /// Windows code page 1252.
    #[serde(rename = "windows-1252")]
    Windows1252,
    /// ISO 8859-1.
    #[serde(rename = "iso-8859-1")]
    Latin1,
}

/// What bytes that are not the file's encoding are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingErrors {
    /// The record that holds them is a reject.
    #[default]
    Reject,
    /// Each maximal run that is no character is U+FFFD (Unicode, section 3.9), and the record is loaded.
    Replace,
}

/// What ends a line.
///
/// Documents describe it as text: utoipa takes the words below without resolving their escapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub enum LineEnd {
    /// Line feed. A carriage return directly before it belongs to it.
    #[default]
    #[serde(rename = "\n")]
    Lf,
    /// Carriage return and line feed; read as [`LineEnd::Lf`] is, it says what the file mostly has.
    #[serde(rename = "\r\n")]
    CrLf,
    /// Carriage return. A line feed ends a line, too; directly behind a carriage return it belongs to it.
    #[serde(rename = "\r")]
    Cr,
}

/// How the object is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Found by the first bytes.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
}

/// The one kind of file that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FormatType {
    /// RFC 4180 and its many kin.
    #[default]
    Csv,
}

/// What a file is, as the resource shows it: what was found, once it was looked at, and what was given before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum ShownFormat {
    /// Everything given and found.
    Found(Format),
    /// What was given.
    Given(GivenFormat),
}

/// What the request said of the file. `None`: to be found, or the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub struct GivenFormat {
    /// Always `csv`.
    #[serde(rename = "type", default)]
    #[schema(required = false)]
    pub kind: FormatType,
    /// One to four bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false, min_length = 1, max_length = 4)]
    pub delimiter: Option<String>,
    /// One byte.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false, min_length = 1, max_length = 1)]
    pub quote: Option<String>,
    /// One byte; the quote itself means doubling.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false, min_length = 1, max_length = 1)]
    pub escape: Option<String>,
    /// What ends a line: `\n`, `\r\n` or `\r`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>, nullable = false, min_length = 1, max_length = 2)]
    pub line_end: Option<LineEnd>,
    /// Header records.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false, minimum = 0, maximum = 100)]
    pub header_rows: Option<u32>,
    /// Physical lines before the header.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false, minimum = 0, maximum = 1000000)]
    pub skip_rows: Option<u32>,
    /// Records that begin with it are passed over.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(min_length = 1, max_length = 16)]
    pub comment: Option<String>,
    /// What a ragged record is.
    #[serde(default)]
    #[schema(required = false)]
    pub ragged: Ragged,
    /// The text's encoding.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub encoding: Option<Encoding>,
    /// What bytes are that are not the encoding.
    #[serde(default)]
    #[schema(required = false)]
    pub encoding_errors: EncodingErrors,
    /// Unquoted cells that mean null; the default is the empty cell.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub null_values: Option<Vec<String>>,
    /// How the object is compressed.
    #[serde(default)]
    #[schema(required = false)]
    pub compression: Compression,
}

/// What the file is: everything given and everything found. This is what a reader obeys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Format {
    /// Always `csv`.
    #[serde(rename = "type")]
    pub kind: String,
    /// One to four bytes between fields.
    pub delimiter: String,
    /// One byte around fields.
    pub quote: String,
    /// One byte; the quote itself means doubling.
    pub escape: String,
    /// What ends a line.
    #[serde(default)]
    #[schema(value_type = String, min_length = 1, max_length = 2)]
    pub line_end: LineEnd,
    /// Header records.
    pub header_rows: u32,
    /// Physical lines before the header.
    pub skip_rows: u32,
    /// Records that begin with it are passed over.
    pub comment: Option<String>,
    /// What a ragged record is.
    pub ragged: Ragged,
    /// The text's encoding.
    pub encoding: Encoding,
    /// What bytes are that are not the encoding.
    #[serde(default)]
    pub encoding_errors: EncodingErrors,
    /// Unquoted cells that mean null.
    pub null_values: Vec<String>,
    /// How the object is compressed.
    pub compression: Compression,
}

impl Format {
    /// Whether chunks are cut from text that is not the object's own bytes: unpacked, or of another encoding.
    #[must_use]
    pub fn is_decoded(&self) -> bool {
        !matches!(self.compression, Compression::None | Compression::Auto) || self.encoding != Encoding::Utf8
    }
}

impl Default for Format {
    /// The contract's defaults: RFC 4180 with one header record.
    fn default() -> Self {
        Self {
            kind: "csv".into(),
            delimiter: ",".into(),
            quote: "\"".into(),
            escape: "\"".into(),
            line_end: LineEnd::Lf,
            header_rows: 1,
            skip_rows: 0,
            comment: None,
            ragged: Ragged::Reject,
            encoding: Encoding::Utf8,
            encoding_errors: EncodingErrors::Reject,
            null_values: vec![String::new()],
            compression: Compression::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use utoipa::PartialSchema as _;

    #[test]
    fn what_ends_a_line_is_documented_as_text() {
        for schema in [Format::schema(), GivenFormat::schema()] {
            let schema = serde_json::to_value(schema).unwrap();
            let line_end = &schema["properties"]["line_end"];
            assert_eq!((&line_end["type"], &line_end["maxLength"]), (&"string".into(), &2.into()), "{line_end}");
        }
        assert_eq!(serde_json::to_string(&LineEnd::CrLf).unwrap(), r#""\r\n""#);
    }
}
