//! PostgreSQL that fails in every way it has, with the control database and the destination on two servers: crashes,
//! commits whose answers are lost, locks, too many connections, a full disk, a failover, a network that swallows.
//! Imports wait, and end exactly; a cancel that races with all that is whole or too late.
//!
//! The S3 server plays no part in this, so there is one. Needs `deploy/servers test`; `SEED=…` repeats the choices.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use common::api::{Api, assert_failed, assert_succeeded, kind_of};
use common::cluster::{Options, owner};
use common::data::source;
use common::pg_proxy::{Commit, Cut};
use common::postgres::Database;
use common::process::settings;
use common::servers::PostgresServer;
use common::toxiproxy::Toxiproxy;
use common::two_databases::{Side, TwoDatabases};
use common::{DEADLINE, seed, until};

/// Rows of a file of about fifty chunks.
const ROWS: u64 = 4_000;

fn many_chunks() -> Options<'static> {
    Options { chunk_size: "4096", ..Options::default() }
}

/// What the transaction of a chunk does, whether its rows are staged or not.
const CHUNK: &str = "INSERT INTO longshore_ledger";

/// A step of an import.
#[derive(Debug, Clone, Copy)]
enum Step {
    Planning,
    Running,
    /// Where a table that is there gets its rows.
    Copying,
    Publishing,
}

/// Servers that fail at once.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Failing {
    Control,
    Destination,
    Both,
}

impl Failing {
    /// The servers.
    fn sides(self, two: &mut TwoDatabases) -> impl Iterator<Item = &mut Side> {
        let destination = (self != Self::Control).then_some(&mut two.destination);
        let control = (self != Self::Destination).then_some(&mut two.control);
        destination.into_iter().chain(control)
    }

    /// An import that waits in a step: in the destination, where that fails too.
    async fn begin_held(self, step: Step, two: &TwoDatabases, request: &Value, csv: &[u8]) -> String {
        let held = if self == Self::Control { &two.control } else { &two.destination };
        let (text, pass) = statement(step, self);
        held.proxy.hold(text, pass);
        let id = two.begin(request, csv).await;
        held.proxy.held().await;
        id
    }
}

