//! A proxy before PostgreSQL that understands what goes through it: it cuts connections at a COMMIT, before the server
//! has it or behind the server's answer; it stops statements at a wanted one; it goes silent; and it can lead to
//! another server.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::until;

/// What a commit is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Commit {
    /// The rows of a chunk.
    Chunk,
    /// An import's rows, moved to where they belong.
    Publish,
    /// Anything else, a single statement that changes something among it.
    Other,
}

/// Where a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// The server never hears of the COMMIT.
    Before,
    /// The server has committed, and the client never hears of it.
    Behind,
}

/// The proxy. It ends with the test.
pub struct PgProxy {
    pub port: u16,
    shared: Arc<Shared>,
    _accepting: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Shared {
    state: Mutex<State>,
    /// Connections up to this number end, or never say anything again.
    orders: watch::Sender<Orders>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Orders {
    ended: u64,
    silent: u64,
    /// Holds up to this number are over.
    let_go: u64,
}

struct State {
    target: u16,
    connections: u64,
    cutting: Option<(StdRng, f64)>,
    cuts: BTreeMap<(Commit, Cut), u32>,
    /// Statements with this text wait, behind the first ones.
    hold: Option<(String, u32)>,
    holds: u64,
    waiting: u32,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PgProxy {
    /// Before the server on that port.
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state =
            State { target, connections: 0, cutting: None, cuts: BTreeMap::new(), hold: None, holds: 0, waiting: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), orders: watch::Sender::new(Orders::default()) });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { port, shared, _accepting: AbortOnDrop(accepting) }
    }

    /// The same database behind the proxy.
    pub fn url(&self, direct: &str) -> String {
        let mut url = url::Url::parse(direct).unwrap();
        url.set_port(Some(self.port)).unwrap();
        url.to_string()
    }

    /// New connections go to another server; those that are there end.
    pub fn lead_to(&self, target: u16) {
        self.shared.state().target = target;
        self.end_all();
    }

    /// Every connection ends.
    pub fn end_all(&self) {
        let number = self.shared.state().connections;
        self.shared.orders.send_modify(|orders| orders.ended = number);
    }

    /// Every connection that is there stays open and never says anything again, as when a machine vanished with its
    /// sessions. New ones work.
    pub fn silence(&self) {
        let number = self.shared.state().connections;
        self.shared.orders.send_modify(|orders| orders.silent = number);
    }

    /// From now on commits are cut: the first one of a kind always, once before and once behind, then so many of them.
    pub fn cut_commits(&self, seed: u64, share: f64) {
        self.shared.state().cutting = Some((StdRng::seed_from_u64(seed), share));
    }

    /// From now on nothing is cut.
    pub fn mend(&self) {
        self.shared.state().cutting = None;
    }

    /// How often commits were cut.
    pub fn cuts(&self) -> BTreeMap<(Commit, Cut), u32> {
        self.shared.state().cuts.clone()
    }

    /// Statements that hold this text wait, behind the first `pass` of them, until they are let go or their connection
    /// ends.
    pub fn hold(&self, text: &str, pass: u32) {
        let mut state = self.shared.state();
        state.hold = Some((text.to_owned(), pass));
        state.holds += 1;
        state.waiting = 0;
    }

    /// Waits until a statement waits.
    pub async fn held(&self) {
        let (text, _) = self.shared.state().hold.clone().unwrap_or_default();
        until(&format!("'{text}' is sent"), async || (self.shared.state().waiting > 0).then_some(())).await;
    }

    /// Lets them go.
    pub fn let_go(&self) {
        let mut state = self.shared.state();
        state.hold = None;
        let number = state.holds;
        drop(state);
        self.shared.orders.send_modify(|orders| orders.let_go = number);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Connections end with the proxy.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (number, target) = {
            let mut state = shared.state();
            state.connections += 1;
            (state.connections, state.target)
        };
        connections.spawn(connect(client, target, number, Arc::clone(&shared)));
    }
}

async fn connect(client: TcpStream, target: u16, number: u64, shared: Arc<Shared>) {
    let mut orders = shared.orders.subscribe();
    let ended = async {
        let _ = orders.wait_for(|orders| orders.ended >= number).await;
    };
    tokio::select! {
        biased;
        () = ended => {}
        // An error is a connection that broke: both sides end.
        _ = carry(client, target, number, &shared) => {}
    }
}

/// Carries messages until one side ends, or the connection is cut.
async fn carry(mut client: TcpStream, target: u16, number: u64, shared: &Shared) -> io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", target)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    loop {
        let length = client.read_u32().await?;
        let mut body = vec![0; (length as usize).saturating_sub(4)];
        client.read_exact(&mut body).await?;
        // Asked whether it speaks TLS.
        if body == 80_877_103_u32.to_be_bytes() {
            client.write_all(b"N").await?;
            continue;
        }
        server.write_u32(length).await?;
        server.write_all(&body).await?;
        break;
    }
    let talk = Mutex::new(Talk::default());
    let mut silent = shared.orders.subscribe();
    let silence = async {
        let _ = silent.wait_for(|orders| orders.silent >= number).await;
    };
    {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            biased;
            () = silence => {}
            ended = requests(BufReader::new(from_client), to_server, &talk, shared) => return ended,
            ended = answers(BufReader::new(from_server), to_client, &talk) => return ended,
        }
    }
    drop(server);
    std::future::pending().await
}

