//! The real browser: it does what a person would, waits for what comes late, and leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::net::{IpAddr, Ipv4Addr};

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use testkit::browser::Browser;
use testkit::server::Server;

/// A form that comes late, below a button of the same words that nobody sees, and one that is none.
const PAGE: &str = "<body><button hidden>Go on</button><h1>Go on</h1><main></main><script>
setTimeout(() => document.querySelector('main').innerHTML = `<label>Name <input value=old></label>
<div><label><span>Word</span></label><p>How.</p><textarea>Hello</textarea></div>
<button onclick=\"document.title = document.querySelector('input').value;
  document.querySelector('main').innerText = 'Done'\"><b> Go on </b></button>`, 500)
</script></body>";

async fn site() -> Server {
    let router = Router::new().route("/", get(async || Html(PAGE)));
    Server::start(IpAddr::V4(Ipv4Addr::LOCALHOST), 0, router).await.unwrap()
}

/// Files and processes whose names hold this.
fn left(name: &str) -> Vec<String> {
    let files = std::fs::read_dir(std::env::temp_dir()).unwrap().filter_map(Result::ok);
    let files = files.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let processes = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let processes = processes.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    files.chain(processes).filter(|entry| entry.contains(name)).collect()
}

#[tokio::test]
async fn a_form_is_filled_in_by_what_a_person_sees() {
    let (site, browser) = (site().await, Browser::start(800, 600).await.unwrap());
    browser.open(&site.url()).await.unwrap();
    browser.see("How.").await.unwrap();
    assert_eq!(browser.value("Name").await.unwrap(), "old");
    assert_eq!(browser.value("Word").await.unwrap(), "Hello");
    browser.enter("Name", "new").await.unwrap();
    browser.click("Go on").await.unwrap();
    browser.see("Done").await.unwrap();
    assert_eq!(browser.run("return document.title").await.unwrap(), "new");
    assert_eq!(browser.address().await.unwrap(), format!("{}/", site.url()));
    assert!(browser.run("nonsense").await.unwrap_err().to_string().contains("nonsense is not defined"));
}

#[tokio::test]
async fn a_picture_has_the_size_of_the_page() {
    let (site, browser) = (site().await, Browser::start(800, 600).await.unwrap());
    browser.open(&site.url()).await.unwrap();
    for (width, height) in [(800, 600), (1300, 400)] {
        browser.resize(width, height).await.unwrap();
        let picture = browser.still().await.unwrap();
        assert!(picture.starts_with(b"\x89PNG"));
        let number = |at: usize| u32::from_be_bytes(picture[at..at + 4].try_into().unwrap());
        assert_eq!((number(16), number(20)), (width, height));
    }
}

#[tokio::test]
async fn a_browser_leaves_nothing_behind() {
    for stops in [true, false] {
        let browser = Browser::start(800, 600).await.unwrap();
        let profile = browser.directory().file_name().unwrap().to_str().unwrap().to_owned();
        assert!(left(&profile).len() > 2, "{:?}", left(&profile));
        if stops {
            browser.stop().await.unwrap();
        } else {
            drop(browser);
        }
        let gone = async {
            while !left(&profile).is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let in_time = tokio::time::timeout(std::time::Duration::from_mins(1), gone).await;
        assert!(in_time.is_ok(), "{:?}", left(&profile));
    }
}
