//! Pulls: with progress, patience for registries that stumble, and one transfer for all who want the same.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::CreateImageOptions;
use futures_util::future::{BoxFuture, FutureExt as _, Shared, WeakShared};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::super::{LaunchError, Notes, Refusal};
use super::credentials::Login;
use super::engine::{Engine, failure, is_outage};
use super::progress::Progress;
use super::{image, refusal};

/// Time between two lines about the progress of a pull.
const PROGRESS_PERIOD: Duration = Duration::from_secs(10);
/// How often a pull is tried, if there is hope.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// Lines that a slow reader may be behind before it misses some.
const LINES: usize = 64;

/// What is to be pulled. Equal requests are served by one transfer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    /// The image reference.
    pub(super) image: String,
    /// `os[/architecture[/variant]]`; the engine's own if empty.
    pub(super) platform: String,
    pub(super) login: Option<Login>,
    /// Try again when the registry stumbles.
    pub(super) patient: bool,
}

/// A pull that succeeded.
#[derive(Debug, Clone)]
pub(super) struct Pulled {
    /// What the reference stands for, if the engine said so.
    pub(super) digest: Option<String>,
    /// The engine had it already.
    pub(super) up_to_date: bool,
    /// How long it took.
    pub(super) duration: Duration,
}

/// Why a pull failed.
#[derive(Debug, Clone)]
pub(super) struct PullError {
    message: String,
    cause: Cause,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Cause {
    /// The registry does not give it: no use in asking again.
    Refused,
    /// It may work later; the registry may have said when.
    Passing(Option<Duration>),
    /// The engine itself went away.
    Engine,
}

impl PullError {
    /// As the launcher's error.
    pub(super) fn into_launch_error(self, engine: &Engine, image: &str) -> LaunchError {
        match self.cause {
            Cause::Engine => engine.address.unreachable(self.message),
            Cause::Refused | Cause::Passing(_) => match refusal::of(&self.message) {
                Some(refusal @ (Refusal::DiskFull | Refusal::WrongArchitecture)) => {
                    LaunchError::Refused { action: "pull the image", refusal, message: self.message }
                }
                _ => LaunchError::Image {
                    image: image.to_owned(),
                    message: format!("Docker pull failed: {}", self.message),
                },
            },
        }
    }
}

type Transfer = Shared<BoxFuture<'static, Result<Pulled, PullError>>>;

/// The pulls that are under way on one engine.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    under_way: Mutex<Vec<UnderWay>>,
}

/// A pull that others may join. It lives as long as somebody waits for it.
#[derive(Debug)]
struct UnderWay {
    request: Request,
    transfer: WeakShared<BoxFuture<'static, Result<Pulled, PullError>>>,
    lines: broadcast::Sender<Arc<str>>,
}

impl Pulls {
    /// Pulls an image, and notes how that goes; joins an equal pull that is under way. When all who wait for a
    /// pull are gone, it is cancelled.
    pub(super) async fn pull(
        &self,
        engine: &Engine,
        request: Request,
        notes: &dyn Notes,
    ) -> Result<Pulled, PullError> {
        let image = request.image.clone();
        let (mut transfer, mut lines, joined) = self.join(engine, request);
        notes.note(&if joined {
            format!("Pulling image {image}: waiting for a pull of it that is under way")
        } else {
            format!("Pulling image {image}")
        });
        loop {
            tokio::select! {
                biased;
                line = lines.recv() => match line {
                    Ok(line) => notes.note(&line),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    // Only the end of the transfer ends its lines.
                    Err(broadcast::error::RecvError::Closed) => return transfer.await,
                },
                result = &mut transfer => {
                    while let Ok(line) = lines.try_recv() {
                        notes.note(&line);
                    }
                    return result;
                }
            }
        }
    }

