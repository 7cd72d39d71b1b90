//! The states of imports and chunks (contract, section 4).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where an import stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImportState {
    /// A URL was handed out; no object was seen yet.
    AwaitingUpload,
    /// The object is there; nobody works on it yet.
    Queued,
    /// An owner looks at the object, the destination and the columns.
    Planning,
    /// Chunks are being loaded into staging.
    Running,
    /// Everything is staged; the rows move to the destination in one transaction.
    Publishing,
    /// The rows are in the destination.
    Succeeded,
    /// Nothing of it is in the destination; `error` says why.
    Failed,
    /// A cancel was asked for; staged work is being removed.
    Cancelling,
    /// Nothing of it is in the destination, as asked.
    Cancelled,
    /// No object came in time.
    Expired,
}

impl ImportState {
    /// All states, in the order of an import's way.
    pub const ALL: [Self; 10] = [
        Self::AwaitingUpload,
        Self::Queued,
        Self::Planning,
        Self::Running,
        Self::Publishing,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelling,
        Self::Cancelled,
        Self::Expired,
    ];

    /// The states that an import can fail in.
    pub const MAY_FAIL: [Self; 4] = [Self::Queued, Self::Planning, Self::Running, Self::Publishing];

    /// The word for it in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AwaitingUpload => "awaiting_upload",
            Self::Queued => "queued",
            Self::Planning => "planning",
            Self::Running => "running",
            Self::Publishing => "publishing",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// Whether the import came to an end.
    #[must_use]
    pub const fn is_done(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Expired)
    }

    /// Whether an import in this state needs an owner: a node that holds its lease and moves it on.
    #[must_use]
    pub const fn needs_owner(self) -> bool {
        matches!(self, Self::Queued | Self::Planning | Self::Running | Self::Publishing | Self::Cancelling)
    }

    /// Whether `self -> next` is a legal change.
    ///
    /// # Errors
    /// [`IllegalTransition`] names both states.
    pub const fn transition(self, next: Self) -> Result<Self, IllegalTransition> {
        use ImportState::{
            AwaitingUpload, Cancelled, Cancelling, Expired, Failed, Planning, Publishing, Queued, Running, Succeeded,
        };
        let legal = match self {
            AwaitingUpload => matches!(next, Queued | Expired | Cancelled),
            Queued => matches!(next, Planning | Cancelling | Failed),
            Planning => matches!(next, Running | Publishing | Cancelling | Failed | Queued),
            Running => matches!(next, Publishing | Cancelling | Failed | Queued),
            Publishing => matches!(next, Succeeded | Failed | Queued),
            Cancelling => matches!(next, Cancelled),
            Failed => matches!(next, Queued),
            Succeeded | Cancelled | Expired => false,
        };
        if legal { Ok(next) } else { Err(IllegalTransition { from: self, to: next }) }
    }
}

impl fmt::Display for ImportState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ImportState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| UnknownState(text.to_owned()))
    }
}

/// Where a chunk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChunkState {
    /// Planned and stored; nobody works on it.
    Pending,
    /// A worker holds its claim.
    Running,
    /// Its rows, rejects and ledger row are committed.
    Done,
    /// Given up.
    Failed,
}

impl ChunkState {
    /// The word for it in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

impl FromStr for ChunkState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Pending, Self::Running, Self::Done, Self::Failed]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

/// A change of state that the contract does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an import cannot go from {from} to {to}")]
pub struct IllegalTransition {
    /// The state it is in.
    pub from: ImportState,
    /// The state it was asked to take.
    pub to: ImportState,
}

/// A word that names no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no state")]
pub struct UnknownState(String);

#[cfg(test)]
mod tests {
    use super::*;
    use ImportState::*;

    /// Section 4 of the contract, written out once more.
    const LEGAL: &[(ImportState, ImportState)] = &[
        (AwaitingUpload, Queued),
        (Queued, Planning),
        (Planning, Running),
        (Running, Publishing),
        (Publishing, Succeeded),
        (AwaitingUpload, Expired),
        (AwaitingUpload, Cancelled),
        (Queued, Cancelling),
        (Planning, Cancelling),
        (Running, Cancelling),
        (Cancelling, Cancelled),
        (Queued, Failed),
        (Planning, Failed),
        (Running, Failed),
        (Publishing, Failed),
        (Failed, Queued),
        (Planning, Queued),
        (Running, Queued),
        (Publishing, Queued),
        // `running` begins with the first chunk job: a file without a record has none.
        (Planning, Publishing),
    ];

    #[test]
    fn exactly_the_changes_of_the_contract_are_legal() {
        for from in ImportState::ALL {
            for to in ImportState::ALL {
                assert_eq!(from.transition(to).is_ok(), LEGAL.contains(&(from, to)), "{from} -> {to}");
            }
        }
    }

    #[test]
    fn an_import_fails_from_exactly_these_states() {
        let may: Vec<_> = ImportState::ALL.into_iter().filter(|state| state.transition(Failed).is_ok()).collect();
        assert_eq!(may, ImportState::MAY_FAIL);
    }

    #[test]
    fn nothing_leaves_a_state_that_is_done_but_a_retry() {
        for from in ImportState::ALL.into_iter().filter(|state| state.is_done()) {
            let next: Vec<_> = ImportState::ALL.into_iter().filter(|to| from.transition(*to).is_ok()).collect();
            assert_eq!(next, if from == Failed { vec![Queued] } else { vec![] });
        }
    }

    #[test]
    fn words_read_back() {
        for state in ImportState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert!("Running".parse::<ImportState>().is_err());
    }
}
