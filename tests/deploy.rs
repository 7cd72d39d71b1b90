//! What `deploy/` hands to an operator, on real servers: the rights of NATS's users and MinIO's keys, each tried and each
//! refused where it is not granted; a whole import with exactly those rights; settings that the program knows.
//!
//! Needs `deploy/servers test`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use rusty_s3::S3Action as _;
use serde_json::{Value, json};
use sqlx::postgres::PgPool;
use tempfile::TempDir;

use common::api::{Api, assert_succeeded};
use common::data::source;
use common::nats_wire::Wire;
use common::process::{Env, Process, clean_command, longshore, run_to_end, settings};
use common::s3::S3Server;
use common::servers::{Nats, PostgresServer, S3_PASSWORD, S3_USER};
use common::{seed, server_setting, unique};

const MINIO: &str = "longshore-minio";
const API: &str = "longshore-api";
const WORKER: &str = "longshore-worker";

// Of the kind that `deploy/secrets` makes; looked for in every log.
const NATS_MINIO: &str = "sNatsMinio1";
const NATS_API: &str = "sNatsApi1";
const NATS_WORKER: &str = "sNatsWorker1";
const S3_SIGNER: &str = "sStorageSigner1";
const S3_API: &str = "sStorageApi1";
const S3_WORKER: &str = "sStorageWorker1";
const DATABASE: &str = "sDatabase1";
const SECRETS: [&str; 7] = [NATS_MINIO, NATS_API, NATS_WORKER, S3_SIGNER, S3_API, S3_WORKER, DATABASE];

/// The folder `deploy`.
fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path).canonicalize().unwrap()
}

fn nats_passwords() -> Env {
    let pairs =
        [("NATS_MINIO_PASSWORD", NATS_MINIO), ("NATS_API_PASSWORD", NATS_API), ("NATS_WORKER_PASSWORD", NATS_WORKER)];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

fn password_of(user: &str) -> &'static str {
    match user {
        MINIO => NATS_MINIO,
        API => NATS_API,
        _ => NATS_WORKER,
    }
}

/// What each user of `deploy/nats/nats.conf` may do, one real subject for each of its lines.
struct Grants {
    user: &'static str,
    publish: &'static [&'static str],
    subscribe: &'static [&'static str],
}

const LOOK: [&str; 7] = [
    "$JS.API.INFO",
    "$JS.API.STREAM.INFO.LONGSHORE_EVENTS",
    "$JS.API.STREAM.INFO.LONGSHORE_IMPORTS",
    "$JS.API.STREAM.INFO.LONGSHORE_CHUNKS",
    "$JS.API.CONSUMER.INFO.LONGSHORE_EVENTS.longshore-intake",
    "$JS.API.CONSUMER.INFO.LONGSHORE_IMPORTS.longshore-supervisors",
    "$JS.API.CONSUMER.INFO.LONGSHORE_CHUNKS.longshore-workers",
];

