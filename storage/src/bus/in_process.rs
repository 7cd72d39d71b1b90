//! The bus inside one process: three queues with receipts, and reports to whoever listens.
//!
//! Nothing survives the process; the database does, and the sweep finds what was in flight.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use longshore_domain::ImportId;
use longshore_parse::ScannedBlock;
use longshore_telemetry::QueueName;

use super::{
    ACK_WAIT, Bus, BusError, ChunkJob, ChunkReport, Delivery, ImportJob, QueueDepth, Receipt, ScanCall, ScanJob,
    StorageEvent,
};

/// Messages that one queue holds, delivered ones included. A full queue refuses: the database knows what is to be done.
const QUEUE_BOUND: usize = 65_536;
/// Reports, or changes, that a slow listener may be behind.
const REPORTS_BOUND: usize = 4_096;
const ENDPOINT: &str = "in-process";

/// A bus for one process.
pub struct InProcessBus {
    events: Arc<Queue<StorageEvent>>,
    imports: Arc<Queue<ImportJob>>,
    chunks: Arc<Queue<ChunkJob>>,
    reports: broadcast::Sender<ChunkReport>,
    changes: broadcast::Sender<ImportId>,
}

impl InProcessBus {
    /// A bus with the usual ack wait.
    #[must_use]
    pub fn new() -> Self {
        Self::with_ack_wait(ACK_WAIT)
    }

    /// A bus that delivers again after `ack_wait`, for tests.
    #[must_use]
    pub fn with_ack_wait(ack_wait: Duration) -> Self {
        Self {
            events: Arc::new(Queue::new(ack_wait)),
            imports: Arc::new(Queue::new(ack_wait)),
            chunks: Arc::new(Queue::new(ack_wait)),
            reports: broadcast::Sender::new(REPORTS_BOUND),
            changes: broadcast::Sender::new(REPORTS_BOUND),
        }
    }
}

impl Default for InProcessBus {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Bus for InProcessBus {
    async fn prepare(&self) -> Result<(), BusError> {
        Ok(())
    }

    async fn check(&self) -> Result<(), BusError> {
        Ok(())
    }

    async fn depth(&self, queue: QueueName) -> Result<QueueDepth, BusError> {
        Ok(match queue {
            QueueName::Events => self.events.depth(queue),
            QueueName::Imports => self.imports.depth(queue),
            QueueName::Chunks => self.chunks.depth(queue),
        })
    }

    async fn publish_event(&self, event: &StorageEvent) -> Result<(), BusError> {
        self.events.publish(event.clone())
    }

    async fn publish_import(&self, job: &ImportJob) -> Result<(), BusError> {
        self.imports.publish(*job)
    }

    async fn publish_chunk(&self, job: &ChunkJob) -> Result<(), BusError> {
        self.chunks.publish(*job)
    }

    async fn pull_events(&self, most: usize, wait: Duration) -> Result<Vec<Delivery<StorageEvent>>, BusError> {
        Ok(self.events.pull(most, wait).await)
    }

    async fn pull_imports(&self, most: usize, wait: Duration) -> Result<Vec<Delivery<ImportJob>>, BusError> {
        Ok(self.imports.pull(most, wait).await)
    }

    async fn pull_chunks(&self, most: usize, wait: Duration) -> Result<Vec<Delivery<ChunkJob>>, BusError> {
        Ok(self.chunks.pull(most, wait).await)
    }

    async fn report(&self, report: &ChunkReport) -> Result<(), BusError> {
        // An error means that nobody listens.
        let _ = self.reports.send(report.clone());
        Ok(())
    }

    async fn reports(&self, import: ImportId) -> Result<BoxStream<'static, ChunkReport>, BusError> {
        let reports = listen(self.reports.subscribe());
        Ok(reports.filter(move |report| std::future::ready(report.job.import == import)).boxed())
    }

    /// Who asks would be asked: one process scans by itself.
    async fn ask_scan(&self, _job: &ScanJob, _wait: Duration) -> Result<Option<Vec<ScannedBlock>>, BusError> {
        Ok(None)
    }

    async fn scan_calls(&self) -> Result<BoxStream<'static, ScanCall>, BusError> {
        Ok(stream::pending().boxed())
    }

    async fn changed(&self, import: ImportId) -> Result<(), BusError> {
        // An error means that nobody listens.
        let _ = self.changes.send(import);
        Ok(())
    }

    async fn changes(&self) -> Result<BoxStream<'static, ImportId>, BusError> {
        Ok(listen(self.changes.subscribe()).boxed())
    }
}

