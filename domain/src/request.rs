//! A create request, read strictly: unknown keys and values that the contract does not list are errors with a JSON pointer,
//! never ignored.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::column::{Column, ColumnSource, ColumnType};
use crate::format::{Compression, Encoding, EncodingErrors, GivenFormat, LineEnd, Ragged};
use crate::notation::Notation;
use crate::pattern::TimePattern;
use crate::problem::{FieldError, Problem, ProblemKind};
use crate::table::{MAX_IDENTIFIER, TableName};

/// How long an upload URL is valid when the request says nothing, in seconds.
pub const DEFAULT_EXPIRES_IN: u32 = 900;
/// The longest validity that SigV4 allows, in seconds: 7 days.
pub const MAX_EXPIRES_IN: u32 = 7 * 24 * 3600;
/// PostgreSQL takes 1,600 columns in a table; the limit here is the reader's.
pub const MAX_COLUMNS: usize = 4096;

/// How rows meet the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// They are added to what is there.
    #[default]
    Append,
}

/// Where rows go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Destination {
    /// The table; it may be qualified: `schema.table`.
    #[schema(value_type = String, min_length = 1, max_length = 260, example = "trips")]
    pub table: TableName,
    /// How rows meet it.
    #[schema(required = false)]
    pub mode: Mode,
}

/// The file that will be uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileInfo {
    /// The client's name for it; the key holds a safe form of it.
    #[schema(required = false, min_length = 1, max_length = 1024, example = "trips.csv")]
    pub name: String,
    /// The content type that the URL is signed for.
    #[schema(required = false, max_length = 255, example = "text/csv")]
    pub content_type: String,
    /// Its size in bytes, where the client declared it.
    #[schema(minimum = 0)]
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub size: Option<u64>,
}

impl Default for FileInfo {
    fn default() -> Self {
        Self { name: "data.csv".into(), content_type: "text/csv".into(), size: None }
    }
}

/// What becomes of bad rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OnError {
    /// How many rows may be rejected before the import fails; `null`: no limit.
    #[schema(required = false)]
    pub max_rejects: Option<u64>,
}

impl Default for OnError {
    fn default() -> Self {
        Self { max_rejects: Some(0) }
    }
}

impl OnError {
    /// Whether that many rejects fail the import.
    #[must_use]
    pub fn is_exceeded(&self, rejected: u64) -> bool {
        self.max_rejects.is_some_and(|limit| rejected > limit)
    }

    /// Why an import fails that has so many rejects.
    #[must_use]
    pub fn too_many(&self, rejected: u64) -> Problem {
        let limit = self.max_rejects.unwrap_or_default();
        let detail = format!(
            "{rejected} rows were rejected so far and max_rejects is {limit}; see the rejects, mend the file or allow more"
        );
        Problem::new(ProblemKind::TooManyRejects, detail)
    }
}

/// How the file will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UploadWish {
    /// Validity of the URL in seconds.
    #[schema(required = false, minimum = 1, maximum = 604800)]
    pub expires_in: u32,
}

impl Default for UploadWish {
    fn default() -> Self {
        Self { expires_in: DEFAULT_EXPIRES_IN }
    }
}

/// `POST /v1/imports`, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateRequest {
    /// Where rows go.
    pub destination: Destination,
    /// The file.
    #[schema(required = false)]
    pub file: FileInfo,
    /// What was said of its format.
    #[schema(required = false)]
    pub format: GivenFormat,
    /// The schema, where it was given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(min_items = 1, max_items = 4096)]
    pub columns: Option<Vec<Column>>,
    /// What becomes of bad rows.
    #[schema(required = false)]
    pub on_error: OnError,
    /// How the file comes.
    #[schema(required = false)]
    pub upload: UploadWish,
}

