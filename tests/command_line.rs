//! The command line as its users meet it: signals, pipes that nobody reads, files that cannot be read, servers that are away.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;

use common::api::{assert_succeeded, id_of};
use common::data::source;
use common::process::{Env, Process, longshore, run_to_end, settings};
use common::service::{Service, open, serve, settings_in};
use common::{free_port, seed, until};

/// Enough rows that an import of them in chunks of 300 bytes is at it for long.
const ROWS: u64 = 20_000;

/// What a command said: its code, stdout, stderr.
async fn run(folder: &Path, arguments: &[&str], env: &Env) -> (i32, String, String) {
    let output = run_to_end(folder, arguments, env).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(!err.contains("panicked"), "{arguments:?}: {err}");
    (output.status.code().unwrap(), out, err)
}

fn database(folder: &TempDir) -> std::path::PathBuf {
    folder.path().join("data/longshore.sqlite")
}

fn count(folder: &TempDir, table: &str) -> u64 {
    let sql = format!("SELECT count(*), count(DISTINCT id) FROM \"{table}\"");
    let (all, different): (i64, i64) =
        open(&database(folder)).query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(all, different, "rows were loaded twice");
    all.unsigned_abs()
}

fn has_table(folder: &TempDir, table: &str) -> bool {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
    open(&database(folder)).query_row(sql, [table], |row| row.get::<_, i64>(0)).unwrap() > 0
}

/// A slow `longshore import trips.csv --table trips` that is in the middle of its chunks.
async fn import_under_way(folder: &TempDir) -> Process {
    std::fs::write(folder.path().join("trips.csv"), source(seed(), ROWS, 1, 0).csv).unwrap();
    let env = settings_in(folder.path(), &[("CHUNK_SIZE", "300")]);
    let arguments = ["import", "trips.csv", "--table", "trips"];
    let import = Process::spawn("import", env!("CARGO_BIN_EXE_longshore"), &arguments, env, folder.path());
    import.says(" into trips").await;
    let sql = "SELECT max(chunks_done) FROM longshore_imports";
    until("chunks are done", async || {
        let done: Option<i64> = open(&database(folder)).query_row(sql, [], |row| row.get(0)).unwrap();
        (done.unwrap_or(0) >= 3).then_some(())
    })
    .await;
    import
}

/// The id in `import ID into trips`.
fn id_in(text: &str) -> String {
    let (_, rest) = text.split_once("import ").unwrap_or_else(|| panic!("no id in {text}"));
    rest.split_whitespace().next().unwrap().to_owned()
}

// ---------------------------------------------------------------------------------------------------------------- signals

#[tokio::test]
async fn an_interrupted_import_is_cancelled_so_that_it_may_be_given_again() {
    let folder = tempfile::tempdir().unwrap();
    for signal in ["INT", "TERM"] {
        let mut import = import_under_way(&folder).await;
        import.signal(signal);
        assert_eq!(import.end().await.code(), Some(130), "{signal}");
        assert!(import.log().contains("cancelled; nothing of it is in trips"), "{signal}: {}", import.log());
        assert!(!has_table(&folder, "trips"), "{signal}");
        std::fs::remove_file(folder.path().join("import.log")).unwrap();
        std::fs::remove_dir_all(folder.path().join("data")).unwrap();
    }
    let mut import = import_under_way(&folder).await;
    import.signal("INT");
    assert_eq!(import.end().await.code(), Some(130));
    let again = ["import", "trips.csv", "--table", "trips"];
    let (code, _, err) = run(folder.path(), &again, &settings_in(folder.path(), &[])).await;
    assert_eq!((code, count(&folder, "trips")), (0, ROWS), "{err}");
    assert!(!err.contains("continuing"), "{err}");
}

