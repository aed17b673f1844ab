//! Deployments of the program's flows, made from its command line: into a work pool (`deploy`), or to be served
//! by the program itself (`serve`).

use clap::Args;
use prefect_api::deployment::{ConcurrencyOptions, Deployment, DeploymentSettings, NewDeployment};
use prefect_client::{Client, Error as ApiError};
use serde_json::{Map, Value, json};

use crate::exit::Exit;
use crate::flow::AnyFlow;
use crate::parameters::parse_argument;

/// `deploy FLOW --pool POOL`.
#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// The flow's name.
    pub(crate) flow: String,
    /// The work pool whose workers run it.
    #[arg(long)]
    pool: String,
    /// A queue of the pool; it is made if there is none.
    #[arg(long)]
    work_queue: Option<String>,
    /// The image that holds this program: the job variable `image`.
    #[arg(long)]
    image: Option<String>,
    /// A job variable; the value is JSON, or text if it is not (repeatable).
    #[arg(long = "job-variable", value_name = "NAME=VALUE", value_parser = parse_argument)]
    job_variables: Vec<(String, Value)>,
    #[command(flatten)]
    terms: Terms,
}

/// What all deployments have.
#[derive(Debug, Args)]
pub(crate) struct Terms {
    /// Name of the deployment.
    #[arg(long, short, default_value = "default", value_parser = name)]
    pub(crate) name: String,
    /// A parameter of its runs; the value is JSON, or text if it is not (repeatable).
    #[arg(long = "param", short = 'p', value_name = "NAME=VALUE", value_parser = parse_argument)]
    parameters: Vec<(String, Value)>,
    /// A tag of its runs (repeatable).
    #[arg(long = "tag", short, value_name = "TAG")]
    tags: Vec<String>,
    /// What it is for, as Markdown; the flow's description if it is not given.
    #[arg(long)]
    description: Option<String>,
    /// Its version; the program's if it is not given.
    #[arg(long)]
    deployment_version: Option<String>,
    /// Run it at these times: a cron line.
    #[arg(long, group = "schedule")]
    cron: Option<String>,
    /// Run it again and again, with so many seconds between.
    #[arg(long, group = "schedule", value_name = "SECONDS", value_parser = interval)]
    interval: Option<f64>,
    /// Run it at these times: a recurrence rule of RFC 5545.
    #[arg(long, group = "schedule")]
    rrule: Option<String>,
    /// The time zone of the schedule.
    #[arg(long, value_name = "ZONE", default_value = "UTC", requires = "schedule")]
    timezone: String,
    /// Do not make runs of the schedule yet.
    #[arg(long)]
    paused: bool,
    /// The most runs of it at a time; others wait.
    #[arg(long, value_name = "RUNS", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency_limit: Option<u32>,
    /// Make runs whose parameters do not fit, too: they fail when they are run.
    #[arg(long)]
    no_enforce_parameter_schema: bool,
}

impl Terms {
    /// Whether runs are made by a schedule.
    pub(crate) fn have_schedule(&self) -> bool {
        self.cron.is_some() || self.interval.is_some() || self.rrule.is_some()
    }

    fn schedules(&self) -> Vec<Value> {
        let mut schedule = match (&self.cron, self.interval, &self.rrule) {
            (Some(cron), ..) => json!({"cron": cron}),
            (_, Some(seconds), _) => json!({"interval": seconds}),
            (.., Some(rule)) => json!({"rrule": rule}),
            (None, None, None) => return Vec::new(),
        };
        schedule["timezone"] = json!(self.timezone);
        vec![json!({"schedule": schedule, "active": true})]
    }
}

/// Why there is no deployment.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("deploy flow '{flow}': it has no parameter `{name}`; it takes {known}")]
    UnknownParameter { flow: String, name: String, known: String },
    #[error("deploy flow '{flow}': there is no work pool '{pool}'")]
    UnknownPool { flow: String, pool: String },
    #[error("deploy flow '{flow}'")]
    Api {
        flow: String,
        #[source]
        source: ApiError,
    },
}

impl Error {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::UnknownParameter { .. } => Exit::Usage,
            Self::UnknownPool { .. } => Exit::Config,
            Self::Api { source, .. } if source.is_transient() => Exit::Unavailable,
            Self::Api { source, .. } if matches!(source.status(), Some(401 | 403)) => Exit::Config,
            Self::Api { .. } => Exit::Failure,
        }
    }

    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::UnknownParameter { .. } => Some("`schema FLOW` prints what the flow takes"),
            Self::UnknownPool { .. } => Some("start its worker, which makes it, or name another with --pool"),
            Self::Api { source, .. } => source.hint(),
        }
    }
}

impl Deploy {
    /// Makes the deployment, or changes the one of this name to be as it says.
    pub(crate) async fn run(
        &self,
        client: &Client,
        flow: &dyn AnyFlow,
        version: &str,
    ) -> Result<Deployment, Error> {
        let name = &flow.info().name;
        let pool = client.read_work_pool(&self.pool).await;
        if pool.map_err(|source| Error::Api { flow: name.clone(), source })?.is_none() {
            return Err(Error::UnknownPool { flow: name.clone(), pool: self.pool.clone() });
        }
        let mut job_variables: Map<_, _> = self.job_variables.iter().cloned().collect();
        if let Some(image) = &self.image {
            job_variables.insert("image".to_owned(), json!(image));
        }
        let place = DeploymentSettings {
            work_pool_name: Some(self.pool.clone()),
            work_queue_name: self.work_queue.clone(),
            job_variables,
            ..DeploymentSettings::default()
        };
        register(client, flow, version, &self.terms, place).await
    }
}

