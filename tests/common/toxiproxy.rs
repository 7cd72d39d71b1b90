//! A network that fails as a test wants it: toxiproxy, told over its HTTP API.

use std::path::Path;

use serde_json::{Value, json};

use super::process::{Env, Process};
use super::{free_port, server_setting, until};

/// A toxiproxy before one server.
pub struct Toxiproxy {
    process: Process,
    pub port: u16,
    api: String,
    http: reqwest::Client,
}

impl Toxiproxy {
    /// Before the server on that port.
    pub async fn start(name: &str, folder: &Path, target: u16) -> Self {
        let (control, port) = (free_port(), free_port());
        let program = format!("{}/toxiproxy-server", server_setting("LONGSHORE_TEST_SERVERS_BIN"));
        let arguments = ["-host", "127.0.0.1", "-port", &control.to_string()];
        let process = Process::spawn(name, program, &arguments, Env::new(), folder);
        let proxy = Self { process, port, api: format!("http://127.0.0.1:{control}"), http: reqwest::Client::new() };
        let there = json!({"name": "server", "listen": format!("127.0.0.1:{port}"),
                           "upstream": format!("127.0.0.1:{target}"), "enabled": true});
        until("toxiproxy has a proxy", async || {
            let made = proxy.http.post(format!("{}/proxies", proxy.api)).json(&there).send().await.ok()?;
            (made.status() == 201).then_some(())
        })
        .await;
        proxy
    }

    /// The same server behind the proxy.
    pub fn url(&self, direct: &str) -> String {
        let mut url = url::Url::parse(direct).unwrap();
        url.set_port(Some(self.port)).unwrap();
        url.to_string()
    }

    /// Adds a toxic to all connections, those that are there and new ones. `downstream` is what the server says.
    pub async fn add(&self, kind: &str, stream: &str, attributes: Value) {
        let toxic = json!({"name": kind, "type": kind, "stream": stream, "attributes": attributes});
        let answer = self.http.post(format!("{}/proxies/server/toxics", self.api)).json(&toxic).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    }

    /// Takes it away.
    pub async fn remove(&self, kind: &str) {
        let answer = self.http.delete(format!("{}/proxies/server/toxics/{kind}", self.api)).send().await.unwrap();
        assert_eq!(answer.status(), 204);
    }
}