const GRANTS: [Grants; 3] = [
    Grants { user: MINIO, publish: &["longshore.storage-events"], subscribe: &[] },
    Grants {
        user: API,
        publish: &[
            "longshore.jobs.import",
            "longshore.reports.01980000",
            "longshore.changes.01980000",
            LOOK[0],
            LOOK[1],
            LOOK[2],
            LOOK[3],
            LOOK[4],
            LOOK[5],
            LOOK[6],
        ],
        subscribe: &["longshore.changes.01980000", "_INBOX.longshore-api.x.1"],
    },
    Grants {
        user: WORKER,
        publish: &[
            "longshore.jobs.import",
            "longshore.jobs.chunk",
            "longshore.reports.01980000",
            "longshore.changes.01980000",
            "longshore.scans",
            LOOK[0],
            LOOK[1],
            LOOK[2],
            LOOK[3],
            LOOK[4],
            LOOK[5],
            LOOK[6],
            "$JS.API.CONSUMER.MSG.NEXT.LONGSHORE_EVENTS.longshore-intake",
            "$JS.API.CONSUMER.MSG.NEXT.LONGSHORE_IMPORTS.longshore-supervisors",
            "$JS.API.CONSUMER.MSG.NEXT.LONGSHORE_CHUNKS.longshore-workers",
            "$JS.ACK.LONGSHORE_EVENTS.longshore-intake.1.1.1.1.1",
            "$JS.ACK.LONGSHORE_IMPORTS.longshore-supervisors.1.1.1.1.1",
            "$JS.ACK.LONGSHORE_CHUNKS.longshore-workers.1.1.1.1.1",
            "$JS.API.STREAM.CREATE.LONGSHORE_EVENTS",
            "$JS.API.STREAM.CREATE.LONGSHORE_IMPORTS",
            "$JS.API.STREAM.CREATE.LONGSHORE_CHUNKS",
            "$JS.API.CONSUMER.CREATE.LONGSHORE_EVENTS.longshore-intake",
            "$JS.API.CONSUMER.CREATE.LONGSHORE_IMPORTS.longshore-supervisors",
            "$JS.API.CONSUMER.CREATE.LONGSHORE_CHUNKS.longshore-workers",
        ],
        subscribe: &[
            "longshore.reports.01980000",
            "longshore.changes.01980000",
            "longshore.scans",
            "_INBOX.longshore-worker.x.1",
        ],
    },
];

/// What no user may publish to: other streams, and what destroys, changes or empties ours.
const NOBODY_PUBLISHES: [&str; 16] = [
    "anything",
    "longshore.reports",
    "longshore.jobs.other",
    "longshore.storage-events.more",
    "$JS.API.STREAM.LIST",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.CREATE.OTHER",
    "$JS.API.STREAM.UPDATE.LONGSHORE_CHUNKS",
    "$JS.API.STREAM.PURGE.LONGSHORE_CHUNKS",
    "$JS.API.STREAM.DELETE.LONGSHORE_CHUNKS",
    "$JS.API.STREAM.MSG.GET.LONGSHORE_EVENTS",
    "$JS.API.DIRECT.GET.LONGSHORE_EVENTS",
    "$JS.API.CONSUMER.CREATE.LONGSHORE_EVENTS.other",
    "$JS.API.CONSUMER.DELETE.LONGSHORE_CHUNKS.longshore-workers",
    "$SYS.REQ.SERVER.PING",
    "_INBOX.longshore-api.x.1",
];

/// What no user may hear: everybody's messages, each other's answers, jobs beside the consumers.
const NOBODY_HEARS: [&str; 8] = [
    ">",
    "longshore.>",
    "_INBOX.>",
    "$JS.API.>",
    "$SYS.>",
    "longshore.storage-events",
    "longshore.jobs.chunk",
    "longshore.jobs.import",
];

/// Subjects of one kind that some user has and `user` has not.
fn of_others(user: &str, kind: fn(&Grants) -> &'static [&'static str]) -> Vec<&'static str> {
    let own = GRANTS.iter().find(|grants| grants.user == user).map(kind).unwrap();
    let all = GRANTS.iter().flat_map(|grants| kind(grants).iter().copied());
    all.filter(|subject| !own.contains(subject)).collect()
}

#[tokio::test]
async fn nats_grants_each_user_what_its_role_does_and_refuses_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::configured(folder.path(), &deploy("nats/nats.conf"), nats_passwords()).await;
    for grants in &GRANTS {
        let user = grants.user;
        let mut wire = Wire::connect(nats.port, Some((user, password_of(user)))).await.unwrap();
        for subject in grants.publish {
            assert_eq!(wire.publish(subject).await, None, "{user} may publish to {subject}");
        }
        for subject in grants.subscribe {
            assert_eq!(wire.subscribe(subject).await, None, "{user} may hear {subject}");
        }
        for subject in NOBODY_PUBLISHES.into_iter().chain(of_others(user, |grants| grants.publish)) {
            let refusal = format!("Permissions Violation for Publish to \"{subject}\"");
            assert_eq!(wire.publish(subject).await.as_deref(), Some(&*refusal), "{user}");
        }
        for subject in NOBODY_HEARS.into_iter().chain(of_others(user, |grants| grants.subscribe)) {
            let refusal = format!("Permissions Violation for Subscription to \"{subject}\"");
            assert_eq!(wire.subscribe(subject).await.as_deref(), Some(&*refusal), "{user}");
        }
    }
}

