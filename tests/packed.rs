//! Packed files and files of other encodings: decoded once, and loaded by all workers as plain files are.
//!
//! Needs `deploy/servers test`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use async_compression::tokio::write::{BzEncoder, GzipEncoder, XzEncoder, ZstdEncoder};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use common::api::{assert_failed, assert_succeeded, assert_tiles, id_of};
use common::cluster::{Cluster, Options};
use common::data::{HEADER, columns, source};
use common::s3::{S3Kind, on_every_s3_server};
use common::service::{open, serve};
use common::{seed, until};

on_every_s3_server!(
    packed_files_load_as_plain_ones_do,
    files_of_other_encodings_load_as_utf_8_does,
    an_owner_that_is_killed_while_it_decodes_loses_and_repeats_nothing,
    decoded_text_that_is_lost_is_made_again,
);

async fn pack(compression: &str, text: &[u8]) -> Vec<u8> {
    macro_rules! packed {
        ($encoder:ident) => {{
            let mut encoder = $encoder::new(Vec::new());
            encoder.write_all(text).await.unwrap();
            encoder.shutdown().await.unwrap();
            encoder.into_inner()
        }};
    }
    match compression {
        "gzip" => packed!(GzipEncoder),
        "zstd" => packed!(ZstdEncoder),
        "bzip2" => packed!(BzEncoder),
        "xz" => packed!(XzEncoder),
        other => panic!("{other}"),
    }
}

/// Nothing decoded stays in the bucket once the import is over.
async fn assert_no_text_stays(cluster: &Cluster) {
    until("decoded text is removed", async || (!cluster.bucket.list().await.contains("/.decoded/")).then_some(()))
        .await;
    let parts = cluster.database.one("SELECT count(*)::text FROM longshore_text_parts").await;
    assert_eq!(parts, "0");
}

fn request(table: &str, file: &str) -> Value {
    json!({"destination": {"table": table}, "file": {"name": file}, "columns": columns(), "on_error": {"max_rejects": null}})
}

/// Some parts of decoded text, of some dozens of chunks each.
fn of_parts(s3: S3Kind) -> Options<'static> {
    Options { events: true, chunk_size: "65536", ..Options::on(s3) }
}

async fn packed_files_load_as_plain_ones_do(s3: S3Kind) {
    let cluster = Cluster::start(&Options { events: true, ..Options::on(s3) }).await;
    let source = source(seed(), 6_000, 1, 50);
    for compression in ["gzip", "zstd", "bzip2", "xz"] {
        // Two streams, cut in the middle of a record; the name tells nothing.
        let (first, second) = source.csv.split_at(source.csv.len() / 2 + 3);
        let body = [pack(compression, first).await, pack(compression, second).await].concat();
        let size = body.len();
        let import = cluster.api.import(&request(compression, "trips.csv"), body).await;
        assert_succeeded(&import);
        assert_eq!(import["format"]["compression"], compression, "{import:#}");
        assert_eq!(import["progress"]["bytes_total"], size);
        cluster.database.assert_holds(compression, &[&source.good_csv]).await;
        let path = format!("/v1/imports/{}", id_of(&import));
        let chunks = cluster.api.all(&format!("{path}/chunks"), 500).await;
        assert_eq!(assert_tiles(&chunks, source.csv.len() as u64), 6_000, "offsets are those of the text");
        assert!(chunks.len() > 10);
        let rejects = cluster.api.all(&format!("{path}/rejects"), 500).await;
        assert_eq!(rejects.iter().map(|reject| reject["row"].as_u64().unwrap()).collect::<Vec<_>>(), source.bad);
    }
    cluster.database.assert_tidy().await;
    assert_no_text_stays(&cluster).await;
    cluster.assert_clean_logs();
}

async fn files_of_other_encodings_load_as_utf_8_does(s3: S3Kind) {
    let cluster = Cluster::start(&Options { events: true, ..Options::on(s3) }).await;
    let source = source(seed(), 3_000, 1, 50);
    let text = String::from_utf8(source.csv.clone()).unwrap();
    let utf16 = |mark: &str, unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
        format!("{mark}{text}").encode_utf16().flat_map(unit).collect()
    };
    let (little, big) = (utf16("\u{feff}", u16::to_le_bytes), utf16("\u{feff}", u16::to_be_bytes));
    let bare = utf16("", u16::to_le_bytes);
    let packed = pack("zstd", &big).await;
    for (table, body, encoding) in [
        ("le", little, "utf-16le"),
        ("be", big, "utf-16be"),
        ("bare", bare, "utf-16le"),
        ("packed", packed, "utf-16be"),
    ] {
        let import = cluster.api.import(&request(table, "trips.csv"), body).await;
        assert_succeeded(&import);
        assert_eq!(import["format"]["encoding"], encoding, "{import:#}");
        cluster.database.assert_holds(table, &[&source.good_csv]).await;
    }
    // Of one byte a character: without what these cannot write.
    let western = text.replace('港', "Hafen");
    let good = String::from_utf8(source.good_csv).unwrap().replace('港', "Hafen");
    let latin1: Vec<u8> = western.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    let windows = {
        let mut bytes: Vec<u8> = Vec::new();
        for c in western.replace("Ana", "€na").chars() {
            bytes.push(if c == '€' { 0x80 } else { u8::try_from(u32::from(c)).unwrap() });
        }
        bytes
    };
    let import = cluster.api.import(&request("windows", "trips.csv"), windows).await;
    assert_succeeded(&import);
    assert_eq!(import["format"]["encoding"], "windows-1252", "{import:#}");
    cluster.database.assert_holds("windows", &[good.replace("Ana", "€na").as_bytes()]).await;
    let mut given = request("latin", "trips.csv");
    given["format"] = json!({"encoding": "iso-8859-1"});
    let import = cluster.api.import(&given, latin1).await;
    assert_succeeded(&import);
    cluster.database.assert_holds("latin", &[good.as_bytes()]).await;
    assert_no_text_stays(&cluster).await;
    cluster.assert_clean_logs();
}

