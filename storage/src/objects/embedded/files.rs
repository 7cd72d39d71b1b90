//! Objects as files: keys to paths, ETags, durable commits, reads. Everything here blocks, and is called from blocking tasks.
//!
//! An ETag is the file's length and time of modification: it needs no second file beside the object, and a file that
//! somebody replaces on disk is another object at once.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::{self, Stream};

use super::ObjectHead;

/// The longest key that S3 allows, in bytes.
const LONGEST_KEY: usize = 1024;
/// The longest name that file systems allow, in bytes.
const LONGEST_NAME: usize = 255;
/// What is read at once from a file.
const BLOCK: u64 = 1 << 20;

/// Why a file was not what was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("there is no such object")]
    Missing,
    #[error("the object is another one than was planned")]
    Changed,
    #[error("an object is at the key already")]
    Exists,
    #[error("the object is shorter than what was asked for")]
    Short,
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Self::Missing,
            ErrorKind::AlreadyExists => Self::Exists,
            _ => Self::Io(error),
        }
    }
}

/// Runs what blocks away from the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(FileError::Io(io::Error::other(error))),
    }
}

/// The folder of one bucket, and the folder of uploads on the same file system.
pub(super) struct Files {
    root: PathBuf,
    bucket: PathBuf,
    staging: PathBuf,
}

impl Files {
    /// Makes the folders and removes what a killed process left of its uploads.
    pub(super) fn open(root: &Path, bucket: &str) -> io::Result<Self> {
        if !is_name(bucket) {
            return Err(io::Error::new(ErrorKind::InvalidInput, format!("{bucket:?} is no name of a bucket")));
        }
        fs::create_dir_all(root)?;
        let root = root.canonicalize()?;
        let files = Self { bucket: root.join("objects").join(bucket), staging: root.join("staging"), root };
        match fs::remove_dir_all(&files.staging) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        files.make()?;
        Ok(files)
    }

    fn make(&self) -> io::Result<()> {
        fs::create_dir_all(&self.bucket)?;
        fs::create_dir_all(&self.staging)?;
        self.sync_up_from(&self.bucket)
    }

    /// Makes what is missing.
    pub(super) fn prepare(&self) -> Result<(), FileError> {
        Ok(self.make()?)
    }

    /// Whether the folders are there.
    pub(super) fn check(&self) -> Result<(), FileError> {
        fs::read_dir(&self.bucket)?;
        fs::read_dir(&self.staging)?;
        Ok(())
    }

    /// A folder for one upload.
    pub(super) fn stage(&self, name: &str) -> Result<PathBuf, FileError> {
        let folder = self.staging.join(name);
        fs::create_dir(&folder)?;
        Ok(folder)
    }

    /// Where a key's file is; `None` for a key that a file system could take for another path.
    pub(super) fn path(&self, key: &str) -> Option<PathBuf> {
        let good = key.len() <= LONGEST_KEY && key.split('/').all(is_name);
        good.then(|| self.bucket.join(key))
    }

    /// Whether something is at a key.
    pub(super) fn exists(&self, key: &str) -> bool {
        self.path(key).is_some_and(|path| path.symlink_metadata().is_ok())
    }

    /// Makes a staged file the object at `key`: durable before it is seen, and never over another one.
    pub(super) fn commit(&self, staged: &Path, size: u64, key: &str) -> Result<ObjectHead, FileError> {
        let target = self.path(key).ok_or(FileError::Missing)?;
        let folder = target.parent().unwrap_or(&self.bucket);
        let file = File::open(staged)?;
        if file.metadata()?.len() != size {
            return Err(FileError::Short);
        }
        file.sync_all()?;
        fs::create_dir_all(folder)?;
        // A link, not a rename: it fails where a file is.
        fs::hard_link(staged, &target)?;
        self.sync_up_from(folder)?;
        Ok(head_of(&file.metadata()?)?)
    }

    /// Stores an object of our own, over any that is at the key.
    pub(super) fn put(&self, key: &str, bytes: &[u8]) -> Result<ObjectHead, FileError> {
        let folder = self.stage(&uuid::Uuid::now_v7().to_string())?;
        let put = || {
            let staged = folder.join("object");
            fs::write(&staged, bytes)?;
            self.remove(key)?;
            self.commit(&staged, bytes.len() as u64, key)
        };
        let put = put();
        fs::remove_dir_all(&folder)?;
        put
    }

