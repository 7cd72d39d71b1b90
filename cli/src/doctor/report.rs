//! What checks say: a status, what was seen, what to do, and what was measured.

use serde::Serialize;
use serde_json::{Map, Value, json};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// The service works, but slower or less safely than it could, or its next start mends it.
    Warn,
    /// Imports do not work.
    Fail,
    /// Nothing to check, or nothing to check it with.
    Skipped,
}

impl Status {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skipped => "skipped",
        }
    }
}

/// One check.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was checked, one word.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was seen.
    pub detail: String,
    /// What to do, where something is wrong.
    pub advice: Option<String>,
    /// Numbers and names; empty where there is nothing to measure.
    pub measured: Map<String, Value>,
}

impl Check {
    fn new(name: &'static str, status: Status, detail: impl Into<String>, advice: Option<String>) -> Self {
        Self { name, status, detail: detail.into(), advice, measured: Map::new() }
    }

    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, Status::Ok, detail, None)
    }

    pub fn warn(name: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(name, Status::Warn, detail, Some(advice.into()))
    }

    pub fn fail(name: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(name, Status::Fail, detail, Some(advice.into()))
    }

    pub fn skipped(name: &'static str, why: impl Into<String>) -> Self {
        Self::new(name, Status::Skipped, why, None)
    }

    /// Adds something measured.
    pub fn with(mut self, what: &str, value: impl Into<Value>) -> Self {
        self.measured.insert(what.to_owned(), value.into());
        self
    }

    /// The lines that people read.
    pub fn lines(&self) -> String {
        let line = format!("{:8} {:15} {}", self.status.word(), self.name, self.detail);
        match &self.advice {
            Some(advice) => format!("{line}\n{:24} -> {advice}", ""),
            None => line,
        }
    }
}

/// Whether nothing failed.
pub fn healthy(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status != Status::Fail)
}

/// All of it as one object.
pub fn as_json(checks: &[Check]) -> Value {
    json!({"ok": healthy(checks), "version": env!("CARGO_PKG_VERSION"), "checks": checks})
}

/// What people read last.
pub fn summary(checks: &[Check]) -> String {
    let count = |status: Status| checks.iter().filter(|check| check.status == status).count();
    let (failed, warned) = (count(Status::Fail), count(Status::Warn));
    match (failed, warned) {
        (0, 0) => "nothing is wrong".to_owned(),
        (0, warned) => format!("nothing fails; {warned} to look at"),
        (failed, warned) => format!("{failed} failed, {warned} to look at"),
    }
}
