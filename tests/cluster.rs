//! A real cluster: `longshore api` and `longshore worker` processes over NATS JetStream, an S3 server and PostgreSQL.
//!
//! Needs `deploy/servers test`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use common::api::{assert_failed, assert_succeeded, assert_tiles, id_of, kind_of, read};
use common::cluster::{Cluster, Options};
use common::data::{ODD_HEADER, columns, odd_columns, source};
use common::process::{Process, settings};
use common::s3::{S3Kind, on_every_s3_server};
use common::servers::PostgresServer;
use common::{DEADLINE, seed, until};

on_every_s3_server!(
    a_storage_event_alone_starts_an_import_that_several_workers_share,
    a_large_file_is_scanned_by_several_workers,
    a_node_that_works_alone_reads_an_object_once,
    complete_starts_an_import_where_no_event_comes,
    the_storage_itself_refuses_what_was_not_promised,
    the_sweep_finds_what_nobody_told_of,
    all_triggers_at_once_start_an_import_once,
    an_upload_that_breaks_off_loads_nothing,
    a_notification_that_cannot_be_set_is_reported_and_stops_nothing,
    an_object_that_changed_fails_the_import_and_leaves_nothing,
    an_object_replaced_while_its_chunks_are_loaded_fails_the_import,
    nodes_that_start_at_the_same_moment_make_everything_together,
    two_imports_into_one_new_table_both_end_in_it,
    a_key_that_is_there_already_is_a_reject_and_the_lowest_row_stays,
    a_table_that_is_loaded_into_is_let_go_while_a_chunk_is_late,
    past_the_limit_of_rejects_no_chunk_begins,
    headers_of_all_sorts_make_tables_that_take_their_files_again,
    a_worker_that_sleeps_through_its_lease_changes_nothing_when_it_wakes,
    servers_that_are_down_at_the_start_are_waited_for,
    a_wiped_nats_in_the_middle_of_an_import_loses_nothing,
    a_nats_that_is_away_delays_imports_and_loses_none,
    a_database_that_goes_away_is_a_503_and_the_import_ends_when_it_is_back,
    a_storage_that_goes_away_is_a_503_and_the_import_ends_when_it_is_back,
);

fn into(table: &str) -> Value {
    json!({"destination": {"table": table}})
}

async fn workers_of(cluster: &Cluster, id: &str) -> BTreeSet<String> {
    let chunks = cluster.api.all(&format!("/v1/imports/{id}/chunks"), 500).await;
    chunks.iter().map(|chunk| chunk["worker"].as_str().unwrap().to_owned()).collect()
}

async fn a_storage_event_alone_starts_an_import_that_several_workers_share(s3: S3Kind) {
    let cluster = Cluster::start(&Options { events: true, ..Options::on(s3) }).await;
    let source = source(seed(), 20_000, 1, 0);
    let import = cluster.api.import(&into("trips"), source.csv.clone()).await;
    assert_succeeded(&import);
    assert_eq!((&import["trigger"], &import["attempt"]), (&json!("event"), &json!(1)));
    assert_eq!(import["progress"]["rows_loaded"], 20_000);
    cluster.database.assert_holds("trips", &[&source.csv]).await;
    let chunks = cluster.api.all(&format!("/v1/imports/{}/chunks", id_of(&import)), 50).await;
    assert_eq!(assert_tiles(&chunks, source.csv.len() as u64), 20_000);
    let workers = workers_of(&cluster, &id_of(&import)).await;
    assert!(workers.len() >= 2, "only {workers:?} took chunks");
    cluster.database.assert_tidy().await;

    // Events for keys that are none of ours, or of no import, start nothing and stop nothing.
    let nobody = "01980000-0000-7000-8000-000000000000";
    for key in [&format!("imports/{nobody}/a.csv"), "imports/nonsense", "imports/a b+ü/%2F.csv", "elsewhere/a.csv"] {
        cluster.bucket.put(key, b"a\n1\n").await;
    }
    let import = cluster.api.import(&into("after"), "a\n1\n").await;
    assert_succeeded(&import);
    assert_eq!(import["trigger"], "event");
    assert_eq!(cluster.api.all("/v1/imports", 50).await.len(), 2);
    cluster.assert_clean_logs();
}

/// More than a node of one worker keeps of what it has read.
const MORE_THAN_IS_KEPT: u64 = 700_000;

