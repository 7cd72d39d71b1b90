//! What the API answers with: the resources as clients and the OpenAPI document see them.

use std::collections::BTreeMap;

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use longshore_domain::import::format_time;
use longshore_domain::reject::RECORD_LISTED;
use longshore_domain::{Import, LineNumber, Reject, RejectReason, RowNumber};
use longshore_parse::is_cut;
use longshore_storage::database::ImportRecord;
use longshore_storage::objects::PresignedPut;

use crate::ApiState;

/// An import, and how to upload its file where the call hands that out.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImportAnswer {
    /// The import.
    #[serde(flatten)]
    pub import: Import,
    /// How to upload its file; only in answers that sign a URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub upload: Option<Upload>,
}

impl ImportAnswer {
    /// The import as it is stored.
    #[must_use]
    pub fn of(state: &ApiState, record: &ImportRecord) -> Self {
        Self { import: record.to_resource(state.objects.bucket()), upload: None }
    }

    /// With a URL that was just signed.
    #[must_use]
    pub fn with_upload(self, upload: Option<&PresignedPut>) -> Self {
        Self { upload: upload.map(Upload::of), ..self }
    }
}

/// A presigned upload.
#[derive(Debug, Serialize, ToSchema)]
pub struct Upload {
    /// Always `PUT`.
    #[schema(value_type = String, example = "PUT")]
    pub method: &'static str,
    /// Where to; it is a secret until it expires.
    pub url: String,
    /// Every header that has to be sent, exactly so.
    pub headers: BTreeMap<String, String>,
    /// When the storage stops to take it.
    #[schema(format = DateTime)]
    pub expires_at: String,
}

impl Upload {
    fn of(put: &PresignedPut) -> Self {
        Self {
            method: "PUT",
            url: put.url.clone(),
            headers: put.headers.iter().cloned().collect(),
            expires_at: format_time(put.expires_at),
        }
    }
}

/// A page of a listing.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Page<T> {
    /// At most `limit`.
    pub items: Vec<T>,
    /// The `cursor` of the next page; null where this is the last.
    pub next_cursor: Option<String>,
}

/// A page. One item more than `limit` was read to know whether there is a next one.
pub fn page<R, T>(mut rows: Vec<R>, limit: u64, cursor: impl Fn(&R) -> String, show: impl Fn(R) -> T) -> Json<Page<T>> {
    let more = rows.len() as u64 > limit;
    rows.truncate(limit as usize);
    let next_cursor = if more { rows.last().map(cursor) } else { None };
    Json(Page { items: rows.into_iter().map(show).collect(), next_cursor })
}

/// A row that was not loaded.
#[derive(Debug, Serialize, ToSchema)]
pub struct RejectAnswer {
    /// The data record's number, from 1.
    pub row: RowNumber,
    /// The physical line where it begins, from 1.
    pub line: LineNumber,
    /// The column at fault, where it is one.
    pub column: Option<String>,
    /// The cell at fault, unquoted.
    pub value: Option<String>,
    /// Why.
    pub reason: RejectReason,
    /// Why, in words.
    pub detail: String,
    /// The raw record, cut at 4 KiB with a mark.
    pub record: String,
}

impl RejectAnswer {
    /// A reject as a listing shows it.
    #[must_use]
    pub fn of(reject: &Reject) -> Self {
        Self {
            row: reject.row,
            line: reject.line,
            column: reject.column.clone(),
            value: reject.value.as_deref().map(cut),
            reason: reject.reason,
            detail: cut(reject.detail.as_bytes()),
            record: if is_cut(reject) { beginning(&reject.record) } else { cut(&reject.record) },
        }
    }
}

/// Text for a listing: at most 4 KiB, with a mark where it was cut.
fn cut(bytes: &[u8]) -> String {
    if bytes.len() <= RECORD_LISTED {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    format!("{} ({} bytes in all)", beginning(bytes), bytes.len())
}

/// The beginning of a text that goes on, with a mark.
fn beginning(bytes: &[u8]) -> String {
    let mut end = RECORD_LISTED.min(bytes.len());
    // Not inside a character: its first byte is at most three back.
    while end > RECORD_LISTED - 3 && bytes.get(end).is_some_and(|byte| byte & 0xC0 == 0x80) {
        end -= 1;
    }
    format!("{}…", String::from_utf8_lossy(&bytes[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_knows_whether_there_is_a_next_one() {
        let page_of = |rows: Vec<i32>| page(rows, 2, |n| n.to_string(), |n| n).0;
        assert_eq!(page_of(vec![1, 2, 3]), Page { items: vec![1, 2], next_cursor: Some("2".into()) });
        assert_eq!(page_of(vec![1, 2]), Page { items: vec![1, 2], next_cursor: None });
    }

    #[test]
    fn long_records_are_cut_with_a_mark_and_never_inside_a_character() {
        assert_eq!(cut(b"abc"), "abc");
        let long = "é".repeat(3000);
        for shift in 0..3 {
            let text = cut(&long.as_bytes()[shift..]);
            assert!(text.contains("bytes in all"), "{text}");
            assert!(!text.trim_start_matches('\u{fffd}').contains('\u{fffd}'));
        }
    }
}
