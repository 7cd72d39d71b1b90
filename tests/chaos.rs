//! The real cluster under load with random faults, many at once, chosen from a seed: every import has to end right, and
//! everything has to move on once a fault is mended. `just chaos` runs it for longer.
//!
//! `CHAOS_SECONDS`, `CHAOS_KILLS` (ends it after so many), `CHAOS_FAULTS` (some of the names below, with commas between),
//! `CHAOS_SEED` and `CHAOS_JSON` (a file for the result) set it.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

use common::cluster::{Cluster, Options, owner};
use common::load::{Load, Made};
use common::s3::S3Kind;
use common::servers::PostgresServer;
use common::{seed, until_within};

/// Imports that run at once.
const LANES: u64 = 4;
/// How long without settings.
const SECONDS: u64 = 300;
/// Faults at once.
const AT_ONCE: usize = 3;
/// How often a process that is started again dies again, at most.
const CRASHES: u32 = 5;
/// How long it may live in between, in milliseconds: from its first steps to the middle of its work.
const CRASH_WITHIN_MS: u64 = 800;
/// How long anything may take to move on before it hangs.
const STUCK: Duration = Duration::from_secs(30);
/// How soon everything moves on behind the last fault, as promised. Whatever takes longer is told.
const PROMISED: Duration = Duration::from_secs(10);
/// From when on what is waited for is told, each second, so that it can be found out why.
const SLOW: Duration = Duration::from_secs(8);

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillWorker,
    KillOwner,
    KillApi,
    CrashLoop,
    StopWorker,
    RestartNats,
    WipeNats,
    CrashPostgres,
    KillStorage,
    EndSessions,
}

impl Fault {
    const ALL: [(&'static str, Self); 10] = [
        ("kill-worker", Self::KillWorker),
        ("kill-owner", Self::KillOwner),
        ("kill-api", Self::KillApi),
        ("crash-loop", Self::CrashLoop),
        ("stop-worker", Self::StopWorker),
        ("restart-nats", Self::RestartNats),
        ("wipe-nats", Self::WipeNats),
        ("crash-postgres", Self::CrashPostgres),
        ("kill-storage", Self::KillStorage),
        ("end-sessions", Self::EndSessions),
    ];

    fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, fault)| *fault == self).map_or("", |(name, _)| name)
    }

    /// Processes die more often than servers.
    fn weight(self) -> u32 {
        match self {
            Self::KillWorker | Self::KillOwner => 6,
            Self::CrashLoop => 4,
            Self::KillApi | Self::StopWorker | Self::EndSessions => 2,
            _ => 1,
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(format!("CHAOS_{name}"))
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number")))
}

/// The faults that were asked for.
fn chosen() -> Vec<Fault> {
    let Ok(names) = std::env::var("CHAOS_FAULTS") else { return Fault::ALL.map(|(_, fault)| fault).to_vec() };
    let known = |name: &str| Fault::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, fault)| fault);
    names.split(',').map(|name| known(name).unwrap_or_else(|| panic!("there is no fault '{name}'"))).collect()
}

/// What breaks, and what is known of it.
struct Breaker<'a> {
    cluster: &'a mut Cluster,
    postgres: &'a mut PostgresServer,
    random: StdRng,
    /// A database that tells where imports stand, without the service.
    watch: common::postgres::Database,
    faults: BTreeMap<&'static str, u64>,
    kills: u64,
    slowest: Duration,
    /// Moves that took longer than promised.
    late: u64,
}

/// Where an import stands: whatever of it moves.
type Standing = BTreeMap<String, String>;

