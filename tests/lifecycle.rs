//! What a client does with its import, on a real cluster with two APIs: idempotency keys, fresh URLs, cancel, retry, expiry,
//! listings, events. Each meets everything else.
//!
//! Needs `deploy/servers test`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use common::api::{Api, assert_failed, assert_succeeded, id_of, kind_of, read};
use common::cluster::{Cluster, Options};
use common::data::source;
use common::s3::{S3Kind, on_every_s3_server};
use common::sse::Events;
use common::{seed, until};

on_every_s3_server!(
    one_key_sent_to_two_apis_at_once_makes_one_import,
    a_fresh_url_is_signed_while_the_file_is_awaited,
    an_upload_that_outlives_its_url_is_imported,
    an_import_expires_behind_one_more_look,
    a_cancel_at_any_moment_is_whole_or_too_late,
    a_cancel_beats_a_worker_that_sleeps_in_a_chunk,
    a_failed_import_is_retried_from_its_object,
    a_retry_of_an_object_that_changed_or_went_fails_clearly,
    a_listing_neither_skips_nor_repeats_while_imports_are_made,
    events_tell_of_an_import_through_every_api,
);

fn into(table: &str) -> Value {
    json!({"destination": {"table": table}})
}

/// A cluster with two APIs.
async fn two_apis(options: &Options<'_>) -> (Cluster, Api, Api) {
    let mut cluster = Cluster::start(options).await;
    cluster.start_api();
    cluster.ready().await;
    let (one, two) = (Api::new(&cluster.nodes[0].base), Api::new(&cluster.nodes[1].base));
    (cluster, one, two)
}

async fn create_with_key(api: &Api, key: &str, request: &Value) -> (u16, Value) {
    let request = api.http.post(format!("{}/v1/imports", api.base)).header("idempotency-key", key).json(request);
    let (status, value) = read(request.send().await.unwrap()).await;
    (status.as_u16(), value)
}

async fn act(api: &Api, id: &str, action: &str) -> (u16, Value) {
    let (status, value) = api.post(&format!("/v1/imports/{id}/{action}"), &json!({})).await;
    (status.as_u16(), value)
}

async fn state_of(api: &Api, id: &str) -> String {
    api.got(&format!("/v1/imports/{id}")).await["state"].as_str().unwrap().to_owned()
}

async fn one_key_sent_to_two_apis_at_once_makes_one_import(s3: S3Kind) {
    let (cluster, one, two) = two_apis(&Options { workers: 1, ..Options::on(s3) }).await;
    for round in 0..10 {
        let (key, request) = (format!("round-{round}"), into(&format!("t{round}")));
        let calls = (0..6).map(|n| create_with_key(if n % 2 == 0 { &one } else { &two }, &key, &request));
        let answers = futures::future::join_all(calls).await;
        let ids: BTreeSet<String> = answers.iter().map(|(_, import)| id_of(import)).collect();
        assert_eq!(ids.len(), 1, "{answers:?}");
        assert_eq!(answers.iter().filter(|(status, _)| *status == 201).count(), 1, "{answers:?}");
        assert!(answers.iter().all(|(status, _)| [200, 201].contains(status)), "{answers:?}");
        assert!(answers.iter().all(|(_, import)| import["upload"]["url"].is_string()), "{answers:?}");
    }
    assert_eq!(one.all("/v1/imports", 100).await.len(), 10);

    // Equal JSON is equal in whatever order it stands; anything else under the key is refused.
    let (_, first) = create_with_key(&one, "k", &json!({"destination": {"table": "t", "mode": "append"}})).await;
    let reordered = r#"{ "destination":{"mode":"append", "table":"t"} }"#;
    let request = two.http.post(format!("{}/v1/imports", two.base)).header("idempotency-key", "k");
    let request = request.header("content-type", "application/json").body(reordered);
    let (status, again) = read(request.send().await.unwrap()).await;
    assert_eq!((status.as_u16(), id_of(&again)), (200, id_of(&first)));
    let (status, problem) = create_with_key(&two, "k", &into("other")).await;
    assert_eq!((status, kind_of(&problem)), (422, "idempotency-key-reused"));

    // While it awaits its file, the URL is a fresh one that works; afterwards there is none.
    assert_eq!(two.put(&again, "a\n1\n").await, 200);
    assert_eq!(act(&one, &id_of(&first), "complete").await.0, 202);
    let done = one.done(&id_of(&first)).await;
    assert_succeeded(&done);
    let (status, later) = create_with_key(&two, "k", &json!({"destination": {"table": "t", "mode": "append"}})).await;
    assert_eq!((status, &later["state"], &later["upload"]), (200, &json!("succeeded"), &Value::Null));

    for bad in ["", "   ", &"k".repeat(256)] {
        let (status, problem) = create_with_key(&one, bad, &into("t")).await;
        assert_eq!((status, kind_of(&problem)), (400, "bad-request"), "{bad:?}");
    }
    cluster.assert_clean_logs();
}

