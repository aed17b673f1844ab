//! Calls with login, deadlines and retries.
//!
//! A call that may be repeated is repeated when the catalogue is not available; one that may not (POST) is told
//! to the caller, who finds out what became of it. A 401 or 403 is taken once for an expired token.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use archiver::CatalogueError;
use reqwest::Method;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};
use url::Url;

use crate::reply::{error_message, error_of};
use crate::settings::{Base, endpoint_url};
use crate::wire::Login;
use crate::{SciCatSettings, SciCatSettingsError};

/// How often a call is made before its error is told.
const ATTEMPTS: u32 = 4;

/// The wait before the second attempt; doubled before each further one.
const FIRST_DELAY: Duration = Duration::from_millis(500);

/// How long a call may take: a large datablock takes the catalogue many seconds.
const DEADLINE: Duration = Duration::from_mins(2);

/// How long a connection may take to establish.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Life of a token that does not tell it, in seconds.
const UNTOLD_LIFE: u64 = 600;

/// Longest time that a token is used, in seconds, whatever it tells.
const LONGEST_LIFE: u64 = 24 * 3600;

/// Longest answer that is read, in bytes: the file lists of the largest datasets take some 100 MB.
const MAX_ANSWER: usize = 256 << 20;

/// A logged-in HTTP client.
pub(crate) struct Client {
    http: reqwest::Client,
    login: Url,
    user: SecretString,
    password: SecretString,
    token: Mutex<Option<Token>>,
    pub(crate) datasets: Base,
    pub(crate) jobs: Base,
}

#[derive(Clone)]
struct Token {
    text: SecretString,
    renew_at: Instant,
}

/// One call.
pub(crate) struct Call {
    /// What it does, for people.
    pub(crate) action: String,
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) body: Option<Vec<u8>>,
}

impl Call {
    pub(crate) fn new(action: impl Into<String>, method: Method, url: Url) -> Self {
        Self { action: action.into(), method, url, body: None }
    }

    /// Sends `body` as JSON.
    pub(crate) fn json(mut self, body: &impl Serialize) -> Result<Self, CatalogueError> {
        let action = &self.action;
        self.body =
            Some(serde_json::to_vec(body).map_err(|error| CatalogueError::Malformed {
                action: action.clone(),
                source: error.into(),
            })?);
        Ok(self)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("login", &self.login.as_str()).finish_non_exhaustive()
    }
}

