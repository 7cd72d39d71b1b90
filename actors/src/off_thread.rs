//! Work for a processor: on a thread of its own, so that it keeps no actor waiting.

use tokio::runtime::{Handle, RuntimeFlavor};

/// The work panicked: a defect of ours.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Panicked(#[from] tokio::task::JoinError);

/// Runs `work` on a thread for blocking work. A runtime of one thread has none to spare, and promises an order instead: there
/// it is run at once.
pub(crate) async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Panicked> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    Ok(tokio::task::spawn_blocking(work).await?)
}
