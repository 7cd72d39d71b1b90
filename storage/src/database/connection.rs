//! The pool of sea-orm, with a limit on every call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sea_orm::{
    ConnectionTrait, DatabaseBackend, DatabaseConnection, DatabaseTransaction, DbErr, ExecResult, QueryResult,
    RuntimeErr, Statement, TransactionTrait as _,
};
use tokio::time::Instant;

use sea_orm::sea_query::{Expr, Query, SimpleExpr};

use crate::silence::Silence;

/// How long a free connection is waited for.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(4);
/// What the server gives a statement; it is PostgreSQL's setting.
pub(super) const STATEMENT_TIMEOUT: &str = "5s";
/// What the server gives a lock, within that.
pub(super) const LOCK_TIMEOUT: &str = "4s";
/// How long a call may take: a server that lives has answered by then, if only with an error.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a look at the server's clock serves.
const CLOCK_KEPT: Duration = Duration::from_secs(1);

/// A pool whose calls end. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pool: DatabaseConnection,
    /// `None` for SQLite, which is in this process.
    silence: Option<Silence>,
    /// When the server's clock was read, and what it said.
    clock: Arc<Mutex<Option<(Instant, i64)>>>,
}

impl Connection {
    pub(super) fn new(pool: DatabaseConnection, silence: Silence) -> Self {
        let silence = (pool.get_database_backend() == DatabaseBackend::Postgres).then_some(silence);
        Self { pool, silence, clock: Arc::default() }
    }

    /// A transaction. Its statements have no limit here: see [`Self::answered`].
    pub(super) async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        self.pool.begin().await
    }

    /// The database's clock, in milliseconds since 1970.
    pub(super) fn now_ms(&self) -> SimpleExpr {
        Expr::cust(match self.get_database_backend() {
            DatabaseBackend::Postgres => "(extract(epoch from clock_timestamp()) * 1000)::bigint",
            _ => "CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)",
        })
    }

    /// What it says now, as far as a second ago tells: for moments that are shown, not for leases. It is asked at most once a
    /// second.
    pub(super) async fn clock(&self) -> Result<i64, DbErr> {
        let known = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, said)) = known
            && read.elapsed() < CLOCK_KEPT
        {
            return Ok(said + i64::try_from(read.elapsed().as_millis()).unwrap_or_default());
        }
        let said = self.read_clock().await?;
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), said));
        Ok(said)
    }

    /// What it says just now.
    pub(super) async fn read_clock(&self) -> Result<i64, DbErr> {
        let select = Query::select().expr_as(self.now_ms(), "now").to_owned();
        let row = self.query_one(&select).await?;
        row.ok_or_else(|| DbErr::RecordNotFound("the clock".to_owned()))?.try_get("", "now")
    }

    /// Work of several statements that, together, takes no longer than one does.
    pub(super) async fn answered<T, E: From<DbErr>>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let Some(silence) = &self.silence else { return work.await };
        silence.answered(CALL_TIMEOUT, work).await.unwrap_or_else(|| {
            let reason = format!("no answer within {CALL_TIMEOUT:?}, or the connection is silent as others are");
            Err(DbErr::Conn(RuntimeErr::Internal(reason)).into())
        })
    }
}

#[async_trait]
impl ConnectionTrait for Connection {
    fn get_database_backend(&self) -> DatabaseBackend {
        self.pool.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.answered(self.pool.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.answered(self.pool.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.answered(self.pool.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.answered(self.pool.query_all_raw(statement)).await
    }
}
