//! Clients: ask for imports, upload, complete, cancel, retry, and put other objects over theirs; and what has to come of it.

use std::sync::Arc;
use std::time::Duration;

use longshore_domain::{
    Attempt, ColumnType, CreateRequest, Epoch, ImportId, ImportState, Problem, ProblemKind, Progress, Trigger,
};
use longshore_storage::bus::StorageEvent;
use longshore_storage::database::ImportRecord;
use longshore_storage::start::{object_key, start_import};
use rand::RngExt as _;
use serde_json::json;
use tokio::time::Instant;

use crate::bus::{SimBus, publish};
use crate::control::SimControl;
use crate::destination::left_behind;
use crate::objects::{BUCKET, SimObjects};
use crate::world::{ImportRow, Link, Object, State, World};

/// What has to come of an import.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// The numbers of the rows that its file adds.
    pub rows: Vec<u64>,
    /// Rows of it that are bad.
    pub rejected: u64,
    /// Whether its file alone makes it fail.
    pub fails: bool,
    /// Whether its object is another one some time.
    pub overwritten: bool,
    /// Whether a cancel was asked for.
    pub cancelled: bool,
    /// Whether no file ever comes, and its time runs out.
    pub never_uploaded: bool,
    /// Whether something makes a new attempt of it: columns that widen, a table that others make, staging that is dropped.
    pub starts_again: bool,
}

impl Expected {
    fn may_fail(&self, problem: Option<&Problem>) -> bool {
        match problem.map(|problem| problem.kind) {
            Some(ProblemKind::TooManyRejects) => self.fails,
            Some(ProblemKind::ObjectChanged) => self.overwritten,
            _ => false,
        }
    }
}

impl State {
    /// What has to be true at the moment when an import comes into a state.
    pub fn check_state(&mut self, id: ImportId, state: ImportState, error: Option<&Problem>) {
        let expected = self.expected[&id].clone();
        let found = self.postgres.rows_of(id);
        match state {
            ImportState::Succeeded if found != expected.rows => {
                self.violation(format!("{id} succeeded with rows {found:?} instead of {:?}", expected.rows));
            }
            ImportState::Succeeded if expected.fails => {
                self.violation(format!("{id} succeeded, and its rejects forbid it"));
            }
            ImportState::Failed if !expected.may_fail(error) => {
                self.violation(format!("{id} failed: {error:?}"));
            }
            ImportState::Cancelled if !expected.cancelled => self.violation(format!("nobody cancelled {id}")),
            _ => {}
        }
        if state.is_done() && state != ImportState::Succeeded && !found.is_empty() {
            self.violation(format!("{id} is {state}, and its rows {found:?} are there"));
        }
        if state.is_done() && left_behind(&self.postgres).contains(&id) {
            self.violation(format!("{id} is {state}, and staging or ledger are left"));
        }
    }
}

/// A file: its bytes, the rows that are good, and how many are bad.
fn file(world: &World, bad: bool, widens: bool) -> (Vec<u8>, Vec<u64>, u64) {
    let mut state = world.state();
    let rows = state.random.random_range(1..40);
    let bad_row = if bad { state.random.random_range(1..=rows) } else { 0 };
    let mut csv = String::from("id,name\n");
    let mut good = Vec::new();
    for row in 1..=rows {
        if row == bad_row {
            csv.push_str("x,bad,far,too,many\n");
            continue;
        }
        good.push(row);
        // The last row alone may not be a number.
        let id = if widens && row == rows { "far away".to_owned() } else { row.to_string() };
        csv.push_str(&format!("{id},\"row, {row}\"\n"));
    }
    (csv.into_bytes(), good, u64::from(bad))
}

