//! The server's WebSockets: one handshake for all (contract §1.5), and on top of it events in, events out
//! and the worker channel.

mod channel;
mod doubt;
mod events_in;
mod events_out;

pub use channel::Channel;
pub use events_in::{EventSender, Undelivered};
pub use events_out::{EventStream, Item};

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::{self, Bytes, Message, Utf8Bytes};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};

use crate::http::Client;
use crate::proxy::ConnectError;

/// How long connecting and authenticating may take together.
const SETUP: Duration = Duration::from_secs(10);

/// How long one frame may take to leave.
const SEND: Duration = Duration::from_secs(30);

/// A socket that brought nothing for this long, not even a pong to our pings, is dead.
const SILENCE: Duration = Duration::from_secs(45);

/// A socket that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server, or something before it, does not want this socket; another try will end the same way.
    #[error("open the socket {path}: {reason}")]
    Refused {
        /// The path below the API's root.
        path: String,
        /// What the server says.
        reason: String,
    },
    /// The socket is gone; another try may succeed.
    #[error("keep the socket {path}: {reason}")]
    Lost {
        /// The path below the API's root.
        path: String,
        /// What happened.
        reason: String,
    },
}

impl Error {
    /// Whether another try may succeed.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// What a socket brings.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A JSON text frame.
    Frame(Value),
    /// The answer to our ping.
    Pong,
    /// A sign of life.
    Ping,
}

/// An authenticated socket.
pub(crate) struct Socket {
    path: String,
    // TLS to the server within TLS to the proxy, each where there is one.
    stream: WebSocketStream<MaybeTlsStream<MaybeTlsStream<TcpStream>>>,
}

impl Socket {
    /// Connects to the path whose segments are given and authenticates with `token`.
    pub(crate) async fn connect(
        client: &Client,
        segments: &[&str],
        token: Option<&SecretString>,
    ) -> Result<Self, Error> {
        let path = format!("/{}", segments.join("/"));
        let lost = |reason: String| Error::Lost { path: path.clone(), reason };
        let setup = async {
            let request = request(client, segments)
                .map_err(|error| Error::Refused { path: path.clone(), reason: error.to_string() })?;
            let stream = client.proxies().connect(client.api_url(), client.tls()).await;
            let stream = stream.map_err(|error| no_way(&path, &error))?;
            let connector = Connector::Rustls(client.tls());
            let connecting =
                tokio_tungstenite::client_async_tls_with_config(request, stream, None, Some(connector));
            // On the heap: two handshakes within each other are large.
            let (stream, _) = Box::pin(connecting).await.map_err(|error| refusal(&path, &error))?;
            let mut socket = Self { path: path.clone(), stream };
            let token = token.map(ExposeSecret::expose_secret);
            socket.send(&json!({"type": "auth", "token": token})).await?;
            loop {
                match socket.next().await? {
                    Incoming::Frame(frame) if frame["type"] == "auth_success" => return Ok(socket),
                    Incoming::Frame(_) => {
                        return Err(lost("the server did not confirm the authentication".to_owned()));
                    }
                    Incoming::Pong | Incoming::Ping => {}
                }
            }
        };
        let timeout = tokio::time::timeout(SETUP, setup).await;
        timeout.unwrap_or_else(|_| Err(lost(format!("no answer within {} s", SETUP.as_secs()))))
    }

    pub(crate) async fn send<T: serde::Serialize>(&mut self, frame: &T) -> Result<(), Error> {
        let text = serde_json::to_string(frame).map_err(|error| self.lost(&error))?;
        self.send_text(text.into()).await
    }

    /// Sends a frame that is JSON already.
    pub(crate) async fn send_text(&mut self, frame: Utf8Bytes) -> Result<(), Error> {
        self.transmit(Message::Text(frame)).await
    }

    pub(crate) async fn ping(&mut self, payload: Bytes) -> Result<(), Error> {
        self.transmit(Message::Ping(payload)).await
    }

