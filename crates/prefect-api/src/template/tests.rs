//! Behaviour of template resolution, each case as the Python worker (3.7.2) resolves it.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::placeholder::{Piece, pieces};
use super::*;

fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => panic!("not an object: {other}"),
    }
}

fn environment(name: &str) -> Option<String> {
    (name == "SITE").then(|| "psi".to_owned())
}

fn template(job_configuration: &Value, properties: &Value) -> JobTemplate {
    let document = json!({"job_configuration": job_configuration, "variables": {"type": "object", "properties": properties}});
    JobTemplate::parse(&serde_json::from_value(document).unwrap()).unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "literals read better without a reference")]
fn configure(job_configuration: Value, properties: Value, variables: Value) -> Value {
    template(&job_configuration, &properties).configure(&map(variables), &environment).unwrap()
}

fn block(type_slug: &str, name: &str) -> Reference {
    Reference::Block { type_slug: type_slug.to_owned(), name: name.to_owned() }
}

#[test]
fn a_whole_placeholder_keeps_the_type_and_text_takes_the_text_form() {
    let configured = configure(
        json!({"volumes": "{{ volumes }}", "limit": "{{limit}}", "text": "a {{ limit }}/{{flag}}/{{ nothing }} b"}),
        json!({"volumes": {}, "limit": {}, "flag": {}, "nothing": {}}),
        json!({"volumes": ["/a:/b"], "limit": 3, "flag": true}),
    );
    assert_eq!(configured, json!({"volumes": ["/a:/b"], "limit": 3, "text": "a 3/True/ b"}));
}

#[test]
fn a_missing_value_removes_the_key_and_the_list_item() {
    let configured = configure(
        json!({"image": "{{ image }}", "networks": ["{{ network }}", "fixed"]}),
        json!({"image": {"default": null}, "network": {}}),
        json!({}),
    );
    assert_eq!(configured, json!({"networks": ["fixed"]}));
}

#[test]
fn an_explicit_null_is_a_value() {
    let configured = configure(json!({"m": "{{ m }}"}), json!({"m": {"default": "1g"}}), json!({"m": null}));
    assert_eq!(configured, json!({"m": null}));
}

#[test]
fn job_variables_replace_defaults() {
    let configured = configure(
        json!({"image": "{{ image }}", "labels": "{{ labels }}"}),
        json!({"image": {"default": "a:1"}, "labels": {"default": {"team": "x", "site": "y"}}}),
        json!({"image": "b:2", "labels": {"team": "z"}}),
    );
    assert_eq!(configured, json!({"image": "b:2", "labels": {"team": "z"}}));
}

#[test]
fn env_is_merged_from_configuration_defaults_and_variables() {
    let fixed = configure(
        json!({"env": {"A": "fixed", "B": "{{ b }}", "C": "c"}}),
        json!({"env": {"default": {"A": "default", "D": "default"}}, "b": {"default": "filled"}}),
        json!({"env": {"D": "job", "C": null}}),
    );
    assert_eq!(fixed, json!({"env": {"A": "default", "B": "filled", "C": null, "D": "job"}}));

    let placeholder = configure(
        json!({"env": "{{ env }}"}),
        json!({"env": {"default": {"A": "default", "B": "default"}}}),
        json!({"env": {"A": "job"}}),
    );
    assert_eq!(placeholder, json!({"env": {"A": "job", "B": "default"}}));
}

#[test]
fn dotted_keys_nest_and_the_nested_form_wins() {
    let configured = configure(
        json!({"env": "{{ env }}"}),
        json!({"env": {"default": {"Z": "z"}}}),
        json!({"env.A": "dotted", "env.B": "dotted", "env": {"A": "nested"}}),
    );
    assert_eq!(configured, json!({"env": {"A": "nested", "B": "dotted", "Z": "z"}}));
}

#[test]
fn contradicting_dotted_keys_are_refused() {
    let template = template(&json!({"a": "{{ a }}"}), &json!({"a": {}}));
    let error = template.configure(&map(json!({"a.b": 1, "a.b.c": 2})), &environment).unwrap_err();
    assert_eq!(error, TemplateError::PathConflict { key: "a.b.c".to_owned() });
}

#[test]
fn paths_reach_into_variables() {
    let configured = configure(
        json!({"first": "{{ mounts[0].source }}", "text": "<{{ mounts.1.source }}>"}),
        json!({"mounts": {}}),
        json!({"mounts": [{"source": "/a"}, {"source": "/b"}]}),
    );
    assert_eq!(configured, json!({"first": "/a", "text": "</b>"}));
}

#[test]
fn environment_placeholders_are_text_and_missing_ones_are_empty() {
    let configured = configure(
        json!({"a": "{{ $SITE }}", "b": "x-{{$SITE}}-{{ $NONE }}", "c": "{{ $NONE }}"}),
        json!({}),
        json!({}),
    );
    assert_eq!(configured, json!({"a": "psi", "b": "x-psi-", "c": ""}));
}

