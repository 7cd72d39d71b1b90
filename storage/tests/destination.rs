//! One conformance suite for destinations, run on SQLite, on PostgreSQL, and on PostgreSQL with all rows staged; and what only
//! PostgreSQL has.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;
#[path = "common/destination.rs"]
mod support;

use polars_core::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use longshore_domain::{
    Attempt, ChunkIndex, ColumnType, Epoch, LineNumber, LoadPlan, OnError, ProblemKind, Reject, RejectReason,
    RowNumber, Tally, Target,
};
use longshore_parse::{Batch, ChunkEnd, ParsedChunk, RowNumbers, Values};
use longshore_storage::destination::{
    ChunkRows, ChunkSource, Destination as _, DestinationError, FenceState, LISTED_BYTES, Planned, PublishOutcome,
    Published, RecordLookup, Staging, Ticket, Written,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use common::within;
use support::*;

/// Each function of the suite, on each destination.
macro_rules! conformance {
    ($($name:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::support::on_sqlite(super::$name).await })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::support::on_postgres(super::$name).await })*
        }
        mod postgres_staged {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::support::on_postgres_staged(super::$name).await })*
        }
    };
}

conformance! {
    every_type_reads_back_exactly
    a_chunk_written_twice_is_there_once
    a_stale_ticket_writes_nothing
    a_published_import_stays_published
    two_imports_that_make_one_table_do_not_overwrite_it
    of_rows_that_collide_the_lowest_stays
    more_refused_rows_than_allowed_leave_the_table_untouched_and_stay_listed
    null_and_check_constraints_refuse_single_rows
    counts_that_do_not_add_up_are_not_published
    chunks_whose_row_numbers_do_not_follow_each_other_are_not_published
    a_chunk_that_miscounts_is_refused
    an_aborted_import_leaves_only_its_rejects
    a_new_attempt_begins_anew
    dropped_staging_is_noticed
    odd_identifiers_are_just_names
    parser_rejects_are_kept_byte_for_byte
    a_chunk_of_many_bad_rows_lists_them_all
    long_records_are_listed_a_few_at_a_time
    views_and_unknown_schemas_are_refused
    columns_that_are_not_there_are_refused
    two_prepares_at_once_do_no_harm
    an_empty_file_makes_an_empty_table
    workers_write_chunks_of_one_import_at_once
    cells_stay_in_their_rows_whatever_number_there_is
}

fn committed(rows: u64, rejected: u64) -> Written {
    Written::Committed(Tally { rows, rejected, ..Tally::default() })
}

fn published(rows_loaded: u64, rows_rejected: u64) -> PublishOutcome {
    PublishOutcome::Published(Published { rows_loaded, rows_rejected })
}

fn problem(outcome: &PublishOutcome) -> ProblemKind {
    match outcome {
        PublishOutcome::Refused(problem) => problem.kind,
        PublishOutcome::TooManyRejects(_) => ProblemKind::TooManyRejects,
        other => panic!("{other:?}"),
    }
}

fn some(texts: &[&str]) -> Texts {
    texts.iter().map(|text| Some((*text).to_owned())).collect()
}

const ALL_TYPES: [(&str, &str); 15] = [
    ("row", "int32"),
    ("b", "bool"),
    ("i", "int32"),
    ("l", "int64"),
    ("f", "float64"),
    ("money", "decimal(15,2)"),
    ("tiny", "decimal(38,38)"),
    ("huge", "decimal(38,0)"),
    ("t", "text"),
    ("d", "date"),
    ("at", "time"),
    ("ts", "timestamp"),
    ("tz", "timestamptz"),
    ("u", "uuid"),
    ("j", "json"),
];

/// Extremes, ordinary values, and a row of nulls.
fn all_types() -> ParsedChunk {
    let top = 10i128.pow(38) - 1;
    let decimal = |values: [Option<i128>; 4], scale| Values::Decimal {
        unscaled: Int128Chunked::from_slice_options("".into(), &values),
        scale,
    };
    let micros = |values: [Option<i64>; 4]| Int64Chunked::from_slice_options("".into(), &values);
    let (first, last) = (-62_135_596_800_000_000, 253_402_300_799_999_999);
    let uuid = [0x01u8, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10];
    let columns = vec![
        Values::Int32(Int32Chunked::from_slice("".into(), &[1, 2, 3, 4])),
        Values::Bool(BooleanChunked::from_slice_options("".into(), &[Some(true), Some(false), Some(true), None])),
        Values::Int32(Int32Chunked::from_slice_options("".into(), &[Some(i32::MIN), Some(i32::MAX), Some(0), None])),
        int64(&[Some(i64::MIN), Some(i64::MAX), Some(0), None]),
        Values::Float64(Float64Chunked::from_slice_options(
            "".into(),
            &[Some(f64::NAN), Some(f64::INFINITY), Some(-0.1), None],
        )),
        decimal([Some(0), Some(-1), Some(123_456_789), None], 2),
        decimal([Some(top), Some(-top), Some(1), None], 38),
        decimal([Some(top), Some(10i128.pow(37)), Some(-10_000), None], 0),
        text(&[Some(""), Some("Zürich \"x\", 東京 🚢\n\t\\N"), Some("\\."), None]),
        Values::Date(Int32Chunked::from_slice_options(
            "".into(),
            &[Some(-719_162), Some(2_932_896), Some(15_706), None],
        )),
        Values::Time(micros([Some(0), Some(86_399_999_999), Some(36_000_000_000), None])),
        Values::Timestamp(micros([Some(first), Some(last), Some(1_357_034_400_000_000), None])),
        Values::Timestamptz(micros([Some(first), Some(last), Some(1_357_034_400_000_001), None])),
        Values::Uuid(BinaryChunked::from_slice_options(
            "".into(),
            &[Some(&uuid[..]), Some(&[0u8; 16][..]), Some(&[255u8; 16][..]), None],
        )),
        Values::Json(StringChunked::from_slice_options(
            "".into(),
            &[Some("{\"a\": [1, null]}"), Some("null"), Some("\"x\""), None],
        )),
    ];
    chunk(1, columns, 4)
}

async fn every_type_reads_back_exactly(stage: Stage) {
    let tiny = format!("0.{}", "9".repeat(38));
    let (minus_tiny, one_tiny) = (format!("-{tiny}"), format!("0.{}1", "0".repeat(37)));
    let (huge, power) = ("9".repeat(38), format!("1{}", "0".repeat(37)));
    let uuid = "01234567-89ab-cdef-fedc-ba9876543210";
    let (zero, ones) = ("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff");
    let postgres = stage.postgres.is_some();
    // PostgreSQL's own spelling, and the one that the contract gives SQLite.
    let say = |postgresql: &'static str, sqlite: &'static str| if postgres { postgresql } else { sqlite };
    let expected = [
        some(&[
            "1",
            say("t", "1"),
            "-2147483648",
            "-9223372036854775808",
            "NaN",
            "0.00",
            &tiny,
            &huge,
            "",
            "0001-01-01",
            "00:00:00",
            say("0001-01-01 00:00:00", "0001-01-01T00:00:00"),
            say("0001-01-01 00:00:00+00", "0001-01-01T00:00:00Z"),
            uuid,
            "{\"a\": [1, null]}",
        ]),
        some(&[
            "2",
            say("f", "0"),
            "2147483647",
            "9223372036854775807",
            say("Infinity", "inf"),
            "-0.01",
            &minus_tiny,
            &power,
            "Zürich \"x\", 東京 🚢\n\t\\N",
            "9999-12-31",
            "23:59:59.999999",
            say("9999-12-31 23:59:59.999999", "9999-12-31T23:59:59.999999"),
            say("9999-12-31 23:59:59.999999+00", "9999-12-31T23:59:59.999999Z"),
            zero,
            "null",
        ]),
        some(&[
            "3",
            say("t", "1"),
            "0",
            "0",
            "-0.1",
            "1234567.89",
            &one_tiny,
            "-10000",
            "\\.",
            "2013-01-01",
            "10:00:00",
            say("2013-01-01 10:00:00", "2013-01-01T10:00:00"),
            say("2013-01-01 10:00:00.000001+00", "2013-01-01T10:00:00.000001Z"),
            ones,
            "\"x\"",
        ]),
        std::iter::once(Some("4".to_owned())).chain(std::iter::repeat_n(None, 14)).collect(),
    ];
    let zone = if postgres { "SET TimeZone = 'UTC'; " } else { "" };

    let new = plan("fresh", Target::NewTable, &ALL_TYPES);
    assert_eq!(stage.import(&new, all_types(), no_rejects()).await.1, published(4, 0));
    assert_eq!(stage.probe.rows(&format!("{zone}SELECT * FROM fresh ORDER BY row")).await, expected);

    // The same rows into the table that is there now, whose description is the plan's columns.
    let described = stage.destination.describe(&"fresh".parse().unwrap()).await.unwrap().unwrap();
    if postgres {
        let kinds: Vec<_> =
            described.columns.iter().map(|column| (column.name.as_str(), column.kind.to_string())).collect();
        assert_eq!(kinds, ALL_TYPES.map(|(name, kind)| (name, kind.to_owned())));
        // With one native column everything goes as text.
        stage.probe.run("CREATE TABLE extended (LIKE fresh); ALTER TABLE extended ADD COLUMN n varchar(5)").await;
        let columns: Vec<_> = ALL_TYPES.into_iter().chain([("n", "native:character varying(5)")]).collect();
        let extended = plan("extended", Target::ExistingTable, &columns);
        let mut parsed = all_types();
        parsed.batches[0].columns.push(native(&[Some("a\tb"), Some("\\N"), Some(""), None]));
        assert_eq!(stage.import(&extended, parsed, no_rejects()).await.1, published(4, 0));
        let rows = stage.probe.rows(&format!("{zone}SELECT * FROM extended ORDER BY row")).await;
        let natives: Vec<_> = rows.iter().map(|row| row[15].as_deref()).collect();
        assert_eq!(natives, [Some("a\tb"), Some("\\N"), Some(""), None]);
        assert_eq!(rows.into_iter().map(|row| row[..15].to_vec()).collect::<Vec<_>>(), expected);
    }
    let existing = plan("fresh", Target::ExistingTable, &ALL_TYPES);
    assert_eq!(stage.import(&existing, all_types(), no_rejects()).await.1, published(4, 0));
    assert_eq!(stage.probe.rows(&format!("{zone}SELECT DISTINCT * FROM fresh ORDER BY row")).await.len(), 4);
    assert_eq!(stage.count("fresh").await, 8);
    stage.assert_clean().await;
}

async fn a_chunk_written_twice_is_there_once(stage: Stage) {
    let plan = plan("t", Target::NewTable, &ID_NAME);
    let ticket = ticket();
    stage.begin(ticket, &plan).await;
    let mut first = ids(1, 10);
    first.rejects.push(parse_reject(11));
    first.rows = 11;
    assert_eq!(stage.write(ticket, 0, &plan, first.clone()).await, committed(11, 1));
    assert_eq!(stage.write(ticket, 0, &plan, first.clone()).await, committed(11, 1));
    let both = tokio::join!(stage.write(ticket, 1, &plan, ids(12, 5)), stage.write(ticket, 1, &plan, ids(12, 5)));
    assert_eq!(both, (committed(5, 0), committed(5, 0)));
    let ledger = stage.destination.ledger(ticket.import, ticket.attempt).await.unwrap();
    assert_eq!(
        ledger.iter().map(|row| (row.chunk.0, row.rows, row.rejected)).collect::<Vec<_>>(),
        [(0, 11, 1), (1, 5, 0)]
    );
    assert!(stage.prepare(ticket, &plan).await, "preparing again keeps what is staged");
    assert_eq!(stage.publish(ticket, &plan, 2, 16, any_rejects()).await, published(15, 1));
    assert_eq!(stage.count("t").await, 15);
    assert_eq!(stage.rejects(ticket).await.len(), 1);
}

