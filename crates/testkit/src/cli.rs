//! What the two stand-alone servers share: arguments, secrets from files, and an end on SIGINT or SIGTERM.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser};
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};

use crate::s3::{self, S3Server};
use crate::scicat::{self, SciCat};

/// Exit code for settings that are absent or wrong.
const EXIT_CONFIG: u8 = 64;

#[derive(Debug, Args)]
struct Listen {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
}

/// An S3 server for development: signatures and checksums are checked, archive classes need a restore.
///
/// The keys come from `S3_ACCESS_KEY` and `S3_SECRET_KEY`, or from the files that `S3_ACCESS_KEY_FILE` and
/// `S3_SECRET_KEY_FILE` name.
#[derive(Debug, Parser)]
#[command(name = "ferryman-s3", version)]
struct S3Args {
    #[command(flatten)]
    listen: Listen,
    /// Directory that keeps buckets and objects
    #[arg(long)]
    data: PathBuf,
    /// Bucket to create when it is absent; may be repeated
    #[arg(long = "bucket", env = "S3_BUCKETS", value_delimiter = ',')]
    buckets: Vec<String>,
    /// Seconds that a restore from an archive class takes
    #[arg(long, default_value_t = 0)]
    restore_seconds: u64,
}

/// A SciCat catalogue for development and tests, in memory.
///
/// The account comes from `SCICAT_USER` and `SCICAT_PASSWORD`, or the files that the same names with `_FILE`
/// name.
#[derive(Debug, Parser)]
#[command(name = "ferryman-scicat", version)]
struct SciCatArgs {
    #[command(flatten)]
    listen: Listen,
}

/// The program `ferryman-s3`.
pub fn s3_main() -> ExitCode {
    let args = S3Args::parse();
    run(async move {
        let access_key = required("S3_ACCESS_KEY")?;
        let secret_key = required("S3_SECRET_KEY")?;
        let server = S3Server::start(s3::Options {
            host: args.listen.host,
            port: args.listen.port,
            data: Some(args.data),
            access_key,
            secret_key: SecretString::from(secret_key),
            buckets: args.buckets,
            restore: s3::Restore::After(std::time::Duration::from_secs(args.restore_seconds)),
        })
        .await?;
        say(&format!("listening on http://{}", server.addr()));
        end_of_service().await?;
        server.stop().await;
        Ok(())
    })
}

/// The program `ferryman-scicat`.
pub fn scicat_main() -> ExitCode {
    let args = SciCatArgs::parse();
    run(async move {
        let mut options =
            scicat::Options { host: args.listen.host, port: args.listen.port, ..scicat::Options::default() };
        if let Some(user) = secret("SCICAT_USER")? {
            options.username = user;
        }
        if let Some(password) = secret("SCICAT_PASSWORD")? {
            options.password = SecretString::from(password);
        }
        let server = SciCat::start(options).await?;
        say(&format!("listening on http://{}", server.addr()));
        end_of_service().await?;
        server.stop().await;
        Ok(())
    })
}

fn run(service: impl Future<Output = Result<()>>) -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Runtime::new().context("failed to start the async runtime");
    match runtime.and_then(|runtime| runtime.block_on(service)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("error: {error:#}"));
            if error.is::<Misconfigured>() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

/// A setting that is absent or cannot be read.
#[derive(Debug)]
struct Misconfigured(String);

impl std::fmt::Display for Misconfigured {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Misconfigured {}

fn required(name: &str) -> Result<String> {
    let hint =
        || Misconfigured(format!("{name} is not set; set it, or let {name}_FILE name a file that holds it"));
    Ok(secret(name)?.ok_or_else(hint)?)
}

/// The value of a variable, or the contents of the file that `{name}_FILE` names, without trailing newlines.
fn secret(name: &str) -> Result<Option<String>> {
    if let Some(path) = std::env::var_os(format!("{name}_FILE")) {
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Misconfigured(format!("failed to read {}, named by {name}_FILE: {error}", path.display()))
        })?;
        return Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()));
    }
    Ok(std::env::var(name).ok().filter(|value| !value.is_empty()))
}

async fn end_of_service() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the address is the output of the program")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "errors of a command line program")]
fn complain(line: &str) {
    eprintln!("{line}");
}
