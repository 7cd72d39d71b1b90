//! What `longshore doctor` sees of NATS: versions, streams and consumers as they are, and whether a storage event arrives.
//! Makes nothing and takes nothing: it looks at streams, and listens beside them over core NATS.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::stream;
use async_nats::{Client, ConnectOptions, Event, Subscriber};
use futures::StreamExt as _;
use tokio::sync::watch;

use super::jetstream::{JetStream, Queue};
use super::{Address, CALL_TIMEOUT, CONNECT_TIMEOUT, NatsConfig, credentials};
use crate::bus::{BusError, s3_event};

/// What was seen of a server.
#[derive(Debug, Clone)]
pub struct NatsFacts {
    /// Its address, without credentials.
    pub endpoint: String,
    /// Its version.
    pub version: String,
    /// Why JetStream cannot be used, where it cannot.
    pub jetstream: Result<(), String>,
    /// The three streams; none where JetStream does not answer.
    pub streams: Vec<StreamFacts>,
    /// What the server did not permit meanwhile.
    pub refusals: Vec<String>,
}

/// A stream and its consumer.
#[derive(Debug, Clone)]
pub struct StreamFacts {
    /// The stream's name.
    pub name: String,
    /// The consumer's name.
    pub consumer: String,
    /// What is missing, or could not be looked at.
    pub missing: Option<String>,
    /// Where it is not set as the service would set it.
    pub differs: Vec<String>,
    /// Messages in the stream.
    pub messages: u64,
    /// Messages that no node took yet.
    pub pending: u64,
    /// Messages that a node took and did not answer for yet.
    pub unanswered: u64,
}

/// A connection of its own that gives up instead of trying for ever.
struct Line {
    client: Client,
    endpoint: String,
    refusals: Arc<Mutex<Vec<String>>>,
}

impl Line {
    async fn open(config: &NatsConfig) -> Result<Self, BusError> {
        let address = Address::read(&config.url)?;
        let endpoint = address.shown.clone();
        let refusals = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&refusals);
        let options = ConnectOptions::new()
            .name("longshore doctor")
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(CALL_TIMEOUT))
            .max_reconnects(Some(1))
            .event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
                }
                async {}
            });
        let (options, servers) = credentials(options, address);
        let client = options
            .connect(servers)
            .await
            // Its text holds its causes.
            .map_err(|error| BusError { endpoint: endpoint.clone(), reason: error.to_string() })?;
        Ok(Self { client, endpoint, refusals })
    }

    fn refusals(&self) -> Vec<String> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether the server lets us in.
///
/// # Errors
/// [`BusError`] with the cause where it does not.
pub async fn reach(config: &NatsConfig) -> Result<(), BusError> {
    Line::open(config).await.map(|_| ())
}

/// Looks at the server, its streams and its consumers.
///
/// # Errors
/// [`BusError`] where it cannot be reached, or does not let us in.
pub async fn inspect(config: &NatsConfig) -> Result<NatsFacts, BusError> {
    let line = Line::open(config).await?;
    let version = line.client.server_info().version;
    let (_reconnects, reconnected) = watch::channel(0);
    let jetstream = JetStream::new(line.client.clone(), line.endpoint.as_str().into(), reconnected, config);
    let enabled = jetstream.probe().await.map_err(|error| error.reason);
    let mut streams = Vec::new();
    if enabled.is_ok() {
        for queue in Queue::ALL {
            streams.push(look_at(&jetstream, queue).await);
        }
    }
    Ok(NatsFacts { endpoint: line.endpoint.clone(), version, jetstream: enabled, streams, refusals: line.refusals() })
}

