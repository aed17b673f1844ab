//! The record of the images that workers have pulled, and of their last use by a job. What is not recorded is not
//! ours to remove.
//!
//! It is kept by the engine, as an empty volume with labels for each image and name: a worker keeps nothing that
//! has to survive it, and containers that are removed leave no trace. Labels do not change, so a record is renewed
//! by another volume, and the former one goes after that.

use std::collections::{BTreeSet, HashMap};

use bollard::errors::Error::DockerResponseServerError as Refused;
use bollard::models::{Volume, VolumeCreateRequest};
use bollard::query_parameters::{ListVolumesOptions, RemoveVolumeOptions};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::super::LaunchError;
use super::engine::Engine;

/// The reference by which the image was pulled.
const REFERENCE: &str = "io.ferryman.image";
/// The engine's id of the image.
const IMAGE_ID: &str = "io.ferryman.image-id";
/// When a job used it.
const LAST_USED: &str = "io.ferryman.image-last-used";
/// What names of the volumes begin with.
const PREFIX: &str = "ferryman-image-";
/// Volumes of other drivers may be on other machines, and slow to list.
const DRIVER: &str = "local";

/// How exactly the last use is known: a record that is younger is not renewed.
const PRECISION: SignedDuration = SignedDuration::from_hours(1);

/// That a worker pulled an image by a reference.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) reference: String,
    /// The engine's id of the image.
    pub(super) id: String,
    pub(super) last_used: Timestamp,
    /// The volume that says so.
    pub(super) volume: String,
}

/// The records of an image, or of all.
pub(super) async fn read(engine: &Engine, image: Option<&str>) -> Result<Vec<Record>, LaunchError> {
    let label = image.map_or_else(|| IMAGE_ID.to_owned(), |id| format!("{IMAGE_ID}={id}"));
    let filters =
        HashMap::from([("label".to_owned(), vec![label]), ("driver".to_owned(), vec![DRIVER.to_owned()])]);
    let listed = engine.docker.list_volumes(Some(ListVolumesOptions { filters: Some(filters) })).await;
    let listed = listed.map_err(|error| engine.error("list volumes", error))?;
    Ok(listed.volumes.unwrap_or_default().into_iter().filter_map(understand).collect())
}

/// What a volume says; `None` for those that are no records.
fn understand(mut volume: Volume) -> Option<Record> {
    let last_used = volume.labels.get(LAST_USED)?.parse().ok()?;
    let (reference, id) = (volume.labels.remove(REFERENCE)?, volume.labels.remove(IMAGE_ID)?);
    volume.name.starts_with(PREFIX).then_some(Record { reference, id, last_used, volume: volume.name })
}

async fn write(engine: &Engine, reference: &str, id: &str, now: Timestamp) -> Result<(), LaunchError> {
    let labels = [(REFERENCE, reference.to_owned()), (IMAGE_ID, id.to_owned()), (LAST_USED, now.to_string())];
    let request = VolumeCreateRequest {
        name: Some(format!("{PREFIX}{}", Uuid::new_v4())),
        driver: Some(DRIVER.to_owned()),
        labels: Some(labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ..Default::default()
    };
    let written = engine.docker.create_volume(request).await;
    written.map(drop).map_err(|error| engine.error("create a volume", error))
}

/// Removes a record. What is gone already is no error.
pub(super) async fn erase(engine: &Engine, record: &Record) -> Result<(), LaunchError> {
    match engine.docker.remove_volume(&record.volume, None::<RemoveVolumeOptions>).await {
        Ok(()) | Err(Refused { status_code: 404, .. }) => Ok(()),
        Err(error) => Err(engine.error("remove a volume", error)),
    }
}

/// Notes the uses of images by this process's jobs.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// Up to when the uses of images, by id, are noted.
    noted: Mutex<HashMap<String, Timestamp>>,
}

impl Uses {
    /// Notes that a job uses an image. `pulled` is the reference by which a pull of ours has just brought it.
    /// What cannot be noted is never removed, and no job fails by it.
    pub(super) async fn note(&self, engine: &Engine, id: &str, pulled: Option<&str>) {
        let now = Timestamp::now();
        // Held meanwhile: jobs that start together write one record.
        let mut noted = self.noted.lock().await;
        noted.retain(|_, last| now.duration_since(*last) < PRECISION);
        if pulled.is_none() && noted.contains_key(id) {
            return;
        }
        let last = renew(engine, id, pulled, now).await.unwrap_or_else(|error| {
            tracing::warn!(image = id, %error, "the use of an image is not recorded: nobody will reap it");
            now
        });
        noted.insert(id.to_owned(), last);
    }
}

/// Renews the records of an image that are old, and writes one for `pulled` if there is none. Gives the time up
/// to which uses are recorded.
async fn renew(
    engine: &Engine,
    id: &str,
    pulled: Option<&str>,
    now: Timestamp,
) -> Result<Timestamp, LaunchError> {
    let records = read(engine, Some(id)).await?;
    let known = records.iter().map(|record| record.reference.as_str());
    let mut noted = now;
    for reference in known.chain(pulled).collect::<BTreeSet<_>>() {
        let former = || records.iter().filter(|record| record.reference == reference);
        match former().map(|record| record.last_used).max() {
            Some(last) if now.duration_since(last) < PRECISION => noted = noted.min(last),
            _ => {
                write(engine, reference, id, now).await?;
                for record in former() {
                    erase(engine, record).await?;
                }
            }
        }
    }
    Ok(noted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_volumes_of_ours_are_records() {
        let volume = |name: &str, labels: &[(&str, &str)]| Volume {
            name: name.to_owned(),
            labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            ..Default::default()
        };
        let labels = [(REFERENCE, "r/a:1"), (IMAGE_ID, "sha256:1"), (LAST_USED, "2026-11-25T12:00:00Z")];
        let record = understand(volume("ferryman-image-1", &labels)).unwrap();
        assert_eq!((record.reference.as_str(), record.id.as_str()), ("r/a:1", "sha256:1"));
        assert_eq!(record.last_used.to_string(), "2026-11-25T12:00:00Z");
        assert!(understand(volume("data", &labels)).is_none(), "somebody's volume");
        for missing in 0..labels.len() {
            let mut labels = labels.to_vec();
            labels.remove(missing);
            assert!(understand(volume("ferryman-image-1", &labels)).is_none());
        }
        let undated = [labels[0], labels[1], (LAST_USED, "soon")];
        assert!(understand(volume("ferryman-image-1", &undated)).is_none());
    }
}
