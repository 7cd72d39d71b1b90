//! The file of rejects: byte-exact, and ready to be mended and imported again.

use longshore_domain::{
    ColumnType, EncodingErrors, Format, GivenFormat, LineEnd, LineNumber, LoadPlan, Ragged, Reject, RowNumber,
};
use longshore_parse::{ChunkInput, Dialect, RejectsCsv, oversized_reject};
use proptest::prelude::*;

use crate::support::{Outcome, cells, chunks, plan, plan_of, read_chunk, rows};

fn rejects_of(plan: &LoadPlan, text: &[u8]) -> Vec<Reject> {
    chunks(plan, text, 16).iter().flat_map(|chunk| read_chunk(plan, text, chunk).rejects).collect()
}

fn file_of(plan: &LoadPlan, rejects: &[Reject]) -> Vec<u8> {
    let csv = RejectsCsv::new(plan);
    let lines = rejects.iter().map(|reject| csv.line_of(reject));
    std::iter::once(csv.header()).chain(lines).collect::<Vec<_>>().concat()
}

/// One row of each kind of reject that a file can bring.
const BAD: &[u8] = b"id,name,note\n\
    1,\"good, row\",fine\n\
    x2,\"a \"\"quoted\"\" name\",\"two\nlines\"\n\
    3,short\n\
    4,long,er,than,it should be\n\
    5,caf\xE9,latin\n\
    6,\"text\" behind,quote\n\
    ,no id,null\n\
    8,\"never closed,\n";

fn bad_plan() -> LoadPlan {
    let mut plan = plan_of(b"id,name,note\n1,a,b\n", &GivenFormat::default(), None).unwrap();
    for field in &mut plan.fields {
        field.inferred = false;
    }
    plan.fields[0].nullable = false;
    plan
}

/// A request that names its columns by the header's cells goes with the file of rejects, too.
#[test]
fn the_header_is_the_files_own() {
    let text = b"id,\"Unit\nPrice\", a ,a,\nx,5,1,2,3\n";
    let plan = plan_of(text, &GivenFormat::default(), None).unwrap();
    let header = RejectsCsv::new(&plan).header();
    assert_eq!(header, b"id,\"Unit\nPrice\", a ,a,,_row,_column,_reason\n", "{}", String::from_utf8_lossy(&header));
}

#[test]
fn a_record_that_is_cut_does_not_go_in_as_if_it_were_whole() {
    let plan = plan_of(b"a,b,c\n1,2,3\n", &GivenFormat::default(), None).unwrap();
    for record in ["2,xxx", "2,\"xxx", "2,x,\"y\",z,"] {
        let (start, first_row, first_line) = (plan.data_start, RowNumber(1), LineNumber(2));
        let input = ChunkInput { bytes: record.as_bytes(), start, first_row, first_line };
        let rejects = oversized_reject(&plan, input).rejects;
        let file = file_of(&plan, &rejects);
        let text = String::from_utf8_lossy(&file);
        assert!(text.ends_with(",only the beginning of the record\n"), "{text}");
        let again = plan_of(&file, &GivenFormat::default(), None).unwrap();
        let reasons: Vec<&str> = rejects_of(&again, &file).iter().map(|reject| reject.reason.as_str()).collect();
        assert_eq!(reasons, ["extra_field"], "{text}");
    }
}

#[test]
fn every_kind_of_reject_keeps_its_bytes() {
    let plan = bad_plan();
    let rejects = rejects_of(&plan, BAD);
    let reasons: Vec<(u64, u64, &str)> =
        rejects.iter().map(|reject| (reject.row.0, reject.line.0, reject.reason.as_str())).collect();
    assert_eq!(
        reasons,
        [
            (2, 3, "invalid_value"),
            (3, 5, "missing_field"),
            (4, 6, "extra_field"),
            (5, 7, "invalid_encoding"),
            (6, 8, "malformed_quotes"),
            (7, 9, "null_in_required"),
            (8, 10, "malformed_quotes"),
        ]
    );
    let file = file_of(&plan, &rejects);
    let lines: Vec<&[u8]> = file.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(lines[0], b"id,name,note,_row,_column,_reason\n");
    let (first, second) = (lines[1], lines[2]);
    assert_eq!(
        [first, second].concat(),
        b"x2,\"a \"\"quoted\"\" name\",\"two\nlines\",2,id,invalid_value\n",
        "cells as they stand in the file"
    );
    assert_eq!(lines[3], b"3,short,,3,note,missing_field\n");
    assert_eq!(lines[4], b"4,long,er,4,,extra_field,than,it should be\n");
    assert_eq!(lines[5], b"5,caf\xE9,latin,5,,invalid_encoding\n");
    assert_eq!(lines[6], b"6,\"text\" behind,quote,6,name,malformed_quotes\n");
    assert_eq!(lines[7], b",no id,null,7,id,null_in_required\n");
}

