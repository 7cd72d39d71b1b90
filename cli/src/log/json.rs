//! Logs for machines: one JSON object a line.
//!
//! ```json
//! {"timestamp":"2026-11-24T09:30:00.123456Z","level":"INFO","target":"longshore_actors::owner","message":"import changed",
//!  "import_id":"0198…","span":"import","fields":{"epoch":1,"from":"queued","to":"planning"}}
//! ```
//!
//! `import_id` and `chunk` stand at the top wherever they are known, from the event or from the spans around it; everything
//! else of both is in `fields`. `span` is the innermost span's name.

use std::fmt::{Debug, Write as _};
use std::io::Write as _;

use chrono::{SecondsFormat, Utc};
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// The layer that writes.
pub struct JsonLog<W> {
    writer: W,
}

impl<W> JsonLog<W> {
    /// Writes there, a line at once.
    pub fn new(writer: W) -> Self {
        Self { writer }
    }
}

/// A span's fields, kept with the span.
struct Kept(Map<String, Value>);

impl<S, W> Layer<S> for JsonLog<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Kept(fields.0));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let Some(Kept(kept)) = span.extensions_mut().get_mut() {
            kept.extend(fields.0);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        let mut name = None;
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            name = Some(span.name());
            if let Some(Kept(kept)) = span.extensions().get() {
                fields.0.extend(kept.clone());
            }
        }
        event.record(&mut fields);
        let metadata = event.metadata();
        let line = Line {
            timestamp: Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true),
            level: metadata.level().as_str(),
            target: metadata.target(),
            message: fields.0.remove("message"),
            import_id: fields.0.remove("import_id"),
            chunk: fields.0.remove("chunk"),
            span: name,
            fields: fields.0,
        };
        // A line of texts and numbers always serialises; a log that cannot be written has nowhere to be reported to.
        if let Ok(mut line) = serde_json::to_vec(&line) {
            line.push(b'\n');
            let _ = self.writer.make_writer_for(metadata).write_all(&line);
        }
    }
}

/// A line, in the order in which people like to read it.
#[derive(Serialize)]
struct Line<'a> {
    timestamp: String,
    level: &'static str,
    target: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    import_id: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span: Option<&'static str>,
    fields: Map<String, Value>,
}

/// Fields as JSON.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // A text takes whatever is written to it.
        let _ = write!(text, "{value:?}");
        self.0.insert(field.name().to_owned(), text.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use serde_json::json;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(work: impl FnOnce()) -> Vec<Value> {
        let memory = Memory::default();
        let writer = memory.clone();
        let subscriber = tracing_subscriber::registry().with(JsonLog::new(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, work);
        let text = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_carries_what_is_known_of_import_and_chunk() {
        let lines = logged(|| {
            let import = tracing::info_span!("import", import_id = %"0198", epoch = 3);
            let _in_import = import.enter();
            tracing::info!(rows = 7_u64, error = "two\nlines \"quoted\"", "first");
            let chunk = tracing::info_span!("chunk", chunk = 5_u32, late = tracing::field::Empty);
            chunk.record("late", true);
            let _in_chunk = chunk.enter();
            tracing::warn!("second");
        });
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["message"], &lines[0]["level"]), (&json!("first"), &json!("INFO")));
        assert_eq!((&lines[0]["import_id"], &lines[0]["span"]), (&json!("0198"), &json!("import")));
        assert_eq!(lines[0]["fields"], json!({"epoch": 3, "error": "two\nlines \"quoted\"", "rows": 7}));
        assert!(lines[0].get("chunk").is_none());
        assert_eq!((&lines[1]["import_id"], &lines[1]["chunk"]), (&json!("0198"), &json!(5)));
        assert_eq!(lines[1]["fields"], json!({"epoch": 3, "late": true}));
        assert!(lines[1]["timestamp"].as_str().unwrap().parse::<chrono::DateTime<Utc>>().is_ok());
    }

    #[test]
    fn an_event_outside_of_spans_says_of_which_import_it_is() {
        let lines = logged(|| tracing::info!(import_id = %"0199", "import created"));
        assert_eq!((&lines[0]["import_id"], lines[0].get("span")), (&json!("0199"), None));
        assert_eq!(lines[0]["fields"], json!({}));
    }
}
