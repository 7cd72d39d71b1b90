//! `longshore load`: imports by the many, as fast as a server takes them, and how long each step took. For load tests of
//! one's own cluster; `just bench` uses it too.
//!
//! Whoever offers load waits for its answers (a closed loop of so many lanes): latencies are those at the rate that was
//! reached, not at one that was wanted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::ValueEnum;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::signal::unix::SignalKind;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::output::{print, say};
use crate::signals::stop_on;
use crate::source::Source;
use crate::usage::Usage;
use crate::{FAILED, INTERRUPTED};

/// What is asked for, again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Whole imports: create, upload, wait until done.
    Import,
    /// Creates only; each is cancelled behind the measurement.
    Create,
    /// The status of one import, made for this.
    Status,
}

/// The command's arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// What is asked for.
    #[arg(long, value_enum, default_value_t = What::Import)]
    pub what: What,
    /// How many: imports, or requests.
    #[arg(long, default_value = "100", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,
    /// How many at once.
    #[arg(long, default_value = "8", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub concurrency: u32,
    /// Rows of each import's file, which is made up: id, day, amount, name and note, some 60 bytes each.
    #[arg(long, default_value = "10000", conflicts_with = "file", value_parser = clap::value_parser!(u64).range(1..))]
    pub rows: u64,
    /// A file to import instead of a made-up one.
    #[arg(long)]
    pub file: Option<PathBuf>,
    /// What each request for an import says besides its table and file, as JSON: {"columns": [{"name": "id", "type": "int64"}]}.
    #[arg(long, value_parser = read_object)]
    pub request: Option<Value>,
    /// An existing table that all imports add to; without it each import makes a table of its own, which stays.
    #[arg(long, value_parser = crate::read_table)]
    pub table: Option<String>,
    /// Tells the server that each upload is finished, and does not rely on storage events.
    #[arg(long)]
    pub complete: bool,
    /// Prints the result as JSON on stdout, as the last line.
    #[arg(long)]
    pub json: bool,
}

/// A step whose time is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Create,
    Upload,
    /// From the upload's end to the import's.
    Load,
    /// All of an import.
    Whole,
    Status,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Upload => "upload",
            Self::Load => "load",
            Self::Whole => "import",
            Self::Status => "status",
        }
    }
}

/// Times in microseconds, to three digits.
type Times = Histogram<u64>;

/// The shown quantiles.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)];

/// What came of it so far.
#[derive(Default)]
struct Tally {
    steps: BTreeMap<Step, Times>,
    rows: u64,
    bytes: u64,
    done: u64,
    /// Reasons, and how often each.
    failures: BTreeMap<String, u64>,
}

impl Tally {
    fn took(&mut self, step: Step, time: Duration) {
        let times = self.steps.entry(step).or_insert_with(times);
        // The histogram grows with what it is given.
        let _ = times.record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }
}

fn times() -> Times {
    Histogram::new(3).expect("three digits are what it holds")
}

/// Files up to so many bytes are read once and held.
const HELD: u64 = 32 << 20;

/// What is uploaded.
enum Content {
    Held(Bytes),
    /// Read anew for each upload: its size in bytes.
    File(PathBuf, u64),
}

impl Content {
    async fn of(path: &Path) -> Result<Self> {
        let source = Source::open(path).await?;
        if source.size > HELD {
            return Ok(Self::File(path.to_owned(), source.size));
        }
        let bytes = tokio::fs::read(path).await.map_err(|error| Usage(format!("{}: {error}", path.display())))?;
        Ok(Self::Held(bytes.into()))
    }

    fn size(&self) -> u64 {
        match self {
            Self::Held(bytes) => bytes.len() as u64,
            Self::File(_, size) => *size,
        }
    }

    async fn body(&self) -> Result<reqwest::Body> {
        Ok(match self {
            Self::Held(bytes) => bytes.clone().into(),
            Self::File(path, _) => Source::open(path).await?.file.into(),
        })
    }
}

fn read_object(text: &str) -> std::result::Result<Value, String> {
    serde_json::from_str(text)
        .map_err(|error| error.to_string())
        .and_then(|value: Value| if value.is_object() { Ok(value) } else { Err("it is no JSON object".to_owned()) })
}

/// What all lanes share.
struct Load {
    client: Client,
    arguments: Arguments,
    content: Content,
    /// Names the tables and files of this run.
    run: String,
    next: AtomicU64,
    tally: Mutex<Tally>,
    bar: ProgressBar,
    stop: CancellationToken,
    /// Whose status is asked for.
    subject: Option<String>,
    /// The request that is measured alone.
    prepared: Option<reqwest::Request>,
}

/// What of an import's resource is looked at where creates are measured.
#[derive(serde::Deserialize)]
struct Created {
    id: String,
}

