//! Migrations of the control tables. Only ever add: an older version may run beside a newer one.

use sea_orm::sea_query::{Alias, ColumnDef, Index, IntoIden, Table};
use sea_orm_migration::prelude::{DbErr, MigrationName, MigrationTrait, MigratorTrait, SchemaManager};
use sea_orm_migration::sea_orm::DynIden;

/// All migrations, in order.
pub struct Migrator;

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
