//! Files that no one on this project wrote, cut at sizes of all sorts: the same rows as in one piece, whatever is in them.
//! They lie outside of the repository, and are passed over where they are not there.

use std::path::{Path, PathBuf};

use longshore_domain::{EncodingErrors, GivenFormat, LineEnd, LoadPlan, Ragged};
use longshore_parse::{ChunkPlanner, Dialect, Limits};

use crate::support::{Row, chunks, fresh, plan_as_text, read_chunk, rows_of, shared};

/// Numbers from a seed (splitmix64); the seed is printed, and `SEED=…` repeats it.
struct Numbers(u64);

impl Numbers {
    fn seeded() -> Self {
        let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let seed =
            given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(1, |elapsed| elapsed.subsec_nanos().into()));
        eprintln!("SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The ways to read a file that are tried: as it is found to be, and by every rule that may cut it elsewhere.
fn ways() -> Vec<GivenFormat> {
    let given = GivenFormat { skip_rows: Some(0), ..GivenFormat::default() };
    vec![
        given.clone(),
        GivenFormat { line_end: Some(LineEnd::Cr), ragged: Ragged::Pad, ..given.clone() },
        GivenFormat {
            delimiter: Some(", ".into()),
            escape: Some("\\".into()),
            comment: Some("#".into()),
            encoding_errors: EncodingErrors::Replace,
            ..given
        },
    ]
}

fn read(plan: &LoadPlan, text: &[u8], size: usize) -> Vec<Row> {
    chunks(plan, text, size).iter().flat_map(|chunk| rows_of(&read_chunk(plan, text, chunk))).collect()
}

/// The same rows for each size, and the same chunks for blocks of another size.
fn assert_same(path: &Path, plan: &LoadPlan, text: &[u8], sizes: impl Iterator<Item = usize>) {
    let expected = read(plan, text, usize::MAX);
    for size in sizes {
        assert!(read(plan, text, size) == expected, "{}, chunk size {size}, {:?}", path.display(), plan.format);
        let mut planner = ChunkPlanner::new(
            Dialect::new(&plan.format, plan.width).unwrap(),
            fresh(plan),
            size as u64,
            Limits::default(),
        );
        let mut fed = Vec::new();
        text[plan.data_start.0 as usize..].chunks(size).for_each(|block| planner.feed(block, &mut fed));
        planner.finish(&mut fed);
        assert_eq!(fed, chunks(plan, text, size), "{}, blocks of {size} bytes", path.display());
    }
}

#[test]
fn small_corpora_give_the_same_rows_at_every_chunk_size() {
    let mut seen = 0;
    for folder in ["corpora/csv-spectrum", "corpora/csv-test-data"] {
        let Some(folder) = shared(folder) else { return };
        for path in files_below(&folder) {
            let text = std::fs::read(&path).unwrap();
            // What cannot be read at all has no rows.
            for plan in ways().iter().filter_map(|given| plan_as_text(&text, given).ok()) {
                assert_same(&path, &plan, &text, 1..=256);
                seen += 1;
            }
        }
    }
    assert!(seen > 150, "{seen}");
}

#[test]
fn pollock_gives_the_same_rows_at_chunk_sizes_of_all_sorts() {
    let Some(folder) = shared("corpora/pollock") else { return };
    let mut numbers = Numbers::seeded();
    let mut seen = 0;
    for path in files_below(&folder) {
        let text = std::fs::read(&path).unwrap();
        // The files are much alike: each is read in one way, and each way meets hundreds of them.
        let given = &ways()[numbers.below(3)];
        let Ok(plan) = plan_as_text(&text, given) else { continue };
        let longest = text.len();
        let sizes: Vec<usize> = (0..11).map(|place| 1 + numbers.below(longest >> (place % 6 * 2))).collect();
        assert_same(&path, &plan, &text, std::iter::once(1).chain(sizes));
        seen += 1;
    }
    assert!(seen > 2000, "{seen}");
}
