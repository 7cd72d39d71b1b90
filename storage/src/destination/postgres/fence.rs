//! The fence: who may write for an import, and how it was closed (invariant 2).

use sqlx::postgres::{PgConnection, PgPool};

use longshore_domain::{ChunkIndex, ImportId};

use super::session::{self, Commit, Session, Work, failure};
use super::staging;
use crate::destination::{DestinationError, FenceState, Published, Ticket};

/// How often the locks of older sessions are waited for, [`FENCE_LOCK_WAIT`] each, while these are being ended.
const TRIES: u32 = 20;
/// How long one try waits for a lock.
const FENCE_LOCK_WAIT: &str = "500ms";

/// A row of `longshore_fences`.
#[derive(Debug, Clone)]
pub(super) struct Fence {
    pub(super) epoch: i64,
    pub(super) attempt: i64,
    pub(super) state: String,
    pub(super) rows_loaded: Option<i64>,
    pub(super) rows_rejected: Option<i64>,
}

/// Its fields, in its order.
type Row = (i64, i64, String, Option<i64>, Option<i64>);

/// How the row is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lock {
    /// A look, for what is decided later under a lock.
    None,
    /// The last statement before a chunk's COMMIT: chunks share it, a new owner waits for it.
    Share,
    /// Before the row is changed.
    Update,
}

impl Fence {
    /// Reads an import's fence.
    pub(super) async fn read(
        connection: &mut PgConnection,
        import: ImportId,
        lock: Lock,
    ) -> Result<Option<Self>, sqlx::Error> {
        let statement = match lock {
            Lock::None => {
                "SELECT epoch, attempt, state, rows_loaded, rows_rejected FROM longshore_fences WHERE import = $1"
            }
            Lock::Share => {
                "SELECT epoch, attempt, state, rows_loaded, rows_rejected FROM longshore_fences WHERE import = $1 FOR SHARE"
            }
            Lock::Update => {
                "SELECT epoch, attempt, state, rows_loaded, rows_rejected FROM longshore_fences WHERE import = $1 FOR UPDATE"
            }
        };
        let row: Option<Row> = sqlx::query_as(statement).bind(import.0).fetch_optional(connection).await?;
        Ok(row.map(|(epoch, attempt, state, rows_loaded, rows_rejected)| Self {
            epoch,
            attempt,
            state,
            rows_loaded,
            rows_rejected,
        }))
    }

    /// Whether the ticket's holder may write.
    pub(super) fn admits(&self, ticket: Ticket) -> bool {
        self.epoch == ticket.epoch.0 && self.attempt == i64::from(ticket.attempt.0) && self.state == "open"
    }

    /// How the import stands.
    pub(super) fn standing(&self) -> FenceState {
        match (self.state.as_str(), self.rows_loaded, self.rows_rejected) {
            ("published", Some(loaded), Some(rejected)) => {
                FenceState::Published(Published { rows_loaded: loaded as u64, rows_rejected: rejected as u64 })
            }
            ("open", ..) => FenceState::Open,
            _ => FenceState::Aborted,
        }
    }
}

/// Whether the fence admits the ticket; locked until the end of the transaction.
pub(super) async fn admits(session: &mut Session, ticket: Ticket, lock: Lock) -> Result<bool, DestinationError> {
    let fence = Fence::read(session.connection(), ticket.import, lock).await.map_err(failure)?;
    Ok(fence.is_some_and(|fence| fence.admits(ticket)))
}

/// How an import stands, over a fresh connection.
pub(super) async fn standing(pool: &PgPool, import: ImportId) -> Result<Option<Fence>, DestinationError> {
    let mut session = Session::begin(pool, None, Work::Short).await?;
    let fence = Fence::read(session.connection(), import, Lock::None).await.map_err(failure)?;
    session.rollback().await;
    Ok(fence)
}

/// Whose sessions are ended.
#[derive(Debug, Clone, Copy)]
enum Whose {
    /// Those of older epochs and attempts.
    Older,
    /// The ticket's own too: what they would do is not wanted any more.
    All,
}

