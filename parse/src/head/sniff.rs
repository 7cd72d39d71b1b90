//! What separates and encloses fields, where the request does not say: line end, delimiter, quote, escape.
//!
//! The plain explanation (comma, semicolon, tab or bar; double quotes, doubled) wins unless the sample contradicts it: a candidate
//! is measured by how many records it cuts into the same number of fields without a fault of quotes. The rarer a delimiter is in
//! practice and the commoner in text, the more it has to show.

use std::collections::BTreeMap;

use longshore_domain::{ColumnType, Format, GivenFormat, LineEnd};

use crate::dialect::Dialect;
use crate::error::FormatError;
use crate::head::lines::Lines;
use crate::infer::type_of;

/// Records that are looked at to find a dialect.
const SNIFFED: usize = 200;
/// Delimiters that most files have, the likelier first.
const PLAIN: [&str; 4] = [",", ";", "\t", "|"];
/// Delimiters that no text holds: they win wherever they fit.
const CONTROL: [&str; 2] = ["\x1f", "\x01"];
/// Delimiters that texts hold too: they win only where they fit every record, and nothing plain does.
const UNUSUAL: [&str; 6] = ["~", "^", "::", ":", " ", "#"];

/// How a sample looks through one dialect.
pub(super) struct Widths {
    /// The most frequent number of fields; of equally frequent ones the largest.
    pub(super) mode: usize,
    /// Of all records, those with `mode` fields.
    pub(super) share: f64,
    pub(super) records: usize,
    faults: usize,
    /// Of all records, those whose quotes are at fault or inside an unquoted field.
    fault_share: f64,
    /// Fields in quotes.
    quoted: usize,
    /// How many fields in quotes stand at the place that has most.
    quoted_in_column: usize,
}

impl Widths {
    /// How well the dialect fits, up to 1.
    fn fit(&self) -> f64 {
        if self.mode < 2 { 0.0 } else { self.share - self.fault_share }
    }
}

/// Measures the next records; `None`: there is none.
pub(super) fn widths(lines: &mut Lines<'_>) -> Option<Widths> {
    let mut counts = BTreeMap::<usize, usize>::new();
    let mut quoted = BTreeMap::<usize, usize>::new();
    let (mut records, mut faults, mut odd) = (0, 0, 0);
    let begin = lines.at;
    while records < SNIFFED
        && let Some(fields) = lines.next()
    {
        *counts.entry(fields.len()).or_default() += 1;
        records += 1;
        faults += usize::from(lines.fault.is_some());
        odd += usize::from(lines.fault.is_some() || lines.stray);
        for (place, _) in fields.iter().enumerate().filter(|(_, field)| field.is_quoted()) {
            *quoted.entry(place).or_default() += 1;
        }
    }
    let (mode, count) = counts.into_iter().max_by_key(|(width, count)| (*count, *width))?;
    // A quote that opens and swallows the better part of a sample is at fault, though its end may lie behind the sample.
    let swallows = records < SNIFFED && lines.text.len() - lines.at > (lines.text.len() - begin) / 2;
    let of_all = |count: usize| count as f64 / records as f64;
    Some(Widths {
        mode,
        share: of_all(count),
        records,
        faults: faults + usize::from(swallows),
        fault_share: if swallows { 1.0 } else { of_all(odd) },
        quoted: quoted.values().sum(),
        quoted_in_column: quoted.into_values().max().unwrap_or(0),
    })
}

/// What ends a line: a carriage return alone only where nothing else does.
pub(super) fn line_end(text: &[u8], given: &GivenFormat) -> LineEnd {
    if let Some(given) = given.line_end {
        return given;
    }
    let ends = match given.quote.as_deref().map(str::as_bytes) {
        // Line feeds may be what single quotes enclose.
        None => vec![Ends::outside(text, Some(b'"')), Ends::outside(text, Some(b'\''))],
        Some([quote]) => vec![Ends::outside(text, Some(*quote))],
        Some(_) => vec![Ends::outside(text, None)],
    };
    if ends.iter().any(|ends| ends.returns > 0 && ends.feeds + ends.pairs == 0) {
        LineEnd::Cr
    } else if ends[0].pairs > ends[0].feeds {
        LineEnd::CrLf
    } else {
        LineEnd::Lf
    }
}

/// Line ends outside of quotes.
#[derive(Default)]
struct Ends {
    feeds: usize,
    pairs: usize,
    returns: usize,
}

