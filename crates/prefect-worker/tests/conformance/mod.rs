//! What every launcher must do: the behaviours that the contract of `Launcher` promises, each a function over
//! a [`Bench`]. `conformance_suite!` makes tests of all of them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use prefect_worker::launcher::{
    Found, Infrastructure, Job, LaunchError, Launcher, Notes, Outcome, OutputSink, Phase, Piece, Treatment,
};
use secrecy::ExposeSecret;
use tokio::sync::mpsc;

/// Far more than anything here takes, so that a fault ends in a failure.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// A launcher with something to launch.
#[async_trait(?Send)]
pub(crate) trait Bench {
    /// The launcher.
    fn launcher(&self) -> &dyn Launcher;

    /// Another launcher for the same place, as a later worker makes it.
    async fn later(&self) -> Box<dyn Launcher>;

    /// A job of a run of its own, that runs the probe and asks to be removed when it is tidied. All jobs of a
    /// bench are of one work pool.
    fn job(&self, request: &str) -> Job;

    /// A job that cannot be made, and what its error must name.
    fn impossible(&self) -> (Job, &'static str);
}

/// Makes a test of each behaviour.
macro_rules! conformance_suite {
    ($bench:ty) => {
        conformance_suite! { $bench:
            exit_codes_come_back,
            output_comes_in_order_with_its_times,
            output_goes_on_where_it_was_left,
            the_tail_is_the_last_lines,
            the_environment_arrives_and_its_secrets_are_known,
            an_unstarted_attempt_is_replaced,
            what_runs_is_not_started_again,
            another_worker_sees_each_phase_and_the_end,
            a_wait_may_be_dropped,
            a_polite_program_may_end_its_own_way,
            a_stubborn_program_is_killed_after_the_grace,
            without_grace_it_is_killed_at_once,
            what_never_ran_is_discarded,
            what_is_tidied_is_gone,
            what_does_not_exist_is_told_as_such,
            an_impossible_job_leaves_nothing,
            many_at_once_do_not_mix,
        }
    };
    ($bench:ty: $($behaviour:ident),* $(,)?) => {
        mod every_launcher {
            $(
                #[tokio::test]
                async fn $behaviour() {
                    let bench = <$bench>::new().await;
                    crate::conformance::$behaviour(&bench).await;
                    bench.clean_up().await;
                }
            )*
        }
    };
}
pub(crate) use conformance_suite;

pub(crate) struct Silent;

impl Notes for Silent {
    fn note(&self, _: &str) {}
}

pub(crate) async fn create(bench: &dyn Bench, job: &Job) -> Infrastructure {
    bench.launcher().prepare(job, &Silent).await.unwrap();
    bench.launcher().create(job).await.unwrap()
}

pub(crate) async fn start(bench: &dyn Bench, job: &Job) -> Infrastructure {
    let infrastructure = create(bench, job).await;
    bench.launcher().start(&infrastructure).await.unwrap();
    infrastructure
}

/// Waits for the end; gives the output after a moment too.
pub(crate) async fn end(
    launcher: &dyn Launcher,
    infrastructure: &Infrastructure,
    after: Option<Timestamp>,
) -> (Outcome, Vec<Piece>) {
    let (sink, mut received) = mpsc::channel(64);
    let output = OutputSink { pieces: sink, after };
    let wait = tokio::time::timeout(DEADLINE, launcher.wait(infrastructure, Some(output)));
    let collect = async {
        let mut pieces = Vec::new();
        while let Some(piece) = received.recv().await {
            pieces.push(piece);
        }
        pieces
    };
    let (outcome, pieces) = tokio::join!(wait, collect);
    (outcome.expect("it did not end"), pieces)
}

/// Waits for the end of what may not have begun to be waited for; nobody listens.
pub(crate) async fn code(launcher: &dyn Launcher, infrastructure: &Infrastructure) -> i64 {
    let outcome = tokio::time::timeout(DEADLINE, launcher.wait(infrastructure, None)).await;
    match outcome.expect("it did not end") {
        Outcome::Exited { code, out_of_memory: false, error: None, .. } => code,
        other => panic!("no plain exit: {other:?}"),
    }
}

/// Waits until the output has this line.
pub(crate) async fn printed(launcher: &dyn Launcher, infrastructure: &Infrastructure, line: &str) {
    let (sink, mut received) = mpsc::channel::<Piece>(64);
    let line = format!("{line}\n");
    let look = async {
        while let Some(piece) = received.recv().await {
            if piece.bytes == line.as_bytes() {
                return;
            }
        }
        panic!("it ended without {line:?}");
    };
    let wait = launcher.wait(infrastructure, Some(OutputSink { pieces: sink, after: None }));
    let found = async {
        tokio::select! {
            biased;
            () = look => {}
            outcome = wait => panic!("it ended: {outcome:?}"),
        }
    };
    tokio::time::timeout(DEADLINE, found).await.expect("it does not print what it should");
}

fn text(pieces: &[Piece]) -> String {
    let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes.clone()).collect();
    String::from_utf8(bytes).unwrap()
}

