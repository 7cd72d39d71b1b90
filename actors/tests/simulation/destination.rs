//! The destination: tables, staging, fences and ledger in memory, behind transactions with locks, in the order of statements
//! of `storage/src/destination/postgres`. A session ends with its process, or when it is terminated; what it wrote is gone
//! then, and so are its locks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _};
use longshore_domain::protocol::{Closure, Fence};
use longshore_domain::{
    Attempt, ChunkIndex, ColumnType, Epoch, ImportId, LoadPlan, OnError, Problem, ProblemKind, Reject, RowNumber,
    TableColumn, TableDescription, TableName, Tally, Target,
};
use longshore_parse::ParsedChunk;
use longshore_storage::destination::{
    ChunkRows, ChunkSource, Destination, DestinationError, FenceState, LedgerRow, PublishOutcome, Published,
    RecordLookup, Staging, Ticket, Written,
};
use rand::RngExt as _;
use tokio::time::Instant;

use crate::world::{Broken, Link, Lost, Server, State};

/// How long a lock is waited for; before a change of the fence it is less.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const FENCE_LOCK_WAIT: Duration = Duration::from_millis(500);
/// How often sessions that hold the fence are ended before a change of it is given up.
const TRIES: u32 = 20;
/// What is counted of publishes that copied before all was loaded.
pub const AHEAD: &str = "publishes that began ahead";
/// How often ledger and fence are read after a COMMIT without an answer.
const LOOKUPS: u32 = 4;

/// What can be locked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Resource {
    Fence(ImportId),
    LedgerKey(ImportId, u32, ChunkIndex),
    Staging(ImportId, u32),
    Table(String),
}

/// A change that takes effect with its transaction.
enum Write {
    Fence(ImportId, Fence),
    Marker(ImportId, Published),
    CreateStaging(ImportId, u32),
    DropStaging(ImportId, u32),
    Chunk { import: ImportId, attempt: u32, chunk: ChunkIndex, rows: Vec<u64>, ledger: LedgerRow },
    DeleteLedger { import: ImportId, but: Option<u32> },
    Rows { table: String, import: ImportId, rows: Vec<u64> },
    CreateTable { table: String, columns: Vec<TableColumn> },
}

/// An open transaction.
pub struct Session {
    pub process: usize,
    /// `application_name`.
    name: Option<(ImportId, Epoch, Attempt)>,
    locks: Vec<(Resource, bool)>,
    writes: Vec<Write>,
}

/// A table.
#[derive(Default)]
pub struct Table {
    columns: Vec<TableColumn>,
    /// The import and the number of each row.
    pub rows: Vec<(ImportId, u64)>,
}

/// The server.
#[derive(Default)]
pub struct Postgres {
    next: u64,
    sessions: BTreeMap<u64, Session>,
    fences: BTreeMap<ImportId, Fence>,
    markers: BTreeMap<ImportId, Published>,
    /// Rows of each attempt's staging table.
    pub staging: BTreeMap<(ImportId, u32), Vec<u64>>,
    pub ledger: BTreeMap<(ImportId, u32, ChunkIndex), LedgerRow>,
    pub tables: BTreeMap<String, Table>,
}

impl Postgres {
    pub fn end_sessions(&mut self, which: impl Fn(&Session) -> bool) {
        self.sessions.retain(|_, session| !which(session));
    }

    /// Sessions that an import still has.
    pub fn sessions_of(&self, import: ImportId) -> usize {
        self.sessions.values().filter(|session| session.name.is_some_and(|(named, ..)| named == import)).count()
    }

    /// Makes a table behind everybody's back.
    pub fn make_table(&mut self, table: &str, columns: [(&str, ColumnType); 2]) {
        let columns = columns.map(|(name, kind)| column(name, kind, true)).into();
        self.tables.insert(table.to_owned(), Table { columns, rows: Vec::new() });
    }

