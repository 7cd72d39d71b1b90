//! What clients ask for: create, under an idempotency key or without, a fresh URL, cancel, retry. Called by the API. Each is
//! one compare-and-set on the state, so that it meets the owner, the sweep and other API nodes without harm; doing it twice
//! is told from being too late.

use chrono::{DateTime, Utc};
use sea_orm::sea_query::{Expr, ExprTrait, OnConflict};
use sea_orm::{ActiveValue, ColumnTrait, DbErr, EntityTrait, QueryFilter, QuerySelect, UpdateMany};

use longshore_domain::{ImportId, ImportState};

use super::entity::idempotency_keys;
use super::entity::imports::{self, Column, Entity};
use super::imports::row_of;
use super::lease::clear_counters;
use super::{Database, DatabaseError, ImportRecord, NewImport};

/// A client's word for one create, so that it can be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// As it was sent.
    pub key: String,
    /// Equal for equal requests.
    pub fingerprint: String,
}

/// What became of a create.
#[derive(Debug, Clone)]
pub enum Created {
    /// A new import.
    New(ImportRecord),
    /// The key was used for an equal request: its import.
    Before(ImportRecord),
    /// The key was used for another request.
    KeyOfAnother,
}

/// What became of a cancel or a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// This call did it.
    Now,
    /// An earlier one did, and it still holds.
    Before,
    /// The state forbids it.
    WrongState,
}

