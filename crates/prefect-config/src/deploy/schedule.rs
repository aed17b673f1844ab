//! Schedules in the three forms of Prefect: cron, interval, recurrence rule.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo, Timestamp};
use serde_json::{Map, Value, json};

use crate::section::{Section, text_of};
use crate::{Error, Place};

/// A schedule of a deployment.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// When: Prefect's form, without what the server fills in itself.
    pub when: Map<String, Value>,
    /// Whether it is on; `None` keeps what the server has, else it is on.
    pub active: Option<bool>,
    /// Parameters that replace those of the deployment.
    pub parameters: Map<String, Value>,
    /// A name for it.
    pub slug: Option<String>,
}

/// Reads one entry of `schedules`.
pub(super) fn read(place: Place, value: Value) -> Result<Schedule, Error> {
    let mut entry = Section::new(place, value)?;
    let cron = entry.text("cron")?;
    let interval = entry.take("interval");
    let recurrence = entry.text("rrule")?;
    let timezone = entry.text("timezone")?;
    let mut when = match (cron, interval, recurrence) {
        (Some(cron), None, None) => cron_form(&entry.place().key("cron"), &cron, entry.flag("day_or")?)?,
        (None, Some((place, interval)), None) => {
            let anchor = entry.text("anchor_date")?;
            interval_form(&place, &interval, &entry.place().key("anchor_date"), anchor.as_deref())?
        }
        (None, None, Some(recurrence)) => recurrence_form(&recurrence),
        _ => {
            let problem = "exactly one of cron, interval and rrule must be given";
            return Err(Error::invalid(entry.place().clone(), problem));
        }
    };
    if let Some(timezone) = timezone {
        when.insert("timezone".to_owned(), Value::String(timezone));
    }
    let schedule = Schedule {
        when,
        active: entry.flag("active")?,
        parameters: entry.entries("parameters")?,
        slug: entry.text("slug")?,
    };
    // Schedules are replaced as a whole, so there is nothing that a new one could replace in particular.
    entry.take("replaces");
    entry.refuse_unknown()?;
    Ok(schedule)
}

fn cron_form(place: &Place, cron: &str, day_or: Option<bool>) -> Result<Map<String, Value>, Error> {
    let fields = cron.split_whitespace().count();
    if !cron.starts_with('@') && !(5..=6).contains(&fields) {
        return Err(Error::invalid(
            place.clone(),
            format!("a cron line has five fields, {cron:?} has {fields}"),
        ));
    }
    let mut form = object(json!({"cron": cron}));
    if let Some(day_or) = day_or {
        form.insert("day_or".to_owned(), Value::Bool(day_or));
    }
    Ok(form)
}

fn interval_form(
    place: &Place,
    interval: &Value,
    anchor_place: &Place,
    anchor: Option<&str>,
) -> Result<Map<String, Value>, Error> {
    let text = text_of(place, interval)?;
    let seconds =
        seconds(&text).filter(|seconds| *seconds > 0.0 && seconds.is_finite()).ok_or_else(|| {
            let problem =
                format!("an interval is seconds, H:M:S or ISO 8601 like PT1H, and more than 0, not {text:?}");
            Error::invalid(place.clone(), problem)
        })?;
    let mut form = object(json!({"interval": seconds}));
    if let Some(anchor) = anchor {
        let instant = instant(anchor).ok_or_else(|| {
            Error::invalid(
                anchor_place.clone(),
                format!("it must be a date or time in ISO 8601, not {anchor:?}"),
            )
        })?;
        form.insert("anchor_date".to_owned(), Value::String(instant.to_string()));
    }
    Ok(form)
}

/// A rule, or what Prefect itself writes: `{"rrule": …, "timezone": …}` as text.
fn recurrence_form(rule: &str) -> Map<String, Value> {
    match serde_json::from_str(rule) {
        Ok(Value::Object(form)) => form,
        _ => object(json!({"rrule": rule})),
    }
}

fn seconds(text: &str) -> Option<f64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Some(seconds);
    }
    if let Some((hours, rest)) = text.split_once(':') {
        let (minutes, seconds) = rest.split_once(':').unwrap_or((rest, "0"));
        let (hours, minutes) = (hours.parse::<u32>().ok()?, minutes.parse::<u32>().ok()?);
        return Some(f64::from(hours) * 3600.0 + f64::from(minutes) * 60.0 + seconds.parse::<f64>().ok()?);
    }
    let span: Span = text.parse().ok()?;
    Some(span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?.as_secs_f64())
}

/// A time without an offset is in UTC, a date is its first moment.
fn instant(text: &str) -> Option<Timestamp> {
    let civil = || text.parse::<DateTime>().or_else(|_| text.parse::<Date>().map(DateTime::from)).ok();
    text.parse().ok().or_else(|| Some(civil()?.to_zoned(TimeZone::UTC).ok()?.timestamp()))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

impl Schedule {
    /// Whether `found`, a schedule as the server shows it, is this one, apart from being active.
    ///
    /// The server adds defaults, such as the anchor of an interval: only what is said here counts.
    pub(super) fn is_at(&self, found: &Value) -> bool {
        let parameters = found.get("parameters").and_then(Value::as_object);
        let slug = found.get("slug").and_then(Value::as_str);
        parameters.map_or(self.parameters.is_empty(), |found| *found == self.parameters)
            && slug == self.slug.as_deref()
            && self.when.iter().all(|(key, wanted)| {
                found.get("schedule").and_then(|when| when.get(key)).is_some_and(|found| same(wanted, found))
            })
    }

    /// The schedule as the server takes it; `found` is what it shows of the same schedule.
    pub(super) fn wire(&self, found: Option<&Value>) -> Value {
        let shown = found.and_then(|found| found.get("active")).and_then(Value::as_bool);
        let mut wire = json!({
            "schedule": found.and_then(|found| found.get("schedule")).cloned().unwrap_or_else(|| json!(self.when)),
            "active": self.active.or(shown).unwrap_or(true),
            "parameters": self.parameters,
        });
        if let (Some(slug), Some(wire)) = (&self.slug, wire.as_object_mut()) {
            wire.insert("slug".to_owned(), Value::String(slug.clone()));
        }
        wire
    }
}

fn same(wanted: &Value, found: &Value) -> bool {
    let number = |value: &Value| value.as_f64();
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    // A recurrence without a start is given one, in a line of its own before it.
    let started = found.as_str().and_then(|text| text.strip_prefix("DTSTART")?.split_once('\n'));
    wanted == found
        || started.is_some_and(|(_, rule)| wanted == rule)
        || (number(wanted).is_some() && number(wanted) == number(found))
        || (time(wanted).is_some() && time(wanted) == time(found))
}

#[cfg(test)]
mod tests;
