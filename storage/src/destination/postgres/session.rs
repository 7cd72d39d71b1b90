//! A transaction on one connection, and what PostgreSQL's errors mean.
//!
//! The driver's own transaction type is not used: a COPY that is dropped half-way leaves its connection out of step, so a
//! session that was not ended in order closes its connection instead of returning it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgDatabaseError, PgPool};
use sqlx::{AssertSqlSafe, Connection as _, Postgres, Row as _};

use longshore_domain::{ChunkIndex, ImportId};

use crate::destination::{DestinationError, Ticket, sql};
use crate::silence::Silence;

/// How long a statement may run, where none is allowed to take longer, and how long a transaction may be idle.
const PATIENCE_SECONDS: u32 = 60;
/// How long a lock is waited for; then the owner tries again.
pub(super) const LOCK_WAIT: &str = "10s";

/// How long a transaction may take to begin, on a connection that just gave a sign of life.
const BEGIN_PATIENCE: Duration = Duration::from_secs(8);
/// Of the database's message for a row that it refuses, so many bytes are kept.
pub(super) const MESSAGE_KEPT: usize = 1024;
/// How often the server is asked whether it still knows sessions that take long.
const ASK_EVERY: Duration = Duration::from_secs(3);

tokio::task_local! {
    /// The sessions that the work of [`watched`] holds just now.
    static HELD: Held;
}

/// Process numbers of sessions, as the server counts them.
#[derive(Debug, Clone, Default)]
struct Held(Arc<Mutex<Vec<i32>>>);

impl Held {
    fn pids(&self) -> std::sync::MutexGuard<'_, Vec<i32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session in [`HELD`], for as long as it is open.
struct Watch {
    held: Held,
    pid: i32,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.held.pids().retain(|pid| *pid != self.pid);
    }
}

/// What runs in a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Statements that take moments.
    Short,
    /// COPY and publish: as long as the data is large. Locks and silence are bounded all the same.
    Long,
}

/// An open transaction. Dropped without [`Session::commit`] or [`Session::rollback`], it closes its connection.
pub(super) struct Session {
    connection: PoolConnection<Postgres>,
    ended: bool,
    _watch: Option<Watch>,
}

/// Runs work with sessions for as long as the server knows them. A connection to a server that is gone may stay open and never
/// say so: where a new one does not find the session any more, the work is given up, and may be tried again.
///
/// # Errors
/// Those of the work, and [`DestinationError::Unavailable`] where a session is gone.
pub(super) async fn watched<T>(
    pool: &PgPool,
    silence: &Silence,
    work: impl Future<Output = Result<T, DestinationError>>,
) -> Result<T, DestinationError> {
    let held = Held::default();
    let gone = async {
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            if is_gone(pool, &held).await {
                silence.note();
                return Err(DestinationError::Unavailable {
                    reason: "the server does not know the session any more, whose connection is silent".to_owned(),
                });
            }
        }
    };
    tokio::select! {
        biased;
        done = HELD.scope(held.clone(), work) => done,
        given_up = gone => given_up,
    }
}

/// Whether a session is held, here, that the server does not have. A server that does not answer is no answer.
async fn is_gone(pool: &PgPool, held: &Held) -> bool {
    let before = held.pids().clone();
    if before.is_empty() {
        return false;
    }
    let ask = async {
        let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
        let pids: Vec<i32> = sqlx::query_scalar("SELECT pid FROM pg_stat_activity WHERE pid = ANY($1)")
            .bind(&before)
            .fetch_all(&mut connection)
            .await?;
        connection.close().await?;
        Ok::<_, sqlx::Error>(pids)
    };
    match tokio::time::timeout(BEGIN_PATIENCE, ask).await {
        Ok(Ok(known)) => held.pids().iter().any(|pid| before.contains(pid) && !known.contains(pid)),
        Ok(Err(_)) | Err(_) => false,
    }
}

/// What became of a COMMIT.
#[derive(Debug)]
pub(super) enum Commit {
    /// It is committed.
    Done,
    /// The connection broke: look it up.
    Unknown(DestinationError),
}

/// What a session of an import is called, so that a new owner finds it: `longshore/<import>/<epoch>/<attempt>`.
pub(super) fn application_name(ticket: Ticket) -> String {
    format!("{}{}/{}", application_prefix(ticket.import), ticket.epoch, ticket.attempt)
}

/// What a session that writes a chunk is called, so that the next worker on that chunk finds it: the import's name and
/// `/<chunk>`.
pub(super) fn chunk_name(ticket: Ticket, chunk: ChunkIndex) -> String {
    format!("{}/{chunk}", application_name(ticket))
}

/// What the names of an import's sessions begin with.
pub(super) fn application_prefix(import: ImportId) -> String {
    format!("longshore/{import}/")
}

impl Session {
    /// Begins a transaction. Its limits are set in it, so that they hold for whatever pool was given, behind a pooler too.
    pub(super) async fn begin(pool: &PgPool, who: Option<Ticket>, work: Work) -> Result<Self, DestinationError> {
        Self::begin_as(pool, &who.map_or_else(|| "longshore".to_owned(), application_name), work).await
    }