impl CreateRequest {
    /// Reads a JSON body.
    ///
    /// # Errors
    /// A `bad-request` problem that lists every fault with its pointer.
    pub fn from_json(body: &[u8]) -> Result<Self, Problem> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| Problem::new(ProblemKind::BadRequest, format!("the body is not JSON: {error}")))?;
        Self::from_value(&value)
    }

    /// Reads a JSON value.
    ///
    /// # Errors
    /// As [`Self::from_json`].
    pub fn from_value(value: &Value) -> Result<Self, Problem> {
        let mut faults = Faults::default();
        let request = read_request(value, &mut faults);
        match request {
            Some(request) if faults.0.is_empty() => Ok(request),
            _ => {
                let detail = match faults.0.as_slice() {
                    [one] => {
                        format!("{}: {}", if one.pointer.is_empty() { "the body" } else { &one.pointer }, one.detail)
                    }
                    many if many.len() == FAULTS_TOLD => format!("{FAULTS_TOLD} faults or more; see errors"),
                    many => format!("{} faults; see errors", many.len()),
                };
                Err(Problem { errors: faults.0, ..Problem::new(ProblemKind::BadRequest, detail) })
            }
        }
    }
}

/// How many ways of writing null there may be, and how long one is.
const MOST_NULL_VALUES: usize = 100;
const LONGEST_NULL_VALUE: usize = 1024;

/// Of more faults in a request than this, nobody is told.
const FAULTS_TOLD: usize = 100;

/// The faults found so far.
#[derive(Default)]
struct Faults(Vec<FieldError>);

impl Faults {
    fn add(&mut self, pointer: &str, detail: impl Into<String>) {
        if self.0.len() < FAULTS_TOLD {
            self.0.push(FieldError { pointer: pointer.to_owned(), detail: detail.into() });
        }
    }
}

/// An object whose keys are taken one by one; what is left over is unknown.
struct Keys<'a> {
    pointer: String,
    map: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> Keys<'a> {
    fn open(value: &'a Value, pointer: &str, faults: &mut Faults) -> Option<Self> {
        match value {
            Value::Object(map) => Some(Self { pointer: pointer.to_owned(), map, known: Vec::new() }),
            _ => {
                faults.add(pointer, "must be an object");
                None
            }
        }
    }

    fn at(&self, key: &str) -> String {
        format!("{}/{}", self.pointer, key.replace('~', "~0").replace('/', "~1"))
    }

    fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.map.get(key)
    }

    /// Reads an optional key with `read`, which says what the value must be where it is not.
    fn read<T>(
        &mut self,
        key: &'static str,
        faults: &mut Faults,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.take(key)?;
        match read(value) {
            Ok(value) => Some(value),
            Err(detail) => {
                faults.add(&self.at(key), detail);
                None
            }
        }
    }

    fn close(self, faults: &mut Faults) {
        for key in self.map.keys().filter(|key| !self.known.contains(&key.as_str())) {
            faults.add(&self.at(key), format!("unknown key; known here: {}", self.known.join(", ")));
        }
    }
}

fn read_request(value: &Value, faults: &mut Faults) -> Option<CreateRequest> {
    let mut keys = Keys::open(value, "", faults)?;
    let destination = match keys.take("destination") {
        Some(value) => read_destination(value, faults),
        None => {
            faults.add("/destination", "is required: {\"table\": \"…\"}");
            None
        }
    };
    let file = keys.take("file").and_then(|value| read_file(value, faults)).unwrap_or_default();
    let format = keys.take("format").and_then(|value| read_format(value, faults)).unwrap_or_default();
    let columns = keys.take("columns").and_then(|value| read_columns(value, faults));
    let on_error = keys.take("on_error").and_then(|value| read_on_error(value, faults)).unwrap_or_default();
    let upload = keys.take("upload").and_then(|value| read_upload(value, faults)).unwrap_or_default();
    keys.close(faults);
    Some(CreateRequest { destination: destination?, file, format, columns, on_error, upload })
}

fn text(value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| "must be a string".to_owned())
}

