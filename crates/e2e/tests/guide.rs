//! A newcomer's first flow: `docs/guides/writing-flows.md`, done word for word, in a terminal and in a browser.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::guide::{Step, is_shown, steps};
use e2e::programs::{Programs, project_root};
use e2e::{containers, runs};
use prefect_api::state::StateType;
use serde_json::json;
use tempfile::TempDir;
use testkit::browser::Browser;
use testkit::docker::Engine;
use testkit::prefect::{Database, Options, PrefectServer};
use testkit::process::{Command, Process};
use tokio::time::{Instant, sleep};

/// The image that the guide makes.
const IMAGE: &str = "greeter:1";

/// How long commands may take: the first of them compile some 200 crates.
const COMMANDS: Duration = Duration::from_mins(8);
/// How long a program that goes on may take to print what it is to print.
const PRINTED: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(200);
const STOP_GRACE: Duration = Duration::from_secs(20);

/// What this test's own build has set, and a newcomer has not.
const NOT_SET: [&str; 5] = [
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
];

/// A newcomer at a machine that has what the guide asks for.
struct Newcomer {
    engine: Engine,
    server: PrefectServer,
    browser: Browser,
    programs: Programs,
    home: TempDir,
    /// Where the terminal is.
    directory: PathBuf,
    /// What the last command has printed; `None` while it goes on in a terminal of its own.
    printed: Option<String>,
    /// Programs that go on.
    started: Vec<Process>,
}

impl Newcomer {
    async fn arrive() -> Result<Self> {
        let engine = Engine::connect().await?;
        let left = engine.image_id(IMAGE).await?;
        ensure!(left.is_none(), "somebody has an image {IMAGE}, which this test would replace; remove it");
        let host = engine.gateway("bridge").await?;
        // Nobody presses a button a second time when SQLite was busy.
        let options = Options { host, database: Database::Postgres, ..Options::default() };
        let server = PrefectServer::start(options).await?;
        let browser = Browser::start(1400, 1200).await?;
        browser.open(&server.ui_url()).await?;
        let home = home()?;
        std::os::unix::fs::symlink(project_root().canonicalize()?, home.path().join("ferryman"))?;
        Ok(Self {
            engine,
            server,
            browser,
            programs: Programs::find()?,
            directory: home.path().to_owned(),
            home,
            printed: Some(String::new()),
            started: Vec::new(),
        })
    }

    /// Does one step after the other.
    async fn follow(&mut self, steps: &[Step]) -> Result<()> {
        for step in steps {
            self.take(step).await.with_context(|| format!("failed at {step:?}"))?;
        }
        Ok(())
    }

    async fn take(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Type(commands) => self.enter(commands).await,
            Step::Start(command) => {
                let log = self.home.path().join(format!("terminal-{}.log", self.started.len()));
                self.started.push(self.terminal(&format!("exec {command}")).log_to(log).spawn()?);
                self.printed = None;
                Ok(())
            }
            Step::Printed(shown) => self.read(shown).await,
            Step::Write(file, text) => {
                let file = self.directory.join(file);
                std::fs::create_dir_all(file.parent().unwrap_or(&self.directory))?;
                Ok(std::fs::write(file, text)?)
            }
            Step::Click(words) => self.browser.click(words).await,
            Step::Enter(field) => self.browser.enter(&field.label, &field.text).await,
            Step::See(words) => self.browser.see(words).await,
            Step::Holds(field) => {
                let text = self.browser.value(&field.label).await?;
                ensure!(text == field.text, "it holds {text:?}");
                Ok(())
            }
        }
    }

    /// Types commands and waits for their end. The next ones are typed where these have gone.
    async fn enter(&mut self, commands: &str) -> Result<()> {
        let script = format!("exec 2>&1\n{commands}\npwd");
        let output = self.terminal(&script).output(COMMANDS).await?.success()?;
        let printed = output.stdout.trim_end();
        let (printed, directory) = printed.rsplit_once('\n').unwrap_or(("", printed));
        self.directory = PathBuf::from(directory);
        self.printed = Some(printed.to_owned());
        Ok(())
    }

    /// Compares what was printed, or waits for it.
    async fn read(&self, shown: &str) -> Result<()> {
        if let Some(printed) = &self.printed {
            ensure!(is_shown(printed, shown), "it has printed\n{printed}");
            return Ok(());
        }
        let program = self.started.last().context("nothing prints")?;
        let deadline = Instant::now() + PRINTED;
        while !is_shown(&program.log(), &format!("…\n{shown}\n…")) {
            ensure!(Instant::now() < deadline, "it has printed\n{}", program.log());
            sleep(POLL).await;
        }
        Ok(())
    }

    fn terminal(&self, script: &str) -> Command {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories =
            [self.programs.directory().to_owned()].into_iter().chain(std::env::split_paths(&path));
        Command::new("env")
            .args(NOT_SET.iter().flat_map(|name| ["--unset", name]))
            .args(["bash", "-euo", "pipefail", "-c", script])
            .envs(self.server.client_env())
            .env("PATH", std::env::join_paths(directories).unwrap())
            // Cargo's own lines are no part of what programs print.
            .env("CARGO_TERM_QUIET", "true")
            // Made once, and without what takes most of the time; the workspace's own is left alone.
            .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("guide"))
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
            .current_dir(&self.directory)
    }

    /// What the server knows of all this in the end.
    async fn look(&self) -> Result<()> {
        let client = runs::client(&self.server.api_url(), &self.server.client_env())?;
        let deployment = client.read_deployment_by_name("greet", "default").await?;
        let deployment = deployment.context("there is no deployment")?.id;
        let found = client.filter_flow_runs(&json!({"deployments": {"id": {"any_": [deployment]}}})).await?;
        let [run] = found.as_slice() else { anyhow::bail!("there is not one run but {found:?}") };
        ensure!(run.state_type == Some(StateType::Completed), "{}", runs::explain(&client, run).await);
        ensure!(json!(run.parameters) == json!({"name": "you", "word": "Hello"}), "{:?}", run.parameters);
        let log = runs::logs(&client, run.id).await?;
        ensure!(log.iter().any(|line| line == "Hello, you!"), "{log:?}");
        Ok(())
    }

    /// Leaves the machine as it was.
    async fn leave(self) -> Result<()> {
        for program in self.started {
            program.stop(STOP_GRACE).await?;
        }
        let made = containers::of_image(self.engine.api(), IMAGE).await?;
        containers::remove(self.engine.api(), &made).await;
        self.engine.remove_image(IMAGE).await?;
        self.browser.stop().await?;
        self.server.stop().await?;
        Ok(self.home.close()?)
    }
}

/// An empty directory that is the same in each run: the crates in it are then the same to Cargo.
fn home() -> Result<TempDir> {
    let checkout = project_root().canonicalize()?.display().to_string().replace('/', "-");
    let name = format!("ferryman-guide{checkout}");
    match std::fs::remove_dir_all(std::env::temp_dir().join(&name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    Ok(tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_comes_from_cargo_new_to_a_run_from_the_form() {
    let guide = std::fs::read_to_string(project_root().join("docs/guides/writing-flows.md")).unwrap();
    let steps = steps(&guide, "Your first flow").unwrap();
    let mut newcomer = Newcomer::arrive().await.unwrap();
    let mut outcome = newcomer.follow(&steps).await;
    if outcome.is_ok() {
        outcome = newcomer.look().await;
    }
    let left = newcomer.leave().await;
    outcome.unwrap();
    left.unwrap();
}
