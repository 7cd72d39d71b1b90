//! The bus between nodes: NATS JetStream.
//!
//! Streams, each with one durable pull consumer that all nodes share (explicit acks, no limit of deliveries: attempts are
//! counted in the database):
//!
//! | stream | subject | keeps |
//! | --- | --- | --- |
//! | `LONGSHORE_EVENTS` | storage events, written by the S3 server | 7 days |
//! | `LONGSHORE_IMPORTS` | `longshore.jobs.import` | until acknowledged |
//! | `LONGSHORE_CHUNKS` | `longshore.jobs.chunk` | until acknowledged |
//!
//! Reports and changes go over core NATS, `longshore.reports.<import>` and `longshore.changes.<import>`: nobody may
//! listen. Scans of large files are requests on `longshore.scans`, each answered by one worker (`scans`). Whatever is missing, because NATS lost its store, is made again by the next publish or pull. Messages carry no
//! `Nats-Msg-Id`: a job that is published again was lost, and must not be taken for a duplicate.
//!
//! Answers come to inboxes below `_INBOX.<user>.`, so that a server can keep users from reading each other's
//! (`deploy/nats/nats.conf`); `_INBOX.>`, which many grant, holds them too.

pub mod inspect;
mod jetstream;
mod pull;
mod receipt;
mod scans;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{debug, info, warn};
use url::Url;

use longshore_domain::ImportId;
use longshore_parse::ScannedBlock;
use longshore_telemetry::QueueName;

use super::{
    ACK_WAIT, Bus, BusError, ChunkJob, ChunkReport, Delivery, ImportJob, QueueDepth, Receipt, ScanCall, ScanJob,
    StorageEvent,
    s3_event::{self, Arrivals},
};
use jetstream::{Fault, JetStream, Queue};
use receipt::{PartReceipt, Whole};

/// One call of NATS.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For `/readyz`.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest pause between two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_secs(2);
/// Reports that a slow listener may be behind.
const REPORTS_BOUND: usize = 1_024;

/// How to reach NATS.
#[derive(Clone)]
pub struct NatsConfig {
    /// `nats://host:port`, several with commas between; it may carry `user:password@` or `token@`.
    pub url: String,
    /// Where the S3 server publishes its events.
    pub events_subject: String,
    /// What streams and subjects begin with, `longshore`.
    pub prefix: String,
    /// How long a delivery may stay unanswered; it takes effect where the consumers are made.
    pub ack_wait: Duration,
}

impl NatsConfig {
    /// The usual names.
    #[must_use]
    pub fn new(url: impl Into<String>, events_subject: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            events_subject: events_subject.into(),
            prefix: "longshore".to_owned(),
            ack_wait: ACK_WAIT,
        }
    }
}

impl std::fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsConfig")
            .field("events_subject", &self.events_subject)
            .field("prefix", &self.prefix)
            .field("ack_wait", &self.ack_wait)
            .finish_non_exhaustive()
    }
}

/// A bus over NATS JetStream.
pub struct NatsBus {
    client: Client,
    jetstream: JetStream,
    reports: String,
    changes: String,
    scans: String,
    /// Storage events of messages that told of more than was asked for.
    surplus: Mutex<VecDeque<Delivery<StorageEvent>>>,
}

