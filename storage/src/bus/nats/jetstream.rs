//! Streams and consumers: made where they are missing, published to, never changed.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::{CreateStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode, context::ContextBuilder};
use bytes::Bytes;
use tokio::sync::watch;
use tracing::info;

use super::{CALL_TIMEOUT, NatsConfig};
use crate::bus::{BusError, QueueDepth};
use longshore_telemetry::QueueName;

/// How long events are kept. The sweep has found their objects long before.
const EVENTS_AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// What a stream may take of the server's disk; JetStream sets it aside, so it is modest: 128 MiB are 100,000 events.
const EVENTS_BYTES: i64 = 128 << 20;
/// 64 MiB are 300,000 jobs; a full stream refuses, and the database knows what is to be done.
const JOBS_BYTES: i64 = 64 << 20;
/// Deliveries without an answer, of all nodes together. Jobs that were handed back count until they are delivered again,
/// so JetStream's own 1,000 could stand still with idle workers beside it. What bounds work is that nodes pull only
/// what they have capacity for.
const MAX_ACK_PENDING: i64 = 50_000;
/// Pulls that may wait at once, of all nodes together.
const MAX_WAITING: i64 = 4_096;

/// The three streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    Events,
    Imports,
    Chunks,
}

impl Queue {
    pub(super) const ALL: [Self; 3] = [Self::Events, Self::Imports, Self::Chunks];

    /// For logs, and the last part of the stream's name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Events => "EVENTS",
            Self::Imports => "IMPORTS",
            Self::Chunks => "CHUNKS",
        }
    }

    const fn consumer(self) -> &'static str {
        match self {
            Self::Events => "intake",
            Self::Imports => "supervisors",
            Self::Chunks => "workers",
        }
    }
}

/// Why a call did not work.
pub(super) enum Fault {
    /// The stream or its consumer is not there: make it and try again.
    Missing(String),
    /// Anything else.
    Other(String),
}

impl Fault {
    pub(super) fn reason(self) -> String {
        match self {
            Self::Missing(reason) | Self::Other(reason) => reason,
        }
    }
}

/// JetStream under our names.
pub(super) struct JetStream {
    pub(super) client: Client,
    pub(super) context: Context,
    /// Counts connections, so that a pull that waits learns that its request is lost.
    pub(super) reconnected: watch::Receiver<u64>,
    endpoint: Arc<str>,
    prefix: String,
    events_subject: String,
    ack_wait: Duration,
    /// The stream that has the events' subject: somebody may have made one under another name.
    events_stream: RwLock<String>,
}

