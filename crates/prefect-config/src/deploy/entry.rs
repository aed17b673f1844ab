//! One deployment of a `prefect.yaml`, read and checked.

use prefect_api::deployment::ConcurrencyOptions;
use serde_json::{Map, Value};

use super::flows::{Flows, open_schema};
use super::schedule::{self, Schedule};
use crate::section::{Section, number_of, text_of, wrong};
use crate::{Error, Place};
use prefect_api::nearest::nearest;

/// A deployment as it should be on the server.
#[derive(Debug, Clone, PartialEq)]
pub struct DeploymentSpec {
    /// The flow.
    pub flow: String,
    /// The name.
    pub name: String,
    /// Where the flow is.
    pub entrypoint: String,
    /// The version.
    pub version: Option<String>,
    /// The description; an empty one is none.
    pub description: Option<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// Default parameters.
    pub parameters: Map<String, Value>,
    /// Schema of the parameters.
    pub schema: Value,
    /// Refuse runs whose parameters break the schema.
    pub enforce_schema: bool,
    /// Schedules.
    pub schedules: Vec<Schedule>,
    /// Whether schedules are off; `None` keeps what the server has.
    pub paused: Option<bool>,
    /// How many runs at once.
    pub concurrency: Option<ConcurrencySpec>,
    /// The work pool.
    pub pool: String,
    /// The queue; `None` is the pool's default one.
    pub queue: Option<String>,
    /// Job variables, with references to blocks and variables of the server as they are written.
    pub job_variables: Map<String, Value>,
    /// What a Python runner does before it loads the flow.
    pub pull_steps: Option<Vec<Value>>,
}

/// How many runs of a deployment at once.
#[derive(Debug, Clone, PartialEq)]
pub struct ConcurrencySpec {
    /// At most this many, at least 1.
    pub limit: u32,
    /// What happens to more of them.
    pub options: Option<ConcurrencyOptions>,
}

/// What has nothing to do with us, but stands in such files.
const IGNORED: [(&str, &str); 3] = [
    ("build", "images are built apart"),
    ("push", "images are pushed apart"),
    ("sla", "only Prefect Cloud knows it"),
];

/// Reads one deployment whose placeholders are filled in. `pull` holds the pull steps of the file.
pub(super) fn read(
    place: Place,
    value: Value,
    pull: Option<&Vec<Value>>,
    flows: &Flows,
    warnings: &mut Vec<String>,
) -> Result<DeploymentSpec, Error> {
    let mut entry = Section::new(place, value)?;
    refuse_triggers(&mut entry)?;
    ignore(&mut entry, warnings);
    let name = entry.required_text("name")?.trim().to_owned();
    let entrypoint = entry.required_text("entrypoint")?;
    let flow = flow_of(&mut entry, &entrypoint, flows, warnings)?;
    let schema = schema_of(&flow, entry.place(), flows, warnings);
    let parameters = entry.entries("parameters")?;
    check_parameters(&parameters, &schema, &entry.place().key("parameters"), flows.schema(&flow).is_some())?;
    let mut pool = entry.section("work_pool")?;
    let concurrency = concurrency_of(&mut entry, &mut pool, warnings)?;
    let spec = DeploymentSpec {
        flow,
        name,
        entrypoint,
        version: entry.text("version")?,
        description: entry.text("description")?.filter(|text| !text.trim().is_empty()),
        tags: tags_of(&mut entry)?,
        parameters,
        schema,
        enforce_schema: entry.flag("enforce_parameter_schema")?.unwrap_or(true),
        schedules: schedules_of(&mut entry)?,
        paused: entry.flag("paused")?,
        concurrency,
        pool: pool.required_text("name")?,
        queue: pool.text("work_queue_name")?.filter(|name| !name.is_empty()),
        job_variables: pool.entries("job_variables")?,
        pull_steps: steps_of(entry.take("pull"))?.or_else(|| pull.cloned()),
    };
    entry.take("version_type");
    for place in entry.unknown().chain(pool.unknown()) {
        warnings.push(format!("{place}: unknown key, ignored"));
    }
    Ok(spec)
}

fn refuse_triggers(entry: &mut Section) -> Result<(), Error> {
    match entry.take("triggers") {
        Some((place, value)) if !is_empty(&value) => Err(Error::invalid(
            place,
            "automations are not deployed by this tool; create them with Prefect's own",
        )),
        _ => Ok(()),
    }
}

