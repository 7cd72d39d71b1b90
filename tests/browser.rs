//! Uploads from a web page of another origin, in a real browser: `examples/browser` as it stands, driven by
//! `tests/browser/drive.js`, against the embedded endpoint and against MinIO.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use serde_json::{Value, json};
use tempfile::TempDir;

use common::api::{Api, assert_succeeded, kind_of};
use common::browser::{Site, SlowLine};
use common::process::{Process, settings};
use common::servers::{Bucket, S3_PASSWORD};
use common::{free_port, server_setting};

/// `longshore serve` that lets one site in.
struct Service {
    process: Process,
    api: Api,
    site: Site,
    folder: TempDir,
    _line: SlowLine,
}

/// Over the embedded endpoint, which browsers reach over a slow line.
async fn embedded() -> Service {
    let (line, storage) = (free_port(), free_port());
    let storage = format!("127.0.0.1:{storage}");
    start(SlowLine::start(line, storage.clone()), &[("S3_LISTEN", &storage)]).await
}

/// Over MinIO, which lets any site in by a setting of its own.
async fn minio() -> Service {
    let endpoint = server_setting("LONGSHORE_TEST_S3_ENDPOINT");
    let key = server_setting("LONGSHORE_TEST_S3_ACCESS_KEY_ID");
    let secret = server_setting("LONGSHORE_TEST_S3_SECRET_ACCESS_KEY");
    let bucket = Bucket::new(&endpoint, &key, &secret);
    let line = SlowLine::start(free_port(), endpoint.trim_start_matches("http://").to_owned());
    let more = [
        ("S3_ENDPOINT", endpoint.as_str()),
        ("S3_ACCESS_KEY_ID", &key),
        ("S3_SECRET_ACCESS_KEY", &secret),
        ("S3_BUCKET", &bucket.name),
    ];
    start(line, &more).await
}

async fn start(line: SlowLine, more: &[(&str, &str)]) -> Service {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let site = Site::start().await;
    // Nothing is found by the sweep.
    let mut env = settings([
        ("DATA_DIR", data.to_str().unwrap()),
        ("CORS_ORIGINS", &format!("https://elsewhere.example.com,{}", site.origin)),
        ("S3_PUBLIC_ENDPOINT", &line.address),
        ("SWEEP_INTERVAL", "1h"),
    ]);
    env.extend(more.iter().map(|(name, value)| (format!("LONGSHORE_{name}"), (*value).to_owned())));
    let mut process = Process::longshore("serve", "serve", env, folder.path());
    process.ready().await;
    let api = Api::new(&process.base);
    Service { process, api, site, folder, _line: line }
}

impl Service {
    async fn visit(&mut self, scenario: &str) -> Value {
        let base = self.process.base.clone();
        self.site.visit(self.folder.path(), scenario, &base, "").await
    }

    fn assert_clean_log(&self) {
        let log = self.process.log();
        assert!(!log.contains("panicked at"));
        for secret in [S3_PASSWORD, "longshore-test-secret", "X-Amz-Signature="] {
            assert!(!log.contains(secret), "the log holds {secret}");
        }
    }
}

/// Everything that a page does, on one storage.
async fn a_page_uploads(mut service: Service) {
    let report = service.visit("page").await;
    assert_eq!(report["state"], "succeeded: 100 rows loaded, 0 rejected", "{report:#}");
    assert_eq!(report["progress"], 1, "{report:#}");

    let report = service.visit("xhr").await;
    assert_succeeded(&report["done"]);
    assert_eq!(report["done"]["progress"]["rows_loaded"], 16_000);
    assert_eq!(report["done"]["source"]["size"], report["size"]);
    let progress = report["progress"].as_array().unwrap();
    println!("{} progress events for {} bytes", progress.len(), report["size"]);
    assert!(progress.len() > 2, "the upload is seen to go on: {progress:?}");
    let loaded: Vec<u64> = progress.iter().map(|step| step[0].as_u64().unwrap()).collect();
    assert!(loaded.is_sorted(), "{loaded:?}");
    assert_eq!(progress.last().unwrap(), &json!([report["size"], report["size"]]));
    assert_eq!(report["states"].as_array().unwrap().last().unwrap(), "succeeded");

    let report = service.visit("fetch").await;
    assert_eq!(report["wrong"]["status"], 403, "{report:#}");
    assert!(report["wrong"]["body"].as_str().unwrap().contains("<Code>"), "why is readable: {report:#}");
    assert_eq!(report["right"]["status"], 200, "{report:#}");
    assert_eq!(report["again"]["status"], 412, "{report:#}");
    assert_succeeded(&report["done"]);
    let id = report["done"]["id"].as_str().unwrap();
    assert_eq!(report["location"], format!("/v1/imports/{id}"), "the header is exposed");
    assert_eq!(report["conditional"], 200, "{report:#}");
    for (answer, status, kind) in [("unknown", 404, "not-found"), ("malformed", 400, "bad-request")] {
        assert_eq!(report[answer]["status"], status, "{report:#}");
        let problem: Value = serde_json::from_str(report[answer]["body"].as_str().unwrap()).unwrap();
        assert_eq!(kind_of(&problem), kind, "{report:#}");
    }
    service.assert_clean_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_uploads_to_the_embedded_endpoint() {
    a_page_uploads(embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_uploads_to_minio() {
    a_page_uploads(minio().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_is_not_let_in() {
    let service = embedded().await;
    let created = service.api.create(&json!({"destination": {"table": "by_stranger"}})).await;
    let mut stranger = Site::start().await;
    let more: String =
        url::form_urlencoded::Serializer::new(String::from("&")).append_pair("created", &created.to_string()).finish();
    let report = stranger.visit(service.folder.path(), "stranger", &service.process.base, &more).await;
    assert_eq!(report["create"], json!({"refused": true, "status": 0}), "{report:#}");
    assert_eq!(report["read"], json!({"error": "TypeError"}), "{report:#}");
    assert_eq!(report["upload"], json!({"refused": true, "status": 0}), "{report:#}");
    // Nothing happened behind the refusals.
    let all = service.api.all("/v1/imports", 100).await;
    assert_eq!(all.len(), 1, "{all:#?}");
    assert_eq!(all[0]["state"], "awaiting_upload");
    let id = all[0]["id"].as_str().unwrap();
    let (status, problem) = service.api.post(&format!("/v1/imports/{id}/complete"), &json!({})).await;
    assert_eq!(status, 409, "nothing was uploaded: {problem}");
}
