//! What every object storage promises, run on the embedded endpoint (read from its files), on the same endpoint as any S3
//! client sees it, on MinIO and on versitygw; and what only one of them can go through.
//!
//! Needs `deploy/servers test`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::any::Any;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use longshore_domain::ByteRange;
use longshore_storage::bus::{Bus, InProcessBus, NatsBus, NatsConfig};
use longshore_storage::objects::{
    CorsOrigins, EmbeddedConfig, EmbeddedStore, ObjectError, ObjectStore, PresignedPut, PutTerms, S3Config, S3Store,
    Secret,
};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use common::{setting, unique, until, within};

/// A storage, the bus that its events come on, and what has to live as long.
struct Place {
    store: Arc<dyn ObjectStore>,
    bus: Arc<dyn Bus>,
    /// The same storage, as somebody with other credentials would reach it.
    stranger: S3Store,
    /// versitygw keeps what had arrived when a client goes away. The owner of an import compares the size with the one that was
    /// declared.
    keeps_broken_uploads: bool,
    /// versitygw reads little of an upload that it refuses, so that a client that still sends may find the connection closed.
    hangs_up: bool,
    _kept: Box<dyn Any + Send>,
}

impl Place {
    fn new(store: impl ObjectStore + 'static, bus: Arc<dyn Bus>, stranger: S3Store, kept: impl Any + Send) -> Self {
        let (store, _kept) = (Arc::new(store), Box::new(kept));
        Self { store, bus, stranger, keeps_broken_uploads: false, hangs_up: false, _kept }
    }
}

async fn embedded() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let (store, bus) = start(folder.path(), 0).await;
    let stranger = S3Store::new(S3Config { secret_access_key: Secret::new("wrong"), ..client_config(&store) }).unwrap();
    Place::new(store, bus, stranger, folder)
}

async fn embedded_over_http() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let (store, bus) = start(folder.path(), 0).await;
    let config = client_config(&store);
    let stranger = S3Store::new(S3Config { secret_access_key: Secret::new("wrong"), ..config.clone() }).unwrap();
    Place::new(S3Store::new(config).unwrap(), bus, stranger, (folder, store))
}

async fn minio() -> Place {
    server(minio_config()).await
}

async fn versity() -> Place {
    Place { keeps_broken_uploads: true, hangs_up: true, ..server(versity_config()).await }
}

async fn server(config: S3Config) -> Place {
    // The subject that the servers publish to is one for all; the consumer is this test's own.
    let nats = NatsConfig {
        prefix: unique("o"),
        ..NatsConfig::new(setting("LONGSHORE_TEST_NATS_URL"), "longshore.storage-events")
    };
    let bus = NatsBus::connect(nats).await.unwrap();
    bus.prepare().await.unwrap();
    let stranger = S3Store::new(S3Config { secret_access_key: Secret::new("wrong-secret"), ..config.clone() }).unwrap();
    let store = S3Store::new(config).unwrap();
    store.prepare().await.unwrap();
    Place::new(store, Arc::new(bus), stranger, ())
}

fn minio_config() -> S3Config {
    let arn = setting("LONGSHORE_TEST_S3_NOTIFICATION_ARN");
    S3Config { notification_arn: Some(arn), ..server_config("LONGSHORE_TEST_S3_ENDPOINT") }
}

fn versity_config() -> S3Config {
    server_config("LONGSHORE_TEST_VERSITY_ENDPOINT")
}

/// A bucket of the test's own.
fn server_config(endpoint: &str) -> S3Config {
    let endpoint: Url = setting(endpoint).parse().unwrap();
    S3Config {
        public_endpoint: endpoint.clone(),
        endpoint,
        bucket: unique("imports-"),
        region: "us-east-1".into(),
        access_key_id: setting("LONGSHORE_TEST_S3_ACCESS_KEY_ID"),
        secret_access_key: Secret::new(setting("LONGSHORE_TEST_S3_SECRET_ACCESS_KEY")),
        upload_key: None,
        notification_arn: None,
        events_prefix: "imports/".into(),
        cors_origins: origins(),
    }
}

/// Pages that may upload.
fn origins() -> CorsOrigins {
    ORIGIN.parse().unwrap()
}

async fn start(root: &Path, port: u16) -> (EmbeddedStore, Arc<dyn Bus>) {
    let bus: Arc<dyn Bus> = Arc::new(InProcessBus::new());
    let config = EmbeddedConfig {
        root: root.to_owned(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        public_endpoint: None,
        bucket: "imports".into(),
        region: "us-east-1".into(),
        access_key_id: "embedded-key".into(),
        secret_access_key: Secret::new("embedded-secret"),
        cors_origins: origins(),
    };
    let store = EmbeddedStore::start(config, Arc::clone(&bus)).await.unwrap();
    store.prepare().await.unwrap();
    (store, bus)
}

fn client_config(store: &EmbeddedStore) -> S3Config {
    S3Config {
        endpoint: store.endpoint().clone(),
        public_endpoint: store.endpoint().clone(),
        bucket: "imports".into(),
        region: "us-east-1".into(),
        access_key_id: "embedded-key".into(),
        secret_access_key: Secret::new("embedded-secret"),
        upload_key: None,
        notification_arn: None,
        events_prefix: "imports/".into(),
        cors_origins: origins(),
    }
}

/// Runs each suite on each storage.
macro_rules! on_every_storage {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::embedded().await).await;
            })*
        }
        mod embedded_over_http {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::embedded_over_http().await).await;
            })*
        }
        mod minio {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::minio().await).await;
            })*
        }
        mod versity {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::versity().await).await;
            })*
        }
    };
}

