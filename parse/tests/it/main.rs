//! Tests of the crate from outside: what holds for every file, dialect and chunk size; files of others; measured types.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod clear_faults;
mod corpora;
mod documented;
mod every_file;
mod fuzz_corpus;
mod headers;
mod polars;
mod pollock;
mod pollock_kinds;
#[path = "../../../tests/common/pollock.rs"]
mod pollock_score;
mod rejects;
mod sniffing;
mod support;
mod sweep;
mod types;