pub(super) fn ignore(entry: &mut Section, warnings: &mut Vec<String>) {
    for (key, why) in IGNORED {
        if let Some((place, value)) = entry.take(key)
            && !is_empty(&value)
        {
            warnings.push(format!("{place}: ignored, {why}"));
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

fn flow_of(
    entry: &mut Section,
    entrypoint: &str,
    flows: &Flows,
    warnings: &mut Vec<String>,
) -> Result<String, Error> {
    if let Some(flow) = entry.text("flow_name")?.filter(|flow| !flow.is_empty()) {
        return Ok(flow);
    }
    let (flow, certain) = flows.of_entrypoint(entrypoint);
    if flow.is_empty() {
        let place = entry.place().key("entrypoint");
        return Err(Error::invalid(place, "it must be path/file.py:function or the name of a flow"));
    }
    if !certain {
        let place = entry.place();
        warnings
            .push(format!("{place}: the flow of {entrypoint} is taken to be {flow:?}; say flow_name if not"));
    }
    Ok(flow)
}

fn schema_of(flow: &str, place: &Place, flows: &Flows, warnings: &mut Vec<String>) -> Value {
    if let Some(schema) = flows.schema(flow) {
        return schema.clone();
    }
    let near = nearest(flow, flows.names()).map(|near| format!("; the nearest known flow is {near}"));
    let near = near.unwrap_or_default();
    warnings.push(format!("{place}: no schema for the flow {flow:?}, it takes any parameters{near}"));
    open_schema()
}

fn check_parameters(
    parameters: &Map<String, Value>,
    schema: &Value,
    place: &Place,
    known: bool,
) -> Result<(), Error> {
    let properties = schema.get("properties").and_then(Value::as_object);
    let Some(properties) = properties.filter(|_| known) else { return Ok(()) };
    match parameters.keys().find(|name| !properties.contains_key(*name)) {
        None => Ok(()),
        Some(name) => Err(Error::UnknownKey {
            place: place.key(name),
            nearest: nearest(name, properties.keys().map(String::as_str)).map(str::to_owned),
        }),
    }
}

/// The limit of the deployment. Prefect ignores one that stands under `work_pool`, where it is often put.
fn concurrency_of(
    entry: &mut Section,
    pool: &mut Section,
    warnings: &mut Vec<String>,
) -> Result<Option<ConcurrencySpec>, Error> {
    let own = entry.take("concurrency_limit");
    let misplaced = pool.take("concurrency_limit");
    if let Some((place, _)) = &misplaced {
        let what =
            if own.is_some() { "ignored, the deployment has its own" } else { "taken for the deployment's" };
        warnings.push(format!("{place}: MISPLACED, {what}: concurrency_limit belongs to the deployment"));
    }
    own.or(misplaced).map(|(place, value)| concurrency(place, value, warnings)).transpose()
}

fn concurrency(place: Place, value: Value, warnings: &mut Vec<String>) -> Result<ConcurrencySpec, Error> {
    if !value.is_object() {
        return Ok(ConcurrencySpec { limit: number_of(&place, &value, 1)?, options: None });
    }
    let mut entry = Section::new(place, value)?;
    let limit = entry.number("limit", 1)?;
    let limit = limit.ok_or_else(|| Error::Missing { place: entry.place().key("limit") })?;
    let collision_strategy = entry.text("collision_strategy")?.unwrap_or_else(|| "ENQUEUE".to_owned());
    if !["ENQUEUE", "CANCEL_NEW"].contains(&collision_strategy.as_str()) {
        let place = entry.place().key("collision_strategy");
        return Err(Error::invalid(
            place,
            format!("it must be ENQUEUE or CANCEL_NEW, not {collision_strategy:?}"),
        ));
    }
    let grace_period_seconds = entry.number("grace_period_seconds", 60)?.map(u64::from);
    if grace_period_seconds.is_some_and(|seconds| seconds > 86_400) {
        let place = entry.place().key("grace_period_seconds");
        return Err(Error::invalid(place, "it must be at most 86400, a day"));
    }
    for place in entry.unknown() {
        warnings.push(format!("{place}: unknown key, ignored"));
    }
    Ok(ConcurrencySpec {
        limit,
        options: Some(ConcurrencyOptions { collision_strategy, grace_period_seconds }),
    })
}

fn tags_of(entry: &mut Section) -> Result<Vec<String>, Error> {
    match entry.take("tags") {
        None => Ok(Vec::new()),
        Some((_, Value::String(tag))) => Ok(vec![tag]),
        Some((place, Value::Array(tags))) => {
            tags.iter().enumerate().map(|(index, tag)| text_of(&place.item(index), tag)).collect()
        }
        Some((place, other)) => Err(wrong(place, "a list", &other)),
    }
}

/// `schedules`, and the single `schedule` of older files.
fn schedules_of(entry: &mut Section) -> Result<Vec<Schedule>, Error> {
    let older = entry.take("schedule").into_iter();
    older.chain(entry.list("schedules")?).map(|(place, value)| schedule::read(place, value)).collect()
}

/// Steps, as a list or a single one.
pub(super) fn steps_of(found: Option<(Place, Value)>) -> Result<Option<Vec<Value>>, Error> {
    match found {
        None => Ok(None),
        Some((_, Value::Array(steps))) => Ok(Some(steps)),
        Some((_, Value::Object(step))) if step.is_empty() => Ok(None),
        Some((_, step @ Value::Object(_))) => Ok(Some(vec![step])),
        Some((place, other)) => Err(wrong(place, "a list of steps", &other)),
    }
}
