//! The supervisor of one import: an actor for as long as this node owns it. It keeps the lease, runs the owner's task, and
//! ends with it. Made by the registrar.

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use longshore_domain::{ImportState, Problem, ProblemKind};
use longshore_storage::database::{ImportRecord, RENEW_EVERY};
use longshore_storage::failure::Failure as _;
use longshore_telemetry::{metrics, trace};

use crate::owner::Owner;
use crate::services::Services;

/// Why an import failed whose owner panicked.
const PANICKED: &str = "the program panicked over this import, which is a defect of it: the log of the process that owned it says where; \
                        retry the import, and report it";

/// What the supervisor's own tasks tell it.
#[derive(Debug)]
pub enum ImportMessage {
    /// The owner's task came to its end.
    Ended,
}

/// The supervisor.
pub struct ImportActor;

/// What it begins with.
pub struct ImportArguments {
    /// The node's dependencies.
    pub services: Services,
    /// The claimed import.
    pub record: ImportRecord,
    /// This node's stop.
    pub stop: CancellationToken,
}

/// What it keeps.
pub struct ImportSupervision {
    stop: CancellationToken,
}

impl Actor for ImportActor {
    type Msg = ImportMessage;
    type State = ImportSupervision;
    type Arguments = ImportArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ImportMessage>,
        arguments: ImportArguments,
    ) -> Result<ImportSupervision, ActorProcessingErr> {
        let ImportArguments { services, record, stop } = arguments;
        let stop = stop.child_token();
        let span = tracing::info_span!("import", import_id = %record.id, epoch = record.epoch.0);
        trace::join(&span, record.id);
        tokio::spawn(keep_lease(services.clone(), record.clone(), stop.clone()).instrument(span.clone()));
        let (id, attempt, epoch) = (record.id, record.attempt, record.epoch);
        let database = services.database.clone();
        let tasks = services.running.tasks.clone();
        let task = tokio::spawn(Owner::new(services, record, stop.clone()).run().instrument(span));
        tasks.spawn(async move {
            if let Err(error) = task.await {
                tracing::error!(import_id = %id, %error, "the owner of this import panicked");
                let working = [ImportState::Planning, ImportState::Running];
                let problem = Problem::new(ProblemKind::Internal, PANICKED);
                // The next owner would panic as well. It comes when the lease has run out, and ends the import.
                if let Err(error) = database.store_error(id, attempt, epoch, &working, &problem).await {
                    error.count();
                    tracing::warn!(import_id = %id, %error, "the reason was not stored");
                }
            } else if let Err(error) = database.release(id, epoch).await {
                // Done or not: whoever is next need not wait for the lease to run out.
                error.count();
                tracing::debug!(import_id = %id, %error, "lease not released; it runs out");
            }
            // The actor may be gone with its node.
            let _ = myself.cast(ImportMessage::Ended);
        });
        Ok(ImportSupervision { stop })
    }

    async fn handle(
        &self,
        myself: ActorRef<ImportMessage>,
        message: ImportMessage,
        _: &mut ImportSupervision,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ImportMessage::Ended => myself.stop(None),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<ImportMessage>,
        state: &mut ImportSupervision,
    ) -> Result<(), ActorProcessingErr> {
        state.stop.cancel();
        Ok(())
    }
}

/// Renews the lease until it is lost. A database that is away does not lose it: what counts is whether the next renewal finds
/// the same epoch, and the fence stands behind both.
async fn keep_lease(services: Services, record: ImportRecord, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RENEW_EVERY) => {}
        }
        match services.database.renew(record.id, record.epoch).await {
            Ok(Some(_)) => {}
            Ok(None) => {
                metrics().lease_lost();
                tracing::warn!("the lease was lost");
                stop.cancel();
                return;
            }
            Err(error) => {
                error.count();
                tracing::warn!(%error, "the lease was not renewed; trying again");
            }
        }
    }
}
