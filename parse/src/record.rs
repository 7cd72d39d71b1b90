//! The exact reader: one record at a time, field by field, from bytes in memory that begin with a record. The rules are those
//! of [`crate::boundary`]; a property test holds the two together.

use std::ops::Range;

use crate::dialect::Dialect;
use crate::places::{LANE, in_lane};
use crate::quoted;

/// A field of a record: its bytes without the quotes around it, relative to a base that the caller chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    start: u32,
    len_and_flags: u32,
}

const QUOTED: u32 = 1 << 31;
const ESCAPED: u32 = 1 << 30;
const LEN: u32 = ESCAPED - 1;

/// A base may lie at most this many bytes before a field's end.
pub const MAX_SPAN: usize = LEN as usize;

impl Field {
    /// A field that a padded record does not have: null.
    pub const MISSING: Self = Self { start: u32::MAX, len_and_flags: 0 };

    #[inline]
    fn new(start: usize, end: usize, quoted: bool, escaped: bool) -> Self {
        let flags = if quoted { QUOTED } else { 0 } | if escaped { ESCAPED } else { 0 };
        // Callers keep the base within `MAX_SPAN` of every field.
        Self { start: start as u32, len_and_flags: ((end - start) as u32 & LEN) | flags }
    }

    /// Whether it is [`Self::MISSING`].
    #[must_use]
    #[inline]
    pub fn is_missing(self) -> bool {
        self.start == u32::MAX
    }

    /// Whether it stands in quotes, and so is never null.
    #[must_use]
    #[inline]
    pub fn is_quoted(self) -> bool {
        self.len_and_flags & QUOTED != 0
    }

    /// Whether it holds doubled or escaped bytes that [`quoted::unescape`] has to resolve.
    #[must_use]
    #[inline]
    pub fn is_escaped(self) -> bool {
        self.len_and_flags & ESCAPED != 0
    }

    /// Whether it is there, and stands in no quotes.
    #[must_use]
    #[inline]
    pub fn is_plain(self) -> bool {
        self.len_and_flags & (QUOTED | ESCAPED) == 0 && !self.is_missing()
    }

    /// Its place behind the base.
    #[must_use]
    #[inline]
    pub fn range(self) -> Range<usize> {
        let start = self.start as usize;
        start..start + (self.len_and_flags & LEN) as usize
    }
}

/// What is wrong with a record's quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuoteFault {
    /// A quoted field never ends.
    Unclosed,
    /// Text stands behind a closing quote.
    TextBehindQuote,
}

/// The first fault of a record's quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub kind: QuoteFault,
    /// The field, from 0.
    pub field: usize,
    /// Lines that ended between the record's start and the field's opening quote.
    pub line: u64,
}

/// A record that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawRecord {
    /// Its first byte.
    pub start: usize,
    /// One past its last byte, without the line end.
    pub end: usize,
    /// Where the next line begins.
    pub next: usize,
    /// Physical lines from `start` to `next`.
    pub lines: u64,
    /// Its fields.
    pub fields: usize,
    /// What is wrong with its quotes.
    pub fault: Option<Fault>,
}

/// Of the fields of one record, at least so many are pushed, and not many more: a record of 16 MiB may be all delimiters. No
/// header has more, since one is at most a MiB long.
pub const FIELDS_KEPT: usize = 1 << 20;

/// What stands at a record's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A record; its fields were pushed (of very many, the first ones: [`FIELDS_KEPT`]).
    Record(RawRecord),
    /// An empty line or a comment; the next line begins there.
    Skipped(usize),
    /// Nothing more.
    End,
}

