//! What the first bytes are before they are text: how they are packed, and how they are encoded.
//!
//! The caller unpacks and decodes: it asks [`detect_compression`] with the object's first bytes, unpacks a sample, and asks
//! [`detect`] with that.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use longshore_domain::{Compression, Encoding, GivenFormat};

use crate::error::FormatError;

/// What has to be undone before a file is UTF-8 text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detected {
    /// How the object is packed; never `Auto`.
    pub compression: Compression,
    /// How the unpacked text is encoded.
    pub encoding: Encoding,
    /// Bytes of the byte order mark at the start of the unpacked text.
    pub bom_len: usize,
}

impl Detected {
    /// UTF-8 without a mark, not packed: nothing has to be undone.
    pub const PLAIN: Self = Self { compression: Compression::None, encoding: Encoding::Utf8, bom_len: 0 };
}

/// How the object is packed, from its first bytes (32 are enough) and never by its name.
///
/// # Errors
/// `Mismatch`: the compression that was given is not there. `Unsupported`: an archive.
pub fn detect_compression(object: &[u8], given: &GivenFormat) -> Result<Compression, FormatError> {
    let found = magic(object);
    match given.compression {
        Compression::None => Ok(Compression::None),
        Compression::Auto => match (found, archive(object)) {
            (Some(found), _) => Ok(found),
            (None, Some(name)) => Err(FormatError::unsupported(format!(
                "the file is {name}, and no CSV; upload the CSV itself, plain or packed with gzip, zstd, bzip2 or xz"
            ))),
            (None, None) => Ok(Compression::None),
        },
        given if found == Some(given) => Ok(given),
        given => Err(FormatError::mismatch(format!(
            "format.compression is {}, but the file does not begin as {} does{}; leave format.compression out, or upload the file \
             packed so",
            name_of(given),
            name_of(given),
            found.map_or(String::new(), |found| format!(": it begins as {}", name_of(found))),
        ))),
    }
}

/// How the unpacked text is encoded, from its first bytes; `whole`: they are all of it.
///
/// # Errors
/// `Mismatch`: a byte order mark contradicts the encoding that was given. `Unsupported`: an encoding that is not read.
pub fn detect(
    text: &[u8],
    whole: bool,
    compression: Compression,
    given: &GivenFormat,
) -> Result<Detected, FormatError> {
    let mark = mark(text)?;
    let (encoding, bom_len) = match (given.encoding, mark) {
        (Some(given), Some((found, _))) if given != found => {
            return Err(FormatError::mismatch(format!(
                "format.encoding is {}, but the file begins with the byte order mark of {}; leave format.encoding out, or give that one",
                label(given),
                label(found)
            )));
        }
        (_, Some((found, bom_len))) => (found, bom_len),
        (Some(given), None) => (given, 0),
        (None, None) => (look(text, whole)?, 0),
    };
    Ok(Detected { compression, encoding, bom_len })
}

/// What the first bytes say of the compression.
fn magic(object: &[u8]) -> Option<Compression> {
    match object {
        [0x1F, 0x8B, 8, ..] => Some(Compression::Gzip),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => Some(Compression::Zstd),
        // A skippable frame (RFC 8878, 3.1.2): parallel compressors begin with one.
        [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Some(Compression::Zstd),
        // The first block's mark, or that of the end: the three letters and a digit alone may be text.
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
        | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Some(Compression::Bzip2),
        [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => Some(Compression::Xz),
        _ => None,
    }
}

/// What people upload in place of a CSV.
fn archive(object: &[u8]) -> Option<&'static str> {
    match object {
        [b'P', b'K', 3, 4, ..] => Some("a zip archive (or an .xlsx or .ods workbook)"),
        [0xD0, 0xCF, 0x11, 0xE0, 0xA1, 0xB1, 0x1A, 0xE1, ..] => Some("an .xls workbook"),
        [b'7', b'z', 0xBC, 0xAF, 0x27, 0x1C, ..] => Some("a 7z archive"),
        [0x04, 0x22, 0x4D, 0x18, ..] => Some("packed with lz4"),
        [0x1F, 0x9D, ..] => Some("packed with compress (.Z)"),
        _ => None,
    }
}

fn name_of(compression: Compression) -> &'static str {
    match compression {
        Compression::Auto => "auto",
        Compression::None => "none",
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
        Compression::Bzip2 => "bzip2",
        Compression::Xz => "xz",
    }
}

