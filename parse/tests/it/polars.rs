//! Polars as a second opinion: of files that are regular, where its reader and ours mean the same, every cell is the same.

use longshore_domain::{ColumnType, Format};
use polars_core::prelude::{DataType, Schema};
use polars_io::SerReader;
use polars_io::csv::read::{CsvParseOptions, CsvReadOptions};
use proptest::prelude::*;

use crate::support::{cells, plan};

/// Cells as polars' own reader splits them, all as text; `None`: null.
fn by_polars(text: &[u8], width: usize) -> Vec<Vec<Option<String>>> {
    let schema: Schema = (0..width).map(|place| (format!("c{place}").into(), DataType::String)).collect();
    let frame = CsvReadOptions::default()
        .with_has_header(false)
        .with_schema(Some(std::sync::Arc::new(schema)))
        .with_parse_options(CsvParseOptions::default().with_quote_char(Some(b'"')).with_missing_is_null(false))
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

/// A cell as it stands in the file: bare, or in quotes with its quotes doubled.
fn cell() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[a-z0-9é .;-]{1,12}",
        1 => "[a-z,\"\n é]{1,8}".prop_map(|text| format!("\"{}\"", text.replace('"', "\"\""))),
    ]
}

proptest! {
    #[test]
    fn polars_splits_regular_files_into_the_same_cells(
        records in (2_usize..6).prop_flat_map(|width| prop::collection::vec(prop::collection::vec(cell(), width), 1..30)),
        size in 1_usize..200,
    ) {
        let width = records[0].len();
        let text: String = records.iter().map(|record| record.join(",") + "\n").collect();
        let format = Format { header_rows: 0, ..Format::default() };
        let plan = plan(&format, &vec![ColumnType::Text; width], 0, 1);
        prop_assert_eq!(cells(&plan, text.as_bytes(), size), by_polars(text.as_bytes(), width));
    }
}
