//! The output of a process on disk: lines with the time they came, in segments of which the last two are
//! kept. A line of the file is `TIME F text`, or `TIME P text` for a part of a line that goes on, as
//! Kubernetes writes its logs.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};

use super::super::Piece;
use crate::redact::redact;

/// A segment this long is followed by a new one.
const SEGMENT: u64 = 8 << 20;
/// How many segments are kept.
const KEPT: u64 = 2;
/// Longer lines come in parts.
const LONGEST_LINE: usize = 16 << 10;
/// How much is read at a time.
const CHUNK: usize = 64 << 10;
/// The most of the last output that is read for its last lines.
const TAIL_BYTES: u64 = 256 << 10;

/// Cuts output into pieces without secrets.
#[derive(Debug)]
struct Cutter {
    rest: Vec<u8>,
    secrets: Vec<SecretString>,
    /// Held back when a long line is cut, so that no secret is cut in two.
    held_back: usize,
    last: Timestamp,
}

impl Cutter {
    fn new(secrets: Vec<SecretString>) -> Self {
        let held_back = secrets.iter().map(|secret| secret.expose_secret().len()).max().unwrap_or(0);
        Self { rest: Vec::new(), secrets, held_back, last: Timestamp::MIN }
    }

    /// Appends what can be written of `bytes` to `lines`.
    fn cut(&mut self, bytes: &[u8], lines: &mut Vec<u8>) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(part);
            if self.rest.last() == Some(&b'\n') {
                self.rest.pop();
                let line = std::mem::take(&mut self.rest);
                self.put(b'F', &self.without_secrets(line), lines);
            } else if self.rest.len() >= LONGEST_LINE + self.held_back {
                let rest = std::mem::take(&mut self.rest);
                let mut piece = self.without_secrets(rest);
                self.rest = piece.split_off(piece.len().saturating_sub(self.held_back));
                self.put(b'P', &piece, lines);
            }
        }
    }

    /// Appends what is left.
    fn finish(&mut self, lines: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.put(b'P', &self.without_secrets(rest), lines);
        }
    }

    fn put(&mut self, mark: u8, text: &[u8], lines: &mut Vec<u8>) {
        // No two pieces of one time: by its time a reader knows where it was.
        let next = self.last.saturating_add(SignedDuration::from_nanos(1)).unwrap_or(self.last);
        self.last = Timestamp::now().max(next);
        lines.extend_from_slice(self.last.to_string().as_bytes());
        lines.extend_from_slice(&[b' ', mark, b' ']);
        lines.extend_from_slice(text);
        lines.push(b'\n');
    }

    fn without_secrets(&self, text: Vec<u8>) -> Vec<u8> {
        if self.secrets.is_empty() {
            return text;
        }
        let readable = String::from_utf8_lossy(&text);
        let redacted = redact(&readable, &self.secrets);
        if redacted == readable { text } else { redacted.into_bytes() }
    }
}

/// The writing end, in the supervisor.
#[derive(Debug)]
pub(super) struct Writer {
    directory: PathBuf,
    cutter: Cutter,
    segment: u64,
    file: File,
    length: u64,
    lines: Vec<u8>,
}

impl Writer {
    pub(super) fn create(directory: &Path, secrets: Vec<SecretString>) -> io::Result<Self> {
        Ok(Self {
            directory: directory.to_owned(),
            cutter: Cutter::new(secrets),
            segment: 0,
            file: create_segment(directory, 0)?,
            length: 0,
            lines: Vec::new(),
        })
    }

    /// Writes what came.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.cutter.cut(bytes, &mut self.lines);
        self.flush()
    }

    /// Writes what is left when nothing more comes.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.cutter.finish(&mut self.lines);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = self.file.write_all(&self.lines);
        self.length += self.lines.len() as u64;
        self.lines.clear();
        if self.length > SEGMENT {
            self.file = create_segment(&self.directory, self.segment + 1)?;
            self.segment += 1;
            self.length = 0;
            if let Some(old) = self.segment.checked_sub(KEPT) {
                std::fs::remove_file(segment_path(&self.directory, old))?;
            }
        }
        written
    }
}

/// The reading end, in a worker: gives all pieces once, also those that are written meanwhile.
#[derive(Debug)]
pub(super) struct Reader {
    directory: PathBuf,
    open: Option<(u64, File)>,
    rest: Vec<u8>,
    after: Option<Timestamp>,
}

impl Reader {
    pub(super) fn new(directory: &Path, after: Option<Timestamp>) -> Self {
        Self { directory: directory.to_owned(), open: None, rest: Vec::new(), after }
    }

    /// The next pieces; none if there are no more for now.
    pub(super) fn read(&mut self) -> io::Result<VecDeque<Piece>> {
        let mut pieces = VecDeque::new();
        while pieces.is_empty() && self.fill()? {
            for line in whole_lines(&mut self.rest).split(|byte| *byte == b'\n') {
                let Some(piece) = parse(line) else { continue };
                if self.after.is_none_or(|after| piece.at > after) {
                    pieces.push_back(piece);
                }
            }
        }
        Ok(pieces)
    }

