//! Control database and destination: reached, as they should be, writable.

use std::path::Path;

use longshore_storage::database::pending::known_migrations;
use longshore_storage::inspect::{self, CONTROL_TABLES, DESTINATION_TABLES, DatabaseFacts};
use longshore_storage::objects::Secret;

use super::report::Check;
use super::service::Owner;
use crate::settings::Settings;
use crate::wire::{default_database_url, sqlite_path};

/// PostgreSQL below this is not maintained any more, and not tried.
const OLDEST_POSTGRES: i32 = 140_000;

/// What came of it; facts where the database answered.
pub struct Seen {
    pub checks: Vec<Check>,
    pub database: Option<DatabaseFacts>,
    pub destination: Option<DatabaseFacts>,
}

/// A role that a database has.
struct Part {
    name: &'static str,
    setting: &'static str,
    /// Whether that setting is set; where it is not, the file is in the data directory.
    given: bool,
    tables: &'static [&'static str],
}

impl Part {
    fn file_setting(&self) -> &'static str {
        if self.given { self.setting } else { "LONGSHORE_DATA_DIR" }
    }
}

/// Looks at both, at once.
pub async fn check(settings: &Settings, owner: &Owner) -> Seen {
    let default = default_database_url(settings);
    let database_url = settings.database_url.as_ref().unwrap_or(&default);
    let destination_url = settings.destination_url.as_ref().unwrap_or(database_url);
    let setting =
        if settings.destination_url.is_some() { "LONGSHORE_DESTINATION_URL" } else { "LONGSHORE_DATABASE_URL" };
    let control = Part {
        name: "database",
        setting: "LONGSHORE_DATABASE_URL",
        given: settings.database_url.is_some(),
        tables: &CONTROL_TABLES,
    };
    let loads = Part {
        name: "destination",
        setting,
        given: settings.destination_url.is_some() || settings.database_url.is_some(),
        tables: &DESTINATION_TABLES,
    };
    let ((first, database), (second, destination)) =
        tokio::join!(look(&control, database_url, owner), look(&loads, destination_url, owner));
    Seen { checks: vec![first, second], database, destination }
}

async fn look(part: &Part, url: &Secret, owner: &Owner) -> (Check, Option<DatabaseFacts>) {
    let facts = match sqlite_path(url) {
        Some(path) if !path.exists() => return (not_there(part, &path), None),
        Some(path) => {
            let (tables, write) = (part.tables, *owner != Owner::Running);
            tokio::task::spawn_blocking(move || inspect::sqlite(&path, tables, write))
                .await
                .unwrap_or_else(|error| Err(error.to_string()))
        }
        None => inspect::postgres(url.expose(), part.tables).await,
    };
    match facts {
        Ok(facts) => (judge(part, &facts), Some(facts)),
        Err(reason) if sqlite_path(url).is_some() => {
            let advice = format!(
                "let {} name a SQLite file that this account may read and write, with its folder, or one that is not there \
                 yet",
                part.file_setting()
            );
            (Check::fail(part.name, reason, advice), None)
        }
        Err(reason) => {
            let advice = format!(
                "check {}: its host, port, user, password and database, and that the server runs and lets this machine in",
                part.setting
            );
            (Check::fail(part.name, reason, advice), None)
        }
    }
}

fn not_there(part: &Part, path: &Path) -> Check {
    Check::ok(part.name, format!("SQLite, {} is not there yet; the service's start makes it", path.display()))
}

/// What the facts mean. The first that is wrong is told, what fails before what is only to be looked at.
fn judge(part: &Part, facts: &DatabaseFacts) -> Check {
    let Part { name, setting, .. } = part;
    let place = format!("{}, {}", facts.version, facts.place);
    let schema = facts.schema.as_deref().unwrap_or("public");
    let check = if let (Some(Err(reason)), 0) = (&facts.writable, facts.version_number) {
        let advice = format!(
            "let this account write to {} and its folder, where SQLite keeps files beside it ({})",
            facts.place,
            part.file_setting()
        );
        Check::fail(name, format!("{place}: tables cannot be made: {reason}"), advice)
    } else if let Some(Err(reason)) = &facts.writable {
        let advice = format!(
            "let the user of {setting} make and write tables: GRANT CREATE, USAGE ON SCHEMA {schema} TO its role; on a \
             standby, name the primary in {setting}"
        );
        Check::fail(name, format!("{place}: tables cannot be made: {reason}"), advice)
    } else if !facts.missing_rights.is_empty() {
        let detail = format!("{place}: not granted: {}", facts.missing_rights.join(", "));
        Check::fail(
            name,
            detail,
            format!("let the user of {setting} own the longshore_ tables, or grant it all rights on them"),
        )
    } else if !facts.missing_tables.is_empty() {
        let detail = format!("{place}: not there yet: {}", facts.missing_tables.join(", "));
        Check::warn(name, detail, "start the service: it makes them")
    } else {
        judge_details(part, facts, &place)
    };
    let pending = pending(part, facts);
    check
        .with("version", facts.version.clone())
        .with("schema", facts.schema.clone())
        .with("migrations_applied", if is_control(part) { facts.migrations.clone() } else { Vec::new() })
        .with("migrations_pending", pending)
}

fn judge_details(part: &Part, facts: &DatabaseFacts, place: &str) -> Check {
    let pending = pending(part, facts);
    let known = known_migrations();
    let newer: Vec<&String> = facts.migrations.iter().filter(|name| !known.contains(name)).collect();
    if !pending.is_empty() {
        let detail = format!("{place}: migrations to come: {}", pending.join(", "));
        return Check::warn(part.name, detail, "start a service of this version: it applies them");
    }
    if is_control(part) && !newer.is_empty() {
        let detail = format!("{place}: {} migrations are newer than this longshore", newer.len());
        return Check::warn(part.name, detail, "a newer version ran on this database: run the doctor of that one");
    }
    if !facts.weak_settings.is_empty() {
        let detail = format!("{place}: {}", facts.weak_settings.join(", "));
        let advice = "a crash can lose what was committed, imports with it: set these on";
        return Check::warn(part.name, detail, advice);
    }
    if facts.version_number > 0 && facts.version_number < OLDEST_POSTGRES {
        return Check::warn(part.name, format!("{place} is old"), "use PostgreSQL 14 or later");
    }
    let written = if facts.writable.is_some() { "tables can be made" } else { "a running service writes to it" };
    Check::ok(part.name, format!("{place}: {written}"))
}

fn is_control(part: &Part) -> bool {
    part.name == "database"
}

fn pending(part: &Part, facts: &DatabaseFacts) -> Vec<String> {
    if !is_control(part) {
        return Vec::new();
    }
    known_migrations().into_iter().filter(|name| !facts.migrations.contains(name)).collect()
}
