//! Metrics, logs and traces of real processes, read by those who will read them: Prometheus, a JSON parser, a collector. And
//! what stands beside them in `deploy` and `docs` is held against what the processes really tell.
//!
//! Needs `deploy/servers test`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;
#[path = "common/prometheus.rs"]
mod prometheus;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use common::api::{Api, assert_succeeded, id_of};
use common::cluster::{Cluster, Options};
use common::data::{columns, source};
use common::process::{Process, settings};
use common::servers::{PostgresServer, S3_PASSWORD};
use common::{seed, until};
use prometheus::{Collector, Prometheus, deploy, promtool};

/// A request that takes whatever is good.
fn request() -> Value {
    json!({"destination": {"table": "trips"}, "columns": columns(), "on_error": {"max_rejects": null}})
}

async fn scrape(api: &Api) -> String {
    let answer = api.get_response("/metrics").await;
    assert_eq!(answer.status(), 200);
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    answer.text().await.unwrap()
}

/// The value of a series, by its whole name with its labels.
fn value(text: &str, series: &str) -> Option<f64> {
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.map(|number| number.parse().unwrap())
}

#[tokio::test]
async fn a_cluster_tells_what_it_did_to_prometheus_to_its_logs_and_to_a_collector() {
    let collector = Collector::start().await;
    let more = settings([
        ("LOG_FORMAT", "json"),
        ("LOG", "info,longshore_actors=debug"),
        ("OTLP_ENDPOINT", &collector.endpoint),
    ]);
    // So small that the file is a large one, and all workers scan it.
    let options = Options { events: true, workers: 2, chunk_size: "4096", more, ..Options::default() };
    let cluster = Cluster::start(&options).await;
    let bases: Vec<&str> = cluster.nodes.iter().chain(&cluster.workers).map(|process| process.base.as_str()).collect();
    let prometheus = Prometheus::start(cluster.folder.path(), &bases).await;
    every_query_finds_something(&prometheus).await;

    let source = source(seed(), 20_000, 1, 400);
    let import = cluster.api.import(&request(), source.csv.clone()).await;
    assert_succeeded(&import);
    prometheus.read_again().await;
    the_counters_are_the_imports(&prometheus, &cluster.api, &import, source.csv.len() as u64, source.bad.len() as u64)
        .await;
    every_query_finds_something(&prometheus).await;
    every_alert_can_be_evaluated(&prometheus).await;
    the_document_lists_what_there_is(&prometheus).await;

    for base in bases {
        let text = scrape(&Api::new(base)).await;
        promtool(&deploy(), &["check", "metrics"], &text);
        for secret in [S3_PASSWORD, "longshore-test-secret", "X-Amz-", "postgres://", &id_of(&import), "trips"] {
            assert!(!text.contains(secret), "{secret} is in the metrics of {base}");
        }
    }
    the_logs_are_json(&cluster, &id_of(&import));
    the_import_is_one_trace(&prometheus, &collector, &id_of(&import)).await;
    cluster.assert_clean_logs();
}

/// All processes together tell exactly what the import's own resource tells.
async fn the_counters_are_the_imports(prometheus: &Prometheus, api: &Api, import: &Value, bytes: u64, bad: u64) {
    let progress = &import["progress"];
    let (rows, chunks) = (progress["rows_read"].as_f64().unwrap(), progress["chunks_total"].as_f64().unwrap());
    let expected = [
        ("sum(longshore_imports_created_total)", 1.0),
        ("sum(longshore_imports_started_total{trigger=\"event\"})", 1.0),
        ("sum(longshore_imports_started_total)", 1.0),
        ("sum(longshore_import_start_delay_seconds_count)", 1.0),
        ("sum(longshore_imports_ended_total{state=\"succeeded\"})", 1.0),
        ("sum(longshore_imports_ended_total)", 1.0),
        ("sum(longshore_import_duration_seconds_count{state=\"succeeded\"})", 1.0),
        ("sum(longshore_import_claims_total)", 1.0),
        ("sum(longshore_import_restarts_total)", 0.0),
        ("sum(longshore_lease_losses_total)", 0.0),
        ("sum(longshore_rows_read_total)", rows),
        ("sum(longshore_rows_published_total)", rows - bad as f64),
        ("sum(longshore_rows_rejected_total)", bad as f64),
        ("sum(longshore_imported_bytes_total)", bytes as f64),
        ("sum(longshore_chunks_committed_total)", chunks),
        ("sum(longshore_step_duration_seconds_count{step=\"plan\"})", 1.0),
        ("sum(longshore_step_duration_seconds_count{step=\"scan\"})", 1.0),
        ("sum(longshore_step_duration_seconds_count{step=\"publish\"})", 1.0),
        ("sum(longshore_step_duration_seconds_count{step=\"abort\"})", 0.0),
        ("sum(longshore_http_requests_total{method=\"POST\",route=\"/v1/imports\",status=\"2xx\"})", 1.0),
        ("sum(longshore_chunk_workers)", 4.0),
        ("sum(longshore_chunk_workers_busy)", 0.0),
        ("min(longshore_dependency_up)", 1.0),
    ];
    for (query, wanted) in expected {
        assert_eq!(prometheus.value(query).await, wanted, "{query}");
    }
    // Once at least; at most the sample, the scan from behind the header on, and each chunk from its start. Which of the two
    // nodes loads a chunk decides whether the scan's bytes are at hand.
    let fetched = prometheus.value("sum(longshore_fetched_bytes_total)").await;
    assert!((bytes..=3 * bytes).contains(&(fetched as u64)), "{fetched} of {bytes}");
    // What a scan kept is not fetched again.
    for step in ["parse", "write"] {
        let count = format!("sum(longshore_step_duration_seconds_count{{step=\"{step}\"}})");
        assert!(prometheus.value(&count).await >= chunks, "{count}");
    }
    let mut listed = BTreeMap::new();
    for reject in api.all(&format!("/v1/imports/{}/rejects", id_of(import)), 500).await {
        *listed.entry(reject["reason"].as_str().unwrap().to_owned()).or_insert(0.0) += 1.0;
    }
    let mut counted = prometheus.by("reason", "sum by (reason) (longshore_rows_rejected_total)").await;
    counted.retain(|_, rows| *rows > 0.0);
    assert_eq!(counted, listed);
    assert!(!listed.is_empty());
}

