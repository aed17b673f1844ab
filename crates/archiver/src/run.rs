//! Archiving one dataset, step by step.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::coverage::Coverage;
use crate::journal::Journal;
use crate::landing::ArchivedSource;
use crate::pack::Pipeline;
use crate::store::list_all;
use crate::upload::{Layout, Target};
use crate::{
    ArchiveError, BucketName, Catalogue, Claims, Datablock, DatasetId, Landed, ObjectAddress, ObjectKey,
    ObjectStore, Plan, PlannedDatablock, Progress, RegisteredDatablock, Released, RestoreSettings,
    StorageClass, StoredDatablock, UndoReport, Verification, VerifiedDatablock, VerifyError, claim, landing,
    pack, plan, restore, verify,
};

/// Most tars looked at in a dataset's archive folder.
const MAX_TARS: usize = 100_000;

/// The buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sites {
    /// Where users upload.
    pub landing: BucketName,
    /// Where datablocks are kept.
    pub archive: BucketName,
}

/// How datasets are archived.
///
/// Memory: a datablock in the making takes `part_size × (parts_in_flight + 2)` and a few MiB; 96 MiB by default.
/// A tar of more than 10,000 parts gets larger parts, of which fewer travel at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Most unpacked bytes in one datablock.
    pub target_size: u64,
    /// Storage class of the tars; the store's default if none.
    pub storage_class: Option<StorageClass>,
    /// How archived copies are proven.
    pub verification: Verification,
    /// Bytes of each uploaded part.
    pub part_size: u64,
    /// Parts that travel at once.
    pub parts_in_flight: usize,
    /// How offline landing-zone objects are restored.
    pub restore: RestoreSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            target_size: 20 << 30,
            storage_class: None,
            verification: Verification::default(),
            part_size: 16 << 20,
            parts_in_flight: 4,
            restore: RestoreSettings::default(),
        }
    }
}

/// Archives datasets from one landing zone into one archive.
#[derive(Clone, Debug)]
pub struct Archiver {
    context: Arc<Context>,
}

#[derive(Debug)]
struct Context {
    store: Arc<dyn ObjectStore>,
    catalogue: Arc<dyn Catalogue>,
    sites: Sites,
    settings: Settings,
}

impl Archiver {
    /// An archiver over these ports.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        catalogue: Arc<dyn Catalogue>,
        sites: Sites,
        settings: Settings,
    ) -> Self {
        Self { context: Arc::new(Context { store, catalogue, sites, settings }) }
    }

    /// Begins a run for `dataset`. Nothing is changed yet, and nothing may be when the catalogue has datablocks
    /// of this dataset, which are good as far as anybody knows: then it fails with
    /// [`ArchiveError::AlreadyArchived`], or [`ArchiveError::PartlyArchived`] where the landing zone has files that
    /// they do not hold. Tars that no datablock names are leftovers of a dead run; they will be overwritten.
    pub async fn begin(&self, dataset: &DatasetId) -> Result<DatasetRun, ArchiveError> {
        let Context { store, catalogue, sites, .. } = self.context.as_ref();
        let registered = catalogue.datablocks(dataset).await?;
        if let Some(first) = registered.first() {
            let coverage = self.coverage(dataset).await?;
            return Err(if coverage.uncovered.is_empty() {
                already_archived(dataset, registered.len(), first, coverage.covered)
            } else {
                ArchiveError::PartlyArchived {
                    dataset: dataset.clone(),
                    datablocks: registered.iter().map(|datablock| datablock.archive_id.to_string()).collect(),
                    uncovered: coverage.uncovered,
                    only_copies: coverage.only_copies,
                }
            });
        }
        let leftovers = list_all(store.as_ref(), &sites.archive, &dataset.datablocks_prefix(), MAX_TARS)
            .await
            .map_err(|error| ArchiveError::listing(dataset, error))?;
        let leftovers: BTreeSet<_> = leftovers.into_iter().map(|object| object.key).collect();
        if !leftovers.is_empty() {
            tracing::warn!(%dataset, tars = leftovers.len(), "the archive holds tars that no datablock names");
        }
        Ok(DatasetRun {
            context: Arc::clone(&self.context),
            state: Arc::new(RunState { dataset: dataset.clone(), leftovers, journal: Journal::default() }),
        })
    }

    /// What the registered datablocks hold of the landing zone.
    async fn coverage(&self, dataset: &DatasetId) -> Result<Coverage, ArchiveError> {
        let Context { store, catalogue, sites, .. } = self.context.as_ref();
        let prefix = dataset.raw_files_prefix();
        let landed = list_all(store.as_ref(), &sites.landing, &prefix, landing::MAX_FILES)
            .await
            .map_err(|error| ArchiveError::listing(dataset, error))?;
        if landed.is_empty() {
            return Ok(Coverage::default());
        }
        Ok(Coverage::of(&catalogue.archived_files(dataset).await?, &landed, &prefix))
    }
}

