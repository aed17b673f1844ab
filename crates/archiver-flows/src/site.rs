//! The stores and the catalogue of one run, ready for use.

use std::sync::Arc;

use archiver::{Archiver, Catalogue, ObjectStore, Retriever, StorageClass, Verification};
use archiver_scicat::{SciCat, SciCatSettingsError};
use archiver_store::{S3SettingsError, S3Store};
use prefect_flow::Context;

use crate::config::{Config, ConfigError};

/// What the flows of a run work with. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) catalogue: Arc<dyn Catalogue>,
    pub(crate) archiver: Archiver,
    pub(crate) retriever: Retriever,
    /// Whether archived copies are read back, hence travel twice.
    pub(crate) reads_back: bool,
}

/// Why a run cannot begin. It has changed nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SiteError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("use the S3 settings (variables S3_ENDPOINT, S3_EXTERNAL_ENDPOINT, S3_REGION)")]
    S3(#[from] S3SettingsError),
    #[error("use the SciCat settings (variables SCICAT_ENDPOINT and SCICAT_…API_PREFIX)")]
    SciCat(#[from] SciCatSettingsError),
}

impl Site {
    /// Reads the configuration and makes what it describes. Nothing is connected to yet.
    pub(crate) async fn open(ctx: &Context) -> Result<Self, SiteError> {
        let Config { s3, scicat, sites, archiving, link_validity } = Config::read(ctx).await?;
        let store: Arc<dyn ObjectStore> = Arc::new(S3Store::new(&s3)?);
        let catalogue: Arc<dyn Catalogue> = Arc::new(SciCat::new(scicat)?);
        let retriever = Retriever::new(
            Arc::clone(&store),
            Arc::clone(&catalogue),
            sites.archive.clone(),
            archiving.restore,
            link_validity,
        );
        let offline = archiving.storage_class.as_ref().is_some_and(StorageClass::needs_restore);
        let reads_back = match archiving.verification {
            Verification::Auto => !offline,
            Verification::ReadBack => true,
            Verification::ETag => false,
        };
        let archiver = Archiver::new(store, Arc::clone(&catalogue), sites, archiving);
        Ok(Self { catalogue, archiver, retriever, reads_back })
    }
}