    /// The transfer that serves a request, its lines from now on, and whether it was there before.
    fn join(&self, engine: &Engine, request: Request) -> (Transfer, broadcast::Receiver<Arc<str>>, bool) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|pull| pull.transfer.upgrade().is_some_and(|transfer| transfer.peek().is_none()));
        for pull in under_way.iter().filter(|pull| pull.request == request) {
            if let Some(transfer) = pull.transfer.upgrade() {
                return (transfer, pull.lines.subscribe(), true);
            }
        }
        let (sender, lines) = broadcast::channel(LINES);
        let docker = engine.docker.clone().with_timeout(engine.address.pull_silence);
        let puller = Puller {
            docker,
            request: request.clone(),
            silence: engine.address.pull_silence,
            lines: sender.clone(),
        };
        let transfer = puller.run().boxed().shared();
        if let Some(weak) = transfer.downgrade() {
            under_way.push(UnderWay { request, transfer: weak, lines: sender });
        }
        (transfer, lines, false)
    }
}

/// Does one transfer, with all its attempts.
struct Puller {
    docker: Docker,
    request: Request,
    silence: Duration,
    lines: broadcast::Sender<Arc<str>>,
}

impl Puller {
    async fn run(self) -> Result<Pulled, PullError> {
        let began = Instant::now();
        let attempts = if self.request.patient { ATTEMPTS } else { 1 };
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let mut progress = Progress::default();
            let error = match self.attempt(&mut progress).await {
                Ok(()) => {
                    let Progress { digest, up_to_date, .. } = progress;
                    return Ok(Pulled { digest, up_to_date, duration: began.elapsed() });
                }
                Err(error) => error,
            };
            let Cause::Passing(wish) = error.cause else { return Err(error) };
            if attempt == attempts {
                return Err(error);
            }
            let wait = wish.unwrap_or(pause).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            self.say(&format!(
                "attempt {attempt} of {attempts} failed, trying again in {} s: {}",
                wait.as_secs(),
                error.message
            ));
            tokio::time::sleep(wait).await;
            pause *= 2;
            attempt += 1;
        }
    }

    async fn attempt(&self, progress: &mut Progress) -> Result<(), PullError> {
        let (repository, tag) = image::split(&self.request.image);
        let options = CreateImageOptions {
            from_image: Some(repository.to_owned()),
            tag: Some(tag.unwrap_or("latest").to_owned()),
            platform: self.request.platform.clone(),
            ..Default::default()
        };
        let login = self.request.login.as_ref().map(Login::header);
        let messages = self.docker.create_image(Some(options), None, login);
        self.follow(std::pin::pin!(messages), progress).await
    }

    async fn follow(
        &self,
        mut messages: impl Stream<Item = Result<bollard::models::CreateImageInfo, Error>> + Unpin,
        progress: &mut Progress,
    ) -> Result<(), PullError> {
        let mut told = Instant::now();
        loop {
            match tokio::time::timeout(self.silence, messages.next()).await {
                // An error may come after a successful start, as one of the messages.
                Ok(Some(Ok(message))) => progress.take(&message),
                Ok(Some(Err(Error::RequestTimeoutError))) | Err(_) => return Err(self.silent(progress)),
                Ok(Some(Err(error))) => return Err(classified(&error)),
                Ok(None) => return Ok(()),
            }
            if told.elapsed() >= PROGRESS_PERIOD {
                told = Instant::now();
                self.say(&progress.line());
            }
        }
    }

    fn silent(&self, progress: &Progress) -> PullError {
        let message = format!("no progress for {} s, at {}", self.silence.as_secs(), progress.line());
        PullError { message, cause: Cause::Passing(None) }
    }

    fn say(&self, text: &str) {
        // Without receivers nobody wants to know.
        drop(self.lines.send(Arc::from(format!("Pulling image {}: {text}", self.request.image))));
    }
}

fn classified(error: &Error) -> PullError {
    let message = failure(error);
    let cause = match error {
        error if is_outage(error) => Cause::Engine,
        Error::DockerResponseServerError { status_code: 400..=499, .. } if !is_busy(&message) => {
            Cause::Refused
        }
        _ if is_passing(&message) => Cause::Passing(wish(&message)),
        _ => Cause::Refused,
    };
    PullError { message, cause }
}