async fn found(launcher: &dyn Launcher, job: &Job) -> Vec<Found> {
    let found = launcher.list(&job.attempt.work_pool).await.unwrap();
    found.into_iter().filter(|found| found.attempt.flow_run_id == job.attempt.flow_run_id).collect()
}

pub(crate) async fn exit_codes_come_back(bench: &dyn Bench) {
    for expected in [0, 3, 137] {
        let running = start(bench, &bench.job(&format!("exit {expected}"))).await;
        assert_eq!(code(bench.launcher(), &running).await, expected);
        assert_eq!(code(bench.launcher(), &running).await, expected, "waiting again gives the same answer");
    }
}

pub(crate) async fn output_comes_in_order_with_its_times(bench: &dyn Bench) {
    const LINES: usize = 20_000;
    let began = Timestamp::now();
    let running = start(bench, &bench.job(&format!("lines {LINES}"))).await;
    let (outcome, pieces) = end(bench.launcher(), &running, None).await;
    assert!(matches!(outcome, Outcome::Exited { code: 0, .. }), "{outcome:?}");
    let text = text(&pieces);
    // What comes from standard output and what from standard error may overtake each other.
    for part in 0..2 {
        let numbers = text.lines().map(|line| line.split(' ').nth(1).unwrap().parse::<usize>().unwrap());
        let numbers: Vec<usize> = numbers.filter(|number| number % 2 == part).collect();
        assert_eq!(numbers.len(), LINES / 2);
        assert!(numbers.is_sorted(), "lines have changed places");
    }
    let now = Timestamp::now();
    assert!(pieces.iter().all(|piece| piece.at >= began && piece.at <= now));
}

pub(crate) async fn output_goes_on_where_it_was_left(bench: &dyn Bench) {
    let running = start(bench, &bench.job("lines 100")).await;
    let (_, all) = end(bench.launcher(), &running, None).await;
    let middle = all[all.len() / 2].at;
    let (outcome, rest) = end(bench.launcher(), &running, Some(middle)).await;
    assert!(matches!(outcome, Outcome::Exited { code: 0, .. }), "{outcome:?}");
    let expected: Vec<Piece> = all.into_iter().filter(|piece| piece.at > middle).collect();
    assert!(!expected.is_empty());
    assert_eq!(rest, expected);
    let (_, nothing) = end(bench.later().await.as_ref(), &running, Some(Timestamp::now())).await;
    assert_eq!(nothing, []);
}

pub(crate) async fn the_tail_is_the_last_lines(bench: &dyn Bench) {
    let running = start(bench, &bench.job("print first")).await;
    code(bench.launcher(), &running).await;
    assert_eq!(bench.launcher().tail(&running, 5).await, ["first"]);

    let long = start(bench, &bench.job("lines 5000")).await;
    let (_, pieces) = end(bench.launcher(), &long, None).await;
    let all = text(&pieces);
    let last: Vec<&str> = all.lines().skip(4996).collect();
    assert_eq!(bench.later().await.tail(&long, 4).await, last);
    bench.launcher().tidy(&long).await.unwrap();
    assert!(bench.launcher().tail(&long, 4).await.is_empty());
}

