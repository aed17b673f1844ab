//! What has to be on the machine, and how to get it.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

struct Need {
    what: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    remedy: &'static str,
}

const COMPILER: Need = Need {
    what: "a C compiler",
    program: "cc",
    arguments: &["--version"],
    remedy: "install it: `apt-get install gcc libc6-dev` or your system's equal",
};

const PYTHON: Need = Need {
    what: "Python 3 with its venv module (for the Prefect server)",
    program: "python3",
    arguments: &["-c", "import venv, ensurepip"],
    remedy: "install it: `apt-get install python3 python3-venv` or your system's equal",
};

const TOOLS: [Need; 3] = [
    Need {
        what: "tar",
        program: "tar",
        arguments: &["--version"],
        remedy: "install it: `apt-get install tar` or your system's equal",
    },
    Need {
        what: "curl",
        program: "curl",
        arguments: &["--version"],
        remedy: "install it: `apt-get install curl` or your system's equal",
    },
    Need {
        what: "bash",
        program: "bash",
        arguments: &["--version"],
        remedy: "install it: `apt-get install bash` or your system's equal",
    },
];

const NEXTEST: Need = Need {
    what: "cargo-nextest",
    program: "cargo",
    arguments: &["nextest", "--version"],
    remedy: "install it: `cargo install cargo-nextest --locked`",
};

/// What the images need.
pub(crate) fn for_images() -> Result<()> {
    check(&[&COMPILER], true)
}

/// What the demo and the measurements need.
pub(crate) fn for_demo() -> Result<()> {
    check(&[&COMPILER, &PYTHON, &TOOLS[0], &TOOLS[1], &TOOLS[2]], true)
}

/// What the tests need.
pub(crate) fn for_tests() -> Result<()> {
    check(&[&COMPILER, &PYTHON, &TOOLS[0], &TOOLS[1], &TOOLS[2], &NEXTEST], true)
}

/// All that is missing, in one message.
fn check(needs: &[&Need], docker: bool) -> Result<()> {
    let mut missing: Vec<String> = needs
        .iter()
        .filter(|need| !works(need))
        .map(|need| format!("  {} is missing\n    hint: {}", need.what, need.remedy))
        .collect();
    if docker
        && std::env::var_os("DOCKER_HOST").is_none()
        && !std::path::Path::new("/var/run/docker.sock").exists()
    {
        missing.push(
            "  the Docker engine is missing: there is no /var/run/docker.sock and DOCKER_HOST is not set\n    \
             hint: install and start it: `apt-get install docker.io`, or set DOCKER_HOST"
                .to_owned(),
        );
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("this machine lacks what is needed\n{}", missing.join("\n"))
}

fn works(need: &Need) -> bool {
    let status = Command::new(need.program)
        .args(need.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}