#[tokio::test]
async fn an_import_that_was_killed_is_continued_with_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let mut import = import_under_way(&folder).await;
    let id = id_in(&import.log());
    import.kill();
    std::fs::write(folder.path().join("other.csv"), "a\n1\n").unwrap();
    let other = ["import", "other.csv", "--table", "other"];
    let (code, _, err) = run(folder.path(), &other, &settings_in(folder.path(), &[])).await;
    assert_eq!(code, 0, "{err}");
    assert!(err.contains(&format!("continuing import {id} into trips, which was interrupted")), "{err}");
    let mut service = Process::longshore("serve", "serve", settings_in(folder.path(), &[]), folder.path());
    service.ready().await;
    assert_succeeded(&common::api::Api::new(&service.base).done(&id).await);
    assert_eq!(count(&folder, "trips"), ROWS);
}

/// An import that is under way at a server, and the command that watches it.
async fn watched(service: &Service) -> (Process, String) {
    let folder = service.folder.path();
    std::fs::write(folder.join("trips.csv"), source(seed(), ROWS, 1, 0).csv).unwrap();
    let arguments = ["import", "trips.csv", "--table", "trips", "--server", &service.api.base];
    let import = Process::spawn("import", env!("CARGO_BIN_EXE_longshore"), &arguments, Env::new(), folder);
    import.says(" into trips").await;
    let id = id_in(&import.log());
    service.api.chunks_done(&id, 3).await;
    (import, id)
}

#[tokio::test]
async fn an_import_at_a_server_goes_on_when_its_command_is_interrupted() {
    let service = serve(&[("CHUNK_SIZE", "300")]).await;
    let (mut import, id) = watched(&service).await;
    import.signal("INT");
    assert_eq!(import.end().await.code(), Some(130));
    let log = import.log();
    for command in ["status", "cancel"] {
        assert!(log.contains(&format!("longshore {command} {id} --server {}", service.api.base)), "{log}");
    }
    assert_succeeded(&service.api.done(&id).await);
}

#[tokio::test]
async fn a_server_that_dies_while_it_is_watched_leaves_the_import_named() {
    let mut service = serve(&[("CHUNK_SIZE", "300")]).await;
    let (mut import, id) = watched(&service).await;
    service.process.kill();
    assert_eq!(import.end().await.code(), Some(1));
    let hint = format!("longshore status {id} --server {}", service.api.base);
    assert!(import.log().contains(&hint), "{}", import.log());
}

// ---------------------------------------------------------------------------------------------------------------- rejects

#[tokio::test]
async fn rejected_rows_are_shown_with_a_hint_that_works_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let env = settings_in(folder.path(), &[("LISTEN", &format!("127.0.0.1:{port}"))]);
    std::fs::write(folder.path().join("t.csv"), format!("a,b\n1,2\n{}", "3\n".repeat(7))).unwrap();
    let (code, _, err) = run(folder.path(), &["import", "t.csv", "--table", "t", "--max-rejects", "none"], &env).await;
    assert_eq!(code, 3, "{err}");
    assert_eq!(err.matches("missing_field").count(), 5, "{err}");
    let id = id_in(&err);
    let hint: Vec<&str> = err.lines().skip_while(|line| !line.ends_with("longshore serve &")).collect();
    let rejects = format!("longshore rejects {id} --server http://127.0.0.1:{port}");
    assert_eq!((hint.len(), hint[1].trim()), (2, &*rejects), "{err}");
    // Nobody waits between the two lines.
    let arguments = ["rejects", &id, "--server", &format!("http://127.0.0.1:{port}")];
    let mut rejects = Process::spawn("rejects", env!("CARGO_BIN_EXE_longshore"), &arguments, Env::new(), folder.path());
    let _serve = Process::spawn("serve", env!("CARGO_BIN_EXE_longshore"), &["serve"], env, folder.path());
    assert_eq!(rejects.end().await.code(), Some(0), "{}", rejects.log());
    assert_eq!(rejects.log().lines().count(), 7, "{}", rejects.log());
}

