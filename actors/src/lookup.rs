//! Raw records of rows that the destination refused, found in the object by their numbers.

use async_trait::async_trait;

use longshore_domain::{LineNumber, LoadPlan, RowNumber};
use longshore_parse::{ChunkInput, find_records};
use longshore_storage::database::{ChunkRecord, ImportRecord};
use longshore_storage::destination::{DestinationError, RecordLookup};
use longshore_storage::objects::ObjectError;
use longshore_telemetry::metrics;

use crate::chunk::{object_problem, place_of};
use crate::services::Services;

/// Looks rows up in the import's object, chunk by chunk.
pub struct ObjectLookup {
    services: Services,
    key: String,
    etag: String,
    plan: LoadPlan,
    chunks: Vec<ChunkRecord>,
}

impl ObjectLookup {
    /// A lookup over the chunks of an attempt, in order.
    #[must_use]
    pub fn new(services: &Services, record: &ImportRecord, plan: LoadPlan, chunks: Vec<ChunkRecord>) -> Self {
        Self {
            services: services.clone(),
            key: record.object_key.clone(),
            etag: record.etag.clone().unwrap_or_default(),
            plan,
            chunks,
        }
    }
}

#[async_trait]
impl RecordLookup for ObjectLookup {
    async fn find(&self, rows: &[RowNumber]) -> Result<Vec<(RowNumber, LineNumber, Vec<u8>)>, DestinationError> {
        let mut rows = rows.to_vec();
        rows.sort_unstable();
        let mut found = Vec::with_capacity(rows.len());
        let mut rest = rows.as_slice();
        for chunk in &self.chunks {
            let behind = chunk.planned.first_row.0 + chunk.planned.rows;
            let (here, later) = rest.split_at(rest.partition_point(|row| row.0 < behind));
            rest = later;
            if here.is_empty() {
                continue;
            }
            // Called inside the publish's transaction: no patience here, the owner tries the whole publish again.
            let (key, range, etag) = place_of(&chunk.planned, &self.key, &self.etag);
            let bytes = self.services.objects.get_range(key, range, etag).await.map_err(|error| match error {
                ObjectError::Missing { .. } | ObjectError::Changed { .. } if chunk.planned.text.is_some() => {
                    DestinationError::StagingLost { reason: error.to_string() }
                }
                ObjectError::Missing { .. } | ObjectError::Changed { .. } => {
                    DestinationError::Refused(object_problem(&error))
                }
                error => DestinationError::Unavailable { reason: error.to_string() },
            })?;
            metrics().bytes_fetched(bytes.len() as u64);
            let input = ChunkInput {
                bytes: &bytes,
                start: chunk.planned.range.start,
                first_row: chunk.planned.first_row,
                first_line: chunk.planned.first_line,
            };
            found.extend(find_records(&self.plan, input, here));
        }
        Ok(found)
    }
}
