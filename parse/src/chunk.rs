//! A chunk's bytes to typed rows and rejects. Called by the chunk workers, on a thread of their own; never fails: what
//! cannot be read is a reject.
//!
//! Records are split first, a block of them, with every structural fault found; then each column of the block is decoded
//! while its bytes are still in the processor's cache. Blocks add up to a batch. A cell that does not read as its type makes
//! its row a reject, and the row is taken out of the batch.

use std::collections::BTreeMap;

use polars_core::prelude::{BooleanChunked, ChunkFilter, NewChunkedArray};

use longshore_domain::reject::VALUE_KEPT;
use longshore_domain::{ByteOffset, ColumnType, LineNumber, LoadPlan, Ragged, Reject, RejectReason, RowNumber};

use crate::batch::{Batch, ChunkEnd, ParsedChunk, RowNumbers, Values, Widening};
use crate::decode::{Cell, CellFault, Column, Decoder};
use crate::dialect::Dialect;
use crate::infer::{join_types, type_of};
use crate::quoted::unescape;
use crate::record::{Field, Next, QuoteFault, RawRecord, read_record};

/// Fields of a batch, and bytes that it is read from: its arrays stay in the second-level cache until they are written, and the
/// next batch gets the same memory.
const BATCH_FIELDS: usize = 1 << 15;
const BATCH_BYTES: usize = 1 << 20;

/// Bad rows of a batch: they are held until it is whole, and a bad row may be short.
const BATCH_REJECTS: usize = 1 << 12;

/// Fields of a block, and bytes that it may span: their places and their bytes fit the second-level cache.
const BLOCK_FIELDS: usize = 1 << 13;
const BLOCK_BYTES: usize = 1 << 18;

/// The bytes of a chunk, and where they stand in the file.
#[derive(Debug, Clone, Copy)]
pub struct ChunkInput<'a> {
    /// The bytes of its range.
    pub bytes: &'a [u8],
    /// The offset of the first of them in the file.
    pub start: ByteOffset,
    /// The number of its first data record.
    pub first_row: RowNumber,
    /// The physical line of its first byte behind the header.
    pub first_line: LineNumber,
}

impl<'a> ChunkInput<'a> {
    /// The bytes that hold data: without the header, where the chunk begins with it.
    fn data(&self, plan: &LoadPlan) -> &'a [u8] {
        let header = plan.data_start.0.saturating_sub(self.start.0);
        let header = usize::try_from(header).unwrap_or(usize::MAX).min(self.bytes.len());
        &self.bytes[header..]
    }
}

/// Reads a chunk; all of it is held in memory.
#[must_use]
pub fn parse_chunk(plan: &LoadPlan, input: ChunkInput<'_>) -> ParsedChunk {
    ParsedChunk::collect(|sink| read_chunk(plan, input, sink)).unwrap_or_default()
}

/// Reads a chunk, and hands each batch to `sink` as soon as it is whole; `None` where `sink` said to stop, with false.
pub fn read_chunk(plan: &LoadPlan, input: ChunkInput<'_>, sink: &mut dyn FnMut(Batch) -> bool) -> Option<ChunkEnd> {
    let dialect = dialect_of(plan);
    let data = input.data(plan);
    let mut chunk = ChunkReader {
        plan,
        dialect: &dialect,
        data,
        valid: std::str::from_utf8(data).ok(),
        empty_is_null: plan.format.null_values.iter().any(String::is_empty),
        null_values: plan.format.null_values.iter().map(String::as_bytes).filter(|null| !null.is_empty()).collect(),
        may_hold_nul: memchr::memchr(0, data).is_some(),
        fields: Vec::new(),
        rejects: Vec::new(),
        widened: BTreeMap::new(),
    };
    let mut at = 0;
    let mut position = Position { row: input.first_row.0, line: input.first_line.0 };
    while at < data.len() {
        let (end, batch) = chunk.read_batch(at, &mut position);
        at = end;
        if !batch.is_none_or(&mut *sink) {
            return None;
        }
    }
    let widenings = chunk.widened.into_iter().map(|(column, to)| Widening { column, to }).collect();
    Some(ChunkEnd { rows: position.row - input.first_row.0, widenings })
}