pub(crate) async fn the_environment_arrives_and_its_secrets_are_known(bench: &dyn Bench) {
    let mut job = bench.job("env");
    job.base_env.insert("PREFECT_API_URL".to_owned(), "http://api.example/api".to_owned());
    job.base_env.insert("UNWANTED".to_owned(), "here".to_owned());
    job.env.insert("GREETING".to_owned(), Some("two words".to_owned()));
    job.env.insert("UNWANTED".to_owned(), None);
    let running = start(bench, &job).await;
    let (_, pieces) = end(bench.launcher(), &running, None).await;
    let output = text(&pieces);
    for line in ["PREFECT_API_URL=http://api.example/api", "GREETING=two words"] {
        assert!(output.lines().any(|found| found == line), "{line} is missing in {output}");
    }
    assert!(!output.contains("UNWANTED"), "{output}");

    let mut job = bench.job("stubborn");
    job.base_env.insert("PREFECT_API_AUTH_STRING".to_owned(), "admin:hunter2".to_owned());
    job.env.insert("DSN".to_owned(), Some("postgres://hunter3".to_owned()));
    job.attempt.secret_env.push("DSN".to_owned());
    let running = start(bench, &job).await;
    printed(bench.launcher(), &running, "ready").await;
    let secrets = bench.later().await.secrets(&running, &job.attempt).await;
    let secrets: BTreeSet<&str> = secrets.iter().map(ExposeSecret::expose_secret).collect();
    assert!(secrets.contains("admin:hunter2") && secrets.contains("postgres://hunter3"));
    assert!(!secrets.contains(job.attempt.worker.as_str()));
    bench.launcher().kill(&running, Duration::ZERO).await.unwrap();
    code(bench.launcher(), &running).await;
    bench.launcher().tidy(&running).await.unwrap();
    assert!(bench.launcher().secrets(&running, &job.attempt).await.is_empty());
}

pub(crate) async fn an_unstarted_attempt_is_replaced(bench: &dyn Bench) {
    let job = bench.job("exit 0");
    let first = create(bench, &job).await;
    let other = create(bench, &bench.job("exit 0")).await;
    let again = create(bench, &job).await;
    assert_ne!(first.id, other.id);
    let [found] = found(bench.launcher(), &job).await.try_into().unwrap();
    assert_eq!(found.infrastructure, again, "one run must not have two");
    let all = bench.launcher().list(&job.attempt.work_pool).await.unwrap();
    assert_eq!(all.len(), 2, "another run's is left alone: {all:?}");
}

pub(crate) async fn what_runs_is_not_started_again(bench: &dyn Bench) {
    let running = start(bench, &bench.job("polite")).await;
    bench.launcher().start(&running).await.unwrap();
    printed(bench.launcher(), &running, "ready").await;
    bench.later().await.start(&running).await.unwrap();
    bench.launcher().kill(&running, DEADLINE).await.unwrap();
    let (_, pieces) = end(bench.launcher(), &running, None).await;
    assert_eq!(text(&pieces), "ready\nasked to end\n");
}

pub(crate) async fn another_worker_sees_each_phase_and_the_end(bench: &dyn Bench) {
    let mut job = bench.job("polite");
    job.attempt.run_count = 3;
    job.attempt.secret_env.push("A".to_owned());
    job.attempt.treatment = {
        let mut treatment = Treatment::default();
        treatment.crash_retries = 2;
        treatment
    };
    let created = create(bench, &job).await;
    let later = bench.later().await;
    assert_eq!(later.place(), bench.launcher().place());
    let phase = async || {
        let [found] = found(later.as_ref(), &job).await.try_into().unwrap();
        assert_eq!((&found.attempt, &found.infrastructure), (&job.attempt, &created));
        found.phase
    };
    assert_eq!(phase().await, Phase::Created);
    // Who made it is gone: the later worker starts it, watches it and ends it.
    later.start(&created).await.unwrap();
    assert_eq!(phase().await, Phase::Running);
    printed(later.as_ref(), &created, "ready").await;
    later.kill(&created, DEADLINE).await.unwrap();
    assert_eq!(phase().await, Phase::Ended);
    assert_eq!(code(later.as_ref(), &created).await, 5);
    assert!(later.list("another pool").await.unwrap().is_empty());
}

pub(crate) async fn a_wait_may_be_dropped(bench: &dyn Bench) {
    let running = start(bench, &bench.job("polite")).await;
    printed(bench.launcher(), &running, "ready").await;
    for _ in 0..3 {
        // Polled once, so that it has begun.
        let wait = std::pin::pin!(bench.launcher().wait(&running, None));
        assert!(futures_util::poll!(wait).is_pending());
    }
    let killed = bench.launcher().kill(&running, DEADLINE);
    let (code, killed) = tokio::join!(code(bench.launcher(), &running), killed);
    killed.unwrap();
    assert_eq!(code, 5);
}

