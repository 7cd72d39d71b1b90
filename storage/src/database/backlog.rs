//! What is not done yet, for the metrics: one statement over the index by state, which passes over everything that ended.

use std::time::Duration;

use sea_orm::sea_query::{Alias, Expr, ExprTrait, Func};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect};

use longshore_domain::ImportState;

use super::entity::imports::{Column, Entity};
use super::{Database, DatabaseError, unsigned};

/// The imports in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// The state.
    pub state: ImportState,
    /// How many.
    pub imports: u64,
    /// Since the oldest was uploaded, or was asked for where it awaits its file; by the database's clock.
    pub oldest: Duration,
    /// Chunks that were planned and are not counted as committed yet.
    pub chunks: u64,
    /// Bytes of started imports that are not counted as committed yet.
    pub bytes: u64,
}

impl Database {
    /// Imports that are not done, by state; states without any are left out.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn backlog(&self) -> Result<Vec<Backlog>, DatabaseError> {
        let living = ImportState::ALL.into_iter().filter(|state| !state.is_done()).map(ImportState::as_str);
        // PostgreSQL's sum of bigints is a numeric.
        let sum =
            |of: Expr| Func::cast_as(Func::coalesce([Func::sum(of).into(), Expr::value(0)]), Alias::new("bigint"));
        let since = Func::coalesce([Expr::col(Column::UploadedMs), Expr::col(Column::CreatedMs)]);
        let oldest = self.now_ms().sub(Func::min(since));
        let rows: Vec<(String, i64, i64, i64, i64)> = Entity::find()
            .select_only()
            .column(Column::State)
            .column_as(Column::Id.count(), "imports")
            .column_as(Expr::expr(Func::cast_as(oldest, Alias::new("bigint"))), "oldest_ms")
            .column_as(Expr::expr(sum(Expr::col(Column::ChunksTotal).sub(Expr::col(Column::ChunksDone)))), "chunks")
            .column_as(Expr::expr(sum(Expr::col(Column::Size).sub(Expr::col(Column::BytesDone)))), "bytes")
            .filter(Column::State.is_in(living))
            .group_by(Column::State)
            .into_tuple()
            .all(&self.connection)
            .await?;
        let read = |(state, imports, oldest, chunks, bytes): (String, i64, i64, i64, i64)| {
            Ok(Backlog {
                state: state.parse().map_err(|error| DatabaseError::corrupt("state", error))?,
                imports: unsigned(imports),
                oldest: Duration::from_millis(unsigned(oldest)),
                chunks: unsigned(chunks),
                bytes: unsigned(bytes),
            })
        };
        rows.into_iter().map(read).collect()
    }
}
