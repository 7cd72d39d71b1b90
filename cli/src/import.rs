//! `longshore import`: a file through a server, or through the embedded service, which is started for it. What is told on
//! the way and at the end goes to stderr.
//!
//! The first signal ends it: on the embedded service the import is cancelled, so that the same command may be given again; at
//! a server it goes on.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::signal::unix::SignalKind;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, ImportOrder};
use crate::output::{print, say};
use crate::settings::Settings;
use crate::signals::{INTERRUPTED, stop_on};
use crate::source::Source;
use crate::waiting::Patience;
use crate::wire::{Start, reachable, wire};
use crate::{FAILED, WITH_REJECTS, serve};

/// How many rejected rows are shown at the end.
const SHOWN_REJECTS: usize = 5;

/// How it came to an end.
enum End {
    /// By itself; the resource, and some of the rejected rows.
    Finished(Value, Vec<Value>),
    /// By a signal; the resource where it came to its end, too.
    Interrupted(Option<Value>),
}

/// What is done with an import when a signal comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnSignal {
    Cancel,
    Leave,
}

/// Imports over a server, or over the embedded service.
pub async fn run(
    settings: &Settings,
    server: Option<&str>,
    file: &Path,
    order: &ImportOrder<'_>,
    json: bool,
) -> Result<ExitCode> {
    let source = Source::open(file).await?;
    let stop = stop_on(&[SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()])?;
    let (end, place) = match server {
        Some(server) => {
            let client = Client::new(server)?;
            let end = follow(&client, source, order, &stop, OnSignal::Leave).await?;
            (end, Place::Server(client.address().to_owned()))
        }
        None => {
            let (end, file) = embedded(settings, source, order, &stop).await?;
            (end, Place::Embedded(file))
        }
    };
    let (import, code) = match end {
        End::Finished(import, rejects) => {
            let code = tell(&import, &rejects, order.table, &place, settings);
            (Some(import), code)
        }
        End::Interrupted(import) => (import, INTERRUPTED),
    };
    if let (Some(import), true) = (import, json) {
        print(import)?;
    }
    Ok(ExitCode::from(code))
}

/// Where an import ran.
enum Place {
    /// Without credentials.
    Server(String),
    /// The SQLite file that rows go to, where it is one.
    Embedded(Option<PathBuf>),
}

async fn embedded(
    settings: &Settings,
    source: Source,
    order: &ImportOrder<'_>,
    stop: &CancellationToken,
) -> Result<(End, Option<PathBuf>)> {
    let start = Start { works: true, patience: Patience::of_a_command(), owner: "longshore import".to_owned() };
    let wired = tokio::select! {
        wired = wire(settings, &start) => wired?,
        () = stop.cancelled() => {
            say("interrupted before anything was imported");
            return Ok((End::Interrupted(None), None));
        }
    };
    for import in serve::interrupted(settings, &wired).await? {
        say(format!(
            "continuing import {} into {}, which was interrupted",
            import.id, import.request.destination.table
        ));
    }
    let node = serve::start_node(&wired).await?;
    let listener = serve::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let base = format!("http://{}", listener.local_addr()?);
    let served_until = CancellationToken::new();
    let router = longshore_api::router(wired.api_state(&served_until));
    let connections = settings.max_connections.get();
    let served = tokio::spawn(longshore_api::server::serve(listener, router, connections, served_until.clone()));
    let end = follow(&Client::new(&base)?, source, order, stop, OnSignal::Cancel).await;
    served_until.cancel();
    served.await?;
    node.stop().await;
    let file = wired.destination_file.clone();
    wired.shutdown().await;
    Ok((end?, file))
}

/// Creates, uploads, watches, until the import ends or a signal comes.
async fn follow(
    client: &Client,
    source: Source,
    order: &ImportOrder<'_>,
    stop: &CancellationToken,
    on_signal: OnSignal,
) -> Result<End> {
    let created = tokio::select! {
        created = client.order(order, &source) => created?,
        () = stop.cancelled() => {
            say("interrupted before the server answered; `longshore list` shows whether it made an import, which then awaits its \
                 file");
            return Ok(End::Interrupted(None));
        }
    };
    let id = created["id"].as_str().context("the server's answer has no id")?;
    say(format!("import {id} into {}", order.table));
    let work = async {
        if let Err(error) = client.upload(source, &created["upload"]).await {
            // Nobody else has its URL.
            let cancelled = client.act(id, "cancel").await;
            let fate = if cancelled.is_ok() { "is cancelled" } else { "awaits its file in vain, and expires" };
            return Err(error.context(format!("import {id} {fate}")));
        }
        client.watch(id).await
    };
    let import = tokio::select! {
        import = work => import?,
        () = stop.cancelled() => return interrupt(client, id, order.table, on_signal).await,
    };
    let rejects = if has_rejects(&import) { some_rejects(client, id).await } else { Vec::new() };
    Ok(End::Finished(import, rejects))
}

