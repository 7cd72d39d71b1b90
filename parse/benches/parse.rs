//! Scan, split and parse of a chunk in memory, on one thread: `cargo bench --workspace --bench parse`. Throughput is in bytes of CSV.
#![allow(missing_docs, reason = "criterion's macros make public items")]

mod data;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use longshore_domain::{ByteOffset, LineNumber, LoadPlan, RowNumber};
use longshore_parse::{ChunkInput, ChunkPlanner, Dialect, Limits, PlanStart, read_chunk, scan_blocks};

/// The program's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As large as a chunk of a large file.
const CHUNK: usize = 8 << 20;

fn scan(plan: &LoadPlan, text: &[u8]) -> usize {
    let start = PlanStart {
        offset: plan.data_start,
        row: RowNumber(1),
        line: LineNumber(plan.data_line),
        chunk_start: ByteOffset(0),
    };
    let dialect = Dialect::new(&plan.format, plan.width).expect("a dialect");
    let mut planner = ChunkPlanner::new(dialect, start, 1 << 20, Limits::default());
    let mut chunks = Vec::new();
    for block in text[plan.data_start.0 as usize..].chunks(1 << 20) {
        planner.feed(block, &mut chunks);
    }
    planner.finish(&mut chunks);
    chunks.len()
}

fn parse(plan: &LoadPlan, text: &[u8]) -> u64 {
    let input = ChunkInput { bytes: text, start: ByteOffset(0), first_row: RowNumber(1), first_line: LineNumber(1) };
    // As a worker does: what was read is written, and gone.
    let end = read_chunk(plan, input, &mut |batch| {
        assert!(batch.rejects.is_empty(), "{:?}", batch.rejects.first());
        black_box(batch).rows > 0
    });
    end.expect("to the end").rows
}

fn measure(criterion: &mut Criterion) {
    for name in data::NAMES {
        let text = data::made_up(name, CHUNK).expect("one of its names");
        let plan = data::plan_of(&text);
        let dialect = Dialect::new(&plan.format, plan.width).expect("a dialect");
        let mut split = plan.clone();
        split.fields.clear();
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(text.len() as u64)).sample_size(20);
        group.bench_function("scan", |b| b.iter(|| scan(&plan, black_box(&text))));
        group.bench_function("scan blocks", |b| b.iter(|| scan_blocks(&dialect, black_box(&text), 1 << 20)));
        group.bench_function("split", |b| b.iter(|| parse(&split, black_box(&text))));
        group.bench_function("parse", |b| b.iter(|| parse(&plan, black_box(&text))));
        group.finish();
    }
}

criterion_group!(benches, measure);
criterion_main!(benches);
