//! The turnstile before SQLite's one writer (invariant 14): control writes go before bulk writes.
//!
//! The control tables and the destination may be one file. Whoever writes to it takes a turn first, so that nobody waits in
//! SQLite's busy handler, which knows no order. A bulk write (a chunk, a publish) is let in only while no control write
//! waits. Control writes are short; bulk writes are kept to one chunk.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Pages in SQLite's write-ahead log before a commit moves them into the file itself, and everybody waits for that.
/// Bulk writes have them moved beside the next writer, but the log begins anew only where nothing is left in it: 64 MiB.
pub(crate) const LOG_PAGES: u32 = (64 << 20) / PAGE_BYTES;

/// Bytes of a page of a SQLite file that is made here: with fewer and larger pages than SQLite's 4 KiB, rows are written a
/// fifth faster. A file that is there keeps its own.
pub(crate) const PAGE_BYTES: u32 = 8192;

/// Lets one writer in at a time, control before bulk.
#[derive(Debug, Default)]
pub struct WriteGate {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Whether a turn is out.
    taken: bool,
    /// Control writers that wait.
    controls: usize,
}

/// A turn to write; dropping it lets the next one in. It may be moved to a blocking thread.
#[derive(Debug)]
#[must_use = "the turn ends when this is dropped"]
pub struct WriteTurn {
    gate: Arc<WriteGate>,
}

impl Drop for WriteTurn {
    fn drop(&mut self) {
        self.gate.lock().taken = false;
        self.gate.changed.notify_waiters();
    }
}

/// Counts a waiting control writer, also when its wait is cancelled.
struct Waiting<'a>(&'a WriteGate);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().controls -= 1;
        self.0.changed.notify_waiters();
    }
}

impl WriteGate {
    /// A gate that nobody holds.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A turn for a short write of the control tables.
    pub async fn control(self: &Arc<Self>) -> WriteTurn {
        self.lock().controls += 1;
        let waiting = Waiting(self);
        let turn = self.wait(|_| true).await;
        drop(waiting);
        turn
    }

    /// A turn for a chunk or a publish; waits while any control writer waits.
    pub async fn bulk(self: &Arc<Self>) -> WriteTurn {
        self.wait(|state| state.controls == 0).await
    }

    async fn wait(self: &Arc<Self>, may: impl Fn(&State) -> bool) -> WriteTurn {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Enabled before the look at the state, so that no change falls between the two.
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if !state.taken && may(&state) {
                    state.taken = true;
                    return WriteTurn { gate: Arc::clone(self) };
                }
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bulk_waits_while_a_control_writer_waits() {
        let gate = WriteGate::new();
        let order = Arc::new(Mutex::new(Vec::new()));
        let first = gate.bulk().await;
        let mut tasks = Vec::new();
        for name in ["bulk", "control"] {
            let (gate, order) = (Arc::clone(&gate), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let turn = if name == "bulk" { gate.bulk().await } else { gate.control().await };
                order.lock().unwrap().push(name);
                drop(turn);
            }));
            // The current-thread runtime runs the task until it waits.
            tokio::task::yield_now().await;
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["control", "bulk"]);
    }

    #[tokio::test]
    async fn a_cancelled_control_writer_holds_nobody_up() {
        let gate = WriteGate::new();
        let first = gate.bulk().await;
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.control().await }
        });
        tokio::task::yield_now().await;
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        drop(first);
        drop(gate.bulk().await);
    }
}
