//! The head of a file: what it is, what its columns are called, where its data begins and what types they seem to have.
//! Called once an import by the planner, with the object's first bytes. What was given is obeyed; the rest is looked for.

use longshore_domain::{ByteOffset, Format, GivenFormat, LineEnd};

pub mod encoding;

use crate::dialect::Dialect;
use crate::error::FormatError;
use crate::head::encoding::Detected;
use crate::infer::{Inferred, infer, is_typed};
use crate::record::{Field, Next, QuoteFault, read_record, unescape};

/// Records that are looked at to find a delimiter.
const SNIFFED: usize = 200;
/// Records that types are inferred from.
const INFERRED: usize = 10_000;
/// Delimiters that are tried where none is given, the likelier first.
const DELIMITERS: [u8; 5] = [b',', b';', b'\t', b'|', b':'];

/// What the first bytes of a file tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Everything given and everything found.
    pub format: Format,
    /// The names of the columns: unique and never empty.
    pub header: Vec<String>,
    /// The header's cells as they stand in the file.
    pub raw_header: Vec<String>,
    /// How many fields a record has to have.
    pub width: usize,
    /// Where data records may begin.
    pub data_start: ByteOffset,
    /// The physical line there, from 1.
    pub data_line: u64,
    /// The type that each field seems to have.
    pub inferred: Vec<Inferred>,
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
    let skip_rows = given.skip_rows.unwrap_or(0);
    let start = skip_lines(sample, whole, bom, given)?;
    let text = &sample[start..];
    let format = find_format(text, whole, given, detected)?;

    let mut lines = Lines::new(text, whole, Dialect::new(&format, 0)?);
    let header = read_header(&mut lines, &format)?;
    let width = match &header {
        Some(cells) => cells.len(),
        None => lines.peek_width(&format)?,
    };
    if width > longshore_domain::request::MAX_COLUMNS {
        let most = longshore_domain::request::MAX_COLUMNS;
        return Err(FormatError::unsupported(format!("the file has {width} columns; at most {most} are read")));
    }
    let raw_header: Vec<String> = header.unwrap_or_else(|| (1..=width).map(|n| format!("column_{n}")).collect());
    let (data_at, lines_before) = (lines.at, lines.line);
    lines.dialect = Dialect::new(&format, width)?;
    let inferred = infer_columns(&mut lines, &format, width);
    Ok(Head {
        header: unique_names(&raw_header),
        raw_header,
        width,
        data_start: ByteOffset((start + data_at) as u64),
        data_line: 1 + u64::from(skip_rows) + lines_before,
        inferred,
        format,
    })
}

/// Where the text behind the byte order mark and `skip_rows` physical lines begins.
fn skip_lines(sample: &[u8], whole: bool, bom: usize, given: &GivenFormat) -> Result<usize, FormatError> {
    let skip_rows = given.skip_rows.unwrap_or(0);
    let returns = given.line_end == Some(LineEnd::Cr);
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

/// What was given, and what is found where nothing was.
fn find_format(text: &[u8], whole: bool, given: &GivenFormat, detected: &Detected) -> Result<Format, FormatError> {
    let mut format = Format {
        quote: given.quote.clone().unwrap_or_else(|| "\"".into()),
        line_end: given.line_end.unwrap_or_default(),
        header_rows: given.header_rows.unwrap_or(1),
        skip_rows: given.skip_rows.unwrap_or(0),
        comment: given.comment.clone(),
        ragged: given.ragged,
        encoding: detected.encoding,
        encoding_errors: given.encoding_errors,
        null_values: given.null_values.clone().unwrap_or_else(|| vec![String::new()]),
        compression: detected.compression,
        ..Format::default()
    };
    format.escape = given.escape.clone().unwrap_or_else(|| format.quote.clone());
    format.delimiter = match &given.delimiter {
        Some(delimiter) => delimiter.clone(),
        None => char::from(sniff_delimiter(text, whole, &format)?).to_string(),
    };
    if given.escape.is_none() {
        format.escape = sniff_escape(text, whole, &format)?;
    }
    if given.header_rows.is_none() && looks_headless(text, whole, &format)? {
        format.header_rows = 0;
    }
    Ok(format)
}

/// Records of the sample, one by one. A last record that the sample cuts off is none.
struct Lines<'a> {
    text: &'a [u8],
    whole: bool,
    dialect: Dialect,
    at: usize,
    line: u64,
    fields: Vec<Field>,
    fault: Option<QuoteFault>,
    /// Whether a quote stands inside an unquoted field: allowed, yet a hint that the delimiter is another one.
    stray: bool,
}