async fn a_fresh_url_is_signed_while_the_file_is_awaited(s3: S3Kind) {
    let (cluster, one, two) = two_apis(&Options { workers: 1, ..Options::on(s3) }).await;
    let request = json!({"destination": {"table": "t"}, "upload": {"expires_in": 1}});
    let created = one.create(&request).await;
    let id = id_of(&created);
    until("the first URL is over", async || {
        let upload = json!({"upload": created["upload"]});
        (one.put_changed(&upload, "a\n1\n", &[("content-type", "text/plain")]).await == 403
            && created["upload"]["expires_at"].as_str().unwrap() < now(&cluster).await.as_str())
        .then_some(())
    })
    .await;
    assert_eq!(one.put(&created, "a\n1\n").await, 403, "it expired");
    // The next one lives as long as was asked for at first; ask until it was used in time.
    until("a fresh URL takes the file", async || {
        let (status, fresh) = act(&two, &id, "upload").await;
        assert_eq!((status, id_of(&fresh).as_str(), &fresh["state"]), (200, id.as_str(), &json!("awaiting_upload")));
        assert!(fresh["upload"]["expires_at"].as_str() >= created["upload"]["expires_at"].as_str());
        (two.put(&fresh, "a\n1\n").await == 200).then_some(())
    })
    .await;
    assert_eq!(act(&one, &id, "complete").await.0, 202);
    assert_succeeded(&one.done(&id).await);
    let (status, problem) = act(&one, &id, "upload").await;
    assert_eq!((status, kind_of(&problem)), (409, "wrong-state"), "{problem}");
    cluster.assert_clean_logs();
}

/// The database's clock as the API writes times.
async fn now(cluster: &Cluster) -> String {
    cluster.database.one("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')").await
}

async fn an_upload_that_outlives_its_url_is_imported(s3: S3Kind) {
    let cluster = Cluster::start(&Options { events: true, workers: 1, ..Options::on(s3) }).await;
    let api = &cluster.api;
    let body = source(seed(), 400, 1, 0).csv;
    let request = json!({"destination": {"table": "slow"}, "file": {"size": body.len()}, "upload": {"expires_in": 1}});
    let created = api.create(&request).await;
    let url: url::Url = created["upload"]["url"].as_str().unwrap().parse().unwrap();
    let address = (url.host_str().unwrap().to_owned(), url.port().unwrap());
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut head = format!(
        "PUT {}?{} HTTP/1.1\r\nhost: {}:{}\r\n",
        url.path(),
        url.query().unwrap(),
        url.host_str().unwrap(),
        url.port().unwrap()
    );
    for (name, value) in created["upload"]["headers"].as_object().unwrap() {
        head += &format!("{name}: {}\r\n", value.as_str().unwrap());
    }
    head += "connection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (first, second) = body.split_at(body.len() / 2);
    stream.write_all(first).await.unwrap();
    until("the URL is over", async || {
        (created["upload"]["expires_at"].as_str().unwrap() < now(&cluster).await.as_str()).then_some(())
    })
    .await;
    stream.write_all(second).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let import = api.done(&id_of(&created)).await;
    assert_succeeded(&import);
    cluster.database.assert_holds("slow", &[&body]).await;
}

