//! Intake: storage events in, imports started. Every event is a hint: the key names an import, and the object is looked at.

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use longshore_domain::{ImportState, Trigger};
use longshore_storage::bus::{Delivery, StorageEvent};
use longshore_storage::failure::Failure as _;
use longshore_storage::start::{StartOutcome, import_of_key, start_import};
use longshore_telemetry::{metrics, trace};

use crate::services::Services;

/// Events taken at once.
const EVENTS_AT_ONCE: usize = 32;
/// How long a pull waits for an event.
const PULL_WAIT: Duration = Duration::from_secs(5);
/// The pause after a pull that failed.
const PULL_PAUSE: Duration = Duration::from_millis(500);
/// How long an event waits that could not be looked up.
const HAND_BACK: Duration = Duration::from_secs(2);

/// Commands to the intake.
#[derive(Debug)]
pub enum IntakeMessage {
    /// Pull events.
    Pull,
}

/// The intake.
pub struct IntakeActor;

impl Actor for IntakeActor {
    type Msg = IntakeMessage;
    type State = (Services, CancellationToken);
    type Arguments = (Services, CancellationToken);

    async fn pre_start(
        &self,
        myself: ActorRef<IntakeMessage>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        myself.cast(IntakeMessage::Pull)?;
        Ok(arguments)
    }

    async fn handle(
        &self,
        myself: ActorRef<IntakeMessage>,
        message: IntakeMessage,
        (services, stop): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            IntakeMessage::Pull => pull(services, stop).await,
        }
        if !stop.is_cancelled() {
            myself.cast(IntakeMessage::Pull)?;
        }
        Ok(())
    }
}

async fn pull(services: &Services, stop: &CancellationToken) {
    let pulled = tokio::select! {
        biased;
        () = stop.cancelled() => return,
        pulled = services.bus.pull_events(EVENTS_AT_ONCE, PULL_WAIT) => pulled,
    };
    match pulled {
        Ok(deliveries) => {
            futures::future::join_all(deliveries.iter().map(|delivery| take(services, delivery))).await;
        }
        Err(error) => {
            error.count();
            metrics().dependency_retry(error.dependency());
            tracing::warn!(%error, "no storage events to be had; trying again");
            tokio::time::sleep(PULL_PAUSE).await;
        }
    }
}

async fn take(services: &Services, Delivery { message, receipt }: &Delivery<StorageEvent>) {
    let answered =
        if consider(services, message).await { receipt.ack().await } else { receipt.hand_back(HAND_BACK).await };
    if let Err(error) = answered {
        error.count();
        tracing::debug!(%error, "event not answered for; it comes again");
    }
}

/// Whether the event is done with.
async fn consider(services: &Services, event: &StorageEvent) -> bool {
    let StorageEvent { bucket, key } = event;
    let (true, Some(import)) = (bucket == services.objects.bucket(), import_of_key(key)) else {
        tracing::debug!(bucket, key, "an event for an object that is none of ours");
        return true;
    };
    let Services { database, objects, bus, .. } = services;
    let span = tracing::info_span!("event", import_id = %import);
    trace::join(&span, import);
    match start_import(&**database, &**objects, &**bus, import, Trigger::Event).instrument(span).await {
        Ok(StartOutcome::Started | StartOutcome::NoObject) => true,
        Ok(StartOutcome::Before(state @ (ImportState::Expired | ImportState::Cancelled))) => {
            tracing::warn!(import_id = %import, key, %state, "an object came for an import that had ended; it is left alone");
            true
        }
        Ok(StartOutcome::Before(state)) => {
            tracing::debug!(import_id = %import, %state, "an event for an import that had started");
            true
        }
        Ok(StartOutcome::Unknown) => {
            tracing::warn!(key, "an event for an import that is not known; the object is left alone");
            true
        }
        Err(error) => {
            error.count();
            tracing::warn!(import_id = %import, %error, "an event could not be looked up; it comes again");
            false
        }
    }
}