/// The table above leaves out no line of the file.
#[test]
fn every_right_in_the_nats_configuration_is_tried() {
    let text = std::fs::read_to_string(deploy("nats/nats.conf")).unwrap();
    let granted = |line: &&str| ["\"longshore.", "\"$JS.", "\"_INBOX."].iter().any(|start| line.contains(start));
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#')).filter(granted).count();
    let tried: usize = GRANTS.iter().map(|grants| grants.publish.len() + grants.subscribe.len()).sum();
    assert_eq!(lines, tried);
}

#[tokio::test]
async fn nats_lets_nobody_in_without_the_right_password() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::configured(folder.path(), &deploy("nats/nats.conf"), nats_passwords()).await;
    for credentials in [None, Some((API, NATS_WORKER)), Some((API, "")), Some(("admin", "admin"))] {
        let error = Wire::connect(nats.port, credentials).await.err();
        assert_eq!(error.as_deref(), Some("Authorization Violation"), "{credentials:?}");
    }
}

/// NATS, MinIO and PostgreSQL as `deploy/` sets them up, with `deploy/minio/setup` and `deploy/postgres/init.sh` run.
struct Place {
    minio: S3Server,
    nats: Nats,
    postgres: PostgresServer,
    /// The configuration that NATS was started with.
    nats_conf: PathBuf,
    folder: TempDir,
}

impl Place {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nats_conf = folder.path().join("nats.conf");
        std::fs::copy(deploy("nats/nats.conf"), &nats_conf).unwrap();
        let nats = Nats::configured(folder.path(), &nats_conf, nats_passwords()).await;
        let user = ("MINIO_NOTIFY_NATS_USERNAME_longshore", MINIO);
        let password = ("MINIO_NOTIFY_NATS_PASSWORD_longshore", NATS_MINIO);
        let minio = S3Server::minio(folder.path(), &nats, &[user, password]).await;
        set_up_minio(&minio, folder.path());
        let postgres = PostgresServer::start(folder.path());
        let port = postgres.port.to_string();
        let env = [("PGHOST", "127.0.0.1"), ("PGPORT", &port), ("DATABASE_PASSWORD", DATABASE)];
        succeed(with_servers(deploy("postgres/init.sh"), folder.path(), "LONGSHORE_TEST_PG_BIN").envs(env));
        Self { minio, nats, postgres, nats_conf, folder }
    }

    fn database_url(&self) -> String {
        format!("postgres://longshore:{DATABASE}@127.0.0.1:{}/longshore", self.postgres.port)
    }

    /// Starts NATS again, and waits until an event arrives where it belongs: MinIO drops what happens while it has no
    /// connection (its first one it makes for its first event), and core NATS what no stream takes.
    async fn restart_nats(&mut self) {
        self.nats.process.start();
        self.nats.ready().await;
        self.nats.shows("connz?auth=true", "\"longshore-minio\"").await;
        self.nats.shows("jsz?accounts=true&streams=true", "\"LONGSHORE_EVENTS\"").await;
    }

    /// The settings of a role: its own user of NATS, its own key.
    fn settings(&self, user: &str, password: &str, secret: &str) -> Env {
        let nats = format!("nats://{user}:{password}@127.0.0.1:{}", self.nats.port);
        settings([
            ("DATABASE_URL", &*self.database_url()),
            ("NATS_URL", &nats),
            ("S3_ENDPOINT", &self.minio.endpoint),
            ("S3_ACCESS_KEY_ID", user),
            ("S3_SECRET_ACCESS_KEY", secret),
            // Nothing is found by the sweep.
            ("SWEEP_INTERVAL", "1h"),
            ("CHUNK_SIZE", "8192"),
            ("WORKERS", "2"),
        ])
    }
}

/// A program of `deploy/` with the programs of a test setting's folder on its path.
fn with_servers(program: PathBuf, folder: &Path, setting: &str) -> Command {
    let mut command = clean_command(program, folder);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", server_setting(setting)));
    command
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {}\n{said}", command.get_program(), output.status);
}

