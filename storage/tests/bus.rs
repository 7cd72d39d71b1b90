//! What every bus promises, run on the one inside a process and on NATS JetStream; and what only NATS can go through.
//!
//! Needs `deploy/servers test`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use longshore_domain::{Attempt, ByteRange, ChunkIndex, Epoch, Format, ImportId, Tally};
use longshore_parse::{Dialect, MACHINE, ScannedBlock, scan_blocks};
use longshore_storage::bus::{
    Bus, ChunkJob, ChunkOutcome, ChunkReport, Delivery, ImportJob, InProcessBus, NatsBus, NatsConfig, ScanCall,
    ScanJob, StorageEvent,
};
use longshore_telemetry::QueueName;
use serde_json::json;
use tokio::time::Instant;

use common::{NatsServer, setting, unique, until, within};

/// Short, so that redelivery is soon.
const ACK_WAIT: Duration = Duration::from_secs(2);
/// Longer than any test takes, where a message has to come before it.
const LONG: Duration = Duration::from_secs(600);
/// How long nothing has to come, to be believed.
const SHORT: Duration = Duration::from_millis(300);

/// Runs each suite on each bus. Time inside one process is tokio's own and passes at once.
macro_rules! on_every_bus {
    ($($name:ident),* $(,)?) => {
        mod in_process {
            use super::*;
            $(#[tokio::test(start_paused = true)]
            async fn $name() {
                super::$name(Arc::new(InProcessBus::with_ack_wait(ACK_WAIT))).await;
            })*
        }
        mod nats {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(Arc::new(prepared(config(&setting("LONGSHORE_TEST_NATS_URL"))).await)).await;
            })*
        }
    };
}

on_every_bus!(
    an_acknowledged_job_never_comes_again,
    an_unanswered_job_comes_again,
    a_job_handed_back_comes_again_after_the_delay,
    a_kept_job_goes_to_nobody_else,
    no_more_comes_than_was_asked_for,
    part_of_a_batch_comes_at_once,
    a_waiting_pull_gets_a_message_when_it_is_published,
    an_empty_pull_ends,
    two_pullers_share_the_jobs,
    imports_and_events_arrive_as_they_were,
    a_job_can_be_published_twice,
    reports_reach_the_listeners_of_their_import,
    changes_reach_whoever_watches,
    it_answers_and_can_be_prepared_again,
    it_tells_how_full_its_queues_are,
);

fn config(url: &str) -> NatsConfig {
    let prefix = unique("t");
    NatsConfig { events_subject: format!("{prefix}.events"), prefix, ack_wait: ACK_WAIT, ..NatsConfig::new(url, "") }
}

async fn prepared(config: NatsConfig) -> NatsBus {
    let bus = NatsBus::connect(config).await.unwrap();
    until("preparing", async || bus.prepare().await.is_ok()).await;
    bus
}

fn job(chunk: u32) -> ChunkJob {
    ChunkJob { import: ImportId(uuid::Uuid::nil()), attempt: Attempt(1), epoch: Epoch(2), chunk: ChunkIndex(chunk) }
}

fn event(key: &str) -> StorageEvent {
    StorageEvent { bucket: "imports".into(), key: key.into() }
}

async fn pull_one(bus: &dyn Bus) -> Delivery<ChunkJob> {
    within("a chunk job", async {
        loop {
            let mut jobs = bus.pull_chunks(1, LONG).await.unwrap();
            if let Some(job) = jobs.pop() {
                return job;
            }
        }
    })
    .await
}

async fn nothing_comes(bus: &dyn Bus, wait: Duration) {
    // A wait may end early, so it is repeated until it is over.
    let end = Instant::now() + wait;
    while Instant::now() < end {
        let jobs = bus.pull_chunks(10, end - Instant::now()).await.unwrap();
        assert!(jobs.is_empty(), "{:?} came again", jobs[0].message);
    }
}