/// The dialect of a plan.
pub(crate) fn dialect_of(plan: &LoadPlan) -> Dialect {
    // A plan's format comes from `read_head`, which refuses what `Dialect::new` refuses.
    Dialect::new(&plan.format, plan.width).expect("the format of a plan is a dialect")
}

/// What the detail of a record begins with that is too large.
const TOO_LARGE: &str = "the record is longer than ";

/// Whether a reject holds only the beginning of its record.
#[must_use]
pub fn is_cut(reject: &Reject) -> bool {
    reject.detail.starts_with(TOO_LARGE)
}

/// The one row of an oversized chunk, from the record's beginning: a reject.
#[must_use]
pub fn oversized_reject(plan: &LoadPlan, input: ChunkInput<'_>) -> ParsedChunk {
    let data = input.data(plan);
    let mut fields = Vec::new();
    let dialect = dialect_of(plan);
    if dialect.comment.as_ref().is_some_and(|comment| data.starts_with(comment)) {
        // A comment may be as long as it likes: it is no record.
        return ParsedChunk::default();
    }
    // An unclosed quote is the usual reason for a record that does not end.
    let fault = match read_record(&dialect, data, 0, 0, &mut fields) {
        Next::Record(record) => record.fault,
        _ => None,
    };
    let most = crate::planner::Limits::default().max_record;
    let too_large = format!("{TOO_LARGE}{most} bytes");
    let (reason, column, detail) = match fault {
        Some(fault) => {
            let line = input.first_line.0 + fault.line;
            let where_from = match fault.kind {
                QuoteFault::Unclosed => format!("in a quoted field that begins at line {line}"),
                QuoteFault::TextBehindQuote => {
                    format!("and text stands behind the closing quote of the field that begins at line {line}")
                }
            };
            let column = column_name(plan, fault.field);
            (RejectReason::MalformedQuotes, column, format!("{too_large}, {where_from}"))
        }
        None => (RejectReason::RecordTooLarge, None, too_large),
    };
    ParsedChunk {
        rows: 1,
        rejects: vec![Reject {
            row: input.first_row,
            line: input.first_line,
            column,
            value: None,
            reason,
            detail,
            record: data.to_vec(),
        }],
        ..ParsedChunk::default()
    }
}

/// Raw records by number, with their lines, as far as they are in this chunk.
#[must_use]
pub fn find_records(
    plan: &LoadPlan,
    input: ChunkInput<'_>,
    rows: &[RowNumber],
) -> Vec<(RowNumber, LineNumber, Vec<u8>)> {
    let dialect = dialect_of(plan);
    let data = input.data(plan);
    let wanted: std::collections::BTreeSet<u64> = rows.iter().map(|row| row.0).collect();
    let mut found = Vec::with_capacity(wanted.len());
    let mut position = Position { row: input.first_row.0, line: input.first_line.0 };
    let mut fields = Vec::new();
    let mut at = 0;
    while found.len() < wanted.len() {
        fields.clear();
        match read_record(&dialect, data, at, at, &mut fields) {
            Next::End => break,
            Next::Skipped(next) => {
                position.line += 1;
                at = next;
            }
            Next::Record(record) => {
                if wanted.contains(&position.row) {
                    let raw = data[record.start..record.end].to_vec();
                    found.push((RowNumber(position.row), LineNumber(position.line), raw));
                }
                position.pass(&record);
                at = record.next;
            }
        }
    }
    found
}

/// The name of the column that is read from a field.
fn column_name(plan: &LoadPlan, field: usize) -> Option<String> {
    plan.fields.iter().find(|column| column.field == field).map(|column| column.name.clone())
}

#[derive(Debug, Clone, Copy)]
struct Position {
    row: u64,
    line: u64,
}

impl Position {
    fn pass(&mut self, record: &RawRecord) {
        self.row += 1;
        self.line += record.lines;
    }
}

