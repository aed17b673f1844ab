//! Where results are kept.

use std::future::Future;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::pin::Pin;

use uuid::Uuid;

use crate::error::BoxError;

/// The future of a storage.
pub type StorageFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send + 'a>>;

/// Where results are kept: a directory ([`LocalStorage`]), or whatever else a program brings, such as the bucket of
/// `prefect-flow-s3`.
pub trait ResultStorage: Send + Sync + std::fmt::Debug {
    /// What the state of a run says of where the result of this key is. [`Self::read`] takes it too.
    fn locate(&self, key: &str) -> String;

    /// The block of the Prefect server that describes this storage to Python; `None` where Python's default storage is
    /// the same.
    fn block_id(&self) -> Option<Uuid> {
        None
    }

    /// Stores what is under a key, instead of what was there.
    fn write<'a>(&'a self, key: &'a str, content: Vec<u8>) -> StorageFuture<'a, ()>;

    /// What is under a key; `None` if nothing.
    fn read<'a>(&'a self, key: &'a str) -> StorageFuture<'a, Option<Vec<u8>>>;
}

/// A directory, in which each result is a file.
#[derive(Debug, Clone)]
pub struct LocalStorage {
    directory: PathBuf,
    block: Option<Uuid>,
}

/// A key that does not lead to a file below the directory.
#[derive(Debug, thiserror::Error)]
#[error("the key '{key}' is no path below {}", directory.display())]
struct BadKey {
    key: String,
    directory: PathBuf,
}

impl LocalStorage {
    /// A directory, which is made when the first result is stored.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), block: None }
    }

    /// The directory that a block of the Prefect server names.
    pub(super) fn of_block(directory: PathBuf, block: Uuid) -> Self {
        Self { directory, block: Some(block) }
    }

    /// The file of a key: a path below the directory, or one that leads there.
    fn file(&self, key: &str) -> Result<PathBuf, BadKey> {
        let path = Path::new(key);
        let below = path.strip_prefix(&self.directory).unwrap_or(path);
        let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        if plain && below.components().next().is_some() {
            Ok(self.directory.join(below))
        } else {
            Err(BadKey { key: key.to_owned(), directory: self.directory.clone() })
        }
    }
}

impl ResultStorage for LocalStorage {
    fn locate(&self, key: &str) -> String {
        // Whoever knows the block knows the directory.
        if self.block.is_some() { key.to_owned() } else { self.directory.join(key).display().to_string() }
    }

    fn block_id(&self) -> Option<Uuid> {
        self.block
    }

    fn write<'a>(&'a self, key: &'a str, content: Vec<u8>) -> StorageFuture<'a, ()> {
        Box::pin(async move {
            let file = self.file(key)?;
            if let Some(directory) = file.parent() {
                tokio::fs::create_dir_all(directory).await?;
            }
            // Whoever reads it meanwhile sees the old one or the new one.
            let mut name = file.clone().into_os_string();
            name.push(format!(".{}", Uuid::new_v4().simple()));
            let new = PathBuf::from(name);
            tokio::fs::write(&new, content).await?;
            if let Err(error) = tokio::fs::rename(&new, &file).await {
                tokio::fs::remove_file(&new).await?;
                return Err(error.into());
            }
            Ok(())
        })
    }

    fn read<'a>(&'a self, key: &'a str) -> StorageFuture<'a, Option<Vec<u8>>> {
        Box::pin(async move {
            match tokio::fs::read(self.file(key)?).await {
                Ok(content) => Ok(Some(content)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lead_below_the_directory_only() {
        let storage = LocalStorage::new("/results");
        assert_eq!(storage.file("a/b").unwrap(), Path::new("/results/a/b"));
        assert_eq!(storage.file(&storage.locate("a")).unwrap(), Path::new("/results/a"));
        for bad in ["", "../a", "a/../../b", "/etc/passwd", "/results", "."] {
            assert!(storage.file(bad).is_err(), "{bad}");
        }
    }
}
