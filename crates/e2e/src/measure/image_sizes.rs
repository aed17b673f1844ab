//! Sizes of the images: ours beside one that holds Python, Prefect and its Docker worker.

use anyhow::Result;
use testkit::docker::python_image;
use testkit::prefect::Venv;

use super::{Bench, Figure};
use crate::images::Images;

pub(super) async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let images = Images::build(&bench.engine, &bench.programs, "measure", false).await?;
    let peer = python_image(&bench.engine, &Venv::prepare().await?).await?;
    let peer = mebibytes(bench.engine.image_size(&peer).await?);
    let mut figures = Vec::new();
    for (name, image) in
        [("worker", &images.worker), ("runtime", &images.runtime), ("config", &images.config)]
    {
        let ours = mebibytes(bench.engine.image_size(image).await?);
        figures.push(Figure::new(&format!("image size: {name}"), ours, peer, "MiB"));
    }
    Ok(figures)
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
pub(super) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
