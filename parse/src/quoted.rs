//! Text within quotes, where a quote is doubled: where it ends, how many lines end in it, and what it stands for. Looked at 64
//! bytes at once: text has a quote or a line end every few bytes, too often to search for each.

use memchr::{memchr, memchr2};

use crate::dialect::Dialect;
use crate::places::{BLOCK, in_block};

/// What quoted text was gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The place of the first quote that no quote follows; `None`: there is none.
    pub(crate) end: Option<usize>,
    /// Line feeds before it.
    pub(crate) lines: u64,
    /// Whether there are doubled quotes before it.
    pub(crate) doubled: bool,
}

/// Goes through quoted text, up to the quote that ends it.
pub(crate) fn run(text: &[u8], quote: u8) -> Run {
    let mut run = Run { end: None, lines: 0, doubled: false };
    let mut at = 0;
    // Whether the next block begins with the second of two quotes.
    let mut second = false;
    while let Some(block) = text[at..].first_chunk::<BLOCK>() {
        let (mut quotes, ends) = (in_block(block, quote) & !u64::from(second), in_block(block, b'\n'));
        second = false;
        while quotes != 0 {
            let place = quotes.trailing_zeros() as usize;
            if text.get(at + place + 1) != Some(&quote) {
                run.lines += u64::from((ends & ((1 << place) - 1)).count_ones());
                run.end = Some(at + place);
                return run;
            }
            run.doubled = true;
            second = place == BLOCK - 1;
            quotes &= !(0b11 << place);
        }
        run.lines += u64::from(ends.count_ones());
        at += BLOCK;
    }
    at += usize::from(second);
    while let Some(found) = memchr2(quote, b'\n', &text[at..]) {
        at += found + 1;
        if text[at - 1] == b'\n' {
            run.lines += 1;
        } else if text.get(at) == Some(&quote) {
            run.doubled = true;
            at += 1;
        } else {
            run.end = Some(at - 1);
            break;
        }
    }
    run
}

/// Resolves doubled quotes or escapes of a quoted field. An escape before anything but a quote or an escape is data.
pub fn unescape(dialect: &Dialect, raw: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.reserve(raw.len());
    let quote = dialect.quote.unwrap_or(b'"');
    let special = dialect.escape.unwrap_or(quote);
    // The first of two quotes goes, and the escape before a quote or an escape.
    let takes_next = |at: usize| raw.get(at + 1).is_some_and(|byte| *byte == quote || *byte == special);
    let (mut start, mut at) = (0, 0);
    // Whether the next block begins with what was taken.
    let mut taken = false;
    while let Some(block) = raw[at..].first_chunk::<BLOCK>() {
        let mut specials = in_block(block, special) & !u64::from(taken);
        taken = false;
        while specials != 0 {
            let place = specials.trailing_zeros() as usize;
            specials &= specials - 1;
            if takes_next(at + place) {
                out.extend_from_slice(&raw[start..at + place]);
                start = at + place + 1;
                taken = place == BLOCK - 1;
                specials &= !(0b11 << place);
            }
        }
        at += BLOCK;
    }
    at += usize::from(taken);
    while let Some(found) = memchr(special, &raw[at..]) {
        at += found;
        if takes_next(at) {
            out.extend_from_slice(&raw[start..at]);
            start = at + 1;
            at += 1;
        }
        at += 1;
    }
    out.extend_from_slice(&raw[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_domain::Format;
    use proptest::prelude::*;

    /// Byte by byte.
    fn plainly(text: &[u8], quote: u8) -> Run {
        let mut run = Run { end: None, lines: 0, doubled: false };
        let mut at = 0;
        while let Some(&byte) = text.get(at) {
            if byte != quote {
                run.lines += u64::from(byte == b'\n');
            } else if text.get(at + 1) == Some(&quote) {
                run.doubled = true;
                at += 1;
            } else {
                run.end = Some(at);
                break;
            }
            at += 1;
        }
        run
    }

    fn unescaped_plainly(raw: &[u8], quote: u8, special: u8) -> Vec<u8> {
        let mut out = Vec::new();
        let mut bytes = raw.iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            let next = if byte == special { bytes.next_if(|next| *next == quote || *next == special) } else { None };
            out.push(next.unwrap_or(byte));
        }
        out
    }

    proptest! {
        #[test]
        fn quoted_text_is_gone_through_as_byte_by_byte(text in "([a\n,]{0,40}(\"\"){0,3}){0,12}(\"[,\n\"]?)?[a\n]{0,70}") {
            prop_assert_eq!(run(text.as_bytes(), b'"'), plainly(text.as_bytes(), b'"'));
        }

        #[test]
        fn a_field_is_unescaped_as_byte_by_byte(raw in "([a\n,]{0,40}[\"\\\\]{0,4}){0,8}[a\n]{0,70}", escaped: bool) {
            let escape = if escaped { "\\" } else { "" };
            let dialect = Dialect::new(&Format { escape: escape.into(), ..Format::default() }, 1).expect("a dialect");
            let mut out = b"of another cell".to_vec();
            unescape(&dialect, raw.as_bytes(), &mut out);
            prop_assert_eq!(out, unescaped_plainly(raw.as_bytes(), b'"', if escaped { b'\\' } else { b'"' }));
        }
    }

    #[test]
    fn two_quotes_in_two_blocks_are_one() {
        for before in 0..3 * BLOCK {
            for quotes in 0..5 {
                let text = format!("{}{}\n,", "a".repeat(before), "\"".repeat(quotes));
                assert_eq!(run(text.as_bytes(), b'"'), plainly(text.as_bytes(), b'"'), "{text:?}");
                let mut out = Vec::new();
                unescape(&Dialect::new(&Format::default(), 1).unwrap(), text.as_bytes(), &mut out);
                assert_eq!(out, unescaped_plainly(text.as_bytes(), b'"', b'"'), "{text:?}");
            }
        }
    }
}
