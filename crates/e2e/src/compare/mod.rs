//! Documents compared: where two of them differ, and which of the differences are meant.

mod difference;
mod findings;

#[cfg(test)]
pub(crate) use findings::assert_documented;

pub use difference::{Difference, differences, differences_by_item, leaves};
pub use findings::{Explained, Explanation, Findings};