impl NatsBus {
    /// Connects in the background, for as long as it takes: [`Bus::check`] and [`Bus::prepare`] say whether it worked.
    ///
    /// # Errors
    ///
    /// For a URL that is none.
    pub async fn connect(config: NatsConfig) -> Result<Self, BusError> {
        let address = Address::read(&config.url)?;
        let (reconnects, reconnected) = watch::channel(0_u64);
        let endpoint: Arc<str> = address.shown.as_str().into();
        let seen = Arc::clone(&endpoint);
        let options = ConnectOptions::new()
            .name("longshore")
            .retry_on_initial_connect()
            .max_reconnects(None)
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(CALL_TIMEOUT))
            .subscription_capacity(REPORTS_BOUND)
            .reconnect_delay_callback(|tries| {
                let doubled = Duration::from_millis(50 << tries.min(8));
                doubled.min(RECONNECT_PAUSE)
            })
            .event_callback(move |event| {
                log(&seen, &event);
                if matches!(event, Event::Connected) {
                    reconnects.send_modify(|count| *count += 1);
                }
                async {}
            });
        let shown = address.shown.clone();
        let (options, servers) = credentials(options, address);
        let client = options
            .connect(servers)
            .await
            .map_err(|error| BusError { endpoint: shown, reason: format!("no connection can be set up: {error}") })?;
        let jetstream = JetStream::new(client.clone(), endpoint, reconnected, &config);
        let subject = |name| format!("{}.{name}", config.prefix);
        let (reports, changes, scans) = (subject("reports"), subject("changes"), subject("scans"));
        Ok(Self { client, jetstream, reports, changes, scans, surplus: Mutex::default() })
    }

    fn error(&self, reason: impl Into<String>) -> BusError {
        BusError { endpoint: self.jetstream.endpoint().to_owned(), reason: reason.into() }
    }

    async fn publish(&self, queue: Queue, body: Vec<u8>) -> Result<(), BusError> {
        let body = Bytes::from(body);
        match self.jetstream.publish(queue, body.clone()).await {
            Err(Fault::Missing(reason)) => {
                info!(stream = queue.name(), reason, "the stream is gone, making it again");
                self.jetstream.prepare().await?;
                self.jetstream.publish(queue, body).await.map_err(|fault| self.error(fault.reason()))
            }
            done => done.map_err(|fault| self.error(fault.reason())),
        }
    }

    async fn publish_job(&self, queue: Queue, job: &impl Serialize) -> Result<(), BusError> {
        let body = serde_json::to_vec(job).map_err(|error| self.error(error.to_string()))?;
        self.publish(queue, body).await
    }

    async fn pull(
        &self,
        queue: Queue,
        most: usize,
        wait: Duration,
    ) -> Result<Vec<async_nats::jetstream::Message>, BusError> {
        match self.jetstream.pull(queue, most, wait).await {
            Err(Fault::Missing(reason)) => {
                info!(stream = queue.name(), reason, "the stream or its consumer is gone, making it again");
                self.jetstream.prepare().await?;
                self.jetstream.pull(queue, most, wait).await.map_err(|fault| self.error(fault.reason()))
            }
            done => done.map_err(|fault| self.error(fault.reason())),
        }
    }

    async fn pull_jobs<T: DeserializeOwned>(
        &self,
        queue: Queue,
        most: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery<T>>, BusError> {
        let mut deliveries = Vec::new();
        for message in self.pull(queue, most, wait).await? {
            let whole = Whole::new(message, self.jetstream.endpoint());
            match serde_json::from_slice(whole.body()) {
                Ok(message) => deliveries.push(Delivery { message, receipt: Box::new(whole) as Box<dyn Receipt> }),
                Err(error) => {
                    warn!(stream = queue.name(), %error, "dropped a message that is no job");
                    whole.drop_for_ever().await;
                }
            }
        }
        Ok(deliveries)
    }

    /// One message's arrivals, each with its own receipt.
    async fn arrivals(&self, message: async_nats::jetstream::Message) -> Vec<Delivery<StorageEvent>> {
        let whole = Whole::new(message, self.jetstream.endpoint());
        let read = s3_event::read(whole.body()).and_then(|Arrivals { events, mut unread }| match unread.pop() {
            Some(reason) if events.is_empty() => Err(reason),
            Some(reason) => {
                warn!(reason, "passed over a part of a message that is no storage event");
                Ok(events)
            }
            None => Ok(events),
        });
        match read {
            Ok(events) if events.is_empty() => {
                debug!("passed over a storage event that is no arrival");
                if let Err(error) = whole.ack().await {
                    debug!(%error, "it comes again");
                }
                Vec::new()
            }
            Ok(events) => {
                let receipts = PartReceipt::split(whole, events.len());
                let deliveries = events.into_iter().zip(receipts);
                deliveries.map(|(message, receipt)| Delivery { message, receipt: Box::new(receipt) as _ }).collect()
            }
            Err(reason) => {
                warn!(reason, "dropped a message that is no storage event");
                whole.drop_for_ever().await;
                Vec::new()
            }
        }
    }

    /// A message that nobody keeps.
    async fn tell(&self, subject: String, body: Bytes) -> Result<(), BusError> {
        match tokio::time::timeout(CALL_TIMEOUT, self.client.publish(subject, body)).await {
            Ok(sent) => sent.map_err(|error| self.error(error.to_string())),
            Err(_) => Err(self.error(format!("a message could not be sent within {CALL_TIMEOUT:?}"))),
        }
    }

    /// A subscription that the server knows of once this answers; in a `group` each message goes to one of its members.
    async fn listen(&self, subject: String, group: Option<&str>) -> Result<async_nats::Subscriber, BusError> {
        let subscribe = async {
            let subscriber = match group {
                None => self.client.subscribe(subject).await,
                Some(group) => self.client.queue_subscribe(subject, group.to_owned()).await,
            };
            let subscriber = subscriber.map_err(|error| self.error(error.to_string()))?;
            // The server answers in order: after this one it knows the subscription.
            self.jetstream.probe().await?;
            Ok(subscriber)
        };
        match tokio::time::timeout(CALL_TIMEOUT, subscribe).await {
            Ok(subscriber) => subscriber,
            Err(_) => Err(self.error(format!("no subscription within {CALL_TIMEOUT:?}"))),
        }
    }

    fn take_surplus(&self, most: usize) -> Vec<Delivery<StorageEvent>> {
        let mut surplus = self.surplus.lock().unwrap_or_else(PoisonError::into_inner);
        let count = most.min(surplus.len());
        surplus.drain(..count).collect()
    }
}