fn set_up_minio(minio: &S3Server, folder: &Path) {
    let env = [
        ("MINIO_ENDPOINT", &*minio.endpoint),
        ("MINIO_ROOT_USER", S3_USER),
        ("MINIO_ROOT_PASSWORD", S3_PASSWORD),
        ("S3_SIGNER_SECRET", S3_SIGNER),
        ("S3_API_SECRET", S3_API),
        ("S3_WORKER_SECRET", S3_WORKER),
    ];
    let setup = || with_servers(deploy("minio/setup"), folder, "LONGSHORE_TEST_SERVERS_BIN");
    succeed(setup().envs(env));
    // What is there stays.
    succeed(setup().envs(env));
}

#[tokio::test]
async fn a_cluster_with_exactly_these_rights_imports_by_event_and_heals() {
    let mut place = Place::start().await;
    let mut env = place.settings(API, NATS_API, S3_API);
    env.extend(settings([("S3_SIGNER_ACCESS_KEY_ID", "longshore-signer"), ("S3_SIGNER_SECRET_ACCESS_KEY", S3_SIGNER)]));
    // It may neither read nor set it; that is said, and stops nothing.
    env.extend(settings([("S3_NOTIFICATION_ARN", "arn:minio:sqs::longshore:nats")]));
    let mut api = Process::longshore("api", "api", env, place.folder.path());
    // There is no stream yet, and the API may not make one.
    api.says("may this user make it?").await;
    let worker_env = place.settings(WORKER, NATS_WORKER, S3_WORKER);
    let mut worker = Process::longshore("worker", "worker", worker_env, place.folder.path());
    worker.ready().await;
    api.ready().await;
    api.says("the bucket's notification could not be set").await;
    let client = Api::new(&api.base);
    import(&client, &place, "first").await;

    // Everything that NATS kept is gone: the worker makes it again.
    place.nats.wipe();
    place.restart_nats().await;
    api.ready().await;
    import(&client, &place, "healed").await;

    // Who withholds the rights to make streams and consumers has workers that run on those that are there.
    place.nats.process.kill();
    let text = std::fs::read_to_string(&place.nats_conf).unwrap();
    let without: Vec<&str> = text.lines().filter(|line| !line.contains(".CREATE.")).collect();
    assert_eq!(text.lines().count() - without.len(), 6);
    std::fs::write(&place.nats_conf, without.join("\n")).unwrap();
    place.restart_nats().await;
    worker.kill();
    worker.start();
    worker.ready().await;
    api.ready().await;
    import(&client, &place, "frugal").await;

    for process in [&api, &worker, &place.nats.process, &place.minio.process] {
        let log = process.log();
        for secret in SECRETS.iter().chain(&["X-Amz-Signature="]) {
            assert!(!log.contains(secret), "{} wrote {secret}", process.name());
        }
    }
    let said = place.nats.process.log();
    for user in [WORKER, MINIO] {
        let user = format!("user:{user}\"");
        let refused = said.lines().find(|line| line.contains("Violation") && line.contains(&user));
        assert_eq!(refused, None, "what its role does was refused");
    }
}

impl Place {
    /// The settings of the API: its own key, and the signer's.
    fn api_settings(&self) -> Env {
        let mut env = self.settings(API, NATS_API, S3_API);
        let signer = [("S3_SIGNER_ACCESS_KEY_ID", "longshore-signer"), ("S3_SIGNER_SECRET_ACCESS_KEY", S3_SIGNER)];
        env.extend(settings(signer));
        env
    }

    /// What the doctor of a role says of its checks, by name.
    async fn doctor(&self, role: &str, env: &Env, change: &[(&str, &str)]) -> BTreeMap<String, Value> {
        let mut env = env.clone();
        for (name, value) in change {
            let name = format!("LONGSHORE_{name}");
            env.retain(|(known, _)| *known != name);
            env.push((name, (*value).to_owned()));
        }
        let output = run_to_end(self.folder.path(), &["doctor", "--role", role, "--json"], &env).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("---- {role} {change:?}\n{said}");
        assert!(SECRETS.iter().all(|secret| !said.contains(secret)), "a secret is told: {said}");
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = all["checks"].as_array().unwrap().iter();
        checks.map(|check| (check["name"].as_str().unwrap().to_owned(), check.clone())).collect()
    }