/// Runs it: 0, or 1 where any failed.
///
/// # Errors
/// Where nothing could be begun.
pub async fn run(client: Client, arguments: &Arguments) -> Result<ExitCode> {
    let content = match &arguments.file {
        Some(file) => Content::of(file).await?,
        None => Content::Held(made_up(arguments.rows)),
    };
    let stop = stop_on(&[SignalKind::interrupt(), SignalKind::terminate()])?;
    client.wait_for_start().await;
    let style = ProgressStyle::with_template("{msg:40} [{bar:30}] {pos}/{len} {per_sec} {eta}")?;
    let mut load = Load {
        client,
        arguments: arguments.clone(),
        content,
        run: uuid::Uuid::new_v4().simple().to_string()[..8].to_owned(),
        next: AtomicU64::new(0),
        tally: Mutex::default(),
        bar: ProgressBar::new(arguments.count).with_style(style.progress_chars("=> ")),
        stop,
        subject: None,
        prepared: None,
    };
    match arguments.what {
        What::Import => {}
        What::Create => {
            let request = load.request(0);
            load.prepared = Some(load.client.prepared(reqwest::Method::POST, "/v1/imports", Some(&request))?);
        }
        What::Status => {
            let (id, _) = load.create(0).await?;
            load.prepared = Some(load.client.prepared(reqwest::Method::GET, &format!("/v1/imports/{id}"), None)?);
            load.subject = Some(id);
        }
    }
    let begun = Instant::now();
    let lanes = u64::from(arguments.concurrency).min(arguments.count);
    let load = Arc::new(load);
    // Each a task of its own, so that it is the server whose cores are measured.
    let lanes: Vec<_> = (0..lanes)
        .map(|_| {
            let load = Arc::clone(&load);
            tokio::spawn(async move { load.lane().await })
        })
        .collect();
    let created = futures::future::try_join_all(lanes).await?.concat();
    let seconds = begun.elapsed().as_secs_f64();
    load.bar.finish_and_clear();
    for id in created.iter().chain(&load.subject) {
        // One that is left expires.
        let _ = load.client.act(id, "cancel").await;
    }
    load.tell(seconds)
}

