//! One import, one trace: its id, a UUIDv7, is 128 bits, and so is a trace id. Whoever knows the import knows its trace, so
//! nothing has to be carried in messages, and a log's `import_id` without its hyphens finds the trace.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use longshore_domain::ImportId;

/// Puts a span that was just made, and not entered yet, into the import's trace. Without an exporter it does nothing.
///
/// Its parent is a span that nobody exports: all that the processes do for an import are siblings under it.
pub fn join(span: &Span, import: ImportId) {
    let context = Context::new().with_remote_span_context(context_of(import));
    // The layer is not there, or its filter passed this span over: then there is no trace to join.
    let _ = span.set_parent(context);
}

/// The trace is the id; the parent its last 64 bits, which are never zero: they begin with the UUID's variant.
fn context_of(import: ImportId) -> SpanContext {
    let id = import.0.as_u128();
    let (trace, parent) = (TraceId::from(id), SpanId::from(id as u64));
    SpanContext::new(trace, parent, TraceFlags::SAMPLED, true, TraceState::NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_of_an_import_is_its_id() {
        let id: ImportId = "01980000-0000-7000-8000-00000000002a".parse().unwrap();
        let context = context_of(id);
        assert!(context.is_valid() && context.is_sampled() && context.is_remote());
        assert_eq!(context.trace_id().to_string(), "0198000000007000800000000000002a");
        assert_eq!(context.span_id().to_string(), "800000000000002a");
    }
}
