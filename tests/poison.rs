//! Chunks that kill whoever works on them: given up after so many tries, with the reason; and a worker that is out of memory,
//! which costs a chunk's retry and not the import.
//!
//! Nothing of this depends on the object storage, so each test has one.
//!
//! Needs `deploy/servers test`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::process::Command;

use serde_json::{Value, json};

use common::api::{assert_failed, assert_succeeded, id_of};
use common::cluster::{Cluster, Options};
use common::data::{columns, source};
use common::process::{Env, settings};
use common::s3::S3Kind;
use common::{seed, until};

/// After so many tries a chunk is given up (`docs/api.md`).
const CLAIMS_AT_MOST: i64 = 20;

async fn begin(cluster: &Cluster, request: &Value, csv: Vec<u8>) -> String {
    let id = cluster.api.begin(request, csv).await;
    cluster.api.act(&id, "complete").await;
    id
}

/// A defect of the program is no reason to try for ever.
#[tokio::test]
async fn what_panics_every_time_is_given_up() {
    let mut cluster = Cluster::start(&Options { workers: 2, ..Options::on(S3Kind::Minio) }).await;
    for (point, kind) in [("chunk.parsed", "poison-chunk"), ("plan.made", "internal"), ("chunks.before", "internal")] {
        for worker in &mut cluster.workers {
            worker.kill();
            worker.set("FAILPOINTS", Some(&format!("{point}=panic")));
            worker.start();
        }
        let request = json!({"destination": {"table": "t"}, "columns": columns()});
        let id = begin(&cluster, &request, source(seed(), 100, 1, 0).csv).await;
        if kind == "poison-chunk" {
            let claims = format!("SELECT coalesce(max(claims), 0) FROM longshore_chunks WHERE import_id = '{id}'");
            until("its claims are counted", async || {
                let counted: i64 = cluster.database.one(&claims).await.parse().unwrap();
                (counted >= 3).then_some(())
            })
            .await;
            let counted =
                format!("UPDATE longshore_chunks SET claims = {} WHERE import_id = '{id}'", CLAIMS_AT_MOST - 1);
            cluster.database.run(&counted).await;
        }
        assert_failed(&cluster.api.done(&id).await, kind);
        if kind == "poison-chunk" {
            let chunks = cluster.api.all(&format!("/v1/imports/{id}/chunks"), 10).await;
            assert_eq!(chunks[0]["state"], "failed", "{chunks:?}");
        }
        assert!(!cluster.database.has_table("t").await);
    }
    cluster.database.assert_tidy().await;
}

