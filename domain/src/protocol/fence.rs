//! The fence: one row an import in the destination, checked inside every transaction that writes for it.

use crate::ids::{Attempt, Epoch};

/// How a fence was closed, for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closure {
    /// The rows are in the destination.
    Published,
    /// Nothing of this attempt is or will be in the destination.
    Aborted,
}

/// The newest owner's epoch and attempt, and whether anything may still be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The newest owner's.
    pub epoch: Epoch,
    /// The attempt that is being staged.
    pub attempt: Attempt,
    /// `None`: open.
    pub closed: Option<Closure>,
}

impl Fence {
    /// A new owner's first step. `None`: the fence knows a newer owner, and nothing changes.
    ///
    /// A published fence stays closed whatever comes; an aborted one opens for a higher attempt only, so that a late owner
    /// of the same attempt cannot stage what was dropped.
    #[must_use]
    pub fn raise(current: Option<Self>, epoch: Epoch, attempt: Attempt) -> Option<Self> {
        let Some(fence) = current else {
            return Some(Self { epoch, attempt, closed: None });
        };
        if fence.epoch > epoch || (fence.epoch == epoch && fence.attempt > attempt) {
            return None;
        }
        Some(match fence.closed {
            Some(Closure::Published) => Self { epoch, ..fence },
            Some(Closure::Aborted) if attempt <= fence.attempt => Self { epoch, ..fence },
            _ => Self { epoch, attempt, closed: None },
        })
    }

    /// Whether a transaction of that epoch and attempt may commit.
    #[must_use]
    pub fn admits(&self, epoch: Epoch, attempt: Attempt) -> bool {
        self.closed.is_none() && self.epoch == epoch && self.attempt == attempt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(epoch: i64, attempt: u32, closed: Option<Closure>) -> Fence {
        Fence { epoch: Epoch(epoch), attempt: Attempt(attempt), closed }
    }

    #[test]
    fn only_the_newest_owner_of_the_open_attempt_commits() {
        let open = fence(3, 2, None);
        for epoch in 1..5 {
            for attempt in 1..4 {
                assert_eq!(open.admits(Epoch(epoch), Attempt(attempt)), (epoch, attempt) == (3, 2));
            }
        }
        for closed in [Closure::Published, Closure::Aborted] {
            assert!(!fence(3, 2, Some(closed)).admits(Epoch(3), Attempt(2)));
        }
    }

    #[test]
    fn a_fence_never_falls() {
        assert_eq!(Fence::raise(Some(fence(3, 1, None)), Epoch(2), Attempt(1)), None);
        assert_eq!(Fence::raise(Some(fence(3, 2, None)), Epoch(3), Attempt(1)), None);
        assert_eq!(
            Fence::raise(Some(fence(3, 1, None)), Epoch(3), Attempt(1)),
            Some(fence(3, 1, None)),
            "twice is harmless"
        );
        assert_eq!(Fence::raise(None, Epoch(1), Attempt(1)), Some(fence(1, 1, None)));
    }

    #[test]
    fn what_is_published_stays_published() {
        let published = Some(Closure::Published);
        assert_eq!(Fence::raise(Some(fence(3, 1, published)), Epoch(9), Attempt(4)), Some(fence(9, 1, published)));
    }

    #[test]
    fn what_is_aborted_opens_for_a_new_attempt_only() {
        let aborted = Some(Closure::Aborted);
        assert_eq!(Fence::raise(Some(fence(3, 1, aborted)), Epoch(4), Attempt(1)), Some(fence(4, 1, aborted)));
        assert_eq!(Fence::raise(Some(fence(3, 1, aborted)), Epoch(4), Attempt(2)), Some(fence(4, 2, None)));
    }
}
