//! Publishing: all rows or none, and the marker, in one transaction (invariants 3 and 4).

use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use sqlx::postgres::{PgDatabaseError, PgPool};

use longshore_domain::{LoadPlan, OnError, Problem, ProblemKind, Reject, RejectReason, RowNumber, Target};

use super::describe;
use super::direct::{self, Direct};
use super::fence::{self, Fence, Lock};
use super::refusals::Refusals;
use super::rejects::{self, Found};
use super::session::{self, Commit, Session, Work, failure};
use super::staging;
use super::write::{self, Copy};
use crate::destination::shape;
use crate::destination::{
    ChunkSource, DestinationError, FenceState, Planned, PublishOutcome, Published, RecordLookup, Ticket, sql,
};
use crate::failpoint;

/// What the sort of the staged rows may take; it spills to disk beyond.
const SORT_MEMORY: &str = "64MB";
/// Refused rows that are kept before they are listed, where there is no limit.
const FLUSH_ROWS: usize = 4_000;
/// Row numbers whose refused rows are looked for in one statement: what is found is held in memory.
const TAKEN_AT_ONCE: u64 = 50_000;
/// How often the fence is read after a COMMIT without an answer, with these waits in between.
const LOOKUPS: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];

/// What the ledger says of an attempt.
struct Ledger {
    chunks: i64,
    rows: i64,
    rejected: i64,
    /// Whether chunk follows chunk and row follows row.
    tiled: bool,
    listed: i64,
}

/// See [`crate::destination::Destination::publish`].
pub(super) async fn publish(
    pool: &PgPool,
    ticket: Ticket,
    plan: &LoadPlan,
    on_error: OnError,
    source: &dyn ChunkSource,
) -> Result<PublishOutcome, DestinationError> {
    let outcome = publish_once(pool, ticket, plan, on_error, source).await;
    if let Err(error) = &outcome
        && session::is_lock_timeout(error)
        && matches!(source.planned().now_or_never(), Some(Ok(_)))
    {
        // A worker of this very epoch that was stopped inside COPY holds a lock on the staging table. All chunks are
        // committed, so nothing it has is wanted: the next try finds the lock free.
        fence::end_sessions(pool, ticket).await?;
    }
    outcome
}

