//! Made-up files that are measured with, the same each time: `lineitem` looks like TPC-H's (16 columns: whole numbers,
//! decimals, dates, short text), `wide` has 60 mixed columns with many nulls, `quoted` has long text with commas, quotes and line
//! ends in it.

use std::fmt::Write as _;

use longshore_domain::{ColumnType, Compression, GivenFormat, LoadPlan, Target};
use longshore_parse::{detect, map_columns, read_head};

/// The files' names.
pub const NAMES: [&str; 3] = ["lineitem", "wide", "quoted"];

/// A file of at least so many bytes, ended with a record; `None` where there is none of that name.
pub fn made_up(name: &str, bytes: usize) -> Option<Vec<u8>> {
    Some(match name {
        "lineitem" => lineitem(bytes),
        "wide" => wide(bytes),
        "quoted" => quoted(bytes),
        _ => return None,
    })
}

/// Numbers that look like chance, the same each time: the multiplicative hash of Knuth.
fn chance(row: usize, salt: usize, range: usize) -> usize {
    (row.wrapping_mul(2_654_435_761).wrapping_add(salt.wrapping_mul(40_503)) >> 7) % range
}

fn rows(bytes: usize, header: &str, mut write: impl FnMut(&mut String, usize)) -> Vec<u8> {
    let mut text = format!("{header}\n");
    for row in 0.. {
        write(&mut text, row);
        text.push('\n');
        if text.len() >= bytes {
            break;
        }
    }
    text.into_bytes()
}

fn lineitem(bytes: usize) -> Vec<u8> {
    let names = "l_orderkey,l_partkey,l_suppkey,l_linenumber,l_quantity,l_extendedprice,l_discount,l_tax,l_returnflag,\
                 l_linestatus,l_shipdate,l_commitdate,l_receiptdate,l_shipinstruct,l_shipmode,l_comment";
    rows(bytes, names, |text, row| {
        let of = |salt, range| chance(row, salt, range);
        let day = |salt| format!("{}-{:02}-{:02}", 1992 + of(salt, 7), 1 + of(salt + 1, 12), 1 + of(salt + 2, 28));
        let words =
            ["carefully final", "quickly ironic deposits", "furiously", "blithely even requests sleep", "pending"];
        let _ = write!(
            text,
            "{},{},{},{},{},{}.{:02},0.{:02},0.{:02},{},{},{},{},{},{},{},\"{}\"",
            row / 4,
            of(1, 200_000),
            of(2, 10_000),
            1 + row % 7,
            1 + of(3, 50),
            901 + of(4, 100_000),
            of(5, 100),
            of(6, 11),
            of(7, 9),
            ["N", "A", "R"][of(8, 3)],
            ["O", "F"][of(9, 2)],
            day(10),
            day(13),
            day(16),
            ["DELIVER IN PERSON", "COLLECT COD", "NONE", "TAKE BACK RETURN"][of(19, 4)],
            ["TRUCK", "MAIL", "REG AIR", "SHIP", "FOB"][of(20, 5)],
            words[of(21, 5)],
        );
    })
}

fn wide(bytes: usize) -> Vec<u8> {
    let names: Vec<String> = (0..60).map(|column| format!("c{column}")).collect();
    rows(bytes, &names.join(","), |text, row| {
        for column in 0..60 {
            if column > 0 {
                text.push(',');
            }
            let of = |range| chance(row, column, range);
            // The first rows are whole, so that types are known.
            if row > 100 && of(100) < 60 {
                continue;
            }
            let _ = match column % 6 {
                0 => write!(text, "{}", of(1_000_000)),
                1 => write!(text, "{}.{:02}", of(10_000), of(100)),
                2 => write!(text, "20{:02}-{:02}-{:02}", of(25), 1 + of(12), 1 + of(28)),
                3 => write!(text, "20{:02}-{:02}-{:02}T{:02}:{:02}:00", of(25), 1 + of(12), 1 + of(28), of(24), of(60)),
                4 => write!(text, "{}", of(2) == 0),
                _ => write!(text, "name {}", of(5_000)),
            };
        }
    })
}

fn quoted(bytes: usize) -> Vec<u8> {
    rows(bytes, "id,title,body", |text, row| {
        let of = |salt, range| chance(row, salt, range);
        let _ = write!(text, "{row},\"Title, number {}\",\"", of(1, 1_000));
        for line in 0..4 + of(2, 8) {
            let _ =
                writeln!(text, "It was said, at line {line}, that \"\"nothing\"\" ends here; {}", of(line + 3, 99_999));
        }
        text.push('"');
    })
}

/// What an import of it would be: inferred types, but decimals as TPC-H has them.
pub fn plan_of(text: &[u8]) -> LoadPlan {
    let sample = &text[..text.len().min(1 << 20)];
    let given = GivenFormat::default();
    let detected = detect(sample, false, Compression::None, &given).expect("text");
    let head = read_head(sample, false, &given, &detected).expect("a head");
    let mut mapped = map_columns(&head, None, None).expect("columns");
    for column in &mut mapped.fields {
        if matches!(column.kind, ColumnType::Decimal { .. }) {
            column.kind = ColumnType::Decimal { precision: 15, scale: 2 };
        }
    }
    mapped.into_plan(head, "measured".parse().expect("a name"), Target::NewTable)
}
