//! SIGKILL at every step of the protocol, in real processes: at each point of `longshore_storage::failpoint`, in a cluster while
//! imports keep being made, and in the embedded service. `KILLS` sets how often at each point, `POINTS` (with commas between) at which.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use longshore_storage::failpoint::{POINTS, Passed};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use common::api::{Api, assert_failed, assert_succeeded, id_of};
use common::cluster::{Cluster, Options};
use common::data::{columns, source};
use common::load::Load;
use common::process::Process;
use common::s3::S3Kind;
use common::service::{Service, open, serve};
use common::{seed, until_within};

/// Imports that run at once.
const LANES: u64 = 4;
/// Kills at each point, without a setting.
const KILLS: u32 = 1;
/// Workers that die; as many others live, so that imports come to their ends.
const MORTAL: usize = 2;
/// How long it may take until somebody passes a point.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often to kill at each point.
fn kills() -> u32 {
    std::env::var("KILLS").map_or(KILLS, |text| text.parse().unwrap())
}

/// Every point, or those that `POINTS` names.
fn points() -> impl Iterator<Item = (&'static str, Passed)> {
    let wanted = std::env::var("POINTS").ok();
    let wanted = move |point: &str| wanted.as_deref().is_none_or(|wanted| wanted.split(',').any(|name| name == point));
    POINTS.into_iter().filter(move |(point, _)| wanted(point))
}

/// SIGKILL's number.
const SIGKILL: i32 = 9;

/// Starts a process so that it dies at a point: at the first time that it passes, or some times later.
fn arm(process: &mut Process, point: &str, random: &mut StdRng) {
    let before = random.random_range(0..3);
    let action = if before == 0 { format!("{point}=return") } else { format!("{point}={before}*off->return") };
    process.set("FAILPOINTS", Some(&action));
    process.start();
}

/// Whether it died as it was to.
fn died(process: &mut Process) -> bool {
    let Some(status) = process.ended() else { return false };
    assert_eq!(status.signal(), Some(SIGKILL), "{} ended by itself: {status}", process.name());
    process.kill();
    true
}