#[test]
fn a_mended_file_of_rejects_imports_as_it_is() {
    let plan = bad_plan();
    let file = file_of(&plan, &rejects_of(&plan, BAD));
    let mut text = Vec::new();
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        let line = match line {
            [b'x', b'2', rest @ ..] => [b"2", rest].concat(),
            [b'4', ..] => b"4,long,er,4,,\n".to_vec(),
            [b'5', ..] => "5,café,latin,5,,\n".as_bytes().to_vec(),
            [b'6', ..] => b"6,\"text behind\",quote,6,,\n".to_vec(),
            [b',', ..] => [b"7", line].concat(),
            _ => line.to_vec(),
        };
        text.extend(line);
    }
    let again = plan_of(&text, &GivenFormat::default(), None).unwrap();
    let names: Vec<&str> = again.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["id", "name", "note"], "the three columns of ours are passed over");
    let rows = cells(&again, &text, 7);
    let row = |cells: [&str; 3]| cells.map(|cell| (!cell.is_empty()).then(|| cell.to_owned())).to_vec();
    assert_eq!(rows[0], row(["2", "a \"quoted\" name", "two\nlines"]));
    assert_eq!(rows[1], row(["3", "short", ""]));
    assert_eq!(rows[2], row(["4", "long", "er"]));
    assert_eq!(rows[3], row(["5", "café", "latin"]));
    assert_eq!(rows[4], row(["6", "text behind", "quote"]));
    assert_eq!(rows[5], row(["7", "no id", "null"]));
    assert_eq!(rows.len(), 7, "the record that never closed is closed now: {:?}", rows[6]);
}

#[test]
fn a_file_of_rejects_that_is_rejected_again_has_the_columns_once() {
    let plan = bad_plan();
    let file = file_of(&plan, &rejects_of(&plan, b"id,name,note\nx,b,c\n1,\"b\" c,d\n"));
    let mut again = plan_of(&file, &GivenFormat::default(), None).unwrap();
    again.fields[0].kind = ColumnType::Int64;
    let rejects = rejects_of(&again, &file);
    // They are rows 1 and 2 of both files.
    assert_eq!(file_of(&again, &rejects), file);
}