/// The statement at which a step is stopped in a database, and how often it may pass before.
fn statement(step: Step, failing: Failing) -> (&'static str, u32) {
    match (step, failing) {
        (Step::Planning, Failing::Control) => ("SET \"plan\"", 0),
        (Step::Running, Failing::Control) => ("UPDATE \"longshore_chunks\"", 20),
        (Step::Copying | Step::Publishing, Failing::Control) => ("\"bytes_done\" = \"size\"", 0),
        (Step::Planning, _) => ("DELETE FROM longshore_ledger WHERE import = $1 AND attempt <> $2", 0),
        (Step::Running, _) => (CHUNK, 10),
        (Step::Copying, _) => ("COPY ", 0),
        (Step::Publishing, _) => ("SET state = 'published'", 0),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_crashes_in_any_step_costs_time_only() {
    let mut two = TwoDatabases::start(many_chunks()).await;
    let mut random = StdRng::seed_from_u64(seed());
    let mut round = 0;
    for failing in [Failing::Control, Failing::Destination, Failing::Both] {
        for step in [Step::Planning, Step::Running, Step::Copying, Step::Publishing] {
            let existing = matches!(step, Step::Copying) || random.random_bool(0.5);
            let table = format!("t{round}");
            round += 1;
            let file = source(random.random(), ROWS, 1, 0);
            let request = two.request(&table, existing).await;
            let id = failing.begin_held(step, &two, &request, &file.csv).await;
            failing.sides(&mut two).for_each(|side| side.server.crash());
            two.control.proxy.let_go();
            two.destination.proxy.let_go();
            failing.sides(&mut two).for_each(|side| side.server.resume());
            two.moves_on(&format!("{failing:?} crashed in {step:?}"), &id).await;
            two.assert_exact(&id, &table, existing, &file.csv).await;
            two.assert_tidy().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_connection_is_cut_happened_once_or_not_at_all() {
    let two = TwoDatabases::start(many_chunks()).await;
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut files = Vec::new();
    for round in 0..4_u32 {
        let (table, existing) = (format!("t{round}"), round % 2 == 0);
        let file = source(random.random(), ROWS, 1, 0);
        let request = two.request(&table, existing).await;
        files.push((two.upload(&request, &file.csv).await, table, existing, file.csv));
    }
    two.destination.proxy.cut_commits(random.random(), 0.2);
    two.control.proxy.cut_commits(random.random(), 0.05);
    for (id, ..) in &files {
        two.act(id, "complete").await;
    }
    for (id, table, existing, csv) in &files {
        two.assert_exact(id, table, *existing, csv).await;
    }
    two.destination.proxy.mend();
    two.control.proxy.mend();
    two.assert_tidy().await;
    let (destination, control) = (two.destination.proxy.cuts(), two.control.proxy.cuts());
    println!("cuts: destination {destination:?}, control {control:?}");
    for cut in [Cut::Before, Cut::Behind] {
        for commit in [Commit::Chunk, Commit::Publish, Commit::Other] {
            assert!(destination.contains_key(&(commit, cut)), "no {commit:?} was cut {cut:?} (SEED={seed})");
        }
        assert!(control[&(Commit::Other, cut)] >= 5, "{control:?} (SEED={seed})");
    }
    assert!(destination[&(Commit::Chunk, Cut::Before)] + destination[&(Commit::Chunk, Cut::Behind)] >= 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_somebody_holds_is_waited_for() {
    let two = TwoDatabases::start(many_chunks()).await;
    let mut random = StdRng::seed_from_u64(seed());
    for (round, locked) in ["t0", "longshore_ledger", "longshore_fences"].into_iter().enumerate() {
        let (table, existing) = (format!("t{round}"), round == 0 || random.random_bool(0.5));
        let file = source(random.random(), ROWS, 1, 0);
        let request = two.request(&table, existing).await;
        // The table is locked before a publish that begins ahead has it, behind the look of the preparation.
        let (text, pass, tries) = if locked == table { ("EXPLAIN ", 1, 2) } else { (CHUNK, 10, 1) };
        two.destination.proxy.hold(text, pass);
        let id = two.begin(&request, &file.csv).await;
        two.destination.proxy.held().await;
        let said = timeouts(&two);
        let mut holder = PgConnection::connect(&two.destination.database.url).await.unwrap();
        let lock = format!("BEGIN; LOCK TABLE {locked} IN ACCESS EXCLUSIVE MODE");
        let lock = sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut holder);
        if locked == table {
            lock.await.unwrap();
            two.destination.proxy.let_go();
        } else {
            // Chunks that are being committed hold weaker locks, and are let go before this one is had.
            two.destination.proxy.let_go();
            lock.await.unwrap();
        }
        // The table: ahead, and behind the last chunk.
        until("somebody waited too long for the lock", async || (timeouts(&two) >= said + tries).then_some(())).await;
        assert_eq!(two.api().got(&format!("/v1/imports/{id}")).await["done"], false, "{locked} is locked");
        holder.close().await.unwrap();
        two.moves_on(&format!("{locked} was locked"), &id).await;
        two.assert_exact(&id, &table, existing, &file.csv).await;
        two.assert_tidy().await;
    }
}

/// How often a node was told that a lock was not to be had in time.
fn timeouts(two: &TwoDatabases) -> usize {
    two.cluster.workers.iter().map(|worker| worker.log().matches("SQLSTATE 55P03").count()).sum()
}

/// A cluster whose destination is a server of a special kind.
async fn with_destination(start: impl FnOnce(&std::path::Path) -> PostgresServer) -> TwoDatabases {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path());
    let (control, destination) = tokio::join!(Side::start(), Side::over(server, folder));
    TwoDatabases::over(control, destination, many_chunks()).await
}

/// A row that the table refuses sends all of them through a staging table, in the publish's transaction. A COPY for each of many
/// small chunks is a round trip for each, with everybody else's locks waiting, and a driver that leaves Nagle's algorithm on
/// makes 40 ms of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_chunks_are_staged_together_where_a_row_is_refused() {
    let two = TwoDatabases::start(many_chunks()).await;
    let csv = source(seed(), ROWS, 1, 0).csv;
    let again = [&*csv, b"7,again,,1\n"].concat();
    let table = "CREATE TABLE t (id bigint PRIMARY KEY, name text, note text, amount bigint)";
    two.destination.database.run(table).await;
    // Whoever needs more is never let go.
    two.destination.proxy.hold("SAVEPOINT longshore_stage", 5);
    let id = two.begin(&json!({"destination": {"table": "t"}, "on_error": {"max_rejects": 1}}), &again).await;
    let import = two.api().done(&id).await;
    assert_succeeded(&import);
    assert_eq!(import["progress"]["rows_rejected"], 1, "{import}");
    two.destination.database.assert_holds("t", &[&csv]).await;
    two.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_others_took_are_waited_for() {
    let two = with_destination(|folder| PostgresServer::start_with(folder, &["max_connections=50"])).await;
    let file = source(seed(), ROWS, 1, 0);
    two.destination.proxy.hold("COPY ", 10);
    let request = two.request("t", false).await;
    let id = two.begin(&request, &file.csv).await;
    two.destination.proxy.held().await;
    // Whatever comes free is taken, until the nodes have none.
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE application_name LIKE 'longshore%' AND datname = current_database()";
    let mut taken = vec![PgConnection::connect(&two.destination.database.url).await.unwrap()];
    loop {
        match PgConnection::connect(&two.destination.database.url).await {
            Ok(connection) => taken.push(connection),
            Err(_) => {
                let ended: i64 = sqlx::query_scalar(sql).fetch_one(&mut taken[0]).await.unwrap();
                if ended == 0 {
                    break;
                }
            }
        }
    }
    println!("{} connections are taken", taken.len());
    two.destination.proxy.let_go();
    until("the API has no connection", async || {
        let (status, ready) = two.api().get("/readyz").await;
        (status == 503 && ready["dependencies"]["destination"]["ready"] == false).then_some(())
    })
    .await;
    assert_eq!(two.api().got(&format!("/v1/imports/{id}")).await["done"], false);
    drop(taken);
    two.moves_on("connections were taken", &id).await;
    two.assert_exact(&id, "t", false, &file.csv).await;
    two.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_waited_for() {
    let two = with_destination(|folder| PostgresServer::start_on_a_small_disk(folder, "12m")).await;
    let mut random = StdRng::seed_from_u64(seed());
    let database = &two.destination.database;
    for (round, statement) in ["COPY ", "SET state = 'published'"].into_iter().enumerate() {
        let table = format!("t{round}");
        let file = source(random.random(), 20_000, 1, 0);
        // The second time there is room to load, but none to publish.
        let (existing, pass) = (round == 1, if round == 0 { 10 } else { 0 });
        let request = two.request(&table, existing).await;
        let held = if round == 0 { statement } else { "SET CONSTRAINTS ALL IMMEDIATE" };
        two.destination.proxy.hold(held, pass);
        let id = two.begin(&request, &file.csv).await;
        two.destination.proxy.held().await;
        database.run("CREATE TABLE filler (text text)").await;
        fill(database).await;
        let said = full(&two);
        two.destination.proxy.let_go();
        until("a node met the full disk", async || (full(&two) > said).then_some(())).await;
        assert_eq!(two.api().got(&format!("/v1/imports/{id}")).await["done"], false);
        database.run("DROP TABLE filler").await;
        two.moves_on("the disk was full", &id).await;
        two.assert_exact(&id, &table, existing, &file.csv).await;
        two.assert_tidy().await;
        database.run(&format!("DROP TABLE {table}")).await;
    }
}

/// Takes all the room there is, to the last page.
async fn fill(database: &Database) {
    for rows in [100, 10, 1] {
        loop {
            // Wide, and not compressed.
            let sql = format!(
                "INSERT INTO filler SELECT string_agg(md5(random()::text), '') FROM generate_series(1, {rows} * 200) \
                 GROUP BY generate_series / 200"
            );
            match sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&database.pool).await {
                Ok(_) => {}
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("53100") => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// How often a node was told that the disk is full.
fn full(two: &TwoDatabases) -> usize {
    two.cluster.workers.iter().map(|worker| worker.log().matches("SQLSTATE 53100").count()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_takes_over_has_everything_that_was_committed() {
    let mut two = TwoDatabases::start(many_chunks()).await;
    let mut random = StdRng::seed_from_u64(seed());
    for (round, step) in [Step::Planning, Step::Running, Step::Publishing].into_iter().enumerate() {
        let (table, existing) = (format!("t{round}"), random.random_bool(0.5));
        let file = source(random.random(), ROWS, 1, 0);
        let request = two.request(&table, existing).await;
        let folder = tempfile::tempdir().unwrap();
        let mut replica = two.destination.server.replica(folder.path());
        two.destination.server.run("ALTER SYSTEM SET synchronous_standby_names = '*'");
        two.destination.server.run("SELECT pg_reload_conf()");
        let database = &two.destination.database;
        until("what is committed is on the replica", async || {
            (database.one("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'").await == "1")
                .then_some(())
        })
        .await;
        let (text, pass) = statement(step, Failing::Destination);
        two.destination.proxy.hold(text, pass);
        let id = two.begin(&request, &file.csv).await;
        two.destination.proxy.held().await;
        two.destination.server.crash();
        replica.promote();
        replica.run("ALTER SYSTEM RESET synchronous_standby_names");
        replica.run("SELECT pg_reload_conf()");
        two.destination.proxy.let_go();
        two.take_over(replica, folder);
        two.moves_on(&format!("a replica took over in {step:?}"), &id).await;
        let import = two.assert_exact(&id, &table, existing, &file.csv).await;
        assert_eq!(import["attempt"], 1, "nothing was lost: {import:#}");
        two.assert_tidy().await;
    }
}

/// What the destination was set back behind.
#[derive(Debug, Clone, Copy)]
enum Lost {
    /// The fence, and everything.
    Fence,
    /// Some chunks.
    Chunks,
    /// The publish, with its marker. Its owner dies before it tells anybody.
    Marker,
}

/// The destination loses transactions that it had answered for, in the middle of an import: what is lost is loaded again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_is_set_back_never_makes_a_wrong_success() {
    let mut two = TwoDatabases::start(many_chunks()).await;
    let mut random = StdRng::seed_from_u64(seed());
    for (round, lost) in [Lost::Fence, Lost::Chunks, Lost::Marker].into_iter().enumerate() {
        let (table, existing) = (format!("t{round}"), random.random_bool(0.5));
        let file = source(random.random(), ROWS, 1, 0);
        let request = two.request(&table, existing).await;
        let folder = tempfile::tempdir().unwrap();
        let mut replica = two.destination.server.replica(folder.path());
        let fallen_behind = async |two: &TwoDatabases| {
            // It has what there is by now, and hears no more.
            let database = &two.destination.database;
            let wanted = database.one("SELECT pg_current_wal_flush_lsn()").await;
            let sql = format!("SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= '{wanted}'");
            until("the replica is up to date", async || (database.one(&sql).await == "1").then_some(())).await;
            replica.run("ALTER SYSTEM SET primary_conninfo = ''");
            replica.run("SELECT pg_reload_conf()");
            until("the replica hears no more", async || {
                (database.one("SELECT count(*) FROM pg_stat_replication").await == "0").then_some(())
            })
            .await;
        };
        let id = match lost {
            Lost::Fence => {
                fallen_behind(&two).await;
                two.destination.proxy.hold(CHUNK, 10);
                let id = two.begin(&request, &file.csv).await;
                two.destination.proxy.held().await;
                id
            }
            Lost::Chunks => {
                two.destination.proxy.hold(CHUNK, 10);
                let id = two.begin(&request, &file.csv).await;
                two.destination.proxy.held().await;
                fallen_behind(&two).await;
                two.destination.proxy.let_go();
                two.destination.proxy.hold(CHUNK, 20);
                two.destination.proxy.held().await;
                id
            }
            Lost::Marker => {
                two.control.proxy.hold("\"bytes_done\" = \"size\"", 0);
                two.destination.proxy.hold("SET state = 'published'", 0);
                let id = two.begin(&request, &file.csv).await;
                two.destination.proxy.held().await;
                fallen_behind(&two).await;
                two.destination.proxy.let_go();
                two.control.proxy.held().await;
                let owner = owner(&two.control.database, &two.cluster.workers).await.unwrap();
                two.cluster.workers[owner].kill();
                two.control.proxy.end_all();
                two.cluster.workers[owner].start();
                id
            }
        };
        two.destination.server.crash();
        replica.promote();
        two.destination.proxy.let_go();
        two.take_over(replica, folder);
        two.control.proxy.let_go();
        two.moves_on(&format!("{lost:?} was lost"), &id).await;
        let import = two.api().done(&id).await;
        println!("{lost:?}: {}, attempt {}, {}", import["state"], import["attempt"], import["error"]);
        two.assert_exact(&id, &table, existing, &file.csv).await;
        two.assert_tidy().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_swallows_breaks_or_crawls_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let (control, destination) = tokio::join!(Side::start(), Side::start());
    let (one, other) = tokio::join!(
        Toxiproxy::start("toxiproxy-control", folder.path(), control.proxy.port),
        Toxiproxy::start("toxiproxy-destination", folder.path(), destination.proxy.port),
    );
    let more = settings([
        ("DATABASE_URL", &one.url(&control.database.url)),
        ("DESTINATION_URL", &other.url(&destination.database.url)),
    ]);
    let two = TwoDatabases::over_network(control, destination, Options { more, ..many_chunks() }).await;
    let mut random = StdRng::seed_from_u64(seed());
    let toxics = [
        ("timeout", "downstream", json!({"timeout": 0})),
        ("timeout", "upstream", json!({"timeout": 0})),
        ("reset_peer", "downstream", json!({"timeout": 5})),
        ("limit_data", "upstream", json!({"bytes": 2_000})),
        ("slicer", "downstream", json!({"average_size": 5, "size_variation": 3, "delay": 50})),
    ];
    let mut round = 0;
    for (name, side, toxiproxy) in [("control", &two.control, &one), ("destination", &two.destination, &other)] {
        for (kind, stream, attributes) in &toxics {
            let (table, existing) = (format!("t{round}"), random.random_bool(0.5));
            round += 1;
            let file = source(random.random(), ROWS, 1, 0);
            let request = two.request(&table, existing).await;
            side.proxy.hold(if name == "control" { "UPDATE \"longshore_chunks\"" } else { CHUNK }, 10);
            let id = two.begin(&request, &file.csv).await;
            side.proxy.held().await;
            let said = retries(&two);
            toxiproxy.add(kind, stream, attributes.clone()).await;
            side.proxy.let_go();
            if *kind == "reset_peer" || *kind == "limit_data" {
                until("a node met it", async || (retries(&two) > said).then_some(())).await;
            }
            toxiproxy.remove(kind).await;
            two.moves_on(&format!("{kind} {stream} before {name}"), &id).await;
            two.assert_exact(&id, &table, existing, &file.csv).await;
            two.assert_tidy().await;
        }
    }
}

/// How often the workers tried again.
fn retries(two: &TwoDatabases) -> usize {
    two.cluster.workers.iter().map(|worker| worker.log().matches("again").count()).sum()
}

/// The server's machine vanishes: its connections never break and never answer, and what takes its place answers new ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_never_answer_again_hang_no_import() {
    let mut two = TwoDatabases::start(many_chunks()).await;
    let mut random = StdRng::seed_from_u64(seed());
    let mut round = 0;
    for failing in [Failing::Control, Failing::Destination, Failing::Both] {
        for step in [Step::Running, Step::Publishing] {
            let (table, existing) = (format!("t{round}"), random.random_bool(0.5));
            round += 1;
            let file = source(random.random(), ROWS, 1, 0);
            let request = two.request(&table, existing).await;
            let id = failing.begin_held(step, &two, &request, &file.csv).await;
            failing.sides(&mut two).for_each(|side| side.proxy.silence());
            two.control.proxy.let_go();
            two.destination.proxy.let_go();
            two.moves_on(&format!("{failing:?} went silent in {step:?}"), &id).await;
            two.assert_exact(&id, &table, existing, &file.csv).await;
            two.assert_tidy().await;
        }
    }
}

/// What goes on while an import is cancelled.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Crash(Failing),
    Cuts,
    BrokenConnections,
}

/// A cancel that is repeated while there is no database.
async fn cancel(api: Api, id: String) -> (StatusCode, Value) {
    loop {
        let (status, answer) = api.post(&format!("/v1/imports/{id}/cancel"), &json!({})).await;
        if status != StatusCode::SERVICE_UNAVAILABLE {
            return (status, answer);
        }
        api.pause().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_in_the_middle_of_trouble_is_whole_or_too_late() {
    let mut two = TwoDatabases::start(many_chunks()).await;
    let mut random = StdRng::seed_from_u64(seed());
    let (mut cancelled, mut succeeded) = (0, 0);
    for round in 0..12_u32 {
        let (table, existing) = (format!("t{round}"), random.random_bool(0.5));
        // Each with each.
        let trouble = match round % 4 {
            0 => Trouble::Cuts,
            1 => Trouble::BrokenConnections,
            2 => Trouble::Crash(Failing::Destination),
            _ => Trouble::Crash([Failing::Control, Failing::Both][random.random_range(0..2)]),
        };
        let step = [Step::Planning, Step::Running, Step::Publishing][round as usize / 4];
        let file = source(random.random(), ROWS, 1, 0);
        let request = two.request(&table, existing).await;
        let (text, pass) = statement(step, Failing::Destination);
        two.destination.proxy.hold(text, random.random_range(0..=4 * pass));
        let id = two.begin(&request, &file.csv).await;
        two.destination.proxy.held().await;
        match trouble {
            Trouble::Cuts => {
                two.destination.proxy.cut_commits(random.random(), 0.5);
                two.control.proxy.cut_commits(random.random(), 0.2);
            }
            Trouble::BrokenConnections => {
                two.destination.proxy.end_all();
                two.control.proxy.end_all();
            }
            Trouble::Crash(failing) => {
                failing.sides(&mut two).for_each(|side| side.server.crash());
            }
        }
        two.destination.proxy.let_go();
        let cancel = tokio::spawn(cancel(two.api().clone(), id.clone()));
        if let Trouble::Crash(failing) = trouble {
            failing.sides(&mut two).for_each(|side| side.server.resume());
        }
        let (status, answer) = tokio::time::timeout(DEADLINE, cancel).await.expect("a cancel is answered").unwrap();
        let import = two.api().done(&id).await;
        two.destination.proxy.mend();
        two.control.proxy.mend();
        println!("{trouble:?} in {step:?}: {status}, {}", import["state"]);
        match (status.as_u16(), import["state"].as_str().unwrap()) {
            (202, "cancelled") => {
                assert_eq!(import["error"], json!(null), "{import:#}");
                two.assert_untouched(&table, existing).await;
                cancelled += 1;
            }
            (409, "succeeded") => {
                assert_eq!(kind_of(&answer), "wrong-state", "{answer}");
                two.assert_exact(&id, &table, existing, &file.csv).await;
                succeeded += 1;
            }
            other => panic!("{other:?}: {answer} {import:#}"),
        }
        let key = import["source"]["key"].as_str().unwrap();
        assert!(two.cluster.bucket.list().await.contains(key), "the object of a cancelled import stays");
        two.assert_tidy().await;
    }
    println!("{cancelled} were cancelled, {succeeded} succeeded");
    assert!(cancelled >= 4 && succeeded >= 4, "{cancelled} were cancelled, {succeeded} succeeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_in_the_middle_of_trouble_loads_everything_once() {
    let mut two = TwoDatabases::start(many_chunks()).await;
    let mut random = StdRng::seed_from_u64(seed());
    for round in 0..3 {
        let table = format!("t{round}");
        let file = source(random.random(), ROWS, 1, 0);
        let request = two.request(&table, true).await;
        let database = &two.destination.database;
        database.run(&format!("ALTER TABLE {table} ADD CONSTRAINT never CHECK (id < 0)")).await;
        let id = two.begin(&request, &file.csv).await;
        assert_failed(&two.api().done(&id).await, "too-many-rejects");
        two.assert_untouched(&table, true).await;
        database.run(&format!("ALTER TABLE {table} DROP CONSTRAINT never")).await;
        two.destination.proxy.hold("COPY ", random.random_range(0..20));
        match round {
            0 => {
                two.destination.proxy.cut_commits(random.random(), 0.3);
                two.control.proxy.cut_commits(random.random(), 0.2);
            }
            1 => two.control.proxy.end_all(),
            _ => two.destination.proxy.end_all(),
        }
        assert_eq!(two.act(&id, "retry").await, 202);
        two.destination.proxy.held().await;
        if round > 0 {
            two.destination.server.crash();
            two.destination.server.resume();
        }
        two.destination.proxy.let_go();
        let import = two.assert_exact(&id, &table, true, &file.csv).await;
        assert_succeeded(&import);
        assert_eq!(import["attempt"], 2, "{import:#}");
        two.destination.proxy.mend();
        two.control.proxy.mend();
        two.assert_tidy().await;
    }
}