/// The queries of the dashboard, with its variables filled in.
fn dashboard_queries() -> Vec<String> {
    let text = std::fs::read_to_string(deploy().join("grafana/longshore.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let variables: Vec<&str> =
        dashboard["templating"]["list"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(variables, ["datasource", "job", "instance"]);
    let panels = dashboard["panels"].as_array().unwrap();
    let mut queries = Vec::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let filled =
                expression.replace("$__rate_interval", "1m").replace("$job", "longshore").replace("$instance", ".*");
            assert!(!filled.contains('$'), "{expression} has a variable that is not known here");
            queries.push(filled);
        }
    }
    assert!(queries.len() > 40, "only {} queries", queries.len());
    queries
}

/// An idle cluster shows zeros, not gaps.
async fn every_query_finds_something(prometheus: &Prometheus) {
    for query in dashboard_queries() {
        // A rate needs two readings.
        until(&format!("{query} finds something"), async || (!prometheus.query(&query).await.is_empty()).then_some(()))
            .await;
    }
}

/// Metrics with their selectors, as they stand in an expression.
fn selectors(expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["longshore_", "process_", "up{"] {
        for (at, _) in expression.match_indices(start) {
            let inside_a_name = expression[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if inside_a_name {
                continue;
            }
            let rest = &expression[at..];
            let name = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            let end = match rest[name..].strip_prefix('{') {
                Some(labels) => name + labels.find('}').unwrap() + 2,
                None => name,
            };
            found.push(rest[..end].to_owned());
        }
    }
    found
}

/// An alert that is quiet because its metric does not exist would be worse than none.
async fn every_alert_can_be_evaluated(prometheus: &Prometheus) {
    let folder = deploy().join("prometheus");
    promtool(&folder, &["check", "rules", "alerts.yml"], "");
    promtool(&folder, &["test", "rules", "alerts_test.yml"], "");
    let rules = until("Prometheus evaluated every rule", async || {
        let rules = prometheus.get("rules", &[]).await.unwrap();
        let rules = rules["groups"][0]["rules"].as_array()?.clone();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    })
    .await;
    let mut names = BTreeSet::new();
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        names.insert(rule["name"].as_str().unwrap().to_owned());
        let found = selectors(rule["query"].as_str().unwrap());
        assert!(!found.is_empty(), "{rule}");
        for selector in found {
            assert!(!prometheus.query(&selector).await.is_empty(), "{}: {selector} finds nothing", rule["name"]);
        }
    }
    let explained = document().lines().filter_map(|line| line.strip_prefix("### ").map(str::to_owned)).collect();
    assert_eq!(names, explained, "docs/metrics.md explains other alerts than there are");
}

fn document() -> String {
    std::fs::read_to_string(deploy().join("../docs/metrics.md")).unwrap()
}

/// Every metric with its type and labels, by its name.
type Known = BTreeMap<String, (String, BTreeSet<String>)>;

/// The rows of the document's tables: `| `name` | type | `label`, `label` | …`.
fn documented() -> Known {
    let mut known = Known::new();
    for line in document().lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let name = cells[0].trim_matches('`');
        if !line.starts_with("| `") || !(name.starts_with("longshore_") || name.starts_with("process_")) {
            continue;
        }
        let labels = cells[2].split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        assert!(known.insert(name.to_owned(), (cells[1].to_owned(), labels)).is_none(), "{name} stands there twice");
    }
    known
}