async fn a_stale_ticket_writes_nothing(stage: Stage) {
    let plan = plan("t", Target::NewTable, &ID_NAME);
    let old = ticket();
    stage.assert_set_back(old, &plan).await;
    stage.begin(old, &plan).await;
    let new = Ticket { epoch: Epoch(2), ..old };
    stage.assert_set_back(new, &plan).await;
    assert_eq!(stage.destination.raise_fence(new).await.unwrap(), Some(FenceState::Open));
    assert_eq!(stage.destination.raise_fence(old).await.unwrap(), None);
    assert_eq!(stage.write(old, 0, &plan, ids(1, 1)).await, Written::Fenced);
    assert!(!stage.prepare(old, &plan).await);
    assert_eq!(stage.publish(old, &plan, 0, 0, any_rejects()).await, PublishOutcome::Fenced);
    assert_eq!(stage.destination.abort(old).await.unwrap(), None);
    let retried = Ticket { attempt: Attempt(2), ..new };
    assert_eq!(stage.destination.raise_fence(retried).await.unwrap(), Some(FenceState::Open));
    assert_eq!(stage.write(new, 0, &plan, ids(1, 1)).await, Written::Fenced, "an old attempt");
    assert_eq!(stage.destination.abort(retried).await.unwrap(), Some(FenceState::Aborted));
    assert_eq!(stage.write(retried, 0, &plan, ids(1, 1)).await, Written::Fenced, "a closed fence");
    assert_eq!(stage.publish(retried, &plan, 0, 0, any_rejects()).await, PublishOutcome::Fenced);
    stage.assert_clean().await;
    assert_eq!(stage.count("longshore_rejects").await, 0);
}

async fn a_published_import_stays_published(stage: Stage) {
    let plan = plan("t", Target::NewTable, &ID_NAME);
    let (ticket, outcome) = stage.import(&plan, ids(1, 3), no_rejects()).await;
    assert_eq!(outcome, published(3, 0));
    // Its owner never heard the answer, or a new one asks.
    assert_eq!(stage.publish(ticket, &plan, 1, 3, no_rejects()).await, published(3, 0));
    let next = Ticket { epoch: Epoch(2), ..ticket };
    let marker = FenceState::Published(Published { rows_loaded: 3, rows_rejected: 0 });
    assert_eq!(stage.destination.raise_fence(next).await.unwrap(), Some(marker.clone()));
    assert_eq!(stage.publish(next, &plan, 1, 3, no_rejects()).await, published(3, 0));
    assert_eq!(stage.publish(ticket, &plan, 1, 3, no_rejects()).await, PublishOutcome::Fenced);
    assert_eq!(stage.destination.abort(next).await.unwrap(), Some(marker));
    assert_eq!(stage.write(next, 0, &plan, ids(1, 3)).await, Written::Fenced);
    assert_eq!(stage.count("t").await, 3);
    stage.assert_clean().await;
}

async fn two_imports_that_make_one_table_do_not_overwrite_it(stage: Stage) {
    let plan = plan("t", Target::NewTable, &ID_NAME);
    let (one, two) = (ticket(), ticket());
    for ticket in [one, two] {
        stage.begin(ticket, &plan).await;
        stage.write(ticket, 0, &plan, ids(1, 3)).await;
    }
    let outcomes =
        tokio::join!(stage.publish(one, &plan, 1, 3, no_rejects()), stage.publish(two, &plan, 1, 3, no_rejects()));
    let loser = match outcomes {
        (PublishOutcome::Published(_), PublishOutcome::TableAppeared) => two,
        (PublishOutcome::TableAppeared, PublishOutcome::Published(_)) => one,
        other => panic!("{other:?}"),
    };
    assert_eq!(stage.count("t").await, 3);
    // The loser plans again, as a new attempt.
    let again = Ticket { attempt: Attempt(2), ..loser };
    let existing = support::plan("t", Target::ExistingTable, &ID_NAME);
    stage.begin(again, &existing).await;
    stage.write(again, 0, &existing, ids(1, 3)).await;
    assert_eq!(stage.publish(again, &existing, 1, 3, no_rejects()).await, published(3, 0));
    assert_eq!(stage.count("t").await, 6);
    stage.assert_clean().await;
}

async fn of_rows_that_collide_the_lowest_stays(stage: Stage) {
    stage.probe.run("CREATE TABLE t (id bigint NOT NULL UNIQUE, name text); INSERT INTO t VALUES (4, 'old')").await;
    let plan = plan("t", Target::ExistingTable, &ID_NAME);
    let ticket = ticket();
    stage.begin(ticket, &plan).await;
    // Written out of order: the order of the file counts.
    let second = chunk(5, vec![int64(&[Some(1), Some(5), Some(2)]), text(&[Some("r5"), Some("r6"), Some("r7")])], 3);
    let first = chunk(
        1,
        vec![int64(&[Some(1), Some(2), Some(3), Some(4)]), text(&[Some("r1"), Some("r2"), Some("r3"), Some("r4")])],
        4,
    );
    stage.write(ticket, 1, &plan, second).await;
    stage.write(ticket, 0, &plan, first).await;
    assert_eq!(stage.publish(ticket, &plan, 2, 7, any_rejects()).await, published(4, 3));
    let rows = stage.probe.rows("SELECT id, name FROM t ORDER BY id").await;
    assert_eq!(rows, [["1", "r1"], ["2", "r2"], ["3", "r3"], ["4", "old"], ["5", "r6"]].map(|row| some(&row)));
    let rejects = stage.rejects(ticket).await;
    assert_eq!(rejects.iter().map(|reject| reject.row.0).collect::<Vec<_>>(), [4, 5, 7]);
    for reject in rejects {
        assert_eq!(reject.reason, RejectReason::ConstraintViolation);
        assert_eq!((reject.line.0, reject.record), (reject.row.0 + 1, record_of(reject.row.0)));
        assert!(reject.detail.contains("t_id_key") || reject.detail.contains("t.id"), "{}", reject.detail);
    }
    stage.assert_clean().await;
}

async fn more_refused_rows_than_allowed_leave_the_table_untouched_and_stay_listed(stage: Stage) {
    stage
        .probe
        .run("CREATE TABLE t (id bigint PRIMARY KEY, name text); INSERT INTO t VALUES (3, 'old'), (5, 'old')")
        .await;
    let plan = plan("t", Target::ExistingTable, &ID_NAME);
    let (ticket, outcome) = stage.import(&plan, ids(1, 6), no_rejects()).await;
    assert_eq!(problem(&outcome), ProblemKind::TooManyRejects);
    assert_eq!(stage.count("t").await, 2);
    assert_eq!(stage.rejects(ticket).await.iter().map(|reject| reject.row.0).collect::<Vec<_>>(), [3]);
    // Asked again it answers again; then the owner aborts, and the list stays.
    assert_eq!(problem(&stage.publish(ticket, &plan, 1, 6, no_rejects()).await), ProblemKind::TooManyRejects);
    assert_eq!(stage.destination.abort(ticket).await.unwrap(), Some(FenceState::Aborted));
    assert_eq!(stage.rejects(ticket).await.len(), 1);
    assert_eq!(stage.count("t").await, 2);
    stage.assert_clean().await;
    // A limit that is not exceeded, and rejects of the parser count too.
    let two = longshore_domain::OnError { max_rejects: Some(2) };
    assert_eq!(stage.import(&plan, ids(3, 1).renumbered(1), two).await.1, published(0, 1));
    let mut parsed = ids(7, 1).renumbered(1);
    parsed.rejects = vec![parse_reject(2), parse_reject(3), parse_reject(4)];
    parsed.rows = 4;
    assert_eq!(problem(&stage.import(&plan, parsed, two).await.1), ProblemKind::TooManyRejects);
}

/// Other numbers for the same rows.
trait Renumbered {
    fn renumbered(self, first: u64) -> Self;
}

impl Renumbered for ParsedChunk {
    fn renumbered(mut self, first: u64) -> Self {
        self.batches[0].numbers = RowNumbers::From(first);
        self
    }
}

async fn null_and_check_constraints_refuse_single_rows(stage: Stage) {
    stage.probe.run("CREATE TABLE t (id bigint NOT NULL CHECK (id > 0), name text)").await;
    let plan = plan("t", Target::ExistingTable, &ID_NAME);
    let ids = [Some(1), None, Some(-3), Some(4)];
    let parsed = chunk(1, vec![int64(&ids), text(&[None; 4])], 4);
    let (ticket, outcome) = stage.import(&plan, parsed, any_rejects()).await;
    assert_eq!(outcome, published(2, 2));
    let rejects = stage.rejects(ticket).await;
    assert_eq!(
        rejects.iter().map(|reject| (reject.row.0, reject.column.as_deref())).collect::<Vec<_>>(),
        [(2, Some("id")), (3, None)]
    );
}

async fn counts_that_do_not_add_up_are_not_published(stage: Stage) {
    let plan = plan("t", Target::NewTable, &ID_NAME);
    let ticket = ticket();
    stage.begin(ticket, &plan).await;
    stage.write(ticket, 0, &plan, ids(1, 3)).await;
    for (chunks, rows) in [(2, 3), (1, 4), (0, 0)] {
        assert_eq!(
            problem(&stage.publish(ticket, &plan, chunks, rows, any_rejects()).await),
            ProblemKind::CountMismatch
        );
    }
    assert!(!stage.probe.tables().await.contains("t"));
    assert_eq!(stage.publish(ticket, &plan, 1, 3, any_rejects()).await, published(3, 0));
}

async fn chunks_whose_row_numbers_do_not_follow_each_other_are_not_published(stage: Stage) {
    for (first, index) in [(3, 1), (5, 1), (4, 2)] {
        let plan = plan("t", Target::NewTable, &ID_NAME);
        let ticket = ticket();
        stage.begin(ticket, &plan).await;
        stage.write(ticket, 0, &plan, ids(1, 3)).await;
        stage.write(ticket, index, &plan, ids(first, 3)).await;
        let outcome = stage.publish(ticket, &plan, 2, 6, any_rejects()).await;
        assert_eq!(problem(&outcome), ProblemKind::CountMismatch, "{first} {index}");
    }
}

async fn a_chunk_that_miscounts_is_refused(stage: Stage) {
    let plan = plan("t", Target::NewTable, &ID_NAME);
    let ticket = ticket();
    stage.begin(ticket, &plan).await;
    let mut too_many = ids(1, 3);
    too_many.rows = 4;
    let mut gap = ids(1, 3);
    gap.batches[0].numbers = RowNumbers::Listed(vec![1, 2, 4]);
    let mut narrow = ids(1, 3);
    narrow.batches[0].columns.pop();
    for parsed in [too_many, gap, narrow] {
        let outcome = stage
            .destination
            .write_chunk(ticket, ChunkIndex(0), &plan, any_rejects(), Arc::new(parsed), &Records)
            .await;
        assert!(
            matches!(&outcome, Err(DestinationError::Refused(problem)) if problem.kind == ProblemKind::CountMismatch),
            "{outcome:?}"
        );
    }
    assert!(stage.destination.ledger(ticket.import, ticket.attempt).await.unwrap().is_empty());
}

async fn an_aborted_import_leaves_only_its_rejects(stage: Stage) {
    let plan = plan("t", Target::NewTable, &ID_NAME);
    let ticket = ticket();
    stage.begin(ticket, &plan).await;
    let mut parsed = ids(1, 3);
    parsed.rejects.push(parse_reject(4));
    parsed.rows = 4;
    stage.write(ticket, 0, &plan, parsed).await;
    for _ in 0..2 {
        assert_eq!(stage.destination.abort(ticket).await.unwrap(), Some(FenceState::Aborted));
    }
    stage.assert_clean().await;
    assert!(!stage.probe.tables().await.contains("t"));
    assert_eq!(stage.rejects(ticket).await.len(), 1);
    assert_eq!(
        stage.destination.raise_fence(Ticket { epoch: Epoch(2), ..ticket }).await.unwrap(),
        Some(FenceState::Aborted)
    );
}

