//! The client: one connection pool, one identity, the retries of the protocol.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use crate::csrf::{Again, Csrf};
use crate::error::{Error, lost_behind_a_gateway};
use crate::proxy::Proxies;
use crate::settings::Settings;
use crate::{retry, tls};

/// The release of Prefect whose client we stand in for. The server reads it from the `User-Agent`: an unknown
/// one loses its deployment concurrency lease (contract §1.1).
pub const PREFECT_VERSION: &str = "3.7.2";

/// The version of the API that we speak.
pub const API_VERSION: &str = "0.8.4";

/// The header that carries the CSRF token of a write.
const CSRF_TOKEN: &str = "prefect-csrf-token";

/// Answers are small; whatever is larger than this is not the API.
const LARGEST_ANSWER: usize = 64 * 1024 * 1024;

/// A server under maintenance does not use up our tries, for at most so long.
const MAINTENANCE: Duration = Duration::from_mins(15);

/// A client of one Prefect API. Cheap to clone; clones share connections, identity and CSRF token.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    observer: Option<Observer>,
}

/// Is told every call that failed after its retries.
type Observer = Arc<dyn Fn(&Error) + Send + Sync>;

struct Shared {
    http: reqwest::Client,
    api_url: Url,
    tls: Arc<rustls::ClientConfig>,
    proxies: Proxies,
    headers: HeaderMap,
    auth_string: Option<SecretString>,
    api_key: Option<SecretString>,
    policy: retry::Policy,
    csrf: Mutex<Csrf>,
    reached: AtomicBool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("api_url", &self.shared.api_url.as_str()).finish_non_exhaustive()
    }
}

/// A call below the API's root.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    method: Method,
    path: Vec<&'a str>,
    query: Vec<(&'a str, &'a str)>,
    body: Option<Result<Vec<u8>, serde_json::Error>>,
    /// It must not take effect twice.
    once: bool,
}