    /// How often each row of an import is in any table.
    pub fn rows_of(&self, import: ImportId) -> Vec<u64> {
        let rows = self.tables.values().flat_map(|table| &table.rows);
        let mut rows: Vec<u64> = rows.filter(|(of, _)| *of == import).map(|(_, row)| *row).collect();
        rows.sort_unstable();
        rows
    }

    fn begin(&mut self, process: usize, name: Option<Ticket>) -> u64 {
        self.next += 1;
        let name = name.map(|ticket| (ticket.import, ticket.epoch, ticket.attempt));
        self.sessions.insert(self.next, Session { process, name, locks: Vec::new(), writes: Vec::new() });
        self.next
    }

    /// `None`: the session was ended. `Some(false)`: others hold it.
    fn try_lock(&mut self, session: u64, resource: &Resource, exclusive: bool) -> Option<bool> {
        let held = self.sessions.iter().any(|(id, other)| {
            *id != session && other.locks.iter().any(|(held, other)| held == resource && (exclusive || *other))
        });
        let session = self.sessions.get_mut(&session)?;
        if !held {
            session.locks.push((resource.clone(), exclusive));
        }
        Some(!held)
    }

    fn terminate(&mut self, ticket: Ticket, all: bool) {
        let key = (ticket.epoch, ticket.attempt);
        self.end_sessions(|session| {
            session.name.is_some_and(|(import, epoch, attempt)| {
                import == ticket.import && ((epoch, attempt) < key || (all && (epoch, attempt) == key))
            })
        });
    }

    /// `false`: the session was ended.
    fn commit(&mut self, session: u64) -> bool {
        let Some(session) = self.sessions.remove(&session) else { return false };
        for write in session.writes {
            self.apply(write);
        }
        true
    }

    fn apply(&mut self, write: Write) {
        match write {
            Write::Fence(import, fence) => {
                self.fences.insert(import, fence);
            }
            Write::Marker(import, published) => {
                if let Some(fence) = self.fences.get_mut(&import) {
                    fence.closed = Some(Closure::Published);
                }
                self.markers.insert(import, published);
            }
            Write::CreateStaging(import, attempt) => {
                self.staging.insert((import, attempt), Vec::new());
            }
            Write::DropStaging(import, attempt) => {
                self.staging.remove(&(import, attempt));
            }
            Write::Chunk { import, attempt, chunk, rows, ledger } => {
                // Of rows that wait in the object, none is here.
                if !rows.is_empty() {
                    self.staging.entry((import, attempt)).or_default().extend(rows);
                }
                self.ledger.insert((import, attempt, chunk), ledger);
            }
            Write::DeleteLedger { import, but } => {
                self.ledger.retain(|(of, attempt, _), _| *of != import || Some(*attempt) == but);
            }
            Write::Rows { table, import, rows } => {
                let table = self.tables.entry(table).or_default();
                table.rows.extend(rows.into_iter().map(|row| (import, row)));
            }
            Write::CreateTable { table, columns } => {
                self.tables.insert(table, Table { columns, rows: Vec::new() });
            }
        }
    }

    fn standing(&self, import: ImportId) -> FenceState {
        match self.fences.get(&import).and_then(|fence| fence.closed) {
            None => FenceState::Open,
            Some(Closure::Published) => FenceState::Published(self.markers[&import]),
            Some(Closure::Aborted) => FenceState::Aborted,
        }
    }

    fn ledger_of(&self, import: ImportId, attempt: Attempt) -> Vec<LedgerRow> {
        let range = (import, attempt.0, ChunkIndex(0))..=(import, attempt.0, ChunkIndex(u32::MAX));
        self.ledger.range(range).map(|(_, row)| *row).collect()
    }

    fn attempts(&self, import: ImportId) -> Vec<u32> {
        self.staging.keys().filter(|(of, _)| *of == import).map(|(_, attempt)| *attempt).collect()
    }
}

impl State {
    fn admits(&self, ticket: Ticket) -> bool {
        let Some(fence) = self.postgres.fences.get(&ticket.import) else { return false };
        let epoch = if self.broken == Some(Broken::EpochUnchecked) { fence.epoch } else { ticket.epoch };
        fence.admits(epoch, ticket.attempt)
    }
}

