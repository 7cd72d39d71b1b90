//! Nodes whose clocks are an hour off: leases and claims are the database's, signatures are dated by the storage's clock, so
//! that nothing changes.
//!
//! Needs `deploy/servers test`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use serde_json::{Value, json};

use common::api::{assert_succeeded, assert_tiles, id_of};
use common::cluster::{Cluster, Options};
use common::data::{columns, source};
use common::process::Env;
use common::s3::{S3Kind, on_every_s3_server};
use common::{seed, server_setting, until};

on_every_s3_server!(
    a_cluster_an_hour_ahead_imports_as_ever,
    a_cluster_an_hour_behind_imports_as_ever,
    nodes_whose_clocks_disagree_share_an_import_and_replace_each_other,
);

const AHEAD: &str = "+1h";
const BEHIND: &str = "-1h";

/// The settings of a process whose clock is off.
fn clock(off: &str) -> Env {
    let library = server_setting("LONGSHORE_TEST_FAKETIME");
    [("LD_PRELOAD", library.as_str()), ("FAKETIME", off), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// The import is right, and nobody took it, or a chunk of it, from somebody else before its time.
async fn assert_undisturbed(cluster: &Cluster, import: &Value, csv: &[u8], rows: u64) {
    assert_succeeded(import);
    assert_eq!(import["attempt"], 1);
    assert_eq!(import["progress"]["rows_loaded"], rows);
    let id = id_of(import);
    assert_eq!(cluster.database.one(&format!("SELECT epoch FROM longshore_imports WHERE id = '{id}'")).await, "1");
    let chunks = cluster.api.all(&format!("/v1/imports/{id}/chunks"), 1000).await;
    assert_eq!(assert_tiles(&chunks, csv.len() as u64), rows);
    assert!(chunks.iter().all(|chunk| chunk["attempt"] == 1), "{chunks:?}");
}

/// A bucket, made by a node whose clock is right, and an API whose clock is not.
async fn cluster_with_api(off: &str, options: &Options<'_>) -> Cluster {
    let mut cluster = Cluster::start(options).await;
    cluster.replace_api_with(&clock(off));
    cluster
}

/// All nodes are off: whoever owns the import, works on it or signs its URL.
async fn all_off(s3: S3Kind, off: &str) {
    let mut cluster = cluster_with_api(off, &Options { workers: 0, events: true, ..Options::on(s3) }).await;
    for _ in 0..2 {
        cluster.start_worker_with(&clock(off));
    }
    cluster.ready().await;
    let source = source(seed(), 10_000, 1, 0);
    let request = json!({"destination": {"table": "t"}, "columns": columns(), "upload": {"expires_in": 300}});
    let import = cluster.api.import(&request, source.csv.clone()).await;
    assert_undisturbed(&cluster, &import, &source.csv, 10_000).await;
    assert_eq!(import["trigger"], "event");
    // What it says of itself is by one clock.
    let time = |name: &str| import[name].as_str().unwrap();
    assert!(time("created_at") <= time("uploaded_at"), "{import:#}");
    assert!(time("uploaded_at") <= time("started_at") && time("started_at") <= time("finished_at"), "{import:#}");
    cluster.database.assert_holds("t", &[&source.csv]).await;
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

async fn a_cluster_an_hour_ahead_imports_as_ever(s3: S3Kind) {
    all_off(s3, AHEAD).await;
}

async fn a_cluster_an_hour_behind_imports_as_ever(s3: S3Kind) {
    all_off(s3, BEHIND).await;
}

async fn nodes_whose_clocks_disagree_share_an_import_and_replace_each_other(s3: S3Kind) {
    // The API is behind; of the workers one is ahead, one behind and one right.
    let options = Options { workers: 0, chunk_size: "2000", ..Options::on(s3) };
    let mut cluster = cluster_with_api(BEHIND, &options).await;
    for off in [AHEAD, BEHIND, "+0"] {
        cluster.start_worker_with(&clock(off));
    }
    cluster.ready().await;
    let source = source(seed(), 20_000, 1, 0);
    let request = json!({"destination": {"table": "t"}, "columns": columns()});
    let id = cluster.api.begin(&request, source.csv.clone()).await;
    cluster.api.act(&id, "complete").await;
    let import = cluster.api.done(&id).await;
    assert_undisturbed(&cluster, &import, &source.csv, 20_000).await;
    cluster.database.assert_holds("t", &[&source.csv]).await;

    // Whoever owns an import is replaced when he dies, and only then.
    let id = cluster.api.begin(&request, source.csv.clone()).await;
    cluster.api.act(&id, "complete").await;
    let lock = cluster.database.lock("LOCK TABLE longshore_ledger IN SHARE MODE").await;
    let owner = until("somebody owns it", async || cluster.owner().await).await;
    println!("{} is killed", cluster.workers[owner].name());
    cluster.workers[owner].kill();
    lock.rollback().await.unwrap();
    let import = cluster.api.done(&id).await;
    assert_succeeded(&import);
    assert_eq!(import["attempt"], 1);
    let epoch = format!("SELECT epoch FROM longshore_imports WHERE id = '{id}'");
    assert_eq!(cluster.database.one(&epoch).await, "2");
    let csv = source.csv.as_slice();
    cluster.database.assert_holds("t", &[csv, csv]).await;
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}
