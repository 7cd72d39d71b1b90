//! The S3 servers that the end-to-end tests run on. A test that takes an [`S3Kind`] and is named in [`on_every_s3_server!`]
//! runs on all of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process::{Env, Process};
use super::servers::{EVENTS_SUBJECT, Nats, S3_PASSWORD, S3_USER};
use super::{free_port, server_setting, until};

/// The target that MinIO's own notifications go to.
pub const NOTIFICATION_ARN: &str = "arn:minio:sqs::longshore:nats";

/// Makes two modules, `minio` and `versity`, with each of the tests. One that is not named is dead code, which the lints
/// refuse. In front of the names may stand the attribute that makes them tests, where `#[tokio::test]` is not enough.
macro_rules! on_every_s3_server {
    ($($name:ident),+ $(,)?) => {
        $crate::common::s3::on_every_s3_server!(#[tokio::test] $($name),+);
    };
    (#[$attribute:meta] $($name:ident),+ $(,)?) => {
        mod minio {
            $(#[$attribute]
            async fn $name() {
                super::$name($crate::common::s3::S3Kind::Minio).await;
            })+
        }
        mod versity {
            $(#[$attribute]
            async fn $name() {
                super::$name($crate::common::s3::S3Kind::Versity).await;
            })+
        }
    };
}
pub(crate) use on_every_s3_server;

/// An S3 server, by what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum S3Kind {
    /// Sends events where a bucket's notification asks for them.
    Minio,
    /// Sends the events of all buckets, and knows no bucket's notification.
    Versity,
}

impl S3Kind {
    /// The one that `deploy/servers` started, for all tests. Its events go to another NATS than a cluster's.
    pub fn shared_endpoint(self) -> String {
        match self {
            Self::Minio => server_setting("LONGSHORE_TEST_S3_ENDPOINT"),
            Self::Versity => server_setting("LONGSHORE_TEST_VERSITY_ENDPOINT"),
        }
    }

    /// What `LONGSHORE_S3_NOTIFICATION_ARN` has to be for events to come.
    pub fn notification_arn(self) -> Option<&'static str> {
        match self {
            Self::Minio => Some(NOTIFICATION_ARN),
            Self::Versity => None,
        }
    }
}

/// An S3 server of a test's own that publishes to a NATS.
pub struct S3Server {
    pub process: Process,
    pub endpoint: String,
}

impl S3Server {
    pub async fn start(kind: S3Kind, folder: &Path, nats: &Nats) -> Self {
        match kind {
            S3Kind::Minio => Self::minio(folder, nats, &[]).await,
            S3Kind::Versity => versity(folder, nats).await,
        }
    }
}

impl S3Server {
    /// MinIO with more settings.
    pub async fn minio(folder: &Path, nats: &Nats, more: &[(&str, &str)]) -> Self {
        minio(folder, nats, more).await
    }
}

async fn minio(folder: &Path, nats: &Nats, more: &[(&str, &str)]) -> S3Server {
    let address = format!("127.0.0.1:{}", free_port());
    let mut env = env_of(&[
        ("MINIO_ROOT_USER", S3_USER),
        ("MINIO_ROOT_PASSWORD", S3_PASSWORD),
        ("MINIO_BROWSER", "off"),
        ("MINIO_UPDATE", "off"),
        ("MINIO_NOTIFY_NATS_ENABLE_longshore", "on"),
        ("MINIO_NOTIFY_NATS_ADDRESS_longshore", &format!("127.0.0.1:{}", nats.port)),
        ("MINIO_NOTIFY_NATS_SUBJECT_longshore", EVENTS_SUBJECT),
        ("MINIO_NOTIFY_NATS_JETSTREAM_longshore", "off"),
    ]);
    env.extend(env_of(more));
    let (data, certificates) = (folder.join("minio-data"), folder.join("minio-certs"));
    let arguments =
        ["server", "--address", &address, "--certs-dir", certificates.to_str().unwrap(), data.to_str().unwrap()];
    let mut server = S3Server {
        process: Process::spawn("minio", program("minio"), &arguments, env, folder),
        endpoint: format!("http://{address}"),
    };
    assert!(server.answers("/minio/health/cluster", 200).await, "MinIO ended at its start: {}", server.process.log());
    server
}

/// Starts where NATS answers, else it ends. Objects' attributes are kept with the files, or in a folder of their own where the
/// file system has no room for them.
async fn versity(folder: &Path, nats: &Nats) -> S3Server {
    let port = free_port();
    let (address, administration) = (format!("127.0.0.1:{port}"), format!("@longshore-e2e-{port}"));
    let (data, sidecar) = (folder.join("versity-data"), folder.join("versity-sidecar"));
    std::fs::create_dir(&data).unwrap();
    std::fs::create_dir(&sidecar).unwrap();
    let env = env_of(&[("ROOT_ACCESS_KEY_ID", S3_USER), ("ROOT_SECRET_ACCESS_KEY", S3_PASSWORD)]);
    let url = nats.url();
    let mut arguments = vec!["--port", &address, "--admin-port", &administration, "--region", "us-east-1"];
    arguments.extend(["--keep-alive", "--quiet", "--event-nats-url", &url, "--event-nats-topic", EVENTS_SUBJECT]);
    arguments.push("posix");
    for attributes in [&[][..], &["--sidecar", sidecar.to_str().unwrap()]] {
        let arguments = [&arguments, attributes, &[data.to_str().unwrap()]].concat();
        let process = Process::spawn("versitygw", program("versitygw"), &arguments, env.clone(), folder);
        let mut server = S3Server { process, endpoint: format!("http://{address}") };
        // Nobody may list all buckets unsigned.
        if server.answers("/", 403).await {
            return server;
        }
        let log = server.process.log();
        assert!(log.contains("xattr check failed"), "versitygw ended at its start: {log}");
    }
    panic!("versitygw wants extended attributes although it has a folder for them");
}

impl S3Server {
    /// Waits for an answer; false where it ended instead.
    async fn answers(&mut self, path: &str, status: u16) -> bool {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap();
        let url = format!("{}{path}", self.endpoint);
        until("the S3 server answers", async || {
            if self.process.ended().is_some() {
                return Some(false);
            }
            (http.get(&url).send().await.ok()?.status() == status).then_some(true)
        })
        .await
    }
}

fn program(name: &str) -> PathBuf {
    Path::new(&server_setting("LONGSHORE_TEST_SERVERS_BIN")).join(name)
}

fn env_of(pairs: &[(&str, &str)]) -> Env {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
