//! Any table in any usual dialect is found again with nothing given.

use longshore_domain::GivenFormat;
use proptest::prelude::*;

use crate::pollock::load;
use crate::pollock_score::Table;

/// How a table is written.
#[derive(Debug, Clone)]
struct Dialect {
    delimiter: char,
    quote: char,
    end: &'static str,
    /// Whether every cell stands in quotes, or only those that need it.
    quotes_all: bool,
    /// Whether the last line ends.
    ends: bool,
}

impl Dialect {
    fn needs_quotes(&self, cell: &str) -> bool {
        cell.contains([self.delimiter, self.quote, '\r', '\n'])
    }

    /// Single quotes are apostrophes in most texts. That a few of them enclose cells is seen only by two cells or more that would break
    /// their records otherwise: one pair is as likely text, and so are pairs around cells that need none.
    fn is_seen(&self, table: &Table) -> bool {
        let cells = || table.rows.iter().flatten();
        let breaking = cells().filter(|cell| cell.contains([self.delimiter, '\r', '\n'])).count();
        self.quotes_all || self.quote == '"' || breaking >= 2 || !cells().any(|cell| self.needs_quotes(cell))
    }

    fn write(&self, table: &Table) -> String {
        let quoted = |cell: &String| {
            let doubled = cell.replace(self.quote, &format!("{0}{0}", self.quote));
            format!("{0}{doubled}{0}", self.quote)
        };
        let cell = |cell: &String| if self.quotes_all || self.needs_quotes(cell) { quoted(cell) } else { cell.clone() };
        let record = |row: &Vec<String>| row.iter().map(cell).collect::<Vec<_>>().join(&self.delimiter.to_string());
        let records: Vec<String> = std::iter::once(&table.header).chain(&table.rows).map(record).collect();
        records.join(self.end) + if self.ends { self.end } else { "" }
    }
}

fn dialects() -> impl Strategy<Value = Dialect> {
    let delimiter = prop::sample::select(&[',', ';', '\t', '|', ':'][..]);
    let quote = prop::sample::select(&['"', '\''][..]);
    let end = prop::sample::select(&["\r\n", "\n", "\r"][..]);
    (delimiter, quote, end, any::<bool>(), any::<bool>())
        .prop_map(|(delimiter, quote, end, quotes_all, ends)| Dialect { delimiter, quote, end, quotes_all, ends })
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Whole,
    Decimal,
    Date,
    Word,
    Sentence,
}

fn cell(kind: Kind) -> BoxedStrategy<String> {
    match kind {
        Kind::Whole => (-9999..99999_i32).prop_map(|number| number.to_string()).boxed(),
        Kind::Decimal => (-9999..99999_i32, 0..100_u8).prop_map(|(whole, part)| format!("{whole}.{part:02}")).boxed(),
        Kind::Date => (1990..2030_u16, 1..13_u8, 1..29_u8).prop_map(|(y, m, d)| format!("{y}-{m:02}-{d:02}")).boxed(),
        Kind::Word => "[a-zé]{1,9}".boxed(),
        Kind::Sentence => {
            let word = "[A-Za-z]{1,7}";
            let between =
                prop::sample::select(&[" ", " ", " ", " ", ", ", ",", "; ", "\n", "'s ", " \"", "\" ", ": "][..]);
            (word, prop::collection::vec((between, word), 0..7))
                .prop_map(|(first, rest)| rest.into_iter().fold(first, |text, (between, word)| text + between + &word))
                .boxed()
        }
    }
}

fn tables() -> impl Strategy<Value = Table> {
    const KINDS: &[Kind] = &[Kind::Whole, Kind::Decimal, Kind::Date, Kind::Word, Kind::Sentence];
    prop::collection::vec(prop::sample::select(KINDS).prop_map(cell), 2..9).prop_flat_map(|columns| {
        let header: Vec<String> =
            (0..columns.len()).map(|place| format!("name {}", char::from(b'a' + place as u8))).collect();
        let columns: Vec<_> =
            columns.into_iter().map(|cell| prop_oneof![9 => cell, 1 => Just(String::new())]).collect();
        prop::collection::vec(columns, 10..60).prop_map(move |rows| Table { header: header.clone(), rows })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn any_table_is_found_as_it_was_written(table in tables(), dialect in dialects()) {
        prop_assume!(dialect.is_seen(&table));
        let text = dialect.write(&table);
        let loaded = load(text.as_bytes(), GivenFormat::default());
        prop_assert_eq!(loaded.as_ref(), Some(&table), "{:?}: {}", dialect, text);
    }
}
