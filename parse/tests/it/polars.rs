//! Polars as a second opinion: of files that are regular, where its reader and ours mean the same, every cell is the same, and
//! the same ones are null.

use longshore_domain::{ColumnType, Format, GivenFormat};
use polars_core::prelude::{DataType, Schema};
use polars_io::SerReader;
use polars_io::csv::read::{CsvParseOptions, CsvReadOptions};
use proptest::prelude::*;

use crate::support::{Outcome, cells, plan, plan_as_text, rows, shared};
use crate::sweep::files_below;

/// Cells as polars' own reader splits them, all as text; `None`: null.
fn by_polars(text: &[u8], width: usize, separator: u8) -> Vec<Vec<Option<String>>> {
    let schema: Schema = (0..width).map(|place| (format!("c{place}").into(), DataType::String)).collect();
    let options = CsvParseOptions::default().with_separator(separator).with_quote_char(Some(b'"'));
    let frame = CsvReadOptions::default()
        .with_has_header(false)
        .with_schema(Some(std::sync::Arc::new(schema)))
        .with_parse_options(options.with_missing_is_null(true))
        .into_reader_with_file_handle(std::io::Cursor::new(text))
        .finish()
        .unwrap();
    (0..frame.height())
        .map(|row| {
            let cell = |column: &polars_core::prelude::Column| column.str().unwrap().get(row).map(str::to_owned);
            frame.columns().iter().map(cell).collect()
        })
        .collect()
}

/// Whether quotes only enclose fields or are doubled within them, no line is empty, and CR stands before LF only. Elsewhere
/// polars' splitter, which counts quotes wherever they stand, means other things than we do.
fn is_regular(text: &[u8], separator: u8) -> bool {
    let (mut at, mut line_start) = (0, true);
    while at < text.len() {
        if line_start && matches!(text[at], b'\n' | b'\r') {
            return false;
        }
        if text[at] == b'"' {
            at += 1;
            loop {
                match &text[at..] {
                    [b'"', b'"', ..] => at += 2,
                    [b'"', ..] => break,
                    [] => return false,
                    _ => at += 1,
                }
            }
            at += 1;
        } else {
            let ends = |byte: &u8| matches!(*byte, b'"' | b'\n' | b'\r') || *byte == separator;
            at += text[at..].iter().position(ends).unwrap_or(text.len() - at);
        }
        let behind = match &text[at..] {
            [] => return true,
            [b'\n', ..] => (1, true),
            [b'\r', b'\n', ..] => (2, true),
            [byte, ..] if *byte == separator => (1, false),
            _ => return false,
        };
        at += behind.0;
        line_start = behind.1;
    }
    true
}

/// A cell as it stands in the file: bare, empty, or in quotes with its quotes doubled.
fn cell() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[a-z0-9é .;-]{1,12}",
        1 => Just(String::new()),
        1 => "[a-z,\"\n é]{0,8}".prop_map(|text| format!("\"{}\"", text.replace('"', "\"\""))),
    ]
}

proptest! {
    #[test]
    fn polars_splits_regular_files_into_the_same_cells(
        records in (2_usize..6).prop_flat_map(|width| prop::collection::vec(prop::collection::vec(cell(), width), 1..30)),
        size in 1_usize..200,
        line_end in prop::sample::select(&["\n", "\r\n"][..]),
    ) {
        let width = records[0].len();
        let text: String = records.iter().map(|record| record.join(",") + line_end).collect();
        let format = Format { header_rows: 0, ..Format::default() };
        let plan = plan(&format, &vec![ColumnType::Text; width], 0, 1);
        prop_assert!(is_regular(text.as_bytes(), b','));
        prop_assert_eq!(cells(&plan, text.as_bytes(), size), by_polars(text.as_bytes(), width, b','));
    }
}

#[test]
fn polars_reads_foreign_files_that_are_regular_as_we_do() {
    let Some(folder) = shared("corpora") else { return };
    let (mut seen, mut nulls) = (0, 0);
    for path in files_below(&folder).into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "csv")) {
        let text = std::fs::read(&path).unwrap();
        let Ok(plan) = plan_as_text(&text, &GivenFormat::default()) else { continue };
        let data = &text[plan.data_start.0 as usize..];
        let &[separator] = plan.format.delimiter.as_bytes() else { continue };
        let same_rules = plan.format.quote == "\"" && plan.format.escape == "\"" && plan.width > 1;
        if !same_rules || data.is_empty() || !is_regular(data, separator) || std::str::from_utf8(data).is_err() {
            continue;
        }
        let ours = rows(&plan, &text, 4096);
        let loaded: Vec<Vec<Option<String>>> = ours
            .into_iter()
            .filter_map(|(_, outcome)| match outcome {
                Outcome::Loaded(cells) => Some(cells),
                // Polars pads or refuses ragged records.
                Outcome::Rejected(..) => None,
            })
            .collect();
        if loaded.len() != rows(&plan, &text, usize::MAX).len() {
            continue;
        }
        let theirs = by_polars(data, plan.width, separator);
        assert!(loaded == theirs, "{}: ours {loaded:?}, polars' {theirs:?}", path.display());
        nulls += loaded.iter().flatten().filter(|cell| cell.is_none()).count();
        seen += 1;
    }
    assert!(seen > 700 && nulls > 100, "{seen} files, {nulls} nulls");
}