/// A signal came.
async fn interrupt(client: &Client, id: &str, table: &str, on_signal: OnSignal) -> Result<End> {
    if on_signal == OnSignal::Leave {
        let server = client.address();
        let fate = match client.import_of(id).await {
            Ok(import) if import["state"] == "awaiting_upload" => "awaits its file, which was not sent whole",
            _ => "goes on without this command",
        };
        say(format!("interrupted; import {id} {fate}"));
        say(format!("  how it is:  longshore status {id} --server {server}"));
        say(format!("  to end it:  longshore cancel {id} --server {server}"));
        return Ok(End::Interrupted(None));
    }
    say(format!("cancelling import {id}; a second signal ends this at once, and the import goes on at the next start"));
    // A cancel that comes too late is refused; how it ended is seen below.
    let _ = client.act(id, "cancel").await;
    let import = client.watch(id).await?;
    match import["state"].as_str().unwrap_or_default() {
        "succeeded" => {
            let rows = &import["progress"]["rows_loaded"];
            say(format!("the cancel came too late: import {id} has succeeded, and its {rows} rows are in {table}"));
        }
        "cancelled" => say(format!("cancelled; nothing of it is in {table}")),
        state => {
            let reason = import["error"]["detail"].as_str().unwrap_or_default();
            say(format!("import {id} {state} meanwhile; nothing of it is in {table}: {reason}"));
        }
    }
    Ok(End::Interrupted(Some(import)))
}

/// Whether rows are listed as rejected. Of a failed import the destination's own refusals are, too, though they are not
/// counted.
fn has_rejects(import: &Value) -> bool {
    let refused = import["error"]["type"].as_str().is_some_and(|kind| kind.ends_with(":too-many-rejects"));
    refused || import["progress"]["rows_rejected"].as_u64().unwrap_or(0) > 0
}

async fn some_rejects(client: &Client, id: &str) -> Vec<Value> {
    let page = client.get(&format!("/v1/imports/{id}/rejects?limit={SHOWN_REJECTS}")).await;
    // The end of the import is told all the same.
    page.ok().and_then(|page| page["items"].as_array().cloned()).unwrap_or_default()
}

/// A rejected row, as people read it.
pub fn line_of_reject(reject: &Value) -> String {
    let (reason, detail) =
        (reject["reason"].as_str().unwrap_or_default(), reject["detail"].as_str().unwrap_or_default());
    format!("row {} (line {}): {reason} {detail}", reject["row"], reject["line"])
}

/// Says how it ended, and how to look at the rows; the exit code.
fn tell(import: &Value, rejects: &[Value], table: &str, place: &Place, settings: &Settings) -> u8 {
    let progress = &import["progress"];
    let (loaded, rejected) = (&progress["rows_loaded"], progress["rows_rejected"].as_u64().unwrap_or(0));
    let id = import["id"].as_str().unwrap_or_default();
    let succeeded = import["state"] == "succeeded";
    if succeeded {
        let rate = progress["rows_per_second"].as_f64().map(|rate| format!(" ({rate:.0} rows/s)")).unwrap_or_default();
        say(format!("{loaded} rows loaded into {table}, {rejected} rejected{rate}"));
        say(look_at(table, place));
    } else {
        let detail = import["error"]["detail"].as_str().unwrap_or("no reason was given");
        let state = import["state"].as_str().unwrap_or("ended");
        say(format!("import {id} {state}, nothing of it is in {table}: {detail}"));
    }
    if has_rejects(import) {
        rejects.iter().for_each(|reject| say(format!("  {}", line_of_reject(reject))));
        say(rejects_hint(id, place, settings));
    }
    match (succeeded, rejected) {
        (false, _) => FAILED,
        (true, 0) => 0,
        (true, _) => WITH_REJECTS,
    }
}

fn look_at(table: &str, place: &Place) -> String {
    let query = format!("SELECT * FROM {} LIMIT 10", sql_name(table));
    match place {
        Place::Embedded(Some(file)) => format!("look at them: sqlite3 '{}' '{query}'", file.display()),
        Place::Embedded(None) => format!("look at them: {query}"),
        Place::Server(_) => format!("look at them in the destination: {query}"),
    }
}

/// The commands that list all of them, as they can be given here.
fn rejects_hint(id: &str, place: &Place, settings: &Settings) -> String {
    const BEGIN: &str = "all rejected rows (with --csv as a file to be mended):";
    match place {
        Place::Server(address) => format!("{BEGIN} longshore rejects {id} --server {address}"),
        Place::Embedded(_) => {
            let address = match settings.listen {
                Some(listen) => format!(" --server http://{}", reachable(listen)),
                None => String::new(),
            };
            let named = settings.given.iter().any(|name| name == "LONGSHORE_DATA_DIR");
            let folder = settings.data_dir.display();
            let folder = if named { format!("LONGSHORE_DATA_DIR='{folder}' ") } else { String::new() };
            format!("{BEGIN}\n  {folder}longshore serve &\n  longshore rejects {id}{address}")
        }
    }
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
