//! What goes over NATS, told wrongly: jobs and reports that come many times, in another order, much later or never; storage
//! events that are repeated, early, foreign or no events at all. Messages are hints, so that none of it loads a row twice, and
//! every import ends.
//!
//! Needs `deploy/servers test`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use common::api::{assert_failed, assert_succeeded, assert_tiles, id_of};
use common::cluster::{Cluster, Options};
use common::copies::Copies;
use common::data::{columns, source};
use common::s3::{S3Kind, on_every_s3_server};
use common::servers::EVENTS_SUBJECT;
use common::{seed, until};

on_every_s3_server!(
    messages_that_come_a_hundred_times_in_any_order_and_much_later_load_nothing_twice,
    jobs_that_are_dropped_again_and_again_are_found_again,
    good_events_among_a_thousand_bad_ones_start_their_imports_once,
    an_event_before_its_object_is_no_reason_to_forget_it,
);

/// How often each message comes.
const TIMES: usize = 100;

fn into(table: &str) -> Value {
    json!({"destination": {"table": table}, "columns": columns()})
}

async fn begin(cluster: &Cluster, table: &str, csv: &[u8]) -> String {
    let id = cluster.api.begin(&into(table), csv).await;
    cluster.api.act(&id, "complete").await;
    id
}

async fn resource(cluster: &Cluster, id: &str) -> Value {
    cluster.api.got(&format!("/v1/imports/{id}")).await
}

async fn messages_that_come_a_hundred_times_in_any_order_and_much_later_load_nothing_twice(s3: S3Kind) {
    let mut random = StdRng::seed_from_u64(seed());
    let mut cluster = Cluster::start(&Options { chunk_size: "4000", ..Options::on(s3) }).await;
    let copies = Copies::of(&cluster.nats).await;
    let [one, two] = [1, 100_001].map(|first| source(random.random(), 3_000, first, 0).csv);
    let three = source(random.random(), 6_000, 200_001, 0).csv;

    // One that is done, one that fails and will be retried, and one that changes its owner.
    let done = begin(&cluster, "done", &one).await;
    assert_succeeded(&cluster.api.done(&done).await);
    let table = "(id bigint PRIMARY KEY, name text, note text CHECK (note = 'never'), amount bigint)";
    cluster.database.run(&format!("CREATE TABLE retried {table}")).await;
    let retried = begin(&cluster, "retried", &two).await;
    assert_failed(&cluster.api.done(&retried).await, "too-many-rejects");
    cluster.database.run("ALTER TABLE retried DROP CONSTRAINT retried_note_check").await;
    let moved = begin(&cluster, "moved", &three).await;
    let staging = cluster.database.staging_table().await;
    let lock = cluster.database.lock(&format!("LOCK TABLE {staging} IN SHARE MODE")).await;
    until("a chunk of it is worked on", async || {
        let chunks = cluster.api.all(&format!("/v1/imports/{moved}/chunks"), 500).await;
        chunks.iter().any(|chunk| chunk["state"] == "running").then_some(())
    })
    .await;
    let owner = until("somebody owns it", async || cluster.owner().await).await;
    cluster.workers[owner].kill();
    lock.rollback().await.unwrap();
    cluster.workers[owner].start();

    // Jobs of the done import, of an older attempt and of an older epoch, in between those that are wanted.
    cluster.api.act(&retried, "retry").await;
    copies.repeat(&copies.heard(), TIMES, &mut random).await;
    let ended = join_all([&done, &retried, &moved].map(|id| cluster.api.done(id))).await;
    for (import, attempt) in ended.iter().zip([1, 2, 1]) {
        assert_succeeded(import);
        assert_eq!(import["attempt"], attempt, "{import:#}");
    }
    let epoch = cluster.database.one(&format!("SELECT epoch FROM longshore_imports WHERE id = '{moved}'")).await;
    assert_eq!(epoch, "2", "there was one owner more, and not one for each message");

    // Long after: everything that was ever said.
    let heard = copies.heard();
    for said in ["jobs.import", "jobs.chunk", "reports.", "changes."] {
        let count = heard.iter().filter(|copy| copy.subject.contains(said)).count();
        println!("{count} of {said}");
        assert!(count > 0, "nothing was heard of {said}");
    }
    copies.repeat(&heard, TIMES, &mut random).await;
    copies.jobs_are_done().await;
    let last = source(random.random(), 3_000, 300_001, 0).csv;
    let after = begin(&cluster, "done", &last).await;
    assert_succeeded(&cluster.api.done(&after).await);
    for (id, import) in [&done, &retried, &moved].into_iter().zip(&ended) {
        assert_eq!(resource(&cluster, id).await, *import);
        let chunks = cluster.api.all(&format!("/v1/imports/{id}/chunks"), 500).await;
        assert_tiles(&chunks, import["source"]["size"].as_u64().unwrap());
    }
    cluster.database.assert_holds("done", &[&one, &last]).await;
    cluster.database.assert_holds("retried", &[&two]).await;
    cluster.database.assert_holds("moved", &[&three]).await;
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
    cluster.assert_no_errors();
}