on_every_storage!(
    an_upload_is_readable,
    another_upload_than_was_signed_is_refused,
    an_upload_of_another_length_is_refused,
    an_upload_without_a_length_is_refused,
    an_altered_url_is_refused,
    an_expired_url_is_refused,
    strangers_are_refused,
    a_second_upload_is_refused,
    of_two_uploads_at_once_one_arrives,
    a_broken_upload_leaves_nothing,
    an_upload_with_a_wrong_checksum_leaves_nothing,
    ranges_are_exact,
    long_reads_are_exact,
    an_empty_object_is_an_object,
    odd_keys_are_kept,
    it_answers_and_can_be_prepared_again,
    an_event_comes_for_an_object_that_is_there,
    what_is_our_own_is_put_read_and_removed,
    a_removed_object_is_gone,
    browsers_may_upload,
);

const ORIGIN: &str = "https://app.example.com";
const KEY: &str = "imports/0198/trips.csv";

fn terms(content_length: Option<u64>) -> PutTerms {
    PutTerms { content_type: "text/csv".into(), content_length, expires_in: Duration::from_secs(60) }
}

/// The request that the storage signed, without a body.
fn request(put: &PresignedPut) -> RequestBuilder {
    with_headers(Client::new().put(&put.url), put, &[])
}

fn with_headers(mut request: RequestBuilder, put: &PresignedPut, except: &[&str]) -> RequestBuilder {
    for (name, value) in put.headers.iter().filter(|(name, _)| !except.contains(&name.as_str())) {
        request = request.header(name, value);
    }
    request
}

async fn upload(store: &dyn ObjectStore, key: &str, body: impl Into<Bytes>) -> StatusCode {
    let body = body.into();
    let put = store.presign_put(key, &terms(Some(body.len() as u64)));
    request(&put).body(body).send().await.unwrap().status()
}

async fn stored(store: &dyn ObjectStore, key: &str, body: impl Into<Bytes>) -> String {
    assert_eq!(upload(store, key, body).await, StatusCode::OK);
    store.head(key).await.unwrap().unwrap().etag
}

async fn refused(store: &dyn ObjectStore, what: &str, request: RequestBuilder) {
    let status = request.send().await.unwrap().status();
    assert!(status.is_client_error(), "{what}: {status}");
    assert_eq!(store.head(KEY).await.unwrap(), None, "{what} left something");
}

/// Bytes that differ everywhere.
fn bytes(length: usize) -> Bytes {
    (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 16) as u8).collect()
}

/// A form is refused before its file is read, whoever sends it.
#[tokio::test]
async fn a_form_is_not_held_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _bus) = start(folder.path(), 0).await;
    let part = |head: &str, body: &str| format!("--limit\r\ncontent-disposition: form-data; {head}\r\n\r\n{body}\r\n");
    let file = part("name=\"file\"; filename=\"a\"", &"x".repeat(100_000));
    for form in [part("name=\"key\"", "a") + &file, part("name=\"key\"", &"a".repeat(100_000)) + &file] {
        let answer = Client::new()
            .post(format!("{}imports", store.endpoint()))
            .header("content-type", "multipart/form-data; boundary=limit")
            .body(form + "--limit--\r\n");
        let answer = answer.send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
        assert!(text.contains("EntityTooLarge") || text.contains("MalformedPOSTRequest"), "{text}");
    }
}

async fn an_upload_is_readable(place: Place) {
    let store = &*place.store;
    assert_eq!(store.head(KEY).await.unwrap(), None);
    let put = store.presign_put(KEY, &terms(None));
    assert!(put.url.starts_with("http://127.0.0.1:"));
    let response = request(&put).body("id,fare\n1,2\n").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let etag = response.headers()["etag"].to_str().unwrap().to_owned();
    let head = store.head(KEY).await.unwrap().unwrap();
    assert_eq!(head.size, 12);
    assert_eq!(format!("\"{}\"", head.etag), etag);
    assert!(head.last_modified.is_some());
    assert_eq!(store.get_range(KEY, ByteRange::new(0, 12), &head.etag).await.unwrap(), "id,fare\n1,2\n");
}

async fn another_upload_than_was_signed_is_refused(place: Place) {
    let store = &*place.store;
    let put = store.presign_put(KEY, &terms(Some(5)));
    let client = Client::new();
    for (name, value) in [("content-type", "text/html"), ("if-none-match", "\"other\"")] {
        let others = with_headers(client.put(&put.url), &put, &[name]);
        refused(store, name, others.header(name, value).body("hello")).await;
        let without = with_headers(client.put(&put.url), &put, &[name]).body("hello");
        refused(store, &format!("no {name}"), without).await;
    }
    for method in [Method::POST, Method::GET, Method::DELETE, Method::HEAD] {
        let other = with_headers(client.request(method.clone(), &put.url), &put, &["content-length"]);
        refused(store, method.as_str(), other).await;
    }
    // What was signed is taken after all that.
    assert_eq!(request(&put).body("hello").send().await.unwrap().status(), StatusCode::OK);
}

