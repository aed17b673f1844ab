//! Events of flows, beside those of the engine.

use prefect_api::event::{Event, Resource};

use crate::error::EventError;

/// The largest event that servers take, in bytes as JSON: `PREFECT_SERVER_EVENTS_MAXIMUM_SIZE_BYTES`.
const LARGEST: usize = 1_500_000;

/// Refuses what the server would refuse, and the other events of the socket with it.
pub(crate) fn check_event(event: &Event) -> Result<(), EventError> {
    let has = |resource: &Resource, label| resource.get(label).is_some_and(|value| !value.is_empty());
    let name = || event.event.clone();
    if !has(&event.resource, "prefect.resource.id") {
        return Err(EventError::Resource { event: name() });
    }
    let is_complete =
        |resource: &Resource| has(resource, "prefect.resource.id") && has(resource, "prefect.resource.role");
    if !event.related.iter().all(is_complete) {
        return Err(EventError::Related { event: name() });
    }
    let size = serde_json::to_vec(event).map_or(usize::MAX, |json| json.len());
    if size > LARGEST {
        return Err(EventError::Size { event: name(), size, limit: LARGEST });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_refuse_is_named() {
        let event = || Event::now("dataset.archived", Resource::new("dataset.7"));
        assert_eq!(check_event(&event()), Ok(()));
        let named = "dataset.archived".to_owned();
        let nameless = Event::now(named.clone(), Resource::default());
        assert_eq!(check_event(&nameless), Err(EventError::Resource { event: named.clone() }));
        let roleless = event().related([Resource::new("tape.3")]);
        assert_eq!(check_event(&roleless), Err(EventError::Related { event: named }));
        let large = event().with("text", "x".repeat(LARGEST));
        assert!(matches!(check_event(&large), Err(EventError::Size { limit: LARGEST, .. })));
    }
}
