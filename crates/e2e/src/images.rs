//! Our images, made without a registry: `FROM scratch`, one static program, the machine's CA certificates.
//!
//! They hold what `prefect/images/Dockerfile` puts into them, which builds the same from sources.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use testkit::docker::{Engine, Image};

use crate::programs::{Programs, project_root};

/// The user that our programs run as.
pub const USER: &str = "65532:65532";

/// Says that an image's `prefect` knows `flow-run hook`: a worker may then run hooks of dead runs in it.
pub const HOOK_LABEL: &str = "io.ferryman.flow-run-hook";

/// Where distributions keep their CA certificates.
const CA_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Names of the images of one build.
#[derive(Debug, Clone)]
pub struct Images {
    /// The worker's.
    pub worker: String,
    /// That of the flows.
    pub runtime: String,
    /// The bootstrap's.
    pub config: String,
    /// The development S3 server's.
    pub s3: String,
    /// The SciCat simulator's.
    pub scicat: String,
}

impl Images {
    /// The names under this tag.
    pub fn tagged(tag: &str) -> Self {
        let name = |part: &str| format!("ferryman/{part}:{tag}");
        Self {
            worker: name("worker"),
            runtime: name("runtime"),
            config: name("config"),
            s3: name("s3"),
            scicat: name("scicat"),
        }
    }

    /// All of them.
    pub fn all(&self) -> [&str; 5] {
        [&self.worker, &self.runtime, &self.config, &self.s3, &self.scicat]
    }

    /// Builds worker, runtime and config. They go with the engine's handle unless they are to be kept.
    pub async fn build(engine: &Engine, programs: &Programs, tag: &str, keep: bool) -> Result<Self> {
        let program = |programs: &Programs, name: &str| {
            let image = program(programs, name)?;
            anyhow::Ok(if keep { image.kept() } else { image })
        };
        let images = Self::tagged(tag);
        let worker = program(programs, "prefect-worker")?.symlink("/usr/local/bin/prefect", "prefect-worker");
        let worker = worker.healthcheck(["prefect-worker", "healthcheck"]).cmd(["prefect-worker", "--help"]);
        engine.build_image(&images.worker, worker).await?;
        let runtime =
            program(programs, "archiver-flows")?.symlink("/usr/local/bin/prefect", "archiver-flows");
        engine
            .build_image(
                &images.runtime,
                runtime
                    .label(HOOK_LABEL, "true")
                    .dir("/storage", 0o1777)
                    .dir("/app/backend", 0o755)
                    .workdir("/app/backend")
                    .cmd(["archiver-flows", "--help"]),
            )
            .await?;
        let mut config =
            program(programs, "prefect-config")?.symlink("/usr/local/bin/prefect", "prefect-config");
        for (name, path) in config_files()? {
            let bytes = std::fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
            config = config.bytes(format!("/{name}"), bytes, 0o644);
        }
        let config = config
            .symlink("/prefect.yaml", "prefect/prefect.yaml")
            .symlink("/flows.json", "prefect/flows.json")
            .workdir("/")
            .entrypoint(["prefect-config"])
            .cmd(["--help"]);
        engine.build_image(&images.config, config).await?;
        Ok(images)
    }

    /// Builds the two development servers that the compose file starts, to be kept.
    pub async fn build_servers(&self, engine: &Engine, programs: &Programs) -> Result<()> {
        let s3 = program(programs, "ferryman-s3")?.kept().dir("/data", 0o777);
        engine.build_image(&self.s3, s3.cmd(["ferryman-s3", "--help"])).await?;
        let scicat = program(programs, "ferryman-scicat")?.kept();
        engine.build_image(&self.scicat, scicat.cmd(["ferryman-scicat", "--help"])).await?;
        Ok(())
    }
}

/// An image of one program in `/usr/local/bin`.
fn program(programs: &Programs, name: &str) -> Result<Image> {
    let users = b"ferryman:x:65532:65532::/home/ferryman:/sbin/nologin\n";
    Ok(Image::scratch()
        .file(format!("/usr/local/bin/{name}"), programs.path(name)?)
        .file("/etc/ssl/certs/ca-certificates.crt", ca_bundle()?)
        .bytes("/etc/passwd", users.as_slice(), 0o644)
        .bytes("/etc/nsswitch.conf", b"hosts: files dns\n".as_slice(), 0o644)
        .dir("/tmp", 0o1777)
        .dir("/home/ferryman", 0o777)
        .env("PATH", "/usr/local/bin")
        .env("HOME", "/home/ferryman")
        .env("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
        .user(USER))
}

fn ca_bundle() -> Result<PathBuf> {
    let given = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let found = given.into_iter().chain(CA_BUNDLES.iter().map(PathBuf::from)).find(|path| path.is_file());
    found
        .context("this machine has no CA certificates\nhint: install them: `apt-get install ca-certificates`")
}

/// What the config image holds: the directories `prefect`, `workpools` and `job-templates` of the project.
fn config_files() -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for folder in ["prefect", "workpools", "job-templates"] {
        let directory = project_root().join(folder);
        for entry in std::fs::read_dir(&directory)
            .with_context(|| format!("failed to list {}", directory.display()))?
        {
            let path = entry?.path();
            if path.is_file() {
                files.push((format!("{folder}/{}", file_name(&path)), path));
            }
        }
    }
    Ok(files)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
