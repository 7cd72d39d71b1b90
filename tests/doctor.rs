//! `longshore doctor` on what is well and on one thing broken at a time, with real servers.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::IntoResponse as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use common::cluster::{Cluster, Options};
use common::postgres::Database;
use common::process::{Env, Process, run_to_end, settings};
use common::s3::NOTIFICATION_ARN;
use common::servers::{Bucket, Nats, S3_PASSWORD, cluster_settings};
use common::{free_port, server_setting, unique};

/// In order.
const CHECKS: [&str; 14] = [
    "settings",
    "service",
    "database",
    "destination",
    "nats",
    "streams",
    "bucket",
    "notification",
    "upload",
    "reads",
    "cors",
    "events",
    "clock",
    "versions",
];

/// What the doctor said.
struct Report {
    code: i32,
    all: Value,
    text: String,
}

impl Report {
    fn check(&self, name: &str) -> &Value {
        let checks = self.all["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {}", self.text))
    }

    fn status(&self, name: &str) -> &str {
        self.check(name)["status"].as_str().unwrap()
    }

    fn names_with(&self, status: &str) -> BTreeSet<&str> {
        let checks = self.all["checks"].as_array().unwrap().iter();
        checks.filter(|check| check["status"] == status).map(|check| check["name"].as_str().unwrap()).collect()
    }

    /// Exactly these, in any order.
    fn assert_not_ok(&self, status: &str, names: &[&str]) {
        assert_eq!(self.names_with(status), names.iter().copied().collect(), "{status}: {}", self.text);
    }

    fn assert_advice(&self, name: &str, words: &[&str]) {
        let advice =
            self.check(name)["advice"].as_str().unwrap_or_else(|| panic!("{name} advises nothing: {}", self.text));
        for word in words {
            assert!(advice.contains(word), "the advice of {name} does not name {word}: {advice}");
        }
    }
}