#[async_trait]
impl Bus for NatsBus {
    async fn prepare(&self) -> Result<(), BusError> {
        self.jetstream.prepare().await
    }

    async fn check(&self) -> Result<(), BusError> {
        if self.client.connection_state() != State::Connected {
            return Err(
                self.error("not connected: is NATS running there, and does the URL carry the right credentials?")
            );
        }
        match tokio::time::timeout(CHECK_TIMEOUT, self.jetstream.probe()).await {
            Ok(answer) => answer,
            Err(_) => Err(self.error(format!("no answer within {CHECK_TIMEOUT:?}"))),
        }
    }

    async fn depth(&self, queue: QueueName) -> Result<QueueDepth, BusError> {
        match tokio::time::timeout(CHECK_TIMEOUT, self.jetstream.depth(queue)).await {
            Ok(depth) => depth,
            Err(_) => Err(self.error(format!("no answer within {CHECK_TIMEOUT:?}"))),
        }
    }

    async fn publish_event(&self, event: &StorageEvent) -> Result<(), BusError> {
        self.publish(Queue::Events, s3_event::write(event)).await
    }

    async fn publish_import(&self, job: &ImportJob) -> Result<(), BusError> {
        self.publish_job(Queue::Imports, job).await
    }

    async fn publish_chunk(&self, job: &ChunkJob) -> Result<(), BusError> {
        self.publish_job(Queue::Chunks, job).await
    }

    async fn pull_events(&self, most: usize, wait: Duration) -> Result<Vec<Delivery<StorageEvent>>, BusError> {
        let mut deliveries = self.take_surplus(most);
        if !deliveries.is_empty() {
            return Ok(deliveries);
        }
        for message in self.pull(Queue::Events, most, wait).await? {
            deliveries.extend(self.arrivals(message).await);
        }
        if deliveries.len() > most {
            let surplus = deliveries.split_off(most);
            self.surplus.lock().unwrap_or_else(PoisonError::into_inner).extend(surplus);
        }
        Ok(deliveries)
    }

    async fn pull_imports(&self, most: usize, wait: Duration) -> Result<Vec<Delivery<ImportJob>>, BusError> {
        self.pull_jobs(Queue::Imports, most, wait).await
    }

    async fn pull_chunks(&self, most: usize, wait: Duration) -> Result<Vec<Delivery<ChunkJob>>, BusError> {
        self.pull_jobs(Queue::Chunks, most, wait).await
    }

    async fn report(&self, report: &ChunkReport) -> Result<(), BusError> {
        let body = serde_json::to_vec(report).map_err(|error| self.error(error.to_string()))?;
        self.tell(format!("{}.{}", self.reports, report.job.import), body.into()).await
    }

    async fn reports(&self, import: ImportId) -> Result<BoxStream<'static, ChunkReport>, BusError> {
        let subscriber = self.listen(format!("{}.{import}", self.reports), None).await?;
        let reports = subscriber.filter_map(|message| async move {
            match serde_json::from_slice(&message.payload) {
                Ok(report) => Some(report),
                Err(error) => {
                    debug!(%error, "passed over a message that is no report");
                    None
                }
            }
        });
        Ok(reports.boxed())
    }

    async fn ask_scan(&self, job: &ScanJob, wait: Duration) -> Result<Option<Vec<ScannedBlock>>, BusError> {
        scans::ask(self, job, wait).await
    }

    async fn scan_calls(&self) -> Result<BoxStream<'static, ScanCall>, BusError> {
        scans::calls(self).await
    }

    async fn changed(&self, import: ImportId) -> Result<(), BusError> {
        self.tell(format!("{}.{import}", self.changes), Bytes::new()).await
    }

    async fn changes(&self) -> Result<BoxStream<'static, ImportId>, BusError> {
        let subscriber = self.listen(format!("{}.*", self.changes), None).await?;
        let import = |subject: &str| subject.rsplit('.').next()?.parse().ok();
        Ok(subscriber.filter_map(move |message| std::future::ready(import(&message.subject))).boxed())
    }
}

