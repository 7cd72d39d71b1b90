//! The clients of `examples/clients`, which the guides refer to, as they stand there: against the real embedded service, with
//! good and bad files, a service that is killed in the middle, and a proxy that loses answers.
//!
//! Needs sh with curl, Python 3 and Node 18 or later (`deploy/servers install`).
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::net::SocketAddr;
use std::path::Path;

use futures::future::join_all;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use common::data::source;
use common::process::Process;
use common::service::{Service, open, serve};
use common::{free_port, seed, until};

/// A client: its name, what runs it, and what it says while the service is away.
#[derive(Debug, Clone, Copy)]
struct Client {
    name: &'static str,
    runner: &'static str,
    script: &'static str,
    waits: &'static str,
}

const CLIENTS: [Client; 3] = [
    Client {
        name: "curl",
        runner: "sh",
        script: concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/clients/import.sh"),
        waits: "Will retry",
    },
    Client {
        name: "python",
        runner: "python3",
        script: concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/clients/import.py"),
        waits: "trying again",
    },
    Client {
        name: "javascript",
        runner: "node",
        script: concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/clients/import.mjs"),
        waits: "trying again",
    },
];

impl Client {
    /// Starts it in a folder.
    fn start(self, folder: &Path, server: &str, arguments: &[&str]) -> Process {
        let arguments = [&[self.script, "--server", server], arguments].concat();
        Process::spawn(&common::unique(self.name), self.runner, &arguments, Vec::new(), folder)
    }

    /// Runs it to its end.
    async fn run(self, folder: &Path, server: &str, arguments: &[&str]) -> Ended {
        ended(self.start(folder, server, arguments)).await
    }
}

/// How a client ended.
struct Ended {
    code: i32,
    /// What it printed on stdout: the import, where it came to one.
    import: Value,
    /// Everything that it said.
    said: String,
}

async fn ended(mut process: Process) -> Ended {
    let code = process.end().await.code().unwrap();
    let said = process.log();
    println!("---- {} ended with {code}:\n{said}", process.name());
    let import = said.lines().find(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap());
    Ended { code, import: import.unwrap_or_default(), said }
}

fn count(service: &Service, table: &str) -> i64 {
    let tables = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?1";
    let database = open(&service.sqlite());
    match database.query_row(tables, [table], |row| row.get::<_, i64>(0)).unwrap() {
        0 => 0,
        _ => database.query_row(&format!("SELECT count(*) FROM \"{table}\""), [], |row| row.get(0)).unwrap(),
    }
}

/// 300 good rows, and 120 with a field too many: more than a page, more than the clients list.
fn ragged() -> String {
    let good = (1..=300).map(|id| format!("{id},\"a \"\"b\"\"\"\n"));
    let bad = (301..=420).map(|id| format!("{id},\"}},{{\"\"row\"\":1\",more\n"));
    std::iter::once("id,name\n".to_owned()).chain(good).chain(bad).collect()
}

#[tokio::test]
async fn they_load_files_list_rejects_and_import_the_mended_file() {
    let service = serve(&[]).await;
    let (folder, server) = (service.folder.path(), &service.api.base);
    std::fs::write(folder.join("good file.csv"), source(seed(), 3_000, 1, 0).csv).unwrap();
    std::fs::write(folder.join("ragged.csv"), ragged()).unwrap();
    for client in CLIENTS {
        let name = client.name;
        let good = client.run(folder, server, &["--table", &format!("good_{name}"), "good file.csv"]).await;
        assert_eq!((good.code, good.import["state"].as_str()), (0, Some("succeeded")), "{name}");
        assert_eq!(good.import["source"]["key"].as_str().unwrap().rsplit('/').next(), Some("good_file.csv"));
        assert_eq!(count(&service, &format!("good_{name}")), 3_000);

        let (table, file) = (format!("ragged_{name}"), format!("{name}.csv"));
        let arguments = ["--table", &table, "--max-rejects", "none", "--rejects", &file, "ragged.csv"];
        let rejected = client.run(folder, server, &arguments).await;
        assert_eq!((rejected.code, rejected.import["progress"]["rows_rejected"].as_u64()), (3, Some(120)), "{name}");
        let listed: Vec<&str> = rejected.said.lines().filter(|line| line.starts_with("row ")).collect();
        assert_eq!(listed.len(), 100, "{name} lists two pages, and not the third");
        for (place, line) in listed.iter().enumerate() {
            let begins = format!("row {} (line {}): extra_field ", 301 + place, 302 + place);
            assert!(line.starts_with(&begins), "{name}: {line}");
        }
        let path = format!("{server}/v1/imports/{}/rejects", rejected.import["id"].as_str().unwrap());
        let whole = service.api.http.get(path).header("accept", "text/csv").send().await.unwrap();
        let saved = std::fs::read_to_string(folder.join(&file)).unwrap();
        assert_eq!(saved, whole.text().await.unwrap(), "{name}");
        assert_eq!(count(&service, &table), 300);

        std::fs::write(folder.join("mended.csv"), saved.replace(",more", "")).unwrap();
        let mended = client.run(folder, server, &["--table", &table, "mended.csv"]).await;
        assert_eq!((mended.code, count(&service, &table)), (0, 420), "{name}");
    }
}