impl JetStream {
    pub(super) fn new(
        client: Client,
        endpoint: Arc<str>,
        reconnected: watch::Receiver<u64>,
        config: &NatsConfig,
    ) -> Self {
        let context = ContextBuilder::new().timeout(CALL_TIMEOUT).build(client.clone());
        Self {
            client,
            context,
            reconnected,
            endpoint,
            prefix: config.prefix.clone(),
            events_subject: config.events_subject.clone(),
            ack_wait: config.ack_wait,
            events_stream: RwLock::new(stream_name(&config.prefix, Queue::Events)),
        }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(super) fn stream(&self, queue: Queue) -> String {
        match queue {
            Queue::Events => self.events_stream.read().unwrap_or_else(PoisonError::into_inner).clone(),
            queue => stream_name(&self.prefix, queue),
        }
    }

    pub(super) fn consumer(&self, queue: Queue) -> String {
        format!("{}-{}", self.prefix.replace(['.', ' '], "_"), queue.consumer())
    }

    pub(super) fn subject(&self, queue: Queue) -> String {
        match queue {
            Queue::Events => self.events_subject.clone(),
            Queue::Imports => format!("{}.jobs.import", self.prefix),
            Queue::Chunks => format!("{}.jobs.chunk", self.prefix),
        }
    }

    /// Whether JetStream answers.
    pub(super) async fn probe(&self) -> Result<(), BusError> {
        match self.context.query_account().await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.error(format!("JetStream does not answer: {error}; is it enabled there?"))),
        }
    }

    /// Makes the streams and consumers that are missing.
    pub(super) async fn prepare(&self) -> Result<(), BusError> {
        for queue in Queue::ALL {
            self.prepare_one(queue).await?;
        }
        Ok(())
    }

    async fn prepare_one(&self, queue: Queue) -> Result<(), BusError> {
        let config = self.stream_config(queue);
        let name = config.name.clone();
        let stream = match self.context.get_or_create_stream(config.clone()).await {
            Ok(stream) => stream,
            Err(error) if queue == Queue::Events && is(error.kind(), ErrorCode::STREAM_SUBJECT_OVERLAP) => {
                self.adopt_events_stream().await?
            }
            // Another node was faster, with a configuration of its own.
            Err(error) if is(error.kind(), ErrorCode::STREAM_NAME_EXIST) => {
                self.context.get_stream(&name).await.map_err(|error| self.not_made(&name, &error))?
            }
            Err(error) => return Err(self.not_made(&name, &error)),
        };
        let consumer = self.consumer(queue);
        let made = stream.get_or_create_consumer(&consumer, self.consumer_config(queue)).await;
        if let Err(error) = made {
            // Likewise.
            if stream.get_consumer::<pull::Config>(&consumer).await.is_err() {
                return Err(self.not_made(&consumer, &error));
            }
        }
        Ok(())
    }

    async fn adopt_events_stream(&self) -> Result<stream::Stream, BusError> {
        let found = self.context.stream_by_subject(self.events_subject.clone()).await;
        let name = found.map_err(|error| self.not_made(&self.events_subject, &error))?;
        let stream = self.context.get_stream(&name).await.map_err(|error| self.not_made(&name, &error))?;
        info!(stream = name, subject = self.events_subject, "taking storage events from a stream that was there");
        *self.events_stream.write().unwrap_or_else(PoisonError::into_inner) = name;
        Ok(stream)
    }

    pub(super) fn stream_config(&self, queue: Queue) -> stream::Config {
        let jobs = queue != Queue::Events;
        stream::Config {
            name: stream_name(&self.prefix, queue),
            subjects: vec![self.subject(queue)],
            retention: if jobs { RetentionPolicy::WorkQueue } else { RetentionPolicy::Limits },
            discard: if jobs { DiscardPolicy::New } else { DiscardPolicy::Old },
            max_age: if jobs { Duration::ZERO } else { EVENTS_AGE },
            max_bytes: if jobs { JOBS_BYTES } else { EVENTS_BYTES },
            storage: StorageType::File,
            ..Default::default()
        }
    }

    pub(super) fn consumer_config(&self, queue: Queue) -> pull::Config {
        pull::Config {
            durable_name: Some(self.consumer(queue)),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.ack_wait,
            max_deliver: -1,
            max_ack_pending: MAX_ACK_PENDING,
            max_waiting: MAX_WAITING,
            ..Default::default()
        }
    }

    /// Publishes, and waits until the stream has it.
    pub(super) async fn publish(&self, queue: Queue, body: Bytes) -> Result<(), Fault> {
        let fault = |error: async_nats::jetstream::context::PublishError| {
            let reason = format!("{} took no message: {error}", self.stream(queue));
            if error.kind() == PublishErrorKind::StreamNotFound { Fault::Missing(reason) } else { Fault::Other(reason) }
        };
        let acknowledged = self.context.publish(self.subject(queue), body).await.map_err(fault)?;
        acknowledged.await.map_err(fault)?;
        Ok(())
    }

    /// How full a queue is, as its consumer sees it.
    pub(super) async fn depth(&self, name: QueueName) -> Result<QueueDepth, BusError> {
        let queue = match name {
            QueueName::Events => Queue::Events,
            QueueName::Imports => Queue::Imports,
            QueueName::Chunks => Queue::Chunks,
        };
        let (consumer, stream) = (self.consumer(queue), self.stream(queue));
        let found = self.context.get_consumer_from_stream::<pull::Config, _, _>(&consumer, &stream).await;
        let found = found.map_err(|error| self.error(format!("{stream} tells nothing of {consumer}: {error}")))?;
        let info = found.cached_info();
        let (waiting, delivered) = (info.num_pending, info.num_ack_pending as u64);
        Ok(QueueDepth { queue: name, waiting, delivered, made: info.created.unix_timestamp_nanos() })
    }

    fn not_made(&self, name: &str, error: &dyn std::fmt::Display) -> BusError {
        self.error(format!(
            "{name} cannot be made: {error}; is NATS running there, with JetStream enabled, and may this user make it?"
        ))
    }

    fn error(&self, reason: String) -> BusError {
        BusError { endpoint: self.endpoint.to_string(), reason }
    }
}

fn stream_name(prefix: &str, queue: Queue) -> String {
    format!("{}_{}", prefix.to_uppercase().replace(['.', ' ', '-'], "_"), queue.name())
}

fn is(kind: CreateStreamErrorKind, code: ErrorCode) -> bool {
    matches!(kind, CreateStreamErrorKind::JetStream(error) if error.error_code() == code)
}
