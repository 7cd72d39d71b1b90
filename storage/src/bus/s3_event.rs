//! Storage events as S3 servers write them (JSON with `Records`), and as we write our own.
//!
//! Pure. MinIO and AWS agree on what is read here: the event's name, the bucket, and the key, encoded as in a form (`+` is a
//! space). versitygw writes the key as it is, and its bucket may be that of another request of the same moment: there, the ARN
//! tells which one it was.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::StorageEvent;

/// What versitygw calls its configuration, which is one for the whole server. The name is not always that of the service in use.
const VERSITY: [&str; 4] = ["nats-global", "webhook-global", "kafka-global", "rabbitmq-global"];

/// What stays as it is in an encoded key.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

#[derive(Deserialize)]
struct Record {
    #[serde(rename = "eventName")]
    event_name: String,
    s3: S3,
}

#[derive(Deserialize)]
struct S3 {
    #[serde(rename = "configurationId", default)]
    configuration: String,
    bucket: Bucket,
    object: Object,
}

#[derive(Deserialize)]
struct Bucket {
    name: String,
    #[serde(default)]
    arn: String,
}

#[derive(Deserialize)]
struct Object {
    key: String,
}

/// What a message tells of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arrivals {
    /// The objects that arrived: none where it tells of something else.
    pub(super) events: Vec<StorageEvent>,
    /// What is wrong with the records that could not be read; those beside them count all the same.
    pub(super) unread: Vec<String>,
}

/// The arrivals that a message tells of.
///
/// # Errors
///
/// Says what is wrong with a message that is none of an S3 server's.
pub(super) fn read(body: &[u8]) -> Result<Arrivals, String> {
    let mut value: Value = serde_json::from_slice(body).map_err(|error| format!("no JSON: {error}"))?;
    let mut arrivals = Arrivals::default();
    if value.get("Event").and_then(Value::as_str) == Some("s3:TestEvent") {
        return Ok(arrivals);
    }
    let Some(Value::Array(records)) = value.get_mut("Records").map(Value::take) else {
        return Err("no S3 event: there are no Records".to_owned());
    };
    for record in records {
        match arrival(record) {
            Ok(event) => arrivals.events.extend(event),
            Err(reason) => arrivals.unread.push(reason),
        }
    }
    Ok(arrivals)
}

/// The arrival that a record tells of.
fn arrival(record: Value) -> Result<Option<StorageEvent>, String> {
    let Record { event_name, s3 } = Record::deserialize(record).map_err(|error| format!("no S3 event: {error}"))?;
    if !event_name.strip_prefix("s3:").unwrap_or(&event_name).starts_with("ObjectCreated:") {
        return Ok(None);
    }
    let S3 { configuration, bucket, object } = s3;
    if VERSITY.contains(&configuration.as_str()) {
        let bucket = bucket_of_path(&bucket.arn, &object.key).map(str::to_owned).unwrap_or(bucket.name);
        return Ok(Some(StorageEvent { bucket, key: object.key }));
    }
    Ok(Some(StorageEvent { bucket: bucket.name, key: decoded(&object.key)? }))
}

/// The bucket in what versitygw gives for its ARN: the path of the request.
fn bucket_of_path<'a>(arn: &'a str, key: &str) -> Option<&'a str> {
    arn.strip_prefix("arn:aws:s3:::/")?.strip_suffix(key)?.strip_suffix('/').filter(|bucket| !bucket.contains('/'))
}

fn decoded(key: &str) -> Result<String, String> {
    let spaced = key.replace('+', " ");
    let key = percent_decode_str(&spaced).decode_utf8().map_err(|_| "the key is no UTF-8")?;
    Ok(key.into_owned())
}