    /// Starts NATS with its configuration, but for the lines that hold one of these.
    async fn without_lines(&mut self, words: &[&str]) {
        self.nats.process.kill();
        let text = std::fs::read_to_string(&self.nats_conf).unwrap();
        let lines = text.lines().filter(|line| !words.iter().any(|word| line.contains(word)));
        std::fs::write(&self.nats_conf, lines.collect::<Vec<_>>().join("\n")).unwrap();
        self.nats.process.start();
        self.nats.ready().await;
    }
}

fn with_status<'a>(checks: &'a BTreeMap<String, Value>, status: &str) -> Vec<&'a str> {
    checks.values().filter(|check| check["status"] == status).map(|check| check["name"].as_str().unwrap()).collect()
}

fn assert_says(checks: &BTreeMap<String, Value>, name: &str, part: &str, words: &[&str]) {
    let said = checks[name][part].as_str().unwrap_or_default();
    for word in words {
        assert!(said.contains(word), "the {part} of {name} does not hold {word}: {said}");
    }
}

#[tokio::test]
async fn the_doctor_of_a_role_finds_what_lacks_and_nothing_else_under_exactly_these_rights() {
    let mut place = Place::start().await;
    let (api_env, worker_env) = (place.api_settings(), place.settings(WORKER, NATS_WORKER, S3_WORKER));

    // Before the first start.
    let api = place.doctor("api", &api_env, &[]).await;
    assert_eq!(
        (with_status(&api, "fail"), with_status(&api, "warn")),
        (vec![], vec!["database", "destination", "streams"])
    );
    assert_says(&api, "streams", "advice", &["start a worker"]);
    assert_says(&api, "streams", "detail", &["could not be asked", "LONGSHORE_EVENTS"]);
    assert_eq!((&api["notification"]["status"], &api["events"]["status"]), (&json!("skipped"), &json!("skipped")));
    assert_says(&api, "upload", "detail", &["stays", "mc rm ALIAS/imports/imports/doctor/"]);
    let worker = place.doctor("worker", &worker_env, &[]).await;
    assert_eq!(with_status(&worker, "fail"), Vec::<&str>::new());
    assert_eq!(worker["upload"]["status"], "skipped");
    assert_says(&worker, "reads", "detail", &["this key may read", "decoded text can be put, read and removed"]);

    // While it runs.
    let mut node = Process::longshore("worker", "worker", worker_env.clone(), place.folder.path());
    node.ready().await;
    let before = node.log().len();
    for (role, env) in [("api", &api_env), ("worker", &worker_env)] {
        let checks = place.doctor(role, env, &[]).await;
        let found = (with_status(&checks, "fail"), with_status(&checks, "warn"));
        assert_eq!(found, (vec![], vec![]), "{role}");
        assert_eq!(checks["streams"]["status"], "ok", "{role}");
        for stream in checks["streams"]["measured"]["streams"].as_array().unwrap() {
            let events = stream["stream"] == "LONGSHORE_EVENTS";
            assert!(events || stream["messages"] == 0, "the doctor's job was stored: {stream}");
        }
    }
    let api = place.doctor("api", &api_env, &[]).await;
    assert_says(&api, "events", "detail", &["LONGSHORE_EVENTS", "count"]);
    assert!(!node.log()[before..].contains("WARN"), "the worker was disturbed: {}", &node.log()[before..]);

    // One thing wrong at a time.
    let wrong = place.doctor("api", &api_env, &[("S3_SIGNER_SECRET_ACCESS_KEY", "another")]).await;
    assert_eq!(with_status(&wrong, "fail"), ["upload"]);
    assert_says(&wrong, "upload", "advice", &["LONGSHORE_S3_SIGNER_SECRET_ACCESS_KEY"]);
    let wrong = place.doctor("worker", &worker_env, &[("S3_BUCKET", "elsewhere")]).await;
    assert_eq!(with_status(&wrong, "fail"), ["bucket"]);
    assert_says(&wrong, "bucket", "advice", &["LONGSHORE_S3_BUCKET"]);
    let reader = [("S3_ACCESS_KEY_ID", API), ("S3_SECRET_ACCESS_KEY", S3_API)];
    let wrong = place.doctor("worker", &worker_env, &reader).await;
    assert_eq!((with_status(&wrong, "fail"), with_status(&wrong, "warn")), (vec![], vec!["reads"]));
    assert_says(&wrong, "reads", "advice", &["imports/*/.decoded/", "worker-policy.json"]);
    let signer = [("S3_ACCESS_KEY_ID", "longshore-signer"), ("S3_SECRET_ACCESS_KEY", S3_SIGNER)];
    let wrong = place.doctor("worker", &worker_env, &signer).await;
    assert_eq!(with_status(&wrong, "fail"), ["bucket"], "that key may not read");
    let wrong = place.doctor("serve", &worker_env, &[]).await;
    assert_says(&wrong, "upload", "advice", &["LONGSHORE_S3_ACCESS_KEY_ID", "--role worker"]);
    let wrong = place.doctor("api", &api_env, &[("NATS_URL", "")]).await;
    assert_eq!(with_status(&wrong, "fail"), ["settings"]);
    assert_says(&wrong, "settings", "detail", &["LONGSHORE_NATS_URL"]);

    node.kill();
    place
        .without_lines(&["longshore.jobs.import", "MSG.NEXT.LONGSHORE_CHUNKS", "CONSUMER.INFO.LONGSHORE_EVENTS"])
        .await;
    let api = place.doctor("api", &api_env, &[]).await;
    assert_eq!(with_status(&api, "fail"), ["nats"]);
    assert_says(&api, "nats", "detail", &["longshore.jobs.import", "CONSUMER.INFO.LONGSHORE_EVENTS"]);
    assert!(!api["nats"]["detail"].as_str().unwrap().contains("MSG.NEXT"), "an API takes no jobs: {}", api["nats"]);
    assert_says(&api, "streams", "detail", &["may not ask", "longshore-intake"]);
    let worker = place.doctor("worker", &worker_env, &[]).await;
    assert_says(&worker, "nats", "detail", &["longshore.jobs.import", "MSG.NEXT.LONGSHORE_CHUNKS"]);
}

