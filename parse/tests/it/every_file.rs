//! What holds for every file, dialect, chunk size and block size.

use longshore_domain::{ByteOffset, ColumnType, EncodingErrors, Format, LineEnd, LoadPlan, Ragged, RowNumber};
use longshore_parse::{ChunkInput, Dialect, Limits, PlanStart, PlannedChunk, find_records};
use proptest::prelude::*;

use crate::support::{Outcome, Row, chunks_folded, chunks_from, fresh, plan, read_chunk, rows_of};

fn texts(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => Just(&b"\""[..]),
        6 => Just(&b","[..]),
        5 => Just(&b"\n"[..]),
        3 => Just(&b"\r\n"[..]),
        3 => Just(&b"\r"[..]),
        3 => Just(&b"\\"[..]),
        3 => Just(&b"#"[..]),
        2 => Just(&b"a"[..]),
        2 => Just(&b"1"[..]),
        3 => Just(&b":"[..]),
        1 => Just(&b" "[..]),
        1 => Just(&b"\0"[..]),
        1 => Just("§".as_bytes()),
        1 => Just(&b"\xC2"[..]),
        1 => Just(&b"\xA7"[..]),
        1 => Just("é".as_bytes()),
        1 => Just(&b"\xFF"[..]),
        1 => Just(&b"\xEF\xBB\xBF"[..]),
    ];
    prop::collection::vec(piece, 0..longest).prop_map(|pieces| pieces.concat())
}

/// Dialects of all sorts; those whose bytes cannot be told apart are none.
fn formats() -> impl Strategy<Value = Format> {
    let quote_and_escape = prop_oneof![
        6 => Just(("\"", "\"")),
        3 => Just(("\"", "\\")),
        1 => Just(("", "")),
        1 => Just(("a", "a")),
    ];
    let delimiter = prop_oneof![
        6 => Just(","),
        2 => Just("::"),
        1 => Just(" ,"),
        1 => Just(",:,"),
        1 => Just("::::"),
        1 => Just("§"),
        1 => Just("#,"),
    ];
    let comment = prop_oneof![3 => Just(None), 1 => Just(Some("#")), 1 => Just(Some("##")), 1 => Just(Some("#,\"1"))];
    let line_end = prop_oneof![3 => Just(LineEnd::Lf), 1 => Just(LineEnd::CrLf), 3 => Just(LineEnd::Cr)];
    let ragged = prop_oneof![Just(Ragged::Reject), Just(Ragged::Pad)];
    let errors = prop_oneof![Just(EncodingErrors::Reject), Just(EncodingErrors::Replace)];
    let nulls = prop_oneof![2 => Just(vec![""]), 1 => Just(vec![]), 1 => Just(vec!["", "1", "a"])];
    (quote_and_escape, delimiter, comment, line_end, ragged, errors, nulls)
        .prop_map(|((quote, escape), delimiter, comment, line_end, ragged, encoding_errors, nulls)| Format {
            delimiter: delimiter.into(),
            quote: quote.into(),
            escape: escape.into(),
            line_end,
            comment: comment.map(str::to_owned),
            ragged,
            encoding_errors,
            null_values: nulls.into_iter().map(str::to_owned).collect(),
            ..Format::default()
        })
        .prop_filter("bytes that cannot be told apart", |format| Dialect::new(format, 1).is_ok())
}

/// The text with a head of one line before it, its format and its width.
fn files(longest: usize) -> impl Strategy<Value = (Vec<u8>, Format, usize, u64)> {
    (texts(longest), formats(), 1_usize..=4, prop_oneof![Just(&b""[..]), Just(&b"x,y\n"[..])]).prop_map(
        |(text, format, width, head)| {
            let start = head.len() as u64;
            ([head, &text].concat(), format, width, start)
        },
    )
}

/// Texts, and a whole number in every third column: cells of both sorts, and rejects.
fn kinds(width: usize) -> Vec<ColumnType> {
    (0..width).map(|place| if place % 3 == 1 { ColumnType::Int64 } else { ColumnType::Text }).collect()
}

