//! The one binary, `longshore`: command line, settings, and the wiring of all parts.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod client;
mod doctor;
mod healthcheck;
mod log;
mod serve;
mod settings;
mod wire;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use client::{Client, ImportOrder};
use log::Log;
use serve::Role;
use settings::Settings;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Imports CSV files from object storage into a database: in parallel, exactly once.
#[derive(Parser)]
#[command(version, about)]
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
        #[arg(long, env = "LONGSHORE_SERVER")]
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
    /// Lists the rejected rows of an import.
    Rejects {
        /// Its id.
        id: String,
        /// As a CSV file, ready to be mended and imported again.
        #[arg(long)]
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
    /// The server's address.
    #[arg(long, env = "LONGSHORE_SERVER", default_value = "http://127.0.0.1:8080")]
    server: String,
    /// Prints JSON on stdout.
    #[arg(long)]
    json: bool,
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
        Err(error) => {
            eprintln!("longshore: {error:#}");
            return ExitCode::from(USAGE);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("longshore: no runtime: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let log = match Log::start(&settings, &arguments.command, runtime.handle()) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("longshore: {error:#}");
            return ExitCode::from(USAGE);
        }
    };
    let ended = runtime.block_on(run(arguments.command, settings));
    log.finish();
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("longshore: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

async fn run(command: Command, settings: Settings) -> Result<ExitCode> {
    match command {
        Command::Serve => serve::run(Role::Serve, &settings).await?,
        Command::Api => serve::run(Role::Api, &settings).await?,
        Command::Worker => serve::run(Role::Worker, &settings).await?,
        Command::Healthcheck { live } => healthcheck::run(&settings, live).await?,
        Command::Import { file, table, server, max_rejects, null_values, json } => {
            if !file.is_file() {
                eprintln!("longshore: there is no file {}", file.display());
                return Ok(ExitCode::from(USAGE));
            }
            let null_values = (!null_values.is_empty()).then_some(null_values);
            let order = ImportOrder { file: &file, table: &table, max_rejects: max_rejects.0, null_values };
            return import(&settings, server.as_deref(), &order, json).await;
        }
        Command::Doctor { json } => return doctor::run(&settings, json).await,
        Command::Status { id, remote } => show(&Client::new(&remote.server)?.import_of(&id).await?, remote.json),
        Command::Cancel { id, remote } => show(&Client::new(&remote.server)?.act(&id, "cancel").await?, remote.json),
        Command::Retry { id, remote } => show(&Client::new(&remote.server)?.act(&id, "retry").await?, remote.json),
        Command::List { state, table, limit, remote } => {
            let filter = [("state", state), ("table", table)];
            let imports = Client::new(&remote.server)?.list(&filter, limit).await?;
            if remote.json {
                println!("{}", serde_json::json!({"items": imports, "next_cursor": null}));
            } else {
                imports.iter().for_each(|import| println!("{}", line_of(import)));
            }
        }
        Command::Rejects { id, csv, remote } => rejects(&Client::new(&remote.server)?, &id, csv, remote.json).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn rejects(client: &Client, id: &str, csv: bool, json: bool) -> Result<()> {
    if csv {
        return client.rejects_csv(id, &mut std::io::stdout()).await;
    }
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("/v1/imports/{id}/rejects?limit=1000{cursor}")).await?;
        for reject in page["items"].as_array().into_iter().flatten() {
            if json {
                println!("{reject}");
            } else {
                println!(
                    "row {} (line {}): {} {}",
                    reject["row"],
                    reject["line"],
                    reject["reason"].as_str().unwrap_or_default(),
                    reject["detail"].as_str().unwrap_or_default()
                );
            }
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(()),
        }
    }
}

fn show(import: &Value, json: bool) {
    if json { println!("{import}") } else { println!("{}", line_of(import)) }
}

fn line_of(import: &Value) -> String {
    let progress = &import["progress"];
    let error = import["error"]["detail"].as_str().map(|detail| format!("  {detail}")).unwrap_or_default();
    format!(
        "{}  {:15}  {:5}%  {} rows, {} rejected  {}{error}",
        import["id"].as_str().unwrap_or_default(),
        import["state"].as_str().unwrap_or_default(),
        progress["percent"],
        progress["rows_loaded"],
        progress["rows_rejected"],
        import["destination"]["table"].as_str().unwrap_or_default(),
    )
}

/// Imports over a server, or over the embedded service, which is started for it.
async fn import(settings: &Settings, server: Option<&str>, order: &ImportOrder<'_>, json: bool) -> Result<ExitCode> {
    let (import, file) = match server {
        Some(server) => (Client::new(server)?.import(order).await?, None),
        None => import_embedded(settings, order).await?,
    };
    let code = tell(&import, order.table, file.as_deref(), settings);
    if json {
        println!("{import}");
    }
    Ok(code)
}

async fn import_embedded(settings: &Settings, order: &ImportOrder<'_>) -> Result<(Value, Option<PathBuf>)> {
    let wired = wire::wire(settings, true).await?;
    let node = serve::start_node(&wired).await?;
    let listener = serve::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let base = format!("http://{}", listener.local_addr()?);
    let stop = CancellationToken::new();
    let router = longshore_api::router(wired.api_state(&stop));
    let served =
        tokio::spawn(longshore_api::server::serve(listener, router, settings.max_connections.get(), stop.clone()));
    let result = Client::new(&base)?.import(order).await;
    stop.cancel();
    served.await?;
    node.stop().await;
    let file = wired.destination_file.clone();
    wired.shutdown().await;
    Ok((result?, file))
}

/// Says how it ended, and how to look at the rows; the exit code.
fn tell(import: &Value, table: &str, file: Option<&Path>, settings: &Settings) -> ExitCode {
    let progress = &import["progress"];
    let (loaded, rejected) = (&progress["rows_loaded"], progress["rows_rejected"].as_u64().unwrap_or(0));
    let id = import["id"].as_str().unwrap_or_default();
    if import["state"] != "succeeded" {
        let detail = import["error"]["detail"].as_str().unwrap_or("no reason was given");
        eprintln!("import {id} {}: {detail}", import["state"].as_str().unwrap_or("ended"));
        if rejected > 0 {
            eprintln!("{rejected} rows were rejected; see them with: {}", rejects_hint(id, file.is_some()));
        }
        return ExitCode::from(FAILED);
    }
    let seconds = progress["rows_per_second"].as_f64().map(|rate| format!(" ({rate:.0} rows/s)")).unwrap_or_default();
    eprintln!("{loaded} rows loaded into {table}, {rejected} rejected{seconds}");
    match file {
        Some(file) => {
            eprintln!("look at them: sqlite3 '{}' 'SELECT * FROM {} LIMIT 10'", file.display(), sql_name(table))
        }
        None if settings.destination_url.is_some() || settings.database_url.is_some() => {
            eprintln!("look at them: SELECT * FROM {} LIMIT 10", sql_name(table));
        }
        None => eprintln!("look at them in the destination: SELECT * FROM {} LIMIT 10", sql_name(table)),
    }
    if rejected == 0 {
        return ExitCode::SUCCESS;
    }
    eprintln!("see the rejected rows with: {}", rejects_hint(id, file.is_some()));
    ExitCode::from(WITH_REJECTS)
}

fn rejects_hint(id: &str, embedded: bool) -> String {
    let serve = if embedded { "longshore serve & " } else { "" };
    format!("{serve}longshore rejects {id}")
}

/// The table as SQL writes it.
fn sql_name(table: &str) -> String {
    match table.parse::<longshore_domain::TableName>() {
        Ok(name) => {
            let quoted = |part: &str| format!("\"{}\"", part.replace('"', "\"\""));
            name.schema().map(|schema| quoted(schema) + ".").unwrap_or_default() + &quoted(name.name())
        }
        Err(_) => table.to_owned(),
    }
}
