//! The process launcher on this machine.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail like tests")]

mod conformance;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use conformance::{Bench, DEADLINE, code, conformance_suite, create, end, printed, start};
use prefect_api::id::FlowRunId;
use prefect_worker::launcher::{
    Attempt, Infrastructure, Job, Launcher, Outcome, OutputSink, Phase, ProcessLauncher,
};
use serde_json::json;
use tokio::sync::mpsc;

struct Processes {
    state: tempfile::TempDir,
    launcher: ProcessLauncher,
}

/// The program that can be a supervisor.
fn worker() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_prefect-worker"))
}

/// The program that is launched: an example of this crate, built with its tests.
fn probe() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let probe = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples/container_probe");
    assert!(probe.exists(), "{} is not built: cargo build --examples -p prefect-worker", probe.display());
    probe
}

impl Processes {
    #[expect(clippy::unused_async, reason = "the suite awaits every bench")]
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let launcher = ProcessLauncher::at(&state.path().join("state"), worker()).unwrap();
        Self { state, launcher }
    }

    fn state(&self) -> PathBuf {
        self.state.path().join("state")
    }

    fn shell(&self, script: &str) -> Job {
        let mut job = self.job("exit 0");
        job.command = format!("sh -c {}", shlex::try_quote(script).unwrap());
        job
    }

    async fn clean_up(self) {
        for found in self.launcher.list("pool").await.unwrap() {
            self.launcher.discard(&found.infrastructure).await.unwrap();
        }
        let left: Vec<_> =
            std::fs::read_dir(self.state()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["place"], "files were left");
    }
}

#[async_trait(?Send)]
impl Bench for Processes {
    fn launcher(&self) -> &dyn Launcher {
        &self.launcher
    }

    async fn later(&self) -> Box<dyn Launcher> {
        Box::new(ProcessLauncher::at(&self.state(), worker()).unwrap())
    }

    fn job(&self, request: &str) -> Job {
        let attempt = Attempt::new(FlowRunId::generate(), "pool", "worker");
        Job::new(attempt, "a run", format!("{} {request}", probe().display()))
    }

    fn impossible(&self) -> (Job, &'static str) {
        let mut job = self.job("exit 0");
        job.configuration.insert("working_dir".to_owned(), json!("/no/such"));
        (job, "working_dir")
    }
}

conformance_suite!(super::Processes);

/// The number that the program prints first.
async fn printed_number(launcher: &dyn Launcher, infrastructure: &Infrastructure) -> u32 {
    let (sink, mut pieces) = mpsc::channel(8);
    let output = OutputSink { pieces: sink, after: None };
    let first = async {
        tokio::select! {
            piece = pieces.recv() => piece.unwrap().bytes,
            outcome = launcher.wait(infrastructure, Some(output)) => panic!("it ended: {outcome:?}"),
        }
    };
    let bytes = tokio::time::timeout(DEADLINE, first).await.expect("it prints nothing");
    String::from_utf8(bytes).unwrap().trim().parse().unwrap()
}

