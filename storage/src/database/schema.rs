//! Migrations of the control tables. Only ever add: an older version may run, and start, beside a newer one
//! (`docs/upgrades.md`).
//!
//! sea-orm's own migrator refuses to start where the database knows a migration that the program does not: a node of the
//! older version that is started again during an upgrade would never come up. So the migrator's table keeps the first
//! migration only, and every later step is applied and recorded here, in `longshore_schema`, where unknown steps are
//! passed over.

use sea_orm::sea_query::{Alias, ColumnDef, Expr, ExprTrait, Index, IntoIden, Query, Table};
use sea_orm::{ConnectionTrait, DatabaseTransaction};
use sea_orm_migration::prelude::{DbErr, MigrationName, MigrationTrait, MigratorTrait, SchemaManager};
use sea_orm_migration::sea_orm::DynIden;

/// Where steps behind the first are recorded.
const RECORD: &str = "longshore_schema";

/// The steps behind the first migration, in order. Each adds, and what it adds an older version can leave out.
fn steps() -> Vec<Box<dyn MigrationTrait>> {
    vec![Box::new(M0002Clients), Box::new(M0003DecodedText), Box::new(M0004PlanningDeaths)]
}

/// The names of the first migration and of all steps behind it, in order.
pub fn names() -> Vec<String> {
    let first = Migrator::migrations();
    first.iter().chain(&steps()).map(|step| step.name().to_owned()).collect()
}

/// Applies what is missing, in the caller's transaction and under its lock.
///
/// # Errors
/// What the database says.
pub async fn migrate(transaction: &DatabaseTransaction) -> Result<(), DbErr> {
    Migrator::up(transaction, None).await?;
    let record = Table::create()
        .table(Alias::new(RECORD))
        .if_not_exists()
        .col(column("step").text().not_null().primary_key())
        .to_owned();
    transaction.execute(&record).await?;
    for step in steps() {
        let known = Query::select()
            .column(Alias::new("step"))
            .from(Alias::new(RECORD))
            .and_where(Expr::col(Alias::new("step")).eq(step.name()))
            .to_owned();
        if transaction.query_one(&known).await?.is_some() {
            continue;
        }
        step.up(&SchemaManager::new(transaction)).await?;
        let applied = Query::insert()
            .into_table(Alias::new(RECORD))
            .columns([Alias::new("step")])
            .values_panic([step.name().into()])
            .to_owned();
        transaction.execute(&applied).await?;
        tracing::info!(step = step.name(), "the control database was migrated");
    }
    Ok(())
}

/// The first migration.
struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(M0001Spine)]
    }

    fn migration_table_name() -> DynIden {
        Alias::new("longshore_migrations").into_iden()
    }
}

/// Imports and chunks.
struct M0001Spine;

fn column(name: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(name))
}

