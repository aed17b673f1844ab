//! From a job to the program that is to run.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::super::fields::Fields;
use super::super::{Job, LaunchError, command};

/// Where programs are looked for if the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What a job configuration says about its process.
#[derive(Debug)]
pub(super) struct ProcessConfig {
    /// The working directory; a temporary one if there is none.
    working_dir: Option<PathBuf>,
    /// Keys of the job configuration that mean nothing here.
    pub(super) ignored: Vec<String>,
}

impl ProcessConfig {
    pub(super) fn parse(configuration: &Map<String, Value>) -> Result<Self, LaunchError> {
        let mut fields = Fields::new(configuration.clone());
        // The worker obeys it; here it only has to have the right form.
        fields.flag("stream_output")?;
        let working_dir =
            fields.exact_text("working_dir")?.filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok(Self { working_dir, ignored: fields.rest().map(str::to_owned).collect() })
    }
}

/// The program, its environment and its place.
pub(super) struct Plan {
    /// The words of the command line; the first names the program.
    pub(super) words: Vec<String>,
    pub(super) environment: BTreeMap<OsString, OsString>,
    /// The working directory; a temporary one if there is none.
    pub(super) working_dir: Option<PathBuf>,
}

impl fmt::Debug for Plan {
    // Environment and command line may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("working_dir", &self.working_dir).finish_non_exhaustive()
    }
}

/// Plans the program. `inherited`: the worker's own environment, which is below the job's.
pub(super) fn plan(
    job: &Job,
    config: &ProcessConfig,
    inherited: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Plan, LaunchError> {
    let wrong = |message: String| LaunchError::Configuration { message };
    let words = command::split("command", &job.command)?;
    let Some(program) = words.first().filter(|program| !program.is_empty()) else {
        return Err(wrong("command is empty".to_owned()));
    };
    // The kernel's own interfaces end at a zero.
    if words.iter().any(|word| word.contains('\0')) {
        return Err(wrong("command must not hold NUL characters".to_owned()));
    }
    let environment = environment(job, inherited)?;
    let working_dir = match &config.working_dir {
        None => None,
        Some(path) => match std::fs::canonicalize(path) {
            Ok(path) if path.is_dir() => Some(path),
            Ok(_) => return Err(wrong("working_dir is not a directory".to_owned())),
            Err(error) => return Err(wrong(format!("working_dir cannot be used: {error}"))),
        },
    };
    find(program, working_dir.as_deref(), environment.get(OsStr::new("PATH")))?;
    Ok(Plan { words, environment, working_dir })
}

/// The environment: the worker's own, over it what every job gets, over it the job's.
fn environment(
    job: &Job,
    inherited: impl Iterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<OsString, OsString>, LaunchError> {
    let mut environment: BTreeMap<OsString, OsString> = inherited.collect();
    let base = job.base_env.iter().map(|(name, value)| (name, Some(value)));
    for (name, value) in base.chain(job.env.iter().map(|(name, value)| (name, value.as_ref()))) {
        if name.is_empty() || name.contains(['=', '\0']) || value.is_some_and(|value| value.contains('\0')) {
            let message = format!("env holds a variable that no process can have: {name:?}");
            return Err(LaunchError::Configuration { message });
        }
        match value {
            Some(value) => environment.insert(name.into(), value.into()),
            None => environment.remove(OsStr::new(name)),
        };
    }
    Ok(environment)
}

/// Checks that there is such a program, by the rules of `execvp`.
fn find(program: &str, directory: Option<&Path>, path: Option<&OsString>) -> Result<(), LaunchError> {
    let refused = |why: &str| {
        let message = format!("command names the program {program:?}, {why}");
        Err(LaunchError::Configuration { message })
    };
    if program.contains('/') {
        let file = directory.map_or_else(|| PathBuf::from(program), |directory| directory.join(program));
        return match std::fs::metadata(&file) {
            _ if file.is_relative() => refused("which is relative to a temporary directory; set working_dir"),
            Ok(metadata) if is_executable(&metadata) => Ok(()),
            Ok(_) => refused("which is not an executable file"),
            Err(_) => refused("which does not exist"),
        };
    }
    let path = path.map_or(OsStr::new(DEFAULT_PATH), OsString::as_os_str);
    let found = std::env::split_paths(path)
        .any(|directory| std::fs::metadata(directory.join(program)).is_ok_and(|file| is_executable(&file)));
    if found { Ok(()) } else { refused("which is in no directory of PATH; install it, or set PATH in env") }
}

fn is_executable(metadata: &std::fs::Metadata) -> bool {
    metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::Attempt;
    use super::*;

    fn planned(
        command: &str,
        configuration: &Value,
        env: &[(&str, Option<&str>)],
    ) -> Result<Plan, LaunchError> {
        let mut job = Job::new(Attempt::new(uuid::Uuid::nil().into(), "pool", "w"), "n", command);
        job.base_env.insert("B".to_owned(), "base".to_owned());
        job.env = env.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect();
        let config = ProcessConfig::parse(configuration.as_object().unwrap())?;
        let inherited = [("A", "worker"), ("B", "worker"), ("C", "worker"), ("PATH", "/usr/bin:/bin")];
        plan(&job, &config, inherited.into_iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn the_environment_is_the_workers_below_the_jobs() {
        let plan = planned("sh -c 'a b'", &json!({}), &[("A", None), ("C", Some("job"))]).unwrap();
        assert_eq!(plan.words, ["sh", "-c", "a b"]);
        let environment: Vec<_> = plan
            .environment
            .iter()
            .map(|(name, value)| (name.to_str().unwrap(), value.to_str().unwrap()))
            .collect();
        assert_eq!(environment, [("B", "base"), ("C", "job"), ("PATH", "/usr/bin:/bin")]);
        assert_eq!(plan.working_dir, None);
    }

    #[test]
    fn what_cannot_run_is_refused_with_its_reason() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let file = file.path().to_str().unwrap();
        for (command, configuration, env, part) in [
            ("no-such-program", json!({}), None, "in no directory of PATH"),
            ("sh", json!({}), Some(("PATH", Some("/no/such"))), "in no directory of PATH"),
            ("/no/such/program", json!({}), None, "\"/no/such/program\", which does not exist"),
            ("./program", json!({}), None, "set working_dir"),
            ("/usr", json!({}), None, "not an executable file"),
            (file, json!({}), None, "not an executable file"),
            ("sh -c 'open", json!({}), None, "command must be a command line"),
            ("''", json!({}), None, "command is empty"),
            ("sh", json!({"working_dir": "/no/such"}), None, "working_dir cannot be used: No such file"),
            ("sh", json!({"working_dir": file}), None, "working_dir is not a directory"),
            ("sh", json!({"working_dir": ["/"]}), None, "working_dir must be text"),
            ("sh", json!({"stream_output": "maybe"}), None, "stream_output must be"),
            ("sh", json!({}), Some(("A=B", Some("x"))), "no process can have"),
            ("sh", json!({}), Some(("A", Some("x\0y"))), "no process can have"),
        ] {
            let error = planned(command, &configuration, env.as_slice()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_program_is_found_in_the_working_directory_and_unknown_keys_are_told() {
        assert!(planned("bin/sh", &json!({"working_dir": "/"}), &[]).is_ok());
        let config = json!({"working_dir": "", "image": "i"});
        assert_eq!(ProcessConfig::parse(config.as_object().unwrap()).unwrap().ignored, ["image"]);
    }
}
