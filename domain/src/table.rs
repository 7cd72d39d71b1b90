//! Names of destination tables.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::column::ColumnType;

/// PostgreSQL cuts longer identifiers silently, so they are refused (`NAMEDATALEN - 1`), in bytes.
pub const MAX_IDENTIFIER: usize = 63;

/// The prefix of the service's own tables, in both databases.
pub const RESERVED_PREFIX: &str = "longshore_";

/// The name of a destination table, with its schema where one was given. Case is kept as it is written.
///
/// A part holds letters, digits, `_`, `$`, `-` and inner spaces; anything else stands in double quotes, doubled inside
/// (`sales."q1.2026"`), as in SQL.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TableName {
    schema: Option<String>,
    name: String,
}

/// Why a text is no table name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTableName {
    /// Nothing there, or nothing between two dots.
    #[error("a table name must not be empty")]
    Empty,
    /// More than `schema.table`.
    #[error("a table name has at most two parts: schema.table")]
    TooManyParts,
    /// Longer than the databases take.
    #[error("'{0}' is longer than 63 bytes")]
    TooLong(String),
    /// A character that needs double quotes, or can stand nowhere.
    #[error("the character {0:?} cannot stand in a table name without double quotes")]
    Character(char),
    /// A quoted part that never ends, or text behind its end.
    #[error("the double quotes in the table name do not match")]
    Quotes,
    /// A name that belongs to the service or the database.
    #[error("'{0}' is reserved")]
    Reserved(String),
}

impl TableName {
    /// A name from its parts.
    ///
    /// # Errors
    /// [`BadTableName`] where a part is empty, too long, reserved or holds a control character.
    pub fn from_parts(schema: Option<String>, name: String) -> Result<Self, BadTableName> {
        for part in schema.iter().chain([&name]) {
            if part.is_empty() {
                return Err(BadTableName::Empty);
            }
            if let Some(bad) = part.chars().find(|c| c.is_control()) {
                return Err(BadTableName::Character(bad));
            }
            if part.len() > MAX_IDENTIFIER {
                return Err(BadTableName::TooLong(part.clone()));
            }
        }
        let lower = name.to_ascii_lowercase();
        if lower.starts_with(RESERVED_PREFIX) || lower.starts_with("sqlite_") {
            return Err(BadTableName::Reserved(name));
        }
        if let Some(schema) = &schema {
            let lower = schema.to_ascii_lowercase();
            if lower.starts_with("pg_") || lower == "information_schema" {
                return Err(BadTableName::Reserved(schema.clone()));
            }
        }
        Ok(Self { schema, name })
    }

    /// The schema, where one was given.
    #[must_use]
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The table's own name, unquoted.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A destination table as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDescription {
    /// Its columns, in order.
    pub columns: Vec<TableColumn>,
}

/// A column of a destination table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableColumn {
    /// Its name, case kept.
    pub name: String,
    /// Its type; [`ColumnType::Native`] for those outside the contract's list.
    pub kind: ColumnType,
    /// Whether it takes nulls.
    pub nullable: bool,
    /// Whether a row that does not name it gets a value: a default, an identity.
    pub has_default: bool,
    /// Whether the database computes it, so that no import may name it.
    pub generated: bool,
    /// Whether the database holds any value in it (SQLite without STRICT), so that the file may refine the declared type.
    pub flexible: bool,
}

/// Whether a part can stand without double quotes.
fn is_plain(part: &str) -> bool {
    part.chars().all(is_plain_char) && part.trim() == part
}

fn is_plain_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$' | '-' | ' ')
}

impl FromStr for TableName {
    type Err = BadTableName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = Vec::new();
        let mut rest = text;
        loop {
            let (part, after) = match rest.strip_prefix('"') {
                Some(quoted) => read_quoted(quoted)?,
                None => read_plain(rest)?,
            };
            parts.push(part);
            match after.strip_prefix('.') {
                Some(next) => rest = next,
                None if after.is_empty() => break,
                None => return Err(BadTableName::Quotes),
            }
        }
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(name), None, None) => Self::from_parts(None, name),
            (Some(schema), Some(name), None) => Self::from_parts(Some(schema), name),
            _ => Err(BadTableName::TooManyParts),
        }
    }
}

fn read_plain(text: &str) -> Result<(String, &str), BadTableName> {
    let end = text.find('.').unwrap_or(text.len());
    let (part, after) = text.split_at(end);
    if part.is_empty() {
        return Err(BadTableName::Empty);
    }
    if let Some(bad) = part.chars().find(|c| !is_plain_char(*c)) {
        return Err(BadTableName::Character(bad));
    }
    if part.trim() != part {
        return Err(BadTableName::Character(' '));
    }
    Ok((part.to_owned(), after))
}

fn read_quoted(text: &str) -> Result<(String, &str), BadTableName> {
    let mut part = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"').ok_or(BadTableName::Quotes)?;
        part.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(next) => {
                part.push('"');
                rest = next;
            }
            None => return Ok((part, rest)),
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.schema.iter().chain([&self.name]).enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            if is_plain(part) { f.write_str(part)? } else { write!(f, "\"{}\"", part.replace('"', "\"\""))? }
        }
        Ok(())
    }
}

impl TryFrom<String> for TableName {
    type Error = BadTableName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TableName> for String {
    fn from(name: TableName) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_qualified_and_quoted_names_read_back() {
        for text in ["trips", "sales.trips", "Order Lines", "sales.\"q1.2026\"", "\"a\"\"b\"", "größe", "select"] {
            assert_eq!(text.parse::<TableName>().map(|name| name.to_string()), Ok(text.to_owned()));
        }
        let name: TableName = "\"a.b\".c".parse().unwrap();
        assert_eq!((name.schema(), name.name()), (Some("a.b"), "c"));
    }

    #[test]
    fn bad_names_say_what_is_wrong() {
        use BadTableName as Bad;
        let long = "x".repeat(64);
        for (text, error) in [
            ("", Bad::Empty),
            ("a.", Bad::Empty),
            (".a", Bad::Empty),
            ("\"\"", Bad::Empty),
            ("a.b.c", Bad::TooManyParts),
            ("a;drop table b", Bad::Character(';')),
            ("a\u{0}", Bad::Character('\u{0}')),
            ("\"a\nb\"", Bad::Character('\n')),
            (" a", Bad::Character(' ')),
            ("\"a", Bad::Quotes),
            ("\"a\"b", Bad::Quotes),
            ("longshore_imports", Bad::Reserved("longshore_imports".into())),
            ("pg_catalog.pg_class", Bad::Reserved("pg_catalog".into())),
            (&long, Bad::TooLong(long.clone())),
        ] {
            assert_eq!(text.parse::<TableName>(), Err(error), "{text:?}");
        }
    }
}
