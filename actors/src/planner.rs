//! Planning: from an object and a destination to a [`LoadPlan`]. Called by the import's owner; writes nothing.

use std::collections::BTreeMap;

use bytes::Bytes;

use longshore_domain::{
    ByteRange, ColumnType, Compression, Encoding, EncodingErrors, GivenFormat, LoadPlan, Notation, Problem,
    ProblemKind, Target,
};
use longshore_parse::{
    FormatError, FormatErrorKind, Head, Transcoder, detect, detect_compression, infer_from_middle, map_columns,
    read_head,
};
use longshore_storage::database::ImportRecord;
use longshore_storage::destination::DestinationError;
use longshore_storage::objects::text::{Decoding, TextReader};
use longshore_telemetry::metrics;

use crate::chunk::object_problem;
use crate::off_thread::off_thread;
use crate::patience::{Gave, Patience, patiently};
use crate::services::Services;

/// This much of the object is looked at, in bytes.
const SAMPLE: u64 = 1024 * 1024;

/// So many samples from all over a larger one, too, of this size each in bytes.
const SAMPLES: u64 = 8;
const SAMPLE_FURTHER: u64 = 128 * 1024;

/// Chunks of a file are at least this large, in bytes, where the size is ours to choose.
const SMALLEST_CHUNK: u64 = 1024 * 1024;
/// And at most this large: memory is bounded by chunk size times workers.
pub const LARGEST_CHUNK: u64 = 8 * 1024 * 1024;
/// A small file is cut into about this many chunks, so that several workers share it.
const CHUNKS_OF_A_SMALL_FILE: u64 = 8;

/// The size of chunks for a file of that size, in bytes.
pub fn chunk_size(given: Option<u64>, file: u64) -> u64 {
    given.unwrap_or_else(|| (file / CHUNKS_OF_A_SMALL_FILE).clamp(SMALLEST_CHUNK, LARGEST_CHUNK)).max(1)
}

/// Looks at the object, the destination and the columns; the plan, and the object's first bytes.
///
/// # Errors
/// [`Gave::Up`] with the problem that fails the import.
pub async fn plan(
    services: &Services,
    record: &ImportRecord,
    patience: &Patience,
) -> Result<(LoadPlan, Bytes), Gave<Problem>> {
    let (key, etag, size) = source(record)?;
    let head = patiently(patience, "look at the object", || services.objects.head(key)).await;
    let head = head.map_err(|gave| problem(gave, |error| object_problem(&error)))?;
    if head.is_none_or(|head| head.etag != etag || head.size != size) {
        let detail =
            format!("the object at {key} is not the one that started this import; upload it again as a new import");
        return Err(Gave::Up(Problem::new(ProblemKind::ObjectChanged, detail)));
    }
    // Some S3 servers keep what had arrived when a client went away.
    if let Some(declared) = record.request.file.size.filter(|declared| *declared != size) {
        let detail = format!(
            "the object at {key} has {size} bytes, {declared} were declared: its upload broke off; upload the file again \
             as a new import"
        );
        return Err(Gave::Up(Problem::new(ProblemKind::IncompleteUpload, detail)));
    }
    if size == 0 {
        let detail = format!("the object at {key} holds no byte");
        return Err(Gave::Up(Problem::new(ProblemKind::EmptyFile, detail)));
    }
    let range = ByteRange::new(0, size.min(SAMPLE));
    let sample = patiently(patience, "read the sample", || services.objects.get_range(key, range, etag)).await;
    let sample = sample.map_err(|gave| problem(gave, |error| object_problem(&error)))?;
    metrics().bytes_fetched(sample.len() as u64);

    let request = &record.request;
    let mut head = look(sample.clone(), size <= SAMPLE, &request.format).await?;

    let table = &request.destination.table;
    let existing = patiently(patience, "describe the destination", || services.destination.describe(table)).await;
    let existing = existing.map_err(|gave| problem(gave, destination_problem))?;
    if existing.is_none() && request.columns.is_none() && !head.format.is_decoded() && size > SAMPLE {
        head = look_further(services, record, head, patience).await?;
    }
    let mapped = map_columns(&head, request.columns.as_deref(), existing.as_ref())
        .map_err(|error| Gave::Up(format_problem(&error)))?;

    let target = if existing.is_some() { Target::ExistingTable } else { Target::NewTable };
    let mut plan = mapped.into_plan(head, table.clone(), target);
    apply_wider_types(&mut plan, &record.widened);
    Ok((plan, sample))
}

/// Joins the types of samples from all over the file: what the first bytes do not show costs a whole attempt later.
async fn look_further(
    services: &Services,
    record: &ImportRecord,
    mut head: Head,
    patience: &Patience,
) -> Result<Head, Gave<Problem>> {
    let (key, etag, size) = source(record)?;
    let samples = (1..=SAMPLES).map(async |place| {
        let end = size - (size - SAMPLE) / SAMPLES * (SAMPLES - place);
        let range = ByteRange::new(end - SAMPLE_FURTHER, end);
        patiently(patience, "read a sample", || services.objects.get_range(key, range, etag)).await
    });
    let samples = futures::future::try_join_all(samples).await;
    let samples = samples.map_err(|gave| problem(gave, |error| object_problem(&error)))?;
    metrics().bytes_fetched(SAMPLES * SAMPLE_FURTHER);
    read_off_thread(move || {
        for sample in &samples {
            infer_from_middle(&mut head, sample).map_err(|error| format_problem(&error))?;
        }
        Ok(head)
    })
    .await
}

