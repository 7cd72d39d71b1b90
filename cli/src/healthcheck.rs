//! `longshore healthcheck`: one look at the process that these settings start, for whoever supervises it from beside it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::settings::Settings;

/// `/readyz` gives each dependency two seconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Succeeds where `/readyz`, or `/healthz` for `live`, answers 200; an error says what was answered.
pub async fn run(settings: &Settings, live: bool) -> Result<()> {
    let path = if live { "/healthz" } else { "/readyz" };
    let url = format!("http://{}{path}", reachable(settings.api_listen()));
    // A proxy that is set for others has no business between a process and itself.
    let http = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build()?;
    let answer = http.get(&url).send().await.with_context(|| format!("nobody answers {url}"))?;
    let status = answer.status();
    if !status.is_success() {
        bail!("{url} answers {status}: {}", answer.text().await.unwrap_or_default().trim());
    }
    Ok(())
}

/// A wildcard is listened on, not connected to.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_reached_on_this_machine() {
        for (listen, reached) in
            [("0.0.0.0:8080", "127.0.0.1:8080"), ("[::]:80", "[::1]:80"), ("10.0.0.7:1", "10.0.0.7:1")]
        {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), reached);
        }
    }
}