/// Reads a word of a fixed list with serde, so that the list stands in one place.
fn word<T: serde::de::DeserializeOwned>(value: &Value, list: &str) -> Result<T, String> {
    T::deserialize(value).map_err(|_| format!("must be {list}"))
}

fn read_destination(value: &Value, faults: &mut Faults) -> Option<Destination> {
    let mut keys = Keys::open(value, "/destination", faults)?;
    if !keys.map.contains_key("table") {
        faults.add("/destination/table", "is required");
    }
    let table =
        keys.read("table", faults, |value| text(value)?.parse::<TableName>().map_err(|error| error.to_string()));
    let mode = keys.read("mode", faults, |value| word(value, "\"append\"")).unwrap_or_default();
    keys.close(faults);
    Some(Destination { table: table?, mode })
}

fn read_file(value: &Value, faults: &mut Faults) -> Option<FileInfo> {
    let mut keys = Keys::open(value, "/file", faults)?;
    let default = FileInfo::default();
    let name = keys.read("name", faults, |value| {
        let name = text(value)?;
        let fits = !name.is_empty() && name.len() <= 1024 && !name.chars().any(char::is_control);
        fits.then_some(name).ok_or_else(|| "must hold 1 to 1024 bytes and no control character".to_owned())
    });
    let content_type = keys.read("content_type", faults, |value| {
        let kind = text(value)?;
        is_media_type(&kind).then_some(kind).ok_or_else(|| "must be a media type such as text/csv".to_owned())
    });
    let size = keys.read("size", faults, |value| match value.as_u64() {
        _ if value.is_null() => Ok(None),
        None => Err("must be a whole number of bytes".to_owned()),
        // Sizes are kept in 64 signed bits; what the storage takes in one PUT is checked where the storage is known.
        Some(size) if size > i64::MAX as u64 => Err("is more than any storage takes".to_owned()),
        Some(size) => Ok(Some(size)),
    });
    keys.close(faults);
    Some(FileInfo {
        name: name.unwrap_or(default.name),
        content_type: content_type.unwrap_or(default.content_type),
        size: size.flatten(),
    })
}

/// `type/subtype` with optional parameters (RFC 9110, section 8.3.1), in visible ASCII that can be signed as it stands.
fn is_media_type(text: &str) -> bool {
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    let visible = text.len() <= 255 && text.bytes().all(|b| (0x20..0x7f).contains(&b)) && text.trim() == text;
    let essence = text.split(';').next().unwrap_or_default().trim_end();
    visible && essence.split_once('/').is_some_and(|(kind, subtype)| token(kind) && token(subtype))
}

fn read_format(value: &Value, faults: &mut Faults) -> Option<GivenFormat> {
    let mut keys = Keys::open(value, "/format", faults)?;
    let mut given = GivenFormat::default();
    keys.read("type", faults, |value| (value == "csv").then_some(()).ok_or_else(|| "must be \"csv\"".to_owned()));
    given.delimiter = keys.read("delimiter", faults, read_delimiter);
    given.quote = keys.read("quote", faults, one_byte);
    given.escape = keys.read("escape", faults, one_byte);
    given.line_end =
        keys.read("line_end", faults, |value| word::<LineEnd>(value, "one of \"\\n\", \"\\r\\n\", \"\\r\""));
    given.header_rows = keys.read("header_rows", faults, |value| small_number(value, 100));
    given.skip_rows = keys.read("skip_rows", faults, |value| small_number(value, 1_000_000));
    given.comment = keys
        .read("comment", faults, |value| if value.is_null() { Ok(None) } else { read_comment(value).map(Some) })
        .flatten();
    given.ragged = keys.read("ragged", faults, |v| word::<Ragged>(v, "\"reject\" or \"pad\"")).unwrap_or_default();
    given.encoding = keys.read("encoding", faults, |value| {
        word::<Encoding>(value, "one of utf-8, utf-16le, utf-16be, windows-1252, iso-8859-1")
    });
    given.encoding_errors = keys
        .read("encoding_errors", faults, |value| word::<EncodingErrors>(value, "\"reject\" or \"replace\""))
        .unwrap_or_default();
    given.null_values = keys.read("null_values", faults, |value| {
        let list = value.as_array().ok_or("must be a list of strings")?;
        let values = list.iter().map(text).collect::<Result<Vec<_>, _>>().map_err(|_| "must be a list of strings")?;
        // Each cell is compared with each of them.
        if values.len() > MOST_NULL_VALUES || values.iter().any(|value| value.len() > LONGEST_NULL_VALUE) {
            return Err(format!("must be {MOST_NULL_VALUES} strings of {LONGEST_NULL_VALUE} bytes at most"));
        }
        Ok(values)
    });
    given.compression = keys
        .read("compression", faults, |value| word::<Compression>(value, "one of auto, none, gzip, zstd, bzip2, xz"))
        .unwrap_or_default();
    check_dialect(&given, faults);
    keys.close(faults);
    Some(given)
}