/// The process id of a program's supervisor.
fn supervisor_of(infrastructure: &Infrastructure) -> u32 {
    let pid = infrastructure.pid.rsplit_once(':').unwrap().1;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn signal(pid: u32, name: &str) {
    let command = format!("kill -s {name} {pid}");
    let status = std::process::Command::new("sh").args(["-c", &command]).status().unwrap();
    assert!(status.success());
}

/// Waits until a process is no more, or only its exit status is.
async fn is_gone(pid: u32) {
    let look = async {
        while let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            if stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, look).await.expect("the process goes on");
}

async fn output_of(bench: &Processes, infrastructure: &Infrastructure) -> String {
    let (_, pieces) = end(&bench.launcher, infrastructure, None).await;
    String::from_utf8(pieces.into_iter().flat_map(|piece| piece.bytes).collect()).unwrap()
}

#[tokio::test]
async fn what_ends_after_its_worker_was_killed_is_known_to_the_next() {
    let bench = Processes::new().await;
    let gate = bench.state.path().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let command = format!("sh -c 'read word < {}; echo \"$word\"; exit 4'", gate.display());
    let example = probe().with_file_name("process_worker");
    let mut killed = tokio::process::Command::new(example)
        .args([bench.state().as_os_str(), worker().as_os_str(), command.as_ref()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut id = String::new();
    let mut stdout = tokio::io::BufReader::new(killed.stdout.take().unwrap());
    tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut id).await.unwrap();
    killed.kill().await.unwrap();

    let [found] = bench.launcher.list("pool").await.unwrap().try_into().unwrap();
    assert_eq!((found.infrastructure.id.as_str(), found.phase), (id.trim_end(), Phase::Running));
    std::fs::write(&gate, "after\n").unwrap();
    assert_eq!(output_of(&bench, &found.infrastructure).await, "after\n");
    assert_eq!(code(&bench.launcher, &found.infrastructure).await, 4);
    bench.clean_up().await;
}

#[tokio::test]
async fn nothing_goes_on_when_the_supervisor_was_killed() {
    let bench = Processes::new().await;
    let running = start(&bench, &bench.shell("sleep 600 & echo $!; wait")).await;
    let child = printed_number(&bench.launcher, &running).await;
    signal(supervisor_of(&running), "KILL");
    let (outcome, _) = end(&bench.launcher, &running, None).await;
    assert_eq!(outcome, Outcome::Vanished);
    is_gone(child).await;
    let [left] = bench.launcher.list("pool").await.unwrap().try_into().unwrap();
    assert_eq!(left.phase, Phase::Ended);
    bench.clean_up().await;
}

#[tokio::test]
async fn nothing_that_a_program_leaves_goes_on() {
    let bench = Processes::new().await;
    let running = start(&bench, &bench.shell("setsid sleep 600 & echo $!; read _ < /dev/null")).await;
    let orphan = output_of(&bench, &running).await.trim().parse().unwrap();
    is_gone(orphan).await;
    bench.clean_up().await;
}

#[tokio::test]
async fn a_service_manager_that_ends_the_supervisor_lets_the_program_end_its_own_way() {
    let bench = Processes::new().await;
    let running = start(&bench, &bench.job("polite")).await;
    printed(&bench.launcher, &running, "ready").await;
    signal(supervisor_of(&running), "TERM");
    assert_eq!(code(&bench.launcher, &running).await, 5);

    let created = create(&bench, &bench.job("polite")).await;
    let supervisor = supervisor_of(&created);
    signal(supervisor, "TERM");
    is_gone(supervisor).await;
    let error = bench.launcher.start(&created).await.unwrap_err();
    assert!(error.to_string().contains("supervisor is gone"), "{error}");
    bench.clean_up().await;
}

#[tokio::test]
async fn a_secret_is_nowhere_on_disk_and_in_no_process_arguments() {
    let bench = Processes::new().await;
    let mut job = bench.shell("echo told: $A_TOKEN; read _ < gate");
    job.configuration.insert("working_dir".to_owned(), json!(bench.state.path()));
    nix::unistd::mkfifo(&bench.state.path().join("gate"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    job.base_env.insert("A_TOKEN".to_owned(), "hunter22".to_owned());
    let running = start(&bench, &job).await;
    printed(&bench.launcher, &running, "told: ********").await;
    let arguments = std::fs::read(format!("/proc/{}/cmdline", supervisor_of(&running))).unwrap();
    assert!(!String::from_utf8_lossy(&arguments).contains("hunter22"));
    for entry in std::fs::read_dir(bench.state().join(&running.id)).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o077, 0, "{}", entry.path().display());
        if metadata.is_file() {
            assert!(!std::fs::read_to_string(entry.path()).unwrap().contains("hunter22"));
        }
    }
    bench.clean_up().await;
}

#[tokio::test]
async fn what_a_program_used_and_died_of_is_known() {
    let bench = Processes::new().await;
    let running = start(&bench, &bench.job("memory 64")).await;
    let Outcome::Exited { code: 0, memory, .. } = bench.launcher.wait(&running, None).await else {
        panic!("it did not end with 0")
    };
    assert!(memory.peak.unwrap() >= 64 << 20, "{memory:?}");
    let crashing = start(&bench, &bench.shell("kill -s SEGV $$")).await;
    assert_eq!(code(&bench.launcher, &crashing).await, 139);

    let program = bench.state.path().join("no-program");
    std::fs::write(&program, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut job = bench.job("");
    job.command = program.to_str().unwrap().to_owned();
    let broken = start(&bench, &job).await;
    assert_eq!(code(&bench.launcher, &broken).await, 127);
    let tail = bench.launcher.tail(&broken, 1).await;
    assert!(tail[0].contains("failed to start") && tail[0].contains("no-program"), "{tail:?}");
    bench.clean_up().await;
}

#[tokio::test]
async fn the_working_directory_is_the_jobs_or_a_temporary_one() {
    let bench = Processes::new().await;
    let mut job = bench.shell("pwd");
    job.configuration.insert("working_dir".to_owned(), json!("/usr"));
    assert_eq!(output_of(&bench, &start(&bench, &job).await).await, "/usr\n");

    let running = start(&bench, &bench.shell("pwd; touch a-file")).await;
    let directory = output_of(&bench, &running).await;
    let directory = Path::new(directory.trim_end());
    assert!(directory.join("a-file").exists());
    assert_eq!(std::fs::metadata(directory).unwrap().permissions().mode() & 0o077, 0);
    bench.launcher.tidy(&running).await.unwrap();
    assert!(!directory.exists());
    bench.clean_up().await;
}