async fn an_import_expires_behind_one_more_look(s3: S3Kind) {
    let cluster = Cluster::start(&Options { events: true, workers: 1, sweep: "200ms", ..Options::on(s3) }).await;
    let api = &cluster.api;
    let (late, never) = (api.create(&into("late")).await, api.create(&into("never")).await);
    let others = api.create(&into("others")).await;
    // The object is there, and nobody told of it: its events name another bucket's key.
    let key = late["source"]["key"].as_str().unwrap();
    let day = 24 * 3600 * 1000;
    for (import, ago) in [(&late, day + 1000), (&never, day + 1000), (&others, day - 600_000)] {
        let until = format!("(extract(epoch from clock_timestamp()) * 1000)::bigint - {ago}");
        cluster.bucket.put(if id_of(import) == id_of(&late) { key } else { "elsewhere/x" }, b"a\n1\n").await;
        cluster
            .database
            .run(&format!("UPDATE longshore_imports SET url_expires_ms = {until} WHERE id = '{}'", id_of(import)))
            .await;
    }
    assert_succeeded(&api.done(&id_of(&late)).await);
    let expired = api.done(&id_of(&never)).await;
    assert_eq!((&expired["state"], &expired["error"]), (&json!("expired"), &Value::Null));
    assert_eq!(state_of(api, &id_of(&others)).await, "awaiting_upload", "its 24 hours are not over");

    // What comes later is left alone.
    assert_eq!(api.put(&never, "a\n1\n").await, 200);
    cluster.workers[0].says("an object came for an import that had ended").await;
    assert_eq!(state_of(api, &id_of(&never)).await, "expired");
    for (action, kind) in
        [("complete", "wrong-state"), ("upload", "wrong-state"), ("cancel", "wrong-state"), ("retry", "wrong-state")]
    {
        let (status, problem) = act(api, &id_of(&never), action).await;
        assert_eq!((status, kind_of(&problem)), (409, kind), "{action}: {problem}");
    }
    cluster.assert_clean_logs();
}

/// Where a cancel may meet an import.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Awaiting,
    Uploaded,
    Chunks(u64),
    Publishing,
    Done,
}

