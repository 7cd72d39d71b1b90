//! Which field becomes which column: the header, the request's columns and the destination's table brought together. Called
//! by the planner; every misfit is found here, before a row is loaded.

use std::collections::HashSet;

use longshore_domain::{
    Column, ColumnSource, ColumnType, FieldPlan, LoadPlan, TableColumn, TableDescription, TableName, Target,
};

use crate::error::FormatError;
use crate::head::Head;
use crate::head::header::{column_names, name_of};

/// The last three header names of a file of rejects, which are passed over when it is imported again.
pub const REJECT_COLUMNS: [&str; 3] = ["_row", "_column", "_reason"];

/// Columns as they will be read, and as the resource shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// How each is read.
    pub fields: Vec<FieldPlan>,
    /// How the resource shows them.
    pub columns: Vec<Column>,
}

impl Mapped {
    /// The plan of an import into `table`: these columns, read as the head says.
    #[must_use]
    pub fn into_plan(self, head: Head, table: TableName, target: Target) -> LoadPlan {
        LoadPlan {
            table,
            target,
            format: head.format,
            width: head.width,
            header: head.raw_header,
            fields: self.fields,
            columns: self.columns,
            data_start: head.data_start,
            data_line: head.data_line,
        }
    }

    fn push(&mut self, column: Column, field: usize, inferred: bool) {
        self.fields.push(FieldPlan {
            name: column.name.clone(),
            kind: column.kind.clone(),
            field,
            nullable: column.nullable,
            inferred,
            notation: column.notation(),
        });
        self.columns.push(column);
    }
}

/// Maps the file's fields to columns.
///
/// # Errors
/// [`FormatError`] of kind `Mismatch` that names every misfit.
pub fn map_columns(
    head: &Head,
    given: Option<&[Column]>,
    existing: Option<&TableDescription>,
) -> Result<Mapped, FormatError> {
    let data_fields = match head.header.as_slice() {
        [rest @ .., a, b, c] if head.format.header_rows > 0 && [a, b, c] == REJECT_COLUMNS.each_ref() => rest.len(),
        all => all.len(),
    };
    let mut mapped = Mapped { fields: Vec::new(), columns: Vec::new() };
    let mut faults = Vec::new();
    match (given, existing) {
        (Some(given), _) => map_given(head, given, existing, data_fields, &mut mapped, &mut faults),
        (None, Some(table)) => map_by_name(head, table, data_fields, &mut mapped, &mut faults),
        (None, None) => {
            for (field, (name, found)) in
                column_names(&head.raw_header).iter().zip(&head.inferred).enumerate().take(data_fields)
            {
                let source = Some(source_of(head, field));
                let format = found.format.clone();
                mapped.push(Column { source, format, ..Column::new(name.clone(), found.kind.clone()) }, field, true);
            }
        }
    }
    if let Some(table) = existing {
        check_table(table, &mapped, &mut faults);
    }
    if mapped.columns.is_empty() && faults.is_empty() {
        faults.push("the file has no column".to_owned());
    }
    if faults.is_empty() { Ok(mapped) } else { Err(FormatError::mismatch(told(&faults))) }
}

/// What finds a field: its cell in the header, its name where the cell is empty or another's too, or its place.
fn source_of(head: &Head, field: usize) -> ColumnSource {
    let (cell, name) = (&head.raw_header[field], &head.header[field]);
    let finds = |source: &&String| !source.trim().is_empty() && find_in_header(head, source) == Some(field);
    match [cell, name].into_iter().find(finds) {
        Some(source) if head.format.header_rows > 0 => ColumnSource::Header(source.clone()),
        _ => ColumnSource::Place(field as u32 + 1),
    }
}

/// The field that a source names: the first whose cell it is, else the one that has it for its name.
fn find_in_header(head: &Head, source: &str) -> Option<usize> {
    let place = |names: &[String], wanted: &str| names.iter().position(|name| name == wanted);
    place(&head.raw_header, source).or_else(|| place(&head.header, source))
}

