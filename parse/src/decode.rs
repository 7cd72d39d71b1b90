//! A column's cells to one typed array, by the grammars of [`crate::cell`]. Cells come block by block: few enough that the
//! bytes of a block stay in the processor's cache while each of its columns is decoded.

use polars_core::prelude::{
    ArrowDataType, BinaryChunked, BooleanChunked, ChunkedArray, PolarsNumericType, StringChunked,
};
use polars_core::utils::arrow::array::{BooleanArray, MutableBinaryViewArray, ViewType};
use polars_core::utils::arrow::bitmap::{Bitmap, BitmapBuilder};

use longshore_domain::{ColumnType, FieldPlan, RejectReason, TimePattern};

use crate::batch::Values;
use crate::cell::{self, Fault, WrittenNumber};
use crate::infer::loses_digits;

/// A cell as it was read.
pub enum Cell<'a> {
    /// An unquoted null value, or a field that is not there.
    Null,
    /// Its text, unquoted.
    Text(&'a str),
    /// Bytes that are no UTF-8.
    NotText,
}

/// Cells of one column of a block, row by row.
pub trait Column {
    /// How many rows.
    fn rows(&self) -> usize;
    /// The cell of a row.
    fn cell(&mut self, row: usize) -> Cell<'_>;
    /// Whether any cell may hold a NUL.
    fn may_hold_nul(&self) -> bool;
}

/// Why a cell makes its row a reject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellFault {
    /// The reason.
    pub reason: RejectReason,
    /// In words.
    pub detail: String,
}

/// Decodes one column of a batch.
pub struct Decoder<'a> {
    plan: &'a FieldPlan,
    array: Array,
}

/// The array that grows.
enum Array {
    Bool(BitmapBuilder, Nulls),
    Int32(Vec<i32>, Nulls),
    Int64(Vec<i64>, Nulls),
    Float64(Vec<f64>, Nulls),
    Int128(Vec<i128>, Nulls),
    Text(MutableBinaryViewArray<str>),
    Bytes(MutableBinaryViewArray<[u8]>),
}

/// Which rows of a batch hold a value; nothing is kept before the first null.
#[derive(Default)]
struct Nulls(Option<BitmapBuilder>);

impl Nulls {
    /// The next row, behind so many.
    #[inline]
    fn push(&mut self, is_value: bool, rows: usize) {
        match &mut self.0 {
            Some(valid) => valid.push(is_value),
            None if is_value => {}
            None => self.begin(rows),
        }
    }

    /// The first null.
    #[cold]
    fn begin(&mut self, rows: usize) {
        let mut valid = BitmapBuilder::with_capacity(rows + 1);
        valid.extend_constant(rows, true);
        valid.push(false);
        self.0 = Some(valid);
    }

    fn into_validity(self) -> Option<Bitmap> {
        self.0.map(BitmapBuilder::freeze)
    }
}

impl<'a> Decoder<'a> {
    /// An empty column.
    #[must_use]
    pub fn new(plan: &'a FieldPlan) -> Self {
        let array = match &plan.kind {
            ColumnType::Bool => Array::Bool(BitmapBuilder::new(), Nulls::default()),
            ColumnType::Int32 | ColumnType::Date => Array::Int32(Vec::new(), Nulls::default()),
            ColumnType::Int64 | ColumnType::Time | ColumnType::Timestamp | ColumnType::Timestamptz => {
                Array::Int64(Vec::new(), Nulls::default())
            }
            ColumnType::Float64 => Array::Float64(Vec::new(), Nulls::default()),
            ColumnType::Decimal { .. } => Array::Int128(Vec::new(), Nulls::default()),
            ColumnType::Text | ColumnType::Json | ColumnType::Native(_) => Array::Text(MutableBinaryViewArray::new()),
            ColumnType::Uuid => Array::Bytes(MutableBinaryViewArray::new()),
        };
        Self { plan, array }
    }

    /// Makes room for so many rows.
    pub fn reserve(&mut self, rows: usize) {
        match &mut self.array {
            Array::Bool(values, _) => values.reserve(rows),
            Array::Int32(values, _) => values.reserve(rows),
            Array::Int64(values, _) => values.reserve(rows),
            Array::Float64(values, _) => values.reserve(rows),
            Array::Int128(values, _) => values.reserve(rows),
            Array::Text(values) => values.reserve(rows),
            Array::Bytes(values) => values.reserve(rows),
        }
    }

