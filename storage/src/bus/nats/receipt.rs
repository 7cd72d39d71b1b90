//! Answers for deliveries of JetStream.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use async_trait::async_trait;
use bytes::Bytes;
use tracing::debug;

use super::CALL_TIMEOUT;
use crate::bus::{BusError, Receipt};

/// The receipt of a whole message.
pub(super) struct Whole {
    message: Message,
    endpoint: String,
}

impl Whole {
    pub(super) fn new(message: Message, endpoint: &str) -> Self {
        Self { message, endpoint: endpoint.to_owned() }
    }

    pub(super) fn body(&self) -> &Bytes {
        &self.message.payload
    }

    /// For messages that nobody can read.
    pub(super) async fn drop_for_ever(&self) {
        if let Err(error) = self.answer(AckKind::Term).await {
            debug!(%error, "it comes again");
        }
    }

    async fn answer(&self, kind: AckKind) -> Result<(), BusError> {
        self.timed(self.message.ack_with(kind)).await
    }

    async fn timed(&self, call: impl Future<Output = Result<(), async_nats::Error>>) -> Result<(), BusError> {
        let reason = match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {CALL_TIMEOUT:?}"),
        };
        Err(BusError { endpoint: self.endpoint.clone(), reason: format!("a delivery was not answered: {reason}") })
    }
}

#[async_trait]
impl Receipt for Whole {
    async fn ack(&self) -> Result<(), BusError> {
        // The server confirms this one.
        self.timed(self.message.double_ack()).await
    }

    async fn hand_back(&self, delay: Duration) -> Result<(), BusError> {
        self.answer(AckKind::Nak(Some(delay))).await
    }

    async fn keep(&self) -> Result<(), BusError> {
        self.answer(AckKind::Progress).await
    }
}

/// The receipt of one of several arrivals in a message. The message is done when all are; it comes again, whole, when one
/// is handed back.
pub(super) struct PartReceipt {
    shared: Arc<Shared>,
    part: usize,
}

struct Shared {
    whole: Whole,
    open: Mutex<Vec<bool>>,
}

impl PartReceipt {
    pub(super) fn split(whole: Whole, parts: usize) -> impl Iterator<Item = Self> {
        let shared = Arc::new(Shared { whole, open: Mutex::new(vec![true; parts]) });
        (0..parts).map(move |part| Self { shared: Arc::clone(&shared), part })
    }

    /// Whether this answer was the last one that was missing.
    fn close(&self) -> bool {
        let mut open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = open.get_mut(self.part) {
            *part = false;
        }
        !open.contains(&true)
    }
}

#[async_trait]
impl Receipt for PartReceipt {
    async fn ack(&self) -> Result<(), BusError> {
        if self.close() { self.shared.whole.ack().await } else { Ok(()) }
    }

    async fn hand_back(&self, delay: Duration) -> Result<(), BusError> {
        // This part stays open for ever, so the others cannot end the message.
        self.shared.whole.hand_back(delay).await
    }

    async fn keep(&self) -> Result<(), BusError> {
        self.shared.whole.keep().await
    }
}
