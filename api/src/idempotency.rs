//! The `Idempotency-Key` header (draft-ietf-httpapi-idempotency-key-header): the same request may be sent again, to any
//! node, and makes one import.

use axum::http::HeaderMap;
use serde_json::Value;
use sha2::{Digest, Sha256};

use longshore_storage::database::IdempotencyKey;

use crate::error::ApiError;

/// The header's name.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The longest key in bytes.
const LONGEST: usize = 255;

/// The key of a create, where one was sent.
///
/// # Errors
/// A `400` for a key that is none, or several.
pub fn idempotency_key(headers: &HeaderMap, request: &Value) -> Result<Option<IdempotencyKey>, ApiError> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let bad =
        |detail: &str| ApiError::bad_request("Idempotency-Key", "", format!("the header Idempotency-Key {detail}"));
    if keys.next().is_some() {
        return Err(bad("stands twice"));
    }
    let key = key.to_str().ok().map(str::trim).filter(|key| (1..=LONGEST).contains(&key.len()));
    let key = key.ok_or_else(|| bad(&format!("must hold 1 to {LONGEST} characters of visible ASCII")))?;
    Ok(Some(IdempotencyKey { key: key.to_owned(), fingerprint: fingerprint(request) }))
}

/// Equal for equal JSON values, in whatever order their keys stand.
fn fingerprint(request: &Value) -> String {
    let mut text = String::new();
    write_sorted(request, &mut text);
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_sorted(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_unstable();
            out.push('{');
            for key in keys {
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_sorted(&map[key], out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write_sorted(item, out);
                out.push(',');
            }
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use serde_json::json;

    #[test]
    fn equal_json_has_equal_fingerprints() {
        let parse = |text: &str| fingerprint(&serde_json::from_str(text).unwrap());
        assert_eq!(
            parse(r#"{"a": {"x": 1, "y": [1, 2]}, "b": "ü"}"#),
            parse(r#"{"b":"\u00fc","a":{"y":[1,2],"x":1}}"#)
        );
        for other in
            [r#"{"a": 1}"#, r#"{"a": "1"}"#, r#"{"a": [1]}"#, r#"{"a": 2}"#, r#"{"b": 1}"#, r#"{"a": 1, "b": null}"#]
        {
            for another in [r#"{"a": true}"#, r#"{"a": [1, 1]}"#, r#"{"a": [11]}"#, r#"{"a:1": 1}"#] {
                assert_ne!(parse(other), parse(another));
            }
        }
    }

    #[test]
    fn a_key_is_one_short_line_of_visible_text() {
        let read = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
            }
            idempotency_key(&headers, &json!({})).map(|key| key.map(|key| key.key)).map_err(|error| error.0.status)
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[b" 8e03978e-40d5 "]), Ok(Some("8e03978e-40d5".into())));
        let longest = [b'k'; LONGEST];
        assert!(read(&[&longest]).is_ok());
        for bad in [&[b"".as_slice()][..], &[b"  "], &[&[b'k'; LONGEST + 1]], &[b"\xff"], &[b"a", b"a"]] {
            assert_eq!(read(bad), Err(400));
        }
    }
}
