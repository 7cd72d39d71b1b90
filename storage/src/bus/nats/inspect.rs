//! What `longshore doctor` sees of NATS: versions, streams and consumers as they are, and whether a storage event arrives.
//! Makes nothing and takes nothing: it looks at streams, and listens beside them over core NATS.

use std::fmt::Display;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::stream;
use async_nats::{Client, ConnectOptions, Event, HeaderMap, Subscriber, header};
use futures::StreamExt as _;
use tokio::sync::watch;

use super::jetstream::{JetStream, Queue};
use super::{Address, CALL_TIMEOUT, CONNECT_TIMEOUT, NatsConfig, credentials};
use crate::bus::{BusError, s3_event};

/// How often a stream that grows is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A refusal is handed over beside the answers: how long it may come behind one.
const SETTLE: Duration = Duration::from_millis(100);
/// What begins the subject of a question that only the doctor has.
const NAMES: &str = "$JS.API.STREAM.NAMES";

/// What a node does with NATS besides looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duties {
    /// Takes events and jobs, hands chunks out, listens to reports.
    pub works: bool,
}

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
    /// What the server did not permit meanwhile, of what a node needs.
    pub refusals: Vec<String>,
}

/// A stream and its consumer.
#[derive(Debug, Clone)]
pub struct StreamFacts {
    /// The stream's name.
    pub name: String,
    /// The consumer's name.
    pub consumer: String,
    /// What is missing.
    pub missing: Option<String>,
    /// What could not be looked at, and why.
    pub unseen: Option<String>,
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
    refusals: watch::Receiver<Vec<String>>,
}

impl Line {
    async fn open(config: &NatsConfig) -> Result<Self, BusError> {
        let address = Address::read(&config.url)?;
        let endpoint = address.shown.clone();
        let (seen, refusals) = watch::channel(Vec::new());
        let options = ConnectOptions::new()
            .name("longshore doctor")
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(CALL_TIMEOUT))
            .max_reconnects(Some(1))
            .event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    seen.send_modify(|refusals| refusals.push(error.to_string()));
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
        self.refusals.borrow().clone()
    }

    /// The answer to a request on a subject. Nobody answers one that is not permitted: the refusal is told beside it.
    async fn ask<T, E: Display>(
        &self,
        subject: &str,
        request: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Unanswered> {
        let quoted = format!("\"{subject}\"");
        let mut refusals = self.refusals.clone();
        tokio::select! {
            answer = request => answer.map_err(|error| Unanswered::Failed(error.to_string())),
            Ok(_) = refusals.wait_for(|all| all.iter().any(|refusal| refusal.contains(&quoted))) => {
                Err(Unanswered::Refused(format!("this user may not ask ({subject})")))
            }
        }
    }

    /// Behind this, whatever was sent before is permitted or refused: the server reads in order.
    async fn settle(&self) {
        let context = ContextBuilder::new().timeout(CALL_TIMEOUT).build(self.client.clone());
        let _ = self.ask("$JS.API.INFO", context.query_account()).await;
        tokio::time::sleep(SETTLE).await;
    }
}

/// Why a question has no answer.
enum Unanswered {
    /// The user may not ask it.
    Refused(String),
    /// What came instead.
    Failed(String),
}

/// Whether the server lets us in.
///
/// # Errors
/// [`BusError`] with the cause where it does not.
pub async fn reach(config: &NatsConfig) -> Result<(), BusError> {
    Line::open(config).await.map(|_| ())
}

/// Looks at the server, its streams and its consumers, and tries the rights that a node with these duties needs.
///
/// # Errors
/// [`BusError`] where it cannot be reached, or does not let us in.
pub async fn inspect(config: &NatsConfig, duties: Duties) -> Result<NatsFacts, BusError> {
    let line = Line::open(config).await?;
    let version = line.client.server_info().version;
    let jetstream = jetstream(&line, config);
    let enabled = match line.ask("$JS.API.INFO", jetstream.probe()).await {
        Ok(()) => Ok(()),
        Err(Unanswered::Refused(reason) | Unanswered::Failed(reason)) => Err(reason),
    };
    let mut streams = Vec::new();
    if enabled.is_ok() {
        for queue in Queue::ALL {
            streams.push(look_at(&line, &jetstream, queue).await);
        }
        try_rights(&line, &jetstream, config, duties).await;
    }
    // That question is the doctor's own.
    let refusals = line.refusals().into_iter().filter(|refusal| !refusal.contains(NAMES)).collect();
    Ok(NatsFacts { endpoint: line.endpoint.clone(), version, jetstream: enabled, streams, refusals })
}

fn jetstream(line: &Line, config: &NatsConfig) -> JetStream {
    let (_reconnects, reconnected) = watch::channel(0);
    JetStream::new(line.client.clone(), line.endpoint.as_str().into(), reconnected, config)
}