async fn an_upload_of_another_length_is_refused(place: Place) {
    let put = place.store.presign_put(KEY, &terms(Some(5)));
    for body in ["hell", "hello!", ""] {
        let other = with_headers(Client::new().put(&put.url), &put, &["content-length"]);
        let other = other.header("content-length", body.len()).body(body);
        refused(&*place.store, &format!("{} bytes", body.len()), other).await;
    }
}

async fn an_upload_without_a_length_is_refused(place: Place) {
    for declared in [Some(5), None] {
        let put = place.store.presign_put(KEY, &terms(declared));
        let body = futures::stream::iter([Ok::<_, std::io::Error>("hello")]);
        let chunked = with_headers(Client::new().put(&put.url), &put, &["content-length"]);
        refused(&*place.store, "a chunked body", chunked.body(reqwest::Body::wrap_stream(body))).await;
    }
}

async fn an_altered_url_is_refused(place: Place) {
    let store = &*place.store;
    let put = store.presign_put(KEY, &terms(Some(5)));
    let other_key = "imports/0198/other.csv";
    let swapped = if put.url.ends_with('0') { "1" } else { "0" };
    for (what, url) in [
        ("another key", put.url.replace("trips.csv", "other.csv")),
        ("a longer life", put.url.replace("X-Amz-Expires=60", "X-Amz-Expires=600")),
        ("fewer headers", put.url.replace("content-type%3B", "")),
        ("another signature", format!("{}{swapped}", &put.url[..put.url.len() - 1])),
        ("no signature", put.url.split('?').next().unwrap().to_owned()),
    ] {
        assert_ne!(url, put.url, "{what}");
        refused(store, what, with_headers(Client::new().put(url), &put, &[]).body("hello")).await;
    }
    assert_eq!(store.head(other_key).await.unwrap(), None);
}

async fn an_expired_url_is_refused(place: Place) {
    let put = place.store.presign_put(KEY, &PutTerms { expires_in: Duration::from_secs(1), ..terms(Some(5)) });
    // Its end is what is waited for; the signature has seconds only.
    until("the URL's end", async || chrono::Utc::now() > put.expires_at + chrono::TimeDelta::seconds(2)).await;
    refused(&*place.store, "an expired URL", request(&put).body("hello")).await;
}

async fn strangers_are_refused(place: Place) {
    let put = place.stranger.presign_put(KEY, &terms(Some(5)));
    refused(&*place.store, "another secret", request(&put).body("hello")).await;
    assert!(matches!(place.stranger.check().await, Err(ObjectError::Refused { .. })));
    let error = place.stranger.get_range(KEY, ByteRange::new(0, 1), "x").await.unwrap_err();
    assert!(matches!(error, ObjectError::Refused { .. }), "{error}");
    let own = place.store.presign_put(KEY, &terms(None));
    let url = Url::parse(&own.url).unwrap();
    let bucket = url.join("/").unwrap().join(place.store.bucket()).unwrap();
    for anonymous in [bucket.as_str(), own.url.split('?').next().unwrap()] {
        for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE] {
            let status = Client::new().request(method, anonymous).send().await.unwrap().status();
            assert!(status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED, "{anonymous}: {status}");
        }
    }
}

async fn a_second_upload_is_refused(place: Place) {
    let store = &*place.store;
    let put = store.presign_put(KEY, &terms(None));
    assert_eq!(request(&put).body("first").send().await.unwrap().status(), StatusCode::OK);
    let first = store.head(KEY).await.unwrap().unwrap();
    assert_eq!(request(&put).body("other").send().await.unwrap().status(), StatusCode::PRECONDITION_FAILED);
    // Large enough that the answer comes while the client still sends.
    match request(&put).body(bytes(8 << 20)).send().await {
        Ok(large) => assert_eq!(large.status(), StatusCode::PRECONDITION_FAILED),
        Err(error) => assert!(place.hangs_up, "{}", error.without_url()),
    }
    assert_eq!(store.head(KEY).await.unwrap(), Some(first.clone()));
    assert_eq!(store.get_range(KEY, ByteRange::new(0, 5), &first.etag).await.unwrap(), "first");
}

async fn of_two_uploads_at_once_one_arrives(place: Place) {
    let store = &*place.store;
    for round in 0..5 {
        let key = format!("imports/{round}/a.csv");
        let (one, two) = (vec![b'1'; 300_000], vec![b'2'; 300_000]);
        let (first, second) = tokio::join!(upload(store, &key, one.clone()), upload(store, &key, two.clone()));
        let winner = match (first.is_success(), second.is_success()) {
            (true, false) => one,
            (false, true) => two,
            both => panic!("{both:?}: {first}, {second}"),
        };
        let head = store.head(&key).await.unwrap().unwrap();
        assert_eq!(store.get_range(&key, ByteRange::new(0, head.size), &head.etag).await.unwrap(), winner);
    }
}

async fn a_broken_upload_leaves_nothing(place: Place) {
    let put = place.store.presign_put(KEY, &terms(Some(1_000_000)));
    let url = Url::parse(&put.url).unwrap();
    let mut socket = TcpStream::connect(url.socket_addrs(|| None).unwrap()[0]).await.unwrap();
    let mut head = format!("PUT {}?{} HTTP/1.1\r\nhost: {}\r\n", url.path(), url.query().unwrap(), url.authority());
    for (name, value) in &put.headers {
        head += &format!("{name}: {value}\r\n");
    }
    socket.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    socket.write_all(&bytes(300_000)).await.unwrap();
    socket.shutdown().await.unwrap();
    // The storage has seen the end when it closes its side.
    let mut answer = Vec::new();
    let _ = within("the end of the connection", socket.read_to_end(&mut answer)).await;
    if place.keeps_broken_uploads {
        // The day this fails, the special case can go.
        assert_eq!(place.store.head(KEY).await.unwrap().map(|head| head.size), Some(300_000));
        return;
    }
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(place.store.head(KEY).await.unwrap(), None);
    // Nor is the key taken.
    assert_eq!(upload(&*place.store, KEY, "whole").await, StatusCode::OK);
}

