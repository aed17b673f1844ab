//! The form of stored results: Prefect's `ResultRecord` and `ResultRecordMetadata`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// What is known about a result; also the `data` of a completed state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Metadata {
    pub(super) storage_key: String,
    #[serde(default)]
    pub(super) expiration: Option<Timestamp>,
    #[serde(default)]
    pub(super) serializer: Serializer,
    #[serde(default)]
    pub(super) prefect_version: String,
    #[serde(default)]
    pub(super) storage_block_id: Option<Uuid>,
}

impl Metadata {
    /// What the state of a task says of its result: the same, without the details of how it became text. Python leaves
    /// them out there, and tells them of the results of flows.
    pub(super) fn reference(&self) -> Result<Value, serde_json::Error> {
        let serializer = Serializer { kind: self.serializer.kind.clone(), more: Map::new() };
        serde_json::to_value(Self { serializer, ..self.clone() })
    }

    pub(super) fn new(storage_key: String, block: Option<Uuid>, expiration: Option<Timestamp>) -> Self {
        Self {
            storage_key,
            expiration,
            serializer: Serializer::json(),
            prefect_version: prefect_client::PREFECT_VERSION.to_owned(),
            storage_block_id: block,
        }
    }
}

/// How a result became text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Serializer {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(flatten)]
    more: Map<String, Value>,
}

impl Default for Serializer {
    /// What Python takes where nothing is said.
    fn default() -> Self {
        Self { kind: "pickle".to_owned(), more: Map::new() }
    }
}

impl Serializer {
    /// Python's own for JSON, with its defaults.
    fn json() -> Self {
        let more = [
            ("jsonlib", json!("json")),
            ("object_encoder", json!("prefect.serializers.prefect_json_object_encoder")),
            ("object_decoder", json!("prefect.serializers.prefect_json_object_decoder")),
            ("dumps_kwargs", json!({})),
            ("loads_kwargs", json!({})),
        ];
        let more = more.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { kind: "json".to_owned(), more }
    }

    pub(super) fn is_json(&self) -> bool {
        self.kind == "json"
    }
}

/// A task's result with what is known about it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) metadata: Metadata,
    /// Text that the serializer made.
    pub(super) result: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_as_python_writes_it() {
        let metadata = Metadata::new("/results/abc".to_owned(), None, Some(Timestamp::UNIX_EPOCH));
        let record = Record { metadata, result: "[1,2]".to_owned() };
        insta::assert_json_snapshot!(record, @r#"
        {
          "metadata": {
            "storage_key": "/results/abc",
            "expiration": "1970-01-01T00:00:00Z",
            "serializer": {
              "type": "json",
              "dumps_kwargs": {},
              "jsonlib": "json",
              "loads_kwargs": {},
              "object_decoder": "prefect.serializers.prefect_json_object_decoder",
              "object_encoder": "prefect.serializers.prefect_json_object_encoder"
            },
            "prefect_version": "3.7.2",
            "storage_block_id": null
          },
          "result": "[1,2]"
        }
        "#);
    }
}
