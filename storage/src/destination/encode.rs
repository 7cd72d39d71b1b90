//! A chunk's rows in the formats of PostgreSQL's COPY: binary, and text where the database's own input functions have to
//! read a column.
//!
//! Pure, and CPU-bound: whoever calls it does so on a blocking thread. Output comes in pieces of about [`PIECE`] bytes.

use std::io::Write as _;
use std::ops::Range;

use longshore_parse::batch::Batch;

use super::cells::{self, Cell, Column};

/// How large a piece gets before it is handed on, in bytes. One row may be larger.
pub const PIECE: usize = 256 * 1024;

/// Opens a binary COPY: signature, flags, length of the header's extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Closes a binary COPY.
const TRAILER: &[u8] = &[0xff, 0xff];

/// Days from 1970-01-01 to PostgreSQL's epoch, 2000-01-01.
const EPOCH_DAYS: i32 = 10_957;
/// Microseconds between the same.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// COPY's text format instead of binary.
    pub text: bool,
    /// Whether the row's number in the file follows the columns.
    pub numbered: bool,
}

/// Writes rows, and hands pieces on until its sink says false.
pub struct Encoder<'a> {
    shape: Shape,
    piece: Vec<u8>,
    scratch: String,
    sink: &'a mut dyn FnMut(Vec<u8>) -> bool,
}

impl<'a> Encoder<'a> {
    /// Nothing is handed on before the first piece is full.
    pub fn new(shape: Shape, sink: &'a mut dyn FnMut(Vec<u8>) -> bool) -> Self {
        let mut piece = Vec::with_capacity(PIECE + PIECE / 8);
        if !shape.text {
            piece.extend_from_slice(HEADER);
        }
        Self { shape, piece, scratch: String::new(), sink }
    }

    /// Writes some rows of a batch, which has to be in one piece of memory ([`cells::rechunk`]); false where the sink said so.
    #[must_use]
    pub fn rows(&mut self, batch: &Batch, rows: impl Iterator<Item = usize>) -> bool {
        let columns: Vec<Column<'_>> = batch.columns.iter().map(Column::of).collect();
        for row in rows {
            let number = self.shape.numbered.then(|| batch.numbers.get(row));
            if self.shape.text {
                text_row(&mut self.piece, &mut self.scratch, &columns, row, number);
            } else {
                binary_row(&mut self.piece, &columns, row, number);
            }
            if self.piece.len() >= PIECE {
                let full = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE + PIECE / 8));
                if !(self.sink)(full) {
                    return false;
                }
            }
        }
        true
    }

    /// The last piece.
    pub fn finish(mut self) {
        if !self.shape.text {
            self.piece.extend_from_slice(TRAILER);
        }
        (self.sink)(self.piece);
    }
}

/// Writes the rows of ascending `ranges`, counted over all batches, and hands the pieces on until `sink` says false.
/// The batches have to be in one piece of memory each ([`cells::rechunk`]).
pub fn encode(batches: &[Batch], ranges: &[Range<usize>], shape: Shape, sink: &mut dyn FnMut(Vec<u8>) -> bool) {
    let mut encoder = Encoder::new(shape, sink);
    let mut base = 0;
    for batch in batches {
        let place = base..base + batch.rows;
        base = place.end;
        let within = |range: &Range<usize>| {
            range.start.clamp(place.start, place.end) - place.start
                ..range.end.clamp(place.start, place.end) - place.start
        };
        if ranges.iter().all(|range| within(range).is_empty()) {
            continue;
        }
        if !encoder.rows(batch, ranges.iter().flat_map(within)) {
            return;
        }
    }
    encoder.finish();
}

