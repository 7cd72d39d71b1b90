//! Where records begin and end: the one exact state machine. The planner, the chunk reader and the head all ask it, so that a
//! file cut anywhere gives the same rows.
//!
//! A record ends with LF; a CR directly before it belongs to the line end. A quote opens a quoted field only as the field's first
//! byte; anywhere else in an unquoted field it is data. Text behind a closing quote goes on as unquoted data: the machine never
//! fails, and the reader rejects such a record. A lone CR is data; where it is to end lines, [`State::step`] and the three scans
//! below are the places that look for LF.

use memchr::{memchr, memchr2, memchr3};

use crate::dialect::Dialect;

/// What lies between two line ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineKind {
    /// A data record (or a header record).
    Record,
    /// An empty line in a file of more than one column.
    Blank,
    /// A line that begins with the comment prefix.
    Comment,
}

/// The place of the machine within a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    RecordStart,
    /// So many bytes of the comment prefix were seen at the record's start, and the block ended.
    Prefix(usize),
    Comment,
    /// A CR was the record's first byte: with LF it is an empty line, else data.
    StartCr,
    FieldStart,
    Unquoted,
    Quoted,
    QuoteInQuoted,
    Escape,
}

/// The machine. It holds a few words of state and never a byte of the file.
#[derive(Debug, Clone)]
pub(crate) struct Boundary {
    state: State,
    /// Line feeds passed so far.
    pub(crate) lines: u64,
}

impl Boundary {
    /// A machine that stands at a record's start.
    pub(crate) fn new() -> Self {
        Self { state: State::RecordStart, lines: 0 }
    }

    /// Reads on from `at`. Gives the place behind the next line end, or `None` where the block ends first: the next call then
    /// goes on with the next block.
    pub(crate) fn next(&mut self, dialect: &Dialect, block: &[u8], at: usize) -> Option<(usize, LineKind)> {
        let mut at = at;
        loop {
            if at >= block.len() {
                return None;
            }
            match self.state {
                State::RecordStart => {
                    if let Some(prefix) = &dialect.comment {
                        let rest = &block[at..];
                        if rest.starts_with(prefix) {
                            self.state = State::Comment;
                            at += prefix.len();
                            continue;
                        }
                        if prefix.starts_with(rest) {
                            self.state = State::Prefix(rest.len());
                            return None;
                        }
                    }
                    match block[at] {
                        b'\n' => return Some((at + 1, self.end(blank(dialect)))),
                        b'\r' => {
                            self.state = State::StartCr;
                            at += 1;
                        }
                        _ => self.state = State::FieldStart,
                    }
                }
                State::Prefix(seen) => self.go_on_with_prefix(dialect, seen, block, &mut at),
                State::Comment => {
                    let found = memchr(b'\n', &block[at..])?;
                    return Some((at + found + 1, self.end(LineKind::Comment)));
                }
                State::StartCr => {
                    if block[at] == b'\n' {
                        return Some((at + 1, self.end(blank(dialect))));
                    }
                    self.state = State::Unquoted;
                    if block[at] == dialect.delimiter {
                        self.state = State::FieldStart;
                        at += 1;
                    }
                }
                State::FieldStart if dialect.quote == Some(block[at]) => {
                    self.state = State::Quoted;
                    at += 1;
                }
                State::FieldStart | State::Unquoted => {
                    let end = match dialect.quote {
                        Some(quote) => self.scan_unquoted(dialect.delimiter, quote, block, &mut at)?,
                        None => Some(at + self.scan_line(block, at)?),
                    };
                    if let Some(end) = end {
                        return Some((end, self.end(LineKind::Record)));
                    }
                }
                State::Quoted => self.scan_quoted(dialect, block, &mut at)?,
                State::QuoteInQuoted => {
                    let byte = block[at];
                    at += 1;
                    if byte == b'\n' {
                        return Some((at, self.end(LineKind::Record)));
                    }
                    self.state = after_quote(dialect, byte);
                }
                State::Escape => self.take_escaped(dialect, block[at], &mut at),
            }
        }
    }

    /// What the file's last line is, where it lacks its end; `None`: the file ended with a line end.
    pub(crate) fn finish(&self) -> Option<LineKind> {
        match self.state {
            State::RecordStart => None,
            State::Comment => Some(LineKind::Comment),
            _ => Some(LineKind::Record),
        }
    }

