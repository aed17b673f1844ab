//! A table of a configuration file that knows where it stands, so that every fault names its place.
//!
//! Entries are taken out by name; what nobody took is unknown. A null entry is an absent one. Numbers and flags
//! may be written as text, because placeholders of the environment give text.

use serde_json::{Map, Value};

use crate::{Error, Place};
use prefect_api::nearest::nearest;

#[derive(Debug)]
pub(crate) struct Section {
    place: Place,
    entries: Map<String, Value>,
    asked: Vec<&'static str>,
}

impl Section {
    /// The table at `place`; nothing counts as an empty one.
    pub(crate) fn new(place: Place, value: Value) -> Result<Self, Error> {
        let entries = match value {
            Value::Object(entries) => entries,
            Value::Null => Map::new(),
            other => return Err(wrong(place, "a table", &other)),
        };
        Ok(Self { place, entries, asked: Vec::new() })
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn take(&mut self, key: &'static str) -> Option<(Place, Value)> {
        self.asked.push(key);
        let value = self.entries.remove(key).filter(|value| !value.is_null())?;
        Some((self.place.key(key), value))
    }

    pub(crate) fn text(&mut self, key: &'static str) -> Result<Option<String>, Error> {
        self.take(key).map(|(place, value)| text_of(&place, &value)).transpose()
    }

    pub(crate) fn required_text(&mut self, key: &'static str) -> Result<String, Error> {
        let found = self.text(key)?.filter(|text| !text.trim().is_empty());
        found.ok_or_else(|| Error::Missing { place: self.place.key(key) })
    }

    /// A whole number of at least `least`.
    pub(crate) fn number(&mut self, key: &'static str, least: u32) -> Result<Option<u32>, Error> {
        self.take(key).map(|(place, value)| number_of(&place, &value, least)).transpose()
    }

    pub(crate) fn flag(&mut self, key: &'static str) -> Result<Option<bool>, Error> {
        let Some((place, value)) = self.take(key) else { return Ok(None) };
        match value {
            Value::Bool(flag) => Ok(Some(flag)),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            other => Err(wrong(place, "true or false", &other)),
        }
    }

    pub(crate) fn list(&mut self, key: &'static str) -> Result<Vec<(Place, Value)>, Error> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some((place, Value::Array(items))) => {
                Ok(items.into_iter().enumerate().map(|(index, item)| (place.item(index), item)).collect())
            }
            Some((place, other)) => Err(wrong(place, "a list", &other)),
        }
    }

    /// The table below `key`; an absent one is empty.
    pub(crate) fn section(&mut self, key: &'static str) -> Result<Self, Error> {
        let (place, value) = self.take(key).unwrap_or_else(|| (self.place.key(key), Value::Null));
        Self::new(place, value)
    }

    /// The table below `key`, whatever is in it.
    pub(crate) fn entries(&mut self, key: &'static str) -> Result<Map<String, Value>, Error> {
        Ok(self.section(key)?.entries)
    }

    /// The places of what nobody asked for.
    pub(crate) fn unknown(self) -> impl Iterator<Item = Place> {
        let place = self.place;
        self.entries.into_iter().map(move |(key, _)| place.key(&key))
    }

    /// Refuses what nobody asked for.
    pub(crate) fn refuse_unknown(self) -> Result<(), Error> {
        match self.entries.keys().next() {
            None => Ok(()),
            Some(key) => Err(Error::UnknownKey {
                place: self.place.key(key),
                nearest: nearest(key, self.asked.iter().copied()).map(str::to_owned),
            }),
        }
    }
}

/// Text, or a number as it is written.
pub(crate) fn text_of(place: &Place, value: &Value) -> Result<String, Error> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(wrong(place.clone(), "text or a number", other)),
    }
}

pub(crate) fn number_of(place: &Place, value: &Value, least: u32) -> Result<u32, Error> {
    let text = text_of(place, value)?;
    let number = text.trim().parse().ok().filter(|number| *number >= least);
    number.ok_or_else(|| {
        Error::invalid(place.clone(), format!("it must be a whole number of at least {least}, not {text:?}"))
    })
}

pub(crate) fn wrong(place: Place, expected: &str, found: &Value) -> Error {
    let found = match found {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    };
    Error::invalid(place, format!("it must be {expected}, not {found}"))
}
