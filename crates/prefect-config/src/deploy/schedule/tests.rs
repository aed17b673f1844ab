use std::path::Path;

use serde_json::{Value, json};

use super::{Schedule, read, seconds};
use crate::{Error, Place};

fn schedule(value: Value) -> Result<Schedule, Error> {
    read(Place::file(Path::new("prefect.yaml")).key("schedules").item(0), value)
}

#[test]
fn the_three_forms_become_those_of_the_server() {
    let wire = |value| schedule(value).unwrap().wire(None).to_string();
    insta::assert_snapshot!(
        wire(json!({"cron": "0 3 * * *", "timezone": "Europe/Berlin", "day_or": true, "active": false, "slug": "nightly"})),
        @r#"{"active":false,"parameters":{},"schedule":{"cron":"0 3 * * *","day_or":true,"timezone":"Europe/Berlin"},"slug":"nightly"}"#
    );
    insta::assert_snapshot!(
        wire(json!({"interval": 3600, "anchor_date": "2026-01-02", "parameters": {"n": 1}})),
        @r#"{"active":true,"parameters":{"n":1},"schedule":{"anchor_date":"2026-01-02T00:00:00Z","interval":3600.0}}"#
    );
    insta::assert_snapshot!(
        wire(json!({"rrule": "FREQ=DAILY", "timezone": "UTC"})),
        @r#"{"active":true,"parameters":{},"schedule":{"rrule":"FREQ=DAILY","timezone":"UTC"}}"#
    );
    insta::assert_snapshot!(
        wire(json!({"rrule": "{\"rrule\": \"FREQ=DAILY\", \"timezone\": \"UTC\"}"})),
        @r#"{"active":true,"parameters":{},"schedule":{"rrule":"FREQ=DAILY","timezone":"UTC"}}"#
    );
}

#[test]
fn an_interval_has_many_spellings() {
    assert_eq!(seconds("90"), Some(90.0));
    assert_eq!(seconds("1.5"), Some(1.5));
    assert_eq!(seconds("01:00:30"), Some(3630.0));
    assert_eq!(seconds("1:30"), Some(5400.0));
    assert_eq!(seconds("PT1H"), Some(3600.0));
    assert_eq!(seconds("P1DT1S"), Some(86401.0));
    assert_eq!(seconds("soon"), None);
}

#[test]
fn faults_are_refused() {
    for faulty in [
        json!({}),
        json!({"cron": "0 3 * * *", "interval": 5}),
        json!({"cron": "daily"}),
        json!({"interval": 0}),
        json!({"interval": "soon"}),
        json!({"interval": "inf"}),
        json!({"interval": 5, "anchor_date": "yesterday"}),
        json!({"cron": "0 3 * * *", "aktive": true}),
    ] {
        let error = schedule(faulty.clone()).expect_err(&faulty.to_string());
        assert!(error.to_string().starts_with("use prefect.yaml: schedules[0]"), "{error}");
    }
}

/// As the server shows it, with the defaults that it added.
fn shown(active: bool) -> Value {
    json!({"id": "x", "active": active, "parameters": {}, "slug": null,
        "schedule": {"interval": 3600.0, "anchor_date": "2026-11-22T04:36:33.115890Z", "timezone": "UTC"}})
}

#[test]
fn what_the_server_added_makes_no_difference() {
    let hourly = schedule(json!({"interval": 3600})).unwrap();
    assert!(hourly.is_at(&shown(false)));
    let anchored = |anchor: &str| schedule(json!({"interval": 3600, "anchor_date": anchor})).unwrap();
    assert!(anchored("2026-11-22T05:36:33.115890+01:00").is_at(&shown(true)));
    assert!(!anchored("2026-11-22").is_at(&shown(true)));
    let daily = schedule(json!({"rrule": "FREQ=DAILY"})).unwrap();
    let recurrence = |rule: &str| json!({"parameters": {}, "schedule": {"rrule": rule, "timezone": "UTC"}});
    assert!(daily.is_at(&recurrence("DTSTART:20200101T000000\nFREQ=DAILY")));
    assert!(!daily.is_at(&recurrence("DTSTART:20200101T000000\nFREQ=HOURLY")));
    assert!(!schedule(json!({"interval": 60})).unwrap().is_at(&shown(true)));
    assert!(!schedule(json!({"interval": 3600, "slug": "s"})).unwrap().is_at(&shown(true)));
    assert!(!schedule(json!({"interval": 3600, "parameters": {"n": 1}})).unwrap().is_at(&shown(true)));
}

#[test]
fn an_anchor_and_a_pause_by_hand_survive() {
    let wire = schedule(json!({"interval": 3600})).unwrap().wire(Some(&shown(false)));
    assert_eq!((&wire["active"], &wire["schedule"]), (&json!(false), &shown(false)["schedule"]));
    let on = schedule(json!({"interval": 3600, "active": true})).unwrap().wire(Some(&shown(false)));
    assert_eq!(on["active"], json!(true));
}
