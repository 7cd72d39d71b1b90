//! Reading the columns of a batch cell by cell, and the canonical text of each type.
//!
//! Pure. The encoders of PostgreSQL's COPY and the binds of SQLite sit on it.

use std::fmt::Write as _;

use polars_core::prelude::{BinaryType, BooleanType, PlSmallStr, PolarsDataType, StringChunkedBuilder, StringType};
use polars_core::utils::arrow::array::Array as _;
use polars_core::utils::arrow::bitmap::Bitmap;

use longshore_parse::batch::{Batch, Values};

type BooleanCells = <BooleanType as PolarsDataType>::Array;
type TextCells = <StringType as PolarsDataType>::Array;
type ByteCells = <BinaryType as PolarsDataType>::Array;

/// One cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cell<'a> {
    Null,
    Bool(bool),
    Int32(i32),
    Int64(i64),
    Float64(f64),
    Decimal(i128, u8),
    Text(&'a str),
    Date(i32),
    Time(i64),
    Timestamp(i64),
    Timestamptz(i64),
    Uuid(&'a [u8]),
    Json(&'a str),
}

/// One column of a batch in one piece, without a null check where there is no null.
pub(super) struct Column<'a> {
    cells: Cells<'a>,
    /// Whether a cell holds a value; `None`: all do.
    valid: Option<&'a Bitmap>,
}

enum Cells<'a> {
    Bool(&'a BooleanCells),
    Int32(&'a [i32]),
    Int64(&'a [i64]),
    Float64(&'a [f64]),
    Decimal(&'a [i128], u8),
    Text(&'a TextCells),
    Date(&'a [i32]),
    Time(&'a [i64]),
    Timestamp(&'a [i64]),
    Timestamptz(&'a [i64]),
    Uuid(&'a ByteCells),
    Json(&'a TextCells),
}

/// Runs an expression with the chunked array of whichever variant.
macro_rules! with_array {
    ($values:expr, $array:ident => $body:expr) => {
        match $values {
            Values::Bool($array) => $body,
            Values::Int32($array) | Values::Date($array) => $body,
            Values::Int64($array) | Values::Time($array) | Values::Timestamp($array) | Values::Timestamptz($array) => {
                $body
            }
            Values::Float64($array) => $body,
            Values::Decimal { unscaled: $array, .. } => $body,
            Values::Text($array) | Values::Json($array) | Values::Native($array) => $body,
            Values::Uuid($array) => $body,
        }
    };
}

/// How many cells a column has.
pub(super) fn length(values: &Values) -> usize {
    with_array!(values, array => array.len())
}

/// Puts every column of a batch into one piece of memory, as [`Column::of`] needs it.
pub(super) fn rechunk(batch: &mut Batch) {
    for values in &mut batch.columns {
        with_array!(values, array => array.rechunk_mut());
    }
}

impl<'a> Column<'a> {
    /// A column after [`rechunk`].
    pub(super) fn of(values: &'a Values) -> Self {
        let cells = match values {
            Values::Bool(array) => Cells::Bool(array.downcast_as_array()),
            Values::Int32(array) => Cells::Int32(array.downcast_as_array().values().as_slice()),
            Values::Int64(array) => Cells::Int64(array.downcast_as_array().values().as_slice()),
            Values::Float64(array) => Cells::Float64(array.downcast_as_array().values().as_slice()),
            Values::Decimal { unscaled, scale } => {
                Cells::Decimal(unscaled.downcast_as_array().values().as_slice(), *scale)
            }
            Values::Text(array) | Values::Native(array) => Cells::Text(array.downcast_as_array()),
            Values::Date(array) => Cells::Date(array.downcast_as_array().values().as_slice()),
            Values::Time(array) => Cells::Time(array.downcast_as_array().values().as_slice()),
            Values::Timestamp(array) => Cells::Timestamp(array.downcast_as_array().values().as_slice()),
            Values::Timestamptz(array) => Cells::Timestamptz(array.downcast_as_array().values().as_slice()),
            Values::Uuid(array) => Cells::Uuid(array.downcast_as_array()),
            Values::Json(array) => Cells::Json(array.downcast_as_array()),
        };
        let valid = with_array!(values, array => array.downcast_as_array().validity());
        Self { cells, valid }
    }

    /// The cell of a row.
    #[inline(always)]
    pub(super) fn cell(&self, row: usize) -> Cell<'a> {
        if let Some(valid) = &self.valid
            && !valid.get_bit(row)
        {
            return Cell::Null;
        }
        match &self.cells {
            Cells::Bool(array) => Cell::Bool(array.value(row)),
            Cells::Int32(values) => Cell::Int32(values[row]),
            Cells::Int64(values) => Cell::Int64(values[row]),
            Cells::Float64(values) => Cell::Float64(values[row]),
            Cells::Decimal(values, scale) => Cell::Decimal(values[row], *scale),
            Cells::Text(array) => Cell::Text(array.value(row)),
            Cells::Date(values) => Cell::Date(values[row]),
            Cells::Time(values) => Cell::Time(values[row]),
            Cells::Timestamp(values) => Cell::Timestamp(values[row]),
            Cells::Timestamptz(values) => Cell::Timestamptz(values[row]),
            Cells::Uuid(array) => Cell::Uuid(array.value(row)),
            Cells::Json(array) => Cell::Json(array.value(row)),
        }
    }
}

/// Digits, with zeros before them where there are fewer than `width`.
fn write_digits(out: &mut String, value: impl itoa::Integer, width: usize) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(value);
    for _ in digits.len()..width {
        out.push('0');
    }
    out.push_str(digits);
}

/// A decimal with exactly `scale` digits behind the point.
pub(super) fn write_decimal(out: &mut String, unscaled: i128, scale: u8) {
    if unscaled < 0 {
        out.push('-');
    }
    let magnitude = unscaled.unsigned_abs();
    // Most values fit 64 bits, which are written faster.
    match (u64::try_from(magnitude), 10u64.checked_pow(scale.into())) {
        (Ok(magnitude), Some(_)) if scale == 0 => write_digits(out, magnitude, 1),
        (Ok(magnitude), Some(unit)) => {
            write_digits(out, magnitude / unit, 1);
            out.push('.');
            write_digits(out, magnitude % unit, scale.into());
        }
        _ => {
            write_digits(out, magnitude, usize::from(scale) + 1);
            if scale > 0 {
                out.insert(out.len() - usize::from(scale), '.');
            }
        }
    }
}

/// A date of the proleptic Gregorian calendar from days since 1970-01-01 (H. Hinnant's `civil_from_days`).
pub(super) fn civil(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// `2013-01-01`. Years outside 0 to 9999 are written as ISO 8601's extended form, with a sign.
pub(super) fn write_date(out: &mut String, days: i64) {
    let (year, month, day) = civil(days);
    if year < 0 {
        out.push('-');
    } else if year > 9999 {
        out.push('+');
    }
    write_digits(out, year.unsigned_abs(), 4);
    out.push('-');
    write_digits(out, month, 2);
    out.push('-');
    write_digits(out, day, 2);
}

/// `10:00:00`, with six more digits where the microseconds are not zero.
pub(super) fn write_time(out: &mut String, micros: i64) {
    let seconds = micros.div_euclid(1_000_000);
    write_digits(out, seconds / 3600, 2);
    out.push(':');
    write_digits(out, seconds / 60 % 60, 2);
    out.push(':');
    write_digits(out, seconds % 60, 2);
    let fraction = micros.rem_euclid(1_000_000);
    if fraction != 0 {
        out.push('.');
        write_digits(out, fraction, 6);
    }
}

/// `2013-01-01T10:00:00`, with six more digits where the microseconds are not zero.
pub(super) fn write_timestamp(out: &mut String, micros: i64) {
    const DAY: i64 = 86_400_000_000;
    write_date(out, micros.div_euclid(DAY));
    out.push('T');
    write_time(out, micros.rem_euclid(DAY));
}

/// A UUID in lower case with hyphens; bytes of another length as they are, in hexadecimal.
pub(super) fn write_uuid(out: &mut String, bytes: &[u8]) {
    match uuid::Uuid::from_slice(bytes) {
        Ok(uuid) => {
            let _ = write!(out, "{}", uuid.hyphenated());
        }
        Err(_) => bytes.iter().for_each(|byte| {
            let _ = write!(out, "{byte:02x}");
        }),
    }
}

/// A cell in its canonical text; for values in rejects, and for databases without types.
pub(super) fn to_text(cell: Cell<'_>) -> Option<String> {
    let mut out = String::new();
    write_text(&mut out, cell).then_some(out)
}

/// Writes a cell's canonical text; false: it has none, being null.
pub(super) fn write_text(out: &mut String, cell: Cell<'_>) -> bool {
    match cell {
        Cell::Null => return false,
        Cell::Bool(value) => out.push_str(if value { "true" } else { "false" }),
        Cell::Int32(value) => write_digits(out, value, 1),
        Cell::Int64(value) => write_digits(out, value, 1),
        // A `String` takes every write.
        Cell::Float64(value) => drop(write!(out, "{value}")),
        Cell::Decimal(unscaled, scale) => write_decimal(out, unscaled, scale),
        Cell::Text(text) | Cell::Json(text) => out.push_str(text),
        Cell::Date(days) => write_date(out, days.into()),
        Cell::Time(micros) => write_time(out, micros),
        Cell::Timestamp(micros) => write_timestamp(out, micros),
        Cell::Timestamptz(micros) => {
            write_timestamp(out, micros);
            out.push('Z');
        }
        Cell::Uuid(bytes) => write_uuid(out, bytes),
    }
    true
}

/// Turns a column of values that SQLite has no type for into their text. In one piece, as after [`rechunk`].
pub(super) fn textual(values: &mut Values) {
    if matches!(
        values,
        Values::Bool(_)
            | Values::Int32(_)
            | Values::Int64(_)
            | Values::Float64(_)
            | Values::Text(_)
            | Values::Json(_)
            | Values::Native(_)
    ) {
        return;
    }
    let rows = length(values);
    let column = Column::of(values);
    let mut texts = StringChunkedBuilder::new(PlSmallStr::EMPTY, rows);
    let mut text = String::new();
    for row in 0..rows {
        text.clear();
        if write_text(&mut text, column.cell(row)) {
            texts.append_value(&text);
        } else {
            texts.append_null();
        }
    }
    *values = Values::Text(texts.finish());
}

/// One cell of a column in its canonical text; the column stays as it is.
pub(super) fn text_at(values: &Values, row: usize) -> Option<String> {
    match values {
        // The usual ones, without a pass over the whole column.
        Values::Text(array) | Values::Json(array) | Values::Native(array) => array.get(row).map(str::to_owned),
        other => to_text(Column::of(other).cell(row)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(cell: Cell<'_>) -> String {
        to_text(cell).unwrap()
    }

    #[test]
    fn decimals_keep_their_scale() {
        assert_eq!(text(Cell::Decimal(0, 2)), "0.00");
        assert_eq!(text(Cell::Decimal(-1, 2)), "-0.01");
        assert_eq!(text(Cell::Decimal(12345, 2)), "123.45");
        assert_eq!(text(Cell::Decimal(-7, 0)), "-7");
        assert_eq!(text(Cell::Decimal(10i128.pow(38) - 1, 38)), format!("0.{}", "9".repeat(38)));
        assert_eq!(text(Cell::Decimal(10i128.pow(37), 0)), format!("1{}", "0".repeat(37)));
    }

    #[test]
    fn dates_and_times_are_iso_8601() {
        assert_eq!(text(Cell::Date(0)), "1970-01-01");
        assert_eq!(text(Cell::Date(-719_162)), "0001-01-01");
        assert_eq!(text(Cell::Date(2_932_896)), "9999-12-31");
        assert_eq!(text(Cell::Date(11_016)), "2000-02-29");
        assert_eq!(text(Cell::Time(86_399_999_999)), "23:59:59.999999");
        assert_eq!(text(Cell::Timestamp(-1)), "1969-12-31T23:59:59.999999");
        assert_eq!(text(Cell::Timestamptz(1_357_034_400_000_000)), "2013-01-01T10:00:00Z");
    }
}
