//! A rolling upgrade: nodes of the version before and of this one, side by side on one database, one NATS and one bucket.
//!
//! Needs `deploy/servers test`, which builds the version before from the repository's history.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use serde_json::{Value, json};

use common::api::{Api, assert_failed, assert_succeeded, id_of};
use common::cluster::{Cluster, Options};
use common::data::source;
use common::seed;

fn into(table: &str) -> Value {
    json!({"destination": {"table": table}})
}

/// Imports a file through one API, and sees it end on another.
async fn import(cluster: &Cluster, through: &Api, seen: &Api, table: &str, seed: u64) {
    let file = source(seed, 3_000, 1, 0);
    let id = through.begin(&into(table), file.csv.clone()).await;
    assert_eq!(through.post(&format!("/v1/imports/{id}/complete"), &json!({})).await.0, 202);
    assert_succeeded(&seen.done(&id).await);
    cluster.database.assert_holds(table, &[&file.csv]).await;
}

#[tokio::test]
async fn two_versions_work_on_one_database() {
    let older = std::env::var("LONGSHORE_TEST_OLDER_VERSION").unwrap_or_default();
    if older.is_empty() {
        println!("skipped: there is no history to build the version before from");
        return;
    }
    let seed = seed();
    let mut cluster = Cluster::start(&Options { workers: 0, chunk_size: "2048", ..Options::default() }).await;
    // From nothing, the older version makes its own tables first; here it meets those of the newer one, as after a rollback.
    let mut old_worker = cluster.start_other(&older, "older-worker", "worker");
    let mut old_api = cluster.start_other(&older, "older-api", "api");
    old_worker.ready().await;
    old_api.ready().await;
    let (new, old) = (cluster.api.clone(), Api::new(&old_api.base));
    import(&cluster, &old, &new, "old_and_old", seed).await;
    import(&cluster, &new, &old, "new_and_old", seed + 1).await;

    // The older worker owns an import that the newer API cancels, and one that it retries.
    let id = new.begin(&into("cancelled"), source(seed, 30_000, 1, 0).csv).await;
    assert_eq!(new.post(&format!("/v1/imports/{id}/complete"), &json!({})).await.0, 202);
    new.chunks_done(&id, 2).await;
    assert_eq!(new.post(&format!("/v1/imports/{id}/cancel"), &json!({})).await.0, 202);
    assert_eq!(old.done(&id).await["state"], "cancelled");
    let id = new.begin(&into("retried"), "a\n\"1\n").await;
    assert_eq!(new.post(&format!("/v1/imports/{id}/complete"), &json!({})).await.0, 202);
    let failed = new.done(&id).await;
    assert_eq!(failed["state"], "failed", "{failed:#}");
    assert_eq!(new.post(&format!("/v1/imports/{id}/retry"), &json!({})).await.0, 202);
    let again = new.done(&id).await;
    assert_failed(&again, common::api::kind_of(&failed["error"]));
    assert_eq!(again["attempt"], 2);

    // A newer worker joins in the middle of an import, the older one is told to stop: the import ends right.
    let file = source(seed + 2, 30_000, 1, 0);
    let id = old.begin(&into("handed_over"), file.csv.clone()).await;
    assert_eq!(old.post(&format!("/v1/imports/{id}/complete"), &json!({})).await.0, 202);
    old.chunks_done(&id, 3).await;
    cluster.start_workers(1);
    cluster.ready().await;
    assert!(old_worker.terminate().await.success());
    assert_succeeded(&old.done(&id).await);
    cluster.database.assert_holds("handed_over", &[&file.csv]).await;

    // And the other way round: an older worker that is started again, and the newer one stopped.
    let id = new.begin(&into("handed_back"), file.csv.clone()).await;
    assert_eq!(new.post(&format!("/v1/imports/{id}/complete"), &json!({})).await.0, 202);
    new.chunks_done(&id, 3).await;
    old_worker.start();
    old_worker.ready().await;
    assert_eq!(cluster.workers[0].terminate().await.code(), Some(0));
    let import = new.done(&id).await;
    assert_succeeded(&import);
    assert_eq!(import["attempt"], 1, "nothing had to be read again");
    cluster.database.assert_holds("handed_back", &[&file.csv]).await;
    cluster.database.assert_tidy().await;
    assert_eq!(id_of(&import), id);
}
