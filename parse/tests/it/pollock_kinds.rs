//! The kinds of the Pollock benchmark that are not among its files here, made from its source table: scored as those are, with the
//! dialect given and with nothing given.

use longshore_domain::{GivenFormat, LineEnd};

use crate::pollock::load;
use crate::pollock_score::{Score, Table, read_clean};
use crate::support::shared;

/// How a file is written; the benchmark's own is the default.
#[derive(Clone)]
struct Dialect {
    delimiter: &'static str,
    quote: char,
    /// What stands before a quote inside of quotes.
    escape: char,
    end: &'static str,
}

impl Default for Dialect {
    fn default() -> Self {
        Self { delimiter: ",", quote: '"', escape: '"', end: "\r\n" }
    }
}

impl Dialect {
    /// What a request would say of it.
    fn given(&self, header_rows: u32, skip_rows: u32) -> GivenFormat {
        GivenFormat {
            delimiter: Some(self.delimiter.into()),
            quote: Some(self.quote.into()),
            escape: Some(self.escape.into()),
            line_end: Some(match self.end {
                "\r\n" => LineEnd::CrLf,
                "\r" => LineEnd::Cr,
                _ => LineEnd::Lf,
            }),
            header_rows: Some(header_rows),
            skip_rows: Some(skip_rows),
            ..GivenFormat::default()
        }
    }

    /// Descriptions and addresses always stand in quotes, as in the source.
    fn record(&self, cells: &[String]) -> String {
        let cell = |(place, cell): (usize, &String)| {
            let special = cell.contains(self.delimiter) || cell.contains([self.quote, '\r', '\n']);
            if !special && !(cells.len() >= 8 && (place == 6 || place == 7)) {
                return cell.clone();
            }
            let escaped = cell.replace(self.quote, &format!("{}{}", self.escape, self.quote));
            format!("{}{escaped}{}", self.quote, self.quote)
        };
        cells.iter().enumerate().map(cell).collect::<Vec<_>>().join(self.delimiter) + self.end
    }

    fn records(&self, rows: &[Vec<String>]) -> String {
        rows.iter().map(|row| self.record(row)).collect()
    }

    fn table(&self, table: &Table) -> String {
        self.record(&table.header) + &self.records(&table.rows)
    }
}

/// A file of a kind: its text, what may be said of it (`None`: nothing that is taken), and the table that it stands for.
struct Kind {
    name: String,
    text: String,
    given: Option<GivenFormat>,
    clean: Table,
}

impl Kind {
    fn new(name: impl Into<String>, text: String, given: GivenFormat, clean: Table) -> Self {
        Self { name: name.into(), text, given: Some(given), clean }
    }
}

/// A line with something in its first cell, with or without delimiters behind it.
fn note(text: &str, delimited: bool) -> Vec<String> {
    let mut note = vec![text.to_owned()];
    note.resize(if delimited { 9 } else { 1 }, String::new());
    note
}

fn notes(source: &Table) -> Vec<Kind> {
    let plain = Dialect::default();
    let mut kinds = Vec::new();
    for (count, delimited, apart) in
        [1, 3].into_iter().flat_map(|n| [(n, true, false), (n, false, false), (n, true, true), (n, false, true)])
    {
        let ending = format!(
            "_{count}_{}delimited{}",
            if delimited { "" } else { "not_" },
            if apart { "_empty_row" } else { "" }
        );
        let empty = match (apart, delimited) {
            (false, _) => String::new(),
            (true, true) => plain.record(&note("", true)),
            (true, false) => plain.end.to_owned(),
        };
        let of = |text| plain.record(&note(text, delimited)).repeat(count);
        let skipped = count as u32 + u32::from(apart);
        kinds.push(Kind::new(
            format!("file_preamble{ending}"),
            of("PREAMBLE") + &empty + &plain.table(source),
            plain.given(1, skipped),
            source.clone(),
        ));
        kinds.push(Kind::new(
            format!("file_footnote{ending}"),
            plain.table(source) + &empty + &of("FOOTNOTE"),
            plain.given(1, 0),
            source.clone(),
        ));
    }
    kinds
}

