//! The reads of a worker, which signs no uploads: they are tried on an object that is not there.

use std::time::Duration;

use longshore_storage::objects::{ObjectError, ObjectStore as _, S3Store};
use longshore_storage::start::probe_key;

use super::report::Check;

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
    vec![skipped("upload"), reads, skipped("cors"), skipped("events")]
}
