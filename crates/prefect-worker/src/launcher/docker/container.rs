//! From a job to the body that creates its container.

use std::collections::BTreeMap;
use std::fmt;

use bollard::models::{ContainerCreateBody, EndpointSettings};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::super::{Job, LaunchError};
use super::config::DockerConfig;
use super::image::PullPolicy;
use super::kwargs::{CreateOptions, ExtraHosts};
use super::secret_files::Delivery;
use super::{command, labels};
use crate::slug::container_name;

const API_URL: &str = "PREFECT_API_URL";
/// The name under which containers find the machine they run on.
const HOST_ALIAS: &str = "host.docker.internal";

/// Everything that creating a container takes.
pub(super) struct Plan {
    /// The name wanted; the engine invents one if there is none.
    pub(super) name: Option<String>,
    pub(super) platform: String,
    /// When its image is pulled.
    pub(super) pull_policy: PullPolicy,
    pub(super) body: ContainerCreateBody,
    /// Networks to connect before the start, beside the one in the body.
    pub(super) further_networks: Vec<String>,
    /// The container's settings in those of them that have some.
    pub(super) further_endpoints: BTreeMap<String, EndpointSettings>,
    /// Files to put into it before the start.
    pub(super) secrets: Delivery,
}

impl fmt::Debug for Plan {
    // The body holds the environment, and with it the credentials of the API.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Plans the container. `host_gateway`: the engine knows how to name its host.
pub(super) fn plan(job: &Job, config: &DockerConfig, host_gateway: bool) -> Result<Plan, LaunchError> {
    let mut options = CreateOptions::parse(&config.create_kwargs)?;
    options.host.extend(fields_of(&config.options.host));
    options.container.extend(fields_of(&config.options.container));
    let mut environment = environment(job, config);
    let secrets = config.secret_files.settle(&mut environment)?;
    let network = config.networks.first();

    let mut host = options.host;
    let mode = network.cloned().or_else(|| network_mode(config, effective_url(job, &environment)));
    if mode.as_deref() == Some("host") && host.contains_key("PortBindings") {
        return Err(wrong_kwargs(
            "ports cannot be used on the host's network: remove it, or set network_mode",
        ));
    }
    host.insert("NetworkMode".to_owned(), json!(mode.unwrap_or_else(|| "default".to_owned())));
    let own_hosts = config.options.extra_hosts.clone();
    let extra_hosts = extra_hosts(&environment, options.extra_hosts, own_hosts, host_gateway);
    if !extra_hosts.is_empty() {
        host.insert("ExtraHosts".to_owned(), json!(extra_hosts));
    }
    if !config.volumes.is_empty() {
        host.insert("Binds".to_owned(), json!(config.volumes));
    }
    for (field, amount) in [("Memory", config.memory), ("MemorySwap", config.memory_swap)] {
        if let Some(amount) = amount {
            host.insert(field.to_owned(), json!(amount));
        }
    }
    if config.privileged {
        host.insert("Privileged".to_owned(), json!(true));
    }

    let mut endpoints = endpoints(options.endpoints, &config.networks)?;
    let mut body = options.container;
    if !options.detach && body.get("OpenStdin") == Some(&json!(true)) {
        body.insert("AttachStdin".to_owned(), json!(true));
        body.insert("StdinOnce".to_owned(), json!(true));
    }
    let mounted: Map<String, Value> =
        config.volumes.iter().map(|volume| (container_path(volume).to_owned(), json!({}))).collect();
    let assignments: Vec<String> =
        environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    body.extend([
        ("Image".to_owned(), json!(config.image)),
        ("Cmd".to_owned(), json!(command::split("command", &job.command)?)),
        ("Env".to_owned(), json!(assignments)),
        ("Labels".to_owned(), json!(labels::of(job, config))),
        ("AttachStdout".to_owned(), json!(!options.detach)),
        ("AttachStderr".to_owned(), json!(!options.detach)),
        ("HostConfig".to_owned(), Value::Object(host)),
    ]);
    if !mounted.is_empty() {
        body.insert("Volumes".to_owned(), Value::Object(mounted));
    }
    if let Some(network) = network {
        let settings = endpoints.remove(network).unwrap_or_default();
        body.insert("NetworkingConfig".to_owned(), json!({"EndpointsConfig": {network: settings}}));
    }
    // Every value was checked: what is still wrong is no user's, and its words may quote a user's secret.
    let mut body = serde_json::from_value(Value::Object(body))
        .map_err(|_| wrong_kwargs("it does not fit the engine's form"))?;
    let secrets = Delivery::plan(secrets, &mut body)?;
    Ok(Plan {
        name: container_name(&job.name),
        platform: options.platform.or_else(|| config.options.platform.clone()).unwrap_or_default(),
        pull_policy: config.pull_policy,
        body,
        further_networks: config.networks.iter().skip(1).cloned().collect(),
        further_endpoints: endpoints,
        secrets,
    })
}

fn wrong_kwargs(problem: &str) -> LaunchError {
    LaunchError::Configuration { message: format!("container_create_kwargs: {problem}") }
}

/// The settings of `networking_config`, all of which must be for one of the networks.
fn endpoints(
    settings: BTreeMap<String, Value>,
    networks: &[String],
) -> Result<BTreeMap<String, EndpointSettings>, LaunchError> {
    let parse = |(network, settings): (String, Value)| {
        if !networks.contains(&network) {
            let problem = format!("networking_config has settings for {network:?}: name it in networks too");
            return Err(wrong_kwargs(&problem));
        }
        let settings = serde_json::from_value(settings)
            .map_err(|_| wrong_kwargs("networking_config does not fit the engine's form"))?;
        Ok((network, settings))
    };
    settings.into_iter().map(parse).collect()
}

/// The fields of a model that are set.
fn fields_of(model: &impl Serialize) -> Map<String, Value> {
    match json!(model) {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// The environment: the worker's, with a local API reachable from inside, below the job's own.
fn environment(job: &Job, config: &DockerConfig) -> BTreeMap<String, String> {
    let mut environment = job.base_env.clone();
    let url = match job.env.get(API_URL) {
        Some(own) => own.as_deref(),
        None => job.base_env.get(API_URL).map(String::as_str),
    };
    if network_mode(config, url).as_deref() != Some("host")
        && let Some(url) = environment.get_mut(API_URL)
    {
        *url = url.replace("localhost", HOST_ALIAS).replace("127.0.0.1", HOST_ALIAS);
    }
    for (name, value) in &job.env {
        match value {
            Some(value) => environment.insert(name.clone(), value.clone()),
            None => environment.remove(name),
        };
    }
    environment
}

/// The API's address as the container sees it, else as the worker does.
fn effective_url<'a>(job: &'a Job, environment: &'a BTreeMap<String, String>) -> Option<&'a str> {
    environment.get(API_URL).or_else(|| job.base_env.get(API_URL)).map(String::as_str)
}

/// The network mode wished for, or the host's network if the API is on this machine.
fn network_mode(config: &DockerConfig, api_url: Option<&str>) -> Option<String> {
    if config.network_mode.is_some() {
        return config.network_mode.clone();
    }
    if !config.networks.is_empty() {
        return None;
    }
    let rest = api_url?.split_once("://").map(|(_, rest)| rest)?;
    let host = rest.split(['/', ':']).next()?;
    matches!(host, "127.0.0.1" | "localhost").then(|| "host".to_owned())
}

/// Entries of the container's hosts file: those of the job, and the host's name if the API may be there.
fn extra_hosts(
    environment: &BTreeMap<String, String>,
    chosen: Option<ExtraHosts>,
    own: BTreeMap<String, String>,
    host_gateway: bool,
) -> Vec<String> {
    let local = environment
        .get(API_URL)
        .is_none_or(|url| ["localhost", "127.0.0.1", HOST_ALIAS].iter().any(|host| url.contains(host)));
    let mut hosts = BTreeMap::new();
    if local && host_gateway {
        hosts.insert(HOST_ALIAS.to_owned(), "host-gateway".to_owned());
    }
    match chosen {
        None => {}
        Some(ExtraHosts::Named(named)) => hosts.extend(named),
        Some(ExtraHosts::Listed(entries)) if hosts.is_empty() && own.is_empty() => return entries,
        Some(ExtraHosts::Listed(entries)) => {
            let pairs = entries.iter().filter_map(|entry| entry.split_once(':'));
            hosts.extend(pairs.map(|(name, address)| (name.to_owned(), address.to_owned())));
        }
    }
    hosts.extend(own);
    hosts.iter().map(|(name, address)| format!("{name}:{address}")).collect()
}

/// The path inside the container of a volume such as `/host:/container:ro`.
pub(super) fn container_path(volume: &str) -> &str {
    let mut parts = volume.splitn(3, ':');
    let first = parts.next().unwrap_or_default();
    parts.next().unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launcher::Attempt;

    #[expect(clippy::needless_pass_by_value, reason = "literals read better without a reference")]
    fn job(configuration: Value) -> (Job, DockerConfig) {
        let configuration = configuration.as_object().unwrap().clone();
        let config = DockerConfig::parse(&configuration).unwrap();
        let job = Job {
            attempt: Attempt::new(uuid::Uuid::nil().into(), "pool", "w"),
            name: "cobalt cuscus".to_owned(),
            command: "prefect flow-run execute".to_owned(),
            base_env: BTreeMap::from([(API_URL.to_owned(), "http://127.0.0.1:4200/api".to_owned())]),
            env: BTreeMap::new(),
            labels: BTreeMap::from([("prefect.io/flow-run-name".to_owned(), "cobalt cuscus".to_owned())]),
            configuration,
        };
        (job, config)
    }

    fn planned(configuration: Value) -> Value {
        let (job, config) = job(configuration);
        serde_json::to_value(plan(&job, &config, true).unwrap().body).unwrap()
    }

    #[test]
    fn a_plain_job_on_a_local_api_shares_the_hosts_network() {
        let (job, config) = job(json!({"image": "a/b:1"}));
        let plan = plan(&job, &config, true).unwrap();
        assert_eq!(plan.name.as_deref(), Some("cobalt-cuscus"));
        let mut body = serde_json::to_value(plan.body).unwrap();
        body["Labels"].as_object_mut().unwrap().remove("io.ferryman.attempt").unwrap();
        insta::assert_json_snapshot!(body, @r#"
        {
          "AttachStderr": true,
          "AttachStdout": true,
          "Cmd": [
            "prefect",
            "flow-run",
            "execute"
          ],
          "Env": [
            "PREFECT_API_URL=http://127.0.0.1:4200/api"
          ],
          "HostConfig": {
            "ExtraHosts": [
              "host.docker.internal:host-gateway"
            ],
            "NetworkMode": "host"
          },
          "Image": "a/b:1",
          "Labels": {
            "io.ferryman.flow-run-id": "00000000-0000-0000-0000-000000000000",
            "io.ferryman.work-pool": "pool",
            "io.ferryman.worker": "w",
            "io.prefect.flow-run-name": "cobalt cuscus",
            "io.prefect.version": "3.7.2"
          }
        }
        "#);
    }

    #[test]
    fn on_another_network_a_local_api_is_reached_through_the_host() {
        let body = planned(json!({"networks": ["first", "second"]}));
        assert_eq!(body["Env"], json!(["PREFECT_API_URL=http://host.docker.internal:4200/api"]));
        assert_eq!(body["HostConfig"]["NetworkMode"], "first");
        assert_eq!(body["NetworkingConfig"], json!({"EndpointsConfig": {"first": {}}}));
        assert_eq!(body["HostConfig"]["ExtraHosts"], json!(["host.docker.internal:host-gateway"]));
        let body = planned(json!({"network_mode": "bridge"}));
        assert_eq!(body["Env"], json!(["PREFECT_API_URL=http://host.docker.internal:4200/api"]));
        assert_eq!(body["HostConfig"]["NetworkMode"], "bridge");
    }

    #[test]
    fn a_remote_api_leaves_the_network_alone() {
        let (mut job, config) = job(json!({}));
        job.env.insert(API_URL.to_owned(), Some("https://prefect.example/api".to_owned()));
        let body = serde_json::to_value(plan(&job, &config, true).unwrap().body).unwrap();
        assert_eq!(body["Env"], json!(["PREFECT_API_URL=https://prefect.example/api"]));
        assert_eq!(body["HostConfig"]["NetworkMode"], "default");
        assert_eq!(body["HostConfig"].get("ExtraHosts"), None);
    }

    #[test]
    fn the_jobs_environment_wins_and_may_unset() {
        let (mut job, config) = job(json!({"network_mode": "host"}));
        job.base_env.insert("A".to_owned(), "worker".to_owned());
        job.base_env.insert("B".to_owned(), "worker".to_owned());
        job.env = BTreeMap::from([("A".to_owned(), Some("job".to_owned())), ("B".to_owned(), None)]);
        let body = plan(&job, &config, true).unwrap().body;
        assert_eq!(body.env.unwrap(), ["A=job", "PREFECT_API_URL=http://127.0.0.1:4200/api"]);
    }

    #[test]
    fn limits_and_volumes_reach_the_engine() {
        let body = planned(json!({
            "mem_limit": "64m", "memswap_limit": "-1", "privileged": true, "auto_remove": true,
            "volumes": ["/a:/b:ro", "named:/c", "/anonymous"], "stream_output": false,
        }));
        assert_eq!(body["HostConfig"]["Memory"], 67_108_864);
        assert_eq!(body["HostConfig"]["MemorySwap"], -1);
        assert_eq!(body["HostConfig"]["Privileged"], true);
        assert_eq!(body["HostConfig"]["Binds"], json!(["/a:/b:ro", "named:/c", "/anonymous"]));
        assert_eq!(body["Volumes"], json!({"/anonymous": {}, "/b": {}, "/c": {}}));
        assert_eq!(body["Labels"]["io.ferryman.auto-remove"], "true");
    }

    #[test]
    fn an_unclosed_quote_in_the_command_is_refused() {
        let (mut job, config) = job(json!({}));
        job.command = "sh -c 'echo".to_owned();
        let error = plan(&job, &config, true).unwrap_err();
        assert!(error.to_string().contains("command must be a command line"), "{error}");
    }
}
