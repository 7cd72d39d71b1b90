//! What a client does with its import, on the embedded service: the same calls as on a cluster, on SQLite, and from the
//! command line.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use common::api::{assert_failed, assert_succeeded, id_of, kind_of};
use common::data::source;
use common::process::run_to_end;
use common::service::{Service, open, serve};
use common::sse::Events;
use common::{seed, until};

fn into(table: &str) -> Value {
    json!({"destination": {"table": table}})
}

/// `longshore …` against the service; its exit code, stdout and stderr.
async fn run(service: &Service, arguments: &[&str]) -> (i32, String, String) {
    let env = vec![("LONGSHORE_SERVER".to_owned(), service.api.base.clone())];
    let output = run_to_end(service.folder.path(), arguments, &env).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn one_key_makes_one_import_on_sqlite_too() {
    let service = serve(&[]).await;
    let api = &service.api;
    let calls = (0..20).map(|_| {
        api.http.post(format!("{}/v1/imports", api.base)).header("idempotency-key", "k").json(&into("t")).send()
    });
    let mut ids = BTreeSet::new();
    let mut made = 0;
    for answer in futures::future::join_all(calls).await {
        let answer = answer.unwrap();
        made += u32::from(answer.status() == 201);
        ids.insert(id_of(&answer.json().await.unwrap()));
    }
    assert_eq!((made, ids.len()), (1, 1));
}

#[tokio::test]
async fn cancel_and_retry_work_from_the_command_line() {
    let service = serve(&[("CHUNK_SIZE", "300")]).await;
    let api = &service.api;
    let id = api.begin(&into("big"), source(seed(), 20_000, 1, 0).csv).await;
    api.chunks_done(&id, 3).await;
    let (code, out, err) = run(&service, &["cancel", &id, "--json"]).await;
    assert_eq!(code, 0, "{err}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert!(["cancelling", "cancelled"].contains(&answer["state"].as_str().unwrap()), "{answer}");
    assert_eq!(api.done(&id).await["state"], "cancelled");
    let count = "SELECT count(*) FROM sqlite_master WHERE name = 'big' OR name LIKE 'longshore_staging%'";
    let left: i64 = open(&service.sqlite()).query_row(count, [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0, "nothing of it stays");
    let (code, _, err) = run(&service, &["retry", &id]).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("409") && err.contains("cancelled"), "{err}");

    open(&service.sqlite()).execute_batch("CREATE TABLE t (a INTEGER, b TEXT NOT NULL DEFAULT 'x')").unwrap();
    let failed = api.import(&into("t"), "a,c\n1,2\n").await;
    assert_failed(&failed, "columns-mismatch");
    open(&service.sqlite()).execute_batch("ALTER TABLE t ADD COLUMN c INTEGER").unwrap();
    let (code, out, err) = run(&service, &["retry", &id_of(&failed)]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(&id_of(&failed)), "{out}");
    let import = api.done(&id_of(&failed)).await;
    assert_succeeded(&import);
    assert_eq!(import["attempt"], 2);

    let (_, out, _) = run(&service, &["list", "--state", "cancelled", "--json"]).await;
    let listing: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(listing["items"].as_array().unwrap().len(), 1);
    let (_, out, _) = run(&service, &["list", "--table", "t"]).await;
    assert_eq!(out.lines().count(), 1, "{out}");
    assert_eq!(run(&service, &["list", "--state", "finished"]).await.0, 2);
    assert_eq!(run(&service, &["cancel", "no-such-import"]).await.0, 1);
}

#[tokio::test]
async fn a_queued_cancel_survives_a_kill() {
    let mut service = serve(&[("CHUNK_SIZE", "300")]).await;
    let id = service.api.begin(&into("t"), source(seed(), 20_000, 1, 0).csv).await;
    service.api.chunks_done(&id, 3).await;
    assert_eq!(service.api.post(&format!("/v1/imports/{id}/cancel"), &json!({})).await.0, 202);
    service.process.kill();
    service.process.start();
    service.process.ready().await;
    assert_eq!(service.api.done(&id).await["state"], "cancelled");
}

#[tokio::test]
async fn calls_without_a_body_take_none() {
    let service = serve(&[]).await;
    let id = id_of(&service.api.create(&into("t")).await);
    for action in ["complete", "upload", "cancel", "retry"] {
        let path = format!("/v1/imports/{id}/{action}");
        for body in [json!({"force": true}), json!([]), json!(null)] {
            let (status, problem) = service.api.post(&path, &body).await;
            assert_eq!((status.as_u16(), kind_of(&problem)), (400, "bad-request"), "{action} {body}");
        }
        let unknown = format!("/v1/imports/01980000-0000-7000-8000-000000000000/{action}");
        assert_eq!(service.api.post(&unknown, &json!({})).await.0, 404);
        assert_eq!(service.api.get(&path).await.0, 405);
    }
    let bare = service.api.http.post(format!("{}/v1/imports/{id}/upload", service.api.base)).send().await.unwrap();
    assert_eq!(bare.status(), 200, "no body at all");
}

#[tokio::test]
async fn events_follow_an_import_on_the_embedded_service() {
    let service = serve(&[("CHUNK_SIZE", "3000")]).await;
    let created = service.api.create(&into("t")).await;
    let mut events = Events::open(&service.api, &id_of(&created), None).await;
    assert_eq!(service.api.put(&created, source(seed(), 3_000, 1, 0).csv).await, 200);
    let told = events.rest().await;
    assert_succeeded(&told.last().unwrap().1);
    assert!(told.len() >= 3, "{} events", told.len());
}

#[tokio::test]
async fn a_spreadsheet_runs_nothing_of_a_file_of_rejects() {
    let service = serve(&[]).await;
    let request = json!({"destination": {"table": "t"}, "on_error": {"max_rejects": null},
                         "columns": [{"name": "n", "type": "int64"}, {"name": "text", "type": "text"}]});
    let import = service.api.import(&request, "n,text\nx,=1+1\ny,plain\n1,=2\n").await;
    let file = async |query: &str| {
        let path = format!("{}/v1/imports/{}/rejects{query}", service.api.base, id_of(&import));
        service.api.http.get(path).header("accept", "text/csv").send().await.unwrap()
    };
    let plain = "n,text,_row,_column,_reason\nx,=1+1,1,n,invalid_value\ny,plain,2,n,invalid_value\n";
    assert_eq!(file("").await.text().await.unwrap(), plain);
    assert_eq!(file("?spreadsheet=false").await.text().await.unwrap(), plain);
    assert_eq!(file("?spreadsheet=true").await.text().await.unwrap(), plain.replace("=1+1", "\"'=1+1\""));
    assert_eq!(file("?spreadsheet=yes").await.status(), 400);
}

/// A page of them is as long as any other, and holds little of each.
#[tokio::test]
async fn long_records_are_cut_in_pages_and_whole_in_the_file() {
    const LENGTH: usize = 3_000_000;
    let service = serve(&[]).await;
    let request = json!({"destination": {"table": "t"}, "on_error": {"max_rejects": null},
                         "columns": [{"name": "n", "type": "int64"}, {"name": "text", "type": "text"}]});
    let record = |n: usize| format!("x{n},{}\n", "é".repeat(LENGTH / 2));
    let records: String = (0..9).map(record).collect();
    let import = service.api.import(&request, format!("n,text\n{records}")).await;
    assert_succeeded(&import);
    let path = format!("/v1/imports/{}/rejects", id_of(&import));
    for (limit, next) in [(9, json!(null)), (10, json!(null)), (7, json!("7"))] {
        let page = service.api.got(&format!("{path}?limit={limit}")).await;
        let items = page["items"].as_array().unwrap();
        assert_eq!((items.len(), &page["next_cursor"]), (limit.min(9), &next));
        for item in items {
            let listed = item["record"].as_str().unwrap();
            assert!(listed.len() < 4200 && listed.ends_with("… (3000003 bytes in all)"), "{listed}");
        }
    }
    let file = service.api.http.get(format!("{}{path}", service.api.base)).header("accept", "text/csv");
    let file = file.send().await.unwrap().text().await.unwrap();
    let lines: Vec<&str> = file.lines().collect();
    assert_eq!((lines.len(), lines[0]), (10, "n,text,_row,_column,_reason"));
    for (n, line) in lines[1..].iter().enumerate() {
        assert_eq!(*line, format!("{},{},n,invalid_value", record(n).trim_end(), n + 1));
    }
}

/// In pages, as a file, and as a status: none of it grows with the rejects.
#[tokio::test]
async fn a_million_rejects_are_listed_and_leave_the_status_quick() {
    const REJECTS: u64 = 1_000_000;
    let service = serve(&[]).await;
    let request = json!({"destination": {"table": "t"}, "on_error": {"max_rejects": null},
                         "columns": [{"name": "n", "type": "int64"}]});
    let mut body = b"n\n".to_vec();
    (0..REJECTS).for_each(|n| body.extend_from_slice(format!("x{n}\n").as_bytes()));
    let import = service.api.import(&request, body.clone()).await;
    assert_succeeded(&import);
    assert_eq!(import["progress"]["rows_rejected"], REJECTS);
    let rejects = format!("/v1/imports/{}/rejects", id_of(&import));
    let mut wanted = 1;
    let mut cursor = String::new();
    // A page of every hundred, so that the test stays short; each cursor is as good as one that was handed out.
    while wanted <= REJECTS {
        let page = service.api.got(&format!("{rejects}?limit=1000{cursor}")).await;
        let items = page["items"].as_array().unwrap();
        assert_eq!((items.len(), &items[0]["row"], &items[999]["row"]), (1000, &json!(wanted), &json!(wanted + 999)));
        assert_eq!(items[0]["record"], format!("x{}", wanted - 1));
        let last = wanted + 999 == REJECTS;
        assert_eq!(page["next_cursor"].is_null(), last, "{}", page["next_cursor"]);
        wanted += if last { 1000 } else { 111_000 };
        wanted = if !last && wanted > REJECTS { REJECTS - 999 } else { wanted };
        cursor = format!("&cursor={}", wanted - 1);
    }
    let path = format!("{}{rejects}", service.api.base);
    let mut answer = service.api.http.get(path).header("accept", "text/csv").send().await.unwrap();
    let (mut lines, mut last) = (0, Vec::new());
    while let Some(block) = answer.chunk().await.unwrap() {
        lines += block.iter().filter(|byte| **byte == b'\n').count() as u64;
        last = [last, block.to_vec()].concat().split_off(0);
        let keep = last.len().saturating_sub(64);
        last.drain(..keep);
    }
    assert_eq!(lines, REJECTS + 1);
    assert!(last.ends_with(b"x999999,1000000,n,invalid_value\n"), "{}", String::from_utf8_lossy(&last));
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.process.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let mib = peak.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024;
    println!("peak memory {mib} MiB");
    assert!(mib < 300, "a million rejects took {mib} MiB");
}

#[tokio::test]
async fn a_stop_hands_back_what_is_running_and_the_next_start_goes_on() {
    let mut service = serve(&[("CHUNK_SIZE", "2000")]).await;
    let file = source(seed(), 30_000, 1, 0);
    let id = service.api.begin(&into("t"), file.csv).await;
    service.api.chunks_done(&id, 5).await;
    assert_eq!(service.process.terminate().await.code(), Some(0));
    let held = "SELECT count(*) FROM longshore_imports WHERE lease_until_ms > 0 UNION ALL \
                SELECT count(*) FROM longshore_chunks WHERE state = 'running'";
    let held: Vec<i64> = {
        let connection = open(&service.sqlite());
        let mut statement = connection.prepare(held).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(held, [0, 0], "leases and claims are let go");
    service.process.start();
    service.process.ready().await;
    assert_succeeded(&service.api.done(&id).await);
    until("it is read back", async || {
        let rows: i64 = open(&service.sqlite()).query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        (rows == 30_000).then_some(())
    })
    .await;
}
