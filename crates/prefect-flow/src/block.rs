//! Blocks: records of the Prefect server with a type, whose fields may be secret. Never shown.

use std::str::FromStr;

use prefect_api::id::BlockDocumentId;
use prefect_api::record::{BadField, BlockDocument};
use prefect_client::{Client, Error};
use serde::de::DeserializeOwned;

use crate::engine::Patience;
use crate::error::RecordError;

/// The name of a block with that of its type, `TYPE/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockName {
    kind: String,
    name: String,
}

/// Text that is no name of a block.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not TYPE/NAME, as in `s3-bucket/results`")]
pub(crate) struct BadName;

impl FromStr for BlockName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().split_once('/') {
            Some((kind, name)) if !kind.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { kind: kind.to_owned(), name: name.to_owned() })
            }
            _ => Err(BadName),
        }
    }
}

impl std::fmt::Display for BlockName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

impl BlockName {
    /// The block, with its secrets.
    pub(crate) async fn read(
        &self,
        client: &Client,
        patience: &Patience,
    ) -> Result<Option<BlockDocument>, Error> {
        patience.insist("read a block", || client.read_block(&self.kind, &self.name, true)).await
    }
}

/// A block, with its secrets.
pub(crate) async fn read_by_id(
    client: &Client,
    patience: &Patience,
    id: BlockDocumentId,
) -> Result<Option<BlockDocument>, Error> {
    patience.insist("read a block", || client.read_block_by_id(id, true)).await
}

/// The fields of a block, as a `T`.
pub(crate) async fn fields<T: DeserializeOwned>(
    client: &Client,
    patience: &Patience,
    text: &str,
) -> Result<T, RecordError> {
    let kind = "block";
    let malformed =
        |path: String, problem: String| RecordError::Malformed { kind, name: text.to_owned(), path, problem };
    let name: BlockName =
        text.parse().map_err(|error: BadName| malformed(".".to_owned(), error.to_string()))?;
    let document = name
        .read(client, patience)
        .await
        .map_err(|source| RecordError::Unreadable { kind, name: text.to_owned(), source })?
        .ok_or_else(|| RecordError::Missing { kind, name: text.to_owned() })?;
    document.fields().map_err(|BadField { path, problem }| malformed(path, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_type_and_a_name() {
        let name: BlockName = " s3-bucket/results ".parse().unwrap();
        assert_eq!(name.to_string(), "s3-bucket/results");
        for bad in ["", "results", "s3-bucket/", "/results", "a/b/c"] {
            assert_eq!(bad.parse::<BlockName>(), Err(BadName), "{bad}");
        }
    }
}
