//! Parts of decoded text: objects of our own that chunks of packed or transcoded files are read from. Every part is recorded
//! before it is put, so that whatever a crash leaves behind is known here, and removed by [`Database::stale_text_parts`]'s
//! caller once its attempt is over.

use sea_orm::sea_query::{Expr, ExprTrait, OnConflict};
use sea_orm::{ActiveValue, ColumnTrait, EntityTrait, JoinType, QueryFilter, QuerySelect, RelationTrait};

use longshore_domain::{Attempt, Epoch, ImportId, ImportState};

use super::entity::{imports, text_parts};
use super::{Database, DatabaseError, number};

/// A part of an import's decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextPart {
    /// Of which import.
    pub import: ImportId,
    /// Of which attempt.
    pub attempt: Attempt,
    /// By which owner.
    pub epoch: Epoch,
    /// From 0.
    pub part: u32,
}

impl Database {
    /// Records that a part will be put, if the epoch still owns this attempt.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn announce_text_part(&self, part: TextPart) -> Result<bool, DatabaseError> {
        let _turn = self.turn().await;
        self.connection.answered(self.record_text_part(part)).await
    }

    async fn record_text_part(&self, part: TextPart) -> Result<bool, DatabaseError> {
        let transaction = self.connection.begin().await?;
        // Changes nothing, and holds the row until the part is recorded.
        let owned = self
            .owned(part.import, part.epoch)
            .filter(imports::Column::Attempt.eq(number(part.attempt.0)))
            .filter(imports::Column::State.is_in([ImportState::Planning.as_str(), ImportState::Running.as_str()]))
            .col_expr(imports::Column::Epoch, Expr::col(imports::Column::Epoch));
        if owned.exec(&transaction).await?.rows_affected == 0 {
            transaction.rollback().await?;
            return Ok(false);
        }
        let row = text_parts::ActiveModel {
            import_id: ActiveValue::Set(part.import.0),
            attempt: ActiveValue::Set(number(part.attempt.0)),
            epoch: ActiveValue::Set(part.epoch.0),
            part: ActiveValue::Set(number(part.part)),
        };
        let known = [
            text_parts::Column::ImportId,
            text_parts::Column::Attempt,
            text_parts::Column::Epoch,
            text_parts::Column::Part,
        ];
        text_parts::Entity::insert(row)
            .on_conflict(OnConflict::columns(known).do_nothing().to_owned())
            .exec_without_returning(&transaction)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Parts whose import is done or in a later attempt, at most `limit`; of one import only, where it is given.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn stale_text_parts(&self, import: Option<ImportId>, limit: u64) -> Result<Vec<TextPart>, DatabaseError> {
        let done = ImportState::ALL.into_iter().filter(|state| state.is_done()).map(ImportState::as_str);
        let later = Expr::col((imports::Entity, imports::Column::Attempt))
            .gt(Expr::col((text_parts::Entity, text_parts::Column::Attempt)));
        let mut query = text_parts::Entity::find()
            .join(JoinType::InnerJoin, text_parts::Relation::Import.def())
            .filter(imports::Column::State.is_in(done).or(later))
            .limit(limit);
        if let Some(import) = import {
            query = query.filter(text_parts::Column::ImportId.eq(import.0));
        }
        let rows = query.all(&self.connection).await?;
        let part = |row: text_parts::Model| TextPart {
            import: ImportId(row.import_id),
            attempt: Attempt(u32::try_from(row.attempt).unwrap_or(0)),
            epoch: Epoch(row.epoch),
            part: u32::try_from(row.part).unwrap_or(0),
        };
        Ok(rows.into_iter().map(part).collect())
    }

    /// A part was removed.
    ///
    /// # Errors
    /// [`DatabaseError`]
    pub async fn forget_text_part(&self, part: TextPart) -> Result<(), DatabaseError> {
        let _turn = self.turn().await;
        let key = (part.import.0, number(part.attempt.0), part.epoch.0, number(part.part));
        text_parts::Entity::delete_by_id(key).exec(&self.connection).await?;
        Ok(())
    }
}
