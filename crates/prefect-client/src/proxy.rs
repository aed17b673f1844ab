//! The proxies of the environment on the way to the server: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and
//! `NO_PROXY`, the same ones for HTTP and for WebSockets.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::MaybeTlsStream;
use url::{Host, Url};

use crate::settings;

/// No answer to `CONNECT` has a longer head than this, in bytes.
const LONGEST_HEAD: usize = 16 * 1024;

/// The proxy on the way to one API, if there is one.
#[derive(Clone)]
pub(crate) struct Proxies {
    intercept: Option<Intercept>,
}

impl Proxies {
    /// The proxy that these variables name for this URL. As with Python, lower case wins.
    pub(crate) fn of(environment: &BTreeMap<String, String>, api_url: &Url) -> Result<Self, settings::Error> {
        let get = |name: &str| {
            let lower = environment.get(&name.to_ascii_lowercase());
            lower.or_else(|| environment.get(name)).cloned().unwrap_or_default()
        };
        let matcher = Matcher::builder()
            .all(get("ALL_PROXY"))
            .http(get("HTTP_PROXY"))
            .https(get("HTTPS_PROXY"))
            .no(without_ports(&get("NO_PROXY"), api_url))
            .build();
        let intercept = api_url.as_str().parse().ok().and_then(|uri| matcher.intercept(&uri));
        let scheme = intercept.as_ref().and_then(|proxy| proxy.uri().scheme_str());
        if let Some(scheme) = scheme.filter(|scheme| !matches!(*scheme, "http" | "https")) {
            return Err(settings::Error::Invalid {
                name: format!("{}_PROXY or ALL_PROXY", api_url.scheme().to_uppercase()),
                problem: format!("proxies of the scheme {scheme} are not supported"),
            });
        }
        Ok(Self { intercept })
    }

    /// For HTTP: the proxy with its credentials, or none.
    pub(crate) fn for_http(&self) -> Result<Option<reqwest::Proxy>, reqwest::Error> {
        let Some(intercept) = &self.intercept else { return Ok(None) };
        let proxy = reqwest::Proxy::all(intercept.uri().to_string())?;
        Ok(Some(match intercept.basic_auth() {
            Some(credentials) => proxy.custom_http_auth(credentials.clone()),
            None => proxy,
        }))
    }

    /// Connects to the host of `url`, through the proxy if there is one. `tls` is for a proxy that speaks TLS
    /// itself; what goes through the tunnel is the caller's.
    pub(crate) async fn connect(
        &self,
        url: &Url,
        tls: Arc<ClientConfig>,
    ) -> Result<MaybeTlsStream<TcpStream>, ConnectError> {
        let port = url.port_or_known_default().unwrap_or(80);
        let Some(intercept) = &self.intercept else {
            let stream = match url.host() {
                Some(Host::Ipv4(ip)) => TcpStream::connect((ip, port)).await?,
                Some(Host::Ipv6(ip)) => TcpStream::connect((ip, port)).await?,
                Some(Host::Domain(name)) => TcpStream::connect((name, port)).await?,
                None => return Err(io::Error::from(io::ErrorKind::InvalidInput).into()),
            };
            stream.set_nodelay(true)?;
            return Ok(MaybeTlsStream::Plain(stream));
        };
        let mut stream = to_proxy(intercept, tls).await?;
        let target = format!("{}:{port}", url.host_str().unwrap_or_default());
        open_tunnel(&mut stream, &target, intercept).await?;
        Ok(stream)
    }
}

/// What kept a connection from being made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The proxy has answered, and not with a tunnel.
    #[error("the proxy {proxy} refuses the way to {target} with status {status}")]
    Refused { proxy: String, target: String, status: u16 },
}

async fn to_proxy(
    intercept: &Intercept,
    tls: Arc<ClientConfig>,
) -> Result<MaybeTlsStream<TcpStream>, io::Error> {
    let uri = intercept.uri();
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    stream.set_nodelay(true)?;
    if !is_tls {
        return Ok(MaybeTlsStream::Plain(stream));
    }
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await?;
    Ok(MaybeTlsStream::Rustls(stream))
}