    /// The same under a name of its own, which is none of a request's.
    pub(super) async fn begin_as(pool: &PgPool, name: &str, work: Work) -> Result<Self, DestinationError> {
        let (statement, idle) = match work {
            Work::Short => (PATIENCE_SECONDS, PATIENCE_SECONDS),
            Work::Long => (0, 10 * PATIENCE_SECONDS),
        };
        let mut session = Self { connection: pool.acquire().await.map_err(failure)?, ended: false, _watch: None };
        // Numbers, a UUID and constants: nothing here comes from a request.
        let begin = AssertSqlSafe(format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; \
                 SET LOCAL application_name = '{name}'; \
                 SET LOCAL statement_timeout = '{statement}s'; \
                 SET LOCAL lock_timeout = '{LOCK_WAIT}'; \
                 SET LOCAL idle_in_transaction_session_timeout = '{idle}s'; \
                 SET LOCAL TimeZone = 'UTC'; \
                 SELECT pg_backend_pid()"
        ));
        let begun = sqlx::raw_sql(begin).fetch_all(&mut *session.connection);
        let rows = tokio::time::timeout(BEGIN_PATIENCE, begun).await.unwrap_or_else(|_| {
            Err(sqlx::Error::Protocol(format!("no transaction was begun within {BEGIN_PATIENCE:?}")))
        });
        if let (Ok(held), Some(row)) = (HELD.try_with(Held::clone), rows.map_err(failure)?.first()) {
            let pid = row.try_get(0).map_err(failure)?;
            held.pids().push(pid);
            session._watch = Some(Watch { held, pid });
        }
        Ok(session)
    }

    /// The connection, for bound statements.
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Runs a statement without parameters, of constants and quoted identifiers.
    pub(super) async fn run(&mut self, statement: impl Into<String>) -> Result<u64, sqlx::Error> {
        let done = sqlx::raw_sql(AssertSqlSafe(statement.into())).execute(&mut *self.connection).await?;
        Ok(done.rows_affected())
    }

    /// Commits. An error that the database itself answered means that nothing is committed; anything else is unknown.
    pub(super) async fn commit(mut self) -> Result<Commit, DestinationError> {
        match self.run("COMMIT").await {
            Ok(_) => {
                self.ended = true;
                Ok(Commit::Done)
            }
            // Ended by an administrator (class 57) may be before or after the commit record.
            Err(sqlx::Error::Database(error)) if !error.code().is_some_and(|code| code.starts_with("57")) => {
                Err(failure(sqlx::Error::Database(error)))
            }
            Err(error) => Ok(Commit::Unknown(failure(error))),
        }
    }

    /// Gives the transaction up.
    pub(super) async fn rollback(mut self) {
        self.ended = self.run("ROLLBACK").await.is_ok();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.close_on_drop();
        }
    }
}

/// What an error means for the caller.
pub(super) fn failure(error: sqlx::Error) -> DestinationError {
    let Some(error) = database_error(&error) else {
        let reason = match error {
            // Its text may hold the URL.
            sqlx::Error::Configuration(_) => "the URL is not valid".to_owned(),
            sqlx::Error::PoolTimedOut => "no connection came free in time".to_owned(),
            other => other.to_string(),
        };
        return DestinationError::Unavailable { reason };
    };
    let code = error.code();
    // XX, the server's own faults: a disk that refuses may be one, and so may memory.
    let passing = ["08", "25", "28", "3D", "40", "53", "55", "57", "58", "XX"];
    if passing.iter().any(|class| code.starts_with(class)) {
        return DestinationError::Unavailable { reason: describe(error) };
    }
    match code {
        "42501" => sql::refused(format!("{}; grant the right to the service's role", describe(error))),
        "3F000" => sql::refused(format!("{}; create the schema first", describe(error))),
        _ => sql::refused(describe(error)),
    }
}

/// The database's own error, where it is one.
pub(super) fn database_error(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    match error {
        sqlx::Error::Database(inner) => inner.try_downcast_ref::<PgDatabaseError>(),
        _ => None,
    }
}

/// Whether the database refuses the data of a row, not the statement: SQLSTATE classes 22 (data exception) and 23
/// (integrity constraint violation), and what a trigger raises.
pub(super) fn is_row_fault(error: &PgDatabaseError) -> bool {
    let code = error.code();
    code.starts_with("22") || code.starts_with("23") || code == "P0001"
}

/// Whether a constraint refused it, and not an input function.
pub(super) fn is_constraint(error: &PgDatabaseError) -> bool {
    !error.code().starts_with("22")
}

/// Whether a relation that a statement names is not there.
pub(super) fn is_undefined_table(error: &sqlx::Error) -> bool {
    database_error(error).is_some_and(|error| error.code() == "42P01")
}

/// Whether a name is taken.
pub(super) fn is_duplicate_table(error: &sqlx::Error) -> bool {
    database_error(error).is_some_and(|error| error.code() == "42P07")
}

/// Whether a lock was not to be had in time.
pub(super) fn is_lock_timeout(error: &DestinationError) -> bool {
    matches!(error, DestinationError::Unavailable { reason } if reason.ends_with("(SQLSTATE 55P03)"))
}

/// The database's message, with its detail and code.
pub(super) fn describe(error: &PgDatabaseError) -> String {
    let mut text = error.message().to_owned();
    if let Some(detail) = error.detail() {
        text.push_str(": ");
        text.push_str(detail);
    }
    // Either may quote a cell, whatever that holds.
    if text.len() > MESSAGE_KEPT {
        text.truncate(text.floor_char_boundary(MESSAGE_KEPT));
        text.push('…');
        text.shrink_to_fit();
    }
    if let Some(constraint) = error.constraint()
        && !text.contains(constraint)
    {
        text.push_str(&format!(" (constraint {constraint})"));
    }
    text.push_str(&format!(" (SQLSTATE {})", error.code()));
    text
}