fn read_delimiter(value: &Value) -> Result<String, String> {
    let delimiter = text(value)?;
    if !(1..=4).contains(&delimiter.len()) {
        return Err("must be one to four bytes".to_owned());
    }
    if delimiter.bytes().any(|b| matches!(b, b'\n' | b'\r' | 0)) {
        return Err("must not hold a line end or NUL".to_owned());
    }
    Ok(delimiter)
}

fn one_byte(value: &Value) -> Result<String, String> {
    let byte = text(value)?;
    match byte.as_bytes() {
        [b] if *b != b'\n' && *b != b'\r' && *b != 0 && b.is_ascii() => Ok(byte),
        _ => Err("must be one ASCII character other than a line end".to_owned()),
    }
}

fn read_comment(value: &Value) -> Result<String, String> {
    let comment = text(value)?;
    let fits = (1..=16).contains(&comment.len()) && !comment.contains(['\n', '\r', '\0']);
    fits.then_some(comment).ok_or_else(|| "must be null or 1 to 16 bytes without a line end".to_owned())
}

fn small_number(value: &Value, most: u32) -> Result<u32, String> {
    value
        .as_u64()
        .and_then(|number| u32::try_from(number).ok())
        .filter(|number| *number <= most)
        .ok_or_else(|| format!("must be a whole number from 0 to {most}"))
}

/// Parts of a dialect that stand for the same byte cannot be told apart in the file.
fn check_dialect(given: &GivenFormat, faults: &mut Faults) {
    let clash = |a: &Option<String>, b: &Option<String>| matches!((a, b), (Some(a), Some(b)) if a.contains(b.as_str()) || b.contains(a.as_str()));
    if clash(&given.delimiter, &given.quote) {
        faults.add("/format/quote", "must differ from the delimiter");
    }
    if clash(&given.delimiter, &given.escape) {
        faults.add("/format/escape", "must differ from the delimiter");
    }
    if let Some(comment) = &given.comment {
        let begins = |part: &Option<String>| part.as_ref().is_some_and(|part| comment.starts_with(part.as_str()));
        if begins(&given.quote) {
            faults.add("/format/comment", "must not begin with the quote");
        }
        // A record whose first field is empty begins with the delimiter.
        let is_begun = given.delimiter.as_ref().is_some_and(|delimiter| delimiter.starts_with(comment.as_str()));
        if begins(&given.delimiter) || is_begun {
            faults.add("/format/comment", "neither of comment and delimiter may begin with the other");
        }
    }
}

