//! Imports: read, list, start, expire, and the records that owners work with.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ActiveValue, ColumnTrait, ConnectionTrait as _, DatabaseBackend, DbErr, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, Statement,
};

use longshore_domain::{
    Attempt, ColumnType, CreateRequest, Epoch, Import, ImportId, ImportState, LoadPlan, Problem, Progress, ShownFormat,
    SourceObject, Trigger, progress,
};

use super::connection::Connection;
use super::entity::imports::{ActiveModel, Column, Entity, Model};
use super::{Database, DatabaseError, signed, time, unsigned};

/// What is stored when an import is asked for; see [`Database::create`].
#[derive(Debug, Clone)]
pub struct NewImport {
    /// Its id.
    pub id: ImportId,
    /// What was asked for.
    pub request: CreateRequest,
    /// Where the object will be.
    pub object_key: String,
    /// When the first URL ends.
    pub url_expires_at: DateTime<Utc>,
}

/// An import as it is stored.
#[derive(Debug, Clone)]
pub struct ImportRecord {
    /// Its id.
    pub id: ImportId,
    /// Grows with each change.
    pub version: i64,
    /// Where it stands.
    pub state: ImportState,
    /// Which try.
    pub attempt: Attempt,
    /// The newest owner's epoch.
    pub epoch: Epoch,
    /// What was asked for.
    pub request: CreateRequest,
    /// The object's key.
    pub object_key: String,
    /// What set it going.
    pub trigger: Option<Trigger>,
    /// The object's size, once it was seen.
    pub size: Option<u64>,
    /// The object's ETag, once it was seen.
    pub etag: Option<String>,
    /// The plan of this attempt, once there is one.
    pub plan: Option<LoadPlan>,
    /// Types that earlier attempts found too narrow, by column name.
    pub widened: BTreeMap<String, ColumnType>,
    /// Whether the scan reached the object's end.
    pub scan_done: bool,
    /// Why it fails or failed.
    pub error: Option<Problem>,
    /// Owners in a row whose lease ran out before there was a plan.
    pub planning_deaths: u32,
    /// The counters.
    pub progress: Progress,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When the object was seen.
    pub uploaded_at: Option<DateTime<Utc>>,
    /// When this attempt's planning began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it came to an end.
    pub finished_at: Option<DateTime<Utc>>,
    /// When the last URL ends.
    pub url_expires_at: DateTime<Utc>,
}

impl ImportRecord {
    pub(super) fn read(row: Model) -> Result<Self, DatabaseError> {
        let size = row.size.map(unsigned);
        let rows_read = unsigned(row.rows_read);
        let rows_rejected = unsigned(row.rows_rejected);
        let bytes_total = size.unwrap_or(0);
        let bytes_done = unsigned(row.bytes_done);
        Ok(Self {
            id: ImportId(row.id),
            version: row.version,
            state: row.state.parse().map_err(|error| DatabaseError::corrupt("state", error))?,
            attempt: Attempt(u32::try_from(row.attempt).unwrap_or(0)),
            epoch: Epoch(row.epoch),
            request: read_json("request", &row.request)?,
            object_key: row.object_key,
            trigger: row.trigger.as_deref().and_then(Trigger::from_word),
            size,
            etag: row.etag,
            plan: row.plan_v2.or(row.plan).as_deref().map(|json| read_json("plan", json)).transpose()?,
            widened: row.widened.as_deref().map(|json| read_json("widened", json)).transpose()?.unwrap_or_default(),
            scan_done: row.scan_done,
            error: row.error.as_deref().map(|json| read_json("error", json)).transpose()?,
            planning_deaths: row.planning_deaths.map_or(0, |deaths| u32::try_from(deaths).unwrap_or(0)),
            progress: Progress {
                bytes_total,
                bytes_done,
                percent: progress::percent(bytes_done, bytes_total),
                rows_read,
                rows_loaded: rows_read.saturating_sub(rows_rejected),
                rows_rejected,
                chunks_total: unsigned(row.chunks_total),
                chunks_done: unsigned(row.chunks_done),
                rows_per_second: row.rows_per_second,
                eta_seconds: row.eta_seconds,
            },
            created_at: time(row.created_ms),
            uploaded_at: row.uploaded_ms.map(time),
            started_at: row.started_ms.map(time),
            finished_at: row.finished_ms.map(time),
            url_expires_at: time(row.url_expires_ms),
        })
    }

