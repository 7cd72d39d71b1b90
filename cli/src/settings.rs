//! Settings: the environment, over a TOML file named by `LONGSHORE_CONFIG` (contract, section 6). Read once at the start;
//! unknown names and bad values stop it with a message that names them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use longshore_storage::objects::{AccessKey, CorsOrigins, Secret};
use url::Url;

const PREFIX: &str = "LONGSHORE_";

/// Connections that the API takes at once when nothing is said.
const CONNECTIONS: NonZeroUsize = NonZeroUsize::new(1024).expect("1024 is not 0");

/// Every setting, without the prefix.
const KNOWN: [&str; 26] = [
    "LISTEN",
    "DATA_DIR",
    "DATABASE_URL",
    "DESTINATION_URL",
    "NATS_URL",
    "NATS_EVENTS_SUBJECT",
    "S3_ENDPOINT",
    "S3_LISTEN",
    "S3_PUBLIC_ENDPOINT",
    "S3_BUCKET",
    "S3_REGION",
    "S3_ACCESS_KEY_ID",
    "S3_SECRET_ACCESS_KEY",
    "S3_SIGNER_ACCESS_KEY_ID",
    "S3_SIGNER_SECRET_ACCESS_KEY",
    "S3_NOTIFICATION_ARN",
    "CORS_ORIGINS",
    "CHUNK_SIZE",
    "WORKERS",
    "SWEEP_INTERVAL",
    "PATIENCE",
    "MAX_CONNECTIONS",
    "LOG",
    "LOG_FORMAT",
    "OTLP_ENDPOINT",
    "SERVER",
];

/// An S3 server.
#[derive(Debug, Clone)]
pub struct S3Settings {
    pub endpoint: Url,
    pub access_key_id: String,
    pub secret_access_key: Secret,
    /// Signs uploads; `None`: the key above does.
    pub signer: Option<AccessKey>,
}

/// How a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// All settings, typed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The full names of those that are set, in the environment or the file.
    pub given: Vec<String>,
    /// Where the API listens; `None` where nothing was said.
    pub listen: Option<SocketAddr>,
    pub data_dir: PathBuf,
    /// `None`: SQLite in the data directory.
    pub database_url: Option<Secret>,
    /// `None`: the same database.
    pub destination_url: Option<Secret>,
    /// `None`: in-process bus.
    pub nats_url: Option<Secret>,
    pub nats_events_subject: String,
    /// `None`: embedded endpoint.
    pub s3: Option<S3Settings>,
    pub s3_listen: Option<SocketAddr>,
    pub s3_public_endpoint: Option<Url>,
    pub s3_bucket: String,
    pub s3_region: String,
    pub s3_notification_arn: Option<String>,
    /// Web pages that may call the API and upload.
    pub cors_origins: CorsOrigins,
    pub chunk_size: Option<u64>,
    pub workers: NonZeroUsize,
    pub sweep_interval: Duration,
    /// How long storage and destination may be away before that fails an import.
    pub patience: Duration,
    /// Connections that the API takes at once.
    pub max_connections: NonZeroUsize,
    pub log: Option<String>,
    pub log_format: LogFormat,
    /// `None`: no traces are sent.
    pub otlp_endpoint: Option<Url>,
    /// Which server commands ask, perhaps with a password; read by the client, since only it needs one.
    pub server: Option<Secret>,
}

impl Settings {
    /// Where the API listens.
    pub fn api_listen(&self) -> SocketAddr {
        self.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)))
    }

    /// Reads the environment and the file that it names.
    pub fn read() -> Result<Self> {
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(PREFIX))
            .map(|(name, value)| {
                let value = value.into_string().map_err(|_| anyhow::anyhow!("the setting {name} is not UTF-8"))?;
                Ok((name, value))
            })
            .collect::<Result<_>>()?;
        let file = match environment.get("LONGSHORE_CONFIG") {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("LONGSHORE_CONFIG names {path}, which cannot be read"))?;
                read_file(&text).with_context(|| format!("in {path}, named by LONGSHORE_CONFIG"))?
            }
            None => BTreeMap::new(),
        };
        Self::from_values(file, environment)
    }

    fn from_values(file: BTreeMap<String, String>, environment: BTreeMap<String, String>) -> Result<Self> {
        let mut values = Values { values: file };
        for (name, value) in environment {
            let key = name.strip_prefix(PREFIX).unwrap_or(&name);
            if key == "CONFIG" || is_kubernetes(key, &value) {
                continue;
            }
            if !KNOWN.contains(&key) {
                bail!(
                    "unknown setting {name}; the settings are {}",
                    KNOWN.map(|key| format!("{PREFIX}{key}")).join(", ")
                );
            }
            // An empty variable is one that was not set, as in compose files.
            if !value.is_empty() {
                values.values.insert(key.to_owned(), value);
            }
        }
        values.typed()
    }
}