async fn look_at(jetstream: &JetStream, queue: Queue) -> StreamFacts {
    let mut facts = StreamFacts {
        name: jetstream.stream(queue),
        consumer: jetstream.consumer(queue),
        missing: None,
        differs: Vec::new(),
        messages: 0,
        pending: 0,
        unanswered: 0,
    };
    let mut found = jetstream.context.get_stream(&facts.name).await;
    // Somebody may have made the events' stream under another name.
    if queue == Queue::Events
        && found.is_err()
        && let Ok(name) = jetstream.context.stream_by_subject(jetstream.subject(queue)).await
    {
        found = jetstream.context.get_stream(&name).await;
        facts.name = name;
    }
    let stream = match found {
        Ok(stream) => stream,
        Err(error) => {
            facts.missing = Some(format!("the stream {}: {error}", facts.name));
            return facts;
        }
    };
    let info = stream.cached_info();
    facts.messages = info.state.messages;
    facts.differs = stream_differs(&info.config, &jetstream.stream_config(queue));
    match stream.consumer_info(&facts.consumer).await {
        Ok(info) => {
            facts.pending = info.num_pending;
            facts.unanswered = info.num_ack_pending as u64;
            facts.differs.extend(consumer_differs(&info.config, &jetstream.consumer_config(queue)));
        }
        Err(error) => facts.missing = Some(format!("the consumer {} of {}: {error}", facts.consumer, facts.name)),
    }
    facts
}

/// Bounds in bytes and age are the operator's; these are not.
fn stream_differs(found: &stream::Config, wanted: &stream::Config) -> Vec<String> {
    let mut differs = Vec::new();
    if let Some(subject) = wanted.subjects.iter().find(|subject| !found.subjects.contains(subject)) {
        differs.push(format!("{} does not listen to {subject}, but to {}", found.name, found.subjects.join(", ")));
    }
    if found.retention != wanted.retention {
        differs.push(format!("{} has the retention {:?}, not {:?}", found.name, found.retention, wanted.retention));
    }
    if found.storage != wanted.storage {
        differs.push(format!("{} is kept in {:?}, not in {:?}", found.name, found.storage, wanted.storage));
    }
    differs
}

fn consumer_differs(found: &async_nats::jetstream::consumer::Config, wanted: &pull::Config) -> Vec<String> {
    let name = found.durable_name.as_deref().unwrap_or_default();
    let mut differs = Vec::new();
    if found.deliver_subject.is_some() {
        differs.push(format!("{name} pushes; it has to be a pull consumer"));
    }
    if found.ack_policy != AckPolicy::Explicit {
        differs.push(format!("{name} has the ack policy {:?}, not Explicit", found.ack_policy));
    }
    if found.max_deliver > 0 {
        differs
            .push(format!("{name} delivers at most {} times; attempts are counted in the database", found.max_deliver));
    }
    if found.max_ack_pending > 0 && found.max_ack_pending < wanted.max_ack_pending {
        let (found, wanted) = (found.max_ack_pending, wanted.max_ack_pending);
        differs.push(format!("{name} stands still at {found} unanswered messages, not at {wanted}"));
    }
    differs
}

/// Listens to storage events beside the stream that keeps them.
pub struct EventListener {
    line: Line,
    events: Subscriber,
}

impl EventListener {
    /// Listens from now on.
    ///
    /// # Errors
    /// [`BusError`] where NATS cannot be reached or does not permit it.
    pub async fn listen(config: &NatsConfig) -> Result<Self, BusError> {
        let line = Line::open(config).await?;
        let subject = &config.events_subject;
        let refused = |reason: String| BusError { endpoint: line.endpoint.clone(), reason };
        let events = line.client.subscribe(subject.clone()).await.map_err(|error| refused(error.to_string()))?;
        // The server answers in order: behind this answer, whatever it be, it knows the subscription or has refused it.
        let _ = ContextBuilder::new().timeout(CALL_TIMEOUT).build(line.client.clone()).query_account().await;
        match line.refusals().into_iter().find(|refusal| refusal.contains(subject.as_str())) {
            Some(refusal) => Err(refused(refusal)),
            None => Ok(Self { line, events }),
        }
    }

    /// Waits until the arrival of an object is told; false where it is not within `patience`.
    ///
    /// # Errors
    /// [`BusError`] where the connection ends.
    pub async fn hears_of(&mut self, bucket: &str, key: &str, patience: Duration) -> Result<bool, BusError> {
        let told = async {
            while let Some(message) = self.events.next().await {
                let arrivals = s3_event::read(&message.payload).unwrap_or_default();
                if arrivals.iter().any(|arrival| arrival.bucket == bucket && arrival.key == key) {
                    return Ok(());
                }
            }
            Err(BusError { endpoint: self.line.endpoint.clone(), reason: "the connection ended".to_owned() })
        };
        match tokio::time::timeout(patience, told).await {
            Ok(told) => told.map(|()| true),
            Err(_) => Ok(false),
        }
    }
}