fn already_archived(
    dataset: &DatasetId,
    count: usize,
    first: &RegisteredDatablock,
    left: usize,
) -> ArchiveError {
    let first = first.archive_id.to_string();
    ArchiveError::AlreadyArchived { dataset: dataset.clone(), count, first, left }
}

/// One attempt to archive one dataset. Clones share the attempt.
#[derive(Clone, Debug)]
pub struct DatasetRun {
    context: Arc<Context>,
    state: Arc<RunState>,
}

#[derive(Debug)]
struct RunState {
    dataset: DatasetId,
    leftovers: BTreeSet<ObjectKey>,
    journal: Journal,
}

/// A datablock that is stored, verified, registered, and still in the archive after that. It is the leave to
/// delete the landing-zone objects it holds.
#[derive(Debug)]
pub struct ArchivedDatablock {
    verified: VerifiedDatablock,
    registered: RegisteredDatablock,
}

impl ArchivedDatablock {
    /// File name of the tar.
    pub fn name(&self) -> &str {
        self.verified.name()
    }

    /// The registered record.
    pub fn record(&self) -> &Datablock {
        self.verified.record()
    }

    /// The record as the catalogue confirmed it.
    pub fn registered(&self) -> &RegisteredDatablock {
        &self.registered
    }

    pub(crate) fn sources(&self) -> &[ArchivedSource] {
        &self.verified.sources
    }
}

impl DatasetRun {
    /// The dataset.
    pub fn dataset(&self) -> &DatasetId {
        &self.state.dataset
    }

    /// The files that the catalogue lists; an error if it lists none.
    pub async fn claims(&self) -> Result<Claims, ArchiveError> {
        let dataset = self.dataset().clone();
        match self.context.catalogue.claims(&dataset).await {
            Ok(claims) if claims.files.is_empty() => Err(ArchiveError::NothingClaimed { dataset }),
            Ok(claims) => Ok(claims),
            Err(source) => Err(ArchiveError::Claims { dataset, source }),
        }
    }

    /// The files in the landing zone; an error if there are none.
    pub async fn landed(&self) -> Result<Landed, ArchiveError> {
        landing::list(self.context.store.as_ref(), &self.context.sites.landing, self.dataset()).await
    }

    /// Restores the landing-zone objects that are offline and waits until all can be read.
    pub async fn make_readable(
        &self,
        landed: &Landed,
        cancel: &CancellationToken,
        progress: &Progress,
    ) -> Result<(), ArchiveError> {
        let Context { store, sites, settings, .. } = self.context.as_ref();
        let offline: Vec<_> = landed
            .files()
            .iter()
            .filter(|file| file.storage_class.as_ref().is_some_and(StorageClass::needs_restore))
            .map(|file| (ObjectAddress::new(&sites.landing, &file.key), file.size))
            .collect();
        let meter = progress.meter(offline.iter().map(|(_, size)| size).sum(), offline.len() as u64);
        restore::make_readable(store.as_ref(), offline, &settings.restore, cancel, &meter)
            .await
            .map_err(ArchiveError::Restore)
    }

    /// Holds the listed files against those in the landing zone and divides the latter into datablocks.
    pub fn plan(&self, landed: Landed, claims: &Claims) -> Result<Plan, ArchiveError> {
        let Landed { files, mut warnings } = landed;
        let (files, more) = claim::check(files, claims).map_err(|discrepancies| {
            ArchiveError::Discrepancies { dataset: self.dataset().clone(), discrepancies }
        })?;
        warnings.extend(more);
        let datablocks = plan::partition(self.dataset(), files, self.context.settings.target_size);
        Ok(Plan { datablocks, warnings })
    }

