//! PostgreSQL as the destination: binary COPY into staging, published by rename or `INSERT … SELECT`, or straight into the
//! table.
//!
//! Called by the actors: owners raise the fence, prepare and publish; workers write chunks. Works on the pool of `sqlx`,
//! since COPY cannot join a transaction of sea-orm. In reading order: `session` (a transaction, and what errors mean),
//! `fence`, `describe`, `staging`, `write`, `publish`, `direct`, `rejects`.
//!
//! Durability is the server's own: nothing here touches `fsync`, `synchronous_commit` or the WAL level.

mod describe;
mod direct;
mod fence;
mod publish;
mod refusals;
mod rejects;
mod session;
mod staging;
mod write;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use longshore_domain::{
    Attempt, ChunkIndex, ImportId, LoadPlan, OnError, Reject, RowNumber, TableDescription, TableName,
};

use self::session::{Session, Work, failure};
use crate::silence::Silence;

use super::{
    ChunkRows, ChunkSource, Destination, DestinationError, FenceState, LedgerRow, PublishOutcome, RecordLookup,
    Staging, Ticket, Written,
};

/// How long a connection is waited for.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// What each connection is set to once; transactions set their own limits besides. Settings that a server does not know
/// (the last needs PostgreSQL 14) are left out.
const SESSION_SETTINGS: [(&str, &str); 9] = [
    ("application_name", "longshore"),
    ("statement_timeout", "60s"),
    ("lock_timeout", session::LOCK_WAIT),
    ("idle_in_transaction_session_timeout", "60s"),
    ("TimeZone", "UTC"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("client_connection_check_interval", "5s"),
];

/// The service's own tables, in the first schema of the search path. Numbers of rows and chunks are checked on the way in.
const SERVICE_TABLES: &str = "\
    CREATE TABLE IF NOT EXISTS longshore_fences (\
        import uuid PRIMARY KEY, epoch bigint NOT NULL, attempt bigint NOT NULL, \
        state text NOT NULL CHECK (state IN ('open', 'published', 'aborted')), \
        rows_loaded bigint, rows_rejected bigint, changed_at timestamptz NOT NULL DEFAULT now()); \
    CREATE TABLE IF NOT EXISTS longshore_ledger (\
        import uuid NOT NULL, attempt bigint NOT NULL, chunk bigint NOT NULL, \
        first_row bigint, row_count bigint NOT NULL, rejected bigint NOT NULL, PRIMARY KEY (import, attempt, chunk)); \
    CREATE TABLE IF NOT EXISTS longshore_rejects (\
        import uuid NOT NULL, attempt bigint NOT NULL, row_number bigint NOT NULL, line bigint NOT NULL, \
        column_name text, value bytea, reason text NOT NULL, detail text NOT NULL, record bytea NOT NULL, \
        by_publish boolean NOT NULL DEFAULT false, PRIMARY KEY (import, attempt, row_number))";

/// `longshd` in ASCII: the advisory lock under which nodes make the service's tables one after the other.
const PREPARE_LOCK: i64 = 0x6c_6f6e_6773_6864;

/// A PostgreSQL database that tables are loaded into. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PostgresDestination {
    pool: PgPool,
    silence: Silence,
}

impl PostgresDestination {
    /// A destination over a pool that is there. Every transaction sets its own limits; [`Self::connect`] sets keepalives
    /// besides, and closes connections at rest that are silent.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool, silence: Silence::new() }
    }

    /// A destination at `postgres://…`. Connections are made when they are needed; [`Destination::check`] says whether the
    /// server answers.
    ///
    /// # Errors
    /// [`DestinationError::Unavailable`] where the URL cannot be read.
    pub fn connect(url: &str, max_connections: u32) -> Result<Self, DestinationError> {
        let options: PgConnectOptions = url.parse().map_err(failure)?;
        let silence = Silence::new();
        let pool = silence
            .watch(PgPoolOptions::new())
            .max_connections(max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    let (names, values): (Vec<_>, Vec<_>) = SESSION_SETTINGS.into_iter().unzip();
                    // One round trip, for all that the server knows.
                    sqlx::query(
                        "SELECT count(set_config(known.name, wanted.value, false)) \
                         FROM unnest($1::text[], $2::text[]) AS wanted(name, value) \
                         JOIN pg_settings AS known ON lower(known.name) = lower(wanted.name)",
                    )
                    .bind(names)
                    .bind(values)
                    .execute(&mut *connection)
                    .await?;
                    Ok(())
                })
            })
            .connect_lazy_with(options);
        Ok(Self { pool, silence })
    }

    /// Work that is given up where the server has lost its sessions.
    async fn watched<T>(
        &self,
        work: impl Future<Output = Result<T, DestinationError>> + Send,
    ) -> Result<T, DestinationError> {
        session::watched(&self.pool, &self.silence, work).await
    }

    /// The pool under it.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
}

