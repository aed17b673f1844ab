//! Why a template cannot become a job configuration.

use super::Reference;

/// A fault of a base job template, of job variables, or of what they refer to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The document is not a base job template.
    #[error("read the base job template: it has no {section:?} object")]
    MissingSection {
        /// The key that is missing or empty.
        section: &'static str,
    },
    /// The job configuration uses placeholders that the variables schema does not declare.
    #[error("use the base job template: placeholders without a property in variables.properties: {}", .names.join(", "))]
    UndeclaredPlaceholders {
        /// Names as written, sorted.
        names: Vec<String>,
    },
    /// A dotted job variable (`a.b`) meets a value that is not an object.
    #[error("expand the job variable {key:?}: a part of its path is not an object")]
    PathConflict {
        /// The dotted key.
        key: String,
    },
    /// `env` has to be an object of names and values.
    #[error("merge the job variable \"env\": it must be an object of names and values")]
    EnvironmentNotObject,
    /// A block placeholder does not name a block type and a block.
    #[error("read the placeholder {placeholder:?}: expected prefect.blocks.<block-type>.<block-name>")]
    InvalidBlockPlaceholder {
        /// The name between the braces.
        placeholder: String,
    },
    /// A referenced block does not exist.
    #[error("resolve {reference}: the server has no such block; it may have been deleted or renamed")]
    BlockNotFound {
        /// The reference.
        reference: Reference,
    },
    /// A block exists, but not the path asked for.
    #[error("resolve the placeholder {placeholder:?}: the block has no value at this path")]
    BlockPathNotFound {
        /// The name between the braces.
        placeholder: String,
    },
    /// A list or object cannot be written into the middle of a text.
    #[error(
        "resolve the placeholder {placeholder:?}: it is a list or an object and cannot stand inside text"
    )]
    BlockNotScalar {
        /// The name between the braces.
        placeholder: String,
    },
}
