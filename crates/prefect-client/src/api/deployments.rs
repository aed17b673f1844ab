//! Deployments.

use jiff::Timestamp;
use prefect_api::deployment::{Deployment, NewDeployment};
use prefect_api::flow_run::{FlowRun, NewDeploymentRun};
use prefect_api::id::DeploymentId;
use reqwest::Method;
use serde_json::{Value, json};

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

    /// Stops or resumes the schedules of a deployment.
    pub async fn set_deployment_paused(&self, id: DeploymentId, paused: bool) -> Result<(), Error> {
        let path =
            if paused { "deployments/{}/pause_deployment" } else { "deployments/{}/resume_deployment" };
        self.call(Call::new(Method::POST, path, &[&id.to_string()])).await
    }

    /// Runs of deployments that are due before a moment. No claim: whoever asks is told the same ones.
    pub async fn poll_deployments(
        &self,
        ids: &[DeploymentId],
        scheduled_before: Timestamp,
    ) -> Result<Vec<FlowRun>, Error> {
        let body = json!({"deployment_ids": ids, "scheduled_before": scheduled_before});
        self.read(Call::new(Method::POST, "deployments/get_scheduled_flow_runs", &[]).json(&body)).await
    }
}
