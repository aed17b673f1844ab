//! Secrets as files in a container instead of in its environment, where everybody who may ask the engine
//! reads them.
//!
//! The files are put into the container after it is made and before it starts. They live in its own layer,
//! and go with it; where its root is read-only or something is mounted above them, in an anonymous volume,
//! which goes with it too.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;

use bollard::Docker;
use bollard::models::{ContainerCreateBody, Mount, MountType, MountVolumeOptions};
use bollard::query_parameters::{
    DownloadFromContainerOptions, InspectContainerOptions, UploadToContainerOptions,
};
use futures_util::StreamExt as _;
use prefect_api::template::text_form;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use super::super::LaunchError;
use super::super::fields::Fields;
use super::container::container_path;
use super::engine::Engine;

/// Where the files are.
pub(super) const DIRECTORY: &str = "/run/secrets";
/// The same, as the engine's archives name it.
const MEMBER: &str = "run/secrets";
const PUT: &str = "put the secret files into the container";
/// The most bytes of all files of a container: as much as an engine's own secrets may have.
const MOST_BYTES: usize = 512_000;
/// The largest answer that is read from a container.
const MOST_READ: usize = 4 << 20;
/// Variables of the API that hold credentials.
const API_CREDENTIALS: [&str; 2] = ["PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"];

/// The secrets of a job configuration.
#[derive(Default)]
pub(super) struct SecretFiles {
    /// By the name of the variable that they would be in.
    files: BTreeMap<String, SecretString>,
    /// The credentials of the API go the same way.
    api_credentials: bool,
}

impl fmt::Debug for SecretFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretFiles").field("names", &self.files.keys()).finish_non_exhaustive()
    }
}

/// Secret files of one container, and how they get there.
#[derive(Default)]
pub(super) struct Delivery {
    files: BTreeMap<String, SecretString>,
    /// They go into a volume of their own.
    in_volume: bool,
}

impl SecretFiles {
    /// Takes `secret_files` and `api_credentials_as_files` out of a job configuration.
    ///
    /// # Errors
    /// A value of a wrong form, a name that no variable can have, too many bytes.
    pub(super) fn take(fields: &mut Fields) -> Result<Self, LaunchError> {
        let mut files = BTreeMap::new();
        for (name, value) in fields.object("secret_files")?.unwrap_or_default() {
            if !is_variable_name(&name) {
                let message = format!(
                    "secret_files.{name} must be named like an environment variable: letters, digits and _"
                );
                return Err(LaunchError::Configuration { message });
            }
            let text = match value {
                Value::Null => continue,
                // A whole block: programs read JSON.
                value @ (Value::Object(_) | Value::Array(_)) => value.to_string(),
                value => text_form(&value),
            };
            files.insert(name, SecretString::from(text));
        }
        let bytes: usize = files.values().map(|value| value.expose_secret().len()).sum();
        if bytes > MOST_BYTES {
            let message = format!("secret_files has {bytes} bytes, more than {MOST_BYTES}");
            return Err(LaunchError::Configuration { message });
        }
        Ok(Self { files, api_credentials: fields.flag("api_credentials_as_files")?.unwrap_or(false) })
    }

    /// Whether there may be any.
    pub(super) fn is_used(&self) -> bool {
        self.api_credentials || !self.files.is_empty()
    }

    /// The files that the container is to get. Takes the API's credentials out of its environment where that
    /// is asked for, and has `NAME_FILE` name each file.
    ///
    /// # Errors
    /// The environment says something else about a `NAME_FILE`.
    pub(super) fn settle(
        &self,
        environment: &mut BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, SecretString>, LaunchError> {
        let mut files = self.files.clone();
        if self.api_credentials {
            for name in API_CREDENTIALS {
                if let Some(value) = environment.remove(name) {
                    files.entry(name.to_owned()).or_insert_with(|| SecretString::from(value));
                }
            }
        }
        for name in files.keys() {
            let variable = format!("{name}_FILE");
            if environment.contains_key(&variable) {
                let message = format!("secret_files.{name} sets {variable}, and env sets it too; keep one");
                return Err(LaunchError::Configuration { message });
            }
            environment.insert(variable, format!("{DIRECTORY}/{name}"));
        }
        Ok(files)
    }
}

impl Delivery {
    /// Prepares the container for its files.
    ///
    /// # Errors
    /// Something is mounted where they belong.
    pub(super) fn plan(
        files: BTreeMap<String, SecretString>,
        body: &mut ContainerCreateBody,
    ) -> Result<Self, LaunchError> {
        if files.is_empty() {
            return Ok(Self::default());
        }
        let host = body.host_config.get_or_insert_default();
        let binds = host.binds.iter().flatten().map(|bind| container_path(bind));
        let mounts = host.mounts.iter().flatten().filter_map(|mount| mount.target.as_deref());
        let tmpfs = host.tmpfs.iter().flat_map(|mounts| mounts.keys().map(String::as_str));
        let mut in_volume = host.readonly_rootfs == Some(true);
        for target in binds.chain(mounts).chain(tmpfs) {
            let target = target.trim_end_matches('/');
            if target == DIRECTORY || is_below(target, DIRECTORY) {
                let message = format!("secret_files go to {DIRECTORY}, where {target:?} is mounted");
                return Err(LaunchError::Configuration { message });
            }
            // The engine would write below the mount, or on the host.
            in_volume |= is_below(DIRECTORY, target);
        }
        if in_volume {
            host.mounts.get_or_insert_default().push(Mount {
                typ: Some(MountType::VOLUME),
                target: Some(DIRECTORY.to_owned()),
                volume_options: Some(MountVolumeOptions { no_copy: Some(true), ..Default::default() }),
                ..Mount::default()
            });
        }
        Ok(Self { files, in_volume })
    }

