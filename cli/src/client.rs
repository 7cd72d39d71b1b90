//! The client: what the command line asks of a server, over HTTP like everybody else.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::TryStreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;
use url::Url;

use crate::output::{Reader, write};
use crate::source::Source;
use crate::usage::Usage;

/// Between two looks at an import.
const POLL_EVERY: Duration = Duration::from_millis(200);
/// A server that is away is asked again for so long, in looks.
const PATIENCE: u32 = 150;
/// How long a server is waited for that is started in the same moment.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// Imports asked for at once.
const PAGE: usize = 1000;
/// Blocks of a file on its way up, in bytes.
const BLOCK: usize = 256 * 1024;
/// How much of a refusal is read, in characters.
const REFUSAL: usize = 4 * 1024;

/// A server.
pub struct Client {
    /// With credentials, where the address has some.
    base: String,
    /// Without.
    shown: String,
    http: reqwest::Client,
}

/// What to import, and how.
pub struct ImportOrder<'a> {
    pub table: &'a str,
    /// `None`: no limit.
    pub max_rejects: Option<u64>,
    pub null_values: Option<Vec<String>>,
}

/// An answer that is no success.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    text: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.status, self.text)
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    /// What a problem says, with each fault of a request on a line of its own.
    async fn of(response: Response) -> Self {
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        let mut text =
            value["detail"].as_str().map_or_else(|| String::from_utf8_lossy(&body).into_owned(), str::to_owned);
        for fault in value["errors"].as_array().into_iter().flatten() {
            let part = |name: &str| fault[name].as_str().unwrap_or_default();
            text += &format!("\n  {}: {}", part("pointer"), part("detail"));
        }
        Self { status, text }
    }
}

