//! The signals that end a process: the first one asks it to come to an end, a second one ends it at once.

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of a process that was interrupted.
pub const INTERRUPTED: u8 = 130;

/// Cancelled by the first of these signals; the second one ends the process.
///
/// # Errors
/// Where the system takes no handler.
pub fn stop_on(kinds: &[SignalKind]) -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    for kind in kinds.iter().copied().filter(|kind| !left_alone(*kind)) {
        let (mut signals, told) = (signal(kind)?, stop.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if told.is_cancelled() {
                    std::process::exit(INTERRUPTED.into());
                }
                told.cancel();
            }
        });
    }
    Ok(stop)
}

/// `nohup` has SIGHUP ignored: a handler would undo that.
fn left_alone(kind: SignalKind) -> bool {
    if kind != SignalKind::hangup() {
        return false;
    }
    // Linux alone says it in a file; elsewhere it is handled.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, kind.as_raw_value())
}

/// Whether a process with this `/proc/PID/status` ignores a signal.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    (mask >> (signal - 1)) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_read_from_the_mask() {
        assert!(ignores("SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n", 1));
        assert!(!ignores("SigIgn:\t0000000000001000\n", 1));
        assert!(ignores("SigIgn:\t0000000000001000\n", 13));
        assert!(!ignores("", 1));
    }
}
