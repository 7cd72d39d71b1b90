//! The head of a file: what it is, what its columns are called, where its data begins and what types they seem to have.
//! Called once an import by the planner, with the object's first bytes. What was given is obeyed; the rest is looked for.
//!
//! - [`encoding`]: what was done to the text before it can be read.
//! - `sniff`: line end, delimiter, quote, escape. `layout`: what stands before the table, and how many records are its header.
//! - `header`: the names. `lines`: records of a sample.

pub mod encoding;
pub(crate) mod header;
mod layout;
mod lines;
mod sniff;

use longshore_domain::request::MAX_COLUMNS;
use longshore_domain::{ByteOffset, Format, GivenFormat, LineEnd, Ragged};

use crate::dialect::Dialect;
use crate::error::FormatError;
use crate::head::encoding::Detected;
use crate::head::header::{read_header, unique_names};
use crate::head::layout::Layout;
use crate::head::lines::Lines;
use crate::head::sniff::{Sniffer, widths};
use crate::infer::{Inferred, Tally};
use crate::record::QuoteFault;

/// Records that outvote a header.
const SURE: usize = 10;
/// Line ends behind which the records of a sample may begin.
const STARTS: usize = 16;
/// Records that types are inferred from.
const INFERRED: usize = 10_000;

/// What the first bytes of a file tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Everything given and everything found.
    pub format: Format,
    /// The names of the columns: unique and never empty.
    pub header: Vec<String>,
    /// The header's cells as they stand in the file.
    pub raw_header: Vec<String>,
    /// How many of them stand there; those behind were made to fit padded records.
    pub named: usize,
    /// How many fields a record has to have.
    pub width: usize,
    /// Where data records may begin.
    pub data_start: ByteOffset,
    /// The physical line there, from 1.
    pub data_line: u64,
    /// The type that each field seems to have.
    pub inferred: Vec<Inferred>,
    /// What that type comes of.
    tallies: Vec<Tally>,
}

/// Reads the head from the first bytes of the decoded text, which is UTF-8; `whole`: they are all of it. A byte order mark at
/// their start (of a plain UTF-8 file, which nobody decoded) is passed over and counted: offsets are those of the text as it is.
/// `detected` is what was undone to get that text; the head's format shows it.
///
/// # Errors
/// [`FormatError`]: an empty file, a header that cannot be read.
pub fn read_head(sample: &[u8], whole: bool, given: &GivenFormat, detected: &Detected) -> Result<Head, FormatError> {
    let bom = if sample.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
    if sample.len() == bom {
        return Err(FormatError::empty("the file holds no character"));
    }
    let mut format = given_format(given, detected);
    format.line_end = sniff::line_end(&sample[bom..], given);
    let mut start = skip_lines(sample, whole, bom, format.skip_rows, format.line_end)?;
    let mut text = &sample[start..];
    Sniffer { text, whole }.dialect(&mut format, given)?;

    let passed = lay_out(text, whole, &mut format, given)?;
    start += passed;
    text = &text[passed..];

    let mut lines = Lines::new(text, whole, Dialect::new(&format, 0)?);
    let header = read_header(&mut lines, &format)?;
    let cells = header.as_ref().map(Vec::len);
    let raw_header = fit_to_data(header, &lines, &format)?;
    let width = raw_header.len();
    if width > MAX_COLUMNS {
        return Err(FormatError::unsupported(format!("the file has {width} columns; at most {MAX_COLUMNS} are read")));
    }
    let (data_at, lines_before) = (lines.at, lines.line);
    lines.dialect = Dialect::new(&format, width)?;
    let mut tallies = vec![Tally::default(); width];
    tally(&mut lines, &format, &mut tallies);
    Ok(Head {
        header: unique_names(&raw_header),
        named: cells.unwrap_or(width).min(width),
        raw_header,
        width,
        data_start: ByteOffset((start + data_at) as u64),
        data_line: 1 + u64::from(format.skip_rows) + lines_before,
        inferred: tallies.iter().map(Tally::inferred).collect(),
        tallies,
        format,
    })
}

