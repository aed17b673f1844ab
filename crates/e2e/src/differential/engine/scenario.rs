//! The scenarios: flows that exist in Python and in Rust, and what is done with a run of each.

/// What is done with a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Play {
    /// It is executed to its end.
    Once,
    /// It is executed, tried again from the UI, and executed again.
    TriedAgain,
    /// It is cancelled before it is executed.
    CancelledBefore,
    /// It is cancelled while its flow is at work.
    Cancelled,
    /// It is resumed while its process waits.
    Resumed,
    /// The same, with this filled into the form.
    ResumedWith(&'static str),
    /// It is resumed after its process has ended, and executed again.
    ResumedLater,
    /// The run of a deployment that it makes is executed too.
    Calling,
    /// Its processes are killed while its flow is at work.
    Killed,
}

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// The name, unique among all; also that of the run.
    pub name: &'static str,
    /// The file of the Python flow.
    pub file: &'static str,
    /// The flow's name; the Python function's is the same with underscores.
    pub flow: &'static str,
    /// The run's parameters, as JSON.
    pub parameters: &'static str,
    /// The run's tags.
    pub tags: &'static [&'static str],
    /// What is done with the run.
    pub play: Play,
    /// The concurrency limits that it uses. They are empty afterwards.
    pub limits: &'static [&'static str],
    /// Whether it is one of the few that stand for all where time is short.
    pub quick: bool,
}

impl crate::differential::Case for Scenario {
    fn name(&self) -> &str {
        self.name
    }

    fn is_quick(&self) -> bool {
        self.quick
    }
}

impl Scenario {
    const fn new(file: &'static str, name: &'static str) -> Self {
        Self {
            name,
            file,
            flow: name,
            parameters: "{}",
            tags: &[],
            play: Play::Once,
            limits: &[],
            quick: false,
        }
    }

    const fn of(self, flow: &'static str) -> Self {
        Self { flow, ..self }
    }

    const fn parameters(self, parameters: &'static str) -> Self {
        Self { parameters, ..self }
    }

    const fn tags(self, tags: &'static [&'static str]) -> Self {
        Self { tags, ..self }
    }

    const fn play(self, play: Play) -> Self {
        Self { play, ..self }
    }

    const fn limits(self, limits: &'static [&'static str]) -> Self {
        Self { limits, ..self }
    }

    const fn quick(self) -> Self {
        Self { quick: true, ..self }
    }
}

const fn tasks(name: &'static str) -> Scenario {
    Scenario::new("tasks.py", name)
}

const fn runs(name: &'static str) -> Scenario {
    Scenario::new("runs.py", name)
}

const fn limits(name: &'static str) -> Scenario {
    Scenario::new("limits.py", name)
}

const fn results(name: &'static str) -> Scenario {
    Scenario::new("results.py", name)
}

const fn told(name: &'static str) -> Scenario {
    Scenario::new("told.py", name)
}

/// All of them.
pub const ALL: &[Scenario] = &[
    tasks("plain"),
    tasks("parameters").parameters(r#"{"text": "a b", "sizes": [3, 4]}"#).tags(&["b", "a"]).quick(),
    tasks("concurrent"),
    tasks("mapped").quick(),
    tasks("dependencies").quick(),
    tasks("nested-tasks"),
    tasks("task-retries"),
    tasks("task-retries-delayed").quick(),
    tasks("task-failure"),
    tasks("task-failure-handled"),
    tasks("not-ready"),
    tasks("task-timeout"),
    runs("flow-failure"),
    runs("flow-retries").quick(),
    runs("ui-retry").play(Play::TriedAgain),
    runs("subflows").quick(),
    runs("subflow-failure"),
    runs("run-deployment").play(Play::Calling),
    runs("flow-timeout"),
    runs("cancelled-before-start").of("endless").play(Play::CancelledBefore),
    runs("cancelled").of("endless").play(Play::Cancelled),
    runs("cancelled-in-task").of("endless-task").play(Play::Cancelled),
    runs("pause").play(Play::Resumed),
    runs("pause-for-input").play(Play::ResumedWith(r#"{"text": "yes"}"#)),
    runs("cancelled-before-retry").of("endless-retry").play(Play::Cancelled),
    runs("suspend").play(Play::ResumedLater),
    runs("killed").of("endless").play(Play::Killed),
    runs("hooks").quick(),
    runs("hooks-of-failures").of("hooks").parameters(r#"{"fails": true}"#),
    limits("tag-limit").limits(&["tag:scarce"]).quick(),
    limits("global-limit").limits(&["tape-drives"]),
    limits("missing-limit"),
    limits("rate-limit"),
    results("persisted-results"),
    results("cached-task").quick(),
    told("artifacts").quick(),
    told("logs").quick(),
    told("records"),
    told("events").tags(&["b", "a"]),
    // The last: it keeps the server busy.
    tasks("mapped-many").of("mapped").parameters(r#"{"count": 1000}"#),
];
