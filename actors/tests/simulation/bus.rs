//! A bus that loses, repeats, reorders and delays.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use longshore_domain::ImportId;
use longshore_parse::ScannedBlock;
use longshore_storage::bus::{
    ACK_WAIT, Bus, BusError, ChunkJob, ChunkReport, Delivery, ImportJob, QueueDepth, Receipt, ScanCall, ScanJob,
    StorageEvent,
};
use longshore_telemetry::QueueName;
use rand::RngExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::world::{Link, Lost, Server, State};

/// A message on the bus.
struct Message<T> {
    id: u64,
    payload: T,
    /// Not delivered before.
    from: Instant,
    /// Whether somebody has it.
    delivered: bool,
}

/// A queue.
pub struct Queue<T> {
    messages: Vec<Message<T>>,
    next: u64,
    wiped: i128,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { messages: Vec::new(), next: 0, wiped: 0 }
    }
}

impl<T: Clone> Queue<T> {
    fn add(&mut self, payload: T, delay: Duration) {
        self.next += 1;
        let from = Instant::now() + delay;
        self.messages.push(Message { id: self.next, payload, from, delivered: false });
    }

    pub fn clear(&mut self) {
        self.messages.clear();
        self.wiped += 1;
    }

    fn depth(&self, queue: QueueName) -> QueueDepth {
        // What is late did not arrive yet.
        let here = self.messages.iter().filter(|message| message.delivered || message.from <= Instant::now());
        let (delivered, waiting): (Vec<_>, Vec<_>) = here.partition(|message| message.delivered);
        let (waiting, delivered) = (waiting.len() as u64, delivered.len() as u64);
        QueueDepth { queue, waiting, delivered, made: self.wiped }
    }

    fn postpone(&mut self, id: u64, delay: Duration) {
        if let Some(message) = self.messages.iter_mut().find(|message| message.id == id) {
            message.from = Instant::now() + delay;
        }
    }
}

/// Which queue of the bus a message is in.
pub trait Queued: Clone + Send + Sync + std::fmt::Debug + 'static {
    fn queue(state: &mut State) -> &mut Queue<Self>;
}

impl Queued for StorageEvent {
    fn queue(state: &mut State) -> &mut Queue<Self> {
        &mut state.events
    }
}

impl Queued for ImportJob {
    fn queue(state: &mut State) -> &mut Queue<Self> {
        &mut state.import_jobs
    }
}

impl Queued for ChunkJob {
    fn queue(state: &mut State) -> &mut Queue<Self> {
        &mut state.chunk_jobs
    }
}

/// Publishes a message, which the bus may lose, repeat and delay.
pub fn publish<T: Queued>(state: &mut State, payload: &T) {
    let weather = state.weather;
    if state.chance(weather.lost_message) {
        state.fault("messages lost");
        return;
    }
    let mut copies = 1;
    if state.chance(weather.repeated) {
        state.fault("messages repeated");
        copies = if state.random.random_bool(0.1) { 100 } else { state.random.random_range(2..5) };
    }
    for _ in 0..copies {
        let late = state.chance(weather.late);
        let delay = if late {
            state.fault("messages late");
            state.random.random_range(1_000..180_000)
        } else {
            state.random.random_range(0..10)
        };
        T::queue(state).add(payload.clone(), Duration::from_millis(delay));
    }
}

impl From<Lost> for BusError {
    fn from(lost: Lost) -> Self {
        Self { endpoint: "simulated".to_owned(), reason: lost.0.to_owned() }
    }
}

struct SimReceipt<T> {
    link: Link,
    id: u64,
    kind: std::marker::PhantomData<T>,
}

#[async_trait]
impl<T: Queued> Receipt for SimReceipt<T> {
    async fn ack(&self) -> Result<(), BusError> {
        let id = self.id;
        let remove = |state: &mut State| T::queue(state).messages.retain(|message| message.id != id);
        Ok(self.link.call(Server::Bus, "acks", remove).await?)
    }

    async fn hand_back(&self, delay: Duration) -> Result<(), BusError> {
        let postpone = |state: &mut State| T::queue(state).postpone(self.id, delay);
        Ok(self.link.call(Server::Bus, "hands back", postpone).await?)
    }

    async fn keep(&self) -> Result<(), BusError> {
        let postpone = |state: &mut State| T::queue(state).postpone(self.id, ACK_WAIT);
        Ok(self.link.call(Server::Bus, "keeps", postpone).await?)
    }
}

/// The bus as one process knows it.
pub struct SimBus(pub Link);

impl SimBus {
    async fn publish<T: Queued>(&self, payload: &T) -> Result<(), BusError> {
        let what = format!("publishes {payload:?}");
        Ok(self.0.call(Server::Bus, &what, |state| publish(state, payload)).await?)
    }