impl MigrationName for M0001Spine {
    fn name(&self) -> &str {
        "m0001_spine"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0001Spine {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let imports = Alias::new("longshore_imports");
        manager
            .create_table(
                Table::create()
                    .table(imports.clone())
                    .if_not_exists()
                    .col(column("id").uuid().not_null().primary_key())
                    .col(column("version").big_integer().not_null())
                    .col(column("state").text().not_null())
                    .col(column("attempt").integer().not_null())
                    .col(column("epoch").big_integer().not_null())
                    .col(column("lease_owner").text())
                    .col(column("lease_until_ms").big_integer().not_null())
                    .col(column("trigger").text())
                    .col(column("request").text().not_null())
                    .col(column("table_name").text().not_null())
                    .col(column("object_key").text().not_null())
                    .col(column("url_expires_ms").big_integer().not_null())
                    .col(column("created_ms").big_integer().not_null())
                    .col(column("uploaded_ms").big_integer())
                    .col(column("started_ms").big_integer())
                    .col(column("finished_ms").big_integer())
                    .col(column("size").big_integer())
                    .col(column("etag").text())
                    .col(column("plan").text())
                    .col(column("widened").text())
                    .col(column("scan_done").boolean().not_null())
                    .col(column("error").text())
                    .col(column("bytes_done").big_integer().not_null())
                    .col(column("rows_read").big_integer().not_null())
                    .col(column("rows_rejected").big_integer().not_null())
                    .col(column("chunks_total").big_integer().not_null())
                    .col(column("chunks_done").big_integer().not_null())
                    .col(column("rows_per_second").double())
                    .col(column("eta_seconds").double())
                    .to_owned(),
            )
            .await?;
        manager
            .create_index(
                Index::create()
                    .name("longshore_imports_by_state")
                    .table(imports)
                    .if_not_exists()
                    .col(Alias::new("state"))
                    .col(Alias::new("id"))
                    .to_owned(),
            )
            .await?;
        manager
            .create_table(
                Table::create()
                    .table(Alias::new("longshore_chunks"))
                    .if_not_exists()
                    .col(column("import_id").uuid().not_null())
                    .col(column("attempt").integer().not_null())
                    .col(column("chunk").integer().not_null())
                    .col(column("start_byte").big_integer().not_null())
                    .col(column("end_byte").big_integer().not_null())
                    .col(column("first_row").big_integer().not_null())
                    .col(column("first_line").big_integer().not_null())
                    .col(column("next_line").big_integer().not_null())
                    .col(column("row_count").big_integer().not_null())
                    .col(column("oversized").boolean().not_null())
                    .col(column("state").text().not_null())
                    .col(column("rows_rejected").big_integer().not_null())
                    .col(column("worker").text())
                    .col(column("claims").integer().not_null())
                    .col(column("claim_until_ms").big_integer().not_null())
                    .primary_key(
                        Index::create()
                            .col(Alias::new("import_id"))
                            .col(Alias::new("attempt"))
                            .col(Alias::new("chunk")),
                    )
                    .to_owned(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["longshore_chunks", "longshore_imports"] {
            manager.drop_table(Table::drop().table(Alias::new(table)).if_exists().to_owned()).await?;
        }
        Ok(())
    }
}

/// What clients ask for behind a create: idempotency keys, retries, listings of one table.
struct M0002Clients;

impl MigrationName for M0002Clients {
    fn name(&self) -> &str {
        "m0002_clients"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0002Clients {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let imports = Alias::new("longshore_imports");
        // Nullable: the version before inserts rows without it.
        let retried =
            Table::alter().table(imports.clone()).add_column(column("retried_attempt").integer().null()).to_owned();
        manager.alter_table(retried).await?;
        let by_table = Index::create()
            .name("longshore_imports_by_table")
            .table(imports)
            .if_not_exists()
            .col(Alias::new("table_name"))
            .col(Alias::new("id"))
            .to_owned();
        manager.create_index(by_table).await?;
        let keys = Table::create()
            .table(Alias::new("longshore_idempotency_keys"))
            .if_not_exists()
            .col(column("key").text().not_null().primary_key())
            .col(column("import_id").uuid().not_null())
            .col(column("fingerprint").text().not_null())
            .to_owned();
        manager.create_table(keys).await
    }
}

/// Text that is not the object's own bytes: where chunks read it, and plans that older versions must not work from.
struct M0003DecodedText;

impl MigrationName for M0003DecodedText {
    fn name(&self) -> &str {
        "m0003_decoded_text"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0003DecodedText {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let add =
            |table: &str, column: ColumnDef| Table::alter().table(Alias::new(table)).add_column(column).to_owned();
        manager.alter_table(add("longshore_imports", column("plan_v2").text().null().take())).await?;
        for new in [
            column("object_bytes").big_integer().null().take(),
            column("text_key").text().null().take(),
            column("text_etag").text().null().take(),
            column("text_offset").big_integer().null().take(),
            column("text_length").big_integer().null().take(),
        ] {
            manager.alter_table(add("longshore_chunks", new)).await?;
        }
        let parts = Table::create()
            .table(Alias::new("longshore_text_parts"))
            .if_not_exists()
            .col(column("import_id").uuid().not_null())
            .col(column("attempt").integer().not_null())
            .col(column("epoch").big_integer().not_null())
            .col(column("part").integer().not_null())
            .primary_key(
                Index::create()
                    .col(Alias::new("import_id"))
                    .col(Alias::new("attempt"))
                    .col(Alias::new("epoch"))
                    .col(Alias::new("part")),
            )
            .to_owned();
        manager.create_table(parts).await
    }
}

/// How many owners an import has cost before it had a plan.
struct M0004PlanningDeaths;

impl MigrationName for M0004PlanningDeaths {
    fn name(&self) -> &str {
        "m0004_planning_deaths"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for M0004PlanningDeaths {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let deaths = column("planning_deaths").integer().null().take();
        manager.alter_table(Table::alter().table(Alias::new("longshore_imports")).add_column(deaths).to_owned()).await
    }
}
