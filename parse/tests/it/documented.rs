//! The tables of `docs/types.md`, row by row: what it says is what the program does.

use chrono::{DateTime, NaiveDate, NaiveTime};
use longshore_domain::{Column, CreateRequest, Format};
use longshore_parse::Values;
use longshore_parse::infer::Tally;
use serde_json::{Value, json};

use crate::support::{cell, chunks, plan, read_chunk};

const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/types.md"));

/// The rows of all tables with a heading.
fn tables(heading: &str) -> Vec<Vec<&'static str>> {
    let mut rows = Vec::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        if line == heading {
            let table = lines.by_ref().skip(1).take_while(|line| line.starts_with('|'));
            rows.extend(table.map(|row| row.trim_matches('|').split(" | ").map(without_edge).collect::<Vec<_>>()));
        }
    }
    assert!(!rows.is_empty(), "{heading}");
    rows
}

/// A table's cell without the space that stands beside the bars.
fn without_edge(cell: &str) -> &str {
    cell.strip_prefix(' ').unwrap_or(cell).strip_suffix(' ').unwrap_or(cell.strip_prefix(' ').unwrap_or(cell))
}

fn code(cell: &str) -> &str {
    cell.strip_prefix('`').and_then(|code| code.strip_suffix('`')).unwrap_or_else(|| panic!("{cell} is no code"))
}

fn column(kind: &str, options: &str) -> Result<Column, String> {
    let mut column: Value = serde_json::from_str(options).unwrap();
    column["name"] = json!("c");
    column["type"] = json!(kind);
    let request = json!({"destination": {"table": "t"}, "columns": [column]});
    let request =
        CreateRequest::from_value(&request).map_err(|problem| format!("400: {}", problem.errors[0].detail))?;
    Ok(request.columns.unwrap().remove(0))
}

/// What becomes of a quoted cell.
fn outcome(kind: &str, options: &str, text: &str) -> Result<String, String> {
    let column = column(kind, options)?;
    let mut plan = plan(&Format::default(), std::slice::from_ref(&column.kind), 0, 1);
    plan.fields[0].notation = column.notation();
    let record = format!("\"{}\"\n", text.replace('"', "\"\""));
    let parsed = read_chunk(&plan, record.as_bytes(), &chunks(&plan, record.as_bytes(), 1000)[0]);
    match parsed.rejects.first() {
        Some(reject) => Err(format!("rejected: {}", reject.detail)),
        None => Ok(shown(&parsed.batches[0].columns[0])),
    }
}

/// The first value of a column, for people.
fn shown(values: &Values) -> String {
    let moment = |micros: i64| DateTime::from_timestamp_micros(micros).unwrap().naive_utc();
    match values {
        Values::Date(array) => {
            (NaiveDate::default() + chrono::Duration::days(array.get(0).unwrap().into())).to_string()
        }
        Values::Time(array) => {
            (NaiveTime::default() + chrono::Duration::microseconds(array.get(0).unwrap())).to_string()
        }
        Values::Timestamp(array) | Values::Timestamptz(array) => moment(array.get(0).unwrap()).to_string(),
        Values::Decimal { unscaled, scale } => {
            let (value, scale) = (unscaled.get(0).unwrap(), usize::from(*scale));
            let digits = format!("{:0width$}", value.unsigned_abs(), width = scale + 1);
            let (whole, fraction) = digits.split_at(digits.len() - scale);
            format!("{}{whole}.{fraction}", if value < 0 { "-" } else { "" })
        }
        Values::Float64(array) => array.get(0).unwrap().to_string(),
        Values::Uuid(array) => uuid::Uuid::from_slice(array.get(0).unwrap()).unwrap().to_string(),
        other => cell(other, 0).unwrap(),
    }
}

#[test]
fn cells_become_what_the_page_says() {
    let plain = tables("| type | cell | becomes |").into_iter().map(|row| (row[0], "`{}`", row[1], row[2]));
    let optional =
        tables("| type | options | cell | becomes |").into_iter().map(|row| (row[0], row[1], row[2], row[3]));
    for (kind, options, text, expected) in plain.chain(optional) {
        let found = outcome(code(kind), code(options), code(text));
        match expected.split_once(": ").filter(|(verdict, _)| ["rejected", "400"].contains(verdict)) {
            None => assert_eq!(found.as_deref(), Ok(code(expected)), "{kind} {options} {text}"),
            Some((verdict, part)) => {
                let fault = found.expect_err(text);
                assert!(fault.starts_with(verdict) && fault.contains(part), "{kind} {options} {text}: {fault}");
            }
        }
    }
}

#[test]
fn columns_are_found_as_the_page_says() {
    for row in tables("| cells | become |") {
        let cells: Vec<&str> = code(row[0]).split("` `").collect();
        let mut tally = Tally::default();
        cells.iter().for_each(|cell| tally.add(cell));
        let found = tally.inferred();
        let found = found.format.map_or(format!("`{}`", found.kind), |format| format!("`{}` `{format}`", found.kind));
        assert_eq!(found, row[1], "{cells:?}");
    }
}
