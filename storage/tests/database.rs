//! The control database's conformance suite, on SQLite and PostgreSQL alike.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use chrono::Utc;
use longshore_domain::{
    Attempt, ByteRange, ChunkIndex, ChunkState, Column, ColumnType, CreateRequest, Epoch, FieldPlan, Format, ImportId,
    ImportState, LineNumber, LoadPlan, Problem, ProblemKind, Progress, RowNumber, Tally, Target, Trigger,
};
use longshore_parse::Widening;
use longshore_storage::bus::ChunkJob;
use longshore_storage::database::{
    Change, ChunkClaim, Created, Database, Effect, IdempotencyKey, ImportFilter, ImportRecord, LISTED_BYTES, NewChunk,
    NewImport, Started,
};
use serde_json::json;
use sqlx::{Connection, Executor};

/// A database of its own, gone behind the test.
struct Fresh {
    database: Database,
    url: String,
    drop_on: Option<(String, String)>,
    _folder: tempfile::TempDir,
}

async fn sqlite() -> Fresh {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", folder.path().join("control.sqlite").display());
    let database = Database::connect(&url, None).await.unwrap();
    Fresh { database, url, drop_on: None, _folder: folder }
}

async fn postgres() -> Fresh {
    let server = std::env::var("LONGSHORE_TEST_POSTGRES_URL")
        .expect("LONGSHORE_TEST_POSTGRES_URL is not set: run `deploy/servers test`");
    let name = format!("longshore_test_{}", ImportId::generate().0.simple());
    let mut admin = sqlx::PgConnection::connect(&server).await.unwrap();
    admin.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
    let mut url: url::Url = server.parse().unwrap();
    url.set_path(&name);
    let database = Database::connect(url.as_str(), None).await.unwrap();
    Fresh { database, url: url.into(), drop_on: Some((server, name)), _folder: tempfile::tempdir().unwrap() }
}

