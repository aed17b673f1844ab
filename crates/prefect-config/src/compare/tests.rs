use prefect_api::deployment::GlobalConcurrencyLimit;
use prefect_api::record::{self, BlockDocument};
use prefect_api::work_pool::{BaseJobTemplate, WorkPool, WorkQueue};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{limit, pool, queue, secret, variable};
use crate::plan::{Change, Request, Write};
use crate::{Error, Limit, QueueSpec, Secret, TagLimit, Variable, WorkPoolSpec};

const ID: &str = "00000000-0000-0000-0000-000000000001";

fn shown<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// What a change says, and the body it would send.
fn told(change: &Change) -> String {
    let body = |Write(request): &Write| match request {
        Request::UpdatePool { update, .. } => json!(update).to_string(),
        Request::CreatePool(pool) => json!(pool).to_string(),
        Request::SaveQueue { settings, .. } => json!(settings).to_string(),
        other => format!("{other:?}"),
    };
    match change {
        Change::Unchanged => "unchanged".to_owned(),
        Change::Create(write) => format!("create {}", body(write)),
        Change::Update { what, write } => format!("{}: {}", what.join(", "), body(write)),
    }
}

#[test]
fn a_variable_is_compared_as_text() {
    let wanted = Variable { name: "s3_region".to_owned(), value: "7".to_owned() };
    let found =
        |value: Value| shown::<record::Variable>(json!({"id": ID, "name": "s3_region", "value": value}));
    assert!(matches!(variable(&wanted, None), Change::Create(_)));
    assert!(matches!(variable(&wanted, Some(&found(json!("7")))), Change::Unchanged));
    let Change::Update { what, .. } = variable(&wanted, Some(&found(json!(7)))) else {
        panic!("a number is no text")
    };
    assert_eq!(what, [r#"7 -> "7""#]);
}

#[test]
fn a_secret_is_never_told() {
    let wanted = Secret { name: "s3-user".to_owned(), value: "new".into() };
    let found = |value: &str| {
        shown::<BlockDocument>(
            json!({"id": ID, "data": {"value": value}, "block_schema_id": ID, "block_type_id": ID}),
        )
    };
    assert!(matches!(secret(&wanted, Some(&found("new"))), Change::Unchanged));
    let change = secret(&wanted, Some(&found("new\n")));
    let text = format!("{} {change:?}", told(&change));
    assert!(text.starts_with("value: ") && !text.contains("new"), "{text}");
}

#[test]
fn an_existing_limit_is_changed() {
    let wanted = TagLimit { tag: "t".to_owned(), limit: 3 };
    let found =
        |limit: u32| shown::<GlobalConcurrencyLimit>(json!({"id": ID, "name": "tag:t", "limit": limit}));
    let told =
        |found: Option<GlobalConcurrencyLimit>| told(&limit(&wanted, "tag:t".to_owned(), found.as_ref()));
    insta::assert_snapshot!(told(None), @r#"create CreateLimit { name: "tag:t", limit: 3 }"#);
    insta::assert_snapshot!(told(Some(found(3))), @"unchanged");
    insta::assert_snapshot!(told(Some(found(1))), @r#"1 -> 3: UpdateLimit { name: "tag:t", limit: 3 }"#);
}

fn template(image: &str) -> BaseJobTemplate {
    shown(json!({"job_configuration": {"image": image}, "variables": {}}))
}

fn found_pool(kind: &str) -> WorkPool {
    shown(json!({"id": ID, "name": "p", "type": kind, "base_job_template": template("a"),
        "concurrency_limit": 5, "description": "by hand"}))
}

fn wanted_pool() -> WorkPoolSpec {
    WorkPoolSpec {
        name: "p".to_owned(),
        kind: "docker".to_owned(),
        template: template("a"),
        description: None,
        limit: None,
        queues: Vec::new(),
    }
}

#[test]
fn a_pool_is_changed_only_where_the_file_says_so() {
    let silent = wanted_pool();
    assert_eq!(told(&pool(&silent, Some(&found_pool("docker"))).unwrap()), "unchanged");
    let outspoken = WorkPoolSpec {
        template: template("b"),
        description: Some("new".to_owned()),
        limit: Some(Limit::Unlimited),
        ..wanted_pool()
    };
    insta::assert_snapshot!(
        told(&pool(&outspoken, Some(&found_pool("docker"))).unwrap()),
        @r#"base job template, description, concurrency limit 5 -> unlimited: {"base_job_template":{"job_configuration":{"image":"b"},"variables":{}},"concurrency_limit":null,"description":"new"}"#
    );
    let limited = WorkPoolSpec { limit: Some(Limit::At(0)), ..wanted_pool() };
    insta::assert_snapshot!(
        told(&pool(&limited, Some(&found_pool("docker"))).unwrap()),
        @r#"concurrency limit 5 -> 0: {"concurrency_limit":0}"#
    );
}

#[test]
fn a_pool_of_another_type_is_refused() {
    let error = pool(&wanted_pool(), Some(&found_pool("process"))).unwrap_err();
    assert!(matches!(error, Error::PoolOfOtherType { .. }));
}

#[test]
fn a_queue_keeps_what_the_file_does_not_mention() {
    let wanted = QueueSpec { name: "q".to_owned(), description: None, limit: None, priority: Some(2) };
    let found = |priority: u32| {
        shown::<WorkQueue>(
            json!({"id": ID, "name": "q", "priority": priority, "concurrency_limit": 9, "is_paused": true}),
        )
    };
    insta::assert_snapshot!(told(&queue("p", &wanted, Some(&found(2)))), @"unchanged");
    insta::assert_snapshot!(
        told(&queue("p", &wanted, Some(&found(1)))),
        @r#"priority 1 -> 2: {"concurrency_limit":9,"is_paused":true,"priority":2}"#
    );
    insta::assert_snapshot!(
        told(&queue("p", &wanted, None)),
        @r#"create {"concurrency_limit":null,"is_paused":false,"priority":2}"#
    );
}
