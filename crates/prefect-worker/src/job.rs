//! From a claimed run to the job that is launched for it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use prefect_api::deployment::Deployment;
use prefect_api::flow_run::{Flow, FlowRun};
use prefect_api::id::BlockDocumentId;
use prefect_api::template::{
    Answers, JobTemplate, Reference, Resolution, TemplateError, merge_job_variables, render_text, resolve,
    text_form,
};
use prefect_api::work_pool::WorkPool;
use prefect_client::{Client, PREFECT_VERSION};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::launcher::{Attempt, Job, LaunchError, Treatment};

/// The command of jobs that name none.
const DEFAULT_COMMAND: &str = "prefect flow-run execute";

/// Why no job could be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// Template or job variables are wrong.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// What they refer to could not be read.
    #[error(transparent)]
    Api(#[from] prefect_client::Error),
    /// A variable that the worker itself obeys has a wrong form.
    #[error(transparent)]
    Treatment(#[from] LaunchError),
    /// A part of the job configuration has a wrong form.
    #[error("use the job configuration: {field} must be {expected}")]
    Field {
        /// The part.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
}

impl JobError {
    /// Whether the same job may be made later.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Api(error) if error.is_transient())
    }
}

/// What a job is made of.
pub(crate) struct Sources<'a> {
    pub(crate) run: &'a FlowRun,
    pub(crate) deployment: Option<&'a Deployment>,
    pub(crate) flow: &'a Flow,
    pub(crate) pool: &'a WorkPool,
    pub(crate) template: &'a JobTemplate,
    pub(crate) worker: &'a str,
    /// Transition ids of the states that this worker proposes for the run.
    pub(crate) proposals: Vec<Uuid>,
    /// Environment that every job gets from the worker.
    pub(crate) base_env: &'a BTreeMap<String, String>,
}