    /// Removes an object, and the folders of its key that are empty then, but for the first: every import makes use of
    /// that. None at the key is no error.
    pub(super) fn remove(&self, key: &str) -> Result<(), FileError> {
        let Some(path) = self.path(key) else { return Ok(()) };
        match fs::remove_file(&path).map_err(FileError::from) {
            Ok(()) => {}
            Err(FileError::Missing) => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut folder = path.parent().unwrap_or(&self.bucket);
        while let Some(above) = folder.parent().filter(|above| above.starts_with(&self.bucket) && *above != self.bucket)
        {
            // It fails where something else is in it.
            if fs::remove_dir(folder).is_err() {
                break;
            }
            folder = above;
        }
        Ok(sync_folder(folder)?)
    }

    /// Makes the names of a folder durable, and the folder's own, up to the root.
    fn sync_up_from(&self, folder: &Path) -> io::Result<()> {
        for folder in folder.ancestors() {
            sync_folder(folder)?;
            if folder == self.root {
                break;
            }
        }
        Ok(())
    }

    /// What HEAD says of an object.
    pub(super) fn head(&self, key: &str) -> Result<ObjectHead, FileError> {
        Ok(self.open_object(key)?.head)
    }

    /// Opens an object, whatever it is.
    pub(super) fn open_object(&self, key: &str) -> Result<Object, FileError> {
        let path = self.path(key).ok_or(FileError::Missing)?;
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(FileError::Missing);
        }
        Ok(Object { head: head_of(&metadata)?, file })
    }

    /// Opens the object that was planned.
    pub(super) fn open_planned(&self, key: &str, etag: &str) -> Result<Object, FileError> {
        let object = self.open_object(key)?;
        if object.head.etag == etag { Ok(object) } else { Err(FileError::Changed) }
    }
}

/// An open object.
pub(super) struct Object {
    file: File,
    /// What it was when it was opened.
    pub(super) head: ObjectHead,
}

impl Object {
    /// Reads exactly that much.
    pub(super) fn read(&mut self, start: u64, length: u64) -> Result<Bytes, FileError> {
        let end = start.checked_add(length).ok_or(FileError::Short)?;
        if end > self.head.size {
            return Err(FileError::Short);
        }
        let capacity = usize::try_from(length).map_err(|_| FileError::Short)?;
        let mut bytes = Vec::with_capacity(capacity);
        self.file.seek(SeekFrom::Start(start))?;
        (&mut self.file).take(length).read_to_end(&mut bytes)?;
        // A file that was written to in place is another object.
        if head_of(&self.file.metadata()?)?.etag != self.head.etag {
            return Err(FileError::Changed);
        }
        if bytes.len() < capacity {
            return Err(FileError::Short);
        }
        Ok(bytes.into())
    }

