//! Base-job-template resolution: from a work pool's template and the job variables of a run to one
//! concrete job configuration. Pure: who calls fetches what is asked for and calls again.
//!
//! 1. [`JobTemplate::parse`] checks the template itself.
//! 2. [`merge_job_variables`] lays the flow run's job variables over the deployment's.
//! 3. [`JobTemplate::configure`] fills defaults, variables and `{{ $ENV }}` into the job configuration.
//! 4. [`resolve`] replaces `{{ prefect.blocks.* }}`, `{"$ref": …}` and `{{ prefect.variables.* }}`; as long as
//!    answers are missing it returns [`Resolution::Needs`] with the [`Reference`]s to fetch.
//! 5. [`render_text`] fills `{{ ctx.* }}` into the name.
//!
//! Invariants: a string that is exactly one placeholder takes the value with its type; a placeholder inside
//! longer text takes its text form; a missing variable removes the key, or the placeholder from the text.

mod base;
mod error;
mod path;
mod placeholder;
mod reference;
mod render;
#[cfg(test)]
mod tests;

pub use base::{JobTemplate, merge_job_variables};
pub use error::TemplateError;
pub use placeholder::{Kind, Piece, Placeholder, pieces};
pub use reference::{Answers, Reference, Resolution, resolve};
pub use render::{render_text, text_form};