impl<'a> Call<'a> {
    /// A call of `path`, whose segments are separated by `/` in `template`; each `{}` stands for the next of
    /// `arguments`, which is encoded: a name never becomes two segments.
    pub(crate) fn new(method: Method, template: &'a str, arguments: &[&'a str]) -> Self {
        let mut arguments = arguments.iter();
        let path = template
            .split('/')
            .map(|segment| if segment == "{}" { arguments.next().copied().unwrap_or("") } else { segment })
            .collect();
        Self { method, path, query: Vec::new(), body: None, once: false }
    }

    pub(crate) fn query(mut self, name: &'a str, value: &'a str) -> Self {
        self.query.push((name, value));
        self
    }

    pub(crate) fn json<T: Serialize + ?Sized>(mut self, body: &T) -> Self {
        self.body = Some(serde_json::to_vec(body));
        self
    }

    /// With a body that is JSON already.
    pub(crate) fn text(mut self, body: String) -> Self {
        self.body = Some(Ok(body.into_bytes()));
        self
    }

    /// The same, not repeated when it may have taken effect: the caller has to look first.
    pub(crate) fn once(mut self) -> Self {
        self.once = true;
        self
    }

    fn display_path(&self) -> String {
        format!("/{}", self.path.join("/"))
    }

    /// The URL below `root`. URLs resolve `.` and `..` even as segments, hence these become names that no
    /// record has.
    fn url(&self, root: &Url) -> Url {
        let mut url = root.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty();
            for segment in &self.path {
                match *segment {
                    "." => segments.push("%2E"),
                    ".." => segments.push("%2E%2E"),
                    other => segments.push(other),
                };
            }
        }
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        url
    }
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Client {
    /// A client of the API that the settings name.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let setup = |problem: String| Error::Setup { problem };
        let from_settings = |error: crate::settings::Error| setup(error.to_string());
        let insecure = settings.flag("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", false).map_err(from_settings)?;
        let ca = settings.get("PREFECT_API_SSL_CERT_FILE").map(std::path::Path::new);
        let tls = tls::config(ca, insecure)?;
        let timeout =
            settings.seconds("PREFECT_API_REQUEST_TIMEOUT", Duration::from_mins(1)).map_err(from_settings)?;
        let proxy = settings.proxies().for_http().map_err(|error| setup(error.without_url().to_string()))?;
        // The proxies are those of the settings, which sockets use too; reqwest is not to look for its own.
        let http = reqwest::Client::builder().no_proxy();
        let http = match proxy {
            Some(proxy) => http.proxy(proxy),
            None => http,
        };
        let http = http
            .tls_backend_preconfigured(tls.as_ref().clone())
            .timeout(timeout)
            .connect_timeout(timeout.min(Duration::from_secs(30)))
            // The server closes idle connections after 5 s; a connection that it is just closing costs a retry.
            .pool_idle_timeout(Duration::from_secs(4))
            .redirect(redirects())
            .build()
            .map_err(|error| setup(error.to_string()))?;
        let csrf = settings.flag("PREFECT_CLIENT_CSRF_SUPPORT_ENABLED", true).map_err(from_settings)?;
        let policy = retry::Policy {
            max_retries: settings.number("PREFECT_CLIENT_MAX_RETRIES", 5).map_err(from_settings)?,
            extra_codes: extra_codes(settings)?,
            jitter: settings
                .number("PREFECT_CLIENT_RETRY_JITTER_FACTOR", retry::JITTER)
                .map_err(from_settings)?,
        };
        let auth_string = settings.secret("PREFECT_API_AUTH_STRING");
        let api_key = settings.secret("PREFECT_API_KEY");
        Ok(Self {
            observer: None,
            shared: Arc::new(Shared {
                http,
                api_url: settings.api_url().clone(),
                tls,
                proxies: settings.proxies().clone(),
                headers: headers(settings, auth_string.as_ref(), api_key.as_ref())?,
                auth_string,
                api_key,
                policy,
                csrf: Mutex::new(Csrf::new(csrf)),
                reached: AtomicBool::new(false),
            }),
        })
    }

    /// A client for those who want to know at once how a call goes: none is tried again.
    pub fn without_retries(settings: &Settings) -> Result<Self, Error> {
        let mut client = Self::new(settings)?;
        if let Some(shared) = Arc::get_mut(&mut client.shared) {
            shared.policy.max_retries = 0;
        }
        Ok(client)
    }

    /// The same client, which tells `observer` every call that failed after its retries; that a record which need
    /// not exist does not is no failure.
    #[must_use]
    pub fn observed(self, observer: impl Fn(&Error) + Send + Sync + 'static) -> Self {
        Self { observer: Some(Arc::new(observer)), ..self }
    }

    /// The API's root.
    pub fn api_url(&self) -> &Url {
        &self.shared.api_url
    }

    /// Whether the server has ever answered this client.
    pub fn has_reached_server(&self) -> bool {
        self.shared.reached.load(Ordering::Relaxed)
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.shared.headers
    }

    pub(crate) fn tls(&self) -> Arc<rustls::ClientConfig> {
        Arc::clone(&self.shared.tls)
    }

    pub(crate) fn proxies(&self) -> &Proxies {
        &self.shared.proxies
    }

    pub(crate) fn auth_string(&self) -> Option<&SecretString> {
        self.shared.auth_string.as_ref()
    }

    pub(crate) fn api_key(&self) -> Option<&SecretString> {
        self.shared.api_key.as_ref()
    }

    /// Calls and reads the answer's body as `T`.
    pub(crate) async fn read<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Error> {
        self.observe(self.try_read(call).await)
    }

    async fn try_read<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Error> {
        let reply = self.send(&call).await?;
        serde_json::from_slice(&reply.body).map_err(|source| Error::Decode {
            method: call.method.clone(),
            path: call.display_path(),
            source,
        })
    }

    fn observe<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        if let (Err(error), Some(observer)) = (&outcome, &self.observer) {
            observer(error);
        }
        outcome
    }

    /// Calls and reads the answer's body as `T`; `None` if the record does not exist.
    pub(crate) async fn read_optional<T: DeserializeOwned>(
        &self,
        call: Call<'_>,
    ) -> Result<Option<T>, Error> {
        let outcome = match self.try_read(call).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        };
        self.observe(outcome)
    }

    /// Calls and gives the moment at which the server, or a proxy before it, says that it answered.
    pub(crate) async fn date(&self, call: Call<'_>) -> Result<Option<Timestamp>, Error> {
        let reply = self.observe(self.send(&call).await)?;
        let date = reply.headers.get(DATE).and_then(|date| date.to_str().ok());
        Ok(date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()).map(|date| date.timestamp()))
    }

    /// Calls and drops the answer's body.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<(), Error> {
        self.observe(self.send(&call).await.map(drop))
    }

    /// `POST` to a path below the API's root, for what has no method of its own.
    pub async fn post_json(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.read(Call::new(Method::POST, path.trim_start_matches('/'), &[]).json(body)).await
    }

    async fn send(&self, call: &Call<'_>) -> Result<Reply, Error> {
        let url = call.url(&self.shared.api_url);
        let body = match &call.body {
            None => None,
            Some(Ok(body)) => Some(body.clone()),
            Some(Err(error)) => return Err(Error::Setup { problem: format!("the request's body: {error}") }),
        };
        let started = Instant::now();
        let (mut retries, mut quick) = (0, 0);
        loop {
            let mut token = None;
            let outcome = self.attempt(call, &url, body.clone(), &mut token).await;
            if let Ok(reply) = &outcome
                && retry::Policy::is_busy(reply.status.as_u16(), retry::retry_after(&reply.headers))
                && let Some(wait) = self.shared.policy.soon(quick + 1)
            {
                quick += 1;
                tokio::time::sleep(wait).await;
                continue;
            }
            let (retryable, pause, free) = match &outcome {
                Ok(reply) if reply.status.is_success() => (false, None, false),
                Ok(reply) => {
                    let status = reply.status.as_u16();
                    let in_doubt = call.once && lost_behind_a_gateway(status);
                    let again = match self.judge_refused_token(reply, token.as_ref()).await {
                        Again::AtOnce => continue,
                        Again::Later => true,
                        Again::No => self.shared.policy.retries_status(status) && !in_doubt,
                    };
                    let maintenance = reply.headers.get("prefect-maintenance").is_some_and(|on| on == "true");
                    let free = maintenance && started.elapsed() < MAINTENANCE;
                    (again, retry::retry_after(&reply.headers), free)
                }
                Err(error) => {
                    let in_doubt = call.once && !error.is_connect();
                    (self.retries_transport(error) && !in_doubt, None, false)
                }
            };
            if !retryable || (!free && retries >= self.shared.policy.max_retries) {
                return self.conclude(call, outcome, retries + 1);
            }
            retries += u32::from(!free);
            let wait = self.shared.policy.wait(retries.max(1), pause);
            tracing::debug!(method = %call.method, path = %call.display_path(), ?wait, retries, "retrying a call");
            tokio::time::sleep(wait).await;
        }
    }

    fn conclude(
        &self,
        call: &Call<'_>,
        outcome: Result<Reply, reqwest::Error>,
        attempts: u32,
    ) -> Result<Reply, Error> {
        let (method, path) = (call.method.clone(), call.display_path());
        match outcome {
            Ok(reply) if reply.status.is_success() => Ok(reply),
            Ok(reply) => Err(Error::Status {
                method,
                path,
                status: reply.status.as_u16(),
                message: message(&reply.body),
                retry_after: retry::retry_after(&reply.headers),
            }),
            // The URL is in our own text already, and in reqwest's it may carry a query.
            Err(error) if error.is_connect() && !self.has_reached_server() => {
                Err(Error::Unreachable { url: self.shared.api_url.to_string(), source: error.without_url() })
            }
            Err(error) => Err(Error::Transport { method, path, attempts, source: error.without_url() }),
        }
    }

    /// A refused connection is retried only once the server has answered before: a wrong URL fails at once.
    fn retries_transport(&self, error: &reqwest::Error) -> bool {
        if error.is_connect() && !error.is_timeout() {
            return self.has_reached_server();
        }
        // An answer that breaks off is an error of decoding, in the words of the library.
        error.is_timeout() || error.is_request() || error.is_body() || error.is_decode()
    }

    async fn attempt(
        &self,
        call: &Call<'_>,
        url: &Url,
        body: Option<Vec<u8>>,
        token: &mut Option<HeaderValue>,
    ) -> Result<Reply, reqwest::Error> {
        let mut request =
            self.shared.http.request(call.method.clone(), url.clone()).headers(self.headers().clone());
        if !matches!(call.method, Method::GET | Method::HEAD) {
            let headers = match self.csrf_headers().await? {
                ControlFlow::Continue(headers) => headers,
                ControlFlow::Break(refusal) => return Ok(refusal),
            };
            *token = headers.get(CSRF_TOKEN).cloned();
            request = request.headers(headers);
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        self.exchange(request).await
    }

    async fn exchange(&self, request: reqwest::RequestBuilder) -> Result<Reply, reqwest::Error> {
        let mut response = request.send().await?;
        self.shared.reached.store(true, Ordering::Relaxed);
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > LARGEST_ANSWER {
                break;
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Reply { status, headers, body })
    }

    /// The headers of a write, or the answer of a server that gives no token: without one it would refuse the
    /// write for that, and hide what is really wrong.
    async fn csrf_headers(&self) -> Result<ControlFlow<Reply, HeaderMap>, reqwest::Error> {
        let mut csrf = self.shared.csrf.lock().await;
        if csrf.is_due(Timestamp::now()) {
            let client = csrf.client.to_string();
            let url =
                Call::new(Method::GET, "csrf-token", &[]).query("client", &client).url(&self.shared.api_url);
            let reply = self.exchange(self.shared.http.get(url).headers(self.headers().clone())).await?;
            if !csrf.learn(reply.status.as_u16(), &reply.body) {
                return Ok(ControlFlow::Break(reply));
            }
        }
        let mut headers = HeaderMap::new();
        if let Some(token) = csrf.token() {
            headers.insert(CSRF_TOKEN, token);
            if let Ok(client) = HeaderValue::from_str(&csrf.client.to_string()) {
                headers.insert("prefect-csrf-client", client);
            }
        }
        Ok(ControlFlow::Continue(headers))
    }

    async fn judge_refused_token(&self, reply: &Reply, sent: Option<&HeaderValue>) -> Again {
        if reply.status != StatusCode::FORBIDDEN {
            return Again::No;
        }
        let reason = message(&reply.body);
        if reason.contains("Invalid CSRF token") || reason.contains("Missing CSRF token") {
            self.shared.csrf.lock().await.refused(sent)
        } else {
            Again::No
        }
    }
}

