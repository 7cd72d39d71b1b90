//! Which migrations this version knows, for `longshore doctor`: it compares them with those that a database had.

/// The tables that keep which migrations were applied, each with its column of names.
pub const MIGRATION_RECORDS: [(&str, &str); 2] = [("longshore_migrations", "version"), ("longshore_schema", "step")];

/// The names of all migrations that this version brings, in order.
#[must_use]
pub fn known_migrations() -> Vec<String> {
    super::schema::names()
}
