//! Mounts as `docker run --mount` and `--tmpfs` take them.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountTmpfsOptions, MountType,
    MountVolumeOptions,
};
use prefect_api::template::text_form;
use serde_json::{Map, Value};

use super::super::super::LaunchError;
use super::super::super::fields::{flag, text, text_map, texts, wrong};
use super::super::size;
use super::engine_form;

/// The keys of a mount, and other names of them.
const KEYS: [(&str, &[&str]); 9] = [
    ("type", &[]),
    ("source", &["src"]),
    ("target", &["dst", "destination"]),
    ("readonly", &["ro", "read_only"]),
    ("bind-propagation", &[]),
    ("volume-nocopy", &[]),
    ("volume-subpath", &[]),
    ("tmpfs-size", &[]),
    ("tmpfs-mode", &[]),
];

/// The engine's names of a mount's fields: objects that have one of them are in its form.
const ENGINES: [(&str, &str); 9] = [
    ("Target", "Target"),
    ("Source", "Source"),
    ("Type", "Type"),
    ("ReadOnly", "ReadOnly"),
    ("Consistency", "Consistency"),
    ("BindOptions", "BindOptions"),
    ("VolumeOptions", "VolumeOptions"),
    ("TmpfsOptions", "TmpfsOptions"),
    ("ImageOptions", "ImageOptions"),
];

/// `type=bind,source=/a,target=/b,readonly`, an object of the same keys, or the engine's own object.
pub(super) fn mount(path: &str, value: Value) -> Result<Mount, LaunchError> {
    let mount = match value {
        Value::Object(object) if object.keys().any(|key| ENGINES.iter().any(|(name, _)| name == key)) => {
            engine_form::<Mount>(path, Value::Object(object), &ENGINES)?
        }
        Value::Object(object) => from_pairs(path, object)?,
        value => from_pairs(path, pairs(&text(path, value)?))?,
    };
    check(path, &mount)?;
    Ok(mount)
}

fn pairs(written: &str) -> Map<String, Value> {
    let pairs = written.split(',').map(|part| {
        let (key, value) = part.split_once('=').unwrap_or((part, "true"));
        (key.trim().to_owned(), Value::String(value.trim().to_owned()))
    });
    pairs.collect()
}

fn from_pairs(path: &str, given: Map<String, Value>) -> Result<Mount, LaunchError> {
    let mut found: BTreeMap<&str, (String, Value)> = BTreeMap::new();
    for (key, value) in given.into_iter().filter(|(_, value)| !value.is_null()) {
        let dashed = key.replace('_', "-");
        let known = KEYS
            .iter()
            .find(|(name, others)| *name == key || *name == dashed || others.contains(&key.as_str()));
        let Some((name, _)) = known else {
            let names: Vec<&str> = KEYS.iter().map(|(name, _)| *name).collect();
            let message = format!("{path}.{key} is not known there; known are {}", names.join(", "));
            return Err(LaunchError::Configuration { message });
        };
        if found.insert(name, (format!("{path}.{key}"), value)).is_some() {
            let message = format!("{path}.{name} is there twice, in two spellings");
            return Err(LaunchError::Configuration { message });
        }
    }
    let mut take = |name: &str| found.remove(name);
    let mut word = |name: &str| take(name).map(|(path, value)| text(&path, value)).transpose();
    let typ = match word("type")? {
        None => MountType::VOLUME,
        Some(kind) => kind
            .parse()
            .map_err(|()| wrong(&format!("{path}.type"), "bind, volume or tmpfs", &Value::String(kind)))?,
    };
    let (source, target) = (word("source")?, word("target")?);
    let propagation = word("bind-propagation")?
        .map(|kind| {
            let propagation = kind.parse::<MountBindOptionsPropagationEnum>();
            propagation.map_err(|_| {
                let form = "private, rprivate, shared, rshared, slave or rslave";
                wrong(&format!("{path}.bind-propagation"), form, &Value::String(kind))
            })
        })
        .transpose()?;
    let subpath = word("volume-subpath")?;
    let read_only = take("readonly").map(|(path, value)| flag(&path, &value)).transpose()?;
    let no_copy = take("volume-nocopy").map(|(path, value)| flag(&path, &value)).transpose()?;
    let size_bytes =
        take("tmpfs-size").map(|(path, value)| super::limits::bytes(&path, value)).transpose()?;
    let mode = take("tmpfs-mode").map(|(path, value)| octal(&path, &value)).transpose()?;
    Ok(Mount {
        typ: Some(typ),
        source,
        target,
        read_only,
        bind_options: propagation
            .map(|kind| MountBindOptions { propagation: Some(kind), ..Default::default() }),
        volume_options: (no_copy.is_some() || subpath.is_some()).then(|| MountVolumeOptions {
            no_copy,
            subpath,
            ..Default::default()
        }),
        tmpfs_options: (size_bytes.is_some() || mode.is_some()).then(|| MountTmpfsOptions {
            size_bytes,
            mode,
            ..Default::default()
        }),
        ..Mount::default()
    })
}