fn binary_row(out: &mut Vec<u8>, columns: &[Column<'_>], row: usize, number: Option<u64>) {
    let fields = columns.len() + usize::from(number.is_some());
    // A table has at most 1600 columns.
    out.extend_from_slice(&(fields as i16).to_be_bytes());
    for column in columns {
        binary_cell(out, column.cell(row));
    }
    if let Some(number) = number {
        eight(out, (number as i64).to_be_bytes());
    }
}

#[inline(always)]
fn binary_cell(out: &mut Vec<u8>, cell: Cell<'_>) {
    match cell {
        Cell::Null => out.extend_from_slice(&(-1i32).to_be_bytes()),
        Cell::Bool(value) => out.extend_from_slice(&[0, 0, 0, 1, u8::from(value)]),
        Cell::Int32(value) => four(out, value.to_be_bytes()),
        Cell::Int64(value) | Cell::Time(value) => eight(out, value.to_be_bytes()),
        Cell::Float64(value) => eight(out, value.to_bits().to_be_bytes()),
        Cell::Decimal(unscaled, scale) => numeric(out, unscaled, scale),
        Cell::Text(text) => bytes(out, text.as_bytes()),
        // The lowest value means minus infinity, and the highest infinity; neither may come out of a number.
        Cell::Date(days) => four(out, days.saturating_sub(EPOCH_DAYS).max(i32::MIN + 1).to_be_bytes()),
        Cell::Timestamp(micros) | Cell::Timestamptz(micros) => {
            eight(out, micros.saturating_sub(EPOCH_MICROS).max(i64::MIN + 1).to_be_bytes());
        }
        Cell::Uuid(value) => bytes(out, value),
        Cell::Json(text) => {
            // `jsonb` has a version before the text.
            out.extend_from_slice(&(text.len() as i32 + 1).to_be_bytes());
            out.push(1);
            out.extend_from_slice(text.as_bytes());
        }
    }
}

#[inline(always)]
fn four(out: &mut Vec<u8>, value: [u8; 4]) {
    let mut field = [0, 0, 0, 4, 0, 0, 0, 0];
    field[4..].copy_from_slice(&value);
    out.extend_from_slice(&field);
}

#[inline(always)]
fn eight(out: &mut Vec<u8>, value: [u8; 8]) {
    let mut field = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    field[4..].copy_from_slice(&value);
    out.extend_from_slice(&field);
}

#[inline(always)]
fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    // A record is far below 2 GiB.
    out.extend_from_slice(&(value.len() as i32).to_be_bytes());
    out.extend_from_slice(value);
}

/// `numeric`: groups of four decimal digits, aligned to the point, without empty groups at either end; the weight is the
/// place of the first group before the point, from 0.
#[inline]
fn numeric(out: &mut Vec<u8>, unscaled: i128, scale: u8) {
    /// 38 digits, cut off their alignment at both ends.
    const GROUPS: usize = 11;
    let scale = i32::from(scale);
    let mut groups = [0u16; GROUPS];
    // Filled from the back; `low` is the place of the last group: -1 is the first behind the point.
    let mut first = GROUPS;
    let low = -((scale + 3) / 4);
    let cut = (scale % 4) as u32;
    let magnitude = unscaled.unsigned_abs();
    match u64::try_from(magnitude) {
        Ok(mut rest) => {
            if cut > 0 && rest > 0 {
                let unit = 10u64.pow(cut);
                first -= 1;
                groups[first] = (rest % unit) as u16 * 10u16.pow(4 - cut);
                rest /= unit;
            }
            while rest > 0 {
                first -= 1;
                groups[first] = (rest % 10_000) as u16;
                rest /= 10_000;
            }
        }
        Err(_) => {
            let mut rest = magnitude;
            if cut > 0 {
                let unit = 10u128.pow(cut);
                first -= 1;
                groups[first] = (rest % unit) as u16 * 10u16.pow(4 - cut);
                rest /= unit;
            }
            while rest > 0 {
                first -= 1;
                groups[first] = (rest % 10_000) as u16;
                rest /= 10_000;
            }
        }
    }
    let weight = low + (GROUPS - first) as i32 - 1;
    let mut end = GROUPS;
    while end > first && groups[end - 1] == 0 {
        end -= 1;
    }
    let digits = &groups[first..end];
    let weight = if digits.is_empty() { 0 } else { weight };
    let mut field = [0u8; 12 + 2 * GROUPS];
    let length = 8 + 2 * digits.len();
    field[..4].copy_from_slice(&(length as i32).to_be_bytes());
    field[4..6].copy_from_slice(&(digits.len() as i16).to_be_bytes());
    field[6..8].copy_from_slice(&(weight as i16).to_be_bytes());
    field[8..10].copy_from_slice(&if unscaled < 0 { 0x4000u16 } else { 0 }.to_be_bytes());
    field[10..12].copy_from_slice(&(scale as i16).to_be_bytes());
    for (place, digit) in field[12..].chunks_exact_mut(2).zip(digits) {
        place.copy_from_slice(&digit.to_be_bytes());
    }
    out.extend_from_slice(&field[..4 + length]);
}