async fn a_new_attempt_begins_anew(stage: Stage) {
    let plan = plan("t", Target::NewTable, &ID_NAME);
    let first = ticket();
    stage.begin(first, &plan).await;
    let mut parsed = ids(1, 3);
    parsed.rejects.push(parse_reject(4));
    parsed.rows = 4;
    stage.write(first, 0, &plan, parsed).await;
    stage.destination.abort(first).await.unwrap();
    let second = Ticket { attempt: Attempt(2), epoch: Epoch(2), ..first };
    assert_eq!(stage.destination.raise_fence(second).await.unwrap(), Some(FenceState::Open));
    assert!(stage.prepare(second, &plan).await);
    assert!(stage.rejects(first).await.is_empty());
    assert_eq!(stage.write(second, 0, &plan, ids(1, 2)).await, committed(2, 0));
    assert_eq!(stage.publish(second, &plan, 1, 2, no_rejects()).await, published(2, 0));
    stage.assert_clean().await;
}

async fn dropped_staging_is_noticed(stage: Stage) {
    let plan = plan("t", Target::NewTable, &ID_NAME);
    let ticket = ticket();
    stage.begin(ticket, &plan).await;
    stage.write(ticket, 0, &plan, ids(1, 3)).await;
    stage.probe.run(&format!("DROP TABLE longshore_staging_{}_1", ticket.import.0.simple())).await;
    let written =
        stage.destination.write_chunk(ticket, ChunkIndex(1), &plan, any_rejects(), Arc::new(ids(4, 3)), &Records).await;
    assert!(matches!(written, Err(DestinationError::StagingLost { .. })), "{written:?}");
    let planned = Planned { chunks: 1, rows: 3 };
    let source = stage.source(ticket, planned);
    let outcome = stage.destination.publish(ticket, &plan, any_rejects(), &source).await;
    assert!(matches!(outcome, Err(DestinationError::StagingLost { .. })), "{outcome:?}");
    let prepared = stage.destination.prepare_staging(ticket, &plan, stage.wanted).await;
    assert!(matches!(prepared, Err(DestinationError::StagingLost { .. })), "{prepared:?}");
    let next = Ticket { attempt: Attempt(2), ..ticket };
    stage.begin(next, &plan).await;
    assert_eq!(stage.write(next, 0, &plan, ids(1, 3)).await, committed(3, 0));
}

async fn odd_identifiers_are_just_names(stage: Stage) {
    let columns =
        [("select", "int64"), ("a\"b; DROP TABLE x --", "text"), ("Größe in m²", "text"), ("longshore_row", "int32")];
    let parsed = || {
        let row = Values::Int32(Int32Chunked::from_slice("".into(), &[7, 8]));
        let columns = vec![int64(&[Some(1), Some(2)]), text(&[Some("x"), None]), text(&[Some("1"), Some("2")]), row];
        chunk(1, columns, 2)
    };
    for table in ["\"select\"", "\"a\"\"b\"", "\"Mixed Case\"", "größe", "\"semi;colon'--\"", "\"a.b\""] {
        let new = plan(table, Target::NewTable, &columns);
        assert_eq!(stage.import(&new, parsed(), no_rejects()).await.1, published(2, 0), "{table}");
        let existing = plan(table, Target::ExistingTable, &columns);
        let described = stage.destination.describe(&existing.table).await.unwrap().unwrap();
        let names: Vec<_> = described.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, columns.map(|(name, _)| name));
        assert_eq!(stage.import(&existing, parsed(), no_rejects()).await.1, published(2, 0), "{table}");
        let quoted = format!("\"{}\"", existing.table.name().replace('"', "\"\""));
        assert_eq!(stage.count(&quoted).await, 4, "{table}");
    }
    stage.assert_clean().await;
    for bad in ["", "a\0b"] {
        let ticket = ticket();
        stage.destination.raise_fence(ticket).await.unwrap();
        let refused = stage
            .destination
            .prepare_staging(ticket, &plan("t", Target::NewTable, &[(bad, "text")]), stage.wanted)
            .await;
        assert!(matches!(refused, Err(DestinationError::Refused(_))), "{bad:?}: {refused:?}");
    }
}

async fn parser_rejects_are_kept_byte_for_byte(stage: Stage) {
    let plan = plan("t", Target::NewTable, &ID_NAME);
    let ticket = ticket();
    stage.begin(ticket, &plan).await;
    let rejects: Vec<_> = (1..=4_500).map(parse_reject).collect();
    let parsed = ParsedChunk { rows: 4_500, rejects, ..ParsedChunk::default() };
    assert_eq!(stage.write(ticket, 0, &plan, parsed).await, committed(4_500, 4_500));
    let listed = stage.rejects(ticket).await;
    assert_eq!(listed.len(), 4_500);
    let (mut first, expected) = (listed[0].clone(), parse_reject(1));
    first.detail.clone_from(&expected.detail);
    assert_eq!(first, expected);
    let page = stage.destination.rejects(ticket.import, ticket.attempt, listed[9].row, 3).await.unwrap();
    assert_eq!(page.iter().map(|reject| reject.row.0).collect::<Vec<_>>(), [11, 12, 13]);
}

/// More than are held while a chunk is written: they are read once more.
async fn a_chunk_of_many_bad_rows_lists_them_all(stage: Stage) {
    let plan = plan("t", Target::NewTable, &ID_NAME);
    let (rows, good) = (25_000, [1, 7, 12_345, 25_000]);
    let mut parsed = ParsedChunk { rows, ..ParsedChunk::default() };
    for row in good {
        parsed.batches.extend(ids(row, 1).batches);
    }
    parsed.rejects = (1..=rows).filter(|row| !good.contains(row)).map(parse_reject).collect();
    let expected = parsed.rejects.clone();
    let ticket = ticket();
    stage.begin(ticket, &plan).await;
    let written = stage.write(ticket, 0, &plan, parsed.clone()).await;
    assert_eq!(written, committed(rows, rows - 4));
    assert_eq!(stage.write(ticket, 0, &plan, parsed).await, written, "again");
    assert_eq!(stage.publish(ticket, &plan, 1, rows, any_rejects()).await, published(4, rows - 4));
    let listed = stage.rejects(ticket).await;
    assert_eq!(listed.len(), expected.len());
    for (listed, expected) in listed.iter().zip(&expected) {
        assert_eq!((listed.row, listed.line, &listed.record), (expected.row, expected.line, &expected.record));
    }
}

async fn long_records_are_listed_a_few_at_a_time(stage: Stage) {
    let plan = plan("t", Target::NewTable, &ID_NAME);
    let long = |row| Reject { record: vec![b'x'; LISTED_BYTES / 3 + 1], ..parse_reject(row) };
    let parsed = ParsedChunk { rows: 8, rejects: (1..=8).map(long).collect(), ..ParsedChunk::default() };
    let ticket = ticket();
    stage.begin(ticket, &plan).await;
    assert_eq!(stage.write(ticket, 0, &plan, parsed).await, committed(8, 8));
    let mut pages = Vec::new();
    for (after, limit) in [(0, 100), (3, 100), (6, 100), (8, 100), (0, 2)] {
        let page = stage.destination.rejects(ticket.import, ticket.attempt, RowNumber(after), limit).await.unwrap();
        assert!(page.iter().all(|reject| reject.record.len() > LISTED_BYTES / 3));
        pages.push(page.iter().map(|reject| reject.row.0).collect::<Vec<_>>());
    }
    assert_eq!(pages, [vec![1, 2, 3], vec![4, 5, 6], vec![7, 8], vec![], vec![1, 2]]);
}

async fn views_and_unknown_schemas_are_refused(stage: Stage) {
    stage.probe.run("CREATE TABLE t (id bigint); CREATE VIEW v AS SELECT id FROM t; CREATE INDEX i ON t (id)").await;
    for table in ["v", "i", "nowhere.t"] {
        let described = stage.destination.describe(&table.parse().unwrap()).await;
        assert!(
            matches!(&described, Err(DestinationError::Refused(problem)) if problem.kind == ProblemKind::DestinationMismatch),
            "{table}: {described:?}"
        );
    }
    let ticket = ticket();
    stage.destination.raise_fence(ticket).await.unwrap();
    let prepared =
        stage.destination.prepare_staging(ticket, &plan("nowhere.t", Target::NewTable, &ID_NAME), stage.wanted).await;
    assert!(matches!(prepared, Err(DestinationError::Refused(_))), "{prepared:?}");
    assert!(stage.destination.describe(&"missing".parse().unwrap()).await.unwrap().is_none());
}

async fn columns_that_are_not_there_are_refused(stage: Stage) {
    stage.probe.run("CREATE TABLE t (id bigint, sum bigint GENERATED ALWAYS AS (id + 1) STORED)").await;
    for columns in [[("id", "int64"), ("name", "text")], [("id", "int64"), ("sum", "int64")]] {
        let ticket = ticket();
        stage.destination.raise_fence(ticket).await.unwrap();
        let prepared =
            stage.destination.prepare_staging(ticket, &plan("t", Target::ExistingTable, &columns), stage.wanted).await;
        assert!(
            matches!(&prepared, Err(DestinationError::Refused(problem)) if problem.detail.contains(columns[1].0)),
            "{prepared:?}"
        );
    }
    let described = stage.destination.describe(&"t".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(described.columns.iter().map(|column| column.generated).collect::<Vec<_>>(), [false, true]);
    stage.assert_clean().await;
}

async fn two_prepares_at_once_do_no_harm(stage: Stage) {
    stage.probe.run("DROP TABLE longshore_fences; DROP TABLE longshore_ledger; DROP TABLE longshore_rejects").await;
    let all = tokio::join!(stage.destination.prepare(), stage.destination.prepare(), stage.destination.prepare());
    assert!(matches!(all, (Ok(()), Ok(()), Ok(()))), "{all:?}");
    stage.destination.check().await.unwrap();
}

async fn an_empty_file_makes_an_empty_table(stage: Stage) {
    let plan = plan("t", Target::NewTable, &ID_NAME);
    let ticket = ticket();
    stage.begin(ticket, &plan).await;
    assert_eq!(stage.write(ticket, 0, &plan, ParsedChunk::default()).await, committed(0, 0));
    assert_eq!(stage.publish(ticket, &plan, 1, 0, no_rejects()).await, published(0, 0));
    assert_eq!(stage.count("t").await, 0);
}

async fn workers_write_chunks_of_one_import_at_once(stage: Stage) {
    let plan = plan("t", Target::NewTable, &ID_NAME);
    let ticket = ticket();
    stage.begin(ticket, &plan).await;
    let tasks: Vec<_> = (0..8u32)
        .map(|index| {
            let (stage, plan) = (stage.clone(), plan.clone());
            tokio::spawn(
                async move { stage.write(ticket, index, &plan, ids(1 + u64::from(index) * 20_000, 20_000)).await },
            )
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), committed(20_000, 0));
    }
    assert_eq!(stage.publish(ticket, &plan, 8, 160_000, no_rejects()).await, published(160_000, 0));
    assert_eq!(
        stage.probe.rows("SELECT count(DISTINCT id), min(id), max(id) FROM t").await,
        [some(&["160000", "1", "160000"])]
    );
}