#[test]
fn placeholders_in_job_variables_are_not_filled_again() {
    let configured = configure(
        json!({"name": "{{ name }}"}),
        json!({"name": {}}),
        json!({"name": "{{ ctx.flow_run.name }}"}),
    );
    assert_eq!(configured, json!({"name": "{{ ctx.flow_run.name }}"}));
}

#[test]
fn undeclared_placeholders_are_refused_by_name() {
    let document = json!({
        "job_configuration": {"image": "{{ imaeg }}", "x": [{"y": "a {{ zone }}"}], "ok": "{{ $HOME }}{{ prefect.variables.v }}"},
        "variables": {"properties": {"image": {}}},
    });
    let error = JobTemplate::parse(&serde_json::from_value(document).unwrap()).unwrap_err();
    assert_eq!(
        error,
        TemplateError::UndeclaredPlaceholders { names: vec!["imaeg".to_owned(), "zone".to_owned()] }
    );
    assert!(error.to_string().contains("imaeg, zone"), "{error}");
}

#[test]
fn a_template_without_its_sections_is_refused() {
    let document = json!({"variables": {"properties": {}}});
    let error = JobTemplate::parse(&serde_json::from_value(document).unwrap()).unwrap_err();
    assert_eq!(error, TemplateError::MissingSection { section: "job_configuration" });
}

#[test]
fn flow_run_variables_replace_except_env_which_merges() {
    let merged = merge_job_variables(
        &map(json!({"image": "a", "volumes": ["x"], "env": {"A": "1", "B": "1"}})),
        &map(json!({"volumes": ["y"], "env": {"B": "2"}})),
    );
    assert_eq!(Value::Object(merged), json!({"image": "a", "volumes": ["y"], "env": {"A": "1", "B": "2"}}));
}

#[test]
fn references_are_asked_for_then_filled_in() {
    let value = json!({
        "whole": "{{ prefect.blocks.secret.token }}",
        "inside": "https://{{ prefect.blocks.json.conf.value.host }}/{{ prefect.variables.path }}",
        "credentials": {"$ref": {"block_document_id": "0000"}},
        "count": "{{ prefect.variables.count }}",
        "gone": "{{ prefect.variables.gone }}",
        "list": ["{{ prefect.blocks.json.conf.ports[1] }}"],
    });
    let Resolution::Needs(needed) = resolve(&value, &Answers::new()).unwrap() else {
        panic!("nothing needed")
    };
    let variables = ["path", "count", "gone"].map(|name| Reference::Variable(name.to_owned()));
    let mut expected = BTreeSet::from([
        block("secret", "token"),
        block("json", "conf"),
        Reference::BlockId("0000".to_owned()),
    ]);
    expected.extend(variables.clone());
    assert_eq!(needed, expected);

    let [path, count, gone] = variables;
    let answers = Answers::from([
        (block("secret", "token"), Some(json!({"value": "s3cret"}))),
        (block("json", "conf"), Some(json!({"value": {"host": "h", "ports": [1, 2]}}))),
        (Reference::BlockId("0000".to_owned()), Some(json!({"username": "u", "password": "p"}))),
        (path, Some(json!("p"))),
        (count, Some(json!(7))),
        (gone, None),
    ]);
    let expected = json!({
        "whole": "s3cret",
        "inside": "https://h/p",
        "credentials": {"username": "u", "password": "p"},
        "count": 7,
        "gone": "",
        "list": [2],
    });
    assert_eq!(resolve(&value, &answers).unwrap(), Resolution::Complete(expected));
}

#[test]
fn variables_inside_block_values_take_a_second_round() {
    let value = json!("{{ prefect.blocks.secret.url }}");
    let mut answers = Answers::from([(
        block("secret", "url"),
        Some(json!({"value": "http://{{ prefect.variables.host }}"})),
    )]);
    let host = Reference::Variable("host".to_owned());
    assert_eq!(resolve(&value, &answers).unwrap(), Resolution::Needs(BTreeSet::from([host.clone()])));
    answers.insert(host, Some(json!("h")));
    assert_eq!(resolve(&value, &answers).unwrap(), Resolution::Complete(json!("http://h")));
}

#[test]
fn faulty_block_references_are_named() {
    let missing = Answers::from([(block("secret", "token"), None)]);
    let error = resolve(&json!("{{ prefect.blocks.secret.token }}"), &missing).unwrap_err();
    assert_eq!(error, TemplateError::BlockNotFound { reference: block("secret", "token") });

    let error = resolve(&json!("{{ prefect.blocks.secret }}"), &Answers::new()).unwrap_err();
    assert!(matches!(error, TemplateError::InvalidBlockPlaceholder { .. }), "{error}");

    let found = Answers::from([(block("json", "conf"), Some(json!({"value": {"a": {"b": 1}}})))]);
    let error = resolve(&json!("{{ prefect.blocks.json.conf.nope }}"), &found).unwrap_err();
    assert!(matches!(error, TemplateError::BlockPathNotFound { .. }), "{error}");
    let error = resolve(&json!("x {{ prefect.blocks.json.conf.a }}"), &found).unwrap_err();
    assert!(matches!(error, TemplateError::BlockNotScalar { .. }), "{error}");
}

