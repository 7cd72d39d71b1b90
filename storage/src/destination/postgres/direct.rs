//! A publish of rows that wait in the object: by COPY straight into the table, in the transaction of the marker. One row that
//! the table refuses ends it, and the publish stages the attempt after all (`docs/decisions.md`, "An existing table is written
//! once").

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;

use longshore_domain::LoadPlan;

use super::describe;
use super::publish::Fault;
use super::session::{Session, failure};
use super::{staging, write};
use crate::destination::encode::{Encoder, Shape};
use crate::destination::shape::read_checked;
use crate::destination::{ChunkRows, ChunkSource, DestinationError, cells, sql};

/// Types are the table's own, and nothing has to be found by its number.
const SHAPE: Shape = Shape { text: false, numbered: false };
/// Chunks, or runs of small ones, in one COPY. The server says what it refuses at the end of one only, so that many would be
/// sent in vain; and each costs a round trip or two.
const CHUNKS_AT_ONCE: usize = 16;

/// What became of the rows.
pub(super) enum Direct {
    /// All of them are in the table.
    Loaded(u64),
    /// None is: a row was refused, or COPY may not take them.
    Refused(Fault),
}

/// Copies all rows of the import, all or nothing.
pub(super) async fn copy(
    session: &mut Session,
    plan: &LoadPlan,
    source: &dyn ChunkSource,
) -> Result<Direct, DestinationError> {
    let table = describe::quoted(&plan.table)?;
    let statement = format!("COPY {table} ({}) FROM STDIN (FORMAT binary)", sql::column_list(plan)?);
    // Looks at what the role may do, locks the table as an INSERT does, and does nothing: its columns stay as they are.
    session.run(format!("EXPLAIN {}", staging::insert_of_nulls(plan)?)).await.map_err(failure)?;
    if !staging::existing(session.connection(), plan).await?.takes_binary(plan) {
        return Ok(Direct::Refused(Fault::other("its columns are not as they were when it was planned".to_owned())));
    }
    // A trigger for each statement would see more than one.
    let watched: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass($1) AND NOT tgisinternal)",
    )
    .bind(&table)
    .fetch_one(session.connection())
    .await
    .map_err(failure)?;
    let at_once = if watched { usize::MAX } else { CHUNKS_AT_ONCE };
    // Deferred constraints would speak only at COMMIT, where no row can be named.
    session.run("SET CONSTRAINTS ALL IMMEDIATE; SAVEPOINT longshore_direct").await.map_err(failure)?;
    let (mut chunks, mut loaded) = (source.chunks(), 0);
    loop {
        match some(session, &statement, plan.fields.len(), &mut chunks, at_once).await? {
            Ok((copied, true)) => {
                session.run("RELEASE SAVEPOINT longshore_direct").await.map_err(failure)?;
                return Ok(Direct::Loaded(loaded + copied));
            }
            Ok((copied, false)) => loaded += copied,
            Err(fault) => {
                session
                    .run("ROLLBACK TO SAVEPOINT longshore_direct; RELEASE SAVEPOINT longshore_direct")
                    .await
                    .map_err(failure)?;
                return Ok(Direct::Refused(fault));
            }
        }
    }
}

/// One COPY of the next chunks: how many rows, and whether they were the last.
async fn some(
    session: &mut Session,
    statement: &str,
    fields: usize,
    chunks: &mut BoxStream<'_, Result<Arc<dyn ChunkRows>, DestinationError>>,
    at_once: usize,
) -> Result<Result<(u64, bool), Fault>, DestinationError> {
    // One waits while one is read and the next one fetched.
    let (hand_over, mut handed) = mpsc::channel::<Arc<dyn ChunkRows>>(1);
    let feed = async move {
        for _ in 0..at_once {
            let Some(rows) = chunks.next().await else { return Ok(true) };
            // Who does not take it any more has a reason, and says so.
            if hand_over.send(rows?).await.is_err() {
                break;
            }
        }
        Ok::<_, DestinationError>(false)
    };
    let make = move |sink: &mut dyn FnMut(Vec<u8>) -> bool| {
        let (mut encoder, mut good) = (Encoder::new(SHAPE, sink), 0);
        while let Some(rows) = handed.blocking_recv() {
            let read = read_checked(&*rows, fields, &mut |mut batch| {
                cells::rechunk(&mut batch);
                good += batch.rows as u64;
                encoder.rows(&batch, 0..batch.rows)
            });
            // Whoever says stop is the connection, and that has failed.
            let Some(read) = read else { return Ok(None) };
            read?;
        }
        encoder.finish();
        Ok::<_, DestinationError>(Some(good))
    };
    let (sent, fed) = tokio::join!(write::send(session, statement, make), feed);
    // Where chunks are missing, the COPY may have ended well without them.
    let last = fed?;
    let error = match sent {
        Ok(sent) => {
            let (copied, good) = sent?;
            return match good? {
                Some(good) if good == copied => Ok(Ok((copied, last))),
                Some(_) => Ok(Err(Fault::passed_over())),
                None => Err(DestinationError::Unavailable { reason: "the COPY ended before its rows".to_owned() }),
            };
        }
        Err(error) => error,
    };
    if let Some(fault) = write::row_fault(&error) {
        return Ok(Err(Fault::of(fault)));
    }
    match failure(error) {
        // What COPY may not do, INSERT may; where it may not either, that says why.
        DestinationError::Refused(problem) => Ok(Err(Fault::other(problem.detail))),
        other => Err(other),
    }
}
