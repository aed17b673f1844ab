//! Object storage for the archiver: S3, with or without Glacier storage classes.
