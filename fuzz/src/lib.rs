//! What has to hold for every input. The fuzz targets call these with inputs that a fuzzer makes; a test of `parse` calls them
//! with each file of `corpus/`, where every input that once failed is kept.
//!
//! An input begins with nine bytes that choose how it is read, and the rest is the file. Digits choose as one would think: the
//! first of a list is `0`.

use longshore_domain::{
    ByteOffset, Column, ColumnType, Compression, Encoding, EncodingErrors, FieldPlan, Format, GivenFormat, LineEnd,
    LineNumber, LoadPlan, Notation, Ragged, RowNumber, Target,
};
use longshore_parse::{
    ChunkInput, ChunkPlanner, Detected, Dialect, Limits, ParsedChunk, PlanStart, PlannedChunk, RejectsCsv, Values,
    find_records, oversized_reject, parse_chunk, read_head, scan_blocks,
};

const DELIMITERS: [&str; 9] = [",", ";", "\t", "::", "||||", " ,", "§", ",:,", "|"];
const QUOTES: [(&str, &str); 4] = [("\"", "\""), ("\"", "\\"), ("", ""), ("'", "'")];
const COMMENTS: [Option<&str>; 4] = [None, Some("#"), Some("##"), Some("//")];
const LINE_ENDS: [LineEnd; 3] = [LineEnd::Lf, LineEnd::CrLf, LineEnd::Cr];
const LONGEST: [u64; 4] = [1 << 24, 64, 10, 1];

const START: PlanStart =
    PlanStart { offset: ByteOffset(0), row: RowNumber(1), line: LineNumber(1), chunk_start: ByteOffset(0) };

/// A file and how to read it.
struct Case<'a> {
    plan: LoadPlan,
    chunk_size: u64,
    block_size: usize,
    limits: Limits,
    text: &'a [u8],
}

fn number(byte: u8) -> usize {
    usize::from(byte.wrapping_sub(b'0'))
}

fn choose<T: Copy>(of: &[T], byte: u8) -> T {
    of[number(byte) % of.len()]
}

impl<'a> Case<'a> {
    /// `None`: the input is too short, or its choices are no dialect.
    fn new(input: &'a [u8]) -> Option<Self> {
        let (choices, text) = input.split_first_chunk::<9>()?;
        let [delimiter, quotes, comment, line_end, flags, width, chunk_size, block_size, longest] = *choices;
        let (quote, escape) = choose(&QUOTES, quotes);
        let format = Format {
            delimiter: choose(&DELIMITERS, delimiter).to_owned(),
            quote: quote.to_owned(),
            escape: escape.to_owned(),
            line_end: choose(&LINE_ENDS, line_end),
            comment: choose(&COMMENTS, comment).map(str::to_owned),
            ragged: choose(&[Ragged::Reject, Ragged::Pad], flags),
            encoding_errors: choose(
                &[EncodingErrors::Reject, EncodingErrors::Reject, EncodingErrors::Replace, EncodingErrors::Replace],
                flags,
            ),
            ..Format::default()
        };
        let width = 1 + number(width) % 12;
        Dialect::new(&format, width).ok()?;
        Some(Self {
            plan: plan(format, width)?,
            chunk_size: 1 + number(chunk_size) as u64,
            block_size: 1 + number(block_size),
            limits: Limits { max_record: choose(&LONGEST, longest) },
            text,
        })
    }

    fn chunks(&self, size: u64, block: usize) -> Vec<PlannedChunk> {
        let dialect = Dialect::new(&self.plan.format, self.plan.width).expect("looked at before");
        let mut planner = ChunkPlanner::new(dialect, START, size, self.limits);
        let mut chunks = Vec::new();
        self.text.chunks(block.max(1)).for_each(|block| planner.feed(block, &mut chunks));
        planner.finish(&mut chunks);
        chunks
    }

    fn folded(&self) -> Vec<PlannedChunk> {
        let dialect = Dialect::new(&self.plan.format, self.plan.width).expect("looked at before");
        let blocks = scan_blocks(&dialect, self.text, self.chunk_size);
        let mut planner = ChunkPlanner::new(dialect, START, self.chunk_size, self.limits);
        let mut chunks = Vec::new();
        assert!(blocks.iter().all(|block| planner.fold(block, &mut chunks)));
        planner.finish(&mut chunks);
        chunks
    }

