//! Why a file or a request cannot be read at all. Bad rows are no errors: they are rejects.

/// What sort of fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FormatErrorKind {
    /// Something that this version does not read.
    Unsupported,
    /// Nothing to read.
    Empty,
    /// What was said does not fit what was found.
    Mismatch,
}

/// A file or a request that cannot be read, in words: what, where, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct FormatError {
    /// What sort of fault it is.
    pub kind: FormatErrorKind,
    /// For people.
    pub text: String,
}

impl FormatError {
    pub(crate) fn unsupported(text: impl Into<String>) -> Self {
        Self { kind: FormatErrorKind::Unsupported, text: text.into() }
    }

    pub(crate) fn empty(text: impl Into<String>) -> Self {
        Self { kind: FormatErrorKind::Empty, text: text.into() }
    }

    pub(crate) fn mismatch(text: impl Into<String>) -> Self {
        Self { kind: FormatErrorKind::Mismatch, text: text.into() }
    }
}
