//! A real browser without a window: Chromium, driven through `WebDriver` as a person would drive it.
//!
//! Things on a page are named by what a person sees: words that are clicked, labels of fields, text that is waited for.
//! What is not there yet, or not ready yet, is waited for. `WebDriver` is a dozen calls of REST, and this is all of the
//! client.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::process::{Command, Process, find_program};

const POLL: Duration = Duration::from_millis(100);
/// How long the browser may take to start, and a page to become ready for a step: two busy cores may be slow.
const DEADLINE: Duration = Duration::from_mins(2);
/// A page that does not change for so long is complete.
const STILL: Duration = Duration::from_secs(3);
const STOP_GRACE: Duration = Duration::from_secs(10);

/// What the driver says before the port that it listens on.
const LISTENING: &str = "started successfully on port ";

/// The key of an element's id in the driver's answers.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Why a step cannot be done yet: a page that is still being made says so.
const NOT_YET: [&str; 4] =
    ["no such element", "stale element reference", "element click intercepted", "element not interactable"];

/// A running browser with one page. Dropping it kills its processes and removes its files.
#[derive(Debug)]
pub struct Browser {
    http: reqwest::Client,
    /// Where the driver takes what is to be done with this browser.
    session: String,
    driver: Process,
    /// The browser's profile and the driver's log. After the processes: dropped in this order.
    dir: TempDir,
}

