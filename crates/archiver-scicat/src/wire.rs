//! SciCat's JSON, as far as an archiver reads or writes it. Unknown fields of answers are ignored.

use archiver::{
    ArchiveStatus, ArchivedFile, Claim, Datablock, DatablockId, DatasetId, JobResult, JobStatus,
    LifecycleStatus, ObjectKey, RegisteredDatablock, RetrieveStatus,
};
use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize};

/// The answer to a login.
#[derive(Deserialize)]
pub(crate) struct Login {
    #[serde(rename = "access_token", deserialize_with = "secret")]
    pub(crate) token: SecretString,
    /// Seconds; some set-ups write texts such as "1h".
    #[serde(default)]
    expires_in: serde_json::Value,
}

impl Login {
    /// How long the token is said to live, in seconds.
    pub(crate) fn life(&self) -> Option<u64> {
        self.expires_in.as_u64()
    }
}

/// A job, in either face.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Job {
    #[serde(default)]
    dataset_list: Vec<JobDataset>,
    #[serde(rename = "jobParams")]
    params: Option<JobParams>,
    /// The third face's.
    #[serde(rename = "jobStatusMessage")]
    status_message: Option<String>,
    /// The fourth face's.
    status_code: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JobParams {
    #[serde(default)]
    dataset_list: Vec<JobDataset>,
}

#[derive(Deserialize)]
struct JobDataset {
    pid: DatasetId,
}

impl Job {
    /// The datasets of the job: v3 lists them at the top, v4 among the parameters.
    pub(crate) fn datasets(self) -> Vec<DatasetId> {
        let list = if self.dataset_list.is_empty() {
            self.params.map(|params| params.dataset_list).unwrap_or_default()
        } else {
            self.dataset_list
        };
        list.into_iter().map(|dataset| dataset.pid).collect()
    }

    /// How the job was told to stand.
    pub(crate) fn status(&self) -> Option<JobStatus> {
        JobStatus::of_word(self.status_code.as_deref().or(self.status_message.as_deref())?)
    }
}

/// Update of a job in the third face.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JobUpdateV3<'a> {
    pub(crate) job_status_message: JobStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) job_result_object: Option<&'a JobResult>,
}

/// Update of a job in the fourth face.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JobUpdateV4<'a> {
    pub(crate) status_code: JobStatus,
    pub(crate) status_message: JobStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) job_result_object: Option<&'a JobResult>,
}

/// The lifecycle of a dataset.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lifecycle {
    archive_status_message: Option<String>,
    retrieve_status_message: Option<String>,
}

impl Lifecycle {
    pub(crate) fn status(&self) -> LifecycleStatus {
        LifecycleStatus {
            archive: self.archive_status_message.as_deref().and_then(ArchiveStatus::of_word),
            retrieve: self.retrieve_status_message.as_deref().and_then(RetrieveStatus::of_word),
        }
    }
}

/// A dataset.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Dataset {
    pub(crate) source_folder: Option<String>,
}

/// A block of the files that the owner uploaded.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OrigDatablock {
    chk_alg: Option<String>,
    #[serde(default)]
    data_file_list: Vec<File>,
}

impl OrigDatablock {
    /// The files; checksums only where they are md5.
    pub(crate) fn claims(self) -> impl Iterator<Item = Claim> {
        let md5 = self
            .chk_alg
            .is_some_and(|algorithm| algorithm.eq_ignore_ascii_case(Datablock::CHECKSUM_ALGORITHM));
        self.data_file_list.into_iter().map(move |file| Claim {
            path: file.path,
            size: file.size,
            md5: file.chk.filter(|_| md5),
        })
    }
}

#[derive(Deserialize)]
struct File {
    path: String,
    #[serde(deserialize_with = "whole")]
    size: u64,
    chk: Option<String>,
}

/// A registered datablock.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DatablockHead {
    #[serde(rename = "_id")]
    mongo_id: Option<String>,
    id: Option<String>,
    archive_id: ObjectKey,
    #[serde(deserialize_with = "whole")]
    size: u64,
    #[serde(deserialize_with = "whole")]
    packed_size: u64,
}