/// Makes an import and does with it what clients do; `number` is its own.
pub async fn client(world: Arc<World>, number: u64) {
    let id = ImportId(uuid::Uuid::from_u128(u128::from(number) + 1));
    let link = world.process(usize::MAX, false);
    let (bad, limited, widens, shared, wait) = {
        let mut state = world.state();
        let mut chance = |rate: f64| state.random.random_bool(rate);
        let (bad, limited, widens, shared) = (chance(0.4), chance(0.5), chance(0.2), chance(0.5));
        // A table that is there decides what its columns take.
        (bad, limited, widens && !shared, shared, Duration::from_millis(state.random.random_range(0..5_000)))
    };
    tokio::time::sleep(wait).await;
    let (bytes, rows, rejected) = file(&world, bad, widens);
    let table = if shared { "shared".to_owned() } else { format!("table_{number}") };
    let mut request = json!({
        "destination": {"table": table},
        "on_error": {"max_rejects": if limited { json!(0) } else { json!(null) }},
    });
    // Without columns their types are inferred.
    if !widens {
        request["columns"] = json!([{"name": "id", "type": "int64"}, {"name": "name", "type": "text"}]);
    }
    let request = CreateRequest::from_value(&request);
    let request = request.unwrap_or_else(|problem| panic!("{problem}"));
    let key = object_key(id, "data.csv");
    {
        let mut state = world.state();
        let never_uploaded = state.random.random_bool(0.05);
        let fails = bad && limited;
        // A table of its own is there before some imports: then rows wait in the object, unless a process wants them staged.
        let existing = !widens && !shared && number.is_multiple_of(2);
        if existing {
            state.postgres.make_table(&table, [("id", ColumnType::Int64), ("name", ColumnType::Text)]);
        }
        let starts_again = widens || shared || existing;
        let expected = Expected { rows, rejected, fails, never_uploaded, starts_again, ..Expected::default() };
        state.expected.insert(id, expected);
        let record = awaiting(id, request, key.clone());
        state.imports.insert(id, ImportRow { record, lease_until: 0, moved_at: Instant::now() });
        if never_uploaded {
            return;
        }
    }
    tokio::join!(
        upload(&world, &link, id, &key, bytes),
        cancel(&world, id),
        overwrite(&world, id, &key),
        retry(&world, id),
    );
}

fn awaiting(id: ImportId, request: CreateRequest, object_key: String) -> ImportRecord {
    let never = chrono::DateTime::UNIX_EPOCH;
    ImportRecord {
        id,
        version: 1,
        state: ImportState::AwaitingUpload,
        attempt: Attempt(1),
        epoch: Epoch(0),
        request,
        object_key,
        trigger: None,
        size: None,
        etag: None,
        plan: None,
        widened: Default::default(),
        scan_done: false,
        error: None,
        planning_deaths: 0,
        progress: Progress::default(),
        created_at: never,
        uploaded_at: None,
        started_at: None,
        finished_at: None,
        url_expires_at: never,
    }
}

async fn upload(world: &Arc<World>, link: &Link, id: ImportId, key: &str, bytes: Vec<u8>) {
    let (early, wait, complete) = {
        let mut state = world.state();
        let wait = Duration::from_millis(state.random.random_range(0..3_000));
        (state.random.random_bool(0.2), wait, state.random.random_bool(0.3))
    };
    let event = StorageEvent { bucket: BUCKET.to_owned(), key: key.to_owned() };
    if early {
        publish(&mut world.state(), &event);
        world.changed.notify_waiters();
    }
    tokio::time::sleep(wait).await;
    {
        let mut state = world.state();
        state.objects.insert(key.to_owned(), Object { etag: "first".to_owned(), bytes });
        publish(&mut state, &event);
        state.moved(id);
        state.note(link.process, &format!("uploads {id}"));
    }
    world.changed.notify_waiters();
    if complete {
        let (control, objects, bus) = (SimControl(link.clone()), SimObjects(link.clone()), SimBus(link.clone()));
        // A client that gets no answer tries again, or leaves it to the sweep.
        let _ = start_import(&control, &objects, &bus, id, Trigger::Complete).await;
    }
}

/// How long a client waits with what it does to an import, where it does anything.
fn some_time(world: &World, rate: f64) -> Option<Duration> {
    let mut state = world.state();
    state.random.random_bool(rate).then(|| Duration::from_millis(state.random.random_range(0..30_000)))
}

async fn cancel(world: &World, id: ImportId) {
    let Some(wait) = some_time(world, 0.2) else { return };
    tokio::time::sleep(wait).await;
    let mut state = world.state();
    if let Some(expected) = state.expected.get_mut(&id) {
        expected.cancelled = true;
    }
    state.cancel(id);
}

async fn overwrite(world: &World, id: ImportId, key: &str) {
    let Some(wait) = some_time(world, 0.05) else { return };
    tokio::time::sleep(wait).await;
    let mut state = world.state();
    let deleted = state.random.random_bool(0.5);
    // Before it was seen it is the import's own object, whatever it holds.
    let seen = state.imports[&id].record.state != ImportState::AwaitingUpload;
    if !seen || !state.objects.contains_key(key) {
        return;
    }
    if let Some(expected) = state.expected.get_mut(&id) {
        expected.overwritten = true;
    }
    if deleted {
        state.objects.remove(key);
    } else {
        let bytes = b"id,name\n7,another\n".to_vec();
        state.objects.insert(key.to_owned(), Object { etag: "second".to_owned(), bytes });
    }
}

async fn retry(world: &World, id: ImportId) {
    let Some(wait) = some_time(world, 0.3) else { return };
    tokio::time::sleep(wait).await;
    world.state().retry(id);
}
