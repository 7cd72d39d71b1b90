//! What the simulated servers share: a clock, a seeded random source, nodes that die and sleep, and what was seen to go wrong.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_domain::{ChunkIndex, ImportId};
use longshore_storage::bus::{ChunkJob, ChunkReport, ImportJob, StorageEvent};
use longshore_storage::database::{ChunkRecord, ImportRecord};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::bus::Queue;
use crate::clients::Expected;
use crate::destination::Postgres;

/// Steps that are kept for the report of a failure.
const TRACE_KEPT: usize = 400;

/// How often kills, pauses and outages may come in one run: faults without end would leave no time to move on.
const BLOWS_AT_MOST: u32 = 12;

/// A rule of the protocol that a test breaks, to see that the simulation notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// No epoch is compared, in neither database.
    EpochUnchecked,
    /// A chunk is called committed before it is.
    AckBeforeCommit,
    /// The marker is written in a transaction behind the one that moves the rows.
    MarkerApart,
    /// Leases are compared with the clock of the node that asks.
    LeaseByLocalClock,
    /// The sweep starts and expires imports without looking at their state.
    SweepUnconditional,
    /// A publish asks the fence before it copies rows, and not again.
    FenceAskedEarly,
}

/// A server that nodes talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Server {
    Control,
    Destination,
    Objects,
    Bus,
}

impl Server {
    const ALL: [Self; 4] = [Self::Control, Self::Destination, Self::Objects, Self::Bus];
}

/// How likely each fault is at each step of this run. Some runs know one kind only, so that it is not drowned by others.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// The node dies.
    pub kill: f64,
    /// The node stops, and goes on later.
    pub pause: f64,
    /// A server goes away for some seconds.
    pub outage: f64,
    /// A call fails before its effect.
    pub error: f64,
    /// A call has its effect, and its answer is lost.
    pub lost_answer: f64,
    /// A message is lost.
    pub lost_message: f64,
    /// A message comes again, up to a hundred times.
    pub repeated: f64,
    /// A message comes late, by up to minutes.
    pub late: f64,
    /// A call takes seconds.
    pub slow: f64,
    /// Whether the bus may lose all it holds.
    pub wipes: bool,
    /// Whether somebody drops a staging table.
    pub losses: bool,
}

impl Weather {
    fn new(random: &mut StdRng) -> Self {
        let mut fault = |rate: f64| if random.random_bool(0.5) { rate * random.random_range(0.2..1.0) } else { 0.0 };
        Self {
            kill: fault(0.02),
            pause: fault(0.01),
            outage: fault(0.01),
            error: fault(0.05),
            lost_answer: fault(0.05),
            lost_message: fault(0.3),
            repeated: fault(0.2),
            late: fault(0.2),
            slow: fault(0.03),
            wipes: random.random_bool(0.3),
            losses: random.random_bool(0.1),
        }
    }

    const CALM: Self = Self {
        kill: 0.0,
        pause: 0.0,
        outage: 0.0,
        error: 0.0,
        lost_answer: 0.0,
        lost_message: 0.0,
        repeated: 0.0,
        late: 0.0,
        slow: 0.0,
        wipes: false,
        losses: false,
    };
}

/// One life of a node's process.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    /// Which node.
    pub node: usize,
    alive: bool,
    paused_until: Option<Instant>,
    /// How far its clock is off, in milliseconds.
    skew_ms: i64,
    /// Whether it may be killed and paused.
    mortal: bool,
}

/// An object.
#[derive(Debug, Clone)]
pub struct Object {
    pub etag: String,
    pub bytes: Vec<u8>,
}

/// An import's row in the control database.
#[derive(Debug, Clone)]
pub struct ImportRow {
    pub record: ImportRecord,
    /// By the database's clock, in milliseconds.
    pub lease_until: i64,
    /// When something of it changed last.
    pub moved_at: Instant,
}

/// A chunk's row.
#[derive(Debug, Clone)]
pub struct ChunkRow {
    pub record: ChunkRecord,
    pub claim_until: i64,
}

