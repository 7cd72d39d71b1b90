//! Processes that are stopped (SIGSTOP) in the middle of something, past their leases, while PostgreSQL holds their locks: the
//! others end the import without them, and when they go on (SIGCONT) they add nothing.
//!
//! Each test waits until the victim waits for a lock that the test holds, stops the process, and lets the lock go: what the
//! server then gives is held by somebody who sleeps. Nothing of this depends on the object storage, so each test has one.
//!
//! Needs `deploy/servers test`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::path::Path;

use serde_json::{Value, json};

use common::api::{assert_succeeded, assert_tiles, id_of};
use common::cluster::{Cluster, Options};
use common::data::{columns, source};
use common::process::Process;
use common::s3::S3Kind;
use common::{seed, until};

/// What a worker that waits for a lock does.
const COPY: &str = "COPY %";
const LAST_LOOK_AT_THE_FENCE: &str = "%FOR SHARE";

/// What an owner that waits for a lock does.
const PREPARE: &str = "EXPLAIN %";
const FREE_CHUNKS: &str = "UPDATE \"longshore_chunks\"%";
const STORE_CHUNKS: &str = "INSERT INTO \"longshore_chunks\"%";
const RENAME: &str = "ALTER TABLE %";
const MOVE_ROWS: &str = "SAVEPOINT longshore_move%";

/// How many staging tables there are.
const STAGING_TABLES: &str = "SELECT count(*) FROM pg_class WHERE relname LIKE 'longshore\\_staging\\_%'";

/// A keyed table that was there before.
const KEYED: &str = "CREATE TABLE t (id bigint PRIMARY KEY, name text NOT NULL, note text, amount bigint)";
/// The same with a column whose cells the database has to judge, so that rows for it are staged.
const STAGED: &str = "CREATE TABLE t (id bigint PRIMARY KEY, name text NOT NULL, note varchar(4000), amount bigint)";

#[tokio::test]
async fn a_worker_stopped_inside_copy_holds_up_no_new_table() {
    let mut scene = Scene::open(S3Kind::Minio, 3, None).await;
    scene.begin().await;
    let staging = scene.cluster.database.staging_table().await;
    let victim = scene.stop_in(&format!("LOCK TABLE {staging} IN SHARE MODE"), COPY, Who::Worker).await;
    scene.ends_without(&[victim]).await;
}

#[tokio::test]
async fn a_worker_stopped_behind_its_ledger_row_holds_up_no_keyed_table() {
    let mut scene = Scene::open(S3Kind::Versity, 3, Some(KEYED)).await;
    scene.begin().await;
    scene.has_chunks().await;
    let fence = format!("SELECT FROM longshore_fences WHERE import = '{}' FOR UPDATE", scene.id);
    let victim = scene.stop_in(&fence, LAST_LOOK_AT_THE_FENCE, Who::Worker).await;
    scene.ends_without(&[victim]).await;
}

#[tokio::test]
async fn an_owner_stopped_while_it_plans_is_replaced() {
    let mut scene = Scene::open(S3Kind::Minio, 3, Some(KEYED)).await;
    let table = "LOCK TABLE t IN ACCESS EXCLUSIVE MODE";
    let lock = scene.cluster.database.lock(table).await;
    scene.begin().await;
    let victim = scene.stop_behind(lock, PREPARE, Who::Owner).await;
    assert_eq!(scene.state().await, "planning");
    scene.ends_without(&[victim]).await;
}

#[tokio::test]
async fn an_owner_stopped_while_it_stores_chunks_is_replaced_and_holds_up_no_other_import() {
    let mut scene = Scene::open(S3Kind::Versity, 3, None).await;
    // It frees chunks before it stores any: each time it waits, the next lock is in line behind it.
    let table = "LOCK TABLE longshore_chunks IN SHARE MODE";
    let mut lock = scene.cluster.database.lock(table).await;
    scene.begin().await;
    while scene.waits(&[FREE_CHUNKS, STORE_CHUNKS]).await == FREE_CHUNKS {
        let release = async {
            scene.waits(&[table]).await;
            lock.rollback().await.unwrap();
        };
        (lock, ()) = tokio::join!(scene.cluster.database.lock(table), release);
    }
    let victim = scene.stop_behind(lock, STORE_CHUNKS, Who::Owner).await;
    // In the control database, where the sleeper holds the import's own row.
    scene.another("other").await;
    scene.ends_without(&[victim]).await;
}

#[tokio::test]
async fn an_owner_stopped_in_the_publish_of_a_new_table_is_replaced() {
    let mut scene = Scene::open(S3Kind::Minio, 3, None).await;
    scene.begin().await;
    let staging = scene.cluster.database.staging_table().await;
    let victim = scene.stop_in(&format!("LOCK TABLE {staging} IN ACCESS SHARE MODE"), RENAME, Who::Owner).await;
    assert_eq!(scene.state().await, "publishing");
    scene.ends_without(&[victim]).await;
}

