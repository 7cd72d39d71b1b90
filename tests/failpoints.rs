//! SIGKILL at every step of the protocol, in real processes: at each point of `longshore_storage::failpoint`, while imports
//! keep being made. `KILLS` sets how often at each point, `POINTS` (with commas between) at which.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use longshore_storage::failpoint::{POINTS, Passed};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use common::cluster::{Cluster, Options};
use common::load::Load;
use common::process::Process;
use common::s3::S3Kind;
use common::{seed, until_within};

/// Imports that run at once.
const LANES: u64 = 4;
/// Kills at each point, without a setting.
const KILLS: u32 = 1;
/// Workers that die; as many others live, so that imports come to their ends.
const MORTAL: usize = 2;
/// How long it may take until somebody passes a point.
const PATIENCE: Duration = Duration::from_secs(300);

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
    let kills = std::env::var("KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let wanted = std::env::var("POINTS").ok();
    let wanted = |point: &str| wanted.as_deref().is_none_or(|wanted| wanted.split(',').any(|name| name == point));
    let options =
        Options { workers: 2 * MORTAL, events: true, sweep: "1s", chunk_size: "4000", ..Options::on(S3Kind::Minio) };
    let mut cluster = Cluster::start(&options).await;
    let database = cluster.database.again();
    let load = Load::new(&cluster.api, &database, seed, (200, 3_000)).await;
    let killing = async {
        let mut random = StdRng::seed_from_u64(seed);
        for (point, passed) in POINTS.into_iter().filter(|(point, _)| wanted(point)) {
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
