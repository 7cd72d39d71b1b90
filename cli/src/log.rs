//! Logs and traces: what `LONGSHORE_LOG`, `LONGSHORE_LOG_FORMAT` and `LONGSHORE_OTLP_ENDPOINT` ask for. Started once, by
//! `main`, before anything else; finished by it at the end.

mod json;
mod otlp;

use std::io::{IsTerminal as _, stderr};

use anyhow::{Context as _, Result};
use tokio::runtime::Handle;
use tracing::Subscriber;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt as _};

use crate::Command;
use crate::settings::{LogFormat, Settings};
use json::JsonLog;
use otlp::Exporter;

/// What a lasting role logs: ractor and the drivers speak up only when something is wrong.
const LASTING: &str = "info,ractor=warn,async_nats=warn,sqlx=warn,s3s=off";
/// What a command logs that people look at.
const PASSING: &str = "warn,s3s=off";
/// What `longshore doctor` logs: it says itself what is wrong.
const DOCTOR: &str = "error,async_nats=off,s3s=off";

/// Logs and traces that were started.
pub struct Log {
    exporter: Option<Exporter>,
}

impl Log {
    /// Starts what the settings ask for. The command's role names the process in traces; one that passes has none.
    ///
    /// # Errors
    /// Says which setting is bad. An endpoint that is away is none: spans are dropped until it is there.
    pub fn start(settings: &Settings, command: &Command, runtime: &Handle) -> Result<Self> {
        let role = command.role();
        let filter = match &settings.log {
            Some(filter) => {
                EnvFilter::try_new(filter).context("the setting LONGSHORE_LOG must be a tracing filter such as info")?
            }
            None => EnvFilter::new(match command {
                Command::Doctor { .. } => DOCTOR,
                _ if role.is_some() => LASTING,
                _ => PASSING,
            }),
        };
        let exporter = match &settings.otlp_endpoint {
            Some(endpoint) => Some(Exporter::start(endpoint, role.unwrap_or("import"), runtime)?),
            None => None,
        };
        let traces = exporter.as_ref().map(Exporter::layer);
        tracing_subscriber::registry().with(traces).with(written(settings.log_format).with_filter(filter)).init();
        Ok(Self { exporter })
    }

    /// Sends the last spans, for a bounded time. Not to be called from inside the runtime.
    pub fn finish(self) {
        if let Some(exporter) = self.exporter {
            exporter.finish();
        }
    }
}

/// Lines on stderr.
fn written<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    match format {
        LogFormat::Json => Box::new(JsonLog::new(stderr)),
        LogFormat::Text => {
            // Where stderr is gone there is nobody to be told of it.
            let layer = tracing_subscriber::fmt::layer().log_internal_errors(false);
            Box::new(layer.with_ansi(stderr().is_terminal()).with_writer(stderr))
        }
    }
}