async fn publish_once(
    pool: &PgPool,
    ticket: Ticket,
    plan: &LoadPlan,
    on_error: OnError,
    source: &dyn ChunkSource,
) -> Result<PublishOutcome, DestinationError> {
    let mut session = Session::begin(pool, Some(ticket), Work::Long).await?;
    let name = sql::staging_name(ticket.import, ticket.attempt);
    // Whoever has no say any more copies nothing. The lock comes behind the rows: under it no chunk can be committed.
    if let Some(outcome) = closed(&mut session, ticket, Lock::None).await? {
        session.rollback().await;
        return Ok(outcome);
    }
    let in_object = plan.may_wait_in_object(ticket.attempt);
    let staged = staging::schema_of(session.connection(), &name).await?.is_some();
    let direct = match in_object && !staged {
        true => Some(direct::copy(&mut session, plan, source).await?),
        false => None,
    };
    let planned = source.planned().await?;
    if let Some(outcome) = closed(&mut session, ticket, Lock::Update).await? {
        session.rollback().await;
        return Ok(outcome);
    }
    let ledger = read_ledger(&mut session, ticket).await?;
    let schema = staging::schema_of(session.connection(), &name).await?;
    if schema.is_none() && direct.is_none() {
        session.rollback().await;
        return Err(staging::lost(&name));
    }
    if schema.is_some() && direct.is_some() {
        session.rollback().await;
        return Err(DestinationError::Unavailable {
            reason: "the rows were to be staged while they were copied".to_owned(),
        });
    }
    if let Err(outcome) = check(&ledger, planned, on_error) {
        session.rollback().await;
        return Ok(outcome);
    }
    let (good, rejected) = ((ledger.rows - ledger.rejected) as u64, ledger.rejected as u64);
    let published = match (&plan.target, schema) {
        (Target::NewTable, None) => return Err(staging::lost(&name)),
        (Target::NewTable, Some(schema)) => match rename(&mut session, plan, &schema, &name).await? {
            Renamed::Done => Published { rows_loaded: good, rows_rejected: rejected },
            Renamed::TableAppeared => {
                session.rollback().await;
                return Ok(PublishOutcome::TableAppeared);
            }
        },
        (Target::ExistingTable, staged) => {
            if let Some(Direct::Loaded(rows_loaded)) = direct {
                Published { rows_loaded, rows_rejected: rejected }
            } else {
                let schema = match staged {
                    Some(schema) => schema,
                    None => {
                        let found = staging::existing(session.connection(), plan).await?;
                        staging::create(&mut session, &found.schema, &name, plan, Some(&found)).await?;
                        found.schema
                    }
                };
                let mut moving = Moving {
                    session: &mut session,
                    ticket,
                    plan,
                    schema: &schema,
                    name: &name,
                    on_error,
                    source,
                    rejected,
                    loaded: 0,
                    found: Vec::new(),
                };
                let within_limit = match direct {
                    Some(Direct::Refused(fault)) => moving.stage_and_move(planned.rows, fault).await?,
                    _ => moving.all(planned.rows, good, None).await?,
                };
                let (loaded, rejected, found) = (moving.loaded, moving.rejected, moving.found);
                if !within_limit {
                    session.rollback().await;
                    return list_found(pool, ticket, rejected, found, source).await;
                }
                list(&mut session, ticket, found, source).await?;
                session.run(format!("DROP TABLE {}", sql::qualified(&schema, &name)?)).await.map_err(failure)?;
                Published { rows_loaded: loaded, rows_rejected: rejected }
            }
        }
    };
    if published.rows_loaded + published.rows_rejected != planned.rows {
        session.rollback().await;
        return Ok(PublishOutcome::Refused(Problem::new(
            ProblemKind::CountMismatch,
            format!(
                "{} rows were planned, but {} loaded and {} rejected",
                planned.rows, published.rows_loaded, published.rows_rejected
            ),
        )));
    }
    mark(&mut session, ticket, published).await?;
    failpoint::pass("publish.commit.before");
    let committed = session.commit().await?;
    failpoint::pass("publish.commit.after");
    match committed {
        Commit::Done => Ok(PublishOutcome::Published(published)),
        Commit::Unknown(error) => look_up(pool, ticket, error).await,
    }
}

/// The answer, where the fence gives it already; else it is held, under `lock`, until the end of the transaction.
async fn closed(session: &mut Session, ticket: Ticket, lock: Lock) -> Result<Option<PublishOutcome>, DestinationError> {
    let fence = Fence::read(session.connection(), ticket.import, lock).await.map_err(failure)?;
    Ok(match fence {
        Some(fence) if fence.admits(ticket) => None,
        Some(fence) if fence.epoch <= ticket.epoch.0 => match fence.standing() {
            FenceState::Published(published) => Some(PublishOutcome::Published(published)),
            _ => Some(PublishOutcome::Fenced),
        },
        _ => Some(PublishOutcome::Fenced),
    })
}

async fn read_ledger(session: &mut Session, ticket: Ticket) -> Result<Ledger, DestinationError> {
    // A publish that was given up may have listed rows that this one takes, or finds again.
    sqlx::query("DELETE FROM longshore_rejects WHERE import = $1 AND attempt = $2 AND by_publish")
        .bind(ticket.import.0)
        .bind(i64::from(ticket.attempt.0))
        .execute(session.connection())
        .await
        .map_err(failure)?;
    let (chunks, rows, rejected, tiled, listed): (i64, i64, i64, bool, i64) = sqlx::query_as(
        "SELECT count(*) AS chunks, coalesce(sum(row_count), 0)::bigint AS rows, coalesce(sum(rejected), 0)::bigint AS rejected, \
                coalesce(bool_and(chunk = place AND (row_count = 0 OR first_row = next_row)), true) AS tiled, \
                (SELECT count(*) FROM longshore_rejects WHERE import = $1 AND attempt = $2) AS listed \
         FROM (SELECT chunk, first_row, row_count, rejected, row_number() OVER (ORDER BY chunk) - 1 AS place, \
                      1 + coalesce(sum(row_count) OVER (ORDER BY chunk ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS next_row \
               FROM longshore_ledger WHERE import = $1 AND attempt = $2) AS chunks",
    )
    .bind(ticket.import.0)
    .bind(i64::from(ticket.attempt.0))
    .fetch_one(session.connection())
    .await
    .map_err(failure)?;
    Ok(Ledger { chunks, rows, rejected, tiled, listed })
}

