//! Fifty SIGKILLs in a real cluster, chosen from a seed, while imports keep being made: every one of them has to end right.
//!
//! Needs `deploy/servers test`. `SEED=… cargo test --test kills` repeats the choices.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use common::api::{Api, assert_succeeded, assert_tiles, id_of};
use common::cluster::{Cluster, Options, owner};
use common::data::{columns, source};
use common::postgres::Database;
use common::process::Process;
use common::s3::{S3Kind, on_every_s3_server};
use common::servers::Nats;
use common::{seed, until_within};

on_every_s3_server!(
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    kills_at_any_moment_lose_and_repeat_nothing,
);

const KILLS: u32 = 50;
/// Imports that run at once.
const LANES: u64 = 3;
/// A table with a primary key that all lanes import into.
const KEYED: &str = "keyed";
/// How long one import may take while its nodes die around it.
const PATIENCE: Duration = Duration::from_secs(400);

/// An import that was made, and what has to come of it.
struct Made {
    id: String,
    table: String,
    /// Only the rows that have to be there.
    good: Vec<u8>,
    /// The rows that have to be rejected.
    bad: Vec<u64>,
    size: u64,
}

/// A POST that is repeated while the API is away.
async fn post(api: &Api, path: &str, body: &Value, accepted: &[u16]) -> Value {
    until_within(PATIENCE, &format!("POST {path} is answered"), async || {
        let answer = api.http.post(format!("{}{path}", api.base)).json(body).send().await.ok()?;
        let status = answer.status().as_u16();
        let value: Value = answer.json().await.ok()?;
        assert!(accepted.contains(&status) || status == 503, "{path}: {status}: {value}");
        accepted.contains(&status).then_some(value)
    })
    .await
}

/// One import, from the request to the end.
async fn make(api: &Api, random: &mut StdRng, lane: u64, number: u64) -> (Made, Value) {
    let first_id = (lane as i64 * 100_000 + number as i64) * 1_000_000 + 1;
    let rows = random.random_range(4_000..16_000);
    let keyed = random.random_bool(0.5);
    let rejects = random.random_bool(0.5);
    let source = source(random.random(), rows, first_id, if rejects { 100 } else { 0 });
    let (mut csv, mut bad) = (source.csv, source.bad);
    if keyed && rejects {
        // Keys that the file holds already, far behind: the first ones stay.
        for (row, (id, ..)) in (rows + 1..).zip(&source.rows[..50]) {
            csv.extend_from_slice(format!("{id},again,,1\n").as_bytes());
            bad.push(row);
        }
    }
    let table = if keyed { KEYED.to_owned() } else { format!("fresh_{lane}_{number}") };
    let request = json!({
        "destination": {"table": table},
        "columns": columns(),
        "on_error": {"max_rejects": if rejects { Value::Null } else { json!(0) }},
    });
    let created = post(api, "/v1/imports", &request, &[201]).await;
    let id = id_of(&created);
    let size = csv.len() as u64;
    assert_eq!(api.put(&created, csv).await, 200);
    if random.random_bool(0.5) {
        post(api, &format!("/v1/imports/{id}/complete"), &json!({}), &[202]).await;
    }
    let import = api.done_within(PATIENCE, &id).await;
    (Made { id, table, good: source.good_csv, bad, size }, import)
}

/// Makes imports one after the other while there is killing.
async fn make_imports(api: &Api, seed: u64, lane: u64, killing: &AtomicBool) -> Vec<Made> {
    let mut random = StdRng::seed_from_u64(seed ^ (lane + 1));
    let mut made = Vec::new();
    while killing.load(Ordering::SeqCst) {
        let (one, import) = make(api, &mut random, lane, made.len() as u64).await;
        assert_succeeded(&import);
        made.push(one);
    }
    made
}

/// Kills and starts again, until it was done often enough.
async fn kill(
    seed: u64,
    api: &mut Process,
    workers: &mut [Process],
    nats: &mut Nats,
    database: &Database,
    killing: &AtomicBool,
) {
    let mut random = StdRng::seed_from_u64(seed);
    let chunks_done = async || -> u64 {
        database.one("SELECT count(*) FROM longshore_chunks WHERE state = 'done'").await.parse().unwrap()
    };
    for number in 1..=KILLS {
        // A fault comes after some progress, and at any moment of it.
        let wanted = chunks_done().await + random.random_range(0..60);
        let what = format!("there is progress before kill {number} (SEED={seed})");
        until_within(PATIENCE, &what, async || (chunks_done().await >= wanted).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1_000))).await;
        let roll = random.random_range(0..10);
        let any = random.random_range(0..workers.len());
        let wipe = random.random_bool(0.5);
        let victim = match roll {
            0..5 => &mut workers[any],
            5..8 => &mut workers[owner(database, workers).await.unwrap_or(any)],
            8 => &mut *api,
            _ => {
                if wipe {
                    nats.wipe();
                }
                &mut nats.process
            }
        };
        println!("kill {number}: {}", victim.name());
        victim.kill();
        victim.start();
    }
    killing.store(false, Ordering::SeqCst);
}

async fn kills_at_any_moment_lose_and_repeat_nothing(s3: S3Kind) {
    let seed = seed();
    let mut cluster =
        Cluster::start(&Options { events: true, sweep: "1s", chunk_size: "4000", ..Options::on(s3) }).await;
    let database = &cluster.database;
    database
        .run(&format!("CREATE TABLE {KEYED} (id bigint PRIMARY KEY, name text NOT NULL, note text, amount bigint)"))
        .await;
    let api = cluster.api.clone();
    let killing = AtomicBool::new(true);
    let killer = kill(seed, &mut cluster.nodes[0], &mut cluster.workers, &mut cluster.nats, database, &killing);
    let lanes = futures::future::join_all((0..LANES).map(|lane| make_imports(&api, seed, lane, &killing)));
    let ((), made) = tokio::join!(killer, lanes);
    let made: Vec<Made> = made.into_iter().flatten().collect();
    println!("{} imports were made", made.len());
    cluster.ready().await;

    let mut keyed = Vec::new();
    for import in &made {
        let rejects = api.all(&format!("/v1/imports/{}/rejects", import.id), 1000).await;
        let rows: Vec<u64> = rejects.iter().map(|reject| reject["row"].as_u64().unwrap()).collect();
        assert_eq!(rows, import.bad, "{} (SEED={seed})", import.id);
        let chunks = api.all(&format!("/v1/imports/{}/chunks", import.id), 1000).await;
        let rows = assert_tiles(&chunks, import.size);
        let last = api.got(&format!("/v1/imports/{}", import.id)).await;
        assert_succeeded(&last);
        assert_eq!(last["progress"]["rows_read"], rows);
        assert_eq!(last["progress"]["rows_rejected"], import.bad.len());
        if import.table == KEYED {
            keyed.push(import.good.as_slice());
        } else {
            cluster.database.assert_holds(&import.table, &[&import.good]).await;
        }
    }
    cluster.database.assert_holds(KEYED, &keyed).await;
    cluster.database.assert_tidy().await;
    let rejected: usize = made.iter().map(|import| import.bad.len()).sum();
    assert_eq!(cluster.database.one("SELECT count(*) FROM longshore_rejects").await, rejected.to_string());
    let sql = "SELECT count(*) FROM longshore_imports WHERE state NOT IN ('succeeded', 'awaiting_upload')";
    assert_eq!(cluster.database.one(sql).await, "0");
    cluster.assert_clean_logs();
}