/// Makes the job: merges job variables, fills the template, and fetches what it refers to.
pub(crate) async fn make(sources: &Sources<'_>, client: &Client) -> Result<Job, JobError> {
    let empty = Map::new();
    let deployment = sources.deployment.map_or(&empty, |deployment| &deployment.job_variables);
    let run = sources.run.job_variables.as_ref().unwrap_or(&empty);
    let variables = merge_job_variables(deployment, run);
    let mut configured = sources.template.configure(&variables, &environment)?;
    add_own_variables(&mut configured, &variables);
    let mut answers = Answers::new();
    loop {
        match resolve(&configured, &answers)? {
            Resolution::Complete(configuration) => {
                return assemble(sources, configuration, secret_variables(&configured));
            }
            Resolution::Needs(references) => {
                for reference in references {
                    let answer = fetch(client, &reference).await?;
                    answers.insert(reference, answer);
                }
            }
        }
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

async fn fetch(client: &Client, reference: &Reference) -> Result<Option<Value>, prefect_client::Error> {
    Ok(match reference {
        Reference::Block { type_slug, name } => {
            client.read_block(type_slug, name, true).await?.map(|block| Value::Object(block.data))
        }
        Reference::BlockId(id) => match id.parse::<BlockDocumentId>() {
            Ok(id) => client.read_block_by_id(id, true).await?.map(|block| Value::Object(block.data)),
            Err(_) => None,
        },
        Reference::Variable(name) => client.read_variable(name).await?.map(|variable| variable.value),
    })
}

/// The variables that the worker itself obeys work with templates that do not know them, too.
fn add_own_variables(configured: &mut Value, variables: &Map<String, Value>) {
    let Value::Object(configured) = configured else { return };
    for name in Treatment::VARIABLES {
        if let Some(value) = variables.get(name)
            && !configured.contains_key(name)
        {
            configured.insert(name.to_owned(), value.clone());
        }
    }
}

/// Names of environment variables whose values come from blocks.
fn secret_variables(configured: &Value) -> Vec<String> {
    let refers = |value: &Value| match value {
        Value::String(text) => text.contains("prefect.blocks."),
        Value::Object(object) => object.contains_key("$ref"),
        _ => false,
    };
    let environment = configured.get("env").and_then(Value::as_object).into_iter().flatten();
    environment.filter(|(_, value)| refers(value)).map(|(name, _)| name.clone()).collect()
}

/// Splits the configuration into what the worker obeys, what every launcher understands, and the rest.
fn assemble(sources: &Sources<'_>, configuration: Value, secret_env: Vec<String>) -> Result<Job, JobError> {
    let Value::Object(mut configuration) = configuration else {
        return Err(JobError::Field { field: "job_configuration", expected: "an object" });
    };
    let treatment = Treatment::take(&mut configuration)?;
    let mut take = |field| configuration.remove(field).filter(|value| !value.is_null());
    let command = text("command", take("command"))?;
    let name = text("name", take("name"))?;
    let name = name
        .and_then(|name| render_text(&name, &context(sources), &environment))
        .filter(|name| !name.is_empty());

    let env = match take("env") {
        None => BTreeMap::new(),
        Some(Value::Object(env)) => env
            .into_iter()
            .map(|(name, value)| (name, (!value.is_null()).then(|| text_form(&value))))
            .collect(),
        Some(_) => return Err(JobError::Field { field: "env", expected: "an object of names and values" }),
    };
    let mut labels = base_labels(sources);
    match take("labels") {
        None => {}
        Some(Value::Object(own)) => {
            for (name, value) in own {
                let Value::String(value) = value else {
                    return Err(JobError::Field {
                        field: "labels",
                        expected: "an object of names and texts",
                    });
                };
                labels.insert(name, value);
            }
        }
        Some(_) => {
            return Err(JobError::Field { field: "labels", expected: "an object of names and texts" });
        }
    }
    let attempt = Attempt {
        work_pool_id: Some(sources.pool.id),
        proposals: sources.proposals.clone(),
        run_count: sources.run.run_count,
        secret_env,
        treatment,
        ..Attempt::new(sources.run.id, &sources.pool.name, sources.worker)
    };
    Ok(Job {
        attempt,
        name: name.unwrap_or_else(|| sources.run.name.clone()),
        command: command.unwrap_or_else(|| DEFAULT_COMMAND.to_owned()),
        base_env: base_env(sources),
        env,
        labels,
        configuration,
    })
}

/// The text of a field; the empty one counts as none.
fn text(field: &'static str, value: Option<Value>) -> Result<Option<String>, JobError> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
        Some(_) => Err(JobError::Field { field, expected: "text (in quotes)" }),
    }
}

/// API settings, the run, and whom its requests are to be attributed to.
fn base_env(sources: &Sources<'_>) -> BTreeMap<String, String> {
    let mut env = sources.base_env.clone();
    let mut set = |name: &str, value: String| env.insert(name.to_owned(), value);
    set("PREFECT__FLOW_RUN_ID", sources.run.id.to_string());
    set("PREFECT__WORKER_NAME", sources.worker.to_owned());
    set("PREFECT__FLOW_ID", sources.flow.id.to_string());
    set("PREFECT__FLOW_NAME", sources.flow.name.clone());
    if let Some(deployment) = sources.deployment {
        set("PREFECT__DEPLOYMENT_ID", deployment.id.to_string());
        set("PREFECT__DEPLOYMENT_NAME", deployment.name.clone());
    }
    env
}

fn base_labels(sources: &Sources<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut set = |name: &str, value: String| labels.insert(format!("prefect.io/{name}"), value);
    set("flow-run-id", sources.run.id.to_string());
    set("flow-run-name", sources.run.name.clone());
    set("version", PREFECT_VERSION.to_owned());
    set("work-pool-name", sources.pool.name.clone());
    set("work-pool-id", sources.pool.id.to_string());
    set("worker-name", sources.worker.to_owned());
    set("flow-id", sources.flow.id.to_string());
    set("flow-name", sources.flow.name.clone());
    if let Some(deployment) = sources.deployment {
        set("deployment-id", deployment.id.to_string());
        set("deployment-name", deployment.name.clone());
        if let Some(updated) = deployment.updated {
            set("deployment-updated", python_isoformat(updated));
        }
    }
    labels
}

/// A moment as Python writes it: six digits of the second's fraction or none.
fn python_isoformat(moment: Timestamp) -> String {
    let form = if moment.subsec_microsecond() + moment.subsec_millisecond() == 0 {
        "%Y-%m-%dT%H:%M:%S+00:00"
    } else {
        "%Y-%m-%dT%H:%M:%S%.6f+00:00"
    };
    moment.strftime(form).to_string()
}

/// What `{{ ctx.* }}` in a name may refer to: all that the server tells of flow and run.
fn context(sources: &Sources<'_>) -> Map<String, Value> {
    let context = json!({"flow": sources.flow, "flow_run": sources.run});
    Map::from_iter([("ctx".to_owned(), context)])
}

#[cfg(test)]
mod tests {
    use prefect_api::work_pool::BaseJobTemplate;

    use super::*;
    use crate::launcher::docker::default_template;

    #[expect(clippy::needless_pass_by_value, reason = "literals read better without a reference")]
    fn assembled(template: &BaseJobTemplate, deployment: Value, run: Value) -> Result<Job, JobError> {
        let id = Uuid::nil();
        let deployment: Deployment = serde_json::from_value(json!({
            "id": id, "name": "dep", "flow_id": id, "updated": "2026-11-22T04:36:35.634Z", "job_variables": deployment,
        }))
        .unwrap();
        let run: FlowRun = serde_json::from_value(
            json!({"id": id, "name": "blue-owl", "flow_id": id, "parameters": {"n": 3}, "job_variables": run}),
        )
        .unwrap();
        let pool: WorkPool =
            serde_json::from_value(json!({"id": id, "name": "pool", "type": "docker"})).unwrap();
        let flow: Flow = serde_json::from_value(json!({"id": id, "name": "archive"})).unwrap();
        let template = JobTemplate::parse(template).unwrap();
        let sources = Sources {
            run: &run,
            deployment: Some(&deployment),
            flow: &flow,
            pool: &pool,
            template: &template,
            worker: "w",
            proposals: Vec::new(),
            base_env: &BTreeMap::from([("PREFECT_API_URL".to_owned(), "http://h/api".to_owned())]),
        };
        let variables = merge_job_variables(&deployment.job_variables, run.job_variables.as_ref().unwrap());
        let configured = template.configure(&variables, &|_| None)?;
        let Resolution::Complete(configuration) = resolve(&configured, &Answers::new())? else {
            panic!("unexpected references");
        };
        assemble(&sources, configuration, secret_variables(&configured))
    }

    #[test]
    fn defaults_give_the_runs_name_and_prefects_command() {
        let job = assembled(&default_template(), json!({}), json!({})).unwrap();
        assert_eq!((job.name.as_str(), job.command.as_str()), ("blue-owl", "prefect flow-run execute"));
        insta::assert_json_snapshot!(json!({"env": job.base_env, "labels": job.labels, "rest": job.configuration}), @r#"
        {
          "env": {
            "PREFECT_API_URL": "http://h/api",
            "PREFECT__DEPLOYMENT_ID": "00000000-0000-0000-0000-000000000000",
            "PREFECT__DEPLOYMENT_NAME": "dep",
            "PREFECT__FLOW_ID": "00000000-0000-0000-0000-000000000000",
            "PREFECT__FLOW_NAME": "archive",
            "PREFECT__FLOW_RUN_ID": "00000000-0000-0000-0000-000000000000",
            "PREFECT__WORKER_NAME": "w"
          },
          "labels": {
            "prefect.io/deployment-id": "00000000-0000-0000-0000-000000000000",
            "prefect.io/deployment-name": "dep",
            "prefect.io/deployment-updated": "2026-11-22T04:36:35.634000+00:00",
            "prefect.io/flow-id": "00000000-0000-0000-0000-000000000000",
            "prefect.io/flow-name": "archive",
            "prefect.io/flow-run-id": "00000000-0000-0000-0000-000000000000",
            "prefect.io/flow-run-name": "blue-owl",
            "prefect.io/version": "3.7.2",
            "prefect.io/work-pool-id": "00000000-0000-0000-0000-000000000000",
            "prefect.io/work-pool-name": "pool",
            "prefect.io/worker-name": "w"
          },
          "rest": {
            "api_credentials_as_files": false,
            "auto_remove": false,
            "privileged": false,
            "stream_output": true
          }
        }
        "#);
    }

    #[test]
    fn job_variables_reach_the_job() {
        let job = assembled(
            &default_template(),
            json!({"name": "{{ ctx.flow.name }}-{{ ctx.flow_run.parameters.n }}", "env": {"A": 1, "B": "b"}, "image": "i:1"}),
            json!({"env": {"B": null}, "labels": {"team": "x"}, "command": "sh -c 'true'"}),
        )
        .unwrap();
        assert_eq!((job.name.as_str(), job.command.as_str()), ("archive-3", "sh -c 'true'"));
        assert_eq!(job.env, BTreeMap::from([("A".to_owned(), Some("1".to_owned())), ("B".to_owned(), None)]));
        assert_eq!(job.labels["team"], "x");
        assert_eq!(job.configuration["image"], "i:1");
    }

    #[test]
    fn a_job_configuration_of_a_wrong_form_is_refused() {
        for (variables, part) in [
            (json!({"labels": ["x"]}), "labels must be an object"),
            (json!({"labels": {"n": 1}}), "labels must be an object of names and texts"),
            (json!({"command": ["sh"]}), "command must be text"),
            (json!({"name": 5}), "name must be text"),
            (json!({"env": ["A=1"]}), "must be an object"),
        ] {
            let error = assembled(&default_template(), variables, json!({})).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
