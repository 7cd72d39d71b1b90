//! Planning and reading a text, and rows in a form that tests can compare.

use std::path::PathBuf;

use longshore_domain::{
    ByteOffset, Column, ColumnType, FieldPlan, Format, GivenFormat, LineNumber, LoadPlan, RowNumber, TableName, Target,
};
use longshore_parse::{
    ChunkInput, ChunkPlanner, Dialect, Limits, ParsedChunk, PlanStart, PlannedChunk, Values, detect,
    detect_compression, map_columns, oversized_reject, parse_chunk, read_head, scan_blocks,
};

/// What became of a record.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Its cells, printed; `None` is null.
    Loaded(Vec<Option<String>>),
    /// Line, column, value, reason, detail, record.
    Rejected(u64, Option<String>, Option<Vec<u8>>, String, String, Vec<u8>),
}

/// A record's number and what became of it.
pub type Row = (u64, Outcome);

/// A plan with columns named `c1…` of the types given.
pub fn plan(format: &Format, kinds: &[ColumnType], data_start: u64, data_line: u64) -> LoadPlan {
    let names: Vec<String> = (1..=kinds.len()).map(|place| format!("c{place}")).collect();
    let fields = names.iter().zip(kinds).enumerate().map(|(field, (name, kind))| FieldPlan {
        name: name.clone(),
        kind: kind.clone(),
        field,
        nullable: true,
        inferred: false,
        notation: longshore_domain::Notation::default(),
    });
    let columns = names.iter().zip(kinds).map(|(name, kind)| Column::new(name.clone(), kind.clone()));
    LoadPlan {
        table: "t".parse::<TableName>().unwrap(),
        target: Target::NewTable,
        format: format.clone(),
        width: kinds.len(),
        header: names.clone(),
        fields: fields.collect(),
        columns: columns.collect(),
        data_start: ByteOffset(data_start),
        data_line,
    }
}

/// The plan that an import of `text` into a new table makes.
pub fn plan_of(text: &[u8], given: &GivenFormat, columns: Option<&[Column]>) -> Result<LoadPlan, String> {
    let sample = &text[..text.len().min(1 << 20)];
    let whole = sample.len() == text.len();
    let compression = detect_compression(text, given).map_err(|error| error.to_string())?;
    let detected = detect(sample, whole, compression, given).map_err(|error| error.to_string())?;
    let head = read_head(sample, whole, given, &detected).map_err(|error| error.to_string())?;
    let mapped = map_columns(&head, columns, None).map_err(|error| error.to_string())?;
    Ok(mapped.into_plan(head, "t".parse::<TableName>().unwrap(), Target::NewTable))
}

/// As [`plan_of`], with every column text.
pub fn plan_as_text(text: &[u8], given: &GivenFormat) -> Result<LoadPlan, String> {
    let mut plan = plan_of(text, given, None)?;
    for field in &mut plan.fields {
        field.kind = ColumnType::Text;
    }
    Ok(plan)
}

/// Where a fresh scan of a plan begins.
pub fn fresh(plan: &LoadPlan) -> PlanStart {
    PlanStart {
        offset: plan.data_start,
        row: RowNumber(1),
        line: LineNumber(plan.data_line),
        chunk_start: ByteOffset(0),
    }
}

/// The chunks of a text, scanned from `start` in blocks of `block` bytes.
pub fn chunks_from(
    plan: &LoadPlan,
    text: &[u8],
    start: PlanStart,
    size: usize,
    block: usize,
    limits: Limits,
) -> Vec<PlannedChunk> {
    let dialect = Dialect::new(&plan.format, plan.width).unwrap();
    let mut planner = ChunkPlanner::new(dialect, start, size as u64, limits);
    let mut chunks = Vec::new();
    for block in text[start.offset.0 as usize..].chunks(block.max(1)) {
        planner.feed(block, &mut chunks);
    }
    planner.finish(&mut chunks);
    chunks
}

