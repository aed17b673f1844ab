//! The images that workers have pulled, and their removal. Everybody else's stay, and so do the names that others
//! gave to ours.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bollard::errors::Error::DockerResponseServerError as Refused;
use bollard::models::ImageSummary;
use bollard::query_parameters::{ListContainersOptions, ListImagesOptions, RemoveImageOptions};
use jiff::Timestamp;

use super::super::LaunchError;
use super::image;
use super::image_record::{self, Record};
use super::leftovers::{Leftovers, Removal};

/// An image that a worker of this project has pulled.
#[derive(Debug, Clone)]
pub(crate) struct PulledImage {
    /// The engine's id of it.
    pub(crate) id: String,
    /// By what it was pulled.
    pub(crate) references: BTreeSet<String>,
    /// When a job last used it, to the hour.
    pub(crate) last_used: Timestamp,
    pub(crate) standing: Standing,
    /// Bytes, those of layers that other images have too included.
    pub(crate) size: Option<u64>,
}

/// What an image is to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The engine has it no more.
    Gone,
    /// A container was made of it: this one, among others.
    Used(String),
    /// An image was made of it.
    Parent,
    /// All names that it has were given by others.
    Theirs,
    /// Others gave it names too: only these are ours.
    Shared(Vec<String>),
    /// Nobody else has to do with it.
    Ours,
}

impl Leftovers {
    /// The images that workers have pulled, as they are once the containers `leaving` are gone.
    pub(crate) async fn images(&self, leaving: &HashSet<&str>) -> Result<Vec<PulledImage>, LaunchError> {
        let mut records: BTreeMap<String, Vec<Record>> = BTreeMap::new();
        for record in image_record::read(&self.engine, None).await? {
            records.entry(record.id.clone()).or_default().push(record);
        }
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let options = ListImagesOptions { all: true, ..Default::default() };
        let images = self.engine.docker.list_images(Some(options)).await;
        let images = images.map_err(|error| self.engine.error("list images", error))?;
        let users = self.users(leaving).await?;
        let parents: HashSet<&str> = images.iter().map(|image| image.parent_id.as_str()).collect();
        let images: HashMap<&str, &ImageSummary> =
            images.iter().map(|image| (image.id.as_str(), image)).collect();
        let pulled = records.into_iter().map(|(id, records)| {
            let image = images.get(id.as_str());
            let references: BTreeSet<String> =
                records.iter().map(|record| record.reference.clone()).collect();
            let standing = match (image, users.get(&id)) {
                (None, _) => Standing::Gone,
                (_, Some(user)) => Standing::Used(user.clone()),
                _ if parents.contains(id.as_str()) => Standing::Parent,
                (Some(image), _) => by_names(&image.repo_tags, &references),
            };
            PulledImage {
                references,
                last_used: records.iter().map(|record| record.last_used).max().unwrap_or_default(),
                standing,
                size: image.and_then(|image| u64::try_from(image.size).ok()),
                id,
            }
        });
        Ok(pulled.collect())
    }

    /// A container's name for each image that containers were made of, anybody's.
    async fn users(&self, leaving: &HashSet<&str>) -> Result<HashMap<String, String>, LaunchError> {
        let options = ListContainersOptions { all: true, ..Default::default() };
        let containers = self.engine.docker.list_containers(Some(options)).await;
        let containers = containers.map_err(|error| self.engine.error("list containers", error))?;
        let stay = containers
            .into_iter()
            .filter(|container| container.id.as_ref().is_none_or(|id| !leaving.contains(id.as_str())));
        let users = stay.filter_map(|container| {
            let name = container.names.and_then(|names| names.into_iter().next()).unwrap_or_default();
            Some((container.image_id?, name.trim_start_matches('/').to_owned()))
        });
        Ok(users.collect())
    }

