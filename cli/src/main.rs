//! The one binary, `longshore`: command line, settings, and the wiring of all parts.

mod client;
mod doctor;
mod healthcheck;
mod import;
mod load;
mod lock;
mod log;
mod output;
mod serve;
mod settings;
mod signals;
mod source;
mod usage;
mod waiting;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use longshore_storage::objects::Secret;
use serde_json::Value;

use client::{Client, ImportOrder};
use log::Log;
use output::{Reader, print, say, write};
use serve::Role;
use settings::Settings;
use signals::INTERRUPTED;
use usage::Usage;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Imports CSV files into PostgreSQL or SQLite: in parallel, and every row exactly once.
#[derive(Parser)]
#[command(name = "longshore", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs everything in one process.
    Serve,
    /// Runs the HTTP API of a cluster.
    Api,
    /// Runs a worker of a cluster.
    Worker,
    /// Asks the process that listens on LONGSHORE_LISTEN whether it is ready; for containers, which have no curl.
    Healthcheck {
        /// Whether it is alive is enough.
        #[arg(long)]
        live: bool,
    },
    /// Imports a file and waits until it is done.
    Import {
        /// The CSV file.
        file: PathBuf,
        /// The destination table; it may be qualified: schema.table.
        #[arg(long, value_parser = read_table)]
        table: String,
        /// The server's address; without it the embedded service is started on the data directory.
        #[arg(long, env = "LONGSHORE_SERVER", hide_env_values = true)]
        server: Option<String>,
        /// How many rows may be rejected before the import fails; `none`: any number.
        #[arg(long, default_value = "0", value_parser = read_max_rejects)]
        max_rejects: MaxRejects,
        /// An unquoted cell that means null; may be given several times. Without it, the empty cell.
        #[arg(long = "null-value")]
        null_values: Vec<String>,
        /// Prints the import resource on stdout as the last line.
        #[arg(long)]
        json: bool,
    },
    /// Checks every dependency of the settings, and says what is wrong and what to do.
    Doctor {
        /// Checks what this role does, with its settings and its rights.
        #[arg(long, value_enum, default_value_t = doctor::Role::Serve)]
        role: doctor::Role,
        /// Prints all checks on stdout, as one JSON object on the last line.
        #[arg(long)]
        json: bool,
    },
    /// Shows one import.
    Status {
        /// Its id.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Cancels an import: nothing of it stays in the destination.
    Cancel {
        /// Its id.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Tries a failed import again, from the file that was uploaded.
    Retry {
        /// Its id.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Lists imports, newest first.
    List {
        /// Only those in this state, such as running or failed.
        #[arg(long, value_parser = read_state)]
        state: Option<String>,
        /// Only those into this table.
        #[arg(long, value_parser = read_table)]
        table: Option<String>,
        /// How many at most.
        #[arg(long, default_value = "100")]
        limit: usize,
        #[command(flatten)]
        remote: Remote,
    },
    /// Offers a server imports by the many, and tells how many it took and how long each step was.
    Load {
        /// The server's address [default: http://127.0.0.1:8080].
        #[arg(long, env = "LONGSHORE_SERVER", hide_env_values = true)]
        server: Option<String>,
        #[command(flatten)]
        arguments: load::Arguments,
    },
    /// Lists the rejected rows of an import.
    Rejects {
        /// Its id.
        id: String,
        /// As a CSV file, ready to be mended and imported again.
        #[arg(long, conflicts_with = "json")]
        csv: bool,
        #[command(flatten)]
        remote: Remote,
    },
}

impl Command {
    /// The lasting role that it runs; `None` for a command that passes.
    fn role(&self) -> Option<&'static str> {
        match self {
            Self::Serve => Some("serve"),
            Self::Api => Some("api"),
            Self::Worker => Some("worker"),
            _ => None,
        }
    }
}

#[derive(clap::Args)]
struct Remote {
    /// The server's address [default: http://127.0.0.1:8080].
    #[arg(long, env = "LONGSHORE_SERVER", hide_env_values = true)]
    server: Option<String>,
    /// Prints JSON on stdout.
    #[arg(long)]
    json: bool,
}

impl Remote {
    fn client(&self, settings: &Settings) -> Result<Client> {
        Client::new(server(self.server.as_deref(), settings).unwrap_or(DEFAULT_SERVER))
    }
}

/// Where `longshore serve` listens when nothing is said.
const DEFAULT_SERVER: &str = "http://127.0.0.1:8080";

/// The address that was given: by the argument, the environment, or the file of settings. An empty one is none.
fn server<'a>(given: Option<&'a str>, settings: &'a Settings) -> Option<&'a str> {
    given.or(settings.server.as_ref().map(Secret::expose)).filter(|server| !server.is_empty())
}

/// A bad name is a usage error, before anything is started.
fn read_table(text: &str) -> Result<String, String> {
    text.parse::<longshore_domain::TableName>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn read_state(text: &str) -> Result<String, String> {
    text.parse::<longshore_domain::ImportState>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// `None`: no limit.
type MaxRejects = Limit;

#[derive(Debug, Clone, Copy)]
struct Limit(Option<u64>);

fn read_max_rejects(text: &str) -> Result<MaxRejects, String> {
    match text {
        "none" => Ok(Limit(None)),
        number => {
            number.parse().map(|limit| Limit(Some(limit))).map_err(|_| "must be a whole number or 'none'".to_owned())
        }
    }
}

/// Exit codes (contract, section 5).
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const WITH_REJECTS: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let settings = match Settings::read() {
        Ok(settings) => settings,
        Err(error) => return failed(USAGE, format!("{error:#}")),
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads_of(&arguments.command) {
        builder.worker_threads(threads);
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(FAILED, format!("no runtime: {error}")),
    };
    let log = match Log::start(&settings, &arguments.command, runtime.handle()) {
        Ok(log) => log,
        Err(error) => return failed(USAGE, format!("{error:#}")),
    };
    let ended = runtime.block_on(run(arguments.command, settings));
    log.finish();
    match ended {
        Ok(code) => code,
        Err(error) if error.is::<Usage>() => failed(USAGE, format!("{error:#}")),
        Err(error) => failed(FAILED, format!("{error:#}")),
    }
}

/// An API asks its databases and waits. Half of the cores is enough for that, and threads that share the work wake each other
/// less; with one, statuses are a sixth more on two cores. What `TOKIO_WORKER_THREADS` says counts.
fn threads_of(command: &Command) -> Option<usize> {
    let is_set = std::env::var_os("TOKIO_WORKER_THREADS").is_some();
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (matches!(command, Command::Api) && !is_set).then(|| (cores() / 2).max(1))
}

fn failed(code: u8, reason: String) -> ExitCode {
    say(format!("longshore: {reason}"));
    ExitCode::from(code)
}

async fn run(command: Command, settings: Settings) -> Result<ExitCode> {
    let settings = &settings;
    match command {
        Command::Serve => serve::run(Role::Serve, settings).await?,
        Command::Api => serve::run(Role::Api, settings).await?,
        Command::Worker => serve::run(Role::Worker, settings).await?,
        Command::Healthcheck { live } => healthcheck::run(settings, live).await?,
        Command::Import { file, table, server: given, max_rejects, null_values, json } => {
            let null_values = (!null_values.is_empty()).then_some(null_values);
            let order = ImportOrder { table: &table, max_rejects: max_rejects.0, null_values };
            return import::run(settings, server(given.as_deref(), settings), &file, &order, json).await;
        }
        Command::Doctor { role, json } => return doctor::run(settings, role, json).await,
        Command::Status { id, remote } => show(&remote.client(settings)?.import_of(&id).await?, remote.json)?,
        Command::Cancel { id, remote } => show(&remote.client(settings)?.act(&id, "cancel").await?, remote.json)?,
        Command::Retry { id, remote } => show(&remote.client(settings)?.act(&id, "retry").await?, remote.json)?,
        Command::List { state, table, limit, remote } => {
            let filter = [("state", state), ("table", table)];
            let imports = remote.client(settings)?.list(&filter, limit).await?;
            if imports.is_empty() {
                let all = filter.iter().all(|(_, value)| value.is_none());
                say(if all { "there are no imports yet" } else { "there are no such imports" });
            }
            list(&imports, remote.json)?;
        }
        Command::Load { server: given, arguments } => {
            let client = Client::new(server(given.as_deref(), settings).unwrap_or(DEFAULT_SERVER))?;
            return load::run(client, &arguments).await;
        }
        Command::Rejects { id, csv, remote } => {
            let client = remote.client(settings)?;
            client.wait_for_start().await;
            if csv {
                client.rejects_csv(&id).await?;
            } else {
                rejects(&client, &id, remote.json).await?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(imports: &[Value], json: bool) -> Result<()> {
    if json {
        print(serde_json::json!({"items": imports, "next_cursor": null}))?;
    } else {
        write(imports.iter().map(|import| line_of(import) + "\n").collect::<String>().as_bytes())?;
    }
    Ok(())
}

/// All of them, page by page, for as long as somebody reads.
async fn rejects(client: &Client, id: &str, json: bool) -> Result<()> {
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("/v1/imports/{id}/rejects?limit=1000{cursor}")).await?;
        let rejects = page["items"].as_array().into_iter().flatten();
        let lines: String = rejects
            .map(|reject| if json { format!("{reject}\n") } else { import::line_of_reject(reject) + "\n" })
            .collect();
        let reader = write(lines.as_bytes())?;
        match page["next_cursor"].as_str() {
            Some(next) if reader == Reader::Reads => cursor = format!("&cursor={next}"),
            _ => return Ok(()),
        }
    }
}

fn show(import: &Value, json: bool) -> Result<()> {
    if json {
        print(import)?
    } else {
        print(line_of(import))?
    };
    Ok(())
}

/// An import in a line. What was staged of one that is done without success is gone, and not counted as rows.
fn line_of(import: &Value) -> String {
    let progress = &import["progress"];
    let error = import["error"]["detail"].as_str().map(|detail| format!("  {detail}")).unwrap_or_default();
    let rows = match import["state"].as_str() {
        Some("failed" | "cancelling" | "cancelled" | "expired") => "nothing loaded".to_owned(),
        _ => format!("{} rows", progress["rows_loaded"]),
    };
    format!(
        "{}  {:15}  {:5}%  {rows}, {} rejected  {}{error}",
        import["id"].as_str().unwrap_or_default(),
        import["state"].as_str().unwrap_or_default(),
        progress["percent"],
        progress["rows_rejected"],
        import["destination"]["table"].as_str().unwrap_or_default(),
    )
}
