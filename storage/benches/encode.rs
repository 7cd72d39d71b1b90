//! Parsed rows to PostgreSQL's COPY formats, on one thread: `cargo bench --workspace --bench encode`. Throughput is in bytes of
//! the CSV that the rows come from.
#![allow(missing_docs, reason = "criterion's macros make public items")]

#[path = "../../parse/benches/data/mod.rs"]
mod data;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use longshore_domain::{ByteOffset, LineNumber, RowNumber};
use longshore_parse::{ChunkInput, parse_chunk};
use longshore_storage::destination::encode::{Shape, encode};

/// The program's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn measure(criterion: &mut Criterion) {
    for name in data::NAMES {
        let text = data::made_up(name, 8 << 20).expect("one of its names");
        let plan = data::plan_of(&text);
        let input =
            ChunkInput { bytes: &text, start: ByteOffset(0), first_row: RowNumber(1), first_line: LineNumber(1) };
        let parsed = parse_chunk(&plan, input);
        let all = std::slice::from_ref(&(0..parsed.batches.iter().map(|batch| batch.rows).sum())).to_vec();
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(text.len() as u64)).sample_size(20);
        for (what, text) in [("binary", false), ("text", true)] {
            let shape = Shape { text, numbered: false };
            group.bench_function(what, |b| {
                b.iter(|| encode(&parsed.batches, &all, shape, &mut |piece| !black_box(piece).is_empty()));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, measure);
criterion_main!(benches);