    /// What [`row_of`] stores, as it is read back.
    pub(super) fn fresh(new: &NewImport, created_ms: i64) -> Self {
        Self {
            id: new.id,
            version: 1,
            state: ImportState::AwaitingUpload,
            attempt: Attempt(1),
            epoch: Epoch(0),
            request: new.request.clone(),
            object_key: new.object_key.clone(),
            trigger: None,
            size: None,
            etag: None,
            plan: None,
            widened: BTreeMap::new(),
            scan_done: false,
            error: None,
            planning_deaths: 0,
            progress: Progress::default(),
            created_at: time(created_ms),
            uploaded_at: None,
            started_at: None,
            finished_at: None,
            url_expires_at: time(new.url_expires_at.timestamp_millis()),
        }
    }

    /// The counters; of an import that is done with the rate over all of it.
    fn final_progress(&self) -> Progress {
        let (Some(started), Some(finished), true) = (self.started_at, self.finished_at, self.state.is_done()) else {
            return self.progress;
        };
        let seconds = (finished - started).num_milliseconds() as f64 / 1000.0;
        let rate = (seconds > 0.0).then(|| (self.progress.rows_read as f64 / seconds * 10.0).round() / 10.0);
        Progress { rows_per_second: rate, eta_seconds: None, ..self.progress }
    }

    /// The resource that clients see.
    #[must_use]
    pub fn to_resource(&self, bucket: &str) -> Import {
        let format = match &self.plan {
            Some(plan) => ShownFormat::Found(plan.format.clone()),
            None => ShownFormat::Given(self.request.format.clone()),
        };
        Import {
            id: self.id,
            state: self.state,
            done: self.state.is_done(),
            attempt: self.attempt,
            trigger: self.trigger,
            created_at: self.created_at,
            uploaded_at: self.uploaded_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            source: SourceObject {
                bucket: bucket.to_owned(),
                key: self.object_key.clone(),
                size: self.size,
                etag: self.etag.clone(),
                content_type: self.request.file.content_type.clone(),
            },
            destination: self.request.destination.clone(),
            format,
            columns: self.plan.as_ref().map(|plan| plan.columns.clone()).or_else(|| self.request.columns.clone()),
            on_error: self.request.on_error,
            progress: self.final_progress(),
            error: self.error.clone().filter(|_| self.state == ImportState::Failed),
        }
    }
}

fn read_json<T: serde::de::DeserializeOwned>(what: &str, json: &str) -> Result<T, DatabaseError> {
    serde_json::from_str(json).map_err(|error| DatabaseError::corrupt(what, error))
}

pub(super) fn write_json<T: serde::Serialize>(what: &str, value: &T) -> Result<String, DatabaseError> {
    serde_json::to_string(value).map_err(|error| DatabaseError::corrupt(what, error))
}

/// The row of an import that is made at that time, in milliseconds since 1970.
pub(super) fn row_of(new: &NewImport, created_ms: i64) -> Result<ActiveModel, DatabaseError> {
    Ok(ActiveModel {
        id: ActiveValue::Set(new.id.0),
        version: ActiveValue::Set(1),
        state: ActiveValue::Set(ImportState::AwaitingUpload.as_str().into()),
        attempt: ActiveValue::Set(1),
        epoch: ActiveValue::Set(0),
        lease_owner: ActiveValue::Set(None),
        lease_until_ms: ActiveValue::Set(0),
        trigger: ActiveValue::Set(None),
        request: ActiveValue::Set(write_json("request", &new.request)?),
        table_name: ActiveValue::Set(new.request.destination.table.to_string()),
        object_key: ActiveValue::Set(new.object_key.clone()),
        url_expires_ms: ActiveValue::Set(new.url_expires_at.timestamp_millis()),
        created_ms: ActiveValue::Set(created_ms),
        scan_done: ActiveValue::Set(false),
        bytes_done: ActiveValue::Set(0),
        rows_read: ActiveValue::Set(0),
        rows_rejected: ActiveValue::Set(0),
        chunks_total: ActiveValue::Set(0),
        chunks_done: ActiveValue::Set(0),
        ..Default::default()
    })
}

/// A row as it is stored.
pub(super) type Row = Model;

/// The imports of some ids, in their order.
pub(super) async fn find_all(connection: Connection, ids: Vec<ImportId>) -> Result<Vec<Option<Row>>, DbErr> {
    if let [id] = ids[..] {
        return Ok(vec![Entity::find_by_id(id.0).one(&connection).await?]);
    }
    // The last id again and again, up to a power of two: there are few different statements to prepare.
    let last = ids.last().map(|id| id.0);
    let padded = ids.iter().map(|id| id.0).chain(last.into_iter().cycle()).take(ids.len().next_power_of_two());
    let rows = Entity::find().filter(Column::Id.is_in(padded)).all(&connection).await?;
    let found: HashMap<_, _> = rows.into_iter().map(|row| (row.id, row)).collect();
    Ok(ids.iter().map(|id| found.get(&id.0).cloned()).collect())
}

