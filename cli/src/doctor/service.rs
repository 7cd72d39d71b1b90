//! The settings, the data directory, and a service that runs here.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::Role;
use super::report::Check;
use crate::settings::{Settings, is_postgres};
use crate::wire::{reachable, require_cluster};

/// How long a service may take over its readiness: it asks its own dependencies.
const READY_TIMEOUT: Duration = Duration::from_secs(8);

/// Who has the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Nothing is kept there with these settings.
    NotUsed,
    /// A service that runs.
    Running,
    /// Nobody.
    Free,
}

impl Owner {
    /// Looks at the lock, for a moment: shared, so that it is in nobody's way who only looks, too. A service that starts just
    /// then tries again.
    pub fn find(settings: &Settings) -> Self {
        if settings.database_url.is_some() && settings.s3.is_some() {
            return Self::NotUsed;
        }
        let Ok(lock) = File::open(settings.data_dir.join("lock")) else { return Self::Free };
        // The file is closed, and the lock gone, right behind it.
        if matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)) { Self::Running } else { Self::Free }
    }
}

/// Which settings are set, and what they make of the parts. Never their values.
pub fn settings(settings: &Settings, role: Role) -> Check {
    let given = &settings.given;
    let kind = |url| if is_postgres(url) { "PostgreSQL" } else { "SQLite" };
    let database = kind(settings.database_url.as_ref());
    let destination = kind(settings.destination_url.as_ref().or(settings.database_url.as_ref()));
    let bus = if settings.nats_url.is_some() { "NATS" } else { "in-process bus" };
    let storage = if settings.s3.is_some() { "S3 server" } else { "embedded S3 endpoint" };
    let names = if given.is_empty() { "none is set".to_owned() } else { given.join(", ") };
    let detail = format!("control database {database}, destination {destination}, {bus}, {storage}; {names}");
    let lacks = role.of_a_cluster().and_then(|role| require_cluster(settings, role).err());
    let check = match lacks {
        None => Check::ok("settings", detail),
        Some(lack) => {
            let advice = "give the doctor the settings that this role is started with";
            Check::fail("settings", format!("{lack}; {detail}"), advice)
        }
    };
    check
        .with("given", given.clone())
        .with("parts", json!({"database": database, "destination": destination, "bus": bus, "storage": storage}))
}

/// Asks the service at `LONGSHORE_LISTEN` whether it is ready; and whether one answered.
pub async fn check(settings: &Settings, role: Role) -> (Check, bool) {
    const NAME: &str = "service";
    if role == Role::Worker && settings.listen.is_none() {
        return (Check::skipped(NAME, "LONGSHORE_LISTEN is not set: a worker listens only where it is"), false);
    }
    let base = format!("http://{}", reachable(settings.api_listen()));
    let client = reqwest::Client::builder().timeout(READY_TIMEOUT).no_proxy().build();
    let answer = match client {
        Ok(client) => client.get(format!("{base}/readyz")).send().await,
        Err(error) => Err(error),
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) if error.is_timeout() => {
            let detail =
                format!("something listens at {base}, and does not answer within {} s", READY_TIMEOUT.as_secs());
            let advice = "a service that still starts says in its log what it is waiting for: see the checks below";
            return (Check::warn(NAME, detail, advice), false);
        }
        Err(_) => return (Check::skipped(NAME, format!("none answers at {base} (LONGSHORE_LISTEN)")), false),
    };
    let status = answer.status();
    let body: Value = answer.json().await.unwrap_or_default();
    let Some(dependencies) = body["dependencies"].as_object() else {
        let advice = "give LONGSHORE_LISTEN a port that is free";
        return (Check::warn("service", format!("something else than longshore answers at {base}"), advice), false);
    };
    let down: Vec<String> = dependencies
        .iter()
        .filter(|(_, dependency)| dependency["ready"] != true)
        .map(|(name, dependency)| format!("{name}: {}", dependency["detail"].as_str().unwrap_or("not ready")))
        .collect();
    let check = if status.is_success() {
        Check::ok("service", format!("the service at {base} is ready"))
    } else {
        let detail = format!("the service at {base} is not ready: {}", down.join("; "));
        Check::fail("service", detail, "see the checks of these dependencies below")
    };
    (check.with("dependencies", body["dependencies"].clone()), true)
}

/// Whether the data directory can be used, where it is.
pub fn data_directory(settings: &Settings, owner: &Owner) -> Option<Check> {
    const NAME: &str = "data-directory";
    let folder = &settings.data_dir;
    let shown = folder.display();
    match owner {
        Owner::NotUsed => None,
        Owner::Running => Some(Check::ok(NAME, format!("a running service owns {shown}"))),
        Owner::Free => Some(match Scratch::new(folder) {
            Ok(_) if folder.is_dir() => Check::ok(NAME, format!("{shown} can be written to; no service owns it")),
            Ok(_) => Check::ok(NAME, format!("{shown} is not there yet; the service's start makes it")),
            Err(error) => Check::fail(
                NAME,
                format!("{shown} cannot be written to: {error}"),
                "let LONGSHORE_DATA_DIR name a folder that this account may write to",
            ),
        }),
    }
}

/// A folder beside what the service keeps, on the same file system; removed when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// In the data directory, or where that would be made.
    pub fn new(data_dir: &Path) -> std::io::Result<Self> {
        let absolute = std::path::absolute(data_dir)?;
        let home = absolute.ancestors().find(|folder| folder.exists()).unwrap_or(&absolute);
        let folder = home.join(format!("longshore-doctor-{}", uuid::Uuid::now_v7().simple()));
        std::fs::create_dir(&folder)?;
        Ok(Self(folder))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::error!(folder = %self.0.display(), %error, "the doctor's own folder cannot be removed");
        }
    }
}
