//! Who watches which import: one task an API node hears of changes from the bus, looks at the versions of watched imports now
//! and then (a hint may be lost), and wakes the watchers. However many watch, the database is asked once a round.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use longshore_domain::ImportId;
use longshore_storage::bus::Bus;
use longshore_storage::database::Database;

/// Watchers at once. More are told to come again, so that they cannot take every connection.
const WATCHERS: usize = 512;
/// How often versions are looked at, whatever the bus says.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Versions asked for in one statement.
const VERSIONS_AT_ONCE: usize = 500;

/// The watchers of a node. Cheap to clone.
#[derive(Clone)]
pub struct Watchers {
    places: Arc<Semaphore>,
    watched: Arc<Mutex<HashMap<ImportId, Watched>>>,
    stop: CancellationToken,
}

struct Watched {
    wake: watch::Sender<u64>,
    watchers: usize,
    version: i64,
}

/// One watcher's place. It is given back when dropped.
pub struct Watch {
    import: ImportId,
    woken: watch::Receiver<u64>,
    all: Watchers,
    _place: OwnedSemaphorePermit,
}

impl Watchers {
    /// Starts to listen; until `stop`, which ends every watcher, too.
    #[must_use]
    pub fn start(database: Database, bus: Arc<dyn Bus>, stop: CancellationToken) -> Self {
        let watchers = Self { places: Arc::new(Semaphore::new(WATCHERS)), watched: Arc::default(), stop };
        tokio::spawn(watchers.clone().run(database, bus));
        watchers
    }

    /// A place to watch from; `None` where all are taken.
    #[must_use]
    pub fn watch(&self, import: ImportId, version: i64) -> Option<Watch> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let mut watched = self.lock();
        let entry =
            watched.entry(import).or_insert_with(|| Watched { wake: watch::Sender::new(0), watchers: 0, version });
        entry.watchers += 1;
        let woken = entry.wake.subscribe();
        Some(Watch { import, woken, all: self.clone(), _place: place })
    }

    /// No code that can panic runs under the lock, so a poisoned one is whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<ImportId, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self, database: Database, bus: Arc<dyn Bus>) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut changes: Option<BoxStream<'static, ImportId>> = None;
        loop {
            if changes.is_none() {
                changes =
                    bus.changes().await.inspect_err(|error| tracing::debug!(%error, "no changes to be heard")).ok();
            }
            let listening = changes.is_some();
            let heard = changes.get_or_insert_with(|| stream::pending().boxed());
            tokio::select! {
                () = self.stop.cancelled() => return,
                change = heard.next() => match change {
                    Some(import) => self.wake(import),
                    None => changes = None,
                },
                _ = tick.tick() => {
                    self.look(&database).await;
                    if !listening {
                        changes = None;
                    }
                }
            }
        }
    }

    fn wake(&self, import: ImportId) {
        if let Some(watched) = self.lock().get(&import) {
            watched.wake.send_modify(|count| *count += 1);
        }
    }

    /// Wakes those whose import has another version than was seen last.
    async fn look(&self, database: &Database) {
        let ids: Vec<ImportId> = self.lock().keys().copied().collect();
        for some in ids.chunks(VERSIONS_AT_ONCE) {
            let versions = match database.versions(some).await {
                Ok(versions) => versions,
                Err(error) => {
                    tracing::debug!(%error, "watched imports were not looked at");
                    return;
                }
            };
            let mut all = self.lock();
            for (import, version) in versions {
                if let Some(watched) = all.get_mut(&import).filter(|watched| watched.version != version) {
                    watched.version = version;
                    watched.wake.send_modify(|count| *count += 1);
                }
            }
        }
    }
}

impl Watch {
    /// Waits for a change since the last call. `false`: the node stops.
    pub async fn changed(&mut self) -> bool {
        tokio::select! {
            () = self.all.stop.cancelled() => false,
            woken = self.woken.changed() => woken.is_ok(),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.all.lock();
        if let Some(entry) = watched.get_mut(&self.import) {
            entry.watchers -= 1;
            if entry.watchers == 0 {
                watched.remove(&self.import);
            }
        }
    }
}
