//! Bare bound inserts into SQLite, a row a statement. Lines of a CSV (quotes as TPC-H's have them: around a cell, none within) are split and held in memory first,
//! the first four columns as integers, the others as text; timed are the inserts alone, in transactions of 65,536 rows, in the
//! journal mode of the service (WAL, FULL). `sqlite_inserts FILE` prints seconds.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use rusqlite::Connection;
use rusqlite::types::Value;

/// Columns of TPC-H's lineitem that are integers.
const INTEGERS: usize = 4;

/// The cells of a line. What stands between an odd quote and the next one is one cell.
fn cells(line: &str) -> Vec<&str> {
    let mut quoted = false;
    let parts = line.split(|byte| {
        quoted ^= byte == '"';
        byte == ',' && !quoted
    });
    parts.map(|cell| cell.trim_matches('"')).collect()
}

fn main() {
    let path = std::env::args().nth(1).expect("usage: sqlite_inserts FILE");
    let text = std::fs::read_to_string(path).expect("FILE is readable");
    let value = |(place, cell): (usize, &str)| match cell.parse() {
        Ok(number) if place < INTEGERS => Value::Integer(number),
        _ => Value::Text(cell.to_owned()),
    };
    let rows: Vec<Vec<Value>> =
        text.lines().skip(1).map(|line| cells(line).into_iter().enumerate().map(value).collect()).collect();
    let width = rows.first().map_or(1, Vec::len);
    let folder = tempfile::tempdir().expect("a folder");
    let mut connection = Connection::open(folder.path().join("bare.sqlite")).expect("a database");
    let columns: Vec<String> =
        (0..width).map(|place| format!("c{place} {}", if place < INTEGERS { "INTEGER" } else { "TEXT" })).collect();
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE bare ({})",
            columns.join(", ")
        ))
        .expect("a table");
    let begun = Instant::now();
    for some in rows.chunks(65_536) {
        let transaction = connection.transaction().expect("begun");
        {
            let places = vec!["?"; width].join(", ");
            let mut insert = transaction.prepare(&format!("INSERT INTO bare VALUES ({places})")).expect("prepared");
            for row in some {
                for (place, value) in row.iter().enumerate() {
                    insert.raw_bind_parameter(place + 1, value).expect("bound");
                }
                insert.raw_execute().expect("inserted");
            }
        }
        transaction.commit().expect("committed");
    }
    println!("{:.3} seconds for {} rows", begun.elapsed().as_secs_f64(), rows.len());
}
