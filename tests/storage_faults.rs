//! An S3 server that fails in every way it has, while imports read from it: they wait, and end exactly; an object that
//! goes or changes meanwhile fails its import, and a cancel is whole or too late.
//!
//! Needs `deploy/servers test`; `SEED=…` repeats the choices.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::time::Instant;

use async_compression::tokio::write::GzipEncoder;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use common::api::{assert_failed, assert_succeeded, id_of};
use common::cluster::{Cluster, Options};
use common::data::{columns, source};
use common::process::settings;
use common::recovery::moves_on;
use common::s3::{S3Kind, on_every_s3_server};
use common::s3_faults::{Fault, S3Faults};
use common::{seed, until};

on_every_s3_server!(
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    faults_of_some_requests_cost_time_only,
    an_object_that_goes_or_changes_among_faults_fails_the_import,
    a_cancel_or_a_retry_among_faults_is_whole,
);

/// Rows of a file of some 330 chunks, most of which are read by nodes that do not scan it; longer than the sample of a plan.
const ROWS: u64 = 30_000;

/// A cluster whose nodes reach the S3 server through a proxy that fails; clients reach it directly.
struct Faulty {
    cluster: Cluster,
    proxy: S3Faults,
}

impl Faulty {
    async fn start(s3: S3Kind) -> Self {
        Self::with_patience(s3, "15m").await
    }

    async fn with_patience(s3: S3Kind, patience: &str) -> Self {
        let direct = s3.shared_endpoint();
        let proxy = S3Faults::start(&direct).await;
        let more = settings([
            ("S3_ENDPOINT", &proxy.endpoint),
            ("S3_PUBLIC_ENDPOINT", &direct),
            ("PATIENCE", patience),
            ("LOG", "info,longshore_actors=debug,longshore_storage=debug"),
        ]);
        Self { cluster: Cluster::start(&Options { chunk_size: "4096", more, ..Options::on(s3) }).await, proxy }
    }

    /// Uploads and starts; the id and the key.
    async fn begin(&self, request: &Value, body: Vec<u8>) -> (String, String) {
        let created = self.cluster.api.create(request).await;
        assert_eq!(self.cluster.api.put(&created, body).await, 200);
        let id = id_of(&created);
        assert_eq!(self.act(&id, "complete").await, 202);
        (id, created["source"]["key"].as_str().unwrap().to_owned())
    }

    /// `complete`, `cancel` or `retry`, until the API has a storage to look at.
    async fn act(&self, id: &str, action: &str) -> u16 {
        until(&format!("{action} is answered"), async || {
            let (status, answer) = self.cluster.api.post(&format!("/v1/imports/{id}/{action}"), &json!({})).await;
            assert!(status == 503 || status.as_u16() < 500, "{action}: {status}: {answer}");
            (status != 503).then_some(status.as_u16())
        })
        .await
    }

    /// How often a node asked the storage again.
    fn again(&self) -> usize {
        self.cluster.workers.iter().map(|worker| worker.log().matches("again").count()).sum()
    }

    async fn assert_exact(&self, id: &str, table: &str, csv: &[u8]) -> Value {
        let import = self.cluster.api.done(id).await;
        assert_succeeded(&import);
        self.cluster.database.assert_holds(table, &[csv]).await;
        import
    }

    async fn assert_tidy(&self) {
        self.cluster.database.assert_tidy().await;
        let sql = "SELECT count(*) FROM pg_stat_activity \
                   WHERE application_name LIKE 'longshore/%' AND datname = current_database()";
        until("no session is left", async || (self.cluster.database.one(sql).await == "0").then_some(())).await;
        self.cluster.assert_clean_logs();
    }
}

fn into(table: &str) -> Value {
    json!({"destination": {"table": table}})
}

/// What fails without taking as long as a client waits.
fn quick_faults() -> Vec<Fault> {
    Fault::ALL.into_iter().filter(|fault| *fault != Fault::Hang).collect()
}

