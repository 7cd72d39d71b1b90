//! From the table of metrics to registered ones. Names and labels are constants: a bad one is found by the first test that
//! asks for a metric.

use prometheus::core::Collector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, Result,
};

/// A line of the table.
pub(crate) struct Declared<'a> {
    pub name: &'a str,
    pub help: &'a str,
    pub labels: &'a [&'a str],
    pub bounds: &'a [f64],
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, metric: Result<C>) -> C {
    let metric = metric.expect("a metric with a good name");
    registry.register(Box::new(metric.clone())).expect("a metric is registered once");
    metric
}

pub(crate) fn counter(registry: &Registry, metric: &Declared<'_>) -> IntCounter {
    registered(registry, IntCounter::new(metric.name, metric.help))
}

pub(crate) fn counters(registry: &Registry, metric: &Declared<'_>) -> IntCounterVec {
    registered(registry, IntCounterVec::new(Opts::new(metric.name, metric.help), metric.labels))
}

pub(crate) fn gauge(registry: &Registry, metric: &Declared<'_>) -> IntGauge {
    registered(registry, IntGauge::new(metric.name, metric.help))
}

pub(crate) fn gauges(registry: &Registry, metric: &Declared<'_>) -> IntGaugeVec {
    registered(registry, IntGaugeVec::new(Opts::new(metric.name, metric.help), metric.labels))
}

pub(crate) fn histograms(registry: &Registry, metric: &Declared<'_>) -> HistogramVec {
    let opts = HistogramOpts::new(metric.name, metric.help).buckets(metric.bounds.to_vec());
    registered(registry, HistogramVec::new(opts, metric.labels))
}

/// Processor, memory, files, threads and start of this process.
#[cfg(target_os = "linux")]
pub(crate) fn process(registry: &Registry) {
    let process = prometheus::process_collector::ProcessCollector::for_self();
    registry.register(Box::new(process)).expect("a metric is registered once");
}