    /// Reads some more; `false` if there is no more for now.
    fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = vec![0; CHUNK];
        loop {
            // Looked up before the read: what is written to a segment that has a successor was there before.
            let next = next_segment(&self.directory, self.open.as_ref().map(|(number, _)| *number))?;
            if let Some((_, file)) = &mut self.open {
                let length = io::Read::read(file, &mut chunk)?;
                if length > 0 {
                    self.rest.extend_from_slice(chunk.get(..length).unwrap_or_default());
                    return Ok(true);
                }
            }
            let Some(number) = next else { return Ok(false) };
            match File::open(segment_path(&self.directory, number)) {
                Ok(file) => {
                    self.rest.clear();
                    self.open = Some((number, file));
                }
                // It is too old by now; look again.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The last lines of the output, at most `count`.
pub(super) fn tail(directory: &Path, count: usize) -> io::Result<Vec<String>> {
    let mut bytes = Vec::new();
    let mut number = None;
    while let Some(next) = next_segment(directory, number)? {
        number = Some(next);
        match File::open(segment_path(directory, next)) {
            Ok(mut file) => {
                let length = file.metadata()?.len();
                io::Seek::seek(&mut file, io::SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
                io::Read::read_to_end(&mut io::Read::take(file, TAIL_BYTES), &mut bytes)?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let mut text = Vec::new();
    for piece in bytes.split(|byte| *byte == b'\n').filter_map(parse) {
        text.extend(piece.bytes);
    }
    let text = String::from_utf8_lossy(&text);
    let mut last: Vec<String> = text.lines().rev().take(count).map(str::to_owned).collect();
    last.reverse();
    Ok(last)
}

/// Takes the whole lines off the front of `rest`.
fn whole_lines(rest: &mut Vec<u8>) -> Vec<u8> {
    let end = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    let tail = rest.split_off(end);
    std::mem::replace(rest, tail)
}

fn parse(line: &[u8]) -> Option<Piece> {
    let mut fields = line.splitn(3, |byte| *byte == b' ');
    let at = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let whole = fields.next()? == b"F";
    let mut bytes = fields.next()?.to_vec();
    if whole {
        bytes.push(b'\n');
    }
    Some(Piece { at, bytes })
}

fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("output-{number:06}.log"))
}

fn create_segment(directory: &Path, number: u64) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(segment_path(directory, number))
}

/// The oldest segment after this one.
fn next_segment(directory: &Path, number: Option<u64>) -> io::Result<Option<u64>> {
    if let Some(number) = number {
        let next = number + 1;
        if segment_path(directory, next).exists() {
            return Ok(Some(next));
        }
        // As long as it is kept, its successor would be too.
        if segment_path(directory, number).exists() {
            return Ok(None);
        }
    }
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_str().and_then(|name| name.strip_prefix("output-")?.strip_suffix(".log"));
        numbers.extend(name.and_then(|digits| digits.parse::<u64>().ok()));
    }
    Ok(numbers.into_iter().filter(|candidate| number.is_none_or(|number| *candidate > number)).min())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(reader: &mut Reader) -> String {
        let mut bytes = Vec::new();
        loop {
            let pieces = reader.read().unwrap();
            if pieces.is_empty() {
                return String::from_utf8(bytes).unwrap();
            }
            bytes.extend(pieces.into_iter().flat_map(|piece| piece.bytes));
        }
    }

    #[test]
    fn a_reader_gets_each_piece_once_and_in_order_also_from_the_middle() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(directory.path(), Vec::new()).unwrap();
        let mut reader = Reader::new(directory.path(), None);
        assert_eq!(text(&mut reader), "");
        writer.write(b"one\ntw").unwrap();
        assert_eq!(text(&mut reader), "one\n");
        writer.write(b"o\n\nthree \xff").unwrap();
        assert_eq!(text(&mut reader), "two\n\n");
        writer.finish().unwrap();
        assert_eq!(reader.read().unwrap()[0].bytes, b"three \xff");

        let pieces = Reader::new(directory.path(), None).read().unwrap();
        assert!(pieces.iter().zip(pieces.iter().skip(1)).all(|(one, next)| one.at < next.at));
        let after = Some(pieces[0].at);
        assert_eq!(Reader::new(directory.path(), after).read().unwrap()[0].bytes, b"two\n");
        assert_eq!(tail(directory.path(), 2).unwrap(), ["", "three \u{fffd}"]);
        assert_eq!(tail(Path::new("/no/such"), 2).unwrap(), [""; 0]);
    }

    #[test]
    fn a_flood_is_bounded_and_a_reader_that_keeps_up_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(directory.path(), Vec::new()).unwrap();
        let mut reader = Reader::new(directory.path(), None);
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let mut seen = 0;
        for _ in 0..64 {
            writer.write(&line.repeat(512)).unwrap();
            seen += text(&mut reader).len();
        }
        assert_eq!(seen, 64 * 512 * 1024);
        let sizes =
            std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
        assert!(sizes.sum::<u64>() < (KEPT + 1) * SEGMENT);
        let left = text(&mut Reader::new(directory.path(), None));
        assert!(left.len() as u64 > SEGMENT / 2 && left.lines().all(|line| line.len() == 1023));
    }

    #[test]
    fn secrets_are_not_written_not_even_across_a_cut() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(directory.path(), vec!["hunter22".to_owned().into()]).unwrap();
        writer.write(b"a hunter22 b\n").unwrap();
        for padding in [LONGEST_LINE - 4, LONGEST_LINE, LONGEST_LINE + 4] {
            writer.write(&[&vec![b'-'; padding][..], b"hunter22"].concat()).unwrap();
            writer.write(&vec![b'-'; LONGEST_LINE]).unwrap();
        }
        writer.finish().unwrap();
        let text = text(&mut Reader::new(directory.path(), None));
        assert!(!text.contains("hunter22") && !text.contains("hunt"), "a secret was written");
        assert!(text.starts_with("a ******** b\n"));
    }
}