/// Makes a deployment on these terms, or changes the one of this name. `place` says where its runs are run.
pub(crate) async fn register(
    client: &Client,
    flow: &dyn AnyFlow,
    version: &str,
    terms: &Terms,
    place: DeploymentSettings,
) -> Result<Deployment, Error> {
    let (info, schema) = (flow.info(), flow.schema());
    let parameters: Map<_, _> = terms.parameters.iter().cloned().collect();
    check_names(&info.name, &parameters, &schema)?;
    let version = terms.deployment_version.as_deref().or(info.version.as_deref()).unwrap_or(version);
    let waiting = ConcurrencyOptions { collision_strategy: "ENQUEUE".to_owned(), grace_period_seconds: None };
    let settings = DeploymentSettings {
        paused: terms.paused,
        schedules: terms.schedules(),
        concurrency_limit: terms.concurrency_limit,
        concurrency_options: terms.concurrency_limit.map(|_| waiting),
        parameters,
        parameter_openapi_schema: schema,
        tags: terms.tags.clone(),
        description: terms.description.clone().or_else(|| info.description.clone()),
        // Which flow it is; a binary has no path inside.
        entrypoint: Some(info.name.clone()),
        version: Some(version.to_owned()),
        ..place
    };
    let failed = |source| Error::Api { flow: info.name.clone(), source };
    let flow_id = client.create_flow(&info.name).await.map_err(failed)?.id;
    let deployment = NewDeployment {
        name: terms.name.clone(),
        flow_id,
        settings,
        enforce_parameter_schema: !terms.no_enforce_parameter_schema,
    };
    client.create_deployment(&deployment).await.map_err(failed)
}

/// A deployment may leave parameters to its runs, but it cannot have ones that the flow does not take.
fn check_names(flow: &str, parameters: &Map<String, Value>, schema: &Value) -> Result<(), Error> {
    let Some(known) = schema["properties"].as_object() else { return Ok(()) };
    let takes_more = schema.get("additionalProperties").is_some_and(|more| *more != json!(false));
    match parameters.keys().find(|name| !known.contains_key(*name)) {
        Some(name) if !takes_more => {
            let known: Vec<String> = known.keys().map(|name| format!("`{name}`")).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Err(Error::UnknownParameter { flow: flow.to_owned(), name: name.clone(), known })
        }
        _ => Ok(()),
    }
}

/// Names are parts of paths of the API.
fn name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(['/', '%', '&', '>', '<']) {
        return Err("a deployment's name must not be empty and must not contain any of / % & < >".to_owned());
    }
    Ok(text.to_owned())
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds > 0.0 => Ok(seconds),
        _ => Err("an interval is a number of seconds above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        deploy: Deploy,
    }

    fn parse(line: &str) -> Result<Deploy, clap::Error> {
        let words = std::iter::once("x").chain(line.split(' '));
        Line::try_parse_from(words).map(|line| line.deploy)
    }

    #[test]
    fn schedules_have_the_servers_form() {
        for (line, expected) in [
            ("f --pool p", json!([])),
            (
                "f --pool p --cron @daily",
                json!([{"schedule": {"cron": "@daily", "timezone": "UTC"}, "active": true}]),
            ),
            (
                "f --pool p --interval 90 --timezone Europe/Zurich",
                json!([{"schedule": {"interval": 90.0, "timezone": "Europe/Zurich"}, "active": true}]),
            ),
            (
                "f --pool p --rrule FREQ=DAILY",
                json!([{"schedule": {"rrule": "FREQ=DAILY", "timezone": "UTC"}, "active": true}]),
            ),
        ] {
            let terms = parse(line).unwrap().terms;
            assert_eq!(json!(terms.schedules()), expected, "{line}");
            assert_eq!(terms.have_schedule(), expected != json!([]), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_is_a_matter_of_usage() {
        for line in [
            "f",
            "f --pool p --name a/b",
            "f --pool p --interval 0",
            "f --pool p --interval 1 --cron @daily",
            "f --pool p --timezone UTC",
            "f --pool p --concurrency-limit 0",
            "f --pool p --param alone",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn parameters_that_the_flow_does_not_take_are_named() {
        let schema = json!({"properties": {"who": {}}});
        let given = |name: &str| Map::from_iter([(name.to_owned(), json!(1))]);
        check_names("f", &given("who"), &schema).unwrap();
        let error = check_names("f", &given("whom"), &schema).unwrap_err();
        assert_eq!(error.to_string(), "deploy flow 'f': it has no parameter `whom`; it takes `who`");
        assert_eq!(error.exit(), Exit::Usage);
        check_names("f", &given("whom"), &json!({"properties": {}, "additionalProperties": true})).unwrap();
    }
}
