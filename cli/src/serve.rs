//! The lasting roles: `serve`, `api`, `worker`.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use longshore_actors::Node;

use crate::settings::Settings;
use crate::wire::{Wired, require_cluster, wire};

/// Which parts a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Serve,
    Api,
    Worker,
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
    let stop = stop_signal()?;
    let wired = tokio::select! {
        wired = wire(settings, role != Role::Api) => wired?,
        () = stop.cancelled() => return Ok(()),
    };
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

pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("LONGSHORE_LISTEN: {address} cannot be listened on"))
}

pub async fn start_node(wired: &Wired) -> Result<Node> {
    Node::start(wired.services.clone()).await.context("the actors did not start")
}

/// Cancelled by SIGTERM or Ctrl-C; a second one ends the process at once.
fn stop_signal() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let told = stop.clone();
    tokio::spawn(async move {
        for again in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if again {
                std::process::exit(130);
            }
            told.cancel();
        }
    });
    Ok(stop)
}