/// The first of the faults: a wrong list of columns may have one in each, and a name may be as long as a header.
fn told(faults: &[String]) -> String {
    const TOLD: usize = 20;
    const BYTES: usize = 16 << 10;
    let mut text = faults[..faults.len().min(TOLD)].join("; ");
    if text.len() > BYTES {
        text.truncate(text.floor_char_boundary(BYTES));
        text.push('…');
    }
    if faults.len() > TOLD {
        text.push_str(&format!("; and {} more", faults.len() - TOLD));
    }
    text
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 30;
    let mut text = names.iter().take(SHOWN).map(|name| shown(name)).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// A name that may be as long as a header.
fn shown(name: &str) -> String {
    const CHARACTERS: usize = 64;
    match name.char_indices().nth(CHARACTERS) {
        Some((end, _)) => format!("'{}…'", &name[..end]),
        None => format!("'{name}'"),
    }
}

fn map_given(
    head: &Head,
    given: &[Column],
    existing: Option<&TableDescription>,
    data_fields: usize,
    mapped: &mut Mapped,
    faults: &mut Vec<String>,
) {
    for (place, column) in given.iter().enumerate() {
        let field = match find_source(head, column, place, data_fields) {
            Ok(field) => field,
            Err(fault) => {
                faults.push(fault);
                continue;
            }
        };
        let misfits = column.notation().faults(&column.kind);
        if !misfits.is_empty() {
            faults.extend(misfits.into_iter().map(|(key, fault)| format!("column '{}': {key} {fault}", column.name)));
            continue;
        }
        let mut column = column.clone();
        column.source.get_or_insert_with(|| source_of(head, field));
        // A column that the destination has under another case is another column: names are taken as they are given.
        if let Some(table) = existing
            && !table.columns.iter().any(|other| other.name == column.name)
        {
            let names: Vec<String> = table.columns.iter().map(|column| column.name.clone()).collect();
            faults.push(format!("the table has no column '{}'; it has {}", column.name, list(&names)));
            continue;
        }
        mapped.push(column, field, false);
    }
}

/// The field that a given column is read from.
fn find_source(head: &Head, column: &Column, place: usize, data_fields: usize) -> Result<usize, String> {
    let name = &column.name;
    let has_header = head.format.header_rows > 0;
    match &column.source {
        Some(ColumnSource::Header(_)) if !has_header => Err(format!(
            "column '{name}' names a header as its source, but the file has no header; give a place instead"
        )),
        Some(ColumnSource::Header(source)) => find_in_header(head, source).ok_or_else(|| {
            let (source, names) = (shown(source), list(&head.raw_header));
            format!("column '{name}': the header has no {source}; it has {names}")
        }),
        Some(ColumnSource::Place(source)) => {
            let field = (*source as usize).checked_sub(1).filter(|field| *field < head.width);
            field.ok_or_else(|| format!("column '{name}': the file has {} fields, not {source}", head.width))
        }
        None => {
            let is_here = head.raw_header.get(place).is_some_and(|cell| name_of(cell) == *name);
            if has_header
                && !is_here
                && let Some(other) = head.raw_header.iter().position(|cell| name_of(cell) == *name)
            {
                return Err(format!(
                    "column '{name}' is number {} of the list, but the header holds it at place {}; give it a source",
                    place + 1,
                    other + 1
                ));
            }
            if place < data_fields {
                Ok(place)
            } else {
                Err(format!(
                    "column '{name}' is number {} of the list, but the file has {data_fields} fields",
                    place + 1
                ))
            }
        }
    }
}

/// Header names matched to the table's columns.
fn map_by_name(
    head: &Head,
    table: &TableDescription,
    data_fields: usize,
    mapped: &mut Mapped,
    faults: &mut Vec<String>,
) {
    let by_place = head.format.header_rows == 0;
    let takes: Vec<&TableColumn> = table.columns.iter().filter(|column| !column.generated).collect();
    if by_place && data_fields > takes.len() {
        faults.push(format!("the file has no header and {data_fields} fields, the table {} columns", takes.len()));
        return;
    }
    let columns = if by_place { takes.into_iter().map(Some).collect() } else { match_names(head, table, data_fields) };
    let mut unknown = Vec::new();
    for (field, column) in columns.into_iter().enumerate().take(data_fields) {
        let Some(column) = column else {
            // Of padded records, what the header does not have is dropped where nobody takes it.
            if field < head.named {
                unknown.push(head.raw_header[field].clone());
            }
            continue;
        };
        let found = &head.inferred[field];
        let kind = match (&column.kind, &found.kind) {
            // SQLite keeps booleans as integers; a file that says true and false means them.
            (ColumnType::Int64, ColumnType::Bool) if column.flexible => ColumnType::Bool,
            (kind, _) => kind.clone(),
        };
        let source = Some(source_of(head, field));
        // A null in a NOT NULL column is a reject, even if the column has a default: that is what COPY does.
        let nullable = column.nullable;
        let format = found.format.clone().filter(|format| format.check(&kind).is_ok());
        mapped.push(Column { source, nullable, format, ..Column::new(column.name.clone(), kind) }, field, false);
    }
    if !unknown.is_empty() {
        let names: Vec<String> = table.columns.iter().map(|column| column.name.clone()).collect();
        faults.push(format!(
            "the file's header has {}, which the table does not; the table has {}",
            list(&unknown),
            list(&names)
        ));
    }
}

/// The table's column of each field: that of the cell as it stands; of those left, that of the cell as a name, then the only one
/// that is the same without case, then the one that a new table would have got, so that a file goes again where it went first. A
/// field whose column another field has keeps it: that is a fault.
fn match_names<'a>(head: &Head, table: &'a TableDescription, data_fields: usize) -> Vec<Option<&'a TableColumn>> {
    let made = column_names(&head.raw_header);
    let exactly = |name: &str| table.columns.iter().find(|column| column.name == name);
    let without_case = |name: &str| {
        let lower = name.to_lowercase();
        let mut alike = table.columns.iter().filter(|column| column.name.to_lowercase() == lower);
        alike.next().filter(|_| alike.next().is_none())
    };
    let cell = |field: usize| head.raw_header[field].as_str();
    let ways: [&dyn Fn(usize) -> Option<&'a TableColumn>; 4] = [
        // Of a column whose own name is none that a header cell becomes.
        &|field| exactly(cell(field)).filter(|column| name_of(&column.name) != column.name),
        &|field| exactly(&name_of(cell(field))),
        &|field| without_case(&name_of(cell(field))),
        &|field| exactly(&made[field]),
    ];
    let mut found = vec![None; data_fields];
    let mut taken = HashSet::new();
    for way in ways {
        for (field, place) in found.iter_mut().enumerate().filter(|(_, place)| place.is_none()) {
            *place = way(field).filter(|column| taken.insert(column.name.as_str()));
        }
    }
    for (field, place) in found.iter_mut().enumerate() {
        *place = place.or_else(|| ways.iter().find_map(|way| way(field)));
    }
    found
}

