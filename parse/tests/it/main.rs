//! Tests of the crate from outside: what holds for every file, dialect and chunk size; files of others; measured types.

mod corpora;
mod every_file;
mod readers;
mod rejects;
mod support;
mod types;
