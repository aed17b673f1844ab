//! Figures about the worker, in the form of `OpenMetrics`. What happens is counted here; what *is* (runs in
//! flight, slots, connections) is read from the [`StatusBoard`] at each scrape.
//!
//! Every run that the worker gets, by a claim or by adoption, ends with exactly one [`EndCause`]:
//! accepted claims + adoptions = ends + runs in flight that are past claiming.

mod gauges;

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::launcher::Outcome;
use crate::status::StatusBoard;

const PREFIX: &str = "prefect_worker";
/// Upper bounds of latencies, in seconds: a claim takes tens of milliseconds, a launch may wait for an image.
const LATENCY: [f64; 15] =
    [0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

type Labels<const N: usize> = [(&'static str, String); N];
type Histograms = Family<Labels<1>, Histogram, Latency>;

#[derive(Debug, Clone, Copy)]
struct Latency;

impl MetricConstructor<Histogram> for Latency {
    fn new_metric(&self) -> Histogram {
        Histogram::new(LATENCY)
    }
}

/// How a run left the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// Its process ended with 0, and it had reported its result.
    Exited,
    /// Its process ended with 0 and without a result.
    Unreported,
    /// Its process ended with another code.
    Failed,
    /// The kernel killed its process because memory was short.
    OutOfMemory,
    /// A signal ended its process.
    Signal,
    /// Its process did nothing within its deadline, and was ended for that.
    Stuck,
    /// Its infrastructure disappeared.
    Vanished,
    /// Its infrastructure could not be made or started.
    LaunchFailed,
    /// Somebody wanted it cancelled, and it was.
    Cancelled,
    /// It was given back to the queue before it started.
    HandedBack,
    /// Its infrastructure goes on for the next worker.
    Detached,
    /// Others have taken it, or deleted it.
    Taken,
}

impl EndCause {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Exited,
        Self::Unreported,
        Self::Failed,
        Self::OutOfMemory,
        Self::Signal,
        Self::Stuck,
        Self::Vanished,
        Self::LaunchFailed,
        Self::Cancelled,
        Self::HandedBack,
        Self::Detached,
        Self::Taken,
    ];

    /// The value of the label `cause`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Unreported => "unreported",
            Self::Failed => "failed",
            Self::OutOfMemory => "out_of_memory",
            Self::Signal => "signal",
            Self::Stuck => "stuck",
            Self::Vanished => "vanished",
            Self::LaunchFailed => "launch_failed",
            Self::Cancelled => "cancelled",
            Self::HandedBack => "handed_back",
            Self::Detached => "detached",
            Self::Taken => "taken",
        }
    }

    /// What the end of infrastructure means, if nothing else is known.
    pub const fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Exited { out_of_memory: true, .. } => Self::OutOfMemory,
            Outcome::Exited { code: 0, .. } => Self::Exited,
            Outcome::Exited { code: 129..=192 | -64..=-1, .. } => Self::Signal,
            Outcome::Exited { .. } => Self::Failed,
            Outcome::Vanished => Self::Vanished,
        }
    }
}

/// The figures of one worker. Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    status: StatusBoard,
    registry: Arc<Registry>,
    claims: Family<Labels<2>, Counter>,
    adoptions: Family<Labels<1>, Counter>,
    reconciliations: Family<Labels<1>, Counter>,
    ends: Family<Labels<2>, Counter>,
    polls: Family<Labels<2>, Counter>,
    api_errors: Family<Labels<1>, Counter>,
    launch_failures: Family<Labels<1>, Counter>,
    claim_latency: Histograms,
    start_latency: Histograms,
    preparation: Histograms,
}