#[tokio::test]
async fn rows_that_the_destination_refused_are_shown_and_not_called_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let env = settings_in(folder.path(), &[]);
    std::fs::write(folder.path().join("t.csv"), "id,b\n1,2\n3,4\n").unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    open(&database(&folder))
        .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, b INTEGER); INSERT INTO t VALUES (3, 0)")
        .unwrap();
    let (code, _, err) = run(folder.path(), &["import", "t.csv", "--table", "t"], &env).await;
    assert_eq!(code, 1, "{err}");
    let id = id_in(&err);
    assert!(err.contains("constraint_violation") && err.contains(&format!("longshore rejects {id}")), "{err}");
    let mut service = Process::longshore("serve", "serve", env, folder.path());
    service.ready().await;
    let (_, out, _) = run(folder.path(), &["status", &id, "--server", &service.base], &Env::new()).await;
    assert!(out.contains("nothing loaded") && !out.contains("2 rows,"), "{out}");
    let table = run(folder.path(), &["list", "--table", "nothing", "--server", &service.base], &Env::new()).await;
    assert_eq!((table.0, &*table.1), (0, ""));
    assert!(table.2.contains("no such imports"), "{}", table.2);
    let unknown = "01980000-0000-7000-8000-000000000000";
    for arguments in [&["rejects", unknown][..], &["rejects", unknown, "--csv"]] {
        let (code, _, err) = run(folder.path(), &[arguments, &["--server", &service.base]].concat(), &Env::new()).await;
        assert!(code == 1 && err.contains("404") && !err.contains('{'), "{arguments:?}: {err}");
    }
    assert_eq!(run(folder.path(), &["rejects", &id, "--csv", "--json"], &Env::new()).await.0, 2);
}

// ----------------------------------------------------------------------------------------------------------- stdout is gone

/// Its code and stderr.
fn run_onto(folder: &Path, arguments: &[&str], env: &Env, stdout: impl Into<Stdio>) -> (Option<i32>, String) {
    let mut command = longshore(folder);
    command.args(arguments).envs(env.iter().cloned()).stdout(stdout).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn stdout_that_nobody_reads_ends_a_command_quietly_and_a_full_one_is_reported() {
    let service = serve(&[]).await;
    let folder = service.folder.path();
    let request = json!({"destination": {"table": "t"}, "on_error": {"max_rejects": null}});
    let import = service.api.import(&request, format!("a,b\n1,2\n{}", "3\n".repeat(3_000))).await;
    assert_succeeded(&import);
    std::fs::write(folder.join("t.csv"), "a,b\n1,2\n").unwrap();
    let id = id_of(&import);
    let env = settings([("SERVER", &service.api.base)]);
    for arguments in [
        &["status", &id][..],
        &["list"],
        &["list", "--json"],
        &["rejects", &id],
        &["rejects", &id, "--json"],
        &["rejects", &id, "--csv"],
        &["import", "t.csv", "--table", "t", "--json"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, err) = run_onto(folder, arguments, &env, writer);
        assert_eq!(code, Some(0), "{arguments:?}: {err}");
        assert!(!err.contains("panicked") && !err.contains("stdout"), "{arguments:?}: {err}");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (code, err) = run_onto(folder, arguments, &env, full);
        assert_eq!(code, Some(1), "{arguments:?}: {err}");
        assert!(!err.contains("panicked") && err.contains("stdout cannot be written"), "{arguments:?}: {err}");
    }
}

// --------------------------------------------------------------------------------------------- what is away, or cannot be read

#[tokio::test]
async fn what_cannot_be_imported_is_named_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let env = settings_in(folder.path(), &[]);
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in ["/dev/null", "/tmp", "missing.csv", pipe.to_str().unwrap()] {
        let (code, _, err) = run(folder.path(), &["import", path, "--table", "t"], &env).await;
        assert!(code == 2 && err.contains(path), "{path}: {err}");
    }
    assert!(!folder.path().join("data").exists(), "something was started");
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_used_is_named() {
    let service = serve(&[]).await;
    let folder = service.folder.path();
    std::fs::write(folder.join("t.csv"), "a\n1\n").unwrap();
    let arguments = ["import", "t.csv", "--table", "t"];
    let (code, _, err) = run(folder, &arguments, &settings_in(folder, &[])).await;
    assert_eq!(code, 1);
    assert!(err.contains(&format!("longshore serve at {}", service.api.base)) && err.contains("--server"), "{err}");
    std::fs::write(folder.join("file"), "").unwrap();
    let (code, _, err) = run(folder, &arguments, &settings([("DATA_DIR", "file")])).await;
    assert!(code == 1 && err.contains("file is a file") && err.contains("LONGSHORE_DATA_DIR"), "{err}");
}

#[tokio::test]
async fn an_import_does_not_wait_for_ever_and_names_setting_address_and_cause() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("t.csv"), "a\n1\n").unwrap();
    let nowhere = format!("127.0.0.1:{}", free_port());
    let case = async |name: &str, url: String, words: &[&str]| {
        let data = folder.path().join(name);
        let setting = format!("LONGSHORE_{name}");
        let env = settings([("DATA_DIR", data.to_str().unwrap()), (name, &url)]);
        let (code, _, err) = run(folder.path(), &["import", "t.csv", "--table", "t"], &env).await;
        assert_eq!(code, 1, "{err}");
        for word in words.iter().chain(&[&*setting]) {
            assert!(err.contains(word), "{name}: {word} is not in {err}");
        }
        assert!(!err.contains("hidden-word"), "{err}");
        err
    };
    let away = [&*nowhere, "refused", "longshore doctor", "waiting for"];
    tokio::join!(
        case("DATABASE_URL", format!("postgres://me:hidden-word@{nowhere}/none"), &away),
        case("DESTINATION_URL", format!("postgres://me:hidden-word@{nowhere}/none"), &away),
        case("NATS_URL", format!("nats://me:hidden-word@{nowhere}"), &away),
    );
    let file = folder.path().join("t.csv").display().to_string();
    for name in ["DATABASE_URL", "DESTINATION_URL"] {
        let said = case(name, format!("sqlite://{file}?mode=rwc"), &[&file, "not a database"]).await;
        assert!(!said.contains("waiting"), "it does not wait: {said}");
    }
    let missing = folder.path().join("missing.sqlite").display().to_string();
    case("DATABASE_URL", format!("sqlite://{missing}"), &[&missing, "mode=rwc"]).await;
}

