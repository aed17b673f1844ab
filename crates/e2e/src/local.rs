//! The servers without containers: flows run as processes of this machine, with variables from their
//! environment. For measurements, and for tests of what a flow does rather than of what it runs in.

use std::time::Duration;

use anyhow::{Context as _, Result};
use prefect_client::Client;
use serde_json::Value;
use testkit::prefect::{self, PrefectServer};
use testkit::process::{Command, Output};
use testkit::s3::{self, S3Server};
use testkit::scicat::{self, SciCat};

use crate::dataset::Dataset;
use crate::programs::Programs;
use crate::stack::{ARCHIVE, LANDING_ZONE};
use crate::{runs, s3 as ingest};

/// How long a flow may take.
const FLOW: Duration = Duration::from_mins(10);

/// Prefect, S3 and SciCat, with the secrets that the flows read.
#[derive(Debug)]
pub struct Local {
    /// The Prefect server.
    pub server: PrefectServer,
    /// A client of it.
    pub prefect: Client,
    /// The S3 server.
    pub s3: S3Server,
    /// The catalogue.
    pub scicat: SciCat,
    programs: Programs,
}

impl Local {
    /// Starts the servers and stores the secrets.
    pub async fn start() -> Result<Self> {
        let buckets = vec![LANDING_ZONE.to_owned(), ARCHIVE.to_owned()];
        let (server, s3, scicat) = tokio::try_join!(
            PrefectServer::start(prefect::Options::default()),
            S3Server::start(s3::Options { buckets, ..s3::Options::default() }),
            SciCat::start(scicat::Options::default()),
        )?;
        let prefect = runs::client(&server.api_url(), &server.client_env())?;
        let secrets = [
            ("s3-user", s3.access_key()),
            ("s3-password", s3.secret_key()),
            ("scicat-user", scicat.username()),
            ("scicat-password", scicat.password()),
        ];
        for (name, value) in secrets {
            prefect.save_secret(name, &value.into()).await?;
        }
        Ok(Self { server, prefect, s3, scicat, programs: Programs::find()? })
    }

    /// Uploads a dataset as an ingestor does and lists its files in the catalogue.
    pub async fn ingest(&self, pid: &str, dataset: &Dataset) -> Result<()> {
        self.scicat.catalogue().create_dataset(pid);
        self.scicat.catalogue().add_origdatablock(pid, &dataset.claims());
        dataset.upload(&self.s3_client(), LANDING_ZONE, &landing_prefix(pid), |_| {}).await
    }

    /// Makes a SciCat job and runs `flow` for it in a process. The output tells how the process ended, the job
    /// how the flow did.
    pub async fn run(&self, flow: &str, job_type: &str, pid: &str) -> Result<(Output, Value)> {
        let job = self.scicat.catalogue().create_job(job_type, &[pid]);
        let output = Command::new(self.programs.path("archiver-flows")?)
            .args(["run", flow, "--param", &format!("job_id={job}")])
            .envs(self.server.client_env())
            .envs(self.variables())
            .output(FLOW)
            .await?;
        let job = self.scicat.catalogue().job(&job).context("the catalogue has lost the job")?;
        Ok((output, job))
    }

    /// A plain client of the S3 server.
    pub fn s3_client(&self) -> aws_sdk_s3::Client {
        ingest::client(&self.s3.endpoint(), self.s3.access_key(), self.s3.secret_key())
    }

    fn variables(&self) -> [(&'static str, String); 11] {
        let text = str::to_owned;
        [
            ("S3_ENDPOINT", self.s3.endpoint()),
            ("S3_EXTERNAL_ENDPOINT", self.s3.endpoint()),
            ("S3_REGION", text("eu-west-1")),
            ("S3_LANDINGZONE_BUCKET", text(LANDING_ZONE)),
            ("S3_ARCHIVAL_BUCKET", text(ARCHIVE)),
            ("S3_URL_EXPIRATION_DAYS", text("7")),
            ("ARCHIVER_TARGET_SIZE_GB", text("20")),
            ("SCICAT_ENDPOINT", self.scicat.url()),
            ("SCICAT_API_PREFIX", text("/api/v3")),
            ("SCICAT_DATASETS_API_PREFIX", text("/api/v3")),
            ("SCICAT_JOBS_API_PREFIX", text("/api/v3")),
        ]
    }

    /// Stops the servers.
    pub async fn stop(self) -> Result<()> {
        self.s3.stop().await;
        self.scicat.stop().await;
        self.server.stop().await
    }
}

/// Where the files of a dataset land.
pub fn landing_prefix(pid: &str) -> String {
    format!("openem-network/datasets/{pid}/raw_files")
}

/// Where the datablocks of a dataset are.
pub fn archive_prefix(pid: &str) -> String {
    format!("openem-network/datasets/{pid}/datablocks")
}