#[tokio::test]
async fn a_chunk_that_kills_its_worker_every_time_is_given_up_and_others_go_on() {
    let mut cluster = Cluster::start(&Options { chunk_size: "2000", ..Options::on(S3Kind::Minio) }).await;
    // A value that the destination takes an hour over: whoever takes its chunk is killed meanwhile.
    cluster
        .database
        .run(
            "CREATE FUNCTION slow(value text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN \
             IF value = 'poison' THEN PERFORM pg_sleep(3600); END IF; RETURN true; END $$; \
             CREATE DOMAIN slow_text AS text CHECK (slow(value)); \
             CREATE TABLE t (id bigint, name text, note slow_text, amount bigint); \
             INSERT INTO t VALUES (-1, 'there before', NULL, 0)",
        )
        .await;
    let mut csv = source(seed(), 500, 1, 0).csv;
    csv.extend_from_slice(b"501,x,poison,1\n");
    csv.extend_from_slice(&source(1, 500, 502, 0).csv["id,name,note,amount\n".len()..]);
    let id = begin(&cluster, &json!({"destination": {"table": "t"}}), csv).await;

    let claim = format!(
        "SELECT chunk, claims, worker FROM longshore_chunks WHERE import_id = '{id}' AND state = 'running' \
         AND 501 BETWEEN first_row AND first_row + row_count - 1"
    );
    let mut claims = 0;
    let mut chunk = 0;
    while claims < CLAIMS_AT_MOST {
        let (victim, claimed, found) = until("the chunk is claimed once more", async || {
            let row = cluster.database.rows(&claim).await.pop()?;
            let [chunk, claimed, worker] = row.try_into().unwrap();
            let (claimed, worker): (i64, String) = (claimed?.parse().unwrap(), worker?);
            let victim = cluster.workers.iter().position(|node| worker.contains(&format!("-{}-", node.pid())))?;
            (claimed > claims).then(|| (victim, claimed, chunk.unwrap().parse::<i64>().unwrap()))
        })
        .await;
        println!("claim {claimed} of chunk {found}: {} is killed", cluster.workers[victim].name());
        assert_eq!(claimed, claims + 1, "every claim is counted, once");
        assert_eq!(cluster.api.got(&format!("/v1/imports/{id}")).await["state"], "running");
        cluster.workers[victim].kill();
        cluster.workers[victim].start();
        (claims, chunk) = (claimed, found);
        if claims == 2 {
            // Others go on meanwhile.
            let file = source(seed(), 1_000, 1, 0).csv;
            let request = json!({"destination": {"table": "other"}, "columns": columns()});
            let other = begin(&cluster, &request, file.clone()).await;
            assert_succeeded(&cluster.api.done(&other).await);
            cluster.database.assert_holds("other", &[&file]).await;
            // Each claim has to run out. So that the test need not wait for all of them, as many as are missing are counted here.
            claims = CLAIMS_AT_MOST - 2;
            let counted =
                format!("UPDATE longshore_chunks SET claims = {claims} WHERE import_id = '{id}' AND chunk = {chunk}");
            cluster.database.run(&counted).await;
        }
    }
    let import = cluster.api.done(&id).await;
    assert_failed(&import, "poison-chunk");
    let detail = import["error"]["detail"].as_str().unwrap();
    assert!(detail.starts_with(&format!("chunk {chunk} was tried {CLAIMS_AT_MOST} times")), "{detail}");
    assert_eq!((id_of(&import), &import["attempt"]), (id.clone(), &json!(1)));
    assert_eq!(cluster.database.one("SELECT count(*) FROM t").await, "1", "nothing of it was loaded");
    cluster.database.assert_tidy().await;
    until("nothing of the import is open", async || (cluster.database.sessions_of(&id).await == 0).then_some(())).await;
    cluster.ready().await;
    let file = source(seed(), 1_000, 5_000, 0).csv;
    let after = begin(&cluster, &json!({"destination": {"table": "after"}}), file.clone()).await;
    assert_succeeded(&cluster.api.done(&after).await);
    cluster.database.assert_holds("after", &[&file]).await;
    cluster.assert_clean_logs();
}