/// `name = value` in lower case without the prefix; only strings and numbers.
fn read_file(text: &str) -> Result<BTreeMap<String, String>> {
    let table: toml::Table = text.parse()?;
    let mut values = BTreeMap::new();
    for (name, value) in table {
        let key = name.to_uppercase();
        if name != name.to_lowercase() || !KNOWN.contains(&key.as_str()) {
            let known = KNOWN.map(str::to_lowercase).join(", ");
            bail!("unknown setting '{name}'; the settings are {known}");
        }
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            _ => bail!("the setting '{name}' must be a string or a number"),
        };
        values.insert(key, text);
    }
    Ok(values)
}

/// Variables that Kubernetes injects for a service whose name begins with `longshore`.
fn is_kubernetes(key: &str, value: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let port = |rest: &str| match rest.split('_').collect::<Vec<_>>()[..] {
        // Somebody's own `…_PORT=9000` is no address.
        [""] => value.contains("://"),
        ["", number, "TCP" | "UDP" | "SCTP"] => digits(number) && value.contains("://"),
        ["", number, "TCP" | "UDP" | "SCTP", "PROTO" | "PORT" | "ADDR"] => digits(number),
        _ => false,
    };
    let service = |key: &str| {
        let named = key == "SERVICE_HOST" || key == "SERVICE_PORT" || key.starts_with("SERVICE_PORT_");
        named || key.strip_prefix("PORT").is_some_and(port)
    };
    // The service may be called `longshore` or `longshore-<something>`.
    service(key) || key.match_indices('_').any(|(at, _)| service(&key[at + 1..]) && !KNOWN.contains(&key))
}

struct Values {
    values: BTreeMap<String, String>,
}

impl Values {
    fn take(&mut self, key: &str) -> Option<String> {
        self.values.remove(key)
    }

