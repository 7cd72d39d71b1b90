//! A publish that begins ahead: it copies chunks into the table while later ones are still loaded, and commits nothing before
//! all of them are (`docs/decisions.md`, "A publish begins ahead").

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use longshore_domain::{ChunkIndex, LoadPlan};
use longshore_storage::database::{ImportRecord, NewChunk};
use longshore_storage::destination::{DestinationError, Planned, PublishOutcome, Ticket};

use crate::kept::Share;
use crate::services::Services;
use crate::source::{Known, ObjectSource};

/// It ends, and leaves nothing behind, when it is dropped.
pub(crate) struct Ahead {
    /// Chunks that are not known to be committed, or wait for an earlier one.
    planned: VecDeque<NewChunk>,
    /// Of these, the committed ones.
    committed: BTreeSet<ChunkIndex>,
    known: watch::Sender<Known>,
    share: Option<Arc<Share>>,
    publish: AbortOnDropHandle<Result<PublishOutcome, DestinationError>>,
    _turn: OwnedSemaphorePermit,
}

/// How long its transaction may be open before all chunks are loaded: whoever alters the table, or wants a key that it has
/// written, waits for it.
const AT_MOST: Duration = Duration::from_secs(60);
/// How often it is asked whether that will do.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Whether so much of the whole in this time leads to all of it in time.
fn keeps_pace(open: Duration, loaded: u64, size: u64) -> bool {
    open.as_millis() * u128::from(size) <= AT_MOST.as_millis() * u128::from(loaded)
}

/// Ends once it is clear that not all chunks are loaded in time.
async fn falls_behind(known: watch::Receiver<Known>, size: u64) {
    let begun = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let known = known.borrow();
        if known.planned.is_some() {
            break;
        }
        let loaded = known.chunks.iter().map(NewChunk::object_bytes).sum();
        if !keeps_pace(begun.elapsed(), loaded, size) {
            return;
        }
    }
    std::future::pending().await
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some(share) = &self.share {
            share.release();
        }
    }
}

impl Ahead {
    /// Begins with the first chunk that is committed.
    pub(crate) fn new(
        services: &Services,
        record: &ImportRecord,
        ticket: Ticket,
        plan: LoadPlan,
        share: Option<Arc<Share>>,
        turn: OwnedSemaphorePermit,
    ) -> Self {
        if let Some(share) = &share {
            share.hold();
        }
        let (known, mut begins) = watch::channel(Known::default());
        let source = ObjectSource::new(services, record, plan.clone(), known.subscribe(), share.clone());
        let (destination, on_error) = (Arc::clone(&services.destination), record.request.on_error);
        let size = record.size.unwrap_or(0);
        let publish = async move {
            // Nothing is held in the destination before there is something to copy.
            let begun = begins.wait_for(|known| !known.chunks.is_empty() || known.planned.is_some()).await.is_ok();
            if !begun {
                return Err(DestinationError::Unavailable { reason: "nothing was loaded".to_owned() });
            }
            tracing::debug!("the publish begins ahead");
            let outcome = tokio::select! {
                outcome = destination.publish(ticket, &plan, on_error, &source) => outcome,
                () = falls_behind(begins.clone(), size) => {
                    Err(DestinationError::Unavailable { reason: "its chunks are not loaded fast enough".to_owned() })
                }
            };
            if let Err(error) = &outcome {
                tracing::info!(%error, "the publish that began ahead ended; it begins again behind the last chunk");
            }
            outcome
        };
        let publish = AbortOnDropHandle::new(tokio::spawn(publish.in_current_span()));
        Self { planned: VecDeque::new(), committed: BTreeSet::new(), known, share, publish, _turn: turn }
    }

    /// Chunks behind those that were planned before.
    pub(crate) fn plan(&mut self, chunks: impl IntoIterator<Item = NewChunk>) {
        self.planned.extend(chunks);
        self.tell();
    }

    /// A chunk is committed.
    pub(crate) fn commit(&mut self, chunk: ChunkIndex) {
        self.committed.insert(chunk);
        self.tell();
    }

    /// Tells the publish of chunks that no earlier one is missing before.
    fn tell(&mut self) {
        let Self { planned, committed, known, .. } = self;
        known.send_if_modified(|known| {
            let before = known.chunks.len();
            while let Some(chunk) = planned.pop_front_if(|next| committed.remove(&next.chunk)) {
                known.chunks.push(chunk);
            }
            known.chunks.len() > before
        });
    }

    /// Whether it has not ended.
    pub(crate) fn is_under_way(&self) -> bool {
        !self.publish.is_finished()
    }

    /// All chunks are committed, and the import may be published: what becomes of it.
    pub(crate) async fn finish(mut self, planned: Planned) -> Result<PublishOutcome, DestinationError> {
        self.known.send_modify(|known| known.planned = Some(planned));
        let ended = (&mut self.publish).await;
        // Where it panicked, the next try says so.
        ended.unwrap_or_else(|error| Err(DestinationError::Unavailable { reason: error.to_string() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_keeps_pace_while_it_leads_to_the_end_in_time() {
        let seconds = Duration::from_secs;
        assert!(keeps_pace(seconds(10), 100, 600));
        assert!(!keeps_pace(seconds(10), 99, 600));
        assert!(keeps_pace(seconds(50), 500, 600));
        assert!(!keeps_pace(seconds(61), 600, 600));
        assert!(!keeps_pace(seconds(10), 0, 1 << 40));
    }
}
