//! Waiting, at the start, for what is down: for which setting, at which address, and why.
//!
//! Pools and clients that try again by themselves know only that time ran out; so each dependency is asked over one direct
//! connection, which knows the cause.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The pause before the second try; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a command waits that somebody sits before.
const PATIENCE: Duration = Duration::from_secs(15);

/// Until when a start waits.
#[derive(Debug, Clone, Copy)]
pub enum Patience {
    /// Whoever supervises the process decides.
    Endless,
    /// Until then.
    Until(Instant),
}

impl Patience {
    /// Of a command that passes.
    pub fn of_a_command() -> Self {
        Self::Until(Instant::now() + PATIENCE)
    }

    fn bears(self, pause: Duration) -> bool {
        match self {
            Self::Endless => true,
            Self::Until(end) => Instant::now() + pause < end,
        }
    }
}

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Dependency {
    pub what: &'static str,
    /// The setting that says where it is.
    pub setting: &'static str,
}

/// Tries until it succeeds, and says what it waits for. A reason names the address, without credentials.
///
/// # Errors
/// The last reason, where patience has ended.
pub async fn wait_for<T, E, F>(dependency: Dependency, patience: Patience, mut connect: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, E>>,
    E: Display,
{
    let Dependency { what, setting } = dependency;
    let mut pause = FIRST_PAUSE;
    loop {
        let reason = match connect().await {
            Ok(value) => return Ok(value),
            Err(error) => error.to_string(),
        };
        if !patience.bears(pause) {
            bail!("{what} ({setting}) cannot be used: {reason}; `longshore doctor` says more");
        }
        let retry_in_ms = pause.as_millis() as u64;
        tracing::warn!(setting, reason, retry_in_ms, "waiting for {what}; `longshore doctor` says more");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