/// Runs it; whatever it says has to be well-formed and without secrets.
async fn doctor(folder: &Path, env: &Env) -> Report {
    let output = run_to_end(folder, &["doctor", "--json"], env).await;
    let (out, text) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(out.lines().count(), 1, "stdout: {out}, stderr: {text}");
    for secret in [S3_PASSWORD, "longshore-test-secret", "X-Amz-", "hunter2"] {
        assert!(!out.contains(secret) && !text.contains(secret), "{secret} is told: {out} {text}");
    }
    let all: Value = serde_json::from_str(&out).unwrap();
    let report = Report { code: output.status.code().unwrap(), all, text };
    let mut names: Vec<&str> =
        report.all["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    names.retain(|name| *name != "data-directory");
    assert_eq!(names, CHECKS, "{}", report.text);
    for check in report.all["checks"].as_array().unwrap() {
        let status = check["status"].as_str().unwrap();
        assert!(["ok", "warn", "fail", "skipped"].contains(&status), "{check}");
        assert!(!check["detail"].as_str().unwrap().is_empty() && check["measured"].is_object(), "{check}");
        assert_eq!(check["advice"].is_string(), status == "warn" || status == "fail", "{check}");
        assert!(report.text.contains(check["detail"].as_str().unwrap()), "people read the same: {}", report.text);
    }
    let fails = !report.names_with("fail").is_empty();
    assert_eq!(report.all["ok"], !fails);
    assert_eq!(report.code, i32::from(fails), "{}", report.text);
    assert!(report.all["version"].is_string());
    report
}

/// A setting replaced or added.
fn with(env: &Env, changes: &[(&str, &str)]) -> Env {
    let mut env = env.clone();
    for (name, value) in changes {
        let name = format!("LONGSHORE_{name}");
        env.retain(|(known, _)| *known != name);
        env.push((name, (*value).to_owned()));
    }
    env
}

// ---------------------------------------------------------------------------------------------------------------- healthy

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_cluster_with_events_has_nothing_wrong() {
    let cluster = Cluster::start(&Options { workers: 1, events: true, ..Options::default() }).await;
    let listen = cluster.api.base.trim_start_matches("http://").to_owned();
    let env = with(&cluster.settings(), &[("LISTEN", &listen)]);
    let nodes: Vec<&Process> = cluster.nodes.iter().chain(&cluster.workers).collect();
    let before: Vec<usize> = nodes.iter().map(|node| node.log().len()).collect();
    let report = doctor(cluster.folder.path(), &env).await;
    report.assert_not_ok("fail", &[]);
    report.assert_not_ok("warn", &[]);
    report.assert_not_ok("skipped", &["cors"]);
    assert!(report.check("events")["measured"]["delay_ms"].is_u64(), "{}", report.text);
    assert!(report.check("clock")["measured"]["storage_ahead_ms"].is_i64(), "{}", report.text);
    let found = &report.check("versions")["measured"]["found"];
    assert!(found["database"].as_str().unwrap().starts_with("PostgreSQL "), "{found}");
    assert!(found["storage"].as_str().unwrap().contains("MinIO"), "{found}");
    assert_eq!(report.check("notification")["measured"]["targets"], json!([NOTIFICATION_ARN]));
    // Nothing is left, and the nodes took no notice.
    assert!(!cluster.bucket.list().await.contains("<Key>"), "an object stayed");
    assert!(cluster.api.all("/v1/imports", 100).await.is_empty());
    cluster.assert_clean_logs();
    for (node, before) in nodes.iter().zip(before) {
        assert!(!node.log()[before..].contains("WARN"), "{} was disturbed", node.name());
    }
}

fn embedded_settings(folder: &TempDir) -> Env {
    let data = folder.path().join("data");
    let listen = format!("127.0.0.1:{}", free_port());
    settings([("DATA_DIR", data.to_str().unwrap()), ("LISTEN", &listen), ("CORS_ORIGINS", "https://app.example.com")])
}

/// What has no part in an embedded setup.
const NOT_EMBEDDED: [&str; 4] = ["nats", "streams", "notification", "events"];

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_setup_is_healthy_before_its_first_start_and_stays_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let report = doctor(folder.path(), &embedded_settings(&folder)).await;
    report.assert_not_ok("fail", &[]);
    report.assert_not_ok("warn", &[]);
    let skipped = [&NOT_EMBEDDED[..], &["service", "clock"]].concat();
    report.assert_not_ok("skipped", &skipped);
    assert_eq!(report.status("data-directory"), "ok");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was left");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_setup_is_healthy_beside_its_service_and_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let env = embedded_settings(&folder);
    // `Process::longshore` would choose another address.
    let mut serve = Process::spawn("serve", env!("CARGO_BIN_EXE_longshore"), &["serve"], env.clone(), folder.path());
    serve.base = format!("http://{}", env.iter().find(|(name, _)| name == "LONGSHORE_LISTEN").unwrap().1);
    serve.ready().await;
    let before = serve.log().len();
    let report = doctor(folder.path(), &env).await;
    report.assert_not_ok("fail", &[]);
    report.assert_not_ok("warn", &[]);
    // The embedded endpoint has a clock, and it is the same.
    report.assert_not_ok("skipped", &NOT_EMBEDDED);
    let owner = report.check("data-directory")["detail"].as_str().unwrap();
    assert!(owner.contains("a running service owns"), "{owner}");
    let log = serve.log().split_off(before);
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "the service was disturbed: {log}");
    let probes = folder.path().join("data/s3/objects/imports/imports/doctor");
    assert!(!probes.exists(), "the probe stayed");
    assert!(serve.terminate().await.success());

    let report = doctor(folder.path(), &env).await;
    report.assert_not_ok("fail", &[]);
    report.assert_not_ok("warn", &[]);
    assert_eq!(report.check("database")["measured"]["migrations_pending"], json!([]));
    assert_ne!(report.check("database")["measured"]["migrations_applied"], json!([]));
    // It can be started again, and has what it had.
    serve.start();
    serve.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_setup_that_cannot_be_written_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data");
    std::fs::write(&file, "a file where the folder should be").unwrap();
    let report = doctor(folder.path(), &with(&embedded_settings(&folder), &[("DATA_DIR", "data/below")])).await;
    assert_eq!(report.status("data-directory"), "fail", "{}", report.text);
    report.assert_advice("data-directory", &["LONGSHORE_DATA_DIR"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_database_gets_the_advice_for_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.csv");
    std::fs::write(&file, "a,b\n1,2\n").unwrap();
    let url = format!("sqlite://{}?mode=rwc", file.display());
    let report = doctor(folder.path(), &with(&embedded_settings(&folder), &[("DATABASE_URL", &url)])).await;
    report.assert_not_ok("fail", &["database", "destination"]);
    report.assert_advice("database", &["LONGSHORE_DATABASE_URL", "SQLite file"]);
    let advice = report.check("database")["advice"].as_str().unwrap();
    assert!(!advice.contains("password") && !advice.contains("GRANT"), "{advice}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_listens_and_does_not_answer_is_told_from_one_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = listener.local_addr().unwrap().to_string();
    let report = doctor(folder.path(), &with(&embedded_settings(&folder), &[("LISTEN", &listen)])).await;
    report.assert_not_ok("warn", &["service"]);
    assert!(report.check("service")["detail"].as_str().unwrap().contains("does not answer"), "{}", report.text);
}

// ------------------------------------------------------------------------------------------------- one thing broken a time

/// Servers on which a service has run, so that everything is there that it makes. Nothing runs on them now.
struct Ground {
    env: Env,
    database: Database,
    bucket: Bucket,
    nats: Nats,
    folder: TempDir,
}

impl Ground {
    async fn untouched() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nats = Nats::start(folder.path()).await;
        let database = Database::new().await;
        let endpoint = server_setting("LONGSHORE_TEST_S3_ENDPOINT");
        let key = server_setting("LONGSHORE_TEST_S3_ACCESS_KEY_ID");
        let secret = server_setting("LONGSHORE_TEST_S3_SECRET_ACCESS_KEY");
        let bucket = Bucket::new(&endpoint, &key, &secret);
        // The server lets everybody in; the password is there to be looked for.
        let url = database.url.replace("postgres@", "postgres:hunter2@");
        let env = cluster_settings(&url, &nats.url(), &endpoint, &key, &secret, &bucket.name);
        let env = with(&env, &[("LISTEN", &format!("127.0.0.1:{}", free_port()))]);
        Self { env, database, bucket, nats, folder }
    }

    async fn prepared() -> Self {
        let ground = Self::untouched().await;
        let mut api = Process::longshore("api", "api", ground.env.clone(), ground.folder.path());
        // Its own address goes before.
        api.ready().await;
        assert!(api.terminate().await.success());
        ground
    }

    async fn doctor(&self, changes: &[(&str, &str)]) -> Report {
        doctor(self.folder.path(), &with(&self.env, changes)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_before_the_first_start_makes_nothing() {
    let ground = Ground::untouched().await;
    let report = ground.doctor(&[]).await;
    report.assert_not_ok("fail", &["bucket"]);
    report.assert_not_ok("warn", &["database", "destination", "streams"]);
    report.assert_advice("bucket", &["start the service", &ground.bucket.name]);
    report.assert_advice("database", &["start the service"]);
    report.assert_advice("streams", &["start the service"]);
    let again = ground.doctor(&[]).await;
    assert_eq!(again.names_with("warn"), report.names_with("warn"), "the first look made something: {}", again.text);
    assert_eq!(again.names_with("fail"), report.names_with("fail"), "the first look made something: {}", again.text);
    assert_eq!(ground.database.one("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_is_told_with_the_setting_that_mends_it() {
    let ground = Ground::prepared().await;
    let nowhere = format!("127.0.0.1:{}", free_port());
    let (no_nats, no_database) =
        (format!("nats://{nowhere}"), format!("postgres://postgres:hunter2@{nowhere}/postgres"));
    let no_endpoint = format!("http://{nowhere}");
    let plain = plain_nats(ground.folder.path()).await;
    let plain_url = plain.url();
    let poor = poor_destination(&ground.database).await;
    let (nothing, origin) = (unique("missing-"), [("CORS_ORIGINS", "https://app.example.com")]);

    let healthy = async {
        let report = ground.doctor(&origin).await;
        report.assert_not_ok("fail", &[]);
        // No rule is set, and no service runs.
        report.assert_not_ok("warn", &["notification", "events"]);
        report.assert_not_ok("skipped", &["service"]);
        report.assert_advice("notification", &["LONGSHORE_S3_NOTIFICATION_ARN", "mc event add"]);
    };
    let wrong_secret = async {
        let report = ground.doctor(&[("S3_SECRET_ACCESS_KEY", "another-secret-hunter2")]).await;
        report.assert_not_ok("fail", &["bucket"]);
        report.assert_advice("bucket", &["LONGSHORE_S3_SECRET_ACCESS_KEY"]);
        assert_eq!(report.status("upload"), "skipped");
    };
    let bucket_missing = async {
        let report = ground.doctor(&[("S3_BUCKET", &nothing)]).await;
        report.assert_not_ok("fail", &["bucket"]);
        report.assert_advice("bucket", &["LONGSHORE_S3_BUCKET", &nothing]);
    };
    let notification_missing = async {
        let report = ground.doctor(&[("S3_NOTIFICATION_ARN", NOTIFICATION_ARN)]).await;
        report.assert_not_ok("fail", &["notification", "events"]);
        let command =
            format!("mc event add ALIAS/{} {NOTIFICATION_ARN} --event put --prefix imports/", ground.bucket.name);
        report.assert_advice("notification", &[&command, "start the service"]);
        report.assert_advice("events", &["LONGSHORE_NATS_URL"]);
    };
    let nats_down = async {
        let report = ground.doctor(&[("NATS_URL", &no_nats)]).await;
        report.assert_not_ok("fail", &["nats"]);
        report.assert_advice("nats", &["LONGSHORE_NATS_URL"]);
        assert_eq!((report.status("streams"), report.status("events")), ("skipped", "skipped"));
    };
    let no_jetstream = async {
        let report = ground.doctor(&[("NATS_URL", &plain_url)]).await;
        report.assert_not_ok("fail", &["nats"]);
        report.assert_advice("nats", &["--jetstream", "LONGSHORE_NATS_URL"]);
    };
    let database_down = async {
        let report = ground.doctor(&[("DATABASE_URL", &no_database), ("DESTINATION_URL", &ground.database.url)]).await;
        report.assert_not_ok("fail", &["database"]);
        report.assert_advice("database", &["LONGSHORE_DATABASE_URL"]);
    };
    let no_rights = async {
        let report = ground.doctor(&[("DESTINATION_URL", &poor)]).await;
        report.assert_not_ok("fail", &["destination"]);
        report.assert_advice("destination", &["GRANT CREATE", "LONGSHORE_DESTINATION_URL"]);
    };
    let wrong_public_endpoint = async {
        let report = ground.doctor(&[("S3_PUBLIC_ENDPOINT", &no_endpoint)]).await;
        report.assert_not_ok("fail", &["upload"]);
        report.assert_advice("upload", &["LONGSHORE_S3_PUBLIC_ENDPOINT"]);
        let detail = report.check("upload")["detail"].as_str().unwrap();
        assert!(detail.contains("the same upload to LONGSHORE_S3_ENDPOINT works"), "{detail}");
        assert_eq!(report.status("reads"), "ok", "{}", report.text);
    };
    tokio::join!(healthy, wrong_secret, bucket_missing, notification_missing, nats_down);
    tokio::join!(no_jetstream, database_down, no_rights, wrong_public_endpoint);

    assert!(!ground.bucket.list().await.contains("<Key>"), "an object stayed");
    let tables = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'longshore\\_doctor%'";
    assert_eq!(ground.database.one(tables).await, "0", "a table stayed");
    drop((ground.nats, plain));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_behind_or_gives_durability_up_is_told() {
    let ground = Ground::prepared().await;
    // Nothing waits for events.
    let quick = [("NATS_URL", "")];
    let name = ground.database.one("SELECT current_database()").await;
    ground.database.run(&format!("ALTER DATABASE {name} SET synchronous_commit = off")).await;
    let report = ground.doctor(&quick).await;
    for part in ["database", "destination"] {
        assert_eq!(report.status(part), "warn", "{}", report.text);
        assert!(report.check(part)["detail"].as_str().unwrap().contains("synchronous_commit = off"), "{}", report.text);
    }
    ground.database.run("INSERT INTO longshore_schema VALUES ('m9999_of_tomorrow')").await;
    let report = ground.doctor(&quick).await;
    assert_eq!(report.status("database"), "warn", "{}", report.text);
    assert!(report.check("database")["detail"].as_str().unwrap().contains("newer than this"), "{}", report.text);
    ground.database.run("DELETE FROM longshore_migrations").await;
    let report = ground.doctor(&quick).await;
    assert_ne!(report.check("database")["measured"]["migrations_pending"], json!([]));
    assert!(report.check("database")["detail"].as_str().unwrap().contains("migrations to come"), "{}", report.text);
}

/// The storage behind a proxy that bends requests, as a poor server or a careless operator would.
async fn bent(bend: fn(&mut Parts) -> Option<StatusCode>) -> String {
    let upstream = server_setting("LONGSHORE_TEST_S3_ENDPOINT");
    let client = reqwest::Client::new();
    let forward = move |request: Request| {
        let (upstream, client) = (upstream.clone(), client.clone());
        async move {
            let (mut parts, body) = request.into_parts();
            if let Some(status) = bend(&mut parts) {
                return status.into_response();
            }
            let body = to_bytes(body, 1 << 20).await.unwrap();
            let url = format!("{upstream}{}", parts.uri);
            let answer = client.request(parts.method, url).headers(parts.headers).body(body).send().await.unwrap();
            let (status, mut headers) = (answer.status(), answer.headers().clone());
            headers.remove("transfer-encoding");
            (status, headers, answer.bytes().await.unwrap()).into_response()
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(forward)).await.unwrap() });
    endpoint
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_does_not_keep_to_what_was_signed_is_told() {
    let ground = Ground::prepared().await;
    let lenient = bent(|parts| parts.headers.insert("content-type", HeaderValue::from_static("text/csv")).and(None));
    let careless = bent(|parts| parts.headers.remove("if-match").and(None));
    let closed = bent(|parts| (parts.method == Method::DELETE).then_some(StatusCode::FORBIDDEN));
    let renaming = bent(|parts| parts.headers.insert("host", HeaderValue::from_static("storage.internal")).and(None));
    let (lenient, careless, closed, renaming) = tokio::join!(lenient, careless, closed, renaming);

    let lenient = async {
        let report = ground.doctor(&[("S3_ENDPOINT", &lenient)]).await;
        report.assert_not_ok("fail", &["upload"]);
        let detail = report.check("upload")["detail"].as_str().unwrap();
        assert!(detail.contains("content type"), "{detail}");
    };
    let careless = async {
        let report = ground.doctor(&[("S3_ENDPOINT", &careless)]).await;
        report.assert_not_ok("fail", &[]);
        assert_eq!(report.status("reads"), "warn", "{}", report.text);
        let detail = report.check("reads")["detail"].as_str().unwrap();
        assert!(detail.contains("If-Match"), "{detail}");
    };
    let renaming = async {
        let report = ground.doctor(&[("S3_PUBLIC_ENDPOINT", &renaming)]).await;
        report.assert_not_ok("fail", &["upload"]);
        report.assert_advice("upload", &["Host", "LONGSHORE_S3_PUBLIC_ENDPOINT"]);
        let detail = report.check("upload")["detail"].as_str().unwrap();
        assert!(detail.contains("SignatureDoesNotMatch"), "{detail}");
    };
    tokio::join!(lenient, careless, renaming);
    assert!(!ground.bucket.list().await.contains("<Key>"), "an object stayed");

    let report = ground.doctor(&[("S3_ENDPOINT", &closed)]).await;
    report.assert_not_ok("fail", &[]);
    let left = report.check("upload")["measured"]["left"].as_str().unwrap();
    assert!(left.starts_with("imports/doctor/"), "{left}");
    assert!(report.check("upload")["detail"].as_str().unwrap().contains(left), "{}", report.text);
    assert!(ground.bucket.list().await.contains(&format!("<Key>{left}</Key>")), "what is told is there");
}

/// NATS that keeps nothing.
async fn plain_nats(folder: &Path) -> Nats {
    let folder = folder.join("plain");
    std::fs::create_dir(&folder).unwrap();
    Nats::start_with(&folder, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nats_does_not_permit_is_told() {
    let ground = Ground::prepared().await;
    let folder = ground.folder.path().join("strict");
    std::fs::create_dir(&folder).unwrap();
    let config = folder.join("nats.conf");
    let users = "authorization { users: [ \
        { user: deaf, password: hunter2, permissions: { subscribe: { deny: longshore.storage-events } } }, \
        { user: mute, password: hunter2, permissions: { publish: { deny: \"$JS.API.>\" } } } ] }";
    std::fs::write(&config, users).unwrap();
    let nats = Nats::start_with(&folder, &["--jetstream", "--config", config.to_str().unwrap()]).await;
    let url = |who: &str| nats.url().replace("nats://", &format!("nats://{who}@"));

    // The service itself does not listen to the subject: its stream does.
    let report = ground.doctor(&[("NATS_URL", &url("deaf:hunter2"))]).await;
    assert_eq!((report.status("nats"), report.status("events")), ("ok", "skipped"), "{}", report.text);
    assert!(
        report.check("events")["detail"].as_str().unwrap().contains("does not let the doctor listen"),
        "{}",
        report.text
    );
    let report = ground.doctor(&[("NATS_URL", &url("mute:hunter2"))]).await;
    assert_eq!(report.status("nats"), "fail", "{}", report.text);
    assert!(report.check("nats")["detail"].as_str().unwrap().contains("$JS.API"), "{}", report.text);
    report.assert_advice("nats", &["LONGSHORE_NATS_URL"]);
    let report = ground.doctor(&[("NATS_URL", &url("deaf:wrong-hunter2"))]).await;
    assert_eq!(report.status("nats"), "fail", "{}", report.text);
    assert!(report.check("nats")["detail"].as_str().unwrap().contains("authorization"), "{}", report.text);
}

/// A destination whose user may read, and make nothing.
async fn poor_destination(database: &Database) -> String {
    let role = unique("longshore_poor_");
    database.run(&format!("CREATE ROLE {role} LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC")).await;
    database.run(&format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")).await;
    database.url.replace("postgres@", &format!("{role}:hunter2@"))
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_were_set_otherwise_are_told() {
    let ground = Ground::untouched().await;
    let client = async_nats_stream(&ground.nats.url()).await;
    let report = ground.doctor(&[]).await;
    assert_eq!(report.status("streams"), "fail", "{}", report.text);
    let detail = report.check("streams")["detail"].as_str().unwrap();
    assert!(detail.contains("LONGSHORE_CHUNKS") && detail.contains("retention"), "{detail}");
    drop(client);
}

/// A stream of the service's name that keeps what was acknowledged.
async fn async_nats_stream(url: &str) -> async_nats::Client {
    let client = async_nats::connect(url).await.unwrap();
    let config = async_nats::jetstream::stream::Config {
        name: "LONGSHORE_CHUNKS".into(),
        subjects: vec!["longshore.jobs.chunk".into()],
        ..Default::default()
    };
    async_nats::jetstream::new(client.clone()).create_stream(config).await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_setting_or_argument_is_a_usage_error() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, env) in [
        (vec!["doctor"], settings([("CORS_ORIGINS", "app.example.com")])),
        (vec!["doctor"], settings([("LISTN", "x")])),
        (vec!["doctor", "--nonsense"], settings([])),
    ] {
        let output = run_to_end(folder.path(), &arguments, &env).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {env:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        if let Some((name, _)) = env.first() {
            assert!(text.contains(name.as_str()), "{text}");
        }
    }
}
