//! What the conformance suites share: where the servers are, names that no other test uses, servers of a test's own.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use uuid::Uuid;

/// What a suite waits at most for something that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A variable that `deploy/servers` sets.
pub fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: these tests need real servers, run `deploy/servers test` for them")
    })
}

/// A name that no other test uses: lower case, letters and digits.
pub fn unique(name: &str) -> String {
    // The end of a version 7 UUID is its random part.
    let id = Uuid::now_v7().simple().to_string();
    format!("{name}{}", &id[12..])
}

/// Awaits what has to happen, and says what did not.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// Awaits a condition that nothing announces.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A nats-server of a test's own, ended with the test.
pub struct NatsServer {
    child: Option<Child>,
    folder: tempfile::TempDir,
    port: u16,
}

impl NatsServer {
    /// Chooses a port and a folder; nothing runs yet.
    pub fn new() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { child: None, folder: tempfile::tempdir().unwrap(), port }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn start(&mut self) {
        let program = PathBuf::from(setting("LONGSHORE_TEST_SERVERS_BIN")).join("nats-server");
        let child = Command::new(program)
            .args(["--addr", "127.0.0.1", "--port", &self.port.to_string(), "--jetstream", "--store_dir"])
            .arg(self.store())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Loses everything it kept.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(self.store()).unwrap();
    }

    fn store(&self) -> PathBuf {
        Path::join(self.folder.path(), "store")
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}
