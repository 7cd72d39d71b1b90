//! Headers of all sorts: the names that come of them, and which field goes to which column.

use std::collections::HashSet;

use longshore_domain::{Column, ColumnSource, ColumnType, GivenFormat, TableColumn, TableDescription};
use longshore_parse::{Detected, Head, Mapped, map_columns, read_head};
use proptest::prelude::*;

fn head_with(text: &[u8], header_rows: u32) -> Head {
    let given = GivenFormat {
        delimiter: Some(",".into()),
        quote: Some("\"".into()),
        skip_rows: Some(0),
        header_rows: Some(header_rows),
        ..GivenFormat::default()
    };
    read_head(text, true, &given, &Detected::PLAIN).unwrap()
}

fn head(text: &str) -> Head {
    head_with(text.as_bytes(), 1)
}

/// The head of a file with that header, each cell in quotes, and one row.
fn head_of(cells: &[impl AsRef<str>]) -> Head {
    let quoted: Vec<String> = cells.iter().map(|cell| format!("\"{}\"", cell.as_ref().replace('"', "\"\""))).collect();
    head(&format!("{}\n{}\n", quoted.join(","), vec!["x"; cells.len()].join(",")))
}

fn names(mapped: &Mapped) -> Vec<&str> {
    mapped.columns.iter().map(|column| column.name.as_str()).collect()
}

/// The names that a new table gets of a header.
fn made_of(cells: &[&str]) -> Vec<String> {
    names(&map_columns(&head_of(cells), None, None).unwrap()).into_iter().map(str::to_owned).collect()
}

fn fields(mapped: &Mapped) -> Vec<(String, usize)> {
    mapped.fields.iter().map(|field| (field.name.clone(), field.field)).collect()
}

fn table(names: &[&str]) -> TableDescription {
    let column = |name: &&str| TableColumn {
        name: (*name).to_owned(),
        kind: ColumnType::Text,
        nullable: true,
        has_default: false,
        generated: false,
        flexible: false,
    };
    TableDescription { columns: names.iter().map(column).collect() }
}

fn column(name: &str, source: Option<ColumnSource>) -> Column {
    Column { source, ..Column::new(name, ColumnType::Text) }
}

fn by_name(name: &str) -> Option<ColumnSource> {
    Some(ColumnSource::Header(name.to_owned()))
}

fn fault(head: &Head, given: Option<&[Column]>, existing: Option<&TableDescription>) -> String {
    map_columns(head, given, existing).unwrap_err().to_string()
}

#[test]
fn a_second_name_gets_a_number_that_no_other_has() {
    for (header, made) in [
        (&["a", "a", "a"][..], &["a", "a_2", "a_3"][..]),
        (&["a", "a", "a_2"], &["a", "a_3", "a_2"]),
        (&["a_2", "a", "a"], &["a_2", "a", "a_3"]),
        (&["a", " a ", "a\t"], &["a", "a_2", "a_3"]),
        (&["Id", "id", "ID"], &["Id", "id_2", "ID_3"]),
        (&["a", "A", "a_2"], &["a", "A_3", "a_2"]),
        (&["É", "é"], &["É", "é_2"]),
    ] {
        assert_eq!(made_of(header), made, "{header:?}");
    }
}

#[test]
fn an_empty_name_is_its_place() {
    assert_eq!(made_of(&["", "b", " ", "\u{1}"]), ["column_1", "b", "column_3", "column_4"]);
    assert_eq!(made_of(&["", "column_1"]), ["column_1_2", "column_1"], "a name that stands in the file stays");
    assert_eq!(made_of(&["", "Column_1"]), ["column_1_2", "Column_1"]);
}

#[test]
fn several_header_records_are_joined() {
    for (text, header_rows, made) in [
        ("a,b\nx,y\n1,2\n", 2, &["a x", "b y"][..]),
        ("a,\n,y\n1,2\n", 2, &["a", "y"]),
        ("a,b\nx\n1,2\n", 2, &["a x", "b"]),
        ("a\nx,y\n1,2\n", 2, &["a x", "y"]),
        ("a,b\n\n x , y \n1,2\n", 2, &["a x", "b y"]),
        ("a,b\nx,y\n\"1\n2\",\n1,2\n", 3, &["a x 12", "b y"]),
    ] {
        let head = head_with(text.as_bytes(), header_rows);
        assert_eq!(names(&map_columns(&head, None, None).unwrap()), made, "{text:?}");
        assert_eq!(head.inferred, [ColumnType::Int64, ColumnType::Int64], "{text:?}: the rows are below");
    }
    let joined = head_with(b"a,b\nx,y\n1,2\n", 2);
    let given = [column("n", by_name("b y"))];
    assert_eq!(fields(&map_columns(&joined, Some(&given), None).unwrap()), [("n".into(), 1)]);
}