impl Metrics {
    /// The figures of the worker whose present is on the board.
    pub fn new(status: StatusBoard) -> Self {
        let labels = [("worker".into(), status.worker().to_owned().into())];
        let mut registry = Registry::with_prefix_and_labels(PREFIX, labels.into_iter());
        let mut metrics = Self {
            registry: Arc::default(),
            claims: Family::default(),
            adoptions: Family::default(),
            reconciliations: Family::default(),
            ends: Family::default(),
            polls: Family::default(),
            api_errors: Family::default(),
            launch_failures: Family::default(),
            claim_latency: Family::new_with_constructor(Latency),
            start_latency: Family::new_with_constructor(Latency),
            preparation: Family::new_with_constructor(Latency),
            status,
        };
        metrics.register(&mut registry);
        registry.register_collector(Box::new(gauges::Gauges::new(metrics.status.clone())));
        metrics.registry = Arc::new(registry);
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "claims",
            "Runs that were proposed to be ours, by outcome: accepted or lost to others",
            self.claims.clone(),
        );
        registry.register(
            "adoptions",
            "Runs whose infrastructure an earlier worker had left",
            self.adoptions.clone(),
        );
        registry.register(
            "reconciliations",
            "Comparisons of infrastructure, runs and server that were made",
            self.reconciliations.clone(),
        );
        registry.register("ends", "Runs that left the worker, by cause", self.ends.clone());
        registry.register(
            "polls",
            "Polls for scheduled runs, by outcome: succeeded or failed",
            self.polls.clone(),
        );
        registry.register(
            "api_errors",
            "Calls of the Prefect API that failed after their retries, by kind",
            self.api_errors.clone(),
        );
        registry.register("launch_failures", "Launches that failed, by kind", self.launch_failures.clone());
        registry.register_with_unit(
            "claim_latency",
            "Time from the moment a run could be claimed until it was ours",
            Unit::Seconds,
            self.claim_latency.clone(),
        );
        registry.register_with_unit(
            "start_latency",
            "Time from the claim of a run until its infrastructure was started",
            Unit::Seconds,
            self.start_latency.clone(),
        );
        registry.register_with_unit(
            "preparation",
            "Time that preparations of launches took; most of it goes into pulls of images",
            Unit::Seconds,
            self.preparation.clone(),
        );
    }

    /// A run is ours, `latency` after it could have been claimed: after its creation or, for a run that is
    /// due later, after the moment from which it may be claimed.
    pub fn claimed(&self, pool: &str, latency: Duration) {
        self.claims.get_or_create(&labels([("pool", pool), ("outcome", "accepted")])).inc();
        self.claim_latency.get_or_create(&labels([("pool", pool)])).observe(latency.as_secs_f64());
    }

    /// A run that we wanted went to others, or is not to be run.
    pub fn claim_lost(&self, pool: &str) {
        self.claims.get_or_create(&labels([("pool", pool), ("outcome", "lost")])).inc();
    }

    /// A run's infrastructure was started, `latency` after the claim.
    pub fn started(&self, pool: &str, latency: Duration) {
        self.start_latency.get_or_create(&labels([("pool", pool)])).observe(latency.as_secs_f64());
    }

    /// A run that an earlier worker left is ours now.
    pub fn adopted(&self, pool: &str) {
        self.adoptions.get_or_create(&labels([("pool", pool)])).inc();
    }

    /// A claimed or adopted run left the worker; exactly one call for each.
    pub fn ended(&self, pool: &str, cause: EndCause) {
        self.ends.get_or_create(&labels([("pool", pool), ("cause", cause.name())])).inc();
    }

    /// What is there was compared with what the server says.
    pub fn reconciled(&self, pool: &str) {
        self.reconciliations.get_or_create(&labels([("pool", pool)])).inc();
    }

    /// The server was asked for runs.
    pub fn polled(&self, pool: &str, succeeded: bool) {
        self.polls.get_or_create(&labels([("pool", pool), ("outcome", outcome(succeeded))])).inc();
    }

    /// A launch was prepared, within this time.
    pub fn prepared(&self, pool: &str, took: Duration) {
        self.preparation.get_or_create(&labels([("pool", pool)])).observe(took.as_secs_f64());
    }

    /// A call of the Prefect API failed after its retries.
    pub fn api_error(&self, error: &prefect_client::Error) {
        self.api_errors.get_or_create(&labels([("kind", api_error_kind(error))])).inc();
    }

    /// A launch failed; `kind` is the word before the text of its crash message.
    pub fn launch_failed(&self, kind: &str) {
        self.launch_failures.get_or_create(&labels([("kind", kind)])).inc();
    }

    /// All figures as `OpenMetrics` text.
    ///
    /// # Errors
    /// None that is known: the text is written to memory.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        self.show_zeros();
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// What never happened is 0 and not absent: rules of alerts can only compare what is there.
    fn show_zeros(&self) {
        for pool in self.status.snapshot().pools {
            let pool = pool.name.as_str();
            for outcome in ["accepted", "lost"] {
                drop(self.claims.get_or_create(&labels([("pool", pool), ("outcome", outcome)])));
            }
            for succeeded in [true, false] {
                drop(self.polls.get_or_create(&labels([("pool", pool), ("outcome", outcome(succeeded))])));
            }
            for cause in EndCause::ALL {
                drop(self.ends.get_or_create(&labels([("pool", pool), ("cause", cause.name())])));
            }
            drop(self.adoptions.get_or_create(&labels([("pool", pool)])));
            drop(self.reconciliations.get_or_create(&labels([("pool", pool)])));
            drop(self.claim_latency.get_or_create(&labels([("pool", pool)])));
            drop(self.start_latency.get_or_create(&labels([("pool", pool)])));
            drop(self.preparation.get_or_create(&labels([("pool", pool)])));
        }
        for kind in API_ERROR_KINDS {
            drop(self.api_errors.get_or_create(&labels([("kind", kind)])));
        }
        drop(self.launch_failures.get_or_create(&labels([("kind", "EngineUnreachable")])));
    }
}

