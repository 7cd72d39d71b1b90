//! Files that no one on this project wrote. They lie outside of the repository, and are passed over where they are not there.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, Stdio};

use longshore_domain::{Column, ColumnSource, ColumnType, GivenFormat};
use serde_json::Value;

use crate::support::{Outcome, cells, chunks, plan_as_text, plan_of, read_chunk, rows, rows_of, shared};

/// Every file of a corpus that has a JSON beside it loads as that JSON says, whatever the chunk size.
fn assert_equal_to_json(corpus: &str, files: usize) {
    let Some(folder) = shared(corpus) else { return };
    let mut seen = 0;
    for entry in std::fs::read_dir(folder.join("json")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let text = std::fs::read(folder.join("csv").join(format!("{name}.csv"))).unwrap();
        seen += 1;
        let items = match json {
            Value::Array(items) => items,
            // One file has a single row, and its JSON no list around it.
            one => vec![one],
        };
        let headless = items.first().is_some_and(Value::is_array);
        let given = GivenFormat { header_rows: Some(u32::from(!headless)), ..GivenFormat::default() };
        let plan = plan_as_text(&text, &given).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected: Vec<Vec<String>> = items
            .iter()
            .map(|item| match item {
                Value::Array(row) => row.iter().map(text_of).collect(),
                Value::Object(row) => {
                    let by_name: BTreeMap<&str, String> =
                        row.iter().map(|(key, value)| (key.as_str(), text_of(value))).collect();
                    assert_eq!(by_name.len(), plan.width, "{name}");
                    plan.header.iter().map(|column| mended(&name, column, &by_name[column.as_str()])).collect()
                }
                other => panic!("{name}: {other}"),
            })
            .collect();
        for size in (1..=64).chain([usize::MAX]) {
            let found: Vec<Vec<String>> = cells(&plan, &text, size)
                .into_iter()
                .map(|row| row.into_iter().map(Option::unwrap_or_default).collect())
                .collect();
            assert_eq!(found, expected, "{name}, chunk size {size}");
        }
    }
    assert_eq!(seen, files);
}

fn text_of(value: &Value) -> String {
    value.as_str().expect("every value is text").to_owned()
}

/// The JSON of one file contradicts its own CSV in one phone number.
fn mended(name: &str, column: &str, value: &str) -> String {
    if name == "location_coordinates" && column == "Contact Phone Number" && value == "1234567890" {
        "2095257564".into()
    } else {
        value.into()
    }
}

#[test]
fn csv_spectrum_loads_as_its_json() {
    assert_equal_to_json("corpora/csv-spectrum", 12);
}

#[test]
fn csv_test_data_loads_as_its_json() {
    assert_equal_to_json("corpora/csv-test-data", 18);
}

#[test]
fn bad_files_give_rejects_or_an_error() {
    let Some(folder) = shared("corpora/csv-test-data/csv") else { return };
    let read = |name: &str| std::fs::read(folder.join(format!("bad-{name}.csv"))).unwrap();
    for (name, reason) in [
        ("header-less-fields", "missing_field"),
        ("header-more-fields", "extra_field"),
        ("missing-quote", "malformed_quotes"),
        ("quotes-with-unescaped-quote", "malformed_quotes"),
    ] {
        let text = read(name);
        let plan = plan_as_text(&text, &GivenFormat::default()).unwrap();
        for size in [1, 10, usize::MAX] {
            let rows = rows(&plan, &text, size);
            assert_eq!(rows.len(), 1, "{name}");
            let Outcome::Rejected(line, _, _, found, ..) = &rows[0].1 else { panic!("{name}: {rows:?}") };
            assert_eq!((*line, found.as_str()), (2, reason), "{name}");
        }
    }
    // A quote inside an unquoted field is data.
    let text = read("unescaped-quote");
    let plan = plan_as_text(&text, &GivenFormat::default()).unwrap();
    let cell = |text: &str| Some(text.to_owned());
    assert_eq!(cells(&plan, &text, 1), [[cell("1"), cell("This \"quotes\" must be escaped"), cell("3")]]);

    assert!(plan_of(&read("header-no-header"), &GivenFormat::default(), None).unwrap_err().contains("no character"));
    let wanted = ["foo", "bar", "baz"]
        .map(|name| Column { source: Some(ColumnSource::Header(name.into())), ..Column::new(name, ColumnType::Text) });
    let error = plan_of(&read("header-wrong-header"), &GivenFormat::default(), Some(&wanted)).unwrap_err();
    assert!(error.contains("'foo'") && error.contains("'qux'"), "{error}");
}

#[test]
fn flights_load_with_the_types_that_they_have() {
    let Some(packed) = shared("data/flights.csv.gz") else { return };
    let mut text = Vec::new();
    let mut gzip = Command::new("gzip").arg("-dc").arg(packed).stdout(Stdio::piped()).spawn().unwrap();
    gzip.stdout.take().unwrap().read_to_end(&mut text).unwrap();
    assert!(gzip.wait().unwrap().success());
    let given = GivenFormat { null_values: Some(vec![String::new(), "NA".into()]), ..GivenFormat::default() };
    let plan = plan_of(&text, &given, None).unwrap();
    let kind = |name: &str| plan.columns.iter().find(|column| column.name == name).unwrap().kind.to_string();
    for (name, expected) in
        [("year", "int64"), ("dep_time", "int64"), ("tailnum", "text"), ("time_hour", "timestamptz")]
    {
        assert_eq!(kind(name), expected, "{name}");
    }
    let mut of_sizes = Vec::new();
    for size in [1_000_003, usize::MAX] {
        let (mut count, mut nulls, mut sum) = (0, 0, 0_i128);
        for chunk in chunks(&plan, &text, size) {
            let parsed = read_chunk(&plan, &text, &chunk);
            assert!(parsed.rejects.is_empty() && parsed.widenings.is_empty(), "{:?}", parsed.rejects.first());
            for (_, outcome) in rows_of(&parsed) {
                let Outcome::Loaded(cells) = outcome else { unreachable!("no reject") };
                count += 1;
                nulls += cells.iter().filter(|cell| cell.is_none()).count();
                sum += cells[0].as_deref().unwrap().parse::<i128>().unwrap();
            }
        }
        assert_eq!((count, sum), (336_776, 336_776 * 2013));
        of_sizes.push(nulls);
    }
    assert_eq!(of_sizes[0], of_sizes[1]);
}