fn read_columns(value: &Value, faults: &mut Faults) -> Option<Vec<Column>> {
    if value.is_null() {
        return None;
    }
    let Some(list) = value.as_array().filter(|list| !list.is_empty() && list.len() <= MAX_COLUMNS) else {
        faults.add("/columns", format!("must be a list of 1 to {MAX_COLUMNS} columns"));
        return None;
    };
    let mut columns: Vec<Column> = Vec::with_capacity(list.len());
    for (place, value) in list.iter().enumerate() {
        let pointer = format!("/columns/{place}");
        let Some(column) = read_column(value, &pointer, faults) else {
            continue;
        };
        if columns.iter().any(|other| other.name == column.name) {
            faults.add(&format!("{pointer}/name"), format!("the name '{}' stands twice", column.name));
        }
        columns.push(column);
    }
    Some(columns)
}

fn read_column(value: &Value, pointer: &str, faults: &mut Faults) -> Option<Column> {
    let mut keys = Keys::open(value, pointer, faults)?;
    for key in ["name", "type"] {
        if !keys.map.contains_key(key) {
            faults.add(&keys.at(key), "is required");
        }
    }
    let name = keys.read("name", faults, |value| {
        let name = text(value)?;
        let fits = (1..=MAX_IDENTIFIER).contains(&name.len()) && !name.chars().any(char::is_control);
        fits.then_some(name).ok_or_else(|| format!("must hold 1 to {MAX_IDENTIFIER} bytes and no control character"))
    });
    let kind = keys.read("type", faults, |value| text(value)?.parse::<ColumnType>().map_err(|error| error.to_string()));
    let source = keys.read("source", faults, |value| match value {
        Value::Null => Ok(None),
        Value::String(name) => Ok(Some(ColumnSource::Header(name.clone()))),
        Value::Number(number) => number
            .as_u64()
            .and_then(|place| u32::try_from(place).ok())
            .filter(|place| (1..=MAX_COLUMNS as u32).contains(place))
            .map(|place| Some(ColumnSource::Place(place)))
            .ok_or_else(|| format!("must be a place from 1 to {MAX_COLUMNS}")),
        _ => Err("must be a header name or a place from 1".to_owned()),
    });
    let nullable =
        keys.read("nullable", faults, |value| value.as_bool().ok_or_else(|| "must be true or false".to_owned()));
    let notation = read_notation(&mut keys, faults);
    if let Some(kind) = &kind {
        for (key, detail) in notation.faults(kind) {
            faults.add(&keys.at(key), detail);
        }
    }
    keys.close(faults);
    Some(Column {
        source: source.flatten(),
        nullable: nullable.unwrap_or(true),
        decimal_separator: notation.decimal_separator,
        thousands_separator: notation.thousands_separator,
        unit: notation.unit,
        format: notation.format,
        ..Column::new(name?, kind?)
    })
}

/// How a column's cells are written; `null` is as good as nothing.
fn read_notation(keys: &mut Keys<'_>, faults: &mut Faults) -> Notation {
    fn optional<T>(value: &Value, read: impl FnOnce(&Value) -> Result<T, String>) -> Result<Option<T>, String> {
        if value.is_null() { Ok(None) } else { read(value).map(Some) }
    }
    const THOUSANDS: &str = "one of \",\", \".\", \"'\", \" \", \"_\", U+00A0 and U+202F";
    let decimal = keys.read("decimal_separator", faults, |value| optional(value, |v| word(v, "\".\" or \",\"")));
    let thousands = keys.read("thousands_separator", faults, |value| optional(value, |v| word(v, THOUSANDS)));
    let unit = keys.read("unit", faults, |value| optional(value, |v| word(v, "\"percent\" or \"currency\"")));
    let format = keys.read("format", faults, |value| {
        optional(value, |value| text(value)?.parse::<TimePattern>().map_err(|error| error.to_string()))
    });
    Notation {
        decimal_separator: decimal.flatten(),
        thousands_separator: thousands.flatten(),
        unit: unit.flatten(),
        format: format.flatten(),
    }
}

