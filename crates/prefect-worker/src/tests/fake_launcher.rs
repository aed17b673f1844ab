//! A launcher whose infrastructure exists on paper.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use prefect_api::work_pool::BaseJobTemplate;
use secrecy::SecretString;
use tokio::sync::watch;
use uuid::Uuid;

use super::{DEADLINE, Journal};
use crate::launcher::{
    Attempt, Found, Infrastructure, Job, LaunchError, Launcher, Memory, Notes, Outcome, OutputSink, Phase,
    Refusal, docker,
};
use crate::status::Engine;

#[derive(Debug)]
pub(super) struct FakeLauncher {
    journal: Journal,
    behaviour: Mutex<Behaviour>,
    /// The exit code of everything that runs, once it is known.
    exit: watch::Sender<Option<i64>>,
    starts: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Behaviour {
    hang_in_prepare: bool,
    start: Start,
    /// The next creation finds no engine.
    engine_away: bool,
    /// What a former worker has left.
    left: Vec<Found>,
}

/// What becomes of a start.
#[derive(Debug, Default)]
enum Start {
    #[default]
    Works,
    Refused,
    /// The engine has spoiled the container; another one starts.
    Spoiled,
}

impl FakeLauncher {
    pub(super) fn new(journal: Journal) -> Self {
        let behaviour = Mutex::default();
        Self { journal, behaviour, exit: watch::Sender::new(None), starts: watch::Sender::new(0) }
    }

    pub(super) fn hang_in_prepare(&self) {
        self.behaviour.lock().unwrap().hang_in_prepare = true;
    }

    pub(super) fn refuse_to_start(&self) {
        self.behaviour.lock().unwrap().start = Start::Refused;
    }

    pub(super) fn spoil_once(&self) {
        self.behaviour.lock().unwrap().start = Start::Spoiled;
    }

    pub(super) fn miss_the_engine_once(&self) {
        self.behaviour.lock().unwrap().engine_away = true;
    }

    /// Whatever runs, and whatever will run, ends with this code.
    pub(super) fn finish(&self, code: i64) {
        self.exit.send_replace(Some(code));
    }

    /// A former worker, of this name, has left something for a run that it claimed with `claim`.
    pub(super) fn leave(&self, run: Uuid, worker: &str, phase: Phase, claim: Uuid) {
        self.leave_in(super::fake_api::ID, run, worker, phase, claim);
    }

    /// The same of a pool with this id.
    pub(super) fn leave_in(&self, pool: Uuid, run: Uuid, worker: &str, phase: Phase, claim: Uuid) {
        let mut attempt = Attempt::new(run.into(), "pool", worker);
        attempt.work_pool_id = Some(pool.into());
        attempt.proposals = vec![claim];
        let infrastructure = Infrastructure::new("left", "left", "fake:left");
        self.behaviour.lock().unwrap().left = vec![Found { infrastructure, attempt, phase }];
    }

    /// Waits until so many were started.
    pub(super) async fn started(&self, count: usize) {
        let mut starts = self.starts.subscribe();
        let started = tokio::time::timeout(DEADLINE, starts.wait_for(|starts| *starts >= count)).await;
        assert!(started.is_ok(), "{count} were not started");
    }
}

#[async_trait]
impl Launcher for FakeLauncher {
    fn kind(&self) -> &'static str {
        "docker"
    }

    fn default_template(&self) -> BaseJobTemplate {
        docker::default_template()
    }

    fn place(&self) -> &'static str {
        "here"
    }

    async fn check(&self) -> Result<Option<Engine>, LaunchError> {
        Ok(Some(Engine { address: "fake".to_owned(), version: "1".to_owned() }))
    }

    async fn prepare(&self, job: &Job, _: &dyn Notes) -> Result<(), LaunchError> {
        self.journal.write(format!("prepare {}: {}", job.name, job.command));
        if self.behaviour.lock().unwrap().hang_in_prepare {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn create(&self, job: &Job) -> Result<Infrastructure, LaunchError> {
        if std::mem::take(&mut self.behaviour.lock().unwrap().engine_away) {
            self.journal.write("no engine");
            let (address, message) = ("fake".to_owned(), "away".to_owned());
            return Err(LaunchError::Unreachable { address, message });
        }
        self.journal.write("create");
        Ok(Infrastructure::new("c", &job.name, "fake:c"))
    }

    async fn start(&self, _: &Infrastructure) -> Result<(), LaunchError> {
        let mut behaviour = self.behaviour.lock().unwrap();
        match behaviour.start {
            Start::Works => {}
            Start::Refused => return Err(LaunchError::Engine { action: "start", message: "no".to_owned() }),
            Start::Spoiled => {
                behaviour.start = Start::Works;
                let (refusal, message) = (Refusal::StartInterrupted, "task c: already exists".to_owned());
                return Err(LaunchError::Refused { action: "start", refusal, message });
            }
        }
        self.journal.write("start");
        self.starts.send_modify(|starts| *starts += 1);
        Ok(())
    }

    async fn wait(&self, _: &Infrastructure, _: Option<OutputSink>) -> Outcome {
        let mut exit = self.exit.subscribe();
        let code = exit.wait_for(Option::is_some).await.ok().and_then(|code| *code);
        Outcome::Exited {
            code: code.unwrap_or(-1),
            out_of_memory: false,
            error: None,
            memory: Memory::default(),
        }
    }

    async fn list(&self, _: &str) -> Result<Vec<Found>, LaunchError> {
        Ok(self.behaviour.lock().unwrap().left.clone())
    }

    async fn tail(&self, _: &Infrastructure, _: usize) -> Vec<String> {
        vec!["last words".to_owned()]
    }

    async fn secrets(&self, _: &Infrastructure, _: &Attempt) -> Vec<SecretString> {
        Vec::new()
    }

    async fn tidy(&self, _: &Infrastructure) -> Result<(), LaunchError> {
        self.journal.write("tidy");
        Ok(())
    }

    async fn kill(&self, _: &Infrastructure, grace: Duration) -> Result<(), LaunchError> {
        self.journal.write(format!("kill after {} s", grace.as_secs()));
        self.finish(137);
        Ok(())
    }

    async fn discard(&self, _: &Infrastructure) -> Result<(), LaunchError> {
        self.journal.write("discard");
        self.behaviour.lock().unwrap().left.clear();
        Ok(())
    }
}