#[test]
fn without_a_header_columns_are_given_or_named_by_place() {
    let head = head_with(b"x,y\n1,2\n", 0);
    let made = map_columns(&head, None, None).unwrap();
    assert_eq!(names(&made), ["column_1", "column_2"]);
    assert_eq!(made.columns[1].source, Some(ColumnSource::Place(2)));
    let given = [column("a", None), column("b", None)];
    assert_eq!(fields(&map_columns(&head, Some(&given), None).unwrap()), [("a".into(), 0), ("b".into(), 1)]);
    let swapped = [column("a", Some(ColumnSource::Place(2))), column("b", Some(ColumnSource::Place(1)))];
    assert_eq!(fields(&map_columns(&head, Some(&swapped), None).unwrap()), [("a".into(), 1), ("b".into(), 0)]);
    let by_header = [column("a", by_name("x"))];
    assert!(fault(&head, Some(&by_header), None).contains("no header"));
    let existing = map_columns(&head, None, Some(&table(&["p", "q", "r"]))).unwrap();
    assert_eq!(fields(&existing), [("p".into(), 0), ("q".into(), 1)]);
    let few = fault(&head, None, Some(&table(&["p"])));
    assert!(few.contains("2 fields") && few.contains("1 columns"), "{few}");
}

#[test]
fn names_are_taken_as_they_are() {
    let odd = ["select", "user", "Order Date", "a.b", "a\"b", "it's", "größe", "1st", "%", "a;drop table b", "rowid"];
    assert_eq!(made_of(&odd), odd);
    assert_eq!(names(&map_columns(&head_of(&odd), None, Some(&table(&odd))).unwrap()), odd);
}

#[test]
fn control_characters_go() {
    assert_eq!(made_of(&["a\0b", "first\r\nline", "\0 c\t", "\u{85}d"]), ["ab", "firstline", "c", "d"]);
    assert_eq!(made_of(&["a\0", "a"]), ["a", "a_2"]);
}

#[test]
fn long_names_are_cut_to_what_postgresql_keeps() {
    let long = "x".repeat(63);
    let made = made_of(&[&format!("{long}1"), &format!("{long}2"), &"é".repeat(40), &format!("{} y", "z".repeat(62))]);
    assert_eq!(made[0], long);
    assert_eq!(made[1], format!("{}_2", &long[..61]), "two that PostgreSQL would cut to one stay two");
    assert_eq!(made[2], "é".repeat(31), "at a character's end");
    assert_eq!(made[3], "z".repeat(62), "and without the space at the cut");
    assert_eq!(made_of(&[long.as_str()]), [long.as_str()]);
}

#[test]
fn a_source_is_a_cell_of_the_header_or_its_name() {
    let head = head_of(&["a", "a", "", " b ", "c\nd"]);
    for (source, field) in [("a", 0), ("a_2", 1), ("column_3", 2), (" b ", 3), ("b", 3), ("c\nd", 4), ("cd", 4)] {
        let given = [column("n", by_name(source))];
        assert_eq!(fields(&map_columns(&head, Some(&given), None).unwrap()), [("n".into(), field)], "{source:?}");
    }
    let missing = fault(&head, Some(&[column("n", by_name("A"))]), None);
    assert!(missing.contains("column 'n'") && missing.contains("no 'A'") && missing.contains("'a', 'a'"), "{missing}");
}

#[test]
fn a_source_is_a_place_within_the_file() {
    let head = head("a,b,c\n1,2,3\n");
    for (place, fits) in [(0, false), (1, true), (3, true), (4, false), (u32::MAX, false)] {
        let given = [column("n", Some(ColumnSource::Place(place)))];
        match map_columns(&head, Some(&given), None) {
            Ok(mapped) => assert!(fits && mapped.fields[0].field == place as usize - 1),
            Err(error) => {
                let text = error.to_string();
                assert!(!fits && text.contains("3 fields") && text.contains(&place.to_string()), "{text}");
            }
        }
    }
}

