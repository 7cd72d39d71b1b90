//! `longshore doctor`: checks every dependency as the service would use it, and says what to do.
//!
//! It runs beside a running service and changes nothing: no table, stream, bucket or import is made. The object that it
//! uploads is under a key that no import has, and is removed again, where its key may. A role of a cluster is asked only for what
//! that role does, with the rights that it needs. Every check is bounded in time; all of them run, those
//! that need nothing of each other at once.
//!
//! - `report`: what a check says.
//! - `service`: the settings, the data directory, a service that runs here.
//! - `databases`: control database and destination.
//! - `nats`: NATS, its streams and consumers.
//! - `storage`: which storage there is, the bucket and its notification; `exchange`: an upload as a client does it; `events`:
//!   whether it was told of; `reader`: the reads of a worker.
//! - `clocks`: clocks and versions.

mod clocks;
mod databases;
mod events;
mod exchange;
mod nats;
mod reader;
mod report;
mod service;
mod storage;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::output::{print, say};
use crate::settings::Settings;
use report::{Check, as_json, healthy, summary};
use service::Owner;

/// Whatever hangs: no group of checks takes longer. Each call within is bounded more tightly.
const LONGEST: Duration = Duration::from_secs(120);

/// Whose settings are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Of one process that does everything.
    Serve,
    /// Of an API: signs uploads, and takes no work.
    Api,
    /// Of a worker: reads objects and takes work, and signs nothing.
    Worker,
}

impl Role {
    /// Whether uploads are signed, and pages served.
    fn signs(self) -> bool {
        self != Self::Worker
    }

    /// Whether events and jobs are taken.
    fn works(self) -> bool {
        self != Self::Api
    }

    /// The role as commands name it; `None` for the one that is no part of a cluster.
    fn of_a_cluster(self) -> Option<&'static str> {
        match self {
            Self::Serve => None,
            Self::Api => Some("api"),
            Self::Worker => Some("worker"),
        }
    }
}

/// Checks everything that a role does; 1 where something fails.
pub async fn run(settings: &Settings, role: Role, json: bool) -> Result<ExitCode> {
    let checks = check_all(settings, role).await;
    for check in &checks {
        say(check.lines());
    }
    say(summary(&checks));
    if json {
        print(as_json(&checks))?;
    }
    Ok(if healthy(&checks) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn check_all(settings: &Settings, role: Role) -> Vec<Check> {
    let (service, answers) = service::check(settings, role).await;
    let owner = Owner::find(settings);
    let (databases, nats, storage) = tokio::join!(
        databases::check(settings, &owner),
        within(nats::check(settings, role)),
        within(storage::check(settings, role, &owner, answers)),
    );
    let nats = nats.unwrap_or_else(|| (vec![hung("nats")], None));
    let storage = storage.unwrap_or_else(|| storage::Seen { checks: vec![hung("bucket")], greeting: None });
    let clocks = clocks::clock(&databases, storage.greeting.as_ref());
    let versions = clocks::versions(&databases, nats.1.as_deref(), storage.greeting.as_ref());

    let mut checks = vec![service::settings(settings, role), service];
    checks.extend(service::data_directory(settings, &owner));
    checks.extend(databases.checks);
    checks.extend(nats.0);
    checks.extend(storage.checks);
    checks.extend([clocks, versions]);
    checks
}

async fn within<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(LONGEST, work).await.ok()
}

fn hung(name: &'static str) -> Check {
    Check::fail(name, format!("no end within {} s", LONGEST.as_secs()), "look whether it is overloaded, and try again")
}