#[async_trait]
impl Destination for PostgresDestination {
    async fn prepare(&self) -> Result<(), DestinationError> {
        self.watched(async {
            let mut session = Session::begin(&self.pool, None, Work::Short).await?;
            sqlx::query("SELECT pg_advisory_xact_lock($1)")
                .bind(PREPARE_LOCK)
                .execute(session.connection())
                .await
                .map_err(failure)?;
            session.run(SERVICE_TABLES).await.map_err(failure)?;
            fence::finish(session).await
        })
        .await
    }

    async fn check(&self) -> Result<(), DestinationError> {
        self.watched(async {
            let mut session = Session::begin(&self.pool, None, Work::Short).await?;
            session.run("SELECT 1").await.map_err(failure)?;
            session.rollback().await;
            Ok(())
        })
        .await
    }

    async fn describe(&self, table: &TableName) -> Result<Option<TableDescription>, DestinationError> {
        self.watched(describe::describe(&self.pool, table)).await
    }

    async fn raise_fence(&self, ticket: Ticket) -> Result<Option<FenceState>, DestinationError> {
        self.watched(fence::raise(&self.pool, ticket)).await
    }

    async fn prepare_staging(
        &self,
        ticket: Ticket,
        plan: &LoadPlan,
        wanted: Staging,
    ) -> Result<Option<Staging>, DestinationError> {
        self.watched(staging::prepare(&self.pool, ticket, plan, wanted)).await
    }

    async fn write_chunk(
        &self,
        ticket: Ticket,
        chunk: ChunkIndex,
        plan: &LoadPlan,
        on_error: OnError,
        rows: Arc<dyn ChunkRows>,
        lookup: &dyn RecordLookup,
    ) -> Result<Written, DestinationError> {
        self.watched(write::write_chunk(&self.pool, ticket, chunk, plan, on_error, rows, lookup)).await
    }

    async fn ledger(&self, import: ImportId, attempt: Attempt) -> Result<Vec<LedgerRow>, DestinationError> {
        self.watched(async {
            let mut session = Session::begin(&self.pool, None, Work::Short).await?;
            let rows: Vec<(i64, i64, i64)> = sqlx::query_as(
                "SELECT chunk, row_count, rejected FROM longshore_ledger WHERE import = $1 AND attempt = $2 ORDER BY chunk",
            )
            .bind(import.0)
            .bind(i64::from(attempt.0))
            .fetch_all(session.connection())
            .await
            .map_err(failure)?;
            session.rollback().await;
            Ok(rows
                .into_iter()
                .map(|(chunk, rows, rejected)| LedgerRow {
                    // Chunks are numbered with 32 bits.
                    chunk: ChunkIndex(chunk as u32),
                    rows: rows as u64,
                    rejected: rejected as u64,
                })
                .collect())
        })
        .await
    }

    async fn publish(
        &self,
        ticket: Ticket,
        plan: &LoadPlan,
        on_error: OnError,
        source: &dyn ChunkSource,
    ) -> Result<PublishOutcome, DestinationError> {
        self.watched(publish::publish(&self.pool, ticket, plan, on_error, source)).await
    }

    async fn abort(&self, ticket: Ticket) -> Result<Option<FenceState>, DestinationError> {
        self.watched(fence::abort(&self.pool, ticket)).await
    }

    async fn rejects(
        &self,
        import: ImportId,
        attempt: Attempt,
        after: RowNumber,
        limit: usize,
    ) -> Result<Vec<Reject>, DestinationError> {
        self.watched(rejects::list(&self.pool, import, attempt, after, limit)).await
    }
}
