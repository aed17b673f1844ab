//! Files of upper-case keys, in sections that group but do not prefix; the environment overrides them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::section::text_of;
use crate::{Environment, Error, Place, file};
use prefect_api::nearest::nearest;

/// What a file and the environment say about `known` keys: text, and where it comes from.
///
/// `meaning` gives the present spelling of an older key.
pub(crate) fn load(
    path: &Path,
    environment: &Environment,
    known: &[&'static str],
    meaning: fn(&str) -> String,
) -> Result<BTreeMap<&'static str, (Place, String)>, Error> {
    let mut found = BTreeMap::new();
    let file = Place::file(path);
    if let Value::Object(entries) = file::toml(path)? {
        for (name, value) in entries {
            match value {
                Value::Object(section) => {
                    let place = file.key(&name);
                    for (key, value) in section {
                        add(&mut found, &place, &key, &value, known, meaning)?;
                    }
                }
                value => add(&mut found, &file, &name, &value, known, meaning)?,
            }
        }
    }
    for key in known.iter().copied() {
        if let Some(value) = environment.get(key) {
            found.insert(key, (Place::environment(key), value.to_owned()));
        }
    }
    Ok(found)
}

fn add(
    found: &mut BTreeMap<&'static str, (Place, String)>,
    parent: &Place,
    key: &str,
    value: &Value,
    known: &[&'static str],
    meaning: fn(&str) -> String,
) -> Result<(), Error> {
    let place = parent.key(key);
    let meant = meaning(key);
    let Some(name) = known.iter().copied().find(|name| *name == meant) else {
        let nearest = nearest(key, known.iter().copied()).map(str::to_owned);
        return Err(Error::UnknownKey { place, nearest });
    };
    let text = text_of(&place, value)?;
    match found.insert(name, (place.clone(), text)) {
        None => Ok(()),
        Some((other, _)) => Err(Error::invalid(place, format!("{name} is set already, in {other}"))),
    }
}