/// The same from blocks of the grid, each scanned for itself.
pub fn chunks_folded(plan: &LoadPlan, text: &[u8], start: PlanStart, size: usize, limits: Limits) -> Vec<PlannedChunk> {
    let dialect = Dialect::new(&plan.format, plan.width).unwrap();
    let grid = (start.offset.0 as usize).next_multiple_of(size).min(text.len());
    let blocks = scan_blocks(&dialect, &text[grid..], size as u64);
    let mut planner = ChunkPlanner::new(dialect, start, size as u64, limits);
    let mut chunks = Vec::new();
    planner.feed(&text[start.offset.0 as usize..grid], &mut chunks);
    for block in &blocks {
        assert!(planner.fold(block, &mut chunks), "{block:?}");
    }
    planner.finish(&mut chunks);
    chunks
}

/// The chunks of a text.
pub fn chunks(plan: &LoadPlan, text: &[u8], size: usize) -> Vec<PlannedChunk> {
    chunks_from(plan, text, fresh(plan), size, text.len(), Limits::default())
}

/// Reads one chunk as a worker does.
pub fn read_chunk(plan: &LoadPlan, text: &[u8], chunk: &PlannedChunk) -> ParsedChunk {
    let bytes = &text[chunk.range.start.0 as usize..chunk.range.end.0 as usize];
    let input =
        ChunkInput { bytes, start: chunk.range.start, first_row: chunk.first_row, first_line: chunk.first_line };
    if chunk.oversized { oversized_reject(plan, input) } else { parse_chunk(plan, input) }
}

/// All rows of a text that is read in chunks of `size` bytes, by number.
pub fn rows(plan: &LoadPlan, text: &[u8], size: usize) -> Vec<Row> {
    chunks(plan, text, size).iter().flat_map(|chunk| rows_of(&read_chunk(plan, text, chunk))).collect()
}

/// The cells of a file whose every row has to load.
pub fn cells(plan: &LoadPlan, text: &[u8], size: usize) -> Vec<Vec<Option<String>>> {
    let loaded = |(number, outcome)| match outcome {
        Outcome::Loaded(cells) => cells,
        rejected => panic!("row {number} is {rejected:?}"),
    };
    rows(plan, text, size).into_iter().map(loaded).collect()
}

/// The rows of a chunk, by number.
pub fn rows_of(parsed: &ParsedChunk) -> Vec<Row> {
    let mut rows = Vec::new();
    for batch in &parsed.batches {
        for row in 0..batch.rows {
            let cells = batch.columns.iter().map(|column| cell(column, row)).collect();
            rows.push((batch.numbers.get(row), Outcome::Loaded(cells)));
        }
    }
    for reject in parsed.rejects.clone() {
        let reason = reject.reason.as_str().to_owned();
        rows.push((
            reject.row.0,
            Outcome::Rejected(reject.line.0, reject.column, reject.value, reason, reject.detail, reject.record),
        ));
    }
    rows.sort_by_key(|(number, _)| *number);
    assert_eq!(rows.len() as u64, parsed.rows, "rows read = rows loaded + rows rejected");
    rows
}

/// A cell, printed; `None` is null.
pub fn cell(column: &Values, row: usize) -> Option<String> {
    match column {
        Values::Bool(array) => array.get(row).map(|value| value.to_string()),
        Values::Int32(array) | Values::Date(array) => array.get(row).map(|value| value.to_string()),
        Values::Int64(array) | Values::Time(array) | Values::Timestamp(array) | Values::Timestamptz(array) => {
            array.get(row).map(|value| value.to_string())
        }
        // Bit by bit, so that -0 is not 0.
        Values::Float64(array) => array.get(row).map(|value| format!("{value}/{:x}", value.to_bits())),
        Values::Decimal { unscaled, scale } => unscaled.get(row).map(|value| format!("{value}e-{scale}")),
        Values::Text(array) | Values::Json(array) | Values::Native(array) => array.get(row).map(str::to_owned),
        Values::Uuid(array) => array.get(row).map(|value| format!("{value:?}")),
    }
}

/// The folder of things that others made, where this machine has it.
pub fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("LONGSHORE_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")), PathBuf::from);
    let path = root.join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("passed over: {} is not there (LONGSHORE_SHARED names another folder)", path.display());
    None
}
