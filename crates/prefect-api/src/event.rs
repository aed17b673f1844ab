//! Events, and the subscription to them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::EventId;

/// A resource of an event: labels, all of them text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Resource(pub BTreeMap<String, String>);

impl Resource {
    /// The resource with this id.
    pub fn new(id: impl Into<String>) -> Self {
        Self(BTreeMap::from([("prefect.resource.id".to_owned(), id.into())]))
    }

    /// The resource of a record, for example `("flow-run", id)` gives `prefect.flow-run.<id>`.
    pub fn of(kind: &str, id: impl std::fmt::Display) -> Self {
        Self::new(format!("prefect.{kind}.{id}"))
    }

    /// The same with one more label.
    #[must_use]
    pub fn with(mut self, label: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.insert(label.into(), value.into());
        self
    }

    /// The same with `prefect.resource.name`.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        self.with("prefect.resource.name", name)
    }

    /// The same with `prefect.resource.role`, as related resources have it.
    #[must_use]
    pub fn role(self, role: impl Into<String>) -> Self {
        self.with("prefect.resource.role", role)
    }

    /// The resource's id.
    pub fn id(&self) -> Option<&str> {
        self.get("prefect.resource.id")
    }

    /// The value of a label.
    pub fn get(&self, label: &str) -> Option<&str> {
        self.0.get(label).map(String::as_str)
    }
}

/// An event. Ids are unique: a second event under a used id is ignored by the server (contract §4.2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The event's id.
    pub id: EventId,
    /// When it happened.
    pub occurred: Timestamp,
    /// What happened, for example `prefect.task-run.Running`.
    pub event: String,
    /// What it happened to.
    pub resource: Resource,
    /// What else it concerns.
    #[serde(default)]
    pub related: Vec<Resource>,
    /// Data.
    #[serde(default)]
    pub payload: Map<String, Value>,
    /// The event before it.
    #[serde(default)]
    pub follows: Option<EventId>,
}

impl Event {
    /// An event that happens now, under a fresh id.
    pub fn now(event: impl Into<String>, resource: Resource) -> Self {
        Self::new(event, Timestamp::now(), resource)
    }

    /// An event under a fresh id.
    pub fn new(event: impl Into<String>, occurred: Timestamp, resource: Resource) -> Self {
        Self {
            id: EventId::generate(),
            occurred,
            event: event.into(),
            resource,
            related: Vec::new(),
            payload: Map::new(),
            follows: None,
        }
    }

    /// The same, concerning these too.
    #[must_use]
    pub fn related(mut self, related: impl IntoIterator<Item = Resource>) -> Self {
        self.related.extend(related);
        self
    }

    /// The same with one more piece of data.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.payload.insert(name.into(), value.into());
        self
    }

    /// The same, after that one.
    #[must_use]
    pub fn follows(mut self, earlier: Option<EventId>) -> Self {
        self.follows = earlier;
        self
    }
}

/// What a subscriber to `/events/out` wants to hear.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventFilter {
    /// Names of events.
    pub event: Names,
    /// When they happened.
    pub occurred: Occurred,
    /// Resources, the event's own or related; any of them. Absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub any_resource: Option<ResourceIds>,
    /// Order of the stored events that come first.
    pub order: &'static str,
}

/// Names of events.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Names {
    /// Any of these.
    pub name: Vec<String>,
}

/// A span of time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Occurred {
    /// From.
    pub since: Timestamp,
    /// Until.
    pub until: Timestamp,
}

/// Ids of resources.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResourceIds {
    /// Any of these.
    pub id: Vec<String>,
}

impl EventFilter {
    /// Events of these names about this resource, from a minute before `now` on: the server replays stored
    /// ones first, so a reader must look at the record itself before it acts (contract §4.8).
    pub fn new(names: &[&str], resource: Option<String>, now: Timestamp) -> Self {
        let minute = jiff::SignedDuration::from_secs(60);
        let year = jiff::SignedDuration::from_hours(365 * 24);
        Self {
            event: Names { name: names.iter().map(|&name| name.to_owned()).collect() },
            occurred: Occurred {
                since: now.saturating_sub(minute).unwrap_or(now),
                until: now.saturating_add(year).unwrap_or(now),
            },
            any_resource: resource.map(|id| ResourceIds { id: vec![id] }),
            order: "DESC",
        }
    }
}
