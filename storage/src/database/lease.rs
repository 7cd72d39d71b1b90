//! Ownership: claim, renew, and every change that only the owner may make. Each is one statement with the epoch in its
//! `WHERE`, so that an owner that lost its lease changes nothing.

use std::collections::BTreeMap;

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, UpdateMany};

use longshore_domain::{Attempt, ColumnType, Epoch, ImportId, ImportState, LoadPlan, Problem, Progress};

use super::entity::imports::{Column, Entity};
use super::imports::write_json;
use super::{Database, DatabaseError, ImportRecord, LEASE, number, signed};

/// Counted at a claim. A lease that was let go is 0, before the first claim too; one that ran out is not.
const PLANNING_DEATHS: &str = "CASE WHEN lease_until_ms > 0 AND state IN ('queued', 'planning') AND plan IS NULL AND plan_v2 IS NULL \
     THEN coalesce(planning_deaths, 0) + 1 ELSE 0 END";

/// A change of state by the owner, with what goes along in the same statement.
#[derive(Debug, Clone)]
pub enum Change {
    /// `queued -> planning`: counters and the old plan are gone.
    Plan,
    /// `planning -> running`.
    Run,
    /// `planning | running -> publishing`.
    Publish,
    /// `publishing -> succeeded`, with the marker's counts.
    Succeed {
        /// Rows in the destination.
        rows_loaded: u64,
        /// Rows rejected.
        rows_rejected: u64,
    },
    /// `-> failed`; the reason was stored before.
    Fail,
    /// `cancelling -> cancelled`.
    Cancel,
    /// `-> queued` as a new attempt, with the column types that proved too narrow so far.
    Restart {
        /// By column name.
        widened: BTreeMap<String, ColumnType>,
    },
}

impl Change {
    /// The state it leads to.
    #[must_use]
    pub const fn to(&self) -> ImportState {
        match self {
            Self::Plan => ImportState::Planning,
            Self::Run => ImportState::Running,
            Self::Publish => ImportState::Publishing,
            Self::Succeed { .. } => ImportState::Succeeded,
            Self::Fail => ImportState::Failed,
            Self::Cancel => ImportState::Cancelled,
            Self::Restart { .. } => ImportState::Queued,
        }
    }
}

