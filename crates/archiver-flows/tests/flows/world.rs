//! A landing zone, an archive, a catalogue and a Prefect server around the real program.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::process::{Command, Output, Process};
use testkit::s3::{self, Restore, S3Server};
use testkit::scicat::{self, SciCat};
use tokio::time::{sleep, timeout};

use crate::prefect::{Prefect, set_state};

pub(crate) const LANDING: &str = "dev.landingzone";
pub(crate) const ARCHIVE: &str = "dev.archival";
const DEADLINE: Duration = Duration::from_mins(2);

pub(crate) struct World {
    pub(crate) prefect: Prefect,
    pub(crate) s3: S3Server,
    pub(crate) scicat: SciCat,
    home: TempDir,
    settings: Vec<(String, String)>,
}

impl World {
    /// A world in which nothing goes wrong by itself: Glacier archive, instant restores, 1 KiB datablocks.
    pub(crate) async fn start() -> Self {
        Self::with_restore(Restore::Heads(0)).await
    }

    pub(crate) async fn with_restore(restore: Restore) -> Self {
        let buckets = vec![LANDING.to_owned(), ARCHIVE.to_owned()];
        let s3 = S3Server::start(s3::Options { buckets, restore, ..s3::Options::default() }).await.unwrap();
        let scicat = SciCat::start(scicat::Options::default()).await.unwrap();
        let prefect = Prefect::start().await;
        {
            let mut records = prefect.records();
            let secrets = [
                ("s3-user", s3.access_key()),
                ("s3-password", s3.secret_key()),
                ("scicat-user", scicat.username()),
                ("scicat-password", scicat.password()),
            ];
            records.secrets.extend(secrets.map(|(name, value)| (name.to_owned(), value.to_owned())));
            let variables = [
                ("s3_region", "eu-west-1"),
                ("s3_landingzone_bucket", LANDING),
                ("s3_archival_bucket", "overridden-by-the-environment"),
                ("s3_endpoint", &s3.endpoint()),
                ("s3_external_endpoint", &s3.endpoint()),
                ("s3_url_expiration_days", "7"),
                ("scicat_endpoint", &scicat.url()),
                ("scicat_api_prefix", "/api/v3"),
                ("scicat_datasets_api_prefix", "/api/v3"),
                ("scicat_jobs_api_prefix", "/api/v3"),
            ];
            records.variables.extend(variables.map(|(name, value)| (name.to_owned(), json!(value))));
            records.variables.insert("archiver_target_size_gb".to_owned(), json!(1.0 / f64::from(1 << 20)));
        }
        let home = tempfile::tempdir().unwrap();
        let settings = vec![("S3_ARCHIVAL_BUCKET".to_owned(), ARCHIVE.to_owned())];
        Self { prefect, s3, scicat, home, settings }
    }

    /// Sets a variable in the environment of the program.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Uploads files and lists them in the catalogue.
    pub(crate) fn add_dataset(&self, pid: &str, files: &[(&str, usize)]) {
        self.scicat.catalogue().create_dataset(pid);
        self.claim(pid, files);
        self.upload(pid, files);
    }

    pub(crate) fn claim(&self, pid: &str, files: &[(&str, usize)]) {
        let entry = |(path, size): &(&str, usize)| json!({"path": path, "size": size, "time": "2026-01-01T00:00:00Z"});
        let files: Vec<Value> = files.iter().map(entry).collect();
        self.scicat.catalogue().add_origdatablock(pid, &files);
    }

    pub(crate) fn upload(&self, pid: &str, files: &[(&str, usize)]) {
        for (path, size) in files {
            let key = format!("openem-network/datasets/{pid}/raw_files/{path}");
            self.s3.store().put(LANDING, &key, &vec![b'x'; *size]).unwrap();
        }
    }

    /// The program about to run `flow`.
    fn command(&self, flow: &str, parameters: &[(&str, Value)]) -> Command {
        let mut command = self.program().args(["run", flow]);
        for (name, value) in parameters {
            command = command.args(["--param".to_owned(), format!("{name}={value}")]);
        }
        command
    }