fn read_all(plan: &LoadPlan, text: &[u8], chunks: &[PlannedChunk]) -> Vec<Row> {
    let mut rows = Vec::new();
    for chunk in chunks {
        let found = rows_of(&read_chunk(plan, text, chunk));
        assert_eq!(found.len() as u64, chunk.rows, "the planner counts what the reader finds: {chunk:?}");
        for (place, (number, _)) in found.iter().enumerate() {
            assert_eq!(*number, chunk.first_row.0 + place as u64);
        }
        rows.extend(found);
    }
    rows
}

/// Line, number and bytes of every record, looked up chunk by chunk.
fn look_up(plan: &LoadPlan, text: &[u8], chunks: &[PlannedChunk]) -> Vec<(u64, u64, Vec<u8>)> {
    let mut found = Vec::new();
    for chunk in chunks {
        let input = ChunkInput {
            bytes: &text[chunk.range.start.0 as usize..chunk.range.end.0 as usize],
            start: chunk.range.start,
            first_row: chunk.first_row,
            first_line: chunk.first_line,
        };
        let rows: Vec<RowNumber> = (0..chunk.rows).map(|place| RowNumber(chunk.first_row.0 + place)).collect();
        let records = find_records(plan, input, &rows);
        found.extend(records.into_iter().map(|(row, line, record)| (row.0, line.0, record)));
    }
    found
}

fn assert_tiling(text: &[u8], plan: &LoadPlan, chunks: &[PlannedChunk]) {
    let (mut end, mut row, mut line) = (0, 1, plan.data_line);
    for chunk in chunks {
        assert_eq!(chunk.range.start.0, end, "without gap: {chunks:?}");
        assert!(chunk.range.end.0 > end, "no empty chunk: {chunks:?}");
        assert_eq!((chunk.first_row.0, chunk.first_line.0), (row, line), "{chunks:?}");
        (end, row, line) = (chunk.range.end.0, row + chunk.rows, chunk.next_line.0);
    }
    assert_eq!(end, text.len() as u64, "to the end: {chunks:?}");
    // Every physical line counts, in quotes and out.
    let data = &text[plan.data_start.0 as usize..];
    let ends = (0..data.len()).filter(|at| match data[*at] {
        b'\n' => plan.format.line_end != LineEnd::Cr || *at == 0 || data[at - 1] != b'\r',
        b'\r' => plan.format.line_end == LineEnd::Cr,
        _ => false,
    });
    assert_eq!(line, plan.data_line + ends.count() as u64, "{chunks:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn a_file_cut_anywhere_gives_the_same_rows((text, format, width, start) in files(40)) {
        let plan = plan(&format, &kinds(width), start, 1 + u64::from(start > 0));
        let limits = Limits::default();
        let whole = chunks_from(&plan, &text, fresh(&plan), usize::MAX, text.len(), limits);
        prop_assert!(whole.len() <= 1);
        let expected = read_all(&plan, &text, &whole);
        let looked_up = look_up(&plan, &text, &whole);
        prop_assert_eq!(looked_up.len(), expected.len());
        for size in 1..=text.len() {
            let chunks = chunks_from(&plan, &text, fresh(&plan), size, text.len(), limits);
            assert_tiling(&text, &plan, &chunks);
            prop_assert_eq!(&read_all(&plan, &text, &chunks), &expected, "chunk size {}", size);
            prop_assert_eq!(&look_up(&plan, &text, &chunks), &looked_up, "chunk size {}", size);
            for block in [1, 2, 3, 5, 7, 11, size] {
                let fed = chunks_from(&plan, &text, fresh(&plan), size, block, limits);
                prop_assert_eq!(&fed, &chunks, "chunk size {}, blocks of {}", size, block);
            }
            prop_assert_eq!(&chunks_folded(&plan, &text, fresh(&plan), size, limits), &chunks, "chunk size {}", size);
        }
    }

    #[test]
    fn a_scan_goes_on_from_any_chunks_end((text, format, width, start) in files(40), size in 1_usize..20, most in 1_u64..60) {
        let plan = plan(&format, &kinds(width), start, 1 + u64::from(start > 0));
        let limits = Limits { max_record: most };
        let chunks = chunks_from(&plan, &text, fresh(&plan), size, text.len(), limits);
        for (place, last) in chunks.iter().enumerate() {
            let from = PlanStart {
                offset: last.range.end,
                row: RowNumber(last.first_row.0 + last.rows),
                line: last.next_line,
                chunk_start: last.range.end,
            };
            let rest = chunks_from(&plan, &text, from, size, 3, limits);
            prop_assert_eq!(&rest, &chunks[place + 1..], "from {:?}", from);
            if size as u64 <= most {
                prop_assert_eq!(&chunks_folded(&plan, &text, from, size, limits), &rest, "from {:?}", from);
            }
        }
    }

    #[test]
    fn records_over_the_limit_are_chunks_of_one_row((text, format, width, start) in files(40), size in 1_usize..20, most in 1_u64..12) {
        let plan = plan(&format, &kinds(width), start, 1 + u64::from(start > 0));
        let limits = Limits { max_record: most };
        let chunks = chunks_from(&plan, &text, fresh(&plan), size, text.len(), limits);
        assert_tiling(&text, &plan, &chunks);
        for block in 1..=text.len() {
            prop_assert_eq!(&chunks_from(&plan, &text, fresh(&plan), size, block, limits), &chunks);
        }
        if size as u64 <= most {
            prop_assert_eq!(&chunks_folded(&plan, &text, fresh(&plan), size, limits), &chunks);
        }
        let rows = read_all(&plan, &text, &chunks);
        let whole = chunks_from(&plan, &text, fresh(&plan), usize::MAX, text.len(), Limits::default());
        let expected = read_all(&plan, &text, &whole);
        prop_assert_eq!(rows.len(), expected.len());
        for chunk in &chunks {
            let records = (chunk.range.end.0 - chunk.range.start.0.max(start)) as usize;
            if chunk.oversized {
                prop_assert!(chunk.rows <= 1);
                prop_assert!(records as u64 > most);
            }
            let mine = read_chunk(&plan, &text, chunk);
            if chunk.oversized {
                prop_assert_eq!(mine.rejects.len() as u64, chunk.rows);
                prop_assert!(mine.batches.is_empty());
            } else {
                for row in rows_of(&mine) {
                    prop_assert!(expected.contains(&row), "{:?}", row);
                }
            }
        }
    }
}