fn read_on_error(value: &Value, faults: &mut Faults) -> Option<OnError> {
    let mut keys = Keys::open(value, "/on_error", faults)?;
    let max_rejects = keys.read("max_rejects", faults, |value| match value {
        Value::Null => Ok(None),
        // Counts are kept in 64 signed bits by the databases.
        value => value
            .as_u64()
            .filter(|limit| *limit <= i64::MAX as u64)
            .map(Some)
            .ok_or_else(|| "must be a whole number from 0, or null for no limit".to_owned()),
    });
    keys.close(faults);
    Some(OnError { max_rejects: max_rejects.unwrap_or(Some(0)) })
}

fn read_upload(value: &Value, faults: &mut Faults) -> Option<UploadWish> {
    let mut keys = Keys::open(value, "/upload", faults)?;
    keys.read("method", faults, |value| (value == "put").then_some(()).ok_or_else(|| "must be \"put\"".to_owned()));
    let expires_in = keys.read("expires_in", faults, |value| {
        value
            .as_u64()
            .and_then(|seconds| u32::try_from(seconds).ok())
            .filter(|seconds| (1..=MAX_EXPIRES_IN).contains(seconds))
            .ok_or_else(|| format!("must be a whole number of seconds from 1 to {MAX_EXPIRES_IN}"))
    });
    keys.close(faults);
    Some(UploadWish { expires_in: expires_in.unwrap_or(DEFAULT_EXPIRES_IN) })
}