fn second_tables(source: &Table) -> Vec<Kind> {
    let plain = Dialect::default();
    let mut kinds = Vec::new();
    for (name, width) in [("less", 6), ("more", 12)] {
        for apart in [false, true] {
            let wide = |row: &Vec<String>, name: &str| {
                let added = (1..=3).map(|place| if name.is_empty() { String::new() } else { format!("{name}{place}") });
                row.iter().cloned().chain(added).take(width).collect::<Vec<_>>()
            };
            let second = Table {
                header: wide(&source.header, "col"),
                rows: source.rows.iter().take(9).map(|row| wide(row, "")).collect(),
            };
            kinds.push(Kind::new(
                format!("file_multitable_{name}{}", if apart { "_separated" } else { "" }),
                plain.table(source) + if apart { plain.end } else { "" } + &plain.table(&second),
                plain.given(1, 0),
                source.clone(),
            ));
        }
    }
    kinds
}

fn dialects(source: &Table) -> Vec<Kind> {
    let plain = Dialect::default();
    let mut kinds = Vec::new();
    for (name, dialect) in [
        ("file_field_delimiter_0x20", Dialect { delimiter: " ", ..plain.clone() }),
        ("file_field_delimiter_0x9", Dialect { delimiter: "\t", ..plain.clone() }),
        ("file_field_delimiter_0x9_0x9", Dialect { delimiter: "\t\t", ..plain.clone() }),
        ("file_field_delimiter_0x3A", Dialect { delimiter: ":", ..plain.clone() }),
        ("file_field_delimiter_0x3B", Dialect { delimiter: ";", ..plain.clone() }),
        ("file_field_delimiter_0x7C", Dialect { delimiter: "|", ..plain.clone() }),
        ("file_field_delimiter_0x2C_0x20", Dialect { delimiter: ", ", ..plain.clone() }),
        ("file_quotation_char_0x27", Dialect { quote: '\'', escape: '\'', ..plain.clone() }),
        ("file_record_delimiter_0xA", Dialect { end: "\n", ..plain.clone() }),
        ("file_record_delimiter_0xD", Dialect { end: "\r", ..plain.clone() }),
        ("file_escape_char_0x5C", Dialect { escape: '\\', ..plain.clone() }),
        ("file_escape_char_0x00", Dialect { escape: '\0', ..plain }),
    ] {
        let given = (dialect.escape != '\0').then(|| dialect.given(1, 0));
        kinds.push(Kind { name: name.into(), text: dialect.table(source), given, clean: source.clone() });
    }
    kinds
}

fn shapes(source: &Table) -> Vec<Kind> {
    let plain = Dialect::default();
    let given = || plain.given(1, 0);
    let rows = |count: usize| Table { rows: source.rows[..count].to_vec(), ..source.clone() };
    let header = |kind: String, header: Vec<String>| {
        let clean = Table { header, ..source.clone() };
        Kind::new(format!("column_header_{kind}"), plain.table(&clean), given(), clean)
    };
    let mut kinds = vec![
        Kind::new("file_empty", String::new(), given(), Table::default()),
        Kind::new("file_header_only", plain.record(&source.header), given(), rows(0)),
        Kind::new("file_one_data_row", plain.table(&rows(1)), given(), rows(1)),
        Kind::new("file_num_rows_2", plain.table(&rows(2)), given(), rows(2)),
        Kind::new("file_double_trailing_newline", plain.table(source) + "\r\n", given(), source.clone()),
        Kind::new("file_no_trailing_newline", plain.table(source).trim_end().to_owned(), given(), source.clone()),
        Kind::new(
            "file_no_header",
            plain.records(&source.rows),
            plain.given(0, 0),
            Table { header: Vec::new(), ..source.clone() },
        ),
    ];
    let narrow =
        Table { header: source.header[..1].to_vec(), rows: source.rows.iter().map(|row| row[..1].to_vec()).collect() };
    kinds.push(Kind::new("file_num_columns_1", plain.table(&narrow), given(), narrow));
    for count in [2, 3] {
        let joined = source.header.iter().map(|name| vec![name.as_str(); count].join(" ")).collect();
        kinds.push(Kind::new(
            format!("file_header_multirow_{count}"),
            plain.record(&source.header).repeat(count - 1) + &plain.table(source),
            plain.given(count as u32, 0),
            Table { header: joined, ..source.clone() },
        ));
    }
    for place in [1, 3, 9] {
        for (kind, name) in
            [("empty", String::new()), ("nonalnum", "HEAD/%R".into()), ("large", "HEADER".repeat(100_000))]
        {
            let mut names = source.header.clone();
            names[place - 1] = name;
            kinds.push(header(format!("{place}_{kind}"), names));
        }
    }
    let mut names = source.header.clone();
    (names[0], names[1]) = ("HEADER".into(), "HEADER".into());
    kinds.push(header("1_2_nonunique".into(), names));
    kinds
}

