//! Where text goes: answers to stdout, what is for people to stderr. Whoever reads may be gone (`| head -1`): that ends the
//! writing, never the program, and a command's exit code is its own result.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _, stderr, stdout};

use anyhow::{Context as _, Result};

/// Whether anybody still reads stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    Reads,
    Gone,
}

/// One line of the answer.
///
/// # Errors
/// Where it cannot be written, though somebody would read it: a full disk.
pub fn print(line: impl Display) -> Result<Reader> {
    write(format!("{line}\n").as_bytes())
}

/// A part of the answer, as it is.
///
/// # Errors
/// As [`print`].
pub fn write(bytes: &[u8]) -> Result<Reader> {
    let mut out = stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::Reads),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error).context("stdout cannot be written"),
    }
}

/// A line for people. Where stderr is gone, too, there is nobody left to tell.
pub fn say(line: impl Display) {
    let _ = writeln!(stderr().lock(), "{line}");
}
