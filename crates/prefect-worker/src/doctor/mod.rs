//! Whether a worker would work here, told before it is needed: the checks of `prefect-worker doctor`.
//!
//! Nothing is changed and nothing pulled. What needs something that is away is told as not checked, and the
//! rest is looked at all the same.

mod api;
mod clock;
mod deployments;
mod engine;
mod finding;
mod jobs;
mod mountinfo;
mod mounts;
mod pool;
mod setup;
mod vantage;

use std::time::Duration;

use prefect_client::{Client, Settings};

use crate::error::Error;
use crate::policy::Policy;
use api::Access;
pub(crate) use finding::{Finding, Verdict};
pub(crate) use mounts::show as show_mounts;

/// How long each check may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// What is to be looked at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// Pools by name.
    pub(crate) pools: Vec<String>,
    /// The type of worker; else the pools'.
    pub(crate) kind: Option<String>,
    /// Deployments as `FLOW/NAME`; else all of the pools.
    pub(crate) deployments: Vec<String>,
    /// Whether, and by which image, a container may look at the mounts.
    pub(crate) probe: Probe,
}

/// Whether a container may look at directories of the engine's host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Probe {
    /// No container is started.
    #[default]
    No,
    /// One of the image of the worker's own container.
    OwnImage,
    /// One of this image, in which there has to be a `prefect-worker`.
    Image(String),
}

/// Looks at all of it.
///
/// # Errors
/// Nothing can be looked at: no client can be made of the settings.
pub(crate) async fn examine(
    settings: &Settings,
    policy: Result<Option<Policy>, Error>,
    request: &Request,
) -> Result<Vec<Finding>, Error> {
    let client = Client::without_retries(settings)?;
    let mut findings = setup::settings(settings);
    let policy = setup::policy(policy, &mut findings);
    let access = api::look(&client, settings, &mut findings).await;
    let subjects = match access {
        Access::Granted => pool::look(&client, request, &mut findings).await,
        Access::Denied(why) => {
            findings.extend(pool::unchecked(request, why));
            pool::Subjects::default()
        }
    };
    let launchers = engine::look(request, &subjects, policy, &mut findings).await;
    let wanted = Box::pin(deployments::look(&client, settings, &subjects, &launchers, &mut findings)).await;
    if let Some(docker) = &launchers.docker {
        jobs::look(docker, &wanted, &mut findings).await;
        mounts::look(docker, launchers.facts.as_ref(), &wanted, &request.probe, &mut findings).await;
    }
    Ok(findings)
}

/// What the work gives, if it ends in time.
async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let ended = tokio::time::timeout(DEADLINE, work).await;
    ended.map_err(|_| format!("no answer within {} s", DEADLINE.as_secs()))
}