fn ragged_rows(source: &Table) -> Vec<Kind> {
    let plain = Dialect::default();
    let mut kinds = Vec::new();
    let last = source.rows.len();
    for row in [0, 1, 2, 50, last] {
        for (name, width) in [("empty", 0), ("less", 5), ("more", 15)] {
            let mut records = [&[source.header.clone()][..], &source.rows].concat();
            records[row].resize(width, String::new());
            let mut clean = source.clone();
            match (row, width) {
                (0, 0) => clean.header.clear(),
                (0, _) => clean.header.truncate(width),
                (row, 0) => drop(clean.rows.remove(row - 1)),
                (row, _) => clean.rows[row - 1].iter_mut().skip(width).for_each(String::clear),
            }
            let name = format!("row_n_fields_{row}_{name}");
            let header_rows = u32::from(!clean.header.is_empty());
            kinds.push(Kind::new(name, plain.records(&records), plain.given(header_rows, 0), clean));
        }
    }
    kinds
}

/// What kinds score less than 10, and why: with the dialect given and with nothing given.
const BELOW: [(&str, f64); 12] = [
    // A note behind the table is a record as any other; where ragged records are rejects, it is one.
    ("file_footnote_1", 9.928),
    ("file_footnote_3", 9.860),
    // So are the records of a second table.
    ("file_multitable_", 9.671),
    // A text of a NUL before a quote is no text that a database holds: such records are rejects.
    ("file_escape_char_0x00", 9.779),
    // A column has a name: one of its place, one of 63 bytes, or one with a number.
    ("column_header_1_2_nonunique", 9.666),
    ("column_header_1_empty", 9.666),
    ("column_header_3_empty", 9.666),
    ("column_header_9_empty", 9.666),
    ("column_header_1_large", 9.666),
    ("column_header_3_large", 9.666),
    ("column_header_9_large", 9.666),
    // The cells that have no name in the header are kept all the same, and get one.
    ("row_n_fields_0_less", 9.269),
];

#[test]
fn every_kind_loads_as_the_table_it_was_made_from() {
    let Some(folder) = shared("corpora/pollock") else { return };
    let source = std::fs::read_to_string(folder.join("csv/source.csv")).unwrap();
    let source = read_clean(&source, true);
    let kinds = [notes, second_tables, dialects, shapes, ragged_rows].map(|kinds| kinds(&source));
    let mut missed = Vec::new();
    for kind in kinds.into_iter().flatten() {
        let score = |given: GivenFormat| {
            load(kind.text.as_bytes(), given).map_or(0.0, |loaded| Score::of(&loaded, &kind.clean).sum())
        };
        let floor = BELOW.iter().find(|(name, _)| kind.name.starts_with(name)).map_or(10.0, |(_, floor)| *floor);
        for (way, given) in [("given", kind.given.clone()), ("found", Some(GivenFormat::default()))] {
            let Some(score) = given.map(score) else { continue };
            if score < floor - 1e-9 {
                missed.push(format!("{}, {way}: {score:.3} of {floor:.3}", kind.name));
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