/// Whether what is staged is what was planned.
fn check(ledger: &Ledger, planned: Planned, on_error: OnError) -> Result<(), PublishOutcome> {
    let mismatch = |detail: String| Err(PublishOutcome::Refused(Problem::new(ProblemKind::CountMismatch, detail)));
    if ledger.chunks as u64 != planned.chunks || ledger.rows as u64 != planned.rows {
        return mismatch(format!(
            "{} chunks with {} rows were planned, but {} chunks with {} rows are committed",
            planned.chunks, planned.rows, ledger.chunks, ledger.rows
        ));
    }
    if !ledger.tiled {
        return mismatch(format!("the row numbers of the {} chunks do not follow each other", ledger.chunks));
    }
    if ledger.listed != ledger.rejected {
        return mismatch(format!("{} rows were rejected, but {} are listed", ledger.rejected, ledger.listed));
    }
    if on_error.is_exceeded(ledger.rejected as u64) {
        return Err(PublishOutcome::TooManyRejects(ledger.rejected as u64));
    }
    Ok(())
}

enum Renamed {
    Done,
    TableAppeared,
}

/// Staging becomes the table.
async fn rename(session: &mut Session, plan: &LoadPlan, schema: &str, name: &str) -> Result<Renamed, DestinationError> {
    let statement =
        format!("ALTER TABLE {} RENAME TO {}", sql::qualified(schema, name)?, sql::identifier(plan.table.name())?);
    let Err(error) = session.run(statement).await else { return Ok(Renamed::Done) };
    // The second: the other import's rename was committed while this one waited for it.
    let appeared = session::is_duplicate_table(&error)
        || session::database_error(&error).is_some_and(|error| {
            error.code() == "23505"
                && matches!(error.constraint(), Some("pg_class_relname_nsp_index" | "pg_type_typname_nsp_index"))
        });
    if appeared { Ok(Renamed::TableAppeared) } else { Err(staging::staging_failure(name, error)) }
}

/// The marker; ledger and staging are not needed any more.
async fn mark(session: &mut Session, ticket: Ticket, published: Published) -> Result<(), DestinationError> {
    sqlx::query(
        "UPDATE longshore_fences SET state = 'published', rows_loaded = $2, rows_rejected = $3, changed_at = now() \
         WHERE import = $1",
    )
    .bind(ticket.import.0)
    .bind(published.rows_loaded as i64)
    .bind(published.rows_rejected as i64)
    .execute(session.connection())
    .await
    .map_err(failure)?;
    sqlx::query("DELETE FROM longshore_ledger WHERE import = $1")
        .bind(ticket.import.0)
        .execute(session.connection())
        .await
        .map_err(failure)?;
    Ok(())
}

/// The COMMIT's answer was lost. The marker is the answer; without it nothing is assumed: the caller tries again, and the
/// fence's lock makes it wait for a transaction that is still being committed.
async fn look_up(pool: &PgPool, ticket: Ticket, error: DestinationError) -> Result<PublishOutcome, DestinationError> {
    tracing::warn!(import_id = %ticket.import, %error, "the answer to a publish was lost; reading the fence");
    for wait in LOOKUPS {
        match fence::standing(pool, ticket.import).await {
            Ok(fence) => match fence.map(|fence| fence.standing()) {
                Some(FenceState::Published(published)) => return Ok(PublishOutcome::Published(published)),
                _ => break,
            },
            Err(DestinationError::Unavailable { .. }) => tokio::time::sleep(wait).await,
            Err(other) => return Err(other),
        }
    }
    Err(error)
}

