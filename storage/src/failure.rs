//! Failed calls, counted where they are handled: whose fault it was, and of what kind.

use longshore_telemetry::{Dependency, DependencyFault, metrics};

use crate::bus::BusError;
use crate::database::DatabaseError;
use crate::destination::DestinationError;
use crate::objects::ObjectError;
use crate::start::StartError;

/// An error of a dependency.
pub trait Failure {
    /// Whose it is.
    fn dependency(&self) -> Dependency;

    /// What was wrong there; `None` where the request or the import is at fault, not the dependency.
    fn fault(&self) -> Option<DependencyFault>;

    /// Counts it. Whoever handles an error (tries again, answers a client, gives up) does so once.
    fn count(&self) {
        if let Some(fault) = self.fault() {
            metrics().dependency_error(self.dependency(), fault);
        }
    }
}

impl Failure for DatabaseError {
    fn dependency(&self) -> Dependency {
        Dependency::Database
    }

    fn fault(&self) -> Option<DependencyFault> {
        Some(match self {
            Self::Unavailable { .. } => DependencyFault::Unavailable,
            Self::Corrupt { .. } => DependencyFault::Corrupt,
        })
    }
}

impl Failure for DestinationError {
    fn dependency(&self) -> Dependency {
        Dependency::Destination
    }

    fn fault(&self) -> Option<DependencyFault> {
        match self {
            Self::Unavailable { .. } => Some(DependencyFault::Unavailable),
            Self::StagingLost { .. } => Some(DependencyFault::StagingLost),
            Self::Refused(_) | Self::ReaderFailed { .. } => None,
        }
    }
}

impl Failure for ObjectError {
    fn dependency(&self) -> Dependency {
        Dependency::Objects
    }

    fn fault(&self) -> Option<DependencyFault> {
        match self {
            Self::Unavailable { .. } => Some(DependencyFault::Unavailable),
            Self::Refused { .. } => Some(DependencyFault::Refused),
            Self::Missing { .. } | Self::Changed { .. } => None,
        }
    }
}

impl Failure for BusError {
    fn dependency(&self) -> Dependency {
        Dependency::Bus
    }

    fn fault(&self) -> Option<DependencyFault> {
        Some(DependencyFault::Unavailable)
    }
}

impl Failure for StartError {
    fn dependency(&self) -> Dependency {
        match self {
            Self::Database(error) => error.dependency(),
            Self::Objects(error) => error.dependency(),
        }
    }

    fn fault(&self) -> Option<DependencyFault> {
        match self {
            Self::Database(error) => error.fault(),
            Self::Objects(error) => error.fault(),
        }
    }
}