    async fn transmit(&mut self, message: Message) -> Result<(), Error> {
        match tokio::time::timeout(SEND, self.stream.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.lost(&error)),
            Err(_) => Err(self.lost(&"a frame could not be sent in time")),
        }
    }

    /// The next frame. Cancel safe. Frames that are not JSON are refused; pings are answered below us.
    pub(crate) async fn next(&mut self) -> Result<Incoming, Error> {
        match self.stream.next().await {
            Some(Ok(Message::Text(text))) => {
                serde_json::from_str(&text).map(Incoming::Frame).map_err(|error| self.lost(&error))
            }
            Some(Ok(Message::Pong(_))) => Ok(Incoming::Pong),
            Some(Ok(Message::Ping(_))) => Ok(Incoming::Ping),
            Some(Ok(Message::Close(frame))) => Err(self.closed(frame.as_ref())),
            Some(Ok(Message::Binary(_) | Message::Frame(_))) => Err(self.lost(&"a binary frame came")),
            Some(Err(error)) => Err(self.lost(&error)),
            None => Err(self.lost(&"the connection ended")),
        }
    }

    /// Says good-bye and waits a moment for the answer.
    pub(crate) async fn close(mut self) {
        let goodbye = async {
            if self.stream.close(None).await.is_ok() {
                while let Some(Ok(_)) = self.stream.next().await {}
            }
        };
        // Nobody can do anything about a good-bye that is not answered.
        drop(tokio::time::timeout(Duration::from_secs(2), goodbye).await);
    }

    fn lost(&self, reason: &dyn std::fmt::Display) -> Error {
        Error::Lost { path: self.path.clone(), reason: reason.to_string() }
    }

    /// Close codes: 1008 and 1002 say that we are not wanted, all others that the server had trouble.
    fn closed(&self, frame: Option<&tungstenite::protocol::CloseFrame>) -> Error {
        let Some(frame) = frame else { return self.lost(&"the server closed it") };
        let code = u16::from(frame.code);
        let reason = match frame.reason.as_str() {
            "" => format!("the server closed it with code {code}"),
            reason => format!("the server closed it with code {code} ({reason})"),
        };
        match code {
            1002 | 1008 => Error::Refused { path: self.path.clone(), reason },
            _ => Error::Lost { path: self.path.clone(), reason },
        }
    }
}

fn no_way(path: &str, error: &ConnectError) -> Error {
    let (path, reason) = (path.to_owned(), error.to_string());
    match error {
        ConnectError::Refused { status: 400..500, .. } => Error::Refused { path, reason },
        ConnectError::Refused { .. } | ConnectError::Io(_) => Error::Lost { path, reason },
    }
}

fn refusal(path: &str, error: &tungstenite::Error) -> Error {
    let (path, reason) = (path.to_owned(), error.to_string());
    match error {
        tungstenite::Error::Http(response) if response.status().is_client_error() => {
            Error::Refused { path, reason }
        }
        _ => Error::Lost { path, reason },
    }
}

fn request(client: &Client, segments: &[&str]) -> Result<Request, tungstenite::Error> {
    let mut url = client.api_url().clone();
    let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
    if url.set_scheme(scheme).is_err() {
        return Err(tungstenite::Error::Url(tungstenite::error::UrlError::UnsupportedUrlScheme));
    }
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    let mut request = url.as_str().into_client_request()?;
    for (name, value) in client.headers() {
        // The socket has its own way to authenticate; a proxy before it wants the header all the same.
        let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_str().as_bytes()), HeaderValue::from_bytes(value.as_bytes()))
        else {
            continue;
        };
        if name != "host" && name != "upgrade" && name != "connection" && !name.as_str().starts_with("sec-") {
            request.headers_mut().insert(name, value);
        }
    }
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("prefect"));
    Ok(request)
}

/// The wait before reconnection number `attempt` (from 0): 1, 2, 4 … 30 seconds.
fn backoff(attempt: u32) -> Duration {
    Duration::from_secs(2u64.saturating_pow(attempt.min(5)).min(30))
}
