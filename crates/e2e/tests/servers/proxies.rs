//! Proxies between worker, runtime and server.

use std::net::IpAddr;

use serde_json::{Value, json};
use testkit::prefect::{Options, PrefectServer};
use testkit::proxy::{self, Forward, Reverse, WebSockets};

use crate::site::{Ground, Site};

const PREFIX: &str = "/some/prefix";
const HEADER: (&str, &str) = ("x-facility", "b7f3c0");

/// A server with a password and CSRF protection behind nginx with a prefix, a private authority and a header that
/// it wants to see.
struct Behind {
    server: PrefectServer,
    proxy: Reverse,
}

impl Behind {
    async fn start(host: IpAddr, websockets: WebSockets) -> Self {
        let auth = Some("admin:pa$$word".into());
        let options = Options { host, auth, csrf: true, ..Options::default() };
        let server = PrefectServer::start(options).await.unwrap();
        let proxy = Reverse::start(proxy::Options {
            host,
            upstream: server.ui_url(),
            prefix: PREFIX.to_owned(),
            tls: true,
            demand: Some((HEADER.0.to_owned(), HEADER.1.to_owned())),
            websockets,
        });
        Self { proxy: proxy.await.unwrap(), server }
    }

    /// What a worker behind the proxy is started with.
    fn env(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut env = self.server.client_env();
        env.retain(|(name, _)| name != "PREFECT_API_URL");
        let mut set = |name: &str, value: &str| env.push((name.to_owned(), value.to_owned()));
        set("PREFECT_API_URL", &self.proxy.api_url());
        set("PREFECT_CLIENT_CUSTOM_HEADERS", &json!({HEADER.0: HEADER.1}).to_string());
        for (name, value) in more {
            set(name, value);
        }
        env
    }

    fn authority(&self) -> String {
        self.proxy.authority().unwrap().display().to_string()
    }

    /// Containers find the authority's certificate where the worker does.
    fn mounted_authority(&self) -> Value {
        json!({"volumes": [format!("{0}:{0}:ro", self.authority())]})
    }

    async fn open(&self, ground: Ground, env: &[(String, String)], job_variables: Value) -> Site {
        Site::open(ground, env, &self.server.client_env(), job_variables).await.unwrap()
    }

    /// How many requests came to this: method, path below the API, status, and what was to be upgraded to.
    fn count(&self, request: &str) -> usize {
        let (method, path_and_rest) = request.split_once(' ').unwrap();
        let line = format!("{method} {PREFIX}/api{path_and_rest}");
        self.proxy.log().iter().filter(|seen| **seen == line).count()
    }

    async fn end(self, site: Site) {
        site.close().await.unwrap();
        self.proxy.stop().await.unwrap();
        self.server.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_with_a_prefix_a_private_authority_a_password_and_csrf() {
    let ground = Ground::prepare("proxy").await.unwrap();
    let behind = Behind::start(ground.host, WebSockets::Pass).await;
    let env = behind.env(&[("PREFECT_API_SSL_CERT_FILE", &behind.authority())]);
    let site = behind.open(ground, &env, behind.mounted_authority()).await;
    site.run_everything().await.unwrap();
    assert!(!site.worker_log().contains("no worker channel"), "{}", site.worker_log());
    assert!(behind.count("GET /events/in 101 websocket") > 0, "{:?}", behind.proxy.log());
    assert_eq!(behind.count("POST /events 204 -"), 0, "{:?}", behind.proxy.log());
    behind.end(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_websockets() {
    let ground = Ground::prepare("refused").await.unwrap();
    let behind = Behind::start(ground.host, WebSockets::Refuse(403)).await;
    let env = behind.env(&[("PREFECT_API_SSL_CERT_FILE", &behind.authority())]);
    let site = behind.open(ground, &env, behind.mounted_authority()).await;
    site.run_everything().await.unwrap();
    assert!(site.worker_log().contains("no worker channel, using REST"), "{}", site.worker_log());
    assert!(behind.count("GET /events/in 403 websocket") > 0, "{:?}", behind.proxy.log());
    assert!(behind.count("POST /events 204 -") > 0, "{:?}", behind.proxy.log());
    behind.end(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_swallows_websockets() {
    let ground = Ground::prepare("swallowed").await.unwrap();
    let behind = Behind::start(ground.host, WebSockets::Swallow).await;
    // Containers are told too that certificates do not matter.
    let env = behind.env(&[("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "true")]);
    let site = behind.open(ground, &env, json!({})).await;
    site.run_without_failures().await.unwrap();
    assert!(site.worker_log().contains("no worker channel, using REST"), "{}", site.worker_log());
    assert!(behind.count("POST /events 204 -") > 0, "{:?}", behind.proxy.log());
    behind.end(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_on_the_way_out() {
    let ground = Ground::prepare("outward").await.unwrap();
    let forward = Forward::start(ground.host).await.unwrap();
    let behind = Behind::start(ground.host, WebSockets::Pass).await;
    let env = behind
        .env(&[("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "true"), ("HTTPS_PROXY", forward.url().as_str())]);
    // Variables that are none of Prefect's are not handed on: a deployment says what its containers need.
    let job_variables = json!({"env": {"HTTPS_PROXY": forward.url()}});
    let site = behind.open(ground, &env, job_variables).await;
    site.run_everything().await.unwrap();
    assert!(!site.worker_log().contains("no worker channel"), "{}", site.worker_log());
    let address = behind.proxy.api_url();
    let target = address.trim_start_matches("https://").split('/').next().unwrap();
    let tunnel = format!("CONNECT {target} HTTP/1.1");
    // One at least for REST and each socket: the worker's three and a container's two.
    let tunnels = forward.log().matches(&tunnel).count();
    assert!(tunnels >= 6, "{}", forward.log());
    behind.end(site).await;
    forward.stop().await.unwrap();
}
