//! Records that no table can hold say what is wrong with them, and where.

use longshore_domain::{ColumnType, EncodingErrors, Format, LineEnd, LoadPlan, Ragged};
use longshore_parse::Limits;

use crate::support::{Outcome, Row, chunks_from, fresh, plan, read_chunk, rows, rows_of};

fn texts(format: &Format, width: usize) -> LoadPlan {
    plan(format, &vec![ColumnType::Text; width], 0, 1)
}

/// The rejects: row, line, column, reason, detail.
fn faults(rows: &[Row]) -> Vec<(u64, u64, Option<&str>, &str, &str)> {
    rows.iter()
        .filter_map(|(row, outcome)| match outcome {
            Outcome::Rejected(line, column, _, reason, detail, _) => {
                Some((*row, *line, column.as_deref(), reason.as_str(), detail.as_str()))
            }
            Outcome::Loaded(_) => None,
        })
        .collect()
}

#[test]
fn a_quote_that_is_never_closed_is_told_by_the_line_where_it_opens() {
    let plan = texts(&Format::default(), 3);
    let text = b"a,b,c\n1,\"two\nlines\",\"opens here\nand, never\nends\n";
    for size in [1, 9, usize::MAX] {
        let rows = rows(&plan, text, size);
        let detail = "the quote that opens at line 3, in field 3, is never closed";
        assert_eq!(faults(&rows), [(2, 2, Some("c3"), "malformed_quotes", detail)]);
    }
    let format = Format { line_end: LineEnd::Cr, ..Format::default() };
    let rows = rows(&texts(&format, 2), b"\"1\r\n2\r3\n4\",\"5\r", 1);
    assert!(faults(&rows)[0].4.contains("opens at line 4"), "{rows:?}");
}

#[test]
fn a_quoted_field_stops_at_the_longest_record() {
    let plan = texts(&Format::default(), 2);
    let limits = Limits { max_record: 12 };
    for (text, ending) in [
        (&b"a,b\n\"x\n\ny\",\"opens here\nand goes on and on and on\n"[..], "in a quoted field that begins at line 4"),
        // Closed by the next quote of the file, and text stands behind it.
        (
            b"a,b\n\"x\n\ny\",\"opens here\nand goes on and on\n1,\"2\n",
            "text stands behind the closing quote of the field that begins at line 4",
        ),
    ] {
        for block in [1, 5, text.len()] {
            let chunks = chunks_from(&plan, text, fresh(&plan), 1, block, limits);
            assert_eq!(chunks.iter().map(|chunk| chunk.oversized).collect::<Vec<_>>(), [false, true]);
            let rows: Vec<Row> = chunks.iter().flat_map(|chunk| rows_of(&read_chunk(&plan, text, chunk))).collect();
            let faults = faults(&rows);
            assert_eq!((faults[0].0, faults[0].1, faults[0].2, faults[0].3), (2, 2, Some("c2"), "malformed_quotes"));
            assert!(faults[0].4.ends_with(ending), "{faults:?}");
        }
    }
}

#[test]
fn a_nul_is_an_invalid_value_in_every_type_and_in_quotes_too() {
    for kind in [ColumnType::Text, ColumnType::Json, ColumnType::Native("inet".into()), ColumnType::Int64] {
        let plan = plan(&Format::default(), &[ColumnType::Int64, kind.clone()], 0, 1);
        for text in [&b"1,1\n2,\"1\0\"\n3,1\0\n"[..], b"1,1\n2,\0\n3,\"\"\"\0\"\n"] {
            let rows = rows(&plan, text, 4);
            let found: Vec<_> = faults(&rows).iter().map(|fault| (fault.0, fault.1, fault.2, fault.3)).collect();
            let invalid = |row| (row, row, Some("c2"), "invalid_value");
            assert_eq!(found, [invalid(2), invalid(3)], "{kind}");
        }
    }
    let rows = rows(&texts(&Format::default(), 1), b"a\0b\n", 1);
    let detail = "the cell of column 'c1' (text) holds a NUL byte, which no database text can hold";
    assert_eq!(faults(&rows), [(1, 1, Some("c1"), "invalid_value", detail)]);
}

#[test]
fn bytes_that_are_no_utf8_are_replaced_where_that_is_asked() {
    let format = Format { encoding_errors: EncodingErrors::Replace, ..Format::default() };
    let text = b"caf\xE9,\xE2\x82\n\"\xFF\"\"\xF0\x9F\x98\",ok\n\xC3\xA9,\xE2\x82,\xAC\nx,1\n";
    let cells = |one: &str, other: &str| Outcome::Loaded(vec![Some(one.to_owned()), Some(other.to_owned())]);
    for size in [1, 7, usize::MAX] {
        let rows = rows(&texts(&format, 2), text, size);
        assert_eq!(rows[0].1, cells("caf\u{fffd}", "\u{fffd}"), "one for each maximal subpart");
        assert_eq!(rows[1].1, cells("\u{fffd}\"\u{fffd}", "ok"));
        assert_eq!(rows[3].1, cells("x", "1"));
        let Outcome::Rejected(3, None, None, reason, _, record) = &rows[2].1 else { panic!("{rows:?}") };
        assert_eq!((reason.as_str(), &record[..]), ("extra_field", &b"\xC3\xA9,\xE2\x82,\xAC"[..]), "byte-exact");
    }
    let number = plan(&format, &[ColumnType::Text, ColumnType::Int64], 0, 1);
    let rows = rows(&number, b"\xFF,1\n\xFF,1\xFF\n", 1);
    assert_eq!(rows[0].1, cells("\u{fffd}", "1"));
    let Outcome::Rejected(_, column, value, reason, _, record) = &rows[1].1 else { panic!("{rows:?}") };
    assert_eq!((column.as_deref(), reason.as_str()), (Some("c2"), "invalid_value"));
    assert_eq!((value.as_deref(), &record[..]), (Some(&b"1\xFF"[..]), &b"\xFF,1\xFF"[..]), "as they stand in the file");
}

#[test]
fn structure_is_told_by_bytes_whatever_the_text() {
    let format = Format {
        delimiter: "§".into(),
        encoding_errors: EncodingErrors::Replace,
        ragged: Ragged::Pad,
        ..Format::default()
    };
    let rows = rows(&texts(&format, 3), b"\xE2\x82\xC2\xA7b\xC2\xC2\xA7\xA7\n", 1);
    let cells = ["\u{fffd}", "b\u{fffd}", "\u{fffd}"].map(|cell| Some(cell.to_owned()));
    assert_eq!(rows[0].1, Outcome::Loaded(cells.to_vec()));
}