/// Reads what begins at `at`, pushing fields with offsets relative to `base` onto `fields`.
#[inline]
pub fn read_record(dialect: &Dialect, bytes: &[u8], at: usize, base: usize, fields: &mut Vec<Field>) -> Next {
    let rest = &bytes[at..];
    if rest.is_empty() {
        return Next::End;
    }
    if let Some(comment) = &dialect.comment
        && rest.starts_with(comment)
    {
        let end = dialect.find_line_end(rest).map(|end| dialect.behind_line_end(rest, end));
        return Next::Skipped(end.map_or(bytes.len(), |end| at + end));
    }
    if dialect.width != 1 {
        if rest[0] == b'\n' {
            return Next::Skipped(at + 1);
        }
        if rest.starts_with(b"\r\n") {
            return Next::Skipped(at + 2);
        }
        if dialect.returns && rest[0] == b'\r' {
            return Next::Skipped(at + 1);
        }
    }
    Next::Record(if dialect.plain {
        Reader::<true> { dialect, bytes, base, fields, lines: 0, fault: None, pushed: 0 }.read(at)
    } else {
        Reader::<false> { dialect, bytes, base, fields, lines: 0, fault: None, pushed: 0 }.read(at)
    })
}

/// `PLAIN`: the dialect is [`Dialect::plain`], and nothing else has to be looked for.
struct Reader<'a, const PLAIN: bool> {
    dialect: &'a Dialect,
    bytes: &'a [u8],
    base: usize,
    fields: &'a mut Vec<Field>,
    lines: u64,
    fault: Option<Fault>,
    pushed: usize,
}

/// How a field ended.
enum FieldEnd {
    /// With a delimiter; the next field begins there.
    Delimiter(usize),
    /// With a line end at that place (of CRLF, where only LF ends lines: at the LF), or the end of the bytes.
    Record(usize),
}