pub(crate) async fn a_polite_program_may_end_its_own_way(bench: &dyn Bench) {
    let running = start(bench, &bench.job("polite")).await;
    printed(bench.launcher(), &running, "ready").await;
    bench.launcher().kill(&running, DEADLINE).await.unwrap();
    assert_eq!(code(bench.launcher(), &running).await, 5);
    bench.launcher().kill(&running, DEADLINE).await.expect("what has ended is no error");
}

pub(crate) async fn a_stubborn_program_is_killed_after_the_grace(bench: &dyn Bench) {
    let running = start(bench, &bench.job("stubborn")).await;
    printed(bench.launcher(), &running, "ready").await;
    bench.launcher().kill(&running, Duration::from_secs(1)).await.unwrap();
    let (outcome, pieces) = end(bench.launcher(), &running, None).await;
    assert!(matches!(outcome, Outcome::Exited { code: 137, out_of_memory: false, .. }), "{outcome:?}");
    assert_eq!(text(&pieces), "ready\nasked to end\n", "it was asked first");
}

pub(crate) async fn without_grace_it_is_killed_at_once(bench: &dyn Bench) {
    let running = start(bench, &bench.job("stubborn")).await;
    bench.launcher().kill(&running, Duration::ZERO).await.unwrap();
    assert_eq!(code(bench.launcher(), &running).await, 137);
}

pub(crate) async fn what_never_ran_is_discarded(bench: &dyn Bench) {
    let job = bench.job("exit 0");
    let created = create(bench, &job).await;
    bench.later().await.discard(&created).await.unwrap();
    assert!(found(bench.launcher(), &job).await.is_empty());
    bench.launcher().discard(&created).await.expect("what is gone is no error");
    bench.launcher().start(&created).await.unwrap_err();
}

pub(crate) async fn what_is_tidied_is_gone(bench: &dyn Bench) {
    let job = bench.job("exit 7");
    let running = start(bench, &job).await;
    assert_eq!(code(bench.launcher(), &running).await, 7);
    let [left] = found(bench.launcher(), &job).await.try_into().unwrap();
    assert_eq!(left.phase, Phase::Ended, "until its end is reported it is the only record of it");
    bench.launcher().tidy(&running).await.unwrap();
    assert!(found(bench.launcher(), &job).await.is_empty());
    bench.launcher().tidy(&running).await.expect("what is gone is no error");
}

pub(crate) async fn what_does_not_exist_is_told_as_such(bench: &dyn Bench) {
    let job = bench.job("exit 0");
    let gone = create(bench, &job).await;
    bench.launcher().discard(&gone).await.unwrap();
    let error = bench.launcher().kill(&gone, Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, LaunchError::NotFound { .. }), "{error}");
    let (outcome, pieces) = end(bench.launcher(), &gone, None).await;
    assert_eq!((outcome, pieces), (Outcome::Vanished, Vec::new()));
    assert!(bench.launcher().tail(&gone, 5).await.is_empty());
    assert!(bench.launcher().secrets(&gone, &job.attempt).await.is_empty());
}

pub(crate) async fn an_impossible_job_leaves_nothing(bench: &dyn Bench) {
    let (job, part) = bench.impossible();
    let error = bench.launcher().prepare(&job, &Silent).await.unwrap_err();
    assert!(matches!(error, LaunchError::Configuration { .. }), "{error}");
    assert!(error.to_string().contains(part), "{error}");
    let error = bench.launcher().create(&job).await.unwrap_err();
    assert!(error.to_string().contains(part), "{error}");
    assert!(bench.launcher().list(&job.attempt.work_pool).await.unwrap().is_empty());
}

pub(crate) async fn many_at_once_do_not_mix(bench: &dyn Bench) {
    let runs = (0..20).map(|number| async move {
        let request = if number % 2 == 0 { format!("print {number}") } else { format!("exit {number}") };
        let running = start(bench, &bench.job(&request)).await;
        let (outcome, pieces) = end(bench.launcher(), &running, None).await;
        let Outcome::Exited { code, .. } = outcome else { panic!("{number}: {outcome:?}") };
        let expected = if number % 2 == 0 { (0, format!("{number}\n")) } else { (number, String::new()) };
        assert_eq!((code, text(&pieces)), expected);
        bench.launcher().tidy(&running).await.unwrap();
    });
    futures_util::future::join_all(runs).await;
    let pool = bench.job("exit 0").attempt.work_pool;
    assert!(bench.launcher().list(&pool).await.unwrap().is_empty());
}