impl Browser {
    /// Starts a browser whose page is so many pixels wide and high.
    pub async fn start(width: u32, height: u32) -> Result<Self> {
        let hint = "a browser is needed here: install it (Debian: apt-get install chromium chromium-driver)";
        let browser = find_program(Path::new("chromium")).context(hint)?;
        let driver = find_program(Path::new("chromedriver")).context(hint)?;
        let dir = tempfile::Builder::new().prefix("ferryman-browser-").tempdir();
        let dir = dir.context("failed to make a directory for the browser")?;
        let mut driver = Command::new(driver)
            .arg("--port=0")
            // Whatever they write, they write it here.
            .env("HOME", dir.path())
            .env("TMPDIR", dir.path())
            .log_to(dir.path().join("driver.log"))
            .spawn()?;
        driver.wait_for_log(LISTENING, DEADLINE).await.context("failed to start the browser's driver")?;
        let log = driver.log();
        let (_, port) = log.split_once(LISTENING).unwrap_or_default();
        let (port, _) = port.split_once('.').context("the browser's driver tells no port")?;
        let http = reqwest::Client::builder().no_proxy().timeout(DEADLINE);
        let http = http.build().context("failed to make an HTTP client")?;
        let profile = format!("--user-data-dir={}", dir.path().join("profile").display());
        let options = json!({
            "binary": browser,
            "args": ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--hide-scrollbars", profile],
        });
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": options,
            "proxy": {"proxyType": "direct"},
        }}});
        let sessions = format!("http://127.0.0.1:{port}/session");
        let mut browser = Self { http, session: sessions, driver, dir };
        let made = browser.post("", &wanted).await;
        let made =
            made.with_context(|| format!("failed to start the browser\n{}", browser.driver.tail(20)))?;
        let id = made["sessionId"].as_str().context("the browser's session has no id")?;
        browser.session = format!("{}/{id}", browser.session);
        browser.resize(width, height).await?;
        Ok(browser)
    }

    /// Makes its page so many pixels wide and high.
    pub async fn resize(&self, width: u32, height: u32) -> Result<()> {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.post(
            "/goog/cdp/execute",
            &json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}),
        )
        .await
        .map(drop)
    }

    /// The directory that all its files are in.
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// Goes to a page.
    pub async fn open(&self, url: &str) -> Result<()> {
        self.post("/url", &json!({"url": url})).await.map(drop)
    }

    /// The address of the page.
    pub async fn address(&self) -> Result<String> {
        let url = self.run("return location.href").await?;
        url.as_str().map(str::to_owned).context("a page without an address")
    }

    /// All text that the page shows.
    async fn text(&self) -> Result<String> {
        let text = self.run("return document.body ? document.body.innerText : ''").await?;
        text.as_str().map(str::to_owned).context("a page without text")
    }

    /// Runs JavaScript in the page, and gives what it returns.
    pub async fn run(&self, script: &str) -> Result<Value> {
        self.post("/execute/sync", &json!({"script": script, "args": []})).await
    }

    /// Waits until the page shows something that has exactly these words.
    pub async fn see(&self, words: &str) -> Result<()> {
        let path = worded(words)?;
        let seen = async || Ok((!self.shown(&path).await?.is_empty()).then_some(()));
        self.until(&format!("show {words:?}"), seen).await
    }

    /// Waits until JavaScript in the page returns true.
    pub async fn wait_for(&self, script: &str) -> Result<()> {
        let holds = async || Ok((self.run(script).await? == true).then_some(()));
        self.until(script, holds).await
    }

    /// Clicks on the first link or button that has exactly these words.
    pub async fn click(&self, words: &str) -> Result<()> {
        let path = format!("{}[ancestor-or-self::*[self::a or self::button]]", worded(words)?);
        let click = async || {
            for element in self.shown(&path).await? {
                if self.tried(Method::POST, &format!("/element/{element}/click"), &json!({})).await?.is_some()
                {
                    return Ok(Some(()));
                }
            }
            Ok(None)
        };
        self.until(&format!("let {words:?} be clicked"), click).await
    }

    /// Replaces what the field with this label holds.
    pub async fn enter(&self, label: &str, text: &str) -> Result<()> {
        let path = field(label)?;
        let enter = async || {
            let Some(element) = self.shown(&path).await?.into_iter().next() else { return Ok(None) };
            let keys = json!({"text": text});
            if self.tried(Method::POST, &format!("/element/{element}/clear"), &json!({})).await?.is_none() {
                return Ok(None);
            }
            self.tried(Method::POST, &format!("/element/{element}/value"), &keys).await
        };
        self.until(&format!("take {text:?} as {label:?}"), enter).await.map(drop)
    }

    /// What the field with this label holds.
    pub async fn value(&self, label: &str) -> Result<String> {
        let path = field(label)?;
        let value = async || {
            let Some(element) = self.shown(&path).await?.into_iter().next() else { return Ok(None) };
            self.tried(Method::GET, &format!("/element/{element}/property/value"), &Value::Null).await
        };
        let value = self.until(&format!("have a field {label:?}"), value).await?;
        value.as_str().map(str::to_owned).with_context(|| format!("the field {label:?} holds no text"))
    }

    /// A picture of the page, as PNG.
    pub async fn screenshot(&self) -> Result<Vec<u8>> {
        let picture = self.call(Method::GET, "/screenshot", &Value::Null).await?;
        let picture = picture.as_str().context("a picture that is no text")?;
        STANDARD.decode(picture).context("a picture that cannot be decoded")
    }

    /// A picture of the page once it stands still: what is loaded or drawn late is on it.
    pub async fn still(&self) -> Result<Vec<u8>> {
        let (mut last, mut since) = (self.screenshot().await?, Instant::now());
        let end = since + DEADLINE;
        while since.elapsed() < STILL {
            ensure!(Instant::now() < end, "the page did not stand still within {DEADLINE:?}");
            sleep(POLL).await;
            let next = self.screenshot().await?;
            if next != last {
                (last, since) = (next, Instant::now());
            }
        }
        Ok(last)
    }

    /// Ends the browser and removes its files.
    pub async fn stop(self) -> Result<()> {
        self.call(Method::DELETE, "", &Value::Null).await?;
        self.driver.stop(STOP_GRACE).await.context("failed to stop the browser's driver")?;
        self.dir.close().context("failed to remove the files of the browser")
    }

    /// Elements that the page shows, by the driver's ids.
    async fn shown(&self, path: &str) -> Result<Vec<String>> {
        let found = self.post("/elements", &json!({"using": "xpath", "value": path})).await?;
        let found = found.as_array().into_iter().flatten().filter_map(|element| element[ELEMENT].as_str());
        let mut shown = Vec::new();
        for id in found {
            let displayed =
                self.tried(Method::GET, &format!("/element/{id}/displayed"), &Value::Null).await?;
            if displayed == Some(Value::Bool(true)) {
                shown.push(id.to_owned());
            }
        }
        Ok(shown)
    }

    /// Repeats an attempt until it gives something.
    async fn until<T>(&self, what: &str, attempt: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(done) = attempt().await? {
                return Ok(done);
            }
            if Instant::now() > end {
                let (address, text) = (self.address().await?, self.text().await?);
                bail!("{address} did not {what} within {DEADLINE:?}; it shows:\n{text}");
            }
            sleep(POLL).await;
        }
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::POST, path, body).await
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        self.tried(method, path, body).await?.with_context(|| format!("the page is not ready for {path}"))
    }

    /// A call to the driver; `None` if the page is not ready for it.
    async fn tried(&self, method: Method, path: &str, body: &Value) -> Result<Option<Value>> {
        let request = self.http.request(method.clone(), format!("{}{path}", self.session));
        let request = if method == Method::POST { request.json(body) } else { request };
        let reply = request.send().await.with_context(|| format!("failed to ask the browser for {path}"))?;
        let done = reply.status().is_success();
        let mut answer: Value =
            reply.json().await.with_context(|| format!("failed to read the browser's answer to {path}"))?;
        let value = answer["value"].take();
        if done {
            return Ok(Some(value));
        }
        let error = value["error"].as_str().unwrap_or_default();
        ensure!(NOT_YET.contains(&error), "the browser refuses {path}: {error}: {}", value["message"]);
        Ok(None)
    }
}

/// What has exactly these words.
fn worded(words: &str) -> Result<String> {
    Ok(format!("//*[text()[normalize-space() = {}]]", literal(words)?))
}

/// The field inside a label, or else the first one after it: not every page ties the two together.
fn field(label: &str) -> Result<String> {
    let label = format!("//label[descendant-or-self::*/text()[normalize-space() = {}]]", literal(label)?);
    let field = "*[self::input or self::textarea]";
    Ok(format!("({label}/descendant::{field} | {label}/following::{field})[1]"))
}

/// A text in `XPath`, which knows no escapes.
fn literal(text: &str) -> Result<String> {
    ensure!(!text.contains('"'), "{text:?} cannot be looked for: it has a quotation mark");
    Ok(format!("\"{text}\""))
}
