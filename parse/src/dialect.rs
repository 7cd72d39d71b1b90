//! The bytes that give a file its structure, resolved from a [`Format`]. Every reader of this crate obeys one.

use longshore_domain::{EncodingErrors, Format, LineEnd};
use memchr::{memchr, memchr2};

use crate::delimiter::Delimiter;
use crate::error::FormatError;

/// The bytes of a dialect and the width of its records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialect {
    pub(crate) delimiter: Delimiter,
    /// `None`: nothing is quoted.
    pub(crate) quote: Option<u8>,
    /// `None`: a quote inside a quoted field is doubled.
    pub(crate) escape: Option<u8>,
    /// A line that begins with it is no record.
    pub(crate) comment: Option<Vec<u8>>,
    /// Whether a carriage return ends a line; a line feed always does.
    pub(crate) returns: bool,
    /// One byte between fields, and only line feeds end lines: what almost every file is, read by loops of its own.
    pub(crate) plain: bool,
    /// Whether bytes that are no UTF-8 are U+FFFD, and not a fault.
    pub(crate) replaces: bool,
    /// How many fields a record has to have. In a file of width 1 an empty line is a record with one empty field.
    pub(crate) width: usize,
}

impl Dialect {
    /// The dialect of a resolved format, for records of `width` fields.
    ///
    /// # Errors
    /// `Unsupported` for a delimiter of other than one to four bytes and for bytes that cannot be told apart.
    pub fn new(format: &Format, width: usize) -> Result<Self, FormatError> {
        let delimiter = Delimiter::new(format.delimiter.as_bytes()).ok_or_else(|| {
            FormatError::unsupported(format!(
                "the delimiter '{}' has {} bytes; give one of one to four bytes",
                format.delimiter,
                format.delimiter.len()
            ))
        })?;
        let returns = format.line_end == LineEnd::Cr;
        let quote = one_byte("quote", &format.quote)?;
        let escape = if quote.is_none() {
            None
        } else {
            one_byte("escape", &format.escape)?.filter(|escape| Some(*escape) != quote)
        };
        let dialect = Self {
            delimiter,
            quote,
            escape,
            comment: format
                .comment
                .as_ref()
                .filter(|prefix| !prefix.is_empty())
                .map(|prefix| prefix.as_bytes().to_vec()),
            returns,
            plain: delimiter.len() == 1 && !returns,
            replaces: format.encoding_errors == EncodingErrors::Replace,
            width,
        };
        dialect.check()?;
        Ok(dialect)
    }

    fn check(&self) -> Result<(), FormatError> {
        let ends = |byte: u8| matches!(byte, b'\n' | b'\r' | 0);
        let delimiter = self.delimiter.as_bytes();
        if delimiter.iter().any(|byte| ends(*byte)) || self.quote.is_some_and(ends) || self.escape.is_some_and(ends) {
            return Err(FormatError::unsupported(
                "delimiter, quote and escape must not hold a line end or NUL; give others",
            ));
        }
        if delimiter.iter().any(|byte| Some(*byte) == self.quote || Some(*byte) == self.escape) {
            return Err(FormatError::unsupported("the delimiter must not hold the quote or escape; give another one"));
        }
        if let Some(prefix) = &self.comment {
            if prefix.iter().any(|byte| ends(*byte)) || prefix.first().copied() == self.quote {
                return Err(FormatError::unsupported(
                    "the comment prefix must hold no line end or NUL and must not begin with the quote; give another one",
                ));
            }
            // A record whose first field is empty begins with the delimiter.
            if prefix.starts_with(delimiter) || delimiter.starts_with(prefix) {
                return Err(FormatError::unsupported(
                    "neither of comment prefix and delimiter may begin with the other; give another one",
                ));
            }
        }
        Ok(())
    }

    /// The first byte of the next line end.
    #[inline]
    pub(crate) fn find_line_end(&self, text: &[u8]) -> Option<usize> {
        if self.returns { memchr2(b'\n', b'\r', text) } else { memchr(b'\n', text) }
    }

    /// The place behind the line end whose first byte is at `end`.
    #[inline]
    pub(crate) fn behind_line_end(&self, text: &[u8], end: usize) -> usize {
        let pair = self.returns && text[end] == b'\r' && text.get(end + 1) == Some(&b'\n');
        end + 1 + usize::from(pair)
    }
}

fn one_byte(what: &str, text: &str) -> Result<Option<u8>, FormatError> {
    match text.as_bytes() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        _ => Err(FormatError::unsupported(format!(
            "the {what} '{text}' is longer than one byte; give one byte, or nothing"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FormatErrorKind;

    #[test]
    fn bytes_that_cannot_be_told_apart_are_refused() {
        let base = Format::default();
        assert!(Dialect::new(&base, 3).is_ok());
        for delimiter in ["::", " ; ", "§", "😀", "||||"] {
            assert!(Dialect::new(&Format { delimiter: delimiter.into(), ..base.clone() }, 3).is_ok(), "{delimiter}");
        }
        assert_eq!(Dialect::new(&Format { quote: String::new(), ..base.clone() }, 3).unwrap().quote, None);
        assert_eq!(Dialect::new(&Format { escape: "\\".into(), ..base.clone() }, 3).unwrap().escape, Some(b'\\'));
        for bad in [
            Format { delimiter: ":::::".into(), ..base.clone() },
            Format { delimiter: "a\"".into(), ..base.clone() },
            Format { delimiter: "a\\".into(), escape: "\\".into(), ..base.clone() },
            Format { delimiter: " \r".into(), ..base.clone() },
            Format { delimiter: "##".into(), comment: Some("#".into()), ..base.clone() },
            Format { delimiter: "#".into(), comment: Some("##".into()), ..base.clone() },
            Format { delimiter: String::new(), ..base.clone() },
            Format { delimiter: "\"".into(), ..base.clone() },
            Format { delimiter: "\\".into(), escape: "\\".into(), ..base.clone() },
            Format { delimiter: "\n".into(), ..base.clone() },
            Format { quote: "''".into(), ..base.clone() },
            Format { comment: Some("\"x".into()), ..base.clone() },
            Format { comment: Some("#\n".into()), ..base },
        ] {
            assert_eq!(Dialect::new(&bad, 3).unwrap_err().kind, FormatErrorKind::Unsupported, "{bad:?}");
        }
    }
}
