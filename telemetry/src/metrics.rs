//! Every metric: name, unit, help text, labels and bounds are here and nowhere else. Names follow Prometheus' conventions
//! (`promtool check metrics` agrees, `tests/metrics.rs`); units are seconds and bytes.
//!
//! Counters and histograms live as long as the process and are there from the first scrape on, at zero. What is looked up in
//! a dependency is [`Sampled`]: made anew for each look, so that what could not be looked up is absent instead of old.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use prometheus::proto::MetricFamily;
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};
use tracing::Instrument as _;

use longshore_domain::{ImportState, RejectReason, Tally, Trigger};

use crate::declare::{self, Declared};
use crate::labels::{AttemptReason, Dependency, DependencyFault, JobOutcome, MessageState, QueueName, Step};

/// The content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds in seconds of what a chunk or a part of an import takes.
const STEP_BOUNDS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0, 1800.0];
/// Of what an import takes from its upload to its end.
const IMPORT_BOUNDS: [f64; 13] =
    [0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14_400.0, 86_400.0];
/// Of the time between upload and start. Storages tell whole seconds.
const DELAY_BOUNDS: [f64; 10] = [0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0];
/// Of an HTTP request.
const REQUEST_BOUNDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

/// The states that an import can be found in without being done.
const LIVING: [ImportState; 6] = [
    ImportState::AwaitingUpload,
    ImportState::Queued,
    ImportState::Planning,
    ImportState::Running,
    ImportState::Publishing,
    ImportState::Cancelling,
];
/// The states that an import ends in.
const ENDED: [ImportState; 4] =
    [ImportState::Succeeded, ImportState::Failed, ImportState::Cancelled, ImportState::Expired];
const TRIGGERS: [Trigger; 3] = [Trigger::Event, Trigger::Complete, Trigger::Sweep];
/// Classes of HTTP answers; `aborted`: the client went away before there was one.
const STATUSES: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "aborted"];

/// The metrics of this process.
static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// The metrics of this process.
pub fn metrics() -> &'static Metrics {
    &METRICS
}

/// The type behind a kind of metric.
macro_rules! kind {
    (counter) => {
        IntCounter
    };
    (counters) => {
        IntCounterVec
    };
    (gauge) => {
        IntGauge
    };
    (gauges) => {
        IntGaugeVec
    };
    (histograms) => {
        HistogramVec
    };
}

