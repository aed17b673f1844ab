//! The SciCat catalogue as the archiver sees it.
