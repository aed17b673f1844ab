//! The Prefect API: there, of a version we know, open to us, with sockets and a clock.

use jiff::{SignedDuration, Timestamp};
use prefect_client::socket::{EventStream, Item};
use prefect_client::{Client, Settings};

use super::clock::Sighting;
use super::{Finding, in_time, setup};
use crate::compatibility::{self, CHECK};
use crate::error::chain;

/// Whether anything can be asked of the API.
pub(super) enum Access {
    Granted,
    /// It cannot, for this reason.
    Denied(&'static str),
}

/// Looks at the API.
pub(super) async fn look(client: &Client, settings: &Settings, findings: &mut Vec<Finding>) -> Access {
    let asked = Timestamp::now();
    let clock = match in_time(client.clock()).await {
        Ok(Ok(clock)) => clock,
        Ok(Err(error)) => {
            let default = "is the Prefect server well, and is PREFECT_API_URL the root of its API (…/api)?";
            let remedy = error.hint().unwrap_or(default);
            findings.push(Finding::failed("api", format!("failed to {}", chain(&error)), remedy));
            return Access::Denied("the API is away");
        }
        Err(silence) => {
            let remedy = "is the Prefect server well, and does a proxy or a firewall stand before it?";
            findings.push(Finding::failed("api", silence, remedy));
            return Access::Denied("the API is away");
        }
    };
    let answered = Timestamp::now();
    let took = answered.duration_since(asked).as_millis();
    findings.push(Finding::ok("api", format!("{} answered within {took} ms", client.api_url())));
    if let Err(why) = access(client, settings, findings).await {
        return Access::Denied(why);
    }
    if let Some(theirs) = clock {
        let coarseness = SignedDuration::from_secs(1);
        findings.push(Sighting { ours: (asked, answered), theirs, coarseness }.finding("of the API"));
    }
    findings.push(events(client).await);
    Access::Granted
}

/// Whether the API takes our credentials, and its version, which it tells to those only.
async fn access(
    client: &Client,
    settings: &Settings,
    findings: &mut Vec<Finding>,
) -> Result<(), &'static str> {
    let credentials = setup::credentials(settings);
    let version = match in_time(client.server_version()).await {
        Ok(Ok(version)) => version,
        Ok(Err(error)) if matches!(error.status(), Some(401 | 403)) => {
            let given = credentials.map_or_else(
                || "no credentials are set".to_owned(),
                |(setting, source)| format!("{setting} from {source} was used"),
            );
            let found = format!("the API does not let us in: {given}: failed to {}", chain(&error));
            findings.push(Finding::failed("auth", found, error.hint().unwrap_or_default()));
            return Err("the API does not accept the credentials");
        }
        Ok(Err(error)) => {
            let found = format!("failed to {}", chain(&error));
            let remedy = "is PREFECT_API_URL the root of the API of a Prefect server (…/api)?";
            findings.push(Finding::failed("version", found, error.hint().unwrap_or(remedy)));
            return Err("the API is not one of Prefect's");
        }
        Err(silence) => {
            findings.push(Finding::failed("version", silence, "look at the log of the Prefect server"));
            return Err("the API is away");
        }
    };
    findings.push(Finding::ok(
        "auth",
        credentials.map_or_else(
            || "no credentials are set, and none are wanted".to_owned(),
            |(setting, source)| format!("{setting} from {source} is accepted"),
        ),
    ));
    findings.push(match compatibility::check_enabled(settings) {
        Ok(false) => Finding::ok("version", format!("Prefect {version}, not compared: {CHECK} is off")),
        Err(error) => Finding::failed("settings", format!("failed to {}", chain(&error)), error.hint()),
        Ok(true) => match compatibility::of(&version) {
            Ok(()) => Finding::ok("version", format!("Prefect {version}")),
            Err(problem) if problem.is_fatal() => {
                Finding::failed("version", problem.to_string(), compatibility::REMEDY)
            }
            Err(problem) => Finding::warning("version", problem.to_string(), compatibility::REMEDY),
        },
    });
    Ok(())
}

/// Whether sockets get through. A worker without them polls.
async fn events(client: &Client) -> Finding {
    let mut events = EventStream::subscribe(client.clone(), &["prefect.flow-run.Scheduled"], None);
    let lost = match in_time(events.next()).await {
        Ok(Some(Item::Connected | Item::Event(_))) => {
            return Finding::ok("sockets", "events come through a WebSocket");
        }
        Ok(Some(Item::Lost(error))) => format!("failed to {}", chain(&error)),
        Ok(None) => "the subscription ended".to_owned(),
        Err(silence) => silence,
    };
    Finding::warning(
        "sockets",
        format!("{lost}; the worker polls over REST instead: runs and cancellations are seen later"),
        "let proxies before the API pass WebSockets (Upgrade and Connection headers of /api/events/out)",
    )
}