/// Joins the types with those of another sample of the decoded text, which begins where a record does. A last record that has
/// no line end is passed over. The types only become wider.
///
/// # Errors
/// None but that of a head whose format is no dialect.
pub fn infer_more(head: &mut Head, sample: &[u8]) -> Result<(), FormatError> {
    let mut lines = Lines::new(sample, false, Dialect::new(&head.format, head.width)?);
    tally(&mut lines, &head.format, &mut head.tallies);
    head.inferred = head.tallies.iter().map(Tally::inferred).collect();
    Ok(())
}

/// Joins the types with those of a sample from the middle of the file, which begins anywhere. Its records begin behind one of the
/// first line ends, the first behind which every record is sound and of the right width; where there is none (the sample lies in
/// a long quoted text), it says nothing. `false`: it said nothing.
///
/// # Errors
/// As [`infer_more`].
pub fn infer_from_middle(head: &mut Head, sample: &[u8]) -> Result<bool, FormatError> {
    let dialect = Dialect::new(&head.format, head.width)?;
    let returns = head.format.line_end == LineEnd::Cr;
    let mut start = 0;
    for _ in 0..STARTS {
        let Some(end) = line_end(&sample[start..], false, returns) else { break };
        start += end;
        let mut lines = Lines::new(&sample[start..], false, dialect.clone());
        let (mut records, mut sound) = (0, true);
        while sound && let Some(fields) = lines.next() {
            sound = fields.len() == head.width && lines.fault.is_none() && !lines.stray;
            records += 1;
        }
        // What is left is one record that the sample cuts off: more is a quote that never closes, and then nothing is sure.
        let (left, all) = (sample.len() - start - lines.at, sample.len() - start);
        let opened = lines.fault == Some(QuoteFault::Unclosed);
        if opened || (sound && (records < 2 || left * records >= all * 2)) {
            return Ok(false);
        }
        if sound {
            infer_more(head, &sample[start..])?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// What was given, and the defaults.
fn given_format(given: &GivenFormat, detected: &Detected) -> Format {
    let quote = given.quote.clone().unwrap_or_else(|| "\"".into());
    let plain = Format::default();
    Format {
        delimiter: given.delimiter.clone().unwrap_or(plain.delimiter),
        escape: given.escape.clone().unwrap_or_else(|| quote.clone()),
        quote,
        header_rows: given.header_rows.unwrap_or(1),
        skip_rows: given.skip_rows.unwrap_or(0),
        comment: given.comment.clone(),
        ragged: given.ragged,
        encoding: detected.encoding,
        encoding_errors: given.encoding_errors,
        null_values: given.null_values.clone().unwrap_or(plain.null_values),
        compression: detected.compression,
        kind: plain.kind,
        line_end: plain.line_end,
    }
}

/// Where the text behind the byte order mark and `skip_rows` physical lines begins.
fn skip_lines(sample: &[u8], whole: bool, bom: usize, skip_rows: u32, end: LineEnd) -> Result<usize, FormatError> {
    let returns = end == LineEnd::Cr;
    let mut start = bom;
    for line in 0..skip_rows {
        let Some(end) = line_end(&sample[start..], whole, returns) else {
            let text = format!("skip_rows is {skip_rows}, but only {line} lines end in the file's first bytes");
            return Err(FormatError::mismatch(text));
        };
        start += end;
    }
    Ok(start)
}

/// The place behind the first line end; of a sample's last byte it is not known what follows a carriage return.
fn line_end(text: &[u8], whole: bool, returns: bool) -> Option<usize> {
    if !returns {
        return memchr::memchr(b'\n', text).map(|end| end + 1);
    }
    let end = memchr::memchr2(b'\n', b'\r', text)?;
    match &text[end..] {
        [b'\r', b'\n', ..] => Some(end + 2),
        [b'\r'] if !whole => None,
        _ => Some(end + 1),
    }
}

/// Finds `skip_rows` and `header_rows` where they were not given; gives the bytes to pass over.
fn lay_out(text: &[u8], whole: bool, format: &mut Format, given: &GivenFormat) -> Result<usize, FormatError> {
    let mode = widths(&mut Lines::new(text, whole, Dialect::new(format, 0)?)).map_or(1, |widths| widths.mode);
    let mut layout = Layout::new(text, whole, format, mode)?;
    let mut passed = 0;
    if given.skip_rows.is_none()
        && given.header_rows != Some(0)
        && let Some((bytes, line_ends)) = layout.pass_preamble()
    {
        passed = bytes;
        format.skip_rows = u32::try_from(line_ends).unwrap_or(u32::MAX);
    }
    if given.header_rows.is_none() {
        format.header_rows = layout.header_rows();
    }
    Ok(passed)
}

/// The header's cells, one for each field that a record has to have. Without a header that is what most records have. With one it is
/// what the header has; only where ragged records are padded, and [`SURE`] records or more agree, a header that itself is ragged is made to fit the data,
/// so that no field is dropped of all records.
fn fit_to_data(header: Option<Vec<String>>, lines: &Lines<'_>, format: &Format) -> Result<Vec<String>, FormatError> {
    let named = |from: usize, to: usize| (from..=to).map(|place| format!("column_{place}"));
    let mut rest = Lines::new(lines.text, lines.whole, Dialect::new(format, 0)?);
    rest.at = lines.at;
    let data = widths(&mut rest);
    let Some(mut header) = header else {
        return Ok(named(1, data.map_or(1, |data| data.mode)).collect());
    };
    let Some(data) = data.filter(|data| format.ragged == Ragged::Pad && data.records >= SURE && data.share >= 0.9)
    else {
        return Ok(header);
    };
    if data.mode > header.len() {
        header.extend(named(header.len() + 1, data.mode));
    } else {
        let empty = header.iter().filter(|cell| cell.trim().is_empty()).count();
        if header.len() - data.mode == empty {
            header.retain(|cell| !cell.trim().is_empty());
        }
    }
    Ok(header)
}

fn tally(lines: &mut Lines<'_>, format: &Format, tallies: &mut [Tally]) {
    for _ in 0..INFERRED {
        let Some(fields) = lines.next() else { break };
        // A record that will be a reject says nothing of the types.
        if lines.fault.is_some() || fields.len() != tallies.len() {
            continue;
        }
        for (tally, field) in tallies.iter_mut().zip(fields) {
            if let Some(cell) = lines.value(field, &format.null_values) {
                tally.add(&cell);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FormatErrorKind;
    use longshore_domain::{ColumnType, Compression, Encoding, EncodingErrors};

    fn head(text: &str) -> Head {
        read_head(text.as_bytes(), true, &GivenFormat::default(), &Detected::PLAIN).unwrap()
    }

    fn fails(bytes: &[u8], given: &GivenFormat) -> (FormatErrorKind, String) {
        let error = read_head(bytes, true, given, &Detected::PLAIN).unwrap_err();
        (error.kind, error.to_string())
    }

    #[test]
    fn a_plain_file_is_read_as_it_is() {
        let head = head("id,name,at\n1,a,2013-01-01\n2,,2013-01-02\n");
        assert_eq!(head.header, ["id", "name", "at"]);
        assert_eq!((head.width, head.data_start, head.data_line), (3, ByteOffset(11), 2));
        assert_eq!(head.inferred, [ColumnType::Int64, ColumnType::Text, ColumnType::Date]);
        assert_eq!(head.format, Format::default());
    }

    #[test]
    fn a_column_of_times_is_one_column() {
        for text in ["t\n10:00\n11:30\n", "t\n2013-01-01 10:00\n", "10:00\n11:30\n"] {
            let head = read_head(text.as_bytes(), true, &GivenFormat::default(), &Detected::PLAIN).unwrap();
            assert_eq!(head.width, 1, "{text:?}");
        }
    }

    #[test]
    fn delimiters_are_found() {
        for (text, delimiter) in [
            ("a;b\n1,5;2\n3,5;4\n", ";"),
            ("a\tb\n1\t2,3\n", "\t"),
            ("a|b|c\n1|2|3\n", "|"),
            ("a,b\n10:00:00,2\n11:00:00,3\n", ","),
            ("a\n1\n", ","),
            ("a,\"b;c;d\"\n1,\"x;y;z\"\n", ","),
        ] {
            assert_eq!(head(text).format.delimiter, delimiter, "{text:?}");
        }
    }

    #[test]
    fn what_is_given_is_obeyed() {
        let given = GivenFormat {
            delimiter: Some(",".into()),
            header_rows: Some(2),
            skip_rows: Some(1),
            ..GivenFormat::default()
        };
        let head = read_head(b"title; of; it\na,\nx,y\n1,2\n", true, &given, &Detected::PLAIN).unwrap();
        assert_eq!(head.header, ["a x", "y"]);
        assert_eq!((head.data_start, head.data_line), (ByteOffset(21), 4));
        assert_eq!(head.inferred, [ColumnType::Int64, ColumnType::Int64]);
    }

    #[test]
    fn a_file_of_numbers_has_no_header() {
        let head = head("1,2013-01-01\n2,2013-01-02\n");
        assert_eq!((head.format.header_rows, head.header[0].as_str(), head.data_start), (0, "column_1", ByteOffset(0)));
        assert_eq!(self::head("a,2019\nx,2\n").format.header_rows, 1);
    }

    #[test]
    fn byte_order_mark_and_crlf() {
        let head = head("\u{feff}id,b\r\n1,2\r\n");
        assert_eq!(head.header, ["id", "b"]);
        assert_eq!(head.data_start, ByteOffset(9));
    }

    #[test]
    fn a_backslash_escapes_only_where_doubling_fails() {
        assert_eq!(head("a,b\n\"x\\\"y\",2\n").format.escape, "\\");
        assert_eq!(head("a,b\n\"C:\\\",2\n").format.escape, "\"");
    }

    #[test]
    fn names_are_unique_and_never_empty() {
        let long = "é".repeat(40);
        let names = unique_names(&["a", "", "a", "a_2", " b ", &long, &long].map(String::from));
        assert_eq!(names[..5], ["a", "column_2", "a_3", "a_2", "b"]);
        assert!(names[5].len() <= 63 && names[6].len() <= 63 && names[5] != names[6]);
    }

    #[test]
    fn null_values_say_nothing_of_types() {
        let given = GivenFormat { null_values: Some(vec!["".into(), "NA".into()]), ..GivenFormat::default() };
        let head = read_head(b"a,b\nNA,\"NA\"\n1,x\n", true, &given, &Detected::PLAIN).unwrap();
        assert_eq!(head.inferred, [ColumnType::Int64, ColumnType::Text]);
    }

    #[test]
    fn a_header_with_a_broken_quote_is_mended_where_the_data_say_so() {
        for text in ["a,\"b,\"c\",d\n1,2,3,4\n5,6,7,8\n", "a,b,c,\"d\n1,\"x\",3,4\n5,6,7,8\n"] {
            let head = head(text);
            assert_eq!((head.width, head.data_line), (4, 2), "{text:?}");
            assert!(head.header.iter().any(|name| name.starts_with('"')), "{:?}", head.header);
        }
    }

    #[test]
    fn further_samples_widen_types() {
        let mut head = head("a,b,c,d\n1,1,,2013-01-01\n");
        infer_more(&mut head, b"2,007,5,x\n2.5,8,6,\"y\"\n9,9,cut off").unwrap();
        let kinds: Vec<String> = head.inferred.iter().map(|found| found.kind.to_string()).collect();
        assert_eq!(kinds, ["decimal(38,1)", "text", "int64", "text"]);
        infer_more(&mut head, b"1,1,1,1\n").unwrap();
        assert_eq!(head.inferred[1], ColumnType::Text, "text stays text");
    }

    #[test]
    fn unusual_dialects_are_found() {
        let q = Format::default();
        for (text, expected) in [
            ("a~b~c\n1~2~3\n4~5~6\n", Format { delimiter: "~".into(), ..q.clone() }),
            ("a^b\n1^2\n3^4\n", Format { delimiter: "^".into(), ..q.clone() }),
            ("a\x01b\nx, y\x012\n", Format { delimiter: "\x01".into(), ..q.clone() }),
            ("a\x1fb\n1\x1f2\n", Format { delimiter: "\x1f".into(), ..q.clone() }),
            ("a||b||c\n1||2||3\n", Format { delimiter: "||".into(), ..q.clone() }),
            ("a\t\tb\n1\t\t2\n\t\t3\n", Format { delimiter: "\t\t".into(), ..q.clone() }),
            ("a\t\tb\n1\t\t2\n3\t4\t5\n", Format { delimiter: "\t".into(), ..q.clone() }),
            (
                "a,b\r1,'x\ny'\r2,'z'\r",
                Format { line_end: LineEnd::Cr, quote: "'".into(), escape: "'".into(), ..q.clone() },
            ),
            ("a::b\n1::2\n3::4\n", Format { delimiter: "::".into(), ..q.clone() }),
            ("a, b\n1, \"2, 3\"\n", Format { delimiter: ", ".into(), ..q.clone() }),
            ("a; b\n1; 2,5\n", Format { delimiter: "; ".into(), ..q.clone() }),
            ("a b c\n1 2 \"x y\"\n4 5 6\n", Format { delimiter: " ".into(), ..q.clone() }),
            ("a,b\n'x, y','it''s'\n'z','w'\n", Format { quote: "'".into(), escape: "'".into(), ..q.clone() }),
            ("a,b\r1,2\r3,\"x\ny\"\r", Format { line_end: LineEnd::Cr, ..q.clone() }),
            ("a,b\r\n1,2\r\n", Format { line_end: LineEnd::CrLf, ..q.clone() }),
            ("a,b\n\"5 in,2\n\"6 in,3\n", Format { quote: String::new(), escape: String::new(), ..q.clone() }),
            ("a,b\n1,x y z\n2,it's\n", q.clone()),
            ("a, b\n1,2\n", q),
        ] {
            assert_eq!(head(text).format, expected, "{text:?}");
        }
    }

    #[test]
    fn a_preamble_is_passed_over_only_on_evidence() {
        for (text, skip, line) in [
            ("Report of 2020\n\nid,name,n\n1,a,2\n2,b,3\n", 2, 4),
            ("# made by x\n# y\nid,name\na,b\nc,d\n", 2, 4),
            ("Title,,\nid,name,n\n1,a,2\n2,b,3\n", 1, 3),
            ("x\nid,name\na,b\nc,d\n", 0, 2),
            ("id,name\n1,a\n2,b\n", 0, 2),
            ("idname\n1,a\n2,b\n3,c\n", 0, 2),
        ] {
            let head = head(text);
            assert_eq!((head.format.skip_rows, head.data_line), (skip, line), "{text:?}");
        }
    }

    #[test]
    fn header_records_are_counted_only_on_evidence() {
        for (text, rows) in [
            ("a,b\na,b\n1,2\n", 2),
            (",x,,y\nid,min,max,n\n1,2,3,4\n1,2,3,4\n1,2,3,4\n", 2),
            ("name,x,y\nbob,NA,-\nann,1,2\neve,3,4\njoe,5,6\n", 1),
            ("10:00,x\n11:00,y\n", 0),
            ("AB-1234,x\nCD-5678,y\nEF-9012,z\nGH-3456,w\n", 0),
            ("country,2019,2020\nDE,1,2\nFR,3,4\n", 1),
            ("bob,x\nann,y\n", 1),
            ("col1,col2\nval1,val2\nval3,val4\nval5,val6\n", 1),
            ("item_01,b\nprod_02,x\nprod_03,y\nprod_04,z\n", 1),
        ] {
            assert_eq!(head(text).format.header_rows, rows, "{text:?}");
        }
    }

    #[test]
    fn a_sample_from_the_middle_speaks_only_where_its_records_are_sure() {
        let text = "id,note\n1,a\n2,b\n";
        let mut head = head(text);
        assert!(infer_from_middle(&mut head, b"7,x\n8,y\n2.5,z\n9,\"q\nr\"\n10,cut").unwrap());
        assert_eq!(head.inferred[0].kind.to_string(), "decimal(38,1)");
        // In the middle of a quoted text that looks like records of another width, or of one that never ends here.
        for sample in ["x y\nz\nw w\nv\n", "a\"\n", "no line end", "t\n1,\"opened\n2,3\n4,5\n6,7\n8,9\n"] {
            assert!(!infer_from_middle(&mut head, sample.as_bytes()).unwrap(), "{sample:?}");
        }
        assert_eq!(head.inferred[0].kind.to_string(), "decimal(38,1)");
    }

    #[test]
    fn the_header_says_how_wide_records_are_unless_many_padded_ones_agree() {
        let pad = GivenFormat { ragged: Ragged::Pad, ..GivenFormat::default() };
        let read = |text: &str, given: &GivenFormat| read_head(text.as_bytes(), true, given, &Detected::PLAIN).unwrap();
        for (header, record, padded) in [
            ("ab,c", "1,2,3", &["ab", "c", "column_3"][..]),
            (",a,b", "1,2", &["a", "b"]),
            ("x,a,b", "1,2", &["x", "a", "b"]),
        ] {
            let width = header.split(',').count();
            let few = format!("{header}\n{record}\n{record}\n");
            assert_eq!((read(&few, &pad).width, read(&few, &GivenFormat::default()).width), (width, width), "{few:?}");
            let many = format!("{header}\n{}", format!("{record}\n").repeat(SURE));
            assert_eq!(read(&many, &pad).header, padded, "{many:?}");
            assert_eq!(read(&many, &GivenFormat::default()).width, width, "obeyed where rows are rejected");
        }
    }

    #[test]
    fn what_was_undone_is_shown() {
        let detected = Detected { compression: Compression::Gzip, encoding: Encoding::Latin1, bom_len: 0 };
        let format = read_head("ä,b\n".as_bytes(), true, &GivenFormat::default(), &detected).unwrap().format;
        assert_eq!((format.compression, format.encoding), (Compression::Gzip, Encoding::Latin1));
    }

    #[test]
    fn a_damaged_header_is_mended_where_asked() {
        let given = GivenFormat { encoding_errors: EncodingErrors::Replace, ..GivenFormat::default() };
        let head = read_head(b"a\xff,b\n", true, &given, &Detected::PLAIN).unwrap();
        assert_eq!(head.header, ["a\u{fffd}", "b"]);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let default = GivenFormat::default();
        assert_eq!(fails(b"", &default).0, FormatErrorKind::Empty);
        assert_eq!(fails(b"\xEF\xBB\xBF", &default).0, FormatErrorKind::Empty);
        let (kind, text) = fails(b"a\xff,b\n", &default);
        assert_eq!(kind, FormatErrorKind::Unsupported);
        assert!(text.contains("UTF-8"), "{text}");
        let skip = GivenFormat { skip_rows: Some(9), ..default.clone() };
        assert!(fails(b"a\nb\n", &skip).1.contains("only 2 lines"));
        assert!(fails(b"\"a,b\n1,2\n", &default).1.contains("never closed"));
    }

    #[test]
    fn a_sample_that_cuts_a_record_off_does_not_count_it() {
        let head = read_head(b"a,b\n1,2\n3,x", false, &GivenFormat::default(), &Detected::PLAIN).unwrap();
        assert_eq!(head.inferred, [ColumnType::Int64, ColumnType::Int64]);
    }
}
