//! What a worker does with the storage: it signs no uploads, so reads are tried on an object that is not there; and it keeps
//! the text of packed files beside them.

use std::time::Duration;

use bytes::Bytes;
use longshore_domain::ByteRange;
use longshore_storage::objects::{ObjectError, ObjectStore, S3Store};
use longshore_storage::start::{decoded_probe_key, probe_key};

use super::report::{Check, Status};

const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// A key that may read sees a missing object as missing.
pub async fn check(store: &S3Store) -> Vec<Check> {
    const NAME: &str = "reads";
    let skipped =
        |name: &'static str| Check::skipped(name, "a worker signs no uploads: see longshore doctor --role api");
    let head = tokio::time::timeout(READ_TIMEOUT, store.head(&probe_key())).await;
    let reads = match head {
        Ok(Ok(_)) => Check::ok(NAME, "a missing object is seen as missing (404): this key may read"),
        Ok(Err(ObjectError::Refused { .. })) => {
            let advice = "let the key of LONGSHORE_S3_ACCESS_KEY_ID read objects (s3:GetObject under imports/); AWS S3 wants \
                          s3:ListBucket on the bucket, too";
            Check::fail(NAME, "a HEAD of an object is refused: this key may not read", advice)
        }
        Ok(Err(error)) => Check::fail(NAME, error.to_string(), "check LONGSHORE_S3_ENDPOINT"),
        Err(_) => {
            let detail = format!("no answer within {} s", READ_TIMEOUT.as_secs());
            Check::fail(NAME, detail, "check LONGSHORE_S3_ENDPOINT")
        }
    };
    vec![skipped("upload"), with_decoded_text(reads, store).await, skipped("cors"), skipped("events")]
}

/// Puts, reads and removes a piece of decoded text, where reads are well.
pub async fn with_decoded_text(mut reads: Check, store: &S3Store) -> Check {
    if reads.status != Status::Ok {
        return reads;
    }
    let key = decoded_probe_key();
    let done = tokio::time::timeout(READ_TIMEOUT, exchange(store, &key)).await;
    let reason = match done {
        Ok(Ok(())) => {
            reads.detail += "; decoded text can be put, read and removed";
            return reads;
        }
        Ok(Err(reason)) => reason,
        Err(_) => format!("no end within {} s", READ_TIMEOUT.as_secs()),
    };
    let advice = "let the key of LONGSHORE_S3_ACCESS_KEY_ID put and remove objects under imports/*/.decoded/ \
                  (deploy/minio/worker-policy.json): packed files and encodings that have to be decoded need it";
    Check::warn(reads.name, format!("{}; but not decoded text: {reason}", reads.detail), advice)
}

async fn exchange(store: &S3Store, key: &str) -> Result<(), String> {
    const TEXT: &[u8] = b"decoded\n";
    // S3Store has a put of its own, for presigned URLs.
    let etag = ObjectStore::put(store, key, Bytes::from_static(TEXT)).await.map_err(|error| error.to_string())?;
    let range = ByteRange::new(0, TEXT.len() as u64);
    let read = store.get_range(key, range, &etag).await;
    let removed = store.delete(key).await;
    if read.map_err(|error| error.to_string())? != TEXT {
        return Err("what was read is not what was put".to_owned());
    }
    let bucket = store.bucket();
    removed.map_err(|error| format!("{key} stays (mc rm ALIAS/{bucket}/{key}): {error}"))
}