/// All that the servers hold.
pub struct State {
    pub random: StdRng,
    pub weather: Weather,
    pub broken: Option<Broken>,
    pub processes: Vec<Process>,
    away: BTreeMap<Server, Instant>,
    blows: u32,
    pub imports: BTreeMap<ImportId, ImportRow>,
    pub chunks: BTreeMap<(ImportId, u32, ChunkIndex), ChunkRow>,
    pub postgres: Postgres,
    pub objects: BTreeMap<String, Object>,
    pub events: Queue<StorageEvent>,
    pub import_jobs: Queue<ImportJob>,
    pub chunk_jobs: Queue<ChunkJob>,
    pub listeners: BTreeMap<ImportId, Vec<mpsc::UnboundedSender<ChunkReport>>>,
    pub expected: BTreeMap<ImportId, Expected>,
    /// What no step may do, and was done.
    pub wrong: Vec<String>,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    trace: VecDeque<String>,
    digest: DefaultHasher,
    began: Instant,
}

impl State {
    /// Milliseconds since the run began: the databases' clock.
    pub fn now_ms(&self) -> i64 {
        // Far from 0, as a real clock is: a lease of 0 is over.
        1_000_000 + (Instant::now() - self.began).as_millis() as i64
    }

    /// The clock that leases are compared with.
    pub fn lease_clock(&self, process: usize) -> i64 {
        let skew = if self.broken == Some(Broken::LeaseByLocalClock) { self.processes[process].skew_ms } else { 0 };
        self.now_ms() + skew
    }

    pub fn chance(&mut self, rate: f64) -> bool {
        rate > 0.0 && self.random.random_bool(rate)
    }

    pub fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    pub fn violation(&mut self, what: String) {
        self.note(0, &format!("WRONG: {what}"));
        self.wrong.push(what);
    }

    /// Takes down a step, for the report and for the comparison of two runs.
    pub fn note(&mut self, process: usize, what: &str) {
        let at = self.now_ms() - 1_000_000;
        (at, process, what).hash(&mut self.digest);
        if self.trace.len() == TRACE_KEPT {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{at:>7} ms  process {process}: {what}"));
    }

    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }

    pub fn trace(&self) -> String {
        self.trace.iter().cloned().collect::<Vec<_>>().join("\n")
    }

    /// Something of an import changed.
    pub fn moved(&mut self, import: ImportId) {
        if let Some(row) = self.imports.get_mut(&import) {
            row.moved_at = Instant::now();
        }
    }

    fn blow(&mut self) -> bool {
        self.blows += 1;
        self.blows <= BLOWS_AT_MOST
    }
}

/// A call that failed, by the network or the server.
#[derive(Debug)]
pub struct Lost(pub &'static str);

/// The servers, and the processes that talk to them.
pub struct World {
    state: Mutex<State>,
    /// Something changed that somebody may wait for.
    pub changed: Notify,
    /// A process died.
    pub died: Notify,
    /// All faults are mended.
    healed: Notify,
}

impl World {
    pub fn new(seed: u64, broken: Option<Broken>) -> Arc<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        let weather = Weather::new(&mut random);
        Arc::new(Self {
            state: Mutex::new(State {
                weather,
                random,
                broken,
                processes: Vec::new(),
                away: BTreeMap::new(),
                blows: 0,
                imports: BTreeMap::new(),
                chunks: BTreeMap::new(),
                postgres: Postgres::default(),
                objects: BTreeMap::new(),
                events: Queue::default(),
                import_jobs: Queue::default(),
                chunk_jobs: Queue::default(),
                listeners: BTreeMap::new(),
                expected: BTreeMap::new(),
                wrong: Vec::new(),
                faults: BTreeMap::new(),
                trace: VecDeque::new(),
                digest: DefaultHasher::new(),
                began: Instant::now(),
            }),
            changed: Notify::new(),
            died: Notify::new(),
            healed: Notify::new(),
        })
    }

    /// The state; never held over an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new process of a node.
    pub fn process(self: &Arc<Self>, node: usize, mortal: bool) -> Link {
        let mut state = self.state();
        let off_by_an_hour = state.chance(0.3);
        let skew_ms = if off_by_an_hour { [3_600_000, -3_600_000][state.random.random_range(0..2)] } else { 0 };
        state.processes.push(Process { node, alive: true, paused_until: None, skew_ms, mortal });
        Link { world: Arc::clone(self), process: state.processes.len() - 1 }
    }

    /// No fault from here on: what sleeps wakes, what is away comes back.
    pub fn heal(&self) {
        let mut state = self.state();
        state.weather = Weather::CALM;
        state.away.clear();
        for process in &mut state.processes {
            process.paused_until = None;
        }
        state.note(0, "all faults are mended");
        drop(state);
        self.changed.notify_waiters();
        self.healed.notify_waiters();
    }

    /// Whether a node has a process that lives.
    pub fn lives(&self, node: usize) -> bool {
        self.state().processes.iter().any(|process| process.node == node && process.alive)
    }
}

