//! A small server that answers as told and records what came.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use prefect_client::settings::Inputs;
use prefect_client::{Client, Settings};
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub(crate) type Recorded = (Method, String, HeaderMap, Value);
pub(crate) type Answer = (u16, Vec<(&'static str, &'static str)>, Value);

/// Answers `(status, headers, body)` in turn; a CSRF token is given when `csrf` is set.
#[derive(Clone, Default)]
pub(crate) struct Script {
    pub(crate) answers: Arc<Mutex<VecDeque<Answer>>>,
    pub(crate) seen: Arc<Mutex<Vec<Recorded>>>,
    pub(crate) csrf: Option<&'static str>,
    /// What the server says to whoever asks for a token, instead.
    pub(crate) csrf_refusal: Option<u16>,
}

async fn answer(
    State(script): State<Script>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let path = uri.path().to_owned();
    script.seen.lock().unwrap().push((method, path.clone(), headers, body));
    if let Some(status) = script.csrf_refusal.filter(|_| path.ends_with("/csrf-token")) {
        return StatusCode::from_u16(status).unwrap().into_response();
    }
    if path.ends_with("/csrf-token") {
        return match script.csrf {
            Some(token) => {
                let hour = Timestamp::now() + Duration::from_hours(1);
                axum::Json(json!({"token": token, "client": "c", "expiration": hour})).into_response()
            }
            None => (StatusCode::UNPROCESSABLE_ENTITY, "{\"detail\": \"CSRF protection is disabled.\"}")
                .into_response(),
        };
    }
    let next = script.answers.lock().unwrap().pop_front();
    let (status, headers, body) = next.unwrap_or((200, vec![], json!({})));
    let mut response = (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

pub(crate) async fn serve(script: Script) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer).with_state(script);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

pub(crate) fn client(url: &str, more: &[(&str, &str)]) -> Client {
    let mut environment: BTreeMap<String, String> =
        more.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    environment.insert("PREFECT_API_URL".to_owned(), url.to_owned());
    let inputs = Inputs { environment, directory: PathBuf::from("/nonexistent") };
    Client::new(&Settings::resolve(&inputs).unwrap()).unwrap()
}

pub(crate) fn soon(status: u16) -> Answer {
    (status, vec![("retry-after", "0.01")], json!({"exception_message": "Service Unavailable"}))
}
