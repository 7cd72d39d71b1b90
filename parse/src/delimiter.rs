//! What stands between two fields: one to four bytes, and where they match. Of delimiters that overlap one another the
//! leftmost counts, and the next is looked for behind it, wherever the text is cut.

/// The longest delimiter, in bytes.
const LONGEST: usize = 4;

/// One to four bytes between fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delimiter {
    bytes: [u8; LONGEST],
    len: u8,
}

impl Delimiter {
    /// `None`: it is empty or too long.
    pub(crate) fn new(text: &[u8]) -> Option<Self> {
        if text.is_empty() || text.len() > LONGEST {
            return None;
        }
        let mut bytes = [0; LONGEST];
        bytes[..text.len()].copy_from_slice(text);
        Some(Self { bytes, len: text.len() as u8 })
    }

    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        usize::from(self.len)
    }

    #[inline]
    pub(crate) fn first(&self) -> u8 {
        self.bytes[0]
    }

    /// Whether a delimiter that is put behind `cell` is the first one there.
    pub(crate) fn ends(&self, cell: &[u8]) -> bool {
        let mut matching = Matching::new(*self, 0, 0);
        let text = [cell, self.as_bytes()].concat();
        (1..text.len()).all(|end| !matching.ends_at(&text, end))
    }

    /// How many bytes of a delimiter are seen once `byte` follows `seen` of them.
    fn step(&self, seen: u8, byte: u8) -> u8 {
        let known = usize::from(seen);
        for next in (1..=known + 1).rev() {
            if self.bytes[next - 1] == byte && self.bytes[..next - 1] == self.bytes[known + 1 - next..known] {
                return next as u8;
            }
        }
        0
    }
}

/// Follows the delimiters of unquoted text, lazily: it looks back only where somebody asks.
pub(crate) struct Matching {
    delimiter: Delimiter,
    from: usize,
    at: usize,
    /// So many bytes of a delimiter stand before `at`; never all of them.
    seen: u8,
}

impl Matching {
    /// Unquoted text begins at `at`, and `seen` bytes of a delimiter stand before it.
    pub(crate) fn new(delimiter: Delimiter, seen: u8, at: usize) -> Self {
        Self { delimiter, from: at, at, seen }
    }

    /// Whether a delimiter ends at `place`. Places are asked for in ascending order.
    pub(crate) fn ends_at(&mut self, text: &[u8], place: usize) -> bool {
        let delimiter = self.delimiter;
        // Almost every question is answered by the bytes before it.
        if place >= self.from + delimiter.len() && text[place - delimiter.len()..place] != *delimiter.as_bytes() {
            return false;
        }
        self.advance(text, place)
    }

    /// Whether a delimiter ends at the text's end, and, where none does, how much of one stands there.
    pub(crate) fn finish(mut self, text: &[u8]) -> (bool, u8) {
        (self.advance(text, text.len()), self.seen)
    }

    fn advance(&mut self, text: &[u8], place: usize) -> bool {
        // A byte that no delimiter holds stands between two: only what follows the last one has to be looked at.
        let foreign = |byte: &u8| !self.delimiter.as_bytes().contains(byte);
        if let Some(found) = text[self.at..place].iter().rposition(foreign) {
            self.at += found + 1;
            self.seen = 0;
        }
        let mut ended = false;
        while self.at < place {
            self.seen = self.delimiter.step(self.seen, text[self.at]);
            self.at += 1;
            ended = self.seen == self.delimiter.len;
            if ended {
                self.seen = 0;
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends of the delimiters of `text`, from left to right.
    fn ends(delimiter: &str, text: &str) -> Vec<usize> {
        let delimiter = Delimiter::new(delimiter.as_bytes()).unwrap();
        let mut matching = Matching::new(delimiter, 0, 0);
        (1..=text.len()).filter(|place| matching.ends_at(text.as_bytes(), *place)).collect()
    }

    #[test]
    fn the_leftmost_delimiter_counts() {
        assert_eq!(ends("::", "a:::b"), [3]);
        assert_eq!(ends("::", "::::"), [2, 4]);
        assert_eq!(ends("aab", "aaabaab"), [4, 7]);
        assert_eq!(ends("aba", "ababa"), [3]);
        assert_eq!(ends("abab", "aababab"), [5]);
        assert_eq!(ends(",", ",a,"), [1, 3]);
        assert_eq!(ends("§", "a§b§"), [3, 6]);
    }

    #[test]
    fn a_cell_that_ends_like_a_delimiter_may_swallow_the_next() {
        let delimiter = Delimiter::new(b"::").unwrap();
        assert!(delimiter.ends(b"a") && delimiter.ends(b""));
        assert!(!delimiter.ends(b"a:") && !delimiter.ends(b"a::b"));
    }

    #[test]
    fn one_to_four_bytes() {
        assert_eq!(Delimiter::new(b""), None);
        assert_eq!(Delimiter::new(b"12345"), None);
        assert!(Delimiter::new("😀".as_bytes()).is_some());
    }
}