#[tokio::test]
async fn a_password_in_the_servers_address_is_shown_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("t.csv"), "a\n1\n").unwrap();
    let nowhere = format!("user:hidden-word@127.0.0.1:{}", free_port());
    for (address, code) in [(format!("http://{nowhere}"), 1), (format!("ftp://{nowhere}"), 2), (nowhere.clone(), 2)] {
        for arguments in
            [&["list", "--server", &address][..], &["import", "t.csv", "--table", "t", "--server", &address]]
        {
            let (found, _, err) = run(folder.path(), arguments, &Env::new()).await;
            assert_eq!(found, code, "{arguments:?}: {err}");
            assert!(!err.contains("hidden-word"), "{err}");
        }
        let (_, help, _) = run(folder.path(), &["list", "--help"], &settings([("SERVER", &address)])).await;
        assert!(!help.contains("hidden-word"), "{help}");
    }
    let (code, _, err) = run(folder.path(), &["list", "--server", "127.0.0.1:8080"], &Env::new()).await;
    assert!(code == 2 && err.contains("must begin with http://"), "{err}");
}

#[tokio::test]
async fn the_program_says_who_it_is_and_a_role_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let (_, version, _) = run(folder.path(), &["--version"], &Env::new()).await;
    assert_eq!(version, format!("longshore {}\n", env!("CARGO_PKG_VERSION")));
    let (_, help, _) = run(folder.path(), &["--help"], &Env::new()).await;
    assert!(help.lines().next().unwrap().contains("CSV files into PostgreSQL or SQLite"), "{help}");
    for role in ["api", "worker"] {
        let (code, _, err) = run(folder.path(), &[role], &Env::new()).await;
        assert!(code == 2 && err.contains("LONGSHORE_NATS_URL"), "{err}");
    }
}

