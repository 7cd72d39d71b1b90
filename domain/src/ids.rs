//! Newtypes for ids, counters and offsets, so that a bare number never crosses a module.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// The id of an import: a UUIDv7 (RFC 9562), so that ids sort by the time they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct ImportId(pub Uuid);

impl ImportId {
    /// A fresh id, ordered after those made before in this process.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for ImportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for ImportId {
    type Err = uuid::Error;

    /// Reads the hyphenated form only, as it stands in keys and URLs.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = Uuid::try_parse(text)?;
        if id.hyphenated().to_string() == text {
            Ok(Self(id))
        } else {
            Err(Uuid::try_parse("").expect_err("an empty text is no UUID"))
        }
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The next one; behind the last there is none.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The place of a chunk within one attempt, from 0.
    ChunkIndex(u32)
}
number! {
    /// How often an import changed owners. The destination refuses every writer whose epoch is not the newest.
    Epoch(i64)
}
number! {
    /// Which try at an import this is, from 1. A new attempt reads every chunk again.
    Attempt(u32)
}
number! {
    /// A data record's number in its file, from 1 (no header, no skipped line).
    RowNumber(u64)
}
number! {
    /// A physical line's number in the decoded text, from 1.
    LineNumber(u64)
}
number! {
    /// An offset in bytes from the start of the decoded text (for a plain UTF-8 file: of the object).
    ByteOffset(u64)
}

/// A half-open range of bytes of the decoded text, `start <= end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    /// The first byte.
    pub start: ByteOffset,
    /// One past the last byte.
    pub end: ByteOffset,
}

impl ByteRange {
    /// A range from two offsets in bytes.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start: ByteOffset(start), end: ByteOffset(end) }
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether it holds no byte.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn import_ids_are_version_7_and_ordered() {
        let (a, b) = (ImportId::generate(), ImportId::generate());
        assert_eq!(a.0.get_version_num(), 7);
        assert!(a < b);
    }

    #[test]
    fn only_the_hyphenated_form_is_an_import_id() {
        let id = ImportId::generate();
        assert_eq!(id.to_string().parse::<ImportId>().ok(), Some(id));
        assert!(id.0.simple().to_string().parse::<ImportId>().is_err());
        assert!(id.to_string().to_uppercase().parse::<ImportId>().is_err());
        assert!("nope".parse::<ImportId>().is_err());
    }
}