/// Why a transaction did not go on.
enum Ended {
    Lost(&'static str),
    LockTimeout,
}

impl From<Lost> for Ended {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost.0)
    }
}

impl From<Ended> for DestinationError {
    fn from(ended: Ended) -> Self {
        let reason = match ended {
            Ended::Lost(reason) => reason,
            Ended::LockTimeout => "a lock was not to be had in time",
        };
        Self::Unavailable { reason: reason.to_owned() }
    }
}

impl From<Lost> for DestinationError {
    fn from(lost: Lost) -> Self {
        Ended::from(lost).into()
    }
}

/// What became of a COMMIT.
enum Committed {
    Yes,
    Unknown,
}

/// A transaction of a process. Dropped, it is rolled back.
struct Transaction {
    link: Link,
    session: u64,
}

impl Drop for Transaction {
    fn drop(&mut self) {
        // The session of a process that is dead is gone already; that of one that sleeps stays open, and is not dropped.
        let session = self.session;
        self.link.world.state().postgres.sessions.remove(&session);
        self.link.world.changed.notify_waiters();
    }
}

impl Transaction {
    async fn begin(link: &Link, name: Option<Ticket>) -> Result<Self, Ended> {
        let process = link.process;
        link.moment(Server::Destination).await?;
        let session = link.world.state().postgres.begin(process, name);
        Ok(Self { link: link.clone(), session })
    }

    /// A statement: a look at what is committed, and perhaps writes for the end of the transaction.
    async fn run<T>(&self, what: &str, statement: impl FnOnce(&mut State) -> T) -> Result<T, Ended> {
        let result = self.link.moment(Server::Destination).await;
        let mut state = self.link.world.state();
        let weather = state.weather;
        let broke = result.is_err() || state.chance(weather.error);
        if broke {
            state.postgres.sessions.remove(&self.session);
        }
        if !state.postgres.sessions.contains_key(&self.session) {
            return Err(Ended::Lost("the session was ended"));
        }
        state.note(self.link.process, what);
        Ok(statement(&mut state))
    }

    fn write(&self, state: &mut State, write: Write) {
        if let Some(session) = state.postgres.sessions.get_mut(&self.session) {
            session.writes.push(write);
        }
    }

    async fn lock(&self, resource: Resource, exclusive: bool, wait: Duration) -> Result<(), Ended> {
        self.link.moment(Server::Destination).await?;
        let end = Instant::now() + wait;
        loop {
            let changed = self.link.world.changed.notified();
            let locked = self.link.world.state().postgres.try_lock(self.session, &resource, exclusive);
            match locked {
                None => return Err(Ended::Lost("the session was ended")),
                Some(true) => return Ok(()),
                Some(false) if Instant::now() >= end => return Err(Ended::LockTimeout),
                Some(false) => {}
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep_until(end) => {}
            }
            self.link.awake().await;
        }
    }

    async fn commit(self, what: &str) -> Result<Committed, Ended> {
        let session = self.session;
        // Cut off before the server had it, or behind: nobody can tell.
        match self.link.call(Server::Destination, what, |state| state.postgres.commit(session)).await {
            Ok(true) => Ok(Committed::Yes),
            Ok(false) => Err(Ended::Lost("the session was ended")),
            Err(_) => {
                // The COMMIT may still be on its way, and take effect when nobody waits for it any more.
                let delay = {
                    let mut state = self.link.world.state();
                    state.random.random_bool(0.3).then(|| Duration::from_millis(state.random.random_range(0..3_000)))
                };
                if let Some(delay) = delay {
                    tokio::spawn(async move {
                        tokio::time::sleep(delay).await;
                        self.link.world.state().postgres.commit(session);
                        drop(self);
                    });
                }
                Ok(Committed::Unknown)
            }
        }
    }
}

/// The destination as one process knows it.
pub struct SimDestination(pub Link);

impl SimDestination {
    /// Some processes are of the version before: with them all rows are staged.
    fn may_wait_in_object(&self, ticket: Ticket, plan: &LoadPlan) -> bool {
        self.0.process % 5 != 4 && plan.may_wait_in_object(ticket.attempt)
    }