#[tokio::test]
async fn their_exit_codes_tell_failure_from_misuse() {
    let service = serve(&[]).await;
    let (folder, server) = (service.folder.path(), &service.api.base);
    std::fs::write(folder.join("ragged.csv"), ragged()).unwrap();
    std::fs::write(folder.join("empty.csv"), "").unwrap();
    for client in CLIENTS {
        let name = client.name;
        let file = format!("{name}.csv");
        let arguments = ["--table", "t", "--max-rejects", "5", "--rejects", &file, "ragged.csv"];
        let failed = client.run(folder, server, &arguments).await;
        assert_eq!((failed.code, failed.import["state"].as_str()), (1, Some("failed")), "{name}");
        assert!(failed.said.contains("max_rejects is 5"), "{name}");
        assert!(folder.join(&file).exists(), "{name} saves the rejects of a failed import, too");
        assert_eq!(count(&service, "t"), 0, "{name}");

        let empty = client.run(folder, server, &["--table", "t", "empty.csv"]).await;
        assert_eq!(empty.code, 1, "{name}");
        assert!(empty.said.contains("holds no byte"), "{name}");
        let refused = client.run(folder, server, &["--table", "a.b.c", "ragged.csv"]).await;
        assert_eq!(refused.code, 1, "{name}");
        assert!(refused.said.contains("400: /destination/table: "), "{name}");
        for misuse in [&["ragged.csv"][..], &["--table", "t"], &["--table", "t", "no-such-file.csv"]] {
            assert_eq!(client.run(folder, server, misuse).await.code, 2, "{name} {misuse:?}");
        }
    }
}

#[tokio::test]
async fn they_outlive_a_service_that_is_killed_in_the_middle() {
    let file = source(seed(), 20_000, 1, 0).csv;
    let kill = async |client: Client| {
        let mut service = serve(&[("CHUNK_SIZE", "1500")]).await;
        let folder = service.folder.path().to_owned();
        std::fs::write(folder.join("big.csv"), &file).unwrap();
        let running = client.start(&folder, &service.api.base, &["--table", "big", "big.csv"]);
        let id = until("the client has an import", async || {
            let log = running.log();
            log.lines().find_map(|line| line.strip_prefix("import ")).map(str::to_owned)
        });
        service.api.chunks_done(&id.await, 3).await;
        service.process.kill();
        running.says(client.waits).await;
        service.process.start();
        service.process.ready().await;
        let ended = ended(running).await;
        assert_eq!((ended.code, ended.import["state"].as_str()), (0, Some("succeeded")), "{}", client.name);
        assert_eq!(count(&service, "big"), 20_000, "{}", client.name);
    };
    join_all(CLIENTS.map(kill)).await;
}

#[tokio::test]
async fn a_lost_answer_a_busy_gateway_and_a_refused_url_cost_time_only() {
    let service = serve(&[]).await;
    let folder = service.folder.path();
    let api = service.api.base.strip_prefix("http://").unwrap().parse().unwrap();
    std::fs::write(folder.join("a.csv"), source(seed(), 500, 1, 0).csv).unwrap();
    for client in CLIENTS {
        for (fault, said) in [
            (Fault::Lost, client.waits),
            (Fault::Busy, client.waits),
            (Fault::WrongSignature, "asking for a fresh URL"),
        ] {
            let table = common::unique("t");
            let server = format!("http://{}", proxy(api, fault).await);
            let ended = client.run(folder, &server, &["--table", &table, "a.csv"]).await;
            assert_eq!(ended.code, 0, "{} {fault:?}", client.name);
            assert!(ended.said.contains(said), "{} {fault:?} has to be noticed", client.name);
            let imports = service.api.got(&format!("/v1/imports?table={table}")).await;
            assert_eq!(imports["items"].as_array().unwrap().len(), 1, "{} {fault:?}: one key, one import", client.name);
            assert_eq!(count(&service, &table), 500, "{} {fault:?}", client.name);
        }
    }
}