    /// Reads from `start` to `end`, block by block, ending at the first error.
    pub(super) fn blocks(
        self,
        start: u64,
        end: u64,
    ) -> impl Stream<Item = Result<Bytes, FileError>> + Send + Sync + 'static {
        stream::unfold(Some((self, start)), move |state| async move {
            let (mut object, position) = state?;
            if position >= end {
                return None;
            }
            let length = BLOCK.min(end - position);
            let read = blocking(move || {
                let block = object.read(position, length)?;
                Ok((object, block))
            });
            match read.await {
                Ok((object, block)) => Some((Ok(block), Some((object, position + length)))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

fn is_name(name: &str) -> bool {
    let reserved = name.is_empty() || name == "." || name == "..";
    !reserved && name.len() <= LONGEST_NAME && !name.contains(['/', '\\', '\0'])
}

fn head_of(metadata: &Metadata) -> io::Result<ObjectHead> {
    let modified: SystemTime = metadata.modified()?;
    let since = modified.duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    let etag = format!("{:x}-{:x}", since.as_nanos(), metadata.len());
    Ok(ObjectHead { size: metadata.len(), etag, last_modified: Some(DateTime::<Utc>::from(modified)) })
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Elsewhere folders cannot be opened, and the file system keeps its names by itself.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path(), "imports").unwrap();
        (folder, files)
    }

    fn commit(files: &Files, key: &str, text: &str) -> Result<ObjectHead, FileError> {
        let staged = files.stage("upload").unwrap().join("object");
        fs::write(&staged, text).unwrap();
        let done = files.commit(&staged, text.len() as u64, key);
        fs::remove_dir_all(files.staging.join("upload")).unwrap();
        done
    }

    #[test]
    fn no_key_leaves_the_bucket() {
        let (_folder, files) = files();
        for key in ["..", "../x", "a/../../x", "/etc/passwd", "a//b", "", "a/", "./a", "a\0b", "a\\..\\b"] {
            assert_eq!(files.path(key), None, "{key:?}");
        }
        assert_eq!(files.path(&"x/".repeat(600)), None);
        assert_eq!(files.path(&"x".repeat(256)), None);
        assert!(files.path("imports/1/a..b.csv").unwrap().starts_with(&files.bucket));
    }

    #[test]
    fn a_commit_never_replaces_an_object() {
        let (_folder, files) = files();
        let head = commit(&files, "imports/1/a.csv", "first").unwrap();
        assert!(matches!(commit(&files, "imports/1/a.csv", "second"), Err(FileError::Exists)));
        assert_eq!(files.head("imports/1/a.csv").unwrap(), head);
        assert_eq!(&files.open_planned("imports/1/a.csv", &head.etag).unwrap().read(0, 5).unwrap()[..], b"first");
    }

    #[test]
    fn what_is_ours_is_put_over_what_was_there() {
        let (_folder, files) = files();
        for text in ["first", "second"] {
            let head = files.put("imports/1/.decoded/1-0", text.as_bytes()).unwrap();
            assert_eq!(head.size, text.len() as u64);
            let mut object = files.open_planned("imports/1/.decoded/1-0", &head.etag).unwrap();
            assert_eq!(&object.read(0, head.size).unwrap()[..], text.as_bytes());
        }
        assert_eq!(fs::read_dir(&files.staging).unwrap().count(), 0, "nothing stays behind");
    }

    #[test]
    fn a_removed_object_takes_its_empty_folders_with_it() {
        let (_folder, files) = files();
        commit(&files, "imports/doctor/1/probe", "x").unwrap();
        commit(&files, "imports/1/a.csv", "x").unwrap();
        files.remove("imports/doctor/1/probe").unwrap();
        assert!(!files.exists("imports/doctor") && files.exists("imports/1/a.csv"));
        for key in ["imports/doctor/1/probe", "imports/1/a.csv/b", "../imports/1/a.csv"] {
            files.remove(key).unwrap();
        }
        assert!(files.exists("imports/1/a.csv"));
        assert!(files.remove("imports/1").is_err(), "a folder is no object");
    }

    #[test]
    fn a_file_that_was_replaced_on_disk_is_another_object() {
        let (_folder, files) = files();
        let head = commit(&files, "k", "first").unwrap();
        let mut open = files.open_planned("k", &head.etag).unwrap();
        fs::write(files.path("k").unwrap(), "other text").unwrap();
        assert!(matches!(open.read(0, 5), Err(FileError::Changed)));
        assert!(matches!(files.open_planned("k", &head.etag), Err(FileError::Changed)));
    }

    #[test]
    fn what_a_killed_upload_left_is_removed_at_the_start() {
        let (folder, files) = files();
        let staged = files.stage("upload").unwrap().join("object");
        fs::write(&staged, "half of i").unwrap();
        commit_other(&files);
        let again = Files::open(folder.path(), "imports").unwrap();
        assert!(!staged.exists());
        assert!(again.head("kept").is_ok());
    }

    fn commit_other(files: &Files) {
        let staged = files.stage("other").unwrap().join("object");
        fs::write(&staged, "kept").unwrap();
        files.commit(&staged, 4, "kept").unwrap();
    }

    #[test]
    fn folders_are_no_objects() {
        let (_folder, files) = files();
        commit(&files, "a/b", "x").unwrap();
        assert!(matches!(files.head("a"), Err(FileError::Missing)));
        assert!(matches!(files.head("a/b/c"), Err(FileError::Missing)));
    }
}
