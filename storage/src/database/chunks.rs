//! Chunks: stored before their jobs are published, claimed by workers with a lease of their own, counted when claimed
//! (invariant 12).

use sea_orm::sea_query::{Alias, Expr, ExprTrait, OnConflict};
use sea_orm::{ActiveValue, ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use longshore_domain::{
    Attempt, ByteOffset, ByteRange, Chunk, ChunkIndex, ChunkState, Epoch, ImportId, ImportState, LineNumber, RowNumber,
};

use super::entity::{chunks, imports};
use super::{Database, DatabaseError, ImportRecord, number, signed, unsigned};
use crate::bus::ChunkJob;
use longshore_parse::Widening;

/// Rows a statement inserts at most: SQLite binds at most 32,766 values.
const INSERT_AT_ONCE: usize = 1000;

/// How often a merge of wider types is tried while others change them.
const WIDEN_TRIES: usize = 20;

/// A chunk that was claimed this often without an end kills whoever works on it: nobody claims it again, and its owner gives
/// the import up.
pub const CLAIMS_AT_MOST: u32 = 20;

/// Where a chunk's text is, when it is not the object's own bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedText {
    /// The key of the part that holds it.
    pub key: String,
    /// The part's ETag.
    pub etag: String,
    /// Its bytes there: all of the chunk, of an oversized record the beginning.
    pub range: ByteRange,
    /// The object's bytes that the chunk counts for.
    pub object_bytes: u64,
}

/// A chunk as the planner found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewChunk {
    /// Its place.
    pub chunk: ChunkIndex,
    /// Its bytes.
    pub range: ByteRange,
    /// The number of its first data record.
    pub first_row: RowNumber,
    /// The physical line of its first record.
    pub first_line: LineNumber,
    /// The physical line at its end, where a scan goes on after a crash.
    pub next_line: LineNumber,
    /// Data records in it.
    pub rows: u64,
    /// Whether it is one record longer than a record may be.
    pub oversized: bool,
    /// Where its text is; `None`: its bytes in the object.
    pub text: Option<DecodedText>,
}

impl NewChunk {
    /// The object's bytes that it counts for.
    #[must_use]
    pub fn object_bytes(&self) -> u64 {
        self.text.as_ref().map_or(self.range.len(), |text| text.object_bytes)
    }
}

/// A chunk as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRecord {
    /// As planned.
    pub planned: NewChunk,
    /// Where it stands.
    pub state: ChunkState,
    /// Rejected, once it is done.
    pub rows_rejected: u64,
    /// Who claimed it last.
    pub worker: Option<String>,
    /// How often it was claimed.
    pub claims: u32,
}

impl ChunkRecord {
    fn read(row: chunks::Model) -> Result<Self, DatabaseError> {
        Ok(Self {
            planned: NewChunk {
                chunk: ChunkIndex(u32::try_from(row.chunk).unwrap_or(0)),
                range: ByteRange {
                    start: ByteOffset(unsigned(row.start_byte)),
                    end: ByteOffset(unsigned(row.end_byte)),
                },
                first_row: RowNumber(unsigned(row.first_row)),
                first_line: LineNumber(unsigned(row.first_line)),
                next_line: LineNumber(unsigned(row.next_line)),
                rows: unsigned(row.row_count),
                oversized: row.oversized,
                text: match (row.text_key, row.text_etag) {
                    (Some(key), Some(etag)) => {
                        let start = unsigned(row.text_offset.unwrap_or(0));
                        let range = ByteRange::new(start, start + unsigned(row.text_length.unwrap_or(0)));
                        let object_bytes = unsigned(row.object_bytes.unwrap_or(0));
                        Some(DecodedText { key, etag, range, object_bytes })
                    }
                    _ => None,
                },
            },
            state: row.state.parse().map_err(|error| DatabaseError::corrupt("chunk state", error))?,
            rows_rejected: unsigned(row.rows_rejected),
            worker: row.worker,
            claims: u32::try_from(row.claims).unwrap_or(0),
        })
    }

    /// The resource that clients see.
    #[must_use]
    pub fn to_resource(&self) -> Chunk {
        Chunk {
            chunk: self.planned.chunk,
            start: self.planned.range.start,
            end: self.planned.range.end,
            first_row: self.planned.first_row,
            rows: self.planned.rows,
            rows_rejected: self.rows_rejected,
            state: self.state,
            worker: self.worker.clone(),
            attempt: self.claims,
        }
    }
}

/// What became of a worker's claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkClaim {
    /// It is this worker's, until its claim runs out.
    Claimed(ChunkRecord),
    /// Another worker holds it, or it is done, or was claimed too often, or the job is of an older epoch or attempt: nothing to do.
    NotNow,
}