impl<const PLAIN: bool> Reader<'_, PLAIN> {
    fn read(mut self, start: usize) -> RawRecord {
        let mut at = start;
        loop {
            let quoted = self.bytes.get(at).is_some_and(|byte| Some(*byte) == self.dialect.quote);
            let end = if quoted { self.quoted(at) } else { self.unquoted(at, at) };
            match end {
                FieldEnd::Delimiter(next) => at = next,
                FieldEnd::Record(end) => {
                    let ended = end < self.bytes.len();
                    let returned = ended && end > start && self.bytes[end - 1] == b'\r';
                    return RawRecord {
                        start,
                        end: end - usize::from(returned),
                        next: if ended { self.behind_line_end(end) } else { end },
                        lines: self.lines + u64::from(ended),
                        fields: self.pushed,
                        fault: self.fault,
                    };
                }
            }
        }
    }

    #[inline]
    fn push(&mut self, start: usize, end: usize, quoted: bool, escaped: bool) {
        self.pushed += 1;
        // Looked at only where there is no room left, so that it costs nothing elsewhere.
        if self.fields.len() == self.fields.capacity() && self.pushed > FIELDS_KEPT {
            return;
        }
        self.fields.push(Field::new(start - self.base, end - self.base, quoted, escaped));
    }

    #[inline]
    fn behind_line_end(&self, end: usize) -> usize {
        if PLAIN { end + 1 } else { self.dialect.behind_line_end(self.bytes, end) }
    }

    #[inline]
    fn is_line_end(&self, byte: u8) -> bool {
        byte == b'\n' || (!PLAIN && self.dialect.returns && byte == b'\r')
    }

    /// The place behind the delimiter at `at`, if one is there; what is there is its first byte.
    #[inline]
    fn behind_delimiter(&self, at: usize) -> Option<usize> {
        if PLAIN {
            return Some(at + 1);
        }
        let delimiter = self.dialect.delimiter.as_bytes();
        self.bytes[at..].starts_with(delimiter).then(|| at + delimiter.len())
    }

    /// The places in a lane where a delimiter or a line end may begin.
    #[inline]
    fn candidates(&self, lane: &[u8; LANE]) -> u32 {
        let delimiter = self.dialect.delimiter.first();
        if PLAIN || !self.dialect.returns {
            in_lane(lane, [delimiter, b'\n'])
        } else {
            in_lane(lane, [delimiter, b'\n', b'\r'])
        }
    }

    /// A field from `start` whose unquoted part goes on at `at`, and the unquoted fields behind it.
    #[inline]
    fn unquoted(&mut self, start: usize, at: usize) -> FieldEnd {
        let bytes = self.bytes;
        let (mut start, mut at) = (start, at);
        // Fields are short: looking at sixteen bytes at once beats a search for each.
        while let Some(lane) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
            let mut found = self.candidates(lane);
            while found != 0 {
                let end = at + found.trailing_zeros() as usize;
                found &= found - 1;
                if self.is_line_end(bytes[end]) {
                    return self.end_record(start, end);
                }
                // Within the delimiter before, or not a delimiter.
                if !PLAIN && end < start {
                    continue;
                }
                let Some(next) = self.behind_delimiter(end) else { continue };
                self.push(start, end, false, false);
                start = next;
                if self.dialect.quote.is_some() && bytes.get(start).copied() == self.dialect.quote {
                    return FieldEnd::Delimiter(start);
                }
            }
            at += LANE;
        }
        self.unquoted_tail(start, at)
    }

    /// The same for the last bytes.
    #[inline]
    fn unquoted_tail(&mut self, start: usize, at: usize) -> FieldEnd {
        let first = self.dialect.delimiter.first();
        // The delimiter before may reach beyond `at`.
        let mut at = if PLAIN { at } else { at.max(start) };
        while let Some(&byte) = self.bytes.get(at) {
            if self.is_line_end(byte) {
                break;
            }
            if byte == first
                && let Some(next) = self.behind_delimiter(at)
            {
                self.push(start, at, false, false);
                return FieldEnd::Delimiter(next);
            }
            at += 1;
        }
        self.end_record(start, at)
    }

    /// The record's last field, unquoted.
    #[inline]
    fn end_record(&mut self, start: usize, end: usize) -> FieldEnd {
        let returned = end < self.bytes.len() && end > start && self.bytes[end - 1] == b'\r';
        self.push(start, end - usize::from(returned), false, false);
        FieldEnd::Record(end)
    }

    /// A field whose opening quote is at `open`.
    fn quoted(&mut self, open: usize) -> FieldEnd {
        let quote = self.bytes[open];
        let opened = self.lines;
        let mut escaped = false;
        let mut at = open + 1;
        // Quotes are doubled and only LF ends lines: nothing else matters in there.
        if self.dialect.escape.is_none() && (PLAIN || !self.dialect.returns) {
            let run = quoted::run(&self.bytes[at..], quote);
            self.lines += run.lines;
            escaped = run.doubled;
            at = run.end.map_or(self.bytes.len(), |end| at + end);
        }
        let close = loop {
            let Some(&byte) = self.bytes.get(at) else {
                self.fail(QuoteFault::Unclosed, opened);
                self.push(open + 1, self.bytes.len(), true, escaped);
                return FieldEnd::Record(self.bytes.len());
            };
            let next = self.bytes.get(at + 1).copied();
            let takes_next = match self.dialect.escape {
                Some(escape) => byte == escape && next.is_some() && (next == Some(quote) || next == Some(escape)),
                None => byte == quote && next == Some(quote),
            };
            if takes_next {
                escaped = true;
                at += 2;
            } else if byte == quote {
                break at;
            } else {
                self.lines += u64::from(self.counts_as_line(byte, at));
                at += 1;
            }
        };
        let behind = close + 1;
        let end = match &self.bytes[behind..] {
            [] => FieldEnd::Record(behind),
            [byte, ..] if self.is_line_end(*byte) => FieldEnd::Record(behind),
            [b'\r', b'\n', ..] => FieldEnd::Record(behind + 1),
            [byte, ..]
                if *byte == self.dialect.delimiter.first()
                    && let Some(next) = self.behind_delimiter(behind) =>
            {
                FieldEnd::Delimiter(next)
            }
            _ => {
                self.fail(QuoteFault::TextBehindQuote, opened);
                return self.unquoted(open, behind);
            }
        };
        self.push(open + 1, close, true, escaped);
        end
    }

    /// Whether a byte of a quoted field ends a physical line, by the rule for line ends outside of quotes.
    #[inline]
    fn counts_as_line(&self, byte: u8, at: usize) -> bool {
        if PLAIN || !self.dialect.returns {
            return byte == b'\n';
        }
        byte == b'\r' || (byte == b'\n' && self.bytes[at - 1] != b'\r')
    }

    #[cold]
    fn fail(&mut self, kind: QuoteFault, line: u64) {
        self.fault.get_or_insert(Fault { kind, field: self.pushed, line });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quoted::unescape;
    use longshore_domain::Format;

    fn dialect(width: usize) -> Dialect {
        Dialect::new(&Format::default(), width).unwrap()
    }

    fn cells(dialect: &Dialect, text: &str) -> (Vec<(String, bool)>, RawRecord) {
        let mut fields = Vec::new();
        let Next::Record(record) = read_record(dialect, text.as_bytes(), 0, 0, &mut fields) else {
            panic!("no record in {text:?}");
        };
        let mut scratch = Vec::new();
        let cells = fields.iter().map(|field| {
            let raw = &text.as_bytes()[field.range()];
            let cell = if field.is_escaped() {
                unescape(dialect, raw, &mut scratch);
                scratch.clone()
            } else {
                raw.to_vec()
            };
            (String::from_utf8(cell).unwrap(), field.is_quoted())
        });
        (cells.collect(), record)
    }

    #[test]
    fn of_a_record_of_very_many_fields_the_first_ones_are_kept_and_all_are_counted() {
        let mut fields = Vec::new();
        let text = ",".repeat(5 * FIELDS_KEPT);
        let Next::Record(record) = read_record(&dialect(3), text.as_bytes(), 0, 0, &mut fields) else {
            panic!("no record");
        };
        assert_eq!((record.fields, record.end), (text.len() + 1, text.len()));
        assert!((FIELDS_KEPT..=2 * FIELDS_KEPT).contains(&fields.capacity()), "{}", fields.capacity());
    }

    #[test]
    fn fields_are_read_as_rfc_4180_says() {
        let dialect = dialect(3);
        for (text, expected) in [
            ("a,b,c\n", vec![("a", false), ("b", false), ("c", false)]),
            ("a,b,c\r\nx", vec![("a", false), ("b", false), ("c", false)]),
            ("a,,", vec![("a", false), ("", false), ("", false)]),
            ("\"a,\n\"\"b\"\"\",\"\",c", vec![("a,\n\"b\"", true), ("", true), ("c", false)]),
            ("5\" pipe,a\"b,\"c\"\r\n", vec![("5\" pipe", false), ("a\"b", false), ("c", true)]),
            ("a\rb,c,d\n", vec![("a\rb", false), ("c", false), ("d", false)]),
        ] {
            let (cells, record) = cells(&dialect, text);
            let expected: Vec<_> = expected.into_iter().map(|(cell, quoted)| (cell.to_owned(), quoted)).collect();
            assert_eq!(cells, expected, "{text:?}");
            assert_eq!(record.fault, None, "{text:?}");
        }
    }

    #[test]
    fn faults_of_quotes_are_named_and_the_record_still_ends() {
        let dialect = dialect(3);
        let (_, record) = cells(&dialect, "a,\"b\"x,c\nnext");
        assert_eq!(record.fault, Some(Fault { kind: QuoteFault::TextBehindQuote, field: 1, line: 0 }));
        assert_eq!((record.end, record.next), (8, 9));
        let (_, record) = cells(&dialect, "a,\"b\nc,d\n");
        assert_eq!(record.fault, Some(Fault { kind: QuoteFault::Unclosed, field: 1, line: 0 }));
        assert_eq!((record.end, record.lines), (9, 2));
        let (_, record) = cells(&dialect, "\"a\n\n\",\"b\nc,d\n");
        assert_eq!(record.fault, Some(Fault { kind: QuoteFault::Unclosed, field: 1, line: 2 }), "where it opened");
    }

    #[test]
    fn an_escape_takes_a_quote_or_itself_and_is_data_elsewhere() {
        let format = Format { escape: "\\".into(), ..Format::default() };
        let dialect = Dialect::new(&format, 2).unwrap();
        let (cells, record) = cells(&dialect, "\"a\\\"b\\\\c\\n\",d\n");
        assert_eq!(cells, [("a\"b\\c\\n".to_owned(), true), ("d".to_owned(), false)]);
        assert_eq!(record.fault, None);
    }

    fn bare(dialect: &Dialect, text: &str) -> (Vec<String>, RawRecord) {
        let (cells, record) = cells(dialect, text);
        (cells.into_iter().map(|(cell, _)| cell).collect(), record)
    }

    #[test]
    fn delimiters_of_several_bytes_match_from_the_left() {
        for (delimiter, text, expected) in [
            ("::", "a::b::::c:::d\n", vec!["a", "b", "", "c", ":d"]),
            ("::", "\"a::b\"::\"c\"\"\"\n", vec!["a::b", "c\""]),
            ("||||", "123456||||\"x\"||||12345678||||y", vec!["123456", "x", "12345678", "y"]),
            (" ;", "a; ;b ; ;\r\n", vec!["a;", "b", "", ""]),
            ("§", "naïve§é§", vec!["naïve", "é", ""]),
            ("aab", "xaaaby\n", vec!["xa", "y"]),
        ] {
            let dialect = Dialect::new(&Format { delimiter: delimiter.into(), ..Format::default() }, 3).unwrap();
            let (cells, record) = bare(&dialect, text);
            assert_eq!((cells.iter().map(String::as_str).collect(), record.fault), (expected, None), "{text:?}");
        }
        let dialect = Dialect::new(&Format { delimiter: "::".into(), ..Format::default() }, 3).unwrap();
        let (cells, record) = bare(&dialect, "a:::\"b\":\"c\"::d");
        assert_eq!((cells, record.fault), (["a", ":\"b\":\"c\"", "d"].map(String::from).to_vec(), None));
        let (_, record) = bare(&dialect, "\"a\":b::c");
        assert_eq!(record.fault.map(|fault| fault.kind), Some(QuoteFault::TextBehindQuote));
    }

    #[test]
    fn a_carriage_return_ends_a_line_where_the_format_says_so() {
        let format = Format { line_end: longshore_domain::LineEnd::Cr, ..Format::default() };
        let dialect = Dialect::new(&format, 2).unwrap();
        for (text, next, lines) in [("a,b\rc", 4, 1), ("a,b\r\nc", 5, 1), ("a,b\nc", 4, 1), ("a,b\r\rc", 4, 1)] {
            let (cells, record) = bare(&dialect, text);
            assert_eq!(cells, ["a", "b"], "{text:?}");
            assert_eq!((record.end, record.next, record.lines), (3, next, lines), "{text:?}");
        }
        let (cells, record) = bare(&dialect, "\"a\r\n\r\n\n\rb\",\"c\"\r\nd");
        assert_eq!(cells, ["a\r\n\r\n\n\rb", "c"], "in quotes both are data");
        assert_eq!((record.lines, record.fault, record.end, record.next), (5, None, 14, 16));
        let mut fields = Vec::new();
        assert_eq!(read_record(&dialect, b"\r\ra", 0, 0, &mut fields), Next::Skipped(1));
        assert_eq!(read_record(&dialect, b"\r\na", 0, 0, &mut fields), Next::Skipped(2));
    }

    #[test]
    fn empty_lines_and_comments_are_no_records() {
        let mut comment = dialect(2);
        comment.comment = Some(b"#".to_vec());
        let mut fields = Vec::new();
        assert_eq!(read_record(&comment, b"# a\nb", 0, 0, &mut fields), Next::Skipped(4));
        assert_eq!(read_record(&comment, b"\r\nb", 0, 0, &mut fields), Next::Skipped(2));
        assert_eq!(read_record(&comment, b"", 0, 0, &mut fields), Next::End);
        let (cells, _) = cells(&dialect(1), "\r\n");
        assert_eq!(cells, [(String::new(), false)], "in a file of one column it is an empty field");
    }
}