    fn input(&self, chunk: &PlannedChunk) -> ChunkInput<'a> {
        ChunkInput {
            bytes: &self.text[chunk.range.start.0 as usize..chunk.range.end.0 as usize],
            start: chunk.range.start,
            first_row: chunk.first_row,
            first_line: chunk.first_line,
        }
    }

    fn read(&self, chunks: &[PlannedChunk]) -> Vec<(u64, String)> {
        let mut rows = Vec::new();
        for chunk in chunks {
            let input = self.input(chunk);
            let read =
                if chunk.oversized { oversized_reject(&self.plan, input) } else { parse_chunk(&self.plan, input) };
            assert_eq!(read.rows, chunk.rows, "the planner counts what the reader finds");
            rows.extend(rows_of(&read, chunk.first_row.0));
        }
        rows
    }
}

/// Columns of every type, one after the other.
fn plan(format: Format, width: usize) -> Option<LoadPlan> {
    let kinds = [
        ColumnType::Text,
        ColumnType::Int64,
        ColumnType::Decimal { precision: 15, scale: 2 },
        ColumnType::Date,
        ColumnType::Bool,
        ColumnType::Float64,
        ColumnType::Timestamptz,
        ColumnType::Uuid,
        ColumnType::Json,
        ColumnType::Time,
        ColumnType::Timestamp,
        ColumnType::Int32,
    ];
    let names: Vec<String> = (1..=width).map(|place| format!("c{place}")).collect();
    let named = || names.iter().cloned().zip(kinds.iter().cloned()).enumerate();
    Some(LoadPlan {
        table: "t".parse().ok()?,
        target: Target::NewTable,
        format,
        width,
        header: names.clone(),
        fields: named()
            .map(|(field, (name, kind))| FieldPlan {
                name,
                kind,
                field,
                nullable: field != 1,
                inferred: field > 4,
                notation: Notation::default(),
            })
            .collect(),
        columns: named()
            .map(|(field, (name, kind))| Column { nullable: field != 1, ..Column::new(name, kind) })
            .collect(),
        data_start: ByteOffset(0),
        data_line: 1,
    })
}

/// Number and content of every row: as many as were read, each once, without a gap.
fn rows_of(read: &ParsedChunk, first: u64) -> Vec<(u64, String)> {
    let mut rows = Vec::new();
    for batch in &read.batches {
        let mut before = 0;
        for row in 0..batch.rows {
            let number = batch.numbers.get(row);
            assert!(number > before, "row numbers rise strictly");
            before = number;
            let cells: Vec<Option<String>> = batch.columns.iter().map(|column| cell(column, row)).collect();
            rows.push((number, format!("{cells:?}")));
        }
    }
    assert!(read.rejects.is_sorted_by(|one, next| one.row < next.row), "rejects rise strictly");
    rows.extend(read.rejects.iter().map(|reject| (reject.row.0, format!("{reject:?}"))));
    rows.sort();
    assert_eq!(rows.len() as u64, read.rows, "rows read = rows loaded + rows rejected");
    for (place, (number, _)) in rows.iter().enumerate() {
        assert_eq!(*number, first + place as u64, "every row once");
    }
    rows
}

/// A cell, printed; `None` is null.
fn cell(column: &Values, row: usize) -> Option<String> {
    match column {
        Values::Bool(array) => array.get(row).map(|value| value.to_string()),
        Values::Int32(array) | Values::Date(array) => array.get(row).map(|value| value.to_string()),
        Values::Int64(array) | Values::Time(array) | Values::Timestamp(array) | Values::Timestamptz(array) => {
            array.get(row).map(|value| value.to_string())
        }
        Values::Float64(array) => array.get(row).map(|value| format!("{:x}", value.to_bits())),
        Values::Decimal { unscaled, .. } => unscaled.get(row).map(|value| value.to_string()),
        Values::Text(array) | Values::Json(array) | Values::Native(array) => array.get(row).map(str::to_owned),
        Values::Uuid(array) => array.get(row).map(|value| format!("{value:?}")),
    }
}

