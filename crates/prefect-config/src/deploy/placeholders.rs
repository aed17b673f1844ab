//! `{{ $NAME }}` and `{{ NAME }}` in a deployment: environment variables, filled in when it is deployed.
//!
//! `{{ prefect.blocks.… }}`, `{{ prefect.variables.… }}` and `{{ ctx.… }}` stay as they are where the worker or
//! the runner resolves them, and are refused elsewhere.

use prefect_api::template::{Kind, Piece, Placeholder, pieces};
use serde_json::Value;

use crate::{Environment, Error, Place};

/// Who reads a part of a deployment after us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// The server, as it stands.
    Server,
    /// The worker, which resolves references for each run.
    Worker,
    /// The Python runner, which resolves references and results of earlier steps.
    Runner,
}

/// Fills environment variables into one deployment; what is not set is collected in `unset`.
pub(super) fn fill_deployment(
    value: Value,
    place: &Place,
    environment: &Environment,
    unset: &mut Vec<(String, Place)>,
) -> Result<Value, Error> {
    Filler { environment, unset }.fill(value, place, Reader::Server)
}

/// Fills environment variables into the pull steps of a whole file.
pub(super) fn fill_pull_steps(
    value: Value,
    place: &Place,
    environment: &Environment,
    unset: &mut Vec<(String, Place)>,
) -> Result<Value, Error> {
    Filler { environment, unset }.fill(value, place, Reader::Runner)
}

struct Filler<'a> {
    environment: &'a Environment,
    unset: &'a mut Vec<(String, Place)>,
}

impl Filler<'_> {
    fn fill(&mut self, value: Value, place: &Place, reader: Reader) -> Result<Value, Error> {
        Ok(match value {
            Value::String(text) => Value::String(self.fill_text(&text, place, reader)?),
            Value::Array(items) => {
                let filled = items
                    .into_iter()
                    .enumerate()
                    .map(|(index, item)| self.fill(item, &place.item(index), reader));
                Value::Array(filled.collect::<Result<_, _>>()?)
            }
            Value::Object(entries) => {
                let filled = entries.into_iter().map(|(key, value)| {
                    let reader = match key.as_str() {
                        "job_variables" if reader == Reader::Server => Reader::Worker,
                        "pull" if reader == Reader::Server => Reader::Runner,
                        _ => reader,
                    };
                    let value = self.fill(value, &place.key(&key), reader)?;
                    Ok((key, value))
                });
                Value::Object(filled.collect::<Result<_, Error>>()?)
            }
            other => other,
        })
    }

    fn fill_text(&mut self, text: &str, place: &Place, reader: Reader) -> Result<String, Error> {
        let mut filled = String::new();
        for piece in pieces(text) {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Placeholder(placeholder) if stays(placeholder, reader) => {
                    filled.push_str(placeholder.full);
                }
                Piece::Placeholder(placeholder) => match placeholder.kind() {
                    Kind::Block | Kind::Variable => return Err(misplaced(placeholder, place)),
                    Kind::Standard | Kind::Environment => {
                        let name = placeholder.key();
                        match self.environment.get(name) {
                            Some(value) => filled.push_str(value),
                            None => self.unset.push((name.to_owned(), place.clone())),
                        }
                    }
                },
            }
        }
        Ok(filled)
    }
}

fn stays(placeholder: Placeholder<'_>, reader: Reader) -> bool {
    match (placeholder.kind(), reader) {
        (Kind::Environment, _) | (_, Reader::Server) => false,
        (Kind::Block | Kind::Variable, Reader::Worker) | (_, Reader::Runner) => true,
        (Kind::Standard, Reader::Worker) => placeholder.name.starts_with("ctx."),
    }
}

fn misplaced(placeholder: Placeholder<'_>, place: &Place) -> Error {
    let problem = format!(
        "{} cannot stand here: only workers and runners resolve it, in job_variables and pull",
        placeholder.full
    );
    Error::invalid(place.clone(), problem)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::fill_deployment;
    use crate::{Environment, Error, Place};

    fn fill(value: Value) -> Result<(Value, Vec<String>), Error> {
        let environment =
            Environment::from_iter([("IMAGE", "runtime:1"), ("SCRATCH", "/mnt"), ("EMPTY", "")]);
        let mut unset = Vec::new();
        let filled =
            fill_deployment(value, &Place::file(Path::new("prefect.yaml")), &environment, &mut unset)?;
        Ok((filled, unset.iter().map(|(name, place)| format!("{name} in {place}")).collect()))
    }

    #[test]
    fn both_spellings_read_the_environment() {
        let (filled, unset) = fill(json!({
            "version": "{{ IMAGE }}",
            "work_pool": {"job_variables": {"volumes": ["{{ $SCRATCH }}:{{SCRATCH}}/x"]}},
        }))
        .unwrap();
        assert_eq!(filled["version"], "runtime:1");
        assert_eq!(filled["work_pool"]["job_variables"]["volumes"], json!(["/mnt:/mnt/x"]));
        assert_eq!(unset, [""; 0]);
    }

    #[test]
    fn what_is_not_set_is_named_with_its_place() {
        let (_, unset) =
            fill(json!({"work_pool": {"job_variables": {"networks": ["{{ $NET }}", "{{ EMPTY }}"]}}}))
                .unwrap();
        assert_eq!(
            unset,
            [
                "NET in prefect.yaml: work_pool.job_variables.networks[0]",
                "EMPTY in prefect.yaml: work_pool.job_variables.networks[1]",
            ]
        );
    }

    #[test]
    fn references_stay_for_the_worker_and_the_runner() {
        let job = json!({"job_variables": {"password": "{{ prefect.blocks.secret.github-password }}",
            "env": {"A": "x-{{ prefect.variables.a }}"}, "name": "{{ ctx.flow_run.name }}"}});
        assert_eq!(fill(job.clone()).unwrap(), (job, vec![]));
        let steps = json!({"pull": [{"step": {"directory": "{{ clone.directory }}",
            "token": "{{ prefect.blocks.secret.token }}"}}]});
        assert_eq!(fill(steps.clone()).unwrap(), (steps, vec![]));
    }

    #[test]
    fn references_elsewhere_are_refused() {
        let error = fill(json!({"parameters": {"key": "{{ prefect.blocks.secret.key }}"}})).unwrap_err();
        insta::assert_snapshot!(error, @"use prefect.yaml: parameters.key: {{ prefect.blocks.secret.key }} cannot stand here: only workers and runners resolve it, in job_variables and pull");
    }
}