    /// Removes an image that is [`Ours`](Standing::Ours), or the names of a [`Shared`](Standing::Shared) one,
    /// unless a job has begun to use it since it was looked at.
    pub(crate) async fn remove_image(&self, image: &PulledImage) -> Result<Removal, LaunchError> {
        let records = image_record::read(&self.engine, Some(&image.id)).await?;
        if records.iter().any(|record| record.last_used > image.last_used) {
            return Ok(Removal::Refused("a job uses it by now".to_owned()));
        }
        let removal = match &image.standing {
            // By its id: a name may stand for another image by now.
            Standing::Ours => self.delete(&image.id).await?,
            Standing::Shared(names) => self.delete_names(&image.id, names).await?,
            Standing::Gone => Removal::Gone,
            Standing::Used(_) | Standing::Parent | Standing::Theirs => {
                Removal::Refused("it is not only ours".to_owned())
            }
        };
        if matches!(removal, Removal::Removed | Removal::Gone) {
            for record in &records {
                image_record::erase(&self.engine, record).await?;
            }
        }
        Ok(removal)
    }

    async fn delete_names(&self, id: &str, names: &[String]) -> Result<Removal, LaunchError> {
        let mut last = Removal::Gone;
        for name in names {
            match self.engine.docker.inspect_image(name).await {
                Ok(image) if image.id.as_deref() == Some(id) => last = self.delete(name).await?,
                // It stands for another image by now.
                Ok(_) | Err(Refused { status_code: 404, .. }) => {}
                Err(error) => return Err(self.engine.error("inspect the image", error)),
            }
            if matches!(last, Removal::Refused(_)) {
                break;
            }
        }
        Ok(last)
    }

    async fn delete(&self, image: &str) -> Result<Removal, LaunchError> {
        // Its parents, if it has any, were not pulled.
        let options = RemoveImageOptions { force: false, noprune: true, ..Default::default() };
        let deleted = self.engine.docker.remove_image(image, Some(options), None).await;
        self.removal("remove the image", deleted.map(drop))
    }
}

/// What the names of an image that nothing uses say, when it was pulled by these references.
fn by_names(names: &[String], references: &BTreeSet<String>) -> Standing {
    let names = names.iter().filter(|name| *name != "<none>:<none>");
    let (ours, theirs): (Vec<&String>, Vec<&String>) =
        names.partition(|name| references.iter().any(|reference| is_name(reference, name)));
    match (ours.len(), theirs.len()) {
        (0 | 1, 0) => Standing::Ours,
        (0, _) => Standing::Theirs,
        _ => Standing::Shared(ours.into_iter().cloned().collect()),
    }
}

/// Whether a reference, as a job writes it, means this name, as the engine writes it.
fn is_name(reference: &str, name: &str) -> bool {
    let ((repository, tag), (of, named)) = (image::split(reference), image::split(name));
    image::same_repository(repository, of) && tag.unwrap_or("latest") == named.unwrap_or("latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_pulled_are_ours() {
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<String>>();
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<String>>();
        for (names, references, standing) in [
            (&["r:1/a:1"][..], &["r:1/a:1"][..], Standing::Ours),
            (&["a/b:latest"], &["docker.io/a/b"], Standing::Ours),
            (&["python:3"], &["docker.io/library/python:3"], Standing::Ours),
            // Its name has moved to another image, or it was pulled by its digest.
            (&[], &["r/a:1"], Standing::Ours),
            (&["<none>:<none>"], &["r/a@sha256:1"], Standing::Ours),
            (&["mine:1"], &["r/a:1"], Standing::Theirs),
            (&["mine:1"], &["r/a@sha256:1"], Standing::Theirs),
            (&["r/a:2"], &["r/a:1"], Standing::Theirs),
            (&["mine:1", "r/a:1"], &["r/a:1"], Standing::Shared(list(&["r/a:1"]))),
            // The engine removes by id what has one name only.
            (&["r/a:1", "r/a:2"], &["r/a:1", "r/a:2"], Standing::Shared(list(&["r/a:1", "r/a:2"]))),
        ] {
            assert_eq!(by_names(&list(names), &set(references)), standing, "{names:?} {references:?}");
        }
    }
}
