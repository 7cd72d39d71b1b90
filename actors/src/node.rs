//! The root of a node's actors. It makes them, and makes anew whichever ends while the node runs.

use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio_util::sync::CancellationToken;

use crate::intake::IntakeActor;
use crate::pool::ChunkPoolActor;
use crate::ranges::RangesActor;
use crate::registrar::{RegistrarActor, RegistrarMessage};
use crate::services::{Running, Services};
use crate::sweep::SweepActor;

/// The pause before an actor that ended is made anew.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// How long a node that stops waits for its chunks to be finished. Shorter than their claims, which nobody renews behind a kill.
const FINISH_PATIENCE: Duration = Duration::from_secs(5);

/// How long it waits then for what is left to be handed back.
const HAND_BACK_PATIENCE: Duration = Duration::from_secs(3);

/// The actors of every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Registrar,
    Sweep,
    Intake,
    Pool,
    Ranges,
}

/// What the root tells itself.
#[derive(Debug)]
pub enum NodeMessage {
    /// The pause is over.
    Restart(RoleToRestart),
}

/// Which actor to make anew.
#[derive(Debug)]
pub struct RoleToRestart(Role);

/// The root.
pub struct NodeActor;

/// What it knows.
pub struct NodeState {
    services: Services,
    stop: CancellationToken,
    registrar: Option<ActorRef<RegistrarMessage>>,
    children: Vec<(ActorCell, Role)>,
}

impl Actor for NodeActor {
    type Msg = NodeMessage;
    type State = NodeState;
    type Arguments = (Services, CancellationToken);

    async fn pre_start(
        &self,
        myself: ActorRef<NodeMessage>,
        (services, stop): Self::Arguments,
    ) -> Result<NodeState, ActorProcessingErr> {
        let mut state = NodeState { services, stop, registrar: None, children: Vec::new() };
        for role in [Role::Registrar, Role::Sweep, Role::Intake, Role::Pool, Role::Ranges] {
            state.make(role, myself.get_cell()).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<NodeMessage>,
        NodeMessage::Restart(RoleToRestart(role)): NodeMessage,
        state: &mut NodeState,
    ) -> Result<(), ActorProcessingErr> {
        if !state.stop.is_cancelled() {
            state.make(role, myself.get_cell()).await?;
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<NodeMessage>,
        event: SupervisionEvent,
        state: &mut NodeState,
    ) -> Result<(), ActorProcessingErr> {
        let (actor, reason) = match event {
            SupervisionEvent::ActorTerminated(actor, _, reason) => (actor.get_id(), reason.unwrap_or_default()),
            SupervisionEvent::ActorFailed(actor, error) => (actor.get_id(), error.to_string()),
            _ => return Ok(()),
        };
        let Some(place) = state.children.iter().position(|(child, _)| child.get_id() == actor) else { return Ok(()) };
        let (_, role) = state.children.swap_remove(place);
        if !state.stop.is_cancelled() {
            tracing::error!(?role, reason, "an actor ended; it is made anew");
            myself.send_after(RESTART_PAUSE, move || NodeMessage::Restart(RoleToRestart(role)));
        }
        Ok(())
    }
}

impl NodeState {
    async fn make(&mut self, role: Role, myself: ActorCell) -> Result<(), ActorProcessingErr> {
        let context = (self.services.clone(), self.stop.clone());
        let cell = match role {
            Role::Registrar => {
                // Its own token: when it ends, so do the supervisors that it made.
                let context = (self.services.clone(), self.stop.child_token());
                let (actor, _) = Actor::spawn_linked(None, RegistrarActor, context, myself.clone()).await?;
                let cell = actor.get_cell();
                if self.registrar.replace(actor).is_some() {
                    self.stop_role(Role::Sweep);
                }
                cell
            }
            Role::Sweep => {
                let registrar = self.registrar.clone().ok_or("no registrar")?;
                let arguments = (self.services.clone(), registrar);
                Actor::spawn_linked(None, SweepActor, arguments, myself).await?.0.get_cell()
            }
            Role::Intake => Actor::spawn_linked(None, IntakeActor, context, myself).await?.0.get_cell(),
            Role::Pool => Actor::spawn_linked(None, ChunkPoolActor, context, myself).await?.0.get_cell(),
            Role::Ranges => Actor::spawn_linked(None, RangesActor, context, myself).await?.0.get_cell(),
        };
        self.children.push((cell, role));
        Ok(())
    }

    /// Ends an actor, so that it is made anew: the sweep, when the registrar that it tells is another one.
    fn stop_role(&self, role: Role) {
        for (actor, _) in self.children.iter().filter(|(_, known)| *known == role) {
            actor.stop(None);
        }
    }
}

/// A running node.
pub struct Node {
    root: ActorRef<NodeMessage>,
    ended: ractor::concurrency::JoinHandle<()>,
    running: Running,
    stop: CancellationToken,
}

impl Node {
    /// Starts the actors.
    ///
    /// # Errors
    /// [`SpawnErr`] where an actor did not start.
    pub async fn start(services: Services) -> Result<Self, SpawnErr> {
        let stop = CancellationToken::new();
        let running = services.running.clone();
        let (root, ended) = Actor::spawn(None, NodeActor, (services, stop.clone())).await?;
        Ok(Self { root, ended, running, stop })
    }

    /// Stops taking work. Owned imports are let go at once, chunks are finished, or handed back where that takes too long: other
    /// nodes go on without waiting for a lease to run out.
    pub async fn stop(self) {
        self.stop.cancel();
        let Running { tasks, abandon } = &self.running;
        tasks.close();
        if tokio::time::timeout(FINISH_PATIENCE, tasks.wait()).await.is_err() {
            tracing::info!(running = tasks.len(), "handing back what is not finished");
            abandon.cancel();
            if tokio::time::timeout(HAND_BACK_PATIENCE, tasks.wait()).await.is_err() {
                tracing::warn!("the node did not stop in time; its leases run out by themselves");
            }
        }
        self.root.stop(None);
        if tokio::time::timeout(HAND_BACK_PATIENCE, self.ended).await.is_err() {
            tracing::warn!("the node's actors did not end in time");
        }
    }
}