    async fn terminate(&self, ticket: Ticket, all: bool) -> Result<(), Ended> {
        let end = |state: &mut State| state.postgres.terminate(ticket, all);
        Ok(self.0.call(Server::Destination, "ends sessions", end).await?)
    }

    /// A transaction that holds the import's fence; made, where there is none.
    async fn locked(&self, ticket: Ticket) -> Result<(Transaction, Fence), Ended> {
        let transaction = Transaction::begin(&self.0, Some(ticket)).await?;
        transaction.lock(Resource::Fence(ticket.import), true, FENCE_LOCK_WAIT).await?;
        let read = |state: &mut State| {
            let new = Fence { epoch: ticket.epoch, attempt: ticket.attempt, closed: None };
            state.postgres.fences.get(&ticket.import).copied().unwrap_or(new)
        };
        let mut fence = transaction.run("locks the fence", read).await?;
        if self.0.world.state().broken == Some(Broken::EpochUnchecked) {
            fence.epoch = ticket.epoch;
        }
        Ok((transaction, fence))
    }

    async fn raise_once(&self, ticket: Ticket) -> Result<Option<FenceState>, Ended> {
        let (transaction, fence) = self.locked(ticket).await?;
        let Some(raised) = Fence::raise(Some(fence), ticket.epoch, ticket.attempt) else { return Ok(None) };
        let standing = |state: &mut State| {
            transaction.write(state, Write::Fence(ticket.import, raised));
            match raised.closed {
                None => FenceState::Open,
                Some(_) => state.postgres.standing(ticket.import),
            }
        };
        let standing = transaction.run("raises the fence", standing).await?;
        match transaction.commit(&format!("commits the fence of {} at epoch {}", ticket.import, ticket.epoch)).await? {
            Committed::Yes => Ok(Some(standing)),
            Committed::Unknown => Err(Ended::Lost("the connection broke during COMMIT")),
        }
    }

    async fn abort_once(&self, ticket: Ticket) -> Result<Option<FenceState>, Ended> {
        let (transaction, fence) = self.locked(ticket).await?;
        if fence.epoch > ticket.epoch || (fence.epoch == ticket.epoch && fence.attempt > ticket.attempt) {
            return Ok(None);
        }
        if fence.closed == Some(Closure::Published) {
            let standing = |state: &mut State| state.postgres.standing(ticket.import);
            return Ok(Some(transaction.run("finds it published", standing).await?));
        }
        let attempts = transaction.run("looks for staging", |state| state.postgres.attempts(ticket.import)).await?;
        for attempt in attempts {
            transaction.lock(Resource::Staging(ticket.import, attempt), true, FENCE_LOCK_WAIT).await?;
            let drop = |state: &mut State| transaction.write(state, Write::DropStaging(ticket.import, attempt));
            transaction.run("drops staging", drop).await?;
        }
        let close = |state: &mut State| {
            let fence = Fence { epoch: ticket.epoch, attempt: ticket.attempt, closed: Some(Closure::Aborted) };
            transaction.write(state, Write::DeleteLedger { import: ticket.import, but: None });
            transaction.write(state, Write::Fence(ticket.import, fence));
        };
        transaction.run("closes the fence", close).await?;
        match transaction.commit(&format!("commits the abort of {}", ticket.import)).await? {
            Committed::Yes => Ok(Some(FenceState::Aborted)),
            Committed::Unknown => Err(Ended::Lost("the connection broke during COMMIT")),
        }
    }

    async fn committed(&self, ticket: Ticket, chunk: ChunkIndex) -> Result<Option<LedgerRow>, Lost> {
        let read = |state: &mut State| state.postgres.ledger.get(&(ticket.import, ticket.attempt.0, chunk)).copied();
        self.0.call(Server::Destination, "reads the ledger", read).await
    }