fn text_row(out: &mut Vec<u8>, scratch: &mut String, columns: &[Column<'_>], row: usize, number: Option<u64>) {
    for (i, column) in columns.iter().enumerate() {
        if i > 0 {
            out.push(b'\t');
        }
        text_cell(out, scratch, column.cell(row));
    }
    if let Some(number) = number {
        if !columns.is_empty() {
            out.push(b'\t');
        }
        // A vector takes every write.
        let _ = write!(out, "{number}");
    }
    out.push(b'\n');
}

fn text_cell(out: &mut Vec<u8>, scratch: &mut String, cell: Cell<'_>) {
    scratch.clear();
    match cell {
        Cell::Null => out.extend_from_slice(b"\\N"),
        Cell::Bool(value) => out.push(if value { b't' } else { b'f' }),
        Cell::Int32(value) => integer(out, value.into()),
        Cell::Int64(value) => integer(out, value),
        Cell::Float64(value) if value.is_infinite() => {
            out.extend_from_slice(if value > 0.0 { b"Infinity" } else { b"-Infinity" });
        }
        Cell::Float64(value) => {
            let _ = write!(out, "{value}");
        }
        Cell::Text(text) | Cell::Json(text) => escape(out, text.as_bytes()),
        Cell::Date(days) => era(out, days.into(), ""),
        Cell::Timestamp(micros) => moment(out, scratch, micros, ""),
        Cell::Timestamptz(micros) => moment(out, scratch, micros, "Z"),
        Cell::Decimal(unscaled, scale) => cells::write_decimal(scratch, unscaled, scale),
        Cell::Time(micros) => cells::write_time(scratch, micros),
        Cell::Uuid(bytes) => cells::write_uuid(scratch, bytes),
    }
    out.extend_from_slice(scratch.as_bytes());
    scratch.clear();
}

fn integer(out: &mut Vec<u8>, value: i64) {
    let _ = write!(out, "{value}");
}

fn moment(out: &mut Vec<u8>, scratch: &mut String, micros: i64, zone: &str) {
    const DAY: i64 = 86_400_000_000;
    scratch.push('T');
    cells::write_time(scratch, micros.rem_euclid(DAY));
    scratch.push_str(zone);
    era(out, micros.div_euclid(DAY), scratch);
    scratch.clear();
}

/// A date (and what follows it) as PostgreSQL reads it: no signs before years, `BC` behind those before 1.
fn era(out: &mut Vec<u8>, days: i64, after: &str) {
    let (year, month, day) = cells::civil(days);
    let (shown, suffix) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    let mut digits = *b"0000-00-00";
    if shown <= 9999 {
        // Each is below ten.
        let digit = |value: i64| b'0' + value as u8;
        for (place, unit) in [(0, 1000), (1, 100), (2, 10), (3, 1)] {
            digits[place] = digit(shown / unit % 10);
        }
        (digits[5], digits[6]) = (digit(i64::from(month / 10)), digit(i64::from(month % 10)));
        (digits[8], digits[9]) = (digit(i64::from(day / 10)), digit(i64::from(day % 10)));
        out.extend_from_slice(&digits);
    } else {
        let _ = write!(out, "{shown}-{month:02}-{day:02}");
    }
    out.extend_from_slice(after.as_bytes());
    out.extend_from_slice(suffix.as_bytes());
}

/// Escapes what COPY's text format reads as something else. A lone `\.` cannot come out, since every backslash is doubled.
fn escape(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\\' | b'\t' | b'\n' | b'\r')) {
        out.extend_from_slice(&rest[..at]);
        out.push(b'\\');
        out.push(match rest[at] {
            b'\t' => b't',
            b'\n' => b'n',
            b'\r' => b'r',
            other => other,
        });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of a numeric as `numeric_send` gives them: (weight, sign, scale, digits).
    fn read(unscaled: i128, scale: u8) -> (i16, u16, i16, Vec<i16>) {
        let mut out = Vec::new();
        numeric(&mut out, unscaled, scale);
        let word = |at: usize| i16::from_be_bytes([out[at], out[at + 1]]);
        let count = word(4) as usize;
        assert_eq!(i32::from_be_bytes([out[0], out[1], out[2], out[3]]) as usize, out.len() - 4);
        assert_eq!(out.len(), 12 + 2 * count);
        (word(6), word(8) as u16, word(10), (0..count).map(|i| word(12 + 2 * i)).collect())
    }

    #[test]
    fn numerics_are_what_numeric_send_gives() {
        // SELECT encode(numeric_send(…), 'hex') of PostgreSQL 15.
        assert_eq!(read(0, 2), (0, 0, 2, vec![]));
        assert_eq!(read(0, 0), (0, 0, 0, vec![]));
        assert_eq!(read(-1, 2), (-1, 0x4000, 2, vec![100]));
        assert_eq!(read(1, 4), (-1, 0, 4, vec![1]));
        assert_eq!(read(1, 5), (-2, 0, 5, vec![1000]));
        assert_eq!(read(123_456_789, 2), (1, 0, 2, vec![123, 4567, 8900]));
        assert_eq!(read(10_000, 0), (1, 0, 0, vec![1]));
        assert_eq!(read(100, 2), (0, 0, 2, vec![1]));
        assert_eq!(read(100_000_001, 4), (1, 0, 4, vec![1, 0, 1]));
        assert_eq!(read(10i128.pow(37), 0), (9, 0, 0, vec![10]));
        assert_eq!(
            read(10i128.pow(38) - 1, 38),
            (-1, 0, 38, {
                let mut digits = vec![9999; 9];
                digits.push(9900);
                digits
            })
        );
        assert_eq!(
            read(-(10i128.pow(38) - 1), 1),
            (9, 0x4000, 1, {
                let mut digits = vec![9];
                digits.extend([9999; 9]);
                digits.push(9000);
                digits
            })
        );
    }

    #[test]
    fn text_cells_are_escaped_and_dated_as_postgresql_reads_them() {
        let text = |cell| {
            let mut out = Vec::new();
            text_cell(&mut out, &mut String::new(), cell);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(Cell::Null), "\\N");
        assert_eq!(text(Cell::Text("\\N")), "\\\\N");
        assert_eq!(text(Cell::Text("a\tb\nc\rd\\.")), "a\\tb\\nc\\rd\\\\.");
        assert_eq!(text(Cell::Date(-719_163)), "0001-12-31 BC");
        assert_eq!(text(Cell::Date(2_932_897)), "10000-01-01");
        assert_eq!(text(Cell::Timestamptz(1)), "1970-01-01T00:00:00.000001Z");
        assert_eq!(text(Cell::Float64(f64::NEG_INFINITY)), "-Infinity");
        assert_eq!(text(Cell::Float64(f64::NAN)), "NaN");
    }
}