/// A worker's figure.
async fn figure(worker: &Process, series: &str) -> u64 {
    let text = reqwest::get(format!("{}/metrics", worker.base)).await.unwrap().text().await.unwrap();
    let figure = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    figure.unwrap_or_else(|| panic!("{series} in {text}")).parse().unwrap()
}

async fn a_large_file_is_scanned_by_several_workers(s3: S3Kind) {
    let more = settings([("WORKERS", "1")]);
    let cluster = Cluster::start(&Options { chunk_size: "65536", more, ..Options::on(s3) }).await;
    let source = source(seed(), MORE_THAN_IS_KEPT, 1, 0);
    let id = cluster.api.begin(&into("trips"), source.csv.clone()).await;
    assert_eq!(cluster.api.post(&format!("/v1/imports/{id}/complete"), &json!({})).await.0, 202);
    let import = cluster.api.done(&id).await;
    assert_succeeded(&import);
    assert_eq!(import["attempt"], 1);
    let chunks = cluster.api.all(&format!("/v1/imports/{id}/chunks"), 500).await;
    assert_eq!(assert_tiles(&chunks, source.csv.len() as u64), MORE_THAN_IS_KEPT);
    cluster.database.assert_holds("trips", &[&source.csv]).await;
    let mut ranges = Vec::new();
    for worker in &cluster.workers {
        ranges.push(figure(worker, "longshore_step_duration_seconds_count{step=\"scan_range\"}").await);
    }
    assert!(ranges.iter().filter(|count| **count > 0).count() >= 2, "ranges by worker: {ranges:?}");
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

async fn a_node_that_works_alone_reads_an_object_once(s3: S3Kind) {
    let more = settings([("WORKERS", "1")]);
    let cluster = Cluster::start(&Options { workers: 1, chunk_size: "1000000", more, ..Options::on(s3) }).await;
    let source = source(seed(), MORE_THAN_IS_KEPT, 1, 0);
    let mut request = into("trips");
    request["columns"] = columns();
    let id = cluster.api.begin(&request, source.csv.clone()).await;
    assert_eq!(cluster.api.post(&format!("/v1/imports/{id}/complete"), &json!({})).await.0, 202);
    assert_succeeded(&cluster.api.done(&id).await);
    cluster.database.assert_holds("trips", &[&source.csv]).await;
    assert_eq!(figure(&cluster.workers[0], "longshore_fetched_bytes_total").await, source.csv.len() as u64);
    cluster.assert_clean_logs();
}

async fn complete_starts_an_import_where_no_event_comes(s3: S3Kind) {
    let cluster = Cluster::start(&Options::on(s3)).await;
    let source = source(seed(), 5_000, 1, 50);
    let mut request = into("trips");
    request["columns"] = columns();
    request["on_error"] = json!({"max_rejects": null});
    let created = cluster.api.create(&request).await;
    let id = id_of(&created);
    let complete = format!("/v1/imports/{id}/complete");
    let (status, problem) = cluster.api.post(&complete, &json!({})).await;
    assert_eq!((status.as_u16(), kind_of(&problem)), (409, "no-object"), "{problem}");
    assert_eq!(cluster.api.put(&created, source.csv).await, 200);
    assert_eq!(cluster.api.got(&format!("/v1/imports/{id}")).await["state"], "awaiting_upload");
    assert_eq!(cluster.api.post(&complete, &json!({})).await.0, 202);
    let import = cluster.api.done(&id).await;
    assert_succeeded(&import);
    assert_eq!(import["trigger"], "complete");
    cluster.database.assert_holds("trips", &[&source.good_csv]).await;
    let rejects = cluster.api.all(&format!("/v1/imports/{id}/rejects"), 20).await;
    assert_eq!(rejects.iter().map(|reject| reject["row"].as_u64().unwrap()).collect::<Vec<_>>(), source.bad);
    assert_eq!(cluster.api.post(&complete, &json!({})).await.0, 202, "again, when it is done");
    cluster.assert_clean_logs();
}

async fn the_storage_itself_refuses_what_was_not_promised(s3: S3Kind) {
    let cluster = Cluster::start(&Options { workers: 0, ..Options::on(s3) }).await;
    let api = &cluster.api;
    let body = b"a,b\n1,2\n".to_vec();
    let created = api.create(&json!({"destination": {"table": "t"}, "file": {"size": body.len()}})).await;
    assert_eq!(api.put_changed(&created, body.clone(), &[("content-type", "application/json")]).await, 403);
    let longer = [body.as_slice(), b"3,4\n"].concat();
    let length = longer.len().to_string();
    assert_eq!(api.put_changed(&created, longer, &[("content-length", &length)]).await, 403);
    let url = created["upload"]["url"].as_str().unwrap();
    for method in [reqwest::Method::GET, reqwest::Method::POST, reqwest::Method::DELETE] {
        let answer = api.http.request(method.clone(), url).header("content-type", "text/csv").send().await.unwrap();
        assert!(answer.status().is_client_error(), "{method}: {}", answer.status());
    }
    assert_eq!(api.put(&created, body.clone()).await, 200);
    assert_eq!(api.put(&created, body).await, 412);
}

async fn the_sweep_finds_what_nobody_told_of(s3: S3Kind) {
    let cluster = Cluster::start(&Options { sweep: "1s", ..Options::on(s3) }).await;
    let source = source(seed(), 3_000, 1, 0);
    let import = cluster.api.import(&into("trips"), source.csv.clone()).await;
    assert_succeeded(&import);
    assert_eq!(import["trigger"], "sweep");
    cluster.database.assert_holds("trips", &[&source.csv]).await;
}

async fn all_triggers_at_once_start_an_import_once(s3: S3Kind) {
    let cluster = Cluster::start(&Options { events: true, sweep: "100ms", ..Options::on(s3) }).await;
    let api = &cluster.api;
    let mut files = Vec::new();
    for round in 0..8 {
        let source = source(round, 300, 1 + 300 * round as i64, 0);
        let created = api.create(&into("trips")).await;
        let id = id_of(&created);
        let complete = format!("/v1/imports/{id}/complete");
        // Asked for before, during and after the upload.
        let calls = async || {
            let mut taken = 0;
            while taken < 3 {
                let (status, answer) = api.post(&complete, &json!({})).await;
                assert!(status == 202 || status == 409, "{status}: {answer}");
                taken += u32::from(status == 202);
            }
        };
        let (status, (), ()) = tokio::join!(api.put(&created, source.csv.clone()), calls(), calls());
        assert_eq!(status, 200);
        let import = api.done(&id).await;
        assert_succeeded(&import);
        assert_eq!(import["attempt"], 1);
        assert!(["event", "complete", "sweep"].contains(&import["trigger"].as_str().unwrap()), "{import}");
        files.push(source.csv);
    }
    let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
    cluster.database.assert_holds("trips", &files).await;
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

async fn an_upload_that_breaks_off_loads_nothing(s3: S3Kind) {
    let cluster = Cluster::start(&Options { workers: 1, events: true, ..Options::on(s3) }).await;
    let source = source(seed(), 5_000, 1, 0);
    let mut request = into("trips");
    request["file"] = json!({"size": source.csv.len()});
    let created = cluster.api.create(&request).await;
    cluster.api.put_part(&created, &source.csv[..source.csv.len() / 2]).await;
    match s3 {
        S3Kind::Minio => {
            assert_eq!(cluster.api.got(&format!("/v1/imports/{}", id_of(&created))).await["state"], "awaiting_upload");
            assert_eq!(cluster.api.put(&created, source.csv.clone()).await, 200);
            assert_succeeded(&cluster.api.done(&id_of(&created)).await);
            cluster.database.assert_holds("trips", &[&source.csv]).await;
        }
        // It keeps the half, and tells of it.
        S3Kind::Versity => {
            assert_failed(&cluster.api.done(&id_of(&created)).await, "incomplete-upload");
            assert!(!cluster.database.has_table("trips").await);
        }
    }
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

async fn a_notification_that_cannot_be_set_is_reported_and_stops_nothing(s3: S3Kind) {
    // MinIO does not know this target, versitygw knows none at all.
    let arn = "arn:minio:sqs::nowhere:nats";
    let options = Options { workers: 1, events: true, notification_arn: Some(arn), ..Options::on(s3) };
    let cluster = Cluster::start(&options).await;
    for process in [&cluster.nodes[0], &cluster.workers[0]] {
        process.says("the bucket's notification could not be set").await;
    }
    let id = cluster.api.begin(&into("trips"), "a\n1\n").await;
    let trigger = match s3 {
        S3Kind::Minio => {
            assert_eq!(cluster.api.post(&format!("/v1/imports/{id}/complete"), &json!({})).await.0, 202);
            "complete"
        }
        // Its events come for all buckets, whatever is asked for.
        S3Kind::Versity => "event",
    };
    let import = cluster.api.done(&id).await;
    assert_succeeded(&import);
    assert_eq!(import["trigger"], trigger);
    cluster.assert_clean_logs();
}

async fn an_object_that_changed_fails_the_import_and_leaves_nothing(s3: S3Kind) {
    let mut cluster = Cluster::start(&Options { workers: 0, ..Options::on(s3) }).await;
    let mut imports = Vec::new();
    for table in ["replaced", "deleted"] {
        let created = cluster.api.create(&into(table)).await;
        assert_eq!(cluster.api.put(&created, "a,b\n1,2\n").await, 200);
        let id = id_of(&created);
        assert_eq!(cluster.api.post(&format!("/v1/imports/{id}/complete"), &json!({})).await.0, 202);
        let key = created["source"]["key"].as_str().unwrap();
        match table {
            "replaced" => cluster.bucket.put(key, b"a,b\n8,9\n").await,
            _ => cluster.bucket.delete(key).await,
        }
        imports.push((table, id));
    }
    cluster.start_workers(1);
    for (table, id) in imports {
        let import = cluster.api.done(&id).await;
        assert_failed(&import, "object-changed");
        assert!(!cluster.database.has_table(table).await, "{table}");
    }
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

async fn an_object_replaced_while_its_chunks_are_loaded_fails_the_import(s3: S3Kind) {
    let cluster = Cluster::start(&Options { chunk_size: "2000", ..Options::on(s3) }).await;
    let (old, new) = (source(7, 40_000, 1, 0), source(8, 40_000, 1, 0));
    let created = cluster.api.create(&into("trips")).await;
    assert_eq!(cluster.api.put(&created, old.csv.clone()).await, 200);
    let id = id_of(&created);
    assert_eq!(cluster.api.post(&format!("/v1/imports/{id}/complete"), &json!({})).await.0, 202);
    cluster.api.chunks_done(&id, 3).await;
    cluster.bucket.put(created["source"]["key"].as_str().unwrap(), &new.csv).await;
    let import = cluster.api.done(&id).await;
    // Had everything been read already, the old rows are right as well; never a mixture.
    if import["state"] == "succeeded" {
        cluster.database.assert_holds("trips", &[&old.csv]).await;
    } else {
        assert_failed(&import, "object-changed");
        assert!(!cluster.database.has_table("trips").await);
    }
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

async fn nodes_that_start_at_the_same_moment_make_everything_together(s3: S3Kind) {
    // Two APIs and two workers meet an empty database, an empty NATS and no bucket.
    let mut cluster = Cluster::start(&Options { workers: 0, ..Options::on(s3) }).await;
    for process in &mut cluster.nodes {
        process.kill();
    }
    cluster.database.run("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
    cluster.nats.wipe();
    cluster.nats.process.start();
    cluster.nats.ready().await;
    cluster.api_process().start();
    cluster.start_api();
    cluster.start_workers(2);
    cluster.ready().await;
    let source = source(9, 2_000, 1, 0);
    let id = cluster.api.begin(&into("trips"), source.csv.clone()).await;
    assert_eq!(cluster.api.post(&format!("/v1/imports/{id}/complete"), &json!({})).await.0, 202);
    assert_succeeded(&cluster.api.done(&id).await);
    cluster.database.assert_holds("trips", &[&source.csv]).await;
    let other = common::api::Api::new(&cluster.nodes[1].base);
    assert_eq!(other.got(&format!("/v1/imports/{id}")).await["state"], "succeeded");
}

async fn two_imports_into_one_new_table_both_end_in_it(s3: S3Kind) {
    let cluster = Cluster::start(&Options { sweep: "200ms", chunk_size: "4000", ..Options::on(s3) }).await;
    let (one, two) = (source(10, 5_000, 1, 0), source(11, 5_000, 5_001, 0));
    let request = into("trips");
    let (first, second) =
        tokio::join!(cluster.api.import(&request, one.csv.clone()), cluster.api.import(&request, two.csv.clone()));
    assert_succeeded(&first);
    assert_succeeded(&second);
    cluster.database.assert_holds("trips", &[&one.csv, &two.csv]).await;
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

async fn a_key_that_is_there_already_is_a_reject_and_the_lowest_row_stays(s3: S3Kind) {
    let cluster = Cluster::start(&Options { sweep: "200ms", chunk_size: "100", ..Options::on(s3) }).await;
    cluster
        .database
        .run("CREATE TABLE keyed (id bigint PRIMARY KEY, name text); INSERT INTO keyed VALUES (5, 'old')")
        .await;
    let mut csv = String::from("id,name\n");
    for id in (1..=100).chain(1..=10) {
        csv.push_str(&format!("{id},new{id}\n"));
    }
    let mut request = into("keyed");
    let import = cluster.api.import(&request, csv.clone()).await;
    assert_failed(&import, "too-many-rejects");
    // The row that the table refused moved from one counter to the other, though nothing was loaded.
    let progress = &import["progress"];
    let counters = (&progress["rows_read"], &progress["rows_loaded"], &progress["rows_rejected"]);
    assert_eq!(counters, (&json!(110), &json!(109), &json!(1)), "{import}");
    assert_eq!(cluster.api.all(&format!("/v1/imports/{}/rejects", id_of(&import)), 4).await.len(), 1);
    assert_eq!(cluster.database.one("SELECT count(*) FROM keyed").await, "1");
    request["on_error"] = json!({"max_rejects": 11});
    let import = cluster.api.import(&request, csv).await;
    assert_succeeded(&import);
    assert_eq!((&import["progress"]["rows_loaded"], &import["progress"]["rows_rejected"]), (&json!(99), &json!(11)));
    let rejects = cluster.api.all(&format!("/v1/imports/{}/rejects", id_of(&import)), 4).await;
    let rows: Vec<u64> = rejects.iter().map(|reject| reject["row"].as_u64().unwrap()).collect();
    assert_eq!(rows, std::iter::once(5).chain(101..=110).collect::<Vec<_>>());
    assert!(rejects.iter().all(|reject| reject["reason"] == "constraint_violation"), "{rejects:?}");
    assert_eq!(cluster.database.one("SELECT name FROM keyed WHERE id = 5").await, "old");
    assert_eq!(cluster.database.one("SELECT count(*) FROM keyed").await, "100");
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

async fn a_table_that_is_loaded_into_is_let_go_while_a_chunk_is_late(s3: S3Kind) {
    let cluster = Cluster::start(&Options { chunk_size: "2000", ..Options::on(s3) }).await;
    let database = &cluster.database;
    let csv = source(seed(), 1_000, 1, 0).csv;
    database.run("CREATE TABLE t (id bigint, name text, note text, amount bigint)").await;
    let late = database.hold_chunks_behind(500).await;
    let id = cluster.api.begin(&json!({"destination": {"table": "t"}, "columns": columns()}), csv.clone()).await;
    cluster.api.act(&id, "complete").await;
    let copies = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'longshore/{id}/%' AND query LIKE 'COPY %'"
    );
    until("rows are copied", async || (database.one(&copies).await == "1").then_some(())).await;
    // Waits as long as anybody who inserts has it.
    let lock = tokio::time::timeout(DEADLINE, database.lock("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")).await;
    lock.expect("the table is let go").rollback().await.unwrap();
    assert_eq!(cluster.api.got(&format!("/v1/imports/{id}")).await["state"], "running");
    late.rollback().await.unwrap();
    assert_succeeded(&cluster.api.done(&id).await);
    database.assert_holds("t", &[&csv]).await;
    database.assert_tidy().await;
    cluster.assert_clean_logs();
}

async fn headers_of_all_sorts_make_tables_that_take_their_files_again(s3: S3Kind) {
    let cluster = Cluster::start(&Options { workers: 1, ..Options::on(s3) }).await;
    let long = "x".repeat(70);
    let file = format!("{ODD_HEADER},{long},{long}\n1,2,3,4,5,6,7,8,9,10,11,12,13,14\n");
    for rows in ["1", "2"] {
        let id = cluster.api.begin(&into("Odd"), file.clone()).await;
        assert_eq!(cluster.api.post(&format!("/v1/imports/{id}/complete"), &json!({})).await.0, 202);
        assert_succeeded(&cluster.api.done(&id).await);
        assert_eq!(cluster.database.one("SELECT count(*) FROM \"Odd\"").await, rows);
    }
    let sql =
        "SELECT attname::text FROM pg_attribute WHERE attrelid = '\"Odd\"'::regclass AND attnum > 0 ORDER BY attnum";
    let names: Vec<String> = cluster.database.rows(sql).await.into_iter().map(|row| row[0].clone().unwrap()).collect();
    assert_eq!(names, odd_columns());
    let row = cluster.database.rows("SELECT DISTINCT * FROM \"Odd\"").await;
    assert_eq!(row.len(), 1, "{row:?}");
    let cells: Vec<String> = row[0].iter().map(|cell| cell.clone().unwrap()).collect();
    assert_eq!(cells, (1..=14).map(|cell| cell.to_string()).collect::<Vec<_>>());
    cluster.assert_clean_logs();
}

async fn past_the_limit_of_rejects_no_chunk_begins(s3: S3Kind) {
    // One chunk at a time: what begins behind the one that goes past the limit would be seen.
    let more = settings([("WORKERS", "1")]);
    let cluster = Cluster::start(&Options { workers: 1, chunk_size: "1000", more, ..Options::on(s3) }).await;
    let mut csv = String::from("id,name\n");
    for id in 1..=2_000 {
        // Chunks of about 90 rows: the second one holds the third bad row.
        let bad = if [10, 20, 150].contains(&id) { "x" } else { "" };
        csv.push_str(&format!("{bad}{id},name{id}\n"));
    }
    let mut request = into("trips");
    request["columns"] = json!([{"name": "id", "type": "int64"}, {"name": "name", "type": "text"}]);
    request["on_error"] = json!({"max_rejects": 2});
    let id = cluster.api.begin(&request, csv).await;
    assert_eq!(cluster.api.post(&format!("/v1/imports/{id}/complete"), &json!({})).await.0, 202);
    let import = cluster.api.done(&id).await;
    assert_failed(&import, "too-many-rejects");
    assert_eq!(import["error"]["detail"].as_str().unwrap().split(' ').next(), Some("3"), "{import}");
    let chunks = cluster.api.all(&format!("/v1/imports/{id}/chunks"), 500).await;
    let begun: Vec<&Value> = chunks.iter().filter(|chunk| chunk["state"] != "pending").collect();
    assert_eq!(begun.len(), 2, "{begun:?}");
    assert_eq!((&import["progress"]["rows_rejected"], &import["progress"]["chunks_done"]), (&json!(3), &json!(2)));
    assert_eq!(cluster.api.all(&format!("/v1/imports/{id}/rejects"), 2).await.len(), 3);
    assert!(!cluster.database.has_table("trips").await);
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

async fn a_worker_that_sleeps_through_its_lease_changes_nothing_when_it_wakes(s3: S3Kind) {
    let cluster = Cluster::start(&Options { chunk_size: "2000", sweep: "200ms", ..Options::on(s3) }).await;
    let source = source(seed(), 40_000, 1, 0);
    let id = cluster.api.begin(&into("trips"), source.csv.clone()).await;
    cluster.api.chunks_done(&id, 20).await;
    // The owner and one more: whatever they hold just then, chunks, leases or open transactions.
    let owner = cluster.owner().await.unwrap_or(0);
    let asleep = [&cluster.workers[owner], &cluster.workers[(owner + 1) % 3]];
    for worker in asleep {
        worker.signal("STOP");
    }
    let import = cluster.api.done(&id).await;
    assert_succeeded(&import);
    cluster.database.assert_holds("trips", &[&source.csv]).await;
    for worker in asleep {
        worker.signal("CONT");
    }
    // They work again, and what they still had in hand did no harm.
    let after = cluster.api.import(&into("after"), source.csv.clone()).await;
    assert_succeeded(&after);
    cluster.database.assert_holds("trips", &[&source.csv]).await;
    cluster.database.assert_holds("after", &[&source.csv]).await;
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

// ------------------------------------------------------------------------------------------- dependencies that go away

async fn servers_that_are_down_at_the_start_are_waited_for(s3: S3Kind) {
    let mut cluster = Cluster::start(&Options { workers: 0, events: true, ..Options::on(s3) }).await;
    cluster.api_process().kill();
    cluster.nats.process.kill();
    cluster.storage.as_mut().unwrap().process.kill();
    cluster.start_workers(1);
    cluster.workers[0].says("waiting for NATS").await;
    cluster.nats.process.start();
    cluster.workers[0].says("waiting for the object storage").await;
    cluster.storage.as_mut().unwrap().process.start();
    cluster.api_process().start();
    cluster.ready().await;
    assert_succeeded(&cluster.api.import(&into("trips"), "a\n1\n").await);
}

async fn a_wiped_nats_in_the_middle_of_an_import_loses_nothing(s3: S3Kind) {
    let mut cluster = Cluster::start(&Options { chunk_size: "2000", sweep: "1s", ..Options::on(s3) }).await;
    let source = source(seed(), 30_000, 1, 0);
    let id = cluster.api.begin(&into("trips"), source.csv.clone()).await;
    cluster.api.chunks_done(&id, 20).await;
    cluster.nats.wipe();
    cluster.nats.process.start();
    cluster.nats.ready().await;
    let import = cluster.api.done(&id).await;
    assert_succeeded(&import);
    cluster.database.assert_holds("trips", &[&source.csv]).await;
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

async fn a_nats_that_is_away_delays_imports_and_loses_none(s3: S3Kind) {
    let mut cluster = Cluster::start(&Options { sweep: "1s", ..Options::on(s3) }).await;
    cluster.nats.process.kill();
    let source = source(12, 2_000, 1, 0);
    let id = cluster.api.begin(&into("trips"), source.csv.clone()).await;
    let (status, answer) = cluster.api.post(&format!("/v1/imports/{id}/complete"), &json!({})).await;
    // Either the import is started, or the client is told to come back.
    assert!(status == 202 || status == 503, "{status}: {answer}");
    let answer = cluster.api.get_response("/readyz").await;
    assert!(answer.headers().contains_key("retry-after"), "{:?}", answer.headers());
    let (status, ready) = common::api::read(answer).await;
    assert_eq!((status.as_u16(), &ready["dependencies"]["bus"]["ready"]), (503, &json!(false)), "{ready}");
    cluster.nats.process.start();
    cluster.nats.ready().await;
    assert_succeeded(&cluster.api.done(&id).await);
    cluster.database.assert_holds("trips", &[&source.csv]).await;
    until("the API is ready again", async || cluster.api.get("/readyz").await.0.is_success().then_some(())).await;
}

/// Fails unless an answer is a `503` problem that says when to come back.
async fn assert_unavailable(answer: reqwest::Response) {
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"), "{:?}", answer.headers());
    let (_, problem) = read(answer).await;
    assert_eq!(kind_of(&problem), "unavailable", "{problem}");
}

async fn a_database_that_goes_away_is_a_503_and_the_import_ends_when_it_is_back(s3: S3Kind) {
    let folder = tempfile::tempdir().unwrap();
    let mut server = PostgresServer::start(folder.path());
    let url = server.url();
    let options = Options { chunk_size: "2000", sweep: "1s", postgres: Some(&url), ..Options::on(s3) };
    let cluster = Cluster::start(&options).await;
    let api = &cluster.api;
    let source = source(seed(), 30_000, 1, 0);
    let id = api.begin(&into("trips"), source.csv.clone()).await;
    api.chunks_done(&id, 20).await;
    server.crash();
    assert_unavailable(api.get_response(&format!("/v1/imports/{id}")).await).await;
    assert_unavailable(api.get_response("/v1/imports").await).await;
    let create = api.http.post(format!("{}/v1/imports", api.base)).json(&into("t")).send().await.unwrap();
    assert_unavailable(create).await;
    let (status, ready) = api.get("/readyz").await;
    assert_eq!((status.as_u16(), &ready["dependencies"]["database"]["ready"]), (503, &json!(false)), "{ready}");
    assert_eq!(api.got("/healthz").await["status"], "ok");
    server.resume();
    let import = api.done(&id).await;
    assert_succeeded(&import);
    cluster.database.assert_holds("trips", &[&source.csv]).await;
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

async fn a_storage_that_goes_away_is_a_503_and_the_import_ends_when_it_is_back(s3: S3Kind) {
    let mut cluster =
        Cluster::start(&Options { events: true, chunk_size: "2000", sweep: "1s", ..Options::on(s3) }).await;
    let source = source(seed(), 30_000, 1, 0);
    let waiting = id_of(&cluster.api.create(&into("t")).await);
    let id = cluster.api.begin(&into("trips"), source.csv.clone()).await;
    cluster.api.chunks_done(&id, 20).await;
    let storage = &mut cluster.storage.as_mut().unwrap().process;
    storage.kill();
    let url = format!("{}/v1/imports/{waiting}/complete", cluster.api.base);
    assert_unavailable(cluster.api.http.post(url).send().await.unwrap()).await;
    storage.start();
    assert_succeeded(&cluster.api.done(&id).await);
    cluster.database.assert_holds("trips", &[&source.csv]).await;
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}
