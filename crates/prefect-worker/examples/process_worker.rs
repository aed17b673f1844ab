//! A worker that is killed in the tests of the process launcher: launches a command, tells the id, and waits.
//!
//! `process_worker STATE_DIRECTORY PREFECT_WORKER COMMAND`

#![expect(clippy::print_stdout, reason = "the test reads it")]

use std::error::Error;
use std::path::Path;

use prefect_api::id::FlowRunId;
use prefect_worker::launcher::{Attempt, Job, Launcher, ProcessLauncher};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [state, worker, command] = arguments.as_slice() else {
        return Err("process_worker STATE_DIRECTORY PREFECT_WORKER COMMAND".into());
    };
    let launcher = ProcessLauncher::at(Path::new(state), Path::new(worker))?;
    let job = Job::new(Attempt::new(FlowRunId::generate(), "pool", "killed"), "a run", command);
    let infrastructure = launcher.create(&job).await?;
    launcher.start(&infrastructure).await?;
    println!("{}", infrastructure.id);
    launcher.wait(&infrastructure, None).await;
    Ok(())
}
