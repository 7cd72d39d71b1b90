//! Wiring: settings to the parts of a process. The only place where implementations are chosen.

use std::fs::{File, TryLockError};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use longshore_actors::{NodeSettings, Running, Services};
use longshore_api::ApiState;
use longshore_storage::bus::Bus;
use longshore_storage::bus::in_process::InProcessBus;
use longshore_storage::bus::nats::{NatsBus, NatsConfig};
use longshore_storage::database::Database;
use longshore_storage::destination::Destination;
use longshore_storage::destination::gate::WriteGate;
use longshore_storage::destination::postgres::PostgresDestination;
use longshore_storage::destination::sqlite::SqliteDestination;
use longshore_storage::objects::{EmbeddedConfig, EmbeddedStore, ObjectStore, S3Config, S3Store, Secret};

use crate::settings::{S3Settings, Settings};

/// The longest pause between two tries of a dependency that is down at the start.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How often the lock of the data directory is tried: `longshore doctor` looks at it for a moment.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Sessions of the destination's pool besides one a worker: owners, the API.
const SPARE_SESSIONS: u32 = 6;

/// What a process is made of.
pub struct Wired {
    pub services: Services,
    /// The SQLite file that rows go to, where it is one.
    pub destination_file: Option<PathBuf>,
    embedded: Option<Arc<EmbeddedStore>>,
    /// Held as long as the process lives.
    _lock: Option<File>,
}

impl Wired {
    /// What the API works with; it listens to changes until `stop`.
    pub fn api_state(&self, stop: &CancellationToken) -> ApiState {
        let Services { database, objects, bus, destination, .. } = self.services.clone();
        ApiState::new(database, objects, bus, destination, stop.clone())
    }

    /// Lets uploads end that are on their way.
    pub async fn shutdown(self) {
        if let Some(embedded) = self.embedded {
            embedded.shutdown().await;
        }
    }
}

/// Everything that needs its own network in a cluster must be there.
pub fn require_cluster(settings: &Settings, role: &str) -> Result<()> {
    let mut missing = Vec::new();
    if settings.nats_url.is_none() {
        missing.push("LONGSHORE_NATS_URL");
    }
    if settings.s3.is_none() {
        missing.push("LONGSHORE_S3_ENDPOINT");
    }
    if !is_postgres(settings.database_url.as_ref()) {
        missing.push("LONGSHORE_DATABASE_URL (postgres://…)");
    }
    if settings.destination_url.is_some() && !is_postgres(settings.destination_url.as_ref()) {
        missing.push("LONGSHORE_DESTINATION_URL (postgres://…, or not at all)");
    }
    if !missing.is_empty() {
        bail!(
            "`longshore {role}` is one role of a cluster and needs {}; `longshore serve` needs none",
            missing.join(", ")
        );
    }
    Ok(())
}

fn is_postgres(url: Option<&Secret>) -> bool {
    url.is_some_and(|url| url.expose().starts_with("postgres"))
}

/// Makes every part and waits for those that are down.
/// `works`: whether chunks are worked on here.
pub async fn wire(settings: &Settings, works: bool) -> Result<Wired> {
    let database_url = settings.database_url.clone().unwrap_or_else(|| default_database_url(settings));
    let destination_url = settings.destination_url.clone().unwrap_or_else(|| database_url.clone());
    let owns_folder = settings.database_url.is_none() || settings.s3.is_none();
    let lock = if owns_folder { Some(lock_folder(&settings.data_dir).await?) } else { None };

    let gate = WriteGate::new();
    let database = connect_database(&database_url, &gate).await?;
    if settings.database_url.is_none() {
        // The folder's lock is ours: whoever held a lease in its database is gone.
        database.release_all().await?;
    }
    let (destination, destination_file) = connect_destination(settings, &destination_url, &gate, works).await?;
    let bus = connect_bus(settings).await?;
    let (objects, embedded) = connect_objects(settings, &bus).await?;
    let node = NodeSettings {
        name: process_name(),
        workers: settings.workers,
        chunk_size: settings.chunk_size,
        sweep_interval: settings.sweep_interval,
    };
    let services = Services { database, objects, bus, destination, settings: node, running: Running::default() };
    Ok(Wired { services, destination_file, embedded, _lock: lock })
}

