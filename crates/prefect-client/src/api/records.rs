//! Artifacts and variables.

use prefect_api::id::ArtifactId;
use prefect_api::record::{Artifact, NewArtifact, Variable};
use reqwest::Method;
use serde_json::{Value, json};

use crate::error::Error;
use crate::http::{Call, Client};

impl Client {
    /// Makes an artifact. Not repeated when it may have taken effect: [`Self::find_artifact`] tells whether it has.
    pub async fn create_artifact(&self, artifact: &NewArtifact) -> Result<Artifact, Error> {
        self.read(Call::new(Method::POST, "artifacts/", &[]).json(artifact).once()).await
    }

    /// An artifact of the same run that says the same under the same key.
    pub async fn find_artifact(&self, artifact: &NewArtifact) -> Result<Option<Artifact>, Error> {
        let mut filter = json!({"flow_run_id": {"any_": [artifact.flow_run_id]}});
        if let Some(key) = &artifact.key {
            filter["key"] = json!({"any_": [key]});
        }
        let filter = json!({"artifacts": filter, "sort": "CREATED_DESC"});
        let same = |found: &Artifact| {
            found.kind.as_ref() == Some(&artifact.kind)
                && found.task_run_id == artifact.task_run_id
                && found.description == artifact.description
                && found.data == artifact.data
        };
        Ok(self.filter_artifacts(&filter).await?.into_iter().find(same))
    }

    /// Replaces the data of an artifact.
    pub async fn update_artifact(&self, id: ArtifactId, data: &Value) -> Result<(), Error> {
        self.call(Call::new(Method::PATCH, "artifacts/{}", &[&id.to_string()]).json(&json!({"data": data})))
            .await
    }

    /// Artifacts that match a filter of the API.
    pub async fn filter_artifacts(&self, filter: &Value) -> Result<Vec<Artifact>, Error> {
        self.read(Call::new(Method::POST, "artifacts/filter", &[]).json(filter)).await
    }

    /// A variable.
    pub async fn read_variable(&self, name: &str) -> Result<Option<Variable>, Error> {
        self.read_optional(Call::new(Method::GET, "variables/name/{}", &[name])).await
    }

    /// Makes a variable or replaces its value; its tags stay.
    pub async fn set_variable(&self, name: &str, value: &Value) -> Result<(), Error> {
        let made = Call::new(Method::POST, "variables/", &[])
            .json(&json!({"name": name, "value": value, "tags": []}));
        match self.call(made).await {
            Err(error) if error.status() == Some(409) => {
                let change = json!({"value": value});
                self.call(Call::new(Method::PATCH, "variables/name/{}", &[name]).json(&change)).await
            }
            outcome => outcome,
        }
    }
}