async fn an_upload_with_a_wrong_checksum_leaves_nothing(place: Place) {
    let put = place.store.presign_put(KEY, &terms(Some(5)));
    let wrong = "AAAAAAAAAAAAAAAAAAAAAA==";
    refused(&*place.store, "a wrong MD5", request(&put).header("content-md5", wrong).body("hello")).await;
    assert_eq!(upload(&*place.store, KEY, "hello").await, StatusCode::OK);
}

async fn ranges_are_exact(place: Place) {
    let store = &*place.store;
    let data = bytes(100_003);
    let etag = stored(store, KEY, data.clone()).await;
    let size = data.len() as u64;
    for (start, end) in [(0, 1), (0, size), (1, 2), (size - 1, size), (40_000, 70_001), (5, 5), (size, size)] {
        let range = ByteRange::new(start, end);
        let read = store.get_range(KEY, range, &etag).await.unwrap();
        assert_eq!(read, data.slice(start as usize..end as usize), "{range:?}");
    }
    for (start, end) in [(0, size + 1), (size, size + 1), (size + 5, size + 9)] {
        let error = store.get_range(KEY, ByteRange::new(start, end), &etag).await.unwrap_err();
        assert!(matches!(error, ObjectError::Unavailable { .. }), "{error}");
    }
    for range in [ByteRange::new(0, 5), ByteRange::new(3, 3)] {
        let error = store.get_range(KEY, range, "0123456789abcdef").await.unwrap_err();
        assert!(matches!(error, ObjectError::Changed { .. }), "{error}");
        let error = store.get_range("imports/none.csv", range, &etag).await.unwrap_err();
        assert!(matches!(error, ObjectError::Missing { .. }), "{error}");
    }
}

async fn read_all(store: &dyn ObjectStore, start: u64, size: u64, etag: &str) -> Result<Vec<u8>, ObjectError> {
    let blocks: Vec<Bytes> = store.read_from(KEY, start, size, etag).await?.try_collect().await?;
    Ok(blocks.concat())
}

async fn long_reads_are_exact(place: Place) {
    let store = &*place.store;
    let data = bytes(5_000_011);
    let etag = stored(store, KEY, data.clone()).await;
    let size = data.len() as u64;
    for start in [0, 1, 1 << 20, size - 1, size] {
        assert!(read_all(store, start, size, &etag).await.unwrap() == data[start as usize..], "from {start}");
    }
    // What is planned shorter ends there; what is planned longer is an error, and never a short success.
    assert!(read_all(store, 7, 1_000, &etag).await.unwrap() == data[7..1_000]);
    assert!(matches!(read_all(store, 0, size + 1, &etag).await, Err(ObjectError::Unavailable { .. })));
    assert!(matches!(read_all(store, 0, size, "0123456789abcdef").await, Err(ObjectError::Changed { .. })));
    let missing = store.read_from("imports/none.csv", 0, 1, &etag).await.err().unwrap();
    assert!(matches!(missing, ObjectError::Missing { .. }), "{missing}");
}

async fn an_empty_object_is_an_object(place: Place) {
    let store = &*place.store;
    let put = store.presign_put(KEY, &terms(Some(0)));
    assert_eq!(request(&put).body("").send().await.unwrap().status(), StatusCode::OK);
    let head = store.head(KEY).await.unwrap().unwrap();
    assert_eq!(head.size, 0);
    assert_eq!(read_all(store, 0, 0, &head.etag).await.unwrap(), b"");
    assert_eq!(store.get_range(KEY, ByteRange::new(0, 0), &head.etag).await.unwrap(), "");
    assert!(matches!(read_all(store, 0, 0, "0123456789abcdef").await, Err(ObjectError::Changed { .. })));
}

async fn odd_keys_are_kept(place: Place) {
    let store = &*place.store;
    for key in [
        "imports/1/with space.csv",
        "imports/1/plus+plus.csv",
        "imports/1/a&b=c;d@e,f$g!h'i(j)k~l-m_n.csv",
        "imports/1/percent%20sign%2F.csv",
        "imports/1/ünïcode-日本.csv",
        "imports/1/..dots...csv",
        "imports/1/.hidden",
    ] {
        let etag = stored(store, key, key.to_owned()).await;
        assert_eq!(store.get_range(key, ByteRange::new(0, key.len() as u64), &etag).await.unwrap(), key);
    }
}

async fn it_answers_and_can_be_prepared_again(place: Place) {
    let store = &*place.store;
    store.check().await.unwrap();
    let etag = stored(store, KEY, "kept").await;
    let (first, second) = tokio::join!(store.prepare(), store.prepare());
    first.unwrap();
    second.unwrap();
    assert_eq!(store.head(KEY).await.unwrap().unwrap().etag, etag);
}