async fn jobs_that_are_dropped_again_and_again_are_found_again(s3: S3Kind) {
    // Nobody takes the import's job before it is dropped.
    let mut cluster = Cluster::start(&Options { workers: 0, chunk_size: "2000", ..Options::on(s3) }).await;
    let copies = Copies::of(&cluster.nats).await;
    let csv = source(seed(), 20_000, 1, 0).csv;
    let id = begin(&cluster, "t", &csv).await;
    assert_eq!(copies.drop_jobs().await, 1);
    cluster.start_workers(2);
    let mut dropped = 0;
    for chunks in [1, 60, 150, 300] {
        cluster.api.chunks_done(&id, chunks).await;
        dropped += copies.drop_jobs().await;
    }
    let import = cluster.api.done(&id).await;
    println!("{dropped} jobs of chunks were dropped");
    assert_succeeded(&import);
    assert_eq!((&import["attempt"], &import["progress"]["rows_loaded"]), (&json!(1), &json!(20_000)));
    assert!(dropped > 0);
    cluster.database.assert_holds("t", &[&csv]).await;
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
    cluster.assert_no_errors();
}

/// The event of an upload as MinIO sends it; the key is encoded already.
fn event(bucket: &str, key: &str) -> Value {
    json!({
        "EventName": "s3:ObjectCreated:Put",
        "Key": format!("{bucket}/{key}"),
        "Records": [{
            "eventVersion": "2.0",
            "eventSource": "minio:s3",
            "eventName": "s3:ObjectCreated:Put",
            "s3": {
                "s3SchemaVersion": "1.0", "configurationId": "Config",
                "bucket": {"name": bucket, "arn": format!("arn:aws:s3:::{bucket}")},
                "object": {"key": key, "size": 3, "eTag": "ab", "sequencer": "17"},
            },
        }],
    })
}

/// The encoded key of an import's object.
fn key_of(import: &Value) -> String {
    import["source"]["key"].as_str().unwrap().replace('/', "%2F")
}

/// Nothing that starts an import: no events, events of nobody's and of others' objects.
fn bad_events(bucket: &str, random: &mut StdRng) -> Vec<Vec<u8>> {
    let nobody = "01980000-0000-7000-8000-000000000000";
    let mut one = |kind: u32| -> Vec<u8> {
        let text = |value: Value| value.to_string().into_bytes();
        match kind {
            0 => Vec::new(),
            1 => (0..random.random_range(1..2_000)).map(|_| random.random()).collect(),
            2 => b"not JSON at all".to_vec(),
            3 => text(json!([{"Records": []}])),
            4 => text(json!({"Records": "none"})),
            5 => text(json!({"Records": [{"eventName": "s3:ObjectCreated:Put", "s3": null}]})),
            6 => vec![b'['; 900_000],
            7 => [b"{\"Records\":\"", vec![b'x'; 900_000].as_slice(), b"\"}"].concat(),
            8 => text(event(bucket, "imports%2F%FF%FE%2Fa.csv")),
            9 => text(event(bucket, "imports%2F..%2F..%2Fetc%2Fpasswd")),
            10 => text(event(bucket, &format!("imports%2F{nobody}%2Fa.csv"))),
            11 => text(event(bucket, &format!("imports%2F{nobody}%2F..%2Fa.csv"))),
            12 => text(event("another-bucket", &format!("imports%2F{nobody}%2Fa.csv"))),
            13 => text(event(bucket, "elsewhere%2Fa.csv")),
            14 => text(event("", "")),
            15 => text(event(bucket, &"x".repeat(100_000))),
            16 => text(json!({"Service": "Amazon S3", "Event": "s3:TestEvent"})),
            17 => {
                // Very many arrivals in one message.
                let record = event(bucket, "elsewhere%2Fa.csv")["Records"][0].clone();
                text(json!({"Records": vec![record; 2_000]}))
            }
            _ => {
                let whole = text(event(bucket, &format!("imports%2F{nobody}%2Fa.csv")));
                whole[..random.random_range(1..whole.len())].to_vec()
            }
        }
    };
    // Of each kind once, the large ones no more than that.
    let mut events: Vec<Vec<u8>> = (0..=18).map(&mut one).collect();
    let small = [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 16, 18];
    let mut which = StdRng::seed_from_u64(17);
    while events.len() < 1_000 {
        events.push(one(*small.choose(&mut which).unwrap()));
    }
    events
}