    fn end(&mut self, kind: LineKind) -> LineKind {
        self.state = State::RecordStart;
        self.lines += 1;
        kind
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
        for byte in &prefix[..seen] {
            self.state = self.state.step(dialect, *byte).0;
        }
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

    /// Quoted bytes up to the next quote or escape; `None`: the block's end.
    fn scan_quoted(&mut self, dialect: &Dialect, block: &[u8], at: &mut usize) -> Option<()> {
        let quote = dialect.quote.unwrap_or(b'"');
        loop {
            let rest = block.get(*at..)?;
            let found = match dialect.escape {
                Some(escape) => memchr3(quote, escape, b'\n', rest),
                None => memchr2(quote, b'\n', rest),
            }?;
            *at += found + 1;
            let byte = rest[found];
            if byte == b'\n' {
                self.lines += 1;
            } else {
                self.state = if byte == quote { State::QuoteInQuoted } else { State::Escape };
                return Some(());
            }
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

impl State {
    /// One byte of the machine, written plainly; comments are looked for by the caller. The flag says that a line ended.
    pub(crate) fn step(self, dialect: &Dialect, byte: u8) -> (Self, bool) {
        let quote = dialect.quote == Some(byte);
        match self {
            Self::Quoted | Self::Escape if self == Self::Quoted || !(quote || dialect.escape == Some(byte)) => {
                if quote {
                    (Self::QuoteInQuoted, false)
                } else if dialect.escape == Some(byte) {
                    (Self::Escape, false)
                } else {
                    (Self::Quoted, false)
                }
            }
            Self::Escape => (Self::Quoted, false),
            _ if byte == b'\n' => (Self::RecordStart, true),
            Self::Comment => (Self::Comment, false),
            Self::QuoteInQuoted => (after_quote(dialect, byte), false),
            Self::RecordStart if byte == b'\r' => (Self::StartCr, false),
            Self::RecordStart | Self::FieldStart if quote => (Self::Quoted, false),
            _ if byte == dialect.delimiter => (Self::FieldStart, false),
            _ => (Self::Unquoted, false),
        }
    }
}

fn after_quote(dialect: &Dialect, byte: u8) -> State {
    if dialect.quote == Some(byte) && dialect.escape.is_none() {
        State::Quoted
    } else if byte == dialect.delimiter {
        State::FieldStart
    } else {
        State::Unquoted
    }
}

fn blank(dialect: &Dialect) -> LineKind {
    if dialect.width == 1 { LineKind::Record } else { LineKind::Blank }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_domain::Format;
    use proptest::prelude::*;

    /// Line ends by [`State::step`] alone, byte by byte.
    fn plainly(dialect: &Dialect, text: &[u8]) -> (Vec<(usize, LineKind)>, Option<LineKind>, u64) {
        let mut ends = Vec::new();
        let (mut state, mut start, mut at) = (State::RecordStart, 0, 0);
        let mut lines = 0;
        while at < text.len() {
            if state == State::RecordStart
                && let Some(prefix) = &dialect.comment
                && text[at..].starts_with(prefix)
            {
                state = State::Comment;
                at += prefix.len();
                continue;
            }
            let (next, ended) = state.step(dialect, text[at]);
            lines += u64::from(text[at] == b'\n');
            at += 1;
            if ended {
                let empty = matches!(&text[start..at], b"\n" | b"\r\n");
                let kind = match state {
                    State::Comment => LineKind::Comment,
                    _ if empty => blank(dialect),
                    _ => LineKind::Record,
                };
                ends.push((at, kind));
                start = at;
            }
            state = next;
        }
        let last = (start < text.len()).then_some(match state {
            State::Comment => LineKind::Comment,
            _ => LineKind::Record,
        });
        (ends, last, lines)
    }

    /// The same by [`Boundary::next`], in blocks of the sizes given, over and over.
    fn in_blocks(dialect: &Dialect, text: &[u8], sizes: &[usize]) -> (Vec<(usize, LineKind)>, Option<LineKind>, u64) {
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
        (ends, boundary.finish(), boundary.lines)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

        #[test]
        fn scanning_is_stepping_in_blocks_of_any_size(
            text in prop::collection::vec(prop::sample::select(&b"\"\"\"\"a1,,\n\n\r\\# \xFF"[..]), 0..80),
            escape in prop::sample::select(&["\"", "\"", "\\"][..]),
            quote in prop::sample::select(&["\"", "\"", "\"", ""][..]),
            comment in prop::sample::select(&[None, Some("#"), Some("##"), Some("#,\"1")][..]),
            width in 1_usize..3,
            sizes in prop::collection::vec(1_usize..9, 1..6),
        ) {
            let format = Format {
                quote: quote.into(), escape: escape.into(), comment: comment.map(str::to_owned), ..Format::default()
            };
            let dialect = Dialect::new(&format, width).unwrap();
            let expected = plainly(&dialect, &text);
            prop_assert_eq!(&in_blocks(&dialect, &text, &[text.len().max(1)]), &expected);
            prop_assert_eq!(&in_blocks(&dialect, &text, &sizes), &expected);
        }
    }
}
