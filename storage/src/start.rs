//! Three triggers, one start: whoever believes that an object arrived calls [`start_import`], any number of times, in any
//! order. Size and ETag come from a HEAD, never from a message, and the start itself is one compare-and-set.

use chrono::{DateTime, Utc};
use longshore_domain::{ImportId, ImportState, Trigger};
use longshore_telemetry::metrics;

use crate::bus::{Bus, ImportJob};
use crate::database::{Control, DatabaseError, Started, TextPart};
use crate::failpoint;
use crate::failure::Failure as _;
use crate::objects::{ObjectError, ObjectStore};

/// The prefix of every key that is ours.
pub const KEY_PREFIX: &str = "imports/";

/// Where `longshore doctor` puts its probes: under [`KEY_PREFIX`], so that a notification tells of them, and no import's.
pub const PROBE_PREFIX: &str = "imports/doctor/";

/// The folder of decoded text; names of files never begin with a dot ([`longshore_domain::request::safe_file_name`]).
const DECODED: &str = "/.decoded/";

/// What became of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartOutcome {
    /// By this call.
    Started,
    /// It had started before.
    Before(ImportState),
    /// No object is at its key.
    NoObject,
    /// No such import.
    Unknown,
}

/// Why a start could not be tried to its end.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The control database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The object storage.
    #[error(transparent)]
    Objects(#[from] ObjectError),
}

/// The key of an import's object.
#[must_use]
pub fn object_key(id: ImportId, file_name: &str) -> String {
    format!("{KEY_PREFIX}{id}/{}", longshore_domain::request::safe_file_name(file_name))
}

/// The key of a part of an import's decoded text: beside its object, where no file's name can be, and its owner's alone.
#[must_use]
pub fn decoded_text_key(part: TextPart) -> String {
    let TextPart { import, attempt, epoch, part } = part;
    format!("{KEY_PREFIX}{import}{DECODED}{attempt}-{epoch}-{part}")
}

/// Whether a key is one of [`decoded_text_key`].
#[must_use]
pub fn is_decoded_text(key: &str) -> bool {
    key.starts_with(KEY_PREFIX) && key.contains(DECODED)
}

/// A new key for a probe.
#[must_use]
pub fn probe_key() -> String {
    format!("{PROBE_PREFIX}{}/probe", uuid::Uuid::now_v7())
}

/// A new key for a probe where decoded text is.
#[must_use]
pub fn decoded_probe_key() -> String {
    format!("{PROBE_PREFIX}{}{DECODED}probe", uuid::Uuid::now_v7())
}

/// The import that a key belongs to, where it is one of ours.
#[must_use]
pub fn import_of_key(key: &str) -> Option<ImportId> {
    let (id, name) = key.strip_prefix(KEY_PREFIX)?.split_once('/')?;
    if name.is_empty() || name.contains('/') { None } else { id.parse().ok() }
}

/// Starts an import if its object is there. The job on the bus is a hint: when it is lost, the sweep finds the import.
///
/// # Errors
/// [`StartError`] where a dependency is away; nothing happened then, or the start took effect and the next call says so.
pub async fn start_import(
    database: &dyn Control,
    objects: &dyn ObjectStore,
    bus: &dyn Bus,
    id: ImportId,
    trigger: Trigger,
) -> Result<StartOutcome, StartError> {
    let Some(record) = database.import(id).await? else {
        return Ok(StartOutcome::Unknown);
    };
    if record.state != ImportState::AwaitingUpload {
        return Ok(StartOutcome::Before(record.state));
    }
    let Some(head) = objects.head(&record.object_key).await? else {
        return Ok(StartOutcome::NoObject);
    };
    match database.start(id, trigger, head.size, &head.etag).await? {
        Started::Now => {
            failpoint::pass("start.after");
            tracing::info!(import_id = %id, trigger = trigger.as_str(), size = head.size, "import started");
            metrics().import_started(trigger, head.last_modified.and_then(since));
            if let Err(error) = bus.publish_import(&ImportJob { import: id }).await {
                error.count();
                tracing::warn!(import_id = %id, %error, "import job not published; the sweep will find it");
            }
            if let Err(error) = bus.changed(id).await {
                tracing::debug!(import_id = %id, %error, "watchers were not told of the start");
            }
            Ok(StartOutcome::Started)
        }
        Started::Before(state) => Ok(StartOutcome::Before(state)),
        Started::Unknown => Ok(StartOutcome::Unknown),
    }
}

/// How long ago that was by this machine's clock; nothing where the storage's clock is ahead of it.
fn since(time: DateTime<Utc>) -> Option<std::time::Duration> {
    (Utc::now() - time).to_std().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_domain::{Attempt, Epoch};

    #[test]
    fn only_our_keys_name_an_import() {
        let id = ImportId::generate();
        assert_eq!(import_of_key(&object_key(id, "a b.csv")), Some(id));
        for key in ["", "imports/", "imports/x/a.csv", "other/a.csv", "imports/a.csv"] {
            assert_eq!(import_of_key(key), None, "{key}");
        }
        assert!(probe_key().starts_with(KEY_PREFIX));
        assert_eq!(import_of_key(&probe_key()), None);
        assert_eq!(import_of_key(&decoded_probe_key()), None);
        assert!(is_decoded_text(&decoded_probe_key()));
        let decoded = decoded_text_key(TextPart { import: id, attempt: Attempt(1), epoch: Epoch(3), part: 7 });
        assert!(is_decoded_text(&decoded) && !is_decoded_text(&object_key(id, ".decoded/1-0")));
        assert_eq!(import_of_key(&decoded), None, "its event starts nothing");
        assert_eq!(import_of_key(&format!("imports/{id}")), None);
        assert_eq!(import_of_key(&format!("imports/{id}/a/b.csv")), None);
    }
}