    async fn publish_once(
        &self,
        ticket: Ticket,
        plan: &LoadPlan,
        on_error: OnError,
        source: &dyn ChunkSource,
    ) -> Result<Result<PublishOutcome, DestinationError>, Ended> {
        let Ticket { import, attempt, .. } = ticket;
        let table = plan.table.to_string();
        let transaction = Transaction::begin(&self.0, Some(ticket)).await?;
        let closed = |state: &mut State| {
            if state.admits(ticket) {
                return None;
            }
            let known = state.postgres.fences.get(&import).is_some_and(|fence| fence.epoch <= ticket.epoch);
            Some(match state.postgres.standing(import) {
                FenceState::Published(published) if known => PublishOutcome::Published(published),
                _ => PublishOutcome::Fenced,
            })
        };
        if let Some(outcome) = transaction.run("looks at the fence", closed).await? {
            return Ok(Ok(outcome));
        }
        let is_staged = |state: &mut State| state.postgres.staging.contains_key(&(import, attempt.0));
        let is_staged = transaction.run("looks for staging", is_staged).await?;
        let is_ahead = source.planned().now_or_never().is_none();
        let mut copied = None;
        if self.may_wait_in_object(ticket, plan) && !is_staged {
            transaction.lock(Resource::Table(table.clone()), false, LOCK_WAIT).await?;
            let (mut chunks, mut rows) = (source.chunks(), Vec::new());
            while let Some(chunk) = chunks.next().await {
                let chunk = match chunk {
                    Ok(chunk) => chunk,
                    Err(error) => return Ok(Err(error)),
                };
                let parsed = ParsedChunk::collect(|sink| chunk.read(sink)).unwrap_or_default();
                rows.extend(numbers(&parsed));
                transaction.run("copies a chunk into the table", |_| ()).await?;
            }
            copied = Some(rows);
        }
        let planned = match source.planned().await {
            Ok(planned) => planned,
            Err(error) => return Ok(Err(error)),
        };
        if self.0.world.state().broken != Some(Broken::FenceAskedEarly) {
            transaction.lock(Resource::Fence(import), true, LOCK_WAIT).await?;
            if let Some(outcome) = transaction.run("asks the fence", closed).await? {
                return Ok(Ok(outcome));
            }
        }
        let look = |state: &mut State| {
            let staged = state.postgres.staging.get(&(import, attempt.0)).cloned();
            (state.postgres.ledger_of(import, attempt), staged)
        };
        let (ledger, staged) = transaction.run("reads the ledger", look).await?;
        if staged.is_none() && copied.is_none() {
            return Ok(Err(DestinationError::StagingLost { reason: "the staging table is not there".to_owned() }));
        }
        let (rows, rejected) =
            ledger.iter().fold((0, 0), |(rows, rejected), row| (rows + row.rows, rejected + row.rejected));
        if ledger.len() as u64 != planned.chunks || rows != planned.rows {
            let detail = format!("{planned:?}, but {} chunks with {rows} rows are committed", ledger.len());
            return Ok(Ok(PublishOutcome::Refused(Problem::new(ProblemKind::CountMismatch, detail))));
        }
        if on_error.is_exceeded(rejected) {
            return Ok(Ok(PublishOutcome::TooManyRejects(rejected)));
        }
        transaction.lock(Resource::Table(table.clone()), plan.target == Target::NewTable, LOCK_WAIT).await?;
        if plan.target == Target::NewTable {
            let appeared = |state: &mut State| state.postgres.tables.contains_key(&table);
            if transaction.run("renames staging", appeared).await? {
                return Ok(Ok(PublishOutcome::TableAppeared));
            }
        }
        let staged = match (staged, copied) {
            (Some(_), Some(_)) => {
                return Ok(Err(DestinationError::Unavailable { reason: "staging was made meanwhile".to_owned() }));
            }
            (Some(staged), None) => {
                transaction.lock(Resource::Staging(import, attempt.0), true, LOCK_WAIT).await?;
                staged
            }
            (None, copied) => copied.unwrap_or_default(),
        };
        let published = Published { rows_loaded: staged.len() as u64, rows_rejected: rejected };
        if published.rows_loaded + rejected != planned.rows {
            let detail = format!("{planned:?}, but {published:?}");
            return Ok(Ok(PublishOutcome::Refused(Problem::new(ProblemKind::CountMismatch, detail))));
        }
        let apart = self.0.world.state().broken == Some(Broken::MarkerApart);
        let moved = |state: &mut State| {
            if is_ahead {
                state.fault(AHEAD);
            }
            if plan.target == Target::NewTable {
                let fields = plan.fields.iter();
                let columns = fields.map(|field| column(&field.name, field.kind.clone(), field.nullable)).collect();
                transaction.write(state, Write::CreateTable { table: table.clone(), columns });
            }
            transaction.write(state, Write::Rows { table, import, rows: staged });
            if !apart {
                transaction.write(state, Write::DropStaging(import, attempt.0));
                transaction.write(state, Write::DeleteLedger { import, but: None });
                transaction.write(state, Write::Marker(import, published));
            }
        };
        transaction.run("moves the rows", moved).await?;
        let mut committed = transaction.commit(&format!("commits the publish of {import}")).await?;
        if apart {
            let behind = Transaction::begin(&self.0, Some(ticket)).await?;
            let mark = |state: &mut State| {
                behind.write(state, Write::DropStaging(import, attempt.0));
                behind.write(state, Write::DeleteLedger { import, but: None });
                behind.write(state, Write::Marker(import, published));
            };
            behind.run("writes the marker", mark).await?;
            committed = behind.commit("commits the marker").await?;
        }
        match committed {
            Committed::Yes => Ok(Ok(PublishOutcome::Published(published))),
            Committed::Unknown => {
                for _ in 0..LOOKUPS {
                    let standing = |state: &mut State| state.postgres.standing(import);
                    if let Ok(standing) = self.0.call(Server::Destination, "reads the marker", standing).await {
                        return match standing {
                            FenceState::Published(published) => Ok(Ok(PublishOutcome::Published(published))),
                            _ => Err(Ended::Lost("the connection broke during COMMIT")),
                        };
                    }
                }
                Err(Ended::Lost("the connection broke during COMMIT"))
            }
        }
    }
}

