//! The chunk workers of a node: a ractor factory behind a puller that asks the bus only for free capacity, so that no job
//! waits in a mailbox while another node idles.
//!
//! The puller holds one permit a worker. A permit travels with its job and comes back when the job is dropped: done, or lost
//! with a worker that died.

use std::sync::Arc;
use std::time::Duration;

use ractor::factory::{
    Factory, FactoryArguments, FactoryMessage, Job, JobOptions, Worker, WorkerId, queues, routing, worker_builder,
};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use longshore_storage::bus::{ChunkJob, Delivery, Receipt};
use longshore_storage::failure::Failure as _;
use longshore_telemetry::{metrics, trace};

use crate::chunk::work_on_chunk;
use crate::patience::Patience;
use crate::services::{Running, Services};

/// How long a pull waits for a job.
const PULL_WAIT: Duration = Duration::from_secs(5);
/// The pause after a pull that failed.
const PULL_PAUSE: Duration = Duration::from_millis(500);

/// A job on its way to a worker.
struct ChunkWork {
    job: ChunkJob,
    receipt: Box<dyn Receipt>,
    _permit: OwnedSemaphorePermit,
}

/// A worker of the factory. It has no state: everything is in the databases.
struct ChunkWorker;

impl Worker for ChunkWorker {
    type Key = ();
    type Message = ChunkWork;
    type Arguments = Services;
    type State = Services;

    async fn pre_start(
        &self,
        _worker: WorkerId,
        _factory: &ActorRef<FactoryMessage<(), ChunkWork>>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        // No I/O: a failure here would end the factory.
        Ok(arguments)
    }

    async fn handle(
        &self,
        _worker: WorkerId,
        _factory: &ActorRef<FactoryMessage<(), ChunkWork>>,
        Job { key, msg, .. }: Job<(), ChunkWork>,
        services: &mut Services,
    ) -> Result<(), ActorProcessingErr> {
        let span =
            tracing::info_span!("chunk", import_id = %msg.job.import, chunk = msg.job.chunk.0, epoch = msg.job.epoch.0);
        trace::join(&span, msg.job.import);
        let Running { tasks, abandon } = &services.running;
        let patience = Patience::new(abandon.clone(), services.settings.patience);
        tasks.track_future(work_on_chunk(services, msg.job, &*msg.receipt, &patience).instrument(span)).await;
        Ok(key)
    }
}

/// Commands to the puller.
#[derive(Debug)]
pub enum PoolMessage {
    /// Pull jobs for the capacity that is free.
    Pull,
}

/// The puller, which supervises the factory.
pub struct ChunkPoolActor;

/// What the puller knows.
pub struct ChunkPoolState {
    services: Services,
    stop: CancellationToken,
    capacity: Arc<Semaphore>,
    factory: ActorRef<FactoryMessage<(), ChunkWork>>,
}

impl Actor for ChunkPoolActor {
    type Msg = PoolMessage;
    type State = ChunkPoolState;
    type Arguments = (Services, CancellationToken);

    async fn pre_start(
        &self,
        myself: ActorRef<PoolMessage>,
        (services, stop): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let workers = services.settings.workers.get();
        metrics().set_chunk_workers(workers);
        let context = services.clone();
        let arguments = FactoryArguments::builder()
            .worker_builder(Box::new(worker_builder(move |_worker| (ChunkWorker, context.clone()))))
            .queue(queues::DefaultQueue::default())
            .router(routing::QueuerRouting::default())
            .num_initial_workers(workers)
            .build();
        let definition = Factory::<
            (),
            ChunkWork,
            Services,
            ChunkWorker,
            routing::QueuerRouting<(), ChunkWork>,
            queues::DefaultQueue<(), ChunkWork>,
        >::default();
        let (factory, _) = Actor::spawn_linked(None, definition, arguments, myself.get_cell()).await?;
        Ok(ChunkPoolState { services, stop, capacity: Arc::new(Semaphore::new(workers)), factory })
    }

    async fn post_start(&self, myself: ActorRef<PoolMessage>, _: &mut Self::State) -> Result<(), ActorProcessingErr> {
        myself.cast(PoolMessage::Pull)?;
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<PoolMessage>,
        message: PoolMessage,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PoolMessage::Pull => state.pull().await?,
        }
        if !state.stop.is_cancelled() {
            myself.cast(PoolMessage::Pull)?;
        }
        Ok(())
    }

    /// The factory replaces its own workers. Should it end itself, this actor ends with it, and the node makes both anew.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<PoolMessage>,
        event: SupervisionEvent,
        _: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorTerminated(..) | SupervisionEvent::ActorFailed(..) = event {
            myself.stop(Some("the worker factory ended".to_owned()));
        }
        Ok(())
    }
}

impl ChunkPoolState {
    /// Waits for a free worker, then for jobs, at most as many as workers are free.
    async fn pull(&self) -> Result<(), ActorProcessingErr> {
        let first = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Ok(()),
            permit = Arc::clone(&self.capacity).acquire_owned() => permit?,
        };
        let mut permits = vec![first];
        while let Ok(permit) = Arc::clone(&self.capacity).try_acquire_owned() {
            permits.push(permit);
        }
        let pulled = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Ok(()),
            pulled = self.services.bus.pull_chunks(permits.len(), PULL_WAIT) => pulled,
        };
        match pulled {
            Ok(deliveries) => {
                for (Delivery { message, receipt }, permit) in deliveries.into_iter().zip(permits) {
                    self.dispatch(ChunkWork { job: message, receipt, _permit: permit })?;
                }
            }
            Err(error) => {
                error.count();
                metrics().dependency_retry(error.dependency());
                tracing::warn!(%error, "no chunk jobs to be had; trying again");
                tokio::time::sleep(PULL_PAUSE).await;
            }
        }
        Ok(())
    }

    fn dispatch(&self, work: ChunkWork) -> Result<(), ActorProcessingErr> {
        let job = Job { key: (), msg: work, options: JobOptions::default(), accepted: None };
        self.factory.cast(FactoryMessage::Dispatch(job)).map_err(|_| "the worker factory is gone")?;
        Ok(())
    }
}
