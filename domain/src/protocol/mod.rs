//! Commit, fence and publish as pure decisions (`docs/protocol.md` is their text). The databases make the same decisions in
//! SQL; the actors call these.
//!
//! - [`fence`]: what the destination admits.
//! - [`owner`]: where a new owner begins, and when an attempt can be published.
//! - [`window`]: which chunk jobs to publish next.
//! - `model` (tests): every order in which these steps can happen, searched.

pub mod fence;
#[cfg(test)]
mod model;
pub mod owner;
pub mod window;

pub use fence::{Closure, Fence};
pub use owner::{Entry, PlannedChunkFacts, TilingFault, check_tiling, enter};
pub use window::{JobWindow, Republish};