    fn parse<T>(&mut self, key: &str, expected: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>> {
        let Some(text) = self.take(key) else { return Ok(None) };
        match read(&text) {
            Some(value) => Ok(Some(value)),
            // Values that may be secrets are not shown.
            None if key.ends_with("URL") || key.ends_with("ENDPOINT") || key.contains("KEY") => {
                bail!("the setting {PREFIX}{key} must be {expected}")
            }
            None => bail!("the setting {PREFIX}{key} must be {expected}, not '{text}'"),
        }
    }

    fn url(&mut self, key: &str, schemes: &[&str]) -> Result<Option<Url>> {
        let expected = format!("a URL that begins with {}", schemes.map_join());
        self.parse(key, &expected, |text| text.parse::<Url>().ok().filter(|url| schemes.contains(&url.scheme())))
    }

    fn database(&mut self, key: &str) -> Result<Option<Secret>> {
        let schemes = ["sqlite://", "postgres://", "postgresql://"];
        self.parse(key, "a URL that begins with sqlite:// or postgres://", |text| {
            let known = schemes.iter().any(|scheme| text.starts_with(scheme) && text.len() > scheme.len());
            known.then(|| Secret::new(text))
        })
    }

    /// Credentials would be shown with the settings, and belong into a header.
    fn otlp_endpoint(&mut self) -> Result<Option<Url>> {
        match self.url("OTLP_ENDPOINT", &["http", "https"])? {
            Some(url) if !url.username().is_empty() || url.password().is_some() => bail!(
                "the setting {PREFIX}OTLP_ENDPOINT must not carry credentials; OTEL_EXPORTER_OTLP_HEADERS takes a header with them"
            ),
            url => Ok(url),
        }
    }

    /// The key for uploads: both halves or none, and only for an S3 server.
    fn signer(&mut self, endpoint: bool) -> Result<Option<AccessKey>> {
        let id = self.take("S3_SIGNER_ACCESS_KEY_ID");
        let secret = self.take("S3_SIGNER_SECRET_ACCESS_KEY").map(Secret::new);
        match (id, secret) {
            (None, None) => Ok(None),
            (Some(id), Some(secret)) if endpoint => Ok(Some(AccessKey { id, secret })),
            _ => bail!(
                "LONGSHORE_S3_SIGNER_ACCESS_KEY_ID and LONGSHORE_S3_SIGNER_SECRET_ACCESS_KEY belong together, and to \
                 LONGSHORE_S3_ENDPOINT"
            ),
        }
    }

    fn typed(mut self) -> Result<Settings> {
        let given = self.values.keys().map(|key| format!("{PREFIX}{key}")).collect();
        let endpoint = self.url("S3_ENDPOINT", &["http", "https"])?;
        let access_key_id = self.take("S3_ACCESS_KEY_ID");
        let secret = self.take("S3_SECRET_ACCESS_KEY").map(Secret::new);
        let signer = self.signer(endpoint.is_some())?;
        let s3 = match (endpoint, access_key_id, secret) {
            (Some(endpoint), Some(access_key_id), Some(secret_access_key)) => {
                Some(S3Settings { endpoint, access_key_id, secret_access_key, signer })
            }
            (Some(_), _, _) => bail!(
                "LONGSHORE_S3_ENDPOINT is set; LONGSHORE_S3_ACCESS_KEY_ID and LONGSHORE_S3_SECRET_ACCESS_KEY must be, too"
            ),
            (None, None, None) => None,
            (None, _, _) => bail!(
                "LONGSHORE_S3_ACCESS_KEY_ID and LONGSHORE_S3_SECRET_ACCESS_KEY belong to LONGSHORE_S3_ENDPOINT, which is not set"
            ),
        };
        let address = |text: &str| text.parse::<SocketAddr>().ok();
        let database_url = self.database("DATABASE_URL")?;
        let destination_url = self.database("DESTINATION_URL")?;
        Ok(Settings {
            given,
            listen: self.parse("LISTEN", "an address and a port, such as 127.0.0.1:8080", address)?,
            data_dir: self.take("DATA_DIR").unwrap_or_else(|| "./longshore-data".into()).into(),
            nats_url: self.parse("NATS_URL", "a URL that begins with nats:// or tls://", |text| {
                (text.starts_with("nats://") || text.starts_with("tls://")).then(|| Secret::new(text))
            })?,
            nats_events_subject: self
                .parse("NATS_EVENTS_SUBJECT", "a subject without wildcards or spaces", |text| {
                    let fits = !text.is_empty()
                        && !text.contains(['*', '>', ' ', '\t'])
                        && text.split('.').all(|part| !part.is_empty());
                    fits.then(|| text.to_owned())
                })?
                .unwrap_or_else(|| "longshore.storage-events".into()),
            s3,
            s3_listen: self.parse("S3_LISTEN", "an address and a port, such as 127.0.0.1:9000", address)?,
            s3_public_endpoint: self.url("S3_PUBLIC_ENDPOINT", &["http", "https"])?,
            s3_bucket: self
                .parse("S3_BUCKET", "a bucket name: 3 to 63 of a-z, 0-9, '-' and '.'", |text| {
                    let fits = (3..=63).contains(&text.len())
                        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
                        && !text.contains("..")
                        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
                    fits.then(|| text.to_owned())
                })?
                .unwrap_or_else(|| "imports".into()),
            s3_region: self.take("S3_REGION").unwrap_or_else(|| "us-east-1".into()),
            s3_notification_arn: self.parse("S3_NOTIFICATION_ARN", "an ARN: arn:minio:sqs::<id>:nats", |text| {
                text.starts_with("arn:").then(|| text.to_owned())
            })?,
            cors_origins: match self.take("CORS_ORIGINS").map(|text| text.parse()) {
                None => CorsOrigins::default(),
                Some(Ok(origins)) => origins,
                Some(Err(reason)) => {
                    bail!("the setting LONGSHORE_CORS_ORIGINS must be origins with commas between, or *: {reason}")
                }
            },
            chunk_size: self.parse("CHUNK_SIZE", "a whole number of bytes from 1", |text| {
                text.parse().ok().filter(|size| (1..=i64::MAX as u64).contains(size))
            })?,
            workers: self
                .parse("WORKERS", "a whole number from 1", |text| text.parse().ok())?
                .unwrap_or_else(|| default_workers(destination_url.as_ref().or(database_url.as_ref()))),
            database_url,
            destination_url,
            sweep_interval: self
                .parse("SWEEP_INTERVAL", "a duration such as 30s, 500ms, 2m or 1h", duration)?
                .unwrap_or(Duration::from_secs(30)),
            patience: self
                .parse("PATIENCE", "a duration such as 15m, 90s or 1h", duration)?
                .unwrap_or(Duration::from_secs(15 * 60)),
            max_connections: self
                .parse("MAX_CONNECTIONS", "a whole number from 1 to 100000", |text| {
                    text.parse::<NonZeroUsize>().ok().filter(|count| count.get() <= 100_000)
                })?
                .unwrap_or(CONNECTIONS),
            log: self.take("LOG"),
            log_format: self
                .parse("LOG_FORMAT", "text or json", |text| match text {
                    "text" => Some(LogFormat::Text),
                    "json" => Some(LogFormat::Json),
                    _ => None,
                })?
                .unwrap_or(LogFormat::Text),
            otlp_endpoint: self.otlp_endpoint()?,
            server: self.take("SERVER").map(Secret::new),
        })
    }
}

/// Whether a database is PostgreSQL; else, and where it is not set, it is SQLite.
pub fn is_postgres(url: Option<&Secret>) -> bool {
    url.is_some_and(|url| url.expose().starts_with("postgres"))
}

/// As many as cores; for SQLite one more, since always one of them waits for its one writer.
fn default_workers(destination: Option<&Secret>) -> NonZeroUsize {
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    if is_postgres(destination) { cores } else { cores.saturating_add(1) }
}

trait MapJoin {
    fn map_join(&self) -> String;
}

impl MapJoin for [&str] {
    fn map_join(&self) -> String {
        self.iter().map(|scheme| format!("{scheme}://")).collect::<Vec<_>>().join(" or ")
    }
}

/// `30s`, `500ms`, `2m`, `1h`; not zero.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit.trim() {
        "ms" => number,
        "s" => number.checked_mul(1000)?,
        "m" => number.checked_mul(60_000)?,
        "h" => number.checked_mul(3_600_000)?,
        _ => return None,
    };
    (millis > 0).then(|| Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[(&str, &str)]) -> Result<Settings> {
        let environment = values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Settings::from_values(BTreeMap::new(), environment)
    }

    #[test]
    fn nothing_is_required() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.api_listen().to_string(), "127.0.0.1:8080");
        assert_eq!(settings.sweep_interval, Duration::from_secs(30));
        assert_eq!(settings.patience, Duration::from_secs(900));
        assert!(settings.s3.is_none() && settings.nats_url.is_none() && settings.database_url.is_none());
    }

    #[test]
    fn one_more_than_cores_works_where_one_waits_for_sqlite() {
        let workers = |values: &[(&str, &str)]| read(values).unwrap().workers.get();
        let postgres = ("LONGSHORE_DESTINATION_URL", "postgres://db/imports");
        let cores = workers(&[postgres]);
        assert_eq!(cores, std::thread::available_parallelism().unwrap().get());
        assert_eq!(workers(&[]), cores + 1);
        assert_eq!(workers(&[("LONGSHORE_DATABASE_URL", "postgres://db/control")]), cores);
        assert_eq!(workers(&[("LONGSHORE_DATABASE_URL", "sqlite:///control"), postgres]), cores);
        assert_eq!(workers(&[("LONGSHORE_WORKERS", "1")]), 1);
    }

    #[test]
    fn logs_are_text_and_traces_stay_here_unless_asked() {
        let settings = read(&[]).unwrap();
        assert_eq!((settings.log_format, settings.otlp_endpoint), (LogFormat::Text, None));
        let asked = [("LONGSHORE_LOG_FORMAT", "json"), ("LONGSHORE_OTLP_ENDPOINT", "http://collector:4318")];
        let settings = read(&asked).unwrap();
        assert_eq!(settings.log_format, LogFormat::Json);
        assert_eq!(settings.otlp_endpoint.unwrap().as_str(), "http://collector:4318/");
    }

    #[test]
    fn unknown_settings_and_bad_values_are_named() {
        for (name, value) in [
            ("LONGSHORE_LISTN", "x"),
            ("LONGSHORE_LISTEN", "8080"),
            ("LONGSHORE_WORKERS", "0"),
            ("LONGSHORE_CHUNK_SIZE", "0"),
            ("LONGSHORE_CHUNK_SIZE", "8MB"),
            ("LONGSHORE_SWEEP_INTERVAL", "30"),
            ("LONGSHORE_PATIENCE", "long"),
            ("LONGSHORE_DATABASE_URL", "mysql://x"),
            ("LONGSHORE_S3_ENDPOINT", "minio:9000"),
            ("LONGSHORE_S3_BUCKET", "Imports"),
            ("LONGSHORE_NATS_URL", "http://x"),
            ("LONGSHORE_NATS_EVENTS_SUBJECT", "a.>"),
            ("LONGSHORE_S3_NOTIFICATION_ARN", "nats"),
            ("LONGSHORE_LOG_FORMAT", "yaml"),
            ("LONGSHORE_OTLP_ENDPOINT", "collector:4317"),
            ("LONGSHORE_CORS_ORIGINS", "app.example.com"),
            ("LONGSHORE_CORS_ORIGINS", "https://app.example.com/upload"),
        ] {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn secrets_are_never_shown() {
        let error = read(&[("LONGSHORE_DATABASE_URL", "mysql://u:hunter2@h")]).unwrap_err();
        assert!(!format!("{error:#}").contains("hunter2"));
        let error = read(&[("LONGSHORE_OTLP_ENDPOINT", "http://u:hunter2@h:4318")]).unwrap_err();
        assert!(!format!("{error:#}").contains("hunter2"));
        let shown = format!("{:?}", read(&[("LONGSHORE_DATABASE_URL", "postgres://u:hunter2@h/d")]).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn an_endpoint_needs_its_credentials() {
        assert!(read(&[("LONGSHORE_S3_ENDPOINT", "http://127.0.0.1:9000")]).is_err());
        assert!(read(&[("LONGSHORE_S3_ACCESS_KEY_ID", "a")]).is_err());
        let whole = [
            ("LONGSHORE_S3_ENDPOINT", "http://127.0.0.1:9000"),
            ("LONGSHORE_S3_ACCESS_KEY_ID", "a"),
            ("LONGSHORE_S3_SECRET_ACCESS_KEY", "b"),
        ];
        assert!(read(&whole).unwrap().s3.is_some());
    }

    #[test]
    fn the_key_for_uploads_is_whole_and_belongs_to_an_endpoint() {
        let signer = [("LONGSHORE_S3_SIGNER_ACCESS_KEY_ID", "a"), ("LONGSHORE_S3_SIGNER_SECRET_ACCESS_KEY", "hunter2")];
        let whole = [
            ("LONGSHORE_S3_ENDPOINT", "http://127.0.0.1:9000"),
            ("LONGSHORE_S3_ACCESS_KEY_ID", "a"),
            ("LONGSHORE_S3_SECRET_ACCESS_KEY", "b"),
        ];
        let settings = read(&[&whole[..], &signer].concat()).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert_eq!(settings.s3.unwrap().signer.unwrap().id, "a");
        for half in [&signer[..1], &signer[1..]] {
            let error = read(&[&whole[..], half].concat()).unwrap_err().to_string();
            assert!(error.contains("LONGSHORE_S3_SIGNER_ACCESS_KEY_ID"), "{error}");
        }
        assert!(read(&signer).unwrap_err().to_string().contains("LONGSHORE_S3_ENDPOINT"));
    }

    #[test]
    fn what_kubernetes_injects_is_passed_over() {
        for name in [
            "LONGSHORE_SERVICE_HOST",
            "LONGSHORE_SERVICE_PORT",
            "LONGSHORE_SERVICE_PORT_HTTP",
            "LONGSHORE_PORT",
            "LONGSHORE_PORT_8080_TCP",
            "LONGSHORE_PORT_8080_TCP_ADDR",
            "LONGSHORE_API_SERVICE_HOST",
            "LONGSHORE_API_PORT_8080_TCP_PROTO",
        ] {
            assert!(read(&[(name, "tcp://10.0.0.1:8080")]).is_ok(), "{name}");
        }
        assert!(read(&[("LONGSHORE_PORT_8080_TCP_PORT", "8080"), ("LONGSHORE_SERVICE_PORT", "8080")]).is_ok());
        for name in ["LONGSHORE_PORT", "LONGSHORE_S3_PORT", "LONGSHORE_PORT_8080_TCP", "LONGSHORE_SERVICE_PORTS"] {
            assert!(read(&[(name, "9090")]).unwrap_err().to_string().contains(name), "{name}");
        }
        assert!(read(&[("LONGSHORE_PORTS", "1")]).is_err());
        assert!(read(&[("LONGSHORE_EXPORT", "1")]).is_err());
    }

    #[test]
    fn the_environment_goes_before_the_file() {
        let file = read_file("workers = 3\nlisten = \"127.0.0.1:1\"").unwrap();
        let environment = BTreeMap::from([("LONGSHORE_WORKERS".to_owned(), "5".to_owned())]);
        let settings = Settings::from_values(file, environment).unwrap();
        assert_eq!((settings.workers.get(), settings.api_listen().port()), (5, 1));
        assert!(read_file("worker = 3").unwrap_err().to_string().contains("'worker'"));
        assert!(read_file("LISTEN = \"x\"").is_err());
        assert!(read_file("workers = [1]").is_err());
    }
}