/// Reads bytes on a thread of its own.
async fn read_off_thread<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Gave<Problem>> {
    let failed = |error| Problem::new(ProblemKind::Internal, format!("reading the head failed: {error}"));
    off_thread(read).await.map_err(failed).flatten().map_err(Gave::Up)
}

/// What the file is, from its first bytes; `whole`: they are all of it.
async fn look(sample: Bytes, whole: bool, given: &GivenFormat) -> Result<Head, Gave<Problem>> {
    let unsupported = |error: FormatError| Problem::new(ProblemKind::UnsupportedFormat, error.to_string());
    let compression = detect_compression(&sample, given).map_err(|error| Gave::Up(unsupported(error)))?;
    let (unpacked, whole) = match compression {
        Compression::None => (Vec::from(sample), whole),
        _ => unpack(sample, whole, compression).await?,
    };
    let given = given.clone();
    read_off_thread(move || {
        let detected = detect(&unpacked, whole, compression, &given).map_err(unsupported)?;
        let text = match detected.encoding {
            Encoding::Utf8 => unpacked,
            encoding => {
                let mut text = Vec::new();
                Transcoder::new(encoding, given.encoding_errors).feed(&unpacked, whole, &mut text);
                text
            }
        };
        read_head(&text, whole, &given, &detected).map_err(|error| format_problem(&error))
    })
    .await
}

/// The first bytes of what a sample holds, and whether they are all of it.
async fn unpack(sample: Bytes, whole: bool, compression: Compression) -> Result<(Vec<u8>, bool), Gave<Problem>> {
    let decoding = Decoding { compression, encoding: Encoding::Utf8, errors: EncodingErrors::Reject };
    let mut reader = TextReader::new(futures::stream::iter([Ok(sample)]), decoding);
    let mut text = Vec::new();
    while (text.len() as u64) < SAMPLE {
        match reader.next(&mut text).await {
            Ok(true) => {}
            Ok(false) => return Ok((text, whole)),
            // The sample ends in the middle of the stream, as it has to.
            Err(_) if !whole && !text.is_empty() => break,
            Err(error) => {
                return Err(Gave::Up(Problem::new(ProblemKind::UnsupportedFormat, error.to_string())));
            }
        }
    }
    Ok((text, false))
}

/// Columns that an earlier attempt found too narrow take the type that it found.
fn apply_wider_types(plan: &mut LoadPlan, widened: &BTreeMap<String, ColumnType>) {
    for field in plan.fields.iter_mut().filter(|field| field.inferred) {
        let Some(kind) = widened.get(&field.name) else { continue };
        let wider = longshore_parse::join_types(&field.kind, kind);
        if wider == field.kind {
            continue;
        }
        // A format that was recognised was that of the narrower type.
        field.kind = wider;
        field.notation = Notation::default();
        for column in plan.columns.iter_mut().filter(|column| column.name == field.name) {
            column.kind = field.kind.clone();
            column.format = None;
        }
    }
}

/// The object that started the import.
pub(crate) fn source(record: &ImportRecord) -> Result<(&str, &str, u64), Gave<Problem>> {
    match (&record.etag, record.size) {
        (Some(etag), Some(size)) => Ok((&record.object_key, etag, size)),
        _ => Err(Gave::Up(Problem::new(ProblemKind::Internal, "the import was started without an object"))),
    }
}

fn format_problem(error: &FormatError) -> Problem {
    let kind = match error.kind {
        FormatErrorKind::Unsupported => ProblemKind::UnsupportedFormat,
        FormatErrorKind::Empty => ProblemKind::EmptyFile,
        FormatErrorKind::Mismatch => ProblemKind::ColumnsMismatch,
    };
    Problem::new(kind, error.to_string())
}

/// The problem of a destination that cannot take the import.
pub(crate) fn destination_problem(error: DestinationError) -> Problem {
    match error {
        DestinationError::Refused(problem) => problem,
        error @ DestinationError::Unavailable { .. } => {
            let detail = format!("{error}; retry the import once it answers");
            Problem::new(ProblemKind::Unavailable, detail)
        }
        other => Problem::new(ProblemKind::DestinationMismatch, other.to_string()),
    }
}

/// Turns the error of a dependency into the problem that the client sees.
pub(crate) fn problem<E>(gave: Gave<E>, to_problem: impl FnOnce(E) -> Problem) -> Gave<Problem> {
    match gave {
        Gave::Stopped => Gave::Stopped,
        Gave::Up(error) => Gave::Up(to_problem(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_suit_the_file_unless_told() {
        assert_eq!(chunk_size(None, 100), SMALLEST_CHUNK);
        assert_eq!(chunk_size(None, 40 * SMALLEST_CHUNK), 5 * SMALLEST_CHUNK);
        assert_eq!(chunk_size(None, 1 << 40), LARGEST_CHUNK);
        assert_eq!(chunk_size(Some(1), 1 << 40), 1);
    }
}
