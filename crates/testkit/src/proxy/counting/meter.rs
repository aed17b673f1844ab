//! Reads one direction of a connection along: HTTP/1.1 messages, and WebSocket frames after an upgrade.

/// What a meter found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The head of a request, as method and path.
    Request(String),
    /// The head of a WebSocket frame.
    Frame,
}

/// A head that is longer is none that we know.
const HEAD_LIMIT: usize = 64 * 1024;

#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// The head of a message.
    Head,
    /// So many bytes that mean nothing, then this part.
    Skip(u64, Next),
    /// The line with the size of a chunk.
    ChunkSize,
    /// The lines after the last chunk.
    Trailer,
    /// The head of a WebSocket frame.
    Frame,
    /// What cannot be read.
    Opaque,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Head,
    ChunkSize,
    Frame,
}

/// Counts in one direction of one connection.
#[derive(Debug)]
pub(super) struct Meter {
    part: Part,
    requests: bool,
    /// The beginning of a head or line whose end has not come yet.
    pending: Vec<u8>,
}

impl Meter {
    /// For what a client sends.
    pub(super) fn of_client() -> Self {
        Self { part: Part::Head, requests: true, pending: Vec::new() }
    }

    /// For what a server sends. Its messages are read only as far as the answer to an upgrade: the length of
    /// others depends on their requests.
    pub(super) fn of_server() -> Self {
        Self { part: Part::Head, requests: false, pending: Vec::new() }
    }

    /// Takes the next bytes.
    pub(super) fn feed(&mut self, bytes: &[u8], seen: &impl Fn(Seen)) {
        if self.part == Part::Opaque {
            return;
        }
        self.pending.extend_from_slice(bytes);
        while self.step(seen) {}
    }

    /// Reads one part; false if it is not complete.
    fn step(&mut self, seen: &impl Fn(Seen)) -> bool {
        let (used, part) = match &self.part {
            Part::Opaque => (self.pending.len(), Part::Opaque),
            Part::Skip(left, next) => {
                let have = u64::try_from(self.pending.len()).unwrap_or(u64::MAX);
                if have < *left {
                    (self.pending.len(), Part::Skip(left - have, *next))
                } else {
                    let part = match next {
                        Next::Head => Part::Head,
                        Next::ChunkSize => Part::ChunkSize,
                        Next::Frame => Part::Frame,
                    };
                    (usize::try_from(*left).unwrap_or(usize::MAX), part)
                }
            }
            Part::Frame => match frame(&self.pending) {
                Some((head, length)) => {
                    seen(Seen::Frame);
                    (head, Part::Skip(length, Next::Frame))
                }
                None => return false,
            },
            Part::Head => match end_of(&self.pending, b"\r\n\r\n") {
                Some(end) => {
                    let head = String::from_utf8_lossy(self.pending.get(..end).unwrap_or_default());
                    (end, if self.requests { request(&head, seen) } else { reply(&head) })
                }
                None if self.pending.len() > HEAD_LIMIT => (self.pending.len(), Part::Opaque),
                None => return false,
            },
            Part::ChunkSize | Part::Trailer => match end_of(&self.pending, b"\r\n") {
                Some(end) => {
                    let line = String::from_utf8_lossy(self.pending.get(..end).unwrap_or_default());
                    (end, if self.part == Part::Trailer { trailer(&line) } else { chunk(&line) })
                }
                None if self.pending.len() > HEAD_LIMIT => (self.pending.len(), Part::Opaque),
                None => return false,
            },
        };
        let advanced = used > 0 || part != self.part;
        self.pending.drain(..used.min(self.pending.len()));
        self.part = part;
        advanced
    }
}

/// The index after the first occurrence.
fn end_of(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what).map(|start| start + what.len())
}

fn request(head: &str, seen: &impl Fn(Seen)) -> Part {
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Part::Opaque };
    seen(Seen::Request(format!("{method} {}", without_ids(target))));
    if header(head, "upgrade").is_some() {
        return Part::Frame;
    }
    body(head)
}

