//! The embedded service, as a newcomer meets it: one real process, SQLite, the embedded S3 endpoint, real HTTP.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Output;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tempfile::TempDir;

use common::api::{Api, assert_failed, assert_succeeded, assert_tiles, id_of, kind_of};
use common::data::{HEADER, ODD_HEADER, Row, columns, odd_columns, source};
use common::process::{Env, Process, run_to_end};
use common::service::{Service, open, serve, settings_in};
use common::{free_port, seed, until};

/// The rows of a service's table.
fn loaded(service: &Service, table: &str) -> Vec<Row> {
    rows_of(&service.sqlite(), table)
}

/// The rows of a table with the columns of `common::data`, by id.
fn rows_of(path: &Path, table: &str) -> Vec<Row> {
    let connection = open(path);
    let mut statement =
        connection.prepare(&format!("SELECT id, name, note, amount FROM \"{table}\" ORDER BY id, name")).unwrap();
    let rows =
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, i64>(3)?.to_string())));
    rows.unwrap().collect::<Result<_, _>>().unwrap()
}

fn has_table(path: &Path, table: &str) -> bool {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
    open(path).query_row(sql, [table], |row| row.get::<_, i64>(0)).unwrap() > 0
}

/// Fails where staging tables or ledger rows stayed.
fn assert_tidy(path: &Path) {
    let connection = open(path);
    let one = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(one("SELECT count(*) FROM sqlite_schema WHERE name LIKE 'longshore\\_staging\\_%' ESCAPE '\\'"), 0);
    assert_eq!(one("SELECT count(*) FROM longshore_ledger"), 0);
}

fn trips() -> Value {
    json!({"destination": {"table": "trips"}})
}

// ------------------------------------------------------------------------------------------------------ longshore import

