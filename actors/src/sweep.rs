//! The sweep: finds by itself what no message told of. It takes no input and may run on every node at once: every start and
//! every claim is a compare-and-set.
//!
//! Every second: imports whose owner is gone. Every `sweep_interval`: awaiting imports whose object is there, and those
//! that expired; decoded text that nobody needs any more.

use std::time::Duration;

use futures::{StreamExt, stream};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::Instrument as _;

use longshore_domain::{ImportId, ImportState, Trigger};
use longshore_storage::database::{AwaitingImport, DatabaseError};
use longshore_storage::failure::Failure as _;
use longshore_storage::start::{StartOutcome, start_import};
use longshore_telemetry::{metrics, trace};

use crate::registrar::RegistrarMessage;
use crate::services::Services;
use crate::status::tell_watchers;
use crate::text;

/// How often imports without an owner are looked for.
const OWNERLESS_EVERY: Duration = Duration::from_secs(1);
/// Imports offered to the registrar at once.
const OWNERLESS_AT_ONCE: u64 = 32;
/// Awaiting imports read at once.
const AWAITING_PAGE: u64 = 500;
/// Objects looked at at once.
const HEADS_AT_ONCE: usize = 8;
/// An import expires this long after its last URL ended, in milliseconds.
const EXPIRY_GRACE_MS: i64 = 24 * 3600 * 1000;

/// Commands to the sweep, sent by its own timers.
#[derive(Debug)]
pub enum SweepMessage {
    /// Look for imports without an owner.
    FindOwnerless,
    /// Look for objects of awaiting imports.
    FindUploads {
        /// Up to this import only; `None`: of all.
        last: Option<ImportId>,
    },
}

/// The sweep.
pub struct SweepActor;

/// What it works with.
pub struct SweepState {
    services: Services,
    registrar: ActorRef<RegistrarMessage>,
}

impl Actor for SweepActor {
    type Msg = SweepMessage;
    type State = SweepState;
    type Arguments = (Services, ActorRef<RegistrarMessage>);

    async fn pre_start(
        &self,
        myself: ActorRef<SweepMessage>,
        (services, registrar): Self::Arguments,
    ) -> Result<SweepState, ActorProcessingErr> {
        // What an earlier process left behind is looked for at once; of what comes from now on, an event is on its way.
        myself.cast(SweepMessage::FindOwnerless)?;
        let last = match services.database.newest_awaiting().await {
            Ok(newest) => Some(newest.unwrap_or(ImportId(uuid::Uuid::nil()))),
            Err(error) => {
                error.count();
                tracing::warn!(%error, "the first sweep looks at all awaiting imports: the newest one was not found");
                None
            }
        };
        myself.cast(SweepMessage::FindUploads { last })?;
        Ok(SweepState { services, registrar })
    }

    async fn handle(
        &self,
        myself: ActorRef<SweepMessage>,
        message: SweepMessage,
        state: &mut SweepState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SweepMessage::FindOwnerless => {
                state.find_ownerless().await?;
                myself.send_after(OWNERLESS_EVERY, || SweepMessage::FindOwnerless);
            }
            SweepMessage::FindUploads { last } => {
                // In a task of its own: a storage that is slow must not keep ownerless imports waiting.
                let services = state.services.clone();
                tokio::spawn(async move {
                    if let Err(error) = find_uploads(&services, last).await {
                        error.count();
                        tracing::warn!(%error, "the sweep of awaiting imports was cut short");
                    }
                    text::remove_or_leave(&services, None).await;
                    myself.send_after(services.settings.sweep_interval, || SweepMessage::FindUploads { last: None });
                });
            }
        }
        Ok(())
    }
}

impl SweepState {
    async fn find_ownerless(&self) -> Result<(), ActorProcessingErr> {
        match self.services.database.ownerless(OWNERLESS_AT_ONCE).await {
            Ok(imports) if imports.is_empty() => {}
            Ok(imports) => self.registrar.cast(RegistrarMessage::Considered(imports))?,
            Err(error) => {
                error.count();
                tracing::warn!(%error, "imports without an owner were not looked for");
            }
        }
        Ok(())
    }
}

async fn find_uploads(services: &Services, last: Option<ImportId>) -> Result<(), DatabaseError> {
    let mut after = None;
    loop {
        let page = services.database.awaiting(after, last, AWAITING_PAGE).await?;
        let Some(end) = page.last() else { return Ok(()) };
        after = Some(end.id);
        stream::iter(&page)
            .for_each_concurrent(HEADS_AT_ONCE, |import| {
                let span = tracing::info_span!("sweep", import_id = %import.id);
                trace::join(&span, import.id);
                look(services, import).instrument(span)
            })
            .await;
    }
}

/// Starts an import whose object is there; expires one whose time is over, behind this last look.
async fn look(services: &Services, import: &AwaitingImport) {
    let Services { database, objects, bus, .. } = services;
    match start_import(&**database, &**objects, &**bus, import.id, Trigger::Sweep).await {
        Ok(StartOutcome::NoObject) => match database.expire(import.id, EXPIRY_GRACE_MS).await {
            Ok(true) => {
                metrics().import_ended(ImportState::Expired, None);
                tracing::info!(import_id = %import.id, "import expired");
                tell_watchers(&**bus, import.id).await;
            }
            Ok(false) => {}
            Err(error) => {
                error.count();
                tracing::warn!(import_id = %import.id, %error, "import not expired; next time");
            }
        },
        Ok(_) => {}
        Err(error) => {
            error.count();
            tracing::warn!(import_id = %import.id, %error, "awaiting import not looked at; next time");
        }
    }
}