/// What is broadcast from now on; a listener that is too slow loses the oldest.
fn listen<T: Clone + Send + 'static>(listener: broadcast::Receiver<T>) -> impl Stream<Item = T> + Send + 'static {
    stream::unfold(listener, |mut listener| async move {
        loop {
            match listener.recv().await {
                Ok(message) => return Some((message, listener)),
                Err(RecvError::Lagged(lost)) => debug!(lost, "a slow listener lost messages"),
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

struct Queue<T> {
    ack_wait: Duration,
    state: Mutex<State<T>>,
    /// Something became ready, or will at another time than was known.
    changed: Notify,
}

struct State<T> {
    next: u64,
    ready: VecDeque<T>,
    /// Delivered and not answered, by the number of the delivery.
    delivered: HashMap<u64, T>,
    /// When deliveries run out.
    deadlines: BTreeMap<(Instant, u64), ()>,
    /// Their deadline, to find it again.
    deadline_of: HashMap<u64, Instant>,
    /// Handed back, by when they are wanted again.
    delayed: BTreeMap<(Instant, u64), T>,
}

impl<T> State<T> {
    fn new() -> Self {
        Self {
            next: 0,
            ready: VecDeque::new(),
            delivered: HashMap::new(),
            deadlines: BTreeMap::new(),
            deadline_of: HashMap::new(),
            delayed: BTreeMap::new(),
        }
    }

    fn len(&self) -> usize {
        self.ready.len() + self.delivered.len() + self.delayed.len()
    }

    /// Moves what is due to the ready ones.
    fn advance(&mut self, now: Instant) {
        while let Some(entry) = self.deadlines.first_entry() {
            let (deadline, delivery) = *entry.key();
            if deadline > now {
                break;
            }
            entry.remove();
            self.deadline_of.remove(&delivery);
            self.ready.extend(self.delivered.remove(&delivery));
        }
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            self.ready.push_back(entry.remove());
        }
    }

    /// When something becomes ready by itself.
    fn next_due(&self) -> Option<Instant> {
        let deadline = self.deadlines.first_key_value().map(|((due, _), ())| *due);
        let delayed = self.delayed.first_key_value().map(|((due, _), _)| *due);
        deadline.into_iter().chain(delayed).min()
    }

    fn set_deadline(&mut self, delivery: u64, deadline: Instant) {
        if let Some(old) = self.deadline_of.insert(delivery, deadline) {
            self.deadlines.remove(&(old, delivery));
        }
        self.deadlines.insert((deadline, delivery), ());
    }

    /// Takes an unanswered delivery; `None` where it was answered or ran out.
    fn take(&mut self, delivery: u64) -> Option<T> {
        let message = self.delivered.remove(&delivery)?;
        if let Some(deadline) = self.deadline_of.remove(&delivery) {
            self.deadlines.remove(&(deadline, delivery));
        }
        Some(message)
    }
}

impl<T: Clone + Send + 'static> Queue<T> {
    fn new(ack_wait: Duration) -> Self {
        Self { ack_wait, state: Mutex::new(State::new()), changed: Notify::new() }
    }

    /// No code that can panic runs under the lock, so a poisoned one is whole.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, message: T) -> Result<(), BusError> {
        {
            let mut state = self.lock();
            if state.len() >= QUEUE_BOUND {
                let reason = format!("{QUEUE_BOUND} messages are waiting already");
                return Err(BusError { endpoint: ENDPOINT.to_owned(), reason });
            }
            state.ready.push_back(message);
        }
        self.changed.notify_waiters();
        Ok(())
    }

    fn depth(&self, queue: QueueName) -> QueueDepth {
        let mut state = self.lock();
        // Deliveries that ran out wait again.
        state.advance(Instant::now());
        QueueDepth {
            queue,
            waiting: state.ready.len() as u64,
            delivered: (state.delivered.len() + state.delayed.len()) as u64,
            made: 0,
        }
    }

    async fn pull(self: &Arc<Self>, most: usize, wait: Duration) -> Vec<Delivery<T>> {
        let end = Instant::now() + wait;
        if most == 0 {
            return Vec::new();
        }
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let (deliveries, due) = self.take_ready(most);
            if !deliveries.is_empty() {
                // The others have new deadlines to wait for.
                self.changed.notify_waiters();
                return deliveries;
            }
            if Instant::now() >= end {
                return deliveries;
            }
            tokio::select! {
                () = &mut changed => {}
                () = sleep_until(due.map_or(end, |due| due.min(end))) => {}
            }
        }
    }

    fn take_ready(self: &Arc<Self>, most: usize) -> (Vec<Delivery<T>>, Option<Instant>) {
        let now = Instant::now();
        let mut state = self.lock();
        state.advance(now);
        let count = most.min(state.ready.len());
        let taken: Vec<T> = state.ready.drain(..count).collect();
        let deliveries = taken.into_iter().map(|message| {
            let delivery = state.next;
            state.next += 1;
            state.delivered.insert(delivery, message.clone());
            state.set_deadline(delivery, now + self.ack_wait);
            let receipt = QueueReceipt { queue: Arc::clone(self), delivery };
            Delivery { message, receipt: Box::new(receipt) as Box<dyn Receipt> }
        });
        let deliveries = deliveries.collect();
        (deliveries, state.next_due())
    }
}

/// An answer for one delivery. One that ran out answers nothing any more: its message is somebody else's.
struct QueueReceipt<T> {
    queue: Arc<Queue<T>>,
    delivery: u64,
}

#[async_trait]
impl<T: Clone + Send + 'static> Receipt for QueueReceipt<T> {
    async fn ack(&self) -> Result<(), BusError> {
        self.queue.lock().take(self.delivery);
        Ok(())
    }

    async fn hand_back(&self, delay: Duration) -> Result<(), BusError> {
        {
            let mut state = self.queue.lock();
            if let Some(message) = state.take(self.delivery) {
                state.delayed.insert((Instant::now() + delay, self.delivery), message);
            }
        }
        self.queue.changed.notify_waiters();
        Ok(())
    }

    async fn keep(&self) -> Result<(), BusError> {
        let mut state = self.queue.lock();
        if state.delivered.contains_key(&self.delivery) {
            state.set_deadline(self.delivery, Instant::now() + self.queue.ack_wait);
        }
        Ok(())
    }
}