    /// Decodes a block; `miss` is told of each row of it that is a reject, in ascending order. The array holds a null there.
    pub fn append(&mut self, cells: &mut impl Column, miss: impl FnMut(usize, CellFault)) {
        let plan = self.plan;
        // Chosen for the block, not for each cell: the plain way costs nothing more.
        let written = plan.notation.has_numbers().then(|| WrittenNumber::new(&plan.notation));
        let block = Block { plan, cells, miss };
        match (&mut self.array, &plan.kind) {
            (Array::Bool(values, nulls), _) => block.each(cell::bool, |value| {
                nulls.push(value.is_some(), values.len());
                values.push(value.unwrap_or_default());
            }),
            (Array::Int32(values, nulls), ColumnType::Date) => match &plan.notation.format {
                None => block.numbers(values, nulls, cell::date),
                Some(format) => block.numbers(values, nulls, |text| cell::date_as(text, format)),
            },
            (Array::Int32(values, nulls), _) => match written {
                None => block.numbers(values, nulls, cell::int32),
                Some(mut written) => block.numbers(values, nulls, |text| cell::int32(written.plain(text)?)),
            },
            (Array::Int64(values, nulls), kind) if plan.notation.format.is_some() => {
                let format = plan.notation.format.as_ref().expect("just looked at");
                block.numbers(values, nulls, instants_as(kind, format));
            }
            (Array::Int64(values, nulls), ColumnType::Time) => block.numbers(values, nulls, cell::time),
            (Array::Int64(values, nulls), ColumnType::Timestamp) => block.numbers(values, nulls, cell::timestamp),
            (Array::Int64(values, nulls), ColumnType::Timestamptz) => block.numbers(values, nulls, cell::timestamptz),
            (Array::Int64(values, nulls), _) => match written {
                None => block.numbers(values, nulls, cell::int64),
                Some(mut written) => block.numbers(values, nulls, |text| cell::int64(written.plain(text)?)),
            },
            (Array::Float64(values, nulls), _) => match written {
                None => block.numbers(values, nulls, |text| {
                    if plan.inferred && loses_digits(text) {
                        Err("has more digits than a float64 holds")
                    } else {
                        cell::float64(text)
                    }
                }),
                Some(mut written) => block.numbers(values, nulls, |text| cell::float64(written.plain(text)?)),
            },
            (Array::Int128(values, nulls), kind) => {
                let (precision, scale) = decimal_of(kind);
                match written {
                    None => block.numbers(values, nulls, |text| cell::decimal(text, precision, scale)),
                    Some(mut written) => {
                        block.numbers(values, nulls, |text| cell::decimal(written.plain(text)?, precision, scale));
                    }
                }
            }
            (Array::Text(values), ColumnType::Json) => block.texts(values, cell::json),
            (Array::Text(values), _) if block.cells.may_hold_nul() => block.texts(values, cell::text),
            (Array::Text(values), _) => block.texts(values, |_| Ok(())),
            (Array::Bytes(values), _) => block.each(cell::uuid, |value| push(values, value.as_ref().map(|v| &v[..]))),
        }
    }

    /// The column.
    #[must_use]
    pub fn finish(self) -> Values {
        let kind = &self.plan.kind;
        match self.array {
            Array::Bool(values, nulls) => {
                let validity = nulls.into_validity();
                let array = BooleanArray::new(ArrowDataType::Boolean, values.freeze(), validity);
                Values::Bool(BooleanChunked::with_chunk("".into(), array))
            }
            Array::Int32(values, nulls) => match kind {
                ColumnType::Date => Values::Date(numbers(values, nulls)),
                _ => Values::Int32(numbers(values, nulls)),
            },
            Array::Int64(values, nulls) => match kind {
                ColumnType::Time => Values::Time(numbers(values, nulls)),
                ColumnType::Timestamp => Values::Timestamp(numbers(values, nulls)),
                ColumnType::Timestamptz => Values::Timestamptz(numbers(values, nulls)),
                _ => Values::Int64(numbers(values, nulls)),
            },
            Array::Float64(values, nulls) => Values::Float64(numbers(values, nulls)),
            Array::Int128(values, nulls) => {
                Values::Decimal { unscaled: numbers(values, nulls), scale: decimal_of(kind).1 }
            }
            Array::Text(values) => {
                let array = StringChunked::with_chunk("".into(), values.freeze());
                match kind {
                    ColumnType::Json => Values::Json(array),
                    ColumnType::Native(_) => Values::Native(array),
                    _ => Values::Text(array),
                }
            }
            Array::Bytes(values) => Values::Uuid(BinaryChunked::with_chunk("".into(), values.freeze())),
        }
    }
}

