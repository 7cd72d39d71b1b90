//! A client as anybody could write it: plain HTTP and JSON.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{DEADLINE, LOOK_EVERY, until_within};

/// One service.
#[derive(Clone)]
pub struct Api {
    pub base: String,
    pub http: reqwest::Client,
}

impl Api {
    pub fn new(base: &str) -> Self {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        Self { base: base.to_owned(), http }
    }

    pub async fn get_response(&self, path: &str) -> Response {
        self.http.get(format!("{}{path}", self.base)).send().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        read(self.get_response(path).await).await
    }

    /// A GET that has to succeed.
    pub async fn got(&self, path: &str) -> Value {
        let (status, value) = self.get(path).await;
        assert_eq!(status, 200, "GET {path}: {value}");
        value
    }

    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        read(self.http.post(format!("{}{path}", self.base)).json(body).send().await.unwrap()).await
    }

    /// Asks for an import, which has to be granted.
    pub async fn create(&self, request: &Value) -> Value {
        let (status, created) = self.post("/v1/imports", request).await;
        assert_eq!(status, 201, "{created}");
        created
    }

    /// The presigned PUT with exactly the headers that it names.
    pub async fn put(&self, created: &Value, body: impl Into<Vec<u8>>) -> StatusCode {
        self.put_changed(created, body, &[]).await
    }

    /// The presigned PUT with some headers changed.
    pub async fn put_changed(&self, created: &Value, body: impl Into<Vec<u8>>, changes: &[(&str, &str)]) -> StatusCode {
        let upload = &created["upload"];
        assert_eq!(upload["method"], "PUT");
        let mut headers = upload["headers"].as_object().unwrap().clone();
        for (name, value) in changes {
            headers.insert((*name).to_owned(), json!(value));
        }
        let body = body.into();
        // reqwest leaves it out for an empty body, and S3 servers want it (411); curl sends it.
        if body.is_empty() {
            headers.insert("content-length".to_owned(), json!("0"));
        }
        let mut request = self.http.put(upload["url"].as_str().unwrap()).body(body);
        for (name, value) in &headers {
            request = request.header(name, value.as_str().unwrap());
        }
        request.send().await.unwrap().status()
    }

    /// Sends only a part of what was declared, and leaves the connection open.
    pub async fn begin_put(&self, created: &Value, part: &[u8]) -> TcpStream {
        let upload = &created["upload"];
        let url: reqwest::Url = upload["url"].as_str().unwrap().parse().unwrap();
        let (host, port) = (url.host_str().unwrap(), url.port().unwrap());
        let mut head = format!("PUT {}?{} HTTP/1.1\r\nhost: {host}:{port}\r\n", url.path(), url.query().unwrap());
        for (name, value) in upload["headers"].as_object().unwrap() {
            head += &format!("{name}: {}\r\n", value.as_str().unwrap());
        }
        let mut socket = TcpStream::connect((host, port)).await.unwrap();
        socket.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        socket.write_all(part).await.unwrap();
        socket
    }

    /// Sends only a part of what was declared, and goes away.
    pub async fn put_part(&self, created: &Value, part: &[u8]) {
        let mut socket = self.begin_put(created, part).await;
        socket.shutdown().await.unwrap();
        // The storage has seen the end when it closes its side, whatever it says.
        let mut answer = Vec::new();
        let gone = tokio::time::timeout(DEADLINE, socket.read_to_end(&mut answer)).await;
        assert!(gone.is_ok(), "the storage did not close the connection");
    }

    /// `complete`, `cancel` or `retry`, which has to be accepted.
    pub async fn act(&self, id: &str, action: &str) {
        let (status, answer) = self.post(&format!("/v1/imports/{id}/{action}"), &json!({})).await;
        assert_eq!(status, 202, "{answer}");
    }

    /// Creates and uploads; the id.
    pub async fn begin(&self, request: &Value, body: impl Into<Vec<u8>>) -> String {
        let created = self.create(request).await;
        let status = self.put(&created, body).await;
        assert_eq!(status, 200, "the upload was refused");
        id_of(&created)
    }

    /// Creates, uploads, waits for the end.
    pub async fn import(&self, request: &Value, body: impl Into<Vec<u8>>) -> Value {
        let id = self.begin(request, body).await;
        self.done(&id).await
    }

    /// Polls until the import is done; the counters have to add up each time. A service that is away for a while is asked
    /// again.
    pub async fn done(&self, id: &str) -> Value {
        self.done_within(DEADLINE, id).await
    }

    pub async fn done_within(&self, deadline: Duration, id: &str) -> Value {
        let path = format!("{}/v1/imports/{id}", self.base);
        let mut last = (0, 0);
        until_within(deadline, &format!("import {id} is done"), async || {
            let answer = self.http.get(&path).send().await.ok()?;
            if answer.status() != 200 {
                return None;
            }
            let import: Value = answer.json().await.ok()?;
            check_counters(&import, &mut last);
            (import["done"] == true).then_some(import)
        })
        .await
    }

    /// Waits until at least so many chunks are done, or the import itself.
    pub async fn chunks_done(&self, id: &str, chunks: u64) {
        let path = format!("/v1/imports/{id}");
        until_within(DEADLINE, &format!("{chunks} chunks of {id} are done"), async || {
            let (_, import) = self.get(&path).await;
            let done = import["progress"]["chunks_done"].as_u64().unwrap_or(0);
            (done >= chunks || import["done"] == true).then_some(())
        })
        .await;
    }

    /// All items of a listing, page by page.
    pub async fn all(&self, path: &str, limit: u64) -> Vec<Value> {
        let mut items = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.got(&format!("{path}?limit={limit}{cursor}")).await;
            items.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return items,
            }
        }
    }

    /// The pause of a poll that a test does itself.
    pub async fn pause(&self) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The equations of the contract: loaded and rejected make up what was read, and nothing goes back within an attempt.
