//! The fence in SQLite. There is one writer and no session to end: `BEGIN IMMEDIATE` is the lock.

use rusqlite::{Connection, OptionalExtension as _, params};

use longshore_domain::ImportId;

use super::connection::failure;
use super::staging;
use crate::destination::{DestinationError, FenceState, Published, Ticket};

/// A row of `longshore_fences`.
pub(super) struct Fence {
    pub(super) epoch: i64,
    pub(super) attempt: i64,
    state: String,
    rows_loaded: Option<i64>,
    rows_rejected: Option<i64>,
}

impl Fence {
    /// Reads an import's fence.
    pub(super) fn read(connection: &Connection, import: ImportId) -> Result<Option<Self>, DestinationError> {
        connection
            .query_row(
                "SELECT epoch, attempt, state, rows_loaded, rows_rejected FROM longshore_fences WHERE import = ?1",
                params![import.to_string()],
                |row| {
                    Ok(Self {
                        epoch: row.get(0)?,
                        attempt: row.get(1)?,
                        state: row.get(2)?,
                        rows_loaded: row.get(3)?,
                        rows_rejected: row.get(4)?,
                    })
                },
            )
            .optional()
            .map_err(failure)
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

/// Whether the fence admits the ticket.
pub(super) fn admits(connection: &Connection, ticket: Ticket) -> Result<bool, DestinationError> {
    Ok(Fence::read(connection, ticket.import)?.is_some_and(|fence| fence.admits(ticket)))
}

/// Within a transaction. See [`crate::destination::Destination::raise_fence`].
pub(super) fn raise(connection: &Connection, ticket: Ticket) -> Result<Option<FenceState>, DestinationError> {
    let fence = read_or_make(connection, ticket)?;
    if fence.epoch > ticket.epoch.0 {
        return Ok(None);
    }
    let attempt = i64::from(ticket.attempt.0);
    let standing = match fence.standing() {
        FenceState::Aborted if attempt > fence.attempt => FenceState::Open,
        other => other,
    };
    if standing == FenceState::Open {
        connection.execute(
            "UPDATE longshore_fences SET epoch = ?2, attempt = ?3, state = 'open' WHERE import = ?1",
            params![ticket.import.to_string(), ticket.epoch.0, attempt],
        )
    } else {
        connection.execute(
            "UPDATE longshore_fences SET epoch = ?2 WHERE import = ?1",
            params![ticket.import.to_string(), ticket.epoch.0],
        )
    }
    .map_err(failure)?;
    Ok(Some(standing))
}

/// Within a transaction. See [`crate::destination::Destination::abort`].
pub(super) fn abort(connection: &Connection, ticket: Ticket) -> Result<Option<FenceState>, DestinationError> {
    let fence = read_or_make(connection, ticket)?;
    let attempt = i64::from(ticket.attempt.0);
    if fence.epoch > ticket.epoch.0 || (fence.epoch == ticket.epoch.0 && fence.attempt > attempt) {
        return Ok(None);
    }
    if let standing @ FenceState::Published(_) = fence.standing() {
        return Ok(Some(standing));
    }
    staging::drop_all(connection, ticket.import, None)?;
    let import = ticket.import.to_string();
    connection.execute("DELETE FROM longshore_ledger WHERE import = ?1", params![import]).map_err(failure)?;
    connection
        .execute("DELETE FROM longshore_rejects WHERE import = ?1 AND attempt <> ?2", params![import, attempt])
        .map_err(failure)?;
    connection
        .execute(
            "UPDATE longshore_fences SET epoch = ?2, attempt = ?3, state = 'aborted' WHERE import = ?1",
            params![import, ticket.epoch.0, attempt],
        )
        .map_err(failure)?;
    Ok(Some(FenceState::Aborted))
}

fn read_or_make(connection: &Connection, ticket: Ticket) -> Result<Fence, DestinationError> {
    if let Some(fence) = Fence::read(connection, ticket.import)? {
        return Ok(fence);
    }
    let attempt = i64::from(ticket.attempt.0);
    connection
        .execute(
            "INSERT INTO longshore_fences (import, epoch, attempt, state) VALUES (?1, ?2, ?3, 'open')",
            params![ticket.import.to_string(), ticket.epoch.0, attempt],
        )
        .map_err(failure)?;
    Ok(Fence { epoch: ticket.epoch.0, attempt, state: "open".to_owned(), rows_loaded: None, rows_rejected: None })
}