async fn the_document_lists_what_there_is(prometheus: &Prometheus) {
    let mut real = Known::new();
    for (name, about) in prometheus.get("metadata", &[]).await.unwrap().as_object().unwrap() {
        let kind = about[0]["type"].as_str().unwrap();
        assert!(!about[0]["help"].as_str().unwrap().is_empty(), "{name} has no help text");
        let series = if kind == "histogram" { format!("{name}_bucket") } else { name.clone() };
        let mut labels = BTreeSet::new();
        for series in prometheus.query(&series).await {
            labels.extend(series["metric"].as_object().unwrap().keys().cloned());
        }
        for label in ["__name__", "instance", "job", "le"] {
            labels.remove(label);
        }
        real.insert(name.clone(), (kind.to_owned(), labels));
    }
    let documented = documented();
    for (name, about) in &real {
        assert_eq!(documented.get(name), Some(about), "{name} stands otherwise in docs/metrics.md");
    }
    for name in documented.keys() {
        assert!(real.contains_key(name), "{name} is only in docs/metrics.md");
    }
}

/// Every line is an object, and says of which import and chunk it is.
fn the_logs_are_json(cluster: &Cluster, id: &str) {
    let lines_of = |process: &Process| -> Vec<Value> {
        let log = process.log();
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
    };
    for process in cluster.nodes.iter().chain(&cluster.workers) {
        for line in lines_of(process) {
            for key in ["timestamp", "level", "target", "message"] {
                assert!(line[key].is_string(), "{key} is missing: {line}");
            }
            assert!(line["fields"].is_object(), "{line}");
        }
    }
    let created = lines_of(&cluster.nodes[0]).into_iter().filter(|line| line["import_id"] == id);
    assert!(created.into_iter().any(|line| line["message"] == "import created"), "the API does not tell of the import");
    let worked: Vec<Value> = cluster.workers.iter().flat_map(lines_of).filter(|line| line["import_id"] == id).collect();
    assert!(worked.iter().any(|line| line["message"] == "import succeeded" && line["span"] == "import"));
    let chunks: BTreeSet<u64> = worked.iter().filter_map(|line| line["chunk"].as_u64()).collect();
    assert!(chunks.len() > 1, "no line tells of a chunk: {worked:?}");
}

/// All that any process did for the import is in the trace that has its id.
async fn the_import_is_one_trace(prometheus: &Prometheus, collector: &Collector, id: &str) {
    let trace = id.replace('-', "");
    let mut wanted = vec![
        ("longshore-api", "create"),
        ("longshore-api", "request"),
        ("longshore-worker", "event"),
        ("longshore-worker", "import"),
        ("longshore-worker", "chunk"),
        ("longshore-worker", "plan"),
        ("longshore-worker", "scan"),
        ("longshore-worker", "parse"),
        ("longshore-worker", "write"),
        ("longshore-worker", "publish"),
    ];
    // Where the other node had no part in it, nothing was read for a second time.
    for step in ["scan_range", "fetch"] {
        let count = format!("sum(longshore_step_duration_seconds_count{{step=\"{step}\"}})");
        if prometheus.value(&count).await > 0.0 {
            wanted.push(("longshore-worker", step));
        }
    }
    let spans = until("the collector has the spans of the import", async || {
        let spans = collector.spans();
        let has = |(service, name): &(&str, &str)| {
            spans.iter().any(|span| span.service == *service && span.name == *name && span.trace == trace)
        };
        wanted.iter().all(has).then_some(spans)
    })
    .await;
    for span in spans.iter().filter(|span| span.fields.get("import_id").is_some_and(|import| import == id)) {
        assert_eq!(span.trace, trace, "{span:?}");
        assert_eq!(span.parent, trace[16..], "{span:?}");
    }
    let chunks: BTreeSet<&String> =
        spans.iter().filter(|span| span.name == "chunk").filter_map(|span| span.fields.get("chunk")).collect();
    assert!(chunks.len() > 1, "{chunks:?}");
}

