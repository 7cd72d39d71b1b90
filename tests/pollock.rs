//! The Pollock benchmark through the whole service: upload, sniff, load as text, read back. The scores are printed, and must
//! not drop.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tempfile::TempDir;

use common::api::{assert_succeeded, kind_of};
use common::pollock::{Scores, Table, given_by, read_clean};
use common::service::{Service, open, serve_in};

/// Files that are loaded at once.
const LANES: usize = 4;

/// Where Linux has a file system in memory.
const MEMORY: &str = "/dev/shm";

/// The folder of the benchmark; `None` where the folder of shared files is not there.
fn folder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpora/pollock");
    if !folder.exists() {
        println!("skipped: {} is not there", folder.display());
        return None;
    }
    Some(folder)
}

/// Loads a file into a table of its own, all columns as text; `None`: the import failed.
async fn load(service: &Service, table: &str, text: &[u8], format: &Value) -> Option<Table> {
    let mut request = json!({
        "destination": {"table": format!("{table}_found")},
        "format": format,
        "on_error": {"max_rejects": null},
    });
    request["format"]["ragged"] = json!("pad");
    // What its columns are called is found first; then each of them is asked for as text.
    let found = service.api.import(&request, text.to_vec()).await;
    if found["state"] == "failed" && kind_of(&found["error"]) == "empty-file" {
        return Some(Table::default());
    }
    let columns = found["columns"].as_array()?.iter().zip(1..);
    let columns = columns.map(|(column, place)| json!({"name": column["name"], "type": "text", "source": place}));
    request["columns"] = columns.collect();
    request["destination"]["table"] = json!(table);
    let import = service.api.import(&request, text.to_vec()).await;
    if import["state"] == "failed" {
        return None;
    }
    assert_succeeded(&import);
    let columns = import["columns"].as_array().unwrap();
    let header: Vec<String> = columns.iter().map(|column| column["name"].as_str().unwrap().to_owned()).collect();
    let connection = open(&service.sqlite());
    let mut statement = connection.prepare(&format!("SELECT * FROM {table} ORDER BY rowid")).unwrap();
    let rows = statement.query_map([], |row| {
        let cell = |place| Ok(row.get::<_, Option<String>>(place)?.unwrap_or_default());
        (0..header.len()).map(cell).collect()
    });
    let rows = rows.unwrap().collect::<Result<Vec<Vec<String>>, _>>().unwrap();
    Some(Table { header, rows })
}

/// Thousands of small imports: what they write does not wait for a disk, where a folder in memory has 2 GiB for it.
fn quick_folder() -> TempDir {
    let output = Command::new("df").args(["--output=avail", "-k", MEMORY]).output();
    let available = output.ok().and_then(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().nth(1)?.trim().parse::<u64>().ok()
    });
    let made = if available >= Some(2 << 20) { tempfile::tempdir_in(MEMORY) } else { tempfile::tempdir() };
    made.unwrap()
}

async fn score(folder: &Path, given: fn(&Value) -> Value) -> Scores {
    let service = serve_in(quick_folder(), &[]).await;
    let mut names: Vec<String> = std::fs::read_dir(folder.join("csv"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let loaded = stream::iter(names.iter().enumerate()).map(|(place, name)| {
        let service = &service;
        async move {
            let text = std::fs::read(folder.join("csv").join(name)).unwrap();
            let parameters = std::fs::read(folder.join(format!("parameters/{name}_parameters.json"))).unwrap();
            let parameters: Value = serde_json::from_slice(&parameters).unwrap();
            let loaded = load(service, &format!("p{place}"), &text, &given(&parameters)).await;
            (parameters["header_lines"].as_u64() != Some(0), loaded)
        }
    });
    let loaded: Vec<_> = loaded.buffered(LANES).collect().await;
    let mut scores = Scores::default();
    for (name, (has_header, loaded)) in names.iter().zip(loaded) {
        let clean = read_clean(&std::fs::read_to_string(folder.join("clean").join(name)).unwrap(), has_header);
        scores.add(name, loaded.as_ref(), &clean);
    }
    scores
}

#[tokio::test]
async fn with_the_dialect_given_the_service_scores_as_its_parser() {
    let Some(folder) = folder() else { return };
    let scores = score(&folder, |parameters| serde_json::to_value(given_by(parameters)).unwrap()).await;
    println!("{}", scores.report("through the service, dialect given"));
    assert!(scores.mean() >= 9.957, "{}", scores.mean());
    assert!(scores.benchmark_mean() >= 9.96, "{}", scores.benchmark_mean());
}

#[tokio::test]
async fn with_nothing_given_the_service_scores_as_its_parser() {
    let Some(folder) = folder() else { return };
    let scores = score(&folder, |_| json!({})).await;
    println!("{}", scores.report("through the service, nothing given"));
    assert!(scores.mean() >= 9.957, "{}", scores.mean());
    assert!(scores.benchmark_mean() >= 9.96, "{}", scores.benchmark_mean());
}