fn numbers<T: PolarsNumericType>(values: Vec<T::Native>, nulls: Nulls) -> ChunkedArray<T> {
    let validity = nulls.into_validity();
    ChunkedArray::from_vec_validity("".into(), values, validity)
}

/// The reader of a time or an instant in a format.
fn instants_as<'a>(kind: &ColumnType, format: &'a TimePattern) -> impl Fn(&str) -> Result<i64, Fault> + 'a {
    let read = match kind {
        ColumnType::Time => cell::time_as,
        ColumnType::Timestamptz => cell::timestamptz_as,
        _ => cell::timestamp_as,
    };
    move |text| read(text, format)
}

/// Precision and scale.
fn decimal_of(kind: &ColumnType) -> (u8, u8) {
    match kind {
        ColumnType::Decimal { precision, scale } => (*precision, *scale),
        other => unreachable!("an array of i128 is a decimal's, not {other}'s"),
    }
}

fn push<T: ViewType + ?Sized>(array: &mut MutableBinaryViewArray<T>, value: Option<&T>) {
    match value {
        Some(value) => array.push_value(value),
        None => array.push_null(),
    }
}

/// One block of a column.
struct Block<'a, C, M> {
    plan: &'a FieldPlan,
    cells: &'a mut C,
    miss: M,
}

impl<C: Column, M: FnMut(usize, CellFault)> Block<'_, C, M> {
    fn numbers<T: Copy + Default>(
        self,
        values: &mut Vec<T>,
        nulls: &mut Nulls,
        read: impl FnMut(&str) -> Result<T, Fault>,
    ) {
        self.each(read, |value| {
            nulls.push(value.is_some(), values.len());
            values.push(value.unwrap_or_default());
        });
    }

    fn texts(mut self, array: &mut MutableBinaryViewArray<str>, check: impl Fn(&str) -> Result<(), Fault>) {
        for row in 0..self.cells.rows() {
            let fault = match self.cells.cell(row) {
                Cell::Text(text) => match check(text) {
                    Ok(()) => {
                        array.push_value(text);
                        continue;
                    }
                    Err(fault) => Some(invalid(self.plan, fault)),
                },
                Cell::Null => null_fault(self.plan),
                Cell::NotText => Some(not_text()),
            };
            array.push_null();
            if let Some(fault) = fault {
                (self.miss)(row, fault);
            }
        }
    }

    fn each<T>(mut self, mut read: impl FnMut(&str) -> Result<T, Fault>, mut push: impl FnMut(Option<T>)) {
        for row in 0..self.cells.rows() {
            let fault = match self.cells.cell(row) {
                Cell::Text(text) => match read(text) {
                    Ok(value) => {
                        push(Some(value));
                        continue;
                    }
                    Err(fault) => Some(invalid(self.plan, fault)),
                },
                Cell::Null => null_fault(self.plan),
                Cell::NotText => Some(not_text()),
            };
            push(None);
            if let Some(fault) = fault {
                (self.miss)(row, fault);
            }
        }
    }
}

#[cold]
fn invalid(plan: &FieldPlan, fault: Fault) -> CellFault {
    let detail = format!("the cell of column '{}' ({}{}) {fault}", plan.name, plan.kind, plan.notation);
    CellFault { reason: RejectReason::InvalidValue, detail }
}

fn null_fault(plan: &FieldPlan) -> Option<CellFault> {
    (!plan.nullable).then(|| CellFault {
        reason: RejectReason::NullInRequired,
        detail: format!("column '{}' takes no null", plan.name),
    })
}

#[cold]
fn not_text() -> CellFault {
    CellFault { reason: RejectReason::InvalidEncoding, detail: "the cell is not UTF-8".into() }
}