impl Client {
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// [`Usage`] for an address that is none; nothing of it is repeated, since a password may be in it.
    pub fn new(server: &str) -> Result<Self> {
        let url = server.trim().parse::<Url>().ok();
        let Some(mut url) = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) else {
            let why = "the server's address (--server, LONGSHORE_SERVER) must begin with http:// or https://, such as \
                       http://127.0.0.1:8080";
            return Err(Usage(why.to_owned()).into());
        };
        let base = url.as_str().trim_end_matches('/').to_owned();
        // An address with a host takes both.
        let _ = url.set_username("").and_then(|()| url.set_password(None));
        let shown = url.as_str().trim_end_matches('/').to_owned();
        let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).build()?;
        Ok(Self { base, shown, http })
    }

    /// The server's address, without credentials.
    pub fn address(&self) -> &str {
        &self.shown
    }

    /// Waits a moment for a server that is only just starting. Whether it came is seen by the next call.
    pub async fn wait_for_start(&self) {
        let begun = Instant::now();
        let url = format!("{}/healthz", self.base);
        while begun.elapsed() < START_PATIENCE {
            match self.http.get(&url).timeout(START_PATIENCE).send().await {
                Err(error) if error.is_connect() => tokio::time::sleep(POLL_EVERY).await,
                _ => return,
            }
        }
    }

    /// An answer that is a success.
    async fn answer(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(reqwest::Error::without_url).with_context(|| {
            format!("no answer from {}; is the server running? (--server, LONGSHORE_SERVER)", self.shown)
        })?;
        if response.status().is_success() { Ok(response) } else { Err(Refusal::of(response).await.into()) }
    }

    async fn call(&self, request: RequestBuilder) -> Result<Value> {
        let body = self.answer(request).await?.bytes().await.map_err(reqwest::Error::without_url)?;
        Ok(serde_json::from_slice(&body).unwrap_or_default())
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call(self.http.get(format!("{}{path}", self.base))).await
    }

    /// A request that is made once and sent often.
    pub fn prepared(&self, method: reqwest::Method, path: &str, body: Option<&Value>) -> Result<reqwest::Request> {
        let request = self.http.request(method, format!("{}{path}", self.base));
        Ok(body.iter().fold(request, |request, body| request.json(body)).build()?)
    }

    /// The body of the answer to it, as it came.
    pub async fn send(&self, request: &reqwest::Request) -> Result<Bytes> {
        let request = request.try_clone().context("a request whose body is held")?;
        let request = RequestBuilder::from_parts(self.http.clone(), request);
        Ok(self.answer(request).await?.bytes().await.map_err(reqwest::Error::without_url)?)
    }

    /// The resource.
    pub async fn import_of(&self, id: &str) -> Result<Value> {
        self.get(&format!("/v1/imports/{id}")).await
    }

    /// `cancel` or `retry`; the resource behind it.
    pub async fn act(&self, id: &str, action: &str) -> Result<Value> {
        self.call(self.http.post(format!("{}/v1/imports/{id}/{action}", self.base))).await
    }

    /// Imports, newest first, at most `limit`, page by page.
    pub async fn list(&self, filter: &[(&str, Option<String>)], limit: usize) -> Result<Vec<Value>> {
        let mut imports = Vec::new();
        let mut cursor: Option<String> = None;
        while imports.len() < limit {
            let size = (limit - imports.len()).min(PAGE);
            let mut request = self.http.get(format!("{}/v1/imports", self.base)).query(&[("limit", size)]);
            for (name, value) in filter {
                request = request.query(&[(name, value)]);
            }
            let mut page = self.call(request.query(&[("cursor", &cursor)])).await?;
            if let Value::Array(items) = page["items"].take() {
                imports.extend(items);
            }
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                break;
            }
        }
        Ok(imports)
    }

    /// Prints the file of rejects, as far as somebody reads it.
    pub async fn rejects_csv(&self, id: &str) -> Result<()> {
        let request = self.http.get(format!("{}/v1/imports/{id}/rejects", self.base)).header("accept", "text/csv");
        let mut blocks = self.answer(request).await?.bytes_stream();
        while let Some(block) = blocks.try_next().await.map_err(reqwest::Error::without_url)? {
            if write(&block)? == Reader::Gone {
                break;
            }
        }
        Ok(())
    }

    /// Asks for an import; the new resource, with its upload.
    pub async fn create(&self, request: &Value) -> Result<Value> {
        self.call(self.http.post(format!("{}/v1/imports", self.base)).json(request)).await
    }

    /// Asks for an import of the file; the new resource, with its upload.
    pub async fn order(&self, order: &ImportOrder<'_>, source: &Source) -> Result<Value> {
        let mut request = json!({
            "destination": {"table": order.table},
            "file": {"name": source.name, "size": source.size},
            "on_error": {"max_rejects": order.max_rejects},
        });
        if let Some(null_values) = &order.null_values {
            request["format"] = json!({"null_values": null_values});
        }
        self.create(&request).await
    }

    /// Sends the file where the server said.
    pub async fn upload(&self, source: Source, upload: &Value) -> Result<()> {
        let bar = Cleared(bar(source.size, "uploading")?);
        let counted = bar.0.clone();
        let blocks =
            ReaderStream::with_capacity(source.file, BLOCK).inspect_ok(move |block| counted.inc(block.len() as u64));
        let sent = self.put(upload, reqwest::Body::wrap_stream(blocks)).await;
        drop(bar);
        sent
    }

    /// Sends a body to where an upload goes.
    pub async fn put(&self, upload: &Value, body: reqwest::Body) -> Result<()> {
        let url = upload["url"].as_str().context("the server's answer has no upload URL")?;
        let mut request = self.http.put(url).body(body);
        for (name, value) in upload["headers"].as_object().into_iter().flatten() {
            request = request.header(name, value.as_str().unwrap_or_default());
        }
        // The URL is a secret: it stays out of errors.
        let response = request.send().await.map_err(reqwest::Error::without_url).context("the upload failed")?;
        if response.status().is_success() {
            return Ok(());
        }
        let status = response.status();
        let reason = s3_message(&response.text().await.unwrap_or_default());
        bail!("the storage refused the upload: {status}{reason}")
    }

    /// Waits for an import's end, as the server tells of it at once; the finished resource. Where its stream breaks, it is
    /// watched.
    pub async fn follow(&self, id: &str) -> Result<Value> {
        let request = self.http.get(format!("{}/v1/imports/{id}/events", self.base));
        let mut blocks = self.answer(request).await?.bytes_stream();
        let mut text = Vec::new();
        while let Ok(Some(block)) = blocks.try_next().await {
            text.extend_from_slice(&block);
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            let lines: Vec<u8> = text.drain(..whole).collect();
            for line in String::from_utf8_lossy(&lines).lines() {
                let import: Value =
                    line.strip_prefix("data:").map(serde_json::from_str).transpose()?.unwrap_or_default();
                if import["done"] == true {
                    return Ok(import);
                }
            }
        }
        self.watch(id).await
    }

    /// Follows an import to its end; the finished resource. A server that is away is asked again for a while.
    pub async fn watch(&self, id: &str) -> Result<Value> {
        let mut bar = None;
        let mut failures = 0;
        loop {
            match self.import_of(id).await {
                Ok(import) => {
                    failures = 0;
                    show_progress(&mut bar, &import)?;
                    if import["done"] == true {
                        return Ok(import);
                    }
                }
                Err(error) if failures >= PATIENCE || is_final(&error) => {
                    let shown = &self.shown;
                    let hint = format!("what became of import {id} says: longshore status {id} --server {shown}");
                    return Err(error.context(hint));
                }
                Err(_) => failures += 1,
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }
}

/// Whether asking again changes nothing.
fn is_final(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.status.is_client_error())
}

