//! Our process worker with a real server: its runs are processes of this machine, and outlive it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

use std::time::Duration;

use e2e::programs::Programs;
use e2e::puppet::{Behaviour, End, Shared};
use e2e::runs;
use prefect_api::deployment::{DeploymentSettings, NewDeployment};
use prefect_api::flow_run::{FlowRun, NewDeploymentRun};
use prefect_api::id::DeploymentId;
use prefect_api::state::{NewState, StateType};
use prefect_client::Client;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use testkit::prefect::{Options, PrefectServer};
use testkit::process::{Command, Process, Signal};

const POOL: &str = "processes";
/// How long a run may take to get somewhere.
const RUN: Duration = Duration::from_mins(2);

/// A server, a worker of this machine, and a deployment of puppets.
struct Site {
    server: PrefectServer,
    prefect: Client,
    command: Command,
    deployment: DeploymentId,
    shared: Shared,
    puppet: String,
    _files: TempDir,
}

impl Site {
    async fn open() -> (Self, Process) {
        let server = PrefectServer::start(Options::default()).await.unwrap();
        let prefect = runs::client(&server.api_url(), &server.client_env()).unwrap();
        let files = tempfile::tempdir().unwrap();
        let programs = Programs::find().unwrap();
        let command = Command::new(programs.path("prefect-worker").unwrap())
            .args(["start", "--type", "process", "--pool", POOL, "--name", "walker"])
            .envs(server.client_env())
            .env("PREFECT_WORKER_QUERY_SECONDS", "1")
            .env("PREFECT_HOME", files.path())
            .current_dir(files.path())
            .log_to(files.path().join("worker.log"));
        let mut worker = command.spawn().unwrap();
        worker.wait_for_log("worker started", RUN).await.unwrap();
        let settings = DeploymentSettings {
            work_pool_name: Some(POOL.to_owned()),
            parameter_openapi_schema: json!({"type": "object", "properties": {}}),
            ..DeploymentSettings::default()
        };
        let flow_id = prefect.create_flow("puppet").await.unwrap().id;
        let deployment =
            NewDeployment { name: "main".to_owned(), flow_id, settings, enforce_parameter_schema: false };
        let deployment = prefect.create_deployment(&deployment).await.unwrap().id;
        let shared = Shared::inside(files.path(), ([127, 0, 0, 1], server.port()).into()).unwrap();
        let puppet = programs.path("ferryman-puppet").unwrap().display().to_string();
        (Self { server, prefect, command, deployment, shared, puppet, _files: files }, worker)
    }

    /// Creates a run that does this.
    async fn trigger(&self, behaviour: &Behaviour, more: Value) -> FlowRun {
        let command = behaviour.command().replacen("ferryman-puppet", &self.puppet, 1);
        let directory = self.shared.directory().display().to_string();
        let env = json!({"FERRYMAN_PUPPET_DIRECTORY": directory});
        let mut variables = Map::from_iter([("command".to_owned(), command.into()), ("env".to_owned(), env)]);
        let Value::Object(more) = more else { panic!("job variables are an object") };
        variables.extend(more);
        let run = NewDeploymentRun { job_variables: Some(variables), ..NewDeploymentRun::default() };
        self.prefect.create_deployment_run(self.deployment, &run).await.unwrap()
    }

