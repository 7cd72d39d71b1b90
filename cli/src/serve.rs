//! The lasting roles: `serve`, `api`, `worker`.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::signal::unix::SignalKind;

use longshore_actors::Node;
use longshore_domain::ImportState;
use longshore_storage::database::{ImportFilter, ImportRecord};

use crate::settings::Settings;
use crate::signals::stop_on;
use crate::waiting::Patience;
use crate::wire::{Start, Wired, reachable, require_cluster, wire};

/// How often an address that is in use is tried again: for 3 s.
const BIND_TRIES: u32 = 60;
const BIND_PAUSE: Duration = Duration::from_millis(50);

/// Which parts a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Serve,
    Api,
    Worker,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Api => "api",
            Self::Worker => "worker",
        }
    }
}

/// Runs a role until it is told to stop.
pub async fn run(role: Role, settings: &Settings) -> Result<()> {
    match role {
        Role::Serve => {}
        Role::Api => require_cluster(settings, "api")?,
        Role::Worker => require_cluster(settings, "worker")?,
    }
    // A bad address is said before anything is waited for.
    let listen = match role {
        Role::Worker => settings.listen,
        Role::Serve | Role::Api => Some(settings.api_listen()),
    };
    let listener = match listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let stop = stop_on(&[SignalKind::terminate(), SignalKind::interrupt()])?;
    let address = listen.map(|address| format!(" at http://{}", reachable(address))).unwrap_or_default();
    let start = Start {
        works: role != Role::Api,
        patience: Patience::Endless,
        owner: format!("longshore {}{address}", role.name()),
    };
    let wired = tokio::select! {
        wired = wire(settings, &start) => wired?,
        () = stop.cancelled() => return Ok(()),
    };
    for import in interrupted(settings, &wired).await? {
        tracing::info!(import_id = %import.id, table = %import.request.destination.table, "continuing an import that was interrupted");
    }
    let node = match role {
        Role::Api => None,
        Role::Serve | Role::Worker => Some(start_node(&wired).await?),
    };
    let router = match role {
        Role::Worker => longshore_api::health_router(wired.api_state(&stop)),
        Role::Serve | Role::Api => {
            longshore_api::cors::allow(longshore_api::router(wired.api_state(&stop)), &settings.cors_origins)
        }
    };
    tracing::info!(
        name = wired.services.settings.name,
        ?role,
        listen = listen.map(|a| a.to_string()),
        "longshore is up"
    );
    let serve = async {
        if let Some(listener) = listener {
            longshore_api::server::serve(listener, router, settings.max_connections.get(), stop.clone()).await;
        }
    };
    let work = async {
        stop.cancelled().await;
        tracing::info!("stopping");
        if let Some(node) = node {
            node.stop().await;
        }
    };
    // Requests and work come to their end beside each other, within a lease.
    tokio::join!(serve, work);
    wired.shutdown().await;
    Ok(())
}

/// Waits a moment for whoever listens there: a process that was killed has its address until it is gone.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let mut bound = TcpListener::bind(address).await;
    for _ in 0..BIND_TRIES {
        if !bound.as_ref().is_err_and(|error| error.kind() == ErrorKind::AddrInUse) {
            break;
        }
        tokio::time::sleep(BIND_PAUSE).await;
        bound = TcpListener::bind(address).await;
    }
    bound.with_context(|| format!("LONGSHORE_LISTEN: {address} cannot be listened on"))
}

pub async fn start_node(wired: &Wired) -> Result<Node> {
    Node::start(wired.services.clone()).await.context("the actors did not start")
}

/// What the last owner of the data directory left unfinished, oldest first: the node goes on with it. Nothing where the
/// control database is elsewhere, since others may be at it.
pub async fn interrupted(settings: &Settings, wired: &Wired) -> Result<Vec<ImportRecord>> {
    const STATES: [ImportState; 4] =
        [ImportState::Queued, ImportState::Planning, ImportState::Running, ImportState::Publishing];
    /// More than anybody reads.
    const MOST: u64 = 100;
    let mut imports = Vec::new();
    if settings.database_url.is_none() {
        for state in STATES {
            let filter = ImportFilter { state: Some(state), ..ImportFilter::default() };
            imports.extend(wired.database.imports(&filter, MOST).await?.imports);
        }
    }
    imports.sort_by_key(|import| import.id);
    Ok(imports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_had_once_a_process_that_was_killed_is_gone() {
        let dying = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = dying.local_addr().unwrap();
        let next = tokio::spawn(bind(address));
        // One thread: the next one has tried in vain when this goes on.
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        drop(dying);
        assert_eq!(next.await.unwrap().unwrap().local_addr().unwrap(), address);
    }
}