async fn good_events_among_a_thousand_bad_ones_start_their_imports_once(s3: S3Kind) {
    let mut random = StdRng::seed_from_u64(seed());
    let cluster = Cluster::start(&Options { events: true, ..Options::on(s3) }).await;
    let copies = Copies::of(&cluster.nats).await;
    let bucket = cluster.bucket.name.clone();
    cluster.database.run("CREATE TABLE t (id bigint PRIMARY KEY, name text, note text, amount bigint)").await;

    // Good events behind a thousand bad ones, and repeated a hundred times among as many.
    let mut bad = bad_events(&bucket, &mut random);
    bad.shuffle(&mut random);
    for body in &bad {
        copies.tell(EVENTS_SUBJECT, body.clone()).await;
    }
    let mut begun = Vec::new();
    for number in 0..4 {
        let csv = source(random.random(), 2_000, 1 + number * 100_000, 0).csv;
        let created = cluster.api.create(&into("t")).await;
        assert_eq!(cluster.api.put(&created, csv.clone()).await, 200);
        begun.push((created, csv));
    }
    let good = begun.iter().map(|(created, _)| event(&bucket, &key_of(created)).to_string().into_bytes());
    let mut mixed: Vec<Vec<u8>> = good.flat_map(|body| std::iter::repeat_n(body, TIMES)).chain(bad).collect();
    mixed.shuffle(&mut random);
    for body in mixed {
        copies.tell(EVENTS_SUBJECT, body).await;
    }
    for (created, _) in &begun {
        let import = cluster.api.done(&id_of(created)).await;
        assert_succeeded(&import);
        assert_eq!((&import["trigger"], &import["attempt"]), (&json!("event"), &json!(1)));
    }
    // Every message was answered for, and what comes behind is taken.
    copies.events_are_done().await;
    let csv = source(random.random(), 2_000, 900_001, 0).csv;
    let import = cluster.api.import(&into("t"), csv.clone()).await;
    assert_succeeded(&import);
    assert_eq!(import["trigger"], "event");
    let files: Vec<&[u8]> = begun.iter().map(|(_, csv)| csv.as_slice()).chain([csv.as_slice()]).collect();
    cluster.database.assert_holds("t", &files).await;
    assert_eq!(cluster.api.all("/v1/imports", 50).await.len(), 5);
    assert_eq!(cluster.database.one("SELECT max(epoch) FROM longshore_imports").await, "1");
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
    cluster.assert_no_errors();
}

async fn an_event_before_its_object_is_no_reason_to_forget_it(s3: S3Kind) {
    // No event comes by itself here.
    let cluster = Cluster::start(&Options { sweep: "500ms", ..Options::on(s3) }).await;
    let copies = Copies::of(&cluster.nats).await;
    let early = async |created: &Value| {
        for _ in 0..TIMES {
            let body = event(&cluster.bucket.name, &key_of(created)).to_string();
            copies.tell(EVENTS_SUBJECT, body).await;
        }
    };
    // Found by the sweep, and by an event that comes again.
    let (swept, told) = (cluster.api.create(&into("swept")).await, cluster.api.create(&into("told")).await);
    let csv = source(seed(), 2_000, 1, 0).csv;
    early(&swept).await;
    early(&told).await;
    copies.events_are_done().await;
    for created in [&swept, &told] {
        assert_eq!(resource(&cluster, &id_of(created)).await["state"], "awaiting_upload");
    }
    assert_eq!(cluster.api.put(&swept, csv.clone()).await, 200);
    let import = cluster.api.done(&id_of(&swept)).await;
    assert_succeeded(&import);
    assert_eq!(import["trigger"], "sweep");
    let ((), status, ()) = tokio::join!(early(&told), cluster.api.put(&told, csv.clone()), early(&told));
    assert_eq!(status, 200);
    assert_succeeded(&cluster.api.done(&id_of(&told)).await);
    copies.events_are_done().await;
    for (created, table) in [(&swept, "swept"), (&told, "told")] {
        let import = resource(&cluster, &id_of(created)).await;
        assert_eq!((&import["attempt"], &import["progress"]["rows_loaded"]), (&json!(1), &json!(2_000)));
        cluster.database.assert_holds(table, &[&csv]).await;
    }
    assert_eq!(cluster.database.one("SELECT max(epoch) FROM longshore_imports").await, "1");
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
    cluster.assert_no_errors();
}
