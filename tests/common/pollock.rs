//! How near a loaded table is to the one that a polluted file stands for, in the measures of the Pollock benchmark (Vitagliano et
//! al., VLDB 2023): ten figures from 0 to 1. Pure functions, so that the parser alone and the whole service are scored alike.
//!
//! Scored twice: strictly (a record is equal only where all its cells are at their places) and as the benchmark does itself, which
//! puts the cells of a record together and compares the text, so that a separator too many or too few costs a record nothing
//! where no cell is lost. Cells are equal only byte by byte in both; the benchmark also passes over how numbers and dates are written.

use std::collections::HashMap;
use std::hash::Hash;

use longshore_domain::{GivenFormat, LineEnd};
use serde_json::Value;

/// A header and rows. A null is an empty cell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// The names; none where the file has no header.
    pub header: Vec<String>,
    /// The records.
    pub rows: Vec<Vec<String>>,
}

/// Precision, recall and their harmonic mean.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Measure {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
}

impl Measure {
    const ALL: Self = Self { precision: 1.0, recall: 1.0, f1: 1.0 };

    /// Of two collections that may hold a thing more than once. Where nothing was to be loaded, nothing can be missed.
    fn of<T: Hash + Eq>(loaded: &[T], clean: &[T]) -> Self {
        if clean.is_empty() {
            return Self::ALL;
        }
        let mut left = HashMap::<&T, usize>::new();
        for thing in clean {
            *left.entry(thing).or_default() += 1;
        }
        let mut common = 0;
        for thing in loaded {
            if let Some(count) = left.get_mut(thing).filter(|count| **count > 0) {
                *count -= 1;
                common += 1;
            }
        }
        if common == 0 {
            return Self::default();
        }
        let precision = f64::from(common) / loaded.len() as f64;
        let recall = f64::from(common) / clean.len() as f64;
        Self { precision, recall, f1: 2.0 * precision * recall / (precision + recall) }
    }

    fn sum(self) -> f64 {
        self.precision + self.recall + self.f1
    }
}

/// The ten figures of one file.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    pub success: f64,
    pub header: Measure,
    pub records: Measure,
    /// Of records as texts: what the benchmark counts.
    pub joined: Measure,
    pub cells: Measure,
}

impl Score {
    /// Of a file that was loaded.
    pub fn of(loaded: &Table, clean: &Table) -> Self {
        let cells = |table: &Table| table.rows.iter().flatten().cloned().collect::<Vec<_>>();
        let joined = |table: &Table| table.rows.iter().map(|row| row.concat()).collect::<Vec<_>>();
        Self {
            success: 1.0,
            header: Measure::of(&loaded.header, &clean.header),
            records: Measure::of(&loaded.rows, &clean.rows),
            joined: Measure::of(&joined(loaded), &joined(clean)),
            cells: Measure::of(&cells(loaded), &cells(clean)),
        }
    }

    /// Of 10, strictly.
    pub fn sum(&self) -> f64 {
        self.success + self.header.sum() + self.records.sum() + self.cells.sum()
    }

    /// Of 10, as the benchmark counts.
    pub fn benchmark_sum(&self) -> f64 {
        self.sum() - self.records.sum() + self.joined.sum()
    }
}

/// The scores of all files.
#[derive(Debug, Default)]
pub struct Scores(Vec<(String, Score)>);

impl Scores {
    /// Takes the result of one file; `None`: it could not be loaded.
    pub fn add(&mut self, name: &str, loaded: Option<&Table>, clean: &Table) {
        self.0.push((name.to_owned(), loaded.map_or_else(Score::default, |loaded| Score::of(loaded, clean))));
    }

    /// The mean of all files, of 10, strictly.
    pub fn mean(&self) -> f64 {
        self.0.iter().map(|(_, score)| score.sum()).sum::<f64>() / self.0.len().max(1) as f64
    }

    /// The same as the benchmark counts.
    pub fn benchmark_mean(&self) -> f64 {
        self.0.iter().map(|(_, score)| score.benchmark_sum()).sum::<f64>() / self.0.len().max(1) as f64
    }

