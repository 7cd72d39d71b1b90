//! What a client may ask of the API at most: bodies, heads, connections, watchers, patience.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use common::api::{id_of, kind_of, read};
use common::service::{Service, serve};
use common::sse::Events;

/// How long nothing has to come, to be believed.
const SHORT: Duration = Duration::from_millis(300);

async fn connect(service: &Service) -> TcpStream {
    TcpStream::connect(service.api.base.strip_prefix("http://").unwrap()).await.unwrap()
}

async fn answer_to(service: &Service, request: &[u8]) -> String {
    let mut stream = connect(service).await;
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // A connection that is reset behind its answer has been answered.
    let _ = tokio::time::timeout(common::DEADLINE, stream.read_to_end(&mut answer)).await.expect("an answer");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bodies_and_heads_have_a_limit() {
    let service = serve(&[]).await;
    let large = json!({"destination": {"table": "t"}, "format": {"null_values": ["x".repeat(3 << 20)]}});
    let (status, problem) = service.api.post("/v1/imports", &large).await;
    assert_eq!((status.as_u16(), kind_of(&problem)), (413, "too-large"), "{problem}");
    let id = id_of(&service.api.create(&json!({"destination": {"table": "t"}})).await);
    let (status, problem) = service.api.post(&format!("/v1/imports/{id}/cancel"), &large).await;
    assert_eq!((status.as_u16(), kind_of(&problem)), (413, "too-large"), "{problem}");

    let header = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n", "x".repeat(64 * 1024));
    let answer = answer_to(&service, header.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let target = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(64 * 1024));
    let answer = answer_to(&service, target.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    let answer = answer_to(&service, b"not HTTP at all\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(service.api.get("/healthz").await.0, 200);
}

#[tokio::test]
async fn more_connections_than_allowed_wait_for_their_turn() {
    let service = serve(&[("MAX_CONNECTIONS", "3")]).await;
    // The harness keeps some of its own; they are closed when nobody uses them for a while.
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(&service).await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        held.push(stream);
    }
    let http = reqwest::Client::new();
    let url = format!("{}/healthz", service.api.base);
    let mut waits = Box::pin(http.get(&url).send());
    assert!(tokio::time::timeout(SHORT, &mut waits).await.is_err(), "no place is free");
    held.pop();
    held.pop();
    assert_eq!(tokio::time::timeout(common::DEADLINE, waits).await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_client_that_sends_no_whole_head_is_let_go() {
    let service = serve(&[]).await;
    for begun in [&b""[..], b"GET /healthz HTTP/1.1\r\nhost:"] {
        let answer = answer_to(&service, begun).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
}

#[tokio::test]
async fn more_watchers_than_allowed_are_told_to_come_again() {
    let service = serve(&[]).await;
    let id = id_of(&service.api.create(&json!({"destination": {"table": "t"}})).await);
    let mut watchers = Vec::new();
    for _ in 0..512 {
        watchers.push(Events::open(&service.api, &id, None).await);
    }
    let answer = Events::request(&service.api, &id, None).await;
    assert!(answer.headers().contains_key("retry-after"));
    let (status, problem) = read(answer).await;
    assert_eq!((status.as_u16(), kind_of(&problem)), (503, "unavailable"), "{problem}");
    assert_eq!(service.api.get(&format!("/v1/imports/{id}")).await.0, 200, "everything else goes on");
    assert_eq!(service.api.post(&format!("/v1/imports/{id}/cancel"), &json!({})).await.0, 202);
    for events in &mut watchers {
        assert_eq!(events.rest().await.last().unwrap().1["state"], "cancelled");
    }
    Events::request(&service.api, &id, None).await;
}
