//! Where records begin and end: the one exact state machine. The planner, the chunk reader and the head all ask it, so that a
//! file cut anywhere gives the same rows.
//!
//! A record ends with LF; a CR directly before it belongs to the line end. Where the format says that CR ends lines, a CR ends
//! a record too, and an LF directly behind it belongs to it; a lone CR is data elsewhere. Within quotes both are data, and count
//! as physical lines by the same rule. A quote opens a quoted field only as the field's first byte; anywhere else in an unquoted
//! field it is data. Text behind a closing quote goes on as unquoted data: the machine never fails, and the reader rejects such
//! a record.
//!
//! Files with one byte between fields and LF at the lines' ends are read by loops of their own, as fast as memory is scanned.

use memchr::{memchr, memchr_iter, memchr2, memchr2_iter, memchr3};
use serde::{Deserialize, Serialize};

use crate::delimiter::Matching;
use crate::dialect::Dialect;
use crate::quoted;

/// What lies between two line ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum LineKind {
    /// A data record (or a header record).
    Record,
    /// An empty line in a file of more than one column.
    Blank,
    /// A line that begins with the comment prefix.
    Comment,
}

/// The place of the machine within a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    RecordStart,
    /// So many bytes of the comment prefix were seen at the record's start, and the block ended.
    Prefix(usize),
    Comment,
    /// A CR was the record's first byte, and ends no line by itself: with LF it is an empty line, else data.
    StartCr,
    FieldStart,
    Unquoted,
    /// So many bytes of a longer delimiter were seen in unquoted text, and the block ended.
    Delimiter(u8),
    Quoted,
    /// Quoted text, whose last byte is a CR that counted as a line's end: an LF behind it does not.
    QuotedCr,
    QuoteInQuoted,
    Escape,
    /// A CR ended such a line; an LF behind it belongs to it.
    AfterCr(LineKind),
}

impl State {
    /// Every state that a machine of this dialect can be in between two bytes, always in the same order.
    pub(crate) fn all(dialect: &Dialect) -> Vec<Self> {
        let mut all = vec![Self::RecordStart, Self::FieldStart, Self::Unquoted];
        if dialect.returns {
            all.extend([LineKind::Record, LineKind::Blank, LineKind::Comment].map(Self::AfterCr));
        } else {
            all.push(Self::StartCr);
        }
        if dialect.quote.is_some() {
            all.extend([Self::Quoted, Self::QuoteInQuoted]);
            all.extend(dialect.returns.then_some(Self::QuotedCr));
            all.extend(dialect.escape.map(|_| Self::Escape));
        }
        if let Some(prefix) = &dialect.comment {
            all.push(Self::Comment);
            all.extend((1..prefix.len()).map(Self::Prefix));
        }
        all.extend((1..dialect.delimiter.len()).map(|seen| Self::Delimiter(seen as u8)));
        all
    }
}

/// The machine. It holds a few words of state and never a byte of the file.
#[derive(Debug, Clone)]
pub(crate) struct Boundary {
    pub(crate) state: State,
    /// Physical lines that ended so far.
    pub(crate) lines: u64,
}

impl Boundary {
    /// A machine that stands at a record's start.
    pub(crate) fn new() -> Self {
        Self { state: State::RecordStart, lines: 0 }
    }

    /// Reads on from `at`. Gives the place behind the next line end, or `None` where the block ends first: the next call then
    /// goes on with the next block. Where CR ends lines, a line may turn out to have ended with the block before: at 0.
    pub(crate) fn next(&mut self, dialect: &Dialect, block: &[u8], at: usize) -> Option<(usize, LineKind)> {
        let mut at = at;
        loop {
            if at >= block.len() {
                return None;
            }
            match self.state {
                State::RecordStart => {
                    if let Some(ended) = self.start_record(dialect, block, &mut at)? {
                        return Some((at, self.end(ended)));
                    }
                }
                State::Prefix(seen) => self.go_on_with_prefix(dialect, seen, block, &mut at),
                State::Comment => {
                    at += dialect.find_line_end(&block[at..])? + 1;
                    if block[at - 1] == b'\n' {
                        return Some((at, self.end(LineKind::Comment)));
                    }
                    self.state = State::AfterCr(LineKind::Comment);
                }
                State::StartCr => {
                    if block[at] == b'\n' {
                        return Some((at + 1, self.end(blank(dialect))));
                    }
                    self.state = State::Unquoted;
                }
                State::FieldStart if dialect.quote == Some(block[at]) => {
                    self.state = State::Quoted;
                    at += 1;
                }
                State::FieldStart | State::Unquoted | State::Delimiter(_) => {
                    let end = match dialect.quote {
                        Some(quote) if dialect.plain => {
                            self.scan_unquoted(dialect.delimiter.first(), quote, block, &mut at)?
                        }
                        None if dialect.plain => Some(at + self.scan_line(block, at)?),
                        _ => self.scan_any_unquoted(dialect, block, &mut at)?,
                    };
                    if let Some(end) = end {
                        return Some((end, self.end(LineKind::Record)));
                    }
                }
                State::Quoted | State::QuotedCr if dialect.returns => self.scan_returning(dialect, block, &mut at)?,
                State::Quoted | State::QuotedCr => self.scan_quoted(dialect, block, &mut at)?,
                State::QuoteInQuoted => {
                    if block[at] == b'\n' {
                        return Some((at + 1, self.end(LineKind::Record)));
                    }
                    self.leave_quotes(dialect, block, &mut at);
                }
                State::Escape => self.take_escaped(dialect, block[at], &mut at),
                State::AfterCr(kind) => return Some((at + usize::from(block[at] == b'\n'), self.end(kind))),
            }
        }
    }