/// Permissions such as `1777`, in octal.
fn octal(path: &str, value: &Value) -> Result<i64, LaunchError> {
    let digits = text_form(value);
    i64::from_str_radix(&digits, 8)
        .ok()
        .filter(|mode| (0..=0o7777).contains(mode))
        .ok_or_else(|| wrong(path, "octal permissions such as 1777", value))
}

fn check(path: &str, mount: &Mount) -> Result<(), LaunchError> {
    let problem = |text: &str| Err(LaunchError::Configuration { message: format!("{path} {text}") });
    let source = mount.source.as_deref().unwrap_or_default();
    if !mount.target.as_deref().is_some_and(|target| target.starts_with('/')) {
        return problem("needs a target, an absolute path in the container");
    }
    match mount.typ {
        Some(MountType::BIND) if !source.starts_with('/') => {
            problem("needs a source, an absolute path on the host, because its type is bind")
        }
        Some(MountType::VOLUME) if source.starts_with('/') => {
            problem("has the path of a directory as source, but its type is volume; say type=bind")
        }
        Some(MountType::TMPFS) if !source.is_empty() => problem("is of type tmpfs, which has no source"),
        Some(kind) => {
            let foreign = [
                ("bind-propagation", mount.bind_options.is_some() && kind != MountType::BIND),
                ("volume-nocopy or -subpath", mount.volume_options.is_some() && kind != MountType::VOLUME),
                ("tmpfs-size or -mode", mount.tmpfs_options.is_some() && kind != MountType::TMPFS),
            ];
            match foreign.iter().find(|(_, foreign)| *foreign) {
                Some((name, _)) => problem(&format!("has {name}, which mounts of type {kind} do not have")),
                None => Ok(()),
            }
        }
        None => problem("needs a type: bind, volume or tmpfs"),
    }
}

/// `["/run:size=1m"]` or `{"/run": "size=1m"}`.
pub(super) fn tmpfs(path: &str, value: Value) -> Result<HashMap<String, String>, LaunchError> {
    let mounts: Vec<(String, String)> = match value {
        Value::Object(_) => text_map(path, value)?.into_iter().collect(),
        Value::String(one) => vec![split_tmpfs(&one)],
        value => texts(path, value)?.iter().map(|mount| split_tmpfs(mount)).collect(),
    };
    for (target, options) in &mounts {
        if !target.starts_with('/') || target.len() < 2 {
            return Err(wrong(path, "absolute paths with options, such as /run:size=1m", &Value::Null));
        }
        let size = options.split(',').find_map(|option| option.strip_prefix("size="));
        // The kernel takes per cents of the memory too.
        let known = |size: &str| size::parse(size.trim_end_matches('%')).is_some_and(|amount| amount > 0);
        if size.is_some_and(|size| !known(size)) {
            let message = format!("{path}: the size of {target:?} must be an amount such as 64m or 10%");
            return Err(LaunchError::Configuration { message });
        }
    }
    let count = mounts.len();
    let mounts: HashMap<String, String> = mounts.into_iter().collect();
    if mounts.len() < count {
        return Err(LaunchError::Configuration { message: format!("{path} has one path twice") });
    }
    Ok(mounts)
}