/// The sound records of a block.
struct Records {
    /// The fields' offsets are relative to this place in the data.
    base: usize,
    /// One past the last byte that was looked at.
    end: usize,
    /// `width` fields a record.
    fields: Vec<Field>,
    /// The records' numbers.
    numbers: Vec<u64>,
}

impl Records {
    /// Whether a column has no cell that is missing or in quotes.
    fn is_plain(&self, field: usize, width: usize) -> bool {
        self.fields.iter().skip(field).step_by(width.max(1)).all(|field| field.is_plain())
    }
}

/// A batch that grows block by block.
struct Growing<'a> {
    columns: Vec<Decoder<'a>>,
    rows: usize,
    /// The number of the first row; while `listed` is `None`, the others follow without a gap.
    first: u64,
    listed: Option<Vec<u64>>,
    /// Rows of the batch that are rejects, ascending.
    faulty: Vec<usize>,
}

impl<'a> Growing<'a> {
    fn new(plan: &'a LoadPlan, first: u64) -> Self {
        let columns = plan.fields.iter().map(Decoder::new).collect();
        Self { columns, rows: 0, first, listed: None, faulty: Vec::new() }
    }

    fn reserve(&mut self, rows: usize) {
        self.columns.iter_mut().for_each(|column| column.reserve(rows));
    }

    fn number(&mut self, numbers: &[u64]) {
        let next = self.first + self.rows as u64;
        let follow = numbers.last().is_none_or(|last| *last + 1 == next + numbers.len() as u64);
        if self.listed.is_some() || !follow {
            let before = self.first..next;
            self.listed.get_or_insert_with(|| before.collect()).extend_from_slice(numbers);
        }
        self.rows += numbers.len();
    }

    fn finish(self, rejects: Vec<Reject>) -> Option<Batch> {
        let columns: Vec<Values> = self.columns.into_iter().map(Decoder::finish).collect();
        let numbers = self.listed.map_or(RowNumbers::From(self.first), RowNumbers::Listed);
        let some = self.rows > 0 || !rejects.is_empty();
        if self.faulty.is_empty() {
            return some.then_some(Batch { rows: self.rows, numbers, columns, rejects });
        }
        let mut keep = vec![true; self.rows];
        for row in &self.faulty {
            keep[*row] = false;
        }
        let rows = self.rows - self.faulty.len();
        let kept = (0..self.rows).filter(|row| keep[*row]).map(|row| numbers.get(row));
        let numbers = RowNumbers::Listed(kept.collect());
        let mask = BooleanChunked::from_slice("".into(), &keep);
        let columns = columns.into_iter().map(|column| filter(column, &mask)).collect();
        some.then_some(Batch { rows, numbers, columns, rejects })
    }
}

struct ChunkReader<'a> {
    plan: &'a LoadPlan,
    dialect: &'a Dialect,
    data: &'a [u8],
    /// All of the data, where it is UTF-8.
    valid: Option<&'a str>,
    /// Whether unquoted cells that are empty are null.
    empty_is_null: bool,
    /// The other null values.
    null_values: Vec<&'a [u8]>,
    may_hold_nul: bool,
    /// Room for a block's fields.
    fields: Vec<Field>,
    /// Those of the batch.
    rejects: Vec<Reject>,
    widened: BTreeMap<usize, ColumnType>,
}

