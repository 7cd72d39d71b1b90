//! Identifiers, quoted: the one place (invariant 13). Everything else that a statement needs is bound or a constant.

use longshore_domain::table::MAX_IDENTIFIER;
use longshore_domain::{Attempt, ImportId, LoadPlan, Problem, ProblemKind};

use super::DestinationError;

/// The prefix of staging tables.
const STAGING_PREFIX: &str = "longshore_staging_";

/// An identifier in double quotes, as PostgreSQL and SQLite both read it.
///
/// # Errors
/// A name that neither database can have: empty, or with a NUL (the statement would end there).
pub(super) fn identifier(name: &str) -> Result<String, DestinationError> {
    if name.is_empty() || name.contains('\0') {
        return Err(refused(format!("{name:?} cannot be the name of a column or table")));
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

/// PostgreSQL cuts longer names silently, so that two could become one.
pub(super) fn check_lengths(plan: &LoadPlan) -> Result<(), DestinationError> {
    match plan.fields.iter().find(|field| field.name.len() > MAX_IDENTIFIER) {
        Some(field) => Err(refused(format!(
            "the column name '{}' is longer than {MAX_IDENTIFIER} bytes: give the column a shorter one in 'columns'",
            field.name
        ))),
        None => Ok(()),
    }
}

/// `"schema"."name"`.
pub(super) fn qualified(schema: &str, name: &str) -> Result<String, DestinationError> {
    Ok(format!("{}.{}", identifier(schema)?, identifier(name)?))
}

/// The columns of a plan, quoted and separated by commas.
pub(super) fn column_list(plan: &LoadPlan) -> Result<String, DestinationError> {
    let names: Result<Vec<_>, _> = plan.fields.iter().map(|field| identifier(&field.name)).collect();
    Ok(names?.join(", "))
}

/// The name of an attempt's staging table: 18 + 32 + 1 + at most 10 of 63 bytes.
pub(super) fn staging_name(import: ImportId, attempt: Attempt) -> String {
    format!("{}{attempt}", staging_prefix(import))
}

/// What the names of an import's staging tables begin with.
pub(super) fn staging_prefix(import: ImportId) -> String {
    format!("{STAGING_PREFIX}{}_", import.0.simple())
}

/// The column that holds a staged row's number, beside the columns of an existing table.
pub(super) fn row_column(plan: &LoadPlan) -> String {
    let mut name = "longshore_row".to_owned();
    while plan.fields.iter().any(|field| field.name.eq_ignore_ascii_case(&name)) {
        name.push('_');
    }
    name
}

/// The destination cannot take the import, and why.
pub(super) fn refused(detail: impl Into<String>) -> DestinationError {
    DestinationError::Refused(Problem::new(ProblemKind::DestinationMismatch, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_quoted_and_impossible_ones_refused() {
        assert_eq!(identifier("select").ok().as_deref(), Some("\"select\""));
        assert_eq!(identifier("a\"; drop table b --").ok().as_deref(), Some("\"a\"\"; drop table b --\""));
        assert!(identifier("").is_err());
        assert!(identifier("a\0b").is_err());
    }

    #[test]
    fn staging_names_fit_an_identifier() {
        let name = staging_name(ImportId::generate(), Attempt(u32::MAX));
        assert!(name.len() <= MAX_IDENTIFIER, "{name}");
    }
}
