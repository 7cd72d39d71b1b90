//! The header: its records, joined, and the names that come of them.

use std::collections::HashSet;

use longshore_domain::Format;
use longshore_domain::table::MAX_IDENTIFIER;

use crate::dialect::Dialect;
use crate::error::FormatError;
use crate::head::lines::Lines;
use crate::head::sniff::widths;
use crate::record::QuoteFault;

pub(super) fn read_header(lines: &mut Lines<'_>, format: &Format) -> Result<Option<Vec<String>>, FormatError> {
    let mut header: Option<Vec<String>> = None;
    for row in 0..format.header_rows {
        let Some(fields) = lines.next() else {
            return Err(if lines.whole {
                let rows = format.header_rows;
                FormatError::mismatch(format!("header_rows is {rows}, but the file has only {row} records"))
            } else {
                FormatError::unsupported(format!("the header is longer than {} bytes", lines.text.len()))
            });
        };
        let mended = mend_quotes(lines, format);
        if mended.is_none() && lines.fault == Some(QuoteFault::Unclosed) {
            return Err(FormatError::mismatch(
                "a quote in the header is never closed; mend it, or give another quote".to_owned(),
            ));
        }
        let cells = match mended {
            Some(cells) => cells,
            None => fields
                .iter()
                .map(|field| lines.cell(*field))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| FormatError::unsupported("the header is not UTF-8; convert the file to UTF-8"))?,
        };
        header = Some(match header {
            None => cells,
            Some(above) => join_header(above, cells),
        });
    }
    Ok(header)
}

/// The cells of a header whose quotes are at fault: those of its first physical line, an opening quote that is never closed before
/// a delimiter being part of the name. Only where the records below, nearly all of them, have as many fields; then they begin
/// behind that line. `None`: nothing to mend, or no such evidence.
fn mend_quotes(lines: &mut Lines<'_>, format: &Format) -> Option<Vec<String>> {
    lines.fault?;
    let text = &lines.text[lines.start..];
    let end = lines.dialect.find_line_end(text)?;
    let next = lines.dialect.behind_line_end(text, end);
    let line = std::str::from_utf8(&text[..end]).ok()?.trim_end_matches('\r');
    let cells = lenient_cells(line, &format.delimiter, &format.quote);
    let mut rest = Lines::new(lines.text, lines.whole, Dialect::new(format, 0).ok()?);
    rest.at = lines.start + next;
    let data = widths(&mut rest)?;
    if data.mode != cells.len() || data.mode < 2 || data.records < 2 || data.share < 0.9 {
        return None;
    }
    lines.at = lines.start + next;
    lines.line = lines.start_line + 1;
    Some(cells)
}

/// Cells of a line: one in quotes is such only where a delimiter or the end is behind its closing quote.
fn lenient_cells(line: &str, delimiter: &str, quote: &str) -> Vec<String> {
    let mut cells = Vec::new();
    let mut rest = line;
    loop {
        let body = rest.strip_prefix(quote).filter(|_| !quote.is_empty());
        let closed = body.and_then(|body| {
            let close = body.find(quote)?;
            let behind = &body[close + quote.len()..];
            (behind.is_empty() || behind.starts_with(delimiter)).then_some((&body[..close], behind))
        });
        let (cell, behind) = closed.unwrap_or_else(|| rest.split_at(rest.find(delimiter).unwrap_or(rest.len())));
        cells.push(cell.to_owned());
        match behind.strip_prefix(delimiter) {
            Some(next) => rest = next,
            None => return cells,
        }
    }
}

/// Cells of several header records, joined by a space.
fn join_header(above: Vec<String>, below: Vec<String>) -> Vec<String> {
    let width = above.len().max(below.len());
    let (mut above, mut below) = (above.into_iter(), below.into_iter());
    (0..width)
        .map(|_| {
            let parts = [above.next().unwrap_or_default(), below.next().unwrap_or_default()];
            parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

/// Columns that every table of PostgreSQL has, so that none of ours may be called so.
const SYSTEM_COLUMNS: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// The names that a new table's columns get: no two are the same without case, which SQLite would not tell apart, and none is a
/// system column's.
pub(crate) fn column_names(raw: &[String]) -> Vec<String> {
    name_uniquely(raw, str::to_lowercase, &SYSTEM_COLUMNS)
}

/// Names that tell a file's fields apart.
pub(super) fn unique_names(raw: &[String]) -> Vec<String> {
    name_uniquely(raw, str::to_owned, &[])
}

/// Names that columns can have, one for each cell. A name that stands in the header stays with the first cell that holds it; the second
/// `a` is `a_2`, an empty one `column_3`, or with the next number that no other has. `key`: what must not be the same, nor be among `reserved`.
fn name_uniquely(raw: &[String], key: fn(&str) -> String, reserved: &[&str]) -> Vec<String> {
    let cells: Vec<String> = raw.iter().map(|cell| name_of(cell)).collect();
    let standing: HashSet<String> = cells.iter().map(|cell| key(cell)).collect();
    let mut taken: HashSet<String> = reserved.iter().map(|name| (*name).to_owned()).collect();
    let mut names = Vec::with_capacity(cells.len());
    for (place, cell) in cells.into_iter().enumerate() {
        if !cell.is_empty() && taken.insert(key(&cell)) {
            names.push(cell);
            continue;
        }
        let base = if cell.is_empty() { format!("column_{}", place + 1) } else { cell };
        let mut name = base.clone();
        let mut n = 2;
        while standing.contains(&key(&name)) || !taken.insert(key(&name)) {
            let suffix = format!("_{n}");
            name = cut(&base, MAX_IDENTIFIER - suffix.len()) + &suffix;
            n += 1;
        }
        names.push(name);
    }
    names
}

/// A cell as a name: without control characters and the spaces around it, and no longer than a database takes.
pub(crate) fn name_of(cell: &str) -> String {
    let visible: String = cell.chars().filter(|letter| !letter.is_control()).collect();
    cut(visible.trim(), MAX_IDENTIFIER).trim_end().to_owned()
}

/// The first bytes of a name, at a character's end.
fn cut(name: &str, bytes: usize) -> String {
    let mut end = name.len().min(bytes);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}