/// What differs between imports that were just asked for.
#[derive(serde::Serialize)]
struct NewRow<'a> {
    id: uuid::Uuid,
    request: String,
    table_name: String,
    object_key: &'a str,
    url_expires_ms: i64,
}

/// Rows as [`row_of`] makes them, of a JSON array of [`NewRow`]; for PostgreSQL. One statement for any number of them.
const INSERT_ALL: &str = "\
    INSERT INTO longshore_imports \
        (id, version, state, attempt, epoch, lease_until_ms, request, table_name, object_key, url_expires_ms, \
         created_ms, scan_done, bytes_done, rows_read, rows_rejected, chunks_total, chunks_done) \
    SELECT id, 1, $3, 1, 0, 0, request, table_name, object_key, url_expires_ms, $2, false, 0, 0, 0, 0, 0 \
    FROM json_to_recordset($1::text::json) \
         AS new(id uuid, request text, table_name text, object_key text, url_expires_ms bigint)";

/// Stores new imports in PostgreSQL; when each was made. They are all stored, or none where the error is the database's.
pub(super) async fn insert_all(connection: Connection, new: Vec<NewImport>) -> Result<Vec<i64>, DbErr> {
    let now = connection.clock().await?;
    let unwritten = |error: DatabaseError| DbErr::Custom(error.to_string());
    let rows = new.iter().map(|new| {
        Ok(NewRow {
            id: new.id.0,
            request: write_json("request", &new.request)?,
            table_name: new.request.destination.table.to_string(),
            object_key: &new.object_key,
            url_expires_ms: new.url_expires_at.timestamp_millis(),
        })
    });
    let rows = rows.collect::<Result<Vec<_>, _>>().map_err(unwritten)?;
    let values = [
        write_json("imports", &rows).map_err(unwritten)?.into(),
        now.into(),
        ImportState::AwaitingUpload.as_str().into(),
    ];
    connection.execute_raw(Statement::from_sql_and_values(DatabaseBackend::Postgres, INSERT_ALL, values)).await?;
    Ok(vec![now; new.len()])
}

/// What a listing asks for.
#[derive(Debug, Clone, Default)]
pub struct ImportFilter {
    /// Only this state.
    pub state: Option<ImportState>,
    /// Only this table, as the requests name it.
    pub table: Option<String>,
    /// Only imports older than this one.
    pub before: Option<ImportId>,
}

/// Requests and plans in one answer to [`Database::imports`] end at so many bytes; the last import may go beyond.
pub const LISTED_BYTES: u64 = 8 << 20;

/// What of a listing was read at once.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Newest first.
    pub imports: Vec<ImportRecord>,
    /// Whether there are more behind the last of them.
    pub more: bool,
}

/// What became of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    /// By this call.
    Now,
    /// It had left `awaiting_upload` before.
    Before(ImportState),
    /// No such import.
    Unknown,
}

/// An import that awaits its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwaitingImport {
    /// Its id.
    pub id: ImportId,
    /// Where its object will be.
    pub object_key: String,
}

