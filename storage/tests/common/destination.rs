//! Where the destination suite runs: a fresh database for each test, a way to look into it, and chunks made by hand.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt as _};
use polars_core::prelude::*;
use sqlx::{AssertSqlSafe, Row as _, ValueRef as _};

use longshore_domain::{
    Attempt, ChunkIndex, ColumnType, Epoch, FieldPlan, Format, ImportId, LineNumber, LoadPlan, OnError, Reject,
    RejectReason, RowNumber, Target,
};
use longshore_parse::{Batch, ParsedChunk, RowNumbers, Values};
use longshore_storage::destination::gate::WriteGate;
use longshore_storage::destination::postgres::PostgresDestination;
use longshore_storage::destination::sqlite::SqliteDestination;
use longshore_storage::destination::{
    ChunkRows, ChunkSource, Destination, DestinationError, Planned, PublishOutcome, RecordLookup, Staging, Ticket,
    Written,
};

/// One row, each cell as text.
pub type Texts = Vec<Option<String>>;

/// Looks into the database behind the destination's back.
#[async_trait]
pub trait Probe: Send + Sync {
    async fn run(&self, sql: &str);
    async fn rows(&self, sql: &str) -> Vec<Texts>;
    async fn tables(&self) -> BTreeSet<String>;
}

/// What was written of imports, for publishes that read it again.
type WrittenChunks = Arc<Mutex<HashMap<(ImportId, Attempt), BTreeMap<u32, ParsedChunk>>>>;

/// A destination with a database of its own.
#[derive(Clone)]
pub struct Stage {
    /// Where rows for tables that are there wait, if they may.
    pub wanted: Staging,
    written: WrittenChunks,
    pub destination: Arc<dyn Destination>,
    pub probe: Arc<dyn Probe>,
    pub postgres: Option<PostgresDestination>,
    pub url: String,
}

pub struct PostgresProbe(pub sqlx::PgPool);

#[async_trait]
impl Probe for PostgresProbe {
    async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&self.0)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    async fn rows(&self, sql: &str) -> Vec<Texts> {
        // Without parameters the server answers in text.
        let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&self.0).await.unwrap();
        rows.iter()
            .map(|row| {
                (0..row.len())
                    .map(|i| {
                        let value = row.try_get_raw(i).unwrap();
                        (!value.is_null()).then(|| value.as_str().unwrap().to_owned())
                    })
                    .collect()
            })
            .collect()
    }

    async fn tables(&self) -> BTreeSet<String> {
        let sql = "SELECT relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
                   WHERE relkind IN ('r', 'p') AND nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'";
        self.rows(sql).await.into_iter().filter_map(|row| row[0].clone()).collect()
    }
}

pub struct SqliteProbe(pub PathBuf);