impl Load {
    /// One after the other, until all are given out; the imports that were only created.
    async fn lane(&self) -> Vec<String> {
        let mut created = Vec::new();
        while !self.stop.is_cancelled() {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.arguments.count {
                break;
            }
            let ended = match self.arguments.what {
                What::Import => self.import(number).await,
                What::Create => self.ask(Step::Create).await.and_then(|answer| {
                    let Created { id } = serde_json::from_slice(&answer).context("the server's answer has no id")?;
                    created.push(id);
                    Ok(())
                }),
                What::Status => self.ask(Step::Status).await.map(drop),
            };
            let mut tally = self.tally();
            match ended {
                Ok(()) => tally.done += 1,
                // The cause alone: each import would be a reason of its own.
                Err(error) => *tally.failures.entry(error.root_cause().to_string()).or_default() += 1,
            }
            if self.arguments.what == What::Import {
                self.bar.set_message(self.shown(&tally));
            }
            self.bar.inc(1);
        }
        created
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is told on the way.
    fn shown(&self, tally: &Tally) -> String {
        let failed: u64 = tally.failures.values().sum();
        let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
        format!("{} rows, {} MB{failed}", tally.rows, tally.bytes / 1_000_000)
    }

    /// What an import is asked for with.
    fn request(&self, number: u64) -> Value {
        let table = match &self.arguments.table {
            Some(table) => table.clone(),
            None => format!("load_{}_{number}", self.run),
        };
        let mut request = self.arguments.request.clone().unwrap_or_else(|| json!({}));
        request["destination"] = json!({"table": table});
        request["file"] = json!({"name": format!("load-{}-{number}.csv", self.run), "size": self.content.size()});
        request
    }

    /// Asks for an import; its id and upload.
    async fn create(&self, number: u64) -> Result<(String, Value)> {
        let request = self.request(number);
        let begun = Instant::now();
        let mut created = self.client.create(&request).await?;
        self.tally().took(Step::Create, begun.elapsed());
        let id = created["id"].as_str().context("the server's answer has no id")?.to_owned();
        Ok((id, created["upload"].take()))
    }

    async fn import(&self, number: u64) -> Result<()> {
        let begun = Instant::now();
        let (id, upload) = self.create(number).await?;
        let sending = Instant::now();
        self.client.put(&upload, self.content.body().await?).await?;
        let sent = Instant::now();
        if self.arguments.complete {
            self.client.act(&id, "complete").await?;
        }
        let import = self.client.follow(&id).await?;
        let mut tally = self.tally();
        tally.took(Step::Upload, sent - sending);
        if import["state"] != "succeeded" {
            let detail = import["error"]["detail"].as_str().unwrap_or_default();
            anyhow::bail!("{}: {detail}", import["state"].as_str().unwrap_or("no state"));
        }
        tally.took(Step::Load, sent.elapsed());
        tally.took(Step::Whole, begun.elapsed());
        tally.rows += import["progress"]["rows_loaded"].as_u64().unwrap_or(0);
        tally.bytes += self.content.size();
        Ok(())
    }

    /// The request that is measured alone.
    async fn ask(&self, step: Step) -> Result<Bytes> {
        let begun = Instant::now();
        let answer = self.client.send(self.prepared.as_ref().context("no request to send")?).await?;
        self.tally().took(step, begun.elapsed());
        Ok(answer)
    }

    /// The table for people, and JSON for others.
    fn tell(&self, seconds: f64) -> Result<ExitCode> {
        let tally = self.tally();
        let failed: u64 = tally.failures.values().sum();
        let per_second = |count: u64| count as f64 / seconds;
        let what = match self.arguments.what {
            What::Import => "imports",
            What::Create => "creates",
            What::Status => "requests",
        };
        say(format!(
            "{} {what} in {seconds:.2} s, {failed} failed: {:.1} a second, {} at once",
            tally.done,
            per_second(tally.done),
            self.arguments.concurrency
        ));
        if self.arguments.what == What::Import {
            let megabytes = per_second(tally.bytes) / 1e6;
            say(format!("{} rows: {:.0} a second, {megabytes:.1} MB/s", tally.rows, per_second(tally.rows)));
        }
        say(format!("{:>8} {:>10} {:>10} {:>10} {:>10}  (ms)", "", "p50", "p90", "p99", "max"));
        for (step, times) in &tally.steps {
            let shown: Vec<String> =
                QUANTILES.iter().map(|(_, quantile)| format!("{:>10.1}", milliseconds(times, *quantile))).collect();
            say(format!("{:>8} {}", step.name(), shown.join(" ")));
        }
        for (reason, count) in &tally.failures {
            say(format!("failed {count} times: {reason}"));
        }
        if self.arguments.what == What::Import && self.arguments.table.is_none() && tally.done > 0 {
            say(format!("its tables stay; their names begin with load_{}_", self.run));
        }
        if self.arguments.json {
            let steps: BTreeMap<&str, BTreeMap<&str, f64>> = tally
                .steps
                .iter()
                .map(|(step, times)| {
                    let quantiles = QUANTILES.iter().map(|(name, at)| (*name, milliseconds(times, *at)));
                    (step.name(), quantiles.collect())
                })
                .collect();
            print(json!({
                "run": self.run, "what": what, "done": tally.done, "failed": failed, "failures": tally.failures,
                "seconds": seconds, "concurrency": self.arguments.concurrency, "per_second": per_second(tally.done),
                "rows": tally.rows, "bytes": tally.bytes, "rows_per_second": per_second(tally.rows),
                "bytes_per_second": per_second(tally.bytes), "milliseconds": steps,
            }))?;
        }
        Ok(ExitCode::from(match (self.stop.is_cancelled(), failed) {
            (true, _) => INTERRUPTED,
            (false, 0) => 0,
            (false, _) => FAILED,
        }))
    }
}

fn milliseconds(times: &Times, quantile: f64) -> f64 {
    times.value_at_quantile(quantile) as f64 / 1_000.0
}

/// A file of made-up rows; the same for the same number of them.
fn made_up(rows: u64) -> Bytes {
    use std::fmt::Write as _;
    let mut text = String::from("id,day,amount,name,note\n");
    for id in 1..=rows {
        // Numbers that look like chance: the multiplicative hash of Knuth, 2654435761.
        let chance = id.wrapping_mul(2_654_435_761) & 0xffff_ffff;
        let (year, month, day) = (2000 + chance % 25, 1 + chance % 12, 1 + chance % 28);
        // A string takes every write.
        let _ = writeln!(
            text,
            "{id},{year}-{month:02}-{day:02},{}.{:02},name {:06},\"a note, {} words long\"",
            chance % 100_000,
            chance % 100,
            chance % 1_000_000,
            chance % 50,
        );
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_files_have_their_rows() {
        let text = made_up(1_000);
        let text = std::str::from_utf8(&text).unwrap();
        assert_eq!(text.lines().count(), 1_001);
        assert!(text.lines().all(|line| line.matches(',').count() == if line.starts_with("id") { 4 } else { 5 }));
    }

    #[test]
    fn quantiles_are_those_of_the_times() {
        let mut tally = Tally::default();
        (1..=100).for_each(|ms| tally.took(Step::Load, Duration::from_millis(ms)));
        let times = &tally.steps[&Step::Load];
        let near = |quantile, wanted: f64| (milliseconds(times, quantile) - wanted).abs() < wanted / 500.0;
        assert!(near(0.5, 50.0) && near(0.99, 99.0) && near(1.0, 100.0));
    }
}