/// Redirects are followed to the same server only, because credentials stand in headers of any name, and only
/// where method and body stay: others turn a write into a read. What is not followed is an answer like any other.
fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let stays = attempt.previous().last().is_some_and(|from| from.origin() == attempt.url().origin());
        if stays && matches!(attempt.status().as_u16(), 307 | 308) && attempt.previous().len() <= 5 {
            attempt.follow()
        } else {
            attempt.stop()
        }
    })
}

fn headers(
    settings: &Settings,
    auth_string: Option<&SecretString>,
    api_key: Option<&SecretString>,
) -> Result<HeaderMap, Error> {
    let setup = |problem: &str| Error::Setup { problem: problem.to_owned() };
    let mut headers = HeaderMap::new();
    if let Some(custom) = settings.get("PREFECT_CLIENT_CUSTOM_HEADERS") {
        let custom: std::collections::BTreeMap<String, String> = serde_json::from_str(custom)
            .map_err(|_| setup("PREFECT_CLIENT_CUSTOM_HEADERS is not a JSON object of texts"))?;
        for (name, value) in custom {
            let bad = || setup(&format!("PREFECT_CLIENT_CUSTOM_HEADERS: {name:?} cannot be a header"));
            let name = HeaderName::try_from(&name).map_err(|_| bad())?;
            let mut value = HeaderValue::try_from(value).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    // Ours come last: these cannot be overridden (contract §9).
    for name in [CSRF_TOKEN, "prefect-csrf-client"] {
        headers.remove(name);
    }
    headers.insert(USER_AGENT, HeaderValue::from_static("prefect/3.7.2 (API 0.8.4)"));
    headers.insert("x-prefect-api-version", HeaderValue::from_static(API_VERSION));
    let credentials = match (auth_string, api_key) {
        (Some(auth), _) => {
            Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(auth.expose_secret())))
        }
        (None, Some(key)) => Some(format!("Bearer {}", key.expose_secret())),
        (None, None) => None,
    };
    if let Some(credentials) = credentials {
        let mut value = HeaderValue::try_from(credentials)
            .map_err(|_| setup("PREFECT_API_KEY holds characters that no header can carry"))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

fn extra_codes(settings: &Settings) -> Result<std::collections::BTreeSet<u16>, Error> {
    let text = settings.get("PREFECT_CLIENT_RETRY_EXTRA_CODES").unwrap_or_default();
    let words = text.split([',', ' ', '[', ']']).filter(|word| !word.is_empty());
    words
        .map(|word| {
            let code = word.parse().ok().filter(|code| (100..600).contains(code));
            code.ok_or_else(|| Error::Setup {
                problem: format!("PREFECT_CLIENT_RETRY_EXTRA_CODES: {word:?} is not an HTTP status"),
            })
        })
        .collect()
}

/// What the server says, from any of its three forms of error bodies (contract §1.1), bounded. The request's
/// own body, which a 422 repeats, stays out: it may hold secrets.
fn message(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Value>(body) {
        Ok(value) => {
            let part = |name: &str| {
                value.get(name).map(|part| part.as_str().map_or_else(|| brief(part), str::to_owned))
            };
            let parts = [part("detail"), part("exception_message"), part("exception_detail")];
            parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
        }
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    text.chars().filter(|c| !c.is_control()).take(1000).collect()
}

/// Pydantic's list of errors as `path: message`, without the inputs that it quotes.
fn brief(detail: &Value) -> String {
    let line = |error: &Value| {
        let path = error.get("loc")?.as_array()?.iter().map(|step| step.to_string().replace('"', ""));
        Some(format!("{}: {}", path.collect::<Vec<_>>().join("."), error.get("msg")?.as_str()?))
    };
    let lines = detail.as_array().map(|errors| errors.iter().filter_map(line).collect::<Vec<_>>().join("; "));
    lines.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_segment_whatever_they_hold() {
        let root = Url::parse("http://h/prefix/api").unwrap();
        let url = |name| Call::new(Method::GET, "work_pools/{}", &[name]).url(&root).to_string();
        assert_eq!(url("a/b c?d#e"), "http://h/prefix/api/work_pools/a%2Fb%20c%3Fd%23e");
        assert!(url("..").starts_with("http://h/prefix/api/work_pools/%"));
        assert_eq!(Call::new(Method::POST, "flows/", &[]).url(&root).as_str(), "http://h/prefix/api/flows/");
    }

    #[test]
    fn an_error_says_what_the_server_says_but_never_repeats_the_request() {
        let body = serde_json::json!({"exception_message": "Invalid request received.",
            "exception_detail": [{"loc": ["body", "data"], "msg": "Field required", "input": {"value": "hunter2"}}],
            "request_body": {"value": "hunter2"}});
        let text = message(body.to_string().as_bytes());
        assert_eq!(text, "Invalid request received. body.data: Field required");
    }
}
