//! `docs/reference/settings.md` against the code and against the real client.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use e2e::programs::project_root;
use testkit::prefect::{Release, Venv};
use testkit::process::Command;

/// The groups of Python's settings that a worker has a use for.
const NAMES: &str = "
from prefect.settings.models.root import Settings
def names(model, prefix):
    for name, field in model.model_fields.items():
        inner = field.annotation
        if hasattr(inner, 'model_fields'):
            yield from names(inner, prefix + name.upper() + '_')
        else:
            yield prefix + name.upper()
for group in ['api', 'client', 'worker', 'logging']:
    print('\\n'.join(names(Settings.model_fields[group].annotation, 'PREFECT_' + group.upper() + '_')))
";

fn page() -> String {
    std::fs::read_to_string(project_root().join("docs/reference/settings.md")).unwrap()
}

/// Whole names of settings in a text, between `quote`s.
fn names_in(text: &str, quote: char) -> BTreeSet<String> {
    let is_name = |word: &str| {
        word.strip_prefix("PREFECT_").is_some_and(|rest| {
            !rest.starts_with('_')
                && rest.ends_with(|last: char| last.is_ascii_alphanumeric())
                && rest.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
        })
    };
    text.split(quote).filter(|word| is_name(word)).map(str::to_owned).collect()
}

fn names_in_code(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tests") {
            names_in_code(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            if !path.ends_with("tests.rs") {
                found.extend(names_in(code, '"'));
            }
        }
    }
}

#[test]
fn the_page_names_every_setting_that_the_code_reads() {
    let mut read = BTreeSet::new();
    for name in ["prefect-client", "prefect-worker", "prefect-flow"] {
        names_in_code(&project_root().join("crates").join(name).join("src"), &mut read);
    }
    assert!(read.contains("PREFECT_API_URL") && read.contains("PREFECT_WORKER_QUERY_SECONDS"), "{read:?}");
    let told = names_in(&page(), '`');
    let missing: Vec<_> = read.iter().filter(|name| !told.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/reference/settings.md does not name {missing:?}");
}

#[tokio::test]
async fn the_page_names_every_setting_of_the_real_client() {
    let told = names_in(&page(), '`');
    for release in [Release::Oldest, Release::Reference, Release::Newest] {
        let venv = Venv::of(release).await.unwrap();
        let names = Command::new(venv.python()).args(["-c", NAMES]).output(Duration::from_mins(2)).await;
        let names = names.unwrap().success().unwrap().stdout;
        let real: Vec<_> = names.split_whitespace().collect();
        assert!(real.contains(&"PREFECT_LOGGING_TO_API_BATCH_SIZE"), "{real:?}");
        let missing: Vec<_> = real.iter().filter(|name| !told.contains(**name)).collect();
        assert!(missing.is_empty(), "{}: docs/reference/settings.md lacks {missing:?}", release.number());
    }
}