/// Our own event.
pub(super) fn write(event: &StorageEvent) -> Vec<u8> {
    let key = utf8_percent_encode(&event.key, KEPT).to_string();
    json!({
        "EventName": "s3:ObjectCreated:Put",
        "Key": format!("{}/{}", event.bucket, event.key),
        "Records": [{
            "eventVersion": "2.0",
            "eventSource": "longshore:s3",
            "eventName": "s3:ObjectCreated:Put",
            "s3": {"s3SchemaVersion": "1.0", "bucket": {"name": event.bucket}, "object": {"key": key}},
        }],
    })
    .to_string()
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(key: &str) -> StorageEvent {
        StorageEvent { bucket: "imports".into(), key: key.into() }
    }

    /// What a message tells of where all of it can be read.
    fn read(body: &[u8]) -> Result<Vec<StorageEvent>, String> {
        let Arrivals { events, unread } = super::read(body)?;
        if let Some(reason) = unread.into_iter().next() { Err(reason) } else { Ok(events) }
    }

    #[test]
    fn reads_what_minio_sends() {
        let body = br#"{"EventName":"s3:ObjectCreated:Put","Key":"imports/imports/1/b c+d.csv","Records":[{"eventVersion":"2.0",
            "eventSource":"minio:s3","awsRegion":"","eventTime":"2026-11-01T00:00:00.000Z","eventName":"s3:ObjectCreated:Put",
            "userIdentity":{"principalId":"x"},"requestParameters":{},"responseElements":{},
            "s3":{"s3SchemaVersion":"1.0","configurationId":"Config","bucket":{"name":"imports","ownerIdentity":{"principalId":"x"},
            "arn":"arn:aws:s3:::imports"},"object":{"key":"imports%2F1%2Fb+c%2Bd.csv","size":3,"eTag":"ab","contentType":"text/csv",
            "sequencer":"17"}},"source":{"host":"","port":"","userAgent":""}}]}"#;
        assert_eq!(read(body), Ok(vec![event("imports/1/b c+d.csv")]));
    }

    #[test]
    fn reads_what_versitygw_sends() {
        let sent = |bucket: &str, arn: &str| {
            let body = json!({"Records": [{
                "eventVersion": "2.2", "eventSource": "aws:s3", "awsRegion": "us-east-1", "eventTime": "2026-11-01T00:00:00Z",
                "eventName": "s3:ObjectCreated:Put", "userIdentity": {"PrincipalId": "x"},
                "requestParameters": {"sourceIPAddress": "127.0.0.1"},
                "responseElements": {"x-amz-request-id": "", "x-amz-id-2": ""},
                "s3": {
                    "s3SchemaVersion": "1.0", "configurationId": "webhook-global",
                    "bucket": {"name": bucket, "ownerIdentity": {"PrincipalId": "x"}, "arn": arn},
                    "object": {"key": "imports/1/b c+d%ff.csv", "size": 3, "eTag": "\"ab\"", "versionId": null, "sequencer": "1"},
                },
            }]});
            read(body.to_string().as_bytes())
        };
        let wanted = Ok(vec![event("imports/1/b c+d%ff.csv")]);
        assert_eq!(sent("imports", "arn:aws:s3:::/imports/imports/1/b c+d%ff.csv"), wanted);
        // Another request's bucket, or a part of it.
        assert_eq!(sent("others-", "arn:aws:s3:::/imports/imports/1/b c+d%ff.csv"), wanted);
        // Should it mend its ARN one day.
        assert_eq!(sent("imports", "arn:aws:s3:::imports"), wanted);
    }

    #[test]
    fn reads_every_arrival_and_nothing_else() {
        let record = |name: &str, key: &str| json!({"eventName": name, "s3": {"bucket": {"name": "imports"}, "object": {"key": key, "eTag": "\"ab\""}}});
        let body = json!({"Records": [
            record("s3:ObjectCreated:Put", "a"),
            record("s3:ObjectRemoved:Delete", "b"),
            record("ObjectCreated:CompleteMultipartUpload", "c"),
        ]});
        assert_eq!(read(body.to_string().as_bytes()), Ok(vec![event("a"), event("c")]));
    }

    #[test]
    fn a_record_that_cannot_be_read_costs_no_other() {
        let body = br#"{"Records":[7,{"eventName":"s3:ObjectCreated:Put","s3":{"bucket":{"name":"imports"},"object":{"key":"a"}}},
            {"eventName":"s3:ObjectCreated:Put","s3":{"bucket":{"name":"imports"},"object":{"key":"%ff"}}}]}"#;
        let Arrivals { events, unread } = super::read(body).unwrap();
        assert_eq!((events, unread.len()), (vec![event("a")], 2));
    }

    #[test]
    fn reads_what_it_writes() {
        for key in ["imports/1/a.csv", "a b+c&d=%25.csv", "ü/日本.csv", "\"quoted\""] {
            assert_eq!(read(&write(&event(key))), Ok(vec![event(key)]), "{key}");
        }
    }

    #[test]
    fn a_test_event_is_nothing_and_foreign_shapes_are_errors() {
        assert_eq!(read(br#"{"Service":"Amazon S3","Event":"s3:TestEvent"}"#), Ok(Vec::new()));
        for body in
            [&b"\xff\x00"[..], b"", b"null", b"[]", b"{}", br#"{"Records":[{"eventName":"x"}]}"#, br#"{"Records":7}"#]
        {
            assert!(read(body).is_err(), "{body:?}");
        }
        let not_utf8 = br#"{"Records":[{"eventName":"s3:ObjectCreated:Put","s3":{"bucket":{"name":"b"},"object":{"key":"%ff"}}}]}"#;
        assert!(read(not_utf8).is_err());
    }
}
