//! What is, beside what should be: one pure function for each kind of record.

use prefect_api::deployment::GlobalConcurrencyLimit;
use prefect_api::record::{self, BlockDocument};
use prefect_api::work_pool::{NewWorkPool, WorkPool, WorkPoolUpdate, WorkQueue, WorkQueueSettings};
use secrecy::ExposeSecret as _;
use serde_json::Value;

use crate::plan::{Change, Request, Write};
use crate::{Error, Limit, QueueSpec, Secret, TagLimit, Variable, WorkPoolSpec};

pub(crate) fn variable(wanted: &Variable, found: Option<&record::Variable>) -> Change {
    let write = Write(Request::SetVariable(wanted.clone()));
    match found {
        None => Change::Create(write),
        Some(found) if found.value == Value::String(wanted.value.clone()) => Change::Unchanged,
        Some(found) => Change::Update { what: vec![format!("{} -> {:?}", found.value, wanted.value)], write },
    }
}

pub(crate) fn secret(wanted: &Secret, found: Option<&BlockDocument>) -> Change {
    let write = Write(Request::SaveSecret { name: wanted.name.clone(), value: wanted.value.clone() });
    match found {
        None => Change::Create(write),
        Some(found)
            if found.data.get("value").and_then(Value::as_str) == Some(wanted.value.expose_secret()) =>
        {
            Change::Unchanged
        }
        Some(_) => Change::Update { what: vec!["value".to_owned()], write },
    }
}

pub(crate) fn limit(wanted: &TagLimit, name: String, found: Option<&GlobalConcurrencyLimit>) -> Change {
    let limit = wanted.limit;
    match found {
        None => Change::Create(Write(Request::CreateLimit { name, limit })),
        Some(found) if found.limit == limit => Change::Unchanged,
        Some(found) => Change::Update {
            what: vec![format!("{} -> {limit}", found.limit)],
            write: Write(Request::UpdateLimit { name, limit }),
        },
    }
}

pub(crate) fn pool(wanted: &WorkPoolSpec, found: Option<&WorkPool>) -> Result<Change, Error> {
    let Some(found) = found else {
        return Ok(Change::Create(Write(Request::CreatePool(NewWorkPool {
            name: wanted.name.clone(),
            kind: wanted.kind.clone(),
            base_job_template: Some(wanted.template.clone()),
            description: wanted.description.clone(),
            concurrency_limit: wanted.limit.and_then(Limit::wire),
            is_paused: false,
        }))));
    };
    if found.kind != wanted.kind {
        return Err(Error::PoolOfOtherType {
            pool: wanted.name.clone(),
            wanted: wanted.kind.clone(),
            found: found.kind.clone(),
        });
    }
    let mut what = Vec::new();
    let mut update = WorkPoolUpdate::default();
    if found.base_job_template != wanted.template {
        what.push("base job template".to_owned());
        update.base_job_template = Some(wanted.template.clone());
    }
    if let Some(description) = differs(wanted.description.as_ref(), found.description.as_ref()) {
        what.push("description".to_owned());
        update.description = Some(description);
    }
    if let Some(limit) = wanted.limit.map(Limit::wire).filter(|limit| *limit != found.concurrency_limit) {
        what.push(limit_change(found.concurrency_limit, limit));
        update.concurrency_limit = Some(limit);
    }
    if what.is_empty() {
        return Ok(Change::Unchanged);
    }
    let name = wanted.name.clone();
    Ok(Change::Update { what, write: Write(Request::UpdatePool { name, update }) })
}

pub(crate) fn queue(pool: &str, wanted: &QueueSpec, found: Option<&WorkQueue>) -> Change {
    let wanted_limit = wanted.limit.map(Limit::wire);
    let write = |limit, is_paused| {
        let settings = WorkQueueSettings {
            name: None,
            description: wanted.description.clone(),
            concurrency_limit: limit,
            priority: wanted.priority,
            is_paused,
        };
        Write(Request::SaveQueue { pool: pool.to_owned(), queue: wanted.name.clone(), settings })
    };
    let Some(found) = found else { return Change::Create(write(wanted_limit.flatten(), false)) };
    let mut what = Vec::new();
    if differs(wanted.description.as_ref(), found.description.as_ref()).is_some() {
        what.push("description".to_owned());
    }
    if let Some(priority) = differs(wanted.priority.as_ref(), found.priority.as_ref()) {
        let before = found.priority.map_or_else(|| "none".to_owned(), |before| before.to_string());
        what.push(format!("priority {before} -> {priority}"));
    }
    let limit = wanted_limit.unwrap_or(found.concurrency_limit);
    if limit != found.concurrency_limit {
        what.push(limit_change(found.concurrency_limit, limit));
    }
    if what.is_empty() {
        return Change::Unchanged;
    }
    Change::Update { what, write: write(limit, found.is_paused) }
}

/// What is wanted, if anything is and it is not there.
fn differs<T: PartialEq + Clone>(wanted: Option<&T>, found: Option<&T>) -> Option<T> {
    wanted.filter(|wanted| Some(*wanted) != found).cloned()
}

fn limit_change(before: Option<u32>, after: Option<u32>) -> String {
    let word = |limit: Option<u32>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    format!("concurrency limit {} -> {}", word(before), word(after))
}

#[cfg(test)]
mod tests;
