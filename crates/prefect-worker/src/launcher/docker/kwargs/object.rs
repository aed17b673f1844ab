//! Objects of the engine's API. Keys are read whatever their case, as the engine reads them, or under docker-py's
//! names; a key that the engine would drop silently is an error.

use serde_json::{Map, Value, json};

use super::super::super::LaunchError;
use super::super::super::fields::{exact_text, exact_texts, wrong};
use super::form::{boolean, integer, items, text_map};

/// A field: the engine's name, docker-py's name if that is more than another case, and how its value is written.
pub(super) type Field = (&'static str, &'static str, Kind);

/// How the value of a field is written.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Text,
    Texts,
    /// Lists of texts.
    Groups,
    TextMap,
    Choice(&'static [&'static str]),
    Flag,
    Integer,
    /// An integer that is not negative.
    Count,
    /// A list of words, or text for a shell.
    Test,
    Object(&'static [Field]),
}

use Kind::{Choice, Count, Flag, Groups, Integer, Object, Test, Text, TextMap, Texts};

pub(super) const ULIMIT: &[Field] = &[("Name", "", Text), ("Soft", "", Integer), ("Hard", "", Integer)];
pub(super) const DEVICE: &[Field] =
    &[("PathOnHost", "", Text), ("PathInContainer", "", Text), ("CgroupPermissions", "", Text)];
pub(super) const WEIGHT_DEVICE: &[Field] = &[("Path", "", Text), ("Weight", "", Count)];
pub(super) const RATE_DEVICE: &[Field] = &[("Path", "", Text), ("Rate", "", Count)];
pub(super) const DEVICE_REQUEST: &[Field] = &[
    ("Driver", "", Text),
    ("Count", "", Integer),
    ("DeviceIDs", "device_ids", Texts),
    ("Capabilities", "", Groups),
    ("Options", "", TextMap),
];
pub(super) const LOG_CONFIG: &[Field] = &[("Type", "", Text), ("Config", "", TextMap)];
pub(super) const HEALTH: &[Field] = &[
    ("Test", "", Test),
    ("Interval", "", Integer),
    ("Timeout", "", Integer),
    ("Retries", "", Integer),
    ("StartPeriod", "start_period", Integer),
];
pub(super) const RESTART_POLICY: &[Field] = &[
    ("Name", "", Choice(&["", "no", "always", "unless-stopped", "on-failure"])),
    ("MaximumRetryCount", "", Integer),
];
const PROPAGATION: &[&str] = &["private", "rprivate", "shared", "rshared", "slave", "rslave"];
pub(super) const MOUNT: &[Field] = &[
    ("Target", "", Text),
    ("Source", "", Text),
    ("Type", "", Choice(&["bind", "volume", "tmpfs", "npipe", "cluster", "image"])),
    ("ReadOnly", "", Flag),
    ("Consistency", "", Text),
    (
        "BindOptions",
        "",
        Object(&[
            ("Propagation", "", Choice(PROPAGATION)),
            ("NonRecursive", "", Flag),
            ("CreateMountpoint", "", Flag),
            ("ReadOnlyNonRecursive", "", Flag),
            ("ReadOnlyForceRecursive", "", Flag),
        ]),
    ),
    (
        "VolumeOptions",
        "",
        Object(&[
            ("NoCopy", "", Flag),
            ("Labels", "", TextMap),
            ("DriverConfig", "", Object(&[("Name", "", Text), ("Options", "", TextMap)])),
            ("Subpath", "", Text),
        ]),
    ),
    ("ImageOptions", "", Object(&[("Subpath", "", Text)])),
    ("TmpfsOptions", "", Object(&[("SizeBytes", "", Count), ("Mode", "", Count), ("Options", "", Groups)])),
];
pub(super) const ENDPOINT: &[Field] = &[
    (
        "IPAMConfig",
        "",
        Object(&[("IPv4Address", "", Text), ("IPv6Address", "", Text), ("LinkLocalIPs", "", Texts)]),
    ),
    ("Links", "", Texts),
    ("Aliases", "", Texts),
    ("DriverOpts", "", TextMap),
    ("MacAddress", "", Text),
];

/// The object with the engine's keys. A null is left out.
pub(super) fn convert(path: &str, value: &Value, fields: &[Field]) -> Result<Value, LaunchError> {
    let object = value.as_object().ok_or_else(|| wrong(path, "an object", value))?;
    let mut converted = Map::new();
    for (key, value) in object {
        let known = |(name, alias, _): &&Field| key.eq_ignore_ascii_case(name) || key == alias;
        let Some((name, _, kind)) = fields.iter().find(known) else {
            let names: Vec<&str> = fields.iter().map(|(name, ..)| *name).collect();
            let message = format!("{path}.{key} is not known there: there are {}", names.join(", "));
            return Err(LaunchError::Configuration { message });
        };
        if !value.is_null() {
            converted.insert((*name).to_owned(), kind.convert(&format!("{path}.{key}"), value)?);
        }
    }
    Ok(Value::Object(converted))
}

impl Kind {
    fn convert(self, path: &str, value: &Value) -> Result<Value, LaunchError> {
        Ok(match self {
            Text => json!(exact_text(path, value)?),
            Texts => json!(exact_texts(path, value)?),
            Groups => {
                let groups = items(path, value)?.map(|(path, item)| exact_texts(&path, item));
                json!(groups.collect::<Result<Vec<_>, _>>()?)
            }
            TextMap => Value::Object(text_map(path, value)?),
            Choice(choices) => {
                let chosen = value.as_str().filter(|chosen| choices.contains(chosen));
                let expected = || format!("one of {}", choices.join(", "));
                json!(chosen.ok_or_else(|| wrong(path, &expected(), value))?)
            }
            Flag => json!(boolean(path, value)?),
            Integer => json!(integer(path, value)?),
            Count => match value.as_u64().filter(|number| i64::try_from(*number).is_ok()) {
                Some(number) => json!(number),
                None => return Err(wrong(path, "a whole number from 0", value)),
            },
            Test => match value {
                Value::String(line) => json!(["CMD-SHELL", line]),
                value => json!(exact_texts(path, value)?),
            },
            Object(fields) => convert(path, value, fields)?,
        })
    }
}
