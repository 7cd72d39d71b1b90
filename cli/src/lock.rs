//! The lock of the data directory.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// How often the lock of the data directory is tried, for half a second: `longshore doctor` looks at it for a moment, and a
/// process that was killed has it until it is gone.
const LOCK_TRIES: u32 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// How much of the name of the data directory's owner is read, in bytes.
const LONGEST_OWNER: u64 = 200;

/// One process owns the folder at a time, and is named in the lock's file.
///
/// # Errors
/// Whose it is, or why it cannot be had.
pub async fn lock_folder(folder: &Path, owner: &str) -> Result<File> {
    let shown = folder.display();
    if folder.exists() && !folder.is_dir() {
        bail!(
            "LONGSHORE_DATA_DIR: {shown} is a file; the data directory has to be a folder, which is made where it is missing"
        );
    }
    std::fs::create_dir_all(folder)
        .with_context(|| format!("LONGSHORE_DATA_DIR: the data directory {shown} cannot be made"))?;
    let path = folder.join("lock");
    let mut lock = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("LONGSHORE_DATA_DIR: {} cannot be opened", path.display()))?;
    let mut locked = lock.try_lock();
    for _ in 1..LOCK_TRIES {
        if !matches!(locked, Err(TryLockError::WouldBlock)) {
            break;
        }
        tokio::time::sleep(LOCK_PAUSE).await;
        locked = lock.try_lock();
    }
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // Who it is only helps; that it is there is known.
            let _ = (&mut lock).take(LONGEST_OWNER).read_to_string(&mut owner);
            let owner = if owner.is_empty() { String::new() } else { format!(" ({owner})") };
            bail!(
                "another longshore process{owner} owns the data directory {shown}; stop it, use its address with --server, or \
                 set LONGSHORE_DATA_DIR"
            )
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("{} cannot be locked", path.display()));
        }
    }
    lock.set_len(0)
        .and_then(|()| write!(lock, "{owner}, process {}", std::process::id()))
        .with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(lock)
}
