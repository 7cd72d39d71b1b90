//! How long one connection and two take to load batches like TPC-H's lineitem (16 columns) that are parsed already: what no import
//! can be faster than. `deploy/servers run -- cargo run --release -p longshore-storage --example copy_speed [ROWS]`; MB/s are of the
//! CSV text that such rows have.
#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt as _};
use longshore_domain::{
    Attempt, ByteOffset, ChunkIndex, ColumnType, Epoch, FieldPlan, Format, ImportId, LineNumber, LoadPlan, OnError,
    RowNumber, Target,
};
use longshore_parse::{Batch, ParsedChunk, RowNumbers, Values};
use longshore_storage::destination::postgres::PostgresDestination;
use longshore_storage::destination::{
    ChunkRows, ChunkSource, Destination as _, DestinationError, Planned, RecordLookup, Staging, Ticket,
};
use polars_core::prelude::*;

/// Bytes that such a row has as CSV, on average (200 MB hold 1,573,585 rows of lineitem).
const CSV_ROW: f64 = 127.1;
const ROWS_IN_CHUNK: usize = 65_536;

#[tokio::main]
async fn main() {
    let rows: usize = std::env::args().nth(1).and_then(|rows| rows.parse().ok()).unwrap_or(1_500_000);
    let batch = lineitem(ROWS_IN_CHUNK);
    let chunks = rows.div_ceil(ROWS_IN_CHUNK) as u32;
    let url = std::env::var("LONGSHORE_TEST_POSTGRES_URL").expect("LONGSHORE_TEST_POSTGRES_URL is set");
    for workers in [1, 2] {
        write(&url, workers, chunks, &batch).await;
    }
}

/// Writes chunks with some workers, publishes them as a new table, and drops that.
async fn write(url: &str, workers: u32, chunks: u32, batch: &Batch) {
    let destination = PostgresDestination::connect(url, 4).expect("a URL");
    destination.prepare().await.expect("prepared");
    let ticket = Ticket { import: ImportId::generate(), attempt: Attempt(1), epoch: Epoch(1) };
    let table = format!("copy_speed_{}", ticket.import.0.simple());
    let plan = plan(&table, batch);
    destination.raise_fence(ticket).await.expect("raised");
    destination.prepare_staging(ticket, &plan, Staging::Table).await.expect("staged");
    let start = Instant::now();
    let mut tasks = Vec::new();
    for worker in 0..workers {
        let (destination, plan, batch) = (destination.clone(), plan.clone(), batch.clone());
        tasks.push(tokio::spawn(async move {
            for chunk in (0..chunks).filter(|chunk| chunk % workers == worker) {
                let numbers = RowNumbers::From(1 + u64::from(chunk) * ROWS_IN_CHUNK as u64);
                let batches = vec![Batch { numbers, ..batch.clone() }];
                let parsed = ParsedChunk { rows: ROWS_IN_CHUNK as u64, batches, ..ParsedChunk::default() };
                let (rows, nothing) = (Arc::new(parsed), Nothing(Planned::default()));
                let written =
                    destination.write_chunk(ticket, ChunkIndex(chunk), &plan, OnError::default(), rows, &nothing);
                written.await.expect("written");
            }
        }));
    }
    for task in tasks {
        task.await.expect("a worker ended");
    }
    let rows = u64::from(chunks) * ROWS_IN_CHUNK as u64;
    let planned = Planned { chunks: u64::from(chunks), rows };
    destination.publish(ticket, &plan, OnError::default(), &Nothing(planned)).await.expect("published");
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{workers} connections: {seconds:.2} s for {rows} rows, {:.0} MB/s of CSV",
        rows as f64 * CSV_ROW / seconds / 1e6
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP TABLE {table}")))
        .execute(destination.pool())
        .await
        .expect("dropped");
}

/// No row is refused, and all are staged.
struct Nothing(Planned);

#[async_trait]
impl RecordLookup for Nothing {
    async fn find(&self, _: &[RowNumber]) -> Result<Vec<(RowNumber, LineNumber, Vec<u8>)>, DestinationError> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl ChunkSource for Nothing {
    async fn planned(&self) -> Result<Planned, DestinationError> {
        Ok(self.0)
    }

    fn chunks(&self) -> BoxStream<'_, Result<Arc<dyn ChunkRows>, DestinationError>> {
        stream::empty().boxed()
    }
}

fn plan(table: &str, batch: &Batch) -> LoadPlan {
    let kind = |values: &Values| match values {
        Values::Decimal { scale, .. } => ColumnType::Decimal { precision: 15, scale: *scale },
        Values::Date(_) => ColumnType::Date,
        Values::Text(_) => ColumnType::Text,
        _ => ColumnType::Int64,
    };
    let fields = batch.columns.iter().enumerate().map(|(field, values)| FieldPlan {
        name: format!("c{field}"),
        kind: kind(values),
        field,
        nullable: false,
        inferred: false,
        notation: longshore_domain::Notation::default(),
    });
    LoadPlan {
        table: table.parse().expect("a name"),
        target: Target::NewTable,
        format: Format::default(),
        width: batch.columns.len(),
        header: Vec::new(),
        fields: fields.collect(),
        columns: Vec::new(),
        data_start: ByteOffset(0),
        data_line: 1,
    }
}

fn lineitem(rows: usize) -> Batch {
    let number = |i: usize, salt: usize, range: usize| ((i * 2_654_435_761 + salt * 40_503) >> 7) % range;
    let longs = |salt, range| {
        Values::Int64(Int64Chunked::from_iter_values("".into(), (0..rows).map(|i| number(i, salt, range) as i64)))
    };
    let decimals = |salt, range| Values::Decimal {
        unscaled: Int128Chunked::from_iter_values("".into(), (0..rows).map(|i| number(i, salt, range) as i128)),
        scale: 2,
    };
    let dates = |salt| {
        Values::Date(Int32Chunked::from_iter_values(
            "".into(),
            (0..rows).map(|i| 8_000 + number(i, salt, 2_500) as i32),
        ))
    };
    let words = |salt: usize, words: &[&str]| {
        Values::Text(StringChunked::from_iter_values("".into(), (0..rows).map(|i| words[number(i, salt, words.len())])))
    };
    let columns = vec![
        longs(1, 6_000_000),
        longs(2, 200_000),
        longs(3, 10_000),
        longs(4, 7),
        decimals(5, 5_000),
        decimals(6, 10_000_000),
        decimals(7, 10),
        decimals(8, 8),
        words(9, &["R", "A", "N"]),
        words(10, &["O", "F"]),
        dates(11),
        dates(12),
        dates(13),
        words(14, &["DELIVER IN PERSON", "COLLECT COD", "NONE", "TAKE BACK RETURN"]),
        words(15, &["TRUCK", "MAIL", "REG AIR", "SHIP", "FOB"]),
        words(
            16,
            &[
                "egular courts above the",
                "ly final dependencies: slyly bold ",
                "riously. regular, express dep",
                "lites",
            ],
        ),
    ];
    Batch { rows, numbers: RowNumbers::From(1), columns, rejects: Vec::new() }
}
