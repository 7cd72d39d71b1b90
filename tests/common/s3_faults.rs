//! An HTTP proxy before an S3 server that fails as S3 servers do: it refuses, breaks off, cuts short, crawls, answers
//! what was not asked for, or not at all.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::Method;
use reqwest::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, RANGE, TRANSFER_ENCODING};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::until;

/// Between the pieces of an answer that crawls.
const CRAWL: Duration = Duration::from_millis(300);

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    InternalError,
    SlowDown,
    TooManyRequests,
    /// The connection is reset in the middle of the body.
    Reset,
    /// It ends there in order.
    Truncated,
    /// The body is too short, and the length says so.
    Short,
    /// A few bytes, a pause, and the rest.
    Slow,
    /// `200` with all of the object.
    Whole,
    /// `206` with another range.
    OtherRange,
    /// Nothing, ever.
    Hang,
}

impl Fault {
    pub const ALL: [Self; 10] = [
        Self::InternalError,
        Self::SlowDown,
        Self::TooManyRequests,
        Self::Reset,
        Self::Truncated,
        Self::Short,
        Self::Slow,
        Self::Whole,
        Self::OtherRange,
        Self::Hang,
    ];

    /// Whether it is one of answers without a body, too.
    fn suits_head(self) -> bool {
        !matches!(self, Self::Truncated | Self::Short | Self::Whole | Self::OtherRange)
    }
}

/// The proxy. It ends with the test.
pub struct S3Faults {
    pub endpoint: String,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

struct Shared {
    upstream: String,
    http: reqwest::Client,
    state: Mutex<State>,
    holding: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    faults: Option<(StdRng, f64, Vec<Fault>)>,
    counts: BTreeMap<Fault, u32>,
    /// How many reads of objects may pass before the next ones wait.
    pass: Option<u32>,
    waiting: u32,
}

struct Request {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

struct Answer {
    status: reqwest::StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl S3Faults {
    /// Before the server at that endpoint.
    pub async fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            http: reqwest::Client::new(),
            state: Mutex::default(),
            holding: watch::Sender::new(false),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { endpoint, shared, accepting }
    }

    /// From now on so many of the HEADs and GETs fail.
    pub fn fail(&self, seed: u64, share: f64, faults: &[Fault]) {
        self.shared.state().faults = Some((StdRng::seed_from_u64(seed), share, faults.to_vec()));
    }

    /// From now on none does. Those that hang go on to.
    pub fn mend(&self) {
        self.shared.state().faults = None;
    }

    /// How often each fault came about.
    pub fn counts(&self) -> BTreeMap<Fault, u32> {
        self.shared.state().counts.clone()
    }

    /// Reads of objects wait behind the first ones, until they are let go.
    pub fn hold(&self, pass: u32) {
        let mut state = self.shared.state();
        (state.pass, state.waiting) = (Some(pass), 0);
        drop(state);
        self.shared.holding.send_replace(true);
    }

    /// Waits until one waits.
    pub async fn held(&self) {
        until("an object is read", async || (self.shared.state().waiting > 0).then_some(())).await;
    }

    pub fn let_go(&self) {
        self.shared.state().pass = None;
        self.shared.holding.send_replace(false);
    }
}

impl Drop for S3Faults {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            // An error is a client that went away, or a connection that is to break.
            let _ = serve(client, &shared).await;
        });
    }
}

async fn serve(client: TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut client = BufReader::new(client);
    while let Some(request) = read(&mut client).await? {
        shared.wait(&request).await;
        let fault = shared.fate(&request.method);
        answer(&mut client, shared, request, fault).await?;
    }
    Ok(())
}

fn broken(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, what.to_string())
}

