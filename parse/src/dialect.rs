//! The bytes that give a file its structure, resolved from a [`Format`]. Every reader of this crate obeys one.

use longshore_domain::Format;

use crate::error::FormatError;

/// The bytes of a dialect and the width of its records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialect {
    pub(crate) delimiter: u8,
    /// `None`: nothing is quoted.
    pub(crate) quote: Option<u8>,
    /// `None`: a quote inside a quoted field is doubled.
    pub(crate) escape: Option<u8>,
    /// A line that begins with it is no record.
    pub(crate) comment: Option<Vec<u8>>,
    /// How many fields a record has to have. In a file of width 1 an empty line is a record with one empty field.
    pub(crate) width: usize,
}

impl Dialect {
    /// The dialect of a resolved format, for records of `width` fields.
    ///
    /// # Errors
    /// `Unsupported` for a delimiter of several bytes and for bytes that cannot be told apart.
    pub fn new(format: &Format, width: usize) -> Result<Self, FormatError> {
        let delimiter = match format.delimiter.as_bytes() {
            [one] => *one,
            other => {
                return Err(FormatError::unsupported(format!(
                    "the delimiter '{}' has {} bytes; this version reads delimiters of one byte: convert the file, or give another delimiter",
                    format.delimiter,
                    other.len()
                )));
            }
        };
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
            width,
        };
        dialect.check()?;
        Ok(dialect)
    }

    fn check(&self) -> Result<(), FormatError> {
        let ends = |byte: u8| matches!(byte, b'\n' | b'\r' | 0);
        if ends(self.delimiter) || self.quote.is_some_and(ends) || self.escape.is_some_and(ends) {
            return Err(FormatError::unsupported(
                "delimiter, quote and escape must not be a line end or NUL; give others",
            ));
        }
        if Some(self.delimiter) == self.quote || Some(self.delimiter) == self.escape {
            return Err(FormatError::unsupported("the delimiter must differ from quote and escape; give another one"));
        }
        if let Some(prefix) = &self.comment {
            let first = prefix.first().copied();
            if prefix.contains(&b'\n')
                || prefix.contains(&b'\r')
                || first == Some(self.delimiter)
                || first == self.quote
            {
                return Err(FormatError::unsupported(
                    "the comment prefix must hold no line end and must not begin with delimiter or quote; give another one",
                ));
            }
        }
        Ok(())
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
        assert_eq!(Dialect::new(&Format { quote: String::new(), ..base.clone() }, 3).unwrap().quote, None);
        assert_eq!(Dialect::new(&Format { escape: "\\".into(), ..base.clone() }, 3).unwrap().escape, Some(b'\\'));
        for bad in [
            Format { delimiter: "::".into(), ..base.clone() },
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
