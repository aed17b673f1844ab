//! How far a pull is, from the engine's many messages about single layers.

use std::collections::BTreeMap;

use bollard::models::CreateImageInfo;

/// More layers than any image has.
const MOST_LAYERS: usize = 1024;

/// The state of one pull.
#[derive(Debug, Default)]
pub(super) struct Progress {
    layers: BTreeMap<String, Layer>,
    /// What the engine says the reference stands for.
    pub(super) digest: Option<String>,
    /// The engine had it already.
    pub(super) up_to_date: bool,
}

#[derive(Debug, Default)]
struct Layer {
    total: u64,
    loaded: u64,
    done: bool,
}

impl Progress {
    /// Takes a message in.
    pub(super) fn take(&mut self, message: &CreateImageInfo) {
        let status = message.status.as_deref().unwrap_or_default();
        if let Some(digest) = status.strip_prefix("Digest: ") {
            self.digest = Some(digest.to_owned());
        } else if status.starts_with("Status: Image is up to date") {
            self.up_to_date = true;
        }
        let Some(id) = &message.id else { return };
        if !is_about_a_layer(status) || self.layers.len() >= MOST_LAYERS {
            return;
        }
        let layer = self.layers.entry(id.clone()).or_default();
        let number = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
        match status {
            "Downloading" => {
                let detail = message.progress_detail.clone().unwrap_or_default();
                layer.loaded = number(detail.current);
                layer.total = number(detail.total).max(layer.loaded);
            }
            "Verifying Checksum" | "Download complete" | "Extracting" => layer.loaded = layer.total,
            "Pull complete" | "Already exists" => {
                layer.loaded = layer.total;
                layer.done = true;
            }
            _ => {}
        }
    }

    /// The state in one line: `42% (4.2 of 10.0 MB), 1 of 3 layers done`.
    pub(super) fn line(&self) -> String {
        let sum = |amount: fn(&Layer) -> u64| self.layers.values().map(amount).fold(0, u64::saturating_add);
        let (loaded, total) = (sum(|layer| layer.loaded), sum(|layer| layer.total));
        let done = self.layers.values().filter(|layer| layer.done).count();
        let layers = format!("{done} of {} layers done", self.layers.len());
        if self.layers.is_empty() {
            return "asking the registry".to_owned();
        }
        match total {
            0 => layers,
            total => {
                let percent = u128::from(loaded) * 100 / u128::from(total);
                format!("{percent}% ({} of {} MB), {layers}", megabytes(loaded), megabytes(total))
            }
        }
    }
}

fn is_about_a_layer(status: &str) -> bool {
    // A message about the whole has the tag as its id.
    !status.starts_with("Pulling from")
}

/// With one digit after the point.
fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn after(messages: &[serde_json::Value]) -> Progress {
        let mut progress = Progress::default();
        for message in messages {
            progress.take(&serde_json::from_value(message.clone()).unwrap());
        }
        progress
    }

    #[test]
    fn layers_are_added_up() {
        let mut messages = vec![json!({"status": "Pulling from a/b", "id": "latest"})];
        assert_eq!(after(&messages).line(), "asking the registry");
        messages.push(json!({"status": "Already exists", "id": "one"}));
        messages.push(json!({"status": "Pulling fs layer", "id": "two"}));
        assert_eq!(after(&messages).line(), "1 of 2 layers done");
        let detail = json!({"current": 4_200_000, "total": 10_000_000});
        messages.push(json!({"status": "Downloading", "id": "two", "progressDetail": detail}));
        assert_eq!(after(&messages).line(), "42% (4.2 of 10.0 MB), 1 of 2 layers done");
        messages
            .push(json!({"status": "Extracting", "id": "two", "progressDetail": {"current": 1, "total": 9}}));
        messages.push(json!({"status": "Digest: sha256:abc"}));
        messages.push(json!({"status": "Status: Image is up to date for a/b"}));
        let progress = after(&messages);
        assert_eq!(progress.line(), "100% (10.0 of 10.0 MB), 1 of 2 layers done");
        assert_eq!((progress.digest.as_deref(), progress.up_to_date), (Some("sha256:abc"), true));
    }

    #[test]
    fn numbers_that_make_no_sense_do_no_harm() {
        let detail = |current: i64, total: i64| json!({"current": current, "total": total});
        let progress = after(&[
            json!({"status": "Downloading", "id": "a", "progressDetail": detail(-5, -1)}),
            json!({"status": "Downloading", "id": "b", "progressDetail": detail(i64::MAX, 1)}),
            json!({"status": "Downloading", "id": "c", "progressDetail": detail(i64::MAX, i64::MAX)}),
            json!({"status": "Downloading", "id": "d", "progressDetail": detail(i64::MAX, i64::MAX)}),
        ]);
        assert!(progress.line().starts_with("100% ("), "{}", progress.line());
    }
}