async fn faults_of_some_requests_cost_time_only(s3: S3Kind) {
    let faulty = Faulty::start(s3).await;
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    faulty.proxy.fail(random.random(), 0.4, &quick_faults());
    for round in 0..3 {
        let table = format!("t{round}");
        let file = source(random.random(), ROWS, 1, 0);
        // One is packed: it is read as a stream, and decoded text is put and read.
        let body = if round == 1 { gzip(&file.csv).await } else { file.csv.clone() };
        let mut request = into(&table);
        request["columns"] = columns();
        let (id, _) = faulty.begin(&request, body).await;
        let import = faulty.assert_exact(&id, &table, &file.csv).await;
        assert_eq!(import["attempt"], 1, "{import:#}");
    }
    faulty.proxy.mend();
    let counts = faulty.proxy.counts();
    println!("faults: {counts:?}");
    for fault in quick_faults() {
        assert!(counts.get(&fault).is_some_and(|count| *count >= 3), "{fault:?}: {counts:?} (SEED={seed})");
    }
    faulty.assert_tidy().await;
}

async fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzipEncoder::new(Vec::new());
    encoder.write_all(text).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

/// All answers come from the proxy while it fails, whatever the server behind it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_fails_altogether_is_waited_for() {
    let faulty = Faulty::start(S3Kind::Minio).await;
    let mut random = StdRng::seed_from_u64(seed());
    for fault in Fault::ALL {
        let table = format!("t_{fault:?}").to_lowercase();
        let file = source(random.random(), ROWS, 1, 0);
        faulty.proxy.hold(random.random_range(0..20));
        let (id, _) = faulty.begin(&into(&table), file.csv.clone()).await;
        faulty.proxy.held().await;
        let (said, counted) = (faulty.again(), faulty.proxy.counts().get(&fault).copied().unwrap_or(0));
        faulty.proxy.fail(random.random(), 1.0, &[fault]);
        faulty.proxy.let_go();
        // As many as are worked on at once.
        let wanted = counted + 3 * 2;
        until(&format!("{fault:?} came about"), async || {
            let counts = faulty.proxy.counts();
            // What crawls fails nowhere, and of what hangs nobody knows for a while.
            let met = matches!(fault, Fault::Slow | Fault::Hang) || faulty.again() > said;
            (met && counts.get(&fault).is_some_and(|count| *count >= wanted)).then_some(())
        })
        .await;
        faulty.proxy.mend();
        moves_on(&faulty.cluster.database, &format!("{fault:?}"), &id).await;
        let mended = Instant::now();
        faulty.assert_exact(&id, &table, &file.csv).await;
        println!("{fault:?}: ended {:.1} s later", mended.elapsed().as_secs_f64());
    }
    faulty.assert_tidy().await;
}

/// Each request is answered, no body is whole: wherever an import is by then, it does not try for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_whose_answers_are_never_whole_is_given_up() {
    let faulty = Faulty::with_patience(S3Kind::Minio, "1s").await;
    let mut random = StdRng::seed_from_u64(seed());
    for (round, (packed, pass)) in
        [(true, 0), (true, 1), (true, 2), (true, 3), (true, 6), (true, 40), (false, 1), (false, 3)]
            .into_iter()
            .enumerate()
    {
        let table = format!("t{round}");
        let file = source(random.random(), ROWS, 1, 0);
        let body = if packed { gzip(&file.csv).await } else { file.csv.clone() };
        faulty.proxy.hold(pass);
        let (id, _) = faulty.begin(&into(&table), body).await;
        faulty.proxy.held().await;
        faulty.proxy.fail(random.random(), 1.0, &[Fault::Truncated]);
        faulty.proxy.let_go();
        assert_failed(&faulty.cluster.api.done(&id).await, "unavailable");
        faulty.proxy.mend();
        // Nothing is wrong with the file.
        assert_eq!(faulty.act(&id, "retry").await, 202);
        faulty.assert_exact(&id, &table, &file.csv).await;
    }
    faulty.assert_tidy().await;
}

