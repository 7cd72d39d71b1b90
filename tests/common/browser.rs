//! A real browser without a window, and the pages that it looks at.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::Value;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;

use super::DEADLINE;
use super::process::clean_command;

/// A web server of the test's own, which serves `examples/browser` with `tests/browser/drive.js` in it.
pub struct Site {
    /// The pages' origin.
    pub origin: String,
    reports: mpsc::Receiver<Value>,
    _served: tokio::task::JoinHandle<()>,
}

impl Site {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let (told, reports) = mpsc::channel(1);
        let router = Router::new()
            .route("/", get(|| async { page() }))
            .route("/upload.js", get(|| async { script(include_str!("../../examples/browser/upload.js")) }))
            .route("/drive.js", get(|| async { script(include_str!("../browser/drive.js")) }))
            .route("/report", post(take))
            .with_state(told);
        let served = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { origin, reports, _served: served }
    }

    /// Opens the page in a browser of its own and waits for what it saw.
    pub async fn visit(&mut self, folder: &Path, scenario: &str, api: &str, more: &str) -> Value {
        let url = format!("{}/?scenario={scenario}&api={api}{more}", self.origin);
        let _browser = Browser::open(folder, &url);
        let report = tokio::time::timeout(DEADLINE, self.reports.recv()).await;
        let report = report.unwrap_or_else(|_| panic!("the page did not report within {DEADLINE:?}")).unwrap();
        assert_eq!(report["thrown"], Value::Null, "{report:#}");
        report
    }
}

/// The page as it is, and behind it what drives it.
fn page() -> impl IntoResponse {
    let page = include_str!("../../examples/browser/index.html");
    let page = format!("{page}<script type=\"module\" src=\"./drive.js\"></script>\n");
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page)
}

fn script(text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], text)
}

async fn take(State(told): State<mpsc::Sender<Value>>, body: Bytes) {
    told.send(serde_json::from_slice(&body).unwrap()).await.unwrap();
}

/// Chromium on one page; it and all its processes end with it.
struct Browser(Child);

impl Browser {
    fn open(folder: &Path, url: &str) -> Self {
        use std::os::unix::process::CommandExt as _;
        let profile = folder.join(super::unique("profile-"));
        std::fs::create_dir(&profile).unwrap();
        let log = std::fs::File::create(profile.join("log")).unwrap();
        let mut command = clean_command("chromium", folder);
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-breakpad"])
            .args(["--disable-dev-shm-usage", "--no-proxy-server", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(url)
            // What it keeps in a home stays in the test's folder.
            .env("HOME", &profile)
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        Self(command.spawn().expect("chromium is started; `deploy/servers install` installs it"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.0.wait();
    }
}

/// A line to the storage that is slow towards it, so that there is progress to see.
pub struct SlowLine {
    pub address: String,
    task: tokio::task::JoinHandle<()>,
}

impl SlowLine {
    /// Listens on `port`; connects when somebody calls, 20 MB/s upwards.
    pub fn start(port: u16, upstream: String) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        // Nothing large waits in the kernel, looking as if it had arrived.
        socket.set_recv_buffer_size(64 << 10).unwrap();
        socket.bind(([127, 0, 0, 1], port).into()).unwrap();
        let listener = socket.listen(64).unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let upstream = upstream.clone();
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(upstream).await {
                        carry(client, server).await;
                    }
                });
            }
        });
        Self { address: format!("http://127.0.0.1:{port}"), task }
    }
}

impl Drop for SlowLine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, server: TcpStream) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let mut block = vec![0; 64 << 10];
        while let Ok(read) = from_client.read(&mut block).await {
            if read == 0 || to_server.write_all(&block[..read]).await.is_err() {
                break;
            }
            // The slow line itself; nothing is awaited by it.
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        let _ = to_server.shutdown().await;
    };
    let down = tokio::io::copy(&mut from_server, &mut to_client);
    let _ = tokio::join!(up, down);
}