impl Database {
    /// Stores a new import, awaiting its upload; under a key only where the key is free. Import and key are stored in one
    /// transaction, so that of requests under one key that meet, on whatever nodes, exactly one makes an import.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn create(&self, new: &NewImport, key: Option<&IdempotencyKey>) -> Result<Created, DatabaseError> {
        if let (Some(meeting), None) = (&self.meeting, key) {
            let created_ms = meeting.creates.ask(new.clone()).await?;
            return Ok(Created::New(ImportRecord::fresh(new, created_ms)));
        }
        let row = row_of(new, self.connection.clock().await?)?;
        let Some(key) = key else {
            let _turn = self.turn().await;
            let row = Entity::insert(row).exec_with_returning(&self.connection).await?;
            return Ok(Created::New(ImportRecord::read(row)?));
        };
        let claim = idempotency_keys::ActiveModel {
            key: ActiveValue::Set(key.key.clone()),
            import_id: ActiveValue::Set(new.id.0),
            fingerprint: ActiveValue::Set(key.fingerprint.clone()),
        };
        let turn = self.turn().await;
        if let Some(row) = self.connection.answered(self.store_claimed(claim, row)).await? {
            return Ok(Created::New(ImportRecord::read(row)?));
        }
        drop(turn);
        let known = idempotency_keys::Entity::find_by_id(key.key.clone()).one(&self.connection).await?;
        let known = known.ok_or_else(|| DatabaseError::corrupt("idempotency key", "it is taken, and not there"))?;
        if known.fingerprint != key.fingerprint {
            return Ok(Created::KeyOfAnother);
        }
        let import = self.import(ImportId(known.import_id)).await?;
        let import = import.ok_or_else(|| DatabaseError::corrupt("idempotency key", "its import is not there"))?;
        Ok(Created::Before(import))
    }

    /// Stores an import under a key; `None` where the key is taken.
    async fn store_claimed(
        &self,
        claim: idempotency_keys::ActiveModel,
        row: imports::ActiveModel,
    ) -> Result<Option<imports::Model>, DatabaseError> {
        let transaction = self.connection.begin().await?;
        // Waits for another node that stores the same key just now.
        let claimed = idempotency_keys::Entity::insert(claim)
            .on_conflict(OnConflict::column(idempotency_keys::Column::Key).do_nothing().to_owned())
            .exec_without_returning(&transaction)
            .await;
        match claimed {
            Ok(1) => {
                let row = Entity::insert(row).exec_with_returning(&transaction).await?;
                transaction.commit().await?;
                Ok(Some(row))
            }
            Ok(_) | Err(DbErr::RecordNotInserted) => {
                transaction.rollback().await?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A fresh URL was signed: the import awaits its file until this one ends, too. `false` where it no longer awaits it.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn extend_upload(&self, id: ImportId, expires_at: DateTime<Utc>) -> Result<bool, DatabaseError> {
        let until = expires_at.timestamp_millis();
        let later =
            Expr::case(Expr::col(Column::UrlExpiresMs).lt(until), until).finally(Expr::col(Column::UrlExpiresMs));
        let update = in_states(id, &[ImportState::AwaitingUpload]).col_expr(Column::UrlExpiresMs, later.into());
        let _turn = self.turn().await;
        Ok(update.exec(&self.connection).await?.rows_affected == 1)
    }

    /// `awaiting_upload -> cancelled`, `queued..running -> cancelling`: the owner, or the next one, does the rest. In
    /// `publishing` it comes too late, and the state says so. Answers with the import as it is then; `None`: no such import.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn cancel(&self, id: ImportId) -> Result<Option<(Effect, ImportRecord)>, DatabaseError> {
        let at_once = in_states(id, &states_that_lead_to(ImportState::Cancelled, |state| !state.needs_owner()))
            .col_expr(Column::State, Expr::value(ImportState::Cancelled.as_str()))
            .col_expr(Column::FinishedMs, self.now_ms());
        let by_owner = in_states(id, &states_that_lead_to(ImportState::Cancelling, |_| true))
            .col_expr(Column::State, Expr::value(ImportState::Cancelling.as_str()));
        {
            let _turn = self.turn().await;
            // In this order: an import that is started between the two is found by the second.
            for update in [at_once, by_owner] {
                if let Some(record) = self.change_by_client(update).await? {
                    return Ok(Some((Effect::Now, record)));
                }
            }
        }
        Ok(self.import(id).await?.map(|record| match record.state {
            ImportState::Cancelling | ImportState::Cancelled => (Effect::Before, record),
            _ => (Effect::WrongState, record),
        }))
    }

    /// `failed -> queued` as a new attempt, with the plan, the counters and the reason gone; the types that proved too narrow
    /// stay. Whether the object is still there is the caller's to see; that it is the same one is seen by every read.
    /// [`Effect::Before`]: the attempt that an earlier retry began goes on, or succeeded. Answers as [`Database::cancel`].
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn retry(&self, id: ImportId) -> Result<Option<(Effect, ImportRecord)>, DatabaseError> {
        let update = clear_counters(in_states(id, &[ImportState::Failed]))
            .col_expr(Column::State, Expr::value(ImportState::Queued.as_str()))
            .col_expr(Column::Attempt, Expr::col(Column::Attempt).add(1))
            .col_expr(Column::RetriedAttempt, Expr::col(Column::Attempt).add(1))
            .col_expr(Column::Error, Expr::value(None::<String>))
            .col_expr(Column::StartedMs, Expr::value(None::<i64>))
            .col_expr(Column::FinishedMs, Expr::value(None::<i64>))
            .col_expr(Column::LeaseUntilMs, Expr::value(0_i64));
        {
            let _turn = self.turn().await;
            if let Some(record) = self.change_by_client(update).await? {
                return Ok(Some((Effect::Now, record)));
            }
        }
        let Some(row) = Entity::find_by_id(id.0).one(&self.connection).await? else { return Ok(None) };
        let was_retried = row.retried_attempt.is_some();
        let record = ImportRecord::read(row)?;
        let state = record.state;
        let goes_on = state == ImportState::Succeeded || (state.needs_owner() && state != ImportState::Cancelling);
        let effect = if was_retried && goes_on { Effect::Before } else { Effect::WrongState };
        Ok(Some((effect, record)))
    }

    /// A change that clients see, of one import at most; the import behind it, where it took effect.
    async fn change_by_client(&self, update: UpdateMany<Entity>) -> Result<Option<ImportRecord>, DatabaseError> {
        let update = update.col_expr(Column::Version, Expr::col(Column::Version).add(1));
        let changed = update.exec_with_returning(&self.connection).await?;
        changed.into_iter().next().map(ImportRecord::read).transpose()
    }

    /// The versions of imports, for whoever watches them; those that are not there are left out. At most some hundred ids.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn versions(&self, ids: &[ImportId]) -> Result<Vec<(ImportId, i64)>, DatabaseError> {
        let rows: Vec<(uuid::Uuid, i64)> = Entity::find()
            .select_only()
            .column(Column::Id)
            .column(Column::Version)
            .filter(Column::Id.is_in(ids.iter().map(|id| id.0)))
            .into_tuple()
            .all(&self.connection)
            .await?;
        Ok(rows.into_iter().map(|(id, version)| (ImportId(id), version)).collect())
    }
}

/// The states with a legal change to `to`, of those that `wanted` takes.
fn states_that_lead_to(to: ImportState, wanted: impl Fn(ImportState) -> bool) -> Vec<ImportState> {
    ImportState::ALL.into_iter().filter(|from| wanted(*from) && from.transition(to).is_ok()).collect()
}

/// An update of an import that is in one of these states.
fn in_states(id: ImportId, states: &[ImportState]) -> UpdateMany<Entity> {
    Entity::update_many()
        .filter(Column::Id.eq(id.0))
        .filter(Column::State.is_in(states.iter().map(|state| state.as_str())))
}
