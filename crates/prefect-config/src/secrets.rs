//! Secrets: files named by environment variables that end in `_FILE` become Secret blocks.

use std::path::Path;

use secrecy::SecretString;

use crate::{Environment, Error, Place, file};

/// A Secret block as it should be on the server.
#[derive(Debug, Clone)]
pub struct Secret {
    /// The name of the block: lower-case letters, digits, dashes.
    pub name: String,
    /// The value.
    pub value: SecretString,
}

/// The secret behind the environment variable `variable`: `S3_USER_FILE` is the block `s3-user`.
///
/// Newlines at the end of the file belong to the editor, not to the secret.
///
/// # Errors
/// A variable without `_FILE`, one that is not set, a file that cannot be read or holds nothing.
pub(crate) fn load(variable: &str, environment: &Environment) -> Result<Secret, Error> {
    let place = Place::environment(variable);
    let name = variable.strip_suffix("_FILE").map(|stem| stem.to_lowercase().replace('_', "-"));
    let Some(name) = name.filter(|name| is_block_name(name)) else {
        let problem = "its name must be letters, digits and underscores and end in _FILE, like S3_USER_FILE";
        return Err(Error::invalid(place, problem));
    };
    let Some(path) = environment.get(variable) else {
        return Err(Error::invalid(place, "it is not set; it must name the file that holds the secret"));
    };
    let text = SecretString::from(file::text(Path::new(path))?);
    let value = secrecy::ExposeSecret::expose_secret(&text).trim_end_matches(['\n', '\r']);
    if value.is_empty() {
        return Err(Error::invalid(place, format!("the file {path} is empty")));
    }
    Ok(Secret { name, value: SecretString::from(value) })
}

fn is_block_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && !name.starts_with('-') && !name.ends_with('-') && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::load;
    use crate::Environment;

    fn with_file(variable: &str, content: &str) -> (tempfile::TempDir, Environment) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret.txt");
        std::fs::write(&path, content).unwrap();
        let environment = Environment::from_iter([(variable, path.to_str().unwrap())]);
        (directory, environment)
    }

    #[test]
    fn the_suffix_is_a_suffix_and_newlines_are_not_part_of_the_secret() {
        // "LTS_FILE" loses its suffix, not every letter that occurs in the suffix.
        for (variable, name) in [("S3_USER_FILE", "s3-user"), ("LTS_FILE", "lts")] {
            let (_directory, environment) = with_file(variable, " pass word \r\n\n");
            let secret = load(variable, &environment).unwrap();
            assert_eq!(secret.name, name);
            assert_eq!(secret.value.expose_secret(), " pass word ");
        }
    }

    #[test]
    fn whatever_is_missing_is_said() {
        let (_directory, environment) = with_file("S3_USER_FILE", "\n");
        let refused =
            |variable: &str, environment: &Environment| load(variable, environment).unwrap_err().to_string();
        assert!(refused("S3_USER", &environment).contains("end in _FILE"));
        assert!(refused("_FILE", &environment).contains("end in _FILE"));
        assert!(refused("S3_PASSWORD_FILE", &environment).contains("it is not set"));
        assert!(refused("S3_USER_FILE", &environment).contains("is empty"));
        let nowhere = Environment::from_iter([("S3_USER_FILE", "/nowhere/user.txt")]);
        assert_eq!(refused("S3_USER_FILE", &nowhere), "read /nowhere/user.txt");
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        let (_directory, environment) = with_file("S3_USER_FILE", "hunter2");
        let secret = load("S3_USER_FILE", &environment).unwrap();
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
