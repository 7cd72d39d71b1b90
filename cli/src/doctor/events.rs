//! Whether the storage tells of an upload: over NATS, heard as the service's stream hears it, or counted in that stream.

use std::time::{Duration, Instant};

use longshore_storage::bus::nats::NatsConfig;
use longshore_storage::bus::nats::inspect::{EventCounter, EventListener};

use super::report::Check;
use crate::settings::Settings;

/// How long an event may take; MinIO with a queue folder takes 3 s.
const EVENT_PATIENCE: Duration = Duration::from_secs(10);
/// The same where nothing seems to be set up that would tell.
const EVENT_LOOK: Duration = Duration::from_secs(4);

/// What is to be seen of storage events.
pub enum Events {
    /// Nothing, and why.
    Skipped(String),
    /// They come over NATS, as far as is known.
    Awaited(Told),
}

/// Whether a bucket is set up so that uploads are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It is.
    Surely,
    /// It cannot be seen.
    Perhaps,
    /// It is not, unless the server does so by a setting of its own.
    HardlyEver,
}

/// How the storage's events are noticed.
pub enum Listener {
    /// Heard as they come.
    Hears(EventListener),
    /// Counted in the stream, by a user that may not hear them.
    Counts(Box<EventCounter>),
    /// Why not at all.
    Deaf(String),
}

/// From before the upload on.
pub async fn listen(settings: &Settings, events: &Events) -> Option<Listener> {
    let (Events::Awaited(_), Some(url)) = (events, &settings.nats_url) else { return None };
    let config = NatsConfig::new(url.expose(), &settings.nats_events_subject);
    let refused = match EventListener::listen(&config).await {
        Ok(listener) => return Some(Listener::Hears(listener)),
        Err(error) => error.reason,
    };
    Some(match EventCounter::start(&config).await {
        Ok(counter) => Listener::Counts(Box::new(counter)),
        Err(error) => {
            let uncounted = error.reason;
            Listener::Deaf(format!(
                "NATS does not let the doctor listen: {refused}; nor can the stream be counted: {uncounted}"
            ))
        }
    })
}

/// Whether the upload of `key` was told of.
pub async fn heard(
    settings: &Settings,
    events: &Events,
    listener: Option<&mut Listener>,
    key: &str,
    begun: Instant,
) -> Check {
    const NAME: &str = "events";
    let told = match events {
        Events::Skipped(why) => return Check::skipped(NAME, why),
        Events::Awaited(told) => *told,
    };
    let patience = if told == Told::HardlyEver { EVENT_LOOK } else { EVENT_PATIENCE };
    let subject = &settings.nats_events_subject;
    let (came, how) = match listener {
        Some(Listener::Hears(listener)) => {
            (listener.hears_of(&settings.s3_bucket, key, patience).await, format!("its event on {subject}"))
        }
        Some(Listener::Counts(counter)) => {
            let how = format!("a message in {}, which this user may count but not hear", counter.stream());
            (counter.grows(patience).await, how)
        }
        Some(Listener::Deaf(why)) => return Check::skipped(NAME, why.as_str()),
        None => return Check::skipped(NAME, "there is nothing to listen to"),
    };
    let silent = format!("nothing told of the upload on {subject} within {} s", patience.as_secs());
    match came {
        Ok(true) => {
            let delay = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            Check::ok(NAME, format!("{delay} ms from the upload to {how}")).with("delay_ms", delay)
        }
        Ok(false) if told == Told::HardlyEver => Check::warn(
            NAME,
            silent,
            "see notification; without events imports start by the complete call or the sweep",
        ),
        Ok(false) => {
            let advice = "let the storage publish to the NATS of LONGSHORE_NATS_URL and the subject of \
                              LONGSHORE_NATS_EVENTS_SUBJECT (MinIO: MINIO_NOTIFY_NATS_ADDRESS_<id> and _SUBJECT_<id>, and the \
                              bucket's notification); until then imports start by the complete call or the sweep";
            if told == Told::Surely { Check::fail(NAME, silent, advice) } else { Check::warn(NAME, silent, advice) }
        }
        Err(error) => Check::warn(NAME, error.reason, "see nats"),
    }
}
