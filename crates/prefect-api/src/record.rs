//! The small records: logs, artifacts, variables, blocks.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::{ArtifactId, BlockDocumentId, BlockSchemaId, BlockTypeId, FlowRunId, TaskRunId, VariableId};

/// One line of a run's log. The set of keys is closed: one more, and the server refuses the batch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NewLog {
    /// The logger: `prefect.flow_runs`, `prefect.task_runs`, `prefect.flow_runs.worker`.
    pub name: String,
    /// 10, 20, 30, 40 or 50: debug, info, warning, error, critical.
    pub level: u8,
    /// The line, without NUL.
    pub message: String,
    /// When it was written.
    pub timestamp: Timestamp,
    /// The flow run that it is about.
    pub flow_run_id: Option<FlowRunId>,
    /// The task run that it is about.
    pub task_run_id: Option<TaskRunId>,
}

/// Body that creates an artifact.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NewArtifact {
    /// Lower-case letters, digits and dashes; artifacts of one key are versions of each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `markdown`, `table`, `progress` or `image`; a link is markdown.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it is.
    pub description: Option<String>,
    /// The content: text, for progress a number 0–100, for tables a JSON *string*.
    pub data: Value,
    /// The flow run.
    pub flow_run_id: Option<FlowRunId>,
    /// The task run.
    pub task_run_id: Option<TaskRunId>,
}

/// An artifact as the server reports it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Artifact {
    /// The artifact's id.
    pub id: ArtifactId,
    /// Its key.
    #[serde(default)]
    pub key: Option<String>,
    /// Its kind.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// What it is.
    #[serde(default)]
    pub description: Option<String>,
    /// Its content.
    #[serde(default)]
    pub data: Value,
    /// The task run that made it.
    #[serde(default)]
    pub task_run_id: Option<TaskRunId>,
}

/// A variable.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Variable {
    /// The variable's id.
    pub id: VariableId,
    /// Its name: lower-case letters, digits, underscores.
    pub name: String,
    /// Its value.
    pub value: Value,
    /// Tags.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// A block document. Its data may hold secrets: `Debug` shows the names of the fields only.
#[derive(Clone, PartialEq, Deserialize)]
pub struct BlockDocument {
    /// The document's id.
    pub id: BlockDocumentId,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// Its fields; secret ones are asterisks unless they were asked for (contract §3.7).
    #[serde(default)]
    pub data: Map<String, Value>,
    /// Its schema.
    pub block_schema_id: BlockSchemaId,
    /// Its type.
    pub block_type_id: BlockTypeId,
    /// The same, with its slug.
    #[serde(default)]
    pub block_type: Option<BlockType>,
}

impl std::fmt::Debug for BlockDocument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockDocument")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("fields", &self.data.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// A field of a block that is not what a program takes. It may be secret: the value is not told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the field `{path}` of the block is not what is expected: {problem}")]
pub struct BadField {
    /// Where it is.
    pub path: String,
    /// What is wrong.
    pub problem: String,
}

impl BlockDocument {
    /// The fields, as a `T`.
    pub fn fields<T: DeserializeOwned>(&self) -> Result<T, BadField> {
        serde_path_to_error::deserialize(Value::Object(self.data.clone())).map_err(|error| {
            let problem = error.inner().to_string();
            // Other problems repeat the value.
            let problem =
                if problem.starts_with("missing field") { problem } else { "of another form".to_owned() };
            BadField { path: error.path().to_string(), problem }
        })
    }
}

/// A block type or block schema: only the id counts here.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BlockType {
    /// The type's id.
    pub id: BlockTypeId,
    /// Its slug, for example `secret`.
    pub slug: String,
}

/// A block schema.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BlockSchema {
    /// The schema's id.
    pub id: BlockSchemaId,
    /// Its checksum, `sha256:…`.
    pub checksum: String,
}