    fn program(&self) -> Command {
        Command::new(env!("CARGO_BIN_EXE_archiver-flows"))
            .env("PREFECT_API_URL", self.prefect.url())
            .env("PREFECT_HOME", self.home.path())
            .env("PREFECT_LOGGING_TO_API_BATCH_INTERVAL", "0.1")
            .envs(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }

    /// Runs the hooks of the run of this name, whose process is gone, as a worker does when it has reported the crash.
    pub(crate) async fn run_crash_hooks(&self, name: &str) -> Output {
        let id = {
            let mut records = self.prefect.records();
            let run = records.flow_runs.iter_mut().find(|run| run["name"] == name).unwrap();
            set_state(run, &json!({"type": "CRASHED", "name": "Crashed", "message": "killed"}));
            run["id"].as_str().unwrap().to_owned()
        };
        self.program().args(["flow-run", "hook", "crashed", &id]).output(DEADLINE).await.unwrap()
    }

    pub(crate) async fn run(&self, flow: &str, parameters: &[(&str, Value)]) -> Output {
        self.command(flow, parameters).output(DEADLINE).await.unwrap()
    }

    /// Runs a flow that is about a job.
    pub(crate) async fn run_job(&self, flow: &str, job: &str) -> Output {
        self.run(flow, &[("job_id", json!(job))]).await
    }

    /// Starts a flow that is to be stopped.
    pub(crate) fn spawn(&self, flow: &str, job: &str) -> Process {
        let log: PathBuf = self.home.path().join("log");
        self.command(flow, &[("job_id", json!(job))]).log_to(log).spawn().unwrap()
    }

    pub(crate) fn archive_job(&self, pids: &[&str]) -> String {
        self.scicat.catalogue().create_job("archive", pids)
    }

    pub(crate) fn retrieve_job(&self, pids: &[&str]) -> String {
        self.scicat.catalogue().create_job("retrieve", pids)
    }

    pub(crate) fn history(&self, job: &str) -> Vec<String> {
        self.scicat.catalogue().job_history(job)
    }

    /// What a user sees of a dataset's fate: archivable, retrievable, archive status, retrieve status.
    pub(crate) fn fate(&self, pid: &str) -> (bool, bool, String, String) {
        let lifecycle = self.scicat.catalogue().lifecycle(pid).unwrap();
        let flag = |name: &str| lifecycle[name].as_bool().unwrap();
        let text = |name: &str| lifecycle[name].as_str().unwrap_or_default().to_owned();
        (flag("archivable"), flag("retrievable"), text("archiveStatusMessage"), text("retrieveStatusMessage"))
    }

    /// The names of the tars in the archive, and the keys of the files in the landing zone.
    pub(crate) fn keys(&self, bucket: &str) -> Vec<String> {
        let objects = self.s3.store().objects(bucket, "").unwrap();
        objects.into_iter().map(|object| object.key.rsplit('/').next().unwrap().to_owned()).collect()
    }

    /// Asserts that nothing of an attempt to archive is left.
    pub(crate) fn assert_untouched(&self, pid: &str, files: &[(&str, usize)]) {
        assert_eq!(self.keys(ARCHIVE), [""; 0], "tars are left in the archive");
        assert!(self.s3.store().uploads(ARCHIVE).unwrap().is_empty(), "uploads are left open");
        assert!(self.scicat.catalogue().datablocks(pid).is_empty(), "datablocks are left registered");
        assert_eq!(self.keys(LANDING).len(), files.len(), "the landing zone was touched");
    }

    /// Requests to the catalogue that changed something, with the lifecycle or status they carried.
    pub(crate) fn changes(&self) -> Vec<String> {
        let requests = self.scicat.catalogue().requests();
        let changing =
            requests.iter().filter(|request| request.method != "GET" && !request.path.contains("login"));
        changing.map(|request| format!("{} {}", request.method, request.path)).collect()
    }

    /// Waits until `holds`.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !holds(self) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(timeout(DEADLINE, waiting).await.is_ok(), "it never happened: {what}");
    }
}
