//! Images `FROM scratch`: a root file system given file by file, imported by the engine as one layer.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use bytes::Bytes;
use serde_json::json;
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;

use super::libraries::{LIBRARY_DIR, shared_libraries};

const CHUNK: usize = 256 * 1024;

#[derive(Clone, Debug)]
enum Entry {
    /// A file of this machine, with its mode and time.
    Host(PathBuf),
    Bytes(Vec<u8>, u32),
    Link(PathBuf),
    Dir(u32),
}

/// An image to be built.
#[derive(Clone, Debug, Default)]
pub struct Image {
    entries: BTreeMap<PathBuf, Entry>,
    env: Vec<(String, String)>,
    labels: Vec<(String, String)>,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    healthcheck: Vec<String>,
    user: Option<String>,
    workdir: Option<String>,
    pub(super) kept: bool,
}

impl Image {
    /// An image without any file.
    pub fn scratch() -> Self {
        Self::default()
    }

    /// Adds a file of this machine, with its mode.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>, host: impl Into<PathBuf>) -> Self {
        self.entries.insert(path.into(), Entry::Host(host.into()));
        self
    }

    /// Adds a program of this machine and, unless it is static, the shared libraries it needs.
    pub async fn program(mut self, path: impl Into<PathBuf>, host: impl Into<PathBuf>) -> Result<Self> {
        let host = host.into();
        let libraries = shared_libraries(&[&host], None).await?;
        if !libraries.is_empty() {
            self = self.env("LD_LIBRARY_PATH", LIBRARY_DIR);
        }
        for (path, host) in libraries {
            self = self.file(path, host);
        }
        Ok(self.file(path, host))
    }

    /// Adds a file with these bytes.
    #[must_use]
    pub fn bytes(mut self, path: impl Into<PathBuf>, bytes: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.entries.insert(path.into(), Entry::Bytes(bytes.into(), mode));
        self
    }

    /// Adds a symbolic link to `target`.
    #[must_use]
    pub fn symlink(mut self, path: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        self.entries.insert(path.into(), Entry::Link(target.into()));
        self
    }

    /// Adds a directory; those above files come by themselves.
    #[must_use]
    pub fn dir(mut self, path: impl Into<PathBuf>, mode: u32) -> Self {
        self.entries.insert(path.into(), Entry::Dir(mode));
        self
    }

    /// Sets the entrypoint.
    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = words.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the default command.
    #[must_use]
    pub fn cmd<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.cmd = words.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the command that tells whether a container is well, every 5 s.
    #[must_use]
    pub fn healthcheck<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.healthcheck = words.into_iter().map(Into::into).collect();
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets a label.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((name.into(), value.into()));
        self
    }

    /// Sets the user, by name or `uid:gid`.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn workdir(mut self, dir: impl Into<String>) -> Self {
        self.workdir = Some(dir.into());
        self
    }

    /// Keeps the image when the engine cleans up.
    #[must_use]
    pub fn kept(mut self) -> Self {
        self.kept = true;
        self
    }

    /// The image's configuration, as the lines of a Dockerfile that an import takes.
    pub(super) fn changes(&self) -> Vec<String> {
        // JSON strings are what a Dockerfile takes as quoted words, but for the dollar.
        let quoted = |word: &str| json!(word).to_string().replace('$', "\\$");
        let mut lines: Vec<String> =
            self.env.iter().map(|(name, value)| format!("ENV {name}={}", quoted(value))).collect();
        lines.extend(
            self.labels.iter().map(|(name, value)| format!("LABEL {}={}", quoted(name), quoted(value))),
        );
        lines.extend(self.workdir.iter().map(|dir| format!("WORKDIR {dir}")));
        lines.extend(self.user.iter().map(|user| format!("USER {user}")));
        if !self.entrypoint.is_empty() {
            lines.push(format!("ENTRYPOINT {}", json!(self.entrypoint)));
        }
        if !self.healthcheck.is_empty() {
            lines.push(format!("HEALTHCHECK --interval=5s CMD {}", json!(self.healthcheck)));
        }
        if !self.cmd.is_empty() {
            lines.push(format!("CMD {}", json!(self.cmd)));
        }
        lines
    }

    /// Writes the image's files as a tar, from a blocking thread.
    pub(super) fn files(self) -> mpsc::Receiver<io::Result<Bytes>> {
        let (sender, receiver) = mpsc::channel(8);
        tokio::task::spawn_blocking(move || {
            let mut writer = ChannelWriter { sender: sender.clone(), buffer: Vec::with_capacity(CHUNK) };
            let written = self.write(&mut writer).and_then(|()| writer.flush());
            if let Err(error) = written
                && sender.blocking_send(Err(error)).is_err()
            {
                tracing::debug!("the engine stopped reading an image");
            }
        });
        receiver
    }

    fn write(&self, writer: &mut ChannelWriter) -> io::Result<()> {
        let mut tar = Builder::new(writer);
        for (path, entry) in &self.entries {
            let path = path.strip_prefix("/").unwrap_or(path);
            match entry {
                Entry::Host(host) => {
                    let mut file = std::fs::File::open(host).map_err(|error| {
                        io::Error::new(error.kind(), format!("{}: {error}", host.display()))
                    })?;
                    let metadata = file.metadata()?;
                    let mut header = Header::new_gnu();
                    header.set_metadata(&metadata);
                    header.set_uid(0);
                    header.set_gid(0);
                    tar.append_data(&mut header, path, &mut file)?;
                }
                Entry::Bytes(bytes, mode) => {
                    append(&mut tar, path, &mut header(EntryType::Regular, *mode), bytes)?;
                }
                Entry::Link(target) => {
                    tar.append_link(&mut header(EntryType::Symlink, 0o777), path, target)?;
                }
                Entry::Dir(mode) => append(&mut tar, path, &mut header(EntryType::Directory, *mode), &[])?,
            }
        }
        tar.finish()
    }
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header
}

fn append(
    tar: &mut Builder<&mut ChannelWriter>,
    path: &Path,
    header: &mut Header,
    bytes: &[u8],
) -> io::Result<()> {
    header.set_size(bytes.len() as u64);
    tar.append_data(header, path, bytes)
}

/// Hands written bytes over to an async reader.
struct ChannelWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        self.sender.blocking_send(Ok(Bytes::from(chunk))).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
