//! All that leaves the process, behind small traits with one conformance suite each.
//!
//! - [`objects`]: presign, head, ranged get; S3 servers and the embedded endpoint.
//! - [`bus`]: storage events in, import and chunk jobs; NATS JetStream and in-process.
//! - [`database`]: imports, plans, leases and status, through sea-orm.
//! - [`destination`]: staging, ledger, rejects and publish; PostgreSQL and SQLite.
//! - [`server`]: the accept loop of the API and of the embedded endpoint.
//! - `silence`: connections to PostgreSQL that never answer again.
//! - [`start`]: the one start behind three triggers.
//! - [`failure`]: failed calls, counted.
//! - [`inspect`]: what `longshore doctor` sees of the databases.

pub mod bus;
pub mod database;
pub mod destination;
pub mod failpoint;
pub mod failure;
pub mod inspect;
pub mod objects;
pub mod server;
mod silence;
pub mod start;
