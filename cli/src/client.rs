//! The client: what the command line asks of a server, over HTTP like everybody else.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

/// Between two looks at an import.
const POLL_EVERY: Duration = Duration::from_millis(200);
/// A server that is away is asked again for so long, in looks.
const PATIENCE: u32 = 150;
/// Imports asked for at once.
const PAGE: usize = 1000;
/// Blocks of a file on its way up, in bytes.
const BLOCK: usize = 256 * 1024;

/// A server.
pub struct Client {
    base: String,
    http: reqwest::Client,
}

/// What to import, and how.
pub struct ImportOrder<'a> {
    pub file: &'a Path,
    pub table: &'a str,
    /// `None`: no limit.
    pub max_rejects: Option<u64>,
    pub null_values: Option<Vec<String>>,
}

impl Client {
    pub fn new(base: &str) -> Result<Self> {
        let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).build()?;
        Ok(Self { base: base.trim_end_matches('/').to_owned(), http })
    }

    async fn call(&self, request: reqwest::RequestBuilder) -> Result<Value> {
        let response = request.send().await.map_err(reqwest::Error::without_url).with_context(|| {
            format!("no answer from {}; is the server running? (--server, LONGSHORE_SERVER)", self.base)
        })?;
        let status = response.status();
        let body = response.bytes().await.map_err(reqwest::Error::without_url)?;
        let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(value);
        }
        let detail =
            value["detail"].as_str().map_or_else(|| String::from_utf8_lossy(&body).into_owned(), str::to_owned);
        let faults: Vec<String> = value["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|fault| {
                format!(
                    "\n  {}: {}",
                    fault["pointer"].as_str().unwrap_or_default(),
                    fault["detail"].as_str().unwrap_or_default()
                )
            })
            .collect();
        bail!("{status}: {detail}{}", faults.concat())
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call(self.http.get(format!("{}{path}", self.base))).await
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

    /// Prints the file of rejects.
    pub async fn rejects_csv(&self, id: &str, out: &mut (impl std::io::Write + Send)) -> Result<()> {
        let url = format!("{}/v1/imports/{id}/rejects", self.base);
        let response =
            self.http.get(url).header("accept", "text/csv").send().await.map_err(reqwest::Error::without_url)?;
        if !response.status().is_success() {
            bail!("{}: {}", response.status(), response.text().await.unwrap_or_default());
        }
        let mut blocks = response.bytes_stream();
        while let Some(block) = blocks.try_next().await.map_err(reqwest::Error::without_url)? {
            out.write_all(&block)?;
        }
        Ok(out.flush()?)
    }

    /// Creates, uploads, watches; the finished resource.
    pub async fn import(&self, order: &ImportOrder<'_>) -> Result<Value> {
        let size = tokio::fs::metadata(order.file).await?.len();
        let name = order.file.file_name().map_or_else(|| "data.csv".into(), |name| name.to_string_lossy());
        let mut request = json!({
            "destination": {"table": order.table},
            "file": {"name": name, "size": size},
            "on_error": {"max_rejects": order.max_rejects},
        });
        if let Some(null_values) = &order.null_values {
            request["format"] = json!({"null_values": null_values});
        }
        let created = self.call(self.http.post(format!("{}/v1/imports", self.base)).json(&request)).await?;
        let id = created["id"].as_str().context("the server's answer has no id")?.to_owned();
        self.upload(order.file, size, &created["upload"]).await?;
        self.watch(&id).await
    }

    async fn upload(&self, path: &Path, size: u64, upload: &Value) -> Result<()> {
        let bar = bar(size, "uploading")?;
        let file = tokio::fs::File::open(path).await?;
        let counted = bar.clone();
        let blocks = ReaderStream::with_capacity(file, BLOCK).inspect_ok(move |block| counted.inc(block.len() as u64));
        let url = upload["url"].as_str().context("the server's answer has no upload URL")?;
        let mut request = self.http.put(url).body(reqwest::Body::wrap_stream(blocks));
        for (name, value) in upload["headers"].as_object().into_iter().flatten() {
            request = request.header(name, value.as_str().unwrap_or_default());
        }
        // The URL is a secret: it stays out of errors.
        let response = request.send().await.map_err(reqwest::Error::without_url).context("the upload failed")?;
        bar.finish_and_clear();
        if !response.status().is_success() {
            bail!("the storage refused the upload: {}", response.status());
        }
        Ok(())
    }

    async fn watch(&self, id: &str) -> Result<Value> {
        let path = format!("/v1/imports/{id}");
        let mut bar: Option<ProgressBar> = None;
        let mut failures = 0;
        loop {
            let import = match self.get(&path).await {
                Ok(import) => import,
                Err(error) if failures >= PATIENCE => return Err(error),
                Err(_) => {
                    failures += 1;
                    tokio::time::sleep(POLL_EVERY).await;
                    continue;
                }
            };
            failures = 0;
            let progress = &import["progress"];
            let total = progress["bytes_total"].as_u64().unwrap_or(0);
            if bar.is_none() && total > 0 {
                bar = Some(self::bar(total, "importing")?);
            }
            if let Some(bar) = &bar {
                bar.set_position(progress["bytes_done"].as_u64().unwrap_or(0));
                let rows = progress["rows_read"].as_u64().unwrap_or(0);
                bar.set_message(format!("{} · {rows} rows", import["state"].as_str().unwrap_or_default()));
            }
            if import["done"] == true {
                if let Some(bar) = bar {
                    bar.finish_and_clear();
                }
                return Ok(import);
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }
}

/// A bar on stderr; hidden where that is no terminal.
fn bar(total: u64, message: &'static str) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{msg:24} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")?;
    Ok(ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(message))
}