/// Looks up the records of refused rows and lists them; of the records a piece is in memory.
async fn list(
    session: &mut Session,
    ticket: Ticket,
    found: Vec<Reject>,
    lookup: &dyn RecordLookup,
) -> Result<(), DestinationError> {
    let mut found = found.into_iter();
    loop {
        let mut piece: Vec<Reject> = found.by_ref().take(shape::LOOKUP_ROWS).collect();
        if piece.is_empty() {
            return Ok(());
        }
        shape::add_records(&mut piece, lookup).await?;
        rejects::insert(session.connection(), ticket, Found::InPublish, &piece).await.map_err(failure)?;
    }
}

/// The transaction with the refused rows is rolled back, and they stay listed all the same.
async fn list_found(
    pool: &PgPool,
    ticket: Ticket,
    rejected: u64,
    found: Vec<Reject>,
    lookup: &dyn RecordLookup,
) -> Result<PublishOutcome, DestinationError> {
    let mut session = Session::begin(pool, Some(ticket), Work::Long).await?;
    list(&mut session, ticket, found, lookup).await?;
    if !fence::admits(&mut session, ticket, Lock::Share).await? {
        session.rollback().await;
        return Ok(PublishOutcome::Fenced);
    }
    fence::finish(session).await?;
    Ok(PublishOutcome::TooManyRejects(rejected))
}

/// The way of staged rows into an existing table.
struct Moving<'a> {
    session: &'a mut Session,
    ticket: Ticket,
    plan: &'a LoadPlan,
    schema: &'a str,
    name: &'a str,
    on_error: OnError,
    source: &'a dyn ChunkSource,
    rejected: u64,
    loaded: u64,
    found: Vec<Reject>,
}

/// Why rows did not go in.
pub(super) struct Fault {
    detail: String,
    column: Option<String>,
    /// Whether a constraint said so.
    constraint: bool,
}

impl Fault {
    /// What the database said.
    pub(super) fn of(fault: &PgDatabaseError) -> Self {
        Self {
            detail: session::describe(fault),
            column: fault.column().map(str::to_owned),
            constraint: fault.code().starts_with("23"),
        }
    }

    /// Fewer rows went in than were sent.
    pub(super) fn passed_over() -> Self {
        Self::other("a trigger of the table passed over the row".to_owned())
    }

    /// One that no constraint and no column is named by.
    pub(super) fn other(detail: String) -> Self {
        Self { detail, column: None, constraint: false }
    }
}