fn check_counters(import: &Value, last: &mut (u64, u64)) {
    let progress = &import["progress"];
    let count = |name: &str| progress[name].as_u64().unwrap_or_else(|| panic!("{name}: {import}"));
    assert_eq!(count("rows_read"), count("rows_loaded") + count("rows_rejected"), "{import}");
    assert!(count("bytes_done") <= count("bytes_total") || count("bytes_total") == 0, "{import}");
    assert!(count("chunks_done") <= count("chunks_total"), "{import}");
    let now = (import["attempt"].as_u64().unwrap(), count("rows_read"));
    assert!(*last <= now, "the counters went back from {last:?} to {now:?}: {import}");
    *last = now;
}

/// The status and the JSON of an answer; errors have to be problems.
pub async fn read(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let kind =
        response.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let body = response.bytes().await.unwrap();
    let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    if status.is_client_error() || (status.is_server_error() && value["dependencies"].is_null()) {
        assert_eq!(kind, "application/problem+json", "{status}: {}", String::from_utf8_lossy(&body));
        assert_eq!(value["status"], status.as_u16(), "{value}");
    }
    (status, value)
}

pub fn id_of(import: &Value) -> String {
    import["id"].as_str().unwrap().to_owned()
}

/// The kind of an import's error, or of a problem.
pub fn kind_of(problem: &Value) -> &str {
    problem["type"].as_str().and_then(|kind| kind.strip_prefix("urn:longshore:problem:")).unwrap_or_default()
}

/// Fails unless the import succeeded.
pub fn assert_succeeded(import: &Value) {
    assert_eq!(import["state"], "succeeded", "{import:#}");
    assert_eq!(import["error"], Value::Null, "{import:#}");
    assert_eq!(import["progress"]["bytes_done"], import["progress"]["bytes_total"], "{import:#}");
    assert_eq!(import["progress"]["chunks_done"], import["progress"]["chunks_total"], "{import:#}");
}

/// Fails unless the import failed for that reason.
pub fn assert_failed(import: &Value, kind: &str) {
    assert_eq!(import["state"], "failed", "{import:#}");
    assert_eq!(kind_of(&import["error"]), kind, "{import:#}");
    assert!(!import["error"]["detail"].as_str().unwrap_or_default().is_empty(), "{import:#}");
}

/// Chunks in order have to tile `0..size`, with rows that follow each other.
pub fn assert_tiles(chunks: &[Value], size: u64) -> u64 {
    let (mut end, mut next_row) = (0, 1);
    for (place, chunk) in chunks.iter().enumerate() {
        assert_eq!(chunk["chunk"], place, "{chunk}");
        assert_eq!(chunk["start"], end, "{chunk}");
        assert_eq!(chunk["first_row"], next_row, "{chunk}");
        assert_eq!(chunk["state"], "done", "{chunk}");
        end = chunk["end"].as_u64().unwrap();
        next_row += chunk["rows"].as_u64().unwrap();
    }
    assert_eq!(end, size, "the last chunk ends where the file does");
    next_row - 1
}