/// A chunk that is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenChunk {
    /// Its place.
    pub chunk: ChunkIndex,
    /// Whether it was claimed.
    pub claimed: bool,
    /// Whether that claim still holds, by the database's clock.
    pub held: bool,
    /// How often it was claimed.
    pub claims: u32,
}

impl Database {
    /// Stores chunks that were planned, and whether they reach the object's end, if the epoch still owns the import.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn store_chunks(
        &self,
        id: ImportId,
        attempt: Attempt,
        epoch: Epoch,
        new: &[NewChunk],
        scan_done: bool,
    ) -> Result<bool, DatabaseError> {
        let _turn = self.turn().await;
        self.connection.answered(self.store_planned(id, attempt, epoch, new, scan_done)).await
    }

    async fn store_planned(
        &self,
        id: ImportId,
        attempt: Attempt,
        epoch: Epoch,
        new: &[NewChunk],
        scan_done: bool,
    ) -> Result<bool, DatabaseError> {
        let transaction = self.connection.begin().await?;
        let total = new.last().map(|chunk| i64::from(chunk.chunk.0) + 1);
        let mut update = self
            .owned(id, epoch)
            .filter(imports::Column::Attempt.eq(number(attempt.0)))
            .filter(imports::Column::State.is_in([ImportState::Planning.as_str(), ImportState::Running.as_str()]))
            .col_expr(imports::Column::ScanDone, Expr::value(scan_done))
            .col_expr(imports::Column::Version, Expr::col(imports::Column::Version).add(1));
        if let Some(total) = total {
            update = update.col_expr(imports::Column::ChunksTotal, Expr::value(total));
        }
        if update.exec(&transaction).await?.rows_affected == 0 {
            transaction.rollback().await?;
            return Ok(false);
        }
        for some in new.chunks(INSERT_AT_ONCE) {
            let rows = some.iter().map(|chunk| to_row(id, attempt, chunk));
            chunks::Entity::insert_many(rows)
                .on_conflict(
                    OnConflict::columns([chunks::Column::ImportId, chunks::Column::Attempt, chunks::Column::Chunk])
                        .do_nothing()
                        .to_owned(),
                )
                .exec_without_returning(&transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// The chunks of an attempt from `from` on, by place, at most `limit`.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn chunks(
        &self,
        id: ImportId,
        attempt: Attempt,
        from: ChunkIndex,
        limit: u64,
    ) -> Result<Vec<ChunkRecord>, DatabaseError> {
        let rows = chunks::Entity::find()
            .filter(chunks::Column::ImportId.eq(id.0))
            .filter(chunks::Column::Attempt.eq(number(attempt.0)))
            .filter(chunks::Column::Chunk.gte(number(from.0)))
            .order_by_asc(chunks::Column::Chunk)
            .limit(limit)
            .all(&self.connection)
            .await?;
        rows.into_iter().map(ChunkRecord::read).collect()
    }

    /// A worker's claim of the chunk of a job: one statement, counted, refused while another claim lasts. The import's own
    /// state and epoch are checked by the caller's plan and, finally, by the fence.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn claim_chunk(&self, job: &ChunkJob, worker: &str) -> Result<ChunkClaim, DatabaseError> {
        let _turn = self.turn().await;
        let claimed = chunks::Entity::update_many()
            .col_expr(chunks::Column::State, Expr::value(ChunkState::Running.as_str()))
            .col_expr(chunks::Column::Worker, Expr::value(worker))
            .col_expr(chunks::Column::Claims, Expr::col(chunks::Column::Claims).add(1))
            .col_expr(chunks::Column::ClaimUntilMs, self.lease_end())
            .filter(of_job(job))
            .filter(chunks::Column::State.is_in([ChunkState::Pending.as_str(), ChunkState::Running.as_str()]))
            .filter(chunks::Column::Claims.lt(number(CLAIMS_AT_MOST)))
            .filter(Expr::col(chunks::Column::ClaimUntilMs).lt(self.now_ms()))
            .exec_with_returning(&self.connection)
            .await?;
        Ok(match claimed.into_iter().next() {
            Some(row) => ChunkClaim::Claimed(ChunkRecord::read(row)?),
            None => ChunkClaim::NotNow,
        })
    }

    /// Renews the claim that was counted so; `false` where it is lost, be it to another task of the same process.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn keep_chunk(&self, job: &ChunkJob, worker: &str, claims: u32) -> Result<bool, DatabaseError> {
        let _turn = self.turn().await;
        let changed = chunks::Entity::update_many()
            .col_expr(chunks::Column::ClaimUntilMs, self.lease_end())
            .filter(of_claim(job, worker, claims))
            .exec(&self.connection)
            .await?;
        Ok(changed.rows_affected == 1)
    }

    /// Gives a claim back: the next worker need not wait for it to run out, and it does not count as a try, since what is
    /// counted are workers that died on a chunk.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn release_chunk(&self, job: &ChunkJob, worker: &str, claims: u32) -> Result<(), DatabaseError> {
        let _turn = self.turn().await;
        chunks::Entity::update_many()
            .col_expr(chunks::Column::State, Expr::value(ChunkState::Pending.as_str()))
            .col_expr(chunks::Column::Claims, Expr::col(chunks::Column::Claims).sub(1))
            .col_expr(chunks::Column::ClaimUntilMs, Expr::value(0_i64))
            .filter(of_claim(job, worker, claims))
            .exec(&self.connection)
            .await?;
        Ok(())
    }

    /// A new owner's call: claims of workers that served an older epoch can no longer commit, so their chunks are free.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn free_chunks(&self, id: ImportId, attempt: Attempt) -> Result<(), DatabaseError> {
        let _turn = self.turn().await;
        chunks::Entity::update_many()
            .col_expr(chunks::Column::State, Expr::value(ChunkState::Pending.as_str()))
            .col_expr(chunks::Column::ClaimUntilMs, Expr::value(0_i64))
            .filter(chunks::Column::ImportId.eq(id.0))
            .filter(chunks::Column::Attempt.eq(number(attempt.0)))
            .filter(chunks::Column::State.eq(ChunkState::Running.as_str()))
            .exec(&self.connection)
            .await?;
        Ok(())
    }

    /// Chunks of an attempt that are not done, from `from` on, by place, at most `limit`; with each, whether a claim holds.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn open_chunks(
        &self,
        id: ImportId,
        attempt: Attempt,
        from: ChunkIndex,
        limit: u64,
    ) -> Result<Vec<OpenChunk>, DatabaseError> {
        let rows: Vec<(i32, String, i32, bool)> = chunks::Entity::find()
            .select_only()
            .column(chunks::Column::Chunk)
            .column(chunks::Column::State)
            .column(chunks::Column::Claims)
            .expr_as(Expr::col(chunks::Column::ClaimUntilMs).gte(self.now_ms()), "held")
            .filter(chunks::Column::ImportId.eq(id.0))
            .filter(chunks::Column::Attempt.eq(number(attempt.0)))
            .filter(chunks::Column::Chunk.gte(number(from.0)))
            .filter(chunks::Column::State.ne(ChunkState::Done.as_str()))
            .order_by_asc(chunks::Column::Chunk)
            .limit(limit)
            .into_tuple()
            .all(&self.connection)
            .await?;
        Ok(rows
            .into_iter()
            .map(|(chunk, state, claims, held)| OpenChunk {
                chunk: ChunkIndex(u32::try_from(chunk).unwrap_or(0)),
                claimed: state == ChunkState::Running.as_str(),
                held,
                claims: u32::try_from(claims).unwrap_or(0),
            })
            .collect())
    }

    /// A worker's call: columns of this attempt met cells that their inferred types do not take. Types only ever widen; the
    /// owner starts a new attempt with them. `false`: the attempt is over.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn widen(
        &self,
        id: ImportId,
        attempt: Attempt,
        epoch: Epoch,
        widenings: &[Widening],
    ) -> Result<bool, DatabaseError> {
        // Two workers may widen at once: read, merge, and compare-and-set on what was read.
        for _ in 0..WIDEN_TRIES {
            let Some(row) = imports::Entity::find_by_id(id.0).one(&self.connection).await? else { return Ok(false) };
            let (before, record) = (row.widened.clone(), ImportRecord::read(row)?);
            let (Some(plan), true) = (record.plan, record.attempt == attempt && record.epoch == epoch) else {
                return Ok(false);
            };
            let mut widened = record.widened;
            for widening in widenings {
                let Some(field) = plan.fields.get(widening.column) else { continue };
                let kind = match widened.get(&field.name) {
                    Some(known) => longshore_parse::join_types(known, &widening.to),
                    None => widening.to.clone(),
                };
                widened.insert(field.name.clone(), kind);
            }
            let update = self
                .owned(id, epoch)
                .col_expr(imports::Column::Widened, Expr::value(super::imports::write_json("widened", &widened)?));
            let update = match before {
                Some(before) => update.filter(imports::Column::Widened.eq(before)),
                None => update.filter(imports::Column::Widened.is_null()),
            };
            let _turn = self.turn().await;
            if update.exec(&self.connection).await?.rows_affected == 1 {
                return Ok(true);
            }
        }
        Err(DatabaseError::Unavailable { reason: "the wider types were changed by others all the time".into() })
    }

    /// Marks a chunk done, after its ledger row is committed. May run twice; `true` where this call made it so.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn finish_chunk(
        &self,
        id: ImportId,
        attempt: Attempt,
        chunk: ChunkIndex,
        rejected: u64,
    ) -> Result<bool, DatabaseError> {
        let _turn = self.turn().await;
        let changed = chunks::Entity::update_many()
            .col_expr(chunks::Column::State, Expr::value(ChunkState::Done.as_str()))
            .col_expr(chunks::Column::RowsRejected, Expr::value(signed(rejected)))
            .filter(chunks::Column::ImportId.eq(id.0))
            .filter(chunks::Column::Attempt.eq(number(attempt.0)))
            .filter(chunks::Column::Chunk.eq(number(chunk.0)))
            .filter(chunks::Column::State.ne(ChunkState::Done.as_str()))
            .exec(&self.connection)
            .await?;
        Ok(changed.rows_affected == 1)
    }

    /// How many rows the committed chunks of an attempt rejected.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn rejected(&self, id: ImportId, attempt: Attempt) -> Result<u64, DatabaseError> {
        let sum = Expr::col(chunks::Column::RowsRejected).sum().cast_as(Alias::new("bigint"));
        let sum: Option<Option<i64>> = chunks::Entity::find()
            .select_only()
            .expr(sum)
            .filter(chunks::Column::ImportId.eq(id.0))
            .filter(chunks::Column::Attempt.eq(number(attempt.0)))
            .filter(chunks::Column::State.eq(ChunkState::Done.as_str()))
            .into_tuple()
            .one(&self.connection)
            .await?;
        Ok(sum.flatten().map_or(0, unsigned))
    }
}

