//! Prints a made-up file, the same each time: `made_up lineitem|wide|quoted BYTES > FILE`.

#[path = "../benches/data/mod.rs"]
#[allow(dead_code, reason = "the benches use the rest")]
mod data;

use std::io::Write as _;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (name, bytes) = (arguments.next(), arguments.next().and_then(|bytes| bytes.parse().ok()));
    let made = name.zip(bytes).and_then(|(name, bytes)| data::made_up(&name, bytes));
    let usage = || std::io::Error::other(format!("usage: made_up {} BYTES", data::NAMES.join("|")));
    std::io::stdout().write_all(&made.ok_or_else(usage)?)
}
