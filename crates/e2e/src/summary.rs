//! What a demo found, for people and for programs.

use serde::Serialize;

/// One flow run of the demo.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its page in Prefect's UI.
    pub link: String,
    /// The states that it went through.
    pub states: Vec<String>,
    /// Names of its subflow runs.
    pub subflows: Vec<String>,
    /// The highest resident memory of its container, in bytes, as sampled while it ran.
    pub resident_bytes: Option<u64>,
    /// Files that its container wrote to its own file system.
    pub scratch_files: usize,
}

/// One tar in the archive.
#[derive(Debug, Clone, Serialize)]
pub struct Datablock {
    /// Its key in the archive bucket.
    pub key: String,
    /// Its bytes.
    pub bytes: u64,
}

/// One stage and its duration.
#[derive(Debug, Clone, Serialize)]
pub struct Stage {
    /// What was done.
    pub name: String,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// The whole of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// Whether all of it held.
    pub ok: bool,
    /// The dataset's pid.
    pub dataset: String,
    /// Its files.
    pub files: usize,
    /// Its bytes.
    pub bytes: u64,
    /// The tars that were stored.
    pub datablocks: Vec<Datablock>,
    /// The flow runs: archival, then retrieval.
    pub runs: Vec<Run>,
    /// Status words of the SciCat jobs: archival, then retrieval.
    pub jobs: Vec<String>,
    /// How long each stage took.
    pub stages: Vec<Stage>,
}

impl Summary {
    /// As text for a terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |label: &str, value: String| text.extend([format!("{label:<12} {value}\n")]);
        line("dataset", format!("{} ({} files, {} bytes)", self.dataset, self.files, self.bytes));
        for block in &self.datablocks {
            line("datablock", format!("{} ({} bytes)", block.key, block.bytes));
        }
        for (run, job) in self.runs.iter().zip(&self.jobs) {
            line("flow run", format!("{} {}", run.name, run.id));
            line("", run.link.clone());
            line("", format!("{}; SciCat job {job}", run.states.join(" > ")));
            let memory =
                run.resident_bytes.map_or("not sampled".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
            line("", format!("resident memory {memory}, {} scratch files", run.scratch_files));
        }
        for stage in &self.stages {
            line("stage", format!("{:>7.1} s  {}", stage.seconds, stage.name));
        }
        text
    }
}