/// Rows share statements, and what is left of a batch does not fill one.
async fn cells_stay_in_their_rows_whatever_number_there_is(stage: Stage) {
    const BATCHES: [usize; 4] = [1, 127, 130, 43];
    for width in [1_i64, 3, 40, 128, 140] {
        let names: Vec<String> = (0..width).map(|column| format!("c{column}")).collect();
        let columns: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "int64")).collect();
        // A row is known by its first cell; every seventh other one is NULL.
        let cell = |row: i64, column: i64| (column == 0 || (row + column) % 7 != 0).then_some(row * 1000 + column);
        let mut rows = ParsedChunk::default();
        for length in BATCHES {
            let first = rows.rows + 1;
            let numbers = first as i64..(first as i64 + length as i64);
            let values =
                (0..width).map(|column| int64(&numbers.clone().map(|row| cell(row, column)).collect::<Vec<_>>()));
            rows.batches.extend(chunk(first, values.collect(), length).batches);
            rows.rows += length as u64;
        }
        let all = BATCHES.iter().sum::<usize>() as u64;
        let table = format!("t{width}");
        for target in [Target::NewTable, Target::ExistingTable] {
            let plan = plan(&table, target, &columns);
            assert_eq!(stage.import(&plan, rows.clone(), no_rejects()).await.1, published(all, 0));
        }
        let expected: Vec<String> = (1..width)
            .map(|column| {
                format!(" AND coalesce(c{column}, -1) = CASE WHEN (c0 / 1000 + {column}) % 7 = 0 THEN -1 ELSE c0 + {column} END")
            })
            .collect();
        let query =
            format!("SELECT count(*), count(DISTINCT c0) FROM {table} WHERE c0 % 1000 = 0{}", expected.concat());
        let (twice, once) = ((2 * all).to_string(), all.to_string());
        assert_eq!(stage.probe.rows(&query).await, [some(&[&twice, &once])], "{width} columns");
    }
}

/// What only PostgreSQL has.
mod postgres_only {
    use super::*;