    /// What the file's last line is, where no line end was told of it yet; `None`: the file ended with a line end.
    pub(crate) fn finish(&mut self) -> Option<LineKind> {
        match self.state {
            State::RecordStart => None,
            State::Comment => Some(LineKind::Comment),
            State::AfterCr(kind) => Some(self.end(kind)),
            _ => Some(LineKind::Record),
        }
    }

    fn end(&mut self, kind: LineKind) -> LineKind {
        self.state = State::RecordStart;
        self.lines += 1;
        kind
    }

    /// The first byte of a record. `None`: the block ends within what may be a comment's prefix; `Some(Some(_))`: the line
    /// is empty, and ends before `at`.
    #[inline(always)]
    fn start_record(&mut self, dialect: &Dialect, block: &[u8], at: &mut usize) -> Option<Option<LineKind>> {
        if let Some(prefix) = &dialect.comment {
            let rest = &block[*at..];
            if rest.starts_with(prefix) {
                self.state = State::Comment;
                *at += prefix.len();
                return Some(None);
            }
            if prefix.starts_with(rest) {
                self.state = State::Prefix(rest.len());
                return None;
            }
        }
        match block[*at] {
            b'\n' => {
                *at += 1;
                return Some(Some(blank(dialect)));
            }
            b'\r' => {
                self.state = if dialect.returns { State::AfterCr(blank(dialect)) } else { State::StartCr };
                *at += 1;
            }
            _ => self.state = State::FieldStart,
        }
        Some(None)
    }

    /// The prefix began in an earlier block: go on comparing; where it breaks off, its bytes were data.
    fn go_on_with_prefix(&mut self, dialect: &Dialect, seen: usize, block: &[u8], at: &mut usize) {
        let prefix: &[u8] = dialect.comment.as_deref().unwrap_or_default();
        if prefix.get(seen) == Some(&block[*at]) {
            *at += 1;
            self.state = if seen + 1 == prefix.len() { State::Comment } else { State::Prefix(seen + 1) };
            return;
        }
        self.state = State::FieldStart;
        // A prefix holds no line end, so these bytes end no line.
        let ended = self.next(dialect, &prefix[..seen], 0);
        debug_assert_eq!(ended, None);
    }

    fn scan_line(&mut self, block: &[u8], at: usize) -> Option<usize> {
        match memchr(b'\n', &block[at..]) {
            Some(found) => Some(found + 1),
            None => {
                self.state = State::Unquoted;
                None
            }
        }
    }

    /// Unquoted bytes up to a line end (`Some(Some(end))`), an opening quote (`Some(None)`), or the block's end (`None`).
    fn scan_unquoted(&mut self, delimiter: u8, quote: u8, block: &[u8], at: &mut usize) -> Option<Option<usize>> {
        let run = *at;
        loop {
            let Some(found) = memchr2(quote, b'\n', &block[*at..]) else {
                let after_delimiter = block.len() > run && block[block.len() - 1] == delimiter;
                self.state = if after_delimiter { State::FieldStart } else { State::Unquoted };
                return None;
            };
            let place = *at + found;
            *at = place + 1;
            if block[place] == b'\n' {
                return Some(Some(place + 1));
            }
            if place > run && block[place - 1] == delimiter {
                self.state = State::Quoted;
                return Some(None);
            }
            if *at >= block.len() {
                self.state = State::Unquoted;
                return None;
            }
        }
    }