/// A name that is safe in a key, a URL and a shell: the last part of the client's name, with everything but letters, digits,
/// `.`, `-` and `_` replaced, at most 100 bytes, never empty and never beginning with a dot.
#[must_use]
pub fn safe_file_name(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let safe: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' }).collect();
    let safe = safe.trim_start_matches('.');
    // Keep the end: it holds the extension. Every character is ASCII here.
    let safe = &safe[safe.len().saturating_sub(100)..];
    let safe = safe.trim_start_matches('.');
    if safe.is_empty() { "data.csv".to_owned() } else { safe.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pointers(value: &Value) -> Vec<String> {
        let problem = CreateRequest::from_value(value).expect_err("a bad request");
        assert_eq!(problem.status, 400);
        problem.errors.into_iter().map(|fault| fault.pointer).collect()
    }

    #[test]
    fn only_the_table_is_required() {
        let request = CreateRequest::from_value(&json!({"destination": {"table": "trips"}})).unwrap();
        assert_eq!(request.file, FileInfo::default());
        assert_eq!(request.on_error.max_rejects, Some(0));
        assert_eq!(request.upload.expires_in, 900);
        assert_eq!(request.columns, None);
    }

    #[test]
    fn the_contracts_example_reads() {
        let request = CreateRequest::from_value(&json!({
            "destination": {"table": "trips", "mode": "append"},
            "file": {"name": "trips.csv", "content_type": "text/csv", "size": 12345678},
            "format": {"type": "csv", "delimiter": ",", "quote": "\"", "escape": "\"", "header_rows": 1,
                       "skip_rows": 0, "comment": null, "ragged": "reject", "encoding": "utf-8", "null_values": [""],
                       "compression": "auto"},
            "columns": [{"name": "id", "type": "int64", "source": "Id", "nullable": false}],
            "on_error": {"max_rejects": 0},
            "upload": {"method": "put", "expires_in": 900}
        }))
        .unwrap();
        assert_eq!(request.file.size, Some(12_345_678));
        assert_eq!(request.columns.unwrap()[0].source, Some(ColumnSource::Header("Id".into())));
        let stored =
            serde_json::to_string(&CreateRequest::from_value(&json!({"destination": {"table": "a"}})).unwrap())
                .unwrap();
        assert!(serde_json::from_str::<CreateRequest>(&stored).is_ok(), "what is stored reads back");
    }

    #[test]
    fn unknown_keys_are_faults_everywhere() {
        let faults = pointers(&json!({
            "destination": {"table": "t", "x": 1}, "file": {"x": 1}, "format": {"x": 1},
            "columns": [{"name": "a", "type": "text", "x": 1}], "on_error": {"x": 1}, "upload": {"x": 1}, "a/b": 1
        }));
        assert_eq!(
            faults,
            ["/destination/x", "/file/x", "/format/x", "/columns/0/x", "/on_error/x", "/upload/x", "/a~1b"]
        );
    }

    #[test]
    fn every_bad_value_is_named() {
        for (value, pointer) in [
            (json!([]), ""),
            (json!({}), "/destination"),
            (json!({"destination": {}}), "/destination/table"),
            (json!({"destination": {"table": ""}}), "/destination/table"),
            (json!({"destination": {"table": "t", "mode": "replace"}}), "/destination/mode"),
            (json!({"destination": {"table": "t"}, "file": {"size": -1}}), "/file/size"),
            (json!({"destination": {"table": "t"}, "file": {"size": u64::MAX}}), "/file/size"),
            (
                json!({"destination": {"table": "t"}, "file": {"content_type": "text/csv\r\nx: y"}}),
                "/file/content_type",
            ),
            (json!({"destination": {"table": "t"}, "file": {"name": ""}}), "/file/name"),
            (json!({"destination": {"table": "t"}, "format": {"type": "json"}}), "/format/type"),
            (json!({"destination": {"table": "t"}, "format": {"delimiter": ""}}), "/format/delimiter"),
            (json!({"destination": {"table": "t"}, "format": {"delimiter": "abcde"}}), "/format/delimiter"),
            (json!({"destination": {"table": "t"}, "format": {"delimiter": "\n"}}), "/format/delimiter"),
            (json!({"destination": {"table": "t"}, "format": {"delimiter": ";", "quote": ";"}}), "/format/quote"),
            (json!({"destination": {"table": "t"}, "format": {"delimiter": "#", "comment": "##"}}), "/format/comment"),
            (json!({"destination": {"table": "t"}, "format": {"delimiter": "##", "comment": "#"}}), "/format/comment"),
            (json!({"destination": {"table": "t"}, "format": {"delimiter": "#", "comment": "#"}}), "/format/comment"),
            (json!({"destination": {"table": "t"}, "format": {"quote": "'", "comment": "'#"}}), "/format/comment"),
            (json!({"destination": {"table": "t"}, "format": {"header_rows": 1.5}}), "/format/header_rows"),
            (json!({"destination": {"table": "t"}, "format": {"ragged": "drop"}}), "/format/ragged"),
            (json!({"destination": {"table": "t"}, "format": {"encoding": "UTF8"}}), "/format/encoding"),
            (
                json!({"destination": {"table": "t"}, "format": {"encoding_errors": "ignore"}}),
                "/format/encoding_errors",
            ),
            (json!({"destination": {"table": "t"}, "format": {"line_end": "lf"}}), "/format/line_end"),
            (json!({"destination": {"table": "t"}, "format": {"null_values": "NA"}}), "/format/null_values"),
            (json!({"destination": {"table": "t"}, "columns": []}), "/columns"),
            (json!({"destination": {"table": "t"}, "columns": [{"name": "a"}]}), "/columns/0/type"),
            (json!({"destination": {"table": "t"}, "columns": [{"name": "a", "type": "int"}]}), "/columns/0/type"),
            (
                json!({"destination": {"table": "t"}, "columns": [{"name": "a", "type": "text", "source": 0}]}),
                "/columns/0/source",
            ),
            (
                json!({"destination": {"table": "t"}, "columns": [{"name": "a", "type": "text"}, {"name": "a", "type": "text"}]}),
                "/columns/1/name",
            ),
            (json!({"destination": {"table": "t"}, "on_error": {"max_rejects": -1}}), "/on_error/max_rejects"),
            (json!({"destination": {"table": "t"}, "upload": {"expires_in": 0}}), "/upload/expires_in"),
            (json!({"destination": {"table": "t"}, "upload": {"expires_in": 604_801}}), "/upload/expires_in"),
            (json!({"destination": {"table": "t"}, "upload": {"method": "post"}}), "/upload/method"),
        ] {
            assert_eq!(pointers(&value), [pointer], "{value}");
        }
    }

    #[test]
    fn a_request_is_small_however_long_it_is() {
        let unknown: Map<String, Value> = (0..1000).map(|n| (format!("k{n}"), json!(1))).collect();
        let problem = CreateRequest::from_value(&Value::Object(unknown)).unwrap_err();
        assert_eq!((problem.errors.len(), problem.detail.as_str()), (100, "100 faults or more; see errors"));
        for (values, fits) in
            [(vec!["x".repeat(1024); 100], true), (vec!["x".to_owned(); 101], false), (vec!["x".repeat(1025)], false)]
        {
            let request = json!({"destination": {"table": "t"}, "format": {"null_values": values}});
            assert_eq!(CreateRequest::from_value(&request).is_ok(), fits);
        }
    }

    #[test]
    fn a_comment_may_hold_the_delimiter_behind_its_first_byte() {
        let format = json!({"delimiter": "::", "quote": "'", "comment": "#::'"});
        let request = CreateRequest::from_value(&json!({"destination": {"table": "t"}, "format": format})).unwrap();
        assert_eq!(request.format.comment.as_deref(), Some("#::'"));
    }

    #[test]
    fn how_cells_are_written_is_read_strictly() {
        let column = |options: Value| {
            let mut column = json!({"name": "a", "type": "decimal(9,2)"});
            column.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
            json!({"destination": {"table": "t"}, "columns": [column]})
        };
        let given = json!({"decimal_separator": ",", "thousands_separator": "\u{a0}", "unit": "currency"});
        let request = CreateRequest::from_value(&column(given.clone())).unwrap();
        let shown = serde_json::to_value(&request.columns.unwrap()[0]).unwrap();
        for (key, value) in given.as_object().unwrap() {
            assert_eq!(shown[key], *value);
        }
        assert!(shown.get("format").is_none(), "what was not given is not shown");
        let nulls = json!({"decimal_separator": null, "thousands_separator": null, "unit": null, "format": null});
        let request = CreateRequest::from_value(&column(nulls)).unwrap();
        assert!(request.columns.unwrap()[0].notation().is_plain());
        for (options, keys) in [
            (json!({"decimal_separator": ";"}), &["decimal_separator"][..]),
            (json!({"thousands_separator": ""}), &["thousands_separator"]),
            (json!({"thousands_separator": "."}), &["thousands_separator"]),
            (json!({"unit": "%"}), &["unit"]),
            (json!({"format": "%F"}), &["format"]),
            (json!({"format": 1}), &["format"]),
            (json!({"type": "text", "decimal_separator": ","}), &["decimal_separator"]),
            (json!({"type": "int64", "unit": "percent"}), &["unit"]),
            (json!({"type": "date", "format": "%m/%Y"}), &["format"]),
            (json!({"type": "date", "format": "%q"}), &["format"]),
            (json!({"type": "date", "unit": "currency", "format": "%F %T"}), &["unit", "format"]),
        ] {
            let expected: Vec<String> = keys.iter().map(|key| format!("/columns/0/{key}")).collect();
            assert_eq!(pointers(&column(options.clone())), expected, "{options}");
        }
    }

    #[test]
    fn file_names_become_safe() {
        for (name, safe) in [
            ("trips.csv", "trips.csv"),
            ("../../etc/passwd", "passwd"),
            ("C:\\data\\a b.csv", "a_b.csv"),
            ("größe?.csv", "gr__e_.csv"),
            ("..", "data.csv"),
            ("", "data.csv"),
            (".hidden", "hidden"),
        ] {
            assert_eq!(safe_file_name(name), safe);
        }
        assert_eq!(safe_file_name(&format!("{}.csv", "x".repeat(500))).len(), 100);
    }
}
