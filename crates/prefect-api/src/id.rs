//! Identifiers: one type per kind of record, so that no two can be confused.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A fresh, time-ordered id (`UUIDv7`), for records that the client names.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )+};
}

ids! {
    /// A flow: a name under which flow runs are grouped.
    FlowId,
    /// One run of a flow.
    FlowRunId,
    /// One run of a task inside a flow run.
    TaskRunId,
    /// One state of a flow run or task run. For task runs it is also the id of the event that reports it.
    StateId,
    /// A deployment: a flow with a work pool, parameters and job variables.
    DeploymentId,
    /// A work pool.
    WorkPoolId,
    /// A queue of a work pool.
    WorkQueueId,
    /// An artifact.
    ArtifactId,
    /// A block document, for example a secret.
    BlockDocumentId,
    /// A block type.
    BlockTypeId,
    /// A block schema.
    BlockSchemaId,
    /// A variable.
    VariableId,
    /// A concurrency limit.
    ConcurrencyLimitId,
    /// A lease on slots of concurrency limits.
    LeaseId,
    /// An event.
    EventId,
}