impl Breaker<'_> {
    /// Breaks some things, mends them all, and waits until every import that was in the middle of it has moved.
    async fn strike(&mut self, faults: &[Fault]) {
        let mut now = Vec::new();
        for _ in 0..self.random.random_range(1..=AT_ONCE) {
            let fault = *faults.choose_weighted(&mut self.random, |fault| fault.weight()).unwrap();
            if !now.contains(&fault) || fault == Fault::KillWorker {
                now.push(fault);
            }
        }
        println!("{:?}", now.iter().map(|fault| fault.name()).collect::<Vec<_>>());
        let mut stopped = Vec::new();
        for fault in &now {
            *self.faults.entry(fault.name()).or_default() += 1;
            self.down(*fault, &mut stopped).await;
        }
        // Long enough for leases to run out, where somebody sleeps.
        let longest = if stopped.is_empty() { 1_500 } else { 12_000 };
        tokio::time::sleep(Duration::from_millis(self.random.random_range(0..longest))).await;
        for fault in now {
            self.up(fault).await;
        }
        for worker in stopped {
            self.cluster.workers[worker].signal("CONT");
        }
        let recovered = self.recover().await;
        println!("all moved on in {:.1} s", recovered.as_secs_f64());
        self.slowest = self.slowest.max(recovered);
        self.late += u64::from(recovered > PROMISED);
    }

    async fn down(&mut self, fault: Fault, stopped: &mut Vec<usize>) {
        let any = self.random.random_range(0..self.cluster.workers.len());
        match fault {
            Fault::KillWorker => self.kill_worker(any, stopped),
            Fault::KillOwner => {
                let owner = owner(&self.watch, &self.cluster.workers).await.unwrap_or(any);
                self.kill_worker(owner, stopped);
            }
            Fault::KillApi => {
                self.kills += u64::from(self.cluster.nodes[0].runs());
                self.cluster.nodes[0].kill();
            }
            Fault::CrashLoop => {
                self.kill_worker(any, stopped);
                for _ in 0..self.random.random_range(1..=CRASHES) {
                    self.cluster.workers[any].start();
                    tokio::time::sleep(Duration::from_millis(self.random.random_range(0..CRASH_WITHIN_MS))).await;
                    self.kill_worker(any, stopped);
                }
            }
            Fault::StopWorker => {
                if self.cluster.workers[any].runs() && !stopped.contains(&any) {
                    self.cluster.workers[any].signal("STOP");
                    stopped.push(any);
                }
            }
            Fault::RestartNats => self.cluster.nats.process.kill(),
            Fault::WipeNats => self.cluster.nats.wipe(),
            Fault::CrashPostgres => self.postgres.crash(),
            Fault::KillStorage => {
                if let Some(storage) = &mut self.cluster.storage {
                    storage.process.kill();
                }
            }
            Fault::EndSessions => {
                let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                           WHERE pid <> pg_backend_pid() AND application_name LIKE 'longshore%' AND random() < 0.5";
                // The server may be down by now.
                let _ = self.watch.try_rows(sql).await;
            }
        }
    }

    fn kill_worker(&mut self, worker: usize, stopped: &mut Vec<usize>) {
        stopped.retain(|known| *known != worker);
        self.kills += u64::from(self.cluster.workers[worker].runs());
        self.cluster.workers[worker].kill();
    }

    /// Starts again what is down; what runs is left alone.
    async fn up(&mut self, fault: Fault) {
        match fault {
            Fault::KillWorker | Fault::KillOwner | Fault::CrashLoop => {
                for worker in self.cluster.workers.iter_mut().filter(|worker| !worker.runs()) {
                    worker.start();
                }
            }
            Fault::KillApi if !self.cluster.nodes[0].runs() => self.cluster.nodes[0].start(),
            Fault::RestartNats | Fault::WipeNats if !self.cluster.nats.process.runs() => {
                self.cluster.nats.process.start();
            }
            Fault::CrashPostgres => self.postgres.resume(),
            Fault::KillStorage => {
                if let Some(storage) = &mut self.cluster.storage
                    && !storage.process.runs()
                {
                    storage.process.start();
                }
            }
            _ => {}
        }
    }

    /// How long the slowest import that was under way took to move on, from now.
    async fn recover(&self) -> Duration {
        let begun = Instant::now();
        let mut waiting = None;
        let mut told = SLOW;
        until_within(STUCK, "every import moves on", async || {
            let now = self.standing().await?;
            let waiting = waiting.get_or_insert_with(|| now.clone());
            waiting.retain(|import, stood| now.get(import) == Some(stood));
            if begun.elapsed() > told && !waiting.is_empty() {
                told = begun.elapsed() + Duration::from_secs(1);
                self.tell(begun.elapsed(), waiting).await;
            }
            waiting.is_empty().then_some(())
        })
        .await;
        begun.elapsed()
    }

    /// Prints what imports that do not move on wait for.
    async fn tell(&self, since: Duration, waiting: &Standing) {
        for (import, stood) in waiting {
            println!("{:.1} s without a move: {import}: {stood}", since.as_secs_f64());
            let import_row = format!(
                "SELECT concat_ws(' ', 'epoch', epoch, 'owner', lease_owner, \
                     'lease ms', lease_until_ms - (extract(epoch FROM clock_timestamp()) * 1000)::bigint, \
                     'scanned', scan_done, 'chunks', chunks_done, 'of', chunks_total, error) \
                 FROM longshore_imports WHERE id = '{import}'"
            );
            let chunks = format!(
                "SELECT concat_ws(' ', 'chunks', c.state, count(*), min(c.chunk), \
                     'claim ms', max(c.claim_until_ms) - (extract(epoch FROM clock_timestamp()) * 1000)::bigint) \
                 FROM longshore_chunks c JOIN longshore_imports i ON i.id = c.import_id AND i.attempt = c.attempt \
                 WHERE i.id = '{import}' GROUP BY c.state"
            );
            self.print(&import_row).await;
            self.print(&chunks).await;
        }
        let sessions = "SELECT concat_ws(' ', application_name, state, wait_event_type, wait_event, \
                 now() - xact_start, pg_blocking_pids(pid)::text, left(query, 100)) \
             FROM pg_stat_activity WHERE application_name LIKE 'longshore%' AND state <> 'idle'";
        self.print(sessions).await;
        let processes = self.cluster.nodes.iter().chain(&self.cluster.workers);
        for process in processes {
            let log = process.log();
            let lines = log.lines().rev().filter(|line| waiting.keys().any(|import| line.contains(import)));
            for line in lines.take(5).collect::<Vec<_>>().into_iter().rev() {
                println!("  {}: {line}", process.name());
            }
        }
    }

    /// Prints the rows that the database has, where it answers.
    async fn print(&self, sql: &str) {
        for row in self.watch.try_rows(sql).await.into_iter().flatten() {
            println!("  {}", row[0].as_deref().unwrap_or_default());
        }
    }

    /// The imports that somebody has to work on.
    async fn standing(&self) -> Option<Standing> {
        let sql = "SELECT i.id::text, concat_ws(' ', i.state, i.attempt, i.version, \
                       (SELECT count(*) FROM longshore_chunks c \
                        WHERE c.import_id = i.id AND c.attempt = i.attempt AND c.state = 'done')) \
                   FROM longshore_imports i \
                   WHERE i.state IN ('queued', 'planning', 'running', 'publishing', 'cancelling')";
        let rows = self.watch.try_rows(sql).await?;
        Some(rows.into_iter().map(|row| (row[0].clone().unwrap(), row[1].clone().unwrap())).collect())
    }
}

