//! HTTP around the state: parsing, the body limit, faults, records.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::catalogue::{Catalogue, Recorded};
use super::reply::Reply;
use super::state::{Request, Version};
use crate::faults::{Action, Strike};
use crate::server::Connection;

/// The backend's limit for bodies.
const BODY_LIMIT: usize = 16 * 1024 * 1024;

pub(super) fn router(catalogue: &Arc<Catalogue>) -> Router {
    let catalogue = Arc::clone(catalogue);
    Router::new().fallback(move |ConnectInfo(connection): ConnectInfo<Connection>, request| {
        let catalogue = Arc::clone(&catalogue);
        async move { pass(&catalogue, &connection, request).await }
    })
}

async fn pass(catalogue: &Catalogue, connection: &Connection, request: axum::extract::Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let parsed = match parse(&parts, body).await {
        Ok(parsed) => parsed,
        Err(refusal) => {
            catalogue.record(recorded(&parts, None, Some(refusal.status)));
            return response(refusal);
        }
    };
    let subject = percent_decode_str(&path).decode_utf8_lossy().into_owned();
    let (before, after) = match catalogue.faults().strike(&parsed.method, &subject) {
        Some(Strike { action, after_effect: true }) => (None, Some(action)),
        Some(Strike { action, after_effect: false }) => (Some(action), None),
        None => (None, None),
    };
    let (reply, cut) = if let Some(outcome) = struck(before).await {
        outcome
    } else {
        let reply = catalogue.handle(&parsed);
        struck(after).await.unwrap_or((reply, false))
    };
    catalogue.record(recorded(&parts, Some(&parsed.body), (!cut).then_some(reply.status)));
    if cut {
        connection.cut();
    }
    response(reply)
}

/// What a fault answers instead of the proper reply, and whether the connection is cut; a delay is over then.
async fn struck(action: Option<Action>) -> Option<(Reply, bool)> {
    match action? {
        Action::Delay(delay) => {
            tokio::time::sleep(delay).await;
            None
        }
        Action::DropConnection => Some((Reply::internal(), true)),
        Action::Error { status: 500, .. } => Some((Reply::internal(), false)),
        Action::Error { status, .. } => {
            Some((Reply::error(status, "Injected fault", "injected fault"), false))
        }
    }
}

async fn parse(parts: &Parts, body: Body) -> Result<Request, Reply> {
    let bytes = to_bytes(body, BODY_LIMIT).await.map_err(|_| Reply::internal())?;
    let kind = parts.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let body = if bytes.is_empty() {
        Value::Null
    } else if kind.starts_with("application/x-www-form-urlencoded") {
        json!(pairs(&bytes))
    } else {
        serde_json::from_slice(&bytes)
            .map_err(|error| Reply::bad_request(&format!("Unexpected token in JSON: {error}")))?
    };
    let mut segments = parts.uri.path().split('/').skip(1).map(decode);
    let version = match (segments.next().as_deref(), segments.next().as_deref()) {
        (Some("api"), Some("v3")) => Some(Version::V3),
        (Some("api"), Some("v4")) => Some(Version::V4),
        _ => None,
    };
    let header = parts.headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok());
    Ok(Request {
        method: parts.method.to_string(),
        path: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        version,
        segments: segments.collect(),
        query: parts.uri.query().map(|query| pairs(query.as_bytes())).unwrap_or_default(),
        body,
        token: header.and_then(|header| header.strip_prefix("Bearer ")).map(str::to_owned),
    })
}

fn decode(segment: &str) -> String {
    percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

fn pairs(text: &[u8]) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(text).into_owned().collect()
}

fn recorded(parts: &Parts, body: Option<&Value>, status: Option<u16>) -> Recorded {
    let mut body = body.filter(|body| !body.is_null()).cloned();
    if let Some(password) = body.as_mut().and_then(|body| body.get_mut("password")) {
        *password = json!("<password>");
    }
    Recorded {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().map(str::to_owned),
        body,
        status,
    }
}

fn response(reply: Reply) -> Response {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match reply.body {
        Some(body) => {
            let kind = (header::CONTENT_TYPE, "application/json; charset=utf-8");
            (status, [kind], body.to_string()).into_response()
        }
        None => status.into_response(),
    }
}