impl Database {
    /// Takes an import whose lease ran out: the next epoch, and a lease by the database's clock. `None` where somebody else
    /// holds it, or it needs no owner. Where the owner before let go of nothing and made no plan, that is counted: a file may
    /// end every process that looks at it.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn claim(&self, id: ImportId, owner: &str) -> Result<Option<ImportRecord>, DatabaseError> {
        let states = ImportState::ALL.into_iter().filter(|state| state.needs_owner()).map(ImportState::as_str);
        let _turn = self.turn().await;
        let claimed = Entity::update_many()
            .col_expr(Column::Epoch, Expr::col(Column::Epoch).add(1))
            .col_expr(Column::LeaseOwner, Expr::value(owner))
            .col_expr(Column::PlanningDeaths, Expr::cust(PLANNING_DEATHS))
            .col_expr(Column::LeaseUntilMs, self.lease_end())
            .filter(Column::Id.eq(id.0))
            .filter(Column::State.is_in(states))
            .filter(Expr::col(Column::LeaseUntilMs).lt(self.now_ms()))
            .exec_with_returning(&self.connection)
            .await?;
        // Read from the same statement: the epoch must be this owner's, not a later one's.
        claimed.into_iter().next().map(ImportRecord::read).transpose()
    }

    /// Renews the lease. `None`: it is lost. `Some`: the state, which somebody else may have changed (`cancelling`).
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn renew(&self, id: ImportId, epoch: Epoch) -> Result<Option<ImportState>, DatabaseError> {
        let _turn = self.turn().await;
        let renewed = self
            .owned(id, epoch)
            .col_expr(Column::LeaseUntilMs, self.lease_end())
            .exec_with_returning(&self.connection)
            .await?;
        renewed.into_iter().next().map(|row| ImportRecord::read(row).map(|record| record.state)).transpose()
    }

    /// Lets the lease go at once, so that the next node need not wait for it to run out.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn release(&self, id: ImportId, epoch: Epoch) -> Result<(), DatabaseError> {
        let _turn = self.turn().await;
        self.owned(id, epoch).col_expr(Column::LeaseUntilMs, Expr::value(0_i64)).exec(&self.connection).await?;
        Ok(())
    }

    /// Makes every lease and every claim run out. Only for a database that one process owns alone, at its start: whoever held
    /// them is gone, and waiting would only cost time.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn release_all(&self) -> Result<(), DatabaseError> {
        let _turn = self.turn().await;
        Entity::update_many()
            .col_expr(Column::LeaseUntilMs, Expr::value(1_i64))
            .filter(Column::LeaseUntilMs.gt(0))
            .exec(&self.connection)
            .await?;
        super::chunks::release_all(&self.connection).await
    }

    /// A change of state by the owner: one compare-and-set on state and epoch. `false`: the state was another one, or the
    /// lease is lost.
    ///
    /// # Errors
    /// [`DatabaseError`]; [`DatabaseError::Corrupt`] where the contract knows no such change.
    pub async fn change(
        &self,
        id: ImportId,
        epoch: Epoch,
        from: ImportState,
        change: &Change,
    ) -> Result<bool, DatabaseError> {
        let to = from.transition(change.to()).map_err(|error| DatabaseError::corrupt("change", error))?;
        let mut update = self
            .owned(id, epoch)
            .filter(Column::State.eq(from.as_str()))
            .col_expr(Column::State, Expr::value(to.as_str()))
            .col_expr(Column::Version, Expr::col(Column::Version).add(1));
        if to.is_done() {
            update = update
                .col_expr(Column::FinishedMs, self.now_ms())
                .col_expr(Column::LeaseUntilMs, Expr::value(0_i64))
                .col_expr(Column::EtaSeconds, Expr::value(None::<f64>));
        }
        update = match change {
            Change::Plan => clear_counters(update).col_expr(Column::StartedMs, self.now_ms()),
            Change::Restart { widened } => clear_counters(update)
                .col_expr(Column::Attempt, Expr::col(Column::Attempt).add(1))
                .col_expr(Column::Error, Expr::value(None::<String>))
                .col_expr(Column::Widened, Expr::value(write_json("widened", widened)?)),
            Change::Succeed { rows_loaded, rows_rejected } => update
                .col_expr(Column::RowsRead, Expr::value(signed(rows_loaded + rows_rejected)))
                .col_expr(Column::RowsRejected, Expr::value(signed(*rows_rejected)))
                .col_expr(Column::BytesDone, Expr::col(Column::Size))
                .col_expr(Column::ChunksDone, Expr::col(Column::ChunksTotal)),
            Change::Run | Change::Publish | Change::Fail | Change::Cancel => update,
        };
        let _turn = self.turn().await;
        Ok(update.exec(&self.connection).await?.rows_affected == 1)
    }

    /// Stores the plan of this attempt while it is being planned. One that versions before this would read otherwise is
    /// stored where they do not look: for them the import has no plan, and their workers leave its chunks alone.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn store_plan(&self, id: ImportId, epoch: Epoch, plan: &LoadPlan) -> Result<bool, DatabaseError> {
        let column = if plan.is_of_first_version() { Column::Plan } else { Column::PlanV2 };
        let update = self
            .owned(id, epoch)
            .filter(Column::State.eq(ImportState::Planning.as_str()))
            .col_expr(column, Expr::value(write_json("plan", plan)?))
            .col_expr(Column::Version, Expr::col(Column::Version).add(1));
        let _turn = self.turn().await;
        Ok(update.exec(&self.connection).await?.rows_affected == 1)
    }

    /// Stores why the import will fail, before the destination is told, so that a next owner goes on with it. Only in one of
    /// `states` and in that attempt: a worker that is late must not fail what came after it. `false`: it was neither.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn store_error(
        &self,
        id: ImportId,
        attempt: Attempt,
        epoch: Epoch,
        states: &[ImportState],
        problem: &Problem,
    ) -> Result<bool, DatabaseError> {
        let update = self
            .owned(id, epoch)
            .filter(Column::Attempt.eq(number(attempt.0)))
            .filter(Column::State.is_in(states.iter().map(|state| state.as_str())))
            .col_expr(Column::Error, Expr::value(write_json("error", problem)?))
            .col_expr(Column::Version, Expr::col(Column::Version).add(1));
        let _turn = self.turn().await;
        Ok(update.exec(&self.connection).await?.rows_affected == 1)
    }

    /// Persists the counters of an attempt. They never go back within it: the caller folds committed chunks only. An answer
    /// that came late may not bring back those of the attempt before, which the same owner counted under the same epoch.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn store_progress(
        &self,
        id: ImportId,
        attempt: Attempt,
        epoch: Epoch,
        progress: &Progress,
    ) -> Result<bool, DatabaseError> {
        let update = self
            .owned(id, epoch)
            .filter(Column::Attempt.eq(number(attempt.0)))
            .filter(Column::State.is_in([ImportState::Running.as_str(), ImportState::Publishing.as_str()]))
            .col_expr(Column::BytesDone, Expr::value(signed(progress.bytes_done)))
            .col_expr(Column::RowsRead, Expr::value(signed(progress.rows_read)))
            .col_expr(Column::RowsRejected, Expr::value(signed(progress.rows_rejected)))
            .col_expr(Column::ChunksDone, Expr::value(signed(progress.chunks_done)))
            .col_expr(Column::RowsPerSecond, Expr::value(progress.rows_per_second))
            .col_expr(Column::EtaSeconds, Expr::value(progress.eta_seconds))
            .col_expr(Column::Version, Expr::col(Column::Version).add(1));
        let _turn = self.turn().await;
        Ok(update.exec(&self.connection).await?.rows_affected == 1)
    }

    /// An update that only the owner of that epoch can make.
    pub(super) fn owned(&self, id: ImportId, epoch: Epoch) -> UpdateMany<Entity> {
        Entity::update_many().filter(Column::Id.eq(id.0)).filter(Column::Epoch.eq(epoch.0))
    }

    /// The end of a lease that begins now.
    pub(super) fn lease_end(&self) -> sea_orm::sea_query::SimpleExpr {
        self.now_ms().add(signed(LEASE.as_millis() as u64))
    }
}

pub(super) fn clear_counters(update: UpdateMany<Entity>) -> UpdateMany<Entity> {
    let zeroed = [Column::BytesDone, Column::RowsRead, Column::RowsRejected, Column::ChunksTotal, Column::ChunksDone];
    zeroed
        .into_iter()
        .fold(update, |update, column| update.col_expr(column, Expr::value(0_i64)))
        .col_expr(Column::ScanDone, Expr::value(false))
        .col_expr(Column::Plan, Expr::value(None::<String>))
        .col_expr(Column::PlanV2, Expr::value(None::<String>))
        .col_expr(Column::RowsPerSecond, Expr::value(None::<f64>))
        .col_expr(Column::EtaSeconds, Expr::value(None::<f64>))
}
