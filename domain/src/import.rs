//! The import resource and its chunks, as clients see them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use crate::column::Column;
use crate::format::ShownFormat;
use crate::ids::{Attempt, ByteOffset, ChunkIndex, ImportId, RowNumber};
use crate::problem::Problem;
use crate::progress::Progress;
use crate::request::Destination;
use crate::state::{ChunkState, ImportState};

/// What set an import going.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    /// A storage event.
    Event,
    /// The client's `complete` call.
    Complete,
    /// The sweep found the object.
    Sweep,
}

impl Trigger {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Complete => "complete",
            Self::Sweep => "sweep",
        }
    }

    /// Reads a word back.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Event, Self::Complete, Self::Sweep].into_iter().find(|trigger| trigger.as_str() == word)
    }
}

/// The object of an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SourceObject {
    /// Its bucket.
    pub bucket: String,
    /// Its key, chosen by the service.
    pub key: String,
    /// Its size in bytes, from a HEAD; null before the upload.
    pub size: Option<u64>,
    /// Its ETag, from a HEAD; null before the upload.
    pub etag: Option<String>,
    /// The content type that the URL was signed for.
    pub content_type: String,
}

/// The import resource.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Import {
    /// UUIDv7.
    pub id: ImportId,
    /// Where it stands.
    pub state: ImportState,
    /// Whether it came to an end.
    pub done: bool,
    /// Which try this is, from 1.
    pub attempt: Attempt,
    /// What set it going; null before.
    pub trigger: Option<Trigger>,
    /// When it was asked for.
    #[serde(serialize_with = "rfc3339")]
    pub created_at: DateTime<Utc>,
    /// When the object was seen.
    #[serde(serialize_with = "rfc3339_opt")]
    pub uploaded_at: Option<DateTime<Utc>>,
    /// When this attempt's planning began.
    #[serde(serialize_with = "rfc3339_opt")]
    pub started_at: Option<DateTime<Utc>>,
    /// When it came to an end.
    #[serde(serialize_with = "rfc3339_opt")]
    pub finished_at: Option<DateTime<Utc>>,
    /// The object.
    pub source: SourceObject,
    /// The table.
    pub destination: Destination,
    /// What was given and what was found.
    pub format: ShownFormat,
    /// The columns; null until they are known.
    pub columns: Option<Vec<Column>>,
    /// What becomes of bad rows.
    pub on_error: crate::request::OnError,
    /// The counters.
    pub progress: Progress,
    /// Why it failed.
    pub error: Option<Problem>,
}

/// A chunk as clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Chunk {
    /// Its place, from 0.
    pub chunk: ChunkIndex,
    /// Its first byte in the decoded text.
    pub start: ByteOffset,
    /// One past its last byte.
    pub end: ByteOffset,
    /// The number of its first data record.
    pub first_row: RowNumber,
    /// Data records in it, rejected ones included.
    pub rows: u64,
    /// Of these, rejected; 0 until it is done.
    pub rows_rejected: u64,
    /// Where it stands.
    pub state: ChunkState,
    /// The process that worked on it last.
    pub worker: Option<String>,
    /// How often it was claimed.
    pub attempt: u32,
}

/// RFC 3339 in UTC with microseconds, as every time in the API.
#[must_use]
pub fn format_time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

fn rfc3339<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_time(*time))
}

fn rfc3339_opt<S: Serializer>(time: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => rfc3339(time, serializer),
        None => serializer.serialize_none(),
    }
}