/// A whole import that nothing but the storage's event starts.
async fn import(client: &Api, place: &Place, table: &str) {
    let source = source(seed(), 3_000, 1, 0);
    let import = client.import(&json!({"destination": {"table": table}}), source.csv).await;
    assert_succeeded(&import);
    assert_eq!((&import["trigger"], &import["progress"]["rows_loaded"]), (&json!("event"), &json!(3_000)));
    let pool = PgPool::connect(&place.database_url()).await.unwrap();
    let sql = sqlx::AssertSqlSafe(format!("SELECT count(DISTINCT id) FROM {table}"));
    assert_eq!(sqlx::query_scalar::<_, i64>(sql).fetch_one(&pool).await.unwrap(), 3_000);
}

/// Somebody with a key.
struct Key {
    credentials: rusty_s3::Credentials,
    bucket: rusty_s3::Bucket,
    http: reqwest::Client,
}

impl Key {
    fn new(minio: &S3Server, id: &str, secret: &str) -> Self {
        let endpoint = minio.endpoint.parse().unwrap();
        let bucket = rusty_s3::Bucket::new(endpoint, rusty_s3::UrlStyle::Path, "imports", "us-east-1").unwrap();
        Self { credentials: rusty_s3::Credentials::new(id, secret), bucket, http: reqwest::Client::new() }
    }

    async fn status(&self, method: Method, url: url::Url) -> StatusCode {
        self.http.request(method, url).send().await.unwrap().status()
    }

    async fn put(&self, key: &str) -> StatusCode {
        let url = self.bucket.put_object(Some(&self.credentials), key).sign(MINUTE);
        self.http.put(url).body("a\n1\n").send().await.unwrap().status()
    }