#[test]
fn a_column_without_a_source_is_not_taken_from_another_place_than_its_name() {
    let head = head_of(&["a", " b ", "a"]);
    let first = fault(&head, Some(&[column("b", None)]), None);
    assert!(first.contains("place 2"), "names are trimmed: {first}");
    let given = [column("x", None), column("b", None), column("a", None)];
    assert_eq!(
        fields(&map_columns(&head, Some(&given), None).unwrap()),
        [("x".into(), 0), ("b".into(), 1), ("a".into(), 2)],
        "the header holds it here, too"
    );
}

#[test]
fn columns_that_are_missing_or_too_many_are_named() {
    let head = head("a,b,b,d\n1,2,3,4\n");
    let mut existing = table(&["a", "b", "needed"]);
    existing.columns[2].nullable = false;
    let text = fault(&head, None, Some(&existing));
    for part in
        ["header has 'd'", "table has 'a', 'b', 'needed'", "two of the file's fields", "'b'", "requires 'needed'"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let given: Vec<Column> = ["p", "q", "r", "s", "t", "u"].iter().map(|name| column(name, None)).collect();
    let text = fault(&head, Some(&given), None);
    for part in ["'t' is number 5", "'u' is number 6", "4 fields"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let few = fault(&head, Some(&given[..1]), Some(&existing));
    assert!(few.contains("no column 'p'") && few.contains("requires 'needed'"), "{few}");
}

#[test]
fn a_file_goes_again_where_it_went_first() {
    for header in [&["a", "a", "a_2"][..], &["Id", "id"], &["", ""], &["xmin", "ctid"], &[" a", "a"], &["x\ny", "xy"]] {
        let head = head_of(header);
        let first = map_columns(&head, None, None).unwrap();
        let again = map_columns(&head, None, Some(&table(&names(&first)))).unwrap();
        assert_eq!(fields(&again), fields(&first), "{header:?}");
    }
}

#[test]
fn names_that_are_the_same_without_case_go_to_columns_that_are() {
    let head = head_of(&["Id", "id"]);
    let kept = map_columns(&head, None, Some(&table(&["id", "Id", "id_2"]))).unwrap();
    assert_eq!(fields(&kept), [("Id".into(), 0), ("id".into(), 1)]);
    let head = head_of(&["ID", "id"]);
    assert!(fault(&head, None, Some(&table(&["id", "id_2"]))).contains("two of the file's fields"), "a guess is none");
}

fn cells() -> impl Strategy<Value = Vec<String>> {
    let piece = prop::sample::select(
        &["a", "A", "é", "É", "_2", "_3", "column_1", "column_2", "Column_3", "xmin", " ", "\0", "\n", "\"", ",", "'"]
            [..],
    );
    let short = prop::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat());
    let long = (60_usize..64, prop::sample::select(&["", "x", "xy", " z", "_2"][..]))
        .prop_map(|(length, end)| "x".repeat(length) + end);
    prop::collection::vec(prop_oneof![4 => short, 1 => long], 2..9)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn any_header_makes_a_table_that_takes_the_file_again(cells in cells()) {
        let head = head_of(&cells);
        let made = map_columns(&head, None, None).unwrap();
        prop_assert_eq!(made.columns.len(), cells.len());
        let lower: HashSet<String> = names(&made).iter().map(|name| name.to_lowercase()).collect();
        prop_assert_eq!(lower.len(), cells.len(), "no database takes two for one: {:?}", names(&made));
        prop_assert!(!lower.contains("xmin"), "a system column of PostgreSQL");
        for name in names(&made) {
            prop_assert!((1..=63).contains(&name.len()) && name.trim() == name && !name.contains(char::is_control), "{:?}", name);
        }
        let again = map_columns(&head, None, Some(&table(&names(&made)))).unwrap();
        prop_assert_eq!(fields(&again), fields(&made));
        let given = map_columns(&head, Some(&made.columns), None).unwrap();
        prop_assert_eq!(fields(&given), fields(&made), "the columns that are shown can be given");
    }
}
