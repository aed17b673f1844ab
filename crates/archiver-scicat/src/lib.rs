//! The SciCat catalogue as the archiver sees it.
//!
//! [`SciCat`] implements the domain's [`archiver::Catalogue`] over SciCat's REST interface, in both of its faces
//! (`/api/v3`, `/api/v4`), which may differ between login, datasets and jobs. It knows SciCat's oddities: an
//! expired token answers 403; errors have four shapes; a second datablock with the same archive id answers 500;
//! the general dataset update resets what it does not name and is therefore never used.

mod catalogue;
mod client;
mod reply;
mod settings;
mod wire;

pub use catalogue::SciCat;
pub use settings::{SciCatSettings, SciCatSettingsError};