/// The encoding's name as requests spell it.
fn label(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Utf8 => "utf-8",
        Encoding::Utf16Le => "utf-16le",
        Encoding::Utf16Be => "utf-16be",
        Encoding::Windows1252 => "windows-1252",
        Encoding::Latin1 => "iso-8859-1",
    }
}

/// The encoding that a byte order mark names, and the mark's length.
fn mark(text: &[u8]) -> Result<Option<(Encoding, usize)>, FormatError> {
    Ok(match text {
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => return Err(other_encoding("UTF-32")),
        [0xEF, 0xBB, 0xBF, ..] => Some((Encoding::Utf8, 3)),
        [0xFF, 0xFE, ..] => Some((Encoding::Utf16Le, 2)),
        [0xFE, 0xFF, ..] => Some((Encoding::Utf16Be, 2)),
        _ => None,
    })
}

/// The encoding of a text without a mark.
fn look(text: &[u8], whole: bool) -> Result<Encoding, FormatError> {
    let utf8 = Utf8Count::of(text, whole);
    if let Some(utf16) = looks_utf16(text) {
        return Ok(utf16);
    }
    // Sequences of several bytes are hardly ever valid by chance: a text that has as many valid ones as broken ones is UTF-8
    // with damage, and its damaged records are rejects. A text that has none tells nothing but its bytes.
    if utf8.broken == 0 || utf8.valid >= utf8.broken {
        return Ok(Encoding::Utf8);
    }
    single_byte(text, whole)
}

/// Sequences of several bytes in a text.
struct Utf8Count {
    valid: usize,
    broken: usize,
}

impl Utf8Count {
    fn of(text: &[u8], whole: bool) -> Self {
        let mut count = Self { valid: 0, broken: 0 };
        let mut rest = text;
        loop {
            let (valid, broken) = match std::str::from_utf8(rest) {
                Ok(valid) => (valid, None),
                Err(error) => {
                    let valid = std::str::from_utf8(&rest[..error.valid_up_to()]).unwrap_or_default();
                    (valid, Some((error.valid_up_to(), error.error_len())))
                }
            };
            // Leading bytes: each stands for one sequence.
            count.valid += valid.bytes().filter(|byte| *byte >= 0xC0).count();
            match broken {
                None => return count,
                // The sample's end cuts a character off.
                Some((_, None)) => {
                    count.broken += usize::from(whole);
                    return count;
                }
                Some((at, Some(len))) => {
                    count.broken += 1;
                    rest = &rest[at + len..];
                }
            }
        }
    }
}

/// Bytes that the pattern of NULs is looked for in.
const UTF16_LOOKED_AT: usize = 64 << 10;

/// UTF-16 without a mark: one half of many pairs is NUL, and it is always the same half.
fn looks_utf16(text: &[u8]) -> Option<Encoding> {
    let (pairs, _) = text[..text.len().min(UTF16_LOOKED_AT)].as_chunks::<2>();
    let first = pairs.iter().filter(|pair| pair[0] == 0).count();
    let second = pairs.iter().filter(|pair| pair[1] == 0).count();
    let (encoding, nuls, others) =
        if second > first { (Encoding::Utf16Le, second, first) } else { (Encoding::Utf16Be, first, second) };
    if pairs.len() < 2 || others * 20 > nuls {
        return None;
    }
    let is_latin = nuls * 3 >= pairs.len() * 2;
    // Of a Russian or Chinese text only digits, delimiters and line ends have a NUL. A text of single bytes may hold NULs too, but
    // hardly ever before (or behind) every line end and nearly as many at other places, all of them even (or odd).
    let (high, low) = if encoding == Encoding::Utf16Le { (1, 0) } else { (0, 1) };
    let feeds = pairs.iter().filter(|pair| pair[low] == b'\n' && pair[high] == 0).count();
    let stray_feeds = pairs.iter().filter(|pair| pair.contains(&b'\n')).count() - feeds;
    let is_other = nuls * 20 >= pairs.len() && feeds > 0 && stray_feeds * 4 <= feeds && nuls * 2 >= feeds * 3;
    (is_latin || is_other).then_some(encoding)
}