impl Ends {
    fn outside(text: &[u8], quote: Option<u8>) -> Self {
        let mut ends = Self::default();
        let mut quoted = false;
        let mut before = b'\n';
        for (at, byte) in text.iter().enumerate() {
            match byte {
                // One inside a word opens nothing.
                byte if Some(*byte) == quote && (quoted || !is_of_a_word(before)) => quoted = !quoted,
                b'\n' if !quoted && before == b'\r' => ends.pairs += 1,
                b'\n' if !quoted => ends.feeds += 1,
                // What follows the sample's last byte is not known.
                b'\r' if !quoted && text.get(at + 1).is_some_and(|next| *next != b'\n') => ends.returns += 1,
                _ => {}
            }
            before = *byte;
        }
        ends
    }
}

fn is_of_a_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || !byte.is_ascii()
}

/// Looks at one text through one dialect after another.
pub(super) struct Sniffer<'a> {
    pub(super) text: &'a [u8],
    pub(super) whole: bool,
}

impl Sniffer<'_> {
    /// Finds the dialect that was not given. `format` holds what was, and the line end.
    pub(super) fn dialect(&self, format: &mut Format, given: &GivenFormat) -> Result<(), FormatError> {
        if given.delimiter.is_none() {
            let (delimiter, fit) = self.delimiter(format);
            // Quotes may be what makes the delimiter hard to see.
            if given.quote.is_none() && fit < 1.0 {
                let other = Format { quote: "'".into(), escape: "'".into(), ..format.clone() };
                let (other_delimiter, other_fit) = self.delimiter(&other);
                let seen = Format { delimiter: other_delimiter.clone(), ..other };
                if other_fit > fit + 0.02 && self.is_quoted(&seen) {
                    format.delimiter = other_delimiter;
                } else {
                    format.delimiter = delimiter;
                }
            } else {
                format.delimiter = delimiter;
            }
        }
        if given.quote.is_none() {
            self.quote(format, given);
        }
        if given.escape.is_none() {
            self.escape(format);
        }
        Dialect::new(format, 0).map(|_| ())
    }

    fn widths(&self, format: &Format) -> Option<Widths> {
        let dialect = Dialect::new(format, 0).ok()?;
        widths(&mut Lines::new(self.text, self.whole, dialect))
    }

    /// How well a delimiter fits: with quotes doubled or, where that leaves faults, escaped.
    fn fit(&self, format: &Format, delimiter: &str) -> Option<Widths> {
        let with = |escape: &str| {
            self.widths(&Format { delimiter: delimiter.into(), escape: escape.into(), ..format.clone() })
        };
        let doubled = with(&format.escape)?;
        if doubled.faults == 0 || !self.text.contains(&b'\\') || delimiter.contains('\\') {
            return Some(doubled);
        }
        let escaped = with("\\")?;
        Some(if escaped.faults * 4 < doubled.faults { escaped } else { doubled })
    }

    /// The delimiter, a comma where none fits, and how well it fits.
    fn delimiter(&self, format: &Format) -> (String, f64) {
        let mut best: (&str, f64, usize) = (",", 0.0, 1);
        let score = |fit: f64, mode: usize| fit * 100.0 + (mode as f64).ln();
        for delimiter in PLAIN {
            let Some(widths) = self.fit(format, delimiter) else { continue };
            // Consistency first; among consistent ones the one that cuts finer.
            if widths.mode >= 2 && score(widths.fit(), widths.mode) > score(best.1, best.2) {
                best = (delimiter, widths.fit(), widths.mode);
            }
        }
        for delimiter in CONTROL {
            if let Some(widths) = self.fit(format, delimiter).filter(|widths| widths.fit() >= 0.9) {
                best = (delimiter, widths.fit(), widths.mode);
            }
        }
        for delimiter in UNUSUAL {
            if best.1 < 0.8
                && let Some(widths) = self.fit(format, delimiter)
                && widths.fit() >= best.1 + 0.2
                && self.is_surely(delimiter, &widths, format)
            {
                best = (delimiter, widths.fit(), widths.mode);
            }
        }
        (self.with_neighbours(best.0, format), best.1)
    }

    /// Whether a delimiter that texts hold is one here.
    fn is_surely(&self, delimiter: &str, widths: &Widths, format: &Format) -> bool {
        match delimiter {
            // Times hold colons, and words stand between spaces: these have to be in every record, the header too.
            ":" | "#" => widths.share >= 1.0 && widths.records >= 2 && !self.first_line_is_a_value(format),
            " " => widths.share >= 1.0 && widths.records >= 3 && widths.mode >= 3,
            _ => widths.share >= 0.95,
        }
    }

    /// Whether the first line as a whole is a time or the like.
    fn first_line_is_a_value(&self, format: &Format) -> bool {
        let is_end = |byte: &u8| *byte == b'\n' || (format.line_end == LineEnd::Cr && *byte == b'\r');
        let line = self.text.split(is_end).next().unwrap_or_default();
        std::str::from_utf8(line).is_ok_and(|line| type_of(line.trim_end_matches('\r')) != ColumnType::Text)
    }

    /// The delimiter twice, or with a space behind it, where it never stands without.
    fn with_neighbours(&self, delimiter: &str, format: &Format) -> String {
        let longer = match delimiter {
            "|" => "||",
            "\t" => "\t\t",
            "," => ", ",
            ";" => "; ",
            other => return other.to_owned(),
        };
        let candidate = Format { delimiter: longer.into(), ..format.clone() };
        let Ok(dialect) = Dialect::new(&candidate, 0) else { return delimiter.to_owned() };
        let single = delimiter.as_bytes()[0];
        let mut lines = Lines::new(self.text, self.whole, dialect);
        let (mut records, mut width) = (0, None);
        while records < SNIFFED
            && let Some(fields) = lines.next()
        {
            records += 1;
            let alone = fields.iter().any(|field| !field.is_quoted() && self.text[field.range()].contains(&single));
            let fits = fields.len() >= 2 && *width.get_or_insert(fields.len()) == fields.len();
            if alone || !fits || lines.fault.is_some() {
                return delimiter.to_owned();
            }
        }
        if records >= 2 { longer.into() } else { delimiter.into() }
    }

    /// Whether the quote of a format encloses fields here, and is never at fault.
    fn is_quoted(&self, format: &Format) -> bool {
        self.widths(format).is_some_and(|widths| widths.faults == 0 && widths.quoted >= 2)
    }

    /// A single quote, where it encloses fields and a double one does not; none, where a double one only stands astray.
    fn quote(&self, format: &mut Format, given: &GivenFormat) {
        let Some(double) = self.widths(format) else { return };
        let alone = |quote: &str| {
            let escape = given.escape.clone().unwrap_or_else(|| quote.into());
            Format { quote: quote.into(), escape, ..format.clone() }
        };
        let other = alone("'");
        if self.text.contains(&b'\'')
            && let Some(single) = self.widths(&other)
            && single.quoted >= 2
            && single.faults == 0
        {
            let (single_fit, double_fit) = (single.share, double.share);
            // A whole column in single quotes, and nothing in double ones.
            let is_column = double.quoted == 0 && single.records >= 2 && single.quoted_in_column + 1 >= single.records;
            if single_fit > double_fit + 0.02 || (is_column && single_fit >= double_fit) {
                *format = other;
                return;
            }
        }
        let none = alone("");
        if double.faults > 0 && self.is_astray(&none) {
            *format = none;
        }
    }

    /// Whether double quotes open fields of at least two records and close none: they are inches or the like.
    fn is_astray(&self, none: &Format) -> bool {
        let Ok(dialect) = Dialect::new(none, 0) else { return false };
        let mut lines = Lines::new(self.text, self.whole, dialect);
        let (mut records, mut opening, mut width) = (0, 0, None);
        while records < SNIFFED
            && let Some(fields) = lines.next()
        {
            records += 1;
            let cells = || fields.iter().map(|field| &self.text[field.range()]);
            let closes = cells().any(|cell| cell.len() > 1 && cell.ends_with(b"\""));
            if closes || *width.get_or_insert(fields.len()) != fields.len() {
                return false;
            }
            opening += usize::from(cells().any(|cell| cell.starts_with(b"\"")));
        }
        opening >= 2
    }

    /// A backslash, only where doubling leaves faults that it mends.
    fn escape(&self, format: &mut Format) {
        let may = !format.quote.is_empty() && !format.delimiter.contains('\\') && self.text.contains(&b'\\');
        if !may {
            return;
        }
        let escaped = Format { escape: "\\".into(), ..format.clone() };
        if let (Some(with_doubled), Some(with_escaped)) = (self.widths(format), self.widths(&escaped))
            && with_escaped.faults * 4 < with_doubled.faults
        {
            *format = escaped;
        }
    }
}