impl<'a> Lines<'a> {
    fn new(text: &'a [u8], whole: bool, dialect: Dialect) -> Self {
        Self { text, whole, dialect, at: 0, line: 0, fields: Vec::new(), fault: None, stray: false }
    }

    /// The fields of the next record, or `None` behind the last.
    fn next(&mut self) -> Option<Vec<Field>> {
        loop {
            self.fields.clear();
            match read_record(&self.dialect, self.text, self.at, 0, &mut self.fields) {
                Next::End => return None,
                Next::Skipped(next) => {
                    self.at = next;
                    self.line += 1;
                }
                Next::Record(record) => {
                    let cut = record.next == self.text.len() && !self.text.ends_with(b"\n");
                    if cut && !self.whole {
                        return None;
                    }
                    self.at = record.next;
                    self.line += record.lines;
                    self.fault = record.fault.map(|fault| fault.kind);
                    self.stray = self.dialect.quote.is_some_and(|quote| {
                        let mut unquoted = self.fields.iter().filter(|field| !field.is_quoted());
                        unquoted.any(|field| self.text[field.range()].contains(&quote))
                    });
                    return Some(self.fields.clone());
                }
            }
        }
    }

    fn cell(&self, field: Field) -> Option<String> {
        let raw = self.text.get(field.range())?;
        let mut cell = raw.to_vec();
        if field.is_escaped() {
            unescape(&self.dialect, raw, &mut cell);
        }
        if self.dialect.replaces {
            return Some(String::from_utf8_lossy(&cell).into_owned());
        }
        String::from_utf8(cell).ok()
    }

    /// The cell's text; `None`: null, or no UTF-8, which says nothing of a type.
    fn value(&self, field: Field, null_values: &[String]) -> Option<String> {
        let cell = self.cell(field)?;
        let null = !field.is_quoted() && null_values.contains(&cell);
        (!null).then_some(cell)
    }

    /// The most frequent number of fields in the next records.
    fn peek_width(&self, format: &Format) -> Result<usize, FormatError> {
        let mut lines = Lines::new(self.text, self.whole, Dialect::new(format, 0)?);
        lines.at = self.at;
        Ok(widths(&mut lines).map_or(1, |widths| widths.mode))
    }
}

struct Widths {
    mode: usize,
    /// Of all records, those with `mode` fields.
    share: f64,
    faults: usize,
    /// Of all records, those whose quotes are at fault or inside an unquoted field.
    fault_share: f64,
}

fn widths(lines: &mut Lines<'_>) -> Option<Widths> {
    let mut counts = std::collections::BTreeMap::<usize, usize>::new();
    let (mut records, mut faults, mut odd) = (0, 0, 0);
    while records < SNIFFED
        && let Some(fields) = lines.next()
    {
        *counts.entry(fields.len()).or_default() += 1;
        records += 1;
        faults += usize::from(lines.fault.is_some());
        odd += usize::from(lines.fault.is_some() || lines.stray);
    }
    let (mode, count) = counts.into_iter().max_by_key(|(width, count)| (*count, *width))?;
    let of_all = |count: usize| count as f64 / records as f64;
    Some(Widths { mode, share: of_all(count), faults, fault_share: of_all(odd) })
}

/// The candidate that cuts most records into the same number of fields, at least two; a comma where none does.
fn sniff_delimiter(text: &[u8], whole: bool, format: &Format) -> Result<u8, FormatError> {
    let mut best: Option<(u8, f64)> = None;
    for delimiter in DELIMITERS {
        let format = Format { delimiter: char::from(delimiter).to_string(), ..format.clone() };
        let Ok(dialect) = Dialect::new(&format, 0) else { continue };
        let Some(widths) = widths(&mut Lines::new(text, whole, dialect)) else { continue };
        if widths.mode < 2 {
            continue;
        }
        // Consistency first; among consistent ones the one that cuts finer.
        let mut score = (widths.share - widths.fault_share) * 100.0 + (widths.mode as f64).ln();
        if delimiter == b':' {
            // Times hold colons: it has to be in every record, the header too, and much better.
            if widths.share < 1.0 || first_line_is_a_value(text) {
                continue;
            }
            score -= 20.0;
        }
        if best.is_none_or(|(_, known)| score > known) {
            best = Some((delimiter, score));
        }
    }
    Ok(best.map_or(b',', |(delimiter, _)| delimiter))
}

/// Whether the first line as a whole is a time or the like.
fn first_line_is_a_value(text: &[u8]) -> bool {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    std::str::from_utf8(line).is_ok_and(|line| is_typed(line.trim_end_matches('\r')))
}