    /// The same for any delimiter and line end. `Some(None)`: the state is another one.
    fn scan_any_unquoted(&mut self, dialect: &Dialect, block: &[u8], at: &mut usize) -> Option<Option<usize>> {
        let seen = if let State::Delimiter(seen) = self.state { seen } else { 0 };
        let mut delimiters = Matching::new(dialect.delimiter, seen, *at);
        loop {
            let rest = &block[*at..];
            let found = match dialect.quote {
                Some(quote) if dialect.returns => memchr3(quote, b'\n', b'\r', rest),
                Some(quote) => memchr2(quote, b'\n', rest),
                None => dialect.find_line_end(rest),
            };
            let Some(found) = found else {
                self.state = match delimiters.finish(block) {
                    (true, _) => State::FieldStart,
                    (false, 0) => State::Unquoted,
                    (false, seen) => State::Delimiter(seen),
                };
                return None;
            };
            let place = *at + found;
            *at = place + 1;
            match block[place] {
                b'\n' => return Some(Some(place + 1)),
                b'\r' if dialect.returns => self.state = State::AfterCr(LineKind::Record),
                _ if delimiters.ends_at(block, place) => self.state = State::Quoted,
                _ => continue,
            }
            return Some(None);
        }
    }

    /// Quoted bytes up to the quote that ends them, or an escape; `None`: the block's end.
    fn scan_quoted(&mut self, dialect: &Dialect, block: &[u8], at: &mut usize) -> Option<()> {
        let quote = dialect.quote.unwrap_or(b'"');
        let rest = block.get(*at..)?;
        let found = match dialect.escape {
            None => {
                let run = quoted::run(rest, quote);
                self.lines += run.lines;
                run.end
            }
            Some(escape) => {
                let found = memchr2(quote, escape, rest);
                self.lines += memchr_iter(b'\n', &rest[..found.unwrap_or(rest.len())]).count() as u64;
                found
            }
        };
        *at += found.map_or(rest.len(), |found| found + 1);
        self.state = if rest[found?] == quote { State::QuoteInQuoted } else { State::Escape };
        Some(())
    }

    /// The same where CR ends lines: the lines of what was passed are counted behind.
    fn scan_returning(&mut self, dialect: &Dialect, block: &[u8], at: &mut usize) -> Option<()> {
        let quote = dialect.quote.unwrap_or(b'"');
        let rest = &block[*at..];
        let found = match dialect.escape {
            Some(escape) => memchr2(quote, escape, rest),
            None => memchr(quote, rest),
        };
        let run = &rest[..found.unwrap_or(rest.len())];
        let paired = self.state == State::QuotedCr && run.first() == Some(&b'\n');
        self.lines += count_line_ends(run) - u64::from(paired);
        let Some(found) = found else {
            self.state = if run.last() == Some(&b'\r') { State::QuotedCr } else { State::Quoted };
            return None;
        };
        *at += found + 1;
        self.state = if rest[found] == quote { State::QuoteInQuoted } else { State::Escape };
        Some(())
    }

    /// What follows a quote within quotes, other than a line feed: the quote doubled, a delimiter, or text that should not be.
    #[inline]
    fn leave_quotes(&mut self, dialect: &Dialect, block: &[u8], at: &mut usize) {
        if dialect.quote == Some(block[*at]) && dialect.escape.is_none() {
            self.state = State::Quoted;
            *at += 1;
        } else if dialect.plain && block[*at] == dialect.delimiter.first() {
            self.state = State::FieldStart;
            *at += 1;
        } else {
            self.state = State::Unquoted;
        }
    }

    /// An escape takes a quote or an escape with it; before anything else it is data itself.
    fn take_escaped(&mut self, dialect: &Dialect, byte: u8, at: &mut usize) {
        self.state = State::Quoted;
        if dialect.quote == Some(byte) || dialect.escape == Some(byte) {
            *at += 1;
        }
    }
}

/// CR, LF and CRLF are one line's end each.
fn count_line_ends(text: &[u8]) -> u64 {
    let mut behind_pair = 0;
    let mut count = 0;
    for place in memchr2_iter(b'\n', b'\r', text) {
        let second = text[place] == b'\n' && place > 0 && place == behind_pair;
        count += u64::from(!second);
        behind_pair = if text[place] == b'\r' { place + 1 } else { 0 };
    }
    count
}

