//! A real file, with nothing given but the table and what stands for null, into both destinations: every value has to be what
//! a plain reader finds. The file holds no quote, so that splitting at commas is such a reader.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use common::api::{Api, assert_succeeded, id_of};
use common::postgres::Database;
use common::process::{Process, settings};

const ROWS: usize = 336_776;
const NULL: &str = "NA";

/// The unpacked file; `None` where the folder of shared files is not there.
fn flights() -> Option<Vec<u8>> {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/flights.csv.gz");
    if !packed.parent().is_some_and(Path::exists) {
        println!("skipped: {} is not there", packed.display());
        return None;
    }
    let output = Command::new("gzip").arg("-dc").arg(&packed).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

/// The header, and every record in order of its text, nulls as `NA`.
fn read_plainly(csv: &[u8]) -> (Vec<String>, Vec<String>) {
    let text = std::str::from_utf8(csv).unwrap();
    assert!(!text.contains(['"', '\r']), "this reader knows no quotes");
    let mut lines = text.lines();
    let header: Vec<String> = lines.next().unwrap().split(',').map(str::to_owned).collect();
    let with_nulls = |line: &str| {
        let cells: Vec<&str> = line.split(',').map(|cell| if cell.is_empty() { NULL } else { cell }).collect();
        assert_eq!(cells.len(), header.len());
        cells.join(",")
    };
    let mut records: Vec<String> = lines.map(with_nulls).collect();
    records.sort_unstable();
    assert_eq!(records.len(), ROWS);
    (header, records)
}

fn request(size: usize) -> Value {
    json!({
        "destination": {"table": "flights"},
        "file": {"name": "flights.csv", "size": size},
        "format": {"null_values": ["", NULL]},
    })
}

fn assert_types(import: &Value) {
    let kind = |name: &str| {
        let columns = import["columns"].as_array().unwrap();
        columns.iter().find(|column| column["name"] == name).unwrap()["type"].clone()
    };
    for (name, wanted) in [
        ("year", "int64"),
        ("dep_time", "int64"),
        ("arr_delay", "int64"),
        ("carrier", "text"),
        ("tailnum", "text"),
        ("time_hour", "timestamptz"),
    ] {
        assert_eq!(kind(name), wanted, "{name}");
    }
}

fn assert_same(found: &mut [String], wanted: &[String]) {
    found.sort_unstable();
    assert_eq!(found.len(), wanted.len());
    if let Some(place) = found.iter().zip(wanted).position(|(found, wanted)| found != wanted) {
        panic!("record {place} in order: found {}, wanted {}", found[place], wanted[place]);
    }
}

async fn import(api: &Api, csv: Vec<u8>) -> Value {
    let id = id_of(&{
        let created = api.create(&request(csv.len())).await;
        assert_eq!(api.put(&created, csv).await, 200);
        created
    });
    let import = api.done(&id).await;
    assert_succeeded(&import);
    assert_eq!(import["progress"]["rows_loaded"], ROWS);
    assert_types(&import);
    import
}

#[tokio::test]
async fn flights_load_into_sqlite_value_for_value() {
    use rusqlite::types::ValueRef;
    let Some(csv) = flights() else { return };
    let (header, wanted) = read_plainly(&csv);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let env = settings([("DATA_DIR", data.to_str().unwrap())]);
    let mut process = Process::longshore("serve", "serve", env, folder.path());
    process.ready().await;
    import(&Api::new(&process.base), csv).await;

    let database = rusqlite::Connection::open(data.join("longshore.sqlite")).unwrap();
    let mut statement = database.prepare("SELECT * FROM flights").unwrap();
    assert_eq!(statement.column_names(), header);
    let mut rows = statement.query([]).unwrap();
    let mut found = Vec::with_capacity(ROWS);
    while let Some(row) = rows.next().unwrap() {
        let cells: Vec<String> = (0..header.len())
            .map(|i| match row.get_ref(i).unwrap() {
                ValueRef::Null => NULL.to_owned(),
                ValueRef::Integer(value) => value.to_string(),
                ValueRef::Real(value) => value.to_string(),
                ValueRef::Text(text) => std::str::from_utf8(text).unwrap().to_owned(),
                ValueRef::Blob(_) => panic!("a blob"),
            })
            .collect();
        found.push(cells.join(","));
    }
    assert_same(&mut found, &wanted);
    let kinds: String = database
        .query_row(
            "SELECT group_concat(DISTINCT typeof(dep_time) || '/' || typeof(time_hour)) FROM flights",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert!(kinds.contains("integer/text"), "{kinds}");
}

#[tokio::test]
async fn flights_load_into_postgres_value_for_value() {
    let Some(csv) = flights() else { return };
    let (header, wanted) = read_plainly(&csv);
    let database = Database::new().await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let env = settings([("DATA_DIR", data.to_str().unwrap()), ("DATABASE_URL", &database.url)]);
    let mut process = Process::longshore("serve", "serve", env, folder.path());
    process.ready().await;
    import(&Api::new(&process.base), csv).await;

    let column = |name: &String| match name.as_str() {
        "time_hour" => r#"to_char(time_hour AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"#.to_owned(),
        name => format!("\"{name}\""),
    };
    let columns: Vec<String> = header.iter().map(column).collect();
    let statement = format!("COPY (SELECT {} FROM flights) TO STDOUT (FORMAT csv, NULL '{NULL}')", columns.join(", "));
    let out = database.copy_out(&statement).await;
    let mut found: Vec<String> = std::str::from_utf8(&out).unwrap().lines().map(str::to_owned).collect();
    assert_same(&mut found, &wanted);
    let sql = "SELECT attname, atttypid::regtype FROM pg_attribute WHERE attrelid = 'flights'::regclass AND attnum > 0 \
               AND attname IN ('year', 'dep_time', 'time_hour') ORDER BY attnum";
    let types: Vec<String> = database.rows(sql).await.into_iter().filter_map(|mut row| row[1].take()).collect();
    assert_eq!(types, ["bigint", "bigint", "timestamp with time zone"]);
    database.assert_tidy().await;
}