/// Who owns an import reads the beginning of its file.
#[tokio::test]
async fn a_file_that_kills_whoever_plans_it_is_given_up() {
    let mut cluster = Cluster::start(&Options { workers: 2, ..Options::on(S3Kind::Versity) }).await;
    for worker in &mut cluster.workers {
        worker.kill();
        worker.set("FAILPOINTS", Some("plan.made=return"));
        worker.start();
    }
    let id = begin(&cluster, &json!({"destination": {"table": "t"}}), source(seed(), 100, 1, 0).csv).await;
    let deaths = format!("SELECT coalesce(planning_deaths, 0) FROM longshore_imports WHERE id = '{id}'");
    let mut last = 0;
    while last < CLAIMS_AT_MOST {
        let victim = until("a process ends over it", async || {
            cluster.workers.iter_mut().position(|worker| worker.ended().is_some())
        })
        .await;
        let counted: i64 = cluster.database.one(&deaths).await.parse().unwrap();
        println!("{} ended, {counted} before it", cluster.workers[victim].name());
        cluster.workers[victim].kill();
        cluster.workers[victim].start();
        last = counted + 1;
        if last == 2 {
            // Each lease has to run out. So that the test need not wait for all of them, as many as are missing are counted here.
            last = CLAIMS_AT_MOST - 1;
            let counted = format!("UPDATE longshore_imports SET planning_deaths = {} WHERE id = '{id}'", last - 1);
            cluster.database.run(&counted).await;
        }
    }
    let import = cluster.api.done(&id).await;
    assert_failed(&import, "poison-chunk");
    assert!(import["error"]["detail"].as_str().unwrap().contains("20 processes ended"), "{import}");
    for worker in &mut cluster.workers {
        worker.kill();
        worker.set("FAILPOINTS", None);
        worker.start();
    }
    // A retry begins to count anew.
    cluster.api.act(&id, "retry").await;
    assert_succeeded(&cluster.api.done(&id).await);
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

#[tokio::test]
async fn a_worker_that_runs_out_of_memory_costs_a_chunk_its_retry() {
    // Chunks of 8 MiB, one at a time.
    let more = settings([("WORKERS", "1")]);
    let options = Options { workers: 1, chunk_size: "8388608", more, ..Options::on(S3Kind::Versity) };
    let mut cluster = Cluster::start(&options).await;
    // Whatever the allocator would set aside at the start is not there to be used up first.
    let frugal: Env = vec![("MIMALLOC_ARENA_RESERVE".to_owned(), "0".to_owned())];
    cluster.start_worker_with(&frugal);
    cluster.ready().await;
    limit_memory(cluster.workers[1].pid(), 8 << 20);
    let csv = source(seed(), 600_000, 1, 0).csv;
    println!("{} bytes", csv.len());
    let id = begin(&cluster, &json!({"destination": {"table": "t"}, "columns": columns()}), csv.clone()).await;
    let status = cluster.workers[1].end().await;
    println!("the worker ended: {status}");
    assert!(!status.success(), "{status}");
    let import = cluster.api.done(&id).await;
    assert_succeeded(&import);
    assert_eq!((&import["attempt"], &import["progress"]["rows_loaded"]), (&json!(1), &json!(600_000)));
    let chunks = cluster.api.all(&format!("/v1/imports/{id}/chunks"), 500).await;
    // What it had in hand was taken over: a chunk, or the import itself.
    let epoch = cluster.database.one(&format!("SELECT epoch FROM longshore_imports WHERE id = '{id}'")).await;
    assert!(epoch != "1" || chunks.iter().any(|chunk| chunk["attempt"] == 2), "{epoch}: {chunks:?}");
    cluster.database.assert_holds("t", &[&csv]).await;
    cluster.database.assert_tidy().await;
    assert!(!cluster.workers[0].log().contains("panicked at"));
}

/// Each bad row is listed with its record and its reason, a hundred times what a short row takes in the file.
#[tokio::test]
async fn a_chunk_of_bad_rows_takes_no_more_memory_than_one_of_good_ones() {
    const ROWS: u64 = 1_000_000;
    let more = settings([("WORKERS", "1")]);
    let options = Options { workers: 1, chunk_size: "8388608", more, ..Options::on(S3Kind::Versity) };
    let cluster = Cluster::start(&options).await;
    // No number, and a field too many.
    let csv = format!("n\n{}{}", "x\n".repeat(ROWS as usize / 2), ",\n".repeat(ROWS as usize / 2)).into_bytes();
    let request = json!({"destination": {"table": "t"}, "on_error": {"max_rejects": null},
                         "columns": [{"name": "n", "type": "int64"}]});
    let id = begin(&cluster, &request, csv).await;
    let import = cluster.api.done(&id).await;
    assert_succeeded(&import);
    assert_eq!((&import["progress"]["chunks_total"], &import["progress"]["rows_rejected"]), (&json!(1), &json!(ROWS)));
    let listed = format!("SELECT count(DISTINCT row_number) FROM longshore_rejects WHERE import = '{id}'");
    assert_eq!(cluster.database.one(&listed).await, ROWS.to_string());
    let peak = memory(cluster.workers[0].pid(), "VmHWM:") / 1024;
    println!("peak memory {peak} MiB");
    assert!(peak < 150, "a million bad rows in one chunk took {peak} MiB");
    cluster.assert_clean_logs();
}

/// One line of what the kernel says of a process's memory, in KiB.
fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

/// From here on a process gets no more than so many bytes of address space beyond what it has.
fn limit_memory(pid: u32, more: u64) {
    let has = memory(pid, "VmSize:");
    println!("it has {has} KiB");
    let limit = format!("--as={}", has * 1024 + more);
    assert!(Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status().unwrap().success());
}
