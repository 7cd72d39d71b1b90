//! From cells to values: nulls, padding, widening, and the grammars met in a file.

use longshore_domain::{ColumnType, Format, GivenFormat, LoadPlan, Ragged};

use crate::support::{Outcome, Row, cells, chunks, plan, plan_of, read_chunk, rows};

/// The columns that turn out too narrow when `text` is read with the types of `sample`.
fn widened(sample: &str, more: &str) -> Vec<(usize, String)> {
    let plan = plan_of(sample.as_bytes(), &GivenFormat::default(), None).unwrap();
    let text = format!("{sample}{more}");
    let chunks = chunks(&plan, text.as_bytes(), usize::MAX);
    let parsed = read_chunk(&plan, text.as_bytes(), &chunks[0]);
    parsed.widenings.iter().map(|to| (to.column, to.to.to_string())).collect()
}

#[test]
fn an_inferred_column_widens_to_the_type_that_takes_both() {
    for (sample, more, expected) in [
        ("a\n1\n", "1.5\n", "decimal(38,1)"),
        ("a\n1\n", "1.5\n2.25\n", "decimal(38,2)"),
        ("a\n1\n", "1e5\n", "float64"),
        ("a\n1\n", "9223372036854775808\n", "decimal(38,0)"),
        ("a\n1\n", "x\n", "text"),
        ("a\n1\n", "1.5\nx\n", "text"),
        ("a\n1\n", "2013-01-01\n", "text"),
        ("a\n1.5\n", "2.25\n", "decimal(38,2)"),
        ("a\n2013-01-01\n", "2013-01-01 10:00\n", "timestamp"),
        ("a\n2013-01-01 10:00\n", "2013-01-01T10:00:00Z\n", "text"),
        ("a\ntrue\n", "maybe\n", "text"),
        ("a\n1e5\n", "1.23456789012345678901e3\n", "text"),
    ] {
        assert_eq!(widened(sample, more), [(0, expected.to_owned())], "{sample:?} + {more:?}");
    }
    for (sample, more) in
        [("a\n1\n", "2\n"), ("a\n1.5\n", "2\n"), ("a\n2013-01-01 10:00\n", "2013-01-01\n"), ("a\nx\n", "1\n")]
    {
        assert_eq!(widened(sample, more), [], "{sample:?} + {more:?}");
    }
}

