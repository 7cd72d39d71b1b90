//! Errors as clients see them: RFC 9457 problem details.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The prefix of every problem's `type`.
pub const PROBLEM_PREFIX: &str = "urn:longshore:problem:";

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $word:literal $status:literal $title:literal;)*) => {
        /// What went wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ProblemKind {
            $($(#[$doc])* $name,)*
        }

        impl ProblemKind {
            /// All kinds.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The kebab-case word at the end of `type`.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// The HTTP status that it is answered with.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// A short text, the same for all of its kind.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

kinds! {
    /// The request cannot be read or holds a bad value.
    BadRequest "bad-request" 400 "The request is not valid";
    /// A web page of an origin that is not allowed would change something.
    ForeignOrigin "foreign-origin" 403 "The page's origin may not do this";
    /// No such import, or no such page.
    NotFound "not-found" 404 "Not found";
    /// The path is known, the method is not.
    MethodNotAllowed "method-not-allowed" 405 "Method not allowed";
    /// The request did not arrive in time.
    RequestTimeout "request-timeout" 408 "The request did not arrive in time";
    /// The body is larger than a request may be.
    TooLarge "too-large" 413 "The request is too large";
    /// The body is not JSON.
    UnsupportedMediaType "unsupported-media-type" 415 "Unsupported media type";
    /// The state forbids the call.
    WrongState "wrong-state" 409 "The import's state does not allow this";
    /// `complete` was called and no object is at the key.
    NoObject "no-object" 409 "The file is not there";
    /// An idempotency key was used for another request.
    IdempotencyKeyReused "idempotency-key-reused" 422 "The idempotency key was used for another request";
    /// A dependency is away.
    Unavailable "unavailable" 503 "A dependency is away";
    /// A defect of the service.
    Internal "internal" 500 "The service made a mistake";
    /// The object changed or vanished after the import began.
    ObjectChanged "object-changed" 422 "The object changed during the import";
    /// The object has another size than was declared: the storage kept a part of an upload.
    IncompleteUpload "incomplete-upload" 422 "The upload is not complete";
    /// The object is empty.
    EmptyFile "empty-file" 422 "The file is empty";
    /// The file cannot be read in the format that was given or found.
    UnsupportedFormat "unsupported-format" 422 "The file's format is not supported";
    /// The file's header and the columns do not fit.
    ColumnsMismatch "columns-mismatch" 422 "The columns do not fit";
    /// The destination table cannot take the import.
    DestinationMismatch "destination-mismatch" 422 "The destination cannot take the rows";
    /// More rows were rejected than `on_error.max_rejects` allows.
    TooManyRejects "too-many-rejects" 422 "Too many rows were rejected";
    /// A chunk was tried too often.
    PoisonChunk "poison-chunk" 500 "A chunk could not be loaded";
    /// The counts do not add up: nothing is published.
    CountMismatch "count-mismatch" 500 "The staged rows do not add up";
}

impl Serialize for ProblemKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{PROBLEM_PREFIX}{}", self.word()))
    }
}

impl<'de> Deserialize<'de> for ProblemKind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let word = text
            .strip_prefix(PROBLEM_PREFIX)
            .ok_or_else(|| serde::de::Error::custom(format_args!("{text} is no type of a problem")))?;
        // A newer version of the service may have stored a kind that this one does not know; title and detail say it.
        Ok(Self::ALL.iter().copied().find(|kind| kind.word() == word).unwrap_or(Self::Internal))
    }
}

/// One fault of a request, by JSON pointer (RFC 6901).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// Where.
    pub pointer: String,
    /// What.
    pub detail: String,
}

/// A problem object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:longshore:problem:<kind>`.
    #[serde(rename = "type")]
    #[schema(value_type = String, pattern = "^urn:longshore:problem:[a-z-]+$")]
    pub kind: ProblemKind,
    /// The kind's title.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, where, and what to do.
    pub detail: String,
    /// The faults of a bad request.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub errors: Vec<FieldError>,
}

impl Problem {
    /// A problem of a kind, with its detail.
    #[must_use]
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self { kind, title: kind.title().to_owned(), status: kind.status(), detail: detail.into(), errors: Vec::new() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.title, self.detail)
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_back() {
        let problem = Problem::new(ProblemKind::NoObject, "no object is at imports/1/a.csv");
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["type"], "urn:longshore:problem:no-object");
        assert_eq!(json["status"], 409);
        assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
    }

    #[test]
    fn a_kind_of_a_newer_version_can_be_read() {
        let json = serde_json::json!({
            "type": "urn:longshore:problem:not-yet-thought-of", "title": "New", "status": 422, "detail": "something else",
        });
        let problem: Problem = serde_json::from_value(json).unwrap();
        assert_eq!((problem.kind, problem.detail.as_str()), (ProblemKind::Internal, "something else"));
        assert!(serde_json::from_str::<ProblemKind>("\"about:blank\"").is_err());
    }
}
