//! What has to be on the machine, and how to get it.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

struct Need {
    what: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    /// The command that brings it; on other systems their equal.
    install: &'static str,
}

const COMPILER: Need = Need {
    what: "a C compiler",
    program: "cc",
    arguments: &["--version"],
    install: "apt-get install gcc libc6-dev",
};

const PYTHON: Need = Need {
    what: "Python 3 with its venv module (for the Prefect server)",
    program: "python3",
    arguments: &["-c", "import venv, ensurepip"],
    install: "apt-get install python3 python3-venv",
};

/// A tool of every distribution, whose package has its name.
const fn tool(program: &'static str, install: &'static str) -> Need {
    Need { what: program, program, arguments: &["--version"], install }
}

const TAR: Need = tool("tar", "apt-get install tar");
const CURL: Need = tool("curl", "apt-get install curl");
const BASH: Need = tool("bash", "apt-get install bash");

const NGINX: Need = Need {
    what: "nginx (the proxy before a server)",
    program: "sh",
    arguments: &["-c", "command -v nginx || test -x /usr/sbin/nginx"],
    install: "apt-get install nginx",
};

const TINYPROXY: Need = Need {
    what: "tinyproxy (the proxy on the way out)",
    program: "tinyproxy",
    arguments: &["-v"],
    install: "apt-get install tinyproxy-bin",
};

const POSTGRESQL: Need = Need {
    what: "PostgreSQL (the database of some servers)",
    program: "sh",
    arguments: &["-c", "ls /usr/lib/postgresql/*/bin/initdb || command -v initdb"],
    install: "apt-get install postgresql",
};

const DOCKERD: Need = Need {
    what: "dockerd (an engine that may be killed)",
    program: "dockerd",
    arguments: &["--version"],
    install: "apt-get install docker.io",
};

const NAMESPACES: Need = Need {
    what: "root's right to make namespaces (for an engine that may be killed)",
    program: "unshare",
    arguments: &["--mount", "--net", "--pid", "--fork", "--mount-proc", "nsenter", "--version"],
    install: "apt-get install util-linux",
};

const REGISTRY: Need = tool("docker-registry", "apt-get install docker-registry");

const CHROMIUM: Need = Need {
    what: "Chromium (for what the UI shows)",
    program: "chromium",
    arguments: &["--version"],
    install: "apt-get install chromium",
};

const CHROMEDRIVER: Need = Need {
    what: "Chromium's driver",
    program: "chromedriver",
    arguments: &["--version"],
    install: "apt-get install chromium-driver",
};

const DOCKER: Need = Need {
    what: "the program docker (as users of the guide build an image)",
    program: "docker",
    arguments: &["--version"],
    install: "apt-get install docker.io",
};

const NEXTEST: Need = Need {
    what: "cargo-nextest",
    program: "cargo",
    arguments: &["nextest", "--version"],
    install: "cargo install cargo-nextest --locked",
};

/// What the images need.
pub(crate) fn for_images() -> Result<()> {
    check(&[&COMPILER])
}

/// What the demo and the measurements need.
pub(crate) fn for_demo() -> Result<()> {
    check(&[&COMPILER, &PYTHON, &TAR, &CURL, &BASH])
}

/// What the differentials need.
pub(crate) fn for_differentials() -> Result<()> {
    check(&[&COMPILER, &PYTHON, &POSTGRESQL])
}

/// What the measurements need.
pub(crate) fn for_measurements() -> Result<()> {
    check(&[&COMPILER, &PYTHON, &TAR, &CURL, &BASH, &POSTGRESQL])
}

/// What runs through a worker under faults need.
pub(crate) fn for_faults() -> Result<()> {
    check(&[&COMPILER, &PYTHON, &DOCKERD, &NAMESPACES])
}

/// What pictures of the UI need besides.
pub(crate) fn for_screenshots() -> Result<()> {
    check(&[&CHROMIUM, &CHROMEDRIVER])
}

/// What the tests need.
pub(crate) fn for_tests() -> Result<()> {
    let tools = [&COMPILER, &PYTHON, &TAR, &CURL, &BASH, &NEXTEST];
    let engine = [&DOCKER, &DOCKERD, &NAMESPACES];
    let servers = [&NGINX, &TINYPROXY, &POSTGRESQL, &REGISTRY];
    let browser = [&CHROMIUM, &CHROMEDRIVER];
    check(&[&tools[..], &engine[..], &servers[..], &browser[..]].concat())
}

/// All that is missing, in one message. The Docker engine is needed by all.
fn check(needs: &[&Need]) -> Result<()> {
    let mut missing: Vec<String> = needs
        .iter()
        .filter(|need| !works(need))
        .map(|need| {
            format!(
                "  {} is missing\n    hint: install it: `{}` or your system's equal",
                need.what, need.install
            )
        })
        .collect();
    if std::env::var_os("DOCKER_HOST").is_none() && !std::path::Path::new("/var/run/docker.sock").exists() {
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