/// The numbers of a chunk's rows.
fn numbers(parsed: &ParsedChunk) -> Vec<u64> {
    parsed.batches.iter().flat_map(|batch| (0..batch.rows).map(|at| batch.numbers.get(at))).collect()
}

fn column(name: &str, kind: ColumnType, nullable: bool) -> TableColumn {
    TableColumn { name: name.to_owned(), kind, nullable, has_default: false, generated: false, flexible: false }
}

#[async_trait]
impl Destination for SimDestination {
    async fn prepare(&self) -> Result<(), DestinationError> {
        Ok(())
    }

    async fn check(&self) -> Result<(), DestinationError> {
        Ok(())
    }

    async fn describe(&self, table: &TableName) -> Result<Option<TableDescription>, DestinationError> {
        let table = table.to_string();
        let describe = |state: &mut State| {
            let table = state.postgres.tables.get(&table)?;
            Some(TableDescription { columns: table.columns.clone() })
        };
        Ok(self.0.call(Server::Destination, "describes the table", describe).await?)
    }

    async fn raise_fence(&self, ticket: Ticket) -> Result<Option<FenceState>, DestinationError> {
        let newer = |state: &mut State| {
            state.postgres.fences.get(&ticket.import).is_some_and(|fence| fence.epoch > ticket.epoch)
        };
        if self.0.call(Server::Destination, "looks at the fence", newer).await? {
            return Ok(None);
        }
        self.terminate(ticket, false).await?;
        for _ in 0..TRIES {
            match self.raise_once(ticket).await {
                Err(Ended::LockTimeout) => self.terminate(ticket, false).await?,
                Err(ended) => return Err(ended.into()),
                Ok(None) => return Ok(None),
                Ok(standing) => {
                    self.terminate(ticket, false).await?;
                    return Ok(standing);
                }
            }
        }
        Err(Ended::LockTimeout.into())
    }

