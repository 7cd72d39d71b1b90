//! Which migrations this version knows, for `longshore doctor`: it compares them with those that a database had.

use sea_orm_migration::MigratorTrait as _;

use super::schema::Migrator;

/// The table that keeps which migrations were applied.
pub const MIGRATIONS_TABLE: &str = "longshore_migrations";
/// Its column with their names.
pub const MIGRATIONS_COLUMN: &str = "version";

/// The names of all migrations that this version brings, in order.
#[must_use]
pub fn known_migrations() -> Vec<String> {
    Migrator::migrations().iter().map(|migration| migration.name().to_owned()).collect()
}