/// What the table needs and refuses.
fn check_table(table: &TableDescription, mapped: &Mapped, faults: &mut Vec<String>) {
    let mut seen = HashSet::new();
    for column in &mapped.columns {
        if !seen.insert(&column.name) {
            faults.push(format!("two of the file's fields would go to the column '{}'", column.name));
        }
    }
    let missing: Vec<String> = table
        .columns
        .iter()
        .filter(|column| !column.nullable && !column.has_default && !column.generated && !seen.contains(&column.name))
        .map(|column| column.name.clone())
        .collect();
    if !missing.is_empty() {
        faults.push(format!("the table requires {}, which the file does not bring", list(&missing)));
    }
    let generated: Vec<String> = table
        .columns
        .iter()
        .filter(|column| column.generated && seen.contains(&column.name))
        .map(|column| column.name.clone())
        .collect();
    if !generated.is_empty() {
        faults.push(format!("the database itself computes {}; leave it out of the file", list(&generated)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::encoding::Detected;
    use crate::head::read_head;
    use longshore_domain::{GivenFormat, Ragged};

    fn head(text: &str) -> Head {
        read_head(text.as_bytes(), true, &GivenFormat::default(), &Detected::PLAIN).unwrap()
    }

    fn table(columns: &[(&str, &str, bool)]) -> TableDescription {
        let column = |(name, kind, nullable): &(&str, &str, bool)| TableColumn {
            name: (*name).into(),
            kind: kind.parse().unwrap(),
            nullable: *nullable,
            has_default: false,
            generated: false,
            flexible: false,
        };
        TableDescription { columns: columns.iter().map(column).collect() }
    }

    fn column(name: &str, source: Option<ColumnSource>) -> Column {
        Column { source, ..Column::new(name, ColumnType::Text) }
    }

    fn places(mapped: &Mapped) -> Vec<(String, usize)> {
        mapped.fields.iter().map(|field| (field.name.clone(), field.field)).collect()
    }

    #[test]
    fn a_new_table_takes_the_header_and_the_inferred_types() {
        let mapped = map_columns(&head("Id,b c\n1,x\n"), None, None).unwrap();
        assert_eq!(places(&mapped), [("Id".into(), 0), ("b c".into(), 1)]);
        assert_eq!(mapped.columns[0].kind, ColumnType::Int64);
        assert!(mapped.fields.iter().all(|field| field.inferred && field.nullable));
    }

    #[test]
    fn header_names_find_the_tables_columns() {
        let existing = table(&[("id", "int64", false), ("Name", "text", true), ("extra", "text", true)]);
        let mapped = map_columns(&head("NAME,id\nx,1\n"), None, Some(&existing)).unwrap();
        assert_eq!(places(&mapped), [("Name".into(), 0), ("id".into(), 1)]);
        assert!(!mapped.columns[1].nullable);
        assert_eq!(mapped.columns[0].source, Some(ColumnSource::Header("NAME".into())));
    }

    #[test]
    fn every_misfit_with_a_table_is_named_at_once() {
        let existing = table(&[("id", "int64", false), ("a", "text", true)]);
        let error = map_columns(&head("a,b,c\nx,y,z\n"), None, Some(&existing)).unwrap_err().to_string();
        assert!(error.contains("'b', 'c'") && error.contains("requires 'id'"), "{error}");
        let mut generated = existing.clone();
        generated.columns[1].generated = true;
        let error = map_columns(&head("a,id\nx,1\n"), None, Some(&generated)).unwrap_err().to_string();
        assert!(error.contains("computes 'a'"), "{error}");
    }

    #[test]
    fn names_that_differ_only_in_case_are_ambiguous() {
        let existing = table(&[("a", "text", true), ("A", "text", true)]);
        assert!(map_columns(&head("a,A\nx,y\n"), None, Some(&existing)).is_ok());
        let existing = table(&[("ab", "text", true), ("AB", "text", true)]);
        assert!(map_columns(&head("Ab,x\nx,y\n"), None, Some(&existing)).is_err());
    }

    #[test]
    fn given_columns_are_the_schema_in_order() {
        let text = "a,b,c\n1,2,3\n";
        let given = [column("x", Some(ColumnSource::Header("c".into()))), column("y", Some(ColumnSource::Place(1)))];
        assert_eq!(places(&map_columns(&head(text), Some(&given), None).unwrap()), [("x".into(), 2), ("y".into(), 0)]);
        let by_place = [column("x", None), column("b", None)];
        assert_eq!(
            places(&map_columns(&head(text), Some(&by_place), None).unwrap()),
            [("x".into(), 0), ("b".into(), 1)]
        );
    }

    #[test]
    fn what_is_told_of_many_columns_is_short() {
        let text = format!("{},{}\n1,2\n", "é".repeat(100_000), "b".repeat(100_000));
        let column =
            |n| Column { source: Some(ColumnSource::Header("x".repeat(1000))), ..column(&format!("c{n}"), None) };
        let given: Vec<Column> = (0..1000).map(column).collect();
        let error = map_columns(&head(&text), Some(&given), None).unwrap_err().to_string();
        assert!(error.len() < 17_000 && error.contains("éé…', 'bb"), "{} bytes: {error}", error.len());
        assert!(error.ends_with("; and 980 more"), "{error}");
    }

    #[test]
    fn given_columns_that_do_not_fit_are_refused() {
        let text = "a,b,c\n1,2,3\n";
        for (given, part) in [
            (vec![column("b", None)], "at place 2"),
            (vec![column("x", Some(ColumnSource::Header("d".into())))], "no 'd'"),
            (vec![column("x", Some(ColumnSource::Place(4)))], "3 fields"),
            (vec![column("w", None), column("x", None), column("y", None), column("z", None)], "3 fields"),
        ] {
            let error = map_columns(&head(text), Some(&given), None).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let existing = table(&[("a", "text", true)]);
        let error = map_columns(&head(text), Some(&[column("x", None)]), Some(&existing)).unwrap_err().to_string();
        assert!(error.contains("no column 'x'"), "{error}");
    }

    #[test]
    fn the_columns_of_a_file_of_rejects_are_passed_over() {
        let mapped = map_columns(&head("a,b,_row,_column,_reason\n1,2,3,b,invalid_value\n"), None, None).unwrap();
        assert_eq!(places(&mapped), [("a".into(), 0), ("b".into(), 1)]);
    }

    #[test]
    fn what_padded_records_have_beyond_the_header_is_dropped_where_the_table_does_not_take_it() {
        let given = GivenFormat { ragged: Ragged::Pad, ..GivenFormat::default() };
        let read = |header: &str| {
            let text = format!("{header}\n{}", "1,2,3\n".repeat(20));
            read_head(text.as_bytes(), true, &given, &Detected::PLAIN).unwrap()
        };
        let existing = table(&[("a", "int64", true), ("b", "int64", true)]);
        let mapped = map_columns(&read("a,b"), None, Some(&existing)).unwrap();
        assert_eq!(places(&mapped), [("a".into(), 0), ("b".into(), 1)]);
        assert_eq!(map_columns(&read("a,b"), None, None).unwrap().columns.len(), 3, "a new table takes it");
        let error = map_columns(&read("a,x"), None, Some(&existing)).unwrap_err().to_string();
        assert!(error.contains("'x'") && !error.contains("column_3"), "{error}");
    }

    #[test]
    fn a_native_column_takes_no_notation() {
        let native =
            Column { format: Some("%F".parse().unwrap()), ..Column::new("a", ColumnType::Native("inet".into())) };
        let error = map_columns(&head("a\nx\n"), Some(&[native]), None).unwrap_err().to_string();
        assert!(error.contains("column 'a': format is an option of date") && error.contains("inet"), "{error}");
        let mut existing = table(&[("a", "text", true)]);
        existing.columns[0].kind = ColumnType::Native("character varying(10)".into());
        let mapped = map_columns(&head("a\n13/05/2024\n"), None, Some(&existing)).unwrap();
        assert!(mapped.fields[0].notation.is_plain(), "the database's own function reads it");
    }

    #[test]
    fn a_recognised_format_is_shown_and_used() {
        let text = "a\n13/05/2024\n";
        let mapped = map_columns(&head(text), None, None).unwrap();
        let shown = |mapped: &Mapped| mapped.columns[0].format.as_ref().map(ToString::to_string);
        assert_eq!((mapped.columns[0].kind.clone(), shown(&mapped)), (ColumnType::Date, Some("%d/%m/%Y".into())));
        assert_eq!(mapped.fields[0].notation, mapped.columns[0].notation());
        for (kind, format) in
            [("date", Some("%d/%m/%Y".into())), ("timestamp", Some("%d/%m/%Y".into())), ("text", None), ("time", None)]
        {
            let mapped = map_columns(&head(text), None, Some(&table(&[("a", kind, true)]))).unwrap();
            assert_eq!(shown(&mapped), format, "an existing table's {kind}");
        }
        let given = [Column::new("a", ColumnType::Date)];
        assert_eq!(shown(&map_columns(&head(text), Some(&given), None).unwrap()), None, "a given schema is obeyed");
    }

    #[test]
    fn booleans_go_to_sqlites_integers() {
        let mut existing = table(&[("a", "int64", true)]);
        existing.columns[0].flexible = true;
        let mapped = map_columns(&head("a\ntrue\n"), None, Some(&existing)).unwrap();
        assert_eq!(mapped.fields[0].kind, ColumnType::Bool);
    }
}