impl ChunkReader<'_> {
    /// Splits and decodes records from `at`; where the next batch begins, and this one, unless it has neither rows nor rejects.
    fn read_batch(&mut self, at: usize, position: &mut Position) -> (usize, Option<Batch>) {
        let mut batch = Growing::new(self.plan, position.row);
        let mut end = at;
        while end < self.data.len()
            && batch.rows * self.plan.width < BATCH_FIELDS
            && self.rejects.len() < BATCH_REJECTS
            && end - at < BATCH_BYTES
        {
            let first = *position;
            let records = self.split(end, position);
            if batch.rows == 0 {
                batch.reserve(self.expected(&records, end));
            }
            self.decode(&mut batch, &records, end, first);
            end = records.end;
            self.fields = records.fields;
        }
        let mut rejects = std::mem::take(&mut self.rejects);
        // A block's structural faults are found before its other ones.
        rejects.sort_by_key(|reject| reject.row);
        (end, batch.finish(rejects))
    }

    /// How many rows a batch is going to have, by its first block: arrays that grow by doubling copy themselves, and touch
    /// memory that is new.
    fn expected(&self, block: &Records, at: usize) -> usize {
        let rows = block.numbers.len();
        let left = (self.data.len() - at).min(BATCH_BYTES);
        // Records behind may be a little shorter. Limits that are reached end the batch, whatever was expected.
        let expected = rows as u128 * left as u128 / ((block.end - at).max(1)) as u128 * 33 / 32;
        usize::try_from(expected).unwrap_or(usize::MAX).clamp(rows, (BATCH_FIELDS / self.plan.width.max(1)).max(rows))
    }

    fn split(&mut self, base: usize, position: &mut Position) -> Records {
        let width = self.plan.width;
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        let mut numbers = Vec::new();
        let mut at = base;
        // One record may be long: the limit is looked at between records.
        while fields.len() < BLOCK_FIELDS
            && numbers.len() < BLOCK_FIELDS
            && self.rejects.len() < BATCH_REJECTS
            && at - base < BLOCK_BYTES
        {
            let before = fields.len();
            match read_record(self.dialect, self.data, at, base, &mut fields) {
                Next::End => break,
                Next::Skipped(next) => {
                    position.line += 1;
                    at = next;
                }
                Next::Record(record) => {
                    match self.check(&record, position.line) {
                        Ok(()) => {
                            if record.fields != width {
                                fields.resize(before + width, Field::MISSING);
                            }
                            numbers.push(position.row);
                        }
                        Err((reason, field, detail)) => {
                            fields.truncate(before);
                            self.rejects.push(Reject {
                                row: RowNumber(position.row),
                                line: LineNumber(position.line),
                                column: field.and_then(|field| column_name(self.plan, field)),
                                value: None,
                                reason,
                                detail,
                                record: self.data[record.start..record.end].to_vec(),
                            });
                        }
                    }
                    position.pass(&record);
                    at = record.next;
                }
            }
        }
        Records { base, end: at, fields, numbers }
    }

    /// Whether an unquoted cell means null.
    #[inline]
    fn is_null(&self, cell: &[u8]) -> bool {
        if cell.is_empty() {
            self.empty_is_null
        } else {
            !self.null_values.is_empty() && self.null_values.contains(&cell)
        }
    }

    /// Whether a record's structure is sound: its quotes, its bytes, its number of fields.
    fn check(&self, record: &RawRecord, line: u64) -> Result<(), (RejectReason, Option<usize>, String)> {
        if let Some(fault) = record.fault {
            let (field, opened) = (fault.field + 1, line + fault.line);
            let detail = match fault.kind {
                QuoteFault::Unclosed => {
                    format!("the quote that opens at line {opened}, in field {field}, is never closed")
                }
                QuoteFault::TextBehindQuote => {
                    format!("text stands behind the closing quote of field {field}, which begins at line {opened}")
                }
            };
            return Err((RejectReason::MalformedQuotes, Some(fault.field), detail));
        }
        if self.valid.is_none()
            && !self.dialect.replaces
            && let Err(error) = std::str::from_utf8(&self.data[record.start..record.end])
        {
            let detail = format!("byte {} of the record is not UTF-8", error.valid_up_to() + 1);
            return Err((RejectReason::InvalidEncoding, None, detail));
        }
        let (found, width) = (record.fields, self.plan.width);
        if found == width || self.plan.format.ragged == Ragged::Pad {
            return Ok(());
        }
        let detail = format!("the record has {found} fields instead of {width}");
        if found < width {
            Err((RejectReason::MissingField, Some(found), detail))
        } else {
            Err((RejectReason::ExtraField, None, detail))
        }
    }

    /// Decodes a block that begins at `at`, column by column, and lists its rows at fault.
    fn decode(&mut self, batch: &mut Growing<'_>, records: &Records, at: usize, first: Position) {
        let mut scratch = Vec::new();
        let mut faults: BTreeMap<usize, (usize, CellFault, Vec<u8>)> = BTreeMap::new();
        for (place, (column, decoder)) in self.plan.fields.iter().zip(&mut batch.columns).enumerate() {
            let mut missed = Vec::new();
            let mut miss = |row, fault| missed.push((row, fault));
            let mut cells = Cells { reader: self, records, field: column.field, scratch: &mut scratch };
            match self.valid {
                Some(text) if records.is_plain(column.field, self.plan.width) => {
                    decoder.append(&mut PlainCells { cells: &cells, text }, &mut miss);
                }
                _ => decoder.append(&mut cells, &mut miss),
            }
            let missed: Vec<_> = missed.into_iter().map(|(row, fault)| (row, fault, cells.raw(row))).collect();
            for (row, fault, value) in missed {
                self.widen(place, &fault, &value);
                faults.entry(row).or_insert((place, fault, value));
            }
        }
        if !faults.is_empty() {
            self.reject(&faults, &records.numbers, at, first);
            batch.faulty.extend(faults.keys().map(|row| batch.rows + row));
        }
        batch.number(&records.numbers);
    }

    /// An inferred column met a cell that its type does not take.
    fn widen(&mut self, place: usize, fault: &CellFault, value: &[u8]) {
        let column = &self.plan.fields[place];
        if !column.inferred || fault.reason != RejectReason::InvalidValue {
            return;
        }
        let known = self.widened.get(&place).unwrap_or(&column.kind);
        let joined = std::str::from_utf8(value).map_or(ColumnType::Text, |text| join_types(known, &type_of(text)));
        // The type that takes both is the one that did not take it: too many digits for it, or another way of writing. What
        // was read in a format of its own does not read in another one, so only text takes both.
        let to = if joined == column.kind || !column.notation.is_plain() { ColumnType::Text } else { joined };
        if column.kind != ColumnType::Text {
            self.widened.insert(place, to);
        }
    }

    /// Lists rows whose cells do not read as their types; their raw records are found by reading the batch once more.
    fn reject(
        &mut self,
        faults: &BTreeMap<usize, (usize, CellFault, Vec<u8>)>,
        numbers: &[u64],
        at: usize,
        first: Position,
    ) {
        let batch = ChunkInput {
            bytes: &self.data[at..],
            // Behind any header: every byte is data.
            start: self.plan.data_start,
            first_row: RowNumber(first.row),
            first_line: LineNumber(first.line),
        };
        let rows: Vec<RowNumber> = faults.keys().map(|row| RowNumber(numbers[*row])).collect();
        let records = find_records(self.plan, batch, &rows);
        for ((row, line, record), (place, fault, value)) in records.into_iter().zip(faults.values()) {
            let value = value[..value.len().min(VALUE_KEPT)].to_vec();
            self.rejects.push(Reject {
                row,
                line,
                column: Some(self.plan.fields[*place].name.clone()),
                value: (fault.reason != RejectReason::NullInRequired).then_some(value),
                reason: fault.reason,
                detail: fault.detail.clone(),
                record,
            });
        }
    }
}