async fn an_owner_that_is_killed_while_it_decodes_loses_and_repeats_nothing(s3: S3Kind) {
    let mut cluster = Cluster::start(&of_parts(s3)).await;
    let source = source(seed(), 300_000, 1, 5_000);
    let id = cluster.api.begin(&request("trips", "trips.csv.gz"), pack("gzip", &source.csv).await).await;
    let owner = until("it is decoded, by an owner", async || {
        let decodes = cluster.bucket.list().await.contains("/.decoded/");
        let done = cluster.api.got(&format!("/v1/imports/{id}")).await["done"] == true;
        assert!(!done, "it ended before anybody could be killed");
        if decodes { cluster.owner().await } else { None }
    })
    .await;
    cluster.workers[owner].kill();
    cluster.workers[owner].start();
    let import = cluster.api.done(&id).await;
    assert_succeeded(&import);
    cluster.database.assert_holds("trips", &[&source.good_csv]).await;
    assert_eq!(import["progress"]["rows_rejected"], source.bad.len());
    cluster.database.assert_tidy().await;
    assert_no_text_stays(&cluster).await;
}

async fn decoded_text_that_is_lost_is_made_again(s3: S3Kind) {
    let cluster = Cluster::start(&of_parts(s3)).await;
    let source = source(seed(), 300_000, 1, 0);
    let id = cluster.api.begin(&request("trips", "trips.csv.gz"), pack("gzip", &source.csv).await).await;
    let key = until("a part is there", async || {
        let listing = cluster.bucket.list().await;
        let mut keys = listing.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
        keys.find(|key| key.contains("/.decoded/")).map(str::to_owned)
    })
    .await;
    cluster.bucket.delete(&key).await;
    let import = cluster.api.done(&id).await;
    assert_succeeded(&import);
    cluster.database.assert_holds("trips", &[&source.good_csv]).await;
    cluster.database.assert_tidy().await;
    assert_no_text_stays(&cluster).await;
}

#[tokio::test]
async fn a_packed_file_that_is_broken_fails_and_says_why() {
    let service = serve(&[("CHUNK_SIZE", "4096")]).await;
    let source = source(seed(), 20_000, 1, 0);
    let gzip = pack("gzip", &source.csv).await;
    let mut flipped = gzip.clone();
    flipped[gzip.len() / 2] ^= 0x5A;
    let bomb = pack("zstd", &[HEADER.as_bytes(), &vec![b'1'; 300 << 20]].concat()).await;
    for (body, format, word) in [
        (gzip[..gzip.len() - 9].to_vec(), json!({}), "cut off"),
        (flipped, json!({}), "gzip"),
        ([gzip.as_slice(), b"no stream"].concat(), json!({}), "gzip"),
        (bomb, json!({}), "times"),
        (b"a\n1\n".to_vec(), json!({"compression": "gzip"}), "gzip"),
        (b"PK\x03\x04\x14\0\0\0\x08\0trips.csv".to_vec(), json!({}), "zip"),
    ] {
        let mut request = request("trips", "trips.csv");
        request["format"] = format;
        let import = service.api.import(&request, body).await;
        assert_eq!(import["state"], "failed", "{import:#}");
        assert!(import["error"]["detail"].as_str().unwrap().contains(word), "{word}: {import:#}");
        let rows = open(&service.sqlite()).prepare("SELECT * FROM trips").map(drop);
        assert!(rows.is_err(), "a failed import leaves no table");
    }
    let import = service.api.import(&request("packed", "x"), pack("xz", &source.csv).await).await;
    assert_succeeded(&import);
    let count: i64 = open(&service.sqlite()).query_row("SELECT count(*) FROM packed", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 20_000);
    let left = open(&service.sqlite()).query_row("SELECT count(*) FROM longshore_text_parts", [], |row| row.get(0));
    assert_eq!(left, Ok(0_i64));
    assert_failed(&service.api.import(&request("empty", "x"), pack("gzip", b"").await).await, "empty-file");
}
