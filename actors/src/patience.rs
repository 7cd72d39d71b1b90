//! Patience: what a dependency that is away costs is time, and an import only where it is away for longer than is stated
//! ([`crate::services::NodeSettings::patience`]).

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
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
/// A try that lasts longer did work: whatever never answers is given up before. What is away is so from its failure on.
const WORKED: Duration = Duration::from_secs(120);
/// After this many tries the wait is worth a warning; then every so many again.
const WARN_EVERY: u32 = 5;

/// Whether trying again may help.
pub trait Transient: Failure {
    /// Whether it may.
    fn is_transient(&self) -> bool;

    /// Whether an import fails once its dependency was away for too long. Without the control database nothing could be
    /// said of it, and what the bus does not carry is found without it: these two are waited for without end.
    fn fails_imports(&self) -> bool {
        false
    }
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

    fn fails_imports(&self) -> bool {
        true
    }
}

impl Transient for ObjectError {
    /// A refusal is the operator's to mend (credentials, rights), not the file's fault: it is waited for as well.
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Refused { .. })
    }

    fn fails_imports(&self) -> bool {
        true
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
    /// Trying again would not help, or was tried for long enough.
    Up(E),
}

/// How long to try, and what ends that early.
#[derive(Debug, Clone)]
pub struct Patience {
    stop: CancellationToken,
    limit: Duration,
}

impl Patience {
    /// Until `stop` is cancelled; a dependency that can fail an import ([`Transient::fails_imports`]) for `limit` at most.
    #[must_use]
    pub fn new(stop: CancellationToken, limit: Duration) -> Self {
        Self { stop, limit }
    }

    /// One that ends with this one, and can be ended before.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { stop: self.stop.child_token(), limit: self.limit }
    }

    /// Ends it.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Whether it was ended.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits until it was ended.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }
}

/// The failed tries of one call.
pub struct Tries<'a> {
    patience: &'a Patience,
    what: &'static str,
    failed: u32,
    pause: Duration,
    /// When this try began.
    begun: Instant,
    /// When the first of those failed between which nothing worked.
    since: Option<Instant>,
}

impl<'a> Tries<'a> {
    /// None failed so far.
    #[must_use]
    pub fn new(patience: &'a Patience, what: &'static str) -> Self {
        Self { patience, what, failed: 0, pause: FIRST_PAUSE, begun: Instant::now(), since: None }
    }

    /// Something came of this try, although it is not over: it is the first one again.
    pub fn worked(&mut self) {
        *self = Self::new(self.patience, self.what);
    }

    /// A try failed: waits before the next one.
    ///
    /// # Errors
    /// [`Gave`] where there is to be no other.
    pub async fn failed<E: Transient + std::fmt::Display>(&mut self, error: E) -> Result<(), Gave<E>> {
        let what = self.what;
        error.count();
        if !error.is_transient() {
            return Err(Gave::Up(error));
        }
        metrics().dependency_retry(error.dependency());
        if self.begun.elapsed() >= WORKED {
            self.worked();
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if error.fails_imports() && since.elapsed() >= self.patience.limit {
            tracing::error!(what, tries = self.failed, %error, "given up");
            return Err(Gave::Up(error));
        }
        self.failed += 1;
        if self.failed.is_multiple_of(WARN_EVERY) {
            tracing::warn!(what, tries = self.failed, %error, "still trying");
        } else {
            tracing::debug!(what, tries = self.failed, %error, "trying again");
        }
        tokio::select! {
            biased;
            () = self.patience.stopped() => return Err(Gave::Stopped),
            () = tokio::time::sleep(jittered(self.pause)) => {}
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.begun = Instant::now();
        Ok(())
    }
}

/// Calls until it succeeds, fails for good, or patience ends.
///
/// # Errors
/// [`Gave`]
pub async fn patiently<T, E, F>(
    patience: &Patience,
    what: &'static str,
    mut call: impl FnMut() -> F,
) -> Result<T, Gave<E>>
where
    F: Future<Output = Result<T, E>>,
    E: Transient + std::fmt::Display,
{
    let mut tries = Tries::new(patience, what);
    loop {
        let result = tokio::select! {
            biased;
            () = patience.stopped() => return Err(Gave::Stopped),
            result = call() => result,
        };
        match result {
            Ok(value) => return Ok(value),
            Err(error) => tries.failed(error).await?,
        }
    }
}

/// Between a half and the whole, so that nodes that lost one server do not come back in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience() -> Patience {
        Patience::new(CancellationToken::new(), Duration::from_secs(900))
    }

    fn away() -> ObjectError {
        ObjectError::Unavailable { endpoint: "here".into(), reason: "away".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_storage_that_is_away_for_too_long_is_given_up() {
        let begun = Instant::now();
        let result: Result<(), _> = patiently(&patience(), "test", || async { Err(away()) }).await;
        assert!(matches!(result, Err(Gave::Up(ObjectError::Unavailable { .. }))));
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_secs(900) && waited < Duration::from_secs(904), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_works_for_long_is_no_time_away() {
        let mut tries = 0;
        let result: Result<_, Gave<ObjectError>> = patiently(&patience(), "test", || {
            tries += 1;
            async move {
                match tries {
                    1 | 3 => Err(away()),
                    2 => {
                        tokio::time::sleep(Duration::from_secs(1000)).await;
                        Err(away())
                    }
                    _ => Ok(()),
                }
            }
        })
        .await;
        assert!(result.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_bus_is_waited_for_without_end() {
        let begun = Instant::now();
        let result: Result<(), _> = patiently(&patience(), "test", || async {
            if begun.elapsed() > Duration::from_secs(3600) {
                return Ok(());
            }
            Err(BusError { endpoint: "here".into(), reason: "away".into() })
        })
        .await;
        assert!(result.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dependency_that_is_away_costs_time_only() {
        let mut left = 7;
        let result: Result<_, Gave<BusError>> = patiently(&patience(), "test", || {
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
        let result: Result<(), _> = patiently(&patience(), "test", || {
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
        let result: Result<(), Gave<BusError>> =
            patiently(&Patience::new(stop, Duration::MAX), "test", std::future::pending).await;
        assert!(matches!(result, Err(Gave::Stopped)));
    }
}
