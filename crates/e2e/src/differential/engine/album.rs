//! What the UI shows of the runs of a scenario: Python's page beside ours, in one picture.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use testkit::browser::Browser;

use super::bench::Side;

/// A page in pixels: as narrow as the UI goes well, since two of them are to be read side by side.
const PAGE: (u32, u32) = (900, 1000);
/// The line above it that says whose it is.
const TITLE: u32 = 48;

/// Pictures in a directory.
pub(super) struct Album {
    browser: Browser,
    directory: PathBuf,
}

impl Album {
    /// An album in this directory, which is made if it is missing.
    pub(super) async fn open(directory: &Path) -> Result<Self> {
        let made = std::fs::create_dir_all(directory);
        made.with_context(|| format!("failed to make the directory {}", directory.display()))?;
        Ok(Self { browser: Browser::start(PAGE.0, PAGE.1).await?, directory: directory.to_owned() })
    }

    /// Adds the pages of a scenario, Python's first.
    pub(super) async fn add(&self, scenario: &str, pages: [String; 2]) -> Result<()> {
        let [python, ours] = pages;
        let figures =
            [(Side::Python, self.picture(&python).await?), (Side::Ours, self.picture(&ours).await?)].map(
                |(side, picture)| {
                    format!(
                        "<figure>{side}<img src='data:image/png;base64,{}'></figure>",
                        STANDARD.encode(picture)
                    )
                },
            );
        let both = format!(
            "<body style='margin: 0; display: flex; background: #111; color: #eee; font: 24px/{TITLE}px sans-serif'>\
             <style>figure {{ margin: 0; padding-left: 8px }} img {{ display: block }}</style>{}</body>",
            figures.concat()
        );
        let (width, height) = PAGE;
        self.browser.resize(2 * (width + 8), height + TITLE).await?;
        self.browser.open(&format!("data:text/html;base64,{}", STANDARD.encode(both))).await?;
        let file = self.directory.join(format!("{scenario}.png"));
        let picture = self.browser.still().await?;
        std::fs::write(&file, picture).with_context(|| format!("failed to write {}", file.display()))
    }

    pub(super) async fn close(self) -> Result<()> {
        self.browser.stop().await
    }

    /// A picture of a run's page.
    async fn picture(&self, page: &str) -> Result<Vec<u8>> {
        let (width, height) = PAGE;
        self.browser.resize(width, height).await?;
        self.browser.open(page).await?;
        self.browser.wait_for("return document.querySelector('.run-graph canvas') !== null").await?;
        self.browser.still().await
    }
}
