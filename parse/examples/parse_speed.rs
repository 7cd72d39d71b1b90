//! Measures how fast a CSV file is planned and read on one thread: `parse_speed FILE [CHUNK_SIZE]`.
//!
//! The file is held in memory, so that no disk is measured; each figure is the best of three runs, in
//! seconds that the thread spent on a processor (Linux): what else runs on the machine counts less.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use longshore_domain::{
    ByteOffset, ColumnType, Compression, GivenFormat, LineEnd, LineNumber, LoadPlan, RowNumber, Target,
};
use longshore_parse::{
    ChunkInput, ChunkPlanner, Dialect, Limits, PlanStart, PlannedChunk, detect, map_columns, parse_chunk, read_head,
    scan_blocks,
};

/// The program's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().expect("usage: parse_speed FILE [CHUNK_SIZE]");
    let size = arguments.next().map_or(8 << 20, |size| size.parse().expect("CHUNK_SIZE is a number of bytes"));
    let text = std::fs::read(&path).expect("FILE is readable");
    let mut plan = plan_of(&text);
    // As a table of TPC-H has it.
    for column in &mut plan.fields {
        if matches!(column.kind, ColumnType::Decimal { .. }) {
            column.kind = ColumnType::Decimal { precision: 15, scale: 2 };
        }
    }
    let types: Vec<String> = plan.fields.iter().map(|field| format!("{} {}", field.name, field.kind)).collect();
    println!("{}: {} MB; {}", path, text.len() / 1_000_000, types.join(", "));

    let chunks = report("planner", &text, || scan(&plan, &text, size));
    let dialect = Dialect::new(&plan.format, plan.width).unwrap();
    report("blocks, for all states", &text, || scan_blocks(&dialect, &text, size));
    report("exact reader", &text, || read(&plan, &text, &chunks));
    let names: Vec<String> = plan.fields.iter().map(|field| field.kind.to_string()).collect();
    let all = plan.fields.clone();
    let mut measured = std::collections::BTreeSet::new();
    for (field, name) in all.iter().zip(names) {
        if measured.insert(name.clone()) {
            // Every column from the same field: splitting costs once, decoding `all.len()` times.
            plan.fields = vec![field.clone(); all.len()];
            report(&format!("{} times {name} ({})", all.len(), field.name), &text, || read(&plan, &text, &chunks));
        }
    }
    let names: Vec<ColumnType> = all.iter().map(|field| field.kind.clone()).collect();
    // Polars works on a pool of its own, so its time is the clock's: run this with POLARS_MAX_THREADS=1 on a quiet machine.
    for (what, all_text) in
        [("polars' own reader, int64, float64, text", false), ("polars' own reader, all text", true)]
    {
        let start = std::time::Instant::now();
        polars(&names, &text, &chunks, plan.data_start, all_text);
        println!("{what:>45}: {:7.0} MB/s", text.len() as f64 / 1e6 / start.elapsed().as_secs_f64());
    }
    plan.fields.clear();
    report("split only", &text, || read(&plan, &text, &chunks));
    for (what, delimiter, line_end) in [
        ("CR ends lines", ",", LineEnd::Cr),
        ("delimiter ::", "::", LineEnd::Lf),
        ("delimiter §, CR ends lines", "§", LineEnd::Cr),
    ] {
        measure_variant(plan.clone(), &text, size, what, delimiter, line_end);
    }
}

/// The same records in another dialect: scanned, and split.
fn measure_variant(mut plan: LoadPlan, text: &[u8], size: u64, what: &str, delimiter: &str, line_end: LineEnd) {
    let of = |byte: u8| match byte {
        b',' => delimiter.as_bytes(),
        b'\n' if line_end == LineEnd::Cr => b"\r",
        _ => &[],
    };
    let change = |text: &[u8]| {
        let mut changed = Vec::with_capacity(text.len() + text.len() / 4);
        for byte in text {
            let other = of(*byte);
            changed.extend_from_slice(if other.is_empty() { std::slice::from_ref(byte) } else { other });
        }
        changed
    };
    plan.data_start = ByteOffset(change(&text[..plan.data_start.0 as usize]).len() as u64);
    plan.format.delimiter = delimiter.to_owned();
    plan.format.line_end = line_end;
    let text = change(text);
    let chunks = report(&format!("planner, {what}"), &text, || scan(&plan, &text, size));
    report(&format!("split only, {what}"), &text, || read(&plan, &text, &chunks));
}