/// Writes a file and imports it by the command line.
async fn import_file(folder: &TempDir, csv: &[u8], arguments: &[&str]) -> Output {
    let file = folder.path().join("trips.csv");
    std::fs::write(&file, csv).unwrap();
    let mut all = vec!["import", file.to_str().unwrap(), "--table", "trips"];
    all.extend(arguments);
    run_to_end(folder.path(), &all, &settings_in(folder.path(), &[])).await
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn last_line(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_else(|| panic!("nothing on stdout: {}", stderr(output)));
    serde_json::from_str(line).unwrap()
}

#[tokio::test]
async fn import_on_a_fresh_machine_loads_every_row() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(seed(), 500, 1, 0);
    let output = import_file(&folder, &source.csv, &["--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let import = last_line(&output);
    assert_succeeded(&import);
    assert_eq!(import["progress"]["rows_loaded"], 500);
    assert_eq!(import["source"]["size"], source.csv.len());
    assert!(stderr(&output).contains("500 rows"), "the counts are told: {}", stderr(&output));
    assert!(stderr(&output).contains("sqlite3"), "how to look at the rows is told: {}", stderr(&output));
    let database = folder.path().join("data/longshore.sqlite");
    assert_eq!(rows_of(&database, "trips"), source.rows);
    assert_tidy(&database);
}

#[tokio::test]
async fn import_of_the_example_works_as_the_readme_says() {
    let folder = tempfile::tempdir().unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/trips.csv");
    let output = import_file(&folder, &std::fs::read(example).unwrap(), &["--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let kinds: Vec<_> =
        last_line(&output)["columns"].as_array().unwrap().iter().map(|column| column["type"].clone()).collect();
    assert_eq!(kinds[..2], [json!("int64"), json!("timestamptz")]);
}

#[tokio::test]
async fn a_bad_row_fails_the_import_with_code_1_and_leaves_the_destination_alone() {
    let folder = tempfile::tempdir().unwrap();
    let output = import_file(&folder, b"a,b\n1,2\n3\n4,5\n", &["--json"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let import = last_line(&output);
    assert_failed(&import, "too-many-rejects");
    let database = folder.path().join("data/longshore.sqlite");
    assert!(!has_table(&database, "trips"));
    assert_tidy(&database);
    // The rejects found so far stay listed.
    let mut process = Process::longshore("serve", "serve", settings_in(folder.path(), &[]), folder.path());
    process.ready().await;
    let api = Api::new(&process.base);
    let rejects = api.all(&format!("/v1/imports/{}/rejects", id_of(&import)), 100).await;
    assert_eq!(rejects.len(), 1, "{rejects:?}");
    assert_eq!((&rejects[0]["row"], &rejects[0]["line"]), (&json!(2), &json!(3)));
    assert_eq!(rejects[0]["reason"], "missing_field");
    assert_eq!(rejects[0]["record"], "3");
}

#[tokio::test]
async fn allowed_rejects_end_with_code_3_and_the_good_rows() {
    let folder = tempfile::tempdir().unwrap();
    let output = import_file(&folder, b"a,b\n1,2\n3\n4,5\n", &["--json", "--max-rejects", "10"]).await;
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let import = last_line(&output);
    assert_succeeded(&import);
    assert_eq!(import["progress"]["rows_loaded"], 2);
    assert_eq!(import["progress"]["rows_rejected"], 1);
    let database = open(&folder.path().join("data/longshore.sqlite"));
    let sum: i64 = database.query_row("SELECT sum(a * 10 + b) FROM trips", [], |row| row.get(0)).unwrap();
    assert_eq!(sum, 12 + 45);
}

#[tokio::test]
async fn an_empty_file_fails_with_code_1_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let output = import_file(&folder, b"", &["--json"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_failed(&last_line(&output), "empty-file");
    assert!(stderr(&output).contains("holds no byte"), "{}", stderr(&output));
}

#[tokio::test]
async fn wrong_usage_ends_with_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let env = settings_in(folder.path(), &[]);
    for arguments in [
        &["import"][..],
        &["import", "x.csv"],
        &["import", "missing.csv", "--table", "t"],
        &["import", "missing.csv", "--table", "t", "--max-rejects", "many"],
        &["unload"],
    ] {
        let output = run_to_end(folder.path(), arguments, &env).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
    let output = run_to_end(folder.path(), &["import", "missing.csv", "--table", "t"], &env).await;
    assert!(stderr(&output).contains("missing.csv"), "{}", stderr(&output));
}

#[tokio::test]
async fn a_bad_table_name_is_told_on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.csv"), "a\n1\n").unwrap();
    let arguments = ["import", "a.csv", "--table", "a;drop"];
    let output = run_to_end(folder.path(), &arguments, &settings_in(folder.path(), &[])).await;
    assert_eq!(output.status.code(), Some(2), "a usage error");
    assert!(stderr(&output).contains("';'"), "{}", stderr(&output));
    assert!(!folder.path().join("data").exists(), "nothing was started");
}

#[tokio::test]
async fn import_over_a_server_uses_that_server() {
    let service = serve(&[]).await;
    let source = source(1, 50, 1, 0);
    let file = service.folder.path().join("x.csv");
    std::fs::write(&file, &source.csv).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let arguments = ["import", file.to_str().unwrap(), "--table", "trips", "--json", "--server", &service.api.base];
    let output = run_to_end(elsewhere.path(), &arguments, &Env::new()).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_succeeded(&last_line(&output));
    assert_eq!(loaded(&service, "trips"), source.rows);
    let status = run_to_end(
        elsewhere.path(),
        &["status", &id_of(&last_line(&output)), "--json", "--server", &service.api.base],
        &Env::new(),
    )
    .await;
    assert_eq!(last_line(&status)["state"], "succeeded");
}

// --------------------------------------------------------------------------------------------------------- the HTTP walk

#[tokio::test]
async fn the_walk_with_plain_http_works() {
    let service = serve(&[("CHUNK_SIZE", "5000")]).await;
    let api = &service.api;
    let source = source(seed(), 1000, 1, 0);
    let request = json!({
        "destination": {"table": "trips"},
        "file": {"name": "my trips.csv", "content_type": "text/csv", "size": source.csv.len()},
    });
    let response = api.http.post(format!("{}/v1/imports", api.base)).json(&request).send().await.unwrap();
    assert_eq!(response.status(), 201);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let created: Value = response.json().await.unwrap();
    let id = id_of(&created);
    assert_eq!(location, format!("/v1/imports/{id}"));
    assert_eq!(created["state"], "awaiting_upload");
    assert_eq!(created["trigger"], Value::Null);
    assert_eq!(created["source"]["key"], format!("imports/{id}/my_trips.csv"));
    assert_eq!(created["upload"]["headers"]["content-type"], "text/csv");
    assert_eq!(created["upload"]["headers"]["if-none-match"], "*");
    assert_eq!(created["upload"]["headers"]["content-length"], source.csv.len().to_string());

    let response = api.get_response(&location).await;
    assert_eq!(response.headers()["retry-after"], "1");
    assert!(response.headers().contains_key("etag"));

    assert_eq!(api.put(&created, source.csv.clone()).await, 200);
    let import = api.done(&id).await;
    assert_succeeded(&import);
    assert_eq!(import["trigger"], "event");
    assert_eq!(import["attempt"], 1);
    assert_eq!(import["progress"]["rows_loaded"], 1000);
    assert_eq!(import["progress"]["percent"], 100.0);
    for time in ["created_at", "uploaded_at", "started_at", "finished_at"] {
        assert!(import[time].as_str().is_some_and(|time| time.ends_with('Z')), "{time}: {import}");
    }
    assert_eq!(loaded(&service, "trips"), source.rows);

    let response = api.get_response(&location).await;
    assert!(!response.headers().contains_key("retry-after"), "it is done");
    let etag = response.headers()["etag"].clone();
    let again = api.http.get(format!("{}{location}", api.base)).header("if-none-match", etag).send().await.unwrap();
    assert_eq!(again.status(), 304);

    let chunks = api.all(&format!("{location}/chunks"), 3).await;
    assert!(chunks.len() > 5, "{}", chunks.len());
    assert_eq!(assert_tiles(&chunks, source.csv.len() as u64), 1000);
    assert!(chunks.iter().all(|chunk| chunk["worker"].is_string()));
    assert_tidy(&service.sqlite());
}

#[tokio::test]
async fn imports_are_listed_newest_first_page_by_page() {
    let service = serve(&[]).await;
    let api = &service.api;
    let mut ids = Vec::new();
    for table in ["a", "b", "a", "b", "a"] {
        ids.push(id_of(&api.create(&json!({"destination": {"table": table}})).await));
    }
    ids.reverse();
    let listed: Vec<_> = api.all("/v1/imports", 2).await.iter().map(id_of).collect();
    assert_eq!(listed, ids);
    let only_a = api.got("/v1/imports?table=a&state=awaiting_upload").await;
    assert_eq!(only_a["items"].as_array().unwrap().len(), 3);
    assert_eq!(only_a["next_cursor"], Value::Null);
    assert_eq!(api.got("/v1/imports?state=succeeded").await["items"], json!([]));
    for query in ["limit=0", "limit=x", "state=done", "page=2", "cursor=x"] {
        let (status, problem) = api.get(&format!("/v1/imports?{query}")).await;
        assert_eq!(status, 400, "{query}: {problem}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_a_404() {
    let service = serve(&[]).await;
    let nobody = "01980000-0000-7000-8000-000000000000";
    for path in [
        format!("/v1/imports/{nobody}"),
        format!("/v1/imports/{nobody}/chunks"),
        format!("/v1/imports/{nobody}/rejects"),
        "/v1/imports/nonsense".to_owned(),
        "/v2/imports".to_owned(),
        "/v1/imports/%FF".to_owned(),
        "/v1/imports/%FF/rejects".to_owned(),
    ] {
        let (status, problem) = service.api.get(&path).await;
        assert_eq!((status.as_u16(), kind_of(&problem)), (404, "not-found"), "{path}: {problem}");
    }
    let (status, problem) = service.api.post(&format!("/v1/imports/{nobody}/complete"), &json!({})).await;
    assert_eq!(status, 404, "{problem}");
}

#[tokio::test]
async fn bad_requests_name_every_fault_by_pointer() {
    let service = serve(&[]).await;
    for (request, pointer) in [
        (json!({}), "/destination"),
        (json!({"destination": {"table": "t"}, "colour": 1}), "/colour"),
        (json!({"destination": {"table": "t", "schema": "x"}}), "/destination/schema"),
        (json!({"destination": {"table": "a;b"}}), "/destination/table"),
        (json!({"destination": {"table": "longshore_imports"}}), "/destination/table"),
        (json!({"destination": {"table": "x".repeat(64)}}), "/destination/table"),
        (json!({"destination": {"table": "t"}, "format": {"delimiter": ""}}), "/format/delimiter"),
        (json!({"destination": {"table": "t"}, "columns": [{"name": "a", "type": "number"}]}), "/columns/0/type"),
        (json!({"destination": {"table": "t"}, "on_error": {"max_rejects": -1}}), "/on_error/max_rejects"),
        (json!({"destination": {"table": "t"}, "upload": {"expires_in": 604_801}}), "/upload/expires_in"),
        (json!({"destination": {"table": "t"}, "file": {"size": 1u64 << 50}}), "/file/size"),
    ] {
        let (status, problem) = service.api.post("/v1/imports", &request).await;
        assert_eq!((status.as_u16(), kind_of(&problem)), (400, "bad-request"), "{request}: {problem}");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    let url = format!("{}/v1/imports", service.api.base);
    let answer = service.api.http.post(&url).body("{\"destination\"").send().await.unwrap();
    let (status, problem) = common::api::read(answer).await;
    assert_eq!(
        (status.as_u16(), &problem["errors"][0]["pointer"]),
        (400, &json!("")),
        "all of the document: {problem}"
    );
    let request =
        service.api.http.post(&url).header("idempotency-key", "").json(&json!({"destination": {"table": "t"}}));
    let (status, problem) = common::api::read(request.send().await.unwrap()).await;
    assert_eq!((status.as_u16(), &problem["errors"][0]["pointer"]), (400, &json!("Idempotency-Key")), "{problem}");
    assert!(service.api.all("/v1/imports", 10).await.is_empty(), "nothing was created");
}

// ------------------------------------------------------------------------------------------------------------ the upload

#[tokio::test]
async fn the_storage_refuses_any_upload_that_was_not_promised() {
    let service = serve(&[]).await;
    let api = &service.api;
    let body = b"a,b\n1,2\n".to_vec();
    let created = api.create(&json!({"destination": {"table": "t"}, "file": {"size": body.len()}})).await;
    assert_eq!(api.put_changed(&created, body.clone(), &[("content-type", "application/json")]).await, 403);
    let mut longer = body.clone();
    longer.extend_from_slice(b"3,4\n");
    let length = longer.len().to_string();
    let status = api.put_changed(&created, longer, &[("content-length", &length)]).await;
    assert_eq!(status, 403, "another length");
    let url = created["upload"]["url"].as_str().unwrap();
    for method in [reqwest::Method::GET, reqwest::Method::POST, reqwest::Method::DELETE, reqwest::Method::HEAD] {
        let answer = api.http.request(method.clone(), url).header("content-type", "text/csv").send().await.unwrap();
        assert!(answer.status().is_client_error(), "{method}: {}", answer.status());
    }
    let changed = url.replace("X-Amz-Expires=900", "X-Amz-Expires=9000");
    assert_ne!(changed, url);
    let mut forged = created.clone();
    forged["upload"]["url"] = json!(changed);
    assert_eq!(api.put(&forged, body.clone()).await, 403, "a forged URL");

    // None of this began anything.
    let id = id_of(&created);
    let (status, problem) = api.post(&format!("/v1/imports/{id}/complete"), &json!({})).await;
    assert_eq!((status.as_u16(), kind_of(&problem)), (409, "no-object"));
    assert_eq!(api.got(&format!("/v1/imports/{id}")).await["state"], "awaiting_upload");

    assert_eq!(api.put(&created, body.clone()).await, 200);
    assert_eq!(api.put(&created, body).await, 412, "the file is there");
    let import = api.done(&id).await;
    assert_succeeded(&import);
    assert_eq!(import["progress"]["rows_loaded"], 1);
}

#[tokio::test]
async fn the_storage_refuses_an_expired_url() {
    let service = serve(&[]).await;
    let api = &service.api;
    let created = api.create(&json!({"destination": {"table": "t"}, "upload": {"expires_in": 1}})).await;
    // The condition: the moment that the resource itself names has passed.
    let expires_at = seconds_of(created["upload"]["expires_at"].as_str().unwrap());
    until("the URL expired", async || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        (now > expires_at + 1).then_some(())
    })
    .await;
    assert_eq!(api.put(&created, "a\n1\n").await, 403);
    let (status, _) = api.post(&format!("/v1/imports/{}/complete", id_of(&created)), &json!({})).await;
    assert_eq!(status, 409);
}

/// Seconds since 1970 of an RFC 3339 time in UTC; SQLite knows calendars.
fn seconds_of(time: &str) -> u64 {
    let sql = "SELECT CAST(strftime('%s', ?1) AS INTEGER)";
    let seconds: i64 =
        rusqlite::Connection::open_in_memory().unwrap().query_row(sql, [time], |row| row.get(0)).unwrap();
    seconds.try_into().unwrap()
}

#[tokio::test]
async fn complete_may_be_called_any_number_of_times() {
    let service = serve(&[]).await;
    let api = &service.api;
    let source = source(2, 200, 1, 0);
    let id = api.begin(&trips(), source.csv.clone()).await;
    for _ in 0..3 {
        let (status, import) = api.post(&format!("/v1/imports/{id}/complete"), &json!({})).await;
        assert_eq!(status, 202, "{import}");
    }
    let import = api.done(&id).await;
    assert_succeeded(&import);
    assert_eq!(import["attempt"], 1);
    let (status, _) = api.post(&format!("/v1/imports/{id}/complete"), &json!({})).await;
    assert_eq!(status, 202, "also when it is done");
    assert_eq!(loaded(&service, "trips"), source.rows);
}

// -------------------------------------------------------------------------------------------------------- rejects and files

#[tokio::test]
async fn rejects_are_listed_as_json_and_as_a_file_that_imports_again() {
    let service = serve(&[("CHUNK_SIZE", "700")]).await;
    let api = &service.api;
    let source = source(seed(), 600, 1, 10);
    let mut request = trips();
    request["columns"] = columns();
    request["on_error"] = json!({"max_rejects": null});
    let import = api.import(&request, source.csv.clone()).await;
    assert_succeeded(&import);
    assert_eq!(import["progress"]["rows_rejected"], source.bad.len());
    assert_eq!(loaded(&service, "trips"), source.rows);
    let path = format!("/v1/imports/{}/rejects", id_of(&import));
    let rejects = api.all(&path, 7).await;
    let rows: Vec<u64> = rejects.iter().map(|reject| reject["row"].as_u64().unwrap()).collect();
    assert_eq!(rows, source.bad);
    for reject in &rejects {
        let value = format!("bad{}", reject["row"]);
        assert_eq!((&reject["reason"], &reject["column"]), (&json!("invalid_value"), &json!("id")), "{reject}");
        assert_eq!((&reject["value"], &reject["record"]), (&json!(value), &json!(format!("{value},x,,1"))), "{reject}");
    }
    let answer = api.http.get(format!("{}{path}", api.base)).header("accept", "text/csv").send().await.unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/csv"));
    let file = answer.text().await.unwrap();
    let mut wanted = "id,name,note,amount,_row,_column,_reason\n".to_owned();
    for row in &source.bad {
        wanted.push_str(&format!("bad{row},x,,1,{row},id,invalid_value\n"));
    }
    assert_eq!(file, wanted);

    // Mended, it imports as it is.
    let import = api.import(&trips(), file.replace("bad", "")).await;
    assert_succeeded(&import);
    assert_eq!(import["progress"]["rows_loaded"], source.bad.len());
    assert_eq!(loaded(&service, "trips").len(), 600);
}

#[tokio::test]
async fn headers_of_all_sorts_make_tables_that_take_their_files_again() {
    let service = serve(&[]).await;
    let long = "x".repeat(70);
    let file = format!("{ODD_HEADER},{long},{long}\n1,2,3,4,5,6,7,8,9,10,11,12,13,14\n");
    for _ in 0..2 {
        assert_succeeded(&service.api.import(&json!({"destination": {"table": "Odd"}}), file.clone()).await);
    }
    let connection = open(&service.sqlite());
    let mut statement = connection.prepare("SELECT * FROM \"Odd\"").unwrap();
    let names: Vec<String> = statement.column_names().into_iter().map(str::to_owned).collect();
    assert_eq!(names, odd_columns());
    let cells = |row: &rusqlite::Row<'_>| (0..14).map(|place| row.get(place)).collect::<Result<Vec<i64>, _>>();
    let rows = statement.query_map([], cells).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    assert_eq!(rows, [(1..=14).collect::<Vec<_>>(), (1..=14).collect()]);
}

#[tokio::test]
async fn one_reject_more_than_allowed_fails_the_import() {
    let service = serve(&[("CHUNK_SIZE", "700")]).await;
    let source = source(3, 600, 1, 10);
    let mut request = trips();
    request["columns"] = columns();
    request["on_error"] = json!({"max_rejects": source.bad.len() - 1});
    let import = service.api.import(&request, source.csv.clone()).await;
    assert_failed(&import, "too-many-rejects");
    assert!(!has_table(&service.sqlite(), "trips"));
    assert_tidy(&service.sqlite());
    request["on_error"] = json!({"max_rejects": source.bad.len()});
    assert_succeeded(&service.api.import(&request, source.csv).await);
    assert_eq!(loaded(&service, "trips"), source.rows);
}

#[tokio::test]
async fn files_that_cannot_be_read_fail_with_a_clear_reason() {
    let service = serve(&[]).await;
    for (body, kind) in [
        (Vec::new(), "empty-file"),
        (vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], "unsupported-format"),
        (b"\xFF\xFE\0\0a\0\0\0".to_vec(), "unsupported-format"),
        (b"PK\x03\x04".to_vec(), "unsupported-format"),
    ] {
        let import = service.api.import(&trips(), body).await;
        assert_failed(&import, kind);
        assert!(!has_table(&service.sqlite(), "trips"));
    }
    let mut request = trips();
    request["format"] = json!({"compression": "gzip"});
    assert_failed(&service.api.import(&request, "a\n1\n").await, "unsupported-format");
    request["format"] = json!({"encoding": "utf-16le"});
    assert_failed(&service.api.import(&request, b"\xFE\xFF\0a\0\n".to_vec()).await, "unsupported-format");
    assert_tidy(&service.sqlite());
}

#[tokio::test]
async fn a_file_with_only_a_header_makes_an_empty_table() {
    let service = serve(&[]).await;
    for header in [HEADER, HEADER.trim_end()] {
        let import = service.api.import(&trips(), header).await;
        assert_succeeded(&import);
        assert_eq!(import["progress"]["rows_read"], 0);
        assert_eq!(
            open(&service.sqlite()).prepare("SELECT * FROM trips").unwrap().column_names(),
            ["id", "name", "note", "amount"]
        );
    }
    assert!(
        open(&service.sqlite()).prepare("SELECT * FROM trips").unwrap().query([]).unwrap().next().unwrap().is_none()
    );
    assert_tidy(&service.sqlite());
}

#[tokio::test]
async fn a_header_that_does_not_fit_the_table_fails_before_a_row() {
    let service = serve(&[]).await;
    assert_succeeded(&service.api.import(&trips(), "a,b\n1,2\n").await);
    let import = service.api.import(&trips(), "a,c\n3,4\n").await;
    assert_failed(&import, "columns-mismatch");
    assert!(import["error"]["detail"].as_str().unwrap().contains('c'), "{import}");
    assert_eq!(import["progress"]["rows_read"], 0);
    // In another order it fits.
    assert_succeeded(&service.api.import(&trips(), "b,a\n4,3\n").await);
    let sql = "SELECT group_concat(a || '-' || b) FROM (SELECT a, b FROM trips ORDER BY a)";
    let rows: String = open(&service.sqlite()).query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(rows, "1-2,3-4");
}

#[tokio::test]
async fn two_imports_that_create_one_table_both_end_in_it() {
    let service = serve(&[("CHUNK_SIZE", "2000")]).await;
    let (one, two) = (source(4, 3000, 1, 0), source(5, 3000, 3001, 0));
    let request = trips();
    let (first, second) =
        tokio::join!(service.api.import(&request, one.csv.clone()), service.api.import(&request, two.csv.clone()));
    assert_succeeded(&first);
    assert_succeeded(&second);
    let wanted: Vec<Row> = one.rows.into_iter().chain(two.rows).collect();
    assert_eq!(loaded(&service, "trips"), wanted);
    assert_tidy(&service.sqlite());
}

#[tokio::test]
async fn any_chunk_size_gives_the_same_rows() {
    let source = source(seed(), 40, 1, 0);
    let mut crlf = String::from_utf8(source.csv.clone()).unwrap().replace("\r\n", "\u{1}").replace('\n', "\r\n");
    crlf = crlf.replace('\u{1}', "\r\n").replace("two\r\nlines", "two\nlines");
    for size in ["1", "2", "3", "17", "64", "1000"] {
        let service = serve(&[("CHUNK_SIZE", size)]).await;
        for (table, csv) in [
            ("lf", source.csv.clone()),
            ("crlf", crlf.clone().into_bytes()),
            ("bom", [b"\xef\xbb\xbf", source.csv.as_slice()].concat()),
            ("no_last_line_end", source.csv[..source.csv.len() - 1].to_vec()),
        ] {
            let length = csv.len() as u64;
            let import = service.api.import(&json!({"destination": {"table": table}}), csv).await;
            assert_succeeded(&import);
            assert_eq!(loaded(&service, table), source.rows, "{table}, chunks of {size}");
            let chunks = service.api.all(&format!("/v1/imports/{}/chunks", id_of(&import)), 100).await;
            assert_eq!(assert_tiles(&chunks, length), 40);
        }
    }
}

#[tokio::test]
async fn what_is_committed_is_moved_from_the_log_into_the_file() {
    let service = serve(&[]).await;
    let csv = format!("id,name\n{}", "1,a name of some length\n".repeat(100_000)).into_bytes();
    let half = csv.len() as u64 / 2;
    let import = service.api.import(&json!({"destination": {"table": "named"}}), csv).await;
    assert_succeeded(&import);
    // Far from where a commit would do it.
    let size = || std::fs::metadata(service.sqlite()).unwrap().len();
    until("the file holds the rows", async || (size() > half).then_some(())).await;
}

// ---------------------------------------------------------------------------------------------------------- death and doors

#[tokio::test]
async fn an_import_survives_kills_of_the_service() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut service = serve(&[("CHUNK_SIZE", "3000")]).await;
    let mut wanted = Vec::new();
    for round in 0..3 {
        let source = source(seed ^ round, 12_000, 1 + 12_000 * round as i64, 0);
        let id = service.api.begin(&trips(), source.csv.clone()).await;
        wanted.extend(source.rows);
        for _ in 0..2 {
            let chunks = random.random_range(0..150);
            service.api.chunks_done(&id, chunks).await;
            // Not a synchronisation: where between two steps it dies.
            tokio::time::sleep(Duration::from_millis(random.random_range(0..30))).await;
            service.process.kill();
            service.process.start();
            service.process.ready().await;
        }
        let import = service.api.done(&id).await;
        assert_succeeded(&import);
        assert_eq!(import["progress"]["rows_loaded"], 12_000, "round {round}");
        assert!(loaded(&service, "trips") == wanted, "round {round}: other rows");
        assert_tidy(&service.sqlite());
    }
}

#[tokio::test]
async fn an_upload_that_a_kill_cuts_off_leaves_nothing_and_is_sent_again() {
    let mut service = serve(&[]).await;
    let source = source(8, 30_000, 1, 0);
    let size = source.csv.len();
    let mut request = trips();
    request["file"] = json!({"size": size});
    let created = service.api.create(&request).await;
    let uploads = service.folder.path().join("data/s3/staging");
    let under_way = || std::fs::read_dir(&uploads).unwrap().count();
    let half = service.api.begin_put(&created, &source.csv[..size / 2]).await;
    until("the upload is under way", async || (under_way() > 0).then_some(())).await;
    service.process.kill();
    drop(half);
    service.process.start();
    service.process.ready().await;
    assert_eq!(under_way(), 0);
    let path = format!("/v1/imports/{}", id_of(&created));
    assert_eq!(service.api.got(&path).await["state"], "awaiting_upload");
    assert_eq!(service.api.put(&created, source.csv).await, 200);
    assert_succeeded(&service.api.done(&id_of(&created)).await);
    assert!(loaded(&service, "trips") == source.rows, "other rows");
}

#[tokio::test]
async fn an_upload_url_outlives_a_restart() {
    let mut service = serve(&[]).await;
    let created = service.api.create(&trips()).await;
    service.process.kill();
    service.process.start();
    service.process.ready().await;
    let source = source(6, 10, 1, 0);
    assert_eq!(service.api.put(&created, source.csv).await, 200);
    assert_succeeded(&service.api.done(&id_of(&created)).await);
    assert_eq!(loaded(&service, "trips"), source.rows);
}

#[tokio::test]
async fn the_service_ends_cleanly_when_told() {
    let mut service = serve(&[]).await;
    let status = service.process.terminate().await;
    assert_eq!(status.code(), Some(0));
    service.process.start();
    service.process.ready().await;
}

#[tokio::test]
async fn a_second_process_on_the_data_directory_is_refused() {
    let service = serve(&[]).await;
    let listen = format!("127.0.0.1:{}", free_port());
    let env = settings_in(service.folder.path(), &[("LISTEN", &listen)]);
    let output = run_to_end(service.folder.path(), &["serve"], &env).await;
    assert!(!output.status.success());
    let text = stderr(&output);
    assert!(text.contains("another longshore process") && text.contains("data"), "{text}");
    assert_succeeded(&service.api.import(&trips(), "a\n1\n").await);
}

#[tokio::test]
async fn bad_settings_stop_the_start_and_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in [
        ("LISTN", "127.0.0.1:1"),
        ("LISTEN", "nowhere"),
        ("CHUNK_SIZE", "0"),
        ("CHUNK_SIZE", "8MB"),
        ("WORKERS", "-1"),
        ("SWEEP_INTERVAL", "soon"),
        ("DATABASE_URL", "mysql://user:hidden-word@host/db"),
        ("S3_ENDPOINT", "http://127.0.0.1:1"),
        ("LOG", "longshore=loudly"),
    ] {
        let output = run_to_end(folder.path(), &["serve"], &settings_in(folder.path(), &[(name, value)])).await;
        assert!(output.status.code().is_some_and(|code| code != 0), "{name}={value}");
        let text = stderr(&output);
        assert!(text.contains(&format!("LONGSHORE_{name}")), "{name}={value}: {text}");
        assert!(!text.contains("hidden-word"), "{text}");
    }
    // A role of a cluster says what it lacks.
    let output = run_to_end(folder.path(), &["worker"], &Env::new()).await;
    assert!(!output.status.success());
    assert!(stderr(&output).contains("LONGSHORE_NATS_URL"), "{}", stderr(&output));
}

#[tokio::test]
async fn a_settings_file_is_read_and_the_environment_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("longshore.toml");
    std::fs::write(&config, "chunk_size = 10\nlisten = \"nowhere\"\n").unwrap();
    let env = settings_in(folder.path(), &[("CONFIG", config.to_str().unwrap())]);
    let mut process = Process::longshore("serve", "serve", env, folder.path());
    process.ready().await;
    let api = Api::new(&process.base);
    let import = api.import(&trips(), "a,b\n1,2\n3,4\n5,6\n7,8\n9,10\n").await;
    assert_succeeded(&import);
    assert!(import["progress"]["chunks_total"].as_u64().unwrap() > 1, "{import}");
}

#[tokio::test]
async fn a_database_that_is_down_at_the_start_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("postgres://nobody:hidden-word@127.0.0.1:{}/none", free_port());
    let env = settings_in(folder.path(), &[("DATABASE_URL", &url)]);
    let mut process = Process::longshore("serve", "serve", env, folder.path());
    process.says("waiting for").await;
    until("it tried again", async || (process.log().matches("waiting for").count() >= 3).then_some(())).await;
    assert!(process.ended().is_none(), "it keeps running");
    let log = process.log();
    for word in ["database", "LONGSHORE_DATABASE_URL", "nobody@127.0.0.1", "refused", "longshore doctor"] {
        assert!(log.contains(word), "{word} is not in {log}");
    }
    assert!(!log.contains("hidden-word"), "{log}");
    let status = process.terminate().await;
    assert_eq!(status.code(), Some(0), "it can be stopped while it waits");
}

#[tokio::test]
async fn liveness_and_readiness_name_the_dependencies() {
    let service = serve(&[]).await;
    assert_eq!(service.api.got("/healthz").await["status"], "ok");
    let ready = service.api.got("/readyz").await;
    for name in ["database", "destination", "objects", "bus"] {
        assert_eq!(ready["dependencies"][name]["ready"], true, "{ready}");
    }
}

#[tokio::test]
async fn no_secret_is_logged() {
    let service = serve(&[("LOG", "debug")]).await;
    let created = service.api.create(&trips()).await;
    assert_eq!(service.api.put(&created, "a\n1\n").await, 200);
    assert_succeeded(&service.api.done(&id_of(&created)).await);
    let kept: Value =
        serde_json::from_slice(&std::fs::read(service.folder.path().join("data/s3-credentials.json")).unwrap())
            .unwrap();
    let log = service.process.log();
    assert!(!log.contains(kept["secret_access_key"].as_str().unwrap()));
    assert!(!log.contains("X-Amz-Signature"), "a presigned URL is a secret");
}
