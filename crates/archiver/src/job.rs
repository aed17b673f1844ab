//! The words in which a job's and a dataset's fate is told to the catalogue. User interfaces match on them.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::{FailureClass, RetrievedDatablock};

/// Declares an enum of contract words: `Display` and `Serialize` give the word.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// The contract word.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// What a word of the catalogue means; `None` for words of others.
            pub fn of_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

words! {
    /// The status of an archive or retrieve job.
    JobStatus {
        /// Work has begun.
        InProgress => "inProgress",
        /// All datasets are done.
        FinishedSuccessful => "finishedSuccessful",
        /// No dataset is done.
        FinishedUnsuccessful => "finishedUnsuccessful",
        /// Some datasets are done, others failed.
        FinishedWithDatasetErrors => "finishedWithDatasetErrors",
    }
}

words! {
    /// A dataset's archive status.
    ArchiveStatus {
        /// Archiving has begun.
        Started => "started",
        /// All datablocks are stored, verified and registered.
        DatasetOnArchiveDisk => "datasetOnArchiveDisk",
        /// The system failed; the landing zone is untouched.
        ScheduleArchiveJobFailed => "scheduleArchiveJobFailed",
        /// The input is missing, unreadable or not what was declared; the landing zone is untouched.
        MissingFilesError => "missingFilesError",
    }
}

words! {
    /// A dataset's retrieve status.
    RetrieveStatus {
        /// Retrieval has begun.
        Started => "started",
        /// All datablocks can be downloaded.
        DatasetRetrieved => "datasetRetrieved",
        /// Retrieval failed.
        DatasetRetrievalFailed => "datasetRetrievalFailed",
    }
}

impl JobStatus {
    /// The final status of a job from the number of datasets that succeeded and failed.
    pub fn of_outcomes(succeeded: usize, failed: usize) -> Self {
        match (succeeded, failed) {
            (_, 0) => Self::FinishedSuccessful,
            (0, _) => Self::FinishedUnsuccessful,
            _ => Self::FinishedWithDatasetErrors,
        }
    }

    /// Whether the job has ended.
    pub fn is_final(self) -> bool {
        self != Self::InProgress
    }
}

/// How archiving and retrieving a dataset stand, as far as the catalogue says it in words of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LifecycleStatus {
    /// How archiving stands.
    pub archive: Option<ArchiveStatus>,
    /// How retrieval stands.
    pub retrieve: Option<RetrieveStatus>,
}

/// The fields of a dataset's lifecycle that one step changes; all others are left as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LifecycleChange {
    /// Whether the dataset may be archived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archivable: Option<bool>,
    /// Whether the dataset may be retrieved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrievable: Option<bool>,
    /// How archiving stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive_status_message: Option<ArchiveStatus>,
    /// How retrieval stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrieve_status_message: Option<RetrieveStatus>,
}

impl LifecycleChange {
    /// Archiving begins.
    pub fn archive_started() -> Self {
        Self { archive_status_message: Some(ArchiveStatus::Started), ..Self::default() }
    }

    /// The dataset is archived.
    pub fn archived() -> Self {
        Self {
            archivable: Some(false),
            retrievable: Some(true),
            archive_status_message: Some(ArchiveStatus::DatasetOnArchiveDisk),
            ..Self::default()
        }
    }

    /// Archiving failed.
    pub fn archive_failed(class: FailureClass) -> Self {
        let status = match class {
            FailureClass::User => ArchiveStatus::MissingFilesError,
            FailureClass::System => ArchiveStatus::ScheduleArchiveJobFailed,
        };
        Self { archive_status_message: Some(status), ..Self::default() }
    }

    /// Retrieval begins.
    pub fn retrieve_started() -> Self {
        Self { retrieve_status_message: Some(RetrieveStatus::Started), ..Self::default() }
    }

    /// The dataset can be downloaded.
    pub fn retrieved() -> Self {
        Self { retrieve_status_message: Some(RetrieveStatus::DatasetRetrieved), ..Self::default() }
    }

    /// Retrieval failed.
    pub fn retrieve_failed() -> Self {
        Self { retrieve_status_message: Some(RetrieveStatus::DatasetRetrievalFailed), ..Self::default() }
    }
}

/// What a finished retrieve job hands to the user.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobResult {
    /// A link per datablock.
    pub result: Vec<RetrievedDatablock>,
    /// The download script, base64.
    pub download_script: String,
}

impl fmt::Debug for JobResult {
    /// Without the script, which holds signed links.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobResult").field("result", &self.result).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lifecycle_changes_name_only_what_they_change() {
        let body = |change: LifecycleChange| serde_json::to_value(change).unwrap();
        assert_eq!(body(LifecycleChange::archive_started()), json!({"archiveStatusMessage": "started"}));
        assert_eq!(
            body(LifecycleChange::archived()),
            json!({"archivable": false, "retrievable": true, "archiveStatusMessage": "datasetOnArchiveDisk"})
        );
        assert_eq!(
            body(LifecycleChange::archive_failed(FailureClass::User)),
            json!({"archiveStatusMessage": "missingFilesError"})
        );
        assert_eq!(body(LifecycleChange::retrieved()), json!({"retrieveStatusMessage": "datasetRetrieved"}));
    }

    #[test]
    fn a_job_with_mixed_outcomes_says_so() {
        assert_eq!(JobStatus::of_outcomes(2, 0).as_str(), "finishedSuccessful");
        assert_eq!(JobStatus::of_outcomes(0, 1).as_str(), "finishedUnsuccessful");
        assert_eq!(JobStatus::of_outcomes(1, 1).as_str(), "finishedWithDatasetErrors");
    }

    #[test]
    fn words_of_others_mean_nothing() {
        assert_eq!(JobStatus::of_word("inProgress"), Some(JobStatus::InProgress));
        assert_eq!(JobStatus::of_word("jobSubmitted"), None);
        assert!(!JobStatus::InProgress.is_final() && JobStatus::FinishedWithDatasetErrors.is_final());
    }
}