/// Kills at one point, so many times.
async fn kill_at(point: &str, passed: Passed, kills: u32, cluster: &mut Cluster, random: &mut StdRng) {
    let mortal = match passed {
        Passed::Api => &mut cluster.nodes[..1],
        Passed::Node | Passed::NodeFails => &mut cluster.workers[..MORTAL],
    };
    for process in &mut *mortal {
        process.kill();
        arm(process, point, random);
    }
    let mut left = kills;
    until_within(PATIENCE * kills, &format!("{kills} processes died at {point}"), async || {
        for process in &mut *mortal {
            if died(process) {
                left = left.saturating_sub(1);
                if left > 0 {
                    arm(process, point, random);
                } else {
                    process.set("FAILPOINTS", None);
                    process.start();
                }
            }
        }
        (left == 0).then_some(())
    })
    .await;
    for process in mortal {
        process.kill();
        process.set("FAILPOINTS", None);
        process.start();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_every_step_loses_and_repeats_nothing() {
    let seed = seed();
    let kills = kills();
    let options =
        Options { workers: 2 * MORTAL, events: true, sweep: "1s", chunk_size: "4000", ..Options::on(S3Kind::Minio) };
    let mut cluster = Cluster::start(&options).await;
    let database = cluster.database.again();
    let load = Load::new(&cluster.api, &database, seed, (200, 3_000)).await;
    let killing = async {
        let mut random = StdRng::seed_from_u64(seed);
        for (point, passed) in points() {
            let begun = std::time::Instant::now();
            kill_at(point, passed, kills, &mut cluster, &mut random).await;
            println!("{point}: {kills} kills in {:.1} s", begun.elapsed().as_secs_f64());
        }
        load.stop();
    };
    tokio::join!(killing, futures::future::join_all((0..LANES).map(|lane| load.lane(lane))));
    let made = load.assert_final().await;
    println!(
        "{} imports succeeded, {} failed, {} were cancelled; {} rows were expected, {} found",
        made.succeeded, made.failed, made.cancelled, made.expected, made.found
    );
    cluster.ready().await;
    cluster.assert_clean_logs();
}

/// An import of the embedded service, with a bad row where it has to fail.
async fn embedded_import(service: &mut Mortal, passed: Passed, random: &mut StdRng) {
    let fails = passed == Passed::NodeFails;
    let made = source(random.random(), 500, 1, if fails { 10 } else { 0 });
    let request = json!({"destination": {"table": "trips"}, "columns": columns()});
    let created = tried_again(service, async |api: Api| {
        let url = format!("{}/v1/imports", api.base);
        let answer = api.http.post(url).header("idempotency-key", "once").json(&request).send().await.ok()?;
        answer.status().is_success().then_some(answer.json::<Value>().await.ok()?)
    })
    .await;
    let id = id_of(&created);
    tried_again(service, async |api: Api| {
        let mut put = api.http.put(created["upload"]["url"].as_str()?).body(made.csv.clone());
        for (name, value) in created["upload"]["headers"].as_object()? {
            put = put.header(name, value.as_str()?);
        }
        let status = put.send().await.ok()?.status().as_u16();
        (status == 200 || status == 412).then_some(())
    })
    .await;
    tried_again(service, async |api: Api| {
        let url = format!("{}/v1/imports/{id}/complete", api.base);
        let status = api.http.post(url).send().await.ok()?.status().as_u16();
        (status == 202).then_some(())
    })
    .await;
    let import = tried_again(service, async |api: Api| {
        let answer = api.http.get(format!("{}/v1/imports/{id}", api.base)).send().await.ok()?;
        answer.json::<Value>().await.ok().filter(|import| import["done"] == true)
    })
    .await;
    let tables = open(&service.0.sqlite());
    let count = "SELECT count(*) FROM sqlite_schema WHERE name = 'trips'";
    let exists: i64 = tables.query_row(count, [], |row| row.get(0)).unwrap();
    if fails {
        assert_failed(&import, "too-many-rejects");
        assert_eq!(exists, 0);
    } else {
        assert_succeeded(&import);
        let sql = "SELECT count(*), count(DISTINCT id), sum(id) FROM trips";
        let found: (i64, i64, i64) =
            tables.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        assert_eq!(found, (500, 500, 500 * 501 / 2));
    }
    let sql = "SELECT (SELECT count(*) FROM longshore_ledger) + \
               (SELECT count(*) FROM sqlite_schema WHERE name LIKE 'longshore_staging_%')";
    assert_eq!(tables.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap(), 0, "something was left behind");
}

/// A service, and how often it died as it was to.
struct Mortal(Service, u32);

/// Tries until there is an answer; starts the service again when it died.
async fn tried_again<T>(Mortal(service, deaths): &mut Mortal, mut what: impl AsyncFnMut(Api) -> Option<T>) -> T {
    until_within(PATIENCE, "the service answers", async || {
        if died(&mut service.process) {
            *deaths += 1;
            service.process.set("FAILPOINTS", None);
            service.process.start();
            service.process.ready().await;
        }
        what(service.api.clone()).await
    })
    .await
}

#[tokio::test]
async fn a_kill_at_every_step_of_the_embedded_service_loses_and_repeats_nothing() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    for (point, passed) in points() {
        for _ in 0..kills() {
            let mut service = serve(&[("CHUNK_SIZE", "3000")]).await;
            service.process.kill();
            service.process.set("FAILPOINTS", Some(&format!("{point}=return")));
            service.process.start();
            service.process.ready().await;
            let mut service = Mortal(service, 0);
            embedded_import(&mut service, passed, &mut random).await;
            assert!(service.1 <= 1, "passed again: {}", service.0.process.log());
            if service.1 == 0 {
                // What stands behind the import's end may be reached behind the answer that tells of it.
                let died = async || died(&mut service.0.process).then_some(());
                until_within(PATIENCE, &format!("somebody passes {point}"), died).await;
            }
        }
    }
}
