//! What a worker must know to read one chunk of an import and to write it: stored with the import before the first chunk job.

use serde::{Deserialize, Serialize};

use crate::column::{Column, ColumnType};
use crate::format::{EncodingErrors, Format, LineEnd};
use crate::ids::{Attempt, ByteOffset};
use crate::notation::Notation;
use crate::table::TableName;

/// One column as it is read: which field of a record, and what it becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldPlan {
    /// The column's name in the destination, and in rejects.
    pub name: String,
    /// What its cells become.
    #[serde(rename = "type")]
    pub kind: ColumnType,
    /// The field of a record that it is read from, from 0.
    pub field: usize,
    /// Whether a cell may be null.
    pub nullable: bool,
    /// Whether the type was inferred from a sample for a new table, so that a misfit widens it instead of being a reject.
    pub inferred: bool,
    /// How its cells are written.
    #[serde(default, skip_serializing_if = "Notation::is_plain")]
    pub notation: Notation,
}

/// Where the rows go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The table was not there when the import was planned: it is created, and staging becomes it.
    NewTable,
    /// The table was there: rows are inserted into it.
    ExistingTable,
}

/// The plan of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadPlan {
    /// The destination table.
    pub table: TableName,
    /// Whether it has to be made.
    pub target: Target,
    /// The dialect that every reader of this attempt obeys.
    pub format: Format,
    /// How many fields a record has to have.
    pub width: usize,
    /// The cells of the file's header (or `column_1…`), `width` of them, for the file of rejects.
    pub header: Vec<String>,
    /// The columns in the order of the destination's list.
    pub fields: Vec<FieldPlan>,
    /// The columns as the resource shows them.
    pub columns: Vec<Column>,
    /// Where the first data record may begin: behind byte order mark, skipped lines and header records.
    pub data_start: ByteOffset,
    /// The physical line at `data_start`, from 1.
    pub data_line: u64,
}

impl LoadPlan {
    /// Whether versions that came before [`crate::format::LineEnd`] read the same rows under it.
    #[must_use]
    pub fn is_of_first_version(&self) -> bool {
        let format = &self.format;
        format.line_end != LineEnd::Cr
            && format.encoding_errors == EncodingErrors::Reject
            && format.delimiter.len() == 1
            && !format.is_decoded()
            && self.fields.iter().all(|field| field.notation.is_plain())
    }

    /// Whether rows may wait in the object for their publish, which reads them once more, instead of in a staging table: those
    /// for a table that is there, of types that are read as the table has them, from a file that is stored as it is read. A
    /// later attempt stages, so that whoever cannot do without a staging table gets one by a new attempt
    /// (`docs/decisions.md`, "An existing table is written once").
    #[must_use]
    pub fn may_wait_in_object(&self, attempt: Attempt) -> bool {
        attempt.0 == 1
            && self.target == Target::ExistingTable
            && !self.format.is_decoded()
            && !self.fields.iter().any(|field| matches!(field.kind, ColumnType::Native(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_of_the_version_before_reads_and_a_plain_one_is_stored_as_before() {
        let stored = r#"{"name":"a","type":"date","field":0,"nullable":true,"inferred":false}"#;
        let field: FieldPlan = serde_json::from_str(stored).unwrap();
        assert!(field.notation.is_plain());
        assert_eq!(serde_json::to_string(&field).unwrap(), stored);
        let stored = stored.replace('}', r#","notation":{"format":"%d/%m/%Y"}}"#);
        let field: FieldPlan = serde_json::from_str(&stored).unwrap();
        assert_eq!(field.notation.format.as_ref().map(|format| format.as_str()), Some("%d/%m/%Y"));
        assert_eq!(serde_json::to_string(&field).unwrap(), stored);
    }
}