/// Ends sessions of an import.
async fn terminate(pool: &PgPool, ticket: Ticket, whose: Whose) -> Result<(), DestinationError> {
    let mut session = Session::begin(pool, None, Work::Short).await?;
    let ended: i64 = sqlx::query_scalar(
        "SELECT count(pg_terminate_backend(pid)) \
         FROM pg_stat_activity, \
              LATERAL (SELECT split_part(application_name, '/', 3) AS epoch, split_part(application_name, '/', 4) AS attempt) AS name \
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND starts_with(application_name, $1) \
           AND CASE WHEN epoch ~ '^[0-9]{1,18}$' AND attempt ~ '^[0-9]{1,10}$' \
               THEN (epoch::bigint, attempt::bigint) < ($2, $3) OR ($4 AND (epoch::bigint, attempt::bigint) = ($2, $3)) END",
    )
    .bind(session::application_prefix(ticket.import))
    .bind(ticket.epoch.0)
    .bind(i64::from(ticket.attempt.0))
    .bind(matches!(whose, Whose::All))
    .fetch_one(session.connection())
    .await
    .map_err(failure)?;
    session.rollback().await;
    if ended > 0 {
        tracing::info!(import_id = %ticket.import, epoch = ticket.epoch.0, sessions = ended, "ended sessions of the import");
    }
    Ok(())
}