async fn what_is_our_own_is_put_read_and_removed(place: Place) {
    let store = &*place.store;
    let key = "imports/0198/.decoded/3-0";
    let etag = store.put(key, Bytes::from_static(b"decoded text")).await.unwrap();
    assert_eq!(store.head(key).await.unwrap().unwrap().etag, etag);
    assert_eq!(store.get_range(key, ByteRange::new(8, 12), &etag).await.unwrap(), "text");
    assert!(matches!(ObjectStore::put(&place.stranger, key, Bytes::new()).await, Err(ObjectError::Refused { .. })));
    store.delete(key).await.unwrap();
    assert_eq!(store.head(key).await.unwrap(), None);
    let gone = store.get_range(key, ByteRange::new(0, 4), &etag).await;
    assert!(matches!(gone, Err(ObjectError::Missing { .. })), "{gone:?}");
}

async fn a_removed_object_is_gone(place: Place) {
    let store = &*place.store;
    stored(store, KEY, "kept").await;
    let probe = "imports/doctor/0198/probe";
    stored(store, probe, "hello").await;
    // The second time, nothing is there.
    store.delete(probe).await.unwrap();
    store.delete(probe).await.unwrap();
    assert_eq!(store.head(probe).await.unwrap(), None);
    assert!(store.head(KEY).await.unwrap().is_some());
    assert!(matches!(place.stranger.delete(KEY).await, Err(ObjectError::Refused { .. })));
    assert!(store.head(KEY).await.unwrap().is_some());
    assert_eq!(upload(store, probe, "again").await, StatusCode::OK);
}

async fn browsers_may_upload(place: Place) {
    let store = &*place.store;
    let put = store.presign_put(KEY, &terms(None));
    let preflight = Client::new()
        .request(Method::OPTIONS, &put.url)
        .header("origin", ORIGIN)
        .header("access-control-request-method", "PUT")
        .header("access-control-request-headers", "content-type,if-none-match");
    let answer = preflight.send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    let listed = |name: &str| answer.headers()[name].to_str().unwrap().to_ascii_lowercase();
    assert!(listed("access-control-allow-methods").contains("put"));
    let headers = listed("access-control-allow-headers");
    assert!(headers.contains("content-type") && headers.contains("if-none-match"), "{headers}");
    assert_eq!(answer.headers()["access-control-allow-origin"], ORIGIN);
    // Refusals have to be readable, too.
    for (kind, status) in [("text/plain", 403), ("text/csv", 200), ("text/csv", 412)] {
        let request = with_headers(Client::new().put(&put.url), &put, &["content-type"]).header("content-type", kind);
        let answer = request.header("origin", ORIGIN).body("hello").send().await.unwrap();
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()["access-control-allow-origin"], ORIGIN, "{status}");
    }
}

async fn an_event_comes_for_an_object_that_is_there(place: Place) {
    let store = &*place.store;
    for key in [KEY, "imports/0199/a b+c.csv", "imports/0199/100%25 of%ff+ü.csv"] {
        assert_eq!(upload(store, key, "hello").await, StatusCode::OK);
        until("the event", async || {
            for delivery in place.bus.pull_events(9, Duration::from_secs(5)).await.unwrap() {
                delivery.receipt.ack().await.unwrap();
                // Others' events may be on the same subject.
                if delivery.message.bucket == store.bucket() && delivery.message.key == key {
                    return true;
                }
            }
            false
        })
        .await;
        assert_eq!(store.head(key).await.unwrap().unwrap().size, 5);
    }
}

// What only the embedded endpoint can go through.

#[tokio::test(flavor = "multi_thread")]
async fn embedded_pages_of_other_origins_are_not_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _bus) = start(folder.path(), 0).await;
    let put = store.presign_put(KEY, &terms(None));
    for method in [Method::OPTIONS, Method::GET] {
        let request = Client::new().request(method, &put.url).header("origin", "https://evil.example.com");
        let answer = request.header("access-control-request-method", "PUT").send().await.unwrap();
        assert!(!answer.headers().contains_key("access-control-allow-origin"), "{:?}", answer.headers());
    }
}

