//! What the end-to-end tests share: real processes with a clean environment, servers of their own, and ways to look at the
//! result that do not go through the service.
//!
//! # Tests that run on every S3 server
//!
//! Nothing may depend on one S3 server alone, so a test that needs one takes its kind, and is named once for all of them:
//!
//! ```ignore
//! use common::s3::{S3Kind, on_every_s3_server};
//!
//! on_every_s3_server!(a_file_is_imported); // `minio::a_file_is_imported` and `versity::a_file_is_imported`
//!
//! async fn a_file_is_imported(s3: S3Kind) {
//!     let cluster = Cluster::start(&Options { events: true, ..Options::on(s3) }).await;
//!     …
//! }
//! ```
//!
//! With `events: true` the cluster has a server of its own (`cluster.storage`) whose events reach it, whatever that takes on the
//! server: a bucket's notification on MinIO, nothing on versitygw. What only one server knows stays a plain `#[tokio::test]`
//! with that kind.
#![allow(dead_code, unused_macros, unused_imports)] // each test target uses its part

pub mod api;
pub mod browser;
pub mod cluster;
pub mod copies;
pub mod data;
pub mod load;
pub mod nats_wire;
pub mod pg_proxy;
pub mod pollock;
pub mod postgres;
pub mod process;
pub mod recovery;
pub mod s3;
pub mod s3_faults;
pub mod servers;
pub mod service;
pub mod sse;
pub mod toxiproxy;
pub mod two_databases;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up. No measure of speed: a stuck test ends, that is all.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// Between two looks at a condition.
pub const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A setting that `deploy/servers` exports.
pub fn server_setting(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run `deploy/servers test`, which starts the servers"))
}

/// Looks until there is an answer.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(DEADLINE, what, look).await
}

/// Looks until there is an answer, with a deadline of its own.
pub async fn until_within<T>(deadline: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < deadline, "gave up after {deadline:?} waiting until {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A port that nobody listens on. Below the range that connections take theirs from, and never twice in one test process, so
/// that a server that is started again finds it free.
pub fn free_port() -> u16 {
    static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1000 {
        let port = rand::random_range(10_000..32_000);
        if !taken.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            taken.insert(port);
            return port;
        }
    }
    panic!("no free port was found");
}

/// A name that no other test has.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}{:016x}", rand::random::<u64>())
}

/// The seed of a test's random choices: `SEED`, or a new one; printed, so that a failure can be repeated.
pub fn seed() -> u64 {
    let seed = match std::env::var("SEED") {
        Ok(text) => text.parse().expect("SEED must be a whole number"),
        Err(_) => rand::random(),
    };
    println!("SEED={seed}");
    seed
}