    async fn prepare_staging(
        &self,
        ticket: Ticket,
        plan: &LoadPlan,
        wanted: Staging,
    ) -> Result<Option<Staging>, DestinationError> {
        let Ticket { import, attempt, .. } = ticket;
        let transaction = Transaction::begin(&self.0, Some(ticket)).await?;
        transaction.lock(Resource::Fence(import), true, LOCK_WAIT).await?;
        if !transaction.run("asks the fence", |state| state.admits(ticket)).await? {
            return Ok(None);
        }
        let attempts = transaction.run("looks for staging", |state| state.postgres.attempts(import)).await?;
        for other in attempts.iter().copied().filter(|other| *other != attempt.0) {
            transaction.lock(Resource::Staging(import, other), true, LOCK_WAIT).await?;
            let drop = |state: &mut State| transaction.write(state, Write::DropStaging(import, other));
            transaction.run("drops staging", drop).await?;
        }
        let exists = attempts.contains(&attempt.0);
        let in_object = !exists && wanted == Staging::Object && self.may_wait_in_object(ticket, plan);
        let make = |state: &mut State| {
            transaction.write(state, Write::DeleteLedger { import, but: Some(attempt.0) });
            if exists || in_object {
                return Ok(());
            }
            if !state.postgres.ledger_of(import, attempt).is_empty() {
                return Err(DestinationError::StagingLost { reason: "the staging table is not there".to_owned() });
            }
            transaction.write(state, Write::CreateStaging(import, attempt.0));
            Ok(())
        };
        transaction.run("makes staging", make).await??;
        let known = |state: &mut State| state.postgres.tables.contains_key(&plan.table.to_string());
        if plan.target == Target::ExistingTable && !transaction.run("explains the insert", known).await? {
            let detail = "the table went away".to_owned();
            return Err(DestinationError::Refused(Problem::new(ProblemKind::DestinationMismatch, detail)));
        }
        match transaction.commit(&format!("commits the staging of {import}, attempt {attempt}")).await? {
            Committed::Yes => Ok(Some(if in_object { Staging::Object } else { Staging::Table })),
            Committed::Unknown => Err(Ended::Lost("the connection broke during COMMIT").into()),
        }
    }

