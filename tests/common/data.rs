//! Files that are made from a seed, with what they must load as.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// A file, and what a correct reader finds in it.
pub struct Source {
    /// The file.
    pub csv: Vec<u8>,
    /// Only its good rows, with the header: what another reader can load.
    pub good_csv: Vec<u8>,
    /// Each good row as texts.
    pub rows: Vec<Row>,
    /// Numbers of the bad rows, from 1.
    pub bad: Vec<u64>,
}

/// `id`, `name`, `note`, `amount`.
pub type Row = (i64, String, Option<String>, String);

pub const HEADER: &str = "id,name,note,amount\n";

/// Names that try a splitter: delimiters, quotes, line breaks, stray quotes, non-ASCII.
const NAMES: [(&str, &str); 8] = [
    ("Ana", "Ana"),
    ("\"Dock, North\"", "Dock, North"),
    ("\"two\nlines\"", "two\nlines"),
    ("\"said \"\"hello\"\"\"", "said \"hello\""),
    ("Größe", "Größe"),
    ("\"crlf\r\ninside\"", "crlf\r\ninside"),
    ("港", "港"),
    ("plain text without a quote", "plain text without a quote"),
];

/// `rows` rows with ids from `first_id`; about one of `bad_one_in` is bad (0: none), but never the first hundred, so that the
/// types are found.
pub fn source(seed: u64, rows: u64, first_id: i64, bad_one_in: u32) -> Source {
    let mut random = StdRng::seed_from_u64(seed);
    let mut made = Source { csv: HEADER.into(), good_csv: HEADER.into(), rows: Vec::new(), bad: Vec::new() };
    for row in 1..=rows {
        let id = first_id + row as i64 - 1;
        if bad_one_in > 0 && row > 100 && random.random_range(0..bad_one_in) == 0 {
            made.bad.push(row);
            made.csv.extend_from_slice(format!("bad{id},x,,1\n").as_bytes());
            continue;
        }
        let (raw, name) = NAMES[random.random_range(0..NAMES.len())];
        let note = match random.random_range(0..3) {
            0 => None,
            _ => Some("n".repeat(random.random_range(1..60))),
        };
        let amount = random.random_range(-1_000_000..1_000_000i64).to_string();
        let line = format!("{id},{raw},{},{amount}\n", note.as_deref().unwrap_or_default());
        made.csv.extend_from_slice(line.as_bytes());
        made.good_csv.extend_from_slice(line.as_bytes());
        made.rows.push((id, name.to_owned(), note, amount));
    }
    made
}

/// The columns that such a file loads into, for a request.
pub fn columns() -> serde_json::Value {
    serde_json::json!([
        {"name": "id", "type": "int64"},
        {"name": "name", "type": "text"},
        {"name": "note", "type": "text"},
        {"name": "amount", "type": "int64"},
    ])
}

/// A header of names that need care: reserved words, quotes, spaces, other letters, equal ones, system columns, none. Two of 70
/// letters `x` belong behind it.
pub const ODD_HEADER: &str = "select,Order,\"say \"\"hi\"\"\",a b,Id,id,xmin,größe,,a,a,a_2";

/// The columns that it makes.
pub fn odd_columns() -> Vec<String> {
    let names =
        ["select", "Order", "say \"hi\"", "a b", "Id", "id_2", "xmin_2", "größe", "column_9", "a", "a_3", "a_2"];
    let long = ["x".repeat(63), "x".repeat(61) + "_2"];
    names.iter().map(|name| (*name).to_owned()).chain(long).collect()
}
