//! Wiring: settings to the parts of a process. The only place where implementations are chosen.

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use longshore_actors::{NodeSettings, Running, Services};
use longshore_api::ApiState;
use longshore_storage::bus::Bus;
use longshore_storage::bus::in_process::InProcessBus;
use longshore_storage::bus::nats::{NatsBus, NatsConfig, inspect as nats};
use longshore_storage::database::Database;
use longshore_storage::destination::Destination;
use longshore_storage::destination::gate::WriteGate;
use longshore_storage::destination::postgres::PostgresDestination;
use longshore_storage::destination::sqlite::SqliteDestination;
use longshore_storage::inspect;
use longshore_storage::objects::{EmbeddedConfig, EmbeddedStore, ObjectStore, S3Config, S3Store, Secret};

use crate::lock::lock_folder;
use crate::settings::{S3Settings, Settings, is_postgres};
use crate::usage::Usage;
use crate::waiting::{Dependency, Patience, wait_for};

/// Sessions of the destination's pool besides one a worker: owners, the API.
const SPARE_SESSIONS: u32 = 6;

/// What a process is made of.
pub struct Wired {
    pub services: Services,
    pub database: Database,
    /// The SQLite file that rows go to, where it is one.
    pub destination_file: Option<PathBuf>,
    embedded: Option<Arc<EmbeddedStore>>,
    /// Held as long as the process lives.
    _lock: Option<File>,
}

impl Wired {
    /// What the API works with; it listens to changes until `stop`.
    pub fn api_state(&self, stop: &CancellationToken) -> ApiState {
        let Services { objects, bus, destination, .. } = self.services.clone();
        ApiState::new(self.database.clone(), objects, bus, destination, stop.clone())
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
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(", ");
    Err(Usage(format!("`longshore {role}` is one role of a cluster and needs {missing}; `longshore serve` needs none"))
        .into())
}

/// How a process starts.
pub struct Start {
    /// Whether chunks are worked on here.
    pub works: bool,
    /// How long parts that are down are waited for.
    pub patience: Patience,
    /// What the process is called where another one finds the data directory taken.
    pub owner: String,
}

/// Makes every part and waits for those that are down.
///
/// # Errors
/// What waiting does not mend, or has not mended until patience ended.
pub async fn wire(settings: &Settings, start: &Start) -> Result<Wired> {
    let database_url = settings.database_url.clone().unwrap_or_else(|| default_database_url(settings));
    let destination_url = settings.destination_url.clone().unwrap_or_else(|| database_url.clone());
    let owns_folder = settings.database_url.is_none() || settings.s3.is_none();
    let lock = if owns_folder { Some(lock_folder(&settings.data_dir, &start.owner).await?) } else { None };

    let gate = WriteGate::new();
    let database = connect_database(settings, &database_url, &gate, start.patience).await?;
    if settings.database_url.is_none() {
        // The folder's lock is ours: whoever held a lease in its database is gone.
        database.release_all().await?;
    }
    let (destination, destination_file) = connect_destination(settings, &destination_url, &gate, start).await?;
    let bus = connect_bus(settings, start.patience).await?;
    let (objects, embedded) = connect_objects(settings, &bus, start.patience).await?;
    let node = NodeSettings {
        name: process_name(),
        workers: settings.workers,
        chunk_size: settings.chunk_size,
        sweep_interval: settings.sweep_interval,
        patience: settings.patience,
    };
    let kept = longshore_actors::Kept::of(&node);
    let services = Services {
        database: Arc::new(database.clone()),
        objects,
        bus,
        destination,
        settings: node,
        running: Running::default(),
        kept,
    };
    Ok(Wired { services, database, destination_file, embedded, _lock: lock })
}

/// SQLite in the data directory.
pub fn default_database_url(settings: &Settings) -> Secret {
    Secret::new(format!("sqlite://{}?mode=rwc", settings.data_dir.join("longshore.sqlite").display()))
}

/// `<host>-<pid>-<random>`: different for each process, also in containers where every pid is 1.
fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "longshore" } else { host.trim() };
    let random = uuid::Uuid::now_v7().simple().to_string();
    format!("{host}-{}-{}", std::process::id(), &random[26..])
}

async fn connect_database(
    settings: &Settings,
    url: &Secret,
    gate: &Arc<WriteGate>,
    patience: Patience,
) -> Result<Database> {
    let setting = if settings.database_url.is_some() { "LONGSHORE_DATABASE_URL" } else { "LONGSHORE_DATA_DIR" };
    if let Some(path) = sqlite_path(url) {
        make_parent(&path)?;
        check_sqlite(setting, url, &path).await?;
    }
    wait_for(Dependency { what: "the control database", setting }, patience, || async {
        reach_postgres(url).await?;
        let connected = Database::connect(url.expose(), Some(Arc::clone(gate))).await;
        let database = connected.map_err(|error| error.to_string())?;
        database.migrate().await.map_err(|error| error.to_string())?;
        Ok::<_, String>(database)
    })
    .await
}