    /// Packs a datablock and stores its tar.
    ///
    /// Cancel through `cancel` and await the end; a future dropped midway leaves work for [`Self::undo`].
    pub async fn store(
        &self,
        planned: &PlannedDatablock,
        cancel: &CancellationToken,
        progress: &Progress,
    ) -> Result<StoredDatablock, ArchiveError> {
        let Context { store, sites, settings, .. } = self.context.as_ref();
        let address = ObjectAddress::new(&sites.archive, planned.archive_id());
        let size = planned.packed_size();
        let preexisting = self.state.leftovers.contains(planned.archive_id());
        // A tar that was not there in the beginning and is not ours belongs to another run at work.
        if !(preexisting || self.state.journal.has_written(&address)) && store.head(&address).await?.is_some()
        {
            return Err(ArchiveError::Occupied { address });
        }
        let layout = Layout::of(size, settings.part_size, settings.parts_in_flight)
            .ok_or_else(|| ArchiveError::TooLarge { address: address.clone(), size })?;
        let target = Target {
            store,
            address: &address,
            class: settings.storage_class.as_ref(),
            layout,
            journal: &self.state.journal,
            preexisting,
        };
        let meter = progress.meter(planned.unpacked_size(), planned.files().len() as u64);
        pack::store(Pipeline { store, landing: &sites.landing, target, cancel }, planned, &meter).await
    }

    /// Proves the archived copy.
    pub async fn verify(
        &self,
        stored: StoredDatablock,
        cancel: &CancellationToken,
        progress: &Progress,
    ) -> Result<VerifiedDatablock, ArchiveError> {
        let meter = progress.meter(stored.record.packed_size, 1);
        let verification = self.context.settings.verification;
        Ok(verify::verify(&self.context.store, stored, verification, cancel, &meter).await?)
    }

    /// Registers a verified datablock in the catalogue. One at a time for a dataset. Fails with
    /// [`ArchiveError::AlreadyArchived`] if another run has registered datablocks since this one began.
    pub async fn register(&self, verified: VerifiedDatablock) -> Result<ArchivedDatablock, ArchiveError> {
        let (Context { store, catalogue, .. }, journal) = (self.context.as_ref(), &self.state.journal);
        // Storing takes hours: it is looked again before the first registration.
        if !journal.has_records() {
            let present = catalogue.datablocks(self.dataset()).await?;
            if let Some(first) = present.first() {
                return Err(already_archived(self.dataset(), present.len(), first, 0));
            }
        }
        journal.record_begun(&verified.record);
        let registered = match catalogue.register_datablock(self.dataset(), &verified.record).await {
            Ok(registered) => registered,
            Err(error) => {
                if error.is_refusal() {
                    journal.record_refused(&verified.record.archive_id);
                }
                return Err(error.into());
            }
        };
        journal.record_registered(&registered);
        // The undo of another run for this dataset may have taken the tar before the catalogue knew it.
        match store.head(&verified.address).await? {
            Some(info) if info.etag == verified.etag => Ok(ArchivedDatablock { verified, registered }),
            _ => Err(VerifyError::Missing { address: verified.address }.into()),
        }
    }

    /// Deletes the landing-zone objects that `archived` holds, where they are still as they were read; others
    /// are kept and told. From here on nothing can be undone. Before the first deletion all tars must still be in
    /// the archive, and their records in the catalogue.
    pub async fn release(&self, archived: &[ArchivedDatablock]) -> Result<Released, ArchiveError> {
        self.state.journal.seal();
        self.confirm(archived).await?;
        landing::release(&self.context.store, &self.context.sites.landing, self.dataset(), archived).await
    }

    /// An error unless the archive and the catalogue still have all of `archived`.
    async fn confirm(&self, archived: &[ArchivedDatablock]) -> Result<(), ArchiveError> {
        let Context { store, catalogue, .. } = self.context.as_ref();
        let present = catalogue.datablocks(self.dataset()).await?;
        for ArchivedDatablock { verified, registered } in archived {
            if !present.iter().any(|found| found.id == registered.id) {
                return Err(ArchiveError::Unregistered { archive_id: registered.archive_id.clone() });
            }
            let info = store.head(&verified.address).await?;
            if info.is_none_or(|info| info.etag != verified.etag) {
                return Err(VerifyError::Missing { address: verified.address.clone() }.into());
            }
        }
        Ok(())
    }

    /// Undoes what this run did: aborts its multipart uploads, removes the records it registered and the tars it
    /// wrote, unless the catalogue names them or they were there before. Never fails; tells what it left. To be
    /// called when all steps have ended. Does nothing after [`Self::release`].
    pub async fn undo(&self) -> UndoReport {
        let Context { store, catalogue, .. } = self.context.as_ref();
        self.state.journal.undo(store.as_ref(), catalogue.as_ref(), self.dataset()).await
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
