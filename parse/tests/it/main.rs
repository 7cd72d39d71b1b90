//! Tests of the crate from outside: what holds for every file, dialect and chunk size; files of others; measured types.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod corpora;
mod documented;
mod every_file;
mod polars;
mod rejects;
mod support;
mod types;