fn blank(dialect: &Dialect) -> LineKind {
    if dialect.width == 1 { LineKind::Record } else { LineKind::Blank }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_domain::{Format, LineEnd};
    use proptest::prelude::*;

    type Lines = (Vec<(usize, LineKind)>, Option<LineKind>, u64);

    /// Line ends of a text that is there as a whole, looked at byte by byte, written as plainly as the rules are.
    fn plainly(dialect: &Dialect, text: &[u8]) -> Lines {
        let (mut ends, mut start) = (Vec::new(), 0);
        while start < text.len() {
            let comment = dialect.comment.as_ref().is_some_and(|prefix| text[start..].starts_with(prefix));
            let end = if comment { first_end(dialect, text, start) } else { end_of_record(dialect, text, start) };
            let kind = match (comment, end) {
                (true, _) => LineKind::Comment,
                (false, Some((end, _))) if end == start => blank(dialect),
                _ => LineKind::Record,
            };
            let Some((_, behind)) = end else {
                return (ends, Some(kind), count_all(dialect, text));
            };
            ends.push((behind, kind));
            start = behind;
        }
        (ends, None, count_all(dialect, text))
    }

    /// The line end at `at`, if there is one: its place and the place behind it.
    fn line_end(dialect: &Dialect, text: &[u8], at: usize) -> Option<(usize, usize)> {
        match &text[at..] {
            [b'\r', b'\n', ..] => Some((at, at + 2)),
            [b'\n', ..] => Some((at, at + 1)),
            [b'\r', ..] if dialect.returns => Some((at, at + 1)),
            _ => None,
        }
    }

    fn first_end(dialect: &Dialect, text: &[u8], from: usize) -> Option<(usize, usize)> {
        (from..text.len()).find_map(|at| line_end(dialect, text, at))
    }

    fn end_of_record(dialect: &Dialect, text: &[u8], start: usize) -> Option<(usize, usize)> {
        let delimiter = dialect.delimiter.as_bytes();
        let (mut at, mut field_start) = (start, true);
        while at < text.len() {
            if let Some(end) = line_end(dialect, text, at) {
                return Some(end);
            }
            if field_start && Some(text[at]) == dialect.quote {
                at = behind_quotes(dialect, text, at)?;
                field_start = false;
                continue;
            }
            field_start = text[at..].starts_with(delimiter);
            at += if field_start { delimiter.len() } else { 1 };
        }
        None
    }

    /// Where text goes on behind the quotes that open at `open`.
    fn behind_quotes(dialect: &Dialect, text: &[u8], open: usize) -> Option<usize> {
        let quote = text[open];
        let mut at = open + 1;
        while at < text.len() {
            let next = text.get(at + 1).copied();
            let pair = match dialect.escape {
                Some(escape) => text[at] == escape && (next == Some(quote) || next == Some(escape)),
                None => text[at] == quote && next == Some(quote),
            };
            if pair {
                at += 2;
            } else if text[at] == quote {
                return Some(at + 1);
            } else {
                at += 1;
            }
        }
        None
    }

    /// Every line end counts, in quotes and out.
    fn count_all(dialect: &Dialect, text: &[u8]) -> u64 {
        let (mut count, mut at) = (0, 0);
        while let Some((_, behind)) = first_end(dialect, text, at) {
            count += 1;
            at = behind;
        }
        count
    }

    /// The same by [`Boundary::next`], in blocks of the sizes given, over and over.
    fn in_blocks(dialect: &Dialect, text: &[u8], sizes: &[usize]) -> Lines {
        let mut boundary = Boundary::new();
        let mut ends = Vec::new();
        let (mut offset, mut sizes) = (0, sizes.iter().cycle());
        while offset < text.len() {
            let size = (*sizes.next().unwrap()).min(text.len() - offset);
            let block = &text[offset..offset + size];
            let mut at = 0;
            while let Some((end, kind)) = boundary.next(dialect, block, at) {
                ends.push((offset + end, kind));
                at = end;
            }
            offset += size;
        }
        match (boundary.state, boundary.finish()) {
            // The last line's end waited for a line feed.
            (State::AfterCr(_), Some(kind)) => {
                ends.push((text.len(), kind));
                (ends, None, boundary.lines)
            }
            (_, last) => (ends, last, boundary.lines),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(8000) })]

        #[test]
        fn blocks_of_any_size_give_the_plain_rules(
            text in prop::collection::vec(prop::sample::select(&b"\"\"\"\"\"a1,,,;:::::\n\n\r\r\\# \xFF\xC2\xA7"[..]), 0..80),
            delimiter in prop::sample::select(&[",", ",", "::", "::::", ",:,", ";", " ,", "\u{a7}", "a,a"][..]),
            escape in prop::sample::select(&["\"", "\"", "\\"][..]),
            quote in prop::sample::select(&["\"", "\"", "\"", ""][..]),
            comment in prop::sample::select(&[None, None, Some("#"), Some("##"), Some("#,\"1"), Some("#::::")][..]),
            line_end in prop::sample::select(&[LineEnd::Lf, LineEnd::CrLf, LineEnd::Cr, LineEnd::Cr][..]),
            width in 1_usize..3,
            sizes in prop::collection::vec(1_usize..9, 1..6),
        ) {
            let format = Format {
                delimiter: delimiter.into(), quote: quote.into(), escape: escape.into(),
                comment: comment.map(str::to_owned), line_end, ..Format::default()
            };
            let dialect = Dialect::new(&format, width).unwrap();
            let expected = plainly(&dialect, &text);
            prop_assert_eq!(&in_blocks(&dialect, &text, &[text.len().max(1)]), &expected);
            prop_assert_eq!(&in_blocks(&dialect, &text, &[1]), &expected);
            prop_assert_eq!(&in_blocks(&dialect, &text, &sizes), &expected);
        }
    }
}