/// Whether a change of the fence is tried again, after the sessions that hold its locks were ended.
async fn cleared<T>(
    pool: &PgPool,
    ticket: Ticket,
    whose: Whose,
    tried: u32,
    outcome: &Result<T, DestinationError>,
) -> Result<bool, DestinationError> {
    match outcome {
        Err(error) if session::is_lock_timeout(error) && tried < TRIES => {
            terminate(pool, ticket, whose).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// See [`crate::destination::Destination::raise_fence`].
pub(super) async fn raise(pool: &PgPool, ticket: Ticket) -> Result<Option<FenceState>, DestinationError> {
    // A stale caller must end nobody's sessions.
    if let Some(fence) = standing(pool, ticket.import).await?
        && fence.epoch > ticket.epoch.0
    {
        return Ok(None);
    }
    terminate(pool, ticket, Whose::Older).await?;
    let mut tried = 0;
    loop {
        let outcome = raise_once(pool, ticket).await;
        tried += 1;
        if cleared(pool, ticket, Whose::Older, tried, &outcome).await? {
            continue;
        }
        // A session that began between the first look and the new epoch commits nothing, but it may hold locks.
        if matches!(outcome, Ok(Some(_))) {
            terminate(pool, ticket, Whose::Older).await?;
        }
        return outcome;
    }
}

/// Ends what this import's own epoch left open, such as a worker that was stopped inside COPY: everything it was to write is
/// in the ledger, or is not wanted.
pub(super) async fn end_sessions(pool: &PgPool, ticket: Ticket) -> Result<(), DestinationError> {
    terminate(pool, ticket, Whose::All).await
}

/// Ends what an earlier worker on a chunk left open, one that was stopped behind its ledger row: the caller has the chunk now.
pub(super) async fn end_chunk_sessions(
    pool: &PgPool,
    ticket: Ticket,
    chunk: ChunkIndex,
) -> Result<(), DestinationError> {
    let mut session = Session::begin(pool, None, Work::Short).await?;
    let ended: i64 = sqlx::query_scalar(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = $1",
    )
    .bind(session::chunk_name(ticket, chunk))
    .fetch_one(session.connection())
    .await
    .map_err(failure)?;
    session.rollback().await;
    tracing::info!(import_id = %ticket.import, chunk = chunk.0, sessions = ended, "ended sessions of the chunk");
    Ok(())
}

async fn raise_once(pool: &PgPool, ticket: Ticket) -> Result<Option<FenceState>, DestinationError> {
    let (mut session, fence) = locked(pool, ticket).await?;
    let newer_attempt = fence.epoch == ticket.epoch.0 && fence.attempt > i64::from(ticket.attempt.0);
    if fence.epoch > ticket.epoch.0 || newer_attempt {
        session.rollback().await;
        return Ok(None);
    }
    let standing = match fence.standing() {
        FenceState::Aborted if i64::from(ticket.attempt.0) > fence.attempt => FenceState::Open,
        other => other,
    };
    let open = standing == FenceState::Open;
    sqlx::query(
        "UPDATE longshore_fences SET epoch = $2, attempt = CASE WHEN $4 THEN $3 ELSE attempt END, \
                state = CASE WHEN $4 THEN 'open' ELSE state END, changed_at = now() WHERE import = $1",
    )
    .bind(ticket.import.0)
    .bind(ticket.epoch.0)
    .bind(i64::from(ticket.attempt.0))
    .bind(open)
    .execute(session.connection())
    .await
    .map_err(failure)?;
    finish(session).await?;
    Ok(Some(standing))
}

/// See [`crate::destination::Destination::abort`].
pub(super) async fn abort(pool: &PgPool, ticket: Ticket) -> Result<Option<FenceState>, DestinationError> {
    let mut tried = 0;
    loop {
        let outcome = abort_once(pool, ticket).await;
        tried += 1;
        if !cleared(pool, ticket, Whose::All, tried, &outcome).await? {
            return outcome;
        }
    }
}

async fn abort_once(pool: &PgPool, ticket: Ticket) -> Result<Option<FenceState>, DestinationError> {
    let (mut session, fence) = locked(pool, ticket).await?;
    let attempt = i64::from(ticket.attempt.0);
    if fence.epoch > ticket.epoch.0 || (fence.epoch == ticket.epoch.0 && fence.attempt > attempt) {
        session.rollback().await;
        return Ok(None);
    }
    if let standing @ FenceState::Published(_) = fence.standing() {
        session.rollback().await;
        return Ok(Some(standing));
    }
    staging::drop_all(&mut session, ticket.import, None).await?;
    sqlx::query("DELETE FROM longshore_ledger WHERE import = $1")
        .bind(ticket.import.0)
        .execute(session.connection())
        .await
        .map_err(failure)?;
    sqlx::query("DELETE FROM longshore_rejects WHERE import = $1 AND attempt <> $2")
        .bind(ticket.import.0)
        .bind(attempt)
        .execute(session.connection())
        .await
        .map_err(failure)?;
    sqlx::query(
        "UPDATE longshore_fences SET epoch = $2, attempt = $3, state = 'aborted', changed_at = now() WHERE import = $1",
    )
    .bind(ticket.import.0)
    .bind(ticket.epoch.0)
    .bind(attempt)
    .execute(session.connection())
    .await
    .map_err(failure)?;
    finish(session).await?;
    Ok(Some(FenceState::Aborted))
}

/// A transaction that holds the import's fence; made, where there is none.
async fn locked(pool: &PgPool, ticket: Ticket) -> Result<(Session, Fence), DestinationError> {
    let mut session = Session::begin(pool, Some(ticket), Work::Short).await?;
    session.run(format!("SET LOCAL lock_timeout = '{FENCE_LOCK_WAIT}'")).await.map_err(failure)?;
    sqlx::query(
        "INSERT INTO longshore_fences (import, epoch, attempt, state) VALUES ($1, $2, $3, 'open') ON CONFLICT DO NOTHING",
    )
    .bind(ticket.import.0)
    .bind(ticket.epoch.0)
    .bind(i64::from(ticket.attempt.0))
    .execute(session.connection())
    .await
    .map_err(failure)?;
    let fence = Fence::read(session.connection(), ticket.import, Lock::Update).await.map_err(failure)?;
    let fence = fence.ok_or_else(|| DestinationError::Unavailable { reason: "the fence went away".to_owned() })?;
    Ok((session, fence))
}

/// Commits a change that is harmless to repeat: an unknown answer is passed on as "try again".
pub(super) async fn finish(session: Session) -> Result<(), DestinationError> {
    match session.commit().await? {
        Commit::Done => Ok(()),
        Commit::Unknown(error) => Err(error),
    }
}