impl Moving<'_> {
    /// The rows wait in the object, and one of them was refused: stages all, for the search. False as in [`Self::all`].
    async fn stage_and_move(&mut self, last: u64, refused: Fault) -> Result<bool, DestinationError> {
        tracing::info!(import_id = %self.ticket.import, why = refused.detail, "a row was refused: staging the rows");
        let (mut copy, before) = (Copy::new(self.plan, self.schema, self.name)?, self.rejected);
        let mut chunks = self.source.chunks();
        while let Some(rows) = chunks.next().await {
            let (on_error, rejected) = (self.on_error, self.rejected);
            copy.stage(self.session, rows?, |refused| on_error.is_exceeded(rejected + refused)).await?;
            for reject in std::mem::take(&mut copy.refused) {
                self.list(reject).await?;
            }
            if self.on_error.is_exceeded(self.rejected) {
                return Ok(false);
            }
        }
        self.flush().await?;
        // Unless what was refused is not even staged, it is known by now that not all rows go in.
        let known = (refused.constraint && self.rejected == before).then_some(refused);
        self.all(last, copy.copied, known).await
    }

    /// Moves all rows; where some are refused, halves the batch until each stands alone. Ascending, so that of rows that
    /// collide the lowest stays. `known`: why not all of them go in. False: more were refused than the import allows.
    async fn all(&mut self, last: u64, staged: u64, known: Option<Fault>) -> Result<bool, DestinationError> {
        // Deferred constraints would speak only at COMMIT, where no row can be named.
        self.session
            .run(format!("SET LOCAL work_mem = '{SORT_MEMORY}'; SET CONSTRAINTS ALL IMMEDIATE"))
            .await
            .map_err(failure)?;
        // Either all rows go in, or none and each is looked at in its order.
        let refused = match known {
            Some(fault) => Some(fault),
            None => {
                let ordered = self.order_is_seen().await?;
                self.insert("", staged, ordered).await?
            }
        };
        let Some(mut fault) = refused else { return Ok(true) };
        self.index().await?;
        let mut staged = staged;
        if fault.constraint {
            let before = self.rejected;
            if !self.take_out(last).await? {
                return Ok(false);
            }
            staged -= self.rejected - before;
            fault = match self.insert("", staged, true).await? {
                None => return Ok(true),
                Some(fault) => fault,
            };
        }
        // Ranges of row numbers, the lowest on top; each is known or suspected to hold a refused row.
        let mut ranges = vec![(1, last)];
        let mut whole = true;
        while let Some((low, high)) = ranges.pop() {
            let condition = format!("WHERE {} BETWEEN {low} AND {high}", sql::identifier(&sql::row_column(self.plan))?);
            let staged = if whole { staged } else { self.count(&condition).await? };
            if staged == 0 {
                continue;
            }
            if !whole {
                match self.insert(&condition, staged, true).await? {
                    None => continue,
                    Some(found) => fault = found,
                }
            }
            whole = false;
            if low == high {
                self.reject(RowNumber(low), &fault).await?;
                if self.on_error.is_exceeded(self.rejected) {
                    return Ok(false);
                }
                continue;
            }
            let middle = low + (high - low) / 2;
            ranges.push((middle + 1, high));
            ranges.push((low, middle));
        }
        Ok(true)
    }

    /// Takes out the rows that constraints refuse for certain, many at once, before any other was found. False: more than the import
    /// allows. Where the database does not let us (a table that may not be read, say), nothing is taken out.
    async fn take_out(&mut self, last: u64) -> Result<bool, DestinationError> {
        // What was found before is listed already, where there is no limit.
        let (before, listed) = (self.rejected, self.found.len());
        self.session.run("SAVEPOINT longshore_take_out").await.map_err(failure)?;
        let error = match self.take_ranges(last).await? {
            Ok(within_limit) => {
                self.session.run("RELEASE SAVEPOINT longshore_take_out").await.map_err(failure)?;
                return Ok(within_limit);
            }
            Err(error) => error,
        };
        let Some(fault) = session::database_error(&error) else { return Err(failure(error)) };
        tracing::debug!(fault = session::describe(fault), "refused rows are found one by one");
        self.session
            .run("ROLLBACK TO SAVEPOINT longshore_take_out; RELEASE SAVEPOINT longshore_take_out")
            .await
            .map_err(failure)?;
        self.rejected = before;
        self.found.truncate(listed);
        Ok(true)
    }

    /// The inner error is that of a statement of the search.
    async fn take_ranges(&mut self, last: u64) -> Result<Result<bool, sqlx::Error>, DestinationError> {
        let refusals = match Refusals::of(self.session, self.plan, self.schema, self.name).await {
            Ok(Some(refusals)) => refusals,
            Ok(None) => return Ok(Ok(true)),
            Err(error) => return Ok(Err(error)),
        };
        let mut low = 1;
        while low <= last {
            let high = last.min(low + TAKEN_AT_ONCE - 1);
            let taken = match refusals.take(self.session, low, high).await {
                Ok(taken) => taken,
                Err(error) => return Ok(Err(error)),
            };
            for refused in taken {
                let fault = Fault { detail: refused.detail, column: refused.column, constraint: true };
                self.reject(RowNumber(refused.row), &fault).await?;
                if self.on_error.is_exceeded(self.rejected) {
                    return Ok(Ok(false));
                }
            }
            low = high + 1;
        }
        Ok(Ok(true))
    }

    /// Whether the table can tell in which order its rows came: by a trigger, by a default of a column that the file does not
    /// bring (a serial number), or by what its partitions have of these. The sort of all rows is a third of a publish.
    async fn order_is_seen(&mut self) -> Result<bool, DestinationError> {
        let names: Vec<&str> = self.plan.fields.iter().map(|field| field.name.as_str()).collect();
        sqlx::query_scalar(
            "SELECT c.relkind <> 'r' OR EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal) \
                 OR EXISTS (SELECT FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
                            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' \
                              AND (a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL) AND a.attname::text <> ALL ($2)) \
             FROM pg_class c WHERE c.oid = to_regclass($1)",
        )
        .bind(describe::quoted(&self.plan.table)?)
        .bind(names)
        .fetch_optional(self.session.connection())
        .await
        .map(|seen| seen.unwrap_or(true))
        .map_err(failure)
    }

    /// Inserts rows under a savepoint; a fault of rows leaves everything as it was.
    async fn insert(&mut self, condition: &str, staged: u64, ordered: bool) -> Result<Option<Fault>, DestinationError> {
        let statement = staging::insert_statement(self.plan, self.schema, self.name, condition, ordered)?;
        let fault = match self.session.run(format!("SAVEPOINT longshore_move; {statement}")).await {
            Ok(inserted) if inserted == staged => {
                self.session.run("RELEASE SAVEPOINT longshore_move").await.map_err(failure)?;
                self.loaded += inserted;
                return Ok(None);
            }
            Ok(_) => Fault::passed_over(),
            Err(error) => match write::row_fault(&error) {
                Some(fault) => Fault::of(fault),
                None => return Err(staging::staging_failure(self.name, error)),
            },
        };
        self.session
            .run("ROLLBACK TO SAVEPOINT longshore_move; RELEASE SAVEPOINT longshore_move")
            .await
            .map_err(failure)?;
        Ok(Some(fault))
    }

    /// From here on ranges of rows are read again and again.
    async fn index(&mut self) -> Result<(), DestinationError> {
        let (table, row) = (sql::qualified(self.schema, self.name)?, sql::identifier(&sql::row_column(self.plan))?);
        self.session.run(format!("CREATE INDEX ON {table} ({row}); ANALYZE {table} ({row})")).await.map_err(failure)?;
        Ok(())
    }

    async fn count(&mut self, condition: &str) -> Result<u64, DestinationError> {
        let statement = format!("SELECT count(*) FROM {} {condition}", sql::qualified(self.schema, self.name)?);
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(statement))
            .persistent(false)
            .fetch_one(self.session.connection())
            .await
            .map_err(failure)?;
        Ok(count as u64)
    }

    /// Lists a refused row. Without a limit there may be very many: then they are written in between.
    async fn reject(&mut self, row: RowNumber, fault: &Fault) -> Result<(), DestinationError> {
        let known = fault.column.as_ref().filter(|column| self.plan.fields.iter().any(|field| field.name == **column));
        let reason = RejectReason::ConstraintViolation;
        self.list(shape::refused(row, known.cloned(), None, reason, fault.detail.clone())).await
    }

    async fn list(&mut self, reject: Reject) -> Result<(), DestinationError> {
        self.found.push(reject);
        self.rejected += 1;
        if self.found.len() >= FLUSH_ROWS {
            self.flush().await?;
        }
        Ok(())
    }

    /// Writes the rows that are listed, unless there may be more of them than the import allows: then nothing stays written.
    async fn flush(&mut self) -> Result<(), DestinationError> {
        if self.on_error.max_rejects.is_none() {
            list(self.session, self.ticket, std::mem::take(&mut self.found), self.source).await?;
        }
        Ok(())
    }
}
