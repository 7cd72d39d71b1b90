//! A real Prometheus that reads the processes of a test, and a collector that takes their spans.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::header::CONTENT_TYPE;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as Any};
use prost::Message as _;
use serde_json::Value;

use crate::common::process::{Env, Process};
use crate::common::{free_port, server_setting, until};

/// The folder `deploy`.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Prometheus, with the alerts of `deploy`, under the job `longshore`.
pub struct Prometheus {
    _process: Process,
    base: String,
    http: reqwest::Client,
}

impl Prometheus {
    /// Reads the processes at those addresses, every second.
    pub async fn start(folder: &Path, bases: &[&str]) -> Self {
        let targets: Vec<&str> = bases.iter().map(|base| base.trim_start_matches("http://")).collect();
        let config = serde_json::json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [deploy().join("prometheus/alerts.yml")],
            "scrape_configs": [{"job_name": "longshore", "static_configs": [{"targets": targets}]}],
        });
        let path = folder.join("prometheus.yml");
        std::fs::write(&path, config.to_string()).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let arguments = [
            format!("--config.file={}", path.display()),
            format!("--storage.tsdb.path={}", folder.join("prometheus").display()),
            format!("--web.listen-address={address}"),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let program = format!("{}/prometheus", server_setting("LONGSHORE_TEST_SERVERS_BIN"));
        let process = Process::spawn("prometheus", program, &arguments, Env::new(), folder);
        let prometheus = Self { _process: process, base: format!("http://{address}"), http: reqwest::Client::new() };
        until("Prometheus reads every process", async || {
            let up = prometheus.try_query("sum(up)").await.ok()?;
            (number(up.first()?) == bases.len() as f64).then_some(())
        })
        .await;
        prometheus
    }

    /// An answer of its API.
    pub async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let request = self.http.get(format!("{}/api/v1/{path}", self.base)).query(parameters);
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let answer: Value = answer.json().await.map_err(|error| error.to_string())?;
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(answer["error"].to_string()) }
    }

    async fn try_query(&self, query: &str) -> Result<Vec<Value>, String> {
        let data = self.get("query", &[("query", query)]).await?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    /// The series that a query finds; one that Prometheus refuses fails the test.
    pub async fn query(&self, query: &str) -> Vec<Value> {
        self.try_query(query).await.unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    /// The value of a query that finds one series.
    pub async fn value(&self, query: &str) -> f64 {
        let found = self.query(query).await;
        assert_eq!(found.len(), 1, "{query} found {found:?}");
        number(&found[0])
    }

    /// The values of a query by one label.
    pub async fn by(&self, label: &str, query: &str) -> BTreeMap<String, f64> {
        let found = self.query(query).await;
        found.iter().map(|series| (series["metric"][label].as_str().unwrap().to_owned(), number(series))).collect()
    }

    /// Waits until every process was read once more.
    pub async fn read_again(&self) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        until("every process was read again", async || {
            let oldest = self.try_query("min(timestamp(longshore_build_info))").await.ok()?;
            (number(oldest.first()?) > now).then_some(())
        })
        .await;
    }
}

fn number(series: &Value) -> f64 {
    series["value"][1].as_str().unwrap().parse().unwrap()
}

/// Runs promtool in a folder; it has to be content. `input` is its stdin.
pub fn promtool(folder: &Path, arguments: &[&str], input: &str) -> String {
    use std::io::Write as _;
    let program = format!("{}/promtool", server_setting("LONGSHORE_TEST_SERVERS_BIN"));
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "promtool {arguments:?}: {said}");
    said
}

/// A span as a collector sees it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub service: String,
    pub name: String,
    pub trace: String,
    pub parent: String,
    pub fields: BTreeMap<String, String>,
}

/// Takes OTLP over HTTP, protobuf, and keeps the spans.
pub struct Collector {
    pub endpoint: String,
    spans: Arc<Mutex<Vec<Seen>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Collector {
    pub async fn start() -> Self {
        let spans = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&spans);
        let take = move |headers: axum::http::HeaderMap, body: Bytes| async move {
            assert_eq!(headers[CONTENT_TYPE], "application/x-protobuf");
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            kept.lock().unwrap().extend(seen(request));
            ([(CONTENT_TYPE, "application/x-protobuf")], ExportTraceServiceResponse::default().encode_to_vec())
        };
        let router = Router::new().route("/v1/traces", post(take)).layer(DefaultBodyLimit::disable());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { endpoint, spans, server }
    }

    /// What came so far.
    pub fn spans(&self) -> Vec<Seen> {
        self.spans.lock().unwrap().clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn seen(request: ExportTraceServiceRequest) -> Vec<Seen> {
    let mut found = Vec::new();
    for resource in request.resource_spans {
        let about = fields(&resource.resource.unwrap().attributes);
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            found.push(Seen {
                service: about["service.name"].clone(),
                name: span.name,
                trace: hex(&span.trace_id),
                parent: hex(&span.parent_span_id),
                fields: fields(&span.attributes),
            });
        }
    }
    found
}

fn fields(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