    /// For people: the mean, what is lost by kinds of file, and the worst files.
    pub fn report(&self, title: &str) -> String {
        let mut kinds = std::collections::BTreeMap::<&str, (usize, f64)>::new();
        for (name, score) in &self.0 {
            let kind = name.split(|letter: char| letter.is_ascii_digit()).next().unwrap_or(name);
            let entry = kinds.entry(kind).or_default();
            *entry = (entry.0 + 1, entry.1 + 10.0 - score.sum());
        }
        let files = self.0.len();
        let mut text = format!(
            "Pollock, {title}: {:.4} of 10 over {files} files, {:.4} as the benchmark counts records\n",
            self.mean(),
            self.benchmark_mean()
        );
        for (kind, (count, lost)) in kinds {
            text += &format!("  {count:4} x {kind}: costs {:.4}\n", lost / files as f64);
        }
        let mut worst: Vec<_> = self.0.iter().filter(|(_, score)| score.sum() < 9.9).collect();
        worst.sort_by(|(a, one), (b, other)| one.sum().total_cmp(&other.sum()).then(a.cmp(b)));
        for (name, score) in worst.into_iter().take(25) {
            text += &format!(
                "  {:.3} {name}: header {:.3}, records {:.3}, cells {:.3}\n",
                score.sum(),
                score.header.f1,
                score.records.f1,
                score.cells.f1
            );
        }
        text
    }
}

/// The request's keys for what the benchmark says of a file.
pub fn given_by(parameters: &Value) -> GivenFormat {
    let text = |key: &str| parameters[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let count = |key: &str| parameters[key].as_u64().map(|count| u32::try_from(count).unwrap());
    GivenFormat {
        delimiter: text("delimiter"),
        quote: text("quotechar"),
        escape: text("escapechar"),
        line_end: text("row_delimiter").map(|end| match end.as_str() {
            "\r\n" => LineEnd::CrLf,
            "\r" => LineEnd::Cr,
            _ => LineEnd::Lf,
        }),
        header_rows: count("header_lines"),
        skip_rows: count("preamble_lines"),
        ..GivenFormat::default()
    }
}

/// Reads a plain RFC 4180 file, as `clean` holds them: by no code of the service. `header`: whether it begins with one.
pub fn read_clean(text: &str, header: bool) -> Table {
    let mut rows = Vec::new();
    let (mut row, mut cell, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => cell.extend(letters.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut cell)),
            '\n' if !quoted => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            '\r' if !quoted => {}
            letter => cell.push(letter),
        }
    }
    if !row.is_empty() || !cell.is_empty() {
        row.push(cell);
        rows.push(row);
    }
    let header = if header && !rows.is_empty() { rows.remove(0) } else { Vec::new() };
    Table { header, rows }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn a_table_equals_itself() {
        let clean = read_clean("\"a\",\"b\"\r\n\"x,\"\"y\"\"\",\"\"\r\n\"1\n2\",3\r\n", true);
        assert_eq!(clean.header, ["a", "b"]);
        assert_eq!(clean.rows, [["x,\"y\"", ""], ["1\n2", "3"]]);
        assert!(near(Score::of(&clean, &clean).sum(), 10.0));
        assert!(near(Score::of(&Table::default(), &Table::default()).sum(), 10.0), "nothing to load");
    }

    #[test]
    fn what_is_missing_costs_recall_and_what_is_more_costs_precision() {
        let clean = read_clean("a,b\n1,2\n1,2\n3,4\n", true);
        let less = Score::of(&read_clean("a,b\n1,2\n", true), &clean);
        assert!(
            near(less.records.precision, 1.0) && near(less.records.recall, 1.0 / 3.0) && near(less.records.f1, 0.5)
        );
        let more = Score::of(&read_clean("a,b,c\n1,2\n1,2\n3,4\n5,6\n", true), &clean);
        assert!(near(more.header.precision, 2.0 / 3.0) && near(more.header.recall, 1.0));
        assert!(near(more.cells.precision, 6.0 / 8.0) && near(more.cells.recall, 1.0));
        let mut scores = Scores::default();
        scores.add("good1", Some(&clean), &clean);
        scores.add("lost2", None, &clean);
        assert!(near(scores.mean(), 5.0) && near(scores.benchmark_mean(), 5.0));
        let merged = Score::of(&read_clean("a,b\n12,\n", true), &read_clean("a,b\n1,2\n", true));
        assert!(near(merged.records.f1, 0.0) && near(merged.joined.f1, 1.0));
        assert!(scores.report("both").contains("0.000 lost2"));
    }
}