/// Bytes of all the dialects below.
fn texts() -> impl Strategy<Value = Vec<u8>> {
    let single = prop::sample::select(&b"\"\"\"'',,: ;a1\n\n\r\\#\xFF\xC2\xA7"[..]).prop_map(|byte| vec![byte]);
    let several =
        prop::sample::select(&["::", ":a:1", ",:,", "é", "§", "\r\n"][..]).prop_map(|text| text.as_bytes().to_vec());
    let piece = prop_oneof![4 => single, 1 => several];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

fn formats() -> impl Strategy<Value = Format> {
    let delimiter = prop::sample::select(&[",", ",", ",", "::", ":::", "::::", ",,", " ,", ",:,", ":a:1", "§"][..]);
    let quote = prop::sample::select(&["\"", "\"", "'", ""][..]);
    let comment = prop::sample::select(&[None, Some("#"), Some("##")][..]);
    let line_end = prop::sample::select(&[LineEnd::Lf, LineEnd::CrLf, LineEnd::Cr][..]);
    let errors = prop::sample::select(&[EncodingErrors::Reject, EncodingErrors::Replace][..]);
    let format = (delimiter, quote, any::<bool>(), comment, line_end, errors).prop_map(
        |(delimiter, quote, doubled, comment, line_end, encoding_errors)| Format {
            delimiter: delimiter.into(),
            quote: quote.into(),
            escape: if doubled { quote } else { "\\" }.into(),
            comment: comment.map(str::to_owned),
            line_end,
            encoding_errors,
            ..Format::default()
        },
    );
    // The last cell of a record may end with a part of such a delimiter. With one behind it, it cannot be told from a cell that is
    // shorter, unless it stands in quotes.
    let begins_as_it_ends =
        |text: &str| (1..text.len()).any(|part| text.as_bytes().starts_with(&text.as_bytes()[part..]));
    format.prop_filter("nothing to enclose it in", move |format| {
        !format.quote.is_empty() || !begins_as_it_ends(&format.delimiter)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(5000) })]

    /// Whatever the records: the file of their rejects has one record for each, with the same cells.
    #[test]
    fn a_file_of_rejects_reads_back_cell_for_cell(
        text in texts(),
        format in formats(),
        width in 1_usize..4,
    ) {
        // No cell is a UUID: every row is a reject.
        let mut bad = plan(&format, &vec![ColumnType::Uuid; width], 0, 1);
        for field in &mut bad.fields {
            field.nullable = false;
        }
        let rejects = rejects_of(&bad, &text);
        let file = file_of(&bad, &rejects);
        let header = RejectsCsv::new(&bad).header().len() as u64;
        let padding = Format { ragged: Ragged::Pad, null_values: Vec::new(), ..format.clone() };
        let again = plan(&padding, &vec![ColumnType::Text; width + 3], header, 2);
        let back = rows(&again, &file, 9);
        prop_assert_eq!(back.len(), rejects.len(), "{:?}", String::from_utf8_lossy(&file));
        prop_assert!(Dialect::new(&format, width).is_ok());
        let original = plan(&Format { ragged: Ragged::Pad, null_values: Vec::new(), ..format }, &vec![ColumnType::Text; width], 0, 1);
        for ((_, back), (reject, (_, was))) in back.iter().zip(rejects.iter().zip(rows(&original, &text, 1000))) {
            let (Outcome::Loaded(back), Outcome::Loaded(was)) = (back, was) else { continue };
            let was: Vec<Option<String>> = was.into_iter().map(|cell| Some(cell.unwrap_or_default())).collect();
            prop_assert_eq!(&back[..width], &was[..], "{:?}", String::from_utf8_lossy(&reject.record));
            let number = reject.row.to_string();
            prop_assert_eq!(back[width].as_deref(), Some(number.as_str()));
        }
    }
}

#[test]
fn a_record_of_very_many_fields_is_in_the_file_as_a_whole() {
    let plan = plan_of(b"a,b\n1,2\n", &GivenFormat::default(), None).unwrap();
    for last in ["", "x", "\"x,\ny\""] {
        let text = format!("a,b\n1,2,{}{last}\n", "\"q,\",,z,".repeat(1_000_000));
        let rejects = rejects_of(&plan, text.as_bytes());
        let file = file_of(&plan, &rejects);
        let wanted = text.replacen("a,b\n1,2,", "a,b,_row,_column,_reason\n1,2,1,,extra_field,", 1);
        assert!(file == wanted.as_bytes(), "{last:?}: {} bytes instead of {}", file.len(), wanted.len());
    }
}

#[test]
fn cells_that_a_spreadsheet_would_run_are_escaped_where_asked() {
    let mut plan = plan_of(b"=id,name\n1,a\n", &GivenFormat::default(), None).unwrap();
    plan.fields.iter_mut().for_each(|field| field.inferred = false);
    let text = b"=id,name\nx,=1+1\nx,\"=HYPERLINK(\"\"http://a\"\",\"\"b\"\")\"\n+x,@SUM(A1)\n-2+3,\"\ttab\"\nx, =plain\nx,a=b\n";
    let rejects = rejects_of(&plan, text);
    assert_eq!(rejects.len(), 6);
    let csv = RejectsCsv::new(&plan).for_spreadsheets();
    assert_eq!(csv.header(), b"\"'=id\",name,_row,_column,_reason\n");
    let lines: Vec<String> = rejects.iter().map(|reject| String::from_utf8(csv.line_of(reject)).unwrap()).collect();
    let wanted = [
        "x,\"'=1+1\"",
        "x,\"'=HYPERLINK(\"\"http://a\"\",\"\"b\"\")\"",
        "\"'+x\",\"'@SUM(A1)\"",
        "\"'-2+3\",\"'\ttab\"",
        "x, =plain",
        "x,a=b",
    ];
    for (place, (line, wanted)) in lines.iter().zip(wanted).enumerate() {
        assert_eq!(*line, format!("{wanted},{},\"'=id\",invalid_value\n", place + 1));
    }
    assert!(file_of(&plan, &rejects).starts_with(b"=id,name,_row"), "only where asked");
}