/// A file cut anywhere, scanned in blocks of any size, gives the rows of the whole.
pub fn boundary(input: &[u8]) {
    let Some(mut case) = Case::new(input) else { return };
    let chunks = case.chunks(case.chunk_size, case.text.len());
    let (mut end, mut row) = (0, 1);
    for chunk in &chunks {
        assert_eq!((chunk.range.start.0, chunk.first_row.0), (end, row), "chunks tile the file");
        assert!(chunk.range.end.0 > end, "no chunk is empty");
        (end, row) = (chunk.range.end.0, row + chunk.rows);
    }
    assert_eq!(end, case.text.len() as u64, "to its end");
    assert_eq!(case.chunks(case.chunk_size, case.block_size), chunks, "blocks of any size");
    if case.chunk_size <= case.limits.max_record {
        assert_eq!(case.folded(), chunks, "blocks that were scanned each for itself");
    }
    let cut = case.read(&chunks);
    case.limits = Limits::default();
    let whole = case.chunks(u64::MAX, case.text.len());
    let expected = case.read(&whole);
    if chunks.iter().any(|chunk| chunk.oversized) {
        assert_eq!(cut.len(), expected.len());
    } else {
        assert_eq!(cut, expected);
    }
}

/// Any bytes are a chunk: every record is loaded or a reject, and every reject can be written and looked up.
pub fn chunk(input: &[u8]) {
    let Some(case) = Case::new(input) else { return };
    let bytes =
        ChunkInput { bytes: case.text, start: ByteOffset(7), first_row: RowNumber(3), first_line: LineNumber(5) };
    let read = parse_chunk(&case.plan, bytes);
    rows_of(&read, 3);
    let rows: Vec<RowNumber> = read.rejects.iter().map(|reject| reject.row).collect();
    let found = find_records(&case.plan, bytes, &rows);
    assert_eq!(found.len(), rows.len());
    let file = RejectsCsv::new(&case.plan);
    let sheet = RejectsCsv::new(&case.plan).for_spreadsheets();
    for (reject, (row, line, record)) in read.rejects.iter().zip(found) {
        assert_eq!((reject.row, reject.line, &reject.record), (row, line, &record));
        assert!(file.line_of(reject).ends_with(b"\n") && sheet.line_of(reject).ends_with(b"\n"));
    }
    assert!(oversized_reject(&case.plan, bytes).rows <= 1);
}

/// Any bytes have a head or a reason why not, and what was found can be read by it.
pub fn head(input: &[u8]) {
    let Some(case) = Case::new(input) else { return };
    let format = &case.plan.format;
    let given = GivenFormat {
        line_end: Some(format.line_end),
        comment: format.comment.clone(),
        delimiter: (case.chunk_size % 2 == 0).then(|| format.delimiter.clone()),
        quote: (case.block_size % 2 == 0).then(|| format.quote.clone()),
        header_rows: (case.block_size % 3 == 0).then_some(case.block_size as u32 % 4),
        skip_rows: (case.chunk_size % 3 == 0).then_some(case.chunk_size as u32 % 4),
        encoding_errors: format.encoding_errors,
        ..GivenFormat::default()
    };
    for (given, whole) in
        [(GivenFormat::default(), true), (GivenFormat::default(), false), (given.clone(), true), (given, false)]
    {
        let Ok(head) = read_head(case.text, whole, &given, &Detected::PLAIN) else { continue };
        assert!(Dialect::new(&head.format, head.width).is_ok(), "{:?}", head.format);
        assert_eq!(
            (head.header.len(), head.raw_header.len(), head.inferred.len()),
            (head.width, head.width, head.width)
        );
        let names: std::collections::HashSet<&String> = head.header.iter().collect();
        assert_eq!(names.len(), head.width, "names are unique");
        assert!(head.header.iter().all(|name| !name.is_empty()), "names are not empty");
        if head.format.encoding == Encoding::Utf8 && head.format.compression == Compression::None {
            assert!(head.data_start.0 as usize <= case.text.len());
        }
    }
}
