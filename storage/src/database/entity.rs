//! The control tables as sea-orm sees them. Times are milliseconds since 1970 by the database's clock, so that SQLite and
//! PostgreSQL compare them alike.

/// `longshore_imports`: one row an import.
pub mod imports {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "longshore_imports")]
    pub struct Model {
        /// UUIDv7.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        /// Grows with each change: the resource's ETag.
        pub version: i64,
        /// The state's word.
        pub state: String,
        /// From 1.
        pub attempt: i32,
        /// Grows with each owner.
        pub epoch: i64,
        /// The node that holds the lease.
        pub lease_owner: Option<String>,
        /// When the lease runs out.
        pub lease_until_ms: i64,
        /// The trigger's word.
        pub trigger: Option<String>,
        /// The create request as JSON.
        pub request: String,
        /// The destination table as the request names it.
        pub table_name: String,
        /// The object's key.
        pub object_key: String,
        /// When the last URL ends.
        pub url_expires_ms: i64,
        /// When it was asked for.
        pub created_ms: i64,
        /// When the object was seen.
        pub uploaded_ms: Option<i64>,
        /// When this attempt's planning began.
        pub started_ms: Option<i64>,
        /// When it came to an end.
        pub finished_ms: Option<i64>,
        /// The object's size.
        pub size: Option<i64>,
        /// The object's ETag.
        pub etag: Option<String>,
        /// The load plan as JSON.
        pub plan: Option<String>,
        /// Column types that an earlier attempt found too narrow, as JSON: column name to type.
        pub widened: Option<String>,
        /// Whether the scan reached the object's end.
        pub scan_done: bool,
        /// Why it fails or failed, as JSON; set before the destination is told.
        pub error: Option<String>,
        /// Bytes in committed chunks.
        pub bytes_done: i64,
        /// Records in committed chunks.
        pub rows_read: i64,
        /// Of these, rejected.
        pub rows_rejected: i64,
        /// Chunks stored.
        pub chunks_total: i64,
        /// Chunks committed.
        pub chunks_done: i64,
        /// Rows a second.
        pub rows_per_second: Option<f64>,
        /// Seconds to go.
        pub eta_seconds: Option<f64>,
        /// The attempt that the last retry began.
        pub retried_attempt: Option<i32>,
        /// The load plan as JSON, where versions that only know `plan` must not work from it.
        pub plan_v2: Option<String>,
        /// Owners in a row whose lease ran out before there was a plan.
        pub planning_deaths: Option<i32>,
    }

    /// None.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// `longshore_text_parts`: one row an object of decoded text, from before it is put until it is removed.
pub mod text_parts {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "longshore_text_parts")]
    pub struct Model {
        /// Of which import.
        #[sea_orm(primary_key, auto_increment = false)]
        pub import_id: Uuid,
        /// Of which attempt.
        #[sea_orm(primary_key, auto_increment = false)]
        pub attempt: i32,
        /// By which owner.
        #[sea_orm(primary_key, auto_increment = false)]
        pub epoch: i64,
        /// From 0.
        #[sea_orm(primary_key, auto_increment = false)]
        pub part: i32,
    }

    /// To the import.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {
        /// Whose text it is.
        #[sea_orm(belongs_to = "super::imports::Entity", from = "Column::ImportId", to = "super::imports::Column::Id")]
        Import,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

/// `longshore_chunks`: one row a chunk of an attempt.
pub mod chunks {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "longshore_chunks")]
    pub struct Model {
        /// Of which import.
        #[sea_orm(primary_key, auto_increment = false)]
        pub import_id: Uuid,
        /// Of which attempt.
        #[sea_orm(primary_key, auto_increment = false)]
        pub attempt: i32,
        /// From 0.
        #[sea_orm(primary_key, auto_increment = false)]
        pub chunk: i32,
        /// The first byte.
        pub start_byte: i64,
        /// One past the last byte.
        pub end_byte: i64,
        /// The number of its first data record.
        pub first_row: i64,
        /// The physical line of its first byte that may begin a record.
        pub first_line: i64,
        /// The physical line at `end_byte`.
        pub next_line: i64,
        /// Data records in it.
        pub row_count: i64,
        /// Whether it is one record longer than a record may be.
        pub oversized: bool,
        /// The state's word.
        pub state: String,
        /// Records rejected, once it is done.
        pub rows_rejected: i64,
        /// The process that claimed it last.
        pub worker: Option<String>,
        /// How often it was claimed.
        pub claims: i32,
        /// When the claim runs out.
        pub claim_until_ms: i64,
        /// The object's bytes that it counts for, where they are not those from `start_byte` to `end_byte`.
        pub object_bytes: Option<i64>,
        /// The key of the decoded text that it is read from; none: the import's object.
        pub text_key: Option<String>,
        /// The ETag there.
        pub text_etag: Option<String>,
        /// Where it begins there.
        pub text_offset: Option<i64>,
        /// How much of it is there.
        pub text_length: Option<i64>,
    }

    /// None.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// `longshore_idempotency_keys`: which import a key belongs to.
pub mod idempotency_keys {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "longshore_idempotency_keys")]
    pub struct Model {
        /// As the client sent it.
        #[sea_orm(primary_key, auto_increment = false)]
        pub key: String,
        /// The import that was made under it.
        pub import_id: Uuid,
        /// Of the request that made it.
        pub fingerprint: String,
    }

    /// None.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}