/// The table for people, and the same as JSON.
fn report(seed: u64, ran: Duration, breaker: &Breaker<'_>, made: &Made) {
    let revision = std::process::Command::new("git").args(["rev-parse", "HEAD"]).output();
    let revision = revision.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    println!("\n| what | count |\n| --- | ---: |");
    for (fault, count) in &breaker.faults {
        println!("| {fault} | {count} |");
    }
    let slowest = breaker.slowest.as_secs_f64();
    for (what, count) in [
        ("kills of our processes", breaker.kills),
        ("imports succeeded", made.succeeded),
        ("imports failed, as they have to", made.failed),
        ("imports cancelled", made.cancelled),
        ("rows expected", made.expected),
        ("rows found", made.found),
        ("rows lost", made.lost),
        ("rows too many", made.repeated),
        ("moves that took longer than promised", breaker.late),
    ] {
        println!("| {what} | {count} |");
    }
    println!("| slowest to move on, s | {slowest:.1} |\n");
    let result = json!({
        "revision": revision, "seed": seed, "seconds": ran.as_secs(), "faults": breaker.faults, "kills": breaker.kills,
        "imports": {"succeeded": made.succeeded, "failed": made.failed, "cancelled": made.cancelled},
        "rows": {"expected": made.expected, "found": made.found, "lost": made.lost, "too_many": made.repeated},
        "slowest_recovery_seconds": slowest, "later_than_promised": breaker.late,
    });
    println!("{result}");
    if let Ok(file) = std::env::var("CHAOS_JSON") {
        std::fs::write(&file, format!("{result:#}\n")).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_at_any_moment_lose_and_repeat_nothing() {
    let seed = setting("SEED").unwrap_or_else(seed);
    println!("CHAOS_SEED={seed}");
    let (seconds, kills) = (setting("SECONDS").unwrap_or(SECONDS), setting("KILLS"));
    let faults = chosen();
    let folder = tempfile::tempdir().unwrap();
    let mut postgres = PostgresServer::start(folder.path());
    let url = postgres.url();
    let options = Options {
        workers: 4,
        events: true,
        sweep: "1s",
        chunk_size: "4000",
        postgres: Some(&url),
        ..Options::on(S3Kind::Minio)
    };
    let mut cluster = Cluster::start(&options).await;
    // A connection of its own: the oracle's many comparisons do not keep it waiting.
    let watch = cluster.database.again();
    let database = cluster.database.again();
    let load = Load::new(&cluster.api, &database, seed, (500, 8_000)).await;
    let begun = Instant::now();
    let mut breaker = Breaker {
        cluster: &mut cluster,
        postgres: &mut postgres,
        random: StdRng::seed_from_u64(seed),
        watch,
        faults: BTreeMap::new(),
        kills: 0,
        slowest: Duration::ZERO,
        late: 0,
    };
    let breaking = async {
        let over = |breaker: &Breaker<'_>| match kills {
            Some(kills) => breaker.kills >= kills,
            None => begun.elapsed() >= Duration::from_secs(seconds),
        };
        while !over(&breaker) {
            let pause = breaker.random.random_range(0..2_000);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            breaker.strike(&faults).await;
        }
        load.stop();
    };
    tokio::join!(breaking, futures::future::join_all((0..LANES).map(|lane| load.lane(lane))));
    let made = load.assert_final().await;
    report(seed, begun.elapsed(), &breaker, &made);
    drop(breaker);
    cluster.ready().await;
    cluster.assert_clean_logs();
}