    /// Puts the files into the container, readable by its user alone.
    ///
    /// # Errors
    /// The engine refuses, or nobody knows the number of the user.
    pub(super) async fn deliver(&self, engine: &Engine, id: &str) -> Result<(), LaunchError> {
        if self.files.is_empty() {
            return Ok(());
        }
        let owner = owner(engine, id).await?;
        let (path, prefix) = if self.in_volume { (DIRECTORY, "") } else { ("/", MEMBER) };
        let archive = archive(&self.files, prefix, owner)
            .map_err(|error| LaunchError::Engine { action: PUT, message: error.to_string() })?;
        let options = UploadToContainerOptions { path: path.to_owned(), ..Default::default() };
        let put =
            engine.docker.upload_to_container(id, Some(options), bollard::body_full(archive.into())).await;
        put.map_err(|error| engine.error(PUT, error))
    }
}

/// The values of the secret files in a container, whatever its phase; empty if it has none or is gone.
pub(super) async fn read(docker: &Docker, id: &str) -> Vec<SecretString> {
    let files = download(docker, id, DIRECTORY).await.unwrap_or_default();
    files.into_iter().map(SecretString::from).collect()
}

/// The number of the user of a container.
async fn owner(engine: &Engine, id: &str) -> Result<u64, LaunchError> {
    let inspected = engine.docker.inspect_container(id, None::<InspectContainerOptions>).await;
    let container = inspected.map_err(|error| engine.container_error("inspect the container", id, error))?;
    let user = container.config.and_then(|config| config.user).unwrap_or_default();
    let user = user.split(':').next().unwrap_or_default();
    if user.is_empty() {
        return Ok(0);
    }
    if let Ok(number) = user.parse::<u32>() {
        return Ok(u64::from(number));
    }
    let passwd = download(&engine.docker, id, "/etc/passwd").await.unwrap_or_default();
    let number = passwd.first().and_then(|passwd| number_of(user, passwd));
    number.ok_or_else(|| LaunchError::Configuration {
        message: format!(
            "secret_files belong to the user {user:?} of the container, whom /etc/passwd of its image does not \
             know; set user to a number"
        ),
    })
}

fn number_of(user: &str, passwd: &str) -> Option<u64> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let number = (fields.next()? == user).then(|| fields.nth(1))??;
        number.parse::<u32>().ok().map(u64::from)
    })
}

/// The texts of a file, or of the files of a directory, in a container.
async fn download(docker: &Docker, id: &str, path: &str) -> Option<Vec<String>> {
    let options = DownloadFromContainerOptions { path: path.to_owned() };
    let mut pieces = std::pin::pin!(docker.download_from_container(id, Some(options)));
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece.ok()?);
        if bytes.len() > MOST_READ {
            return None;
        }
    }
    let mut texts = Vec::new();
    for entry in tar::Archive::new(bytes.as_slice()).entries().ok()? {
        let mut text = String::new();
        let mut entry = entry.ok()?;
        if entry.header().entry_type().is_file() && entry.read_to_string(&mut text).is_ok() {
            texts.push(text);
        }
    }
    Some(texts)
}

/// A tar of the files, each for its owner to read.
fn archive(
    files: &BTreeMap<String, SecretString>,
    prefix: &str,
    owner: u64,
) -> Result<Vec<u8>, std::io::Error> {
    let mut archive = tar::Builder::new(Vec::new());
    let header = |kind, size: usize, mode, owner| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(0);
        header.set_mtime(0);
        header
    };
    if !prefix.is_empty() {
        let mut folder = header(tar::EntryType::Directory, 0, 0o755, 0);
        archive.append_data(&mut folder, format!("{prefix}/"), std::io::empty())?;
    }
    for (name, value) in files {
        let bytes = value.expose_secret().as_bytes();
        let mut file = header(tar::EntryType::Regular, bytes.len(), 0o400, owner);
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        archive.append_data(&mut file, path, bytes)?;
    }
    archive.into_inner()
}

fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use bollard::models::HostConfig;
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "literals read better without a reference")]
    fn take(configuration: Value) -> Result<SecretFiles, LaunchError> {
        SecretFiles::take(&mut Fields::new(configuration.as_object().unwrap().clone()))
    }

    #[test]
    fn files_take_the_place_of_variables() {
        let secrets =
            take(json!({"secret_files": {"KEY": "hunter2", "JSON": {"a": 1}, "UNSET": null}})).unwrap();
        assert!(!format!("{secrets:?}").contains("hunter2"));
        let mut environment = BTreeMap::from([("PREFECT_API_KEY".to_owned(), "k".to_owned())]);
        let files = secrets.settle(&mut environment).unwrap();
        assert_eq!(files["JSON"].expose_secret(), r#"{"a":1}"#);
        assert_eq!(files.len(), 2);
        assert_eq!(environment["KEY_FILE"], "/run/secrets/KEY");
        assert_eq!(environment["PREFECT_API_KEY"], "k");

        let secrets = take(json!({"api_credentials_as_files": true})).unwrap();
        let mut environment = BTreeMap::from([("PREFECT_API_KEY".to_owned(), "k".to_owned())]);
        assert_eq!(secrets.settle(&mut environment).unwrap()["PREFECT_API_KEY"].expose_secret(), "k");
        assert_eq!(
            environment,
            BTreeMap::from([("PREFECT_API_KEY_FILE".to_owned(), "/run/secrets/PREFECT_API_KEY".to_owned())])
        );
    }

    #[test]
    fn what_cannot_be_a_file_is_named_without_its_value() {
        for (bad, part) in [
            (json!({"secret_files": {"../x": "hunter2"}}), "secret_files.../x must be named"),
            (json!({"secret_files": {"": "hunter2"}}), "must be named"),
            (json!({"secret_files": {"1A": "hunter2"}}), "must be named"),
            (json!({"secret_files": "hunter2"}), "secret_files must be an object"),
            (json!({"secret_files": {"A": "hunter2".repeat(MOST_BYTES)}}), "bytes, more than"),
            (json!({"api_credentials_as_files": "hunter2"}), "api_credentials_as_files must be"),
        ] {
            let error = take(bad).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
        }
        let mut environment = BTreeMap::from([("A_FILE".to_owned(), "/elsewhere".to_owned())]);
        let error =
            take(json!({"secret_files": {"A": "hunter2"}})).unwrap().settle(&mut environment).unwrap_err();
        assert!(error.to_string().contains("A_FILE") && !error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_volume_takes_the_files_where_the_containers_own_layer_would_not_show_them() {
        let files = || BTreeMap::from([("A".to_owned(), SecretString::from("s"))]);
        let plan = |host: Value| {
            let host: HostConfig = serde_json::from_value(host).unwrap();
            let mut body = ContainerCreateBody { host_config: Some(host), ..Default::default() };
            Delivery::plan(files(), &mut body).map(|delivery| (delivery.in_volume, json!(body.host_config)))
        };
        for (host, in_volume) in [
            (json!({}), false),
            (json!({"Binds": ["/a:/data", "v:/run/other", "/running"]}), false),
            (json!({"ReadonlyRootfs": true}), true),
            (json!({"Tmpfs": {"/run": "size=1m"}}), true),
            (json!({"Binds": ["/a:/run/"]}), true),
        ] {
            let (found, body) = plan(host.clone()).unwrap();
            assert_eq!(found, in_volume, "{host}");
            let targets = body["Mounts"].as_array().map(|mounts| mounts[0]["Target"].clone());
            assert_eq!(targets, in_volume.then(|| json!(DIRECTORY)), "{host}");
        }
        for host in [
            json!({"Mounts": [{"Type": "volume", "Target": "/run/secrets"}]}),
            json!({"Binds": ["/a:/run/secrets/A:ro"]}),
        ] {
            assert!(plan(host).unwrap_err().to_string().contains("/run/secrets"));
        }
    }

    #[test]
    fn users_have_the_numbers_of_their_image() {
        let passwd = "root:x:0:0::/root:/bin/sh\nprefect:x:1000:1000::/home/prefect:/bin/sh\nbroken\n";
        assert_eq!(number_of("prefect", passwd), Some(1000));
        assert_eq!(number_of("root", passwd), Some(0));
        assert_eq!(number_of("pre", passwd), None);
        assert_eq!(number_of("broken", passwd), None);
    }
}
