//! Servers of a test's own: NATS, whose streams have fixed names, and PostgreSQL that a test may stop; and a test's own way into
//! a bucket. The S3 servers are in `s3.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rusty_s3::S3Action as _;
use tokio::io::AsyncReadExt as _;

use super::process::{Env, Process, settings};
use super::{free_port, server_setting, unique, until};

pub const S3_USER: &str = "longshore-e2e";
/// Looked for in every log.
pub const S3_PASSWORD: &str = "e2e-secret-that-no-log-may-show";
pub const EVENTS_SUBJECT: &str = "longshore.storage-events";

/// NATS with JetStream on a port and a folder of its own.
pub struct Nats {
    pub process: Process,
    pub port: u16,
    /// Its HTTP port, where it has a configuration.
    monitoring: Option<u16>,
    store: PathBuf,
}

impl Nats {
    pub async fn start(folder: &Path) -> Self {
        Self::start_with(folder, &["--jetstream"]).await
    }

    /// With other arguments: none is NATS without JetStream.
    pub async fn start_with(folder: &Path, more: &[&str]) -> Self {
        let store = folder.join("nats-store");
        let arguments = [&["--store_dir", store.to_str().unwrap()][..], more].concat();
        Self::launch(folder, &arguments, store.clone(), None, Env::new()).await
    }

    /// With a configuration file, of which only the addresses are others; it takes its store and passwords from `env`.
    pub async fn configured(folder: &Path, config: &Path, mut env: Env) -> Self {
        let (monitoring, store) = (free_port(), folder.join("nats-store"));
        env.push(("NATS_STORE_DIR".to_owned(), store.to_str().unwrap().to_owned()));
        let arguments = ["--config", config.to_str().unwrap(), "--http_port", &monitoring.to_string()];
        Self::launch(folder, &arguments, store, Some(monitoring), env).await
    }

    async fn launch(folder: &Path, arguments: &[&str], store: PathBuf, monitoring: Option<u16>, env: Env) -> Self {
        let port = free_port();
        let program = format!("{}/nats-server", server_setting("LONGSHORE_TEST_SERVERS_BIN"));
        let text = port.to_string();
        let arguments = [&["--addr", "127.0.0.1", "--port", &text][..], arguments].concat();
        let process = Process::spawn("nats", program, &arguments, env, folder);
        let nats = Self { process, port, monitoring, store };
        nats.ready().await;
        nats
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Waits for the greeting.
    pub async fn ready(&self) {
        until("NATS answers", async || {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
            let mut greeting = [0; 512];
            let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut greeting)).await.ok()?.ok()?;
            greeting[..read].starts_with(b"INFO").then_some(())
        })
        .await;
    }

    /// Waits until a page of its monitoring holds a text.
    pub async fn shows(&self, page: &str, text: &str) {
        let url = format!("http://127.0.0.1:{}/{page}", self.monitoring.expect("a configured NATS"));
        until(&format!("NATS shows {text} on {page}"), async || {
            let page = reqwest::get(&url).await.ok()?.text().await.ok()?;
            page.contains(text).then_some(())
        })
        .await;
    }

    /// SIGKILL, and everything it kept is gone.
    pub fn wipe(&mut self) {
        self.process.kill();
        std::fs::remove_dir_all(&self.store).unwrap();
    }
}

/// PostgreSQL of the test's own, for tests that stop it. Refuses root, so root runs it as `postgres`.
pub struct PostgresServer {
    data: PathBuf,
    pub port: u16,
    options: Vec<String>,
    /// A disk of its own: its folder and its size, as `mount` takes it.
    disk: Option<(PathBuf, String)>,
    running: bool,
}

impl PostgresServer {
    pub fn start(folder: &Path) -> Self {
        Self::start_with(folder, &["max_connections=100"])
    }

    /// With other settings than the default ones.
    pub fn start_with(folder: &Path, options: &[&str]) -> Self {
        let mut server = Self::in_folder(folder, "postgres", options);
        server.init();
        server.resume();
        server
    }

    /// All tables and indexes that are made without a tablespace go to a small disk, which only this server sees and
    /// which is gone with it. Its log and its write-ahead log stay where they are.
    pub fn start_on_a_small_disk(folder: &Path, size: &str) -> Self {
        let mut server = Self::in_folder(folder, "postgres", &["default_tablespace=small"]);
        let disk = folder.join("disk");
        std::fs::create_dir(&disk).unwrap();
        server.own(&disk);
        server.disk = Some((disk.clone(), size.to_owned()));
        server.init();
        server.resume();
        server.run(&format!("CREATE TABLESPACE small LOCATION '{}'", disk.display()));
        server
    }

