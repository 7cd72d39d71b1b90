//! The OpenAPI document against the program: a fuzzer (schemathesis) sends what the document allows and what it forbids, to a
//! real service with imports in several states, and looks for answers that the document does not know, and for defects.
//!
//! Needs `deploy/servers test`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::process::Stdio;

use serde_json::json;

use common::api::{Api, id_of};
use common::process::{Process, clean_command, settings};
use common::{seed, server_setting};

/// Examples for each operation and phase.
const EXAMPLES: &str = "60";
/// What schemathesis checks. Left out: whether everything that the schema allows is taken, since names of tables and columns have
/// rules that a schema cannot say.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,negative_data_rejection,unsupported_method,missing_required_header";

#[tokio::test(flavor = "multi_thread")]
async fn a_fuzzer_finds_no_answer_that_is_not_documented_and_no_defect() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let env = settings([("DATA_DIR", data.to_str().unwrap())]);
    let mut process = Process::longshore("serve", "serve", env, folder.path());
    process.ready().await;
    let api = Api::new(&process.base);
    let document = api.got("/openapi.json").await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);

    // Imports in states that calls are answered differently in.
    let awaiting = id_of(&api.create(&json!({"destination": {"table": "awaiting"}})).await);
    let request = json!({"destination": {"table": "rejects"}, "on_error": {"max_rejects": null},
                         "columns": [{"name": "a", "type": "int64"}]});
    let succeeded = id_of(&api.import(&request, "a\n1\nx\ny\n").await);
    let failed = id_of(&api.import(&json!({"destination": {"table": "failed"}}), "").await);

    // With ids of imports that are there, and with any id.
    for id in [Some(&awaiting), Some(&succeeded), Some(&failed), None] {
        fuzz(&process.base, id.map(String::as_str), folder.path(), seed()).await;
    }
    assert!(!process.log().contains("panicked at"));
    // It still works.
    common::api::assert_succeeded(&api.import(&json!({"destination": {"table": "after"}}), "a\n1\n").await);
}

async fn fuzz(base: &str, id: Option<&str>, folder: &std::path::Path, seed: u64) {
    let seed = (seed % 1_000_000).to_string();
    let mut command = clean_command(server_setting("LONGSHORE_TEST_SCHEMATHESIS"), folder);
    let examples = if id.is_some() { "15" } else { EXAMPLES };
    command.args(["run", &format!("{base}/openapi.json"), "--checks", CHECKS, "--seed", &seed]);
    command.args([
        "--max-examples",
        examples,
        "--request-timeout",
        "30",
        "--no-color",
        "--phases",
        "examples,coverage,fuzzing",
    ]);
    command.args(["--suppress-health-check", "all"]);
    // A stream of an import that is not done has no end.
    command.args(["--exclude-path-regex", if id.is_some() { "events|^/v1/imports$" } else { "events" }]);
    if let Some(id) = id {
        let config = folder.join(format!("{id}.toml"));
        std::fs::write(&config, format!("[parameters]\n\"path.id\" = \"{id}\"\n")).unwrap();
        // The file's option stands before the command.
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = clean_command(server_setting("LONGSHORE_TEST_SCHEMATHESIS"), folder);
        command.arg("--config-file").arg(config).args(arguments);
    }
    let output = tokio::process::Command::from(command).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(common::DEADLINE, output).await.expect("schemathesis ends").unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "schemathesis found faults (seed {seed}, id {id:?})");
}