fn report<T>(what: &str, text: &[u8], mut run: impl FnMut() -> T) -> T {
    let mut best = f64::INFINITY;
    let mut last = None;
    for _ in 0..3 {
        let start = on_cpu();
        last = Some(run());
        best = best.min(on_cpu() - start);
    }
    println!("{what:>45}: {:7.0} MB/s", text.len() as f64 / 1e6 / best);
    last.unwrap()
}

/// Seconds that this thread ran.
fn on_cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a Linux with schedstat");
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn plan_of(text: &[u8]) -> LoadPlan {
    let sample = &text[..text.len().min(1 << 20)];
    let whole = sample.len() == text.len();
    let given = GivenFormat::default();
    let detected = detect(sample, whole, Compression::None, &given).unwrap();
    let head = read_head(sample, whole, &given, &detected).unwrap();
    let mapped = map_columns(&head, None, None).unwrap();
    LoadPlan {
        table: "measured".parse().unwrap(),
        target: Target::NewTable,
        format: head.format,
        width: head.width,
        header: head.header,
        fields: mapped.fields,
        columns: mapped.columns,
        data_start: head.data_start,
        data_line: head.data_line,
    }
}

fn scan(plan: &LoadPlan, text: &[u8], size: u64) -> Vec<PlannedChunk> {
    let start = PlanStart {
        offset: plan.data_start,
        row: RowNumber(1),
        line: LineNumber(plan.data_line),
        chunk_start: ByteOffset(0),
    };
    let dialect = Dialect::new(&plan.format, plan.width).unwrap();
    let mut planner = ChunkPlanner::new(dialect, start, size, Limits::default());
    let mut chunks = Vec::new();
    for block in text[plan.data_start.0 as usize..].chunks(1 << 20) {
        planner.feed(block, &mut chunks);
    }
    planner.finish(&mut chunks);
    chunks
}

fn read(plan: &LoadPlan, text: &[u8], chunks: &[PlannedChunk]) -> u64 {
    let mut rows = 0;
    for chunk in chunks {
        let bytes = &text[chunk.range.start.0 as usize..chunk.range.end.0 as usize];
        let input =
            ChunkInput { bytes, start: chunk.range.start, first_row: chunk.first_row, first_line: chunk.first_line };
        let parsed = parse_chunk(plan, input);
        assert!(parsed.rejects.is_empty(), "{:?}", parsed.rejects[0]);
        rows += parsed.rows;
    }
    rows
}

/// What polars' reader takes for the same chunks, on one thread: whole numbers and decimals as its fastest numbers, the rest as
/// text, nothing checked.
fn polars(kinds: &[ColumnType], text: &[u8], chunks: &[PlannedChunk], data_start: ByteOffset, all_text: bool) -> u64 {
    use polars_core::prelude::{DataType, Schema};
    use polars_io::SerReader;
    use polars_io::csv::read::{CsvParseOptions, CsvReadOptions};
    let schema: Schema = kinds
        .iter()
        .enumerate()
        .map(|(place, kind)| {
            let kind = match kind {
                ColumnType::Int64 if !all_text => DataType::Int64,
                ColumnType::Decimal { .. } if !all_text => DataType::Float64,
                _ => DataType::String,
            };
            (format!("c{place}").into(), kind)
        })
        .collect();
    let schema = std::sync::Arc::new(schema);
    let mut rows = 0;
    for chunk in chunks {
        let start = chunk.range.start.0.max(data_start.0) as usize;
        let bytes = &text[start..chunk.range.end.0 as usize];
        let frame = CsvReadOptions::default()
            .with_has_header(false)
            .with_schema(Some(schema.clone()))
            .with_n_threads(Some(1))
            .with_rechunk(false)
            .with_parse_options(CsvParseOptions::default().with_quote_char(Some(b'"')))
            .into_reader_with_file_handle(std::io::Cursor::new(bytes))
            .finish()
            .unwrap();
        rows += frame.height() as u64;
    }
    rows
}