#[tokio::test]
async fn an_owner_stopped_while_it_copies_into_a_keyed_table_is_replaced() {
    let mut scene = Scene::open(S3Kind::Minio, 3, Some(KEYED)).await;
    // Whoever comes to this key has to wait until it is known whether it is taken.
    let lock = scene.cluster.database.lock("INSERT INTO t VALUES (15000, 'taken')").await;
    scene.begin().await;
    until("all chunks are counted", async || (scene.state().await == "publishing").then_some(())).await;
    let victim = scene.stop_behind(lock, COPY, Who::Owner).await;
    assert_eq!(scene.state().await, "publishing");
    assert_eq!(scene.cluster.database.one(STAGING_TABLES).await, "0");
    scene.ends_without(&[victim]).await;
}

#[tokio::test]
async fn an_owner_stopped_while_it_copies_ahead_into_a_keyed_table_is_replaced() {
    let mut scene = Scene::open(S3Kind::Minio, 3, Some(KEYED)).await;
    let database = &scene.cluster.database;
    let key = database.lock("INSERT INTO t VALUES (3000, 'taken')").await;
    let rest = database.hold_chunks_behind(5_000).await;
    scene.begin().await;
    let victim = scene.stop_behind(key, COPY, Who::Owner).await;
    assert_eq!(scene.state().await, "running");
    rest.rollback().await.unwrap();
    scene.ends_without(&[victim]).await;
}

#[tokio::test]
async fn an_owner_stopped_while_it_moves_rows_into_a_keyed_table_is_replaced() {
    let mut scene = Scene::open(S3Kind::Versity, 3, Some(STAGED)).await;
    scene.begin().await;
    scene.cluster.database.staging_table().await;
    let victim = scene.stop_in("LOCK TABLE t IN SHARE MODE", MOVE_ROWS, Who::Owner).await;
    assert_eq!(scene.state().await, "publishing");
    scene.ends_without(&[victim]).await;
}

#[tokio::test]
async fn every_worker_but_one_stopped_inside_copy_leaves_that_one_to_end_the_import() {
    let mut scene = Scene::open(S3Kind::Minio, 3, Some(STAGED)).await;
    scene.begin().await;
    let staging = scene.cluster.database.staging_table().await;
    let lock = scene.cluster.database.lock(&format!("LOCK TABLE {staging} IN SHARE MODE")).await;
    // The owner of the import, and one that only works.
    let worker = scene.stop(COPY, Who::Worker).await;
    let owner = scene.stop(COPY, Who::Owner).await;
    lock.rollback().await.unwrap();
    scene.ends_without(&[worker, owner]).await;
}

/// Who is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Owner,
    Worker,
}

/// A stopped process, and the server's end of what it was in.
struct Sleeper {
    worker: usize,
    backend: String,
}

/// A cluster with one import.
struct Scene {
    cluster: Cluster,
    csv: Vec<u8>,
    id: String,
}

impl Scene {
    async fn open(s3: S3Kind, workers: usize, table: Option<&str>) -> Self {
        let cluster = Cluster::start(&Options { workers, chunk_size: "2000", ..Options::on(s3) }).await;
        if let Some(table) = table {
            cluster.database.run(table).await;
        }
        Self { cluster, csv: source(seed(), 20_000, 1, 0).csv, id: String::new() }
    }

    async fn begin(&mut self) {
        let request = json!({"destination": {"table": "t"}, "columns": columns()});
        self.id = self.cluster.api.begin(&request, self.csv.clone()).await;
        self.cluster.api.act(&self.id, "complete").await;
    }

    /// Waits until chunks were found: behind the preparation of what they are written into.
    async fn has_chunks(&self) {
        let sql = format!("SELECT count(*) FROM longshore_chunks WHERE import_id = '{}'", self.id);
        until("there are chunks", async || (self.cluster.database.one(&sql).await != "0").then_some(())).await;
    }

    async fn state(&self) -> Value {
        self.cluster.api.got(&format!("/v1/imports/{}", self.id)).await["state"].clone()
    }