impl Database {
    /// One import.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn import(&self, id: ImportId) -> Result<Option<ImportRecord>, DatabaseError> {
        let row = match &self.meeting {
            Some(meeting) => meeting.reads.ask(id).await?,
            None => Entity::find_by_id(id.0).one(&self.connection).await?,
        };
        row.map(ImportRecord::read).transpose()
    }

    /// Imports, newest first: at most `limit`, and behind [`LISTED_BYTES`] of requests and plans no more.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn imports(&self, filter: &ImportFilter, limit: u64) -> Result<Listed, DatabaseError> {
        // What they take is known before they are read; one more tells whether there is another page.
        let bytes = "octet_length(request) + coalesce(octet_length(plan), 0) + coalesce(octet_length(plan_v2), 0)";
        let mut query = Entity::find()
            .select_only()
            .column(Column::Id)
            .column_as(Expr::cust(bytes), "bytes")
            .order_by_desc(Column::Id)
            .limit(limit + 1);
        if let Some(state) = filter.state {
            query = query.filter(Column::State.eq(state.as_str()));
        }
        if let Some(table) = &filter.table {
            query = query.filter(Column::TableName.eq(table));
        }
        if let Some(before) = filter.before {
            query = query.filter(Column::Id.lt(before.0));
        }
        let found: Vec<(uuid::Uuid, i32)> = query.into_tuple().all(&self.connection).await?;
        let mut listed = 0;
        let fit = found.iter().take(limit as usize).take_while(|(_, bytes)| {
            let fits = listed < LISTED_BYTES;
            listed += unsigned(i64::from(*bytes));
            fits
        });
        let ids: Vec<_> = fit.map(|(id, _)| *id).collect();
        let more = found.len() > ids.len();
        let query = Entity::find().filter(Column::Id.is_in(ids)).order_by_desc(Column::Id);
        let imports =
            query.all(&self.connection).await?.into_iter().map(ImportRecord::read).collect::<Result<_, _>>()?;
        Ok(Listed { imports, more })
    }

    /// `awaiting_upload -> queued`, once, whoever asks and however often.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn start(&self, id: ImportId, trigger: Trigger, size: u64, etag: &str) -> Result<Started, DatabaseError> {
        let turn = self.turn().await;
        let changed = Entity::update_many()
            .col_expr(Column::State, Expr::value(ImportState::Queued.as_str()))
            .col_expr(Column::Trigger, Expr::value(trigger.as_str()))
            .col_expr(Column::Size, Expr::value(signed(size)))
            .col_expr(Column::Etag, Expr::value(etag))
            .col_expr(Column::UploadedMs, self.now_ms())
            .col_expr(Column::Version, Expr::col(Column::Version).add(1))
            .filter(Column::Id.eq(id.0))
            .filter(Column::State.eq(ImportState::AwaitingUpload.as_str()))
            .exec(&self.connection)
            .await?;
        drop(turn);
        if changed.rows_affected == 1 {
            return Ok(Started::Now);
        }
        Ok(self.import(id).await?.map_or(Started::Unknown, |record| Started::Before(record.state)))
    }

    /// The last id of the imports that await their file; `None` where none does.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn newest_awaiting(&self) -> Result<Option<ImportId>, DatabaseError> {
        let newest: Option<uuid::Uuid> = Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(Column::State.eq(ImportState::AwaitingUpload.as_str()))
            .order_by_desc(Column::Id)
            .into_tuple()
            .one(&self.connection)
            .await?;
        Ok(newest.map(ImportId))
    }

    /// Imports that await their file, oldest first, behind `after`, up to `last`, at most `limit`.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn awaiting(
        &self,
        after: Option<ImportId>,
        last: Option<ImportId>,
        limit: u64,
    ) -> Result<Vec<AwaitingImport>, DatabaseError> {
        let mut query = Entity::find()
            .select_only()
            .column(Column::Id)
            .column(Column::ObjectKey)
            .filter(Column::State.eq(ImportState::AwaitingUpload.as_str()))
            .order_by_asc(Column::Id)
            .limit(limit);
        if let Some(after) = after {
            query = query.filter(Column::Id.gt(after.0));
        }
        if let Some(last) = last {
            query = query.filter(Column::Id.lte(last.0));
        }
        let rows: Vec<(uuid::Uuid, String)> = query.into_tuple().all(&self.connection).await?;
        Ok(rows.into_iter().map(|(id, object_key)| AwaitingImport { id: ImportId(id), object_key }).collect())
    }

    /// Imports that need an owner and whose lease ran out, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn ownerless(&self, limit: u64) -> Result<Vec<ImportId>, DatabaseError> {
        let states = ImportState::ALL.into_iter().filter(|state| state.needs_owner()).map(ImportState::as_str);
        let ids: Vec<uuid::Uuid> = Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(Column::State.is_in(states))
            .filter(Expr::col(Column::LeaseUntilMs).lt(self.now_ms()))
            .order_by_asc(Column::Id)
            .limit(limit)
            .into_tuple()
            .all(&self.connection)
            .await?;
        Ok(ids.into_iter().map(ImportId).collect())
    }

    /// Whether an import may expire: its last URL ended more than `grace_ms` ago. One compare-and-set.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn expire(&self, id: ImportId, grace_ms: i64) -> Result<bool, DatabaseError> {
        let _turn = self.turn().await;
        let changed = Entity::update_many()
            .col_expr(Column::State, Expr::value(ImportState::Expired.as_str()))
            .col_expr(Column::FinishedMs, self.now_ms())
            .col_expr(Column::Version, Expr::col(Column::Version).add(1))
            .filter(Column::Id.eq(id.0))
            .filter(Column::State.eq(ImportState::AwaitingUpload.as_str()))
            .filter(Expr::col(Column::UrlExpiresMs).add(grace_ms).lt(self.now_ms()))
            .exec(&self.connection)
            .await?;
        Ok(changed.rows_affected == 1)
    }
}
