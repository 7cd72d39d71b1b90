//! SQLite's one writer, and what its errors mean.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{Mutex, OwnedMutexGuard};

use longshore_domain::{Problem, ProblemKind};

use crate::destination::gate::{LOG_PAGES, PAGE_BYTES, WriteGate, WriteTurn};
use crate::destination::{DestinationError, sql};

/// How long another process's lock is waited for. Writers of this process take turns at the gate instead.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the file, and makes it where it is missing. A commit is on disk when it is answered (`synchronous = FULL`).
/// Declared foreign keys hold. A rename must not stumble over views that name a table which is not there yet
/// (`legacy_alter_table`). The log may grow to [`LOG_PAGES`].
pub(super) fn open(path: &Path) -> Result<Connection, DestinationError> {
    let connection = Connection::open(path).map_err(failure)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failure)?;
    connection.pragma_update(None, "page_size", PAGE_BYTES).map_err(failure)?;
    connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES).map_err(failure)?;
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
             PRAGMA legacy_alter_table = ON; PRAGMA cache_size = -16384",
        )
        .map_err(failure)?;
    Ok(connection)
}

/// The writing connection with a turn at the gate. Dropped within a transaction, it rolls back, so that a cancelled caller
/// leaves nothing open.
pub(super) struct Writer {
    // Before the turn: the transaction has to end first.
    connection: OwnedMutexGuard<Connection>,
    _turn: WriteTurn,
}

/// How urgent a write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A row or two.
    Control,
    /// As much as a chunk or a table.
    Bulk,
}

impl Writer {
    /// Waits for a turn.
    pub(super) async fn take(gate: &Arc<WriteGate>, connection: &Arc<Mutex<Connection>>, class: Class) -> Self {
        let turn = match class {
            Class::Control => gate.control().await,
            Class::Bulk => gate.bulk().await,
        };
        Self { connection: Arc::clone(connection).lock_owned().await, _turn: turn }
    }

    /// Does blocking work with the connection and gives the writer back.
    pub(super) async fn run<T, F>(mut self, work: F) -> Result<(Self, T), DestinationError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> Result<T, DestinationError> + Send + 'static,
    {
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&mut self.connection)?;
            Ok((self, done))
        });
        done.await.unwrap_or_else(|error| Err(panicked(&error)))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "could not roll back");
        }
    }
}

/// A blocking task did not come to its end.
pub(super) fn panicked(error: &tokio::task::JoinError) -> DestinationError {
    DestinationError::Refused(Problem::new(ProblemKind::Internal, format!("a task of the destination failed: {error}")))
}

/// What an error means for the caller.
pub(super) fn failure(error: rusqlite::Error) -> DestinationError {
    use ErrorCode as Code;
    let text = error.to_string();
    match error.sqlite_error_code() {
        Some(
            Code::DatabaseBusy
            | Code::DatabaseLocked
            | Code::CannotOpen
            | Code::SystemIoFailure
            | Code::DiskFull
            | Code::OutOfMemory
            | Code::ReadOnly
            | Code::FileLockingProtocolFailed
            | Code::OperationInterrupted
            | Code::PermissionDenied
            | Code::SchemaChanged,
        ) => DestinationError::Unavailable { reason: text },
        Some(Code::DatabaseCorrupt | Code::NotADatabase | Code::InternalMalfunction | Code::ApiMisuse) => {
            DestinationError::Refused(Problem::new(ProblemKind::Internal, text))
        }
        _ => sql::refused(text),
    }
}

/// Whether the table refuses the data of a row, not the statement.
pub(super) fn is_row_fault(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig)
    )
}

/// The database's message.
pub(super) fn describe(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        other => other.to_string(),
    }
}