async fn it_tells_how_full_its_queues_are(bus: Arc<dyn Bus>) {
    let depth = async |queue| {
        let depth = bus.depth(queue).await.unwrap();
        assert_eq!(depth.queue, queue);
        (depth.waiting, depth.delivered)
    };
    assert_eq!(depth(QueueName::Chunks).await, (0, 0));
    for chunk in 0..3 {
        bus.publish_chunk(&job(chunk)).await.unwrap();
    }
    bus.publish_event(&event("a")).await.unwrap();
    assert_eq!(depth(QueueName::Chunks).await, (3, 0));
    assert_eq!((depth(QueueName::Events).await, depth(QueueName::Imports).await), ((1, 0), (0, 0)));
    let delivery = pull_one(&*bus).await;
    assert_eq!(depth(QueueName::Chunks).await, (2, 1));
    delivery.receipt.hand_back(LONG).await.unwrap();
    // JetStream takes answers without one of its own.
    until("the job is handed back", async || depth(QueueName::Chunks).await == (2, 1)).await;
    let delivery = pull_one(&*bus).await;
    assert_eq!(depth(QueueName::Chunks).await, (1, 2));
    delivery.receipt.ack().await.unwrap();
    until("the job is acknowledged", async || depth(QueueName::Chunks).await == (1, 1)).await;
}

async fn an_acknowledged_job_never_comes_again(bus: Arc<dyn Bus>) {
    bus.publish_chunk(&job(7)).await.unwrap();
    let delivery = pull_one(&*bus).await;
    assert_eq!(delivery.message, job(7));
    delivery.receipt.ack().await.unwrap();
    nothing_comes(&*bus, ACK_WAIT + SHORT).await;
}

async fn an_unanswered_job_comes_again(bus: Arc<dyn Bus>) {
    bus.publish_chunk(&job(1)).await.unwrap();
    drop(pull_one(&*bus).await);
    let again = pull_one(&*bus).await;
    assert_eq!(again.message, job(1));
    again.receipt.ack().await.unwrap();
    nothing_comes(&*bus, SHORT).await;
}

async fn a_job_handed_back_comes_again_after_the_delay(bus: Arc<dyn Bus>) {
    bus.publish_chunk(&job(1)).await.unwrap();
    let delivery = pull_one(&*bus).await;
    let handed_back = Instant::now();
    delivery.receipt.hand_back(SHORT).await.unwrap();
    let again = pull_one(&*bus).await;
    assert_eq!(again.message, job(1));
    assert!(handed_back.elapsed() >= SHORT, "it came after {:?}", handed_back.elapsed());
    again.receipt.hand_back(Duration::ZERO).await.unwrap();
    pull_one(&*bus).await.receipt.ack().await.unwrap();
}

async fn a_kept_job_goes_to_nobody_else(bus: Arc<dyn Bus>) {
    bus.publish_chunk(&job(1)).await.unwrap();
    let delivery = pull_one(&*bus).await;
    for _ in 0..8 {
        delivery.receipt.keep().await.unwrap();
        nothing_comes(&*bus, ACK_WAIT / 5).await;
    }
    delivery.receipt.ack().await.unwrap();
    nothing_comes(&*bus, SHORT).await;
}

async fn no_more_comes_than_was_asked_for(bus: Arc<dyn Bus>) {
    for chunk in 0..5 {
        bus.publish_chunk(&job(chunk)).await.unwrap();
    }
    assert!(bus.pull_chunks(0, SHORT).await.unwrap().is_empty());
    let mut seen = HashSet::new();
    while seen.len() < 5 {
        let jobs = within("jobs", bus.pull_chunks(2, LONG)).await.unwrap();
        assert!(jobs.len() <= 2);
        for delivery in jobs {
            delivery.receipt.ack().await.unwrap();
            seen.insert(delivery.message.chunk);
        }
    }
}

async fn part_of_a_batch_comes_at_once(bus: Arc<dyn Bus>) {
    for chunk in 0..3 {
        bus.publish_chunk(&job(chunk)).await.unwrap();
    }
    let jobs = within("part of a batch", bus.pull_chunks(10, LONG)).await.unwrap();
    assert_eq!(jobs.len(), 3);
}

async fn a_waiting_pull_gets_a_message_when_it_is_published(bus: Arc<dyn Bus>) {
    let puller = tokio::spawn({
        let bus = Arc::clone(&bus);
        async move { pull_one(&*bus).await.message }
    });
    // Whether it waits by then or not, it has to come.
    tokio::task::yield_now().await;
    bus.publish_chunk(&job(3)).await.unwrap();
    assert_eq!(puller.await.unwrap(), job(3));
}

async fn an_empty_pull_ends(bus: Arc<dyn Bus>) {
    assert!(within("an empty pull", bus.pull_chunks(3, SHORT)).await.unwrap().is_empty());
    assert!(within("an empty pull", bus.pull_imports(3, Duration::ZERO)).await.unwrap().is_empty());
    assert!(within("an empty pull", bus.pull_events(3, SHORT)).await.unwrap().is_empty());
}

