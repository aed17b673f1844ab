//! The jobs of deployments, made as the worker makes them, but for nobody.

use std::collections::{BTreeMap, BTreeSet};

use prefect_api::flow_run::FlowRun;
use prefect_client::{Client, Settings};
use serde_json::json;
use uuid::Uuid;

use super::engine::Launchers;
use super::pool::{Kind, Served, Subject, Subjects};
use super::{Finding, in_time};
use crate::error::chain;
use crate::job::{self, JobError, Sources};
use crate::launcher::docker::survey::{ImageNeed, Needs};
use crate::launcher::{Job, LaunchError, Launcher as _, Notes};

/// What deployments need of engine and host, each with the deployments that need it.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) images: BTreeMap<ImageNeed, BTreeSet<String>>,
    pub(super) networks: BTreeMap<String, BTreeSet<String>>,
    pub(super) volumes: BTreeMap<String, BTreeSet<String>>,
    pub(super) binds: BTreeMap<String, BTreeSet<String>>,
}

impl Wanted {
    fn add(&mut self, deployment: &str, needs: Needs) {
        let note = |wanted: &mut BTreeMap<String, BTreeSet<String>>, names: BTreeSet<String>| {
            for name in names {
                wanted.entry(name).or_default().insert(deployment.to_owned());
            }
        };
        note(&mut self.networks, needs.networks);
        note(&mut self.volumes, needs.volumes);
        note(&mut self.binds, needs.binds);
        self.images.entry(needs.image).or_default().insert(deployment.to_owned());
    }
}

/// Whose they are, in few words.
pub(super) fn users(deployments: &BTreeSet<String>) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<&str> = deployments.iter().take(SHOWN).map(String::as_str).collect();
    match deployments.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

struct Silent;

impl Notes for Silent {
    fn note(&self, _: &str) {}
}

/// Makes the job of each deployment; gives what they need.
pub(super) async fn look(
    client: &Client,
    settings: &Settings,
    subjects: &Subjects,
    launchers: &Launchers,
    findings: &mut Vec<Finding>,
) -> Wanted {
    let mut wanted = Wanted::default();
    let base_env = settings.api_environment();
    for (served, deployments) in &subjects.served {
        for subject in deployments {
            let made = in_time(make(client, served, subject, &base_env)).await;
            let finding = match made {
                Ok(Ok(job)) => try_on(served.kind, &job, subject, launchers, &mut wanted).await,
                Ok(Err(error)) => Finding::failed(
                    "deployment",
                    format!("failed to {}", chain(&error)),
                    "correct its job variables, the blocks and variables that they refer to, or the pool's template",
                ),
                Err(silence) => {
                    Finding::failed("deployment", silence, "look at the log of the Prefect server")
                }
            };
            findings.push(finding.about(&subject.name));
        }
    }
    wanted
}

/// The job of a run of the deployment that nobody has made.
async fn make(
    client: &Client,
    served: &Served,
    subject: &Subject,
    base_env: &BTreeMap<String, String>,
) -> Result<Job, JobError> {
    let deployment = &subject.deployment;
    let flow = client.read_flow(deployment.flow_id).await?;
    let run: Result<FlowRun, _> = serde_json::from_value(json!({
        "id": Uuid::now_v7(), "name": "doctor", "flow_id": deployment.flow_id, "deployment_id": deployment.id,
        "parameters": deployment.parameters, "work_pool_name": served.record.name,
    }));
    let Ok(run) = run else { return Err(JobError::Field { field: "parameters", expected: "an object" }) };
    let sources = Sources {
        run: &run,
        deployment: Some(deployment),
        flow: &flow,
        pool: &served.record,
        template: &served.template,
        worker: "doctor",
        proposals: Vec::new(),
        base_env,
    };
    job::make(&sources, client).await
}

/// Lets the launcher read the job.
async fn try_on(
    kind: Kind,
    job: &Job,
    subject: &Subject,
    launchers: &Launchers,
    wanted: &mut Wanted,
) -> Finding {
    let away = || Finding::unchecked("deployment", "what its jobs run on cannot be used", "mend that first");
    let read = match kind {
        Kind::Docker => {
            let Some(docker) = &launchers.docker else { return away() };
            match in_time(docker.needs(job)).await {
                Ok(Ok(needs)) => Ok(needed(&subject.name, needs, wanted)),
                Ok(Err(error)) => Err(error),
                Err(silence) => {
                    return Finding::failed("deployment", silence, "look at the log of the engine");
                }
            }
        }
        Kind::Process => {
            let Some(process) = &launchers.process else { return away() };
            process
                .prepare(job, &Silent)
                .await
                .map(|()| (format!("its command is {:?}", job.command), Vec::new()))
        }
    };
    match read {
        Ok((found, ignored)) if ignored.is_empty() => Finding::ok("deployment", found),
        Ok((found, ignored)) => Finding::warning(
            "deployment",
            format!("{found}; nobody obeys {}", ignored.join(", ")),
            "correct these names in its job variables or in job_configuration of the pool's template",
        ),
        Err(error @ LaunchError::Forbidden { .. }) => Finding::failed(
            "deployment",
            format!("failed to {}", chain(&error)),
            "change its job variables, or let the operator of this host change the policy",
        ),
        Err(error) => Finding::failed(
            "deployment",
            format!("failed to {}", chain(&error)),
            "correct its job variables, or the defaults in the pool's template",
        ),
    }
}

/// Notes what a job needs; tells it in words, with the keys that mean nothing.
fn needed(deployment: &str, needs: Needs, wanted: &mut Wanted) -> (String, Vec<String>) {
    let mut words = vec![format!("image {}", needs.image.reference)];
    for (kind, names) in
        [("network", &needs.networks), ("volume", &needs.volumes), ("mount of", &needs.binds)]
    {
        words.extend(names.iter().map(|name| format!("{kind} {name}")));
    }
    let ignored = needs.ignored.clone();
    wanted.add(deployment, needs);
    (words.join(", "), ignored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_users_are_counted() {
        let users_of = |count: usize| users(&(0..count).map(|number| format!("f/{number}")).collect());
        assert_eq!(users_of(2), "f/0, f/1");
        assert_eq!(users_of(5), "f/0, f/1, f/2 and 2 more");
    }
}
