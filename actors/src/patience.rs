//! Patience: what a dependency that is away costs is time, never an import.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use longshore_storage::bus::BusError;
use longshore_storage::database::DatabaseError;
use longshore_storage::destination::DestinationError;
use longshore_storage::failure::Failure;
use longshore_storage::objects::ObjectError;
use longshore_telemetry::metrics;

/// The first pause between two tries; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// After this many tries the wait is worth a warning; then every so many again.
const WARN_EVERY: u32 = 5;

/// Whether trying again may help.
pub trait Transient: Failure {
    /// Whether it may.
    fn is_transient(&self) -> bool;
}

impl Transient for DatabaseError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

impl Transient for DestinationError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

impl Transient for ObjectError {
    /// A refusal is the operator's to mend (credentials, rights), not the file's fault: it is waited for as well.
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Refused { .. })
    }
}

impl Transient for BusError {
    fn is_transient(&self) -> bool {
        true
    }
}

/// Why a patient call ended without a result.
#[derive(Debug)]
pub enum Gave<E> {
    /// It was told to stop: the lease is lost, or the node shuts down.
    Stopped,
    /// Trying again would not help.
    Up(E),
}

/// Calls until it succeeds, fails for good, or `stop` is cancelled.
///
/// # Errors
/// [`Gave`]
pub async fn patiently<T, E, F>(
    stop: &CancellationToken,
    what: &'static str,
    mut call: impl FnMut() -> F,
) -> Result<T, Gave<E>>
where
    F: Future<Output = Result<T, E>>,
    E: Transient + std::fmt::Display,
{
    let mut pause = FIRST_PAUSE;
    for tries in 1_u32.. {
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Gave::Stopped),
            result = call() => result,
        };
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        error.count();
        if !error.is_transient() {
            return Err(Gave::Up(error));
        }
        metrics().dependency_retry(error.dependency());
        if tries % WARN_EVERY == 0 {
            tracing::warn!(what, tries, %error, "still trying");
        } else {
            tracing::debug!(what, tries, %error, "trying again");
        }
        tokio::select! {
            () = stop.cancelled() => return Err(Gave::Stopped),
            () = tokio::time::sleep(jittered(pause)) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Err(Gave::Stopped)
}

/// Between a half and the whole, so that nodes that lost one server do not come back in step.
fn jittered(pause: Duration) -> Duration {
    let random = uuid::Uuid::now_v7().as_bytes()[15];
    pause / 2 + pause * u32::from(random) / 510
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_dependency_that_is_away_costs_time_only() {
        let mut left = 7;
        let result: Result<_, Gave<BusError>> = patiently(&CancellationToken::new(), "test", || {
            left -= 1;
            let answer =
                if left == 0 { Ok(5) } else { Err(BusError { endpoint: "here".into(), reason: "away".into() }) };
            async move { answer }
        })
        .await;
        assert!(matches!(result, Ok(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_mended_is_not_tried_again() {
        let mut tries = 0;
        let result: Result<(), _> = patiently(&CancellationToken::new(), "test", || {
            tries += 1;
            async { Err(ObjectError::Changed { key: "k".into() }) }
        })
        .await;
        assert!(matches!(result, Err(Gave::Up(ObjectError::Changed { .. }))));
        assert_eq!(tries, 1);
    }

    #[tokio::test]
    async fn a_stop_ends_the_wait() {
        let stop = CancellationToken::new();
        stop.cancel();
        let result: Result<(), Gave<BusError>> = patiently(&stop, "test", std::future::pending).await;
        assert!(matches!(result, Err(Gave::Stopped)));
    }
}