fn is_busy(message: &str) -> bool {
    let text = message.to_ascii_lowercase();
    text.contains("toomanyrequests") || text.contains("too many requests") || text.contains("rate exceeded")
}

/// Whether a registry only stumbled, by the words of the engine.
fn is_passing(message: &str) -> bool {
    const SIGNS: [&str; 21] = [
        "unexpected http status: 5",
        "unexpected http status code: 5",
        "unexpected status code 5",
        "unexpected status from",
        "internal server error",
        "bad gateway",
        "service unavailable",
        "gateway timeout",
        "connection reset",
        "connection refused",
        "broken pipe",
        "eof",
        "i/o timeout",
        "tls handshake timeout",
        "timeout exceeded",
        "context deadline exceeded",
        "request canceled",
        "temporary failure in name resolution",
        "network is unreachable",
        "no route to host",
        "filesystem layer verification failed",
    ];
    let text = message.to_ascii_lowercase();
    // Words that the refusals of registries and proxies share with the signs above.
    let refused = ["unauthorized", "denied", "forbidden", "manifest unknown", "not found"];
    is_busy(message)
        || (SIGNS.iter().any(|sign| text.contains(sign)) && !refused.iter().any(|word| text.contains(word)))
}

/// How long a registry wants to be left alone, where the engine passes that on: `retry-after: 1.5s`.
fn wish(message: &str) -> Option<Duration> {
    let text = message.to_ascii_lowercase();
    let (_, rest) = text.split_once("retry-after:").or_else(|| text.split_once("retry after"))?;
    let rest = rest.trim_start();
    let number = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
    let unit = rest.strip_prefix(number)?.trim_start();
    let scale = match unit {
        unit if unit.starts_with("ms") => 1e-3,
        unit if unit.starts_with('µ') || unit.starts_with("us") => 1e-6,
        unit if unit.starts_with("ns") => 1e-9,
        unit if unit.starts_with('m') => 60.0,
        unit if unit.starts_with('h') => 3600.0,
        _ => 1.0,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_that_stumble_are_told_from_those_that_refuse() {
        for (status, message, passes) in [
            (500, "toomanyrequests: You have reached your pull rate limit.", true),
            (429, "toomanyrequests: retry-after: 90s", true),
            (500, "received unexpected HTTP status: 503 Service Unavailable", true),
            (500, "Get \"https://r/v2/\": read tcp 1:2->3:4: read: connection reset by peer", true),
            (500, "Get \"https://r/v2/\": net/http: TLS handshake timeout", true),
            (500, "Get \"https://r/v2/\": dial tcp: lookup r: no such host", false),
            (404, "manifest for r/a:1 not found: manifest unknown: manifest unknown", false),
            (404, "pull access denied for a, repository does not exist or may require 'docker login'", false),
            (500, "unauthorized: authentication required", false),
            (500, "Head \"https://r/v2/a/manifests/1\": no basic auth credentials", false),
            (500, "Get \"https://r/v2/\": x509: certificate signed by unknown authority", false),
            (400, "invalid reference format", false),
        ] {
            let error = Error::DockerResponseServerError { status_code: status, message: message.to_owned() };
            assert_eq!(classified(&error).cause != Cause::Refused, passes, "{message}");
        }
        let away = Error::IOError { err: std::io::ErrorKind::ConnectionReset.into() };
        assert_eq!(classified(&away).cause, Cause::Engine);
    }

    #[test]
    fn what_a_registry_wishes_is_read() {
        for (message, wish_ms) in [
            ("toomanyrequests: retry-after: 90s, allowed: 1/minute", Some(90_000)),
            ("toomanyrequests: retry-after: 629.096µs, allowed: 44000/minute", Some(0)),
            ("toomanyrequests: Retry-After: 1.5s", Some(1_500)),
            ("retry after 2m", Some(120_000)),
            ("toomanyrequests: slow down", None),
            ("retry-after: soon", None),
            ("retry-after: 99999999999999999999999h", None),
        ] {
            assert_eq!(wish(message).map(|wish| wish.as_millis()), wish_ms, "{message}");
        }
    }
}