/// SQLite in the data directory.
pub fn default_database_url(settings: &Settings) -> Secret {
    Secret::new(format!("sqlite://{}?mode=rwc", settings.data_dir.join("longshore.sqlite").display()))
}

/// One process owns the folder at a time.
async fn lock_folder(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("the data directory {} cannot be made", folder.display()))?;
    let path = folder.join("lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("{} cannot be opened", path.display()))?;
    let mut locked = lock.try_lock();
    for _ in 1..LOCK_TRIES {
        if !matches!(locked, Err(TryLockError::WouldBlock)) {
            break;
        }
        tokio::time::sleep(LOCK_PAUSE).await;
        locked = lock.try_lock();
    }
    match locked {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!(
            "another longshore process owns the data directory {}; stop it, use its address with --server, or set LONGSHORE_DATA_DIR",
            folder.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("{} cannot be locked", path.display())),
    }
}

/// `<host>-<pid>-<random>`: different for each process, also in containers where every pid is 1.
fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "longshore" } else { host.trim() };
    let random = uuid::Uuid::now_v7().simple().to_string();
    format!("{host}-{}-{}", std::process::id(), &random[26..])
}

/// Tries until it succeeds, and says what it waits for.
async fn wait_for<T, E, F>(what: &str, mut connect: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
    E: std::fmt::Display,
{
    let mut pause = Duration::from_millis(200);
    loop {
        match connect().await {
            Ok(value) => return value,
            Err(error) => tracing::warn!(%error, retry_in_ms = pause.as_millis() as u64, "waiting for {what}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn connect_database(url: &Secret, gate: &Arc<WriteGate>) -> Result<Database> {
    if let Some(path) = sqlite_path(url) {
        make_parent(&path)?;
    }
    Ok(wait_for("the control database", || async {
        let database = Database::connect(url.expose(), Some(Arc::clone(gate))).await?;
        database.migrate().await?;
        Ok::<_, longshore_storage::database::DatabaseError>(database)
    })
    .await)
}

async fn connect_destination(
    settings: &Settings,
    url: &Secret,
    gate: &Arc<WriteGate>,
    works: bool,
) -> Result<(Arc<dyn Destination>, Option<PathBuf>)> {
    let path = sqlite_path(url);
    let destination: Arc<dyn Destination> = match &path {
        Some(path) => {
            make_parent(path)?;
            Arc::new(SqliteDestination::open(path, Arc::clone(gate)).map_err(|error| anyhow::anyhow!("{error}"))?)
        }
        None => {
            let workers = if works { u32::try_from(settings.workers.get()).unwrap_or(u32::MAX) } else { 0 };
            let sessions = workers.saturating_add(SPARE_SESSIONS);
            let destination = PostgresDestination::connect(url.expose(), sessions).map_err(|_| {
                anyhow::anyhow!(
                    "the setting LONGSHORE_DESTINATION_URL (or LONGSHORE_DATABASE_URL) is no PostgreSQL URL"
                )
            })?;
            Arc::new(destination)
        }
    };
    wait_for("the destination", || destination.prepare()).await;
    Ok((destination, path))
}

async fn connect_bus(settings: &Settings) -> Result<Arc<dyn Bus>> {
    let bus: Arc<dyn Bus> = match &settings.nats_url {
        None => Arc::new(InProcessBus::new()),
        Some(url) => {
            let config = NatsConfig::new(url.expose(), &settings.nats_events_subject);
            Arc::new(
                NatsBus::connect(config)
                    .await
                    .map_err(|error| anyhow::anyhow!("the setting LONGSHORE_NATS_URL: {error}"))?,
            )
        }
    };
    wait_for("NATS", || bus.prepare()).await;
    Ok(bus)
}

type Objects = (Arc<dyn ObjectStore>, Option<Arc<EmbeddedStore>>);

async fn connect_objects(settings: &Settings, bus: &Arc<dyn Bus>) -> Result<Objects> {
    let (store, embedded): Objects = match &settings.s3 {
        Some(s3) => (Arc::new(S3Store::new(s3_config(settings, s3))?), None),
        None => {
            let embedded = Arc::new(start_embedded(settings, bus).await?);
            (Arc::clone(&embedded) as Arc<dyn ObjectStore>, Some(embedded))
        }
    };
    wait_for("the object storage", || store.prepare()).await;
    Ok((store, embedded))
}

/// An S3 server as the settings name it.
pub fn s3_config(settings: &Settings, s3: &S3Settings) -> S3Config {
    S3Config {
        endpoint: s3.endpoint.clone(),
        public_endpoint: settings.s3_public_endpoint.clone().unwrap_or_else(|| s3.endpoint.clone()),
        bucket: settings.s3_bucket.clone(),
        region: settings.s3_region.clone(),
        access_key_id: s3.access_key_id.clone(),
        secret_access_key: s3.secret_access_key.clone(),
        upload_key: s3.signer.clone(),
        notification_arn: settings.s3_notification_arn.clone(),
        events_prefix: longshore_storage::start::KEY_PREFIX.to_owned(),
        cors_origins: settings.cors_origins.clone(),
    }
}

/// What the embedded endpoint keeps between starts.
#[derive(Serialize, Deserialize)]
struct Kept {
    access_key_id: String,
    secret_access_key: String,
    listen: Option<SocketAddr>,
}

/// The file that it is kept in.
fn kept_path(settings: &Settings) -> PathBuf {
    settings.data_dir.join("s3-credentials.json")
}

/// The embedded endpoint of a service that runs on these settings, as an S3 client reaches it; `None` where its port is
/// chosen anew at each start.
pub fn running_embedded(settings: &Settings) -> Result<Option<S3Settings>> {
    let path = kept_path(settings);
    let bytes = std::fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let kept: Kept = serde_json::from_slice(&bytes).with_context(|| format!("{} cannot be read", path.display()))?;
    let Some(listen) = settings.s3_listen.or(kept.listen) else { return Ok(None) };
    let endpoint = format!("http://{}", reachable(listen)).parse()?;
    let (access_key_id, secret) = (kept.access_key_id, Secret::new(kept.secret_access_key));
    Ok(Some(S3Settings { endpoint, access_key_id, secret_access_key: secret, signer: None }))
}

async fn start_embedded(settings: &Settings, bus: &Arc<dyn Bus>) -> Result<EmbeddedStore> {
    let path = kept_path(settings);
    let mut kept = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} cannot be read; remove it to make a new one", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept {
            access_key_id: "longshore".to_owned(),
            secret_access_key: format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple()),
            listen: None,
        },
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    };
    let config = |listen: SocketAddr| EmbeddedConfig {
        root: settings.data_dir.join("s3"),
        listen,
        public_endpoint: settings.s3_public_endpoint.clone(),
        bucket: settings.s3_bucket.clone(),
        region: settings.s3_region.clone(),
        access_key_id: kept.access_key_id.clone(),
        secret_access_key: Secret::new(&kept.secret_access_key),
        cors_origins: settings.cors_origins.clone(),
    };
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let store = match (settings.s3_listen, kept.listen) {
        (Some(listen), _) => EmbeddedStore::start(config(listen), Arc::clone(bus)).await?,
        (None, Some(listen)) => match EmbeddedStore::start(config(listen), Arc::clone(bus)).await {
            Ok(store) => store,
            Err(error) => {
                tracing::warn!(%error, "the kept port of the embedded S3 endpoint is taken; URLs handed out before are void");
                EmbeddedStore::start(config(free), Arc::clone(bus)).await?
            }
        },
        (None, None) => EmbeddedStore::start(config(free), Arc::clone(bus)).await?,
    };
    let endpoint = store.endpoint();
    let address = endpoint.socket_addrs(|| None).ok().and_then(|addresses| addresses.first().copied());
    if settings.s3_listen.is_none() && settings.s3_public_endpoint.is_none() && address.is_some() {
        kept.listen = address;
    }
    keep(&path, &kept)?;
    Ok(store)
}

/// An address that this machine can call, for one that listens everywhere.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Written beside and renamed, readable by the owner only.
fn keep(path: &Path, kept: &Kept) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let beside = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(kept)?)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}

/// The file of a `sqlite://PATH?…` URL.
pub fn sqlite_path(url: &Secret) -> Option<PathBuf> {
    let rest = url.expose().strip_prefix("sqlite://")?;
    let path = rest.split('?').next().unwrap_or(rest);
    Some(PathBuf::from(path))
}

fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => {
            std::fs::create_dir_all(folder).with_context(|| format!("the folder {} cannot be made", folder.display()))
        }
        _ => Ok(()),
    }
}