#[tokio::test]
async fn an_upload_whose_answer_was_lost_is_found_to_be_there() {
    let file = source(seed(), 500, 1, 0).csv;
    for client in CLIENTS {
        let storage = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let public = format!("http://{}", proxy(storage, Fault::Lost).await);
        let service = serve(&[("S3_LISTEN", &storage.to_string()), ("S3_PUBLIC_ENDPOINT", &public)]).await;
        let folder = service.folder.path();
        std::fs::write(folder.join("a.csv"), &file).unwrap();
        let ended = client.run(folder, &service.api.base, &["--table", "t", "a.csv"]).await;
        assert_eq!((ended.code, count(&service, "t")), (0, 500), "{}", client.name);
        assert!(ended.said.contains("the upload broke off"), "{}", client.name);
        assert!(ended.said.contains("the file is there already"), "{}", client.name);
        assert!(!ended.said.contains("X-Amz-Signature"), "{}: a presigned URL is a secret", client.name);
    }
}

#[tokio::test]
async fn the_same_key_goes_on_with_the_same_import() {
    let service = serve(&[]).await;
    let (folder, server) = (service.folder.path(), &service.api.base);
    std::fs::write(folder.join("a.csv"), source(seed(), 500, 1, 0).csv).unwrap();
    for client in CLIENTS {
        let arguments = ["--key", client.name, "--table", client.name, "a.csv"];
        let first = client.run(folder, server, &arguments).await;
        let second = client.run(folder, server, &arguments).await;
        assert_eq!((first.code, second.code), (0, 0), "{}", client.name);
        assert_eq!(first.import["id"], second.import["id"], "{}", client.name);
        assert!(second.said.contains("the file was uploaded before"), "{}", client.name);
        assert_eq!(count(&service, client.name), 500, "{}", client.name);
        let other = client.run(folder, server, &["--key", client.name, "--table", "other", "a.csv"]).await;
        assert_eq!(other.code, 1, "{}", client.name);
        assert!(other.said.contains("422: another request"), "{}", client.name);
    }
}

/// What a proxy does to the first connection that it gets. Everything behind it passes.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The request goes through; the connection breaks instead of an answer.
    Lost,
    /// The request goes nowhere: `503`, as gateways say it.
    Busy,
    /// The presigned URL in the answer has another signature.
    WrongSignature,
}

async fn proxy(target: SocketAddr, fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut fault = Some(fault);
        loop {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(pass(client, target, fault.take()));
        }
    });
    address
}

async fn pass(mut client: TcpStream, target: SocketAddr, fault: Option<Fault>) -> std::io::Result<()> {
    match fault {
        None => {}
        Some(Fault::Busy) => {
            message(&mut client).await?;
            let answer = b"HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            return client.write_all(answer).await;
        }
        Some(Fault::Lost) => {
            let mut server = TcpStream::connect(target).await?;
            server.write_all(&message(&mut client).await?).await?;
            // curl asks first whether it may upload; that answer is none yet.
            if message(&mut server).await?.ends_with(b" 100 Continue\r\n\r\n") {
                server.read_u8().await?;
            }
            return Ok(());
        }
        Some(Fault::WrongSignature) => {
            let mut server = TcpStream::connect(target).await?;
            server.write_all(&message(&mut client).await?).await?;
            let mut answer = message(&mut server).await?;
            let name = b"X-Amz-Signature=";
            let at = answer.windows(name.len()).position(|part| part == name).expect("a presigned URL") + name.len();
            answer[at] = if answer[at] == b'0' { b'1' } else { b'0' };
            client.write_all(&answer).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
            return Ok(());
        }
    }
    let mut server = TcpStream::connect(target).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// A request or an answer: its head, and as much body as it announces.
async fn message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(head) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            let length: usize = length.unwrap_or(0);
            if bytes.len() >= head + 4 + length {
                return Ok(bytes);
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(bytes);
        }
    }
}