fn split_tmpfs(mount: &str) -> (String, String) {
    let (target, options) = mount.split_once(':').unwrap_or((mount, ""));
    (target.trim().to_owned(), options.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn of(value: Value) -> Value {
        json!(mount("m", value).unwrap())
    }

    #[test]
    fn a_mount_may_be_text_or_an_object_of_either_names() {
        let bind = json!({"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true});
        assert_eq!(of(json!("type=bind,source=/a,target=/b,readonly")), bind);
        assert_eq!(of(json!("type=bind, src=/a, dst=/b, ro=true")), bind);
        assert_eq!(of(json!({"type": "bind", "source": "/a", "target": "/b", "read_only": true})), bind);
        assert_eq!(of(bind.clone()), bind);
        assert_eq!(of(json!("source=v,target=/b")), json!({"Type": "volume", "Source": "v", "Target": "/b"}));
        assert_eq!(
            of(json!("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777")),
            json!({"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o1777}})
        );
        assert_eq!(
            of(json!("type=bind,source=/a,target=/b,bind-propagation=rslave"))["BindOptions"],
            json!({"Propagation": "rslave"})
        );
        assert_eq!(
            of(json!({"source": "v", "target": "/b", "volume_nocopy": true}))["VolumeOptions"],
            json!({"NoCopy": true})
        );
    }

    #[test]
    fn a_mount_that_cannot_be_meant_is_named() {
        for (bad, part) in [
            (json!("type=bind,source=/a"), "needs a target"),
            (json!("type=bind,source=a,target=/b"), "needs a source"),
            (json!("source=/a,target=/b"), "say type=bind"),
            (json!("type=tmpfs,source=x,target=/b"), "no source"),
            (json!("type=floppy,target=/b"), "m.type must be"),
            (json!("type=bind,source=/a,target=/b,tmpfs-size=1m"), "do not have"),
            (json!("type=bind,source=/a,target=/b,volume-driver=x"), "m.volume-driver is not known"),
            (json!("source=v,src=w,target=/b"), "twice"),
            (json!({"Type": "bind", "source": "/a"}), "m.source is not known"),
            (json!({"Source": "/a", "Target": "/b"}), "needs a type"),
            (json!(["/a"]), "m must be text"),
            (json!(""), "m. is not known"),
        ] {
            let error = mount("m", bad.clone()).unwrap_err().to_string();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }

    #[test]
    fn memory_file_systems_have_paths_and_options() {
        let run = HashMap::from([
            ("/run".to_owned(), "size=1m,exec".to_owned()),
            ("/tmp".to_owned(), String::new()),
        ]);
        assert_eq!(tmpfs("tmpfs", json!(["/run:size=1m,exec", "/tmp"])).unwrap(), run);
        assert_eq!(tmpfs("tmpfs", json!({"/run": "size=1m,exec", "/tmp": ""})).unwrap(), run);
        assert_eq!(tmpfs("tmpfs", json!("/run:size=10%")).unwrap().len(), 1);
        for bad in [json!(["run"]), json!(["/run:size=much"]), json!(["/run", "/run:size=1m"]), json!(1)] {
            assert!(tmpfs("tmpfs", bad.clone()).unwrap_err().to_string().contains("tmpfs"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_complete(text in "(type=(bind|volume|tmpfs|x),?|source=(/a|v),?|target=(/b|c),?|readonly,?|.{0,3}){0,6}") {
            if let Ok(mount) = mount("m", json!(text)) {
                prop_assert!(mount.typ.is_some() && mount.target.unwrap().starts_with('/'));
            }
        }
    }
}
