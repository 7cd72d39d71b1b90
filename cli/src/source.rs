//! The file that is imported: opened before anything else begins.

use std::path::Path;

use anyhow::Result;
use tokio::fs::File;

use crate::usage::Usage;

/// An open file with the size that is declared for it.
pub struct Source {
    pub name: String,
    /// In bytes.
    pub size: u64,
    pub file: File,
}

impl Source {
    /// Opens an ordinary file.
    ///
    /// # Errors
    /// [`Usage`], which names the path, for everything else: its size has to be known before the upload.
    pub async fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let refused = |reason: String| Usage(format!("{shown} cannot be imported: {reason}"));
        let named = |error: std::io::Error| refused(error.to_string());
        // Looked at first: opening a pipe waits for whoever writes to it.
        let metadata = tokio::fs::metadata(path).await.map_err(named)?;
        if metadata.is_dir() {
            return Err(refused("it is a folder".to_owned()).into());
        }
        if !metadata.is_file() {
            let reason = "it is no ordinary file, whose size is known before the upload; write it to a file first";
            return Err(refused(reason.to_owned()).into());
        }
        let file = File::open(path).await.map_err(named)?;
        let size = file.metadata().await.map_err(named)?.len();
        let name = path.file_name().map_or_else(|| "data.csv".into(), |name| name.to_string_lossy());
        Ok(Self { name: name.into_owned(), size, file })
    }
}
