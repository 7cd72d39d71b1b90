//! Text of other encodings to UTF-8, block by block. Called by whoever reads the object's bytes; the text that comes out is
//! what chunks are cut from.
//!
//! The tables are `encoding_rs`'s (WHATWG Encoding Standard). Its `iso-8859-1` is Windows-1252, so ISO 8859-1 itself, where
//! every byte is the character of its number, is written here.

use encoding_rs::{Decoder, DecoderResult};

use longshore_domain::{Encoding, EncodingErrors};

/// A byte that no UTF-8 text holds: it stands for what was no character, so that the reader rejects the record.
const NO_CHARACTER: u8 = 0xFF;

/// From one encoding to UTF-8.
pub struct Transcoder {
    decoder: Option<Decoder>,
    latin1: bool,
    errors: EncodingErrors,
}

impl Transcoder {
    /// From the start of a text. A byte order mark is kept, as U+FEFF.
    #[must_use]
    pub fn new(encoding: Encoding, errors: EncodingErrors) -> Self {
        let table = match encoding {
            Encoding::Utf8 | Encoding::Latin1 => None,
            Encoding::Utf16Le => Some(encoding_rs::UTF_16LE),
            Encoding::Utf16Be => Some(encoding_rs::UTF_16BE),
            Encoding::Windows1252 => Some(encoding_rs::WINDOWS_1252),
        };
        let decoder = table.map(encoding_rs::Encoding::new_decoder_without_bom_handling);
        Self { decoder, latin1: encoding == Encoding::Latin1, errors }
    }

    /// Appends the text of the next bytes; `last`: no more come. UTF-8 is passed on as it is, broken or not.
    pub fn feed(&mut self, mut bytes: &[u8], last: bool, text: &mut Vec<u8>) {
        if self.latin1 {
            text.reserve(bytes.len() * 2);
            for byte in bytes {
                match byte {
                    0..0x80 => text.push(*byte),
                    _ => text.extend([0xC0 | (byte >> 6), 0x80 | (byte & 0x3F)]),
                }
            }
            return;
        }
        let Some(decoder) = &mut self.decoder else {
            text.extend_from_slice(bytes);
            return;
        };
        loop {
            // At most three bytes for one, and some for what the decoder holds back.
            let room = decoder.max_utf8_buffer_length_without_replacement(bytes.len()).unwrap_or(bytes.len() * 3 + 16);
            let before = text.len();
            text.resize(before + room, 0);
            let (result, read, written) = decoder.decode_to_utf8_without_replacement(bytes, &mut text[before..], last);
            text.truncate(before + written);
            bytes = &bytes[read..];
            match result {
                DecoderResult::InputEmpty => return,
                DecoderResult::OutputFull => {}
                DecoderResult::Malformed(..) => match self.errors {
                    EncodingErrors::Reject => text.push(NO_CHARACTER),
                    EncodingErrors::Replace => text.extend_from_slice("\u{FFFD}".as_bytes()),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(encoding: Encoding, errors: EncodingErrors, bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        Transcoder::new(encoding, errors).feed(bytes, true, &mut text);
        text
    }

    #[test]
    fn what_is_no_character_is_marked_or_replaced() {
        // A high surrogate alone, and half a unit at the end.
        let bytes = b"a\0\x00\xD8b\0\x41";
        assert_eq!(whole(Encoding::Utf16Le, EncodingErrors::Reject, bytes), b"a\xFFb\xFF");
        assert_eq!(whole(Encoding::Utf16Le, EncodingErrors::Replace, bytes), "a\u{FFFD}b\u{FFFD}".as_bytes());
    }

    #[test]
    fn each_byte_has_its_character() {
        assert_eq!(whole(Encoding::Windows1252, EncodingErrors::Reject, b"\x80\xE4\x9F"), "€äŸ".as_bytes());
        let all: Vec<u8> = (0..=255).collect();
        let expected: String = all.iter().map(|byte| char::from(*byte)).collect();
        assert_eq!(whole(Encoding::Latin1, EncodingErrors::Reject, &all), expected.as_bytes());
        assert_eq!(whole(Encoding::Utf8, EncodingErrors::Reject, &all), all);
        assert_eq!(whole(Encoding::Utf16Be, EncodingErrors::Reject, b"\xFE\xFF\0a"), "\u{FEFF}a".as_bytes());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

        #[test]
        fn text_comes_back_from_blocks_of_any_size(text in "\\PC{0,60}", size in 1_usize..9, big in any::<bool>()) {
            let units = text.encode_utf16();
            let bytes: Vec<u8> = if big {
                units.flat_map(u16::to_be_bytes).collect()
            } else {
                units.flat_map(u16::to_le_bytes).collect()
            };
            let encoding = if big { Encoding::Utf16Be } else { Encoding::Utf16Le };
            let mut transcoder = Transcoder::new(encoding, EncodingErrors::Reject);
            let mut found = Vec::new();
            for block in bytes.chunks(size) {
                transcoder.feed(block, false, &mut found);
            }
            transcoder.feed(b"", true, &mut found);
            prop_assert_eq!(String::from_utf8(found).unwrap(), text);
        }

        #[test]
        fn blocks_change_nothing_of_broken_text(
            bytes in prop::collection::vec(prop::sample::select(&b"\xD8\xDC\0aA\xFF\n"[..]), 0..40),
            size in 1_usize..9,
        ) {
            for encoding in [Encoding::Utf16Le, Encoding::Utf16Be, Encoding::Windows1252, Encoding::Latin1] {
                let mut transcoder = Transcoder::new(encoding, EncodingErrors::Reject);
                let mut found = Vec::new();
                for block in bytes.chunks(size) {
                    transcoder.feed(block, false, &mut found);
                }
                transcoder.feed(b"", true, &mut found);
                prop_assert_eq!(found, whole(encoding, EncodingErrors::Reject, &bytes));
            }
        }
    }
}
