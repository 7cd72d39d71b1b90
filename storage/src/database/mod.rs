//! The control database: imports, plans, leases, chunks and status, through sea-orm, on SQLite and PostgreSQL alike.
//!
//! Called by the API (create, read, complete) and the actors (everything else). Every change of an import is one
//! compare-and-set: on its state, and on its epoch where an owner makes it. Leases and claims are compared with the
//! database's own clock (invariant 11).

mod backlog;
mod chunks;
mod clients;
mod connection;
mod control;
mod entity;
mod imports;
mod lease;
pub mod pending;
mod schema;
mod text;
mod together;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeZone, Utc};
use sea_orm::sea_query::SimpleExpr;
use sea_orm::{ConnectOptions, ConnectionTrait, DatabaseBackend, DbErr, Statement};

use longshore_domain::ImportId;

use crate::destination::gate::{LOG_PAGES, PAGE_BYTES, WriteGate};
use crate::silence::Silence;

use self::together::Together;

use self::connection::{ACQUIRE_TIMEOUT, Connection, LOCK_TIMEOUT, STATEMENT_TIMEOUT};

pub use backlog::Backlog;
pub use chunks::{CLAIMS_AT_MOST, ChunkClaim, ChunkRecord, DecodedText, NewChunk, OpenChunk};
pub use clients::{Created, Effect, IdempotencyKey};
pub use control::Control;
pub use imports::{AwaitingImport, ImportFilter, ImportRecord, LISTED_BYTES, Listed, NewImport, Started};
pub use lease::Change;
pub use text::TextPart;

/// How long an import's lease or a chunk's claim lasts without a renewal. With the look for what ran out, every second, a dead
/// process is replaced within 10 s.
pub const LEASE: Duration = Duration::from_secs(7);

/// How often a holder renews. Three tries fit into a lease.
pub const RENEW_EVERY: Duration = Duration::from_secs(2);

/// `longs` in ASCII: the advisory lock under which nodes migrate one after the other.
const MIGRATION_LOCK: i64 = 0x6c_6f6e_6773;

/// Why the control database did not do it.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// It is away or overloaded: try again.
    #[error("the control database is away: {reason}")]
    Unavailable {
        /// What was seen, without credentials.
        reason: String,
    },
    /// It holds something that this version cannot read.
    #[error("the control database holds what cannot be read: {reason}")]
    Corrupt {
        /// What.
        reason: String,
    },
}

impl From<DbErr> for DatabaseError {
    fn from(error: DbErr) -> Self {
        Self::Unavailable { reason: error.to_string() }
    }
}

impl DatabaseError {
    fn corrupt(what: &str, error: impl std::fmt::Display) -> Self {
        Self::Corrupt { reason: format!("{what}: {error}") }
    }
}

/// The control database. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    connection: Connection,
    /// The turnstile before SQLite's one writer, where the destination shares the file.
    gate: Option<Arc<WriteGate>>,
    /// What an API is asked most, on a server; SQLite is in this process, and needs no company.
    meeting: Option<Meeting>,
}

/// Calls that go together.
#[derive(Clone)]
struct Meeting {
    reads: Together<ImportId, Option<imports::Row>>,
    /// When each was made.
    creates: Together<NewImport, i64>,
}

impl Meeting {
    fn start(connection: &Connection) -> Self {
        let (reads, creates) = (connection.clone(), connection.clone());
        Self {
            reads: Together::start(1, move |ids| imports::find_all(reads.clone(), ids)),
            // Two: while one is being committed, those behind it are read and signed.
            creates: Together::start(2, move |new| imports::insert_all(creates.clone(), new)),
        }
    }
}

impl Database {
    /// Connects to `sqlite://…` or `postgres://…`; answers only once the database does.
    ///
    /// # Errors
    /// [`DatabaseError::Unavailable`] where it does not answer.
    pub async fn connect(url: &str, gate: Option<Arc<WriteGate>>) -> Result<Self, DatabaseError> {
        let silence = Silence::new();
        let watch = silence.clone();
        let mut options = ConnectOptions::new(url.to_owned());
        options
            .max_connections(if url.starts_with("sqlite") { 4 } else { 8 })
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_timeout(Duration::from_secs(5))
            .sqlx_logging(false)
            .map_sqlx_sqlite_opts(|options| {
                use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
                options
                    .page_size(PAGE_BYTES)
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Full)
                    .busy_timeout(Duration::from_secs(30))
                    .foreign_keys(true)
                    .pragma("wal_autocheckpoint", LOG_PAGES.to_string())
            })
            .map_sqlx_postgres_opts(|options| {
                options.application_name("longshore").options([
                    ("statement_timeout", STATEMENT_TIMEOUT),
                    ("lock_timeout", LOCK_TIMEOUT),
                    ("idle_in_transaction_session_timeout", "10s"),
                    ("tcp_keepalives_idle", "10"),
                    ("tcp_keepalives_interval", "5"),
                    ("tcp_keepalives_count", "3"),
                    ("timezone", "UTC"),
                    // Every statement has its index. A plan that was made while a table was small would else go through all of it
                    // for as long as nobody analyses the table, however large it became.
                    ("enable_seqscan", "off"),
                ])
            })
            .map_sqlx_postgres_pool_opts(move |options| watch.watch(options));
        let connection = Connection::new(sea_orm::Database::connect(options).await?, silence);
        // A server's writers do not wait for each other: one that is held up must not keep leases from being renewed.
        let gate = gate.filter(|_| connection.get_database_backend() == DatabaseBackend::Sqlite);
        let server = connection.get_database_backend() == DatabaseBackend::Postgres;
        let meeting = server.then(|| Meeting::start(&connection));
        Ok(Self { connection, gate, meeting })
    }

    /// Makes the control tables where they are missing; one node after the other.
    ///
    /// # Errors
    /// [`DatabaseError::Unavailable`] where it does not answer or refuses.
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        let _turn = self.turn().await;
        let transaction = self.connection.begin().await?;
        if self.backend() == DatabaseBackend::Postgres {
            // It may have to wait for another node's, and to rewrite a large table.
            let patience = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '60s'";
            transaction.execute_unprepared(patience).await?;
            let lock = format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
            transaction.execute_raw(Statement::from_string(self.backend(), lock)).await?;
        }
        schema::migrate(&transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Whether it answers, for `/readyz`.
    ///
    /// # Errors
    /// [`DatabaseError::Unavailable`] where it does not.
    pub async fn check(&self) -> Result<(), DatabaseError> {
        self.connection.execute_raw(Statement::from_string(self.backend(), "SELECT 1")).await?;
        Ok(())
    }

    fn backend(&self) -> DatabaseBackend {
        self.connection.get_database_backend()
    }

    /// The database's clock, in milliseconds since 1970.
    fn now_ms(&self) -> SimpleExpr {
        self.connection.now_ms()
    }

    /// A turn before SQLite's one writer; control writes come before chunks.
    async fn turn(&self) -> Option<crate::destination::gate::WriteTurn> {
        match &self.gate {
            Some(gate) => Some(gate.control().await),
            None => None,
        }
    }
}

fn time(ms: i64) -> DateTime<Utc> {
    Utc.timestamp_millis_opt(ms).single().unwrap_or_default()
}

fn unsigned(number: i64) -> u64 {
    number.max(0).unsigned_abs()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The databases' integers are signed.
fn number(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