    async fn get(&self, key: &str) -> StatusCode {
        self.status(Method::GET, self.bucket.get_object(Some(&self.credentials), key).sign(MINUTE)).await
    }

    async fn head(&self, key: &str) -> StatusCode {
        self.status(Method::HEAD, self.bucket.head_object(Some(&self.credentials), key).sign(MINUTE)).await
    }

    async fn delete(&self, key: &str) -> StatusCode {
        self.status(Method::DELETE, self.bucket.delete_object(Some(&self.credentials), key).sign(MINUTE)).await
    }

    async fn list(&self) -> StatusCode {
        // A GET of the bucket itself.
        self.get("").await
    }

    async fn look_at_bucket(&self) -> StatusCode {
        self.status(Method::HEAD, self.bucket.head_bucket(Some(&self.credentials)).sign(MINUTE)).await
    }

    async fn make_bucket(&self, name: &str) -> StatusCode {
        let endpoint = self.bucket.base_url().join("/").unwrap();
        let bucket = rusty_s3::Bucket::new(endpoint, rusty_s3::UrlStyle::Path, name.to_owned(), "us-east-1").unwrap();
        // reqwest leaves the length out for an empty body, and S3 servers want it.
        let url = bucket.create_bucket(&self.credentials).sign(MINUTE);
        self.http.put(url).header("content-length", "0").send().await.unwrap().status()
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_keys_of_minio_may_put_or_get_below_imports_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::start(folder.path()).await;
    let minio = S3Server::minio(folder.path(), &nats, &[]).await;
    set_up_minio(&minio, folder.path());
    let [signer, api, worker] = [("signer", S3_SIGNER), ("api", S3_API), ("worker", S3_WORKER)]
        .map(|(name, secret)| Key::new(&minio, &format!("longshore-{name}"), secret));
    let admin = Key::new(&minio, S3_USER, S3_PASSWORD);
    assert_eq!(admin.make_bucket(&unique("made-")).await, 200);
    assert_eq!((admin.put("elsewhere/a.csv").await, admin.list().await), (StatusCode::OK, StatusCode::OK));

    assert_eq!(signer.put("imports/a.csv").await, 200);
    for refused in [
        signer.put("elsewhere/b.csv").await,
        signer.put("imports.csv").await,
        signer.get("imports/a.csv").await,
        signer.head("imports/a.csv").await,
        signer.get("imports/missing.csv").await,
        signer.delete("imports/a.csv").await,
        signer.list().await,
        signer.look_at_bucket().await,
        signer.make_bucket(&unique("made-")).await,
    ] {
        assert_eq!(refused, 403, "the signer");
    }
    for reader in [&api, &worker] {
        assert_eq!(reader.get("imports/a.csv").await, 200);
        assert_eq!(reader.head("imports/a.csv").await, 200);
        // Told apart from what is refused, though it may not list: the sweep and `complete` need that.
        assert_eq!(reader.head("imports/missing.csv").await, 404);
        for refused in [
            reader.put("imports/b.csv").await,
            reader.put("imports/a.csv").await,
            reader.delete("imports/a.csv").await,
            reader.get("elsewhere/a.csv").await,
            reader.head("elsewhere/a.csv").await,
            reader.list().await,
            reader.look_at_bucket().await,
            reader.make_bucket(&unique("made-")).await,
            reader.put("elsewhere/1/.decoded/1-1-0").await,
        ] {
            assert_eq!(refused, 403, "a reader");
        }
    }
    let text = "imports/0198/.decoded/1-1-0";
    assert_eq!((api.put(text).await, api.delete(text).await), (StatusCode::FORBIDDEN, StatusCode::FORBIDDEN));
    assert_eq!((worker.put(text).await, worker.get(text).await), (StatusCode::OK, StatusCode::OK));
    assert_eq!((worker.delete(text).await, worker.head(text).await), (StatusCode::NO_CONTENT, StatusCode::NOT_FOUND));
    assert_eq!(admin.get("imports/a.csv").await, 200);
}

#[tokio::test]
async fn healthcheck_tells_a_process_that_is_ready_from_one_that_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut serve = Process::longshore("serve", "serve", Env::new(), folder.path());
    serve.ready().await;
    let port = serve.base.rsplit(':').next().unwrap().to_owned();
    // As in a container, where it listens on every address.
    let env = settings([("LISTEN", &*format!("0.0.0.0:{port}"))]);
    for arguments in [&["healthcheck"][..], &["healthcheck", "--live"]] {
        let output = run_to_end(folder.path(), arguments, &env).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    serve.terminate().await;
    let output = run_to_end(folder.path(), &["healthcheck"], &env).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/readyz"), "{output:?}");
}

/// Whether the program takes these settings: a bad one is a usage error, before anything else is looked at.
fn takes(folder: &Path, env: &[(&str, &str)]) -> Result<(), String> {
    let output = longshore(folder).args(["healthcheck", "--live"]).envs(env.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(2) { Err(said) } else { Ok(()) }
}

#[test]
fn the_program_knows_every_setting_that_deploy_names() {
    let folder = tempfile::tempdir().unwrap();
    for role in ["api", "worker", "serve"] {
        let path = deploy(&format!("systemd/{role}.toml.example"));
        takes(folder.path(), &[("LONGSHORE_CONFIG", path.to_str().unwrap())]).unwrap();
    }
    for file in ["compose.yaml", "Dockerfile", "systemd/longshore-serve.service", "systemd/longshore-api.service"] {
        let text = std::fs::read_to_string(deploy(file)).unwrap();
        let names: Vec<&str> = text
            .split(|byte: char| !byte.is_ascii_uppercase() && !byte.is_ascii_digit() && byte != '_')
            .filter(|word| word.starts_with("LONGSHORE_") && *word != "LONGSHORE_CONFIG")
            .collect();
        for name in names {
            // An empty one is none, but its name has to be known.
            takes(folder.path(), &[(name, "")]).unwrap_or_else(|said| panic!("{file}: {said}"));
        }
    }
    assert!(takes(folder.path(), &[("LONGSHORE_NO_SUCH", "")]).is_err());
}

/// Compose and the tests run the same servers.
#[test]
fn images_are_of_the_versions_that_are_tested() {
    let servers = std::fs::read_to_string(deploy("servers")).unwrap();
    let version = |name: &str| {
        let line = servers.lines().find_map(|line| line.strip_prefix(&format!("{name}_VERSION="))).unwrap();
        line.to_owned()
    };
    let compose = std::fs::read_to_string(deploy("compose.yaml")).unwrap();
    assert!(compose.contains(&format!("image: nats:{}-alpine", version("NATS").trim_start_matches('v'))));
    let minio = std::fs::read_to_string(deploy("minio/Dockerfile")).unwrap();
    for name in ["MINIO", "MC"] {
        assert!(minio.contains(&format!("ARG {name}_VERSION={}", version(name))), "{name}");
    }
}

/// What `deploy/Dockerfile` copies into an empty image: the program finds its libraries, and needs no right of root.
#[test]
fn an_import_runs_on_the_root_file_system_of_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    succeed(clean_command(deploy("rootfs"), folder.path()).arg(env!("CARGO_BIN_EXE_longshore")).arg(&root));
    let data = root.join("var/lib/longshore");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::copy(deploy("../examples/trips.csv"), root.join("tmp/trips.csv")).unwrap();
    // Only root may change root; others become root of a namespace of their own.
    let mut command = if Command::new("id").arg("-u").output().unwrap().stdout == b"0\n" {
        succeed(Command::new("chown").arg("10001:10001").arg(&data));
        let mut command = clean_command("chroot", folder.path());
        command.arg("--userspec=10001:10001");
        command
    } else {
        let mut command = clean_command("unshare", folder.path());
        command.args(["--map-root-user", "chroot"]);
        command
    };
    let import = ["/usr/local/bin/longshore", "import", "/tmp/trips.csv", "--table", "trips", "--json"];
    let output = command.arg(&root).args(import).env("LONGSHORE_DATA_DIR", "/var/lib/longshore").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", output.status);
    let import: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_succeeded(&import);
    assert!(data.join("longshore.sqlite").exists());
}
