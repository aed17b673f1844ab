//! MD5 digests and the entity tags that stores make of them.
//!
//! MD5 serves as the catalogue's checksum and as S3's own transfer check, not against an adversary.

use std::fmt;
use std::str::FromStr;

use md5::Digest as _;
use serde::{Serialize, Serializer};

/// An MD5 digest; shown and serialized as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Md5Digest([u8; 16]);

/// A text that is not 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("read md5 digest: expected 32 hexadecimal digits")]
pub struct InvalidMd5;

impl Md5Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(md5::Md5::digest(bytes).into())
    }

    /// The 16 raw bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The entity tag S3 gives an object stored by one PUT.
    pub fn to_etag(self) -> ETag {
        ETag(self.to_string())
    }
}

impl fmt::Display for Md5Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Md5Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Md5Digest {
    type Err = InvalidMd5;

    fn from_str(text: &str) -> Result<Self, InvalidMd5> {
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return Err(InvalidMd5);
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let [high, low] = [pair[0], pair[1]].map(|c| char::from(c).to_digit(16));
            let value = high.zip(low).map(|(high, low)| high * 16 + low).ok_or(InvalidMd5)?;
            *byte = u8::try_from(value).map_err(|_| InvalidMd5)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Md5Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Digests a sequence of chunks.
#[derive(Clone, Default)]
pub struct Md5Hasher(md5::Md5);

impl Md5Hasher {
    /// Takes in the next chunk.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all chunks so far.
    pub fn finish(self) -> Md5Digest {
        Md5Digest(self.0.finalize().into())
    }
}

impl fmt::Debug for Md5Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Hasher")
    }
}

/// An object's entity tag without its quotes; equal tags mean equal bytes (of the same object).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ETag(String);

impl ETag {
    /// Reads a tag as it stands in a header: quoted, weak or bare.
    pub fn new(header: &str) -> Self {
        Self(header.strip_prefix("W/").unwrap_or(header).trim_matches('"').to_owned())
    }

    /// The tag without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag as a header wants it.
    pub fn quoted(&self) -> String {
        format!("\"{}\"", self.0)
    }

    /// The tag S3 gives an object assembled from parts with these digests: the md5 of the digests, and their
    /// number. It binds the whole content, since each part's digest was checked on arrival.
    pub fn of_parts(parts: &[Md5Digest]) -> Self {
        let mut hasher = Md5Hasher::default();
        for part in parts {
            hasher.update(part.as_bytes());
        }
        Self(format!("{}-{}", hasher.finish(), parts.len()))
    }
}

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_read_and_print_as_hexadecimal() {
        let empty = Md5Digest::of(b"");
        assert_eq!(empty.to_string(), "d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!("D41D8CD98F00B204E9800998ECF8427E".parse::<Md5Digest>(), Ok(empty));
        for bad in ["", "d41d", "zz1d8cd98f00b204e9800998ecf8427e", "ä41d8cd98f00b204e9800998ecf8427"] {
            assert_eq!(bad.parse::<Md5Digest>(), Err(InvalidMd5), "{bad}");
        }
    }

    #[test]
    fn multipart_tags_follow_the_law_of_s3() {
        let tag = ETag::of_parts(&[Md5Digest::of(b"a"), Md5Digest::of(b"b")]);
        let mut joined = Vec::new();
        joined.extend_from_slice(Md5Digest::of(b"a").as_bytes());
        joined.extend_from_slice(Md5Digest::of(b"b").as_bytes());
        assert_eq!(tag.as_str(), format!("{}-2", Md5Digest::of(&joined)));
    }

    #[test]
    fn tags_lose_quotes_and_weakness() {
        assert_eq!(ETag::new("\"abc-2\""), ETag::new("abc-2"));
        assert_eq!(ETag::new("W/\"abc\"").as_str(), "abc");
        assert_eq!(ETag::new("abc").quoted(), "\"abc\"");
    }
}