/// The cells of one column of a batch, for [`decode`].
struct Cells<'a, 'b> {
    reader: &'a ChunkReader<'b>,
    records: &'a Records,
    field: usize,
    scratch: &'a mut Vec<u8>,
}

impl Cells<'_, '_> {
    #[inline(always)]
    fn field(&self, row: usize) -> Field {
        self.records.fields[row * self.reader.plan.width + self.field]
    }

    /// The cell's bytes, unquoted.
    fn raw(&self, row: usize) -> Vec<u8> {
        let field = self.field(row);
        if field.is_missing() {
            return Vec::new();
        }
        let range = field.range();
        let raw = &self.reader.data[self.records.base + range.start..self.records.base + range.end];
        if !field.is_escaped() {
            return raw.to_vec();
        }
        let mut cell = Vec::new();
        unescape(self.reader.dialect, raw, &mut cell);
        cell
    }
}

/// The same where the column has no quotes and the chunk is UTF-8: what almost all columns are.
struct PlainCells<'a> {
    cells: &'a Cells<'a, 'a>,
    text: &'a str,
}

impl Column for PlainCells<'_> {
    #[inline(always)]
    fn may_hold_nul(&self) -> bool {
        self.cells.may_hold_nul()
    }

    #[inline(always)]
    fn rows(&self) -> usize {
        self.cells.rows()
    }

    #[inline(always)]
    fn cell(&mut self, row: usize) -> Cell<'_> {
        let (base, range) = (self.cells.records.base, self.cells.field(row).range());
        let Some(cell) = self.text.get(base + range.start..base + range.end) else { return Cell::NotText };
        if self.cells.reader.is_null(cell.as_bytes()) { Cell::Null } else { Cell::Text(cell) }
    }
}

