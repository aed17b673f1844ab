//! A program: the flows that one binary holds.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::Options;
use crate::flow::{AnyFlow, Flow};
use crate::parameters;
use crate::results::{Home, ResultStorage, StorageBlock};

/// The flows of one binary, and its command line.
#[derive(Clone)]
pub struct Program {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) about: String,
    pub(crate) concurrency: usize,
    storage: Option<Arc<dyn ResultStorage>>,
    pub(crate) storage_blocks: Vec<Arc<dyn StorageBlock>>,
    flows: BTreeMap<String, Arc<dyn AnyFlow>>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program")
            .field("name", &self.name)
            .field("version", &self.version)
            .field("flows", &self.flows.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// A mistake of the program's author.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run name `{template}` of flow '{flow}' names `{field}`, which is none of its parameters")]
pub(crate) struct BadTemplate {
    flow: String,
    template: String,
    field: String,
}

impl Program {
    /// A program without flows. The version is the flows' version where they have none of their own.
    pub fn new(name: &'static str, version: &'static str) -> Self {
        Self {
            name,
            version,
            about: "Prefect flows in one binary.".to_owned(),
            concurrency: 64,
            storage: None,
            storage_blocks: Vec::new(),
            flows: BTreeMap::new(),
        }
    }

    /// What the program is for, in one line.
    #[must_use]
    pub fn about(mut self, about: impl Into<String>) -> Self {
        self.about = about.into();
        self
    }

    /// How many submitted tasks may be at work at once (64).
    #[must_use]
    pub fn concurrency(mut self, tasks: usize) -> Self {
        self.concurrency = tasks.max(1);
        self
    }

    /// Where results are kept. Otherwise where the block says that `PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK` names, or that
    /// the server has as its default; otherwise in the directory that `PREFECT_RESULTS_LOCAL_STORAGE_PATH` names, or
    /// `storage` in `PREFECT_HOME`.
    #[must_use]
    pub fn result_storage(mut self, storage: impl ResultStorage + 'static) -> Self {
        self.storage = Some(Arc::new(storage));
        self
    }

    /// One more type of blocks that say where results are kept: for programs that do not say it themselves, and for reading
    /// the results of others. The type `local-file-system` is always known.
    #[must_use]
    pub fn storage_block(mut self, kind: impl StorageBlock + 'static) -> Self {
        self.storage_blocks.push(Arc::new(kind));
        self
    }

    /// The same with one more flow; a second one of the same name replaces the first.
    #[must_use]
    pub fn flow<P, T>(mut self, flow: Flow<P, T>) -> Self
    where
        P: Serialize + DeserializeOwned + JsonSchema + Send + 'static,
        T: Send + 'static,
    {
        self.flows.insert(flow.info().name.clone(), Arc::new(flow));
        self
    }

    /// Reads the command line, does what it says, and ends with the exit code of [`crate::Exit`].
    pub fn main(self) -> ExitCode {
        crate::entry::main(self).into()
    }

    pub(crate) fn result_home(&self, options: &Options) -> Home {
        match (&self.storage, &options.storage_block) {
            (Some(storage), _) => Home::Given(Arc::clone(storage)),
            (None, Some(block)) => Home::Block(block.clone()),
            (None, None) => Home::Default(options.local_storage.clone()),
        }
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Arc<dyn AnyFlow>> {
        self.flows.get(name)
    }

    pub(crate) fn flows(&self) -> impl Iterator<Item = &Arc<dyn AnyFlow>> {
        self.flows.values()
    }

    /// The names of the flows, for messages.
    pub(crate) fn names(&self) -> String {
        if self.flows.is_empty() {
            return "none".to_owned();
        }
        self.flows.keys().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ")
    }

    /// Finds templates that can never be filled.
    pub(crate) fn check(&self) -> Result<(), BadTemplate> {
        for flow in self.flows.values() {
            let info = flow.info();
            if let Some(template) = &info.run_name
                && let Some(field) = parameters::unknown_field(template, &flow.schema())
            {
                return Err(BadTemplate {
                    flow: info.name.clone(),
                    template: template.clone(),
                    field: field.to_owned(),
                });
            }
        }
        Ok(())
    }
}