#[test]
fn names_are_rendered_from_the_context() {
    let context =
        map(json!({"ctx": {"flow": {"name": "archive"}, "flow_run": {"name": "blue-owl", "run_count": 2,
            "parent": null}}}));
    let render = |text| render_text(text, &context, &environment);
    assert_eq!(render("{{ ctx.flow.name }}-{{ ctx.flow_run.name }}").as_deref(), Some("archive-blue-owl"));
    assert_eq!(render("{{ ctx.flow_run.run_count }}").as_deref(), Some("2"));
    assert_eq!(render("{{ ctx.flow_run.none }}"), None);
    assert_eq!(render("{{ ctx.flow_run.parent }}"), None);
    assert_eq!(render("of {{ ctx.flow_run.parent }}").as_deref(), Some("of None"));
    assert_eq!(render("run {{ ctx.flow_run.none }}").as_deref(), Some("run "));
}

#[test]
fn text_forms_are_pythons() {
    let value = json!([true, null, 1.5, "it's", {"k": "v"}]);
    assert_eq!(text_form(&value), r#"[True, None, 1.5, "it's", {'k': 'v'}]"#);
    for (number, text) in [
        (json!(7), "7"),
        (json!(1.0), "1.0"),
        (json!(-0.0001), "-0.0001"),
        (json!(1e-5), "1e-05"),
        (json!(1.25e-120), "1.25e-120"),
        (json!(1e15), "1000000000000000.0"),
        (json!(1e16), "1e+16"),
        (json!(["a\u{7}{}", "\u{a0}\u{ad}"]), r"['a\x07{}', '\xa0\xad']"),
        (
            json!(["\u{200b}\u{e000}", "e\u{301}\u{1f600}\u{e0001}"]),
            "['\\u200b\\ue000', 'e\u{301}\u{1f600}\\U000e0001']",
        ),
    ] {
        assert_eq!(text_form(&number), text);
    }
}

#[test]
fn what_only_looks_like_a_placeholder_is_text() {
    for text in ["{{}}", "{{ a b }}", "{ {a} }", "{{ a }", "{{{", "{{ a|b }}", "}}{{"] {
        assert_eq!(pieces(text), vec![Piece::Text(text)], "{text}");
    }
    assert_eq!(pieces("{{{ a }}").len(), 2, "the inner braces hold a placeholder");
}

fn json_value(text: impl Strategy<Value = String> + Clone + 'static) -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,4}", inner, 0..4)
                .prop_map(|object| Value::Object(object.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn pieces_always_join_to_the_text(text in "[{} a.$é\\[\\]-]{0,24}") {
        let joined: String = pieces(&text)
            .into_iter()
            .map(|piece| match piece {
                Piece::Text(text) => text,
                Piece::Placeholder(placeholder) => placeholder.full,
            })
            .collect();
        prop_assert_eq!(joined, text);
    }

    #[test]
    fn a_configuration_without_placeholders_stays_as_it_is(
        configuration in prop::collection::btree_map("[a-z]{1,4}x", json_value("[a-z{} ]{0,6}".boxed()), 1..4),
    ) {
        let configuration = Value::Object(configuration.into_iter().collect());
        prop_assume!(!configuration.to_string().contains("{{"));
        let configured = configure(configuration.clone(), json!({}), json!({}));
        prop_assert_eq!(&configured, &configuration);
        prop_assert_eq!(resolve(&configured, &Answers::new()).unwrap(), Resolution::Complete(configuration));
    }

    #[test]
    fn any_value_passes_through_a_whole_placeholder(value in json_value("[a-z{} ]{0,6}".boxed())) {
        let configured = configure(json!({"v": "{{ v }}"}), json!({"v": {}}), json!({"v": value.clone()}));
        prop_assert_eq!(configured, json!({"v": value}));
    }

    #[test]
    fn resolution_ends_once_every_need_is_answered(names in prop::collection::btree_set("[a-z]{1,3}", 1..6)) {
        let value = Value::from(
            names.iter().map(|name| format!("{{{{ prefect.variables.{name} }}}}")).collect::<Vec<_>>(),
        );
        let Resolution::Needs(needed) = resolve(&value, &Answers::new()).unwrap() else { panic!("nothing needed") };
        prop_assert_eq!(needed.len(), names.len());
        let answers = needed.into_iter().map(|reference| (reference, Some(json!(1)))).collect();
        prop_assert_eq!(resolve(&value, &answers).unwrap(), Resolution::Complete(json!(vec![1; names.len()])));
    }
}