/// A struct of metrics: kind, field, labels, bounds, name, help text.
macro_rules! metrics {
    ($(#[$doc:meta])* $name:ident {
        $($kind:ident $field:ident [$($label:literal),*] $(in $bounds:ident)?: $metric:literal, $help:literal;)*
    }) => {
        $(#[$doc])*
        pub struct $name {
            registry: Registry,
            $($field: kind!($kind),)*
        }

        impl $name {
            fn declared() -> Self {
                let registry = Registry::new();
                let bounds: &[f64] = &[];
                Self {
                    $($field: {
                        $(let bounds: &[f64] = &$bounds;)?
                        declare::$kind(&registry, &Declared { name: $metric, help: $help, labels: &[$($label),*], bounds })
                    },)*
                    registry,
                }
            }
        }
    };
}

metrics! {
    /// What a process counts. Each method is cheap: an atomic addition, behind a look at the labels.
    Metrics {
        counter imports_created []: "longshore_imports_created_total", "Imports that were asked for.";
        counters imports_started ["trigger"]: "longshore_imports_started_total", "Imports that were started, by what set them going.";
        counters imports_ended ["state"]: "longshore_imports_ended_total", "Imports that came to their end, by the state they ended in.";
        counters import_restarts ["reason"]: "longshore_import_restarts_total", "New attempts of imports by themselves, by reason: every chunk is read again.";
        counter import_claims []: "longshore_import_claims_total", "Imports that this process became the owner of.";
        gauge imports_owned []: "longshore_imports_owned", "Imports that this process owns now.";
        histograms import_duration ["state"] in IMPORT_BOUNDS: "longshore_import_duration_seconds", "From the upload to the end of an import, by the state it ended in.";
        histograms start_delay ["trigger"] in DELAY_BOUNDS: "longshore_import_start_delay_seconds", "From the object's Last-Modified to the start of its import, by what set it going.";
        histograms step_duration ["step"] in STEP_BOUNDS: "longshore_step_duration_seconds", "Duration of the steps of imports, waits for dependencies included.";
        counter rows_read []: "longshore_rows_read_total", "Data records in chunks that were committed, rejected ones included.";
        counter rows_published []: "longshore_rows_published_total", "Rows that were added to destinations by imports that succeeded.";
        counters rows_rejected ["reason"]: "longshore_rows_rejected_total", "Rows that were rejected, by reason.";
        counter bytes_imported []: "longshore_imported_bytes_total", "Bytes of objects in chunks that were committed.";
        counter bytes_fetched []: "longshore_fetched_bytes_total", "Bytes that were read from the object storage, for samples, scans and chunks.";
        counter chunks_committed []: "longshore_chunks_committed_total", "Chunks that were committed.";
        counters chunk_jobs ["outcome"]: "longshore_chunk_jobs_total", "Chunk jobs that workers took from the bus, by outcome.";
        histograms chunk_duration ["outcome"] in STEP_BOUNDS: "longshore_chunk_duration_seconds", "Duration of a chunk job from its delivery to its outcome.";
        gauge chunk_workers []: "longshore_chunk_workers", "Chunks that this process can work on at once.";
        gauge chunk_workers_busy []: "longshore_chunk_workers_busy", "Chunks that this process works on now.";
        counter chunk_claim_losses []: "longshore_chunk_claim_losses_total", "Claims of chunks that were lost while a worker was at it.";
        counter chunk_jobs_republished []: "longshore_chunk_jobs_republished_total", "Chunk jobs that were published again, because nobody took them or their worker went away.";
        counter lease_losses []: "longshore_lease_losses_total", "Leases of imports that ran out while this process was the owner.";
        counter fence_refusals []: "longshore_fence_refusals_total", "Commits that the fence of the destination refused, since somebody else owns the import.";
        counters dependency_errors ["dependency", "fault"]: "longshore_dependency_errors_total", "Calls to a dependency that failed, by what was wrong.";
        counters dependency_retries ["dependency"]: "longshore_dependency_retries_total", "Calls to a dependency that were tried again.";
        counters http_requests ["method", "route", "status"]: "longshore_http_requests_total", "HTTP requests by method, route and class of the answer.";
        histograms http_request_duration ["method", "route"] in REQUEST_BOUNDS: "longshore_http_request_duration_seconds", "From an HTTP request to the beginning of its answer.";
        gauge http_in_flight []: "longshore_http_requests_in_flight", "HTTP requests without an answer yet.";
        counters otlp_exports ["outcome"]: "longshore_otlp_exports_total", "Batches of spans sent to the OTLP endpoint, by outcome.";
        gauges build_info ["version"]: "longshore_build_info", "The version of this process; always 1.";
    }
}

metrics! {
    /// One look at the dependencies.
    Sampled {
        gauges imports ["state"]: "longshore_imports", "Imports that are not done, by state, of the whole cluster.";
        gauges oldest ["state"]: "longshore_imports_oldest_seconds", "Age of the oldest import in that state, of the whole cluster: since its upload, or since it was asked for where it awaits one; 0 without one.";
        gauges chunks []: "longshore_backlog_chunks", "Chunks that were planned and are not committed, of the whole cluster.";
        gauges bytes []: "longshore_backlog_bytes", "Bytes of started imports that are not committed, of the whole cluster.";
        gauges messages ["queue", "state"]: "longshore_queue_messages", "Messages on the bus, by queue, waiting or delivered without an answer yet.";
        gauges up ["dependency"]: "longshore_dependency_up", "Whether a dependency answered this process at the last look: 1 or 0.";
    }
}

impl Metrics {
    fn new() -> Self {
        let metrics = Self::declared();
        #[cfg(target_os = "linux")]
        declare::process(&metrics.registry);
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        metrics.make_all_series();
        metrics
    }

    /// Every series that can be is there before anything happened, so that rates are right from the first increase on and a
    /// dashboard of an idle process shows zeros.
    fn make_all_series(&self) {
        for trigger in TRIGGERS {
            self.imports_started.with_label_values(&[trigger.as_str()]);
            self.start_delay.with_label_values(&[trigger.as_str()]);
        }
        for state in ENDED {
            self.imports_ended.with_label_values(&[state.as_str()]);
            self.import_duration.with_label_values(&[state.as_str()]);
        }
        for reason in AttemptReason::ALL {
            self.import_restarts.with_label_values(&[reason.as_str()]);
        }
        for step in Step::ALL {
            self.step_duration.with_label_values(&[step.as_str()]);
        }
        for reason in RejectReason::ALL {
            self.rows_rejected.with_label_values(&[reason.as_str()]);
        }
        for outcome in JobOutcome::ALL {
            self.chunk_jobs.with_label_values(&[outcome.as_str()]);
            self.chunk_duration.with_label_values(&[outcome.as_str()]);
        }
        for dependency in Dependency::ALL {
            self.dependency_retries.with_label_values(&[dependency.as_str()]);
            for fault in DependencyFault::ALL {
                self.dependency_errors.with_label_values(&[dependency.as_str(), fault.as_str()]);
            }
        }
        for outcome in ["sent", "failed"] {
            self.otlp_exports.with_label_values(&[outcome]);
        }
    }

    /// The routes that this process serves, as pairs of method and template.
    pub fn http_routes(&self, routes: &[(&str, &str)]) {
        for (method, route) in routes {
            self.http_request_duration.with_label_values(&[method, route]);
            for status in STATUSES {
                self.http_requests.with_label_values(&[method, route, status]);
            }
        }
    }

    /// An import was asked for.
    pub fn import_created(&self) {
        self.imports_created.inc();
    }

    /// An import was started, `delay` after its object was there, where the storage said when that was.
    pub fn import_started(&self, trigger: Trigger, delay: Option<Duration>) {
        self.imports_started.with_label_values(&[trigger.as_str()]).inc();
        if let Some(delay) = delay {
            self.start_delay.with_label_values(&[trigger.as_str()]).observe(delay.as_secs_f64());
        }
    }

    /// An import ended in `state`, `after` its upload, where there was one.
    pub fn import_ended(&self, state: ImportState, after: Option<Duration>) {
        self.imports_ended.with_label_values(&[state.as_str()]).inc();
        if let Some(after) = after {
            self.import_duration.with_label_values(&[state.as_str()]).observe(after.as_secs_f64());
        }
    }

    /// An import begins a new attempt by itself.
    pub fn import_restarted(&self, reason: AttemptReason) {
        self.import_restarts.with_label_values(&[reason.as_str()]).inc();
    }

    /// This process became the owner of an import.
    pub fn import_claimed(&self) {
        self.import_claims.inc();
    }

    /// So many imports are owned now.
    pub fn set_imports_owned(&self, imports: usize) {
        self.imports_owned.set(imports as i64);
    }

    /// A step came to its end.
    pub fn step(&self, step: Step, took: Duration) {
        self.step_duration.with_label_values(&[step.as_str()]).observe(took.as_secs_f64());
    }

    /// A chunk is committed and marked done.
    pub fn chunk_committed(&self, tally: Tally) {
        self.chunks_committed.inc_by(tally.chunks);
        self.rows_read.inc_by(tally.rows);
        self.bytes_imported.inc_by(tally.bytes);
    }

    /// An import succeeded with so many rows.
    pub fn rows_published(&self, rows: u64) {
        self.rows_published.inc_by(rows);
    }

    /// Rows were rejected.
    pub fn rows_rejected(&self, reason: RejectReason, rows: u64) {
        self.rows_rejected.with_label_values(&[reason.as_str()]).inc_by(rows);
    }

    /// Bytes came from the object storage.
    pub fn bytes_fetched(&self, bytes: u64) {
        self.bytes_fetched.inc_by(bytes);
    }

    /// So many chunks can be worked on at once.
    pub fn set_chunk_workers(&self, workers: usize) {
        self.chunk_workers.set(workers as i64);
    }

    /// A worker is busy as long as what this returns lives.
    pub fn chunk_worker_busy(&self) -> InFlight {
        InFlight::of(&self.chunk_workers_busy)
    }

    /// A chunk job came to its outcome.
    pub fn chunk_job(&self, outcome: JobOutcome, took: Duration) {
        self.chunk_jobs.with_label_values(&[outcome.as_str()]).inc();
        self.chunk_duration.with_label_values(&[outcome.as_str()]).observe(took.as_secs_f64());
    }

    /// A claim ran out while its worker was at it.
    pub fn chunk_claim_lost(&self) {
        self.chunk_claim_losses.inc();
    }

    /// Chunk jobs are published again.
    pub fn chunk_jobs_republished(&self, jobs: usize) {
        self.chunk_jobs_republished.inc_by(jobs as u64);
    }

    /// The lease of an import ran out while this process was its owner.
    pub fn lease_lost(&self) {
        self.lease_losses.inc();
    }

    /// The fence refused a commit.
    pub fn fence_refused(&self) {
        self.fence_refusals.inc();
    }

    /// A call failed.
    pub fn dependency_error(&self, dependency: Dependency, fault: DependencyFault) {
        self.dependency_errors.with_label_values(&[dependency.as_str(), fault.as_str()]).inc();
    }

    /// A call is tried again.
    pub fn dependency_retry(&self, dependency: Dependency) {
        self.dependency_retries.with_label_values(&[dependency.as_str()]).inc();
    }

    /// A request is in flight as long as what this returns lives.
    pub fn http_request(&self) -> InFlight {
        InFlight::of(&self.http_in_flight)
    }

    /// A request ended: with that status, or without an answer.
    pub fn http_answered(&self, method: &str, route: &str, status: Option<u16>, took: Duration) {
        let class = match status {
            Some(status) if status < 300 => "2xx",
            Some(300..400) => "3xx",
            Some(400..500) => "4xx",
            Some(_) => "5xx",
            None => "aborted",
        };
        self.http_requests.with_label_values(&[method, route, class]).inc();
        self.http_request_duration.with_label_values(&[method, route]).observe(took.as_secs_f64());
    }

    /// A batch of spans was sent, or could not be.
    pub fn otlp_export(&self, sent: bool) {
        self.otlp_exports.with_label_values(&[if sent { "sent" } else { "failed" }]).inc();
    }
}

/// Something that goes on, counted by a gauge for as long as this lives.
pub struct InFlight(IntGauge);

impl InFlight {
    fn of(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Runs a step to its end and tells how long it took, well or badly; a step that is dropped tells nothing. With an exporter
/// it is a span, too.
pub async fn timed<T>(step: Step, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let result = work.instrument(step_span(step)).await;
    metrics().step(step, begun.elapsed());
    result
}

/// The span of a step, below the current one.
pub fn step_span(step: Step) -> tracing::Span {
    tracing::debug_span!("step", otel.name = step.as_str(), step = step.as_str())
}

impl Default for Sampled {
    fn default() -> Self {
        Self::declared()
    }
}

impl Sampled {
    /// Whether a dependency answers.
    pub fn up(&self, dependency: Dependency, up: bool) {
        self.up.with_label_values(&[dependency.as_str()]).set(up.into());
    }

    /// Imports by state, each with the age of the oldest. A state that is not told of has none.
    pub fn imports(&self, found: impl Iterator<Item = (ImportState, u64, Duration)>) {
        for state in LIVING {
            self.imports.with_label_values(&[state.as_str()]);
            self.oldest.with_label_values(&[state.as_str()]);
        }
        for (state, imports, oldest) in found {
            self.imports.with_label_values(&[state.as_str()]).set(imports as i64);
            self.oldest.with_label_values(&[state.as_str()]).set(oldest.as_secs() as i64);
        }
    }

    /// What is left to do.
    pub fn backlog(&self, chunks: u64, bytes: u64) {
        self.chunks.with_label_values::<&str>(&[]).set(chunks as i64);
        self.bytes.with_label_values::<&str>(&[]).set(bytes as i64);
    }

    /// Messages of a queue.
    pub fn messages(&self, queue: QueueName, state: MessageState, messages: u64) {
        self.messages.with_label_values(&[queue.as_str(), state.as_str()]).set(messages as i64);
    }
}

/// All of it as Prometheus' text, [`CONTENT_TYPE`].
#[must_use]
pub fn render(sampled: &Sampled) -> String {
    let mut families: Vec<MetricFamily> = metrics().registry.gather();
    families.extend(sampled.registry.gather());
    let mut text = String::new();
    if let Err(error) = TextEncoder::new().encode_utf8(&families, &mut text) {
        tracing::error!(%error, "the metrics were not written to their end");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_before_anything_happened() {
        let text = render(&Sampled::default());
        for series in [
            "longshore_imports_created_total 0",
            "longshore_imports_started_total{trigger=\"sweep\"} 0",
            "longshore_rows_rejected_total{reason=\"malformed_quotes\"} 0",
            "longshore_dependency_errors_total{dependency=\"bus\",fault=\"unavailable\"} 0",
            "longshore_step_duration_seconds_count{step=\"scan\"} 0",
        ] {
            assert!(text.lines().any(|line| line == series), "{series} is not in\n{text}");
        }
        assert!(text.contains("longshore_build_info{version="));
        assert!(text.contains("\nprocess_start_time_seconds "));
    }

    #[test]
    fn what_was_not_looked_up_is_absent() {
        let sampled = Sampled::default();
        sampled.up(Dependency::Database, false);
        let text = render(&sampled);
        assert!(text.contains("longshore_dependency_up{dependency=\"database\"} 0"));
        assert!(!text.contains("longshore_imports{") && !text.contains("longshore_backlog_chunks "), "{text}");
        sampled.imports([(ImportState::Queued, 3, Duration::from_secs(90))].into_iter());
        let text = render(&sampled);
        assert!(text.contains("longshore_imports{state=\"queued\"} 3"));
        assert!(text.contains("longshore_imports{state=\"publishing\"} 0"));
        assert!(text.contains("longshore_imports_oldest_seconds{state=\"queued\"} 90"));
    }

    #[test]
    fn the_states_are_all_of_the_domains() {
        let known = LIVING.iter().chain(&ENDED).collect::<Vec<_>>();
        assert_eq!(known.len(), ImportState::ALL.len());
        assert!(ImportState::ALL.iter().all(|state| known.contains(&state)));
        assert!(LIVING.iter().all(|state| !state.is_done()) && ENDED.iter().all(|state| state.is_done()));
    }
}