/// `: message (code)`, as far as an S3 server's answer has them.
fn s3_message(body: &str) -> String {
    let body: String = body.chars().take(REFUSAL).collect();
    let part = |name: &str| {
        let (_, rest) = body.split_once(&format!("<{name}>"))?;
        let text = rest.split_once(&format!("</{name}>"))?.0;
        let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
        Some(text.replace("&amp;", "&")).filter(|text| !text.is_empty())
    };
    match (part("Message"), part("Code")) {
        (Some(message), Some(code)) => format!(": {message} ({code})"),
        (Some(text), None) | (None, Some(text)) => format!(": {text}"),
        (None, None) => String::new(),
    }
}

/// Draws the bar from the moment on that the size is known; it goes with the last look.
fn show_progress(bar: &mut Option<Cleared>, import: &Value) -> Result<()> {
    let progress = &import["progress"];
    let total = progress["bytes_total"].as_u64().unwrap_or(0);
    if bar.is_none() && total > 0 {
        *bar = Some(Cleared(self::bar(total, "importing")?));
    }
    if let Some(Cleared(bar)) = bar {
        bar.set_position(progress["bytes_done"].as_u64().unwrap_or(0));
        let rows = progress["rows_read"].as_u64().unwrap_or(0);
        bar.set_message(format!("{} · {rows} rows", import["state"].as_str().unwrap_or_default()));
    }
    Ok(())
}

/// A bar that leaves nothing on the screen, however its work ends.
struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A bar on stderr; hidden where that is no terminal.
fn bar(total: u64, message: &'static str) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{msg:24} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")?;
    Ok(ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_none_is_a_usage_error_and_not_repeated() {
        for address in ["127.0.0.1:8080", "localhost:8080", "ftp://me:hunter2@host", "me:hunter2@host", "", "http://"] {
            let error = Client::new(address).err().unwrap();
            assert!(error.is::<Usage>() && error.to_string().contains("http://"), "{address}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let client = Client::new("https://me:hunter2@host:1/below/").unwrap();
        assert_eq!(
            (client.shown.as_str(), client.base.as_str()),
            ("https://host:1/below", "https://me:hunter2@host:1/below")
        );
    }

    #[test]
    fn the_words_of_a_storage_are_shown() {
        let body =
            "<?xml version=\"1.0\"?><Error><Code>Full</Code><Message>no room &lt;here&gt; &amp;amp;</Message></Error>";
        assert_eq!(s3_message(body), ": no room <here> &amp; (Full)");
        assert_eq!(s3_message("<html>Bad Gateway</html>"), "");
    }
}
