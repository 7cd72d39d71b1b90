//! The registrar: takes import jobs from the bus and hints from the sweep, claims what has no owner, and makes a supervisor
//! for each import that it won. It owns a bounded number at once.

use std::collections::HashMap;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio_util::sync::CancellationToken;

use longshore_domain::ImportId;
use longshore_storage::bus::Delivery;
use longshore_storage::failpoint;
use longshore_storage::failure::Failure as _;
use longshore_telemetry::metrics;

use crate::import::{ImportActor, ImportArguments};
use crate::services::Services;

/// Imports that one node owns at once. An owner is cheap: the work is the chunks', and any node takes those.
const OWNED_AT_MOST: usize = 32;
/// How long a pull waits for a job.
const PULL_WAIT: Duration = Duration::from_secs(1);
/// The pause after a pull that failed, or while there is no room.
const PULL_PAUSE: Duration = Duration::from_millis(500);

/// What the registrar is told.
#[derive(Debug)]
pub enum RegistrarMessage {
    /// Import jobs came, each to be answered for once it was looked at.
    Considered(Vec<ImportId>),
}

/// The registrar.
pub struct RegistrarActor;

/// What it knows.
pub struct RegistrarState {
    services: Services,
    stop: CancellationToken,
    owned: HashMap<ActorId, ImportId>,
    room: tokio::sync::watch::Sender<bool>,
}

impl Actor for RegistrarActor {
    type Msg = RegistrarMessage;
    type State = RegistrarState;
    type Arguments = (Services, CancellationToken);

    async fn pre_start(
        &self,
        myself: ActorRef<RegistrarMessage>,
        (services, stop): Self::Arguments,
    ) -> Result<RegistrarState, ActorProcessingErr> {
        let (room, has_room) = tokio::sync::watch::channel(true);
        tokio::spawn(pull_jobs(services.clone(), stop.clone(), has_room, myself));
        Ok(RegistrarState { services, stop, owned: HashMap::new(), room })
    }

    async fn handle(
        &self,
        myself: ActorRef<RegistrarMessage>,
        message: RegistrarMessage,
        state: &mut RegistrarState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RegistrarMessage::Considered(imports) => {
                for import in imports {
                    state.consider(import, &myself).await;
                }
            }
        }
        Ok(())
    }

    /// A supervisor ended: its import is done, or somebody else's, or its lease was let go and the sweep finds it.
    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<RegistrarMessage>,
        event: SupervisionEvent,
        state: &mut RegistrarState,
    ) -> Result<(), ActorProcessingErr> {
        let ended = match event {
            SupervisionEvent::ActorTerminated(actor, ..) => actor.get_id(),
            SupervisionEvent::ActorFailed(actor, error) => {
                tracing::error!(%error, "a supervisor failed; its import is claimed again");
                actor.get_id()
            }
            _ => return Ok(()),
        };
        state.owned.remove(&ended);
        metrics().set_imports_owned(state.owned.len());
        state.room.send_replace(state.owned.len() < OWNED_AT_MOST);
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<RegistrarMessage>,
        state: &mut RegistrarState,
    ) -> Result<(), ActorProcessingErr> {
        state.stop.cancel();
        Ok(())
    }
}

impl RegistrarState {
    async fn consider(&mut self, import: ImportId, myself: &ActorRef<RegistrarMessage>) {
        if self.stop.is_cancelled()
            || self.owned.len() >= OWNED_AT_MOST
            || self.owned.values().any(|own| *own == import)
        {
            return;
        }
        failpoint::pass("claim.before");
        let record = match self.services.database.claim(import, &self.services.settings.name).await {
            Ok(Some(record)) => record,
            Ok(None) => return,
            Err(error) => {
                error.count();
                tracing::warn!(import_id = %import, %error, "import not claimed; the sweep tries again");
                return;
            }
        };
        failpoint::pass("claim.after");
        metrics().import_claimed();
        let arguments = ImportArguments { services: self.services.clone(), record, stop: self.stop.clone() };
        match Actor::spawn_linked(None, ImportActor, arguments, myself.get_cell()).await {
            Ok((actor, _)) => {
                self.owned.insert(actor.get_id(), import);
                metrics().set_imports_owned(self.owned.len());
                self.room.send_replace(self.owned.len() < OWNED_AT_MOST);
            }
            Err(error) => tracing::error!(import_id = %import, %error, "no supervisor; the lease runs out"),
        }
    }
}

/// Pulls import jobs while there is room. A job is acknowledged when it is handed over: from there on the database and the
/// sweep know of the import.
async fn pull_jobs(
    services: Services,
    stop: CancellationToken,
    mut room: tokio::sync::watch::Receiver<bool>,
    registrar: ActorRef<RegistrarMessage>,
) {
    loop {
        let pulled = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            pulled = async {
                // The sender lives as long as the actor that this task serves.
                let _ = room.wait_for(|room| *room).await;
                services.bus.pull_imports(OWNED_AT_MOST, PULL_WAIT).await
            } => pulled,
        };
        match pulled {
            Ok(deliveries) => {
                let imports = deliveries.iter().map(|Delivery { message, .. }| message.import).collect::<Vec<_>>();
                if !imports.is_empty() && registrar.cast(RegistrarMessage::Considered(imports)).is_err() {
                    return;
                }
                for Delivery { receipt, .. } in deliveries {
                    if let Err(error) = receipt.ack().await {
                        error.count();
                        tracing::debug!(%error, "import job not acknowledged; it comes again");
                    }
                }
            }
            Err(error) => {
                error.count();
                metrics().dependency_retry(error.dependency());
                tracing::warn!(%error, "no import jobs to be had; trying again");
                tokio::time::sleep(PULL_PAUSE).await;
            }
        }
    }
}