/// Rows for a table that is there wait in the object: whoever takes the publish over has nothing of it in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_that_another_owner_begins_again_reads_the_object_among_faults() {
    let mut faulty = Faulty::start(S3Kind::Minio).await;
    let file = source(seed(), ROWS / 5, 1, 0);
    let database = &faulty.cluster.database;
    database.run("CREATE TABLE t (id bigint PRIMARY KEY, name text, note text, amount bigint)").await;
    // Whoever comes to this key waits until it is known whether it is taken.
    let lock = database.lock("INSERT INTO t VALUES (5000)").await;
    let (id, _) = faulty.begin(&into("t"), file.csv.clone()).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'COPY %'";
    until("the rows are copied", async || (database.one(waiting).await != "0").then_some(())).await;
    let owner = until("somebody owns it", async || faulty.cluster.owner().await).await;
    faulty.cluster.workers[owner].kill();
    // Its chunks are read as one, in vain until then: by none of these comes an answer that is right in the end.
    let faults = [Fault::InternalError, Fault::SlowDown, Fault::Reset, Fault::Truncated, Fault::Short];
    faulty.proxy.fail(seed(), 1.0, &faults);
    lock.rollback().await.unwrap();
    until("it is tried often", async || (faulty.proxy.counts().values().sum::<u32>() >= 10).then_some(())).await;
    faulty.proxy.mend();
    let import = faulty.assert_exact(&id, "t", &file.csv).await;
    assert_eq!(import["attempt"], 1, "{import:#}");
    faulty.cluster.workers[owner].start();
    faulty.assert_tidy().await;
}

async fn an_object_that_goes_or_changes_among_faults_fails_the_import(s3: S3Kind) {
    let faulty = Faulty::start(s3).await;
    let mut random = StdRng::seed_from_u64(seed());
    for (round, deleted) in [true, false, true, false].into_iter().enumerate() {
        let table = format!("t{round}");
        let file = source(random.random(), ROWS, 1, 0);
        // Some chunks are loaded by then.
        faulty.proxy.hold(random.random_range(10..40));
        let (id, key) = faulty.begin(&into(&table), file.csv.clone()).await;
        faulty.proxy.held().await;
        faulty.proxy.fail(random.random(), 0.4, &quick_faults());
        if deleted {
            faulty.cluster.bucket.delete(&key).await;
        } else {
            // As long as it was.
            let other = source(random.random(), ROWS, 1, 0).csv;
            faulty.cluster.bucket.put(&key, &other[..other.len().min(file.csv.len())]).await;
        }
        faulty.proxy.let_go();
        assert_failed(&faulty.cluster.api.done(&id).await, "object-changed");
        assert!(!faulty.cluster.database.has_table(&table).await, "{table} is there");
        faulty.proxy.mend();
    }
    faulty.assert_tidy().await;
}

async fn a_cancel_or_a_retry_among_faults_is_whole(s3: S3Kind) {
    let faulty = Faulty::start(s3).await;
    let api = &faulty.cluster.api;
    let mut random = StdRng::seed_from_u64(seed());
    let mut cancelled = 0;
    for round in 0..6 {
        let table = format!("t{round}");
        let file = source(random.random(), ROWS, 1, 0);
        faulty.proxy.hold(random.random_range(0..45));
        let (id, key) = faulty.begin(&into(&table), file.csv.clone()).await;
        faulty.proxy.held().await;
        faulty.proxy.fail(random.random(), 0.5, &quick_faults());
        faulty.proxy.let_go();
        let status = faulty.act(&id, "cancel").await;
        let import = api.done(&id).await;
        faulty.proxy.mend();
        println!("cancel: {status}, {}", import["state"]);
        match (status, import["state"].as_str().unwrap()) {
            (202, "cancelled") => {
                assert!(!faulty.cluster.database.has_table(&table).await, "{table} is there");
                cancelled += 1;
            }
            (409, "succeeded") => drop(faulty.assert_exact(&id, &table, &file.csv).await),
            other => panic!("{other:?}: {import:#}"),
        }
        assert!(faulty.cluster.bucket.list().await.contains(&key), "the object stays");
    }
    assert!(cancelled >= 2, "only {cancelled} were cancelled");

    let file = source(random.random(), ROWS, 1, 0);
    let database = &faulty.cluster.database;
    database.run("CREATE TABLE again (id bigint CHECK (id < 0), name text, note text, amount bigint)").await;
    let (id, _) = faulty.begin(&into("again"), file.csv.clone()).await;
    assert_failed(&api.done(&id).await, "too-many-rejects");
    database.run("ALTER TABLE again DROP CONSTRAINT again_id_check").await;
    faulty.proxy.fail(random.random(), 0.5, &quick_faults());
    assert_eq!(faulty.act(&id, "retry").await, 202);
    let import = faulty.assert_exact(&id, "again", &file.csv).await;
    assert_eq!(import["attempt"], 2);
    faulty.assert_tidy().await;
}