/// A backslash, only where doubling leaves faults and a backslash none.
fn sniff_escape(text: &[u8], whole: bool, format: &Format) -> Result<String, FormatError> {
    let faults = |escape: &str| -> Result<usize, FormatError> {
        let format = Format { escape: escape.to_owned(), ..format.clone() };
        Ok(widths(&mut Lines::new(text, whole, Dialect::new(&format, 0)?)).map_or(0, |widths| widths.faults))
    };
    let doubled = format.quote.clone();
    let may = !doubled.is_empty() && format.delimiter != "\\" && text.contains(&b'\\');
    if may && faults(&doubled)? > 0 && faults("\\")? == 0 {
        return Ok("\\".to_owned());
    }
    Ok(doubled)
}

/// Whether the first record is data: every cell of it is a number, a date or the like, and not all are empty.
fn looks_headless(text: &[u8], whole: bool, format: &Format) -> Result<bool, FormatError> {
    let mut lines = Lines::new(text, whole, Dialect::new(format, 0)?);
    let Some(fields) = lines.next() else { return Ok(false) };
    let cells: Vec<String> = fields.iter().filter_map(|field| lines.value(*field, &format.null_values)).collect();
    Ok(!cells.is_empty() && cells.iter().all(|cell| !cell.is_empty() && is_typed(cell)))
}

fn read_header(lines: &mut Lines<'_>, format: &Format) -> Result<Option<Vec<String>>, FormatError> {
    let mut header: Option<Vec<String>> = None;
    for row in 0..format.header_rows {
        let Some(fields) = lines.next() else {
            return Err(if lines.whole {
                let rows = format.header_rows;
                FormatError::mismatch(format!("header_rows is {rows}, but the file has only {row} records"))
            } else {
                FormatError::unsupported(format!("the header is longer than {} bytes", lines.text.len()))
            });
        };
        if lines.fault == Some(QuoteFault::Unclosed) {
            return Err(FormatError::mismatch(
                "a quote in the header is never closed; mend it, or give another quote".to_owned(),
            ));
        }
        let cells = fields
            .iter()
            .map(|field| lines.cell(*field))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| FormatError::unsupported("the header is not UTF-8; convert the file to UTF-8"))?;
        header = Some(match header {
            None => cells,
            Some(above) => join_header(above, cells),
        });
    }
    Ok(header)
}

/// Cells of several header records, joined by a space.
fn join_header(above: Vec<String>, below: Vec<String>) -> Vec<String> {
    let width = above.len().max(below.len());
    let (mut above, mut below) = (above.into_iter(), below.into_iter());
    (0..width)
        .map(|_| {
            let parts = [above.next().unwrap_or_default(), below.next().unwrap_or_default()];
            parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

/// Names that a table can have: `column_3` for an empty one, `a_2` for the second `a`.
fn unique_names(raw: &[String]) -> Vec<String> {
    let mut taken = std::collections::HashSet::new();
    let mut names = Vec::with_capacity(raw.len());
    for (place, cell) in raw.iter().enumerate() {
        let cell: String = cell.trim().chars().filter(|c| !c.is_control()).collect();
        let base = if cell.is_empty() { format!("column_{}", place + 1) } else { cut(&cell, 63) };
        let mut name = base.clone();
        let mut n = 2;
        while !taken.insert(name.clone()) {
            let suffix = format!("_{n}");
            name = cut(&base, 63 - suffix.len()) + &suffix;
            n += 1;
        }
        names.push(name);
    }
    names
}

/// The first bytes of a name, at a character's end.
fn cut(name: &str, bytes: usize) -> String {
    let mut end = name.len().min(bytes);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

fn infer_columns(lines: &mut Lines<'_>, format: &Format, width: usize) -> Vec<Inferred> {
    let mut columns: Vec<Vec<Option<String>>> = vec![Vec::new(); width];
    for _ in 0..INFERRED {
        let Some(fields) = lines.next() else { break };
        // A record that will be a reject says nothing of the types.
        if lines.fault.is_some() || fields.len() != width {
            continue;
        }
        for (column, field) in columns.iter_mut().zip(fields) {
            column.push(lines.value(field, &format.null_values));
        }
    }
    columns.iter().map(|cells| infer(cells.iter().map(Option::as_deref))).collect()
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
        assert_eq!(names[..5], ["a", "column_2", "a_2", "a_2_2", "b"]);
        assert!(names[5].len() <= 63 && names[6].len() <= 63 && names[5] != names[6]);
    }

    #[test]
    fn null_values_say_nothing_of_types() {
        let given = GivenFormat { null_values: Some(vec!["".into(), "NA".into()]), ..GivenFormat::default() };
        let head = read_head(b"a,b\nNA,\"NA\"\n1,x\n", true, &given, &Detected::PLAIN).unwrap();
        assert_eq!(head.inferred, [ColumnType::Int64, ColumnType::Text]);
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
