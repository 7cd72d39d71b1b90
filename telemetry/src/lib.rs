//! What a process tells of itself. Called by every crate that does something worth counting; served by the API and by
//! workers that listen (`/metrics`), exported by the program (OTLP).
//!
//! - [`metrics`]: every metric, with its name, unit, help text and bounds. `docs/metrics.md` explains each to an operator.
//! - `declare`: how the table of metrics becomes metrics.
//! - [`labels`]: the values that labels may have. Never an import, a table or a key.
//! - [`trace`]: one import, one trace, over all processes.

mod declare;
pub mod labels;
pub mod metrics;
pub mod trace;

pub use labels::{AttemptReason, Dependency, DependencyFault, JobOutcome, MessageState, QueueName, Step};
pub use metrics::{Sampled, metrics, render, step_span, timed};