/// The next request; `None` where the client hung up.
async fn read(client: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if client.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().and_then(|word| word.parse().ok()).ok_or_else(|| broken("no method"))?;
    let path = words.next().ok_or_else(|| broken("no path"))?.to_owned();
    let mut headers = HeaderMap::new();
    loop {
        let mut line = String::new();
        client.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(broken)?;
        headers.append(name, HeaderValue::from_str(value).map_err(broken)?);
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    client.read_exact(&mut body).await?;
    Ok(Some(Request { method, path, headers, body }))
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while reads are held.
    async fn wait(&self, request: &Request) {
        let waits = |state: &mut State| match &mut state.pass {
            _ if request.method != Method::GET || !request.headers.contains_key(RANGE) => false,
            None => false,
            Some(0) => {
                state.waiting += 1;
                true
            }
            Some(pass) => {
                *pass -= 1;
                false
            }
        };
        if waits(&mut self.state()) {
            let _ = self.holding.subscribe().wait_for(|holding| !holding).await;
        }
    }

    /// Whether this request fails, and how; counted.
    fn fate(&self, method: &Method) -> Option<Fault> {
        if method != Method::GET && method != Method::HEAD {
            return None;
        }
        let mut state = self.state();
        let (random, share, faults) = state.faults.as_mut()?;
        let suitable: Vec<Fault> =
            faults.iter().copied().filter(|fault| method == Method::GET || fault.suits_head()).collect();
        if suitable.is_empty() || !random.random_bool(*share) {
            return None;
        }
        let fault = suitable[random.random_range(0..suitable.len())];
        *state.counts.entry(fault).or_default() += 1;
        Some(fault)
    }

    /// What the server says. The host is the one that was signed.
    async fn ask(&self, request: Request) -> io::Result<Answer> {
        let url = format!("{}{}", self.upstream, request.path);
        let mut headers = request.headers;
        headers.remove(CONNECTION);
        let asked = self.http.request(request.method, url).headers(headers).body(request.body);
        let answer = asked.send().await.map_err(broken)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        Ok(Answer { status, headers, body: answer.bytes().await.map_err(broken)?.to_vec() })
    }
}

/// Answers, or breaks the connection.
async fn answer(
    client: &mut BufReader<TcpStream>,
    shared: &Shared,
    mut request: Request,
    fault: Option<Fault>,
) -> io::Result<()> {
    let is_head = request.method == Method::HEAD;
    let refusal = match fault {
        Some(Fault::InternalError) => Some((500, "InternalError")),
        Some(Fault::SlowDown) => Some((503, "SlowDown")),
        Some(Fault::TooManyRequests) => Some((429, "TooManyRequests")),
        _ => None,
    };
    if let Some((status, code)) = refusal {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>").into_bytes();
        let status = reqwest::StatusCode::from_u16(status).map_err(broken)?;
        let answer = Answer { status, headers: HeaderMap::new(), body };
        let length = answer.body.len();
        client.write_all(&head(&answer, Some(length))).await?;
        return if is_head { Ok(()) } else { client.write_all(&answer.body).await };
    }
    match fault {
        Some(Fault::Hang) => {
            // Until the client has enough of it.
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await?;
            return Err(broken("it had enough"));
        }
        Some(Fault::Whole) => drop(request.headers.remove(RANGE)),
        Some(Fault::OtherRange) => shift(&mut request.headers),
        _ => {}
    }
    let answer = shared.ask(request).await?;
    let (length, half) = (answer.body.len(), answer.body.len() / 2);
    if is_head {
        if fault == Some(Fault::Reset) {
            return reset(client);
        }
        if fault == Some(Fault::Slow) {
            tokio::time::sleep(CRAWL).await;
        }
        return client.write_all(&head(&answer, None)).await;
    }
    let told = if fault == Some(Fault::Short) { half } else { length };
    client.write_all(&head(&answer, Some(told))).await?;
    match fault {
        Some(Fault::Reset | Fault::Truncated) => {
            client.write_all(&answer.body[..half]).await?;
            if fault == Some(Fault::Reset) { reset(client) } else { Err(broken("enough")) }
        }
        Some(Fault::Slow) => {
            let (first, rest) = answer.body.split_at(length.min(3));
            client.write_all(first).await?;
            tokio::time::sleep(CRAWL).await;
            client.write_all(rest).await
        }
        _ => client.write_all(&answer.body[..told]).await,
    }
}

/// Status line and headers; of an answer without a body the length that the server told.
fn head(answer: &Answer, length: Option<usize>) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {}\r\n", answer.status).into_bytes();
    let told = |name: &HeaderName| {
        name == TRANSFER_ENCODING || name == CONNECTION || (name == CONTENT_LENGTH && length.is_some())
    };
    for (name, value) in answer.headers.iter().filter(|(name, _)| !told(name)) {
        head.extend_from_slice(format!("{name}: ").as_bytes());
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    if let Some(length) = length {
        head.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// The range one byte before the one that is asked for, or behind it.
fn shift(headers: &mut HeaderMap) {
    let Some(range) = headers.get(RANGE).and_then(|range| range.to_str().ok()?.strip_prefix("bytes=")) else { return };
    let Some((start, last)) = range.split_once('-') else { return };
    let (Ok(start), Ok(last)) = (start.parse::<u64>(), last.parse::<u64>()) else { return };
    let other = if start > 0 { format!("bytes={}-{}", start - 1, last - 1) } else { format!("bytes=1-{}", last + 1) };
    headers.insert(RANGE, HeaderValue::from_str(&other).unwrap());
}

/// Ends a connection without order.
fn reset(client: &BufReader<TcpStream>) -> io::Result<()> {
    client.get_ref().set_zero_linger()?;
    Err(broken("reset"))
}