/// Sends what a node sends, so that nothing comes of it: jobs for a stream that is not theirs, which no stream takes; pulls
/// that cannot be read; hints for an import that cannot be. What is not permitted is among the refusals then.
async fn try_rights(line: &Line, jetstream: &JetStream, config: &NatsConfig, duties: Duties) {
    let client = &line.client;
    let queues: &[Queue] = if duties.works { &[Queue::Imports, Queue::Chunks] } else { &[Queue::Imports] };
    for queue in queues {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_EXPECTED_STREAM, "none");
        // An answer, if one comes, goes to nobody.
        let (subject, inbox) = (jetstream.subject(*queue), client.new_inbox());
        let _ = client.publish_with_reply_and_headers(subject, inbox, headers, "".into()).await;
    }
    for hint in ["reports", "changes"] {
        let _ = client.publish(format!("{}.{hint}.doctor", config.prefix), "".into()).await;
    }
    if duties.works {
        // Nobody can answer it, so nobody works on it.
        let _ = client.publish(format!("{}.scans", config.prefix), "".into()).await;
    }
    let heard: &[&str] = if duties.works { &["changes.*", "reports.doctor", "scans"] } else { &["changes.*"] };
    let mut listening = Vec::new();
    for hint in heard {
        listening.push(client.subscribe(format!("{}.{hint}", config.prefix)).await);
    }
    if duties.works {
        for queue in Queue::ALL {
            let (stream, consumer) = (jetstream.stream(queue), jetstream.consumer(queue));
            let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
            let _ = client.publish_with_reply(subject, client.new_inbox(), "{".into()).await;
        }
    }
    line.settle().await;
}

async fn look_at(line: &Line, jetstream: &JetStream, queue: Queue) -> StreamFacts {
    let mut facts = StreamFacts {
        name: jetstream.stream(queue),
        consumer: jetstream.consumer(queue),
        missing: None,
        unseen: None,
        differs: Vec::new(),
        messages: 0,
        pending: 0,
        unanswered: 0,
    };
    let stream = match find_stream(line, jetstream, queue, &mut facts).await {
        Ok(stream) => stream,
        Err(Unanswered::Refused(reason)) => {
            facts.unseen = Some(format!("the stream {}: {reason}", facts.name));
            return facts;
        }
        Err(Unanswered::Failed(reason)) => {
            facts.missing = Some(format!("the stream {}: {reason}", facts.name));
            return facts;
        }
    };
    let info = stream.cached_info();
    facts.messages = info.state.messages;
    facts.differs = stream_differs(&info.config, &jetstream.stream_config(queue));
    let subject = format!("$JS.API.CONSUMER.INFO.{}.{}", facts.name, facts.consumer);
    let place = format!("the consumer {} of {}", facts.consumer, facts.name);
    match line.ask(&subject, stream.consumer_info(&facts.consumer)).await {
        Ok(info) => {
            facts.pending = info.num_pending;
            facts.unanswered = info.num_ack_pending as u64;
            facts.differs.extend(consumer_differs(&info.config, &jetstream.consumer_config(queue)));
        }
        Err(Unanswered::Refused(reason)) => facts.unseen = Some(format!("{place}: {reason}")),
        Err(Unanswered::Failed(reason)) => facts.missing = Some(format!("{place}: {reason}")),
    }
    facts
}

/// The stream of a queue; the events' may have been made under another name by somebody.
async fn find_stream(
    line: &Line,
    jetstream: &JetStream,
    queue: Queue,
    facts: &mut StreamFacts,
) -> Result<stream::Stream, Unanswered> {
    let context = &jetstream.context;
    let subject = format!("$JS.API.STREAM.INFO.{}", facts.name);
    let found = line.ask(&subject, context.get_stream(&facts.name)).await;
    let Err(Unanswered::Failed(reason)) = found else { return found };
    if queue != Queue::Events {
        return Err(Unanswered::Failed(reason));
    }
    let subject = jetstream.subject(queue);
    match line.ask(NAMES, context.stream_by_subject(subject.clone())).await {
        Ok(name) => {
            let info = format!("$JS.API.STREAM.INFO.{name}");
            let found = line.ask(&info, context.get_stream(&name)).await;
            facts.name = name;
            found
        }
        Err(Unanswered::Refused(_)) => Err(Unanswered::Failed(format!(
            "{reason}; whether another one holds {subject} could not be asked ({NAMES})"
        ))),
        Err(Unanswered::Failed(_)) => Err(Unanswered::Failed(reason)),
    }
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
        line.settle().await;
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
                if arrivals.events.iter().any(|arrival| arrival.bucket == bucket && arrival.key == key) {
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

/// Counts what the events' stream takes, for a user that may not listen to events itself.
pub struct EventCounter {
    line: Line,
    jetstream: JetStream,
    before: u64,
}

impl EventCounter {
    /// Counts from now on.
    ///
    /// # Errors
    /// [`BusError`] where NATS cannot be reached, or the stream cannot be looked at.
    pub async fn start(config: &NatsConfig) -> Result<Self, BusError> {
        let line = Line::open(config).await?;
        let jetstream = jetstream(&line, config);
        let mut counter = Self { line, jetstream, before: 0 };
        counter.before = counter.last().await?;
        Ok(counter)
    }

    /// The stream's name.
    #[must_use]
    pub fn stream(&self) -> String {
        self.jetstream.stream(Queue::Events)
    }

    /// Waits until a message came; false where none does within `patience`.
    ///
    /// # Errors
    /// [`BusError`] where the stream cannot be looked at any more.
    pub async fn grows(&self, patience: Duration) -> Result<bool, BusError> {
        let begun = Instant::now();
        while begun.elapsed() < patience {
            if self.last().await? > self.before {
                return Ok(true);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(false)
    }

    /// The number of its last message.
    async fn last(&self) -> Result<u64, BusError> {
        let name = self.stream();
        let found =
            self.line.ask(&format!("$JS.API.STREAM.INFO.{name}"), self.jetstream.context.get_stream(&name)).await;
        match found {
            Ok(stream) => Ok(stream.cached_info().state.last_sequence),
            Err(Unanswered::Refused(reason) | Unanswered::Failed(reason)) => {
                Err(BusError { endpoint: self.line.endpoint.clone(), reason: format!("{name}: {reason}") })
            }
        }
    }
}
