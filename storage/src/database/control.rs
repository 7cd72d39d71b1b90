//! What the actors ask of the control database, as a trait: so that the protocol can be run over a simulated one
//! (`actors/tests/simulation`), step by step. Each call is one statement or transaction; what it does stands at [`Database`].

use async_trait::async_trait;

use longshore_domain::{Attempt, ChunkIndex, Epoch, ImportId, ImportState, LoadPlan, Problem, Progress, Trigger};
use longshore_parse::Widening;

use super::{
    AwaitingImport, Change, ChunkClaim, ChunkRecord, Database, DatabaseError, ImportRecord, NewChunk, OpenChunk,
    Started, TextPart,
};
use crate::bus::ChunkJob;

/// The trait, and [`Database`]'s implementation by its own methods of the same names.
macro_rules! control {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)+) => {
        /// The control database, as the actors know it.
        #[async_trait]
        pub trait Control: Send + Sync {
            $(
                #[doc = concat!("[`Database::", stringify!($name), "`]")]
                async fn $name(&self, $($argument: $kind),*) -> Result<$answer, DatabaseError>;
            )+
        }

        #[async_trait]
        impl Control for Database {
            $(
                async fn $name(&self, $($argument: $kind),*) -> Result<$answer, DatabaseError> {
                    Self::$name(self, $($argument),*).await
                }
            )+
        }
    };
}

control! {
    import(id: ImportId) -> Option<ImportRecord>;
    start(id: ImportId, trigger: Trigger, size: u64, etag: &str) -> Started;
    newest_awaiting() -> Option<ImportId>;
    awaiting(after: Option<ImportId>, last: Option<ImportId>, limit: u64) -> Vec<AwaitingImport>;
    ownerless(limit: u64) -> Vec<ImportId>;
    expire(id: ImportId, grace_ms: i64) -> bool;

    claim(id: ImportId, owner: &str) -> Option<ImportRecord>;
    renew(id: ImportId, epoch: Epoch) -> Option<ImportState>;
    release(id: ImportId, epoch: Epoch) -> ();
    change(id: ImportId, epoch: Epoch, from: ImportState, change: &Change) -> bool;
    store_plan(id: ImportId, epoch: Epoch, plan: &LoadPlan) -> bool;
    store_error(id: ImportId, attempt: Attempt, epoch: Epoch, states: &[ImportState], problem: &Problem) -> bool;
    store_progress(id: ImportId, attempt: Attempt, epoch: Epoch, progress: &Progress) -> bool;

    store_chunks(id: ImportId, attempt: Attempt, epoch: Epoch, new: &[NewChunk], scan_done: bool) -> bool;
    chunks(id: ImportId, attempt: Attempt, from: ChunkIndex, limit: u64) -> Vec<ChunkRecord>;
    open_chunks(id: ImportId, attempt: Attempt, from: ChunkIndex, limit: u64) -> Vec<OpenChunk>;
    free_chunks(id: ImportId, attempt: Attempt) -> ();
    claim_chunk(job: &ChunkJob, worker: &str) -> ChunkClaim;
    keep_chunk(job: &ChunkJob, worker: &str, claims: u32) -> bool;
    release_chunk(job: &ChunkJob, worker: &str, claims: u32) -> ();
    widen(id: ImportId, attempt: Attempt, epoch: Epoch, widenings: &[Widening]) -> bool;
    finish_chunk(id: ImportId, attempt: Attempt, chunk: ChunkIndex, rejected: u64) -> bool;
    rejected(id: ImportId, attempt: Attempt) -> u64;

    announce_text_part(part: TextPart) -> bool;
    stale_text_parts(import: Option<ImportId>, limit: u64) -> Vec<TextPart>;
    forget_text_part(part: TextPart) -> ();
}