#[test]
fn a_given_type_never_widens() {
    let mut plan = plan_of(b"a\n1\n", &GivenFormat::default(), None).unwrap();
    plan.fields[0].inferred = false;
    let text = b"a\n1\nx\n";
    let parsed = read_chunk(&plan, text, &chunks(&plan, text, 100)[0]);
    assert!(parsed.widenings.is_empty());
    assert_eq!(parsed.rejects.len(), 1);
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn a_quoted_cell_is_never_null() {
    let format = Format { null_values: vec![String::new(), "NA".into()], ..Format::default() };
    let plan = plan(&format, &[ColumnType::Text, ColumnType::Text], 0, 1);
    let text = b",\"\"\nNA,\"NA\"\nna, \n\\N,NAN\n";
    for size in [1, 100] {
        assert_eq!(
            cells(&plan, text, size),
            [[None, some("")], [None, some("NA")], [some("na"), some(" ")], [some("\\N"), some("NAN")]]
        );
    }
}

#[test]
fn a_quoted_empty_cell_is_no_number() {
    let plan = plan(&Format::default(), &[ColumnType::Int64, ColumnType::Text], 0, 1);
    let rows = rows(&plan, b",a\n\"\",b\n\" 7 \",c\n", 100);
    assert_eq!(rows[0].1, Outcome::Loaded(vec![None, some("a")]));
    assert!(
        matches!(&rows[1].1, Outcome::Rejected(2, Some(column), Some(value), ..) if column == "c1" && value.is_empty())
    );
    assert_eq!(rows[2].1, Outcome::Loaded(vec![some("7"), some("c")]));
}

fn reasons(rows: &[Row]) -> Vec<(u64, Option<&str>, &str)> {
    rows.iter()
        .filter_map(|(number, outcome)| match outcome {
            Outcome::Loaded(_) => None,
            Outcome::Rejected(_, column, _, reason, ..) => Some((*number, column.as_deref(), reason.as_str())),
        })
        .collect()
}

fn padded(kinds: &[ColumnType], required: usize) -> LoadPlan {
    let format = Format { ragged: Ragged::Pad, ..Format::default() };
    let mut plan = plan(&format, kinds, 0, 1);
    plan.fields[required].nullable = false;
    plan
}

#[test]
fn padding_fills_with_null_and_drops_what_is_too_much() {
    let plan = padded(&[ColumnType::Int64, ColumnType::Text, ColumnType::Text], 0);
    let text = b"1\n2,b\n3,b,c\n4,b,c,d\n";
    for size in [1, 100] {
        assert_eq!(
            cells(&plan, text, size),
            [
                [some("1"), None, None],
                [some("2"), some("b"), None],
                [some("3"), some("b"), some("c")],
                [some("4"), some("b"), some("c")]
            ]
        );
    }
}

#[test]
fn a_padded_null_in_a_required_column_is_a_reject() {
    let plan = padded(&[ColumnType::Int64, ColumnType::Text], 1);
    let rows = rows(&plan, b"1\n2,\n3,\"\"\n4,d\n", 100);
    assert_eq!(reasons(&rows), [(1, Some("c2"), "null_in_required"), (2, Some("c2"), "null_in_required")]);
}

#[test]
fn the_first_column_at_fault_names_the_reject() {
    let kinds = [ColumnType::Int64, ColumnType::Date, ColumnType::Bool];
    let plan = plan(&Format::default(), &kinds, 0, 1);
    let rows = rows(&plan, b"1,2020-01-01,t\n2,x,y\nz,x,maybe\n4,2020-02-30,maybe\n", 100);
    assert_eq!(
        reasons(&rows),
        [(2, Some("c2"), "invalid_value"), (3, Some("c1"), "invalid_value"), (4, Some("c2"), "invalid_value")]
    );
}

#[test]
fn a_recognised_format_that_a_later_cell_does_not_have_widens_to_text() {
    for (sample, more) in [
        ("a\n13/05/2024\n", "05/13/2024\n"),
        ("a\n13/05/2024\n", "31/02/2024\n"),
        ("a\n05/13/2024\n", "2024-05-13\n"),
        ("a\n05/13/2024\n", "2024-05-13 10:00\n"),
        ("a\n05/13/2024\n", "5\n"),
        ("a\n13.05.2024 10:00\n", "14.05.2024\n"),
    ] {
        assert_eq!(widened(sample, more), [(0, "text".to_owned())], "{sample:?} + {more:?}");
    }
    assert_eq!(widened("a\n13/05/2024\n", "1/6/2024\n"), [], "day and month are those of the sample in every row");
}

#[test]
fn a_widened_column_holds_its_cells_as_they_stand() {
    let text = "a\n13/05/2024\n1/6/2024\n05/13/2024\n";
    let mut plan = plan_of(b"a\n13/05/2024\n", &GivenFormat::default(), None).unwrap();
    assert_eq!(plan.columns[0].kind, ColumnType::Date);
    // What the next attempt does with the wider type; a format that stayed behind means nothing to text.
    plan.fields[0].kind = ColumnType::Text;
    assert_eq!(
        cells(&plan, text.as_bytes(), 3),
        [[some("13/05/2024")], [some("1/6/2024")], [some("05/13/2024")]],
        "nothing is cast back"
    );
}

#[test]
fn a_misfit_of_a_given_format_is_a_reject_that_says_the_format() {
    let mut plan = plan(&Format::default(), &[ColumnType::Date], 0, 1);
    plan.fields[0].notation.format = Some("%d/%m/%Y".parse().unwrap());
    let rows = rows(&plan, b"13/05/2024\n05/13/2024\n", 100);
    assert_eq!(rows[0].1, Outcome::Loaded(vec![some("19856")]));
    let Outcome::Rejected(2, Some(column), Some(value), reason, detail, _) = &rows[1].1 else { panic!("{rows:?}") };
    assert_eq!((column.as_str(), value.as_slice(), reason.as_str()), ("c1", &b"05/13/2024"[..], "invalid_value"));
    assert!(detail.contains("(date, format '%d/%m/%Y') names a day that the calendar does not have"), "{detail}");
}