/// A process's way to the servers. Behind its death nothing of it has an effect, and no call comes back.
#[derive(Clone)]
pub struct Link {
    pub world: Arc<World>,
    pub process: usize,
}

/// What a step of a call meets.
enum Met {
    Nothing,
    Death,
    Fault(&'static str),
}

impl Link {
    /// Waits as long as the process is stopped, and for ever where it is dead.
    pub async fn awake(&self) {
        loop {
            let until = {
                let state = self.world.state();
                let process = state.processes[self.process];
                if !process.alive { None } else { Some(process.paused_until) }
            };
            match until {
                None => std::future::pending().await,
                Some(Some(until)) if until > Instant::now() => {
                    tokio::select! {
                        biased;
                        () = self.world.changed.notified() => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
                Some(_) => return,
            }
        }
    }

    fn kill(&self) {
        let mut state = self.world.state();
        state.processes[self.process].alive = false;
        state.fault("kills");
        state.note(self.process, "is killed");
        let process = self.process;
        state.postgres.end_sessions(|session| session.process == process);
        drop(state);
        self.world.died.notify_one();
        self.world.changed.notify_waiters();
    }

    /// What befalls the process or the server at this moment.
    fn meet(&self, server: Server) -> Met {
        let mut state = self.world.state();
        let (weather, process) = (state.weather, state.processes[self.process]);
        if process.mortal && state.chance(weather.kill) && state.blow() {
            return Met::Death;
        }
        if process.mortal && state.chance(weather.pause) && state.blow() {
            let seconds = state.random.random_range(1..60);
            state.processes[self.process].paused_until = Some(Instant::now() + Duration::from_secs(seconds));
            state.fault("pauses");
            state.note(self.process, &format!("stops for {seconds} s"));
        }
        if state.chance(weather.outage) && state.blow() {
            let server = Server::ALL[state.random.random_range(0..Server::ALL.len())];
            let seconds = state.random.random_range(1..30);
            state.away.insert(server, Instant::now() + Duration::from_secs(seconds));
            state.fault("outages");
            state.note(self.process, &format!("{server:?} goes away for {seconds} s"));
            if server == Server::Destination {
                state.postgres.end_sessions(|_| true);
            }
        }
        match state.away.get(&server) {
            Some(until) if *until > Instant::now() => Met::Fault("away"),
            _ => Met::Nothing,
        }
    }

    /// A moment passes, in which the process may die or stop, and the server may go away.
    pub async fn moment(&self, server: Server) -> Result<(), Lost> {
        self.awake().await;
        let pause = {
            let mut state = self.world.state();
            let weather = state.weather;
            let slow = state.chance(weather.slow);
            Duration::from_micros(if slow {
                state.random.random_range(1_000_000..9_000_000)
            } else {
                state.random.random_range(100..5_000)
            })
        };
        tokio::select! {
            biased;
            () = self.world.healed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        self.awake().await;
        match self.meet(server) {
            Met::Death => {
                self.kill();
                std::future::pending().await
            }
            Met::Fault(reason) => Err(Lost(reason)),
            Met::Nothing => {
                self.awake().await;
                Ok(())
            }
        }
    }

    /// One statement or request: takes effect at one moment, or not at all; its answer may be lost.
    pub async fn call<T>(&self, server: Server, what: &str, effect: impl FnOnce(&mut State) -> T) -> Result<T, Lost> {
        self.moment(server).await?;
        let answer = {
            let mut state = self.world.state();
            let weather = state.weather;
            if state.chance(weather.error) {
                state.fault("errors");
                return Err(Lost("the connection broke"));
            }
            state.note(self.process, what);
            effect(&mut state)
        };
        self.world.changed.notify_waiters();
        self.moment(server).await?;
        let mut state = self.world.state();
        let weather = state.weather;
        if state.chance(weather.lost_answer) {
            state.fault("lost answers");
            return Err(Lost("the connection broke before the answer"));
        }
        Ok(answer)
    }
}
