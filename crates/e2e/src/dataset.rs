//! A directory of files on its way through the system.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use serde_json::{Value, json};

/// How many uploads run at once.
const UPLOADS: usize = 8;

/// One file of a dataset.
#[derive(Debug, Clone)]
pub struct File {
    /// Its place on this machine.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
    /// When it last changed.
    pub modified: Timestamp,
}

/// The regular files of a directory, by their paths in it. Symbolic links are not followed and empty
/// directories are no part of a dataset: S3 knows neither.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The files, by relative path with `/`.
    pub files: BTreeMap<String, File>,
}

impl Dataset {
    /// All files below `root`.
    pub fn of_directory(root: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut open = vec![root.to_owned()];
        while let Some(directory) = open.pop() {
            let entries = std::fs::read_dir(&directory)
                .with_context(|| format!("failed to list {}", directory.display()))?;
            for entry in entries {
                let path = entry?.path();
                let metadata = path.symlink_metadata()?;
                if metadata.is_dir() {
                    open.push(path);
                } else if metadata.is_file() {
                    let (name, file) = file(root, &path, &metadata)?;
                    files.insert(name, file);
                }
            }
        }
        ensure!(
            !files.is_empty(),
            "there are no files in {}\nhint: choose another --dataset",
            root.display()
        );
        Ok(Self { files })
    }

    /// The files that make up this project's checkout, without what was built in it.
    pub fn of_checkout(root: &Path) -> Result<Self> {
        let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output();
        let Some(listed) = listed.ok().filter(|output| output.status.success()) else {
            bail!("{} is no git checkout\nhint: name a directory with --dataset", root.display());
        };
        let mut files = BTreeMap::new();
        for name in String::from_utf8(listed.stdout)?.split('\0').filter(|name| !name.is_empty()) {
            let path = root.join(name);
            if let Ok(metadata) = path.symlink_metadata()
                && metadata.is_file()
            {
                let (name, file) = file(root, &path, &metadata)?;
                files.insert(name, file);
            }
        }
        ensure!(!files.is_empty(), "the checkout {} has no files", root.display());
        Ok(Self { files })
    }

    /// All bytes together.
    pub fn size(&self) -> u64 {
        self.files.values().map(|file| file.size).sum()
    }

    /// The files as SciCat lists them: what the user claims to have uploaded.
    pub fn claims(&self) -> Vec<Value> {
        let file =
            |(name, file): (&String, &File)| json!({"path": name, "size": file.size, "time": file.modified});
        self.files.iter().map(file).collect()
    }

    /// Uploads everything below `prefix`, telling the bytes of each file as it is done.
    pub async fn upload(
        &self,
        client: &Client,
        bucket: &str,
        prefix: &str,
        done: impl Fn(u64) + Sync,
    ) -> Result<()> {
        stream::iter(&self.files)
            .map(|(name, file)| {
                let done = &done;
                async move {
                    let body = ByteStream::from_path(&file.path)
                        .await
                        .with_context(|| format!("failed to read {}", file.path.display()))?;
                    let request =
                        client.put_object().bucket(bucket).key(format!("{prefix}/{name}")).body(body);
                    request.send().await.with_context(|| format!("failed to upload {name}"))?;
                    done(file.size);
                    anyhow::Ok(())
                }
            })
            .buffer_unordered(UPLOADS)
            .try_collect::<Vec<()>>()
            .await
            .map(drop)
    }

    /// Compares with what came out, byte for byte: the same files, and no others.
    pub fn compare(&self, unpacked: &Path) -> Result<()> {
        let other = Self::of_directory(unpacked)?;
        for name in other.files.keys() {
            ensure!(self.files.contains_key(name), "{name:?} came out but never went in");
        }
        for (name, file) in &self.files {
            let Some(twin) = other.files.get(name) else { bail!("{name:?} went in but did not come out") };
            ensure!(
                file.size == twin.size,
                "{name:?} went in with {} bytes and came out with {}",
                file.size,
                twin.size
            );
            ensure!(same_bytes(&file.path, &twin.path)?, "{name:?} came out with other bytes");
        }
        Ok(())
    }
}

fn file(root: &Path, path: &Path, metadata: &std::fs::Metadata) -> Result<(String, File)> {
    let relative = path.strip_prefix(root)?;
    let name = relative.to_str().with_context(|| {
        format!("{} is not UTF-8; object keys have to be\nhint: rename the file", path.display())
    })?;
    let modified = Timestamp::new(metadata.mtime(), 0)?;
    Ok((name.to_owned(), File { path: path.to_owned(), size: metadata.len(), modified }))
}

fn same_bytes(left: &Path, right: &Path) -> Result<bool> {
    let open = |path: &Path| {
        std::fs::File::open(path)
            .map(|file| std::io::BufReader::with_capacity(1 << 20, file))
            .with_context(|| format!("failed to open {}", path.display()))
    };
    let (mut left, mut right) = (open(left)?, open(right)?);
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let count = left.read(&mut a)?;
        let Some(read) = b.get_mut(..count) else { return Ok(false) };
        if count == 0 {
            return Ok(right.read(&mut b)? == 0);
        }
        if right.read_exact(read).is_err() || a.get(..count) != b.get(..count) {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_a_lost_file_and_an_added_one_are_told() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for root in [&one, &two] {
            std::fs::create_dir(root.path().join("a")).unwrap();
            std::fs::write(root.path().join("a/ü b"), "text").unwrap();
            std::fs::write(root.path().join("empty"), "").unwrap();
        }
        let dataset = Dataset::of_directory(one.path()).unwrap();
        dataset.compare(two.path()).unwrap();
        std::fs::write(two.path().join("a/ü b"), "tex!").unwrap();
        assert!(dataset.compare(two.path()).unwrap_err().to_string().contains("other bytes"));
        std::fs::remove_file(two.path().join("a/ü b")).unwrap();
        assert!(dataset.compare(two.path()).unwrap_err().to_string().contains("did not come out"));
        std::fs::write(two.path().join("new"), "").unwrap();
        assert!(dataset.compare(two.path()).unwrap_err().to_string().contains("never went in"));
    }
}
