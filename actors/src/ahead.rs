//! A publish that begins ahead: it copies chunks into the table while later ones are still loaded, and commits nothing before
//! all of them are (`docs/decisions.md`, "A publish begins ahead").

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, watch};
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
    turn: Option<OwnedSemaphorePermit>,
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
        let publish = async move {
            // Nothing is held in the destination before there is something to copy.
            let begun = begins.wait_for(|known| !known.chunks.is_empty() || known.planned.is_some()).await.is_ok();
            if !begun {
                return Err(DestinationError::Unavailable { reason: "nothing was loaded".to_owned() });
            }
            tracing::debug!("the publish begins ahead");
            let outcome = destination.publish(ticket, &plan, on_error, &source).await;
            if let Err(error) = &outcome {
                tracing::info!(%error, "the publish that began ahead ended; it begins again behind the last chunk");
            }
            outcome
        };
        let publish = AbortOnDropHandle::new(tokio::spawn(publish.in_current_span()));
        Self { planned: VecDeque::new(), committed: BTreeSet::new(), known, share, publish, turn: Some(turn) }
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

    /// The turn that it holds, for whoever goes on with it.
    pub(crate) fn take_turn(&mut self) -> Option<OwnedSemaphorePermit> {
        self.turn.take()
    }

    /// All chunks are committed, and the import may be published: what becomes of it.
    pub(crate) async fn finish(mut self, planned: Planned) -> Result<PublishOutcome, DestinationError> {
        self.known.send_modify(|known| known.planned = Some(planned));
        let ended = (&mut self.publish).await;
        // Where it panicked, the next try says so.
        ended.unwrap_or_else(|error| Err(DestinationError::Unavailable { reason: error.to_string() }))
    }
}
