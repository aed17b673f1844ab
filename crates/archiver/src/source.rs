//! Reading one object to its end as one content: pinned to a tag, resumed where a connection breaks.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::time::{sleep, timeout};

use crate::store::ObjectBody;
use crate::{ETag, ObjectAddress, ObjectStore, StoreError};

/// How long the next bytes of a body may take before the connection counts as lost.
const CHUNK_DEADLINE: Duration = Duration::from_mins(1);

/// How often in a row a read may break without yielding a byte.
const MAX_FRUITLESS_ATTEMPTS: u32 = 5;

/// The wait before the second attempt; doubled before each further one.
const FIRST_DELAY: Duration = Duration::from_millis(500);

/// Reads an object of known size. Every byte comes from the same version of the object: the first reply pins the
/// tag if none was given.
pub(crate) struct SourceReader {
    store: Arc<dyn ObjectStore>,
    address: ObjectAddress,
    size: u64,
    pin: Option<ETag>,
    offset: u64,
    body: Option<ObjectBody>,
    fruitless: u32,
}

impl SourceReader {
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        address: ObjectAddress,
        size: u64,
        pin: Option<ETag>,
    ) -> Self {
        Self { store, address, size, pin, offset: 0, body: None, fruitless: 0 }
    }

    /// The next bytes, or the object's tag at its end.
    pub(crate) async fn next(&mut self) -> Result<Chunk, StoreError> {
        loop {
            if self.offset == self.size
                && (self.body.is_some() || self.size > 0)
                && let Some(tag) = &self.pin
            {
                return Ok(Chunk::End(tag.clone()));
            }
            match self.attempt().await {
                Ok(Some(bytes)) => {
                    self.fruitless = 0;
                    return Ok(Chunk::Data(bytes));
                }
                Ok(None) => {}
                Err(error) if error.is_transient() && self.fruitless + 1 < MAX_FRUITLESS_ATTEMPTS => {
                    let delay = FIRST_DELAY * 2_u32.pow(self.fruitless);
                    tracing::warn!(object = %self.address, offset = self.offset, error = %error, "read broke off, resuming");
                    self.fruitless += 1;
                    self.body = None;
                    sleep(delay).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The whole object, which should be small.
    pub(crate) async fn read_to_end(mut self) -> Result<(Bytes, ETag), StoreError> {
        let mut whole = BytesMut::new();
        loop {
            match self.next().await? {
                Chunk::Data(bytes) if whole.is_empty() && self.offset == self.size => {
                    // The usual case: one chunk, kept as it came.
                    match self.next().await? {
                        Chunk::End(etag) => return Ok((bytes, etag)),
                        Chunk::Data(more) => {
                            whole.extend_from_slice(&bytes);
                            whole.extend_from_slice(&more);
                        }
                    }
                }
                Chunk::Data(bytes) => whole.extend_from_slice(&bytes),
                Chunk::End(etag) => return Ok((whole.freeze(), etag)),
            }
        }
    }

    /// One step: opens the body where it is not open, else reads from it.
    async fn attempt(&mut self) -> Result<Option<Bytes>, StoreError> {
        let Some(body) = &mut self.body else {
            self.open().await?;
            return Ok(None);
        };
        let lost =
            |source| StoreError::Unavailable { action: "read", target: self.address.to_string(), source };
        let next = timeout(CHUNK_DEADLINE, body.next()).await.map_err(|elapsed| lost(elapsed.into()))?;
        let bytes = next.ok_or_else(|| lost("the store closed the connection early".into()))??;
        self.offset += bytes.len() as u64;
        if self.offset > self.size { Err(self.changed()) } else { Ok(Some(bytes)) }
    }

    async fn open(&mut self) -> Result<(), StoreError> {
        let opened = self.store.get(&self.address, self.pin.as_ref(), self.offset).await?;
        if opened.size != self.size || self.pin.as_ref().is_some_and(|pin| *pin != opened.etag) {
            return Err(self.changed());
        }
        self.pin = Some(opened.etag);
        self.body = Some(opened.body);
        Ok(())
    }

    fn changed(&self) -> StoreError {
        StoreError::Changed { address: self.address.clone() }
    }
}

/// A step of reading an object.
#[derive(Debug)]
pub(crate) enum Chunk {
    /// The next bytes.
    Data(Bytes),
    /// The object is complete; this is its tag.
    End(ETag),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ObjectKey;
    use crate::fake::{MemoryStore, unavailable};

    fn stored(content: Vec<u8>) -> (Arc<MemoryStore>, SourceReader) {
        let store = Arc::new(MemoryStore::default());
        let address = ObjectAddress::new(&"bucket".parse().unwrap(), &ObjectKey::new("key"));
        let size = content.len() as u64;
        store.insert(address.clone(), content, None);
        let reader = SourceReader::new(Arc::clone(&store) as _, address, size, None);
        (store, reader)
    }

    fn gets(store: &MemoryStore) -> usize {
        store.calls().iter().filter(|call| call.starts_with("get")).count()
    }

    #[tokio::test(start_paused = true)]
    async fn broken_reads_are_resumed_where_they_broke() {
        let content: Vec<u8> = (0..2_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let (store, reader) = stored(content.clone());
        store.break_bodies_after(3);
        let (read, _) = reader.read_to_end().await.unwrap();
        assert!(read == content);
        assert!(gets(&store) > 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_never_answers_is_given_up_after_a_few_attempts() {
        let (store, reader) = stored(vec![1]);
        store.set_fault(|call, _| (call == "get").then(|| unavailable("read")));
        let error = reader.read_to_end().await.unwrap_err();
        assert!(error.is_transient());
        assert_eq!(gets(&store), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_changes_between_two_attempts_is_not_pieced_together() {
        let (store, mut reader) = stored(vec![1; 300_000]);
        store.break_bodies_after(1);
        assert!(matches!(reader.next().await, Ok(Chunk::Data(_))));
        store.insert(reader.address.clone(), vec![2; 300_000], None);
        assert!(matches!(reader.next().await, Err(StoreError::Changed { .. })));
    }

    #[tokio::test]
    async fn an_empty_object_still_tells_its_tag() {
        let (store, reader) = stored(Vec::new());
        let (read, etag) = reader.read_to_end().await.unwrap();
        assert!(read.is_empty());
        assert_eq!(etag.as_str(), "d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!(gets(&store), 1);
    }
}