fn reply(head: &str) -> Part {
    if head.split(' ').nth(1) == Some("101") { Part::Frame } else { Part::Opaque }
}

fn body(head: &str) -> Part {
    if header(head, "transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        return Part::ChunkSize;
    }
    let length = header(head, "content-length").and_then(|value| value.parse().ok()).unwrap_or_default();
    Part::Skip(length, Next::Head)
}

fn chunk(line: &str) -> Part {
    let size = line.trim().split(';').next().unwrap_or_default();
    match u64::from_str_radix(size, 16) {
        Ok(0) => Part::Trailer,
        // Its bytes and the end of their line.
        Ok(size) => Part::Skip(size.saturating_add(2), Next::ChunkSize),
        Err(_) => Part::Opaque,
    }
}

fn trailer(line: &str) -> Part {
    if line == "\r\n" { Part::Head } else { Part::Trailer }
}

/// The length of a frame's head and of what follows, by RFC 6455.
fn frame(bytes: &[u8]) -> Option<(usize, u64)> {
    let second = *bytes.get(1)?;
    let (extended, length) = match second & 0x7f {
        126 => (2, bytes.get(2..4)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))),
        127 => (8, bytes.get(2..10)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))),
        length => (0, u64::from(length)),
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    Some((2 + extended, length + mask))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// The path of a target with `:id` for what stands where ids stand: anything with 36 letters and four dashes.
fn without_ids(target: &str) -> String {
    let path = target.split('?').next().unwrap_or_default();
    let is_id = |part: &str| part.len() == 36 && part.matches('-').count() == 4;
    path.split('/').map(|part| if is_id(part) { ":id" } else { part }).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const ID: &str = "01a2b3c4-0000-4000-8000-000000000000";

    /// What a meter sees of these bytes, fed in pieces of `size`.
    fn seen(mut meter: Meter, bytes: &[u8], size: usize) -> Vec<Seen> {
        let found = RefCell::new(Vec::new());
        for piece in bytes.chunks(size) {
            meter.feed(piece, &|seen| found.borrow_mut().push(seen));
        }
        found.into_inner()
    }

    #[test]
    fn requests_are_counted_however_they_are_cut() {
        let text = format!(
            "GET /api/flow_runs/{ID}?x=1 HTTP/1.1\r\nHost: a\r\n\r\n\
             POST /api/logs/ HTTP/1.1\r\ncontent-length: 5\r\n\r\nGET /\
             PATCH /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nGET /\r\n0\r\nA: b\r\n\r\n\
             DELETE / HTTP/1.1\r\n\r\n"
        );
        let expected = ["GET /api/flow_runs/:id", "POST /api/logs/", "PATCH /x", "DELETE /"]
            .map(|name| Seen::Request(name.to_owned()));
        for size in 1..text.len() {
            assert_eq!(seen(Meter::of_client(), text.as_bytes(), size), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn frames_are_counted_after_an_upgrade() {
        let mut sent = b"GET /api/events/in HTTP/1.1\r\nUpgrade: websocket\r\n\r\n".to_vec();
        sent.extend([0x81, 0x80 | 2, 1, 2, 3, 4, b'a', b'b']);
        sent.extend([0x81, 0x80 | 0x7e, 1, 0, 1, 2, 3, 4]);
        sent.extend([0; 256]);
        sent.extend([0x89, 0x80, 1, 2, 3, 4]);
        let mut received = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n".to_vec();
        received.extend([0x81, 127, 0, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3]);
        received.extend([0x8a, 0]);
        for size in 1..sent.len() {
            let frames = seen(Meter::of_client(), &sent, size);
            assert_eq!(frames.iter().filter(|seen| **seen == Seen::Frame).count(), 3, "in pieces of {size}");
            assert_eq!(seen(Meter::of_server(), &received, size).len(), 2, "in pieces of {size}");
        }
    }

    #[test]
    fn other_answers_are_not_read() {
        assert!(seen(Meter::of_server(), b"HTTP/1.1 200 OK\r\n\r\n\x81\x00\x81\x00", 4).is_empty());
    }
}