impl Fresh {
    async fn end(self) {
        if let Some((server, name)) = self.drop_on {
            drop(self.database);
            let mut admin = sqlx::PgConnection::connect(&server).await.unwrap();
            admin.execute(sqlx::AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await.unwrap();
        }
    }
}

/// Runs a test on both databases, migrated.
macro_rules! on_both {
    ($($name:ident)*) => {
        mod on_sqlite { $(#[tokio::test] async fn $name() { super::run(super::sqlite().await, super::$name).await; })* }
        mod on_postgres { $(#[tokio::test] async fn $name() { super::run(super::postgres().await, super::$name).await; })* }
    };
}

async fn run<F: Future<Output = ()>>(fresh: Fresh, test: impl FnOnce(Database, String) -> F) {
    fresh.database.migrate().await.unwrap();
    test(fresh.database.clone(), fresh.url.clone()).await;
    fresh.end().await;
}

on_both! {
    two_nodes_migrate_at_once
    an_import_is_read_back_as_it_was_asked_for
    requests_that_meet_have_each_their_own_answer
    listings_are_newest_first_and_filtered
    a_listing_ends_at_so_many_bytes
    many_triggers_start_an_import_once
    only_one_of_many_claims_wins
    an_old_owner_changes_nothing
    states_change_by_compare_and_set
    chunks_are_stored_once_and_only_by_the_owner
    a_chunk_has_one_worker_at_a_time_and_its_claims_are_counted
    wider_types_merge_and_start_over
    progress_survives_and_is_the_owners
    an_import_expires_only_while_it_awaits
    owners_that_end_before_there_is_a_plan_are_counted
    a_late_reason_fails_nothing
    a_lone_process_need_not_wait_for_leases_of_the_dead
    requests_under_one_key_make_one_import
    a_cancel_takes_what_was_not_published
    a_cancel_and_a_publish_never_both_win
    a_retry_begins_a_new_attempt_once
    a_fresh_url_keeps_an_import_from_expiring
    an_older_version_starts_and_works_beside_this_one
    the_backlog_is_what_is_not_done
}

fn request(table: &str) -> CreateRequest {
    CreateRequest::from_value(&json!({"destination": {"table": table}, "format": {"delimiter": ";"}})).unwrap()
}

fn new_import(table: &str) -> NewImport {
    let id = ImportId::generate();
    NewImport { id, request: request(table), object_key: format!("imports/{id}/a.csv"), url_expires_at: Utc::now() }
}

async fn create(database: &Database, table: &str) -> ImportRecord {
    match database.create(&new_import(table), None).await.unwrap() {
        Created::New(record) => record,
        other => panic!("no new import: {other:?}"),
    }
}

async fn started(database: &Database) -> ImportRecord {
    let record = create(database, "t").await;
    assert_eq!(database.start(record.id, Trigger::Event, 100, "etag").await.unwrap(), Started::Now);
    database.import(record.id).await.unwrap().unwrap()
}

async fn claimed(database: &Database) -> ImportRecord {
    let record = started(database).await;
    database.claim(record.id, "node-a").await.unwrap().unwrap()
}

fn plan() -> LoadPlan {
    let field = |name: &str, field| FieldPlan {
        name: name.into(),
        kind: ColumnType::Int64,
        field,
        nullable: true,
        inferred: true,
        notation: longshore_domain::Notation::default(),
    };
    let column = |name: &str| Column::new(name, ColumnType::Int64);
    LoadPlan {
        table: "t".parse().unwrap(),
        target: Target::NewTable,
        format: Format::default(),
        width: 2,
        header: vec!["a".into(), "b".into()],
        fields: vec![field("a", 0), field("b", 1)],
        columns: vec![column("a"), column("b")],
        data_start: longshore_domain::ByteOffset(4),
        data_line: 2,
    }
}

async fn running(database: &Database) -> ImportRecord {
    let record = claimed(database).await;
    let (id, epoch) = (record.id, record.epoch);
    assert!(database.change(id, epoch, ImportState::Queued, &Change::Plan).await.unwrap());
    assert!(database.store_plan(id, epoch, &plan()).await.unwrap());
    assert!(database.change(id, epoch, ImportState::Planning, &Change::Run).await.unwrap());
    database.import(id).await.unwrap().unwrap()
}

fn chunk(number: u32) -> NewChunk {
    let start = u64::from(number) * 10;
    NewChunk {
        chunk: ChunkIndex(number),
        range: ByteRange::new(start, start + 10),
        first_row: RowNumber(start + 1),
        first_line: LineNumber(start + 1),
        next_line: LineNumber(start + 11),
        rows: 10,
        oversized: false,
        text: None,
    }
}

fn job(record: &ImportRecord, number: u32) -> ChunkJob {
    ChunkJob { import: record.id, attempt: record.attempt, epoch: record.epoch, chunk: ChunkIndex(number) }
}

async fn two_nodes_migrate_at_once(_: Database, url: String) {
    let nodes = futures::future::join_all((0..4).map(|_| async {
        let database = Database::connect(&url, None).await?;
        database.migrate().await?;
        database.check().await
    }));
    for node in nodes.await {
        node.unwrap();
    }
}

async fn an_import_is_read_back_as_it_was_asked_for(database: Database, _: String) {
    let record = create(&database, "sales.\"q1.2026\"").await;
    let read = database.import(record.id).await.unwrap().unwrap();
    assert_eq!(read.request, request("sales.\"q1.2026\""));
    assert_eq!((read.state, read.attempt, read.epoch), (ImportState::AwaitingUpload, Attempt(1), Epoch(0)));
    assert!(database.import(ImportId::generate()).await.unwrap().is_none());
    let resource = serde_json::to_value(read.to_resource("bucket")).unwrap();
    assert_eq!(resource["format"]["delimiter"], ";");
    assert_eq!(resource["source"]["key"], read.object_key);
    assert_eq!(resource["progress"]["rows_read"], 0);
}

async fn requests_that_meet_have_each_their_own_answer(database: Database, _: String) {
    let there = create(&database, "there").await;
    // Some of them are refused: their ids are taken.
    let new: Vec<NewImport> = (0..150)
        .map(|place| {
            let new = new_import(&format!("t{place}"));
            if place % 30 == 7 { NewImport { id: there.id, ..new } } else { new }
        })
        .collect();
    let created = futures::future::join_all(new.iter().map(|new| database.create(new, None))).await;
    for (new, created) in new.iter().zip(created) {
        match created {
            Ok(Created::New(record)) => {
                assert_eq!((record.id, &record.object_key), (new.id, &new.object_key));
                assert_ne!(record.id, there.id);
                let read = database.import(record.id).await.unwrap().unwrap();
                assert_eq!(format!("{record:?}"), format!("{read:?}"));
            }
            other => assert!(other.is_err() && new.id == there.id, "{other:?}"),
        }
    }
    let ids: Vec<ImportId> = new.iter().map(|new| new.id).chain((0..20).map(|_| ImportId::generate())).collect();
    let read = futures::future::join_all(ids.iter().map(|id| database.import(*id))).await;
    for (place, (id, read)) in ids.iter().zip(read).enumerate() {
        let read = read.unwrap();
        assert_eq!(read.as_ref().map(|record| record.id), (place < new.len()).then_some(*id));
        if let Some(record) = read.filter(|record| record.id != there.id) {
            assert_eq!(record.request.destination.table.to_string(), format!("t{place}"));
        }
    }
}

/// A prepared statement keeps the plan of a table that was small when it was made: it must be that of a large one.
#[tokio::test]
async fn a_status_is_found_by_its_key_even_in_a_small_table() {
    let fresh = postgres().await;
    fresh.database.migrate().await.unwrap();
    let import = create(&fresh.database, "trips").await;
    let mut admin = sqlx::PgConnection::connect(&fresh.url).await.unwrap();
    // Only now does the server know how small it is.
    admin.execute("ANALYZE longshore_imports").await.unwrap();
    let scans = "SELECT seq_scan, coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = 'longshore_imports'";
    let reads = async {
        let mut before = None;
        loop {
            for _ in 0..20 {
                assert!(fresh.database.import(import.id).await.unwrap().is_some());
            }
            let now: (i64, i64) = sqlx::query_as(scans).fetch_one(&mut admin).await.unwrap();
            match before {
                // What reads of its own sort did, told by the server about once a second.
                Some((seq, idx)) if now.1 > idx + 40 || now.0 > seq + 40 => break (now.0 - seq, now.1 - idx),
                Some(_) => {}
                None => before = Some(now),
            }
        }
    };
    let (all, by_key) = tokio::time::timeout(std::time::Duration::from_secs(60), reads).await.expect("figures");
    assert!(by_key > 0 && all < 20, "{all} went through the table, {by_key} through its key");
    drop(admin);
    fresh.end().await;
}

async fn listings_are_newest_first_and_filtered(database: Database, _: String) {
    let mut ids = Vec::new();
    for n in 0..7 {
        ids.push(create(&database, if n % 2 == 0 { "even" } else { "odd" }).await.id);
    }
    ids.reverse();
    let all = |filter: ImportFilter, limit| {
        let database = database.clone();
        async move {
            let listed = database.imports(&filter, limit).await.unwrap();
            (listed.imports.into_iter().map(|record| record.id).collect::<Vec<_>>(), listed.more)
        }
    };
    assert_eq!(all(ImportFilter::default(), 100).await, (ids.clone(), false));
    assert_eq!(all(ImportFilter::default(), 7).await, (ids.clone(), false));
    let page = all(ImportFilter { before: Some(ids[2]), ..Default::default() }, 2).await;
    assert_eq!(page, (ids[3..5].to_vec(), true));
    assert_eq!(all(ImportFilter { table: Some("even".into()), ..Default::default() }, 100).await.0.len(), 4);
    database.start(ids[0], Trigger::Sweep, 1, "e").await.unwrap();
    let queued = all(ImportFilter { state: Some(ImportState::Queued), ..Default::default() }, 100).await;
    assert_eq!(queued, (ids[..1].to_vec(), false));

    assert_eq!(database.newest_awaiting().await.unwrap(), Some(ids[1]));
    let awaiting = database.awaiting(None, Some(ids[3]), 100).await.unwrap();
    assert!(awaiting.iter().map(|import| import.id).eq(ids[3..].iter().rev().copied()), "{awaiting:?}");
    let awaiting = database.awaiting(Some(ids[4]), Some(ids[2]), 1).await.unwrap();
    assert!(awaiting.iter().map(|import| import.id).eq([ids[3]]), "{awaiting:?}");
}

/// A request may have two megabytes, and a page a thousand imports.
async fn a_listing_ends_at_so_many_bytes(database: Database, _: String) {
    let column = |n: u64| json!({"name": format!("c{n}"), "type": "text", "source": format!("{n:0>1000}")});
    let large = LISTED_BYTES / 4;
    let columns: Vec<_> = (0..large / 1000).map(column).collect();
    let request = CreateRequest::from_value(&json!({"destination": {"table": "t"}, "columns": columns})).unwrap();
    let mut ids = Vec::new();
    for _ in 0..6 {
        let new = NewImport { id: ImportId::generate(), request: request.clone(), ..new_import("t") };
        ids.push(new.id);
        database.create(&new, None).await.unwrap();
    }
    ids.reverse();
    let mut filter = ImportFilter::default();
    let mut found = Vec::new();
    let mut pages = Vec::new();
    loop {
        let page = database.imports(&filter, 100).await.unwrap();
        pages.push(page.imports.len());
        found.extend(page.imports.iter().map(|import| import.id));
        filter.before = found.last().copied();
        if !page.more {
            break;
        }
    }
    assert_eq!((found, pages), (ids, vec![4, 2]));
}

async fn many_triggers_start_an_import_once(database: Database, _: String) {
    let record = create(&database, "t").await;
    let triggers = [Trigger::Event, Trigger::Complete, Trigger::Sweep];
    let starts = triggers.iter().cycle().take(12).map(|trigger| database.start(record.id, *trigger, 5, "e"));
    let outcomes: Vec<_> = futures::future::join_all(starts).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Started::Now).count(), 1, "{outcomes:?}");
    assert_eq!(database.start(ImportId::generate(), Trigger::Event, 5, "e").await.unwrap(), Started::Unknown);
    assert!(database.awaiting(None, None, 10).await.unwrap().is_empty());
    assert_eq!(database.ownerless(10).await.unwrap(), [record.id]);
}

async fn only_one_of_many_claims_wins(database: Database, _: String) {
    let record = started(&database).await;
    let owners: Vec<String> = (0..8).map(|n| format!("node-{n}")).collect();
    let claims = futures::future::join_all(owners.iter().map(|owner| database.claim(record.id, owner))).await;
    let won: Vec<_> = claims.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(won.len(), 1);
    assert_eq!(won[0].epoch, Epoch(1));
    assert!(database.ownerless(10).await.unwrap().is_empty());
    database.release(record.id, Epoch(1)).await.unwrap();
    assert_eq!(database.claim(record.id, "next").await.unwrap().unwrap().epoch, Epoch(2));
    assert!(database.claim(create(&database, "t").await.id, "x").await.unwrap().is_none(), "nothing to own yet");
}

async fn an_old_owner_changes_nothing(database: Database, _: String) {
    let old = running(&database).await;
    database.release(old.id, old.epoch).await.unwrap();
    let new = database.claim(old.id, "node-b").await.unwrap().unwrap();
    let problem = Problem::new(ProblemKind::EmptyFile, "x");
    assert_eq!(database.renew(old.id, old.epoch).await.unwrap(), None);
    assert!(!database.change(old.id, old.epoch, ImportState::Running, &Change::Publish).await.unwrap());
    assert!(!database.store_error(old.id, old.attempt, old.epoch, &ImportState::MAY_FAIL, &problem).await.unwrap());
    assert!(!database.store_progress(old.id, old.attempt, old.epoch, &Progress::default()).await.unwrap());
    assert!(!database.store_chunks(old.id, old.attempt, old.epoch, &[chunk(0)], true).await.unwrap());
    assert!(database.chunks(old.id, old.attempt, ChunkIndex(0), 10).await.unwrap().is_empty());
    database.release(old.id, old.epoch).await.unwrap();
    assert_eq!(database.renew(new.id, new.epoch).await.unwrap(), Some(ImportState::Running), "the new lease holds");
}

async fn states_change_by_compare_and_set(database: Database, _: String) {
    let record = running(&database).await;
    let (id, epoch) = (record.id, record.epoch);
    assert!(!database.change(id, epoch, ImportState::Planning, &Change::Run).await.unwrap(), "it is running already");
    assert!(database.change(id, epoch, ImportState::Running, &Change::Cancel).await.is_err(), "no such change");
    assert!(database.change(id, epoch, ImportState::Running, &Change::Publish).await.unwrap());
    let succeed = Change::Succeed { rows_loaded: 7, rows_rejected: 3 };
    assert!(database.change(id, epoch, ImportState::Publishing, &succeed).await.unwrap());
    let done = database.import(id).await.unwrap().unwrap();
    assert_eq!((done.progress.rows_read, done.progress.rows_loaded, done.progress.rows_rejected), (10, 7, 3));
    assert_eq!(done.progress.percent, 100.0);
    assert!(done.finished_at.is_some() && done.started_at.is_some());
    assert!(database.ownerless(10).await.unwrap().is_empty());
    assert!(done.version > record.version);
}

async fn chunks_are_stored_once_and_only_by_the_owner(database: Database, _: String) {
    let record = running(&database).await;
    let (id, attempt, epoch) = (record.id, record.attempt, record.epoch);
    let new: Vec<_> = (0..2500).map(chunk).collect();
    assert!(database.store_chunks(id, attempt, epoch, &new[..2000], false).await.unwrap());
    assert!(database.store_chunks(id, attempt, epoch, &new[1990..], true).await.unwrap(), "twice is harmless");
    let stored = database.chunks(id, attempt, ChunkIndex(0), 10_000).await.unwrap();
    assert_eq!(stored.iter().map(|chunk| chunk.planned.clone()).collect::<Vec<_>>(), new);
    let read = database.import(id).await.unwrap().unwrap();
    assert!(read.scan_done);
    assert_eq!(read.progress.chunks_total, 2500);
    assert!(!database.store_chunks(id, attempt.next(), epoch, &new, true).await.unwrap(), "another attempt");
}

async fn a_chunk_has_one_worker_at_a_time_and_its_claims_are_counted(database: Database, _: String) {
    let record = running(&database).await;
    database.store_chunks(record.id, record.attempt, record.epoch, &[chunk(0), chunk(1)], true).await.unwrap();
    let job = job(&record, 0);
    let workers: Vec<String> = (0..6).map(|n| format!("worker-{n}")).collect();
    let claims = futures::future::join_all(workers.iter().map(|worker| database.claim_chunk(&job, worker))).await;
    let won: Vec<_> = claims
        .into_iter()
        .filter_map(|claim| match claim.unwrap() {
            ChunkClaim::Claimed(chunk) => Some(chunk),
            ChunkClaim::NotNow => None,
        })
        .collect();
    assert_eq!((won.len(), won[0].claims), (1, 1));
    let worker = won[0].worker.clone().unwrap();
    assert!(database.keep_chunk(&job, &worker, 1).await.unwrap());
    assert!(!database.keep_chunk(&job, "somebody", 1).await.unwrap());
    let open = database.open_chunks(record.id, record.attempt, ChunkIndex(0), 10).await.unwrap();
    assert_eq!((open.len(), open[0].claimed, open[0].held, open[1].claimed), (2, true, true, false));

    database.free_chunks(record.id, record.attempt).await.unwrap();
    assert!(!database.keep_chunk(&job, &worker, 1).await.unwrap(), "a new owner freed it");
    let ChunkClaim::Claimed(again) = database.claim_chunk(&job, &worker).await.unwrap() else { panic!("it is free") };
    assert_eq!(again.claims, 2);
    assert!(!database.keep_chunk(&job, &worker, 1).await.unwrap(), "a task of that process slept");
    database.release_chunk(&job, &worker, 1).await.unwrap();
    assert!(database.keep_chunk(&job, &worker, 2).await.unwrap());
    database.release_chunk(&job, &worker, 2).await.unwrap();
    let open = database.open_chunks(record.id, record.attempt, ChunkIndex(0), 1).await.unwrap();
    assert_eq!(open[0].claims, 1, "a claim that was handed back is no try");
    database.finish_chunk(record.id, record.attempt, ChunkIndex(0), 4).await.unwrap();
    assert_eq!(database.claim_chunk(&job, "late").await.unwrap(), ChunkClaim::NotNow, "it is done");
    let stored = database.chunks(record.id, record.attempt, ChunkIndex(0), 1).await.unwrap();
    assert_eq!((stored[0].state, stored[0].rows_rejected), (ChunkState::Done, 4));
}

async fn wider_types_merge_and_start_over(database: Database, _: String) {
    let record = running(&database).await;
    let decimal = |scale| ColumnType::Decimal { precision: 38, scale };
    let widenings = |column, to| vec![Widening { column, to }];
    let all =
        [widenings(0, decimal(1)), widenings(0, decimal(4)), widenings(1, ColumnType::Text), widenings(0, decimal(2))];
    let stored =
        futures::future::join_all(all.iter().map(|one| database.widen(record.id, record.attempt, record.epoch, one)));
    assert!(stored.await.into_iter().all(Result::unwrap));
    let read = database.import(record.id).await.unwrap().unwrap();
    assert_eq!(read.widened["a"], decimal(4));
    assert_eq!(read.widened["b"], ColumnType::Text);

    let restart = Change::Restart { widened: read.widened.clone() };
    assert!(database.change(record.id, record.epoch, ImportState::Running, &restart).await.unwrap());
    let again = database.import(record.id).await.unwrap().unwrap();
    assert_eq!((again.state, again.attempt, again.plan), (ImportState::Queued, Attempt(2), None));
    assert_eq!(again.widened, read.widened);
    let late = database.widen(record.id, Attempt(1), record.epoch, &widenings(0, ColumnType::Text)).await.unwrap();
    assert!(!late, "a worker of the old attempt widens nothing");
}

async fn progress_survives_and_is_the_owners(database: Database, _: String) {
    let record = running(&database).await;
    database.store_chunks(record.id, record.attempt, record.epoch, &[chunk(0), chunk(1)], true).await.unwrap();
    let progress = Progress {
        rows_per_second: Some(12.5),
        eta_seconds: Some(1.5),
        ..Progress::of(100, 2, Tally { rows: 10, rejected: 4, bytes: 50, chunks: 1 })
    };
    assert!(database.store_progress(record.id, record.attempt, record.epoch, &progress).await.unwrap());
    assert_eq!(database.import(record.id).await.unwrap().unwrap().progress, progress);

    // What the attempt before counted comes late, under the epoch that both have.
    let restart = Change::Restart { widened: record.widened.clone() };
    assert!(database.change(record.id, record.epoch, ImportState::Running, &restart).await.unwrap());
    assert!(database.change(record.id, record.epoch, ImportState::Queued, &Change::Plan).await.unwrap());
    assert!(database.change(record.id, record.epoch, ImportState::Planning, &Change::Run).await.unwrap());
    assert!(!database.store_progress(record.id, record.attempt, record.epoch, &progress).await.unwrap());
    assert_eq!(database.import(record.id).await.unwrap().unwrap().progress.rows_read, 0);
}

async fn owners_that_end_before_there_is_a_plan_are_counted(database: Database, _: String) {
    let record = claimed(&database).await;
    let id = record.id;
    let mut counted = vec![record.planning_deaths];
    let mut claim = async |let_go: Option<Epoch>| {
        // Nobody else uses this database: leases that are held are made to run out, those that were let go stay so.
        match let_go {
            Some(epoch) => database.release(id, epoch).await.unwrap(),
            None => database.release_all().await.unwrap(),
        }
        let record = database.claim(id, "node-b").await.unwrap().unwrap();
        counted.push(record.planning_deaths);
        record.epoch
    };
    claim(None).await;
    let epoch = claim(None).await;
    assert!(database.change(id, epoch, ImportState::Queued, &Change::Plan).await.unwrap());
    let epoch = claim(None).await;
    claim(Some(epoch)).await;
    let epoch = claim(None).await;
    assert!(database.store_plan(id, epoch, &plan()).await.unwrap());
    claim(None).await;
    assert_eq!(counted, [0, 1, 2, 3, 0, 1, 0]);
}

async fn an_import_expires_only_while_it_awaits(database: Database, _: String) {
    let record = create(&database, "t").await;
    assert!(!database.expire(record.id, 3_600_000).await.unwrap(), "not yet");
    assert!(database.expire(record.id, -3_600_000).await.unwrap());
    assert!(!database.expire(record.id, -3_600_000).await.unwrap(), "once");
    assert_eq!(database.start(record.id, Trigger::Event, 1, "e").await.unwrap(), Started::Before(ImportState::Expired));
    let other = started(&database).await;
    assert!(!database.expire(other.id, -3_600_000).await.unwrap());
}

async fn a_late_reason_fails_nothing(database: Database, _: String) {
    let record = running(&database).await;
    let (id, epoch) = (record.id, record.epoch);
    let problem = Problem::new(ProblemKind::ObjectChanged, "late");
    let working = [ImportState::Planning, ImportState::Running];
    let restart = Change::Restart { widened: record.widened.clone() };
    assert!(database.change(id, epoch, ImportState::Running, &restart).await.unwrap());
    assert!(!database.store_error(id, Attempt(1), epoch, &working, &problem).await.unwrap(), "an older attempt");
    assert!(!database.store_error(id, Attempt(2), epoch, &working, &problem).await.unwrap(), "nobody works in queued");
    assert!(database.store_error(id, Attempt(2), epoch, &ImportState::MAY_FAIL, &problem).await.unwrap());
    let read = database.import(id).await.unwrap().unwrap();
    assert_eq!(read.error, Some(problem));
    assert_eq!(serde_json::to_value(read.to_resource("b")).unwrap()["error"], json!(null), "it has not failed yet");
}

async fn a_lone_process_need_not_wait_for_leases_of_the_dead(database: Database, _: String) {
    let record = running(&database).await;
    database.store_chunks(record.id, record.attempt, record.epoch, &[chunk(0)], true).await.unwrap();
    assert!(matches!(database.claim_chunk(&job(&record, 0), "dead").await.unwrap(), ChunkClaim::Claimed(_)));
    assert_eq!(database.claim(record.id, "next").await.unwrap().map(|record| record.epoch), None);
    database.release_all().await.unwrap();
    assert_eq!(database.claim(record.id, "next").await.unwrap().map(|record| record.epoch), Some(Epoch(2)));
    let ChunkClaim::Claimed(again) = database.claim_chunk(&job(&record, 0), "next").await.unwrap() else {
        panic!("its worker is gone")
    };
    assert_eq!(again.claims, 2, "the death stays counted");
}

async fn requests_under_one_key_make_one_import(database: Database, url: String) {
    // Two nodes, each with a pool of its own.
    let other = Database::connect(&url, None).await.unwrap();
    for round in 0..10 {
        let key = IdempotencyKey { key: format!("key-{round}"), fingerprint: "one".into() };
        let news: Vec<NewImport> = (0..6).map(|_| new_import("t")).collect();
        let nodes = [&database, &other];
        let creates = news.iter().zip(nodes.iter().cycle()).map(|(new, node)| node.create(new, Some(&key)));
        let created: Vec<_> = futures::future::join_all(creates).await.into_iter().map(Result::unwrap).collect();
        let of = |created: &Created| match created {
            Created::New(record) => (true, record.id),
            Created::Before(record) => (false, record.id),
            Created::KeyOfAnother => panic!("the requests are equal"),
        };
        let made: Vec<_> = created.iter().map(of).collect();
        assert_eq!(made.iter().filter(|(new, _)| *new).count(), 1, "{made:?}");
        assert!(made.iter().all(|(_, id)| *id == made[0].1), "{made:?}");

        let another = IdempotencyKey { fingerprint: "two".into(), ..key };
        let refused = database.create(&new_import("t"), Some(&another)).await.unwrap();
        assert!(matches!(refused, Created::KeyOfAnother), "{refused:?}");
    }
    assert_eq!(database.imports(&ImportFilter::default(), 100).await.unwrap().imports.len(), 10);
}

/// What became of a cancel, and the state it was answered with.
async fn cancel(database: &Database, record: &ImportRecord) -> (Effect, ImportState) {
    let (effect, record) = database.cancel(record.id).await.unwrap().expect("the import is known");
    (effect, record.state)
}

/// What became of a retry, and the state it was answered with.
async fn retry(database: &Database, record: &ImportRecord) -> (Effect, ImportState) {
    let (effect, record) = database.retry(record.id).await.unwrap().expect("the import is known");
    (effect, record.state)
}

async fn a_cancel_takes_what_was_not_published(database: Database, _: String) {
    assert!(database.cancel(ImportId::generate()).await.unwrap().is_none());
    let awaiting = create(&database, "t").await;
    for effect in [Effect::Now, Effect::Before] {
        assert_eq!(cancel(&database, &awaiting).await, (effect, ImportState::Cancelled));
    }
    let read = database.import(awaiting.id).await.unwrap().unwrap();
    assert_eq!((read.state, read.finished_at.is_some()), (ImportState::Cancelled, true));
    assert!(read.version > awaiting.version);
    let late = database.start(awaiting.id, Trigger::Event, 1, "e").await.unwrap();
    assert_eq!(late, Started::Before(ImportState::Cancelled));

    for record in [started(&database).await, claimed(&database).await, running(&database).await] {
        assert_eq!(cancel(&database, &record).await, (Effect::Now, ImportState::Cancelling));
        let read = database.import(record.id).await.unwrap().unwrap();
        assert_eq!((read.state, read.finished_at), (ImportState::Cancelling, None));
        let epoch = match database.claim(record.id, "owner").await.unwrap() {
            Some(claimed) => claimed.epoch,
            None => record.epoch,
        };
        assert!(!database.change(record.id, epoch, ImportState::Running, &Change::Publish).await.unwrap());
        assert!(database.change(record.id, epoch, ImportState::Cancelling, &Change::Cancel).await.unwrap());
        assert_eq!(cancel(&database, &record).await, (Effect::Before, ImportState::Cancelled));
    }

    let failed = failed(&database).await;
    assert_eq!(cancel(&database, &failed).await, (Effect::WrongState, ImportState::Failed));
}

async fn a_cancel_and_a_publish_never_both_win(database: Database, _: String) {
    for round in 0..30 {
        let record = running(&database).await;
        let publish =
            async || database.change(record.id, record.epoch, ImportState::Running, &Change::Publish).await.unwrap();
        let cancel = async || cancel(&database, &record).await;
        let (cancelled, published) = if round % 2 == 0 {
            tokio::join!(cancel(), publish())
        } else {
            let (published, cancelled) = tokio::join!(publish(), cancel());
            (cancelled, published)
        };
        let state = database.import(record.id).await.unwrap().unwrap().state;
        match (cancelled, published) {
            ((Effect::Now, ImportState::Cancelling), false) => assert_eq!(state, ImportState::Cancelling),
            ((Effect::WrongState, ImportState::Publishing), true) => assert_eq!(state, ImportState::Publishing),
            both => panic!("{both:?} in {state}"),
        }
    }
}

async fn failed(database: &Database) -> ImportRecord {
    let record = running(database).await;
    let (id, epoch) = (record.id, record.epoch);
    let problem = Problem::new(ProblemKind::TooManyRejects, "x");
    assert!(database.store_error(id, record.attempt, epoch, &ImportState::MAY_FAIL, &problem).await.unwrap());
    let progress = Progress::of(100, 2, Tally { rows: 10, rejected: 4, bytes: 50, chunks: 1 });
    assert!(database.store_progress(id, record.attempt, epoch, &progress).await.unwrap());
    assert!(database.change(id, epoch, record.state, &Change::Fail).await.unwrap());
    database.import(id).await.unwrap().unwrap()
}

async fn a_retry_begins_a_new_attempt_once(database: Database, _: String) {
    assert!(database.retry(ImportId::generate()).await.unwrap().is_none());
    let record = failed(&database).await;
    let retries = futures::future::join_all((0..6).map(|_| retry(&database, &record))).await;
    let times = |effect| retries.iter().filter(|retry| **retry == (effect, ImportState::Queued)).count();
    assert_eq!((times(Effect::Now), times(Effect::Before)), (1, 5), "{retries:?}");
    let again = database.import(record.id).await.unwrap().unwrap();
    assert_eq!((again.state, again.attempt), (ImportState::Queued, Attempt(2)));
    assert_eq!((again.error, again.plan, again.started_at, again.finished_at), (None, None, None, None));
    assert_eq!(again.progress, Progress::of(100, 0, Tally::default()));
    assert_eq!(again.etag, record.etag, "the object that was seen at first is the one that is read");
    let owned = database.claim(record.id, "owner").await.unwrap().expect("it waits for an owner");
    assert!(owned.epoch > record.epoch);
    assert_eq!(retry(&database, &record).await, (Effect::Before, owned.state));

    assert_eq!(cancel(&database, &record).await, (Effect::Now, ImportState::Cancelling));
    assert_eq!(retry(&database, &record).await, (Effect::WrongState, ImportState::Cancelling));
    for other in [create(&database, "t").await, running(&database).await] {
        assert_eq!(retry(&database, &other).await, (Effect::WrongState, other.state), "it was never retried");
    }
    let twice = failed(&database).await;
    assert_eq!(retry(&database, &twice).await, (Effect::Now, ImportState::Queued));
    let owned = database.claim(twice.id, "owner").await.unwrap().unwrap();
    assert!(database.change(twice.id, owned.epoch, ImportState::Queued, &Change::Fail).await.unwrap());
    assert_eq!(retry(&database, &twice).await, (Effect::Now, ImportState::Queued), "it failed once more");
    assert_eq!(database.import(twice.id).await.unwrap().unwrap().attempt, Attempt(3));
}

async fn a_fresh_url_keeps_an_import_from_expiring(database: Database, _: String) {
    let record = create(&database, "t").await;
    let in_an_hour = Utc::now() + chrono::TimeDelta::hours(1);
    assert!(database.extend_upload(record.id, in_an_hour).await.unwrap());
    assert!(database.extend_upload(record.id, Utc::now()).await.unwrap(), "a shorter one takes nothing away");
    let read = database.import(record.id).await.unwrap().unwrap();
    assert_eq!(read.url_expires_at.timestamp_millis(), in_an_hour.timestamp_millis());
    assert!(!database.expire(record.id, -1_800_000).await.unwrap());
    assert!(database.expire(record.id, -2 * 3_600_000).await.unwrap());
    assert!(!database.extend_upload(record.id, in_an_hour).await.unwrap(), "it expired");
    assert!(!database.extend_upload(ImportId::generate(), in_an_hour).await.unwrap());
}

/// Statements beside the program, and the first value that the last one answers with.
async fn raw(url: &str, statements: &[&str]) -> Option<String> {
    if let Some(path) = url.strip_prefix("sqlite://") {
        let connection = rusqlite::Connection::open(path.split('?').next().unwrap()).unwrap();
        let (last, first) = statements.split_last().unwrap();
        first.iter().for_each(|statement| connection.execute_batch(statement).unwrap());
        let mut last = connection.prepare(last).unwrap();
        return last.query_map([], |row| row.get(0)).unwrap().next().map(Result::unwrap);
    }
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    let mut value = None;
    for statement in statements {
        let statement = sqlx::AssertSqlSafe((*statement).to_owned());
        let rows = sqlx::raw_sql(statement).fetch_all(&mut connection).await.unwrap();
        value = rows.first().map(|row| sqlx::Row::get(row, 0));
    }
    value
}

/// What the version before did with these tables: its migrator refuses a table of migrations that holds one it does not know,
/// and its statements name its own columns only.
async fn an_older_version_starts_and_works_beside_this_one(database: Database, url: String) {
    assert_eq!(raw(&url, &["SELECT max(version) FROM longshore_migrations"]).await.unwrap(), "m0001_spine");
    let record = create(&database, "t").await;
    let known = "id, version, state, attempt, epoch, lease_until_ms, request, table_name, object_key, url_expires_ms, \
                 created_ms, scan_done, bytes_done, rows_read, rows_rejected, chunks_total, chunks_done";
    let insert = format!("INSERT INTO longshore_imports ({known}) SELECT {known} FROM older");
    let older = "CREATE TABLE older AS SELECT * FROM longshore_imports";
    raw(&url, &[older, "DELETE FROM longshore_imports", &insert, "SELECT 'done'"]).await;
    assert_eq!(database.import(record.id).await.unwrap().unwrap().request, record.request);

    // And a step of a version to come.
    raw(&url, &["INSERT INTO longshore_schema (step) VALUES ('m9999_to_come')", "SELECT 'done'"]).await;
    database.migrate().await.unwrap();
    assert_eq!(database.versions(&[record.id, ImportId::generate()]).await.unwrap(), [(record.id, record.version)]);
}

async fn the_backlog_is_what_is_not_done(database: Database, _: String) {
    assert_eq!(database.backlog().await.unwrap(), []);
    create(&database, "t").await;
    create(&database, "t").await;
    started(&database).await;
    let record = running(&database).await;
    let (id, attempt, epoch) = (record.id, record.attempt, record.epoch);
    database.store_chunks(id, attempt, epoch, &[chunk(0), chunk(1), chunk(2)], false).await.unwrap();
    let progress = Progress::of(100, 3, Tally { rows: 10, rejected: 0, bytes: 10, chunks: 1 });
    assert!(database.store_progress(id, attempt, epoch, &progress).await.unwrap());
    let ended = running(&database).await;
    assert!(database.change(ended.id, ended.epoch, ImportState::Running, &Change::Fail).await.unwrap());

    let mut backlog = database.backlog().await.unwrap();
    backlog.sort_by_key(|found| found.state.as_str());
    let seen: Vec<_> = backlog.iter().map(|found| (found.state, found.imports, found.chunks, found.bytes)).collect();
    assert_eq!(
        seen,
        [(ImportState::AwaitingUpload, 2, 0, 0), (ImportState::Queued, 1, 0, 100), (ImportState::Running, 1, 2, 90),]
    );
    // The oldest only gets older, by the database's clock.
    let before = backlog[0].oldest;
    let mut later = database.backlog().await.unwrap();
    later.sort_by_key(|found| found.state.as_str());
    assert!(later[0].oldest >= before && later[0].oldest < std::time::Duration::from_secs(600));
}