/// Cancels from both APIs at many moments: one of cancel and publish wins, and the state says which.
async fn a_cancel_at_any_moment_is_whole_or_too_late(s3: S3Kind) {
    let (cluster, one, two) = two_apis(&Options { chunk_size: "2048", ..Options::on(s3) }).await;
    let mut random = StdRng::seed_from_u64(seed());
    let (mut cancelled, mut too_late) = (0, 0);
    for round in 0..24_u64 {
        let moment = match round % 6 {
            0 => Moment::Awaiting,
            1 => Moment::Uploaded,
            2 | 3 => Moment::Chunks(random.random_range(1..12)),
            4 => Moment::Publishing,
            _ => Moment::Done,
        };
        let existing = round % 2 == 0;
        let table = format!("cancel_{round}");
        if existing {
            cluster
                .database
                .run(&format!("CREATE TABLE {table} (id bigint, name text, note text, amount bigint)"))
                .await;
            cluster.database.run(&format!("INSERT INTO {table} VALUES (-1, 'there before', NULL, 0)")).await;
        }
        let file = source(random.random(), 1_200, 1, 0);
        let created = one.create(&into(&table)).await;
        let id = id_of(&created);
        if !matches!(moment, Moment::Awaiting) {
            assert_eq!(one.put(&created, file.csv.clone()).await, 200);
            assert_eq!(act(&one, &id, "complete").await.0, 202);
        }
        match moment {
            Moment::Awaiting | Moment::Uploaded => {}
            Moment::Chunks(chunks) => one.chunks_done(&id, chunks).await,
            Moment::Publishing => {
                until("it publishes", async || {
                    ["publishing", "succeeded"].contains(&state_of(&one, &id).await.as_str()).then_some(())
                })
                .await;
            }
            Moment::Done => drop(one.done(&id).await),
        }
        let ((first, first_answer), (second, second_answer)) =
            tokio::join!(act(&one, &id, "cancel"), act(&two, &id, "cancel"));
        let import = two.done(&id).await;
        println!("{moment:?}: {first}, {second}, {}", import["state"]);
        let rows = if cluster.database.has_table(&table).await {
            cluster.database.one(&format!("SELECT count(*) FROM {table} WHERE id > 0")).await
        } else {
            "no table".to_owned()
        };
        match (first, second) {
            (202, 202) => {
                assert_eq!(import["state"], "cancelled", "{import:#}");
                assert_eq!(rows, if existing { "0" } else { "no table" });
                assert_eq!(import["error"], Value::Null);
                assert_eq!(act(&one, &id, "cancel").await.0, 202, "again, when it is done");
                assert_eq!(act(&one, &id, "retry").await.0, 409);
                cancelled += 1;
            }
            (409, 409) => {
                assert_eq!(kind_of(&first_answer), "wrong-state", "{first_answer} {second_answer}");
                assert_succeeded(&import);
                assert_eq!(rows, "1200");
                too_late += 1;
            }
            both => panic!("{both:?}: {first_answer} {second_answer}"),
        }
    }
    assert!(cancelled >= 8 && too_late >= 4, "{cancelled} were cancelled, {too_late} were not");
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

async fn a_cancel_beats_a_worker_that_sleeps_in_a_chunk(s3: S3Kind) {
    let cluster = Cluster::start(&Options { workers: 2, chunk_size: "2048", ..Options::on(s3) }).await;
    let api = &cluster.api;
    let id = api.begin(&into("t"), source(seed(), 6_000, 1, 0).csv).await;
    act(api, &id, "complete").await;
    api.chunks_done(&id, 5).await;
    let owner = until("somebody owns it", async || cluster.owner().await).await;
    let sleeper = &cluster.workers[1 - owner];
    sleeper.signal("STOP");
    assert_eq!(act(api, &id, "cancel").await.0, 202);
    let import = api.done(&id).await;
    sleeper.signal("CONT");
    assert_eq!(import["state"], "cancelled");
    assert!(!cluster.database.has_table("t").await);
    assert_succeeded_again(api).await;
    cluster.database.assert_tidy().await;
}

/// The cluster still works.
async fn assert_succeeded_again(api: &Api) {
    let id = api.begin(&into("again"), "a\n1\n").await;
    assert_eq!(act(api, &id, "complete").await.0, 202);
    assert_succeeded(&api.done(&id).await);
}

async fn a_failed_import_is_retried_from_its_object(s3: S3Kind) {
    let (cluster, one, two) = two_apis(&Options { workers: 2, ..Options::on(s3) }).await;
    let file = source(seed(), 3_000, 1, 0);
    cluster
        .database
        .run("CREATE TABLE t (id bigint, name text, note text CHECK (note = 'never'), amount bigint)")
        .await;
    let id = one.begin(&into("t"), file.csv.clone()).await;
    act(&one, &id, "complete").await;
    let failed = one.done(&id).await;
    assert_failed(&failed, "too-many-rejects");
    cluster.database.run("ALTER TABLE t DROP CONSTRAINT t_note_check").await;

    let answers =
        futures::future::join_all((0..4).map(|n| act(if n % 2 == 0 { &one } else { &two }, &id, "retry"))).await;
    assert!(answers.iter().all(|(status, _)| *status == 202), "{answers:?}");
    let import = two.done(&id).await;
    assert_succeeded(&import);
    assert_eq!(import["attempt"], 2, "four retries at once are one");
    assert_eq!(import["trigger"], failed["trigger"]);
    cluster.database.assert_holds("t", &[&file.csv]).await;
    assert!(
        one.all(&format!("/v1/imports/{id}/rejects"), 10).await.is_empty(),
        "the rejects of the attempt before are gone"
    );
    assert_eq!(act(&one, &id, "retry").await.0, 202, "it took effect");
    assert_eq!(one.got(&format!("/v1/imports/{id}")).await["attempt"], 2);

    // Never failed: nothing to retry.
    let other = one.begin(&into("other"), "a\n1\n").await;
    assert_eq!(act(&one, &other, "retry").await.0, 409);
    act(&one, &other, "complete").await;
    assert_succeeded(&one.done(&other).await);
    let (status, problem) = act(&one, &other, "retry").await;
    assert_eq!((status, kind_of(&problem)), (409, "wrong-state"));
    cluster.database.assert_tidy().await;
    cluster.assert_clean_logs();
}

async fn a_retry_of_an_object_that_changed_or_went_fails_clearly(s3: S3Kind) {
    let cluster = Cluster::start(&Options { workers: 1, ..Options::on(s3) }).await;
    let api = &cluster.api;
    let id = api.begin(&into("t"), "a\n1\n\"2\n").await;
    act(api, &id, "complete").await;
    let failed = api.done(&id).await;
    assert_eq!(failed["state"], "failed", "{failed:#}");
    let key = failed["source"]["key"].as_str().unwrap();
    cluster.bucket.delete(key).await;
    let (status, problem) = act(api, &id, "retry").await;
    assert_eq!((status, kind_of(&problem)), (409, "no-object"), "{problem}");
    assert_eq!(state_of(api, &id).await, "failed");

    cluster.bucket.put(key, b"a\n1\n2\n").await;
    assert_eq!(act(api, &id, "retry").await.0, 202);
    assert_failed(&api.done(&id).await, "object-changed");
    assert!(!cluster.database.has_table("t").await);
}

async fn a_listing_neither_skips_nor_repeats_while_imports_are_made(s3: S3Kind) {
    let (cluster, one, two) = two_apis(&Options { workers: 1, ..Options::on(s3) }).await;
    let mut wanted = BTreeSet::new();
    for n in 0..30 {
        wanted.insert(id_of(&one.create(&into(if n % 3 == 0 { "third" } else { "rest" })).await));
    }
    let stop = AtomicBool::new(false);
    let make = async {
        let mut made = 0;
        while !stop.load(Ordering::Relaxed) {
            two.create(&into("third")).await;
            made += 1;
        }
        made
    };
    let list = async {
        for limit in [1, 2, 7, 1000] {
            let listed: Vec<String> = one.all("/v1/imports", limit).await.iter().map(id_of).collect();
            let distinct: BTreeSet<String> = listed.iter().cloned().collect();
            assert_eq!(distinct.len(), listed.len(), "limit {limit} repeats");
            assert!(wanted.is_subset(&distinct), "limit {limit} skips");
            assert!(listed.is_sorted_by(|newer, older| newer > older), "newest first");
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (made, ()) = tokio::join!(make, list);
    assert!(made > 0);
    let thirds = one.got("/v1/imports?table=third&limit=1000").await;
    assert_eq!(thirds["items"].as_array().unwrap().len(), 10 + made);
    assert_eq!(one.got("/v1/imports?state=succeeded").await, json!({"items": [], "next_cursor": null}));
    for bad in
        ["state=nope", "table=a..b", "limit=0", "limit=1001", "limit=x", "cursor=x", "limit=1&limit=2", "order=asc"]
    {
        let (status, problem) = one.get(&format!("/v1/imports?{bad}")).await;
        assert_eq!((status.as_u16(), kind_of(&problem)), (400, "bad-request"), "{bad}: {problem}");
    }
    cluster.assert_clean_logs();
}

async fn events_tell_of_an_import_through_every_api(s3: S3Kind) {
    let (mut cluster, one, two) = two_apis(&Options { workers: 2, chunk_size: "2048", ..Options::on(s3) }).await;
    let created = one.create(&into("t")).await;
    let id = id_of(&created);
    let mut streams = [Events::open(&one, &id, None).await, Events::open(&two, &id, None).await];
    for events in &mut streams {
        assert_eq!(events.next_import().await.unwrap().1["state"], "awaiting_upload", "the import at once");
    }
    let file = source(seed(), 5_000, 1, 0);
    assert_eq!(one.put(&created, file.csv).await, 200);
    act(&one, &id, "complete").await;
    for events in &mut streams {
        let told = events.rest().await;
        let versions: Vec<i64> = told.iter().map(|(version, _)| version.parse().unwrap()).collect();
        assert!(versions.is_sorted_by(|a, b| a < b), "each change once: {versions:?}");
        assert!(told.iter().rev().skip(1).all(|(_, import)| import["done"] == false));
        let (_, last) = told.last().unwrap();
        assert_eq!(*last, one.got(&format!("/v1/imports/{id}")).await);
        assert_succeeded(last);
        assert!(told.iter().any(|(_, import)| import["state"] == "running"), "only {} events", told.len());
    }

    // Coming back: what was missed, and nothing behind the end.
    let mut again = Events::open(&two, &id, Some("1")).await;
    let told = again.rest().await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(Events::request(&one, &id, Some(&told[0].0)).await.status(), 204);
    assert_eq!(Events::open(&one, &id, Some("nonsense")).await.rest().await.len(), 1);
    assert_eq!(Events::request(&one, "01980000-0000-7000-8000-000000000000", None).await.status(), 404);

    // Without NATS, changes are found by looking; a quiet stream stays alive with comments.
    let other = id_of(&one.create(&into("other")).await);
    let mut events = Events::open(&two, &other, None).await;
    let first = events.next_import().await.unwrap();
    let mut heard = Events::open(&one, &other, Some(&first.0)).await;
    assert!(heard.next().await.unwrap().comment, "what was seen is not told again");
    cluster.nats.process.kill();
    assert_eq!(act(&one, &other, "cancel").await.0, 202);
    assert_eq!(events.next_import().await.unwrap().1["state"], "cancelled");
    assert!(events.next().await.is_none());
    assert_eq!(heard.next_import().await.unwrap().1["state"], "cancelled");

    // A node that stops ends its streams and itself.
    let third = id_of(&one.create(&into("third")).await);
    let mut events = Events::open(&one, &third, None).await;
    events.next_import().await.unwrap();
    assert!(cluster.api_process().terminate().await.success());
    assert!(events.next_import().await.is_none());
    cluster.assert_clean_logs();
}