impl Client {
    pub(crate) fn new(settings: SciCatSettings) -> Result<Self, SciCatSettingsError> {
        let endpoint = endpoint_url(&settings.endpoint)?;
        let http = reqwest::Client::builder()
            .user_agent(concat!("ferryman-archiver/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_DEADLINE)
            .timeout(DEADLINE)
            // A followed redirection turns an update into a read that succeeds, and may carry a password away.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(SciCatSettingsError::Client)?;
        Ok(Self {
            http,
            login: Base::new(&endpoint, &settings.api_prefix)?.at(&["auth", "login"]),
            user: settings.user,
            password: settings.password,
            token: Mutex::new(None),
            datasets: Base::new(&endpoint, &settings.datasets_prefix)?,
            jobs: Base::new(&endpoint, &settings.jobs_prefix)?,
        })
    }

    /// Makes a call and reads its JSON answer.
    pub(crate) async fn fetch<T: DeserializeOwned>(&self, call: Call) -> Result<T, CatalogueError> {
        let action = call.action.clone();
        let body = self.call(call).await?;
        serde_json::from_slice(&body)
            .map_err(|error| CatalogueError::Malformed { action, source: error.into() })
    }

    /// Makes a call; gives the body of a successful answer.
    pub(crate) async fn call(&self, call: Call) -> Result<Vec<u8>, CatalogueError> {
        let repeatable = call.method != Method::POST;
        let mut renewed = false;
        let mut attempt = 1;
        loop {
            let token = self.token().await?;
            match self.send(&call, &token).await {
                Err(CatalogueError::Denied { .. }) if !renewed => {
                    renewed = true;
                    self.forget_token();
                }
                Err(error) if error.is_transient() && repeatable && attempt < ATTEMPTS => {
                    tracing::warn!(action = call.action, attempt, error = %error, "the catalogue is not available, trying again");
                    pause(attempt).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn send(&self, call: &Call, token: &SecretString) -> Result<Vec<u8>, CatalogueError> {
        let mut request =
            self.http.request(call.method.clone(), call.url.clone()).bearer_auth(token.expose_secret());
        if let Some(body) = &call.body {
            request = request.header(reqwest::header::CONTENT_TYPE, "application/json").body(body.clone());
        }
        let (status, body) = exchange(request, &call.action).await?;
        tracing::debug!(method = %call.method, path = call.url.path(), status, "scicat");
        if (200..300).contains(&status) {
            Ok(body)
        } else {
            Err(error_of(call.action.clone(), status, &body))
        }
    }

    /// A token that is not about to expire.
    async fn token(&self) -> Result<SecretString, CatalogueError> {
        let held = self.held_token().clone();
        if let Some(token) = held.filter(|token| Instant::now() < token.renew_at) {
            return Ok(token.text);
        }
        // Two callers may log in at the same time; both tokens are good.
        let mut attempt = 1;
        let token = loop {
            match self.log_in().await {
                Err(error) if error.is_transient() && attempt < ATTEMPTS => {
                    pause(attempt).await;
                    attempt += 1;
                }
                result => break result?,
            }
        };
        *self.held_token() = Some(token.clone());
        Ok(token.text)
    }

    async fn log_in(&self) -> Result<Token, CatalogueError> {
        const ACTION: &str = "log in to the catalogue";
        let asked = Instant::now();
        let form = [("username", self.user.expose_secret()), ("password", self.password.expose_secret())];
        let (status, body) = exchange(self.http.post(self.login.clone()).form(&form), ACTION).await?;
        if matches!(status, 400 | 401 | 403) {
            let message = error_message(&body);
            return Err(CatalogueError::Login { endpoint: self.login.to_string(), message });
        }
        if !(200..300).contains(&status) {
            return Err(error_of(ACTION.to_owned(), status, &body));
        }
        // The parser's message could quote the token: it is not passed on.
        let login: Login = serde_json::from_slice(&body).map_err(|_| CatalogueError::Malformed {
            action: ACTION.to_owned(),
            source: "the answer has no access_token".into(),
        })?;
        let life = Duration::from_secs(login.life().unwrap_or(UNTOLD_LIFE).min(LONGEST_LIFE));
        Ok(Token { text: login.token, renew_at: asked + life * 4 / 5 })
    }

    fn held_token(&self) -> std::sync::MutexGuard<'_, Option<Token>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_token(&self) {
        *self.held_token() = None;
    }
}

/// Waits before the attempt that follows `attempt`.
pub(crate) async fn pause(attempt: u32) {
    sleep(FIRST_DELAY * 2_u32.saturating_pow(attempt.saturating_sub(1))).await;
}

/// Sends a request and reads the whole answer.
async fn exchange(request: reqwest::RequestBuilder, action: &str) -> Result<(u16, Vec<u8>), CatalogueError> {
    let lost = |error: reqwest::Error| CatalogueError::Unavailable {
        action: action.to_owned(),
        source: error.without_url().into(),
    };
    let mut response = request.send().await.map_err(lost)?;
    let status = response.status().as_u16();
    let told = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let mut body = Vec::with_capacity(told.min(MAX_ANSWER));
    while let Some(chunk) = response.chunk().await.map_err(lost)? {
        if body.len() + chunk.len() > MAX_ANSWER {
            let source = format!("it is longer than {MAX_ANSWER} bytes").into();
            return Err(CatalogueError::Malformed { action: action.to_owned(), source });
        }
        body.extend_from_slice(&chunk);
    }
    Ok((status, body))
}
