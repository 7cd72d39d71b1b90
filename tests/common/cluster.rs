//! A cluster: one API and workers over NATS, an S3 server and PostgreSQL, with a database, a bucket and a NATS of its own.

use std::path::PathBuf;

use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::api::Api;
use super::postgres::Database;
use super::process::{Env, Process};
use super::s3::{S3Kind, S3Server};
use super::server_setting;
use super::servers::{Bucket, Nats, S3_PASSWORD, S3_USER, cluster_settings};

/// Clusters at once in one test process: each is half a dozen processes.
static CLUSTERS: Semaphore = Semaphore::const_new(2);

/// What is special about a cluster.
pub struct Options<'a> {
    /// Workers that run from the start.
    pub workers: usize,
    /// What the object storage is.
    pub s3: S3Kind,
    /// Whether storage events come; for them the cluster has an S3 server of its own.
    pub events: bool,
    /// An ARN for the bucket's notification, where it is not the one that brings the events.
    pub notification_arn: Option<&'a str>,
    /// How often awaiting imports are looked for.
    pub sweep: &'a str,
    /// Bytes of a chunk.
    pub chunk_size: &'a str,
    /// The database's server, where it is not the test server.
    pub postgres: Option<&'a str>,
    /// More settings of every process.
    pub more: Env,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self::on(S3Kind::Minio)
    }
}

impl Options<'_> {
    /// Nothing special, on a kind of S3 server. Nothing is found by the sweep unless a test asks for it.
    pub fn on(s3: S3Kind) -> Self {
        Self {
            workers: 3,
            s3,
            events: false,
            notification_arn: None,
            sweep: "1h",
            chunk_size: "8192",
            postgres: None,
            more: Env::new(),
        }
    }
}

/// All of it. Fields are dropped in this order: nodes before what they need.
pub struct Cluster {
    pub nodes: Vec<Process>,
    pub workers: Vec<Process>,
    pub api: Api,
    /// The S3 server, where the cluster has its own.
    pub storage: Option<S3Server>,
    pub nats: Nats,
    pub database: Database,
    pub bucket: Bucket,
    env: Env,
    logs: PathBuf,
    pub folder: TempDir,
    _permit: SemaphorePermit<'static>,
}

impl Cluster {
    /// Starts all nodes at the same moment, on an empty database, an empty NATS and without a bucket.
    pub async fn start(options: &Options<'_>) -> Self {
        let permit = CLUSTERS.acquire().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let nats = Nats::start(folder.path()).await;
        let storage = if options.events { Some(S3Server::start(options.s3, folder.path(), &nats).await) } else { None };
        let (endpoint, key, secret) = match &storage {
            Some(storage) => (storage.endpoint.clone(), S3_USER.to_owned(), S3_PASSWORD.to_owned()),
            None => (
                options.s3.shared_endpoint(),
                server_setting("LONGSHORE_TEST_S3_ACCESS_KEY_ID"),
                server_setting("LONGSHORE_TEST_S3_SECRET_ACCESS_KEY"),
            ),
        };
        let database = match options.postgres {
            Some(url) => Database::on(url).await,
            None => Database::new().await,
        };
        let bucket = Bucket::new(&endpoint, &key, &secret);
        let mut env = cluster_settings(&database.url, &nats.url(), &endpoint, &key, &secret, &bucket.name);
        let mut set = |name: &str, value: &str| env.push((format!("LONGSHORE_{name}"), value.to_owned()));
        set("CHUNK_SIZE", options.chunk_size);
        set("WORKERS", "2");
        set("SWEEP_INTERVAL", options.sweep);
        let needed = if options.events { options.s3.notification_arn() } else { None };
        if let Some(arn) = options.notification_arn.or(needed) {
            set("S3_NOTIFICATION_ARN", arn);
        }
        env.extend(options.more.iter().cloned());
        let logs = folder.path().to_owned();
        let api = Process::longshore("api", "api", env.clone(), &logs);
        let mut cluster = Self {
            api: Api::new(&api.base),
            nodes: vec![api],
            workers: Vec::new(),
            storage,
            nats,
            database,
            bucket,
            env,
            logs,
            folder,
            _permit: permit,
        };
        cluster.start_workers(options.workers);
        cluster.ready().await;
        cluster
    }

    /// What every node is set to.
    pub fn settings(&self) -> Env {
        self.env.clone()
    }

    /// More workers; they are not waited for.
    pub fn start_workers(&mut self, more: usize) {
        for _ in 0..more {
            let name = format!("worker-{}", self.workers.len() + 1);
            self.workers.push(Process::longshore(&name, "worker", self.env.clone(), &self.logs));
        }
    }

    /// One more worker, with more settings; it is not waited for.
    pub fn start_worker_with(&mut self, more: &Env) {
        let name = format!("worker-{}", self.workers.len() + 1);
        let env = self.env.iter().chain(more).cloned().collect();
        self.workers.push(Process::longshore(&name, "worker", env, &self.logs));
    }

    /// Another API with more settings instead of the one that there is; it is not waited for.
    pub fn replace_api_with(&mut self, more: &Env) {
        self.nodes.clear();
        let env = self.env.iter().chain(more).cloned().collect();
        self.nodes.push(Process::longshore("another-api", "api", env, &self.logs));
        self.api = Api::new(&self.nodes[0].base);
    }

    /// A node of another build of the program, on the same settings.
    pub fn start_other(&self, program: &str, name: &str, role: &str) -> Process {
        Process::of_program(program, name, role, self.env.clone(), &self.logs)
    }

    /// One more API.
    pub fn start_api(&mut self) {
        let name = format!("api-{}", self.nodes.len() + 1);
        self.nodes.push(Process::longshore(&name, "api", self.env.clone(), &self.logs));
    }

    /// Waits for every node.
    pub async fn ready(&mut self) {
        for process in self.nodes.iter_mut().chain(&mut self.workers) {
            process.ready().await;
        }
    }

    pub fn api_process(&mut self) -> &mut Process {
        &mut self.nodes[0]
    }

    /// Fails where a node panicked, or wrote a secret into its log.
    pub fn assert_clean_logs(&self) {
        for process in self.nodes.iter().chain(&self.workers) {
            let log = process.log();
            assert!(!log.contains("panicked at"), "{} panicked", process.name());
            for secret in [S3_PASSWORD, "longshore-test-secret", "X-Amz-Signature="] {
                assert!(!log.contains(secret), "{} wrote {secret}", process.name());
            }
        }
    }

    /// Fails where a node wrote of an error.
    pub fn assert_no_errors(&self) {
        for process in self.nodes.iter().chain(&self.workers) {
            let log = process.log();
            let error = log.lines().find(|line| line.contains(" ERROR "));
            assert!(error.is_none(), "{}: {error:?}", process.name());
        }
    }

    /// The place of the worker that owns an import just now.
    pub async fn owner(&self) -> Option<usize> {
        owner(&self.database, &self.workers).await
    }
}

/// The place of a running worker that owns an import just now; its name holds its process id. `None` without the database, too.
pub async fn owner(database: &Database, workers: &[Process]) -> Option<usize> {
    let sql = "SELECT lease_owner FROM longshore_imports \
               WHERE lease_owner IS NOT NULL AND state IN ('planning', 'running', 'publishing')";
    let owners = database.try_rows(sql).await?;
    workers.iter().position(|worker| {
        if !worker.runs() {
            return false;
        }
        let pid = format!("-{}-", worker.pid());
        owners.iter().any(|row| row[0].as_deref().is_some_and(|owner| owner.contains(&pid)))
    })
}