/// How many uploads have something on disk.
fn staged(root: &Path) -> usize {
    std::fs::read_dir(root.join("staging")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_uploads_leave_nothing_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (store, bus) = start(folder.path(), 0).await;
    let put = store.presign_put(KEY, &terms(Some(5)));
    let wrong = request(&put).header("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==").body("hello").send().await.unwrap();
    assert!(wrong.status().is_client_error(), "{}", wrong.status());
    assert_eq!(upload(&store, KEY, "hello").await, StatusCode::OK);
    assert_eq!(upload(&store, KEY, "again").await, StatusCode::PRECONDITION_FAILED);
    until("an empty staging folder", async || staged(folder.path()) == 0).await;
    let events = within("the event", bus.pull_events(9, Duration::from_secs(60))).await.unwrap();
    assert_eq!(events.len(), 1);
    assert!(bus.pull_events(9, Duration::from_millis(200)).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_and_urls_outlive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _bus) = start(folder.path(), 0).await;
    let etag = stored(&store, KEY, "kept").await;
    let port = store.endpoint().port().unwrap();
    let put = store.presign_put("imports/later.csv", &terms(None));
    store.shutdown().await;
    assert!(store.check().await.is_err());
    drop(store);
    // What a killed process would have left.
    std::fs::create_dir(folder.path().join("staging/left")).unwrap();
    std::fs::write(folder.path().join("staging/left/object"), "half").unwrap();

    let (store, _bus) = start(folder.path(), port).await;
    assert_eq!(staged(folder.path()), 0);
    assert_eq!(store.get_range(KEY, ByteRange::new(0, 4), &etag).await.unwrap(), "kept");
    assert_eq!(request(&put).body("later").send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_on_disk_is_another_object() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _bus) = start(folder.path(), 0).await;
    let etag = stored(&store, KEY, "first").await;
    std::fs::write(folder.path().join("objects/imports").join(KEY), "other").unwrap();
    let error = store.get_range(KEY, ByteRange::new(0, 5), &etag).await.unwrap_err();
    assert!(matches!(error, ObjectError::Changed { .. }), "{error}");
    let client = S3Store::new(client_config(&store)).unwrap();
    let error = client.get_range(KEY, ByteRange::new(0, 5), &etag).await.unwrap_err();
    assert!(matches!(error, ObjectError::Changed { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_needed_is_refused_even_with_credentials() {
    use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};

    let folder = tempfile::tempdir().unwrap();
    let (store, _bus) = start(folder.path(), 0).await;
    stored(&store, KEY, "kept").await;
    let bucket = Bucket::new(store.endpoint().clone(), UrlStyle::Path, "imports", "us-east-1").unwrap();
    let other = Bucket::new(store.endpoint().clone(), UrlStyle::Path, "other", "us-east-1").unwrap();
    let credentials = Credentials::new("embedded-key", "embedded-secret");
    let minute = Duration::from_secs(60);
    let client = Client::new();
    let attempts = [
        client.delete(bucket.delete_object(Some(&credentials), KEY).sign(minute)),
        client.put(other.create_bucket(&credentials).sign(minute)),
        client.put(other.put_object(Some(&credentials), "k").sign(minute)).body("x"),
        // No key leaves the bucket.
        client.put(bucket.put_object(Some(&credentials), "a//b").sign(minute)).body("x"),
        client.put(bucket.put_object(Some(&credentials), "a\\..\\b").sign(minute)).body("x"),
        client.put(bucket.put_object(Some(&credentials), "folder/").sign(minute)).header("content-length", 0),
        // Objects are never replaced, whoever asks.
        client.put(bucket.put_object(Some(&credentials), KEY).sign(minute)).body("x"),
    ];
    for attempt in attempts {
        let status = attempt.send().await.unwrap().status();
        assert!(status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED, "{status}");
    }
    assert_eq!(store.head(KEY).await.unwrap().unwrap().size, 4);
    let entries = std::fs::read_dir(folder.path().join("objects/imports")).unwrap().count();
    assert_eq!(entries, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (store, bus) = start(folder.path(), 0).await;
    let second = tempfile::tempdir().unwrap();
    let config = EmbeddedConfig {
        root: second.path().to_owned(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, store.endpoint().port().unwrap())),
        public_endpoint: None,
        bucket: "imports".into(),
        region: "us-east-1".into(),
        access_key_id: "key".into(),
        secret_access_key: Secret::new("hunter2"),
        cors_origins: origins(),
    };
    assert!(!format!("{config:?}").contains("hunter2"));
    let error = EmbeddedStore::start(config, bus).await.err().unwrap().to_string();
    assert!(error.contains("LONGSHORE_S3_LISTEN"), "{error}");
}

// What only an S3 server over the network can go through.

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_is_named_until_it_is_made() {
    for config in [minio_config(), versity_config()] {
        missing_until_made(config).await;
    }
}

async fn missing_until_made(config: S3Config) {
    let store = S3Store::new(config).unwrap();
    let error = store.check().await.unwrap_err();
    assert!(matches!(&error, ObjectError::Refused { reason, .. } if reason.contains(store.bucket())), "{error}");
    let error = store.get_range(KEY, ByteRange::new(0, 1), "x").await.unwrap_err();
    assert!(matches!(error, ObjectError::Refused { .. }), "{error}");
    let (first, second) = tokio::join!(store.prepare(), store.prepare());
    first.unwrap();
    second.unwrap();
    store.check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_busy_server_name_the_right_bucket() {
    for config in [minio_config(), versity_config()] {
        let places = futures::future::join_all(
            (0..4).map(|_| server(S3Config { bucket: unique("imports-"), ..config.clone() })),
        );
        let places = places.await;
        let uploads = places.iter().map(|place| async {
            for number in 0..100 {
                let key = format!("imports/{number}/a.csv");
                assert_eq!(upload(&*place.store, &key, "hello").await, StatusCode::OK);
            }
        });
        futures::future::join_all(uploads).await;
        // Every bus gets all events.
        let mut missing: BTreeSet<_> = places
            .iter()
            .flat_map(|place| {
                (0..100).map(|number| (place.store.bucket().to_owned(), format!("imports/{number}/a.csv")))
            })
            .collect();
        let what = format!("the events of all buckets at {}", config.endpoint);
        until(&what, async || {
            for delivery in places[0].bus.pull_events(100, Duration::from_secs(1)).await.unwrap() {
                delivery.receipt.ack().await.unwrap();
                missing.remove(&(delivery.message.bucket, delivery.message.key));
            }
            missing.is_empty()
        })
        .await;
    }
}

mod notifications {
    use super::*;
    use ::minio::s3::client::{MinioClient, MinioClientBuilder};
    use ::minio::s3::creds::StaticProvider;
    use ::minio::s3::http::BaseUrl;
    use ::minio::s3::types::{NotificationConfig, PrefixFilterRule, QueueConfig, S3Api, SuffixFilterRule};

    fn client(config: &S3Config) -> MinioClient {
        let base: BaseUrl = config.endpoint.as_str().trim_end_matches('/').parse().unwrap();
        let provider = StaticProvider::new(&config.access_key_id, config.secret_access_key.expose(), None);
        MinioClientBuilder::new(base).provider(Some(provider)).skip_region_lookup(true).build().unwrap()
    }

    async fn rules(config: &S3Config) -> Vec<QueueConfig> {
        let response = client(config).get_bucket_notification(&config.bucket).unwrap().build().send().await.unwrap();
        response.config().unwrap().queue_config_list.unwrap_or_default()
    }

    fn foreign(config: &S3Config) -> QueueConfig {
        QueueConfig {
            events: vec!["s3:ObjectRemoved:*".into(), "s3:ObjectCreated:Put".into()],
            id: Some("somebody-elses".into()),
            prefix_filter_rule: Some(PrefixFilterRule { value: "pictures&amp;more/".into() }),
            suffix_filter_rule: Some(SuffixFilterRule { value: ".jpg".into() }),
            queue: config.notification_arn.clone().unwrap(),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_rule_that_was_there_stays() {
        let config = minio_config();
        // The bucket alone.
        S3Store::new(S3Config { notification_arn: None, ..config.clone() }).unwrap().prepare().await.unwrap();
        assert!(rules(&config).await.is_empty());
        let there = NotificationConfig { queue_config_list: Some(vec![foreign(&config)]), ..Default::default() };
        let put = client(&config).put_bucket_notification(&config.bucket).unwrap().notification_config(there).build();
        put.send().await.unwrap();
        let before = rules(&config).await;

        let (one, two) = (S3Store::new(config.clone()).unwrap(), S3Store::new(config.clone()).unwrap());
        let (first, second) = tokio::join!(one.prepare(), two.prepare());
        first.unwrap();
        second.unwrap();
        one.prepare().await.unwrap();

        let mut after = rules(&config).await;
        assert_eq!(after.len(), 2, "{after:?}");
        after.retain(|rule| !before.contains(rule));
        assert_eq!(after.len(), 1);
        assert_eq!(after[0].prefix_filter_rule, Some(PrefixFilterRule { value: "imports/".into() }));
        assert_eq!(after[0].events, ["s3:ObjectCreated:*"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_target_that_the_server_does_not_have_stops_nothing() {
        let config = S3Config { notification_arn: Some("arn:minio:sqs::nowhere:nats".into()), ..minio_config() };
        let store = S3Store::new(config.clone()).unwrap();
        store.prepare().await.unwrap();
        store.check().await.unwrap();
        assert!(rules(&config).await.is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_that_has_no_notifications_stops_nothing() {
        let config = S3Config { notification_arn: Some("arn:minio:sqs::longshore:nats".into()), ..versity_config() };
        let store = S3Store::new(config).unwrap();
        for _ in 0..2 {
            store.prepare().await.unwrap();
            store.check().await.unwrap();
        }
    }
}

/// An S3 server that says what a test tells it to, one connection each, and what it was asked.
async fn scripted(answers: Vec<String>) -> (S3Store, tokio::task::JoinHandle<Vec<String>>) {
    scripted_for(CorsOrigins::default(), answers).await
}

/// The same for a store that lets web pages upload.
async fn scripted_for(
    cors_origins: CorsOrigins,
    answers: Vec<String>,
) -> (S3Store, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint: Url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let server = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(socket.read_u8().await.unwrap());
            }
            asked.push(String::from_utf8(request).unwrap());
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    });
    let config = S3Config {
        endpoint: endpoint.clone(),
        public_endpoint: endpoint,
        notification_arn: None,
        cors_origins,
        ..local()
    };
    (S3Store::new(config).unwrap(), server)
}

fn local() -> S3Config {
    let endpoint: Url = "http://127.0.0.1:1".parse().unwrap();
    S3Config {
        endpoint: endpoint.clone(),
        public_endpoint: endpoint,
        bucket: "imports".into(),
        region: "us-east-1".into(),
        access_key_id: "key".into(),
        secret_access_key: Secret::new("hunter2"),
        upload_key: None,
        notification_arn: None,
        events_prefix: "imports/".into(),
        cors_origins: origins(),
    }
}

/// A 206 of which only `body` is sent.
fn partial(start: u64, end: u64, etag: &str, body: &str) -> String {
    let (length, last) = (end - start, end - 1);
    format!(
        "HTTP/1.1 206 Partial Content\r\ncontent-length: {length}\r\ncontent-range: bytes {start}-{last}/10\r\n\
         etag: \"{etag}\"\r\nconnection: close\r\n\r\n{body}"
    )
}

fn whole(status: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: 10\r\netag: \"e\"\r\nconnection: close\r\n\r\n0123456789")
}

/// What a server says to a HEAD of a bucket that the key may not look at, and to the GET that follows.
fn blind(status: &str, code: &str) -> Vec<String> {
    let body = format!("<Error><Code>{code}</Code></Error>");
    let head = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned();
    let get = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    vec![head, get]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_may_not_be_looked_at_is_known_by_what_a_read_says() {
    let (store, server) = scripted(blind("404 Not Found", "NoSuchKey")).await;
    store.check().await.unwrap();
    let asked = server.await.unwrap();
    assert!(asked[0].starts_with("HEAD /imports/?"), "{}", asked[0]);
    assert!(asked[1].starts_with("GET /imports/imports/"), "{}", asked[1]);

    // Neither is there anything to make, nor would this server answer a third request.
    let (store, _server) = scripted(blind("404 Not Found", "NoSuchKey")).await;
    store.prepare().await.unwrap();

    for (status, code) in
        [("404 Not Found", "NoSuchBucket"), ("403 Forbidden", "InvalidAccessKeyId"), ("403 Forbidden", "AccessDenied")]
    {
        let (store, _server) = scripted(blind(status, code)).await;
        let error = store.check().await.unwrap_err();
        let named = if code == "NoSuchBucket" { "no bucket imports" } else { code };
        assert!(matches!(&error, ObjectError::Refused { reason, .. } if reason.contains(named)), "{error}");
    }
}

fn xml(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cors_rule_is_added_to_those_of_others_and_read_back() {
    let theirs = "<CORSRule><AllowedMethod>GET</AllowedMethod><AllowedOrigin>*</AllowedOrigin></CORSRule>";
    // A rule as servers write it back: in an order of their own.
    let ours = format!(
        "<CORSRule><AllowedHeader>Content-Type</AllowedHeader><AllowedHeader>If-None-Match</AllowedHeader>\
         <AllowedHeader>Content-Length</AllowedHeader><AllowedMethod>GET</AllowedMethod><AllowedMethod>HEAD</AllowedMethod>\
         <AllowedMethod>PUT</AllowedMethod><AllowedOrigin>{ORIGIN}</AllowedOrigin><ExposeHeader>ETag</ExposeHeader>\
         <ID>longshore</ID><MaxAgeSeconds>3600</MaxAgeSeconds></CORSRule>"
    );
    let whole = |rules: &str| xml("200 OK", &format!("<CORSConfiguration>{rules}</CORSConfiguration>"));
    let answers = vec![xml("200 OK", ""), whole(theirs), xml("200 OK", ""), whole(&format!("{theirs}{ours}"))];
    let (store, server) = scripted_for(origins(), answers).await;
    store.prepare().await.unwrap();
    let asked: Vec<String> = server.await.unwrap().iter().map(|asked| asked.to_ascii_lowercase()).collect();
    assert!(asked[1].starts_with("get /imports/?") && asked[1].contains("&cors="), "{}", asked[1]);
    assert!(asked[2].starts_with("put /imports/?") && asked[2].contains("content-md5: "), "{}", asked[2]);
    assert!(asked[3].starts_with("get /imports/?") && asked[3].contains("&cors="), "{}", asked[3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_cors_stops_nothing() {
    let refusal = xml("501 Not Implemented", "<Error><Code>NotImplemented</Code></Error>");
    let preflight = xml("403 Forbidden", "");
    let (store, server) = scripted_for(origins(), vec![xml("200 OK", ""), refusal, preflight.clone()]).await;
    store.prepare().await.unwrap();
    assert!(server.await.unwrap()[2].starts_with("OPTIONS /imports/"));
    // One that stumbles over it each time, but has the bucket.
    let mut answers = vec![xml("200 OK", "")];
    answers.extend(vec![xml("500 Internal Server Error", ""); 4]);
    answers.extend([xml("200 OK", ""), preflight]);
    let (store, server) = scripted_for(origins(), answers).await;
    store.prepare().await.unwrap();
    assert_eq!(server.await.unwrap().len(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_of_the_moment_is_tried_again() {
    let answers = vec![whole("503 Slow Down"), whole("200 OK"), partial(2, 6, "e", "23"), partial(2, 6, "e", "2345")];
    let (store, server) = scripted_for(origins(), answers).await;
    assert_eq!(store.get_range(KEY, ByteRange::new(2, 6), "e").await.unwrap(), "2345");
    for asked in server.await.unwrap() {
        let asked = asked.to_ascii_lowercase();
        assert!(asked.contains("range: bytes=2-5\r\n") && asked.contains("if-match: \"e\"\r\n"), "{asked}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_that_stays_is_an_error_without_signatures() {
    for answer in [whole("503 Slow Down"), whole("200 OK"), partial(2, 6, "e", "2"), partial(1, 5, "e", "1234")] {
        let (store, server) = scripted(vec![answer; 4]).await;
        let error = store.get_range(KEY, ByteRange::new(2, 6), "e").await.unwrap_err();
        assert!(matches!(error, ObjectError::Unavailable { .. }), "{error}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("X-Amz") && !shown.contains("hunter2"), "{shown}");
        assert_eq!(server.await.unwrap().len(), 4);
    }
    let (store, _server) = scripted(vec![partial(2, 6, "other", "2345")]).await;
    let error = store.get_range(KEY, ByteRange::new(2, 6), "e").await.unwrap_err();
    assert!(matches!(error, ObjectError::Changed { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_read_goes_on_where_it_broke() {
    let (store, server) = scripted(vec![partial(0, 10, "e", "0123"), partial(4, 10, "e", "456789")]).await;
    assert_eq!(read_all(&store, 0, 10, "e").await.unwrap(), b"0123456789");
    assert!(server.await.unwrap()[1].to_ascii_lowercase().contains("range: bytes=4-9\r\n"));
    // Another object in its place is no continuation.
    let changed = "HTTP/1.1 412 Precondition Failed\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned();
    let (store, _server) = scripted(vec![partial(0, 10, "e", "0123"), changed]).await;
    assert!(matches!(read_all(&store, 0, 10, "e").await, Err(ObjectError::Changed { .. })));
}
