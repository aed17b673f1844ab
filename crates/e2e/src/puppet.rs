//! A flow run whose behaviour is known: `ferryman-puppet`, what it is told to do, and what it says it did.
//!
//! The program writes what it does into a *witness*: a file named after the run, in a directory that the
//! container mounts. It tells the truth when server, engine and worker have all lost it. Where containers have no
//! network, a socket in that directory leads to the server.

mod program;
mod witness;

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use prefect_api::state::StateType;
use serde_json::{Map, Value, json};
use testkit::docker::{Engine, Image};

use crate::programs::Programs;

pub use program::main;
pub use witness::{Shared, Witness};

/// Where the container sees the directory that it shares with the test.
const DIRECTORY: &str = "/puppet";
/// The directory of the witnesses in there.
const WITNESSES: &str = "witness";
/// The socket in there that leads to the server, where there is no network.
const SOCKET: &str = "server.sock";

/// How a puppet ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum End {
    /// It exits, without a report.
    Exit,
    /// It reports Completed and exits with 0.
    Complete,
    /// It reports Failed and exits with 1.
    Fail,
    /// It takes memory until the kernel kills it.
    Memory,
    /// It dies of a signal of its own.
    Abort,
}

/// What a puppet does.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// Report Running first.
    #[arg(long)]
    pub reports: bool,
    /// Look whether the run is to be cancelled, and end it then, as flows do.
    #[arg(long)]
    pub listens: bool,
    /// Take no notice of SIGTERM.
    #[arg(long)]
    pub deaf: bool,
    /// How long it works.
    #[arg(long)]
    pub millis: u64,
    /// How it ends.
    #[arg(long, value_enum)]
    pub end: End,
    /// The code that it exits with where it may choose.
    #[arg(long, default_value_t = 0)]
    pub code: u8,
}

impl Behaviour {
    /// A puppet that reports Running, works that long and reports Completed.
    pub fn completing(work: Duration) -> Self {
        let millis = u64::try_from(work.as_millis()).unwrap_or(u64::MAX);
        Self { reports: true, listens: false, deaf: false, millis, end: End::Complete, code: 0 }
    }

    /// The state that a run of it ends in when nobody disturbs it.
    pub fn natural_end(&self) -> StateType {
        match self.end {
            End::Complete => StateType::Completed,
            End::Fail => StateType::Failed,
            End::Exit | End::Memory | End::Abort => StateType::Crashed,
        }
    }

    /// The command line of the program.
    pub fn command(&self) -> String {
        let flags = [(self.reports, " --reports"), (self.listens, " --listens"), (self.deaf, " --deaf")];
        let flags: String = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| *flag).collect();
        let end = self.end.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        format!("ferryman-puppet{flags} --millis {} --end {end} --code {}", self.millis, self.code)
    }

    /// The job variables of a run of it in a container: on the machine's network, or without a network and with
    /// a directory that it shares with us.
    pub fn job_variables(&self, api_url: &str, shared: Option<&Shared>) -> Map<String, Value> {
        let mut variables = json!({
            "command": self.command(),
            "network_mode": "host",
            "env": {"FERRYMAN_PUPPET_API": api_url},
        });
        if let Some(shared) = shared {
            variables["network_mode"] = json!("none");
            variables["volumes"] = json!([format!("{}:{DIRECTORY}", shared.directory().display())]);
        }
        if self.end == End::Memory {
            variables["mem_limit"] = json!("24m");
        }
        match variables {
            Value::Object(variables) => variables,
            _ => Map::new(),
        }
    }
}

/// Puts the program into an image of this name.
pub async fn build_image(engine: &Engine, programs: &Programs, name: &str) -> Result<()> {
    let program = programs.path("ferryman-puppet")?;
    let image = Image::scratch().file("/usr/local/bin/ferryman-puppet", program);
    let image = image.dir(DIRECTORY, 0o755).env("PATH", "/usr/local/bin").cmd(["ferryman-puppet"]);
    engine.build_image(name, image).await?;
    Ok(())
}
