//! Clocks that disagree, and versions.

use longshore_storage::objects::probe::Greeting;
use serde_json::json;

use super::databases::Seen;
use super::report::Check;

/// More than this is worth a look.
const WARN_MS: u64 = 5_000;
/// S3 servers refuse signatures of another time; the usual limit is 15 minutes.
const S3_FAIL_MS: u64 = 5 * 60_000;
/// Before this, NATS could lose streams when it was killed.
const OLDEST_NATS: [u64; 3] = [2, 10, 23];

/// Compares the clocks of the databases and of the storage with this machine's.
pub fn clock(databases: &Seen, greeting: Option<&Greeting>) -> Check {
    const NAME: &str = "clock";
    let database = databases.database.as_ref().and_then(|facts| facts.clock_ahead_ms);
    let destination = databases.destination.as_ref().and_then(|facts| facts.clock_ahead_ms);
    let storage = greeting.and_then(|greeting| greeting.clock_ahead_ms);
    let clocks = [("database", database), ("destination", destination), ("storage", storage)];
    let seen: Vec<(&str, i64)> = clocks.into_iter().filter_map(|(whose, ahead)| Some((whose, ahead?))).collect();
    if seen.is_empty() {
        return Check::skipped(NAME, "nothing with a clock of its own answered");
    }
    let shown = |(whose, ahead): &(&str, i64)| format!("{whose} {:+.1} s", *ahead as f64 / 1000.0);
    let detail = format!("ahead of this machine: {}", seen.iter().map(shown).collect::<Vec<_>>().join(", "));
    let worst = seen.iter().map(|(_, ahead)| ahead.unsigned_abs()).max().unwrap_or(0);
    let advice = "let every machine take its time from NTP";
    let check = if storage.is_some_and(|ahead| ahead.unsigned_abs() > S3_FAIL_MS) {
        Check::fail(NAME, format!("{detail}: signatures are refused, or expire at the wrong time"), advice)
    } else if worst > WARN_MS {
        Check::warn(NAME, detail, advice)
    } else {
        Check::ok(NAME, detail)
    };
    seen.into_iter().fold(check, |check, (whose, ahead)| check.with(&format!("{whose}_ahead_ms"), ahead))
}

/// What runs.
pub fn versions(databases: &Seen, nats: Option<&str>, greeting: Option<&Greeting>) -> Check {
    const NAME: &str = "versions";
    let own = env!("CARGO_PKG_VERSION");
    let database = databases.database.as_ref().map(|facts| facts.version.clone());
    let destination = databases.destination.as_ref().map(|facts| facts.version.clone());
    let storage = greeting.and_then(|greeting| greeting.server.clone());
    let mut parts = vec![format!("longshore {own}")];
    parts.extend(database.iter().cloned());
    parts.extend(destination.iter().filter(|version| Some(*version) != database.as_ref()).cloned());
    parts.extend(nats.map(|version| format!("NATS {version}")));
    parts.extend(storage.iter().map(|server| format!("storage {server}")));
    let detail = parts.join(", ");
    let check = match nats.map(numbers) {
        Some(version) if version < OLDEST_NATS => {
            let advice = "use NATS 2.10.23 or later: earlier ones could lose streams when they were killed";
            Check::warn(NAME, detail, advice)
        }
        _ => Check::ok(NAME, detail),
    };
    let found =
        json!({"longshore": own, "database": database, "destination": destination, "nats": nats, "storage": storage});
    check.with("found", found)
}

/// `2.10.23-beta.1`: 2, 10, 23.
fn numbers(version: &str) -> [u64; 3] {
    let mut parts = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;
    use longshore_storage::inspect::DatabaseFacts;

    fn seen(ahead: i64) -> Seen {
        let facts = DatabaseFacts { clock_ahead_ms: Some(ahead), ..DatabaseFacts::default() };
        Seen { checks: Vec::new(), database: Some(facts), destination: None }
    }

    fn greeting(ahead: i64) -> Greeting {
        Greeting { status: Default::default(), server: None, clock_ahead_ms: Some(ahead) }
    }

    #[test]
    fn clocks_may_differ_a_little() {
        let status = |database: i64, storage: i64| clock(&seen(database), Some(&greeting(storage))).status;
        assert_eq!(status(-4_000, 4_000), Status::Ok);
        assert_eq!(status(6_000, 0), Status::Warn);
        assert_eq!(status(0, -6_000), Status::Warn);
        assert_eq!(status(400_000, 0), Status::Warn, "only signatures break");
        assert_eq!(status(0, -301_000), Status::Fail);
    }

    #[test]
    fn an_old_nats_is_told() {
        let status = |version: &str| versions(&seen(0), Some(version), None).status;
        assert_eq!(status("2.9.10"), Status::Warn);
        assert_eq!(status("2.10.22"), Status::Warn);
        assert_eq!(status("2.10.23"), Status::Ok);
        assert_eq!(status("2.15.2-beta.1"), Status::Ok);
    }
}