impl DatablockHead {
    pub(crate) fn registered(self) -> Option<RegisteredDatablock> {
        Some(RegisteredDatablock {
            id: DatablockId(self.mongo_id.or(self.id)?),
            archive_id: self.archive_id,
            size: self.size,
            packed_size: self.packed_size,
        })
    }
}

/// A registered datablock with its files.
#[derive(Deserialize)]
pub(crate) struct DatablockWithFiles {
    #[serde(flatten)]
    pub(crate) head: DatablockHead,
    #[serde(rename = "dataFileList", default)]
    files: Vec<File>,
}

impl DatablockWithFiles {
    pub(crate) fn archive_id(&self) -> &ObjectKey {
        &self.head.archive_id
    }

    /// The files; their checksums are md5 where they are anything.
    pub(crate) fn archived_files(self) -> impl Iterator<Item = ArchivedFile> {
        self.files.into_iter().map(|file| ArchivedFile { path: file.path, size: file.size, md5: file.chk })
    }

    /// Whether this is the record that was sent.
    pub(crate) fn is(&self, sent: &Datablock) -> bool {
        self.head.size == sent.size
            && self.head.packed_size == sent.packed_size
            && self.files.len() == sent.data_file_list.len()
            && self.files.iter().zip(&sent.data_file_list).all(|(found, sent)| {
                found.path == sent.path
                    && found.size == sent.size
                    && found.chk.as_deref() == Some(sent.chk.to_string().as_str())
            })
    }
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

/// A number of bytes; JavaScript may write large ones as `1e10`.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let exact = number.as_u64().or_else(|| {
        let text = number.as_f64().filter(|value| value.fract() == 0.0 && (0.0..1e18).contains(value))?;
        format!("{text:.0}").parse().ok()
    });
    exact.ok_or_else(|| serde::de::Error::custom(format!("{number} is no number of bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datasets_of_a_job_are_found_in_both_faces() {
        for body in [
            r#"{"datasetList":[{"pid":"20.500.12345/gold-0001","files":[]}],"jobParams":{"username":"admin"}}"#,
            r#"{"jobParams":{"datasetList":[{"pid":"20.500.12345/gold-0001","files":[]}]}}"#,
        ] {
            let job: Job = serde_json::from_str(body).unwrap();
            assert_eq!(job.datasets(), ["20.500.12345/gold-0001".parse().unwrap()]);
        }
        assert!(serde_json::from_str::<Job>(r#"{"datasetList":[{"pid":"../x"}]}"#).is_err());
    }

    #[test]
    fn recorded_blocks_of_files_become_claims() {
        // From a recorded exchange with a real SciCat.
        let body = r#"{"_id":"u","chkAlg":"md5","size":10,"ownerGroup":"group1","dataFileList":[
            {"path":"top.txt","size":10,"time":"2026-01-01T00:00:00.000Z","chk":"84a8c4d9db64e48acf4a556026193924","uid":"1000","gid":"1000","perm":"644","_id":"o","id":"o"},
            {"path":"big","size":1e10,"time":"2026-01-01T00:00:00.000Z"}]}"#;
        let claims: Vec<_> = serde_json::from_str::<OrigDatablock>(body).unwrap().claims().collect();
        assert_eq!(claims[0].md5.as_deref(), Some("84a8c4d9db64e48acf4a556026193924"));
        assert_eq!((claims[1].size, &claims[1].md5), (10_000_000_000, &None));

        let other = body.replace("\"md5\"", "\"sha1\"");
        let claims: Vec<_> = serde_json::from_str::<OrigDatablock>(&other).unwrap().claims().collect();
        assert_eq!(claims[0].md5, None);
        for bad in ["-1", "1.5", "1e30"] {
            assert!(serde_json::from_str::<OrigDatablock>(&body.replace("1e10", bad)).is_err(), "{bad}");
        }
    }
}