impl Column for Cells<'_, '_> {
    #[inline(always)]
    fn may_hold_nul(&self) -> bool {
        self.reader.may_hold_nul
    }

    #[inline(always)]
    fn rows(&self) -> usize {
        self.records.numbers.len()
    }

    #[inline(always)]
    fn cell(&mut self, row: usize) -> Cell<'_> {
        let (reader, field) = (self.reader, self.field(row));
        if field.is_missing() {
            return Cell::Null;
        }
        let range = field.range();
        let (start, end) = (self.records.base + range.start, self.records.base + range.end);
        if !field.is_quoted() && reader.is_null(&reader.data[start..end]) {
            return Cell::Null;
        }
        if field.is_escaped() {
            unescape(reader.dialect, &reader.data[start..end], self.scratch);
            if reader.dialect.replaces {
                self.replace();
            }
            return as_text(self.scratch);
        }
        // Fields begin and end beside delimiters, quotes and line ends, which are whole characters: no character is cut.
        if let Some(text) = reader.valid {
            return text.get(start..end).map_or(Cell::NotText, Cell::Text);
        }
        match std::str::from_utf8(&reader.data[start..end]) {
            Ok(text) => Cell::Text(text),
            Err(_) if reader.dialect.replaces => {
                self.scratch.clear();
                self.scratch.extend_from_slice(&reader.data[start..end]);
                self.replace();
                as_text(self.scratch)
            }
            Err(_) => Cell::NotText,
        }
    }
}

impl Cells<'_, '_> {
    /// U+FFFD for each maximal run of the scratch that is no character.
    #[cold]
    fn replace(&mut self) {
        if std::str::from_utf8(self.scratch).is_err() {
            *self.scratch = String::from_utf8_lossy(self.scratch).into_owned().into_bytes();
        }
    }
}

fn as_text(bytes: &[u8]) -> Cell<'_> {
    std::str::from_utf8(bytes).map_or(Cell::NotText, Cell::Text)
}

fn filter(column: Values, mask: &BooleanChunked) -> Values {
    /// Mask and column have one length: both come from the same batch.
    macro_rules! filtered {
        ($array:expr) => {
            $array.filter(mask).expect("a mask as long as the column")
        };
    }
    match column {
        Values::Bool(array) => Values::Bool(filtered!(array)),
        Values::Int32(array) => Values::Int32(filtered!(array)),
        Values::Int64(array) => Values::Int64(filtered!(array)),
        Values::Float64(array) => Values::Float64(filtered!(array)),
        Values::Decimal { unscaled, scale } => Values::Decimal { unscaled: filtered!(unscaled), scale },
        Values::Text(array) => Values::Text(filtered!(array)),
        Values::Date(array) => Values::Date(filtered!(array)),
        Values::Time(array) => Values::Time(filtered!(array)),
        Values::Timestamp(array) => Values::Timestamp(filtered!(array)),
        Values::Timestamptz(array) => Values::Timestamptz(filtered!(array)),
        Values::Uuid(array) => Values::Uuid(filtered!(array)),
        Values::Json(array) => Values::Json(filtered!(array)),
        Values::Native(array) => Values::Native(filtered!(array)),
    }
}