#[async_trait]
impl Probe for SqliteProbe {
    async fn run(&self, sql: &str) {
        let connection = rusqlite::Connection::open(&self.0).unwrap();
        connection.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    async fn rows(&self, sql: &str) -> Vec<Texts> {
        use rusqlite::types::ValueRef;
        let connection = rusqlite::Connection::open(&self.0).unwrap();
        let mut statement = connection.prepare(sql).unwrap();
        let width = statement.column_count();
        let rows = statement.query_map([], |row| {
            (0..width)
                .map(|i| {
                    Ok(match row.get_ref(i)? {
                        ValueRef::Null => None,
                        ValueRef::Integer(value) => Some(value.to_string()),
                        ValueRef::Real(value) => Some(format!("{value:?}")),
                        ValueRef::Text(text) => Some(String::from_utf8(text.to_vec()).unwrap()),
                        ValueRef::Blob(bytes) => Some(format!("{bytes:?}")),
                    })
                })
                .collect()
        });
        rows.unwrap().collect::<Result<_, _>>().unwrap()
    }

    async fn tables(&self) -> BTreeSet<String> {
        let sql = "SELECT name FROM sqlite_schema WHERE type = 'table'";
        self.rows(sql).await.into_iter().filter_map(|row| row[0].clone()).collect()
    }
}

/// Runs a test on a SQLite file of its own.
pub async fn on_sqlite<F>(test: impl FnOnce(Stage) -> F)
where
    F: Future<Output = ()>,
{
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.sqlite");
    let destination = SqliteDestination::open(&path, WriteGate::new()).unwrap();
    destination.prepare().await.unwrap();
    let url = path.display().to_string();
    let (destination, probe) = (Arc::new(destination), Arc::new(SqliteProbe(path)));
    let (wanted, written) = (Staging::Object, WrittenChunks::default());
    test(Stage { wanted, written, destination, probe, postgres: None, url }).await;
}

/// Runs a test on a PostgreSQL database of its own, and drops that whatever happens. Rows wait in the object, where they may.
pub async fn on_postgres<F>(test: impl FnOnce(Stage) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    on_postgres_with(Staging::Object, test).await;
}

/// The same, with all rows in a staging table.
pub async fn on_postgres_staged<F>(test: impl FnOnce(Stage) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    on_postgres_with(Staging::Table, test).await;
}

async fn on_postgres_with<F>(wanted: Staging, test: impl FnOnce(Stage) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let admin_url = std::env::var("LONGSHORE_TEST_POSTGRES_URL")
        .expect("LONGSHORE_TEST_POSTGRES_URL is not set: run `deploy/servers test`, which starts the servers");
    let admin = sqlx::PgPool::connect(&admin_url).await.unwrap();
    let name = format!("longshore_test_{}", uuid::Uuid::now_v7().simple());
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&admin).await.unwrap();
    let mut url = url::Url::parse(&admin_url).unwrap();
    url.set_path(&name);
    let destination = PostgresDestination::connect(url.as_str(), 8).unwrap();
    let probe = sqlx::postgres::PgPoolOptions::new().max_connections(2).connect(url.as_str()).await.unwrap();
    sqlx::raw_sql("SELECT 1").execute(&probe).await.unwrap();
    destination.prepare().await.unwrap();
    let stage = Stage {
        wanted,
        written: WrittenChunks::default(),
        destination: Arc::new(destination.clone()),
        probe: Arc::new(PostgresProbe(probe)),
        postgres: Some(destination),
        url: url.to_string(),
    };
    let outcome = tokio::spawn(test(stage)).await;
    sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).execute(&admin).await.unwrap();
    if let Err(error) = outcome {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Knows every record as `record <row>` on line `row + 1`.
pub struct Records;

#[async_trait]
impl RecordLookup for Records {
    async fn find(&self, rows: &[RowNumber]) -> Result<Vec<(RowNumber, LineNumber, Vec<u8>)>, DestinationError> {
        Ok(rows.iter().map(|row| (*row, LineNumber(row.0 + 1), record_of(row.0))).collect())
    }
}

/// The chunks of an import, in order, and what was planned.
pub struct Chunks(pub Vec<ParsedChunk>, pub Planned);

#[async_trait]
impl RecordLookup for Chunks {
    async fn find(&self, rows: &[RowNumber]) -> Result<Vec<(RowNumber, LineNumber, Vec<u8>)>, DestinationError> {
        Records.find(rows).await
    }
}

#[async_trait]
impl ChunkSource for Chunks {
    async fn planned(&self) -> Result<Planned, DestinationError> {
        Ok(self.1)
    }

    fn chunks(&self) -> BoxStream<'_, Result<Arc<dyn ChunkRows>, DestinationError>> {
        stream::iter(&self.0).map(|chunk| Ok(Arc::new(chunk.clone()) as Arc<dyn ChunkRows>)).boxed()
    }
}

pub fn record_of(row: u64) -> Vec<u8> {
    format!("record {row}").into_bytes()
}

/// A ticket of a new import.
pub fn ticket() -> Ticket {
    Ticket { import: ImportId::generate(), attempt: Attempt(1), epoch: Epoch(1) }
}

pub fn any_rejects() -> OnError {
    OnError { max_rejects: None }
}

pub fn no_rejects() -> OnError {
    OnError { max_rejects: Some(0) }
}

/// A plan with nullable columns.
pub fn plan(table: &str, target: Target, columns: &[(&str, &str)]) -> LoadPlan {
    let fields: Vec<FieldPlan> = columns
        .iter()
        .enumerate()
        .map(|(field, (name, kind))| FieldPlan {
            name: (*name).to_owned(),
            kind: ColumnType::try_from((*kind).to_owned()).unwrap(),
            field,
            nullable: true,
            inferred: false,
            notation: longshore_domain::Notation::default(),
        })
        .collect();
    LoadPlan {
        table: table.parse().unwrap(),
        target,
        format: Format::default(),
        width: fields.len(),
        header: fields.iter().map(|field| field.name.clone()).collect(),
        fields,
        columns: Vec::new(),
        data_start: longshore_domain::ByteOffset(0),
        data_line: 2,
    }
}

pub fn int64(values: &[Option<i64>]) -> Values {
    Values::Int64(Int64Chunked::from_slice_options("".into(), values))
}

pub fn text(values: &[Option<&str>]) -> Values {
    Values::Text(StringChunked::from_slice_options("".into(), values))
}

pub fn native(values: &[Option<&str>]) -> Values {
    Values::Native(StringChunked::from_slice_options("".into(), values))
}

/// A chunk whose rows are numbered from `first`.
pub fn chunk(first: u64, columns: Vec<Values>, rows: usize) -> ParsedChunk {
    let batch = Batch { rows, numbers: RowNumbers::From(first), columns, rejects: Vec::new() };
    ParsedChunk { rows: rows as u64, batches: vec![batch], rejects: Vec::new(), widenings: Vec::new() }
}

