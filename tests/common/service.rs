//! The embedded service: one process on a data directory of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::api::Api;
use super::process::{Env, Process, settings};

/// `longshore serve` on a data directory of its own.
pub struct Service {
    pub process: Process,
    pub api: Api,
    pub folder: TempDir,
}

pub fn settings_in(folder: &Path, more: &[(&str, &str)]) -> Env {
    let data = folder.join("data");
    let mut env = settings([("DATA_DIR", data.to_str().unwrap())]);
    env.extend(more.iter().map(|(name, value)| (format!("LONGSHORE_{name}"), (*value).to_owned())));
    env
}

pub async fn serve(more: &[(&str, &str)]) -> Service {
    serve_in(tempfile::tempdir().unwrap(), more).await
}

/// The same in a folder that was made for it.
pub async fn serve_in(folder: TempDir, more: &[(&str, &str)]) -> Service {
    let mut process = Process::longshore("serve", "serve", settings_in(folder.path(), more), folder.path());
    process.ready().await;
    let api = Api::new(&process.base);
    Service { process, api, folder }
}

impl Service {
    pub fn sqlite(&self) -> PathBuf {
        self.folder.path().join("data/longshore.sqlite")
    }
}

pub fn open(path: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(30)).unwrap();
    connection
}