/// A message: its kind and body.
async fn message(from: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let (kind, length) = (from.read_u8().await?, from.read_u32().await?);
    let mut body = vec![0; (length as usize).saturating_sub(4)];
    from.read_exact(&mut body).await?;
    Ok((kind, body))
}

async fn pass(to: &mut (impl AsyncWrite + Unpin), kind: u8, body: &[u8]) -> io::Result<()> {
    let mut whole = Vec::with_capacity(body.len() + 5);
    whole.push(kind);
    whole.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    whole.extend_from_slice(body);
    to.write_all(&whole).await
}

/// What was said on a connection.
#[derive(Default)]
struct Talk {
    /// Prepared statements by name.
    statements: HashMap<Vec<u8>, String>,
    bound: String,
    in_transaction: bool,
    /// Of the transaction.
    kind: Option<Commit>,
    /// Whether a statement outside of a transaction changes something.
    changes: bool,
    /// The answer to a COMMIT is kept back.
    swallow: bool,
}

impl Talk {
    /// Notes a message; the statement that it runs, and the commit that it makes.
    fn note(&mut self, kind: u8, body: &[u8]) -> (Option<String>, Option<Commit>) {
        let mut parts = body.split(|byte| *byte == 0);
        let mut part = || parts.next().unwrap_or_default();
        match kind {
            b'Q' => {
                let text = String::from_utf8_lossy(part()).into_owned();
                let commit = (text == "COMMIT").then(|| self.kind.unwrap_or(Commit::Other));
                self.run(&text);
                (Some(text), commit)
            }
            b'P' => {
                let name = part().to_vec();
                self.statements.insert(name, String::from_utf8_lossy(part()).into_owned());
                (None, None)
            }
            b'B' => {
                let _portal = part();
                self.bound = self.statements.get(part()).cloned().unwrap_or_default();
                (None, None)
            }
            b'E' => {
                let text = self.bound.clone();
                self.run(&text);
                self.changes |= ["INSERT", "UPDATE", "DELETE", "WITH"].iter().any(|word| text.starts_with(word));
                (Some(text), None)
            }
            b'S' => {
                let commit = (!self.in_transaction && self.changes).then_some(Commit::Other);
                self.changes = false;
                (None, commit)
            }
            _ => (None, None),
        }
    }

    fn run(&mut self, text: &str) {
        if text.starts_with("BEGIN") {
            (self.in_transaction, self.kind) = (true, None);
        } else if text == "COMMIT" || text == "ROLLBACK" {
            self.in_transaction = false;
        } else if text.starts_with("INSERT INTO longshore_ledger") {
            self.kind = Some(Commit::Chunk);
        } else if text.starts_with("UPDATE longshore_fences SET state = 'published'") {
            self.kind = Some(Commit::Publish);
        }
    }
}

fn cut(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, what)
}

async fn requests(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    talk: &Mutex<Talk>,
    shared: &Shared,
) -> io::Result<()> {
    loop {
        let (kind, body) = message(&mut from).await?;
        let (statement, commit) = talk.lock().unwrap_or_else(PoisonError::into_inner).note(kind, &body);
        if let Some(statement) = statement {
            wait(&statement, shared).await;
        }
        match commit.and_then(|commit| shared.fate(commit)) {
            Some(Cut::Before) => return Err(cut("before the commit")),
            Some(Cut::Behind) => talk.lock().unwrap_or_else(PoisonError::into_inner).swallow = true,
            None => {}
        }
        pass(&mut to, kind, &body).await?;
    }
}

/// Waits while this statement is held.
async fn wait(statement: &str, shared: &Shared) {
    let held = {
        let mut state = shared.state();
        let State { hold, holds, waiting, .. } = &mut *state;
        match hold {
            Some((text, pass)) if statement.contains(text.as_str()) => match pass.checked_sub(1) {
                Some(left) => {
                    *pass = left;
                    None
                }
                None => {
                    *waiting += 1;
                    Some(*holds)
                }
            },
            _ => None,
        }
    };
    if let Some(number) = held {
        let _ = shared.orders.subscribe().wait_for(|orders| orders.let_go >= number).await;
    }
}

async fn answers(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    talk: &Mutex<Talk>,
) -> io::Result<()> {
    loop {
        let (kind, body) = message(&mut from).await?;
        if talk.lock().unwrap_or_else(PoisonError::into_inner).swallow {
            // Ready for the next query: it is committed.
            if kind == b'Z' {
                return Err(cut("behind the commit"));
            }
            continue;
        }
        pass(&mut to, kind, &body).await?;
    }
}

impl Shared {
    /// Whether this commit is cut, and where; counted.
    fn fate(&self, commit: Commit) -> Option<Cut> {
        let mut state = self.state();
        let State { cutting, cuts, .. } = &mut *state;
        let (random, share) = cutting.as_mut()?;
        let missing: Vec<Cut> =
            [Cut::Before, Cut::Behind].into_iter().filter(|cut| !cuts.contains_key(&(commit, *cut))).collect();
        let cut = match missing.len() {
            0 if !random.random_bool(*share) => return None,
            0 => *[Cut::Before, Cut::Behind].get(random.random_range(0..2)).unwrap(),
            left => missing[random.random_range(0..left)],
        };
        *cuts.entry((commit, cut)).or_default() += 1;
        Some(cut)
    }
}