/// The settings' file knows the server, too.
#[tokio::test]
async fn a_server_in_the_settings_file_is_asked() {
    let service = serve(&[]).await;
    let folder = service.folder.path();
    let config = folder.join("longshore.toml");
    std::fs::write(&config, format!("server = \"{}\"\n", service.api.base)).unwrap();
    let id = id_of(&service.api.create(&json!({"destination": {"table": "t"}})).await);
    let env = settings([("CONFIG", config.to_str().unwrap())]);
    let (code, out, err) = run(folder, &["list", "--json"], &env).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["items"][0]["id"], json!(id));
}

// ------------------------------------------------------------------------------------------------------------------- load

/// `longshore load` with these arguments against a service: its code, its JSON, what it said.
async fn load(service: &Service, arguments: &[&str]) -> (i32, Value, String) {
    let all: Vec<&str> =
        ["load", "--json", "--server", &service.process.base].iter().chain(arguments).copied().collect();
    let (code, out, err) = run(service.folder.path(), &all, &settings([])).await;
    (code, serde_json::from_str(out.lines().last().unwrap_or_default()).unwrap_or_default(), err)
}

#[tokio::test]
async fn load_is_offered_counted_and_told() {
    let service = serve(&[]).await;
    let (code, told, err) = load(&service, &["--count", "12", "--concurrency", "4", "--rows", "300"]).await;
    assert_eq!(
        (code, &told["done"], &told["failed"], &told["rows"]),
        (0, &json!(12), &json!(0), &json!(3_600)),
        "{err}"
    );
    let run = told["run"].as_str().unwrap();
    let tables: Vec<String> = (0..12).map(|number| format!("load_{run}_{number}")).collect();
    for table in &tables {
        assert_eq!(count(&service.folder, table), 300);
    }
    for step in ["create", "upload", "load", "import"] {
        let times = &told["milliseconds"][step];
        assert!(
            times["p50"].as_f64().unwrap() > 0.0 && times["max"].as_f64() >= times["p99"].as_f64(),
            "{step}: {told}"
        );
    }
    assert!(err.contains("12 imports") && err.contains("p99") && err.contains(run), "{err}");

    // Into one table that is there, and told of.
    let (code, told, err) =
        load(&service, &["--count", "3", "--rows", "300", "--complete", "--table", &tables[0]]).await;
    assert_eq!((code, &told["rows"]), (0, &json!(900)), "{err}");
    let sql = format!("SELECT count(*) FROM \"{}\"", tables[0]);
    let all: i64 = open(&service.sqlite()).query_row(&sql, [], |row| row.get(0)).unwrap();
    assert_eq!(all, 1_200);
}

#[tokio::test]
async fn load_counts_what_fails_and_leaves_nothing_of_mere_requests() {
    let service = serve(&[]).await;
    let file = service.folder.path().join("bad.csv");
    std::fs::write(&file, "id,n\n1,\"never closed\n").unwrap();
    let (code, told, err) = load(&service, &["--count", "3", "--file", file.to_str().unwrap()]).await;
    assert_eq!((code, &told["done"], &told["failed"]), (1, &json!(0), &json!(3)), "{err}");
    assert!(err.contains("failed 3 times: failed: "), "{err}");
    let (code, _, err) = load(&service, &["--file", "no-such-file.csv"]).await;
    assert_eq!(code, 2, "{err}");

    for what in ["create", "status"] {
        let (code, told, err) = load(&service, &["--what", what, "--count", "20", "--concurrency", "5"]).await;
        assert_eq!((code, &told["done"]), (0, &json!(20)), "{err}");
        assert!(told["milliseconds"][what]["p50"].as_f64().unwrap() > 0.0, "{told}");
    }
    let open_imports = service.api.got("/v1/imports?state=awaiting_upload").await["items"].clone();
    assert_eq!(open_imports, json!([]));
}