    async fn write_chunk(
        &self,
        ticket: Ticket,
        chunk: ChunkIndex,
        plan: &LoadPlan,
        _: OnError,
        rows: Arc<dyn ChunkRows>,
        _: &dyn RecordLookup,
    ) -> Result<Written, DestinationError> {
        let parsed = ParsedChunk::collect(|sink| rows.read(sink)).unwrap_or_default();
        if !parsed.widenings.is_empty() {
            return Ok(Written::Widen(parsed.widenings));
        }
        let Ticket { import, attempt, .. } = ticket;
        let tally = |row: LedgerRow| Tally { rows: row.rows, rejected: row.rejected, ..Tally::default() };
        let transaction = Transaction::begin(&self.0, Some(ticket)).await?;
        let look = |state: &mut State| {
            let known = state.postgres.ledger.get(&(import, attempt.0, chunk)).copied();
            (known, state.admits(ticket), state.postgres.staging.contains_key(&(import, attempt.0)))
        };
        let (known, admitted, staged) = transaction.run("looks before a chunk", look).await?;
        if let Some(row) = known {
            return Ok(Written::Committed(tally(row)));
        }
        if !admitted {
            return Ok(Written::Fenced);
        }
        let in_object = !staged && self.may_wait_in_object(ticket, plan);
        if !staged && !in_object {
            return Err(DestinationError::StagingLost { reason: "the staging table is not there".to_owned() });
        }
        let mut rows = Vec::new();
        let is_staged = |state: &mut State| state.postgres.staging.contains_key(&(import, attempt.0));
        if !in_object {
            transaction.lock(Resource::Staging(import, attempt.0), false, LOCK_WAIT).await?;
            rows = numbers(&parsed);
            if !transaction.run("copies a chunk", is_staged).await? {
                return Err(DestinationError::StagingLost { reason: "the staging table is not there".to_owned() });
            }
        }
        let takes = Duration::from_millis(self.0.world.state().random.random_range(0..300));
        tokio::time::sleep(takes).await;
        let rejected = parsed.rejects.len() as u64;
        let ledger = LedgerRow { chunk, rows: parsed.rows, rejected };
        // The primary key: a second insert waits for the first transaction.
        transaction.lock(Resource::LedgerKey(import, attempt.0, chunk), true, LOCK_WAIT).await?;
        let record = |state: &mut State| {
            if state.postgres.ledger.contains_key(&(import, attempt.0, chunk)) {
                return false;
            }
            transaction.write(state, Write::Chunk { import, attempt: attempt.0, chunk, rows, ledger });
            true
        };
        if !transaction.run("writes the ledger", record).await? {
            drop(transaction);
            return Ok(self
                .committed(ticket, chunk)
                .await?
                .map_or(Written::Fenced, |row| Written::Committed(tally(row))));
        }
        transaction.lock(Resource::Fence(import), false, LOCK_WAIT).await?;
        if !transaction.run("asks the fence", |state| state.admits(ticket)).await? {
            return Ok(Written::Fenced);
        }
        if in_object && transaction.run("looks for staging", is_staged).await? {
            return Err(DestinationError::Unavailable { reason: "staging was made meanwhile".to_owned() });
        }
        let commit = format!("commits chunk {chunk} of {import}, attempt {attempt}, epoch {}", ticket.epoch);
        if self.0.world.state().broken == Some(Broken::AckBeforeCommit) {
            tokio::spawn(async move {
                let _ = transaction.commit(&commit).await;
            });
            return Ok(Written::Committed(tally(ledger)));
        }
        match transaction.commit(&commit).await? {
            Committed::Yes => Ok(Written::Committed(tally(ledger))),
            Committed::Unknown => {
                for _ in 0..LOOKUPS {
                    match self.committed(ticket, chunk).await {
                        Ok(Some(row)) => return Ok(Written::Committed(tally(row))),
                        Ok(None) => break,
                        Err(_) => {}
                    }
                }
                Err(Ended::Lost("the connection broke during COMMIT").into())
            }
        }
    }

    async fn ledger(&self, import: ImportId, attempt: Attempt) -> Result<Vec<LedgerRow>, DestinationError> {
        let read = |state: &mut State| state.postgres.ledger_of(import, attempt);
        Ok(self.0.call(Server::Destination, "reads the ledger", read).await?)
    }

    async fn publish(
        &self,
        ticket: Ticket,
        plan: &LoadPlan,
        on_error: OnError,
        source: &dyn ChunkSource,
    ) -> Result<PublishOutcome, DestinationError> {
        match self.publish_once(ticket, plan, on_error, source).await {
            Ok(outcome) => outcome,
            Err(Ended::LockTimeout) if matches!(source.planned().now_or_never(), Some(Ok(_))) => {
                self.terminate(ticket, true).await?;
                Err(Ended::LockTimeout.into())
            }
            Err(ended) => Err(ended.into()),
        }
    }

    async fn abort(&self, ticket: Ticket) -> Result<Option<FenceState>, DestinationError> {
        for _ in 0..TRIES {
            match self.abort_once(ticket).await {
                Err(Ended::LockTimeout) => self.terminate(ticket, true).await?,
                Err(ended) => return Err(ended.into()),
                Ok(standing) => return Ok(standing),
            }
        }
        Err(Ended::LockTimeout.into())
    }

    async fn rejects(&self, _: ImportId, _: Attempt, _: RowNumber, _: usize) -> Result<Vec<Reject>, DestinationError> {
        Ok(Vec::new())
    }
}

/// All staging tables and ledger rows, for the look at what was left behind.
pub fn left_behind(postgres: &Postgres) -> BTreeSet<ImportId> {
    let staging = postgres.staging.keys().map(|(import, _)| *import);
    staging.chain(postgres.ledger.keys().map(|(import, ..)| *import)).collect()
}
