//! The environment variables of the process, as a value.

use std::collections::BTreeMap;

/// Environment variables. An empty one counts as not set: compose files pass `NAME=` for what nobody defined.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process that are text.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// The value of a variable, unless it is empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// All variables.
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// Values may be secret.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::Environment;

    #[test]
    fn an_empty_variable_counts_as_not_set() {
        let environment = Environment::from_iter([("A", "x"), ("B", "")]);
        assert_eq!(
            (environment.get("A"), environment.get("B"), environment.get("C")),
            (Some("x"), None, None)
        );
    }

    #[test]
    fn debug_does_not_show_values() {
        let environment = Environment::from_iter([("PREFECT_API_KEY", "pnu_123")]);
        assert_eq!(format!("{environment:?}"), r#"{"PREFECT_API_KEY"}"#);
    }
}