/// Asks for a tunnel. Whoever is behind it does not speak first: nothing follows the head of the answer.
async fn open_tunnel(
    stream: &mut MaybeTlsStream<TcpStream>,
    target: &str,
    intercept: &Intercept,
) -> Result<(), ConnectError> {
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(credentials) = intercept.basic_auth() {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(credentials.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut chunk = [0; 1024];
        let read = stream.read(&mut chunk).await?;
        if read == 0 || head.len() > LONGEST_HEAD {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        head.extend_from_slice(chunk.get(..read).unwrap_or_default());
        // A refusal has a page behind its head, which nobody reads.
        if status(&head).is_some_and(|status| !(200..300).contains(&status)) {
            break;
        }
    }
    match status(&head) {
        Some(200..300) => Ok(()),
        Some(status) => Err(ConnectError::Refused {
            proxy: intercept.uri().authority().map(ToString::to_string).unwrap_or_default(),
            target: target.to_owned(),
            status,
        }),
        None => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
    }
}

/// The status of an answer, once its first line is complete.
fn status(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\r').next()?).ok()?;
    line.split(' ').nth(1)?.parse().ok().filter(|_| head.contains(&b'\r') && line.starts_with("HTTP/1."))
}

/// Entries of `NO_PROXY` may end in a port, which then has to be that of the API.
fn without_ports(entries: &str, api_url: &Url) -> String {
    let port = api_url.port_or_known_default();
    let entry = |entry: &str| match entry.rsplit_once(':') {
        // More than one colon is an IPv6 address.
        Some((host, own)) if !host.contains(':') => match own.parse::<u16>() {
            Ok(own) => (port == Some(own)).then(|| host.to_owned()),
            Err(_) => Some(entry.to_owned()),
        },
        _ => Some(entry.to_owned()),
    };
    entries.split(',').map(str::trim).filter_map(entry).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy_for(url: &str, variables: &[(&str, &str)]) -> Option<String> {
        let environment = variables.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        let proxies = Proxies::of(&environment, &Url::parse(url).unwrap()).unwrap();
        proxies.intercept.map(|proxy| proxy.uri().authority().unwrap().to_string())
    }

    #[test]
    fn the_scheme_of_the_api_chooses_the_proxy_and_exceptions_hold() {
        let both = [("HTTP_PROXY", "http://plain:1"), ("https_proxy", "secure:2")];
        assert_eq!(proxy_for("http://h/api", &both).as_deref(), Some("plain:1"));
        assert_eq!(proxy_for("https://h/api", &both).as_deref(), Some("secure:2"));
        assert_eq!(proxy_for("http://h/api", &[("HTTPS_PROXY", "http://p:1")]), None);
        assert_eq!(proxy_for("http://h/api", &[("ALL_PROXY", "http://p:1")]).as_deref(), Some("p:1"));
        for (exceptions, url) in [
            ("*", "http://h/api"),
            ("other, h.site", "http://h.site/api"),
            (".site", "http://h.site/api"),
            ("h.site:4200", "http://h.site:4200/api"),
            ("10.0.0.0/8", "http://10.1.2.3:4200/api"),
            ("::1", "http://[::1]:4200/api"),
        ] {
            let variables = [("HTTP_PROXY", "http://p:1"), ("no_proxy", exceptions)];
            assert_eq!(proxy_for(url, &variables), None, "{exceptions}");
        }
        let other_port = [("HTTP_PROXY", "http://p:1"), ("NO_PROXY", "h.site:4201")];
        assert!(proxy_for("http://h.site:4200/api", &other_port).is_some());
    }

    #[test]
    fn a_proxy_that_we_cannot_speak_to_is_an_error_without_its_password() {
        let environment = BTreeMap::from([("ALL_PROXY".to_owned(), "socks5://u:hunter2@p:1".to_owned())]);
        let error = Proxies::of(&environment, &Url::parse("http://h/api").unwrap()).err().unwrap();
        let text = error.to_string();
        assert!(text.contains("socks5") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_status_is_known_once_its_line_is_there() {
        assert_eq!(status(b"HTTP/1.1 200 Connection established\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.1 40"), None);
        assert_eq!(status(b"SSH-2.0 200\r\n"), None);
    }
}