/// A text that is no Unicode.
fn single_byte(text: &[u8], whole: bool) -> Result<Encoding, FormatError> {
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    detector.feed(text, whole);
    let found = detector.guess(None, Utf8Detection::Deny);
    if found != encoding_rs::WINDOWS_1252 {
        return Err(other_encoding(found.name()));
    }
    // 0x80 to 0x9F are letters and signs in Windows-1252, but for these five; in ISO 8859-1 they are control characters, which
    // texts do not hold. A sample without any is both: Windows-1252 is what the rest of such a file turns out to be.
    let is_latin1 = text.iter().any(|byte| matches!(byte, 0x81 | 0x8D | 0x8F | 0x90 | 0x9D));
    Ok(if is_latin1 { Encoding::Latin1 } else { Encoding::Windows1252 })
}

fn other_encoding(name: &str) -> FormatError {
    FormatError::unsupported(format!(
        "the file seems to be encoded in {name}, which is not read; convert it to UTF-8, or give format.encoding \
         (utf-8, utf-16le, utf-16be, windows-1252, iso-8859-1) if that is wrong"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FormatErrorKind;

    fn encoding(text: &[u8]) -> Encoding {
        detect(text, true, Compression::None, &GivenFormat::default()).unwrap().encoding
    }

    fn utf16(text: &str, order: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(order).collect()
    }

    #[test]
    fn compression_is_found_by_magic_bytes() {
        let auto = GivenFormat::default();
        for (bytes, expected) in [
            (&b"\x1f\x8b\x08\x00"[..], Compression::Gzip),
            (b"\x28\xb5\x2f\xfd..", Compression::Zstd),
            (b"\x5a\x2a\x4d\x18\x04\x00\x00\x00", Compression::Zstd),
            (b"BZh91AY&SY", Compression::Bzip2),
            (b"BZh1\x17\x72\x45\x38\x50\x90", Compression::Bzip2),
            (b"\xfd7zXZ\x00", Compression::Xz),
            (b"BZh9,b\n1,2\n", Compression::None),
            (b"PK,b\n", Compression::None),
            (b"", Compression::None),
        ] {
            assert_eq!(detect_compression(bytes, &auto).unwrap(), expected, "{bytes:?}");
            let plain = GivenFormat { compression: Compression::None, ..auto.clone() };
            assert_eq!(detect_compression(bytes, &plain).unwrap(), Compression::None, "what is given is obeyed");
        }
        let gzip = GivenFormat { compression: Compression::Gzip, ..auto.clone() };
        assert_eq!(detect_compression(b"\x1f\x8b\x08\x00", &gzip).unwrap(), Compression::Gzip);
        let error = detect_compression(b"BZh91AY&SY", &gzip).unwrap_err();
        assert_eq!(error.kind, FormatErrorKind::Mismatch);
        assert!(error.text.contains("gzip") && error.text.contains("bzip2"), "{error}");
        let error = detect_compression(b"PK\x03\x04....", &auto).unwrap_err();
        assert!(error.text.contains("zip archive"), "{error}");
    }

    #[test]
    fn byte_order_marks_are_obeyed() {
        for (text, expected, bom_len) in [
            (b"\xEF\xBB\xBFa,b\n".to_vec(), Encoding::Utf8, 3),
            ([b"\xFF\xFE".to_vec(), utf16("é,b\n", u16::to_le_bytes)].concat(), Encoding::Utf16Le, 2),
            ([b"\xFE\xFF".to_vec(), utf16("é,b\n", u16::to_be_bytes)].concat(), Encoding::Utf16Be, 2),
        ] {
            let found = detect(&text, true, Compression::Gzip, &GivenFormat::default()).unwrap();
            assert_eq!(found, Detected { compression: Compression::Gzip, encoding: expected, bom_len });
            let other = GivenFormat { encoding: Some(Encoding::Latin1), ..GivenFormat::default() };
            let error = detect(&text, true, Compression::None, &other).unwrap_err();
            assert!(error.text.contains("iso-8859-1"), "{error}");
        }
        let error = detect(b"\xFF\xFE\0\0a\0\0\0", true, Compression::None, &GivenFormat::default()).unwrap_err();
        assert!(error.text.contains("UTF-32"), "{error}");
    }

    #[test]
    fn utf16_is_found_without_a_mark() {
        for text in ["a,b\n1,2\n", "名前,値\n東京,1\n大阪,2\n", "имя,б\nда,2\n", "a\n"] {
            assert_eq!(encoding(&utf16(text, u16::to_le_bytes)), Encoding::Utf16Le, "{text}");
            assert_eq!(encoding(&utf16(text, u16::to_be_bytes)), Encoding::Utf16Be, "{text}");
        }
        for text in [&b"a,b\n1,\0\n"[..], b"a,b\nx\0\0\0\0,1\nyz\0\0\0,2\n", b"a,b\n\0,\0\n", b"a,b,\0\nc,d,\0\n"] {
            assert_eq!(encoding(text), Encoding::Utf8, "{text:?}");
        }
    }

    #[test]
    fn a_character_that_the_sample_cuts_off_is_no_damage() {
        let text = "naïve,日本".as_bytes();
        for end in 0..=text.len() {
            let found = detect(&text[..end], false, Compression::None, &GivenFormat::default()).unwrap();
            assert_eq!(found.encoding, Encoding::Utf8, "{end}");
        }
        assert_eq!(encoding(b"name\ncaf\xE9"), Encoding::Windows1252, "a whole file is cut nowhere");
    }

    #[test]
    fn damaged_utf8_stays_utf8() {
        let mut text = "id,town\n1,Zürich\n2,Genève\n3,Köln\n".as_bytes().to_vec();
        text.extend_from_slice(b"4,M\xFCnchen\n5,\x80\n");
        assert_eq!(encoding(&text), Encoding::Utf8);
    }

    #[test]
    fn single_bytes_are_told_apart() {
        assert_eq!(encoding(b"id,town\n1,Z\xFCrich\n2,Gen\xE8ve\n3,K\xF6ln\n"), Encoding::Windows1252);
        assert_eq!(encoding(b"id,said\n1,\x93yes\x94\n2,5 \x80\n"), Encoding::Windows1252);
        assert_eq!(encoding(b"id,town\n1,Z\xFCrich\x81\n"), Encoding::Latin1);
        let latin1 = GivenFormat { encoding: Some(Encoding::Latin1), ..GivenFormat::default() };
        let found = detect(b"\x93", true, Compression::None, &latin1).unwrap();
        assert_eq!(found.encoding, Encoding::Latin1, "what is given is obeyed");
    }

    #[test]
    fn other_encodings_are_named() {
        for (name, text) in [
            ("windows-1251", "имя,город\nМария,Москва\nИван,Санкт-Петербург\nПётр,Новосибирск\n"),
            ("Shift_JIS", "名前,町\nさくら,東京都新宿区\nたろう,大阪府大阪市\nカタカナ,テスト\n"),
        ] {
            let encoding = encoding_rs::Encoding::for_label(name.as_bytes()).unwrap();
            let (bytes, ..) = encoding.encode(text);
            let error = detect(&bytes, true, Compression::None, &GivenFormat::default()).unwrap_err();
            assert_eq!(error.kind, FormatErrorKind::Unsupported);
            assert!(error.text.contains(name) && error.text.contains("format.encoding"), "{error}");
        }
    }
}