#[test]
fn an_oversized_record_is_one_reject_and_an_oversized_comment_none() {
    let format = Format { comment: Some("#".into()), ..Format::default() };
    let plan = plan(&format, &[ColumnType::Text, ColumnType::Text], 0, 1);
    let text = b"a,b\n# a very long comment\nc,a very long record\nd,\"very long, and never closed\ne,f\n";
    let limits = Limits { max_record: 10 };
    let chunks = chunks_from(&plan, text, fresh(&plan), 1, 5, limits);
    let oversized: Vec<bool> = chunks.iter().map(|chunk| chunk.oversized).collect();
    assert_eq!(oversized, [false, true, true, true], "{chunks:?}");
    assert_eq!(chunks.iter().map(|chunk| chunk.rows).collect::<Vec<_>>(), [1, 0, 1, 1]);
    let rows = read_all(&plan, text, &chunks);
    let Outcome::Rejected(line, column, _, reason, ..) = &rows[1].1 else { panic!("{rows:?}") };
    assert_eq!((*line, column, reason.as_str()), (3, &None, "record_too_large"));
    let Outcome::Rejected(line, column, _, reason, ..) = &rows[2].1 else { panic!("{rows:?}") };
    assert_eq!((*line, column.as_deref(), reason.as_str()), (4, Some("c2"), "malformed_quotes"));
}

#[test]
fn a_file_of_nothing_but_its_header_is_one_chunk_without_rows() {
    let plan = plan(&Format::default(), &[ColumnType::Text, ColumnType::Text], 4, 2);
    let chunks = chunks_from(&plan, b"x,y\n", fresh(&plan), 1, 1, Limits::default());
    assert_eq!(chunks.len(), 1);
    assert_eq!((chunks[0].range.start, chunks[0].range.end, chunks[0].rows), (ByteOffset(0), ByteOffset(4), 0));
}