    /// Waits until somebody waits for a lock in one of these; which one it is.
    async fn waits<'a>(&self, queries: &[&'a str]) -> &'a str {
        until(&format!("somebody waits in one of {queries:?}"), async || {
            for query in queries {
                let sql = format!(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                     AND wait_event_type = 'Lock' AND query LIKE '{query}'"
                );
                if self.cluster.database.one(&sql).await != "0" {
                    return Some(*query);
                }
            }
            None
        })
        .await
    }

    /// Stops somebody who waits for a lock, and gives it to him.
    async fn stop_in(&self, lock: &str, query: &str, who: Who) -> Sleeper {
        let lock = self.cluster.database.lock(lock).await;
        self.stop_behind(lock, query, who).await
    }

    async fn stop_behind(&self, lock: sqlx::Transaction<'static, sqlx::Postgres>, query: &str, who: Who) -> Sleeper {
        let sleeper = self.stop(query, who).await;
        lock.rollback().await.unwrap();
        let sql = format!(
            "SELECT state, wait_event_type FROM pg_stat_activity WHERE pid = {} AND wait_event_type = 'Client'",
            sleeper.backend
        );
        // From here on the server waits for the sleeper, with his locks.
        until("the sleeper has the lock", async || self.cluster.database.rows(&sql).await.pop()).await;
        sleeper
    }

    /// Stops somebody who waits for a lock.
    async fn stop(&self, query: &str, who: Who) -> Sleeper {
        let waiting = format!(
            "SELECT pid::text, client_port::text FROM pg_stat_activity WHERE datname = current_database() \
             AND wait_event_type = 'Lock' AND query LIKE '{query}' AND application_name LIKE 'longshore%'"
        );
        let sleeper = until(&format!("{who:?} waits in {query}"), async || {
            let owner = self.cluster.owner().await?;
            for row in self.cluster.database.rows(&waiting).await {
                let port = row[1].as_ref()?.parse().unwrap();
                let Some(worker) = self.cluster.workers.iter().position(|worker| has_port(worker, port)) else {
                    continue;
                };
                if (worker == owner) == (who == Who::Owner) {
                    return Some(Sleeper { worker, backend: row[0].clone()? });
                }
            }
            None
        })
        .await;
        let victim = &self.cluster.workers[sleeper.worker];
        println!("{who:?} {} sleeps in {query}", victim.name());
        victim.signal("STOP");
        sleeper
    }

    /// Another import, which is nobody's business.
    async fn another(&self, table: &str) {
        let csv = source(seed(), 300, 1, 0).csv;
        let id = self.cluster.api.begin(&json!({"destination": {"table": table}}), csv.clone()).await;
        self.cluster.api.act(&id, "complete").await;
        assert_succeeded(&self.cluster.api.done(&id).await);
        self.cluster.database.assert_holds(table, &[&csv]).await;
    }

    /// The import ends while they sleep, and stays as it is when they wake.
    async fn ends_without(&self, sleepers: &[Sleeper]) {
        let database = &self.cluster.database;
        let import = self.cluster.api.done(&self.id).await;
        self.assert_right(&import).await;
        for sleeper in sleepers {
            let sql = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = {} AND datname = current_database() \
                 AND state <> 'idle'",
                sleeper.backend
            );
            assert_eq!(database.one(&sql).await, "0", "the session of a sleeper outlived its import");
        }
        for sleeper in sleepers {
            self.cluster.workers[sleeper.worker].signal("CONT");
        }
        // What they still had in hand is over once none of it is open any more.
        until("nothing of the import is open", async || (database.sessions_of(&self.id).await == 0).then_some(()))
            .await;
        self.another("after").await;
        until("nothing of the import is open", async || (database.sessions_of(&self.id).await == 0).then_some(()))
            .await;
        self.assert_right(&self.cluster.api.got(&format!("/v1/imports/{}", self.id)).await).await;
        self.cluster.assert_clean_logs();
    }

    async fn assert_right(&self, import: &Value) {
        assert_succeeded(import);
        assert_eq!((id_of(import), &import["attempt"]), (self.id.clone(), &json!(1)));
        assert_eq!(import["progress"]["rows_loaded"], 20_000);
        let chunks = self.cluster.api.all(&format!("/v1/imports/{}/chunks", self.id), 1000).await;
        assert_eq!(assert_tiles(&chunks, self.csv.len() as u64), 20_000);
        self.cluster.database.assert_holds("t", &[&self.csv]).await;
        self.cluster.database.assert_tidy().await;
    }
}

/// Whether a process has a connection from this port.
fn has_port(process: &Process, port: u16) -> bool {
    let wanted = format!("0100007F:{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let inodes: Vec<String> =
        fields.filter(|fields| fields[1] == wanted).map(|fields| format!("socket:[{}]", fields[9])).collect();
    let Ok(files) = std::fs::read_dir(format!("/proc/{}/fd", process.pid())) else { return false };
    files.flatten().any(|file| {
        let target = std::fs::read_link(file.path()).unwrap_or_default();
        inodes.iter().any(|inode| target == Path::new(inode))
    })
}