/// Lets every claim go; see [`Database::release_all`].
pub(super) async fn release_all(connection: &impl ConnectionTrait) -> Result<(), DatabaseError> {
    chunks::Entity::update_many()
        .col_expr(chunks::Column::State, Expr::value(ChunkState::Pending.as_str()))
        .col_expr(chunks::Column::ClaimUntilMs, Expr::value(0_i64))
        .filter(chunks::Column::State.eq(ChunkState::Running.as_str()))
        .exec(connection)
        .await?;
    Ok(())
}

fn of_job(job: &ChunkJob) -> sea_orm::Condition {
    sea_orm::Condition::all()
        .add(chunks::Column::ImportId.eq(job.import.0))
        .add(chunks::Column::Attempt.eq(number(job.attempt.0)))
        .add(chunks::Column::Chunk.eq(number(job.chunk.0)))
}

/// The claim of a worker, while nobody claimed the chunk behind it.
fn of_claim(job: &ChunkJob, worker: &str, claims: u32) -> sea_orm::Condition {
    of_job(job)
        .add(chunks::Column::State.eq(ChunkState::Running.as_str()))
        .add(chunks::Column::Worker.eq(worker))
        .add(chunks::Column::Claims.eq(number(claims)))
}

fn to_row(id: ImportId, attempt: Attempt, new: &NewChunk) -> chunks::ActiveModel {
    chunks::ActiveModel {
        import_id: ActiveValue::Set(id.0),
        attempt: ActiveValue::Set(number(attempt.0)),
        chunk: ActiveValue::Set(number(new.chunk.0)),
        start_byte: ActiveValue::Set(signed(new.range.start.0)),
        end_byte: ActiveValue::Set(signed(new.range.end.0)),
        first_row: ActiveValue::Set(signed(new.first_row.0)),
        first_line: ActiveValue::Set(signed(new.first_line.0)),
        next_line: ActiveValue::Set(signed(new.next_line.0)),
        row_count: ActiveValue::Set(signed(new.rows)),
        oversized: ActiveValue::Set(new.oversized),
        state: ActiveValue::Set(ChunkState::Pending.as_str().to_owned()),
        rows_rejected: ActiveValue::Set(0),
        worker: ActiveValue::Set(None),
        claims: ActiveValue::Set(0),
        claim_until_ms: ActiveValue::Set(0),
        object_bytes: ActiveValue::Set(new.text.as_ref().map(|text| signed(text.object_bytes))),
        text_key: ActiveValue::Set(new.text.as_ref().map(|text| text.key.clone())),
        text_etag: ActiveValue::Set(new.text.as_ref().map(|text| text.etag.clone())),
        text_offset: ActiveValue::Set(new.text.as_ref().map(|text| signed(text.range.start.0))),
        text_length: ActiveValue::Set(new.text.as_ref().map(|text| signed(text.range.len()))),
    }
}