fn log(endpoint: &str, event: &Event) {
    match event {
        Event::Connected => info!(endpoint, "nats is connected"),
        Event::Disconnected => warn!(endpoint, "nats is away, connecting again"),
        // Its text can hold what the server said, never what we sent.
        Event::ServerError(error) => warn!(endpoint, %error, "nats refused"),
        Event::SlowConsumer(_) => debug!(endpoint, "a slow listener lost reports"),
        event => debug!(endpoint, %event, "nats"),
    }
}

/// Who we are, and where.
fn credentials(options: ConnectOptions, address: Address) -> (ConnectOptions, Vec<ServerAddr>) {
    let options = match address.inbox() {
        Some(prefix) => options.custom_inbox_prefix(prefix),
        None => options,
    };
    let options = match (address.user, address.password) {
        (Some(user), Some(password)) => options.user_and_password(user, password),
        (Some(token), None) => options.token(token),
        _ => options,
    };
    (options, address.servers)
}

/// A URL, taken apart so that its credentials are nowhere else.
struct Address {
    servers: Vec<ServerAddr>,
    shown: String,
    user: Option<String>,
    password: Option<String>,
}

impl Address {
    fn read(urls: &str) -> Result<Self, BusError> {
        // Nothing of a URL that cannot be read is repeated: its credentials would be, too.
        let bad = |reason: &str| BusError {
            endpoint: "?".to_owned(),
            reason: format!("the URL of NATS cannot be read ({reason}): it looks like nats://host:4222"),
        };
        let mut address = Self { servers: Vec::new(), shown: String::new(), user: None, password: None };
        for text in urls.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            let with_scheme = if text.contains("://") { text.to_owned() } else { format!("nats://{text}") };
            let mut url = Url::parse(&with_scheme).map_err(|error| bad(&error.to_string()))?;
            if url.host_str().is_none_or(str::is_empty) {
                return Err(bad("there is no host"));
            }
            if address.user.is_none() && !url.username().is_empty() {
                address.user = Some(decoded(url.username()));
                address.password = url.password().map(decoded);
            }
            url.set_username("").and_then(|()| url.set_password(None)).map_err(|()| bad("its credentials"))?;
            let server = ServerAddr::from_url(url.clone()).map_err(|error| bad(&error.to_string()))?;
            let separator = if address.shown.is_empty() { "" } else { "," };
            let host = url.host_str().unwrap_or_default();
            address.shown += &format!("{separator}{}://{host}:{}", url.scheme(), server.port());
            address.servers.push(server);
        }
        if address.servers.is_empty() { Err(bad("it is empty")) } else { Ok(address) }
    }

    /// What the inboxes of the user begin with; `None` where there is no user, or a name that is no part of a subject.
    fn inbox(&self) -> Option<String> {
        // Without a password it is a token: a secret.
        self.password.as_ref()?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let user = self.user.as_deref().filter(|user| user.bytes().all(plain))?;
        Some(format!("_INBOX.{user}"))
    }
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_credentials_out_of_urls() {
        let address = Address::read("nats://me:p%40ss@a:4223,tls://b").unwrap();
        assert_eq!(address.shown, "nats://a:4223,tls://b:4222");
        assert_eq!((address.user.as_deref(), address.password.as_deref()), (Some("me"), Some("p@ss")));
        assert!(address.servers.iter().all(|server| !server.has_user_pass()));
        let address = Address::read("token@host").unwrap();
        assert_eq!((address.user.as_deref(), address.password), (Some("token"), None));
    }

    #[test]
    fn a_user_has_inboxes_of_its_own_and_a_token_is_in_none() {
        let inbox = |url: &str| Address::read(url).unwrap().inbox();
        assert_eq!(inbox("nats://longshore-api:p@a:4222").as_deref(), Some("_INBOX.longshore-api"));
        for url in ["nats://a", "nats://s3cr3t@a", "nats://a%2Eb:p@a", "nats://%3E:p@a"] {
            assert_eq!(inbox(url), None, "{url}");
        }
    }

    #[test]
    fn repeats_nothing_of_a_bad_url() {
        for url in ["", "nats://me:secret@:4222", "http://me:secret@host", "nats://me:secret@host:99999"] {
            let error = Address::read(url).err().unwrap();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!(!format!("{:?}", NatsConfig::new("nats://me:secret@host", "e")).contains("secret"));
    }
}