    async fn pull<T: Queued>(&self, most: usize, wait: Duration) -> Result<Vec<Delivery<T>>, BusError> {
        self.0.moment(Server::Bus).await?;
        let end = Instant::now() + wait;
        loop {
            let changed = self.0.world.changed.notified();
            let now = Instant::now();
            let (taken, next) = {
                let mut state = self.0.world.state();
                let queue = T::queue(&mut state);
                let mut due: Vec<usize> =
                    (0..queue.messages.len()).filter(|place| queue.messages[*place].from <= now).collect();
                let next = queue.messages.iter().map(|message| message.from).filter(|from| *from > now).min();
                // In any order.
                let mut taken = Vec::new();
                while taken.len() < most && !due.is_empty() {
                    let place = due.swap_remove(state.random.random_range(0..due.len()));
                    let message = &mut T::queue(&mut state).messages[place];
                    message.from = now + ACK_WAIT;
                    message.delivered = true;
                    taken.push((message.id, message.payload.clone()));
                }
                (taken, next)
            };
            if !taken.is_empty() {
                // Delivered to nobody, where the process dies now.
                self.0.moment(Server::Bus).await?;
                let delivery = |(id, message)| Delivery {
                    message,
                    receipt: Box::new(SimReceipt::<T> { link: self.0.clone(), id, kind: std::marker::PhantomData })
                        as Box<dyn Receipt>,
                };
                return Ok(taken.into_iter().map(delivery).collect());
            }
            if now >= end {
                return Ok(Vec::new());
            }
            let until = next.map_or(end, |next| next.min(end));
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep_until(until) => {}
            }
            self.0.awake().await;
        }
    }
}

#[async_trait]
impl Bus for SimBus {
    async fn prepare(&self) -> Result<(), BusError> {
        Ok(())
    }

    async fn check(&self) -> Result<(), BusError> {
        Ok(())
    }

    async fn depth(&self, queue: QueueName) -> Result<QueueDepth, BusError> {
        let depth = |state: &mut State| match queue {
            QueueName::Events => state.events.depth(queue),
            QueueName::Imports => state.import_jobs.depth(queue),
            QueueName::Chunks => state.chunk_jobs.depth(queue),
        };
        Ok(self.0.call(Server::Bus, "asks how full a queue is", depth).await?)
    }

    async fn publish_event(&self, event: &StorageEvent) -> Result<(), BusError> {
        self.publish(event).await
    }

    async fn publish_import(&self, job: &ImportJob) -> Result<(), BusError> {
        self.publish(job).await
    }

    async fn publish_chunk(&self, job: &ChunkJob) -> Result<(), BusError> {
        self.publish(job).await
    }

    async fn pull_events(&self, most: usize, wait: Duration) -> Result<Vec<Delivery<StorageEvent>>, BusError> {
        self.pull(most, wait).await
    }

    async fn pull_imports(&self, most: usize, wait: Duration) -> Result<Vec<Delivery<ImportJob>>, BusError> {
        self.pull(most, wait).await
    }

    async fn pull_chunks(&self, most: usize, wait: Duration) -> Result<Vec<Delivery<ChunkJob>>, BusError> {
        self.pull(most, wait).await
    }

    async fn report(&self, report: &ChunkReport) -> Result<(), BusError> {
        let tell = |state: &mut State| {
            let weather = state.weather;
            let times = if state.chance(weather.lost_message) {
                0
            } else if state.chance(weather.repeated) {
                3
            } else {
                1
            };
            let Some(listeners) = state.listeners.get_mut(&report.job.import) else { return };
            listeners.retain(|listener| (0..times).all(|_| listener.send(report.clone()).is_ok()));
        };
        Ok(self.0.call(Server::Bus, "reports", tell).await?)
    }

    async fn reports(&self, import: ImportId) -> Result<BoxStream<'static, ChunkReport>, BusError> {
        let (listener, reports) = mpsc::unbounded_channel();
        let listen = |state: &mut State| state.listeners.entry(import).or_default().push(listener);
        self.0.call(Server::Bus, "listens to reports", listen).await?;
        let link = self.0.clone();
        Ok(stream::unfold(reports, move |mut reports| {
            let link = link.clone();
            async move {
                let report = reports.recv().await?;
                link.awake().await;
                Some((report, reports))
            }
        })
        .boxed())
    }

    async fn ask_scan(&self, _: &ScanJob, _: Duration) -> Result<Option<Vec<ScannedBlock>>, BusError> {
        Ok(None)
    }

    async fn scan_calls(&self) -> Result<BoxStream<'static, ScanCall>, BusError> {
        Ok(stream::pending().boxed())
    }

    async fn changed(&self, _: ImportId) -> Result<(), BusError> {
        Ok(())
    }

    async fn changes(&self) -> Result<BoxStream<'static, ImportId>, BusError> {
        Ok(stream::pending().boxed())
    }
}
