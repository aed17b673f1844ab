//! Deployments.

use prefect_api::deployment::{Deployment, NewDeployment};
use prefect_api::flow_run::{FlowRun, NewDeploymentRun};
use prefect_api::id::DeploymentId;
use reqwest::Method;
use serde_json::Value;

use crate::error::Error;
use crate::http::{Call, Client};

impl Client {
    /// A deployment.
    pub async fn read_deployment(&self, id: DeploymentId) -> Result<Deployment, Error> {
        self.read(Call::new(Method::GET, "deployments/{}", &[&id.to_string()])).await
    }

    /// The deployment `flow/name`.
    pub async fn read_deployment_by_name(&self, flow: &str, name: &str) -> Result<Option<Deployment>, Error> {
        self.read_optional(Call::new(Method::GET, "deployments/name/{}/{}", &[flow, name])).await
    }

    /// Deployments that match a filter of the API.
    pub async fn filter_deployments(&self, filter: &Value) -> Result<Vec<Deployment>, Error> {
        self.read(Call::new(Method::POST, "deployments/filter", &[]).json(filter)).await
    }

    /// Makes a deployment.
    pub async fn create_deployment(&self, deployment: &NewDeployment) -> Result<Deployment, Error> {
        self.read(Call::new(Method::POST, "deployments/", &[]).json(deployment)).await
    }

    /// Makes a run of a deployment. Parameters that break its schema give 409.
    pub async fn create_deployment_run(
        &self,
        id: DeploymentId,
        run: &NewDeploymentRun,
    ) -> Result<FlowRun, Error> {
        self.read(Call::new(Method::POST, "deployments/{}/create_flow_run", &[&id.to_string()]).json(run))
            .await
    }
}