/// `(id, name)` rows: ids from `first`, names `n<id>`.
pub fn ids(first: u64, rows: usize) -> ParsedChunk {
    let numbers: Vec<_> = (first..first + rows as u64).map(|id| Some(id as i64)).collect();
    let names: Vec<_> = (first..first + rows as u64).map(|id| format!("n{id}")).collect();
    let names: Vec<_> = names.iter().map(|name| Some(name.as_str())).collect();
    chunk(first, vec![int64(&numbers), text(&names)], rows)
}

pub const ID_NAME: [(&str, &str); 2] = [("id", "int64"), ("name", "text")];

/// A reject of the parser.
pub fn parse_reject(row: u64) -> Reject {
    Reject {
        row: RowNumber(row),
        line: LineNumber(row + 1),
        column: Some("id".into()),
        value: Some(b"a\0b\xff".to_vec()),
        reason: RejectReason::InvalidValue,
        detail: "no number: a\0b".into(),
        record: b"a\0b\xff,x".to_vec(),
    }
}

impl Stage {
    /// Raises the fence and makes the staging table.
    pub async fn begin(&self, ticket: Ticket, plan: &LoadPlan) {
        self.destination.raise_fence(ticket).await.unwrap().unwrap();
        assert!(self.prepare(ticket, plan).await);
    }

    /// Whether the fence admits it.
    pub async fn prepare(&self, ticket: Ticket, plan: &LoadPlan) -> bool {
        let staging = self.destination.prepare_staging(ticket, plan, self.wanted).await.unwrap();
        let in_object =
            self.wanted == Staging::Object && self.postgres.is_some() && plan.may_wait_in_object(ticket.attempt);
        let expected = if in_object { Staging::Object } else { Staging::Table };
        assert!(staging.is_none_or(|staging| staging == expected), "{staging:?}");
        staging.is_some()
    }

    /// What was written of an import, to be read again.
    pub fn source(&self, ticket: Ticket, planned: Planned) -> Chunks {
        let written = self.written.lock().unwrap();
        let chunks = written.get(&(ticket.import, ticket.attempt)).into_iter().flat_map(BTreeMap::values);
        Chunks(chunks.cloned().collect(), planned)
    }

    /// Fails unless a chunk of that ticket finds a fence that is older.
    pub async fn assert_set_back(&self, ticket: Ticket, plan: &LoadPlan) {
        let written = self
            .destination
            .write_chunk(ticket, ChunkIndex(0), plan, any_rejects(), Arc::new(ids(1, 1)), &Records)
            .await;
        assert!(matches!(written, Err(DestinationError::StagingLost { .. })), "{written:?}");
    }

    pub async fn write(&self, ticket: Ticket, index: u32, plan: &LoadPlan, chunk: ParsedChunk) -> Written {
        let rows = Arc::new(chunk.clone());
        let written =
            self.destination.write_chunk(ticket, ChunkIndex(index), plan, any_rejects(), rows, &Records).await.unwrap();
        if matches!(written, Written::Committed(_)) {
            let mut known = self.written.lock().unwrap();
            known.entry((ticket.import, ticket.attempt)).or_default().entry(index).or_insert(chunk);
        }
        written
    }

    pub async fn publish(
        &self,
        ticket: Ticket,
        plan: &LoadPlan,
        chunks: u64,
        rows: u64,
        on_error: OnError,
    ) -> PublishOutcome {
        let source = self.source(ticket, Planned { chunks, rows });
        self.destination.publish(ticket, plan, on_error, &source).await.unwrap()
    }

    /// One chunk, from the fence to the publish.
    pub async fn import(&self, plan: &LoadPlan, chunk: ParsedChunk, on_error: OnError) -> (Ticket, PublishOutcome) {
        let ticket = ticket();
        self.begin(ticket, plan).await;
        let rows = chunk.rows;
        assert!(matches!(self.write(ticket, 0, plan, chunk).await, Written::Committed(_)));
        (ticket, self.publish(ticket, plan, 1, rows, on_error).await)
    }

    pub async fn rejects(&self, ticket: Ticket) -> Vec<Reject> {
        let (mut all, mut after) = (Vec::new(), RowNumber(0));
        loop {
            let found = self.destination.rejects(ticket.import, ticket.attempt, after, 10_000).await.unwrap();
            let Some(last) = found.last() else { return all };
            after = last.row;
            all.extend(found);
        }
    }

    pub async fn count(&self, table: &str) -> u64 {
        self.probe.rows(&format!("SELECT count(*) FROM {table}")).await[0][0].as_ref().unwrap().parse().unwrap()
    }

    /// No staging table, no ledger row is left.
    pub async fn assert_clean(&self) {
        let tables = self.probe.tables().await;
        assert!(!tables.iter().any(|table| table.starts_with("longshore_staging")), "{tables:?}");
        assert_eq!(self.count("longshore_ledger").await, 0);
    }
}