/// Why a PostgreSQL server does not let us in: pools tell only that they waited.
async fn reach_postgres(url: &Secret) -> Result<(), String> {
    if is_postgres(Some(url)) { inspect::reach_postgres(url.expose()).await } else { Ok(()) }
}

/// A file that is no database, or that may not be written, is not waited for.
async fn check_sqlite(setting: &str, url: &Secret, path: &Path) -> Result<()> {
    let makes = url.expose().contains("mode=rwc");
    if !path.exists() && !makes {
        bail!("{setting}: there is no file {}; with ?mode=rwc behind the path it is made", path.display());
    }
    let file = path.to_owned();
    let usable = tokio::task::spawn_blocking(move || inspect::sqlite_usable(&file, makes)).await?;
    usable.map_err(|reason| anyhow::anyhow!("{setting}: {} cannot be used: {reason}", path.display()))
}

async fn connect_destination(
    settings: &Settings,
    url: &Secret,
    gate: &Arc<WriteGate>,
    start: &Start,
) -> Result<(Arc<dyn Destination>, Option<PathBuf>)> {
    let setting = match (&settings.destination_url, &settings.database_url) {
        (Some(_), _) => "LONGSHORE_DESTINATION_URL",
        (None, Some(_)) => "LONGSHORE_DATABASE_URL",
        (None, None) => "LONGSHORE_DATA_DIR",
    };
    let path = sqlite_path(url);
    let destination: Arc<dyn Destination> = match &path {
        Some(path) => {
            make_parent(path)?;
            check_sqlite(setting, url, path).await?;
            Arc::new(SqliteDestination::open(path, Arc::clone(gate)).map_err(|error| anyhow::anyhow!("{error}"))?)
        }
        None => {
            let workers = if start.works { u32::try_from(settings.workers.get()).unwrap_or(u32::MAX) } else { 0 };
            let sessions = workers.saturating_add(SPARE_SESSIONS);
            let destination = PostgresDestination::connect(url.expose(), sessions)
                .map_err(|_| anyhow::anyhow!("the setting {setting} is no PostgreSQL URL"))?;
            Arc::new(destination)
        }
    };
    wait_for(Dependency { what: "the destination", setting }, start.patience, || async {
        reach_postgres(url).await?;
        destination.prepare().await.map_err(|error| error.to_string())
    })
    .await?;
    Ok((destination, path))
}

async fn connect_bus(settings: &Settings, patience: Patience) -> Result<Arc<dyn Bus>> {
    const SETTING: &str = "LONGSHORE_NATS_URL";
    let Some(url) = &settings.nats_url else { return Ok(Arc::new(InProcessBus::new())) };
    let config = NatsConfig::new(url.expose(), &settings.nats_events_subject);
    let bus =
        NatsBus::connect(config.clone()).await.map_err(|error| anyhow::anyhow!("the setting {SETTING}: {error}"))?;
    wait_for(Dependency { what: "NATS", setting: SETTING }, patience, || async {
        let Err(error) = bus.prepare().await else { return Ok(()) };
        // Whoever connects in the background does not say why it fails.
        Err(nats::reach(&config).await.err().unwrap_or(error))
    })
    .await?;
    Ok(Arc::new(bus))
}

type Objects = (Arc<dyn ObjectStore>, Option<Arc<EmbeddedStore>>);

async fn connect_objects(settings: &Settings, bus: &Arc<dyn Bus>, patience: Patience) -> Result<Objects> {
    let (store, embedded): Objects = match &settings.s3 {
        Some(s3) => (Arc::new(S3Store::new(s3_config(settings, s3))?), None),
        None => {
            let embedded = Arc::new(start_embedded(settings, bus).await?);
            (Arc::clone(&embedded) as Arc<dyn ObjectStore>, Some(embedded))
        }
    };
    let setting = if settings.s3.is_some() { "LONGSHORE_S3_ENDPOINT" } else { "LONGSHORE_DATA_DIR" };
    wait_for(Dependency { what: "the object storage", setting }, patience, || store.prepare()).await?;
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

/// The embedded endpoint of a service that runs on these settings, as an S3 client reaches it; `None` where none was started
/// before.
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
    if settings.s3_listen.is_none() && address.is_some() {
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