async fn two_pullers_share_the_jobs(bus: Arc<dyn Bus>) {
    const JOBS: u32 = 100;
    let pullers: Vec<_> = (0..2)
        .map(|_| {
            let bus = Arc::clone(&bus);
            tokio::spawn(async move {
                let mut mine = Vec::new();
                // The last pull of each finds nothing.
                loop {
                    let jobs = bus.pull_chunks(7, SHORT).await.unwrap();
                    if jobs.is_empty() && !mine.is_empty() {
                        return mine;
                    }
                    for delivery in jobs {
                        mine.push(delivery.message.chunk.0);
                        delivery.receipt.ack().await.unwrap();
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    for chunk in 0..JOBS {
        bus.publish_chunk(&job(chunk)).await.unwrap();
    }
    let mut all = Vec::new();
    for puller in pullers {
        all.extend(within("a puller", puller).await.unwrap());
    }
    // Whoever ended early left the rest.
    let mut rest = bus.pull_chunks(JOBS as usize, SHORT).await.unwrap();
    all.extend(rest.drain(..).map(|delivery| delivery.message.chunk.0));
    all.sort_unstable();
    assert_eq!(all, (0..JOBS).collect::<Vec<_>>());
}

async fn imports_and_events_arrive_as_they_were(bus: Arc<dyn Bus>) {
    let import = ImportJob { import: ImportId::generate() };
    bus.publish_import(&import).await.unwrap();
    let jobs = within("an import job", bus.pull_imports(1, LONG)).await.unwrap();
    assert_eq!(jobs[0].message, import);
    jobs[0].receipt.ack().await.unwrap();

    for key in ["imports/1/plain.csv", "imports/1/a b+c&d=%25 ü.csv"] {
        bus.publish_event(&event(key)).await.unwrap();
        let events = within("an event", bus.pull_events(1, LONG)).await.unwrap();
        assert_eq!(events[0].message, event(key));
        events[0].receipt.ack().await.unwrap();
    }
}

/// A supervisor publishes a job again where it was lost: no bus may take that for a duplicate.
async fn a_job_can_be_published_twice(bus: Arc<dyn Bus>) {
    for _ in 0..2 {
        bus.publish_chunk(&job(1)).await.unwrap();
    }
    for _ in 0..2 {
        pull_one(&*bus).await.receipt.ack().await.unwrap();
    }
}

async fn reports_reach_the_listeners_of_their_import(bus: Arc<dyn Bus>) {
    let (mine, other) = (ImportId::generate(), ImportId::generate());
    let report = |import, chunk| ChunkReport {
        job: ChunkJob { import, ..job(chunk) },
        outcome: ChunkOutcome::Finished(Tally { rows: 3, rejected: 1, bytes: 20, chunks: 1 }),
        worker: Some("a".to_owned()),
    };
    bus.report(&report(mine, 0)).await.unwrap();
    let mut first = bus.reports(mine).await.unwrap();
    let mut second = bus.reports(mine).await.unwrap();
    bus.report(&report(other, 1)).await.unwrap();
    bus.report(&report(mine, 2)).await.unwrap();
    for listener in [&mut first, &mut second] {
        assert_eq!(within("a report", listener.next()).await, Some(report(mine, 2)));
    }
}

async fn changes_reach_whoever_watches(bus: Arc<dyn Bus>) {
    let imports: Vec<ImportId> = (0..3).map(|_| ImportId::generate()).collect();
    bus.changed(imports[0]).await.unwrap();
    let mut watchers = [bus.changes().await.unwrap(), bus.changes().await.unwrap()];
    for import in &imports {
        bus.changed(*import).await.unwrap();
    }
    for watcher in &mut watchers {
        let heard: Vec<_> = within("changes", watcher.take(3).collect()).await;
        assert_eq!(heard, imports, "and nothing from before");
    }
}

async fn it_answers_and_can_be_prepared_again(bus: Arc<dyn Bus>) {
    bus.check().await.unwrap();
    let (first, second) = tokio::join!(bus.prepare(), bus.prepare());
    first.unwrap();
    second.unwrap();
    bus.publish_chunk(&job(1)).await.unwrap();
    bus.prepare().await.unwrap();
    pull_one(&*bus).await.receipt.ack().await.unwrap();
}

// What only NATS can go through.

fn stream(config: &NatsConfig, name: &str) -> String {
    format!("{}_{name}", config.prefix.to_uppercase())
}

async fn raw(url: &str) -> async_nats::jetstream::Context {
    async_nats::jetstream::new(within("connecting", async_nats::connect(url)).await.unwrap())
}

async fn publish_raw(jetstream: &async_nats::jetstream::Context, subject: &str, body: impl Into<bytes::Bytes>) {
    jetstream.publish(subject.to_owned(), body.into()).await.unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_nobody_can_read_are_dropped() {
    let url = setting("LONGSHORE_TEST_NATS_URL");
    let config = config(&url);
    let (bus, jetstream) = (prepared(config.clone()).await, raw(&url).await);
    let subject = format!("{}.jobs.chunk", config.prefix);
    for garbage in [&b"\xff\xfe"[..], b"", b"{}", br#"{"import":"no id","attempt":1,"epoch":1,"chunk":1}"#] {
        publish_raw(&jetstream, &subject, garbage).await;
        publish_raw(&jetstream, &config.events_subject, garbage).await;
    }
    bus.publish_chunk(&job(1)).await.unwrap();
    bus.publish_event(&event("good.csv")).await.unwrap();
    pull_one(&bus).await.receipt.ack().await.unwrap();
    until("the good event", async || match bus.pull_events(9, SHORT).await.unwrap().pop() {
        Some(delivery) => {
            assert_eq!(delivery.message, event("good.csv"));
            delivery.receipt.ack().await.unwrap();
            true
        }
        None => false,
    })
    .await;
    // None of it comes again, and the work queue is empty.
    nothing_comes(&bus, ACK_WAIT + SHORT).await;
    assert!(bus.pull_events(9, SHORT).await.unwrap().is_empty());
    let mut jobs = jetstream.get_stream(stream(&config, "CHUNKS")).await.unwrap();
    assert_eq!(jobs.info().await.unwrap().state.messages, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_several_arrivals_is_done_when_all_are() {
    let url = setting("LONGSHORE_TEST_NATS_URL");
    let config = config(&url);
    let (bus, jetstream) = (prepared(config.clone()).await, raw(&url).await);
    let record = |name: &str, key: &str| json!({"eventName": name, "s3": {"bucket": {"name": "imports"}, "object": {"key": key}}});
    let records = json!({"Records": [
        record("s3:ObjectCreated:Put", "a+b"),
        record("s3:ObjectRemoved:Delete", "gone"),
        record("s3:ObjectCreated:Put", "%C3%BC"),
    ]});
    publish_raw(&jetstream, &config.events_subject, json!({"Event": "s3:TestEvent"}).to_string()).await;
    publish_raw(&jetstream, &config.events_subject, records.to_string()).await;

    // One at a time, though they came together.
    let mut arrivals = Vec::new();
    for _ in 0..2 {
        until("an arrival", async || {
            let pulled = bus.pull_events(1, SHORT).await.unwrap();
            assert!(pulled.len() <= 1);
            arrivals.extend(pulled);
            !arrivals.is_empty()
        })
        .await;
        let arrival = arrivals.remove(0);
        if arrival.message == event("a b") {
            arrival.receipt.ack().await.unwrap();
            arrival.receipt.ack().await.unwrap();
        } else {
            // Not answered.
            assert_eq!(arrival.message, event("ü"));
        }
    }
    let mut again = Vec::new();
    until("both again", async || {
        again.extend(bus.pull_events(9, SHORT).await.unwrap());
        again.len() >= 2
    })
    .await;
    for arrival in again {
        arrival.receipt.ack().await.unwrap();
    }
    let end = Instant::now() + ACK_WAIT + SHORT;
    while Instant::now() < end {
        assert!(bus.pull_events(9, end - Instant::now()).await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_store_is_made_again_by_whoever_needs_it() {
    let url = setting("LONGSHORE_TEST_NATS_URL");
    let config = config(&url);
    let (bus, jetstream) = (prepared(config.clone()).await, raw(&url).await);
    let chunks = stream(&config, "CHUNKS");

    jetstream.delete_stream(&chunks).await.unwrap();
    bus.publish_chunk(&job(1)).await.unwrap();
    pull_one(&bus).await.receipt.ack().await.unwrap();

    jetstream.delete_stream(&chunks).await.unwrap();
    assert!(bus.pull_chunks(1, SHORT).await.unwrap().is_empty());
    bus.publish_chunk(&job(2)).await.unwrap();
    assert_eq!(pull_one(&bus).await.message, job(2));

    // The consumer alone: unanswered jobs come again.
    let left = jetstream.get_stream(&chunks).await.unwrap();
    left.delete_consumer(&format!("{}-workers", config.prefix)).await.unwrap();
    assert_eq!(pull_one(&bus).await.message, job(2));

    jetstream.delete_stream(stream(&config, "EVENTS")).await.unwrap();
    bus.publish_event(&event("k")).await.unwrap();
    assert_eq!(within("the event", bus.pull_events(1, LONG)).await.unwrap()[0].message, event("k"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_waits_when_the_stream_is_wiped_goes_on() {
    let url = setting("LONGSHORE_TEST_NATS_URL");
    let config = config(&url);
    let (bus, jetstream) = (Arc::new(prepared(config.clone()).await), raw(&url).await);
    let waiting = tokio::spawn({
        let bus = Arc::clone(&bus);
        async move { pull_one(&*bus).await.message }
    });
    let mut chunks = jetstream.get_stream(stream(&config, "CHUNKS")).await.unwrap();
    until("the pull waits", async || {
        let consumer = chunks.consumer_info(format!("{}-workers", config.prefix)).await.unwrap();
        consumer.num_waiting > 0
    })
    .await;
    jetstream.delete_stream(&chunks.info().await.unwrap().config.name.clone()).await.unwrap();
    bus.publish_chunk(&job(4)).await.unwrap();
    assert_eq!(within("the pull", waiting).await.unwrap(), job(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_left_alone() {
    let url = setting("LONGSHORE_TEST_NATS_URL");
    let config = config(&url);
    let jetstream = raw(&url).await;
    let day = Duration::from_secs(24 * 60 * 60);
    let chunks = async_nats::jetstream::stream::Config {
        name: stream(&config, "CHUNKS"),
        subjects: vec![format!("{}.jobs.chunk", config.prefix)],
        retention: async_nats::jetstream::stream::RetentionPolicy::WorkQueue,
        max_age: day,
        ..Default::default()
    };
    jetstream.create_stream(chunks).await.unwrap();
    // Somebody made a stream for the storage's events, under another name.
    let other = async_nats::jetstream::stream::Config {
        name: unique("OTHER"),
        subjects: vec![format!("{}.>", config.events_subject), config.events_subject.clone()],
        ..Default::default()
    };
    let mut other = jetstream.create_stream(other).await.unwrap();

    let (bus, second) =
        (NatsBus::connect(config.clone()).await.unwrap(), NatsBus::connect(config.clone()).await.unwrap());
    let (one, two) = tokio::join!(bus.prepare(), second.prepare());
    one.unwrap();
    two.unwrap();
    let mut chunks = jetstream.get_stream(stream(&config, "CHUNKS")).await.unwrap();
    assert_eq!(chunks.info().await.unwrap().config.max_age, day);
    assert!(jetstream.get_stream(stream(&config, "EVENTS")).await.is_err());

    bus.publish_event(&event("k")).await.unwrap();
    assert_eq!(other.info().await.unwrap().state.messages, 1);
    assert_eq!(within("the event", bus.pull_events(1, LONG)).await.unwrap()[0].message, event("k"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_started_again_is_used_again() {
    let mut server = NatsServer::new();
    server.start();
    let bus = Arc::new(prepared(config(&server.url())).await);
    bus.publish_chunk(&job(1)).await.unwrap();
    pull_one(&*bus).await.receipt.ack().await.unwrap();
    let made = async || {
        futures::future::join_all(QueueName::ALL.iter().map(async |queue| bus.depth(*queue).await.unwrap().made)).await
    };
    let mut queues = made().await;

    // A puller waits while the server dies, and again while it comes back without its store.
    for (chunk, wipe) in [(2, false), (3, true)] {
        server.kill();
        until("the bus sees it", async || bus.check().await.is_err()).await;
        let error = bus.publish_chunk(&job(chunk)).await.unwrap_err();
        assert!(error.endpoint.starts_with("nats://127.0.0.1:"), "{error}");
        if wipe {
            server.wipe();
        }
        server.start();
        let puller = tokio::spawn({
            let bus = Arc::clone(&bus);
            async move {
                loop {
                    // Errors are the caller's to try again.
                    if let Ok(mut jobs) = bus.pull_chunks(1, LONG).await
                        && let Some(delivery) = jobs.pop()
                    {
                        delivery.receipt.ack().await.unwrap();
                        return delivery.message;
                    }
                }
            }
        });
        until("publishing again", async || bus.publish_chunk(&job(chunk)).await.is_ok()).await;
        assert_eq!(within("pulling again", puller).await.unwrap(), job(chunk));
        until("the check", async || bus.check().await.is_ok()).await;
        // What was published while the server was away may have arrived after all: drain it.
        until("an empty queue", async || {
            let Ok(jobs) = bus.pull_chunks(9, SHORT).await else { return false };
            for delivery in &jobs {
                delivery.receipt.ack().await.unwrap();
            }
            jobs.is_empty()
        })
        .await;
        let now = made().await;
        let others = queues.iter().zip(&now).filter(|(before, now)| before != now).count();
        assert_eq!(
            others,
            if wipe { 3 } else { 0 },
            "queues that were lost are told from those that were there before"
        );
        queues = now;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_at_the_start_is_named_and_awaited() {
    let mut server = NatsServer::new();
    let url = server.url().replace("nats://", "nats://somebody:hunter2@");
    let bus = NatsBus::connect(config(&url)).await.unwrap();
    for error in [bus.check().await.unwrap_err(), bus.prepare().await.unwrap_err()] {
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(&server.url()), "{shown}");
        assert!(!shown.contains("hunter2") && !shown.contains("somebody"), "{shown}");
    }
    server.start();
    until("preparing", async || bus.prepare().await.is_ok()).await;
    bus.publish_chunk(&job(1)).await.unwrap();
    assert_eq!(pull_one(&bus).await.message, job(1));
}

fn scan_job(start: u64) -> ScanJob {
    let range = ByteRange::new(start, start + 40);
    ScanJob { import: ImportId(uuid::Uuid::nil()), attempt: Attempt(1), range, block: 20, machine: MACHINE }
}

/// Blocks that differ from job to job.
fn scanned(job: &ScanJob) -> Vec<ScannedBlock> {
    let text = format!("{},\"x\ny\"\n", job.range.start.0).repeat(8);
    scan_blocks(&Dialect::new(&Format::default(), 2).unwrap(), &text.as_bytes()[..40], job.block)
}

#[tokio::test]
async fn one_process_has_nobody_else_to_ask_for_a_scan() {
    assert_eq!(InProcessBus::new().ask_scan(&scan_job(0), LONG).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_is_answered_by_one_of_those_who_are_there() {
    let config = config(&setting("LONGSHORE_TEST_NATS_URL"));
    let owner = prepared(config.clone()).await;
    assert_eq!(owner.ask_scan(&scan_job(0), LONG).await.unwrap(), None, "nobody is there");

    let (mut takers, stop) = (Vec::new(), tokio_util::sync::CancellationToken::new());
    for _ in 0..3 {
        let worker = prepared(config.clone()).await;
        let mut calls = worker.scan_calls().await.unwrap().take_until(stop.clone().cancelled_owned()).boxed();
        takers.push(tokio::spawn(async move {
            let mut taken = 0;
            while let Some(ScanCall { job, answer }) = calls.next().await {
                answer.send(&scanned(&job)).await.unwrap();
                taken += 1;
            }
            drop(worker);
            taken
        }));
    }
    // What is no job, and a job that nobody waits for, are passed over.
    let client = async_nats::connect(&config.url).await.unwrap();
    client.publish(format!("{}.scans", config.prefix), "{".into()).await.unwrap();
    client.flush().await.unwrap();
    let jobs: Vec<ScanJob> = (0..40).map(scan_job).collect();
    let answers = jobs.iter().map(|job| owner.ask_scan(job, LONG));
    let answers = within("answers", futures::future::try_join_all(answers)).await.unwrap();
    for (job, blocks) in jobs.iter().zip(answers) {
        assert_eq!(blocks.as_ref(), Some(&scanned(job)), "{job:?}");
    }
    stop.cancel();
    let taken: Vec<u32> = futures::future::try_join_all(takers).await.unwrap();
    assert_eq!(taken.iter().sum::<u32>(), 40, "each job went to one: {taken:?}");
    assert!(taken.iter().filter(|taken| **taken > 0).count() > 1, "they share the work: {taken:?}");
    until("nobody is left", async || matches!(owner.ask_scan(&scan_job(0), SHORT).await, Ok(None))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_nobody_answers_is_given_up() {
    let config = config(&setting("LONGSHORE_TEST_NATS_URL"));
    let (owner, worker) = (prepared(config.clone()).await, prepared(config).await);
    let mut calls = worker.scan_calls().await.unwrap();
    let job = scan_job(7);
    let (asked, call) = tokio::join!(owner.ask_scan(&job, SHORT), calls.next());
    assert_eq!(call.map(|call| call.job), Some(job));
    assert!(asked.is_err(), "{asked:?}");
}