    async fn until_started(&self, run: &FlowRun) {
        let started = async {
            while !self.shared.has(&run.id.to_string()) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(RUN, started).await.unwrap();
    }

    /// The run when it has ended as it should; the worker's log tells why it has not.
    async fn ended(&self, run: &FlowRun, state: StateType, worker: &Process) -> FlowRun {
        let ended = runs::wait(&self.prefect, run.id, RUN, |_| {}).await;
        let ended = ended.unwrap_or_else(|error| panic!("{error:#}\n{}", worker.log()));
        let explained = runs::explain(&self.prefect, &ended).await;
        assert_eq!(ended.state_type, Some(state), "{explained}\n{}", worker.log());
        ended
    }

    /// Names of the events about a run, once the last of them is there.
    async fn events(&self, run: &FlowRun) -> Vec<String> {
        let id = format!("prefect.flow-run.{}", run.id);
        let filter = json!({"filter": {"related": {"id": [id]}}, "limit": 50});
        let all = async {
            loop {
                let page = self.prefect.post_json("events/filter", &filter).await.unwrap();
                let events = page["events"].as_array().unwrap().iter();
                let names: Vec<String> =
                    events.filter_map(|event| event["event"].as_str().map(str::to_owned)).collect();
                if names.iter().any(|name| name == "prefect.worker.executed-flow-run") {
                    return names;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(RUN, all).await.unwrap()
    }

    fn starts(&self, run: &FlowRun) -> usize {
        let witnesses = self.shared.witnesses().unwrap();
        witnesses.get(&run.id.to_string()).map_or(0, e2e::puppet::Witness::starts)
    }

    async fn close(self, worker: Process) {
        worker.stop(Duration::from_secs(20)).await.unwrap();
        self.server.stop().await.unwrap();
    }
}

fn message(run: &FlowRun) -> String {
    run.state.as_ref().and_then(|state| state.message.clone()).unwrap_or_default()
}

fn exiting(code: u8) -> Behaviour {
    Behaviour { end: End::Exit, code, reports: false, ..Behaviour::completing(Duration::from_millis(10)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_end_in_the_states_that_they_came_to() {
    let (site, worker) = Site::open().await;
    let completing = site.trigger(&Behaviour::completing(Duration::from_millis(50)), json!({})).await;
    let crashing = site.trigger(&exiting(3), json!({})).await;
    let counting = site.trigger(&exiting(0), json!({"report_exit_state": true})).await;
    let missing = site.trigger(&exiting(0), json!({"command": "/nonexistent/program"})).await;
    let completed = site.ended(&completing, StateType::Completed, &worker).await;
    assert!(completed.infrastructure_pid.is_some(), "{completed:?}");
    let events = site.events(&completed).await;
    assert!(events.iter().any(|name| name == "prefect.worker.submitted-flow-run"), "{events:?}");
    assert!(!events.iter().any(|name| name.contains("docker")), "no container was there: {events:?}");
    let crashed = site.ended(&crashing, StateType::Crashed, &worker).await;
    assert!(
        message(&crashed).contains("status code 3") || message(&crashed).contains("status code: 3"),
        "{crashed:?}"
    );
    site.ended(&counting, StateType::Completed, &worker).await;
    let refused = site.ended(&missing, StateType::Crashed, &worker).await;
    assert!(message(&refused).contains("/nonexistent/program"), "{refused:?}");
    site.close(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_process_that_does_not_listen_is_ended() {
    let (site, worker) = Site::open().await;
    let deaf = Behaviour { deaf: true, ..Behaviour::completing(Duration::from_mins(10)) };
    let run = site.trigger(&deaf, json!({"cancellation_grace_seconds": 3})).await;
    site.until_started(&run).await;
    let cancelling = NewState::new(StateType::Cancelling);
    site.prefect.set_flow_run_state(run.id, &cancelling, false).await.unwrap();
    let cancelled = site.ended(&run, StateType::Cancelled, &worker).await;
    let pid = cancelled.infrastructure_pid.unwrap();
    let pid = pid.rsplit(':').next().unwrap();
    assert!(!std::path::Path::new("/proc").join(pid).exists(), "{pid} still runs\n{}", worker.log());
    site.close(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_outlive_a_killed_worker_and_the_next_one_reports_their_ends() {
    let (site, mut worker) = Site::open().await;
    // One reports its own end while no worker is there; of the other only the next worker can tell.
    let reporting = site.trigger(&Behaviour::completing(Duration::from_secs(2)), json!({})).await;
    let silent = Behaviour { millis: 2_000, ..exiting(4) };
    let silent = site.trigger(&silent, json!({})).await;
    site.until_started(&reporting).await;
    site.until_started(&silent).await;
    worker.signal(Signal::Kill).unwrap();
    worker.wait(RUN).await.unwrap();
    site.ended(&reporting, StateType::Completed, &worker).await;

    let worker = site.command.spawn().unwrap();
    let crashed = site.ended(&silent, StateType::Crashed, &worker).await;
    assert!(message(&crashed).contains('4'), "{crashed:?}");
    assert_eq!((site.starts(&reporting), site.starts(&silent)), (1, 1));
    site.close(worker).await;
}