    macro_rules! tests {
        ($($name:ident)*) => {
            mod run {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() { super::super::support::on_postgres(super::$name).await })*
            }
            mod run_staged {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() { super::super::support::on_postgres_staged(super::$name).await })*
            }
        };
    }

    tests! {
        a_new_epoch_ends_the_sessions_of_an_old_one
        native_types_are_read_as_by_copy
        what_is_kept_of_a_long_cell_is_short
        many_bad_rows_are_found_in_one_chunk
        of_rows_that_copy_refuses_no_more_are_sought_than_are_allowed
        a_text_that_the_database_cannot_hold_is_a_reject
        defaults_identities_and_triggers_act_as_under_copy
        a_table_that_numbers_its_rows_gets_them_in_the_files_order
        a_schema_and_a_partitioned_table_take_rows
        deferred_constraints_and_swallowed_rows_are_rejects
        rows_are_refused_as_if_they_came_one_by_one
        a_row_that_is_refused_itself_keeps_no_other_out
        rows_are_judged_by_what_the_table_gets
        very_many_refused_rows_are_found_by_few_statements
        unusual_numerics_and_types_are_native
        rows_wait_in_the_object_until_somebody_wants_them_staged
        a_table_with_row_level_security_is_staged
        columns_of_other_types_than_the_plans_are_cast
        a_trigger_for_the_statement_sees_one_statement
        rows_that_the_database_cannot_hold_and_rows_that_the_table_refuses
        a_source_that_breaks_leaves_the_table_untouched
        a_publish_copies_while_later_chunks_are_loaded
        a_row_that_a_publish_meets_early_is_searched_for_behind_the_last_chunk
        chunks_that_come_as_one_have_the_rejects_of_each
        a_publish_that_began_under_an_older_owner_is_ended
        a_publish_that_began_before_an_abort_adds_nothing
        a_publish_that_is_given_up_leaves_the_table_free
        rows_that_are_to_be_staged_after_all_are_copied_by_nobody
        a_server_that_is_away_is_unavailable
        an_abandoned_write_leaves_its_pool_usable
    }

    async fn a_new_epoch_ends_the_sessions_of_an_old_one(stage: Stage) {
        let plan = plan("t", Target::NewTable, &ID_NAME);
        let old = ticket();
        stage.begin(old, &plan).await;
        stage.write(old, 0, &plan, ids(1, 3)).await;
        // A paused worker: in its transaction it holds locks on the staging table and the fence.
        let staging = format!("longshore_staging_{}_1", old.import.0.simple());
        let pool = stage.postgres.as_ref().unwrap().pool().clone();
        let mut paused = pool.acquire().await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
            "BEGIN; SET LOCAL application_name = 'longshore/{}/1/1'; LOCK TABLE {staging}; \
             SELECT * FROM longshore_fences WHERE import = '{}' FOR SHARE",
            old.import, old.import
        )))
        .execute(&mut *paused)
        .await
        .unwrap();
        // Another import's session must live.
        let mut bystander = pool.acquire().await.unwrap();
        sqlx::raw_sql("BEGIN; SET LOCAL application_name = 'longshore/00000000-0000-7000-8000-000000000000/1/1'")
            .execute(&mut *bystander)
            .await
            .unwrap();
        let new = Ticket { epoch: Epoch(2), attempt: Attempt(2), ..old };
        assert_eq!(stage.destination.raise_fence(new).await.unwrap(), Some(FenceState::Open));
        assert!(stage.prepare(new, &plan).await);
        assert!(sqlx::raw_sql("COMMIT").execute(&mut *paused).await.is_err(), "the old session is gone");
        assert!(sqlx::raw_sql("COMMIT").execute(&mut *bystander).await.is_ok());
        assert_eq!(stage.write(old, 1, &plan, ids(4, 3)).await, Written::Fenced);
        assert_eq!(stage.write(new, 0, &plan, ids(1, 3)).await, committed(3, 0));
    }

    /// Rows that, while they are read, have their staging table made.
    struct Meanwhile {
        rows: ParsedChunk,
        stage: Stage,
        ticket: Ticket,
        plan: LoadPlan,
    }

    impl ChunkRows for Meanwhile {
        fn read(&self, sink: &mut dyn FnMut(Batch) -> bool) -> Option<ChunkEnd> {
            let prepare = self.stage.destination.prepare_staging(self.ticket, &self.plan, Staging::Table);
            let staging = tokio::runtime::Handle::current().block_on(prepare);
            assert_eq!(staging.unwrap(), Some(Staging::Table));
            self.rows.read(sink)
        }
    }

    async fn rows_wait_in_the_object_until_somebody_wants_them_staged(stage: Stage) {
        stage.probe.run("CREATE TABLE t (id bigint, name text)").await;
        let plan = plan("t", Target::ExistingTable, &ID_NAME);
        let wait = async |ticket| {
            stage.destination.raise_fence(ticket).await.unwrap().unwrap();
            let staging = stage.destination.prepare_staging(ticket, &plan, Staging::Object).await.unwrap();
            assert_eq!(staging, Some(Staging::Object));
            assert!(!stage.probe.tables().await.iter().any(|table| table.starts_with("longshore_staging")));
        };
        let first = ticket();
        wait(first).await;
        assert_eq!(stage.write(first, 0, &plan, ids(1, 3)).await, committed(3, 0));
        // Chunks are counted: a table would not have their rows.
        let staging = stage.destination.prepare_staging(first, &plan, Staging::Table).await;
        assert!(matches!(staging, Err(DestinationError::StagingLost { .. })), "{staging:?}");
        wait(first).await;
        assert_eq!(stage.publish(first, &plan, 1, 3, no_rejects()).await, published(3, 0));

        let second = ticket();
        wait(second).await;
        let rows = Meanwhile { rows: ids(1, 3), stage: stage.clone(), ticket: second, plan: plan.clone() };
        let written =
            stage.destination.write_chunk(second, ChunkIndex(0), &plan, any_rejects(), Arc::new(rows), &Records).await;
        assert!(matches!(written, Err(DestinationError::Unavailable { .. })), "{written:?}");
        assert_eq!(stage.write(second, 0, &plan, ids(1, 3)).await, committed(3, 0));
        let source = Chunks(vec![], Planned { chunks: 1, rows: 3 });
        let outcome = stage.destination.publish(second, &plan, no_rejects(), &source).await;
        assert_eq!(outcome.unwrap(), published(3, 0), "from staging, whatever the source says");

        // A later attempt is staged.
        let third = Ticket { attempt: Attempt(2), ..ticket() };
        stage.destination.raise_fence(third).await.unwrap().unwrap();
        let staging = stage.destination.prepare_staging(third, &plan, Staging::Object).await.unwrap();
        assert_eq!(staging, Some(Staging::Table));
        assert_eq!(stage.write(third, 0, &plan, ids(1, 3)).await, committed(3, 0));
        assert_eq!(stage.publish(third, &plan, 1, 3, no_rejects()).await, published(3, 0));
        assert_eq!(stage.count("t").await, 9);
        stage.assert_clean().await;
    }

    /// Knows of chunks once it is told of them.
    struct Told(watch::Receiver<(Vec<ParsedChunk>, Option<Planned>)>);

    impl Told {
        /// The first thing that `look` finds.
        async fn wait<T>(&self, look: impl Fn(&(Vec<ParsedChunk>, Option<Planned>)) -> Option<T>) -> T {
            let mut told = self.0.clone();
            let told = told.wait_for(|told| look(told).is_some()).await.unwrap();
            look(&told).unwrap()
        }
    }

    #[async_trait::async_trait]
    impl RecordLookup for Told {
        async fn find(&self, rows: &[RowNumber]) -> Result<Vec<(RowNumber, LineNumber, Vec<u8>)>, DestinationError> {
            Records.find(rows).await
        }
    }

    #[async_trait::async_trait]
    impl ChunkSource for Told {
        fn chunks(&self) -> BoxStream<'_, Result<Arc<dyn ChunkRows>, DestinationError>> {
            let next = move |at: usize| async move {
                let chunk = self.wait(|(chunks, planned)| match chunks.get(at) {
                    Some(chunk) => Some(Some(chunk.clone())),
                    None => planned.map(|_| None),
                });
                Some((Ok(Arc::new(chunk.await?) as Arc<dyn ChunkRows>), at + 1))
            };
            stream::unfold(0, next).boxed()
        }

        async fn planned(&self) -> Result<Planned, DestinationError> {
            Ok(self.wait(|(_, planned)| *planned).await)
        }
    }

    /// A publish that runs while chunks are loaded.
    struct Ahead {
        told: watch::Sender<(Vec<ParsedChunk>, Option<Planned>)>,
        publish: JoinHandle<Result<PublishOutcome, DestinationError>>,
    }

    impl Ahead {
        /// It is known to copy, where rows wait in the object.
        async fn begin(stage: &Stage, ticket: Ticket, plan: &LoadPlan, on_error: OnError) -> Self {
            let (told, known) = watch::channel((Vec::new(), None));
            let (destination, plan) = (Arc::clone(&stage.destination), plan.clone());
            let publish = async move { destination.publish(ticket, &plan, on_error, &Told(known)).await };
            let ahead = Self { told, publish: tokio::spawn(publish) };
            if stage.wanted == Staging::Object {
                Self::until(stage, ticket, "COPY %", 1).await;
            }
            ahead
        }

        /// Waits until so many sessions of the publish have a last statement like that.
        async fn until(stage: &Stage, ticket: Ticket, statement: &str, sessions: u64) {
            let Ticket { import, attempt, epoch } = ticket;
            let of = format!("application_name = 'longshore/{import}/{epoch}/{attempt}'");
            let found = format!("pg_stat_activity WHERE {of} AND query LIKE '{statement}'");
            let look = async {
                while stage.count(&found).await != sessions {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            within(&format!("{sessions} sessions of {statement}"), look).await;
        }

        async fn load(&self, stage: &Stage, ticket: Ticket, index: u32, plan: &LoadPlan, chunk: ParsedChunk) {
            let rows = chunk.rows;
            assert_eq!(stage.write(ticket, index, plan, chunk.clone()).await, committed(rows, 0));
            self.told.send_modify(|(chunks, _)| chunks.push(chunk));
        }

        async fn finish(self, chunks: u64, rows: u64) -> Result<PublishOutcome, DestinationError> {
            self.told.send_modify(|(_, planned)| *planned = Some(Planned { chunks, rows }));
            self.publish.await.unwrap()
        }
    }

    const KEYED: &str = "CREATE TABLE t (id bigint PRIMARY KEY, name text); INSERT INTO t VALUES (5, 'was here')";

    async fn a_publish_copies_while_later_chunks_are_loaded(stage: Stage) {
        stage.probe.run("CREATE TABLE t (id bigint, name text)").await;
        let plan = plan("t", Target::ExistingTable, &ID_NAME);
        let ticket = ticket();
        stage.begin(ticket, &plan).await;
        let ahead = Ahead::begin(&stage, ticket, &plan, no_rejects()).await;
        // More than one COPY takes.
        for index in 0..40 {
            ahead.load(&stage, ticket, index, &plan, ids(1 + u64::from(index) * 10, 10)).await;
        }
        assert_eq!(stage.count("t").await, 0);
        assert_eq!(ahead.finish(40, 400).await.unwrap(), published(400, 0));
        let rows = stage.probe.rows("SELECT count(*), count(DISTINCT id), min(id), max(id) FROM t").await;
        assert_eq!(rows, [some(&["400", "400", "1", "400"])]);
        stage.assert_clean().await;
    }

    async fn a_row_that_a_publish_meets_early_is_searched_for_behind_the_last_chunk(stage: Stage) {
        stage.probe.run(KEYED).await;
        let plan = plan("t", Target::ExistingTable, &ID_NAME);
        for (limit, expected) in [(no_rejects(), None), (any_rejects(), Some(published(399, 1)))] {
            let ticket = ticket();
            stage.begin(ticket, &plan).await;
            let ahead = Ahead::begin(&stage, ticket, &plan, limit).await;
            for index in 0..20 {
                ahead.load(&stage, ticket, index, &plan, ids(1 + u64::from(index) * 10, 10)).await;
            }
            if stage.wanted == Staging::Object {
                Ahead::until(&stage, ticket, "ROLLBACK TO SAVEPOINT %", 1).await;
            }
            for index in 20..40 {
                ahead.load(&stage, ticket, index, &plan, ids(1 + u64::from(index) * 10, 10)).await;
            }
            let outcome = ahead.finish(40, 400).await.unwrap();
            match expected {
                None => {
                    assert_eq!(outcome, PublishOutcome::TooManyRejects(1));
                    assert_eq!(stage.count("t").await, 1);
                    assert_eq!(stage.destination.abort(ticket).await.unwrap(), Some(FenceState::Aborted));
                }
                Some(expected) => assert_eq!(outcome, expected),
            }
            let rejects = stage.rejects(ticket).await;
            let rejects: Vec<_> = rejects.iter().map(|reject| (reject.row.0, reject.reason)).collect();
            assert_eq!(rejects, [(5, RejectReason::ConstraintViolation)]);
        }
        assert_eq!(stage.count("t").await, 400);
        stage.assert_clean().await;
    }

    async fn chunks_that_come_as_one_have_the_rejects_of_each(stage: Stage) {
        stage.probe.run(KEYED).await;
        let plan = plan("t", Target::ExistingTable, &ID_NAME);
        let ticket = ticket();
        stage.begin(ticket, &plan).await;
        // What the parser refuses in the first and the last, what the database cannot hold in the second; and a key that is taken.
        let part = |first: u64, bad: Option<u64>| {
            let rows: Vec<u64> = (first..first + 10).filter(|row| Some(*row) != bad).collect();
            let numbers: Vec<_> = rows.iter().map(|row| Some(*row as i64)).collect();
            let names: Vec<_> = rows.iter().map(|row| Some(if *row == 15 { "b\0c" } else { "name" })).collect();
            let columns = vec![int64(&numbers), text(&names)];
            let batch = Batch { rows: rows.len(), numbers: RowNumbers::Listed(rows), columns, rejects: Vec::new() };
            let rejects = bad.map(parse_reject).into_iter().collect();
            ParsedChunk { rows: 10, batches: vec![batch], rejects, widenings: Vec::new() }
        };
        let chunks = vec![part(1, Some(3)), part(11, None), part(21, Some(28))];
        for (index, chunk) in (0..).zip(&chunks) {
            let refused = u64::from(index == 1 && stage.wanted == Staging::Table);
            let rejected = chunk.rejects.len() as u64 + refused;
            assert_eq!(stage.write(ticket, index, &plan, chunk.clone()).await, committed(10, rejected));
        }
        let as_one = ParsedChunk {
            rows: 30,
            batches: chunks.iter().flat_map(|chunk| chunk.batches.clone()).collect(),
            rejects: chunks.iter().flat_map(|chunk| chunk.rejects.clone()).collect(),
            widenings: Vec::new(),
        };
        let source = Chunks(vec![as_one], Planned { chunks: 3, rows: 30 });
        let outcome = stage.destination.publish(ticket, &plan, any_rejects(), &source).await;
        assert_eq!(outcome.unwrap(), published(26, 4));
        let rejects = stage.rejects(ticket).await;
        assert_eq!(rejects.iter().map(|reject| reject.row.0).collect::<Vec<_>>(), [3, 5, 15, 28]);
        let found = rejects.iter().filter(|reject| matches!(reject.row.0, 5 | 15));
        assert!(found.clone().all(|reject| reject.record == record_of(reject.row.0)), "{rejects:?}");
        assert_eq!(
            stage.probe.rows("SELECT count(*), count(DISTINCT id), max(id) FROM t").await,
            [some(&["27", "27", "30"])]
        );
        stage.assert_clean().await;
    }

    async fn a_publish_that_began_under_an_older_owner_is_ended(stage: Stage) {
        stage.probe.run("CREATE TABLE t (id bigint PRIMARY KEY, name text)").await;
        let plan = plan("t", Target::ExistingTable, &ID_NAME);
        let old = ticket();
        stage.begin(old, &plan).await;
        let ahead = Ahead::begin(&stage, old, &plan, no_rejects()).await;
        ahead.load(&stage, old, 0, &plan, ids(1, 10)).await;
        let new = Ticket { epoch: Epoch(2), ..old };
        assert_eq!(stage.destination.raise_fence(new).await.unwrap(), Some(FenceState::Open));
        assert!(stage.prepare(new, &plan).await);
        let ended = ahead.finish(1, 10).await;
        assert!(matches!(ended, Err(DestinationError::Unavailable { .. }) | Ok(PublishOutcome::Fenced)), "{ended:?}");
        assert_eq!(stage.count("t").await, 0);
        assert_eq!(stage.publish(new, &plan, 1, 10, no_rejects()).await, published(10, 0));
        assert_eq!(stage.count("t").await, 10);
        stage.assert_clean().await;
    }

    async fn a_publish_that_began_before_an_abort_adds_nothing(stage: Stage) {
        stage.probe.run(KEYED).await;
        let plan = plan("t", Target::ExistingTable, &ID_NAME);
        let ticket = ticket();
        stage.begin(ticket, &plan).await;
        let ahead = Ahead::begin(&stage, ticket, &plan, any_rejects()).await;
        ahead.load(&stage, ticket, 0, &plan, ids(1, 10)).await;
        assert_eq!(stage.destination.abort(ticket).await.unwrap(), Some(FenceState::Aborted));
        let ended = ahead.finish(1, 10).await;
        assert!(matches!(ended, Err(DestinationError::Unavailable { .. }) | Ok(PublishOutcome::Fenced)), "{ended:?}");
        assert_eq!(stage.count("t").await, 1);
        stage.assert_clean().await;
    }

    async fn a_publish_that_is_given_up_leaves_the_table_free(stage: Stage) {
        stage.probe.run(KEYED).await;
        let plan = plan("t", Target::ExistingTable, &ID_NAME);
        let ticket = ticket();
        stage.begin(ticket, &plan).await;
        let ahead = Ahead::begin(&stage, ticket, &plan, no_rejects()).await;
        ahead.load(&stage, ticket, 0, &plan, ids(1, 10)).await;
        ahead.publish.abort();
        assert!(ahead.publish.await.unwrap_err().is_cancelled());
        Ahead::until(&stage, ticket, "%", 0).await;
        stage.probe.run("ALTER TABLE t ADD COLUMN more text").await;
        assert_eq!(stage.count("t").await, 1);
    }

    async fn rows_that_are_to_be_staged_after_all_are_copied_by_nobody(stage: Stage) {
        stage.probe.run(KEYED).await;
        let plan = plan("t", Target::ExistingTable, &ID_NAME);
        let ticket = ticket();
        stage.begin(ticket, &plan).await;
        let ahead = Ahead::begin(&stage, ticket, &plan, any_rejects()).await;
        let staging = stage.destination.prepare_staging(ticket, &plan, Staging::Table).await.unwrap();
        assert_eq!(staging, Some(Staging::Table));
        ahead.load(&stage, ticket, 0, &plan, ids(1, 10)).await;
        let ended = ahead.finish(1, 10).await;
        if stage.wanted == Staging::Object {
            assert!(matches!(ended, Err(DestinationError::Unavailable { .. })), "{ended:?}");
            assert_eq!(stage.publish(ticket, &plan, 1, 10, any_rejects()).await, published(9, 1));
        } else {
            assert_eq!(ended.unwrap(), published(9, 1));
        }
        assert_eq!(stage.count("t").await, 10);
        stage.assert_clean().await;
    }

    async fn a_table_with_row_level_security_is_staged(stage: Stage) {
        stage.probe.run("CREATE TABLE t (id bigint, name text); ALTER TABLE t ENABLE ROW LEVEL SECURITY").await;
        let plan = plan("t", Target::ExistingTable, &ID_NAME);
        let ticket = ticket();
        stage.destination.raise_fence(ticket).await.unwrap().unwrap();
        let staging = stage.destination.prepare_staging(ticket, &plan, stage.wanted).await.unwrap();
        assert_eq!(staging, Some(Staging::Table));
        assert_eq!(stage.write(ticket, 0, &plan, ids(1, 3)).await, committed(3, 0));
        assert_eq!(stage.publish(ticket, &plan, 1, 3, no_rejects()).await, published(3, 0));
    }

    async fn columns_of_other_types_than_the_plans_are_cast(stage: Stage) {
        // Each pair is as long in the binary format.
        stage
            .probe
            .run("CREATE TABLE t (id double precision, name text); CREATE TABLE later (id bigint, name text)")
            .await;
        for (table, then) in [("t", ""), ("later", "ALTER TABLE later ALTER COLUMN id TYPE double precision")] {
            let plan = plan(table, Target::ExistingTable, &ID_NAME);
            let ticket = ticket();
            stage.destination.raise_fence(ticket).await.unwrap().unwrap();
            let staging = stage.destination.prepare_staging(ticket, &plan, stage.wanted).await.unwrap();
            assert_eq!(staging, Some(if table == "t" { Staging::Table } else { stage.wanted }));
            assert_eq!(stage.write(ticket, 0, &plan, ids(1, 3)).await, committed(3, 0));
            stage.probe.run(then).await;
            assert_eq!(stage.publish(ticket, &plan, 1, 3, no_rejects()).await, published(3, 0));
            let rows = stage.probe.rows(&format!("SELECT id FROM {table} ORDER BY id")).await;
            assert_eq!(rows, [some(&["1"]), some(&["2"]), some(&["3"])]);
        }
        stage.assert_clean().await;
    }

    async fn a_trigger_for_the_statement_sees_one_statement(stage: Stage) {
        stage
            .probe
            .run(
                "CREATE TABLE t (id bigint, name text); CREATE TABLE plain (id bigint UNIQUE, name text); \
                 CREATE TABLE seen (rows bigint); \
                 CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS \
                 $$BEGIN INSERT INTO seen SELECT count(*) FROM added; RETURN NULL; END$$; \
                 CREATE TRIGGER see AFTER INSERT ON t REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION see()",
            )
            .await;
        for table in ["t", "plain"] {
            let plan = plan(table, Target::ExistingTable, &ID_NAME);
            let ticket = ticket();
            stage.begin(ticket, &plan).await;
            // More than one COPY takes at once.
            for index in 0..33 {
                let written = stage.write(ticket, index, &plan, ids(1 + u64::from(index) * 3, 3)).await;
                assert_eq!(written, committed(3, 0));
            }
            assert_eq!(stage.publish(ticket, &plan, 33, 99, no_rejects()).await, published(99, 0));
            assert_eq!(stage.count(table).await, 99);
        }
        assert_eq!(stage.probe.rows("SELECT rows FROM seen").await, [some(&["99"])]);
        stage.assert_clean().await;
    }

    async fn rows_that_the_database_cannot_hold_and_rows_that_the_table_refuses(stage: Stage) {
        stage.probe.run("CREATE TABLE t (id bigint UNIQUE, name text); INSERT INTO t VALUES (7, 'old')").await;
        let plan = plan("t", Target::ExistingTable, &ID_NAME);
        for (limit, outcome) in [(any_rejects(), published(3, 4)), (no_rejects(), PublishOutcome::TooManyRejects(1))] {
            stage.probe.run("DELETE FROM t WHERE id <> 7").await;
            let ticket = ticket();
            stage.begin(ticket, &plan).await;
            let mut first = chunk(
                1,
                vec![int64(&[Some(1), Some(2), Some(1)]), text(&[Some("a"), Some("b\0c"), Some("lower stays")])],
                3,
            );
            first.rejects.push(parse_reject(4));
            first.rows = 4;
            let second = chunk(5, vec![int64(&[Some(7), Some(8), Some(9)]), text(&[Some("new"), Some("x"), None])], 3);
            let early = u64::from(stage.wanted == Staging::Table);
            assert_eq!(stage.write(ticket, 0, &plan, first).await, committed(4, 1 + early));
            assert_eq!(stage.write(ticket, 1, &plan, second).await, committed(3, 0));
            let allowed = limit.max_rejects.is_none();
            let found = stage.publish(ticket, &plan, 2, 7, limit).await;
            if allowed {
                assert_eq!(found, outcome);
                let rows = stage.probe.rows("SELECT id, name FROM t ORDER BY id").await;
                let names: Vec<_> = rows.iter().map(|row| row[1].as_deref()).collect();
                assert_eq!(names, [Some("a"), Some("old"), Some("x"), None]);
                let rejects: Vec<_> = stage
                    .rejects(ticket)
                    .await
                    .into_iter()
                    .map(|reject| (reject.row.0, reject.reason, reject.record))
                    .collect();
                let (invalid, violation) = (RejectReason::InvalidValue, RejectReason::ConstraintViolation);
                assert_eq!(
                    rejects,
                    [
                        (2, invalid, record_of(2)),
                        (3, violation, record_of(3)),
                        (4, invalid, parse_reject(4).record),
                        (5, violation, record_of(5))
                    ]
                );
            } else {
                // What was rejected while it was read is too much already.
                assert_eq!(problem(&found), ProblemKind::TooManyRejects);
                assert_eq!(stage.count("t").await, 1);
                assert_eq!(stage.destination.abort(ticket).await.unwrap(), Some(FenceState::Aborted));
            }
            stage.assert_clean().await;
        }
    }

    /// A source that breaks behind its first chunk.
    struct Breaks(Chunks);

    #[async_trait::async_trait]
    impl RecordLookup for Breaks {
        async fn find(&self, rows: &[RowNumber]) -> Result<Vec<(RowNumber, LineNumber, Vec<u8>)>, DestinationError> {
            self.0.find(rows).await
        }
    }

    #[async_trait::async_trait]
    impl ChunkSource for Breaks {
        async fn planned(&self) -> Result<Planned, DestinationError> {
            self.0.planned().await
        }

        fn chunks(&self) -> BoxStream<'_, Result<Arc<dyn ChunkRows>, DestinationError>> {
            let broken = Err(DestinationError::Unavailable { reason: "the object is away".to_owned() });
            self.0.chunks().take(1).chain(stream::iter([broken])).boxed()
        }
    }

    async fn a_source_that_breaks_leaves_the_table_untouched(stage: Stage) {
        stage.probe.run("CREATE TABLE t (id bigint, name text)").await;
        let plan = plan("t", Target::ExistingTable, &ID_NAME);
        let ticket = ticket();
        stage.begin(ticket, &plan).await;
        for index in 0..3 {
            stage.write(ticket, index, &plan, ids(1 + u64::from(index) * 10, 10)).await;
        }
        if stage.wanted == Staging::Object {
            let planned = Planned { chunks: 3, rows: 30 };
            let source = Breaks(stage.source(ticket, planned));
            let outcome = stage.destination.publish(ticket, &plan, no_rejects(), &source).await;
            assert!(
                matches!(&outcome, Err(DestinationError::Unavailable { reason }) if reason.contains("object")),
                "{outcome:?}"
            );
            // One that has less than was counted.
            let source = Chunks(stage.source(ticket, planned).0.into_iter().take(2).collect(), planned);
            let outcome = stage.destination.publish(ticket, &plan, no_rejects(), &source).await.unwrap();
            assert_eq!(problem(&outcome), ProblemKind::CountMismatch);
            assert_eq!(stage.count("t").await, 0);
        }
        assert_eq!(stage.publish(ticket, &plan, 3, 30, no_rejects()).await, published(30, 0));
        assert_eq!(stage.count("t").await, 30);
        stage.assert_clean().await;
    }

    async fn native_types_are_read_as_by_copy(stage: Stage) {
        stage
            .probe
            .run(
                "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN positive AS int CHECK (VALUE > 0); \
                 CREATE TABLE t (id smallint, code varchar(3), m mood, p positive, addr inet, tags text[], doc json, \
                                 amount numeric, at timestamp(0))",
            )
            .await;
        let described = stage.destination.describe(&"t".parse().unwrap()).await.unwrap().unwrap();
        let columns: Vec<(String, String)> =
            described.columns.iter().map(|column| (column.name.clone(), column.kind.to_string())).collect();
        assert!(described.columns.iter().all(|column| matches!(column.kind, ColumnType::Native(_))), "{columns:?}");
        let columns: Vec<_> = columns.iter().map(|(name, kind)| (name.as_str(), kind.as_str())).collect();
        let plan = plan("t", Target::ExistingTable, &columns);
        let good = ["1", "abc", "ok", "5", "10.0.0.1/8", "{a,\"b c\"}", "{\"a\":  1}", "1.50", "2013-01-01 10:00:00.6"];
        // One cell is bad in each row but the first and the last.
        let bad = ["40000", "abcd", "glad", "-1", "10.0.0.300", "{a", "{", "1,5", "yesterdayish"];
        let rows = bad.len() + 2;
        let cells: Vec<Vec<Option<&str>>> = (0..good.len())
            .map(|column| {
                (0..rows).map(|row| Some(if row == column + 1 { bad[column] } else { good[column] })).collect()
            })
            .collect();
        let parsed = chunk(1, cells.iter().map(|cells| native(cells)).collect(), rows);
        let (ticket, outcome) = stage.import(&plan, parsed, any_rejects()).await;
        assert_eq!(outcome, published(2, 9));
        for (i, reject) in stage.rejects(ticket).await.into_iter().enumerate() {
            assert_eq!(reject.row.0, i as u64 + 2);
            assert_eq!(reject.column.as_deref(), Some(columns[i].0), "{reject:?}");
            assert_eq!(reject.value.as_deref(), Some(bad[i].as_bytes()));
            assert_eq!(reject.record, record_of(reject.row.0));
            let constraint = columns[i].0 == "p";
            let expected = if constraint { RejectReason::ConstraintViolation } else { RejectReason::InvalidValue };
            assert_eq!(reject.reason, expected, "{reject:?}");
        }
        let expected =
            some(&["1", "abc", "ok", "5", "10.0.0.1/8", "{a,\"b c\"}", "{\"a\":  1}", "1.50", "2013-01-01 10:00:01"]);
        assert_eq!(stage.probe.rows("SELECT * FROM t").await, [expected.clone(), expected]);
    }

    /// The database's message quotes the cell, and so does what is known of a key; the value is the cell.
    async fn what_is_kept_of_a_long_cell_is_short(stage: Stage) {
        stage.probe.run("CREATE TABLE t (addr inet)").await;
        let plan = plan("t", Target::ExistingTable, &[("addr", "native:inet")]);
        let cell = "é".repeat(1 << 19);
        let parsed = chunk(1, vec![native(&[Some("10.0.0.1"), Some(&cell)])], 2);
        let (ticket, outcome) = stage.import(&plan, parsed, any_rejects()).await;
        assert_eq!(outcome, published(1, 1));
        let reject = stage.rejects(ticket).await.remove(0);
        assert_eq!((reject.row.0, reject.reason), (2, RejectReason::InvalidValue));
        assert_eq!(reject.value.unwrap(), cell.as_bytes()[..4096]);
        assert!(reject.detail.len() < 1200 && reject.detail.contains("éé… (SQLSTATE 22P02)"), "{}", reject.detail);
        stage
            .probe
            .run("CREATE TABLE known (name text PRIMARY KEY); CREATE TABLE s (name text REFERENCES known)")
            .await;
        let plan = super::support::plan("s", Target::ExistingTable, &[("name", "text")]);
        let parsed = chunk(1, vec![text(&[None, Some(&cell)])], 2);
        let (ticket, outcome) = stage.import(&plan, parsed, any_rejects()).await;
        assert_eq!(outcome, published(1, 1));
        let reject = stage.rejects(ticket).await.remove(0);
        assert_eq!((reject.row.0, reject.reason), (2, RejectReason::ConstraintViolation));
        assert!(reject.detail.len() < 2200 && reject.detail.contains("ééé"), "{} bytes", reject.detail.len());
    }

    async fn many_bad_rows_are_found_in_one_chunk(stage: Stage) {
        stage.probe.run("CREATE TABLE t (id bigint, code smallint)").await;
        let plan = plan("t", Target::ExistingTable, &[("id", "int64"), ("code", "native:smallint")]);
        let rows = 20_000;
        let codes: Vec<String> = (0..rows)
            .map(|i| if i % 97 == 0 || (500..540).contains(&i) { "x".to_owned() } else { (i % 100).to_string() })
            .collect();
        let bad = codes.iter().filter(|code| *code == "x").count() as u64;
        let codes: Vec<_> = codes.iter().map(|code| Some(code.as_str())).collect();
        let numbers: Vec<_> = (0..rows).map(|i| Some(i as i64)).collect();
        // Two batches, with the second row of each pair in the second one.
        let half = |odd: usize| {
            let pick = |i: &usize| i % 2 == odd;
            let places: Vec<usize> = (0..rows).filter(pick).collect();
            Batch {
                rows: places.len(),
                numbers: RowNumbers::Listed(places.iter().map(|i| *i as u64 + 1).collect()),
                columns: vec![
                    int64(&places.iter().map(|i| numbers[*i]).collect::<Vec<_>>()),
                    native(&places.iter().map(|i| codes[*i]).collect::<Vec<_>>()),
                ],
                rejects: Vec::new(),
            }
        };
        let parsed = ParsedChunk { rows: rows as u64, batches: vec![half(0), half(1)], ..ParsedChunk::default() };
        let (ticket, outcome) = stage.import(&plan, parsed, any_rejects()).await;
        assert_eq!(outcome, published(rows as u64 - bad, bad));
        let listed: Vec<u64> = stage.rejects(ticket).await.iter().map(|reject| reject.row.0).collect();
        let expected: Vec<u64> = (0..rows).filter(|i| codes[*i] == Some("x")).map(|i| i as u64 + 1).collect();
        assert_eq!(listed, expected);
    }

    /// Each costs some statements, and each row of a large file may be one.
    async fn of_rows_that_copy_refuses_no_more_are_sought_than_are_allowed(stage: Stage) {
        stage.probe.run("CREATE TABLE t (code smallint)").await;
        let plan = plan("t", Target::ExistingTable, &[("code", "native:smallint")]);
        for (parsed_before, expected) in [(0, 3), (2, 3), (5, 5)] {
            let ticket = ticket();
            stage.begin(ticket, &plan).await;
            let mut parsed = chunk(1, vec![native(&[Some("x"); 100])], 100);
            for row in 0..parsed_before {
                parsed.rejects.push(parse_reject(101 + row));
                parsed.rows += 1;
            }
            let (rows, at_most) = (parsed.rows, OnError { max_rejects: Some(2) });
            let source = Chunks(vec![parsed.clone()], Planned { chunks: 1, rows });
            let parsed = Arc::new(parsed);
            let written = stage.destination.write_chunk(ticket, ChunkIndex(0), &plan, at_most, parsed, &Records).await;
            assert_eq!(written.unwrap(), committed(rows, expected));
            let listed: Vec<u64> = stage.rejects(ticket).await.iter().map(|reject| reject.row.0).collect();
            let sought = expected - parsed_before;
            assert_eq!(listed, (1..=sought).chain(101..101 + parsed_before).collect::<Vec<_>>());
            let outcome = stage.destination.publish(ticket, &plan, at_most, &source).await;
            assert_eq!(outcome.unwrap(), PublishOutcome::TooManyRejects(expected));
            assert_eq!(stage.count("t").await, 0);
            assert_eq!(stage.destination.abort(ticket).await.unwrap(), Some(FenceState::Aborted));
        }
    }

    async fn a_text_that_the_database_cannot_hold_is_a_reject(stage: Stage) {
        let plan = plan("t", Target::NewTable, &[("id", "int64"), ("name", "text"), ("doc", "json")]);
        let docs = Values::Json(StringChunked::from_slice("".into(), &["1", "2", "\"\\u0000\""]));
        let parsed =
            chunk(1, vec![int64(&[Some(1), Some(2), Some(3)]), text(&[Some("a"), Some("b\0c"), Some("d")]), docs], 3);
        let (ticket, outcome) = stage.import(&plan, parsed, any_rejects()).await;
        assert_eq!(outcome, published(1, 2));
        let rejects = stage.rejects(ticket).await;
        let found: Vec<_> =
            rejects.iter().map(|reject| (reject.row.0, reject.column.as_deref(), reject.value.as_deref())).collect();
        assert_eq!(found, [(2, Some("name"), Some(&b"b\0c"[..])), (3, Some("doc"), Some(&b"\"\\u0000\""[..]))]);
    }

    async fn defaults_identities_and_triggers_act_as_under_copy(stage: Stage) {
        stage
            .probe
            .run(
                "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, n bigserial, name text NOT NULL, made text DEFAULT 'now', \
                                 twice bigint GENERATED ALWAYS AS (n * 2) STORED); \
                 CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS \
                 'BEGIN NEW.name := coalesce(NEW.name, ''none''); RETURN NEW; END'; \
                 CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()",
            )
            .await;
        let described = stage.destination.describe(&"t".parse().unwrap()).await.unwrap().unwrap();
        let flags: Vec<_> =
            described.columns.iter().map(|column| (column.has_default, column.generated, column.nullable)).collect();
        assert_eq!(flags[0], (true, false, true), "an identity; nullable, since a trigger runs before the check");
        assert_eq!((flags[1].0, flags[3].0, flags[4].1), (true, true, true));
        let names = plan("t", Target::ExistingTable, &[("name", "text")]);
        let parsed = chunk(1, vec![text(&[Some("a"), None, Some("c")])], 3);
        assert_eq!(stage.import(&names, parsed, no_rejects()).await.1, published(3, 0));
        let with_id = plan("t", Target::ExistingTable, &[("id", "int64"), ("name", "text")]);
        let parsed = chunk(1, vec![int64(&[Some(77)]), text(&[Some("d")])], 1);
        assert_eq!(stage.import(&with_id, parsed, no_rejects()).await.1, published(1, 0));
        let rows = stage.probe.rows("SELECT id, n, name, made, twice FROM t ORDER BY n").await;
        let expected = [
            ["1", "1", "a", "now", "2"],
            ["2", "2", "none", "now", "4"],
            ["3", "3", "c", "now", "6"],
            ["77", "4", "d", "now", "8"],
        ];
        assert_eq!(rows, expected.map(|row| some(&row)));
    }

    /// Chunks are staged in any order.
    async fn a_table_that_numbers_its_rows_gets_them_in_the_files_order(stage: Stage) {
        stage
            .probe
            .run(
                "CREATE SEQUENCE by_domain; CREATE SEQUENCE by_hand; \
                 CREATE DOMAIN numbered AS bigint DEFAULT nextval('by_domain'); \
                 CREATE TABLE by_serial (n bigserial, id bigint, name text); \
                 CREATE TABLE by_identity (id bigint, n bigint GENERATED BY DEFAULT AS IDENTITY, name text); \
                 CREATE TABLE by_type (id bigint, name text, n numbered); \
                 CREATE TABLE by_trigger (id bigint, name text, n bigint); \
                 CREATE FUNCTION number() RETURNS trigger LANGUAGE plpgsql AS \
                     $$ BEGIN NEW.n := nextval('by_hand'); RETURN NEW; END $$; \
                 CREATE TRIGGER number BEFORE INSERT ON by_trigger FOR EACH ROW EXECUTE FUNCTION number(); \
                 CREATE TABLE without (id bigint, name text)",
            )
            .await;
        for table in ["by_serial", "by_identity", "by_type", "by_trigger", "without"] {
            let plan = plan(table, Target::ExistingTable, &ID_NAME);
            let ticket = ticket();
            stage.begin(ticket, &plan).await;
            for (index, first) in [(2, 21), (0, 1), (1, 11)] {
                assert_eq!(stage.write(ticket, index, &plan, ids(first, 10)).await, committed(10, 0));
            }
            assert_eq!(stage.publish(ticket, &plan, 3, 30, no_rejects()).await, published(30, 0));
            let order = if table == "without" { "id" } else { "n" };
            let rows = stage.probe.rows(&format!("SELECT id FROM {table} ORDER BY {order}")).await;
            let expected: Vec<_> = (1..=30).map(|id: u64| vec![Some(id.to_string())]).collect();
            assert_eq!(rows, expected, "{table}");
        }
    }

    async fn a_schema_and_a_partitioned_table_take_rows(stage: Stage) {
        stage
            .probe
            .run(
                "CREATE SCHEMA \"Sales\"; CREATE TABLE \"Sales\".parts (id bigint, name text) PARTITION BY RANGE (id); \
                 CREATE TABLE \"Sales\".low PARTITION OF \"Sales\".parts FOR VALUES FROM (1) TO (3)",
            )
            .await;
        let new = plan("Sales.fresh", Target::NewTable, &ID_NAME);
        assert_eq!(stage.import(&new, ids(1, 3), no_rejects()).await.1, published(3, 0));
        assert_eq!(stage.count("\"Sales\".fresh").await, 3);
        let parts = plan("Sales.parts", Target::ExistingTable, &ID_NAME);
        // Row 3 has no partition.
        assert_eq!(stage.import(&parts, ids(1, 3), any_rejects()).await.1, published(2, 1));
        stage.assert_clean().await;
    }

    async fn deferred_constraints_and_swallowed_rows_are_rejects(stage: Stage) {
        stage
            .probe
            .run(
                "CREATE TABLE t (id bigint UNIQUE DEFERRABLE INITIALLY DEFERRED, name text); \
                 CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS \
                 'BEGIN IF NEW.name = ''skip'' THEN RETURN NULL; ELSIF NEW.name = ''raise'' THEN RAISE ''no''; END IF; RETURN NEW; END'; \
                 CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()",
            )
            .await;
        let plan = plan("t", Target::ExistingTable, &ID_NAME);
        let parsed = chunk(
            1,
            vec![
                int64(&[Some(1), Some(1), Some(2), Some(3), Some(4)]),
                text(&[Some("a"), Some("b"), Some("skip"), Some("raise"), Some("e")]),
            ],
            5,
        );
        let (ticket, outcome) = stage.import(&plan, parsed, any_rejects()).await;
        assert_eq!(outcome, published(2, 3));
        assert_eq!(stage.rejects(ticket).await.iter().map(|reject| reject.row.0).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(stage.probe.rows("SELECT name FROM t ORDER BY id").await, [some(&["a"]), some(&["e"])]);
    }

    /// Tables with constraints of all sorts; `{t}` is the table. Random rows have to fare in each as if they had been inserted one
    /// by one, in the file's order.
    const CONSTRAINED: [&str; 16] = [
        "CREATE TABLE {t} (id bigint PRIMARY KEY, ref bigint, name text)",
        "CREATE TABLE {t} (id bigint UNIQUE, ref bigint, name text); INSERT INTO {t} VALUES (3, 1, 'old'), (7, NULL, 'old')",
        "CREATE TABLE {t} (id bigint PRIMARY KEY, ref bigint, name text UNIQUE); INSERT INTO {t} VALUES (3, 1, 'old')",
        "CREATE TABLE {t} (id bigint, ref bigint, name text, UNIQUE (ref, name)); INSERT INTO {t} VALUES (3, 1, 'a')",
        "CREATE TABLE {t} (id bigint, ref bigint, name text, UNIQUE NULLS NOT DISTINCT (ref, name))",
        "CREATE TABLE {t} (id bigint PRIMARY KEY, ref bigint REFERENCES parents, name text)",
        "CREATE TABLE {t} (id bigint, ref bigint REFERENCES parents DEFERRABLE INITIALLY DEFERRED, name text, CHECK (id % 5 <> 2))",
        "CREATE TABLE {t} (id bigint PRIMARY KEY, ref bigint REFERENCES parents, name text NOT NULL CHECK (name <> 'b'), \
           \"odd \"\" name\" int CHECK (\"odd \"\" name\" IS NULL))",
        "CREATE TABLE {t} (id bigint PRIMARY KEY, ref bigint, name text CHECK (length(name) + id > 4), CHECK (ref < id))",
        "CREATE TABLE {t} (id bigint, ref bigint, name text); CREATE UNIQUE INDEX ON {t} (id) WHERE ref > 2",
        "CREATE TABLE {t} (id bigint, ref bigint, name text); CREATE UNIQUE INDEX ON {t} (lower(name), ref)",
        "CREATE TABLE {t} (id bigint, ref bigint, name text, EXCLUDE USING btree (id WITH =), UNIQUE (ref, name))",
        "CREATE TABLE {t} (id bigint PRIMARY KEY, ref bigint, name text, at int DEFAULT 1 UNIQUE)",
        "CREATE TABLE {t} (id bigint PRIMARY KEY, ref bigint, name text); \
         CREATE TRIGGER even BEFORE INSERT ON {t} FOR EACH ROW EXECUTE FUNCTION even()",
        "CREATE TABLE {t} (id bigint PRIMARY KEY, ref bigint, name text); \
         CREATE TRIGGER no_b AFTER INSERT ON {t} FOR EACH ROW EXECUTE FUNCTION no_b()",
        "CREATE TABLE {t} (id bigint, ref bigint, name text) PARTITION BY LIST (ref); \
         CREATE TABLE {t}_1 PARTITION OF {t} (PRIMARY KEY (id)) FOR VALUES IN (1, 2, 3, 4); \
         CREATE TABLE {t}_2 PARTITION OF {t} (CHECK (id > 4)) DEFAULT",
    ];

    async fn rows_are_refused_as_if_they_came_one_by_one(stage: Stage) {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        stage
            .probe
            .run(
                "CREATE TABLE parents (id bigint PRIMARY KEY); INSERT INTO parents SELECT generate_series(1, 4); \
                 CREATE FUNCTION even() RETURNS trigger LANGUAGE plpgsql AS \
                 'BEGIN NEW.id = NEW.id / 2 * 2; RETURN CASE WHEN NEW.name = ''c'' THEN NULL ELSE NEW END; END'; \
                 CREATE FUNCTION no_b() RETURNS trigger LANGUAGE plpgsql AS \
                 'BEGIN IF NEW.name = ''b'' THEN RAISE ''no b''; END IF; RETURN NULL; END'",
            )
            .await;
        for (place, table) in CONSTRAINED.iter().enumerate() {
            for round in 0..3 {
                // A few refused rows, about half of them, nearly all of them.
                let most = [400, 40, 6][round];
                let (t, one_by_one) = (format!("t_{place}_{round}"), format!("o_{place}_{round}"));
                stage.probe.run(&table.replace("{t}", &t)).await;
                stage.probe.run(&table.replace("{t}", &one_by_one)).await;
                let mut sometimes = |most: i64| random.random_bool(0.9).then(|| random.random_range(1..=most));
                let rows: Vec<_> = (0..60).map(|_| (sometimes(most), sometimes(6), sometimes(4))).collect();
                let names = ["a", "A", "b", "c"];
                let columns = vec![
                    int64(&rows.iter().map(|row| row.0).collect::<Vec<_>>()),
                    int64(&rows.iter().map(|row| row.1).collect::<Vec<_>>()),
                    text(&rows.iter().map(|row| row.2.map(|name| names[name as usize - 1])).collect::<Vec<_>>()),
                ];
                let plan = plan(&t, Target::ExistingTable, &[("id", "int64"), ("ref", "int64"), ("name", "text")]);
                let (ticket, outcome) = stage.import(&plan, chunk(1, columns, 60), any_rejects()).await;
                let values = rows.iter().zip(1..).map(|((id, reference, name), row)| {
                    let shown = |number: &Option<i64>| number.map_or("NULL".to_owned(), |number| number.to_string());
                    let name = name.map_or("NULL".to_owned(), |name| format!("'{}'", names[name as usize - 1]));
                    format!("({row}, {}, {}, {name})", shown(id), shown(reference))
                });
                let refused = format!("refused_{place}_{round}");
                stage
                    .probe
                    .run(&format!(
                        "CREATE TABLE {refused} (row int); DO $$ DECLARE r record; n int; BEGIN \
                           SET CONSTRAINTS ALL IMMEDIATE; \
                           FOR r IN SELECT * FROM (VALUES {}) AS v (row, id, ref, name) ORDER BY row LOOP BEGIN \
                             INSERT INTO {one_by_one} (id, ref, name) VALUES (r.id, r.ref, r.name); \
                             GET DIAGNOSTICS n = ROW_COUNT; \
                             IF n = 0 THEN INSERT INTO {refused} VALUES (r.row); END IF; \
                           EXCEPTION WHEN integrity_constraint_violation OR raise_exception THEN \
                             INSERT INTO {refused} VALUES (r.row); \
                           END; END LOOP; END $$",
                        values.collect::<Vec<_>>().join(", ")
                    ))
                    .await;
                let context = format!("seed {seed}: {table}, ids to {most}");
                let rejects = stage.rejects(ticket).await;
                let found: Vec<_> = rejects.iter().map(|reject| some(&[&reject.row.0.to_string()])).collect();
                assert_eq!(
                    found,
                    stage.probe.rows(&format!("SELECT row FROM {refused} ORDER BY row")).await,
                    "{context}"
                );
                let all = async |table: &str| {
                    stage.probe.rows(&format!("SELECT id, ref, name FROM {table} ORDER BY id, ref, name")).await
                };
                assert_eq!(all(&t).await, all(&one_by_one).await, "{context}");
                assert_eq!(outcome, published(60 - found.len() as u64, found.len() as u64), "{context}");
                assert!(rejects.iter().all(|reject| !reject.detail.is_empty()), "{context}");
            }
        }
    }

    /// A file that was loaded before. One by one these rows take minutes.
    /// A generated column cannot be computed of the row that came before.
    async fn a_row_that_is_refused_itself_keeps_no_other_out(stage: Stage) {
        for (table, more) in [
            ("computed", "d int, inv int GENERATED ALWAYS AS (100 / d) STORED"),
            ("indexed", "d int); CREATE INDEX ON indexed ((100 / d)"),
            ("required", "d int, who text NOT NULL DEFAULT nullif(current_setting('application_name'), '')"),
            ("numbered", "d int, at timestamptz NOT NULL DEFAULT now(), n serial, word text NOT NULL DEFAULT 'x'"),
        ] {
            stage.probe.run(&format!("CREATE TABLE {table} (id bigint PRIMARY KEY, {more})")).await;
            let plan = plan(table, Target::ExistingTable, &[("id", "int64"), ("d", "int32")]);
            let (keys, values) = ([7, 7, 1, 1].map(Some), [1, 1, 0, 5].map(Some));
            let divisors = Int32Chunked::from_slice_options("".into(), &values);
            let parsed = chunk(1, vec![int64(&keys), Values::Int32(divisors)], 4);
            let (ticket, outcome) = stage.import(&plan, parsed, any_rejects()).await;
            let listed: Vec<u64> = stage.rejects(ticket).await.iter().map(|reject| reject.row.0).collect();
            let refused: &[u64] = if ["required", "numbered"].contains(&table) { &[2, 4] } else { &[2, 3] };
            assert_eq!((outcome, listed.as_slice()), (published(2, 2), refused), "{table}");
        }
    }

    /// Not by what is staged: a number is rounded on its way.
    async fn rows_are_judged_by_what_the_table_gets(stage: Stage) {
        stage
            .probe
            .run("CREATE TABLE t (id bigint PRIMARY KEY, x int CHECK (x <= 10)); INSERT INTO t VALUES (1, 1)")
            .await;
        let plan = plan("t", Target::ExistingTable, &[("id", "int64"), ("x", "decimal(9,2)")]);
        let unscaled = Int128Chunked::from_slice("".into(), &[500, 1040, 1060]);
        let parsed = chunk(1, vec![int64(&[Some(1), Some(2), Some(3)]), Values::Decimal { unscaled, scale: 2 }], 3);
        let ticket = ticket();
        stage.destination.raise_fence(ticket).await.unwrap().unwrap();
        let staging = stage.destination.prepare_staging(ticket, &plan, stage.wanted).await.unwrap();
        assert_eq!(staging, Some(Staging::Table), "of other types than the table");
        assert_eq!(stage.write(ticket, 0, &plan, parsed).await, committed(3, 0));
        assert_eq!(stage.publish(ticket, &plan, 1, 3, any_rejects()).await, published(1, 2));
        let listed: Vec<u64> = stage.rejects(ticket).await.iter().map(|reject| reject.row.0).collect();
        assert_eq!(listed, [1, 3]);
        assert_eq!(stage.probe.rows("SELECT x FROM t WHERE id = 2").await, [some(&["10"])]);
    }

    async fn very_many_refused_rows_are_found_by_few_statements(stage: Stage) {
        stage
            .probe
            .run(
                "CREATE TABLE parents (id bigint PRIMARY KEY); INSERT INTO parents SELECT generate_series(1, 150000); \
                 CREATE TABLE t (id bigint PRIMARY KEY REFERENCES parents, name text NOT NULL CHECK (name <> 'bad')); \
                 INSERT INTO t SELECT generate_series(1, 100000), 'old'",
            )
            .await;
        let plan = plan("t", Target::ExistingTable, &ID_NAME);
        let again: Vec<_> = (1..=200_000_i64).chain([150_000]).map(Some).collect();
        let mut names = vec![Some("new"); 200_001];
        (names[100_000], names[100_001]) = (Some("bad"), None);
        let parsed = chunk(1, vec![int64(&again), text(&names)], 200_001);
        let (ticket, outcome) = stage.import(&plan, parsed, any_rejects()).await;
        assert_eq!(outcome, published(49_998, 150_003));
        let rejects = stage.rejects(ticket).await;
        let rows: Vec<u64> = rejects.iter().map(|reject| reject.row.0).collect();
        assert!(rows.iter().copied().eq((1..=100_002).chain(150_001..=200_001)));
        for (row, said) in [
            (0, "\"t_pkey\": Key (id)=(1) already exists. (SQLSTATE 23505)"),
            (100_000, "violates check constraint \"t_name_check\" (SQLSTATE 23514)"),
            (100_001, "column \"name\" of relation \"t\" violates not-null constraint (SQLSTATE 23502)"),
            (100_002, "\"t_id_fkey\": Key (id)=(150001) is not present in table \"parents\". (SQLSTATE 23503)"),
            (150_002, "\"t_pkey\": Key (id)=(150000) stands in the file before. (SQLSTATE 23505)"),
        ] {
            assert!(rejects[row].detail.ends_with(said), "{}", rejects[row].detail);
            assert_eq!(rejects[row].record, record_of(rejects[row].row.0));
        }
        assert_eq!(rejects[100_001].column.as_deref(), Some("name"));
        assert_eq!(stage.probe.rows("SELECT count(*) FROM t WHERE name = 'new'").await, [some(&["49998"])]);
        // With a limit the first ones are listed, and nothing else.
        let limit = longshore_domain::OnError { max_rejects: Some(10) };
        let ids: Vec<_> = (50_000..=60_000_i64).map(Some).collect();
        let parsed = chunk(1, vec![int64(&ids), text(&vec![Some("x"); 10_001])], 10_001);
        let (ticket, outcome) = stage.import(&plan, parsed, limit).await;
        assert_eq!(outcome, PublishOutcome::TooManyRejects(11));
        let rows: Vec<u64> = stage.rejects(ticket).await.iter().map(|reject| reject.row.0).collect();
        assert_eq!(rows, (1..=11).collect::<Vec<_>>());
        assert_eq!(stage.destination.abort(ticket).await.unwrap(), Some(FenceState::Aborted));
        stage.assert_clean().await;
    }

    async fn unusual_numerics_and_types_are_native(stage: Stage) {
        stage
            .probe
            .run("CREATE TABLE t (a numeric(38,38), b numeric(39,2), c numeric(5,-2), d numeric(3,5), e numeric, f real, g char(3), h timestamptz(3))")
            .await;
        let described = stage.destination.describe(&"t".parse().unwrap()).await.unwrap().unwrap();
        assert_eq!(described.columns[0].kind, ColumnType::Decimal { precision: 38, scale: 38 });
        assert!(
            described.columns[1..].iter().all(|column| matches!(column.kind, ColumnType::Native(_))),
            "{described:?}"
        );
        let refused = stage.destination.describe(&"pg_class".parse().unwrap()).await;
        assert!(matches!(refused, Err(DestinationError::Refused(_))));
    }

    async fn a_server_that_is_away_is_unavailable(stage: Stage) {
        let mut url = url::Url::parse(&stage.url).unwrap();
        url.set_password(Some("hush-hush")).unwrap();
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        url.set_port(Some(port)).unwrap();
        let away = longshore_storage::destination::postgres::PostgresDestination::connect(url.as_str(), 1).unwrap();
        let Err(DestinationError::Unavailable { reason }) = away.check().await else { panic!("it answered") };
        assert!(!reason.contains("hush-hush"), "{reason}");
    }

    async fn an_abandoned_write_leaves_its_pool_usable(stage: Stage) {
        let plan = plan("t", Target::NewTable, &ID_NAME);
        let ticket = ticket();
        stage.begin(ticket, &plan).await;
        // Each write is given up at another of its steps.
        for polls in 1..40 {
            let mut write = Box::pin(stage.destination.write_chunk(
                ticket,
                ChunkIndex(0),
                &plan,
                any_rejects(),
                Arc::new(ids(1, 5_000)),
                &Records,
            ));
            let mut left = polls;
            let given_up = std::future::poll_fn(|context| {
                left -= 1;
                match write.as_mut().poll(context) {
                    std::task::Poll::Ready(_) => std::task::Poll::Ready(false),
                    std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(true),
                    std::task::Poll::Pending => std::task::Poll::Pending,
                }
            })
            .await;
            drop(write);
            if !given_up {
                break;
            }
        }
        assert_eq!(stage.write(ticket, 0, &plan, ids(1, 5_000)).await, committed(5_000, 0));
        assert_eq!(stage.publish(ticket, &plan, 1, 5_000, no_rejects()).await, published(5_000, 0));
        assert_eq!(stage.count("t").await, 5_000);
    }
}