fn labels<const N: usize>(pairs: [(&'static str, &str); N]) -> Labels<N> {
    pairs.map(|(name, value)| (name, value.to_owned()))
}

const fn outcome(succeeded: bool) -> &'static str {
    if succeeded { "succeeded" } else { "failed" }
}

const API_ERROR_KINDS: [&str; 7] =
    ["connection", "refused", "not_found", "throttled", "server", "request", "malformed"];

const fn api_error_kind(error: &prefect_client::Error) -> &'static str {
    use prefect_client::Error;
    match error {
        Error::Unreachable { .. } | Error::Transport { .. } => "connection",
        Error::Status { status: 401 | 403, .. } => "refused",
        Error::Status { status: 404, .. } => "not_found",
        Error::Status { status: 429, .. } => "throttled",
        Error::Status { status: 500..=599, .. } => "server",
        Error::Status { .. } => "request",
        _ => "malformed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launcher::Memory;

    #[test]
    fn causes_follow_from_exits() {
        let exited = |code, out_of_memory| {
            EndCause::of(&Outcome::Exited { code, out_of_memory, error: None, memory: Memory::default() })
        };
        assert_eq!(exited(0, false), EndCause::Exited);
        assert_eq!(exited(1, false), EndCause::Failed);
        assert_eq!(exited(127, false), EndCause::Failed);
        assert_eq!(exited(137, false), EndCause::Signal);
        assert_eq!(exited(-9, false), EndCause::Signal);
        assert_eq!(exited(137, true), EndCause::OutOfMemory);
        assert_eq!(EndCause::of(&Outcome::Vanished), EndCause::Vanished);
    }

    #[tokio::test(start_paused = true)]
    async fn the_text_counts_what_happened_and_shows_what_is() {
        let status = StatusBoard::new("w\"1", "http://h/api");
        let pool = status.pool("p", Duration::from_secs(10));
        let metrics = Metrics::new(status.clone());
        let run = pool.run(prefect_api::id::FlowRunId::generate(), "crow", crate::status::RunPhase::Running);
        pool.set_limit(Some(4));
        metrics.claimed("p", Duration::from_millis(60));
        metrics.claim_lost("p");
        metrics.ended("p", EndCause::OutOfMemory);
        let text = metrics.text().unwrap();
        for line in [
            "prefect_worker_claims_total{worker=\"w\\\"1\",pool=\"p\",outcome=\"accepted\"} 1",
            "prefect_worker_claims_total{worker=\"w\\\"1\",pool=\"p\",outcome=\"lost\"} 1",
            "prefect_worker_ends_total{worker=\"w\\\"1\",pool=\"p\",cause=\"out_of_memory\"} 1",
            "prefect_worker_ends_total{worker=\"w\\\"1\",pool=\"p\",cause=\"stuck\"} 0",
            "prefect_worker_claim_latency_seconds_bucket{worker=\"w\\\"1\",le=\"0.05\",pool=\"p\"} 0",
            "prefect_worker_claim_latency_seconds_bucket{worker=\"w\\\"1\",le=\"0.075\",pool=\"p\"} 1",
            "prefect_worker_runs{worker=\"w\\\"1\",pool=\"p\",phase=\"running\"} 1",
            "prefect_worker_runs{worker=\"w\\\"1\",pool=\"p\",phase=\"ending\"} 0",
            "prefect_worker_slots_limit{worker=\"w\\\"1\",pool=\"p\"} 4.0",
            "prefect_worker_slots_used{worker=\"w\\\"1\",pool=\"p\"} 1.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        drop(run);
        assert!(metrics.text().unwrap().contains("slots_used{worker=\"w\\\"1\",pool=\"p\"} 0"));
    }

    #[test]
    fn the_guide_describes_every_figure() {
        let status = StatusBoard::new("w", "http://h/api");
        let pool = status.pool("p", Duration::from_secs(10));
        pool.set_limit(Some(1));
        let text = Metrics::new(status).text().unwrap();
        let guide = include_str!("../../../../docs/guides/operations.md");
        let word = |line: &str, mark: &str| -> Option<(String, String)> {
            let (name, rest) = line.strip_prefix(mark)?.split_once(' ')?;
            Some((name.strip_prefix("prefect_worker_")?.to_owned(), rest.trim_end_matches('.').to_owned()))
        };
        let kinds: Vec<_> = text.lines().filter_map(|line| word(line, "# TYPE ")).collect();
        let helps: Vec<_> = text.lines().filter_map(|line| word(line, "# HELP ")).collect();
        assert!(kinds.len() > 20, "{text}");
        for ((name, kind), (_, help)) in kinds.iter().zip(&helps) {
            let row = guide.lines().find(|line| line.starts_with(&format!("| `{name}` | {kind} |")));
            let row = row.unwrap_or_else(|| panic!("the guide has no row of the {kind} {name}"));
            assert!(row.ends_with(&format!("| {help} |")), "{row}\nshould say: {help}");
        }
        for cause in EndCause::ALL {
            assert!(guide.contains(&format!("\n| `{}` | ", cause.name())), "{cause:?}");
        }
        let rows = guide.lines().filter(|line| line.starts_with("| `") && line.matches(" | ").count() == 3);
        assert_eq!(rows.count(), kinds.len(), "the guide has rows of figures that do not exist");
    }
}