#[tokio::test]
async fn a_database_that_is_away_takes_its_series_with_it_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = PostgresServer::start(folder.path());
    let url = server.url();
    let cluster = Cluster::start(&Options { workers: 1, postgres: Some(&url), ..Options::default() }).await;
    let source = source(seed(), 500, 1, 0);
    let created = cluster.api.create(&request()).await;
    assert_eq!(cluster.api.put(&created, source.csv).await, 200);
    let complete = format!("/v1/imports/{}/complete", id_of(&created));
    assert_eq!(cluster.api.post(&complete, &json!({})).await.0, 202);
    assert_succeeded(&cluster.api.done(&id_of(&created)).await);
    // One that waits for its file.
    cluster.api.create(&request()).await;
    let apis = [cluster.api.clone(), Api::new(&cluster.workers[0].base)];
    let waiting = "longshore_imports{state=\"awaiting_upload\"}";
    let up = |dependency: &str| format!("longshore_dependency_up{{dependency=\"{dependency}\"}}");
    for api in &apis {
        until("the import that waits is seen", async || (value(&scrape(api).await, waiting)? == 1.0).then_some(()))
            .await;
        assert_eq!(value(&scrape(api).await, &up("database")), Some(1.0));
    }

    server.crash();
    for api in &apis {
        let text = until("the database is told to be away", async || {
            let text = scrape(api).await;
            (value(&text, &up("database"))? == 0.0 && value(&text, &up("destination"))? == 0.0).then_some(text)
        })
        .await;
        assert!(!text.contains("longshore_imports{") && !text.contains("longshore_backlog"), "old values: {text}");
        assert_eq!((value(&text, &up("objects")), value(&text, &up("bus"))), (Some(1.0), Some(1.0)));
        let errors = "longshore_dependency_errors_total{dependency=\"database\",fault=\"unavailable\"}";
        assert!(value(&text, errors).unwrap() > 0.0);
        assert!(value(&text, "process_start_time_seconds").unwrap() > 0.0);
    }
    let worker = scrape(&apis[1]).await;
    assert_eq!(value(&worker, "longshore_rows_published_total"), Some(500.0), "counters stay");

    server.resume();
    for api in &apis {
        until("the import that waits is seen again", async || {
            (value(&scrape(api).await, waiting)? == 1.0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn serve_counts_its_imports_though_the_collector_never_answers() {
    let folder = tempfile::tempdir().unwrap();
    // Connections are taken by the system and answered by nobody.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let collector = format!("http://{}", silent.local_addr().unwrap());
    let data = folder.path().join("data");
    let env = settings([("DATA_DIR", data.to_str().unwrap()), ("OTLP_ENDPOINT", &collector), ("CHUNK_SIZE", "4096")]);
    let mut process = Process::longshore("serve", "serve", env, folder.path());
    process.ready().await;
    let api = Api::new(&process.base);
    let source = source(seed(), 2_000, 1, 100);
    let import = api.import(&request(), source.csv.clone()).await;
    assert_succeeded(&import);
    // A failed one, and a path that is not there.
    let failed = api.import(&json!({"destination": {"table": "bad"}}), "a,b\n1,2\n3\n").await;
    assert_eq!(failed["state"], "failed");
    let _ = api.get("/v1/nothing").await;

    let bad = source.bad.len() as f64;
    let text = until("the ends are counted", async || {
        let text = scrape(&api).await;
        (value(&text, "longshore_imports_ended_total{state=\"failed\"}")? == 1.0).then_some(text)
    })
    .await;
    for (series, wanted) in [
        ("longshore_imports_ended_total{state=\"succeeded\"}", 1.0),
        ("longshore_imports_created_total", 2.0),
        ("longshore_imports_started_total{trigger=\"event\"}", 2.0),
        ("longshore_rows_published_total", 2_000.0 - bad),
        ("longshore_rows_read_total", 2_002.0),
        ("longshore_rows_rejected_total{reason=\"missing_field\"}", 1.0),
        ("longshore_http_requests_total{method=\"GET\",route=\"none\",status=\"4xx\"}", 1.0),
        ("longshore_step_duration_seconds_count{step=\"abort\"}", 1.0),
    ] {
        assert_eq!(value(&text, series), Some(wanted), "{series}");
    }
    until("an export failed", async || {
        (value(&scrape(&api).await, "longshore_otlp_exports_total{outcome=\"failed\"}")? > 0.0).then_some(())
    })
    .await;
    assert_eq!(value(&scrape(&api).await, "longshore_otlp_exports_total{outcome=\"sent\"}"), Some(0.0));
    process.says("LONGSHORE_OTLP_ENDPOINT takes no spans").await;
    assert!(process.terminate().await.success(), "it ends, though its last spans are taken by nobody");
}

#[test]
fn the_selectors_of_an_expression_are_all_found() {
    let expression = "sum(rate(longshore_a_total{x=\"1\"}[5m])) > 0.1 * longshore_b / up{job=\"longshore\"}";
    assert_eq!(selectors(expression), ["longshore_a_total{x=\"1\"}", "longshore_b", "up{job=\"longshore\"}"]);
}