    /// A streaming replica, which runs and has what the server has.
    pub fn replica(&self, folder: &Path) -> Self {
        let mut replica = Self::in_folder(folder, "replica", &["max_connections=100"]);
        let mut copy = replica.tool("pg_basebackup");
        copy.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "-D"]).arg(&replica.data);
        shell(copy.args(["-d", &self.url()]));
        replica.resume();
        replica
    }

    /// A replica becomes a server that takes changes.
    pub fn promote(&mut self) {
        shell(self.tool("pg_ctl").args(["promote", "-w", "-D"]).arg(&self.data));
    }

    fn in_folder(folder: &Path, name: &str, options: &[&str]) -> Self {
        let data = folder.join(name);
        std::fs::create_dir_all(&data).unwrap();
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let server = Self { data, port: free_port(), options, disk: None, running: false };
        if is_root() {
            // The account has to reach its folder.
            for step in folder
                .ancestors()
                .take_while(|step| step.starts_with(std::env::temp_dir()) && *step != std::env::temp_dir())
            {
                shell(Command::new("chmod").args(["o+x".as_ref(), step.as_os_str()]));
            }
        }
        server.own(&server.data);
        server
    }

    /// The server's account owns this folder, and nobody else may look into it.
    fn own(&self, folder: &Path) {
        shell(Command::new("chmod").args(["700".as_ref(), folder.as_os_str()]));
        if is_root() {
            shell(Command::new("chown").args(["postgres:".as_ref(), folder.as_os_str()]));
        }
    }

    fn init(&self) {
        let mut command = self.tool("initdb");
        shell(
            command.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync", "-D"]).arg(&self.data),
        );
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    pub fn resume(&mut self) {
        let mut options = format!("-c listen_addresses=127.0.0.1 -c unix_socket_directories= -p {}", self.port);
        for option in &self.options {
            options += &format!(" -c {option}");
        }
        let log = self.data.join("server.log");
        let mut start = self.tool("pg_ctl");
        start.args(["start", "-w", "-o", &options, "-l"]).arg(log).arg("-D").arg(&self.data);
        match &self.disk {
            None => shell(&mut start),
            Some((disk, size)) => shell(&mut on_a_disk(&start, disk, size)),
        }
        self.running = true;
    }

    /// At once, as a crash.
    pub fn crash(&mut self) {
        shell(self.tool("pg_ctl").args(["stop", "-w", "-m", "immediate", "-D"]).arg(&self.data));
        self.running = false;
    }

    /// Runs a statement as its administrator.
    pub fn run(&self, sql: &str) {
        shell(self.tool("psql").args([&self.url(), "-XAtqc", sql]));
    }

    fn tool(&self, name: &str) -> Command {
        let path = format!("{}/{name}", server_setting("LONGSHORE_TEST_PG_BIN"));
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--", &path]);
            command
        } else {
            Command::new(path)
        };
        command.current_dir("/");
        command
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if self.running {
            let _ = self.tool("pg_ctl").args(["stop", "-w", "-m", "immediate", "-D"]).arg(&self.data).output();
        }
    }
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    output.stdout == b"0\n"
}

/// The same command where a folder is a disk of its own, for this command and what it starts.
fn on_a_disk(command: &Command, folder: &Path, size: &str) -> Command {
    let mut inside = Command::new("unshare");
    if is_root() {
        inside.arg("--mount");
    } else {
        inside.args(["--user", "--map-current-user", "--keep-caps", "--mount"]);
    }
    let script = "owner=$(stat -c uid=%u,gid=%g \"$1\") && mount -t tmpfs -o \"size=$2,mode=700,$owner\" tmpfs \"$1\" && \
                  shift 2 && exec \"$@\"";
    inside.args(["sh", "-c", script, "sh"]).arg(folder).arg(size).arg(command.get_program()).args(command.get_args());
    inside.current_dir("/");
    inside
}

fn shell(command: &mut Command) {
    // Not captured by pipes: a server that is left running would hold them open.
    let null = std::process::Stdio::null;
    let status = command.stdin(null()).stdout(null()).stderr(null()).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// The test's own way into a bucket.
pub struct Bucket {
    pub name: String,
    bucket: rusty_s3::Bucket,
    credentials: rusty_s3::Credentials,
    http: reqwest::Client,
}

impl Bucket {
    pub fn new(endpoint: &str, key: &str, secret: &str) -> Self {
        let name = unique("e2e-");
        let endpoint = endpoint.parse().unwrap();
        let bucket = rusty_s3::Bucket::new(endpoint, rusty_s3::UrlStyle::Path, name.clone(), "us-east-1").unwrap();
        Self { name, bucket, credentials: rusty_s3::Credentials::new(key, secret), http: reqwest::Client::new() }
    }

    pub async fn put(&self, key: &str, body: &[u8]) {
        let url = self.bucket.put_object(Some(&self.credentials), key).sign(Duration::from_secs(60));
        let answer = self.http.put(url).header("content-type", "text/csv").body(body.to_vec()).send().await.unwrap();
        assert!(answer.status().is_success(), "PUT {key}: {}", answer.status());
    }

    /// What is in it, as the server's XML.
    pub async fn list(&self) -> String {
        // The bucket is the object without a name.
        let mut list = self.bucket.get_object(Some(&self.credentials), "");
        list.query_mut().insert("list-type", "2");
        let url = list.sign(Duration::from_secs(60));
        let answer = self.http.get(url).send().await.unwrap();
        assert!(answer.status().is_success(), "the bucket cannot be listed: {}", answer.status());
        answer.text().await.unwrap()
    }

    pub async fn delete(&self, key: &str) {
        let url = self.bucket.delete_object(Some(&self.credentials), key).sign(Duration::from_secs(60));
        let answer = self.http.delete(url).send().await.unwrap();
        assert!(answer.status().is_success(), "DELETE {key}: {}", answer.status());
    }
}

/// The settings of a cluster node.
pub fn cluster_settings(database: &str, nats: &str, endpoint: &str, key: &str, secret: &str, bucket: &str) -> Env {
    settings([
        ("DATABASE_URL", database),
        ("NATS_URL", nats),
        ("S3_ENDPOINT", endpoint),
        ("S3_ACCESS_KEY_ID", key),
        ("S3_SECRET_ACCESS_KEY", secret),
        ("S3_BUCKET", bucket),
    ])
}
